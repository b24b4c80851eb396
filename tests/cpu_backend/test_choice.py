"""The choice of a process between the two CPU backends, each case in a process of its own: decided once, and said."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import gpucnn

pytestmark = pytest.mark.usefixtures("compiler", "kernels")
HERE = Path(__file__).parent

BEFORE = """
import sys, threading, warnings
from pathlib import Path
import numpy as np
import gpucnn
from gpucnn import backends
from gpucnn.backends.cpu import builds
from small_kernels import FIRST_VALUES, values
builds._FOLDERS = (Path(sys.argv[1]),)
backend_of = backends.backend_of
x = np.ones(3, np.float32)
"""


def start(kernels: Path, code: str, **variables: str) -> subprocess.Popen[str]:
    """A program in a new process, with these environment variables."""
    environment = {name: value for name, value in os.environ.items() if name not in ("GPUCNN_CPU", "CXX")}
    path = os.pathsep.join([str(HERE), *filter(None, sys.path)])
    return subprocess.Popen(
        [sys.executable, "-c", BEFORE + textwrap.dedent(code), str(kernels)],
        env={**environment, "PYTHONPATH": path, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def python(kernels: Path, code: str, **variables: str) -> tuple[str, str]:
    """What a program prints, and what it says on stderr."""
    process = start(kernels, code, **variables)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out, err


NAME = "print(backend_of(x).name)"
LINES = "".join(f"gpucnn: compiling its CPU kernels for this machine, once: {count} of 2\n" for count in (0, 2))


@pytest.mark.table(3)
@pytest.mark.parametrize("choice", [None, "", "auto", " compiled ", "numpy"])
def test_the_environment_chooses(kernels: Path, cache: Path, choice: str | None) -> None:
    variables = {} if choice is None else {"GPUCNN_CPU": choice}
    out, err = python(kernels, NAME, **variables)
    assert (out, err) == (("numpy\n", "") if choice == "numpy" else ("compiled\n", LINES))
    assert cache.exists() == (choice != "numpy")


@pytest.mark.thorough
def test_importing_compiles_nothing(kernels: Path, cache: Path) -> None:
    assert python(kernels, "import gpucnn.functional, gpucnn.nn; gpucnn.info()") == ("", "")
    assert not cache.exists()


def test_a_compiler_that_is_missing_leaves_numpy_with_one_warning(kernels: Path) -> None:
    code = """
    print(backend_of(x).name, backend_of(x).name, gpucnn.info()["cpu"]["backend"])
    import gpucnn.functional as F
    assert (F.relu(-x) == 0).all()
    """
    out, err = python(kernels, code, PATH="")
    assert out == "numpy numpy numpy\n"
    assert err.count("RuntimeWarning") == 1
    assert "NumPy computes on the CPU" in err
    assert "install one" in err
    assert "GPUCNN_CPU=numpy chooses NumPy without this warning" in err


@pytest.mark.thorough
def test_a_compiler_that_fails_leaves_numpy_with_one_warning(kernels: Path, tmp_path: Path) -> None:
    script = tmp_path / "fake"
    script.write_text("#!/bin/sh\necho no such flag >&2\nexit 1\n")
    script.chmod(0o755)
    out, err = python(kernels, NAME + "\n" + NAME, CXX=str(script))
    assert out == "numpy\nnumpy\n"
    assert err.count("RuntimeWarning") == 1
    assert "no such flag" in err


def test_compiled_or_not_at_all(kernels: Path) -> None:
    code = """
    for _ in range(2):
        try:
            backend_of(x)
        except RuntimeError as error:
            print(str(error).partition(";")[0])
    """
    out, err = python(kernels, code, PATH="", GPUCNN_CPU="compiled")
    assert out == "compiled CPU kernels need g++ 11 or newer, or clang++ 15 or newer\n" * 2
    assert err == ""


@pytest.mark.thorough
def test_a_value_that_makes_no_sense(kernels: Path) -> None:
    code = """
    try:
        backend_of(x)
    except ValueError as error:
        print(error)
    """
    out, _ = python(kernels, code, GPUCNN_CPU="fast")
    assert out == "GPUCNN_CPU is 'fast', expected one of ('auto', 'compiled', 'numpy')\n"


def test_what_is_decided_stays(kernels: Path, tmp_path: Path) -> None:
    """Whatever happens to the variable, the compiler, the sources and the cache afterwards."""
    code = """
    import os, shutil
    print(backend_of(x).name)
    os.environ.update(GPUCNN_CPU="numpy", PATH="", GPUCNN_CACHE_DIR=os.environ["GPUCNN_CACHE_DIR"] + "2")
    shutil.rmtree(sys.argv[1])
    print(backend_of(x).name, values() == FIRST_VALUES)
    """
    assert python(kernels, code) == ("compiled\ncompiled True\n", LINES)


def test_a_block_chooses_for_itself(kernels: Path) -> None:
    code = """
    with gpucnn.backend("compiled"):
        print(backend_of(x).name)
        with gpucnn.backend("numpy"):
            print(backend_of(x).name)
        thread = threading.Thread(target=lambda: print(backend_of(x).name))
        thread.start()
        thread.join()
    print(backend_of(x).name)
    """
    out, err = python(kernels, code, GPUCNN_CPU="numpy")
    assert out == "compiled\nnumpy\nnumpy\nnumpy\n"
    assert err == LINES


def test_a_block_names_one_of_the_two() -> None:
    expected = r"^backend: name is 'cuda', expected 'compiled' or 'numpy'$"
    with pytest.raises(ValueError, match=expected), gpucnn.backend("cuda"):
        pass


@pytest.mark.thorough
def test_threads_that_begin_together_compile_once(kernels: Path, tmp_path: Path) -> None:
    code = """
    meet, names = threading.Barrier(8), []
    def work():
        meet.wait(60)
        names.append(backend_of(x).name)
    threads = [threading.Thread(target=work) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    print(set(names), values() == FIRST_VALUES)
    """
    assert python(kernels, code) == ("{'compiled'} True\n", LINES)


@pytest.mark.thorough
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_a_process_may_fork_while_another_thread_compiles(kernels: Path) -> None:
    code = """
    import os
    begun, end = threading.Event(), threading.Event()
    load, library = builds._load_all, builds.compiled
    def slow(report, dtypes):
        begun.set()
        end.wait(60)
        return load(report, dtypes)
    builds._load_all = slow
    thread = threading.Thread(target=backend_of, args=(x,))
    thread.start()
    begun.wait(60)
    end.set() if (child := os.fork()) == 0 else None
    if child == 0:
        builds._load_all = load
        os._exit(0 if backend_of(x).name == "compiled" and values() == FIRST_VALUES else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    end.set()
    thread.join()
    print(backend_of(x).name)
    """
    out, _ = python(kernels, "warnings.simplefilter('ignore', DeprecationWarning)\n" + textwrap.dedent(code))
    assert out == "0\ncompiled\n"


@pytest.mark.thorough
def test_processes_that_begin_together_share_the_cache(kernels: Path, cache: Path) -> None:
    code = "print(backend_of(x).name, values() == FIRST_VALUES)"
    processes = [start(kernels, code) for _ in range(8)]
    said = [process.communicate(timeout=120) for process in processes]
    assert [out for out, _ in said] == ["compiled True\n"] * 8
    assert len(list(cache.glob("*.so"))) == 2
    assert len(list(cache.iterdir())) == 3  # and the compiler's note: nothing is left behind
    assert python(kernels, NAME) == ("compiled\n", "")  # the next one finds all


@pytest.mark.thorough
def test_a_private_folder_is_gone_when_its_process_is(kernels: Path, cache: Path, tmp_path: Path) -> None:
    cache.parent.write_text("in the way")
    (tmp_path / "tmp").mkdir()
    code = "print(backend_of(x).name, len(list(Path(sys.argv[1]).parent.glob('tmp/gpucnn-*/cpu/*.so'))))"
    out, err = python(kernels, code, TMPDIR=str(tmp_path / "tmp"))
    assert out == "compiled 2\n"
    assert err.count("RuntimeWarning") == 1
    assert not list((tmp_path / "tmp").iterdir())


def test_the_command_builds(kernels: Path, cache: Path) -> None:
    code = "from gpucnn.information import main; main(['--build'])"
    out, err = python(kernels, code, GPUCNN_CPU="numpy")
    assert out.startswith(f"4 builds of the CPU kernels in {cache}: 4 compiled, 0 found, ")
    assert err.endswith("warmup: CPU kernels ready 4/4\n")
    out, err = python(kernels, code)
    assert (f"{cache}: 0 compiled, 4 found, " in out, err) == (True, "")


@pytest.mark.thorough
def test_the_command_that_cannot_build_says_why(kernels: Path) -> None:
    process = start(kernels, "from gpucnn.information import main; main(['--build'])", PATH="")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("gpucnn: compiled CPU kernels need g++ 11 or newer")
