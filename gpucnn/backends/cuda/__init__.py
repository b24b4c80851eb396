"""The GPU backend: every primitive as CUDA kernels from kernels/, compiled at run time.

It takes a runtime: CuPy on a GPU, or the simulator, where the same Python launches the same kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, TypeVar

from gpucnn.backends.base import Backend, Epilogue, implemented_by
from gpucnn.backends.cuda.convolution import convolution, direct, linear
from gpucnn.backends.cuda.device.runtime import Array, Device, Runtime
from gpucnn.backends.cuda.elementwise import bias_activation, packing
from gpucnn.backends.cuda.launch.plans import empty, is_addressable, zeros
from gpucnn.backends.cuda.normalization import normalization
from gpucnn.backends.cuda.pooling import pooling
from gpucnn.backends.cuda.resampling import grid_sampling, resampling
from gpucnn.backends.cuda.unfolding import unfolding
from gpucnn.geometry import ConvGeometry

__all__ = ["CudaBackend", "Device", "Runtime"]

Primitive = TypeVar("Primitive", bound=Callable[..., Any])


def _on_device(primitive: Primitive) -> Primitive:
    """`primitive` with its new arrays and launches on the device of its first array."""

    @wraps(primitive)
    def called(backend: CudaBackend, *arguments: Any) -> Any:
        runtime = backend.runtime
        with runtime.using(runtime.device(arguments[0])):
            return primitive(runtime, *(_addressable(argument) for argument in arguments))

    return called  # type: ignore[return-value]


def _addressable(argument: Any) -> Any:
    """`argument`, or a copy where it is an array that is not addressable, or an epilogue with such a residual."""
    if isinstance(argument, Epilogue):
        return replace(argument, residual=_addressable(argument.residual))
    return argument if not hasattr(argument, "strides") or is_addressable(argument) else argument.copy(order="K")


_in_one_pass: Any = _on_device(convolution.convolve_in_one_pass)


@implemented_by(
    bias_activation,
    convolution,
    direct,
    grid_sampling,
    linear,
    normalization,
    packing,
    pooling,
    resampling,
    unfolding,
    method=_on_device,
)
class CudaBackend(Backend):
    """Primitives over the arrays of a runtime, each the function of its name in one of these modules."""

    name = "cuda"
    host = False

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.xp = runtime, runtime.xp

    def empty(self, shape: tuple[int, ...], dtype: Any, on: Array) -> Array:
        """An uninitialised array in C order, on the device of `on`."""
        with self.runtime.using(self.runtime.device(on)):
            return empty(self.runtime, shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any, on: Array) -> Array:
        """As `Backend.zeros`, recorded with a call's launches."""
        with self.runtime.using(self.runtime.device(on)):
            return zeros(self.runtime, shape, dtype)

    def empty_like(self, shape: tuple[int, ...], dtype: Any, like: Array) -> Array:
        """As `Backend.empty_like`."""
        with self.runtime.using(self.runtime.device(like)):
            return empty(self.runtime, shape, dtype, like)

    def writes_to(self, array: Array) -> bool:
        """As `Backend.writes_to`: elements must start at multiples of their size, complex numbers too."""
        return is_addressable(array)

    def convolve_activation(
        self, x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry, epilogue: Epilogue
    ) -> None:
        """As `Backend.convolve_activation`, in one launch where it is an implicit GEMM."""
        if not _in_one_pass(self, x, w, bias, y, geometry, epilogue):
            super().convolve_activation(x, w, bias, y, geometry, epilogue)

    def copy(self, x: Array, y: Array) -> None:
        """Write x to y: by a kernel where both can be seen as [N, C, P]; by the array library elsewhere."""
        with self.runtime.using(self.runtime.device(y)):
            packing.copy(self.runtime, _addressable(x), y)
