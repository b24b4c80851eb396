"""Activations, and softmax with its kin."""

from __future__ import annotations

import numpy as np

import gpucnn.functional as F
from gpucnn.backends.dtypes import FLOATING
from gpucnn.onnx.operators.arrays import axis_of, namespace, written
from gpucnn.onnx.operators.chains import chain
from gpucnn.onnx.operators.registry import OWN, Array, operator

FEW = 1 << 12  # elements of host memory, over which NumPy passes in a fraction of the time of an operation's checks


def _is_small(x: Array) -> bool:
    """Whether NumPy alone is faster than gpucnn's operations."""
    return isinstance(x, np.ndarray) and x.size < FEW and x.dtype == np.float32


# --- Activations ------------------------------------------------------------------------------------------------------


@operator("Relu", launches=True)
def relu(x: Array) -> Array:
    """``max(x, 0)``."""
    return np.maximum(x, x.dtype.type(0)) if _is_small(x) else F.relu(x)


@operator("LeakyRelu", launches=True)
def leaky_relu(x: Array, *, alpha: float = 0.01) -> Array:
    """X where it is positive, else a share of it."""
    return F.leaky_relu(x, alpha)


@operator("PRelu", 1)
def prelu_of_channels(x: Array, slope: Array) -> Array:
    """As `prelu`, with a slope for all or for each channel."""
    return prelu(x, slope if slope.size == 1 else slope.reshape(-1, *(1,) * (x.ndim - 2)))


@operator("PRelu", 7)
def prelu(x: Array, slope: Array) -> Array:
    """X where it is positive, else a share of it that is learned."""
    return namespace(x).where(x < 0, x * slope, x).astype(x.dtype, copy=False)


@operator("ThresholdedRelu")
def thresholded_relu(x: Array, *, alpha: float = 1.0) -> Array:
    """X where it is more than alpha, else 0."""
    return namespace(x).where(x > alpha, x, x.dtype.type(0))


@operator("Shrink")
def shrink(x: Array, *, bias: float = 0.0, lambd: float = 0.5) -> Array:
    """X moved towards 0 by `bias` where it is further than `lambd` from it, else 0."""
    xp, zero = namespace(x), x.dtype.type(0)
    low = xp.where(x < -lambd, x + x.dtype.type(bias), zero)
    return xp.where(x > lambd, x - x.dtype.type(bias), low)


@operator("Elu")
def elu(x: Array, *, alpha: float = 1.0) -> Array:
    """X where it is positive, else ``alpha * (exp(x) - 1)``."""
    return _exponential(x, alpha, 1.0, 1.0)


@operator("Selu")
def selu(x: Array, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Array:
    """The ELU, scaled by gamma."""
    return _exponential(x, alpha, 1.0, gamma)


@operator("Celu")
def celu(x: Array, *, alpha: float = 1.0) -> Array:
    """X where it is positive, else ``alpha * (exp(x / alpha) - 1)``."""
    return _exponential(x, alpha, 1 / alpha, 1.0)


def _exponential(x: Array, alpha: float, inner: float, outer: float) -> Array:
    xp = namespace(x)
    below = xp.expm1(xp.minimum(x, 0) * inner) * alpha
    return (xp.where(x > 0, x, below) * outer).astype(x.dtype, copy=False)


@operator("Sigmoid")
def sigmoid(x: Array, *, out: Array = None) -> Array:
    """``1 / (1 + exp(-x))``."""
    if not _is_small(x):
        return written(F.sigmoid(x), out)
    y = np.negative(x, out=out)
    np.exp(y, out=y)
    y += 1
    return np.divide(1, y, out=y)


@operator("HardSigmoid")
def hard_sigmoid(x: Array, *, alpha: float = 0.2, beta: float = 0.5, out: Array = None) -> Array:
    """``alpha * x + beta`` within [0, 1]."""
    return chain(x, steps=["hard_sigmoid"], numbers=[alpha, beta], out=out)


@operator("HardSwish")
def hard_swish(x: Array, *, out: Array = None) -> Array:
    """``x * hard_sigmoid(x)`` with alpha = 1/6 and beta = 1/2."""
    return chain(x, steps=["hard_swish"], numbers=[], out=out)


@operator("Swish", domain=OWN)
@operator("Swish")
def swish(x: Array, *, alpha: float = 1.0) -> Array:
    """``x * sigmoid(alpha * x)``."""
    y = F.sigmoid(x if alpha == 1 else x * x.dtype.type(alpha))
    y *= x
    return y


@operator("Gelu", domain=OWN)
@operator("Gelu")
def gelu(x: Array, *, approximate: str = "none") -> Array:
    """X times the share of the normal distribution that is below it."""
    return F.gelu(x, approximate=approximate)


@operator("Softplus")
def softplus(x: Array) -> Array:
    """``log(1 + exp(x))``, without overflow."""
    xp = namespace(x)
    return xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.abs(x)))


@operator("Softsign")
def softsign(x: Array) -> Array:
    """``x / (1 + |x|)``."""
    return x / (1 + namespace(x).abs(x))


@operator("Mish")
def mish(x: Array) -> Array:
    """``x * tanh(softplus(x))``."""
    return x * namespace(x).tanh(softplus(x))


# --- Softmax ------------------------------------------------------------------------------------------------------


def _flat(x: Array, axis: int) -> Array:
    """The axes before `axis` as one, and those from it on as another: what softmax saw before version 13."""
    axis = axis_of(axis, x.ndim) if axis != x.ndim else axis
    return x.reshape(int(np.prod(x.shape[:axis], dtype=int)), -1) if x.size else x.reshape(0, 1)


@operator("Softmax", 13, launches=True)
def softmax(x: Array, *, axis: int = -1) -> Array:
    """Exponentials along an axis, divided by their sum."""
    if not _is_small(x) or not x.size:
        return F.softmax(x, axis)
    y = np.exp(x - x.max(axis, keepdims=True))
    y /= y.sum(axis, keepdims=True)
    return y


@operator("Softmax", 1)
def softmax_of_rows(x: Array, *, axis: int = 1) -> Array:
    """As `softmax`, over all axes from `axis` on at once."""
    return softmax(_flat(x, axis), axis=1).reshape(x.shape)


@operator("LogSoftmax", 13)
def log_softmax(x: Array, *, axis: int = -1) -> Array:
    """The logarithm of `softmax`."""
    return F.log_softmax(x, axis)


@operator("LogSoftmax", 1)
def log_softmax_of_rows(x: Array, *, axis: int = 1) -> Array:
    """The logarithm of `softmax_of_rows`."""
    return F.log_softmax(_flat(x, axis), 1).reshape(x.shape)


@operator("Hardmax", 13)
def hardmax(x: Array, *, axis: int = -1) -> Array:
    """1 at the first maximum along an axis, else 0."""
    xp = namespace(x)
    axis = axis_of(axis, x.ndim)
    at = xp.expand_dims(x.argmax(axis=axis), axis)
    places = xp.arange(x.shape[axis]).reshape(-1, *(1,) * (x.ndim - axis - 1))
    return (places == at).astype(x.dtype)


@operator("Hardmax", 1)
def hardmax_of_rows(x: Array, *, axis: int = 1) -> Array:
    """As `hardmax`, over all axes from `axis` on at once."""
    return hardmax(_flat(x, axis), axis=1).reshape(x.shape)


def is_floating(x: Array) -> bool:
    """Whether gpucnn's operations on floating-point numbers take x."""
    return x.dtype.name in FLOATING
