"""Separable passes shared by all poolings: one axis at a time, over pieces that stay in the cache.

The maximum or sum of a box is that of its rows' maxima or sums. A K x K window then costs 2 K passes instead of K * K,
one for each tap of an axis. All passes of a piece run before the next piece is read, and threads share the pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import gcd, prod
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends.numpy import memory, threads
from gpucnn.backends.numpy.memory import Array, Block
from gpucnn.geometry import AdaptiveAxis, Axis, PoolGeometry
from gpucnn.geometry.caches import kept

AnyAxis = Axis | AdaptiveAxis
Places = slice | Array

# Taps of a window up to which there is a pass for each of them. Longer windows are put together from runs of 1, 2, 4,
# 8, ... taps: those of 100,000 take 40 passes, and their sums round as little as sums in pairs.
MAX_TAPS = 64

# Bytes that a piece reads or writes, whichever is more. A piece costs some 40 us of Python, which no two threads run at
# once: on 2 cores pieces of 256 KiB took 1.5 to 4 times as long. What is less than four of these is halved.
PIECE_BYTES = 2 << 20
MIN_PIECE_BYTES = 320 << 10


def at(dim: int, where: Any) -> tuple[Any, ...]:
    """The index `where` of axis `dim`."""
    return (slice(None),) * dim + (where,)


def resized(shape: tuple[int, ...], dim: int, length: int) -> tuple[int, ...]:
    """`shape` with `length` along `dim`."""
    return (*shape[:dim], length, *shape[dim + 1 :])


# --- Memory order -------------------------------------------------------------------------------------------------


def stored(x: Array) -> tuple[Array, int]:
    """X in memory order, [N, C, D, H, W] or [N, D, H, W, C], and the number of axis D."""
    return (x, 2) if x.flags.c_contiguous or not memory.is_channels_last(x) else (np.moveaxis(x, 1, -1), 1)


def as_stored(x: Array, space: int) -> Array:
    """X [N, C, D, H, W] with the axes of an array whose D is axis `space`."""
    return x if space == 2 else np.moveaxis(x, 1, -1)


# --- Reads of an axis ---------------------------------------------------------------------------------------------


class Spans(NamedTuple):
    """Targets ``[start, stop)`` of an axis: windows that read its inputs, or inputs that read its windows."""

    axis: AnyAxis
    start: int
    stop: int
    of_windows: bool

    def sources(self) -> slice:
        """The range of all sources that the targets may read."""
        axis, start, last = self.axis, self.start, self.stop - 1
        if isinstance(axis, AdaptiveAxis):
            axis = axis if self.of_windows else axis.transposed
            return slice(axis.windows(start)[0], axis.windows(last)[1])
        reach = axis.dilation * (axis.kernel - 1)
        if self.of_windows:
            low, high, size = start * axis.stride - axis.low, last * axis.stride - axis.low + reach + 1, axis.size
        else:
            low, high = -(-(start + axis.low - reach) // axis.stride), (last + axis.low) // axis.stride + 1
            size = axis.out
        low = max(0, low)
        return slice(low, max(low, min(high, size)))

    @property
    def is_copied(self) -> bool:
        """Whether each input is read by one window, which is all of them."""
        return not self.of_windows and isinstance(self.axis, Axis) and self.axis.is_whole

    def runs(self) -> tuple[Array, Array, int]:
        """The first source and the number of sources of each target, and the common step between them.

        A target that reads nothing has 0 sources.
        """
        axis, targets = self.axis, np.arange(self.start, self.stop)
        if isinstance(axis, AdaptiveAxis):
            first, stop = (axis if self.of_windows else axis.transposed).windows(targets)
            return first, stop - first, 1
        if self.of_windows:
            first, dilation = targets * axis.stride - axis.low, axis.dilation
            skipped = np.maximum(-(first // dilation), 0)  # taps in the padding
            last = np.minimum((axis.size - 1 - first) // dilation, axis.kernel - 1)
            return first + skipped * dilation, np.maximum(last + 1 - skipped, 0), dilation
        # of o * stride + k * dilation = i + low, all divided by what divides both, one solution (o, k) gives the rest:
        # (o - dilation, k + stride), …
        common = gcd(axis.stride, axis.dilation)
        stride, dilation = axis.stride // common, axis.dilation // common
        position, rest = np.divmod(targets + axis.low, common)
        tap = position % stride * pow(dilation, -1, stride) % stride
        output = (position - tap * dilation) // stride
        least = np.maximum(-((axis.out - 1 - output) // dilation), 0)
        most = np.minimum((axis.kernel - 1 - tap) // stride, output // dilation)
        return output - most * dilation, np.where(rest == 0, np.maximum(most + 1 - least, 0), 0), dilation

    def taps(self) -> Iterator[tuple[int, Places, Places]]:
        """Each tap's number, and which targets read which sources through it.

        Targets are counted from `start`, sources from the first of `sources`.
        """
        axis, least = self.axis, self.sources().start
        if isinstance(axis, AdaptiveAxis):
            first, count, _ = self.runs()
            for tap in range(count.max(initial=0)):
                longer = np.flatnonzero(count > tap)
                yield tap, slice(None) if len(longer) == len(count) else longer, first[longer] + (tap - least)
            return
        step = 1 if self.of_windows else axis.stride
        parts = [(0, axis.forward)] if self.of_windows else [(each.first, each.sampling) for each in axis.backward]
        for residue, sampling in parts:  # of inputs, those of one stride residue
            begin, end = max(0, -(-(self.start - residue) // step)), max(0, -(-(self.stop - residue) // step))
            place = residue + begin * step - self.start
            for tap, targets, sources in sampling.taps(begin, end):
                reached = slice(place + targets.start * step, place + (targets.stop - 1) * step + 1, step)
                yield tap, reached, slice(sources.start - least, sources.stop - least, sources.step)


def length_of(axis: AnyAxis) -> int:
    """Taps of the longest window."""
    return axis.kernel if isinstance(axis, Axis) else axis.longest


# --- Pieces -------------------------------------------------------------------------------------------------------


class Pass(NamedTuple):
    """The reduction of a piece along one dimension.

    `taps` are what it writes and what it reads, as indices, one tap after the other; None where windows are long, or
    each input is read as it is. With `is_dense` each tap has all targets.
    """

    dim: int
    spans: Spans
    taps: tuple[tuple[Any, Any], ...] | None
    is_dense: bool


Passes = tuple[Pass, ...]
Piece = tuple[Block, Block, Passes]  # what is read of x, what is written of y, and how
PLANS_BYTES = 512 << 10  # of all lists of pieces that are kept


def in_pieces(
    task: Callable[[Block, Block, Passes], None],
    x: Array,
    y: Array,
    geometry: PoolGeometry,
    space: int,
    of_windows: bool,
    weight: float = 1,
) -> None:
    """Call ``task(read, written, passes)`` for pieces ``y[written]`` that depend on ``x[read]`` alone.

    They are runs along the first axis with something to pool, and of all dimensions before it. Axis D is number
    `space`. `weight` is below 1 where the work is less than that of some passes.
    """
    size = int(max(x.size, y.size) * x.itemsize * weight)
    pieces = _kept_pieces if size <= 2 * PIECE_BYTES else _pieces  # of larger arrays they take no time beside the task
    each_of(lambda piece: task(*piece), pieces(geometry, space, x.shape, y.shape, of_windows, size))


def _pieces(
    geometry: PoolGeometry, space: int, read: tuple[int, ...], written: tuple[int, ...], of_windows: bool, size: int
) -> tuple[Piece, ...]:
    """The pieces of arrays of these shapes, over which `size` bytes are spread."""
    every = [(dim, axis) for dim, axis in enumerate(geometry.axes, space)]
    axes = [(dim, axis) for dim, axis in every if not axis.is_identity] or every[-1:]
    cut, first = axes[0]
    blocks = cut_up(written[: cut + 1], size)
    if blocks and length_of(first) > MAX_TAPS:
        run = blocks[0][-1].stop
        sources = Spans(first, 0, run, of_windows).sources()
        if (sources.stop - sources.start) * -(-written[cut] // run) > 2 * read[cut]:  # most is read again and again
            blocks = [(*block, slice(0, written[cut])) for block in cut_up(written[:cut], size)]
    pieces: list[Piece] = []
    for block in blocks:
        spans = {dim: Spans(axis, 0, written[dim], of_windows) for dim, axis in axes}
        spans[cut] = Spans(first, block[-1].start, block[-1].stop, of_windows)
        ranges = [*block, *[slice(None)] * (len(read) - cut - 1)]
        for dim, each in spans.items():
            ranges[dim] = each.sources()
        pieces.append((tuple(ranges), block, tuple(_pass(dim, each) for dim, each in spans.items())))
    return tuple(pieces)


_kept_pieces = kept(PLANS_BYTES)(_pieces)


def _pass(dim: int, spans: Spans) -> Pass:
    if length_of(spans.axis) > MAX_TAPS or spans.is_copied:
        return Pass(dim, spans, None, False)
    taps, size = list(spans.taps()), spans.stop - spans.start
    every = (slice(None), slice(0, size), slice(0, size, 1))
    is_dense = all(isinstance(targets, slice) and targets in every for _, targets, _ in taps)
    return Pass(dim, spans, tuple((at(dim, targets), at(dim, sources)) for _, targets, sources in taps), is_dense)


def cut_up(extents: tuple[int, ...], size: int) -> list[Block]:
    """Blocks of `extents`, over which `size` bytes are spread, for threads to share."""
    half = -(-size // 2)
    most = PIECE_BYTES if half > 2 * PIECE_BYTES else max(half, MIN_PIECE_BYTES)
    if size <= most:
        return [tuple(slice(0, extent) for extent in extents)] if 0 not in extents else []
    return list(memory.blocks(extents, -(-most * prod(extents) // size)))


def each_of(task: Callable[[Any], None], items: Sequence[Any]) -> None:
    """Call `task` for all items, on threads if there are several."""
    if len(items) > 1:
        threads.run(task, items)
    elif items:
        task(items[0])


# --- Passes -------------------------------------------------------------------------------------------------------


def separably(ufunc: np.ufunc, nothing: Any, x: Array, passes: Passes, y: Array) -> None:
    """Reduce the window of each element of y over x with `ufunc`, axis by axis; empty windows give `nothing`.

    y has the dtype of x.
    """
    if not x.size:  # a piece between windows that lie far apart
        y[...] = nothing
        return
    for number, (dim, spans, taps, is_dense) in enumerate(passes, 1):
        result = y
        if number < len(passes):
            shape = resized(x.shape, dim, spans.stop - spans.start)
            result = memory.scratch(f"pooling pass {number}", shape, x.dtype)
        if taps is None and spans.is_copied:
            result[...] = x
        elif taps is None:
            _in_pairs(ufunc, nothing, x, dim, spans, result)
        elif is_dense and len(taps) > 1:
            ufunc(x[taps[0][1]], x[taps[1][1]], out=result)
            for _, read in taps[2:]:
                ufunc(result, x[read], out=result)
        else:
            result[...] = nothing
            for targets, read in taps:
                update(ufunc, result, targets, x[read])
        x = result


def update(ufunc: np.ufunc, y: Array, where: Any, values: Array) -> None:
    """``y[where] = ufunc(y[where], values)``, for slices and for arrays of places."""
    part = y[where]
    ufunc(part, values, out=part)
    if not np.may_share_memory(part, y):
        y[where] = part


def in_rows(nothing: Any, x: Array, dim: int, spans: Spans) -> tuple[Array, Array, Array, int]:
    """Items along `dim` of which each target reads a contiguous range, as [first, stop).

    Where targets read every `step`-th item of x, they are a copy of x as `step` rows of such items, concatenated.
    """
    first, count, step = spans.runs()
    first -= spans.sources().start
    if step == 1 or count.max(initial=0) <= 1:
        first = np.where(count, first, 0)
        return x, first, first + count, 1
    length = -(-x.shape[dim] // step)
    rows = np.full(resized(x.shape, dim, length * step), nothing, x.dtype)
    rows[at(dim, slice(0, x.shape[dim]))] = x
    rows = rows.reshape(*x.shape[:dim], length, step, *x.shape[dim + 1 :]).swapaxes(dim, dim + 1)
    first = np.where(count, first % step * length + first // step, 0)
    return rows.reshape(resized(x.shape, dim, length * step)), first, first + count, step


def _in_pairs(ufunc: np.ufunc, nothing: Any, x: Array, dim: int, spans: Spans, y: Array) -> None:
    """Reduce the reads of each target along one axis to y with `ufunc`, from runs of 1, 2, 4, ... items.

    The runs of one length begin at multiples of it, so each target takes two of them at most, at its ends.
    """
    runs, first, stop, _ = in_rows(nothing, x, dim, spans)
    y[...] = nothing
    with np.errstate(over="ignore", invalid="ignore"):  # of runs that no target reads
        while (first < stop).any():
            for chosen, places in odd_ends(first, stop):
                update(ufunc, y, at(dim, chosen), runs.take(places, axis=dim))
            runs = halved(ufunc, runs, dim)


def odd_ends(first: Array, stop: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Targets whose first, or last, run has no partner within the window, with its position.

    Afterwards `first` and `stop`, the positions of runs, count runs of twice the length.
    """
    from_first = np.flatnonzero((first < stop) & (first & 1 == 1))
    at_first = first[from_first]
    first[from_first] += 1
    from_last = np.flatnonzero((first < stop) & (stop & 1 == 1))
    stop[from_last] -= 1
    at_last = stop[from_last]
    first >>= 1
    stop >>= 1
    return (from_first, at_first), (from_last, at_last)


def halved(ufunc: np.ufunc, runs: Array, dim: int) -> Array:
    """The runs of twice the length."""
    pairs = runs.shape[dim] // 2 * 2
    doubled: Array = ufunc(runs[at(dim, slice(0, pairs, 2))], runs[at(dim, slice(1, pairs, 2))])
    return doubled


def widened(name: str, x: Array, dtype: np.dtype[Any]) -> Array:
    """X in `dtype`, itself if it has that one already."""
    if x.dtype == dtype:
        return x
    wide = memory.scratch(name, x.shape, dtype)
    wide[...] = x
    return wide
