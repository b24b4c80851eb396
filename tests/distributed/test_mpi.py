"""Ranks under mpiexec: the same weights as one process, and an end for all when one fails."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rank_threads import assert_near, trained

from gpucnn import nn
from gpucnn.distributed import MPI

PROGRAM = Path(__file__).with_name("mpi_program.py")
MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
LONGEST = 30.0  # seconds that the others may take to end


@pytest.fixture
def mpiexec() -> str:
    """The command that starts ranks; where GPUCNN_REQUIRE_MPI is set, as in CI, its absence is an error."""
    there = MPIEXEC is not None and importlib.util.find_spec("mpi4py") is not None
    if not there:
        assert not os.environ.get("GPUCNN_REQUIRE_MPI"), "GPUCNN_REQUIRE_MPI is set, but mpi4py or mpiexec is missing"
        pytest.skip("mpi4py or mpiexec is not installed")
    pytest.importorskip("safetensors")
    assert MPIEXEC is not None
    return MPIEXEC


def start(mpiexec: str, size: int, name: str, folder: Path, at: int = 0) -> subprocess.CompletedProcess[str]:
    return launched(mpiexec, size, str(PROGRAM), name, str(folder), FAILS_AT=str(at))


def launched(mpiexec: str, size: int, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What Python with these arguments said in several processes."""
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "OPENBLAS_NUM_THREADS": "1",
        "GPUCNN_CPU": "numpy",
        **variables,
    }
    command = [mpiexec, "-n", str(size), sys.executable, "-W", "error", *arguments]
    return subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=LONGEST + 30,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_agree_with_one_process(mpiexec: str, tmp_path: Path, size: int) -> None:
    ran = start(mpiexec, size, "checks", tmp_path)
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert sorted(re.findall(rf"rank (\d) of {size} is done", ran.stdout)) == [str(rank) for rank in range(size)]
    checkpoint = nn.Checkpoint(tmp_path / "finished")
    weights, history, _ = trained(None, "synchronized", checkpoint=checkpoint)
    expected, undisturbed, _ = trained(None, "synchronized")
    assert_near(weights, expected)
    np.testing.assert_allclose(history.losses, undisturbed.losses, rtol=0, atol=1e-12)


def test_an_exception_on_one_rank_ends_all_and_is_printed_once(mpiexec: str, tmp_path: Path) -> None:
    ran = start(mpiexec, 2, "failing", tmp_path, at=3)
    assert ran.returncode != 0
    assert ran.stderr.count("ZeroDivisionError: this rank fails") == 1
    assert ran.stderr.count("gpucnn: rank 1 of 2 failed, which ends all") == 1


def test_an_exception_on_all_ranks_is_printed_once(mpiexec: str, tmp_path: Path) -> None:
    ran = start(mpiexec, 2, "before", tmp_path)
    assert ran.returncode != 0
    assert ran.stderr.count("ZeroDivisionError: all ranks fail") == 1


def test_the_others_end_with_a_rank_that_is_killed_and_the_run_goes_on(mpiexec: str, tmp_path: Path) -> None:
    ran = start(mpiexec, 2, "killed", tmp_path, at=random.randint(1, 8))
    assert ran.returncode != 0
    checkpoint = nn.Checkpoint(tmp_path / "ended")
    weights, history, _ = trained(None, "synchronized", checkpoint=checkpoint)
    expected, undisturbed, _ = trained(None, "synchronized")
    assert_near(weights, expected)
    np.testing.assert_allclose(history.losses, undisturbed.losses, rtol=0, atol=1e-12)


def test_the_example_trains(mpiexec: str) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    ran = launched(mpiexec, 2, "-m", "gpucnn.examples.parallel", "--epochs", "1", "--target", "0.5")
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert ran.stdout.startswith("epoch 1/1: loss ")
    assert re.fullmatch(r"2 processes, of which the first sent \d\.\d MB", ran.stdout.splitlines()[1])


def test_the_program_in_the_readme_trains(mpiexec: str, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"<!-- train.py -->\n```py\n(.*?)```\n<!-- /train.py -->", readme, flags=re.DOTALL)
    (tmp_path / "train.py").write_text(program, encoding="utf-8")
    ran = launched(mpiexec, 2, str(tmp_path / "train.py"))
    assert ran.returncode == 0, ran.stderr[-4000:]
    *_, last = ran.stdout.splitlines()
    assert float(re.findall(r"validation accuracy (\S+)%", last)[0]) > 95


def test_without_mpi4py_the_message_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ModuleNotFoundError, match=r"MPI: mpi4py is not installed: pip install .*\[mpi\]"):
        MPI()
