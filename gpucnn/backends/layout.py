"""Memory order of an array's axes, from its strides, for arrays of any library."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any


def is_channels_last(x: Any) -> bool:
    """Whether x [N, C, *spatial] has its channels innermost in memory, contiguously."""
    return _is_channels_last(x.shape, x.strides, x.itemsize)


@lru_cache(maxsize=1024)
def _is_channels_last(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    if len(shape) < 3 or shape[1] == 1 or strides[1] != itemsize:
        return False
    spatial = [abs(step) for step, size in zip(strides[2:], shape[2:], strict=True) if size > 1]
    return bool(spatial) and min(spatial) >= itemsize * shape[1]


def planes(x: Any) -> Any:
    """X [N, C, *spatial] as [N, C, P]; a view where its order allows."""
    return x.reshape(*x.shape[:2], prod(x.shape[2:]))


def is_dense(x: Any, axes: Sequence[int]) -> bool:
    """Whether these axes of an array or layout, outermost first, are dense in memory.

    The last of them is contiguous. Axes of size 1 may have any stride.
    """
    step = x.itemsize
    for axis in reversed(axes):
        if x.shape[axis] > 1 and x.strides[axis] != step:
            return False
        step *= x.shape[axis]
    return True


def outermost_first(x: Any) -> tuple[int, ...]:
    """The axes of an array from the outermost to the innermost in memory.

    Axes of size 1 fit anywhere, whatever their strides: the order is C order where that is possible, else channels last
    where that is, and only for other orders do their strides count.
    """
    axes = range(len(x.shape))
    by_stride = sorted(axes, key=lambda axis: -abs(x.strides[axis]))
    longer = [axis for axis in by_stride if x.shape[axis] > 1]
    for order in ((*axes,), (*axes[:1], *axes[2:], *axes[1:2])):
        if longer == [axis for axis in order if x.shape[axis] > 1]:
            return order
    return tuple(by_stride)


def empty_in_order(xp: Any, shape: Sequence[int], dtype: Any, like: Any) -> Any:
    """A new array, uninitialised and without gaps, in the memory order of `like`, which has as many axes.

    What `empty_like` of an array library returns depends on the strides of axes of size 1, which say nothing.
    """
    order = outermost_first(like)
    array = xp.empty([shape[axis] for axis in order], dtype)
    return array.transpose([order.index(axis) for axis in range(len(order))])


def stored_like(xp: Any, values: Any, like: Any, dtype: Any = None) -> Any:
    """`values`, or one of NumPy's scalars as an array, in the memory order of `like`, and in its dtype or another.

    `like` has as many axes. A copy is made where they are in another order or dtype: NumPy's arithmetic keeps the
    order, CuPy's gives C order, and of bfloat16 in part float32.
    """
    values, dtype = xp.asarray(values), like.dtype if dtype is None else dtype
    if values.dtype == dtype:
        if values.strides == like.strides:
            return values
        if values.transpose(outermost_first(like)).flags.c_contiguous:
            return values
    stored = empty_in_order(xp, values.shape, dtype, like)
    stored[...] = values
    return stored


def channels_are_inner(x: Any) -> bool:
    """Whether channels of x [N, G, C, P] have a smaller stride than positions.

    Strides of 0, from broadcasting, do not determine the order of the axes.
    """
    (_, g, c, p), (_, step_g, step_c, step_p) = x.shape, x.strides
    inner = max(abs(step_g) if g > 1 else 0, abs(step_c) if c > 1 else 0)
    return bool(p > 1 and abs(step_p) > inner > 0)


def empty_rows_like(backend: Any, x: Any) -> Any:
    """A new array of `backend` in the shape, dtype and order of x [N, G, C, P]: without gaps, whatever x's strides."""
    n, g, c, p = x.shape
    if channels_are_inner(x):
        return backend.empty((n, p, g, c), x.dtype, on=x).transpose(0, 2, 3, 1)
    return backend.empty((n, g, c, p), x.dtype, on=x)
