"""Activations without corners, sigmoid and GELU, and their gradients."""

from __future__ import annotations

from math import pi, sqrt

import numpy as np

from gpucnn.backends.dtypes import FLOATING
from gpucnn.functional._call import Array, Call, Needs, choice, needed
from gpucnn.functional._normal import BOUND, normal_share_and_density

__all__ = ["gelu", "gelu_backward", "sigmoid", "sigmoid_backward"]

APPROXIMATIONS = ("none", "tanh")

# --- Sigmoid ------------------------------------------------------------------------------------------------------


def sigmoid(input: Array) -> Array:
    """``1 / (1 + exp(-x))``, without overflow for any x.

    Parameters
    ----------
    input : array
        Floating-point, of any shape.

    Returns
    -------
    array in the shape, dtype and memory order of `input`
        In [0, 1]; 16-bit floats are computed in float32.

    Raises
    ------
    TypeError
        The dtype is not supported.

    See Also
    --------
    sigmoid_backward, binary_cross_entropy_with_logits

    Examples
    --------
    >>> sigmoid(np.array([-1000.0, 0.0, 1000.0]))
    array([0. , 0.5, 1. ])
    """
    call = Call("sigmoid", FLOATING, input=input)
    (x,) = call.arrays
    return call.result(call.stored_like(_sigmoid(call, call.promoted(x)), x))


def sigmoid_backward(grad_output: Array, input: Array, *, needs: Needs = None) -> tuple[Array | None]:
    """Gradient of `sigmoid`: ``grad * sigmoid(x) * sigmoid(-x)``.

    Parameters
    ----------
    grad_output : array in the shape of `input`
        Gradient with respect to the output.
    input : array
        As it was given to `sigmoid`.
    needs : sequence of 1 bool, optional
        Whether to compute it.

    Returns
    -------
    tuple of (array or None)
        Gradient with respect to `input`.

    Raises
    ------
    TypeError, ValueError
        As `sigmoid`, or `grad_output` does not have the output's shape.

    Notes
    -----
    It is computed from the input: the output rounds to 1 long before its slope is 0.

    Examples
    --------
    >>> sigmoid_backward(np.array([4.0]), np.array([0.0]))[0]
    array([1.])
    """
    call = Call("sigmoid_backward", FLOATING, grad_output=grad_output, input=input)
    grad, x = call.arrays
    call.expect_shape("grad_output", grad, x.shape)
    if not needed(call.op, needs, 1)[0]:
        return (None,)
    slope = _sigmoid_slope(call, call.promoted(x))
    slope *= call.promoted(grad)
    return call.result((call.stored_like(slope, grad),))


def _sigmoid(call: Call, x: Array) -> Array:
    """The sigmoid of x, float32 or float64."""
    y = call.xp.negative(x)
    with np.errstate(over="ignore"):  # to infinity, whose reciprocal is 0
        y = call.xp.exp(y)
    y += 1
    return call.xp.reciprocal(y)


def _sigmoid_slope(call: Call, x: Array) -> Array:
    """``sigmoid(x) * sigmoid(-x)``, which is ``exp(-|x|) / (1 + exp(-|x|))**2``."""
    slope = call.xp.exp(call.xp.negative(call.xp.abs(x)))
    below = slope + 1
    slope /= below
    slope /= below
    return slope


# --- GELU ---------------------------------------------------------------------------------------------------------


def gelu(input: Array, *, approximate: str = "none") -> Array:
    """Gaussian error linear unit: x times the share of the normal distribution that is below x.

    Parameters
    ----------
    input : array
        Floating-point, of any shape.
    approximate : "none" or "tanh"
        Exact to the dtype, or by a hyperbolic tangent that is within 5e-4 of it.

    Returns
    -------
    array in the shape, dtype and memory order of `input`
        16-bit floats are computed in float32.

    Raises
    ------
    TypeError
        The dtype is not supported.
    ValueError
        `approximate` is neither.

    See Also
    --------
    gelu_backward

    Notes
    -----
    ``x * (1 + erf(x / sqrt(2))) / 2``, or ``x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2``.

    References
    ----------
    D. Hendrycks, K. Gimpel, *Gaussian error linear units (GELUs)*, arXiv:1606.08415v5.

    Examples
    --------
    >>> gelu(np.array([-1.0, 0.0, 1.0])).round(4)
    array([-0.1587,  0.    ,  0.8413])
    """
    call = Call("gelu", FLOATING, input=input)
    (x,) = call.arrays
    choice(call.op, "approximate", approximate, APPROXIMATIONS)
    wide = call.promoted(x)
    share, _ = _share_and_slope(call, wide, approximate)
    share *= wide
    return call.result(call.stored_like(share, x))


def gelu_backward(
    grad_output: Array, input: Array, *, approximate: str = "none", needs: Needs = None
) -> tuple[Array | None]:
    """Gradient of `gelu`: the share below x, and x times the density at x.

    Parameters
    ----------
    grad_output : array in the shape of `input`
        Gradient with respect to the output.
    input, approximate
        As they were given to `gelu`.
    needs : sequence of 1 bool, optional
        Whether to compute it.

    Returns
    -------
    tuple of (array or None)
        Gradient with respect to `input`.

    Raises
    ------
    TypeError, ValueError
        As `gelu`, or `grad_output` does not have the output's shape.

    Examples
    --------
    >>> gelu_backward(np.array([4.0]), np.array([0.0]))[0]
    array([2.])
    """
    call = Call("gelu_backward", FLOATING, grad_output=grad_output, input=input)
    grad, x = call.arrays
    call.expect_shape("grad_output", grad, x.shape)
    choice(call.op, "approximate", approximate, APPROXIMATIONS)
    if not needed(call.op, needs, 1)[0]:
        return (None,)
    wide = call.promoted(x)
    share, slope = _share_and_slope(call, wide, approximate)
    slope *= call.xp.clip(wide, -BOUND, BOUND)
    slope += share
    slope *= call.promoted(grad)
    return call.result((call.stored_like(slope, grad),))


def _share_and_slope(call: Call, x: Array, approximate: str) -> tuple[Array, Array]:
    """The factor of x, and its derivative; beyond ±`BOUND` they are 0 or 1, and 0."""
    bounded = call.xp.clip(x, -BOUND, BOUND)
    if approximate == "none":
        return normal_share_and_density(call.xp, bounded)
    square = bounded * bounded
    scale = 2 * sqrt(2 / pi)  # (1 + tanh(u)) / 2 is sigmoid(2 u)
    angle = square * (0.044715 * scale)
    angle += scale
    angle *= bounded
    slope = _sigmoid_slope(call, angle)
    square *= 3 * 0.044715 * scale
    square += scale
    slope *= square
    return _sigmoid(call, angle), slope
