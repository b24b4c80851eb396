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

SHARES = ("sigmoid", "hard_sigmoid")
"""The activations that are a share of 1; the others are that share of x."""

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
    """The activation of that kind, one of `Epilogue.SMOOTH`, of each element of x."""
    wide = x.astype(accumulator(x.dtype), copy=False)
    share = _share(xp, _bounded(xp, wide, kind), kind)
    if kind not in SHARES:
        with np.errstate(invalid="ignore"):  # a share of 0 of an infinity is NaN, as in PyTorch
            share *= wide
    return share


def smooth_activation_backward(xp: Any, grad_y: Array, x: Array, kind: str) -> Array:
    """The gradient of `smooth_activation`."""
    wide = _bounded(xp, x.astype(accumulator(x.dtype), copy=False), kind)
    if kind == "gelu":
        share, slope = normal_share_and_density(xp, wide)
    else:
        share, slope = None if kind in SHARES else _share(xp, wide, kind), _slope(xp, wide, kind)
    if share is not None:
        slope *= wide
        slope += share
    slope *= grad_y.astype(wide.dtype, copy=False)
    return slope


def _bounded(xp: Any, x: Array, kind: str) -> Array:
    """X where the share and the slope of an activation are finite numbers and their product with x is, too."""
    return x if kind in SHARES else xp.clip(x, -BOUND, BOUND)


def _share(xp: Any, x: Array, kind: str) -> Array:
    """The share of an activation at x, float32 or float64."""
    if kind in ("sigmoid", "silu"):
        return _sigmoid(xp, x)
    if kind == "gelu":
        return normal_share_and_density(xp, x)[0]
    if kind == "gelu_tanh":
        return _sigmoid(xp, _angle(x))
    share = xp.clip(x + 3, 0, 6)
    share /= 6
    return share


def _slope(xp: Any, x: Array, kind: str) -> Array:
    """The derivative of `_share`; that of "gelu" comes with its share."""
    if kind in ("sigmoid", "silu"):
        return _sigmoid_slope(xp, x)
    if kind == "gelu_tanh":
        slope = _sigmoid_slope(xp, _angle(x))
        slope *= x * x * (3 * 0.044715 * _SCALE) + _SCALE
        return slope
    slope = ((x > -3) & (x < 3)).astype(x.dtype)
    slope /= 6
    return slope


_SCALE = 2 * sqrt(2 / pi)  # (1 + tanh(u)) / 2 is sigmoid(2 u)


def _angle(x: Array) -> Array:
    """Of GELU by a hyperbolic tangent: what its share is the sigmoid of."""
    angle = x * x
    angle *= 0.044715 * _SCALE
    angle += _SCALE
    angle *= x
    return angle


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
