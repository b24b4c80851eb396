"""Memory order of an array's axes, from its strides, for arrays of any library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def is_channels_last(x: Any) -> bool:
    """Whether x [N, C, *spatial] has its channels innermost in memory, contiguously."""
    if len(x.shape) < 3 or x.shape[1] == 1 or x.strides[1] != x.itemsize:
        return False
    spatial = [abs(step) for step, size in zip(x.strides[2:], x.shape[2:], strict=True) if size > 1]
    return bool(spatial) and min(spatial) >= x.itemsize * x.shape[1]


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


def stored_like(xp: Any, values: Any, like: Any, dtype: Any = None) -> Any:
    """`values`, or one of NumPy's scalars as an array, in the memory order of `like`, and in its dtype or another.

    `like` has as many axes. A copy is made where they are in another order or dtype: NumPy's arithmetic keeps the
    order, CuPy's gives C order, and of bfloat16 in part float32.
    """
    values, dtype = xp.asarray(values), like.dtype if dtype is None else dtype
    if values.dtype == dtype:
        if values.strides == like.strides:
            return values
        outermost_first = sorted(range(like.ndim), key=lambda axis: -abs(like.strides[axis]))
        if values.transpose(outermost_first).flags.c_contiguous:
            return values
    stored = xp.empty_like(like, dtype=dtype, shape=values.shape)
    stored[...] = values
    return stored


def channels_are_inner(x: Any) -> bool:
    """Whether channels of x [N, G, C, P] have a smaller stride than positions.

    Strides of 0, from broadcasting, do not determine the order of the axes.
    """
    _, g, c, p = (abs(step) if size > 1 else 0 for step, size in zip(x.strides, x.shape, strict=True))
    return bool(p > max(g, c) > 0)


def empty_rows_like(backend: Any, x: Any) -> Any:
    """A new array of `backend` in the shape, dtype and order of x [N, G, C, P]: without gaps, whatever x's strides."""
    n, g, c, p = x.shape
    if channels_are_inner(x):
        return backend.empty((n, p, g, c), x.dtype, on=x).transpose(0, 2, 3, 1)
    return backend.empty((n, g, c, p), x.dtype, on=x)
