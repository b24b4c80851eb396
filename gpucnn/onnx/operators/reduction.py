"""Sums, means, extremes and their places along axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.onnx.operators.arrays import axes_of, axis_of, ints, namespace
from gpucnn.onnx.operators.registry import Array, Host, operator

Over = dict[str, Any]  # axis and keepdims


def _log_sum_exp(xp: Any, x: Array, over: Over) -> Array:
    if not x.size:
        return xp.log(xp.exp(x).sum(**over))
    most = x.max(axis=over["axis"], keepdims=True)
    most = xp.where(xp.isfinite(most), most, most.dtype.type(0))
    result = xp.log(xp.exp(x - most).sum(axis=over["axis"], keepdims=True)) + most
    return result if over["keepdims"] else result.reshape(x.sum(**over).shape)


_LOWEST = {"f": -np.inf, "b": False}
_HIGHEST = {"f": np.inf, "b": True}


def _extreme(xp: Any, x: Array, over: Over, largest: bool) -> Array:
    if x.dtype.kind in "iu":
        start = getattr(np.iinfo(x.dtype), "min" if largest else "max")
    else:
        start = (_LOWEST if largest else _HIGHEST).get(x.dtype.kind, 0)
    function = x.max if largest else x.min
    return function(**over) if x.size else xp.full(x.sum(**over).shape, start, x.dtype)


def _mean(xp: Any, x: Array, over: Over) -> Array:
    if x.dtype.kind != "f" or not x.size:
        return x.mean(**over)
    total = xp.asarray(x.sum(**over))  # `mean` takes three times as long for small arrays
    total /= x.dtype.type(x.size // max(total.size, 1))
    return total


_REDUCTIONS: dict[str, Callable[[Any, Array, Over], Array]] = {
    "ReduceL1": lambda xp, x, over: xp.abs(x).sum(**over),
    "ReduceL2": lambda xp, x, over: xp.sqrt((x * x).sum(**over)),
    "ReduceLogSum": lambda xp, x, over: xp.log(x.sum(**over)),
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": lambda xp, x, over: _extreme(xp, x, over, largest=True),
    "ReduceMean": _mean,
    "ReduceMin": lambda xp, x, over: _extreme(xp, x, over, largest=False),
    "ReduceProd": lambda xp, x, over: x.prod(**over),
    "ReduceSum": lambda xp, x, over: x.sum(**over),
    "ReduceSumSquare": lambda xp, x, over: (x * x).sum(**over),
}
_AXES_AS_INPUT = {"ReduceSum": 13}  # of the others from 18 on


def _reduced(name: str, x: Array, axes: Any, keepdims: int) -> Array:
    over = {"axis": axes_of(range(x.ndim) if axes is None else axes, x.ndim), "keepdims": bool(keepdims)}
    wide = x.astype(accumulator(x.dtype), copy=False)
    return _REDUCTIONS[name](namespace(x), wide, over).astype(x.dtype, copy=False)


def _by_attribute(name: str) -> Any:
    def reduction(x: Array, *, axes: list[int] | None = None, keepdims: int = 1) -> Array:
        return _reduced(name, x, axes, keepdims)

    return reduction


def _by_input(name: str) -> Any:
    def reduction(x: Array, axes: Host = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Array:
        chosen = None if axes is None or not axes.size else ints(axes)
        if chosen is None and noop_with_empty_axes:
            return _reduced(name, x, (), 1)
        return _reduced(name, x, chosen, keepdims)

    return reduction


for _name in _REDUCTIONS:
    operator(_name, 1)(_by_attribute(_name))
    operator(_name, _AXES_AS_INPUT.get(_name, 18))(_by_input(_name))


# --- Places -----------------------------------------------------------------------------------------------------------


def _place(x: Array, largest: bool, axis: int, keepdims: int, last: int) -> Array:
    xp = namespace(x)
    axis = axis_of(axis, x.ndim)
    seen = xp.flip(x, axis) if last else x
    at = seen.argmax(axis=axis) if largest else seen.argmin(axis=axis)
    if last:
        at = x.shape[axis] - 1 - at
    return (xp.expand_dims(at, axis) if keepdims else at).astype(np.int64, copy=False)


@operator("ArgMax")
def argmax(x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    """The place of the largest element along an axis."""
    return _place(x, True, axis, keepdims, select_last_index)


@operator("ArgMin")
def argmin(x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    """The place of the smallest element along an axis."""
    return _place(x, False, axis, keepdims, select_last_index)


@operator("TopK", 10)
def top_k(x: Array, k: Host, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> Any:
    """The k largest or smallest elements along an axis, in order, and their places; of equal ones the first."""
    xp, axis = namespace(x), axis_of(axis, x.ndim)
    (number,) = ints(k)
    if not 0 <= number <= x.shape[axis]:
        raise ValueError(f"k is {number}, expected 0 to {x.shape[axis]}, the size of the axis")
    last = xp.moveaxis(x, axis, -1)
    if largest:  # a stable order of the reverse, reversed, so that the first of equal elements stays first
        order = last.shape[-1] - 1 - xp.flip(xp.argsort(xp.flip(last, -1), axis=-1, kind="stable"), -1)
    else:
        order = xp.argsort(last, axis=-1, kind="stable")
    order = order[..., :number]
    values = xp.take_along_axis(last, order, -1)
    return xp.moveaxis(values, -1, axis), xp.moveaxis(order.astype(np.int64, copy=False), -1, axis)


@operator("TopK", 1)
def top_k_of_old(x: Array, *, k: int, axis: int = -1) -> Any:
    """As `top_k`, with k as an attribute."""
    return top_k(x, np.array([k]), axis=axis)


# --- Running sums -----------------------------------------------------------------------------------------------------


def _running(x: Array, axis: Any, exclusive: int, reverse: int, product: bool) -> Array:
    xp = namespace(x)
    at = axis_of(ints(axis)[0], x.ndim)
    seen = xp.flip(x, at) if reverse else x
    result = (xp.cumprod if product else xp.cumsum)(seen, axis=at).astype(x.dtype, copy=False)
    if exclusive:
        result = xp.roll(result, 1, at)
        result[(slice(None),) * at + (slice(0, 1),)] = 1 if product else 0
    return xp.flip(result, at) if reverse else result


@operator("CumSum")
def cumulative_sum(x: Array, axis: Host, *, exclusive: int = 0, reverse: int = 0) -> Array:
    """The sum of the elements up to each one along an axis."""
    return _running(x, axis, exclusive, reverse, product=False)


@operator("CumProd")
def cumulative_product(x: Array, axis: Host, *, exclusive: int = 0, reverse: int = 0) -> Array:
    """The product of the elements up to each one along an axis."""
    return _running(x, axis, exclusive, reverse, product=True)
