"""The GPU backend: every primitive as CUDA kernels from kernels/, compiled at run time.

It is handed its runtime: CuPy on a GPU, or the simulator, on which the same Python launches the same kernels.
"""

from __future__ import annotations

from typing import Any

from gpucnn.backends.base import Backend
from gpucnn.backends.cuda import convolution, normalization, pooling, resampling, unfolding
from gpucnn.backends.cuda.runtime import Device, Runtime

__all__ = ["CudaBackend", "Device", "Runtime"]


class CudaBackend(Backend):
    """Primitives over the arrays of a runtime, one function each in this folder's modules."""

    name = "cuda"
    host = False

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    @property
    def xp(self) -> Any:
        """The NumPy-like module of the runtime's arrays."""
        return self.runtime.xp

    convolve = convolution.convolve
    convolve_backward_input = convolution.convolve_backward_input
    convolve_backward_weight = convolution.convolve_backward_weight

    locally_connect = convolution.locally_connect
    locally_connect_backward_input = convolution.locally_connect_backward_input
    locally_connect_backward_weight = convolution.locally_connect_backward_weight

    im2col = unfolding.im2col
    col2im = unfolding.col2im

    max_pool = pooling.max_pool
    max_pool_with_indices = pooling.max_pool_with_indices
    max_pool_backward = pooling.max_pool_backward
    unpool = pooling.unpool
    gather = pooling.gather
    average_pool = pooling.average_pool
    average_pool_backward = pooling.average_pool_backward

    interpolate = resampling.interpolate
    interpolate_backward = resampling.interpolate_backward

    norm_statistics = normalization.norm_statistics
    norm_apply = normalization.norm_apply
    norm_backward_affine = normalization.norm_backward_affine
    norm_backward_input = normalization.norm_backward_input
