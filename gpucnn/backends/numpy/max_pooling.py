"""Max pooling, where its maxima lie, and what goes by their indices."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import memory, pooling
from gpucnn.backends.numpy.memory import Array, Block
from gpucnn.backends.numpy.pooling import (
    AnyAxis,
    Passes,
    as_stored,
    at,
    each_of,
    flat_taps,
    in_pieces,
    length_of,
    logical,
    separably,
    stored,
    widened,
    windowed,
)
from gpucnn.geometry import Axis, PoolGeometry


def _lowest(dtype: np.dtype[Any]) -> Any:
    return np.iinfo(dtype).min if dtype.kind in "iu" else -np.inf


def max_pool(x: Array, geometry: PoolGeometry) -> Array:
    """Y [N, C, OD, OH, OW], NaN where a window holds one."""
    x, space = stored(x)
    y = np.empty((*x.shape[:space], *geometry.output_size, *x.shape[space + 3 :]), x.dtype)
    dtype = accumulator(x.dtype)

    def pool(read: Block, written: Block, passes: Passes) -> None:
        part = y[written]
        best = part if part.dtype == dtype else memory.scratch("max_pool", part.shape, dtype)
        separably(np.maximum, _lowest(dtype), widened("max_pool x", x[read], dtype), passes, best)
        if best is not part:
            part[...] = best

    in_pieces(pool, x, y, windowed(geometry, space), pooling.window_reads)
    return logical(y, space)


# --- Where the maxima lie -----------------------------------------------------------------------------------------


def max_pool_with_indices(x: Array, geometry: PoolGeometry) -> tuple[Array, Array]:
    """Y and indices [N, C, OD, OH, OW]; rows first, so that of equal maxima the first in the plane stays."""
    x, space = stored(x)
    y = np.empty((*x.shape[:space], *geometry.output_size, *x.shape[space + 3 :]), x.dtype)
    indices = np.empty(y.shape, np.int64)
    dtype = accumulator(x.dtype)
    axes = windowed(geometry, space)
    lengths = [length_of(axis) for _, axis in reversed(axes)]
    offsets = _offsets(geometry, [dim - space for dim, _ in reversed(axes)])
    corners = np.broadcast_to(as_stored(_corners(geometry)[None, None], space), y.shape)
    plane = np.arange(prod(geometry.input_size)).reshape(1, 1, *geometry.input_size)
    positions = np.broadcast_to(as_stored(plane, space), x.shape)

    def pool(read: Block, written: Block, passes: Passes) -> None:
        part, wide = y[written], widened("max_pool_with_indices x", x[read], dtype)
        best = part if part.dtype == dtype else memory.scratch("max_pool_with_indices", part.shape, dtype)
        taps = _numbered(wide, passes[::-1], lengths, best)
        if taps.min() == 0 or (dtype.kind == "f" and np.isnan(best).any()):
            best, indices[written] = _located(wide, positions[read], passes[::-1])
        else:
            offset = memory.scratch("max_pool_with_indices offset", taps.shape, np.int64)
            np.take(offsets, taps, out=offset, mode="clip")
            np.add(offset, corners[written], out=indices[written])
        if best is not part:
            part[...] = best

    in_pieces(pool, x, y, axes, pooling.window_reads)
    return logical(y, space), logical(indices, space)


def _located(x: Array, positions: Array, passes: Passes) -> tuple[Array, Array]:
    """The maxima of all windows and their `positions`: those of the first one, or of the last NaN."""
    for dim, reads in passes:
        (strip,) = reads.strips
        _, taps, shape = flat_taps(_lowest(x.dtype), x, dim, strip, f"max_pool_with_indices values {dim}")
        _, places, _ = flat_taps(-1, positions, dim, strip, f"max_pool_with_indices places {dim}")
        best, place = taps[0], places[0]
        for values, there in zip(taps[1:], places[1:], strict=True):
            better = (values > best) | (place < 0)
            if x.dtype.kind == "f":
                better |= values != values  # NaN wins, and the last one stays
            best, place = np.where(better, values, best), np.where(better, there, place)
        missing = [0] * (prod(shape) - best.size)
        x, positions = (
            np.append(flat, missing).astype(flat.dtype).reshape(shape)[at(dim, slice(0, strip.size))]
            for flat in (best, place)
        )
    return x, positions


def _numbered(x: Array, passes: Passes, lengths: list[int], y: Array) -> Array:
    """The maxima of all windows, to y, and of each the number of its tap in row-major order, from 1 on.

    It is 0 where no tap was above the lowest value, and anything where one was NaN: `_located` sees to these, and takes
    10 times as long. Here a number is a byte or two; and as later taps have larger ones, that of the best tap is the
    largest of those that were better than all taps before.
    """
    dtype = np.min_scalar_type((lengths[0] + 1) * prod(lengths[1:]) - 1)
    name, lowest, step = "max_pool_with_indices", _lowest(x.dtype), 1
    numbers: Array | None = None
    for length, (dim, reads) in zip(lengths, passes, strict=True):
        (strip,) = reads.strips
        _, taps, shape = flat_taps(lowest, x, dim, strip, f"{name} values {dim}")
        before = None if numbers is None else flat_taps(0, numbers, dim, strip, f"{name} numbers {dim}")[1]
        x, numbers = memory.scratch(f"{name} best {dim}", shape, x.dtype), memory.scratch(f"{name} {dim}", shape, dtype)
        size = taps[0].size
        best, number = x.reshape(-1)[:size], numbers.reshape(-1)[:size]
        better = memory.scratch(f"{name} better", (size,), np.bool_)
        candidate = memory.scratch(f"{name} candidate", (size,), dtype)
        best[...], number[...] = lowest, 0
        for k, values in enumerate(taps):
            np.greater(values, best, out=better)
            np.maximum(best, values, out=best)
            if before is None:
                np.multiply(better.view(np.uint8), dtype.type(k + 1), out=candidate)
            else:
                np.add(before[k], dtype.type(k * step), out=candidate)
                np.multiply(better.view(np.uint8), candidate, out=candidate)
            np.maximum(number, candidate, out=number)
        step = step * length if before is not None else length + 1
        x, numbers = (array[at(dim, slice(0, strip.size))] for array in (x, numbers))
    y[...] = x
    return np.ascontiguousarray(numbers)


def _offsets(geometry: PoolGeometry, order: list[int]) -> Array:
    """By the number that `_numbered` gives a tap: its position in the plane, counted from the window's first tap.

    `order` lists the axes as they are passed over.
    """
    _, h, w = geometry.input_size
    steps = [_dilation(axis) * pitch for axis, pitch in zip(geometry.axes, (h * w, w, 1), strict=True)]
    first, *others = (np.arange(length_of(geometry.axes[index])) * steps[index] for index in order)
    offsets: Array = np.concatenate([[0], first])
    for digits in others:
        offsets = (digits[:, None] + offsets).reshape(-1)
    return offsets


def _dilation(axis: AnyAxis) -> int:
    return axis.dilation if isinstance(axis, Axis) else 1


def _corners(geometry: PoolGeometry) -> Array:
    """Where in the plane the first tap of each window lies, or would lie, [OD, OH, OW]."""
    d, h, w = (
        np.arange(axis.out) * axis.stride - axis.low
        if isinstance(axis, Axis)
        else np.array([start for start, _ in axis.windows])
        for axis in geometry.axes
    )
    corners: Array = (d[:, None, None] * geometry.input_size[1] + h[:, None]) * geometry.input_size[2] + w
    return corners


# --- By indices ---------------------------------------------------------------------------------------------------

# Windows of a plane from which on `add.at` is called plane by plane, with the indices as they are: to make them indices
# into all planes is to read and write 8 bytes for each, which took VGG's first pooling a fifth more time.
LARGE_PLANE = 2048


def max_pool_backward(grad_y: Array, indices: Array, geometry: PoolGeometry) -> Array:
    """grad_x [N, C, D, H, W]: grad_y added up where the indices say, in C order."""
    grad_y, space = stored(grad_y)
    indices = as_stored(indices, space)
    grad_x = np.empty((*grad_y.shape[:space], *geometry.input_size, *grad_y.shape[space + 3 :]), grad_y.dtype)
    dtype, size = accumulator(grad_y.dtype), prod(geometry.input_size)

    def add(block: Block) -> None:
        part, places = grad_x[block], indices[block]
        grad = grad_y[block].astype(dtype, copy=False)
        total = part if part.dtype == dtype else memory.scratch("max_pool_backward", part.shape, dtype)
        total[...] = 0
        if space == 2 and prod(places.shape[2:]) >= LARGE_PLANE and places.min() >= 0:
            for n, c in np.ndindex(places.shape[:2]):
                np.add.at(total[n, c].reshape(-1), places[n, c].reshape(-1), grad[n, c].reshape(-1))
        else:
            flat, valid = _flat(places, size, space)
            np.add.at(total.reshape(-1), flat, grad.reshape(-1)[valid])
        if total is not part:
            part[...] = total

    blocks = pooling.cut_up(grad_x.shape[:space], grad_x.nbytes)
    if (
        grad_y.size < grad_x.size
    ):  # `add.at` keeps the interpreter's lock: threads gain 1/8 with stride 1, else they lose
        list(map(add, blocks))
    else:
        each_of(add, blocks)
    return logical(grad_x, space)


def unpool(values: Array, indices: Array, size: tuple[int, int, int]) -> Array:
    """Planes [N, C, *size] with values put where indices say; of values with one index the last stays."""
    values, space = stored(values)
    indices = as_stored(indices, space)
    planes = np.empty((*values.shape[:space], *size, *values.shape[space + 3 :]), values.dtype)

    def put(block: Block) -> None:
        part = planes[block]
        part[...] = 0
        flat, valid = _flat(indices[block], prod(size), space)
        part.reshape(-1)[flat] = values[block].reshape(-1)[valid]

    each_of(put, pooling.cut_up(planes.shape[:space], planes.nbytes))
    return logical(planes, space)


def gather(planes: Array, indices: Array) -> Array:
    """The values [N, C, D, H, W] that indices point at in planes, 0 where an index is -1."""
    planes, space = stored(planes)
    indices = as_stored(indices, space)
    values = np.empty(indices.shape, planes.dtype)

    def take(block: Block) -> None:
        flat, valid = _flat(indices[block], prod(planes.shape[space : space + 3]), space)
        part = values[block].reshape(-1)
        if isinstance(valid, slice):
            np.take(planes[block].reshape(-1), flat, out=part, mode="clip")
        else:
            part[...] = 0
            part[valid] = planes[block].reshape(-1)[flat]

    each_of(take, pooling.cut_up(planes.shape[:space], planes.nbytes))
    return logical(values, space)


def _flat(indices: Array, size: int, space: int) -> tuple[Array, Array | slice]:
    """Indices within planes of `size` as indices into all planes, without those of -1, and which ones they are.

    They are stored as [N, C, D, H, W] or [N, D, H, W, C]; in the latter neighbours in a plane lie C apart.
    """
    n, c = indices.shape[0], indices.shape[1 if space == 2 else 4]
    flat = memory.scratch("pooling flat", indices.shape, np.int64)
    if space == 2:
        np.add(indices, (np.arange(n * c) * size).reshape(n, c, 1, 1, 1), out=flat, dtype=np.int64, casting="unsafe")
    else:
        np.multiply(indices, c, out=flat, dtype=np.int64, casting="unsafe")
        flat += (np.arange(n) * size * c)[:, None, None, None, None] + np.arange(c)
    if indices.size == 0 or indices.min() >= 0:
        return flat.reshape(-1), slice(None)
    valid = (indices >= 0).reshape(-1)
    return flat.reshape(-1)[valid], valid
