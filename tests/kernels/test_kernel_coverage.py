"""Every line of kernels/ is run by the cases of kernel_cases.py, or is listed here with its reason."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_cases import CASES, Case

from gpucnn import simulator
from gpucnn.backends.cuda import CudaBackend
from gpucnn.backends.cuda.device import sources
from gpucnn.backends.cuda.device.simulator_runtime import SimulatorRuntime

NOT_RUN: dict[str, dict[int, str]] = {}
"""By file, the lines that no case runs, and why."""

OTHER_DTYPES = ("float16", "bfloat16", "float64", "complex64", "int8", "uint8")


def chosen(case: Case) -> bool:
    """Float32 in all cases, other dtypes where the kernels' text is another one for them."""
    if "implicit GEMM" in case.name:
        return "steps of channels" in case.name or ("float16" in case.name and "tiles" not in case.name)
    if "float32" in case.name or "complex64, im2col" in case.name:  # the latter's bias is added by `pack`
        return True
    of_dtypes = {"conv_forward", "max_pool", "average_pool", "interpolate"}
    return any(dtype in case.name for dtype in OTHER_DTYPES) and bool(of_dtypes.intersection(case.kernels))


def measure() -> None:
    """Run the cases in builds that count; print wrong results, and each line that did not run."""
    from gpucnn.simulator import coverage

    with simulator.options(mode="coverage"):
        backend = CudaBackend(SimulatorRuntime())
        for case in filter(chosen, CASES):
            if not case.agrees(tuple(map(simulator.asnumpy, case.run(backend, simulator.asarray)))):
                raise SystemExit(f"wrong: {case.name}")
    for file, found in coverage.report().items():
        print(file, len(found.executed), *sorted(found.missed))


@pytest.mark.thorough
@pytest.mark.usefixtures("compiler")
@pytest.mark.skipif(shutil.which("gcov") is None, reason="gcov, which belongs to g++, is not installed")
def test_every_line_of_the_kernels_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUCNN_CACHE_DIR", str(tmp_path))  # counts of other runs would add to these
    code = f"import sys; sys.path[:0] = {sys.path}; import test_kernel_coverage as measured; measured.measure()"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = {name: list(map(int, counts)) for name, *counts in map(str.split, done.stdout.splitlines())}
    missed = {name: counts[1:] for name, counts in lines.items() if set(counts[1:]) != set(NOT_RUN.get(name, {}))}
    assert missed == {}
    measured = {name for name, counts in lines.items() if counts[0]}
    assert measured == {path.name for path in sources.folder().glob("*.cu*") if path.name != "params.cuh"}
