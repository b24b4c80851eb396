"""NVIDIA's libraries, found by cuda-pathfinder, which CuPy itself uses since version 14."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

_NAMES = {  # by the system's kind and CUDA's major version
    "nvrtc": ("libnvrtc.so.{}", "nvrtc64_{}0_0.dll"),
    "cublas": ("libcublas.so.{}", "cublas64_{}.dll"),
}


def places(library: str, majors: Iterable[int]) -> Iterator[str]:
    """Names and paths to pass to the system's loader, best first.

    First the file that cuda-pathfinder finds, of any version: in NVIDIA's wheels, conda, the system or under CUDA_PATH.
    Then the system's own by name, the only ones without cuda-pathfinder, which CuPy 13 does not require.

    Parameters
    ----------
    library : "nvrtc" or "cublas"
    majors : iterable of int
        CUDA's major versions, the preferred one first.
    """
    try:
        pathfinder: Any = import_module("cuda.pathfinder")
        found = pathfinder.load_nvidia_dynamic_lib(library).abs_path
    except (ImportError, RuntimeError):  # it is not installed, or it finds no library that loads
        found = None
    if found is not None:
        yield found
    yield from (_NAMES[library][sys.platform == "win32"].format(major) for major in majors)


def cublas_version(major: int) -> str:
    """The version of cuBLAS for CUDA `major`; "unknown" where none is found or it does not say."""
    for place in places("cublas", (major,)):
        try:
            ask = ctypes.CDLL(place).cublasGetProperty
        except (OSError, AttributeError):
            continue
        parts = [ctypes.c_int() for _ in range(3)]
        if not any(ask(which, ctypes.byref(part)) for which, part in enumerate(parts)):
            return ".".join(str(part.value) for part in parts)
    return "unknown"
