"""Convolutions on the GPU, each by the kernels that `select` chooses."""

from __future__ import annotations

from dataclasses import replace

from gpucnn.backends.base import Epilogue
from gpucnn.backends.cuda.convolution import depthwise, direct, implicit_gemm, winograd
from gpucnn.backends.cuda.convolution import im2col as im2col_convolution
from gpucnn.backends.cuda.convolution.select import algorithm, has_sm_80
from gpucnn.backends.cuda.device.runtime import Array, Runtime
from gpucnn.backends.cuda.elementwise import bias_activation as epilogues
from gpucnn.backends.cuda.launch.plans import empty, layout
from gpucnn.backends.dtypes import name_of
from gpucnn.backends.layout import planes
from gpucnn.geometry import ConvGeometry

MODULES = {
    "depthwise": depthwise, "direct": direct, "im2col": im2col_convolution, "implicit_gemm": implicit_gemm,
    "winograd": winograd,
}  # fmt: skip


def convolve(runtime: Runtime, x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry) -> None:
    """Y [N, OC, OD, OH, OW], plus bias [OC]."""
    chosen = _algorithm(runtime, "forward", geometry, x, y)
    MODULES[chosen].forward(runtime, x, w, bias, y, geometry)


def convolve_activation(
    runtime: Runtime, x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry, epilogue: Epilogue
) -> None:
    """As `Backend.convolve_activation`: an implicit GEMM in one launch, others and then `bias_activation`."""
    chosen = _algorithm(runtime, "forward", geometry, x, y)
    if chosen == "implicit_gemm" and implicit_gemm.takes_epilogue(x, y, geometry):
        implicit_gemm.forward(runtime, x, w, bias, y, geometry, epilogue)
        return
    sums = empty(runtime, y.shape, y.dtype, like=y)
    MODULES[chosen].forward(runtime, x, w, bias, sums, geometry)
    residual = None if epilogue.residual is None else planes(epilogue.residual)
    epilogues.bias_activation(runtime, planes(sums), None, planes(y), replace(epilogue, residual=residual))


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
    sm_80 = has_sm_80(runtime.device(y))
    return algorithm(direction, geometry, name_of(y.dtype), layout(x), layout(y), sm_80)
