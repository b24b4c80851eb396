"""Linear layers, activations, softmax and dropout, and their gradients."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from gpucnn.backends import Epilogue
from gpucnn.backends.deferring import deferring
from gpucnn.backends.dtypes import FLOATING, NUMERIC, ORDERED, accumulator, name_of
from gpucnn.backends.replaying import replayed
from gpucnn.functional._call import Array, Call, Needs, ProductCall, axis_argument, needed, softmax_of
from gpucnn.geometry.arguments import boolean, is_boolean, number, plain

__all__ = [
    "dropout", "dropout_backward", "leaky_relu", "leaky_relu_backward", "linear", "linear_backward", "log_softmax",
    "log_softmax_backward", "relu", "relu_backward", "softmax", "softmax_backward",
]  # fmt: skip

# --- Linear -------------------------------------------------------------------------------------------------------


@replayed
def linear(input: Array, weight: Array, bias: Array | None = None, *, out: Array | None = None) -> Array:
    """Fully connected layer: ``input @ weight.T + bias``.

    Parameters
    ----------
    input : array [*, IN]
        Floating-point, complex or integer.
    weight : array [OUT, IN] or [IN]
        In the dtype of `input`.
    bias : array [OUT] or [], optional
        In the dtype of `input`, or float32 where that has 16 bits.
    out : array in the shape of the result, optional
        An array to write the result to, of any strides; it is returned.

    Returns
    -------
    array [*, OUT], or [*] for a weight [IN]
        In the dtype of `input`; of integers with 8 bits in int32, with 16 bits in int64, which hold the sums.

    Raises
    ------
    TypeError
        Dtypes differ or are not supported.
    ValueError
        Shapes do not fit.

    See Also
    --------
    linear_backward

    Examples
    --------
    >>> linear(np.ones((1, 3)), np.eye(2, 3), np.array([0.0, 10.0]))
    array([[ 1., 11.]])
    """
    call = ProductCall("linear", NUMERIC, input=input, weight=weight, bias=bias, out=out)
    x, w, b = call.arrays
    _check_linear(call, x, w, b)
    shape = (*x.shape[:-1], *w.shape[:-1])
    written = None if out is None else call.checked_out(shape)
    rows, filters = x.reshape(-1, x.shape[-1]), w.reshape(-1, w.shape[-1])
    y = written
    if y is None or not (y.ndim <= 2 or y.flags.c_contiguous):  # it cannot be seen as rows
        y = call.backend.empty(shape, call.dtype, on=x)
    call.backend.linear(rows, filters, None if b is None else b.reshape(-1), y.reshape(-1, len(filters)))
    if written is not None and written is not y:
        call.backend.copy(y, written)
        y = written
    return call.result(y)


@replayed
def linear_backward(
    grad_output: Array,
    input: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    needs: Needs = None,
    dtype: Any = None,
) -> tuple[Array | None, Array | None, Array | None]:
    """Gradients of `linear`.

    Parameters
    ----------
    grad_output : array [*, OUT], or [*] for a weight [IN]
        Gradient of the loss with respect to the output.
    input, weight, bias
        As they were given to `linear`.
    needs : sequence of 3 bools, optional
        Which gradients to compute; the others are None.
    dtype : dtype, optional
        Of the gradients of `weight` and `bias`: float32 is possible where the images have 16 bits. By default each is
        in the dtype of its parameter.

    Returns
    -------
    tuple of (array or None)
        Gradients with respect to `input`, `weight` and `bias` (None where absent).

    Raises
    ------
    TypeError, ValueError
        As `linear`, or `grad_output` does not have the output's shape.

    Examples
    --------
    >>> linear_backward(np.ones((4, 2)), np.ones((4, 3)), np.ones((2, 3)))[1]
    array([[4., 4., 4.],
           [4., 4., 4.]])
    """
    arrays = {"grad_output": grad_output, "input": input, "weight": weight, "bias": bias}
    call = ProductCall("linear_backward", NUMERIC, **arrays, dtype=dtype)
    grad, x, w, b = call.arrays
    _check_linear(call, x, w, b)
    call.expect_shape("grad_output", grad, (*x.shape[:-1], *w.shape[:-1]))
    need_x, need_w, need_b = needed(call.op, needs, 3)
    rows = grad.reshape(-1, prod(w.shape[:-1]))  # [*, OUT]
    conj = call.xp.conj if call.dtype.kind == "c" else _unchanged
    grad_x = grad_w = grad_b = None
    if need_x:
        grad_x = call.backend.empty(x.shape, call.dtype, on=x)
        filters = conj(w).reshape(-1, w.shape[-1])
        call.backend.linear_backward_input(rows, filters, grad_x.reshape(-1, x.shape[-1]))
    if need_w:
        grad_w = call.gradient_of(w)
        inputs = conj(x).reshape(-1, x.shape[-1])
        call.backend.linear_backward_weight(inputs, rows, grad_w.reshape(-1, w.shape[-1]))
    if need_b and b is not None:
        grad_b = call.gradient_of(b)
        call.backend.channel_sums(rows[:, :, None], grad_b.reshape(-1))
    return call.result((grad_x, grad_w, grad_b))


def _unchanged(array: Array) -> Array:
    return array


def _check_linear(call: Call, x: Array, w: Array, b: Array | None) -> None:
    if w.ndim not in (1, 2):
        raise ValueError(f"{call.op}: weight has {w.ndim} dimensions, expected 2 (OUT, IN) or 1 (IN)")
    if 0 in w.shape:
        raise ValueError(f"{call.op}: weight has shape {w.shape}, expected sizes of at least 1")
    layout = "(OUT, IN)" if w.ndim == 2 else "(IN,)"
    if not x.ndim or x.shape[-1] != w.shape[-1]:
        expected = f"(*, {w.shape[-1]}) as weight {layout} has shape {w.shape}"
        raise ValueError(f"{call.op}: input has shape {x.shape}, expected {expected}")
    call.expect_shape("bias", b, w.shape[:-1])


# --- Activations --------------------------------------------------------------------------------------------------


@replayed
def relu(input: Array) -> Array:
    """Rectified linear unit: ``max(x, 0)``; NaN stays NaN.

    Parameters
    ----------
    input : array
        Floating-point or integer, of any shape.

    Returns
    -------
    array in the shape, dtype and memory order of `input`

    Raises
    ------
    TypeError
        The dtype is not supported.

    Examples
    --------
    >>> relu(np.array([-1.0, 2.0]))
    array([0., 2.])
    """
    call = Call("relu", ORDERED, input=input)
    (x,) = call.arrays
    if _has_planes(call, x):
        return call.result(_activated(call, x, Epilogue(None, "relu")))
    return call.result(call.stored_like(call.xp.maximum(x, call.xp.zeros((), x.dtype)), x))


@replayed
def relu_backward(grad_output: Array, input: Array, *, needs: Needs = None) -> tuple[Array | None]:
    """Gradient of `relu`; 0 at 0.

    Parameters
    ----------
    grad_output : array in the shape of `input`
        Gradient of the loss with respect to the output.
    input : array
        As it was given to `relu`.
    needs : sequence of 1 bool, optional
        Whether to compute it.

    Returns
    -------
    tuple of (array or None)
        Gradient with respect to `input`.

    Raises
    ------
    TypeError, ValueError
        As `relu`, or `grad_output` does not have the output's shape.

    Examples
    --------
    >>> relu_backward(np.array([5.0, 5.0]), np.array([-1.0, 2.0]))[0]
    array([0., 5.])
    """
    call = Call("relu_backward", ORDERED, grad_output=grad_output, input=input)
    grad, x = call.arrays
    call.expect_shape("grad_output", grad, x.shape)
    if not needed(call.op, needs, 1)[0]:
        return (None,)
    if _has_planes(call, grad, x):
        return call.result((_activated_backward(call, grad, x, Epilogue(None, "relu")),))
    off = x.astype(accumulator(x.dtype), copy=False) <= 0  # bfloat16 itself warns of a NaN that it compares
    return call.result((call.masked(grad, call.xp.logical_not(off)),))


@replayed
def leaky_relu(input: Array, negative_slope: float = 0.01) -> Array:
    """Leaky rectified linear unit: x where it is positive, else ``negative_slope * x``.

    Parameters
    ----------
    input : array
        Floating-point, of any shape.
    negative_slope : float

    Returns
    -------
    array in the shape, dtype and memory order of `input`

    Raises
    ------
    TypeError
        The dtype is not supported, or `negative_slope` is not a number.

    Examples
    --------
    >>> leaky_relu(np.array([-1.0, 2.0]), 0.5)
    array([-0.5,  2. ])
    """
    call = Call("leaky_relu", FLOATING, input=input)
    (x,) = call.arrays
    slope = number(call.op, "negative_slope", negative_slope)
    if _has_planes(call, x):
        return call.result(_activated(call, x, Epilogue(None, "leaky_relu", slope)))
    return call.result(call.leaked(x, x, slope))


FEW = 1 << 14  # elements of host memory, over which NumPy passes in less time than a launch takes


def _has_planes(call: Call, *arrays: Array) -> bool:
    """Whether arrays of one form go to the activation kernels: not where a copy would lose a non-contiguous order.

    NumPy's own functions are as fast as its backend's, and on few elements faster than any; other dtypes have no such
    kernels.
    """
    x = arrays[0]
    if (
        call.backend.name == "numpy"
        or (call.backend.host and x.size < FEW)
        or not x.size
        or name_of(x.dtype) not in FLOATING
    ):
        return False
    if any(other.strides != x.strides for other in arrays):
        return False
    return bool(x.flags.c_contiguous or (x.ndim > 2 and call.xp.moveaxis(x, 1, -1).flags.c_contiguous))


def _as_planes(x: Array) -> Array:
    """A view [N, C, P] of a contiguous array."""
    return x.reshape(1, 1, -1) if x.flags.c_contiguous else x.reshape(*x.shape[:2], -1)


def _activated(call: Call, x: Array, epilogue: Epilogue) -> Array:
    y = call.backend.empty_like(x.shape, x.dtype, x)
    call.backend.bias_activation(_as_planes(x), None, _as_planes(y), epilogue)
    return y


def _activated_backward(call: Call, grad: Array, x: Array, epilogue: Epilogue) -> Array:
    grad_x = call.backend.empty_like(x.shape, x.dtype, grad)
    call.backend.bias_activation_backward(_as_planes(grad), _as_planes(x), _as_planes(grad_x), None, epilogue)
    return grad_x


@replayed
def leaky_relu_backward(
    grad_output: Array, input: Array, negative_slope: float = 0.01, *, needs: Needs = None
) -> tuple[Array | None]:
    """Gradient of `leaky_relu`; that of the negative side at 0.

    Parameters
    ----------
    grad_output : array in the shape of `input`
        Gradient of the loss with respect to the output.
    input, negative_slope
        As they were given to `leaky_relu`.
    needs : sequence of 1 bool, optional
        Whether to compute it.

    Returns
    -------
    tuple of (array or None)
        Gradient with respect to `input`.

    Raises
    ------
    TypeError, ValueError
        As `leaky_relu`, or `grad_output` does not have the output's shape.

    Examples
    --------
    >>> leaky_relu_backward(np.array([5.0, 5.0]), np.array([-1.0, 2.0]), 0.5)[0]
    array([2.5, 5. ])
    """
    call = Call("leaky_relu_backward", FLOATING, grad_output=grad_output, input=input)
    grad, x = call.arrays
    call.expect_shape("grad_output", grad, x.shape)
    slope = number(call.op, "negative_slope", negative_slope)
    if not needed(call.op, needs, 1)[0]:
        return (None,)
    if _has_planes(call, grad, x):
        return call.result((_activated_backward(call, grad, x, Epilogue(None, "leaky_relu", slope)),))
    return call.result((call.leaked(grad, x, slope),))


# --- Softmax ------------------------------------------------------------------------------------------------------


@deferring
def softmax(input: Array, dim: int) -> Array:
    """``exp(x) / sum(exp(x))`` along an axis, shifted by the maximum so that nothing overflows.

    Parameters
    ----------
    input : array
        Floating-point, of any shape.
    dim : int
        The axis that sums to 1; negative ones count from the end.

    Returns
    -------
    array in the shape, dtype and memory order of `input`

    Raises
    ------
    TypeError
        The dtype is not supported, or `dim` is not an integer.
    ValueError
        There is no such axis.

    Examples
    --------
    >>> softmax(np.array([0.0, 0.0]), 0)
    array([0.5, 0.5])
    """
    call = Call("softmax", FLOATING, input=input)
    (x,) = call.arrays
    axis = axis_argument(call, x, dim)
    return call.result(call.stored_like(softmax_of(call, x, axis, is_log=False), x))


@deferring
def softmax_backward(
    grad_output: Array, input: Array, dim: int, *, output: Array | None = None, needs: Needs = None
) -> tuple[Array | None]:
    """Gradient of `softmax`: ``y * (grad - sum(grad * y))``.

    Parameters
    ----------
    grad_output : array in the shape of `input`
        Gradient of the loss with respect to the output.
    input, dim
        As they were given to `softmax`.
    output : array in the shape of `input`, optional
        What `softmax` returned; recomputed where it is missing.
    needs : sequence of 1 bool, optional
        Whether to compute it.

    Returns
    -------
    tuple of (array or None)
        Gradient with respect to `input`.

    Raises
    ------
    TypeError, ValueError
        As `softmax`, or shapes do not fit.

    Examples
    --------
    >>> softmax_backward(np.array([1.0, 0.0]), np.array([0.0, 0.0]), 0)[0]
    array([ 0.25, -0.25])
    """
    call = Call("softmax_backward", FLOATING, optional=("output",), grad_output=grad_output, input=input, output=output)
    grad, x, y = call.arrays
    axis = _check_softmax_backward(call, grad, x, y, dim)
    if not needed(call.op, needs, 1)[0]:
        return (None,)
    return call.result((_softmax_backward(call, grad, x, y, axis, is_log=False),))


@deferring
def log_softmax(input: Array, dim: int) -> Array:
    """``log(softmax(x))``, without the overflow and underflow of computing the two separately.

    Parameters
    ----------
    input : array
        Floating-point, of any shape.
    dim : int
        The axis whose exponentials sum to 1; negative ones count from the end.

    Returns
    -------
    array in the shape, dtype and memory order of `input`

    Raises
    ------
    TypeError
        The dtype is not supported, or `dim` is not an integer.
    ValueError
        There is no such axis.

    Examples
    --------
    >>> log_softmax(np.array([1000.0, 0.0]), 0)
    array([    0., -1000.])
    """
    call = Call("log_softmax", FLOATING, input=input)
    (x,) = call.arrays
    axis = axis_argument(call, x, dim)
    return call.result(call.stored_like(softmax_of(call, x, axis, is_log=True), x))


@deferring
def log_softmax_backward(
    grad_output: Array, input: Array, dim: int, *, output: Array | None = None, needs: Needs = None
) -> tuple[Array | None]:
    """Gradient of `log_softmax`: ``grad - exp(y) * sum(grad)``.

    Parameters
    ----------
    grad_output : array in the shape of `input`
        Gradient of the loss with respect to the output.
    input, dim
        As they were given to `log_softmax`.
    output : array in the shape of `input`, optional
        What `log_softmax` returned; recomputed where it is missing.
    needs : sequence of 1 bool, optional
        Whether to compute it.

    Returns
    -------
    tuple of (array or None)
        Gradient with respect to `input`.

    Raises
    ------
    TypeError, ValueError
        As `log_softmax`, or shapes do not fit.

    Examples
    --------
    >>> log_softmax_backward(np.array([1.0, 0.0]), np.array([0.0, 0.0]), 0)[0]
    array([ 0.5, -0.5])
    """
    call = Call(
        "log_softmax_backward", FLOATING, optional=("output",), grad_output=grad_output, input=input, output=output
    )
    grad, x, y = call.arrays
    axis = _check_softmax_backward(call, grad, x, y, dim)
    if not needed(call.op, needs, 1)[0]:
        return (None,)
    return call.result((_softmax_backward(call, grad, x, y, axis, is_log=True),))


def _softmax_backward(call: Call, grad: Array, x: Array, y: Array | None, axis: int, is_log: bool) -> Array:
    if not grad.size:
        return grad.copy(order="K")
    y = softmax_of(call, x, axis, is_log) if y is None else y
    return call.stored_like(call.backend.softmax_backward(grad, y, axis, is_log), grad)


def _check_softmax_backward(call: Call, grad: Array, x: Array, y: Array | None, dim: int) -> int:
    call.expect_shape("grad_output", grad, x.shape)
    call.expect_shape("output", y, x.shape)
    return axis_argument(call, x, dim)


# --- Dropout ------------------------------------------------------------------------------------------------------


@deferring
def dropout(input: Array, p: float = 0.5, training: bool = True, *, rng: Any = None, return_mask: bool = False) -> Any:
    """Set each element to zero with probability p and scale the others by ``1 / (1 - p)``.

    Parameters
    ----------
    input : array
        Floating-point, of any shape.
    p : float
        Probability of zero, in [0, 1].
    training : bool
        Drop; else the result equals `input`.
    rng : None, int or Generator
        The source of randomness: fresh, a seed, or a generator of the caller's: `numpy.random.Generator` for
        NumPy's arrays, `cupy.random.Generator` for CuPy's.
    return_mask : bool
        Return the mask of the kept elements in addition to the result.

    Returns
    -------
    array in the shape, dtype and memory order of `input`
    array of bool
        With `return_mask`: True for the elements that were kept.

    Raises
    ------
    TypeError
        The dtype is not supported, or a parameter is of another type.
    ValueError
        p is not in [0, 1].

    See Also
    --------
    dropout_backward

    Notes
    -----
    The numbers drawn are not PyTorch's, and on a GPU they are CuPy's. There is no global seed.

    References
    ----------
    N. Srivastava et al., *Dropout*, JMLR 15, 2014.

    Examples
    --------
    >>> dropout(np.ones(6), 0.5, rng=1)
    array([2., 2., 0., 2., 0., 0.])
    """
    call = Call("dropout", FLOATING, input=input)
    (x,) = call.arrays
    share = number(call.op, "p", p, 0.0, 1.0)
    training = boolean(call.op, "training", training)
    gives_mask = boolean(call.op, "return_mask", return_mask)
    rng = _seed(call, rng)
    mask = _dropout_mask(call, x, share, training, rng)
    y = _dropped(call, x, share, training, mask)
    return call.result((y, mask) if gives_mask else y)


@deferring
def dropout_backward(
    grad_output: Array,
    input: Array,
    p: float = 0.5,
    training: bool = True,
    *,
    rng: Any = None,
    return_mask: bool = False,
    mask: Array | None = None,
    needs: Needs = None,
) -> tuple[Array | None]:
    """Gradient of `dropout`.

    Parameters
    ----------
    grad_output : array in the shape of `input`
        Gradient of the loss with respect to the output.
    input, p, training, rng, return_mask
        As they were given to `dropout`.
    mask : array of bool in the shape of `input`, optional
        What the forward returned. It is drawn again where `rng` is a seed, and is needed where that is not.
    needs : sequence of 1 bool, optional
        Whether to compute it.

    Returns
    -------
    tuple of (array or None)
        Gradient with respect to `input`.

    Raises
    ------
    TypeError, ValueError
        As `dropout`, or shapes do not fit, or the mask is missing.

    Examples
    --------
    >>> y, mask = dropout(np.ones(6), 0.5, rng=1, return_mask=True)
    >>> dropout_backward(np.ones(6), np.ones(6), 0.5, mask=mask)[0]
    array([2., 2., 0., 2., 0., 0.])
    """
    call = Call("dropout_backward", FLOATING, grad_output=grad_output, input=input)
    grad, x = call.arrays
    call.expect_shape("grad_output", grad, x.shape)
    share = number(call.op, "p", p, 0.0, 1.0)
    training = boolean(call.op, "training", training)
    boolean(call.op, "return_mask", return_mask)
    rng = _seed(call, rng)
    if mask is not None:
        mask = call.also("mask", mask)
        call.expect_shape("mask", mask, x.shape)
        if mask.dtype != np.bool_:
            raise TypeError(f"{call.op}: mask has dtype {mask.dtype}, expected bool")
    elif training and 0 < share < 1 and not isinstance(rng, int):
        raise ValueError(f"{call.op}: mask is None, expected the forward's, or a seed as rng to draw it again")
    if not needed(call.op, needs, 1)[0]:
        return (None,)
    if mask is None:
        mask = _dropout_mask(call, x, share, training, rng)
    return call.result((_dropped(call, grad, share, training, mask),))


def _seed(call: Call, rng: Any) -> Any:
    """`rng`, as an int where it is a seed."""
    seed = plain(rng)
    if is_boolean(rng) or isinstance(seed, float | complex):
        raise TypeError(f"{call.op}: rng is {rng!r}, expected None, a seed or a Generator")
    return seed


def _dropout_mask(call: Call, x: Array, p: float, training: bool, rng: Any) -> Array:
    """The mask of the elements that are kept."""
    if not training or p == 0:
        return call.xp.ones(x.shape, bool)
    try:
        generator = call.xp.random.default_rng(rng)
    except (TypeError, ValueError):
        raise TypeError(f"{call.op}: rng is {rng!r}, expected None, a seed or a Generator") from None
    return call.xp.asarray(generator.random(x.shape) >= p)


def _dropped(call: Call, values: Array, p: float, training: bool, mask: Array) -> Array:
    if not training or p == 0:
        return values.copy(order="K")
    scale = 0.0 if p == 1 else 1 / (1 - p)
    kept = call.masked(values.astype(accumulator(values.dtype), copy=False), mask)
    kept *= scale
    return call.stored_like(kept, values)
