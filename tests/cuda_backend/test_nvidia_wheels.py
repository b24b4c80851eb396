"""cuBLAS and NVRTC only where NVIDIA's wheels put them: CuPy and gpucnn find them there, and compute with them.

Runs in an environment that ``python -m gpucnn.simulator.cupy DIR --libraries nvidia-wheels`` made. Each test asks a
Python of its own, since what a process has loaded stays.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpucnn.simulator.cupy import environment
from gpucnn.simulator.cupy.environment import NVIDIA_FOLDERS

PROJECT = Path(__file__).parents[2]
# Where else libraries are looked for; and LD_LIBRARY_PATH.
ELSEWHERE = {"CONDA_PREFIX", "CUDA_HOME", "CUDA_PATH", "LD_LIBRARY_PATH"}

LOADED = """
import json, re
from pathlib import Path
def loaded(name):
    maps = Path("/proc/self/maps").read_text()
    return sorted(set(re.findall(rf"/\\S*/lib{name}\\.so\\S*", maps)))
"""


@pytest.fixture(scope="module")
def folders() -> dict[str, Path]:
    """The folder of each library that lies where NVIDIA's wheels put it."""
    made = Path(sys.prefix)
    try:
        plan = environment.description(made)
    except environment.BuildError:
        plan = None
    if plan is None or plan.places != "nvidia-wheels":
        if os.environ.get("GPUCNN_REQUIRE_CUPY") == "nvidia-wheels":
            raise pytest.UsageError(f"{made} was not made with --libraries nvidia-wheels")
        pytest.skip("needs an environment that python -m gpucnn.simulator.cupy --libraries nvidia-wheels made")
    (site_packages,) = made.glob("lib/python*/site-packages")
    return {name: site_packages / folder for name, folder in NVIDIA_FOLDERS[plan.cuda].items()}


def answer(code: str) -> object:
    """What `code` prints, as JSON, in a new Python that looks for libraries in its site-packages alone."""
    variables = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    command = [sys.executable, "-c", LOADED + code]
    ran = subprocess.run(command, cwd=PROJECT, env=variables, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def found_in(folder: Path, paths: object) -> bool:
    assert isinstance(paths, list)
    return [Path(path).parent for path in paths] == [folder]


def test_they_are_nowhere_before_they_are_looked_for(folders: dict[str, Path]) -> None:
    code = "import cupy_backends.cuda.api.runtime; print(json.dumps([loaded(n) for n in ('cublas', 'nvrtc', 'cuda')]))"
    cublas, nvrtc, driver = answer(code)  # type: ignore[misc]
    assert (cublas, nvrtc, len(driver)) == ([], [], 1)


def test_cupy_finds_them(folders: dict[str, Path]) -> None:
    code = """
import cupy
x = cupy.arange(6, dtype="f4").reshape(2, 3)
print(json.dumps([(x @ x.T).tolist(), loaded("cublas"), loaded("nvrtc")]))
"""
    product, cublas, nvrtc = answer(code)  # type: ignore[misc]
    assert product == [[5.0, 14.0], [14.0, 50.0]]
    assert found_in(folders["cublas"], cublas)
    assert found_in(folders["nvrtc"], nvrtc)


def test_a_convolution_finds_them(folders: dict[str, Path]) -> None:
    code = """
import cupy, numpy as np
import gpucnn.functional as F
x = np.arange(2 * 8 * 6 * 6, dtype="f4").reshape(2, 8, 6, 6) % 7
w = np.arange(8 * 8 * 9, dtype="f4").reshape(8, 8, 3, 3) % 5
y = F.conv2d(cupy.asarray(x), cupy.asarray(w))
print(json.dumps([bool((y.get() == F.conv2d(x, w)).all()), loaded("nvrtc")]))
"""
    is_equal, nvrtc = answer(code)  # type: ignore[misc]
    assert is_equal is True
    assert found_in(folders["nvrtc"], nvrtc)


def test_gpucnn_tells_where_they_are(folders: dict[str, Path]) -> None:
    code = """
from gpucnn.backends.cuda.device import cupy_runtime, libraries, nvrtc
major = cupy_runtime.why_unavailable()
found = nvrtc.load()
print(json.dumps([major, str(found.path), libraries.cublas_version(found.version[0])]))
"""
    reason, path, version = answer(code)  # type: ignore[misc]
    assert reason is None
    assert Path(path).parent == folders["nvrtc"]
    assert version.startswith(("12.", "13."))
