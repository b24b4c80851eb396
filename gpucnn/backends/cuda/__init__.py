"""The GPU backend: every primitive as CUDA kernels from kernels/, compiled at run time.

It takes a runtime: CuPy on a GPU, or the simulator, where the same Python launches the same kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, TypeVar

from gpucnn.backends.base import Backend, Epilogue
from gpucnn.backends.cuda.convolution import convolution, direct
from gpucnn.backends.cuda.device.runtime import Array, Device, Runtime
from gpucnn.backends.cuda.elementwise import bias_activation as biases
from gpucnn.backends.cuda.elementwise import masking as elementwise
from gpucnn.backends.cuda.elementwise import packing
from gpucnn.backends.cuda.launch.plans import empty, is_addressable
from gpucnn.backends.cuda.normalization import normalization
from gpucnn.backends.cuda.pooling import pooling
from gpucnn.backends.cuda.resampling import resampling
from gpucnn.backends.cuda.unfolding import unfolding

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


class CudaBackend(Backend):
    """Primitives over the arrays of a runtime, one function each in this folder's modules."""

    name = "cuda"
    host = False

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.xp = runtime, runtime.xp

    def empty(self, shape: tuple[int, ...], dtype: Any, on: Array) -> Array:
        """An uninitialised array in C order, on the device of `on`."""
        with self.runtime.using(self.runtime.device(on)):
            return empty(self.runtime, shape, dtype)

    def empty_like(self, shape: tuple[int, ...], dtype: Any, like: Array) -> Array:
        """As `Backend.empty_like`."""
        with self.runtime.using(self.runtime.device(like)):
            return empty(self.runtime, shape, dtype, like)

    def writes_to(self, array: Array) -> bool:
        """As `Backend.writes_to`: elements must start at multiples of their size, complex numbers too."""
        return is_addressable(array)

    def copy(self, x: Array, y: Array) -> None:
        """Write x to y: by a kernel where both can be seen as [N, C, P]; by the array library elsewhere."""
        with self.runtime.using(self.runtime.device(y)):
            packing.copy(self.runtime, _addressable(x), y)

    convolve = _on_device(convolution.convolve)
    convolve_backward_input = _on_device(convolution.convolve_backward_input)
    convolve_backward_weight = _on_device(convolution.convolve_backward_weight)

    locally_connect = _on_device(direct.locally_connect)
    locally_connect_backward_input = _on_device(direct.locally_connect_backward_input)
    locally_connect_backward_weight = _on_device(direct.locally_connect_backward_weight)

    im2col = _on_device(unfolding.im2col)
    col2im = _on_device(unfolding.col2im)

    max_pool = _on_device(pooling.max_pool)
    max_pool_backward = _on_device(pooling.max_pool_backward)
    unpool = _on_device(pooling.unpool)
    gather = _on_device(pooling.gather)
    average_pool = _on_device(pooling.average_pool)
    average_pool_backward = _on_device(pooling.average_pool_backward)

    interpolate = _on_device(resampling.interpolate)
    interpolate_backward = _on_device(resampling.interpolate_backward)

    norm_statistics = _on_device(normalization.norm_statistics)
    norm_apply = _on_device(normalization.norm_apply)
    norm_forward = _on_device(normalization.norm_forward)
    norm_activation_backward = _on_device(normalization.norm_activation_backward)
    norm_backward = _on_device(normalization.norm_backward)

    masked = _on_device(elementwise.masked)
    bias_activation = _on_device(biases.bias_activation)
    bias_activation_backward = _on_device(biases.bias_activation_backward)
    channel_sums = _on_device(biases.channel_sums)
