"""Max pooling with indices of the maxima, and the operations that use indices: backward, unpool and gather."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from math import prod
from typing import Any

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import memory, pooling
from gpucnn.backends.numpy.memory import Array, Block
from gpucnn.backends.numpy.pooling import (
    AnyAxis,
    Passes,
    Spans,
    as_stored,
    at,
    each_of,
    halved,
    in_pieces,
    in_rows,
    length_of,
    odd_ends,
    resized,
    separably,
    stored,
    update,
    widened,
    windowed,
)
from gpucnn.geometry import AdaptiveAxis, Axis, PoolGeometry

ELEMENT_BYTES = 16  # that an element counts for where pieces are cut: its value, copies of it, and its window's index
RUNS = 1 / 4  # the work of runs of 1, 2, 4, … elements for a byte: pieces are few, as each takes some hundred calls
NOWHERE = -(2**62)  # stays below 0 whatever is added
MAX_TARGETS = 1 << 16  # of an axis, times the elements of all others, whose maxima are located in one call


def _lowest(dtype: np.dtype[Any]) -> Any:
    return np.iinfo(dtype).min if dtype.kind in "iu" else -np.inf


def max_pool(x: Array, y: Array, indices: Array | None, geometry: PoolGeometry) -> None:
    """Y [N, C, OD, OH, OW], NaN where a window holds one, and the indices of the maxima."""
    x, space = stored(x)
    y = as_stored(y, space)
    if indices is not None:
        _with_indices(x, y, as_stored(indices, space), geometry, space)
        return
    dtype = accumulator(x.dtype)

    def pool(read: Block, written: Block, passes: Passes) -> None:
        part = y[written]
        best = part if part.dtype == dtype else memory.scratch("max_pool", part.shape, dtype)
        separably(np.maximum, _lowest(dtype), widened("max_pool x", x[read], dtype), passes, best)
        if best is not part:
            part[...] = best

    in_pieces(pool, x, y, windowed(geometry, space), of_windows=True)


# --- Indices of the maxima ----------------------------------------------------------------------------------------


def _with_indices(x: Array, y: Array, indices: Array, geometry: PoolGeometry, space: int) -> None:
    """Maxima and indices, in memory order; rows first, so that of equal maxima the first in the plane is kept."""
    axes = windowed(geometry, space)
    lengths = [length_of(axis) for _, axis in reversed(axes)]
    in_passes = max(lengths) <= pooling.MAX_TAPS
    offsets = _offsets(geometry, [dim - space for dim, _ in reversed(axes)]) if in_passes else None

    def pool(read: Block, written: Block, passes: Passes) -> None:
        part, places = y[written], indices[written]
        block = [*written, *(slice(0, length) for length in y.shape[len(written) :])][space : space + 3]
        if offsets is not None and _by_numbers(x[read], passes[::-1], lengths, offsets, part, places):
            _add_corners(places, geometry, block, (0, 1, 2), space)
        else:
            with np.errstate(invalid="ignore"):  # bfloat16 is compared to NaN
                _located(x[read], passes[::-1], part, places, geometry.input_size, space)
            as_they_are = {0, 1, 2} - {dim - space for dim, _ in passes}
            _add_corners(places, geometry, block, as_they_are, space)
            np.maximum(places, -1, out=places)

    weight = ELEMENT_BYTES / x.itemsize if in_passes else RUNS
    in_pieces(pool, x, y, axes, True, weight)


def _by_numbers(x: Array, passes: Passes, lengths: list[int], offsets: Array, y: Array, indices: Array) -> bool:
    """Write maxima to y, and their positions relative to the window's first tap; False where numbers do not suffice."""
    dtype = accumulator(x.dtype)
    best = y if y.dtype == dtype else memory.scratch("max_pool_with_indices", y.shape, dtype)
    taps = _numbered(widened("max_pool_with_indices x", x, dtype), passes, lengths, best)
    if taps.min() == 0 or (dtype.kind == "f" and np.isnan(best).any()):
        return False
    if indices.flags.c_contiguous:
        np.take(offsets, taps, out=indices, mode="clip")
    else:
        indices[...] = offsets[taps]
    if best is not y:
        y[...] = best
    return True


def _located(x: Array, passes: Passes, y: Array, indices: Array, size: tuple[int, int, int], space: int) -> None:
    """Write the maxima of all windows to y, and their indices in the plane of `size`: the first one, the last NaN.

    One axis at a time: each maximum along a later axis looks up the index that earlier axes found at its position.
    `indices` of windows that read nothing are far below 0.
    """
    found: list[tuple[Spans, int, Array]] = []
    for dim, spans in passes:
        x, place = _located_along(x, dim, spans)
        found = [
            (of, pitch, np.where(place < 0, -1, np.take_along_axis(places, place, dim))) for of, pitch, places in found
        ]
        found.append((spans, prod(size[dim - space + 1 :]), place))
    indices[...] = 0
    for spans, pitch, place in found:
        indices += np.multiply(place, pitch, dtype=np.int64) + spans.sources().start * pitch
    for _, _, place in found:
        indices[place < 0] = NOWHERE
    y[...] = x


def _located_along(x: Array, dim: int, spans: Spans) -> tuple[Array, Array]:
    """The maxima of the windows along one axis, and their positions in x: -1 where nothing is read."""
    size = spans.stop - spans.start
    shape = resized(x.shape, dim, size)
    y, place = np.empty(shape, x.dtype), np.empty(shape, np.min_scalar_type(-x.shape[dim] - 1))
    rows, first, stop, step = in_rows(_lowest(x.dtype), x, dim, spans)
    length = rows.shape[dim] // step
    runs = [rows]
    while 2 ** len(runs) <= (stop - first).max():
        runs.append(halved(np.maximum, runs[-1], dim))
    for targets in memory.runs(size, MAX_TARGETS * size // max(1, y.size)):
        where = at(dim, targets)
        found = _located_among(runs, dim, first[targets], stop[targets])
        y[where] = np.where(found < 0, _lowest(x.dtype), np.take_along_axis(rows, found, dim))
        place[where] = np.where(found < 0, -1, found % length * step + found // length)
    return y, place


def _located_among(runs: list[Array], dim: int, first: Array, stop: Array) -> Array:
    """The index of the maximum in ``[first, stop)``, from items and their maxima over runs of 2, 4, … of them.

    It is -1 where there is none. Each target's maximum is that of a run, which is then bisected.
    """
    shape = resized(runs[0].shape, dim, len(first))
    lowest = np.full(shape, _lowest(runs[0].dtype), runs[0].dtype)
    # The best value of each target, and the height and place of its run: runs of the first part of a window come one
    # after the other, those of its last part before each other.
    parts: list[list[Array]] = [
        [lowest.copy(), np.full(shape, -1, np.int8), np.zeros(shape, np.int64)] for _ in range(2)
    ]
    first_part, last_part = parts
    height = 0
    while (first < stop).any():
        for part, (chosen, ends) in zip(parts, odd_ends(first, stop), strict=True):
            where = at(dim, chosen)
            values, best = runs[height].take(ends, axis=dim), part[0][where]
            if part is first_part:
                wins = (values > best) | (values != values) | (part[1][where] < 0)
            else:
                wins = (best == best) & ~(values < best)
            winners: list[Any] = [values, height, ends.reshape(-1, *(1,) * (len(shape) - 1 - dim))]
            for held, winner in zip(part, winners, strict=True):
                held[where] = np.where(wins, winner, held[where])
        height += 1
    best, heights, _ = last_part
    is_last = (heights >= 0) & ((first_part[1] < 0) | (best > first_part[0]) | (best != best))
    return _parted(
        runs, dim, *(np.where(is_last, last, first) for first, last in zip(first_part, last_part, strict=True))
    )


def _parted(runs: list[Array], dim: int, best: Array, heights: Array, places: Array) -> Array:
    """The index of `best` in the run at a height and place: the first equal item or last NaN; -1 below height 0."""
    is_nan = best != best
    for height in range(int(heights.max(initial=0)), 0, -1):
        taken = heights == height
        halves = np.where(taken, 2 * places, 0)
        in_second = np.take_along_axis(runs[height - 1], halves, dim) != best
        if is_nan.any():
            last = np.take_along_axis(runs[height - 1], np.where(taken, halves + 1, 0), dim)
            in_second = np.where(is_nan, last != last, in_second)
        places = np.where(taken, halves + in_second, places)
        heights = np.where(taken, height - 1, heights)
    return np.where(heights < 0, -1, places)


def _numbered(x: Array, passes: Passes, lengths: list[int], y: Array) -> Array:
    """The maxima of all windows, to y, and of each the number of its tap in row-major order, from 1 on.

    It is 0 where no tap was above the lowest value, and arbitrary where one was NaN: `_located` handles these, and is
    10 times slower. Here a number is a byte or two; as later taps have larger numbers, that of the best tap is the
    largest of those that exceeded all earlier taps.
    """
    dtype = np.min_scalar_type((lengths[0] + 1) * prod(lengths[1:]) - 1)
    name, lowest, step = "max_pool_with_indices", _lowest(x.dtype), 1
    numbers: Array | None = None
    for length, (dim, spans) in zip(lengths, passes, strict=True):
        shape = resized(x.shape, dim, spans.stop - spans.start)
        best = memory.scratch(f"{name} best {dim}", shape, x.dtype)
        found = memory.scratch(f"{name} {dim}", shape, dtype)
        best[...], found[...] = lowest, 0
        for k, targets, sources in spans.taps():
            where, values = at(dim, targets), x[at(dim, sources)]
            better = memory.scratch(f"{name} better", values.shape, np.bool_)
            np.greater(values, best[where], out=better)
            update(np.maximum, best, where, values)
            if numbers is None:
                candidate: Array = better.view(np.uint8) * dtype.type(k + 1)
            else:
                candidate = numbers[at(dim, sources)] + dtype.type(k * step)
                candidate *= better.view(np.uint8)
            update(np.maximum, found, where, candidate)
        step = step * length if numbers is not None else length + 1
        x, numbers = best, found
    y[...] = x
    assert numbers is not None  # there is an axis
    return numbers


def _offsets(geometry: PoolGeometry, order: list[int]) -> Array:
    """Table by `_numbered`'s tap number: the tap's position in the plane, relative to the window's first tap.

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


def _add_corners(
    indices: Array, geometry: PoolGeometry, block: Sequence[slice], axes: Collection[int], space: int
) -> None:
    """Add the positions along `axes` of (D, H, W) of the first taps of a block's windows, padding included."""
    for index in axes:
        axis, windows = geometry.axes[index], np.arange(block[index].start, block[index].stop)
        first = axis.windows(windows)[0] if isinstance(axis, AdaptiveAxis) else windows * axis.stride - axis.low
        if first.any():
            first *= prod(geometry.input_size[index + 1 :])
            indices += first.reshape(-1, *(1,) * (indices.ndim - 1 - space - index))


# --- By indices ---------------------------------------------------------------------------------------------------

# Windows whose gradients or values are scattered in one call: as indices into all planes they take half a megabyte.
MAX_WINDOWS = 1 << 16

# Parts of a plane whose sums are wider than its elements: all windows are looked at for each part.
PARTS, MIN_PART = 4, 1 << 19


def max_pool_backward(grad_y: Array, indices: Array, grad_x: Array, geometry: PoolGeometry) -> None:
    """grad_x [N, C, D, H, W]: grad_y scatter-added by the indices, in C order."""
    grad_y, space = stored(grad_y)
    indices, grad_x = as_stored(indices, space), as_stored(grad_x, space)
    dtype, size = accumulator(grad_y.dtype), prod(geometry.input_size)

    def add(block: Block) -> None:
        part, grad = grad_x[block].reshape(-1), grad_y[block].reshape(-1)
        if part.dtype == dtype:
            part[...] = 0
            for windows, places in _places(indices[block], size, space):
                np.add.at(part, places, grad[windows])
            return
        for run in memory.runs(part.size, max(MIN_PART, -(-part.size // PARTS))):
            total = memory.scratch("max_pool_backward", (run.stop - run.start,), dtype)
            total[...] = 0
            for windows, places in _places(indices[block], size, space):
                inside = (run.start <= places) & (places < run.stop)
                np.add.at(total, places[inside] - run.start, grad[windows][inside].astype(dtype))
            part[run] = total

    blocks = pooling.cut_up(grad_x.shape[:space], grad_x.nbytes)
    if (
        grad_y.size < grad_x.size
    ):  # `add.at` keeps the interpreter's lock: threads gain 1/8 with stride 1, else they lose
        list(map(add, blocks))
    else:
        each_of(add, blocks)


def unpool(values: Array, indices: Array, planes: Array) -> None:
    """Planes [N, C, OD, OH, OW] with values scattered by the indices; of values with one index the last is kept."""
    values, space = stored(values)
    size = prod(planes.shape[2:])
    indices, planes = as_stored(indices, space), as_stored(planes, space)

    def put(block: Block) -> None:
        part, read = planes[block].reshape(-1), values[block].reshape(-1)
        part[...] = 0
        for windows, places in _places(indices[block], size, space):
            part[places] = read[windows]

    each_of(put, pooling.cut_up(planes.shape[:space], planes.nbytes))


def gather(planes: Array, indices: Array, values: Array) -> None:
    """Values [N, C, D, H, W] of the planes at the indices, 0 where an index is -1."""
    planes, space = stored(planes)
    indices, values = as_stored(indices, space), as_stored(values, space)

    def take(block: Block) -> None:
        part, read = values[block].reshape(-1), planes[block].reshape(-1)
        for windows, places in _places(indices[block], prod(planes.shape[space : space + 3]), space):
            if isinstance(windows, slice):
                np.take(read, places, out=part[windows], mode="clip")
            else:
                part[windows] = read[places]

    if indices.size and indices.min() < 0:
        values[...] = 0
    each_of(take, pooling.cut_up(planes.shape[:space], planes.nbytes))


def _places(indices: Array, size: int, space: int) -> Iterator[tuple[Array | slice, Array]]:
    """Chunks of windows without those of index -1, and their flat positions in all planes of `size`.

    Indices are stored as [N, C, D, H, W] or [N, D, H, W, C]; in the latter, plane neighbours have stride C.
    """
    windows, channels = prod(indices.shape[space : space + 3]), 1 if space == 2 else indices.shape[4]
    flat = indices.reshape(-1)
    for run in memory.runs(flat.size, MAX_WINDOWS):
        number = np.arange(run.start, run.stop)
        image = number // (windows * channels)
        channel = 0 if channels == 1 else number % channels
        places = (image * size + flat[run].astype(np.int64, copy=False)) * channels + channel
        if flat[run].min() >= 0:
            yield run, places
        else:
            inside = flat[run] >= 0
            yield number[inside], places[inside]
