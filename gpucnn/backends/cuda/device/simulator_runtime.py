"""The simulator as a runtime: the CUDA backend's kernels on a CPU, executed with checks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from math import prod
from typing import Any

import numpy as np

from gpucnn.backends.cuda.device.background import Background
from gpucnn.backends.cuda.device.runtime import Array, Device, Function
from gpucnn.backends.cuda.device.sources import Source
from gpucnn.backends.dtypes import accumulator
from gpucnn.simulator import arrays, namespace

_DEVICE = Device(0, "simulator", (8, 0), 4)  # the first with all that the kernels use


class SimulatorRuntime:
    """Arrays and launches of `gpucnn.simulator`.

    One generic build serves all sizes: g++ takes longer for each than the small arrays of a test do.
    """

    name = "simulator"
    xp: Any = namespace
    specialises = False
    background: Background | None = None
    null = None

    def device(self, array: Array) -> Device:
        """The one simulated device."""
        return _DEVICE

    def using(self, device: Device) -> AbstractContextManager[Any]:
        """Nothing to switch: there is one device."""
        return nullcontext()

    def constant(self, host: Any, device: Device) -> Array:
        """A simulated copy of `host`."""
        return self.xp.asarray(host)

    @lru_cache(maxsize=1024)  # noqa: B019  runtimes live as long as the process
    def function(self, source: Source, device: Device) -> Function:
        """The kernel of `source`, compiled for this CPU."""
        from gpucnn.simulator.module import MAX_SHARED, Module  # only what launches a kernel needs a compiler

        function = Module(source.text, source.name).function(source.kernel)
        function.max_dynamic_shared_size_bytes = MAX_SHARED
        return function

    def product(self, factors: np.dtype[Any], result: np.dtype[Any], precision: str, device: Device) -> Function:
        """NumPy's matrix products, over the memory that BLAS would read."""
        return _multiply_tf32 if precision == "tf32" and factors.name in ("float32", "complex64") else _multiply

    def by_value(self, structure: np.ndarray[Any, Any]) -> Any:
        """The structure, which the simulator takes as it is."""
        return structure

    def prepare(self, source: Source, device: Device) -> bool:
        """Compile and load; return whether no earlier process had compiled it. Thread-safe."""
        from gpucnn.simulator import toolchain

        before = toolchain.made()
        self.function(source, device)
        return toolchain.made() > before

    def current_device(self) -> int:
        """The one simulated device."""
        return _DEVICE.index

    def here(self, function: Function, shared_bytes: int) -> Callable[..., None]:
        """`function` itself: it needs no preparation."""
        return function

    def maker(
        self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any], zeros: bool
    ) -> Callable[[], Array]:
        """A factory of arrays of NaN, or of zeros."""
        return partial(_new, shape, strides, dtype, zeros)


def _multiply(grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], shared_mem: int = 0) -> None:
    """Column-major products, as in BLAS; matrices that exceed their array's memory raise ValueError."""
    _products(args, lambda matrices: matrices.astype(accumulator(matrices.dtype), copy=False))


def _multiply_tf32(grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], shared_mem: int = 0) -> None:
    """`_multiply` with factors rounded to the 10-bit mantissa of TF32, as tensor cores read them."""
    _products(args, _as_tf32)


def _as_tf32(matrices: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rounded to nearest, ties away from zero; infinities and NaN stay."""
    bits = np.ascontiguousarray(matrices).view(np.uint32)
    finite = bits & 0x7F800000 != 0x7F800000
    return np.where(finite, (bits + 0x1000) & 0xFFFFE000, bits).view(matrices.dtype)


def _products(args: tuple[Any, ...], read: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> None:
    a, b, c, gemms = args
    for gemm in gemms:
        (m, n, k), batch = (gemm.m, gemm.n, gemm.k), gemm.batch
        first = _matrices(a, gemm.start_a, gemm.step_a, gemm.lead_a, (batch, m, k), gemm.transposed_a)
        second = _matrices(b, gemm.start_b, gemm.step_b, gemm.lead_b, (batch, k, n), gemm.transposed_b)
        result = _matrices(c, gemm.start_c, gemm.step_c, gemm.lead_c, (batch, m, n), 0)
        with np.errstate(all="ignore"):  # a device does not warn
            sums = np.matmul(read(first), read(second))
            result[...] = sums + result if gemm.add else sums


def _matrices(
    array: Array, start: int, step: int, lead: int, shape: tuple[int, int, int], transposed: int
) -> np.ndarray[Any, Any]:
    """The matrices [batch, rows, columns] of a BLAS call, as views of the array's memory."""
    memory, size = array._memory, array.itemsize
    offset = array.data.ptr - memory.ctypes.data + start
    strides = (step * size, lead * size, size) if transposed else (step * size, size, lead * size)
    return np.ndarray(shape, array.dtype, memory, offset, strides)


def _new(shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any], zeros: bool) -> Array:
    memory = arrays.allocate(prod(shape) * dtype.itemsize)
    if zeros:
        memory[...] = 0
    return arrays.strided(memory, shape, dtype, strides, 0)
