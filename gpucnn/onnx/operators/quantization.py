"""Numbers as small integers: ``x = (q - zero point) * scale``."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn.onnx.operators.arrays import axis_of, namespace
from gpucnn.onnx.operators.convolution import conv_integer
from gpucnn.onnx.operators.creation import converted
from gpucnn.onnx.operators.linear import matmul_integer
from gpucnn.onnx.operators.registry import Array, operator, refuse
from gpucnn.onnx.tensors import dtype_of

_RANGES = {
    "int2": (-2, 1), "uint2": (0, 3), "int4": (-8, 7), "uint4": (0, 15), "int8": (-128, 127), "uint8": (0, 255),
    "int16": (-32768, 32767), "uint16": (0, 65535),
}  # fmt: skip


def _spread(xp: Any, values: Array, x: Array, axis: int, block_size: int) -> Array:
    """Scales or zero points in a shape that meets x: for all of it, along an axis, or for blocks along it."""
    if values.ndim == 0 or (values.ndim == 1 and values.size == 1):
        return values.reshape(())
    axis = axis_of(axis, x.ndim)
    if values.ndim == 1 and not block_size:
        return values.reshape(-1, *(1,) * (x.ndim - axis - 1))
    if not block_size:
        raise ValueError(f"scale has shape {values.shape}, expected one axis or block_size")
    return xp.repeat(values, block_size, axis)[(slice(None),) * axis + (slice(0, x.shape[axis]),)]


def _quantized(values: Array, zero: Array | None, dtype: np.dtype[Any], saturate: int = 1) -> Array:
    """Values over their scale, rounded to even, moved by the zero point and bounded."""
    xp = namespace(values)
    if dtype.name not in _RANGES:
        return converted(values, dtype, saturate)
    whole = xp.rint(values)
    if zero is not None:
        whole = whole + zero.astype(np.float32)
    low, high = _RANGES[dtype.name]
    return xp.clip(whole, low, high).astype(dtype)


@operator("QuantizeLinear")
def quantize_linear(
    x: Array,
    scale: Array,
    zero_point: Array = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Array:
    """Numbers as small integers or floats of few bits."""
    xp = namespace(x)
    if zero_point is not None:
        dtype = zero_point.dtype
        zero = _spread(xp, zero_point, x, axis, block_size)
    else:
        dtype, zero = (dtype_of(output_dtype) if output_dtype else np.dtype(np.uint8)), None
    computed = dtype_of(precision) if precision else np.dtype(np.float32)
    steps = _spread(xp, scale, x, axis, block_size).astype(computed)
    return _quantized(x.astype(computed) / steps, zero, dtype, saturate)


@operator("DequantizeLinear")
def dequantize_linear(
    x: Array, scale: Array, zero_point: Array = None, *, axis: int = 1, block_size: int = 0, output_dtype: int = 0
) -> Array:
    """The numbers that small integers stand for."""
    xp = namespace(x)
    steps = _spread(xp, scale, x, axis, block_size)
    values = x.astype(np.float32)
    if zero_point is not None:
        values = values - _spread(xp, zero_point, x, axis, block_size).astype(np.float32)
    return (values * steps.astype(np.float32)).astype(dtype_of(output_dtype) if output_dtype else scale.dtype)


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(x: Array) -> Any:
    """Numbers as uint8, by the range that they have, with the scale and the zero point."""
    xp = namespace(x)
    low, high = xp.minimum(x.min(), 0), xp.maximum(x.max(), 0)
    scale = ((high - low) / np.float32(255)).astype(np.float32)
    step = xp.where(scale == 0, np.float32(1), scale)
    zero = xp.clip(xp.rint(-low / step), 0, 255).astype(np.uint8)
    return _quantized(x / step, zero, np.dtype(np.uint8)), scale, zero


@operator("QLinearMatMul")
def quantized_matmul(
    a: Array,
    a_scale: Array,
    a_zero_point: Array,
    b: Array,
    b_scale: Array,
    b_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
) -> Array:
    """The product of small integers, as small integers."""
    sums = matmul_integer(a, b, a_zero_point, b_zero_point)
    rows = a_scale.reshape(-1, 1) if a_scale.ndim == 1 and a_scale.size > 1 else a_scale
    factor = rows.astype(np.float32) * b_scale.astype(np.float32) / y_scale.astype(np.float32)
    return _quantized(sums.astype(np.float32) * factor, y_zero_point, y_zero_point.dtype)


@operator("QLinearConv")
def quantized_conv(
    x: Array,
    x_scale: Array,
    x_zero_point: Array,
    w: Array,
    w_scale: Array,
    w_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
    b: Array = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Array:
    """The convolution of small integers, as small integers; the bias is on the scale of the products."""
    if y_scale.size > 1:
        raise refuse(f"y_scale has shape {y_scale.shape}, expected one number")
    sums = conv_integer(
        x, w, x_zero_point, w_zero_point, auto_pad=auto_pad, dilations=dilations, group=group,
        kernel_shape=kernel_shape, pads=pads, strides=strides,
    )  # fmt: skip
    channels = (-1, *(1,) * (x.ndim - 2))
    if b is not None:
        sums += b.reshape(channels)
    factor = x_scale * w_scale / y_scale
    factor = factor.reshape(channels) if factor.size > 1 else factor
    return _quantized(sums.astype(np.float32) * factor, y_zero_point, y_zero_point.dtype)
