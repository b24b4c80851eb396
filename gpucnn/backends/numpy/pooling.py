"""Separable passes shared by all poolings: one axis at a time, over pieces that stay in the cache.

The maximum or sum of a box is that of its rows' maxima or sums. A K x K window then costs 2 K passes instead of K * K,
and every pass is a shifted slice (`along`). All passes of a piece run before the next piece is read, and threads share
the pieces: on ten layers of real networks that took half to a fifth of the time of whole passes on one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd, prod
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends.numpy import memory, threads
from gpucnn.backends.numpy.memory import Array, Block
from gpucnn.geometry import AdaptiveAxis, Axis, PoolGeometry, Sampling
from gpucnn.geometry.caches import kept

AnyAxis = Axis | AdaptiveAxis

# Taps of a window up to which there is a pass for each of them; and up to which there is where windows overlap so much
# that eight or more hold each input. Longer windows are put together from runs of 1, 2, 4, 8, … taps: those of 100,000
# take 40 passes, and their sums round as little as sums in pairs.
MAX_TAPS, MAX_SHARED_TAPS = 64, 512
READS_BYTES = 4 << 20  # of all cached `Reads`

# Bytes that a piece reads or writes, whichever is more. A piece costs some 40 us of Python, which no two threads run at
# once: on 2 cores pieces of 256 KiB, which a core's L2 cache holds, took 1.5 to 4 times as long as those of 2 MiB. What
# is less than four of these is halved, where pieces of 1 MiB took up to 1.8 times as long.
PIECE_BYTES = 2 << 20
MIN_PIECE_BYTES = 320 << 10

# Elements of a row from which on it is repeated by broadcasting, which writes contiguously: PSPNet's gradient took a
# third of the time of row k of each window, then row k + 1. Shorter rows cost more calls than that saves.
MIN_ROW = 16


def at(dim: int, where: Any) -> tuple[Any, ...]:
    """The index `where` of axis `dim`."""
    return (slice(None),) * dim + (where,)


def resized(shape: tuple[int, ...], dim: int, length: int) -> tuple[int, ...]:
    """`shape` with `length` along `dim`."""
    return (*shape[:dim], length, *shape[dim + 1 :])


# --- Memory order -------------------------------------------------------------------------------------------------


def stored(x: Array) -> tuple[Array, int]:
    """X in memory order, [N, C, D, H, W] or [N, D, H, W, C], and the number of axis D."""
    return (np.moveaxis(x, 1, -1), 1) if memory.is_channels_last(x) else (x, 2)


def as_stored(x: Array, space: int) -> Array:
    """X [N, C, D, H, W] with the axes of an array whose D is axis `space`."""
    return x if space == 2 else np.moveaxis(x, 1, -1)


def logical(x: Array, space: int) -> Array:
    """X [N, C, D, H, W] of one that is stored with D as axis `space`."""
    return x if space == 2 else np.moveaxis(x, -1, 1)


# --- Reads of an axis ---------------------------------------------------------------------------------------------


class Phase(NamedTuple):
    """A row of sources, `targets` of which are copied from `sources`; the others hold the neutral element."""

    targets: slice
    sources: slice


class Tap(NamedTuple):
    """One tap of a window: target i reads item ``i + shift`` of a phase."""

    phase: int
    shift: int


class Strip(NamedTuple):
    """Targets that share their taps: their positions, their number, and the phases of `length` items that they read.

    With stride s, inputs of one residue mod s make a phase, so that every tap is a shifted run of one phase.
    `sources` are the inputs of the taps where all read a source for each target and none is read twice; else empty.
    Where there are more than `MAX_SHARED_TAPS`, all of one phase, they are not listed.
    """

    where: slice
    size: int
    length: int
    phases: tuple[Phase, ...]
    tap_count: int
    gap: int  # items from one tap to the next where all taps read one phase; else 0
    taps: tuple[Tap, ...] = ()
    sources: tuple[slice, ...] = ()


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


class Reads(NamedTuple):
    """The reads of `size` targets of an axis: the slice of the axis that any tap reaches, and the strips within it.

    Without strips, windows are long, or differ in length. If `repeats` is above 1, each source is read by `repeats`
    consecutive targets.
    """

    size: int
    sources: slice
    spans: Spans
    strips: tuple[Strip, ...] = ()
    repeats: int = 1


Passes = list[tuple[int, Reads]]


@kept(READS_BYTES)
def window_reads(axis: AnyAxis, start: int, stop: int) -> Reads:
    """The reads of the windows ``[start, stop)`` of an axis from its inputs."""
    spans, count = Spans(axis, start, stop, of_windows=True), stop - start
    if isinstance(axis, AdaptiveAxis) or not (has_passes(axis) or axis.dilation % axis.stride == 0):
        return Reads(count, spans.sources(), spans)
    return _reads(spans, [(slice(None), count, _moved(axis.forward, start))])


@kept(READS_BYTES)
def input_reads(axis: AnyAxis, start: int, stop: int) -> Reads:
    """The reads of the inputs ``[start, stop)`` of an axis from the windows that contain them."""
    spans, count = Spans(axis, start, stop, of_windows=False), stop - start
    if isinstance(axis, AdaptiveAxis):
        return Reads(count, spans.sources(), spans)
    if axis.is_whole:
        one = slice(0, 1)
        only = Strip(slice(None), count, count, (Phase(slice(0, count), one),), 1, 0, (Tap(0, 0),), (one,))
        return Reads(count, slice(0, 1), spans, (only,))
    k = axis.kernel
    repeats = k if axis.tiles and start % k == stop % k == 0 and stop <= axis.out * k else 1
    if not (has_passes(axis) or axis.stride == 1):
        return Reads(count, spans.sources(), spans, repeats=repeats)
    strips = []
    for first, _, sampling in axis.backward:
        begin, end = (max(0, -(-(limit - first) // axis.stride)) for limit in (start, stop))
        if begin < end:
            where = slice(first + begin * axis.stride - start, None, axis.stride)
            strips.append((where, end - begin, _moved(sampling, begin)))
    return _reads(spans, strips)._replace(repeats=repeats)


def _moved(sampling: Sampling, start: int) -> Sampling:
    """`sampling` with its targets counted from `start`."""
    offsets, shift = sampling.offsets, start * sampling.step
    moved = range(offsets.start + shift, offsets.stop + shift, offsets.step)
    return Sampling(sampling.targets, sampling.sources, sampling.step, moved)


def _reads(spans: Spans, strips: Sequence[tuple[slice, int, Sampling]]) -> Reads:
    """The strips (where, count, sampling), with their sources counted from the first that any of them reads."""
    edges = [(s.least, min(s.most + (targets - 1) * s.step + 1, s.sources)) for _, targets, s in strips]
    low = max(0, min((low for low, _ in edges), default=0))
    high = max(low, max((high for _, high in edges), default=0))
    return Reads(
        spans.stop - spans.start, slice(low, high), spans, tuple(_strip(*strip, low, high) for strip in strips)
    )


def _strip(where: slice, count: int, sampling: Sampling, low: int, high: int) -> Strip:
    """Targets that sample ``[low, high)``."""
    step, offsets = sampling.step, sampling.offsets
    base, length = sampling.least, count + (sampling.most - sampling.least) // step
    is_long = len(offsets) > MAX_SHARED_TAPS
    residues = [0] if is_long else sorted({(offset - base) % step for offset in offsets})
    phases = []
    for first in (base + residue - low for residue in residues):
        begin, end = (min(max(0, -(-(limit - first) // step)), length) for limit in (0, high - low))
        position = first + begin * step
        sources = slice(position, position + (end - 1 - begin) * step + 1, step) if begin < end else slice(0, 0)
        phases.append(Phase(slice(begin, max(begin, end)), sources))
    gap = abs(sampling.spacing) // step if len(residues) == 1 else 0
    strip = Strip(where, count, length, tuple(phases), len(offsets), gap)
    if is_long:
        return strip
    taps = tuple(Tap(residues.index((o - base) % step), (o - base) // step) for o in offsets)
    reach = [(offset - low, offset - low + (count - 1) * step + 1) for offset in offsets]
    apart = len(residues) == len(offsets) and all(first >= 0 and last <= high - low for first, last in reach)
    direct = tuple(slice(first, last, step) for first, last in reach) if apart else ()
    return strip._replace(taps=taps, sources=direct)


def has_passes(axis: AnyAxis) -> bool:
    """Whether there is a pass for each tap."""
    shares = isinstance(axis, Axis) and 8 * axis.stride <= axis.kernel
    return length_of(axis) <= (MAX_SHARED_TAPS if shares else MAX_TAPS)


def length_of(axis: AnyAxis) -> int:
    """Taps of the longest window."""
    return axis.kernel if isinstance(axis, Axis) else axis.longest


# --- Pieces -------------------------------------------------------------------------------------------------------


def windowed(geometry: PoolGeometry, space: int) -> list[tuple[int, AnyAxis]]:
    """The axes with something to pool, each with its dimension; at least one."""
    axes = list(enumerate(geometry.axes, space))
    return [(dim, axis) for dim, axis in axes if not axis.is_identity] or axes[-1:]


def in_pieces(
    task: Callable[[Block, Block, Passes], None],
    x: Array,
    y: Array,
    axes: Sequence[tuple[int, AnyAxis]],
    reads: Callable[[AnyAxis, int, int], Reads],
    weight: float = 1,
) -> None:
    """Call ``task(read, written, passes)`` for pieces ``y[written]`` that depend on ``x[read]`` alone.

    They are runs along the first of the `axes`, and of all dimensions before it. `reads` is `window_reads` or
    `input_reads`; each pass is a dimension and its reads, relative to the piece. `weight` is below 1 where the work is
    less than that of some passes.
    """
    cut, first = axes[0]
    rest = [(dim, reads(axis, 0, y.shape[dim])) for dim, axis in axes[1:]]
    size = int(max(x.size, y.size) * x.itemsize * weight)
    blocks = cut_up(y.shape[: cut + 1], size)
    if blocks and length_of(first) > MAX_TAPS:
        run = blocks[0][-1].stop
        sources = reads(first, 0, run).sources
        if (sources.stop - sources.start) * -(-y.shape[cut] // run) > 2 * x.shape[cut]:  # most is read again and again
            blocks = [(*block, slice(0, y.shape[cut])) for block in cut_up(y.shape[:cut], size)]

    def piece(block: Block) -> None:
        run = block[-1]
        passes = [(cut, reads(first, run.start, run.stop)), *rest]
        read = [*block, *[slice(None)] * (x.ndim - cut - 1)]
        for dim, of_axis in passes:
            read[dim] = of_axis.sources
        task(tuple(read), block, passes)

    each_of(piece, blocks)


def cut_up(extents: tuple[int, ...], size: int) -> list[Block]:
    """Blocks of `extents`, over which `size` bytes are spread, for threads to share."""
    half = -(-size // 2)
    most = PIECE_BYTES if half > 2 * PIECE_BYTES else max(half, MIN_PIECE_BYTES)
    if size <= most:
        return [tuple(slice(0, extent) for extent in extents)] if 0 not in extents else []
    return list(memory.blocks(extents, -(-most * prod(extents) // size)))


def each_of(piece: Callable[[Block], None], blocks: Sequence[Block]) -> None:
    """Call `piece` for all blocks, on threads if there are several."""
    if len(blocks) > 1:
        threads.run(piece, blocks)
    elif blocks:
        piece(blocks[0])


# --- Passes -------------------------------------------------------------------------------------------------------


def separably(ufunc: np.ufunc, nothing: Any, x: Array, passes: Passes, y: Array) -> None:
    """Reduce the window of each element of y over x with `ufunc`, axis by axis; empty windows give `nothing`.

    y has the dtype of x.
    """
    for number, (dim, reads) in enumerate(passes, 1):
        name, last = f"pooling pass {number}", number == len(passes)
        shape = resized(x.shape, dim, reads.size)
        if len(reads.strips) == 1 and reads.strips[0].size == reads.size:
            x = along(ufunc, nothing, x, dim, reads.strips[0], name, y if last else None)
            continue
        result = y if last else memory.scratch(name, shape, x.dtype)
        if reads.repeats > 1 and (prod(shape[dim + 1 :]) >= MIN_ROW or not reads.strips):
            rows = result.reshape(*shape[:dim], -1, reads.repeats, *shape[dim + 1 :])
            rows[...] = np.expand_dims(x, dim + 1)
        elif not reads.strips:
            in_pairs(ufunc, nothing, x, dim, reads, result)
        else:
            if sum(strip.size for strip in reads.strips) < reads.size:
                result[...] = nothing
            for strip in reads.strips:
                result[at(dim, strip.where)] = along(ufunc, nothing, x, dim, strip, f"{name} strip")
        x = result
    if x is not y:
        y[...] = x


def in_rows(nothing: Any, x: Array, dim: int, reads: Reads) -> tuple[Array, Array, Array, int]:
    """Items along `dim` of which each target reads a contiguous range, as [first, stop).

    Where targets read every `step`-th item of x, they are a copy of x as `step` rows of such items, concatenated.
    """
    first, count, step = reads.spans.runs()
    first -= reads.sources.start
    if step == 1 or count.max(initial=0) <= 1:
        first = np.where(count, first, 0)
        return x, first, first + count, 1
    length = -(-x.shape[dim] // step)
    rows = np.full(resized(x.shape, dim, length * step), nothing, x.dtype)
    rows[at(dim, slice(0, x.shape[dim]))] = x
    rows = rows.reshape(*x.shape[:dim], length, step, *x.shape[dim + 1 :]).swapaxes(dim, dim + 1)
    first = np.where(count, first % step * length + first // step, 0)
    return rows.reshape(resized(x.shape, dim, length * step)), first, first + count, step


def in_pairs(ufunc: np.ufunc, nothing: Any, x: Array, dim: int, reads: Reads, y: Array) -> None:
    """Reduce the reads of each target along one axis to y with `ufunc`, from runs of 1, 2, 4, … items.

    The runs of one length begin at multiples of it, so each target takes two of them at most, at its ends.
    """
    runs, first, stop, _ = in_rows(nothing, x, dim, reads)
    if isinstance(reads.spans.axis, AdaptiveAxis) and (stop - first).max() <= MAX_TAPS:
        _in_turn(ufunc, x, dim, first, stop, y)
        return
    y[...] = nothing
    with np.errstate(over="ignore", invalid="ignore"):  # of runs that no target reads
        while (first < stop).any():
            for chosen, places in odd_ends(first, stop):
                where = at(dim, chosen)
                y[where] = ufunc(y[where], runs.take(places, axis=dim))
            runs = halved(ufunc, runs, dim)


def _in_turn(ufunc: np.ufunc, x: Array, dim: int, first: Array, stop: Array, y: Array) -> None:
    """As `in_pairs`, item by item: 13 x 13 pooled to 6 x 6 took half of the time."""
    y[...] = x.take(first, axis=dim)
    for item in range(1, int((stop - first).max())):
        chosen = np.flatnonzero(first + item < stop)
        where = at(dim, slice(None) if len(chosen) == len(first) else chosen)
        y[where] = ufunc(y[where], x.take(first[chosen] + item, axis=dim))


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


def along(ufunc: np.ufunc, nothing: Any, x: Array, dim: int, strip: Strip, name: str, y: Array | None = None) -> Array:
    """`ufunc` over the taps along one axis: a view of x, or y where its memory allows that, or scratch of that name."""
    shape = resized(x.shape, dim, strip.size)
    if len(strip.sources) == 1:
        return np.broadcast_to(x[at(dim, strip.sources[0])], shape)
    if len(strip.sources) == 2 or (strip.sources and prod(shape[dim + 1 :]) >= MIN_ROW):
        result = memory.scratch(name, shape, x.dtype) if y is None else y
        ufunc(x[at(dim, strip.sources[0])], x[at(dim, strip.sources[1])], out=result)
        for sources in strip.sources[2:]:
            ufunc(result, x[at(dim, sources)], out=result)
        return result
    rows, taps, shape = flat_taps(nothing, x, dim, strip, name)
    pitch = prod(shape[dim + 1 :])
    size = rows[0].size - (strip.length - strip.size) * pitch
    if len(taps) == 1:
        return taps[0].reshape(shape)
    if y is None or not y.flags.c_contiguous or strip.length > strip.size:
        y = memory.scratch(name, shape, x.dtype)
    flat = y.reshape(-1)[:size]
    if (strip.gap == 1 and strip.tap_count > 3) or (strip.gap and strip.tap_count > MAX_TAPS):
        _doubling(ufunc, rows[0], strip.tap_count, strip.gap * pitch, flat, name)
    else:
        ufunc(taps[0], taps[1], out=flat)
        for tap in taps[2:]:
            ufunc(flat, tap, out=flat)
    return y if strip.length == strip.size else y[at(dim, slice(0, strip.size))]


def _doubling(ufunc: np.ufunc, row: Array, taps: int, pitch: int, y: Array, name: str) -> None:
    """As tap by tap, `pitch` between taps of the row, but from runs of 1, 2, 4, … taps.

    Windows of 13 x 13, YOLO's, take 5 passes instead of 12 along each axis, and 0.7 of the time.
    """
    run, width, done = row, 1, 0
    while width <= taps:
        if taps & width:
            part = run[done * pitch :][: y.size]
            if done:
                ufunc(y, part, out=y)
            else:
                y[...] = part
            done += width
        if 2 * width <= taps:
            double = memory.scratch(f"{name} run {width.bit_length() % 2}", (run.size - width * pitch,), y.dtype)
            run = ufunc(run[: double.size], run[width * pitch :], out=double)
        width *= 2


def flat_taps(
    nothing: Any, x: Array, dim: int, strip: Strip, name: str
) -> tuple[list[Array], list[Array], tuple[int, ...]]:
    """The phases and each tap's reads of them, as flat contiguous arrays; and the phases' shape.

    NumPy processes flat arrays at 10 elements a nanosecond, and non-contiguous rows of an image at 1 to 3, since its
    arithmetic buffers such rows first. So they are copied once, padded with `nothing` where they are too short, and all
    taps are flat: results beyond the `size` targets of a row are discarded.
    """
    shape = resized(x.shape, dim, strip.length)
    rows = []
    for number, (targets, sources) in enumerate(strip.phases):
        if x.shape == shape and x.flags.c_contiguous and sources == slice(0, strip.length, 1):
            rows.append(x.reshape(-1))
            continue
        row = memory.scratch(f"{name} phase {number}", shape, x.dtype)
        if targets != slice(0, strip.length):
            row[...] = nothing
        row[at(dim, targets)] = x[at(dim, sources)]
        rows.append(row.reshape(-1))
    pitch = prod(shape[dim + 1 :])
    size = rows[0].size - (strip.length - strip.size) * pitch
    return rows, [rows[tap.phase][tap.shift * pitch :][:size] for tap in strip.taps], shape


def taps_of(nothing: Any, x: Array, dim: int, reads: Reads, name: str) -> tuple[list[Array], tuple[int, ...]]:
    """The items that each tap reads along one axis, as flat arrays, and the shape of the padded input.

    Where windows differ in length, taps beyond the end of a window repeat its last one.
    """
    if reads.strips:
        _, taps, shape = flat_taps(nothing, x, dim, reads.strips[0], name)
        return taps, shape
    first, count, _ = reads.spans.runs()
    first -= reads.sources.start
    taps = [
        x.take(first + np.minimum(tap, count - 1), axis=dim).reshape(-1) for tap in range(length_of(reads.spans.axis))
    ]
    return taps, resized(x.shape, dim, reads.size)


def widened(name: str, x: Array, dtype: np.dtype[Any]) -> Array:
    """X in `dtype`, itself if it has that one already."""
    if x.dtype == dtype:
        return x
    wide = memory.scratch(name, x.shape, dtype)
    wide[...] = x
    return wide
