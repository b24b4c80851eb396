"""Statistics, application and gradients of the norms, over x seen as [N, G, C, P] (see `NormGeometry`).

Variance is two-pass, and sums are kept in float64, so neither a large mean nor many values cost accuracy. The work
goes block by block of whole reductions, which bounds the temporaries.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import memory
from gpucnn.backends.numpy.memory import Array, Block
from gpucnn.geometry import NormGeometry

BLOCK_BYTES = 1 << 20


def norm_statistics(x: Array, geometry: NormGeometry) -> tuple[Array, Array]:
    """Mean and biased variance over ``geometry.axes``, as axes of size 1."""
    dtype = accumulator(x.dtype)
    shape = tuple(1 if axis in geometry.axes else size for axis, size in enumerate(x.shape))
    mean, var = np.empty(shape, dtype), np.empty(shape, dtype)
    for block in _whole_reductions(x, geometry):
        values = x[block].astype(np.float64)
        centre = _mean(values, geometry)
        values -= centre
        mean[_kept(block, geometry)] = centre
        var[_kept(block, geometry)] = _mean(values * values, geometry)
    return mean, var


def norm_apply(x: Array, mean: Array, rstd: Array, weight: Array | None, bias: Array | None) -> Array:
    """``(x - mean) * rstd * weight + bias``, in the dtype of x."""
    y = np.empty_like(x)
    for block in _images(x):
        values = _standardised(x, mean, rstd, block)
        if weight is not None:
            values *= weight[:, block[1]]
        if bias is not None:
            values += bias[:, block[1]]
        y[block] = values
    return y


def norm_backward_affine(
    grad_y: Array, x: Array, mean: Array, rstd: Array, geometry: NormGeometry
) -> tuple[Array, Array]:
    """Gradients of weight and bias, [1, G, C, 1]."""
    shape = (1, *x.shape[1:3], 1)
    grad_weight, grad_bias = np.zeros(shape), np.zeros(shape)
    for block in _images(x):
        grad = grad_y[block].astype(mean.dtype, copy=False)
        values = _standardised(x, mean, rstd, block) * grad
        grad_weight[:, block[1]] += values.sum(geometry.affine_axes, np.float64, keepdims=True)
        grad_bias[:, block[1]] += grad.sum(geometry.affine_axes, np.float64, keepdims=True)
    return grad_weight.astype(mean.dtype), grad_bias.astype(mean.dtype)


def norm_backward_input(
    grad_y: Array, x: Array, mean: Array, rstd: Array, weight: Array | None, geometry: NormGeometry
) -> Array:
    """grad_x by the closed form, with g = grad_y * weight and h = (x - mean) * rstd:

    ``grad_x = rstd * (g - mean(g) - h * mean(g * h))``: what g moves the mean and the variance by is taken away.
    """
    grad_x = np.empty_like(x)
    for block in _whole_reductions(x, geometry):
        standard = _standardised(x, mean, rstd, block)
        grad = grad_y[block].astype(mean.dtype)
        if weight is not None:
            grad *= weight[:, block[1]]
        slope = _mean(grad * standard, geometry).astype(mean.dtype)
        grad -= _mean(grad, geometry).astype(mean.dtype)
        standard *= slope
        grad -= standard
        grad *= _cut(rstd, block)
        grad_x[block] = grad
    return grad_x


def _mean(values: Array, geometry: NormGeometry) -> Any:
    return values.sum(geometry.axes, np.float64, keepdims=True) / geometry.count


def _standardised(x: Array, mean: Array, rstd: Array, block: Block) -> Array:
    values = x[block].astype(mean.dtype)
    values -= _cut(mean, block)
    values *= _cut(rstd, block)
    return values


def _cut(statistics: Array, block: Block) -> Array:
    """The part of statistics [N or 1, G or 1, 1, 1] that belongs to a block."""
    where = tuple(s if size > 1 else slice(None) for s, size in zip(block, statistics.shape, strict=True))
    return statistics[where]


def _kept(block: Block, geometry: NormGeometry) -> Block:
    return tuple(slice(None) if axis in geometry.axes else s for axis, s in enumerate(block))


def _whole_reductions(x: Array, geometry: NormGeometry) -> Iterator[Block]:
    """Blocks of [N, G, C, P] that cut no reduction."""
    extents = [1 if axis in geometry.axes else size for axis, size in enumerate(x.shape)]
    for block in memory.blocks(extents, BLOCK_BYTES // (8 * max(1, geometry.count))):
        yield _kept(block, geometry)


def _images(x: Array) -> Iterator[Block]:
    """Blocks of whole [C, P]."""
    n, g, c, p = x.shape
    for block in memory.blocks((n, g), BLOCK_BYTES // (8 * max(1, c * p))):
        yield (*block, slice(None), slice(None))
