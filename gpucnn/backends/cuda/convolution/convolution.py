"""Convolutions on the GPU, each by the kernels that `select` chooses."""

from __future__ import annotations

from gpucnn.backends.base import Epilogue
from gpucnn.backends.cuda.convolution import depthwise, direct, implicit_gemm, winograd
from gpucnn.backends.cuda.convolution import im2col as im2col_convolution
from gpucnn.backends.cuda.convolution.select import algorithm
from gpucnn.backends.cuda.device.runtime import Array, Runtime
from gpucnn.backends.cuda.launch.plans import layout
from gpucnn.backends.dtypes import name_of
from gpucnn.geometry import ConvGeometry

MODULES = {
    "depthwise": depthwise, "direct": direct, "im2col": im2col_convolution, "implicit_gemm": implicit_gemm,
    "winograd": winograd,
}  # fmt: skip


def convolve(runtime: Runtime, x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry) -> None:
    """Y [N, OC, OD, OH, OW], plus bias [OC]."""
    chosen = _algorithm(runtime, "forward", geometry, x, y)
    MODULES[chosen].forward(runtime, x, w, bias, y, geometry)


def convolve_in_one_pass(
    runtime: Runtime, x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry, epilogue: Epilogue
) -> bool:
    """As `convolve`, with the epilogue of y's sums; False, with nothing done, where no kernel applies it."""
    is_product = _algorithm(runtime, "forward", geometry, x, y) == "implicit_gemm"
    if not (is_product and implicit_gemm.takes_epilogue(x, y, geometry)):
        return False
    implicit_gemm.forward(runtime, x, w, bias, y, geometry, epilogue)
    return True


def convolve_backward_input(
    runtime: Runtime, grad_y: Array, w: Array, bias: Array | None, grad_x: Array, geometry: ConvGeometry
) -> None:
    """grad_x [N, C, D, H, W] (dgrad), plus bias [C] where it is a transposed convolution."""
    chosen = _algorithm(runtime, "backward_input", geometry, grad_x, grad_y)
    MODULES[chosen].backward_input(runtime, grad_y, w, bias, grad_x, geometry)


def convolve_backward_weight(runtime: Runtime, x: Array, grad_y: Array, grad_w: Array, geometry: ConvGeometry) -> None:
    """grad_w [OC, C / groups, KD, KH, KW] (wgrad)."""
    chosen = _algorithm(runtime, "backward_weight", geometry, x, grad_y)
    MODULES[chosen].backward_weight(runtime, x, grad_y, grad_w, geometry)


def _algorithm(runtime: Runtime, direction: str, geometry: ConvGeometry, x: Array, y: Array) -> str:
    capability = runtime.device(y).compute_capability
    return algorithm(direction, geometry, name_of(y.dtype), layout(x), layout(y), capability)
