"""The simulated driver through ctypes: it is built, loaded as a library of its own, and called."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from gpucnn.simulator import toolchain
from gpucnn.simulator.cuda import libraries

CUDA_VERSION = "12.9"
SETTINGS = {"GPUCNN_CUDA_DEVICES": "2", "GPUCNN_CUDA_MEMORY": "64M"}
VARIABLES = ("DEVICES", "DEVICE", "MEMORY", "CHECK", "STREAM_SEED", "LOG", "FAIL", "LEAKS", "STICKY", "STREAM_RACES")
REASON = (
    "NVIDIA's headers are not here: set GPUCNN_CUDA_HEADERS to the include folder of the package "
    "nvidia-cuda-runtime-cu12, or run this in an environment that python -m gpucnn.simulator.cupy made"
)

INVALID_VALUE = 1
OUT_OF_MEMORY = 2
NOT_INITIALIZED = 3
NO_DEVICE = 100
INVALID_DEVICE = 101
INVALID_CONTEXT = 201
UNSUPPORTED_LIMIT = 215
NOT_FOUND = 500
ILLEGAL_ADDRESS = 700
PEER_ACCESS_ALREADY_ENABLED = 704
PEER_ACCESS_NOT_ENABLED = 705
CONTEXT_IS_DESTROYED = 709
ALREADY_REGISTERED = 712
NOT_REGISTERED = 713
LAUNCH_FAILED = 719
NOT_SUPPORTED = 801
STREAM_CAPTURE_UNSUPPORTED = 900
STREAM_CAPTURE_INVALIDATED = 901
UNKNOWN = 999


@cache
def library_path() -> Path | None:
    """The file of the simulated driver: built from NVIDIA's headers, or the environment's; None without either."""
    headers = os.environ.get("GPUCNN_CUDA_HEADERS")
    if headers:
        return _build(Path(headers))
    package = importlib.util.find_spec("gpucnn_cuda")
    if package is None or package.origin is None:
        return None
    found = sorted(Path(package.origin).parent.rglob("libcuda.so.1"))
    return found[0] if found else None


def _build(headers: Path) -> Path:
    """The driver alone: the other libraries take minutes."""
    job = libraries._Job(libraries.HERE, headers, CUDA_VERSION, print)
    driver = libraries.LIBRARIES[0]
    objects = [job.compile(driver, source) for source in libraries.sources_of(driver)]
    return job.link(driver, driver.sonames[12], objects, [])


def environment(**settings: str) -> dict[str, str]:
    """The environment of a process that loads the driver with these settings and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GPUCNN_CUDA_")}
    return {**kept, **settings}


def run(code: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """A new Python that runs `code`, where `cuda` is the driver by ctypes, with these settings."""
    prelude = "import ctypes, sys\ncuda = ctypes.CDLL(sys.argv[1])\n"
    command = [sys.executable, "-c", prelude + code, str(library_path())]
    return subprocess.run(command, env=environment(**settings), capture_output=True, text=True, check=False)


def exported_names(path: Path) -> set[str]:
    """The names of CUDA's functions that the library exports."""
    listed = toolchain.run(["nm", "-D", "--defined-only", str(path)])
    names = {line.split()[-1] for line in listed.splitlines()}
    return {name for name in names if name.startswith("cu") and name[2].isupper()}


class Copy2D(ctypes.Structure):
    """CUDA_MEMCPY2D."""

    _fields_ = tuple(
        (f"{side}{name}", ctypes.c_int if name == "MemoryType" else ctypes.c_size_t)
        for side in ("src", "dst")
        for name in ("XInBytes", "Y", "MemoryType", "Host", "Device", "Array", "Pitch")
    ) + (("WidthInBytes", ctypes.c_size_t), ("Height", ctypes.c_size_t))


class Copy3D(ctypes.Structure):
    """CUDA_MEMCPY3D and, with contexts in the place of what is reserved, CUDA_MEMCPY3D_PEER."""

    _fields_ = tuple(
        (f"{side}{name}", ctypes.c_int if name == "MemoryType" else ctypes.c_size_t)
        for side in ("src", "dst")
        for name in ("XInBytes", "Y", "Z", "LOD", "MemoryType", "Host", "Device", "Array", "Context", "Pitch", "Height")
    ) + (("WidthInBytes", ctypes.c_size_t), ("Height", ctypes.c_size_t), ("Depth", ctypes.c_size_t))


class PoolProperties(ctypes.Structure):
    """CUmemPoolProps."""

    _fields_ = (
        ("allocType", ctypes.c_int),
        ("handleTypes", ctypes.c_int),
        ("locationType", ctypes.c_int),
        ("locationId", ctypes.c_int),
        ("win32SecurityAttributes", ctypes.c_void_p),
        ("maxSize", ctypes.c_size_t),
        ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 54),
    )


class Location(ctypes.Structure):
    """CUmemLocation."""

    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


HOST, DEVICE, ARRAY, UNIFIED = 1, 2, 3, 4


class Calls:
    """The simulated driver. Integers go as 64 bits, which the machine's calls take for every integer type."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))

    def status(self, name: str, *arguments: Any) -> int:
        """What a function returns."""
        function = getattr(self.library, name)
        return int(function(*(ctypes.c_uint64(each) if isinstance(each, int) else each for each in arguments)))

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call a function, which must succeed."""
        status = self.status(name, *arguments)
        assert status == 0, f"{name}: {self.text(status)}"

    def text(self, status: int) -> str:
        """What cuGetErrorString says."""
        text = ctypes.c_char_p()
        assert self.library.cuGetErrorString(status, ctypes.byref(text)) == 0
        assert text.value is not None
        return text.value.decode()

    def failure(self, name: str, *arguments: Any) -> tuple[int, str]:
        """What a function that fails returns, and what is said of it after the error's own text."""
        status = self.status(name, *arguments)
        return status, self.text(status).partition(": ")[2]

    def number(self, name: str, *arguments: Any, kind: Any = ctypes.c_uint64) -> int:
        """The number that a function gives through its first argument."""
        result = kind(0)
        self(name, ctypes.byref(result), *arguments)
        return int(result.value or 0)

    def attribute(self, pointer: int, attribute: int, kind: Any = ctypes.c_uint64) -> int:
        return self.number("cuPointerGetAttribute", attribute, pointer, kind=kind)

    def allocate(self, nbytes: int) -> int:
        return self.number("cuMemAlloc_v2", nbytes)

    def write(self, pointer: int, data: bytes) -> None:
        self("cuMemcpyHtoD_v2", pointer, data, len(data))

    def read(self, pointer: int, nbytes: int) -> bytes:
        data = ctypes.create_string_buffer(nbytes)
        self("cuMemcpyDtoH_v2", data, pointer, nbytes)
        return data.raw
