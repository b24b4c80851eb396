"""Softmax and the activations without corners in C++, for arrays of any memory order."""

from __future__ import annotations

from functools import lru_cache
from math import prod

import numpy as np

from gpucnn.backends.base import Epilogue
from gpucnn.backends.cpu.elementwise import work_items
from gpucnn.backends.cpu.library import Kernel, Launch, addressable, vector_bytes
from gpucnn.backends.dtypes import accumulator, name_of
from gpucnn.backends.layout import outermost_first
from gpucnn.backends.numpy import pool
from gpucnn.backends.numpy.memory import Array

# Of rows and of lanes: by whether it is the gradient.
_ROWS = Kernel("softmax", "softmax_rows"), Kernel("softmax", "softmax_rows_backward")
_LANES = Kernel("softmax", "softmax_lanes"), Kernel("softmax", "softmax_lanes_backward")
_ACTIVATION = Kernel("smooth_activation")

STRIP_VALUES = 1 << 14  # of an item with lanes, which stay in the second cache
MIN_STRIP = 64  # lanes
ITEM_VALUES = 1 << 15  # of an item with rows: some 20 us

Order = tuple[int, ...]


def softmax(x: Array, axis: int, is_log: bool) -> Array:
    """The softmax of x along an axis, or its logarithm, in the memory order of x."""
    order = _order(x)
    dense = _dense(x, order)
    y = pool.empty(dense.shape, dense.dtype)
    _softmax_launch(dense.shape, name_of(dense.dtype), order.index(axis % x.ndim), is_log, False)(x=dense, y=y)
    return _put_back(y, order)


def softmax_backward(grad_y: Array, y: Array, axis: int, is_log: bool) -> Array:
    """The gradient of `softmax` by its result y, in the memory order of grad_y."""
    order = _order(grad_y)
    grad, result = _dense(grad_y, order), _dense(y, order)
    grad_x = pool.empty(grad.shape, grad.dtype)
    launch = _softmax_launch(grad.shape, name_of(grad.dtype), order.index(axis % grad.ndim), is_log, True)
    launch(grad_y=grad, y=result, grad_x=grad_x)
    return _put_back(grad_x, order)


def smooth_activation(x: Array, kind: str) -> Array:
    """The activation of that kind of each element, in the memory order of x."""
    order = _order(x)
    return _put_back(_activation(None, _dense(x, order), kind), order)


def smooth_activation_backward(grad_y: Array, x: Array, kind: str) -> Array:
    """The gradient of `smooth_activation`, in the memory order of grad_y."""
    order = _order(grad_y)
    return _put_back(_activation(_dense(grad_y, order), _dense(x, order), kind), order)


def _activation(grad_y: Array | None, x: Array, kind: str) -> Array:
    y, dtype = pool.empty(x.shape, x.dtype), name_of(x.dtype)
    _activation_launch(x.size, dtype, kind)(grad_y=grad_y, x=x, y=y)
    return y


# --- Memory order -------------------------------------------------------------------------------------------------


def _order(array: Array) -> Order:
    """The axes from the outermost to the innermost in memory."""
    return tuple(range(array.ndim)) if array.flags.c_contiguous else outermost_first(array)


def _dense(array: Array, order: Order) -> Array:
    """An array with its axes in `order`, without gaps, in the dtype that sums are kept in: itself, or a copy."""
    return np.asarray(addressable(array).astype(accumulator(array.dtype), copy=False).transpose(order), order="C")


def _put_back(array: Array, order: Order) -> Array:
    """An array whose axes are in `order`, as they were before."""
    return array.transpose([order.index(axis) for axis in range(len(order))])


# --- Launches -----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _softmax_launch(shape: tuple[int, ...], dtype: str, axis: int, is_log: bool, is_backward: bool) -> Launch:
    a, size, b = prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])
    values = {"a": a, "l": size, "b": b, "is_log": is_log}
    if b == 1:
        items = max(1, min(a, a * size // ITEM_VALUES))
        return Launch(_ROWS[is_backward], dtype, {**values, "width": 1, "items": items}, items)
    lanes = vector_bytes() // np.dtype(dtype).itemsize
    width = -(-min(b, max(MIN_STRIP, STRIP_VALUES // size)) // lanes) * lanes
    items, workspace = a * -(-b // width), (1 + is_backward) * size * width
    return Launch(_LANES[is_backward], dtype, {**values, "width": width, "items": items}, items, workspace)


@lru_cache(maxsize=1024)
def _activation_launch(count: int, dtype: str, kind: str) -> Launch:
    items = work_items(4 * count)
    return Launch(_ACTIVATION, dtype, {"count": count, "kind": Epilogue.SMOOTH[kind], "items": items}, items)
