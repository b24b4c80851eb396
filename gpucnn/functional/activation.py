"""Bias, residual and activation after a convolution, in one pass."""

from __future__ import annotations

from gpucnn.backends import Epilogue
from gpucnn.backends.dtypes import FLOATING
from gpucnn.backends.layout import planes
from gpucnn.backends.replaying import replayed
from gpucnn.functional._call import Array, Call, Needs, choice, needed
from gpucnn.geometry.arguments import number

__all__ = ["bias_activation", "bias_activation_backward"]

ACTIVATIONS = ("none", "relu", "leaky_relu", "relu6")  # of norms
FUSED = (*ACTIVATIONS, *Epilogue.SMOOTH)  # of convolutions


@replayed
def bias_activation(
    input: Array,
    bias: Array | None = None,
    residual: Array | None = None,
    activation: str = "relu",
    negative_slope: float = 0.01,
    *,
    out: Array | None = None,
) -> Array:
    """``activation(input + bias + residual)``, reading and writing each element once.

    Parameters
    ----------
    input : array [N, C, *]
        Floating-point, with any number of axes after the channels.
    bias : array [C], optional
        In the dtype of `input`, or float32 where that has 16 bits.
    residual : array [N, C, *], optional
        The result of a shortcut, added to the sum.
    activation : "none", "relu", "leaky_relu", "relu6" or one of the smooth ones
        These are "sigmoid", "hard_sigmoid", "silu", "hard_swish", "gelu" and "gelu_tanh". "relu6" is
        ``min(max(x, 0), 6)``, "hard_sigmoid" ``relu6(x + 3) / 6``, "silu" ``x * sigmoid(x)``, "hard_swish"
        ``x * hard_sigmoid(x)``, and "gelu_tanh" is `gelu` by a hyperbolic tangent.
    negative_slope : float
        Of "leaky_relu".
    out : array in the shape of `input`, optional
        An array to write the result to, of any strides; it is returned.

    Returns
    -------
    array in the shape, dtype and memory order of `input`

    Raises
    ------
    TypeError
        Dtypes differ or are not supported, or `negative_slope` is not a number.
    ValueError
        Shapes do not fit, or there is no such activation.

    See Also
    --------
    bias_activation_backward, conv2d_activation, relu, leaky_relu

    Notes
    -----
    Sums of 16-bit floats are kept in float32 and rounded once, so the result may be nearer to the exact one than that
    of one operation after the other. A non-contiguous array is copied first.

    Examples
    --------
    >>> bias_activation(np.array([[[-1.0, 2.0]]]), np.array([0.5]))
    array([[[0. , 2.5]]])
    """
    call = Call("bias_activation", FLOATING, optional=_OPTIONAL, input=input, bias=bias, residual=residual, out=out)
    x, b, r = call.arrays
    slope = _check(call, x, b, r, activation, negative_slope)
    y = call.destination(x.shape, like=x)
    epilogue = Epilogue(None if r is None else planes(r), activation, slope)
    call.backend.bias_activation(planes(x), b, planes(y), epilogue)
    return call.result(y)


@replayed
def bias_activation_backward(
    grad_output: Array,
    input: Array,
    bias: Array | None = None,
    residual: Array | None = None,
    activation: str = "relu",
    negative_slope: float = 0.01,
    *,
    output: Array | None = None,
    needs: Needs = None,
) -> tuple[Array | None, Array | None, Array | None]:
    """Gradients of `bias_activation`.

    Parameters
    ----------
    grad_output : array [N, C, *]
        Gradient of the loss with respect to the output.
    input, bias, residual, activation, negative_slope
        As they were given to `bias_activation`.
    output : array [N, C, *], optional
        What `bias_activation` returned; recomputed where it is missing.
    needs : sequence of 3 bools, optional
        Which gradients to compute; the others are None.

    Returns
    -------
    tuple of (array or None)
        Gradients with respect to `input`, `bias` and `residual` (None where absent), each in that one's dtype. Those of
        `input` and `residual` are equal.

    Raises
    ------
    TypeError, ValueError
        As `bias_activation`, or shapes do not fit.

    Notes
    -----
    The gradient at 0 is that of `relu_backward` and `leaky_relu_backward`; that of "relu6" is 0 at 0 and at 6. With
    `output` it uses the output's signs, which differ from the exact sum's where that is too small for 16 bits; without
    it, for a `negative_slope` that is not positive, and for smooth activations, it uses the sum, rounded to the input's
    dtype. That of "hard_sigmoid" and "hard_swish" is that of the flat side at -3 and 3: 0, and at 3 for "hard_swish" 1.

    Examples
    --------
    >>> grad_input, grad_bias, _ = bias_activation_backward(np.ones((1, 1, 2)), np.array([[[-1.0, 2.0]]]), np.zeros(1))
    >>> grad_input, grad_bias
    (array([[[0., 1.]]]), array([1.]))
    """
    call = Call(
        "bias_activation_backward",
        FLOATING,
        optional=(*_OPTIONAL, "output"),
        grad_output=grad_output,
        input=input,
        bias=bias,
        residual=residual,
        output=output,
    )
    grad, x, b, r, y = call.arrays
    slope = _check(call, x, b, r, activation, negative_slope)
    call.expect_shape("grad_output", grad, x.shape)
    call.expect_shape("output", y, x.shape)
    need_x, need_b, need_r = needed(call.op, needs, 3)
    need_b, need_r = need_b and b is not None, need_r and r is not None
    if not (need_x or need_b or need_r):
        return (None, None, None)
    epilogue = Epilogue(None, activation, slope)
    if activation == "none":
        signs = planes(grad)
    elif y is not None and epilogue.keeps_signs:
        signs = planes(y)
    else:
        signs = planes(call.destination(x.shape, like=x))
        call.backend.bias_activation(planes(x), b, signs, Epilogue(None if r is None else planes(r)))
    grad_x = call.destination(x.shape, like=grad)
    grad_b = call.gradient_of(b) if need_b else None
    call.activation_backward(planes(grad), signs, planes(grad_x), grad_b, epilogue)
    grad_r = (grad_x.copy(order="K") if need_x else grad_x) if need_r else None
    return call.result((grad_x if need_x else None, grad_b, grad_r))


_OPTIONAL = ("bias", "residual")


def _check(call: Call, x: Array, b: Array | None, r: Array | None, activation: str, negative_slope: float) -> float:
    """The slope as a float."""
    if x.ndim < 2:
        raise ValueError(f"{call.op}: input has {x.ndim} dimensions, expected at least 2 (N, C, *)")
    if 0 in x.shape[1:]:
        raise ValueError(f"{call.op}: input has shape {x.shape}, expected channels and sizes of at least 1")
    call.expect_per_channel("bias", b, x)
    call.expect_shape("residual", r, x.shape)
    choice(call.op, "activation", activation, FUSED)
    return number(call.op, "negative_slope", negative_slope)
