"""Checks before the run: a sentence for each part that cannot run here, with its remedy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from gpucnn.installing import install_command

SUITE_NEEDS = ("pytest", "hypothesis", "ml_dtypes")
SANITIZER_PARTS = ("memcheck", "racecheck", "synccheck", "initcheck")
SANITIZER_SOURCE = (
    "it comes with the CUDA toolkit, or with pip install nvidia-cuda-sanitizer-api "
    "(nvidia-cuda-sanitizer-api-cu12 for CUDA 12)"
)


class Preflight(NamedTuple):
    """The reason why nothing can be run, if so, the reasons why single parts cannot, and the sanitizer's path."""

    hopeless: str | None
    missing: dict[str, str]
    sanitizer: str | None


def look(backend: str) -> Preflight:
    """Find what prevents checks on `backend` on this machine."""
    if backend == "simulator":
        from gpucnn.simulator import available

        said = available()
        hopeless = None if said == "available" else said
    else:
        from gpucnn.backends.cuda.device.cupy_runtime import why_unavailable

        hopeless = why_unavailable()
    sanitizer = None if backend == "simulator" else find_sanitizer()
    return Preflight(hopeless, missing(backend, sanitizer), sanitizer)


def missing(backend: str, sanitizer: str | None, installed: Callable[[str], object] = find_spec) -> dict[str, str]:
    """The parts that cannot be run, with the reason of each."""
    reasons = {}
    absent = [module for module in SUITE_NEEDS if installed(module) is None]
    if absent:
        reasons["suite"] = f"{', '.join(absent)} not installed: {install_command('test')}"
    if installed("ml_dtypes") is None:
        reasons["repeatability"] = f"ml_dtypes not installed: {install_command('test')}"
    for part in SANITIZER_PARTS:
        if backend == "simulator":
            reasons[part] = "compute-sanitizer looks at GPUs only; the simulator makes checks of its own"
        elif "repeatability" in reasons:
            reasons[part] = reasons["repeatability"]
        elif sanitizer is None:
            reasons[part] = f"compute-sanitizer was not found: {SANITIZER_SOURCE}"
    return reasons


def find_sanitizer(
    environment: Mapping[str, str] = os.environ,
    packages: Iterable[Path] | None = None,
    which: Callable[[str], str | None] = shutil.which,
) -> str | None:
    """compute-sanitizer's path: on the PATH, in a toolkit, or in NVIDIA's wheel."""
    found = which("compute-sanitizer")
    if found:
        return found
    toolkits = [environment[name] for name in ("CUDA_PATH", "CUDA_HOME") if environment.get(name)]
    folders = [
        Path(toolkit, part) for toolkit in (*toolkits, "/usr/local/cuda") for part in ("bin", "compute-sanitizer")
    ]
    for package in _nvidia_packages() if packages is None else packages:
        folders += [package / part for part in ("cuda_sanitizer_api/bin", "cu13/compute-sanitizer", "cu13/bin")]
    names = ("compute-sanitizer", "compute-sanitizer.exe")
    return next((str(folder / name) for folder in folders for name in names if (folder / name).is_file()), None)


def _nvidia_packages() -> list[Path]:
    spec = find_spec("nvidia")
    return [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
