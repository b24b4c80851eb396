"""Activations without corners, sigmoid and GELU, and their gradients."""

from __future__ import annotations

from gpucnn.backends.deferring import deferring
from gpucnn.backends.dtypes import FLOATING
from gpucnn.functional._call import Array, Call, Needs, choice, needed

__all__ = ["gelu", "gelu_backward", "sigmoid", "sigmoid_backward"]

APPROXIMATIONS = ("none", "tanh")

# --- Sigmoid ------------------------------------------------------------------------------------------------------


@deferring
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
    return call.result(_activated(call, x, "sigmoid"))


@deferring
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
    return call.result((_activated_backward(call, grad, x, "sigmoid"),))


# --- GELU ---------------------------------------------------------------------------------------------------------


@deferring
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
    return call.result(_activated(call, x, _kind(call, approximate)))


@deferring
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
    kind = _kind(call, approximate)
    if not needed(call.op, needs, 1)[0]:
        return (None,)
    return call.result((_activated_backward(call, grad, x, kind),))


def _kind(call: Call, approximate: str) -> str:
    """The name of the activation for backends."""
    choice(call.op, "approximate", approximate, APPROXIMATIONS)
    return "gelu" if approximate == "none" else "gelu_tanh"


# --- Both ---------------------------------------------------------------------------------------------------------


def _activated(call: Call, x: Array, kind: str) -> Array:
    return call.stored_like(call.backend.smooth_activation(x, kind), x) if x.size else x.copy(order="K")


def _activated_backward(call: Call, grad: Array, x: Array, kind: str) -> Array:
    if not x.size:
        return grad.copy(order="K")
    return call.stored_like(call.backend.smooth_activation_backward(grad, x, kind), grad)
