"""Pooling over windows and over whole images, and unpooling."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

import gpucnn.functional as F
from gpucnn.onnx.operators.arrays import ints, namespace
from gpucnn.onnx.operators.convolution import listed, padding_of, rank_of
from gpucnn.onnx.operators.registry import Array, Host, operator, refuse

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_LP = {1: F.lp_pool1d, 2: F.lp_pool2d, 3: F.lp_pool3d}
_GLOBAL_AVERAGE = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
_GLOBAL_MAX = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}


@operator("MaxPool", launches=True)
def max_pool(
    x: Array,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    storage_order: int = 0,
    strides: list[int] | None = None,
    count: int,
) -> Any:
    """The largest value under each window, and its place in the flattened array."""
    rank = rank_of(x)
    call = {
        "stride": listed(strides, rank),
        "padding": padding_of(auto_pad, pads, rank),
        "dilation": listed(dilations, rank),
        "ceil_mode": bool(ceil_mode),
    }
    if count == 1:
        return _MAX[rank](x, tuple(kernel_shape), **call)
    y, at = _MAX[rank](x, tuple(kernel_shape), return_indices=True, **call)
    xp, plane = namespace(x), prod(x.shape[2:])
    if storage_order:
        at = _by_columns(xp, at, x.shape[2:])
    first = xp.arange(x.shape[0] * x.shape[1], dtype=np.int64) * plane
    return y, at + first.reshape(*x.shape[:2], *(1,) * rank)


def _by_columns(xp: Any, at: Array, space: tuple[int, ...]) -> Array:
    """Places in a plane, counted along the first axis first."""
    result, step, below = xp.zeros_like(at), 1, prod(space)
    for size in space:
        below //= size
        result += at // below % size * step
        step *= size
    return result


@operator("AveragePool", launches=True)
def average_pool(
    x: Array,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Array:
    """The mean under each window."""
    rank = rank_of(x)
    return _AVERAGE[rank](
        x,
        tuple(kernel_shape),
        listed(strides, rank),
        padding_of(auto_pad, pads, rank),
        bool(ceil_mode),
        bool(count_include_pad),
        dilation=listed(dilations, rank),
    )


@operator("LpPool", 2)
def lp_pool(
    x: Array,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    p: int = 2,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Array:
    """The p-norm under each window."""
    rank = rank_of(x)
    return _LP[rank](
        namespace(x).abs(x),
        p,
        tuple(kernel_shape),
        listed(strides, rank),
        bool(ceil_mode),
        padding_of(auto_pad, pads, rank),
        listed(dilations, rank),
    )


@operator("GlobalAveragePool", launches=True)
def global_average_pool(x: Array) -> Array:
    """The mean of each plane."""
    return _GLOBAL_AVERAGE[rank_of(x)](x, 1)


@operator("GlobalMaxPool", launches=True)
def global_max_pool(x: Array) -> Array:
    """The largest value of each plane."""
    return _GLOBAL_MAX[rank_of(x)](x, 1)


@operator("GlobalLpPool", 2)
def global_lp_pool(x: Array, *, p: int = 2) -> Array:
    """The p-norm of each plane."""
    xp, axes = namespace(x), tuple(range(2, x.ndim))
    return (xp.abs(x) ** p).sum(axis=axes, keepdims=True) ** (1 / p)


@operator("MaxUnpool")
def max_unpool(
    x: Array,
    indices: Array,
    output_shape: Host = None,
    *,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Array:
    """Values at their places in the flattened array, and 0 elsewhere."""
    xp, rank = namespace(x), rank_of(x)
    edges = padding_of("NOTSET", pads, rank)
    space = [
        (size - 1) * step + kernel - low - high
        for size, step, kernel, (low, high) in zip(x.shape[2:], listed(strides, rank), kernel_shape, edges, strict=True)
    ]
    places = indices.reshape(x.shape[0] * x.shape[1], -1) % prod(space)
    y = xp.zeros((places.shape[0], prod(space)), x.dtype)
    y[xp.arange(places.shape[0]).reshape(-1, 1), places] = x.reshape(places.shape)
    y = y.reshape(*x.shape[:2], *space)
    if output_shape is None:
        return y
    target = ints(output_shape)[2:]
    if any(wanted < size for wanted, size in zip(target, space, strict=True)):
        raise refuse(f"output_shape ends with {target}, expected at least {space}")
    return xp.pad(y, [(0, 0), (0, 0), *((0, wanted - size) for wanted, size in zip(target, space, strict=True))])
