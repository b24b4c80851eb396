"""Separable reductions of windows, shared by all poolings: one axis at a time, over pieces that stay in the cache.

The maximum or sum of a box is that of its rows' maxima or sums. Along an axis a window is made of a few runs of 1, 2,
4, ... sources, each of two runs half as long: windows of 13 take 6 passes, those of 100,000 take 22, and their sums
round as little as sums in pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from math import gcd, prod
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends.numpy import memory, threads
from gpucnn.backends.numpy.memory import Array, Block
from gpucnn.geometry import AdaptiveAxis, Axis, PoolGeometry
from gpucnn.geometry.caches import kept

AnyAxis = Axis | AdaptiveAxis
Places = slice | Array

# Bytes that a piece reads or writes, whichever is more. A piece costs some 40 us of Python, which no two threads run at
# once: on 2 cores pieces of 256 KiB took 1.5 to 4 times as long.
PIECE_BYTES = 2 << 20
PLANS_BYTES = 512 << 10  # of all passes that are kept, and of all lists of pieces


def at(dim: int, where: Any) -> tuple[Any, ...]:
    """The index `where` of axis `dim`."""
    return (slice(None),) * dim + (where,)


def stored(x: Array) -> tuple[Array, int]:
    """X in memory order, [N, C, D, H, W] or [N, D, H, W, C], and the number of axis D."""
    return (x, 2) if x.flags.c_contiguous or not memory.is_channels_last(x) else (np.moveaxis(x, 1, -1), 1)


def as_stored(x: Array, space: int) -> Array:
    """X [N, C, D, H, W] with the axes of an array whose D is axis `space`."""
    return x if space == 2 else np.moveaxis(x, 1, -1)


# --- Reads of an axis ---------------------------------------------------------------------------------------------


def reads(axis: AnyAxis, start: int, stop: int, of_windows: bool) -> tuple[Array, Array, int]:
    """The first source and the number of sources of targets ``[start, stop)``, and the step from one to the next.

    Targets are windows, which read inputs, or else inputs, which read windows. Sources may lie outside of the axis.
    """
    targets = np.arange(start, stop)
    if isinstance(axis, AdaptiveAxis):
        first, end = (axis if of_windows else axis.transposed).windows(targets)
        return first, end - first, 1
    if of_windows:
        return targets * axis.stride - axis.low, np.full(len(targets), axis.kernel), axis.dilation
    # of o * stride + k * dilation = i + low, all divided by what divides both, one solution (o, k) gives the rest:
    # (o - dilation, k + stride), …
    common = gcd(axis.stride, axis.dilation)
    stride, dilation = axis.stride // common, axis.dilation // common
    position, rest = np.divmod(targets + axis.low, common)
    tap = position % stride * pow(dilation, -1, stride) % stride
    count = np.where(rest == 0, np.maximum((axis.kernel - 1 - tap) // stride + 1, 0), 0)
    return (position - tap * dilation) // stride - (count - 1) * dilation, count, dilation


def within(first: Array, count: Array, step: int, begin: int, end: int) -> tuple[Array, Array]:
    """The first source and the number of those in ``[begin, end)``, of targets that read `count` from `first` on."""
    skipped = np.maximum(-((first - begin) // step), 0)
    return first + skipped * step, np.maximum(np.minimum(-((first - end) // step), count) - skipped, 0)


class Step(NamedTuple):
    """Runs of `length` sources to reduce to the targets, after those of earlier steps unless it is their first step."""

    length: int
    targets: Places
    sources: tuple[Places, ...]
    is_first: bool


class Pass(NamedTuple):
    """The reduction of a piece along one dimension: of `extent` sources, `before` of them in the padding before x."""

    dim: int
    targets: int
    sources: slice
    extent: int
    before: int
    spacing: int
    steps: tuple[Step, ...]


@kept(PLANS_BYTES)
def _pass(dim: int, axis: AnyAxis, start: int, stop: int, of_windows: bool) -> Pass:
    """The reduction to targets ``[start, stop)``."""
    first, counts, spacing = reads(axis, start, stop, of_windows)
    least, end = int(first.min()), int((first + np.maximum(counts - 1, 0) * spacing).max()) + 1
    steps: list[Step] = []
    for count in np.flatnonzero(np.bincount(counts)).tolist():
        targets = np.flatnonzero(counts == count)
        steps += _steps(targets, first[targets] - least, count, spacing)
    steps.sort(key=lambda step: step.length)
    begin = max(0, least)
    sources = slice(begin, max(begin, min(end, axis.size if of_windows else axis.out)))
    return Pass(dim, stop - start, sources, end - least, begin - least, spacing, tuple(steps))


def _steps(targets: Array, first: Array, count: int, spacing: int) -> Iterator[Step]:
    """The steps of targets with `count` sources each, `spacing` apart."""
    if count == 0:
        yield Step(1, _sliced(targets), (), True)
    done = 0
    for length, several in groupby(_lengths(count)):
        sources = tuple(_sliced(first + (done + number * length) * spacing) for number, _ in enumerate(several))
        yield Step(length, _sliced(targets), sources, done == 0)
        done += length * len(sources)


def _lengths(count: int) -> list[int]:
    """Lengths of the runs that make a window of `count` sources: 13 = 1 + 4 + 4 + 4."""
    return [1] * count if count < 4 else [1] * (count % 2) + [2 * length for length in _lengths(count // 2)]


def _sliced(places: Array) -> Places:
    """Places as a slice, if they are evenly spaced."""
    gap = int(places[1] - places[0]) if len(places) > 1 else 1
    if gap > 0 and (np.diff(places) == gap).all():
        return slice(int(places[0]), int(places[-1]) + 1, gap)
    return places


# --- Pieces -------------------------------------------------------------------------------------------------------

Passes = tuple[Pass, ...]
Task = Callable[[Block, Block, Passes], None]


def in_pieces(
    task: Task, x: Array, y: Array, geometry: PoolGeometry, space: int, of_windows: bool, itemsize: int
) -> None:
    """Call ``task(read, written, passes)`` for pieces ``y[written]`` that depend on ``x[read]`` alone.

    They are runs along the first axis with something to pool, and of all dimensions before it. Axis D is number
    `space`. An element of x or y takes `itemsize` bytes of workspace.
    """
    pieces = _pieces(geometry, space, x.shape, y.shape, of_windows, itemsize)
    with np.errstate(over="ignore", invalid="ignore"):  # in runs of sources that no target reads
        if len(pieces) == 1:
            task(*pieces[0])
        else:
            threads.run(lambda piece: task(*piece), pieces)


@kept(PLANS_BYTES)
def _pieces(
    geometry: PoolGeometry, space: int, read: tuple[int, ...], written: tuple[int, ...], of_windows: bool, itemsize: int
) -> tuple[tuple[Block, Block, Passes], ...]:
    """The pieces of arrays of these shapes: what is read of x, what is written of y, and how."""
    every = list(enumerate(geometry.axes, space))
    axes = [(dim, axis) for dim, axis in every if not axis.is_identity] or every[-1:]
    cut, first = axes[0]
    most = PIECE_BYTES * prod(written[: cut + 1]) // max(1, itemsize * max(prod(read), prod(written)))
    if isinstance(first, Axis):  # or most of x would be read by several pieces
        most = max(most, first.dilation * first.kernel // (first.stride if of_windows else 1))
    pieces = []
    for block in memory.blocks(written[: cut + 1], most):
        ranges = [*block, *(slice(0, length) for length in written[cut + 1 :])]
        passes = tuple(_pass(dim, axis, ranges[dim].start, ranges[dim].stop, of_windows) for dim, axis in axes)
        for each in passes:
            ranges[each.dim] = each.sources
        pieces.append((tuple(ranges), block, passes))
    return tuple(pieces)


# --- Passes -------------------------------------------------------------------------------------------------------


def separably(ufunc: np.ufunc, nothing: Any, x: Array, passes: Passes, y: Array, dtype: np.dtype[Any]) -> Array:
    """Reduce the window of each element of y over x with `ufunc`, axis by axis; empty windows give `nothing`.

    The result has `dtype`: it is y if y has that, else scratch.
    """
    shape, inner = list(x.shape), [slice(None)] * x.ndim
    for each in passes:
        shape[each.dim], inner[each.dim] = each.extent, slice(each.before, each.before + x.shape[each.dim])
    if x.dtype != dtype or list(x.shape) != shape:
        wide = memory.scratch("pooling x", shape, dtype)
        wide[...] = nothing
        wide[tuple(inner)] = x
        x = wide
    for number, each in enumerate(passes, 1):
        shape[each.dim] = each.targets
        is_last = number == len(passes)
        result = y if is_last and y.dtype == dtype else memory.scratch(f"pooling pass {number}", shape, dtype)
        _along(ufunc, nothing, x, each, result)
        x = result
    return x


def _along(ufunc: np.ufunc, nothing: Any, x: Array, each: Pass, y: Array) -> None:
    """Reduce the sources of each target along one axis to y."""
    dim, runs, length = each.dim, x, 1
    for step in each.steps:
        while length < step.length:
            shift = length * each.spacing
            runs = ufunc(runs[at(dim, slice(None, -shift))], runs[at(dim, slice(shift, None))])
            length *= 2
        part = y[at(dim, step.targets)]
        values = [] if step.is_first else [part]
        for sources in step.sources:
            values.append(runs[at(dim, sources)] if isinstance(sources, slice) else runs.take(sources, axis=dim))
        total = values[0] if values else nothing
        for value in values[1:]:
            total = ufunc(total, value, out=part)
        if total is not part or not isinstance(step.targets, slice):
            y[at(dim, step.targets)] = total
