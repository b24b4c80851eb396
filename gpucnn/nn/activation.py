"""Activations and other elementwise layers: ReLU, Sigmoid, SiLU, GELU, Softmax, Dropout, Flatten, Identity."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import wraps
from math import prod
from typing import Any

import numpy as np

import gpucnn.functional as F
from gpucnn.backends import receive
from gpucnn.backends.deferring import DeferredArraysError
from gpucnn.backends.dtypes import FLOATING, ORDERED, name_of
from gpucnn.backends.layout import is_channels_last
from gpucnn.functional._call import Call, choice
from gpucnn.geometry import Window
from gpucnn.geometry.arguments import number, plain
from gpucnn.nn._joining import in_order
from gpucnn.nn.keeping import inference
from gpucnn.nn.module import Array, Module

__all__ = [
    "GELU", "Dropout", "Flatten", "Hardsigmoid", "Hardswish", "Identity", "LeakyReLU", "ReLU", "ReLU6", "SiLU",
    "Sigmoid", "Softmax", "Tanh",
]  # fmt: skip


def _by_element(forward: Callable[[Any, Array], Array]) -> Callable[[Any, Array], Array]:
    """The forward of a layer that computes element by element, which Dask's arrays run for each chunk."""

    @wraps(forward)
    def call(self: Module, x: Array) -> Array:
        try:
            return forward(self, x)
        except DeferredArraysError:
            layer = copy.copy(self)
            layer.keep()  # nothing that travels with the tasks
            return x.map_blocks(_of_chunk, layer, dtype=x.dtype, meta=x._meta)

    return call


def _of_chunk(chunk: Array, layer: Module) -> Array:
    with inference():
        return layer(chunk)


class ReLU(Module):
    """Rectified linear unit, ``max(x, 0)``, as ``torch.nn.ReLU``.

    Examples
    --------
    >>> ReLU()(np.array([-1.0, 2.0]))
    array([0., 2.])
    """

    def forward(self, x: Array) -> Array:
        """``max(x, 0)``."""
        y = F.relu(x)
        self.keep(y)  # y is positive where x is, and the next layer keeps it too
        return y

    def backward(self, grad_output: Array) -> Array:
        """The gradient where x was positive, else 0."""
        (y,) = self.kept()
        return F.relu_backward(grad_output, y, needs=(self.needs_input_grad,))[0]


class LeakyReLU(Module):
    """Leaky rectified linear unit, as ``torch.nn.LeakyReLU``.

    Parameters
    ----------
    negative_slope : float
        The factor of negative elements.

    Examples
    --------
    >>> LeakyReLU(0.5)(np.array([-1.0, 2.0]))
    array([-0.5,  2. ])
    """

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = number("LeakyReLU", "negative_slope", negative_slope)

    def forward(self, x: Array) -> Array:
        """X where it is positive, else a share of it."""
        self.keep(x)
        return F.leaky_relu(x, self.negative_slope)

    def backward(self, grad_output: Array) -> Array:
        """The gradient where x was positive, else a share of it."""
        (x,) = self.kept()
        return F.leaky_relu_backward(grad_output, x, self.negative_slope, needs=(self.needs_input_grad,))[0]

    def extra_repr(self) -> str:
        """The slope."""
        return f"negative_slope={self.negative_slope}"


class ReLU6(Module):
    """Rectified linear unit that ends at 6, ``min(max(x, 0), 6)``, as ``torch.nn.ReLU6``.

    Examples
    --------
    >>> ReLU6()(np.array([-1.0, 2.0, 9.0]))
    array([0., 2., 6.])
    """

    @_by_element
    def forward(self, x: Array) -> Array:
        """``min(max(x, 0), 6)``."""
        call = Call("ReLU6", ORDERED, input=x)
        (given,) = call.arrays
        if _has_channels(given):
            y = F.bias_activation(x, activation="relu6")
        else:
            positive = call.xp.maximum(given, call.xp.zeros((), given.dtype))
            y = call.result(call.stored_like(call.xp.minimum(positive, call.xp.full((), 6, positive.dtype)), given))
        self.keep(y)
        return y

    def backward(self, grad_output: Array) -> Array:
        """The gradient where x was between 0 and 6, else 0."""
        (y,) = self.kept()
        _, output = Call("ReLU6", ORDERED, grad_output=grad_output, output=y).arrays
        if _has_channels(output):
            needs = (self.needs_input_grad, False, False)
            return F.bias_activation_backward(grad_output, y, activation="relu6", output=y, needs=needs)[0]
        (grad,) = F.relu_backward(grad_output, y, needs=(self.needs_input_grad,))
        return None if grad is None else F.relu_backward(grad, 6 - y)[0]


def _has_channels(array: Array) -> bool:
    """Whether `bias_activation` takes an array."""
    return name_of(array.dtype) in FLOATING and array.ndim > 1 and array.size > 0


class Tanh(Module):
    """Hyperbolic tangent, as ``torch.nn.Tanh``.

    Examples
    --------
    >>> Tanh()(np.zeros(2))
    array([0., 0.])
    """

    @_by_element
    def forward(self, x: Array) -> Array:
        """``tanh(x)``."""
        call = Call("Tanh", FLOATING, input=x)
        (x,) = call.arrays
        y = call.result(call.stored_like(call.xp.tanh(call.promoted(x)), x))
        self.keep(y)
        return y

    def backward(self, grad_output: Array) -> Array:
        """``grad_output * (1 - tanh(x)**2)``."""
        (y,) = self.kept()
        call = Call("Tanh", FLOATING, grad_output=grad_output, output=y)
        grad, y = call.arrays
        call.expect_shape("grad_output", grad, y.shape)
        if not self.needs_input_grad:
            return None
        y = call.promoted(y)
        return call.result(call.stored_like(call.promoted(grad) * (1 - y * y), grad))


class Sigmoid(Module):
    """``1 / (1 + exp(-x))``, as ``torch.nn.Sigmoid``.

    To train by cross entropy, leave it out and use `BCEWithLogitsLoss`: that is exact where the sigmoid rounds to 1.

    Examples
    --------
    >>> Sigmoid()(np.zeros(2))
    array([0.5, 0.5])
    """

    def forward(self, x: Array) -> Array:
        """``1 / (1 + exp(-x))``."""
        self.keep(x)
        return F.sigmoid(x)

    def backward(self, grad_output: Array) -> Array:
        """``grad_output * sigmoid(x) * sigmoid(-x)``."""
        (x,) = self.kept()
        return F.sigmoid_backward(grad_output, x, needs=(self.needs_input_grad,))[0]


class _Smooth(Module):
    """A smooth activation of `gpucnn.backends.Epilogue`."""

    kind: str

    @_by_element
    def forward(self, x: Array) -> Array:
        """The activation of each element."""
        self.keep(x)
        call = Call(type(self).__name__, FLOATING, input=x)
        (x,) = call.arrays
        if not x.size:
            return call.result(x.copy(order="K"))
        return call.result(call.stored_like(call.backend.smooth_activation(x, self.kind), x))

    def backward(self, grad_output: Array) -> Array:
        """The gradient times the derivative at x."""
        (x,) = self.kept()
        call = Call(type(self).__name__, FLOATING, grad_output=grad_output, input=x)
        grad, x = call.arrays
        call.expect_shape("grad_output", grad, x.shape)
        if not (self.needs_input_grad and x.size):
            return call.result(grad.copy(order="K")) if self.needs_input_grad else None
        return call.result(call.stored_like(call.backend.smooth_activation_backward(grad, x, self.kind), grad))


class SiLU(_Smooth):
    """``x * sigmoid(x)``, also called swish, as ``torch.nn.SiLU``.

    Examples
    --------
    >>> SiLU()(np.array([-1.0, 1.0])).round(4)
    array([-0.2689,  0.7311])
    """

    kind = "silu"


class Hardsigmoid(_Smooth):
    """``min(max(x + 3, 0), 6) / 6``, as ``torch.nn.Hardsigmoid``.

    Examples
    --------
    >>> Hardsigmoid()(np.array([-4.0, 0.0, 4.0]))
    array([0. , 0.5, 1. ])
    """

    kind = "hard_sigmoid"


class Hardswish(_Smooth):
    """``x * min(max(x + 3, 0), 6) / 6``, as ``torch.nn.Hardswish``.

    References
    ----------
    A. Howard et al., *Searching for MobileNetV3*, arXiv:1905.02244v5.

    Examples
    --------
    >>> Hardswish()(np.array([-4.0, 1.5, 4.0]))
    array([-0.   ,  1.125,  4.   ])
    """

    kind = "hard_swish"


class GELU(Module):
    """Gaussian error linear unit, x times the share of the normal distribution below it, as ``torch.nn.GELU``.

    Parameters
    ----------
    approximate : "none" or "tanh"
        Exact, or by a hyperbolic tangent.

    Raises
    ------
    ValueError
        `approximate` is neither.

    Examples
    --------
    >>> GELU()(np.array([-1.0, 1.0])).round(4)
    array([-0.1587,  0.8413])
    """

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = choice("GELU", "approximate", approximate, ("none", "tanh"))

    def forward(self, x: Array) -> Array:
        """X times the share of the normal distribution below it."""
        self.keep(x)
        return F.gelu(x, approximate=self.approximate)

    def backward(self, grad_output: Array) -> Array:
        """The gradient times the share below x, and x times the density there."""
        (x,) = self.kept()
        needs = (self.needs_input_grad,)
        return F.gelu_backward(grad_output, x, approximate=self.approximate, needs=needs)[0]

    def extra_repr(self) -> str:
        """The form, if it is not the exact one."""
        return "" if self.approximate == "none" else f"approximate={self.approximate!r}"


class Softmax(Module):
    """``exp(x) / sum(exp(x))`` along an axis, as ``torch.nn.Softmax``.

    Parameters
    ----------
    dim : int
        The axis that sums to 1; negative ones count from the end.

    Examples
    --------
    >>> Softmax(dim=1)(np.zeros((1, 2)))
    array([[0.5, 0.5]])
    """

    def __init__(self, dim: int) -> None:
        self.dim = plain(dim)

    def forward(self, x: Array) -> Array:
        """Positive numbers that sum to 1."""
        y = F.softmax(x, self.dim)
        self.keep(y)
        return y

    def backward(self, grad_output: Array) -> Array:
        """``y * (grad - sum(grad * y))``."""
        (y,) = self.kept()  # of the input only shape and dtype are read
        return F.softmax_backward(grad_output, y, self.dim, output=y, needs=(self.needs_input_grad,))[0]

    def extra_repr(self) -> str:
        """The axis."""
        return f"dim={self.dim}"


class Dropout(Module):
    """In training, set elements to zero and scale the others by ``1 / (1 - p)``, as ``torch.nn.Dropout``.

    Parameters
    ----------
    p : float
        Probability of zero, in [0, 1].
    rng : numpy.random.Generator, int or None
        The source of randomness: the caller's generator, a seed, or fresh.

    Attributes
    ----------
    rng : numpy.random.Generator
        It draws a seed for each forward; its numbers come from a generator on the device of the arrays.

    Notes
    -----
    In evaluation the result is `x` itself. The numbers drawn are not PyTorch's.

    References
    ----------
    N. Srivastava et al., *Dropout*, JMLR 15, 2014.

    Examples
    --------
    >>> layer = Dropout(0.5, rng=1)
    >>> sorted(set(layer(np.ones(100))))
    [np.float64(0.0), np.float64(2.0)]
    >>> layer.eval()(np.ones(3))
    array([1., 1., 1.])
    """

    def __init__(self, p: float = 0.5, *, rng: Any = None) -> None:
        self.p = number("Dropout", "p", p, 0.0, 1.0)
        self.rng = np.random.default_rng(rng)

    def forward(self, x: Array) -> Array:
        """Some elements of x, scaled; in evaluation x."""
        if not self.training or self.p == 0:
            self.keep(x, None)
            return x
        seed = int(self.rng.integers(2**63))
        y, mask = F.dropout(x, self.p, rng=seed, return_mask=True)
        self.keep(x, mask)
        return y

    def backward(self, grad_output: Array) -> Array:
        """The gradient of the elements that were kept, scaled as they were."""
        x, mask = self.kept()
        training = mask is not None
        needs = (self.needs_input_grad,)
        return F.dropout_backward(grad_output, x, self.p, training, mask=mask, needs=needs)[0]

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}"


class Flatten(Module):
    """Merge several axes into one, as ``torch.nn.Flatten``.

    Parameters
    ----------
    start_dim, end_dim : int
        First and last of the axes; by default all but that of the batch.

    Examples
    --------
    >>> Flatten()(np.ones((2, 3, 4))).shape
    (2, 12)
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim, self.end_dim = plain(start_dim), plain(end_dim)

    def forward(self, x: Array) -> Array:
        """X with those axes merged into one."""
        try:
            _, (x,), give_back = receive("Flatten", {"input": x})
            is_last = is_channels_last(x)
        except DeferredArraysError:  # Dask's arrays have the same methods, and no order in memory
            give_back, is_last = None, False
        first, last = (dim + x.ndim if dim < 0 else dim for dim in (self.start_dim, self.end_dim))
        if not 0 <= first <= last < x.ndim:
            raise ValueError(
                f"Flatten: input has shape {tuple(x.shape)}, expected axes start_dim = {self.start_dim} "
                f"to end_dim = {self.end_dim}"
            )
        self.keep(tuple(x.shape), is_last)
        y = x.reshape(*x.shape[:first], prod(x.shape[first : last + 1]), *x.shape[last + 1 :])
        return y if give_back is None else give_back(y)

    def backward(self, grad_output: Array) -> Array:
        """The gradient with x's axes, in x's memory order."""
        shape, is_last = self.kept()
        return in_order(grad_output.reshape(shape), is_last) if self.needs_input_grad else None

    def window(self, input_shape: tuple[int, ...]) -> Window:
        """All positions."""
        return Window(input_shape[2:] or 1)

    def extra_repr(self) -> str:
        """The axes."""
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Identity(Module):
    """The identity: the result is the input. For a branch that passes its input on, or in place of a removed layer.

    Examples
    --------
    >>> Identity()(np.ones(2))
    array([1., 1.])
    """

    def forward(self, x: Array) -> Array:
        """X itself."""
        self.keep()
        return x

    def backward(self, grad_output: Array) -> Array:
        """The gradient itself."""
        self.kept()
        return grad_output if self.needs_input_grad else None
