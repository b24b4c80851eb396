"""Padding and cropping of arrays in every mode, and its gradient."""

from __future__ import annotations

from typing import Any

from gpucnn.backends.deferring import deferring
from gpucnn.backends.dtypes import NUMERIC, accumulator
from gpucnn.backends.layout import empty_in_order
from gpucnn.functional._call import Array, Call, Needs, needed
from gpucnn.functional._padding import checked_pairs, cropped, filling, padded
from gpucnn.geometry.arguments import Pairs

__all__ = ["pad", "pad_backward"]


@deferring
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
    pairs = checked_pairs(call, x, pad, mode, value)
    y = empty_in_order(call.xp, padded(x.shape, pairs), x.dtype, x)
    x = x[(*cropped(x.shape, pairs), ...)]  # a view, also of an array without axes
    if mode == "constant":
        y[...] = filling(call, x, value)
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


@deferring
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
    pairs = checked_pairs(call, x, pad, mode, value)
    call.expect_shape("grad_output", grad, padded(x.shape, pairs))
    if not needed(call.op, needs, 1)[0]:
        return (None,)
    left = x[cropped(x.shape, pairs)].shape
    if mode != "constant":
        grad = grad.astype(accumulator(grad.dtype), copy=False)
        for axis, (low, high) in enumerate(pairs):
            if max(low, high) > 0:
                grad = _give_back(call, grad, left[axis], max(low, 0), max(high, 0), mode, axis)
    else:
        grad = grad[_core(left, pairs)]
    result = empty_in_order(call.xp, x.shape, x.dtype, x)
    result[...] = 0
    result[cropped(x.shape, pairs)] = grad
    return call.result((result,))


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
