"""Convolutions, transposed convolutions and sums of shifted columns."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

import gpucnn.functional as F
from gpucnn.geometry import conv_output_size
from gpucnn.onnx.operators.arrays import ints, namespace, pairs
from gpucnn.onnx.operators.registry import OWN, Array, Host, operator, refuse

_AUTOMATIC = {"SAME_UPPER": "same", "SAME_LOWER": "same_lower", "VALID": "valid"}
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_ACTIVATED = {1: F.conv1d_activation, 2: F.conv2d_activation, 3: F.conv3d_activation}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def rank_of(x: Array) -> int:
    """The number of spatial axes of images [N, C, *space].

    Raises
    ------
    ModelError
        There are none, or more than three.
    """
    if x.ndim not in (3, 4, 5):
        raise refuse(f"the input has {x.ndim} dimensions, expected 3 to 5: images (N, C, *space) of 1 to 3 dimensions")
    return int(x.ndim) - 2


def padding_of(auto_pad: str, pads: list[int] | None, rank: int) -> Any:
    """ONNX's two ways to pad as gpucnn's padding."""
    if auto_pad in _AUTOMATIC:
        return _AUTOMATIC[auto_pad]
    if auto_pad != "NOTSET":
        raise refuse(f"auto_pad is {auto_pad!r}, expected NOTSET, {', '.join(_AUTOMATIC)}")
    return tuple(pairs(pads)) if pads is not None else ((0, 0),) * rank


def listed(values: list[int] | None, rank: int) -> tuple[int, ...]:
    """The values of an attribute, one for each spatial axis; ones where it is absent."""
    return (1,) * rank if values is None else tuple(values)


@operator("Conv", launches=True)
def conv(
    x: Array,
    w: Array,
    b: Array = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Array:
    """The convolution of images with filters."""
    rank = rank_of(x)
    _expect_kernel(w, kernel_shape)
    window = listed(strides, rank), padding_of(auto_pad, pads, rank), listed(dilations, rank)
    return _of_one_filter(x, w, b, *window) if _is_of_one_filter(x, w) else _CONV[rank](x, w, b, *window, group)


def _is_of_one_filter(x: Array, w: Array) -> bool:
    """Whether a convolution has a single filter, of which a product of matrices would be of one row."""
    return len(w) == 1 < w.shape[1] and prod(w.shape[2:]) > 1 and isinstance(x, np.ndarray) and x.dtype == np.float32


def _of_one_filter(x: Array, w: Array, b: Array | None, stride: Any, padding: Any, dilation: Any) -> Array:
    """Each channel's convolution and their sum: for 32 and 8 channels in a fifteenth of the time of the product."""
    rank, channels = x.ndim - 2, x.shape[1]
    y = _CONV[rank](x, w.swapaxes(0, 1), None, stride, padding, dilation, channels).sum(1, keepdims=True)
    return y if b is None else y + b.reshape(1, 1, *(1,) * rank)


@operator("Frames", domain=OWN)
def frames(x: Array, w: Array, *, strides: list[int], out: Array = None) -> Array:
    """A short-time transform: products of filters [OC, 1, K] with sections of signals [N, 1, T]."""
    if not isinstance(x, np.ndarray):
        return F.conv1d(x, w, None, strides[0])
    (step,), size = strides, w.shape[-1]
    x = np.ascontiguousarray(x)
    shape, steps = (len(x), size, (x.shape[-1] - size) // step + 1), (x.strides[0], x.itemsize, step * x.itemsize)
    return np.matmul(w[:, 0], np.ndarray(shape, x.dtype, x, 0, steps), out=out)


@operator("FusedConv", domain=OWN, launches=True)
def fused_conv(
    x: Array,
    w: Array,
    b: Array = None,
    residual: Array = None,
    *,
    activation: str = "none",
    slope: float = 0.01,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Array:
    """A convolution, the sum with a shortcut and an activation."""
    rank = rank_of(x)
    _expect_kernel(w, kernel_shape)
    window = listed(strides, rank), padding_of(auto_pad, pads, rank), listed(dilations, rank)
    if _is_of_one_filter(x, w):
        y = _of_one_filter(x, w, b, *window)
    elif residual is None or residual.shape == _convolved(x, w, *window):
        activated = _ACTIVATED[rank]
        return activated(x, w, b, *window, group, residual=residual, activation=activation, negative_slope=slope)
    else:
        y = _CONV[rank](x, w, b, *window, group)
    if residual is not None:  # perhaps of another shape, that of an image and its scale
        y = y + residual
    return y if activation == "none" else F.bias_activation(y, activation=activation, negative_slope=slope)


def _convolved(x: Array, w: Array, stride: Any, padding: Any, dilation: Any) -> tuple[int, ...]:
    """The shape of a convolution's result."""
    size = conv_output_size(x.shape[2:], w.shape[2:], stride, padding, dilation)
    return (x.shape[0], w.shape[0], *size)


def _expect_kernel(w: Array, kernel_shape: list[int] | None) -> None:
    if kernel_shape is not None and tuple(kernel_shape) != tuple(w.shape[2:]):
        raise ValueError(f"kernel_shape is {kernel_shape}, but W has shape {w.shape}")


@operator("ConvTranspose", launches=True)
def conv_transpose(
    x: Array,
    w: Array,
    b: Array = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    output_padding: list[int] | None = None,
    output_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Array:
    """The transposed convolution; `output_shape` decides the padding."""
    rank = rank_of(x)
    _expect_kernel(w, kernel_shape)
    strides, dilations = list(listed(strides, rank)), list(listed(dilations, rank))
    extra = [0] * rank if output_padding is None else output_padding
    full = [
        (size - 1) * stride + dilation * (kernel - 1) + 1 + more
        for size, stride, dilation, kernel, more in zip(
            x.shape[2:], strides, dilations, w.shape[2:], extra, strict=True
        )
    ]
    padding = padding_of(auto_pad, pads, rank)
    target = None if output_shape is None else output_shape[-rank:]
    if target is None and auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        target = [size * stride for size, stride in zip(x.shape[2:], strides, strict=True)]
    if target is not None:
        padding = tuple(_cut(whole - size, auto_pad) for whole, size in zip(full, target, strict=True))
    elif padding == "valid":
        padding = ((0, 0),) * rank
    cut = tuple((max(low, 0), max(high, 0)) for low, high in padding)
    # what is padded at the high end beyond the windows holds the bias alone
    if any(more >= max(step, apart) for more, step, apart in zip(extra, strides, dilations, strict=True)):
        raise refuse(f"output_padding is {extra}, expected less than the stride or the dilation")
    y = _TRANSPOSED[rank](x, w, b, tuple(strides), cut, tuple(extra), group, tuple(dilations))
    if cut == padding:
        return y
    grown = [(max(-low, 0), max(-high, 0)) for low, high in padding]
    y = namespace(y).pad(y, [(0, 0), (0, 0), *grown])
    return y


def _cut(total: int, auto_pad: str) -> tuple[int, int]:
    """The padding of an axis, by its sum; the odd one is at the end that `auto_pad` names."""
    half = total // 2
    return (half, total - half) if auto_pad == "SAME_UPPER" else (total - half, half)


@operator("ConvInteger")
def conv_integer(
    x: Array,
    w: Array,
    x_zero_point: Array = None,
    w_zero_point: Array = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Array:
    """The convolution of integers, less their zero points, in int32."""
    x, w = x.astype(np.int32), w.astype(np.int32)
    if x_zero_point is not None:
        x = x - x_zero_point.astype(np.int32)  # before padding, whose zeros then stand for zero
    if w_zero_point is not None:
        zero = w_zero_point.astype(np.int32)
        w = w - (zero.reshape(-1, *(1,) * (w.ndim - 1)) if zero.ndim else zero)
    return conv(
        x, w, auto_pad=auto_pad, dilations=dilations, group=group, kernel_shape=kernel_shape, pads=pads,
        strides=strides,
    )  # fmt: skip


@operator("Col2Im")
def col2im(
    columns: Array,
    image_shape: Host,
    block_shape: Host,
    *,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Array:
    """Images from the columns of their blocks, which are added where they overlap."""
    size, block = ints(image_shape), ints(block_shape)
    rank = len(size)
    if rank > 3:
        raise refuse(f"image_shape has {rank} values, expected at most 3")
    if columns.shape[1] % prod(block):
        raise ValueError(f"input has shape {columns.shape}, expected a multiple of {prod(block)} rows")
    padding = padding_of("NOTSET", pads, rank)
    return F.col2im(columns, tuple(size), tuple(block), listed(dilations, rank), padding, listed(strides, rank))
