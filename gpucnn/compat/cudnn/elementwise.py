"""Activations and softmax, under the names and arguments of CuPy's cuDNN functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gpucnn.functional as F
from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.layout import stored_like
from gpucnn.compat._arrays import Array, expect_shape, taken
from gpucnn.compat.cudnn.constants import FLOATS, one_of
from gpucnn.geometry.arguments import integer, number

__all__ = ["activation_backward", "activation_forward", "softmax_backward", "softmax_forward"]

# --- Activations --------------------------------------------------------------------------------------------------


class _Activation(NamedTuple):
    """A function of an array library, x and coef, and its gradient, of gy and y in addition."""

    forward: Callable[[Any, Array, float], Array]
    backward: Callable[[Any, Array, Array, Array, float], Array]


_ACTIVATIONS = {
    "CUDNN_ACTIVATION_SIGMOID": _Activation(
        lambda xp, x, coef: F.sigmoid(x),
        lambda xp, gy, x, y, coef: gy * y * (1 - y),
    ),
    "CUDNN_ACTIVATION_RELU": _Activation(
        lambda xp, x, coef: F.relu(x),
        lambda xp, gy, x, y, coef: xp.where(x > 0, gy, 0),
    ),
    "CUDNN_ACTIVATION_TANH": _Activation(
        lambda xp, x, coef: xp.tanh(x),
        lambda xp, gy, x, y, coef: gy * (1 - y * y),
    ),
    "CUDNN_ACTIVATION_CLIPPED_RELU": _Activation(
        lambda xp, x, coef: xp.minimum(F.relu(x), coef),
        lambda xp, gy, x, y, coef: xp.where(xp.logical_and(x > 0, x < coef), gy, 0),
    ),
    "CUDNN_ACTIVATION_ELU": _Activation(
        lambda xp, x, coef: xp.where(x > 0, x, coef * xp.expm1(xp.minimum(x, 0))),
        lambda xp, gy, x, y, coef: xp.where(x > 0, gy, gy * (y + coef)),
    ),
}


def activation_forward(x: Array, mode: int, coef: float = 0.0) -> Array:
    """Apply an activation to each element.

    Parameters
    ----------
    x : array
        float16, float32 or float64, of any shape.
    mode : int
        ``CUDNN_ACTIVATION_SIGMOID``, ``_RELU``, ``_TANH``, ``_CLIPPED_RELU`` (``min(max(x, 0), coef)``) or ``_ELU``
        (x, or ``coef * (exp(x) - 1)`` below 0).
    coef : float
        Ceiling of the clipped ReLU, factor of the ELU.

    Returns
    -------
    array in the shape and dtype of `x`

    Raises
    ------
    TypeError
        `x` is no array, or its dtype is not supported.
    ValueError
        There is no such mode.

    Notes
    -----
    NaN propagates.

    Examples
    --------
    >>> activation_forward(np.array([-1.0, 2.0, 9.0]), 3, 6.0)  # of CUDNN_ACTIVATION_CLIPPED_RELU
    array([0., 2., 6.])
    """
    op = "activation_forward"
    activation, scale = _activation(op, mode), number(op, "coef", coef)
    backend, (values,), give_back = taken(op, {"x": x}, FLOATS)
    wide = values.astype(accumulator(values.dtype), copy=False)
    return give_back(stored_like(backend.xp, activation.forward(backend.xp, wide, scale), values))


def activation_backward(x: Array, y: Array, gy: Array, mode: int, coef: float = 0.0) -> Array:
    """Compute the gradient of `activation_forward`.

    Parameters
    ----------
    x, mode, coef
        As they were given to `activation_forward`.
    y : array in the shape of `x`
        Its result.
    gy : array in the shape of `x`
        Gradient with respect to it.

    Returns
    -------
    array in the shape and dtype of `x`
        Gradient with respect to `x`; 0 at 0, and at the ceiling of the clipped ReLU.

    Raises
    ------
    TypeError
        An argument is no array, or a dtype is not supported or not that of `x`.
    ValueError
        Shapes differ, or there is no such mode.

    Examples
    --------
    >>> x = np.array([-1.0, 2.0, 9.0])
    >>> activation_backward(x, activation_forward(x, 3, 6.0), np.ones(3), 3, 6.0)
    array([0., 1., 0.])
    """
    op = "activation_backward"
    activation, scale = _activation(op, mode), number(op, "coef", coef)
    backend, arrays, give_back = taken(op, {"x": x, "y": y, "gy": gy}, FLOATS)
    for name, array in zip(("y", "gy"), arrays[1:], strict=True):
        expect_shape(op, name, array, tuple(arrays[0].shape), "that of x, ")
    given, result, grad = (array.astype(accumulator(array.dtype), copy=False) for array in arrays)
    return give_back(stored_like(backend.xp, activation.backward(backend.xp, grad, given, result, scale), arrays[0]))


def _activation(op: str, mode: int) -> _Activation:
    return _ACTIVATIONS[one_of(op, "mode", mode, *_ACTIVATIONS)]


# --- Softmax ------------------------------------------------------------------------------------------------------

_ALGORITHMS = {
    "CUDNN_SOFTMAX_FAST": (F.softmax, F.softmax_backward),
    "CUDNN_SOFTMAX_ACCURATE": (F.softmax, F.softmax_backward),
    "CUDNN_SOFTMAX_LOG": (F.log_softmax, F.log_softmax_backward),
}


def softmax_forward(x: Array, axis: int, algorithm: int) -> Array:
    """``exp(x) / sum(exp(x))`` along an axis, or the logarithm of it.

    Parameters
    ----------
    x : array
        float16, float32 or float64, with at least one axis.
    axis : int
        The axis of the sums; negative ones count from the end.
    algorithm : int
        ``CUDNN_SOFTMAX_LOG`` for the logarithm; ``CUDNN_SOFTMAX_FAST`` and ``CUDNN_SOFTMAX_ACCURATE`` are the same:
        nothing overflows.

    Returns
    -------
    array in the shape and dtype of `x`

    Raises
    ------
    TypeError
        `x` is no array, its dtype is not supported, or `axis` is not an integer.
    ValueError
        There is no such axis or algorithm.

    Examples
    --------
    >>> softmax_forward(np.array([[0.0, 0.0]]), -1, 1)
    array([[0.5, 0.5]])
    """
    op = "softmax_forward"
    forward, _ = _ALGORITHMS[one_of(op, "algorithm", algorithm, *_ALGORITHMS)]
    _, (values,), give_back = taken(op, {"x": x}, FLOATS)
    return give_back(forward(values, _axis(op, "x", values, axis)))


def softmax_backward(y: Array, gy: Array, axis: int, algorithm: int) -> Array:
    """Compute the gradient of `softmax_forward` from its result.

    Parameters
    ----------
    y : array
        What `softmax_forward` returned.
    gy : array in the shape of `y`
        Gradient with respect to it.
    axis, algorithm
        As they were given to `softmax_forward`.

    Returns
    -------
    array in the shape and dtype of `y`

    Raises
    ------
    TypeError, ValueError
        As `softmax_forward`, or shapes differ.

    Examples
    --------
    >>> softmax_backward(np.array([0.5, 0.5]), np.array([1.0, 0.0]), 0, 1)
    array([ 0.25, -0.25])
    """
    op = "softmax_backward"
    _, backward = _ALGORITHMS[one_of(op, "algorithm", algorithm, *_ALGORITHMS)]
    _, (result, grad), give_back = taken(op, {"y": y, "gy": gy}, FLOATS)
    expect_shape(op, "gy", grad, tuple(result.shape), "that of y, ")
    # y stands for the input too, which is not read where the result is given
    (gx,) = backward(grad, result, _axis(op, "y", result, axis), output=result)
    return give_back(gx)


def _axis(op: str, name: str, array: Array, axis: int) -> int:
    """`axis`, which the array has.

    Raises
    ------
    ValueError
        The array has no such axis.
    """
    found = integer(op, "axis", axis, -array.ndim)
    if found >= array.ndim:
        raise ValueError(f"{op}: axis is {found}, expected less than {name}'s {array.ndim} dimensions")
    return found
