"""Matrix products by cuBLAS, through handles of gpucnn's own.

CuPy's handle cannot be used while a stream is being captured, may sum 16-bit products in 16 bits, and shares one
workspace between streams, so that products may not repeat bit for bit. A handle here has a workspace per stream and
sums in float32.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from functools import cache
from typing import Any

from gpucnn.backends.cuda.device.libraries import places
from gpucnn.backends.cuda.device.runtime import Device

MAX_STREAMS = 16  # with a workspace of their own, per thread and device
_MIB = 1 << 20
_ALLOW_NO_16_BIT_SUMS = 16  # CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION, of the default math mode

_DATA_TYPES = {"float32": 0, "float64": 1, "float16": 2, "complex64": 4, "complex128": 5, "bfloat16": 14}
_COMPUTE_32F, _COMPUTE_64F, _COMPUTE_32F_FAST_TF32 = 68, 70, 77  # cublasComputeType_t
_GEMM_DEFAULT = -1
_STATUS = {
    1: "NOT_INITIALIZED",
    3: "ALLOC_FAILED",
    7: "INVALID_VALUE",
    8: "ARCH_MISMATCH",
    11: "MAPPING_ERROR",
    13: "EXECUTION_FAILED",
    14: "INTERNAL_ERROR",
    15: "NOT_SUPPORTED",
    16: "LICENSE_ERROR",
}

_INT, _LONG, _POINTER = ctypes.c_int, ctypes.c_longlong, ctypes.c_void_p
_ARGUMENTS = {
    "cublasCreate_v2": (_POINTER,),
    "cublasDestroy_v2": (_POINTER,),
    "cublasSetStream_v2": (_POINTER, _POINTER),
    "cublasSetWorkspace_v2": (_POINTER, _POINTER, ctypes.c_size_t),
    "cublasSetMathMode": (_POINTER, _INT),
    "cublasGemmStridedBatchedEx": (
        *(_POINTER, _INT, _INT, _INT, _INT, _INT, _POINTER),
        *(_POINTER, _INT, _INT, _LONG) * 2,
        *(_POINTER, _POINTER, _INT, _INT, _LONG),
        *(_INT, _INT, _INT),
    ),
}


class CublasError(RuntimeError):
    """A call of cuBLAS failed."""


class Cublas:
    """The library.

    Parameters
    ----------
    majors : iterable of int
        CUDA's major versions, the preferred one first.

    Raises
    ------
    OSError
        It is not found.
    """

    def __init__(self, majors: Iterable[int]) -> None:
        self._library = _load(tuple(majors))
        for name, arguments in _ARGUMENTS.items():
            getattr(self._library, name).argtypes = arguments
        self.gemm = self._library.cublasGemmStridedBatchedEx

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the library; CublasError if it fails."""
        check(name, getattr(self._library, name)(*arguments))


def _load(majors: tuple[int, ...]) -> ctypes.CDLL:
    failures = []
    for place in places("cublas", majors):
        try:
            return ctypes.CDLL(place)
        except OSError as error:
            failures.append(str(error))
    raise OSError("cuBLAS is not found: " + "; ".join(failures))


@cache
def library(majors: tuple[int, ...]) -> Cublas:
    """The library, loaded once."""
    return Cublas(majors)


def check(name: str, status: int) -> None:
    """Raise CublasError for a status other than success."""
    if status:
        raise CublasError(f"{name} failed: CUBLAS_STATUS_{_STATUS.get(status, status)}")


def data_type(dtype: str) -> int:
    """CuBLAS's number of a dtype."""
    return _DATA_TYPES[dtype]


def compute_type(dtype: str, precision: str) -> int:
    """CuBLAS's number of the arithmetic of products of `dtype`."""
    if dtype in ("float64", "complex128"):
        return _COMPUTE_64F
    return _COMPUTE_32F_FAST_TF32 if precision == "tf32" and dtype in ("float32", "complex64") else _COMPUTE_32F


class _Handle:
    """One thread's handle on one device."""

    def __init__(self, cublas: Cublas, cupy: Any, device: Device) -> None:
        self._cublas, self._cupy = cublas, cupy
        self._workspace_bytes = (32 if device.compute_capability >= (9, 0) else 4) * _MIB  # as cuBLAS's own
        self._workspaces: OrderedDict[int, Any] = OrderedDict()
        self._stream: int | None = None
        made = ctypes.c_void_p()
        cublas.call("cublasCreate_v2", ctypes.byref(made))
        assert made.value is not None
        self.address = made.value
        weakref.finalize(self, cublas.call, "cublasDestroy_v2", made.value).atexit = False  # the driver may be gone
        cublas.call("cublasSetMathMode", self.address, _ALLOW_NO_16_BIT_SUMS)

    def on(self, stream: int) -> int:
        """The handle's address, its products going to `stream`."""
        if stream != self._stream:
            self._stream = None  # should one of the calls fail
            self._cublas.call("cublasSetStream_v2", self.address, stream)
            workspace = self._workspace(stream)
            self._cublas.call("cublasSetWorkspace_v2", self.address, workspace.ptr, self._workspace_bytes)
            self._stream = stream
        return self.address

    def _workspace(self, stream: int) -> Any:
        """Memory of CuPy's pool, allocated on `stream`, so that freed it goes to later work on that stream only."""
        if stream not in self._workspaces:
            if len(self._workspaces) >= MAX_STREAMS:
                self._workspaces.popitem(last=False)
            self._workspaces[stream] = self._cupy.cuda.alloc(self._workspace_bytes)
        self._workspaces.move_to_end(stream)
        return self._workspaces[stream]


class _Handles(threading.local):
    """Handles of the running thread, by the index of their device."""

    def __init__(self) -> None:
        self.by_device: dict[int, _Handle] = {}


_handles = _Handles()


def handle(cublas: Cublas, cupy: Any, device: Device) -> int:
    """The running thread's handle for `device`, the current one, on the current stream."""
    kept = _handles.by_device.get(device.index)
    if kept is None:
        kept = _handles.by_device[device.index] = _Handle(cublas, cupy, device)
    return kept.on(cupy.cuda.get_current_stream().ptr)


class CublasProduct:
    """Products of one dtype of factors and one of results on one device, launched like a kernel."""

    def __init__(self, cublas: Cublas, cupy: Any, device: Device, types: tuple[int, int, int], one: Any) -> None:
        self._cublas, self._cupy, self._device = cublas, cupy, device
        self._factors, self._result, self._compute = types
        self._scales = one  # [1, 0]: of the product, and of what c held
        self._one = one.ctypes.data
        self._zero = self._one + one.itemsize

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], shared_mem: int = 0
    ) -> None:
        """Queue the products that the last of `args` describes, of arrays whose device is the current one."""
        a, b, c, gemms = args
        at, factors, result = handle(self._cublas, self._cupy, self._device), self._factors, self._result
        at_a, at_b, at_c = a.data.ptr, b.data.ptr, c.data.ptr
        for (turn_a, turn_b, m, n, k, lead_a, lead_b, lead_c, step_a, step_b, step_c,
             start_a, start_b, start_c, batch, add) in gemms:  # fmt: skip
            status = self._cublas.gemm(
                *(at, turn_a, turn_b, m, n, k, self._one),
                *(at_a + start_a, factors, lead_a, step_a),
                *(at_b + start_b, factors, lead_b, step_b),
                self._one if add else self._zero,
                *(at_c + start_c, result, lead_c, step_c),
                *(batch, self._compute, _GEMM_DEFAULT),
            )
            if status:
                check("cublasGemmStridedBatchedEx", status)
