"""Initialisers of parameters. Names, arguments and distributions as in ``torch.nn.init``.

Each fills a `Parameter`, or an array, in place, and returns it. Random numbers are drawn on the host by ``rng``: a
`numpy.random.Generator`, a seed, or None for fresh ones; so a seed means the same numbers on every backend. They are
not PyTorch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from gpucnn.backends import backend_of
from gpucnn.geometry.arguments import plain
from gpucnn.nn.module import Parameter

Target = TypeVar("Target")
Rng = np.random.Generator | int | None

MODES = ("fan_in", "fan_out")
GAINS = {"linear": 1.0, "sigmoid": 1.0, "tanh": 5.0 / 3, "relu": math.sqrt(2.0), "selu": 3.0 / 4}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The gain of weights before a nonlinearity, which keeps the size of signals.

    Parameters
    ----------
    nonlinearity : str
        "linear", "conv1d" … "conv3d", "conv_transpose1d" … "conv_transpose3d", "sigmoid", "tanh", "relu",
        "leaky_relu" or "selu".
    param : float, optional
        The slope of "leaky_relu" where it is negative; 0.01 if left out.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        Another nonlinearity.

    Examples
    --------
    >>> calculate_gain("relu") == math.sqrt(2.0)
    True
    """
    if nonlinearity == "leaky_relu":
        return math.sqrt(2.0 / (1 + (0.01 if param is None else plain(param)) ** 2))
    kind = "linear" if nonlinearity.startswith("conv") else nonlinearity
    if kind in GAINS:
        return GAINS[kind]
    raise ValueError(
        f"calculate_gain: nonlinearity is {nonlinearity!r}, expected 'linear', 'conv…', 'sigmoid', 'tanh', 'relu', "
        "'leaky_relu' or 'selu'"
    )


def fans(tensor: Any) -> tuple[int, int]:
    """Fan in and fan out of `tensor`: the inputs of each output, and the outputs of each input.

    Parameters
    ----------
    tensor : Parameter or array [O, I, *kernel]
        A weight; [O, I] for a linear layer, [OC, C / groups, *kernel] for a convolution.

    Returns
    -------
    tuple of (int, int)
        ``I * prod(kernel)`` and ``O * prod(kernel)``.

    Raises
    ------
    ValueError
        Fewer than two axes.

    Notes
    -----
    As in PyTorch, only the shape counts: the weight [C, OC / groups, *kernel] of a transposed convolution
    gives the fans of the convolution that it transposes, and a grouped one has the outputs of all groups.

    Examples
    --------
    >>> fans(np.empty((64, 3, 7, 7)))
    (147, 3136)
    """
    shape = tuple(tensor.shape)
    if len(shape) < 2:
        raise ValueError(f"fans: tensor has shape {shape}, expected at least 2 axes to have a fan in and a fan out")
    kernel = math.prod(shape[2:])
    return shape[1] * kernel, shape[0] * kernel


def uniform_(tensor: Target, a: float = 0.0, b: float = 1.0, *, rng: Rng = None) -> Target:
    """Fill with numbers drawn evenly from [a, b).

    Parameters
    ----------
    tensor : Parameter or array
        Floating-point, of any shape; filled in place.
    a, b : float
        The bounds.
    rng : Generator, int or None
        The source of randomness.

    Returns
    -------
    Parameter or array
        `tensor`.

    Raises
    ------
    TypeError
        `rng` is none of these.

    Examples
    --------
    >>> uniform_(np.empty(3), -1, 1, rng=0)
    array([ 0.27392337, -0.46042657, -0.91805295])
    """
    return _fill(tensor, np.random.Generator.random, rng, plain(b) - plain(a), plain(a))


def normal_(tensor: Target, mean: float = 0.0, std: float = 1.0, *, rng: Rng = None) -> Target:
    """Fill with normally distributed numbers.

    Parameters
    ----------
    tensor : Parameter or array
        Floating-point, of any shape; filled in place.
    mean, std : float
        Of the distribution.
    rng : Generator, int or None
        The source of randomness.

    Returns
    -------
    Parameter or array
        `tensor`.

    Raises
    ------
    TypeError
        `rng` is none of these.

    Examples
    --------
    >>> normal_(np.empty(2), rng=0)
    array([ 0.12573022, -0.13210486])
    """
    return _fill(tensor, np.random.Generator.standard_normal, rng, plain(std), plain(mean))


def constant_(tensor: Target, val: float) -> Target:
    """Fill with one value; returns `tensor`.

    Examples
    --------
    >>> constant_(np.empty(2), 0.5)
    array([0.5, 0.5])
    """
    _array(tensor)[...] = val
    return tensor


def zeros_(tensor: Target) -> Target:
    """Fill with zeros; returns `tensor`.

    Examples
    --------
    >>> zeros_(np.empty(2))
    array([0., 0.])
    """
    return constant_(tensor, 0.0)


def ones_(tensor: Target) -> Target:
    """Fill with ones; returns `tensor`.

    Examples
    --------
    >>> ones_(np.empty(2))
    array([1., 1.])
    """
    return constant_(tensor, 1.0)


def xavier_uniform_(tensor: Target, gain: float = 1.0, *, rng: Rng = None) -> Target:
    """Fill a weight evenly from ±gain * sqrt(6 / (fan in + fan out)).

    Parameters
    ----------
    tensor : Parameter or array [O, I, *kernel]
        Floating-point; filled in place.
    gain : float
        A factor, see `calculate_gain`.
    rng : Generator, int or None
        The source of randomness.

    Returns
    -------
    Parameter or array
        `tensor`.

    Raises
    ------
    TypeError
        `rng` is none of these.
    ValueError
        Fewer than two axes.

    References
    ----------
    X. Glorot, Y. Bengio, *Understanding the difficulty of training deep feedforward neural networks*, AISTATS 2010.

    Examples
    --------
    >>> abs(xavier_uniform_(np.empty((2, 4)), rng=0)).max() < 1.0
    np.True_
    """
    bound = math.sqrt(3.0) * plain(gain) * math.sqrt(2.0 / sum(fans(tensor)))
    return uniform_(tensor, -bound, bound, rng=rng)


def xavier_normal_(tensor: Target, gain: float = 1.0, *, rng: Rng = None) -> Target:
    """Fill a weight normally with the standard deviation gain * sqrt(2 / (fan in + fan out)).

    Parameters, errors and source are those of `xavier_uniform_`.

    Examples
    --------
    >>> xavier_normal_(np.empty((1, 1)), rng=0)
    array([[0.12573022]])
    """
    return normal_(tensor, 0.0, plain(gain) * math.sqrt(2.0 / sum(fans(tensor))), rng=rng)


def kaiming_uniform_(
    tensor: Target, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu", *, rng: Rng = None
) -> Target:
    """Fill a weight evenly from ±gain * sqrt(3 / fan).

    Parameters
    ----------
    tensor : Parameter or array [O, I, *kernel]
        Floating-point; filled in place.
    a : float
        The slope of "leaky_relu" where it is negative.
    mode : "fan_in" or "fan_out"
        Keep the size of signals forward, or of gradients backward.
    nonlinearity : str
        The nonlinearity after the layer, see `calculate_gain`.
    rng : Generator, int or None
        The source of randomness.

    Returns
    -------
    Parameter or array
        `tensor`.

    Raises
    ------
    TypeError
        `rng` is none of these.
    ValueError
        Fewer than two axes, or another mode or nonlinearity.

    References
    ----------
    K. He et al., *Delving deep into rectifiers*, ICCV 2015.

    Examples
    --------
    >>> weight = kaiming_uniform_(Parameter(np.empty((8, 3, 5, 5), np.float32)), nonlinearity="relu", rng=0)
    >>> float(abs(weight.data).max()) < math.sqrt(6 / 75)
    True
    """
    bound = math.sqrt(3.0) * _kaiming_std("kaiming_uniform_", tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, rng=rng)


def kaiming_normal_(
    tensor: Target, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu", *, rng: Rng = None
) -> Target:
    """Fill a weight normally with the standard deviation gain / sqrt(fan).

    Parameters, errors and source are those of `kaiming_uniform_`.

    Examples
    --------
    >>> kaiming_normal_(np.empty((1, 2)), nonlinearity="relu", rng=0)
    array([[ 0.12573022, -0.13210486]])
    """
    return normal_(tensor, 0.0, _kaiming_std("kaiming_normal_", tensor, a, mode, nonlinearity), rng=rng)


def _kaiming_std(op: str, tensor: Any, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in MODES:
        raise ValueError(f"{op}: mode is {mode!r}, expected 'fan_in' or 'fan_out'")
    fan = fans(tensor)[MODES.index(mode)]
    return calculate_gain(nonlinearity, a) / math.sqrt(fan)


def generator_of(op: str, rng: Rng) -> np.random.Generator:
    """`rng` as a generator: itself, one from a seed, or a new one.

    Raises
    ------
    TypeError
        It is none of these.

    Examples
    --------
    >>> generator_of("Dropout", 1).integers(10)
    np.int64(4)
    """
    if rng is None or isinstance(rng, int | np.integer | np.random.Generator):
        return np.random.default_rng(rng)
    raise TypeError(f"{op}: rng is {rng!r}, expected None, a seed or a numpy.random.Generator")


def _array(tensor: Any) -> Any:
    return tensor.data if isinstance(tensor, Parameter) else tensor


def _fill(tensor: Target, draw: Callable[..., Any], rng: Rng, scale: float, shift: float) -> Target:
    """Fill with ``draw(generator, shape, dtype) * scale + shift``, in float64 if that is the dtype, else in float32."""
    array = _array(tensor)
    dtype = np.float64 if array.dtype == np.float64 else np.float32
    values = draw(generator_of("nn.init", rng), tuple(array.shape), dtype)
    values *= scale
    values += shift
    array[...] = backend_of(array).xp.asarray(values).astype(array.dtype, copy=False)
    return tensor
