"""Pooling, one axis after the other: the maximum or sum of a box is that of its rows' maxima or sums.

A window of K x K so costs 2 K passes in place of K * K, and every pass is a shifted slice.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import memory
from gpucnn.backends.numpy.memory import Array
from gpucnn.geometry import AdaptiveAxis, Axis, PoolGeometry

AnyAxis = Axis | AdaptiveAxis
SPACE = (2, 3, 4)  # D, H, W of [N, C, D, H, W]


def _is_identity(axis: AnyAxis) -> bool:
    return isinstance(axis, Axis) and axis.forward.is_identity


def _at(dim: int, where: Any) -> tuple[Any, ...]:
    return (slice(None),) * dim + (where,)


def _resized(shape: tuple[int, ...], dim: int, length: int) -> tuple[int, ...]:
    return (*shape[:dim], length, *shape[dim + 1 :])


def _lowest(dtype: np.dtype[Any]) -> Any:
    return np.iinfo(dtype).min if dtype.kind in "iu" else -np.inf


# --- Maximum ------------------------------------------------------------------------------------------------------


def max_pool(x: Array, geometry: PoolGeometry) -> Array:
    """Y [N, C, OD, OH, OW], NaN where a window holds one."""
    dtype = x.dtype
    x = x.astype(accumulator(dtype), copy=False)
    for dim, axis in zip(SPACE, geometry.axes, strict=True):
        if _is_identity(axis):
            continue
        y = memory.empty(_resized(x.shape, dim, axis.out), x.dtype, like=x)
        y[...] = _lowest(x.dtype)
        for _, targets, sources in axis.taps():
            where = _at(dim, targets)
            best = y[where]
            np.maximum(best, x[_at(dim, sources)], out=best)
            if not isinstance(targets, slice):  # a list of targets made a copy
                y[where] = best
        x = y
    return _owned(x, dtype)


def max_pool_with_indices(x: Array, geometry: PoolGeometry) -> tuple[Array, Array]:
    """Y and indices [N, C, OD, OH, OW]; rows first, so that of equal maxima the first in the plane stays."""
    dtype = x.dtype
    x = x.astype(accumulator(dtype), copy=False)
    indices = np.broadcast_to(np.arange(prod(x.shape[2:])).reshape(x.shape[2:]), x.shape)
    for dim, axis in reversed(list(zip(SPACE, geometry.axes, strict=True))):
        if not _is_identity(axis):
            x, indices = _max_along(x, indices, dim, axis)
    return _owned(x, dtype), _owned(indices, np.dtype(np.int64))


def _owned(x: Array, dtype: np.dtype[Any]) -> Array:
    """X in `dtype`, and never the caller's own array."""
    return x.astype(dtype, copy=x.base is not None or not x.flags.owndata or x.dtype != dtype)


def _max_along(x: Array, indices: Array, dim: int, axis: AnyAxis) -> tuple[Array, Array]:
    firsts = np.array(axis.first_inputs())
    y = memory.empty(_resized(x.shape, dim, axis.out), x.dtype, like=x)
    y[...] = _lowest(x.dtype)
    at = memory.empty(y.shape, np.int64, like=x)
    at[...] = indices.take(np.maximum(firsts, 0), axis=dim)
    at[_at(dim, firsts < 0)] = -1
    for _, targets, sources in axis.taps():
        where, read = _at(dim, targets), _at(dim, sources)
        best, position, values = y[where], at[where], x[read]
        better = values > best
        if x.dtype.kind == "f":
            better |= values != values  # NaN wins, and the last one stays
        np.copyto(best, values, where=better)
        np.copyto(position, indices[read], where=better)
        if not isinstance(targets, slice):
            y[where], at[where] = best, position
    return y, at


def max_pool_backward(grad_y: Array, indices: Array, geometry: PoolGeometry) -> Array:
    """grad_x [N, C, D, H, W]: grad_y added up where the indices say, in C order."""
    n, c = grad_y.shape[:2]
    plane = prod(geometry.input_size)
    dtype = accumulator(grad_y.dtype)
    flat, valid = _flat(indices, plane)
    grad_x = np.zeros(n * c * plane, dtype)
    np.add.at(grad_x, flat, np.ascontiguousarray(grad_y, dtype).reshape(-1)[valid])
    return _in_order(grad_x.reshape(n, c, *geometry.input_size), grad_y)


def unpool(values: Array, indices: Array, size: tuple[int, int, int]) -> Array:
    """Planes [N, C, *size] with values put where indices say; of values with one index the last stays."""
    n, c = values.shape[:2]
    flat, valid = _flat(indices, prod(size))
    planes = np.zeros(n * c * prod(size), values.dtype)
    planes[flat] = values.reshape(-1)[valid]
    return _in_order(planes.reshape(n, c, *size), values)


def gather(planes: Array, indices: Array) -> Array:
    """The values [N, C, D, H, W] that indices point at in planes, 0 where an index is -1."""
    flat, valid = _flat(indices, prod(planes.shape[2:]))
    values = np.zeros(indices.size, planes.dtype)
    values[valid] = planes.reshape(-1)[flat]
    return _in_order(values.reshape(indices.shape), planes)


def _flat(indices: Array, plane: int) -> tuple[Array, Array | slice]:
    """Indices within planes as indices into all planes, without those of -1, and which ones they are."""
    n, c = indices.shape[:2]
    rows = indices.astype(np.int64, copy=False).reshape(n * c, prod(indices.shape[2:]))
    flat = (rows + plane * np.arange(n * c)[:, None]).reshape(-1)
    valid = indices.reshape(-1) >= 0
    return (flat, slice(None)) if valid.all() else (flat[valid], valid)


def _in_order(result: Array, like: Array) -> Array:
    """`result` in the dtype and memory order of `like`."""
    if not memory.is_channels_last(like):
        return result.astype(like.dtype, copy=False)
    ordered = memory.empty(result.shape, like.dtype, like=like)
    ordered[...] = result
    return ordered


# --- Average and sum ----------------------------------------------------------------------------------------------


def average_pool(x: Array, geometry: PoolGeometry) -> Array:
    """Y [N, C, OD, OH, OW]: each window's sum over its divisor."""
    dtype = x.dtype
    x = x.astype(accumulator(dtype), copy=False)
    for dim, axis in zip(SPACE, geometry.axes, strict=True):
        if _is_identity(axis):
            continue
        y = memory.zeros(_resized(x.shape, dim, axis.out), x.dtype, like=x)
        for _, targets, sources in axis.taps():
            y[_at(dim, targets)] += x[_at(dim, sources)]
        x = y
    divisor = _divisor(geometry, x.dtype)
    if divisor is not None:
        x = x / divisor
    return _owned(x, dtype)


def average_pool_backward(grad_y: Array, geometry: PoolGeometry) -> Array:
    """grad_x [N, C, D, H, W]: each window's gradient over its divisor, added to all that the window reads."""
    dtype = grad_y.dtype
    grad = grad_y.astype(accumulator(dtype), copy=False)
    divisor = _divisor(geometry, grad.dtype)
    if divisor is not None:
        grad = grad / divisor
    for dim, axis in zip(SPACE, geometry.axes, strict=True):
        if _is_identity(axis):
            continue
        grad_x = memory.zeros(_resized(grad.shape, dim, axis.size), grad.dtype, like=grad)
        for inputs, outputs in _adjoint_taps(axis):
            grad_x[_at(dim, inputs)] += grad[_at(dim, outputs)]
        grad = grad_x
    return _owned(grad, dtype)


def _adjoint_taps(axis: AnyAxis) -> Iterator[tuple[Any, Any]]:
    """The taps of an axis seen from its inputs: which of them add which outputs, no input twice in one tap."""
    if isinstance(axis, AdaptiveAxis):
        # the outputs whose windows hold input i are [floor(i * out / size), ceil((i + 1) * out / size))
        return ((inputs, outputs) for _, inputs, outputs in AdaptiveAxis(axis.out, axis.size).taps())
    return ((inputs, outputs) for _, outputs, inputs in axis.taps())


def _divisor(geometry: PoolGeometry, dtype: np.dtype[Any]) -> Array | None:
    """What each window's sum is divided by, [OD, OH, OW] or one number."""
    if geometry.divisor == "none":
        return None
    real = np.zeros(0, dtype).real.dtype
    if not isinstance(geometry.divisor, str):
        return np.array(geometry.divisor, real)
    padded = geometry.divisor == "padded"
    d, h, w = (np.array(axis.counts(padded=padded)) for axis in geometry.axes)
    counts: Array = d[:, None, None] * h[:, None] * w
    return np.maximum(counts, 1).astype(real, copy=False)  # a window that counts no tap sums to 0, and stays 0
