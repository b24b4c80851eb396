"""Interpolation, one axis after the other, and its adjoint."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import memory
from gpucnn.backends.numpy.memory import Array
from gpucnn.geometry import InterpolationAxis, InterpolationGeometry

SPACE = (2, 3, 4)


def interpolate(x: Array, geometry: InterpolationGeometry) -> Array:
    """Y [N, C, OD, OH, OW] of x [N, C, D, H, W]."""
    y = x.astype(accumulator(x.dtype), copy=False)
    for dim, axis in zip(SPACE, geometry.axes, strict=True):
        if _copies_all(axis):
            continue
        shape = (*y.shape[:dim], axis.out, *y.shape[dim + 1 :])
        low = y.take(axis.low, axis=dim)
        if axis.high:
            weight = _weights(axis, dim, y)
            low = low * (1 - weight) + y.take(axis.high, axis=dim) * weight
        y = memory.empty(shape, y.dtype, like=x)
        y[...] = low
    result = memory.empty(y.shape, x.dtype, like=x)
    result[...] = y
    return result


def interpolate_backward(grad_y: Array, geometry: InterpolationGeometry) -> Array:
    """grad_x [N, C, D, H, W]: each input's weighted sum over the outputs that read it."""
    grad = grad_y.astype(accumulator(grad_y.dtype), copy=False)
    for dim, axis in zip(SPACE, geometry.axes, strict=True):
        if _copies_all(axis):
            continue
        grad_x = np.zeros((*grad.shape[:dim], axis.size, *grad.shape[dim + 1 :]), grad.dtype)
        if axis.high:
            weight = _weights(axis, dim, grad)
            _add_runs(grad * (1 - weight), axis.low, dim, grad_x)
            _add_runs(grad * weight, axis.high, dim, grad_x)
        else:
            _add_runs(grad, axis.low, dim, grad_x)
        grad = grad_x
    result = memory.empty(grad.shape, grad_y.dtype, like=grad_y)
    result[...] = grad
    return result


def _copies_all(axis: InterpolationAxis) -> bool:
    return axis.low == tuple(range(axis.size)) and not any(axis.high_weight)


def _weights(axis: InterpolationAxis, dim: int, like: Array) -> Array:
    real: Any = like.real.dtype
    return np.array(axis.high_weight, real).reshape(-1, *(1,) * (like.ndim - 1 - dim))


def _add_runs(grad: Array, sources: tuple[int, ...], dim: int, grad_x: Array) -> None:
    """Add grad to grad_x along `dim`: sources never fall, so those of one input lie next to each other."""
    inputs, starts = np.unique(sources, return_index=True)
    grad_x[(slice(None),) * dim + (inputs,)] += np.add.reduceat(grad, starts, axis=dim)
