"""Padding and cropping of arrays in every mode, and its gradient."""

from __future__ import annotations

from cmath import isinf
from numbers import Complex, Real
from typing import Any

import numpy as np

from gpucnn.backends.dtypes import NUMERIC, accumulator
from gpucnn.backends.layout import empty_in_order
from gpucnn.functional._call import Array, Call, Needs, choice, needed
from gpucnn.geometry.arguments import Pairs, integer, is_boolean, is_sequence, plain

__all__ = ["pad", "pad_backward"]

_ITEMS = "a sequence of integers: low and high of the last axis, then of the one before, and so on"
MODES = ("constant", "reflect", "replicate", "circular", "symmetric")


def pad(input: Array, pad: Any, mode: str = "constant", value: float | None = None) -> Array:
    """Pad or crop an array along its last axes.

    Parameters
    ----------
    input : array
        Of any floating-point, complex or integer dtype, and any shape.
    pad : sequence of int
        (low, high) of the last axis, then of the one before it, and so on; negative ones crop.
    mode : str
        What the padding holds: ``"constant"`` (`value`), ``"reflect"`` (mirrored, without the border), ``"symmetric"``
        (mirrored, with it), ``"replicate"`` (the border) or ``"circular"`` (the other end).
    value : number, optional
        For ``"constant"``; 0 where it is not given.

    Returns
    -------
    array in the dtype and memory order of `input`

    Raises
    ------
    TypeError
        The dtype is not supported, or a parameter is of another type.
    ValueError
        `pad` does not fit the array or the mode, or the dtype cannot hold `value`.

    See Also
    --------
    pad_backward

    Notes
    -----
    As in PyTorch, where ``"reflect"`` and the like take only the spatial axes of images; ``"symmetric"`` is NumPy's.
    Cropping comes first: the padding is made of what it leaves.

    Examples
    --------
    >>> pad(np.array([1, 2, 3]), (1, 2))
    array([0, 1, 2, 3, 0, 0])
    >>> pad(np.array([1, 2, 3]), (2, -1), mode="symmetric")
    array([2, 1, 1, 2])
    """
    call = Call("pad", NUMERIC, input=input)
    (x,) = call.arrays
    pairs = _pairs(call, x, pad, mode, value)
    y = empty_in_order(call.xp, _padded(x.shape, pairs), x.dtype, x)
    x = x[(*_cropped(x.shape, pairs), ...)]  # a view, also of an array without axes
    if mode == "constant":
        y[...] = _filling(call, x, value)
        y[_core(x.shape, pairs)] = x
        return call.result(y)
    filled = list(_core(x.shape, pairs))  # of y, one axis more to its full length at a time
    y[tuple(filled)] = x
    for axis, (low, high) in enumerate(pairs):
        inner, size = filled[axis], x.shape[axis]
        for edge in (range(-low, 0), range(size, size + high)):
            if edge:
                filled[axis] = slice(edge.start + inner.start, edge.stop + inner.start)
                sources = call.xp.asarray([place + inner.start for place in _sources(edge, size, mode)])
                y[tuple(filled)] = y[(*filled[:axis], sources, *filled[axis + 1 :])]
        filled[axis] = slice(None)
    return call.result(y)


def pad_backward(
    grad_output: Array,
    input: Array,
    pad: Any,
    mode: str = "constant",
    value: float | None = None,
    *,
    needs: Needs = None,
) -> tuple[Array | None]:
    """Gradient of `pad`: each input's sum over the positions that it was copied to.

    Parameters
    ----------
    grad_output : array
        Gradient of the loss with respect to the output.
    input, pad, mode, value
        As they were given to `pad`.
    needs : sequence of 1 bool, optional
        Whether to compute it.

    Returns
    -------
    tuple of (array or None)
        Gradient with respect to `input`.

    Raises
    ------
    TypeError, ValueError
        As `pad`, or `grad_output` does not have the output's shape.

    Examples
    --------
    >>> pad_backward(np.ones(6), np.array([1.0, 2.0, 3.0]), (1, 2), mode="replicate")[0]
    array([2., 1., 3.])
    """
    call = Call("pad_backward", NUMERIC, grad_output=grad_output, input=input)
    grad, x = call.arrays
    pairs = _pairs(call, x, pad, mode, value)
    _filling(call, x, value)
    call.expect_shape("grad_output", grad, _padded(x.shape, pairs))
    if not needed(call.op, needs, 1)[0]:
        return (None,)
    cropped = x[_cropped(x.shape, pairs)].shape
    if mode != "constant":
        grad = grad.astype(accumulator(grad.dtype), copy=False)
        for axis, (low, high) in enumerate(pairs):
            if max(low, high) > 0:
                grad = _give_back(call, grad, cropped[axis], max(low, 0), max(high, 0), mode, axis)
    else:
        grad = grad[_core(cropped, pairs)]
    result = empty_in_order(call.xp, x.shape, x.dtype, x)
    result[...] = 0
    result[_cropped(x.shape, pairs)] = grad
    return call.result((result,))


def _pairs(call: Call, x: Array, pad: Any, mode: str, value: Any) -> Pairs:
    """(low, high) of each axis of x."""
    if not is_sequence(pad):
        raise TypeError(f"{call.op}: pad is {pad!r}, expected {_ITEMS}")
    if len(pad) % 2 or len(pad) > 2 * x.ndim:
        raise ValueError(f"{call.op}: pad has {len(pad)} values, expected two for each of at most {x.ndim} axes")
    choice(call.op, "mode", mode, MODES)
    if mode != "constant" and _filling(call, x, value) != 0:
        raise ValueError(f"{call.op}: value is {value}, expected None with mode {mode!r}")
    numbers = [integer(call.op, "an item of pad", item, -(2**31), f"an integer; pad is {_ITEMS}") for item in pad]
    given = list(zip(numbers[0::2], numbers[1::2], strict=True))[::-1]
    pairs: Pairs = ((0, 0),) * (x.ndim - len(given)) + tuple(given)
    for axis, (size, (low, high)) in enumerate(zip(x.shape, pairs, strict=True)):
        left = size + min(low, 0) + min(high, 0)
        most = {"reflect": left - 1, "circular": left, "symmetric": left}.get(mode, max(low, high))
        if left < 0 or (max(low, high) > 0 and left == 0 and mode != "constant"):
            raise ValueError(
                f"{call.op}: pad of axis {axis} is ({low}, {high}), expected to leave some of its {size} values"
            )
        if max(low, high) > max(most, 0):
            raise ValueError(
                f"{call.op}: pad of axis {axis} is ({low}, {high}), expected at most {most} with mode {mode!r}"
            )
    return pairs


def _filling(call: Call, x: Array, value: Any) -> Any:
    """`value`, checked to be a number that the dtype of x holds."""
    if value is None:
        return 0
    scalar = plain(value)
    if is_boolean(value) or not isinstance(scalar, Complex if x.dtype.kind == "c" else Real):
        raise TypeError(f"{call.op}: value is {value!r}, expected a number of dtype {x.dtype}")
    try:
        with np.errstate(all="ignore"):
            held = np.asarray(scalar, x.dtype)
        fits = held == scalar if x.dtype.kind in "iu" else bool(np.isinf(held)) == isinf(scalar)
    except (OverflowError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f"{call.op}: value is {value!r}, expected a number that {x.dtype} holds")
    return scalar


def _padded(shape: tuple[int, ...], pairs: Pairs) -> tuple[int, ...]:
    return tuple(size + low + high for size, (low, high) in zip(shape, pairs, strict=True))


def _cropped(shape: tuple[int, ...], pairs: Pairs) -> tuple[slice, ...]:
    """The part of x that negative padding leaves."""
    return tuple(slice(max(-low, 0), size + min(high, 0)) for size, (low, high) in zip(shape, pairs, strict=True))


def _core(shape: tuple[int, ...], pairs: Pairs) -> tuple[slice, ...]:
    """The slices of the padded array that hold an array of `shape`."""
    return tuple(slice(max(low, 0), max(low, 0) + size) for size, (low, _) in zip(shape, pairs, strict=True))


def _sources(places: range, size: int, mode: str) -> list[int]:
    """The inputs that positions of a padded axis copy, counted from the first input."""
    if mode == "replicate":
        return [min(max(place, 0), size - 1) for place in places]
    if mode == "circular":
        return [place % size for place in places]
    if mode == "reflect":
        return [abs(place) if place < size else 2 * (size - 1) - place for place in places]
    return [place if 0 <= place < size else (-1 - place if place < 0 else 2 * size - 1 - place) for place in places]


def _give_back(call: Call, grad: Array, size: int, low: int, high: int, mode: str, axis: int) -> Array:
    """Add the gradient of each padded position to the input that it copied, one by one: the order is fixed."""
    head = (slice(None),) * axis
    result = grad[(*head, slice(low, low + size))].copy(order="K")
    for edge in (range(-low, 0), range(size, size + high)):
        for place, source in zip(edge, _sources(edge, size, mode), strict=True):
            result[(*head, source)] += grad[(*head, place + low)]
    return result
