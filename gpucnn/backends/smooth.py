"""Softmax and the activations without corners, composed of an array library's functions, for arrays of any backend.

They return arrays in the dtype that sums are kept in: float32 for 16-bit floats.
"""

from __future__ import annotations

from math import pi, sqrt
from typing import Any

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.normal import BOUND, normal_share_and_density

Array = Any


# --- Softmax ------------------------------------------------------------------------------------------------------


def softmax(xp: Any, x: Array, axis: int, is_log: bool) -> Array:
    """The softmax of x along an axis, or its logarithm; not of no element."""
    wide = x.astype(accumulator(x.dtype), copy=False)
    with np.errstate(invalid="ignore"):  # a row without a finite maximum is NaN, as in PyTorch
        shifted = wide - wide.max(axis=axis, keepdims=True)
    logs = shifted - xp.log(xp.exp(shifted).sum(axis=axis, keepdims=True))
    return logs if is_log else xp.exp(logs)


def softmax_backward(xp: Any, grad_y: Array, y: Array, axis: int, is_log: bool) -> Array:
    """The gradient of `softmax`, by its result y."""
    wide = accumulator(grad_y.dtype)
    grad, y = grad_y.astype(wide, copy=False), y.astype(wide, copy=False)
    if is_log:
        return grad - xp.exp(y) * grad.sum(axis=axis, keepdims=True)
    return y * (grad - (grad * y).sum(axis=axis, keepdims=True))


# --- Activations --------------------------------------------------------------------------------------------------


def smooth_activation(xp: Any, x: Array, kind: str) -> Array:
    """The "sigmoid", "gelu" or "gelu_tanh" of each element of x."""
    wide = x.astype(accumulator(x.dtype), copy=False)
    if kind == "sigmoid":
        return _sigmoid(xp, wide)
    share, _ = _share_and_slope(xp, wide, kind)
    share *= wide
    return share


def smooth_activation_backward(xp: Any, grad_y: Array, x: Array, kind: str) -> Array:
    """The gradient of `smooth_activation`."""
    wide = x.astype(accumulator(x.dtype), copy=False)
    if kind == "sigmoid":
        slope = _sigmoid_slope(xp, wide)
    else:
        share, slope = _share_and_slope(xp, wide, kind)
        slope *= xp.clip(wide, -BOUND, BOUND)
        slope += share
    slope *= grad_y.astype(wide.dtype, copy=False)
    return slope


def _sigmoid(xp: Any, x: Array) -> Array:
    """The sigmoid of x, float32 or float64."""
    y = xp.negative(x)
    with np.errstate(over="ignore"):  # to infinity, whose reciprocal is 0
        y = xp.exp(y)
    y += 1
    return xp.reciprocal(y)


def _sigmoid_slope(xp: Any, x: Array) -> Array:
    """``sigmoid(x) * sigmoid(-x)``, which is ``exp(-|x|) / (1 + exp(-|x|))**2``."""
    slope = xp.exp(xp.negative(xp.abs(x)))
    below = slope + 1
    slope /= below
    slope /= below
    return slope


def _share_and_slope(xp: Any, x: Array, kind: str) -> tuple[Array, Array]:
    """The factor of x, and its derivative; beyond ±`BOUND` they are 0 or 1, and 0."""
    bounded = xp.clip(x, -BOUND, BOUND)
    if kind == "gelu":
        return normal_share_and_density(xp, bounded)
    square = bounded * bounded
    scale = 2 * sqrt(2 / pi)  # (1 + tanh(u)) / 2 is sigmoid(2 u)
    angle = square * (0.044715 * scale)
    angle += scale
    angle *= bounded
    slope = _sigmoid_slope(xp, angle)
    square *= 3 * 0.044715 * scale
    square += scale
    slope *= square
    return _sigmoid(xp, angle), slope
