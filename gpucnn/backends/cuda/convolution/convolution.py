"""Convolutions on the GPU, each by the kernels that `select` chooses."""

from __future__ import annotations

from gpucnn.backends.cuda.convolution import depthwise, direct
from gpucnn.backends.cuda.convolution import im2col as im2col_convolution
from gpucnn.backends.cuda.convolution.select import algorithm
from gpucnn.backends.cuda.device.runtime import Array, Runtime
from gpucnn.backends.cuda.launch.plans import layout
from gpucnn.backends.dtypes import name_of
from gpucnn.geometry import ConvGeometry

MODULES = {"depthwise": depthwise, "direct": direct, "im2col": im2col_convolution}


def convolve(runtime: Runtime, x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry) -> None:
    """Y [N, OC, OD, OH, OW], plus bias [OC]."""
    chosen = algorithm("forward", geometry, name_of(x.dtype), layout(x), layout(y))
    MODULES[chosen].forward(runtime, x, w, bias, y, geometry)


def convolve_backward_input(
    runtime: Runtime, grad_y: Array, w: Array, bias: Array | None, grad_x: Array, geometry: ConvGeometry
) -> None:
    """grad_x [N, C, D, H, W] (dgrad), plus bias [C] where it is a transposed convolution."""
    chosen = algorithm("backward_input", geometry, name_of(grad_y.dtype), layout(grad_x), layout(grad_y))
    MODULES[chosen].backward_input(runtime, grad_y, w, bias, grad_x, geometry)


def convolve_backward_weight(runtime: Runtime, x: Array, grad_y: Array, grad_w: Array, geometry: ConvGeometry) -> None:
    """grad_w [OC, C / groups, KD, KH, KW] (wgrad)."""
    chosen = algorithm("backward_weight", geometry, name_of(x.dtype), layout(x), layout(grad_y))
    MODULES[chosen].backward_weight(runtime, x, grad_y, grad_w, geometry)
