"""Statistics, application and gradients of the norms, over x seen as [N, G, C, P] (see `NormGeometry`).

Variance is two-pass, and sums are kept in float64, so neither a large mean nor many values cost accuracy. The work
goes tile by tile in the order in which x lies in memory, which bounds the temporaries and serves channels-last images
as well as channels-first ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import memory
from gpucnn.backends.numpy.memory import Array, Block
from gpucnn.geometry import NormGeometry

TILE_VALUES = 1 << 16  # a tile and its temporaries stay in a core's L2


def norm_statistics(x: Array, geometry: NormGeometry) -> tuple[Array, Array]:
    """Mean and biased variance over ``geometry.axes``, as axes of size 1."""
    dtype = accumulator(x.dtype)
    mean, var = _no_sums(geometry), _no_sums(geometry)
    for tile in _tiles(x):
        _cut(mean, tile)[...] += _sum(x[tile].astype(np.float64), geometry)
    mean /= geometry.count
    for tile in _tiles(x):
        deviation = x[tile].astype(np.float64)
        deviation -= _cut(mean, tile)
        deviation *= deviation
        _cut(var, tile)[...] += _sum(deviation, geometry)
    var /= geometry.count
    return mean.astype(dtype, copy=False), var.astype(dtype, copy=False)


def norm_apply(x: Array, mean: Array, rstd: Array, weight: Array | None, bias: Array | None) -> Array:
    """``(x - mean) * rstd * weight + bias``, in the dtype of x."""
    y = np.empty_like(x)
    for tile in _tiles(x):
        values = _standardised(x, mean, rstd, tile)
        if weight is not None:
            values *= _cut(weight, tile)
        if bias is not None:
            values += _cut(bias, tile)
        y[tile] = values
    return y


def norm_backward_affine(
    grad_y: Array, x: Array, mean: Array, rstd: Array, geometry: NormGeometry
) -> tuple[Array, Array]:
    """Gradients of weight and bias, [1, G, C, 1]."""
    shape = (1, *x.shape[1:3], 1)
    grad_weight, grad_bias = np.zeros(shape), np.zeros(shape)
    for tile in _tiles(x):
        grad = grad_y[tile].astype(mean.dtype, copy=False)
        product = _standardised(x, mean, rstd, tile) * grad
        _cut(grad_weight, tile)[...] += product.sum(geometry.affine_axes, np.float64, keepdims=True)
        _cut(grad_bias, tile)[...] += grad.sum(geometry.affine_axes, np.float64, keepdims=True)
    return grad_weight.astype(mean.dtype, copy=False), grad_bias.astype(mean.dtype, copy=False)


def norm_backward_input(
    grad_y: Array, x: Array, mean: Array, rstd: Array, weight: Array | None, geometry: NormGeometry
) -> Array:
    """grad_x by the closed form, with g = grad_y * weight and h = (x - mean) * rstd:

    ``grad_x = rstd * (g - mean(g) - h * mean(g * h))``: what g moves the mean and the variance by is taken away.
    """
    offset, slope = _no_sums(geometry), _no_sums(geometry)
    for tile in _tiles(x):
        grad = _weighted(grad_y, weight, mean.dtype, tile)
        _cut(offset, tile)[...] += _sum(grad, geometry)
        _cut(slope, tile)[...] += _sum(grad * _standardised(x, mean, rstd, tile), geometry)
    count = max(1, geometry.count)  # an empty batch has none
    offset = (offset / count).astype(mean.dtype, copy=False)
    slope = (slope / count).astype(mean.dtype, copy=False)
    grad_x = np.empty_like(x)
    for tile in _tiles(x):
        grad = _weighted(grad_y, weight, mean.dtype, tile)
        grad -= _cut(offset, tile)
        grad -= _standardised(x, mean, rstd, tile) * _cut(slope, tile)
        grad *= _cut(rstd, tile)
        grad_x[tile] = grad
    return grad_x


def _standardised(x: Array, mean: Array, rstd: Array, tile: Block) -> Array:
    values = x[tile].astype(mean.dtype)
    values -= _cut(mean, tile)
    values *= _cut(rstd, tile)
    return values


def _weighted(grad_y: Array, weight: Array | None, dtype: np.dtype, tile: Block) -> Array:
    grad = grad_y[tile].astype(dtype)
    if weight is not None:
        grad *= _cut(weight, tile)
    return grad


def _no_sums(geometry: NormGeometry) -> Array:
    return np.zeros([1 if axis in geometry.axes else size for axis, size in enumerate(geometry.shape)])


def _sum(values: Array, geometry: NormGeometry) -> Array:
    return np.asarray(values.sum(geometry.axes, np.float64, keepdims=True))


def _cut(array: Array, tile: Block) -> Array:
    """The part of an array with axes of size 1, which a tile of the whole is broadcast against."""
    where = tuple(s if size > 1 else slice(None) for s, size in zip(tile, array.shape, strict=True))
    view: Array = array[where]
    return view


def _tiles(x: Array) -> Iterator[Block]:
    """Cut x into tiles that are whole in memory: its outermost axis is cut first."""
    order = sorted(range(x.ndim), key=lambda axis: abs(x.strides[axis]), reverse=True)
    for block in memory.blocks([x.shape[axis] for axis in order], TILE_VALUES):
        yield tuple(block[order.index(axis)] for axis in range(x.ndim))
