"""Graphs whose tasks compute the chunks of a result, each from the parts of arrays that it reads."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, product
from operator import itemgetter
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from gpucnn.backends import backend, backend_of, chosen
from gpucnn.numerics import Choices, choices, in_force

Array = Any
Key = Any
Index = tuple[int, ...]
Span = tuple[int, int]
"""Elements [start, stop) along an axis."""
Spans = tuple[Span, ...]
"""What the tasks along an axis of the grid read or write; one span stands for all of them."""

FAN_IN = 8  # parts that one task adds


def spans_of(sizes: Sequence[int]) -> Spans:
    """The elements of each chunk along an axis; an axis without any has one empty span."""
    stops = list(accumulate(sizes))
    found = tuple((stop - size, stop) for size, stop in zip(sizes, stops, strict=True) if size)
    return found or ((0, 0),)


def sizes_of(spans: Iterable[Span]) -> tuple[int, ...]:
    """The number of elements of each span."""
    return tuple(stop - start for start, stop in spans)


def whole(size: int) -> Spans:
    """One span for an axis that each task reads all of."""
    return ((0, size),)


class Source(NamedTuple):
    """What the tasks of a grid read of an array: along each axis, a span for each task along this axis of the grid."""

    array: Array
    spans: tuple[Spans, ...]


class Settings(NamedTuple):
    """What is chosen where a graph is built, and holds for its tasks wherever they run."""

    cpu_backend: str | None
    choices: Choices


class Result(NamedTuple):
    """The key of a task's result in the same graph, by the task's index, as an argument of another task."""

    key: Callable[[Index], Key]


def parameter(array: Array) -> Source:
    """An array that each task reads as a whole, and that the graph holds once."""
    held = in_one_chunk(array)
    return Source(held, tuple(whole(size) for size in held.shape))


def in_one_chunk(array: Array) -> Array:
    """A Dask array of one chunk: of another one's values, or around an array in memory."""
    if isinstance(array, da.Array):
        return rechunked(array, -1)
    name = f"gpucnn-parameter-{tokenize(array)}"
    return da.Array({(name, *(0,) * array.ndim): array}, name, tuple((size,) for size in array.shape), meta=array)


def rechunked(array: Array, chunks: Any) -> Array:
    """The array in other chunks, by tasks: where a cluster is at hand, Dask would else shuffle the whole array."""
    if array.ndim and not any(array.shape):  # which Dask leaves in as many chunks as they are
        array = array.blocks[(0,) * array.ndim]
    return array.rechunk(chunks, method="tasks")


@dataclass
class Tiles:
    """A graph under construction: its tasks, and the arrays whose chunks they read."""

    op: str
    token: str
    settings: Settings = field(default_factory=lambda: Settings(chosen(), choices()))
    tasks: dict[Key, Any] = field(default_factory=dict)
    arrays: list[Array] = field(default_factory=list)

    def name(self, part: str) -> str:
        """The name of the tasks of one kind, as Dask's dashboard shows them."""
        return f"{self.op}-{part}-{self.token}"

    def compute(
        self,
        part: str,
        function: Callable[..., Any],
        grid: Sequence[int],
        sources: Mapping[str, Source | Result],
        options: Callable[[Index], Mapping[str, Any]] = lambda index: {},
    ) -> Callable[[Index], Key]:
        """Add a task for each index of the grid, ``function(**what it reads of the sources, **options(index))``.

        Returns the key of a task by its index.
        """
        self.arrays += [source.array for source in sources.values() if isinstance(source, Source)]
        name = self.name(part)
        for index in product(*map(range, grid)):
            pieces: list[Key] = []
            layout = []
            for argument, source in sources.items():
                keys, counts = self._pieces(source, index)
                pieces += keys
                layout.append((argument, counts))
            self.tasks[name, *index] = (
                partial(_run, self.settings, function, tuple(layout), dict(options(index))),
                *pieces,
            )
        return lambda index: (name, *index)

    def _pieces(self, source: Source | Result, index: Index) -> tuple[list[Key], tuple[int, ...]]:
        """The keys of the parts that a task reads of a source, in C order, and their number along each axis."""
        if isinstance(source, Result):
            return [source.key(index)], ()
        axes = []
        for axis, (spans, sizes) in enumerate(zip(source.spans, source.array.chunks, strict=True)):
            start, stop = spans[index[axis]] if len(spans) > 1 else spans[0]
            axes.append(_chunks_within(sizes, start, stop))
        return [self._cut(source.array, cuts) for cuts in product(*axes)], tuple(map(len, axes))

    def _cut(self, array: Array, cuts: tuple[tuple[int, int, int], ...]) -> Key:
        """The key of a part of a chunk: where it is less than the chunk, a task of its own, so that no more travels."""
        block = tuple(chunk for chunk, _, _ in cuts)
        key = (array.name, *block)
        sizes = [axis[chunk] for axis, chunk in zip(array.chunks, block, strict=True)]
        if all((start, stop) == (0, size) for (_, start, stop), size in zip(cuts, sizes, strict=True)):
            return key
        slices = tuple(slice(start, stop) for _, start, stop in cuts)
        cut = (self.name(f"cut-{array.name}"), *(number for each in cuts for number in each))
        self.tasks[cut] = (partial(_part_of, slices), key)
        return cut

    def reduce(self, part: str, combine: Callable[[list[Any]], Any], keys: Sequence[Key], target: Index = ()) -> Key:
        """The key of all results combined, by a tree whose shape depends on their number alone."""
        level = 0
        while len(keys) > 1:
            groups = [keys[first : first + FAN_IN] for first in range(0, len(keys), FAN_IN)]
            parents: list[Key] = [(self.name(f"{part}-{level}"), *target, number) for number in range(len(groups))]
            for parent, group in zip(parents, groups, strict=True):
                self.tasks[parent] = (combine, list(group))
            keys, level = parents, level + 1
        return keys[0]

    def result(
        self, part: str, key: Callable[[Index], Key], chunks: tuple[tuple[int, ...], ...], meta: Array, item: int = -1
    ) -> Array:
        """A Dask array whose chunks are the results of tasks, or one item of each.

        `meta` is an array of the type and dtype of the chunks, of any size.
        """
        name = self.name(part)
        for index in product(*(range(len(sizes)) for sizes in chunks)):
            found = key(index)
            if found != (name, *index):
                self.tasks[name, *index] = (_same, found) if item < 0 else (itemgetter(item), found)
        graph = HighLevelGraph.from_collections(name, dict(self.tasks), dependencies=self.arrays)
        return da.Array(graph, name, chunks, meta=meta[(slice(0, 0),) * meta.ndim])

    def sum(self, part: str, keys: Sequence[Key], meta: Array) -> Array:
        """A Dask array of one chunk, the sum of results, in the dtype and shape of `meta`."""
        total = self.reduce(f"{part}-sum", _sum, keys)
        done = (self.name(f"{part}-cast"), 0)
        self.tasks[done] = (_as_dtype, total, str(meta.dtype))
        return self.result(part, lambda index: done, tuple((size,) for size in meta.shape), meta)


def _chunks_within(sizes: Sequence[int], start: int, stop: int) -> list[tuple[int, int, int]]:
    """The chunks along an axis that [start, stop) meets: each one's number, and the part of it, from its own start."""
    stops = list(accumulate(sizes))
    first = bisect_right(stops, start)
    if start == stop:
        return [(min(first, len(sizes) - 1), 0, 0)]
    found = []
    for chunk in range(first, len(sizes)):
        begin = stops[chunk] - sizes[chunk]
        if begin >= stop:
            break
        if sizes[chunk]:
            found.append((chunk, max(start - begin, 0), min(stop - begin, sizes[chunk])))
    return found


# --- What the tasks run -------------------------------------------------------------------------------------------


def _run(
    settings: Settings,
    function: Callable[..., Any],
    layout: tuple[tuple[str, tuple[int, ...]], ...],
    options: Mapping[str, Any],
    *pieces: Array,
) -> Any:
    """Call the function on arrays joined from their parts."""
    arrays, first = {}, 0
    for argument, counts in layout:
        number = math.prod(counts)
        arrays[argument] = _joined(pieces[first : first + number], counts)
        first += number
    with in_force(settings.choices), backend(settings.cpu_backend) if settings.cpu_backend else nullcontext():
        return function(**arrays, **options)


def _joined(pieces: Sequence[Array], counts: tuple[int, ...]) -> Array:
    """One array of parts in C order, `counts` of them along each axis, in the memory order of the first one."""
    if len(pieces) == 1:
        (piece,) = pieces
        return np.asarray(piece) if isinstance(piece, np.generic) else piece  # Dask's chunks without axes
    places = list(product(*map(range, counts)))
    by_place = dict(zip(places, pieces, strict=True))
    origin = (0,) * len(counts)
    starts = [
        [0, *accumulate(by_place[*origin[:axis], number, *origin[axis + 1 :]].shape[axis] for number in range(count))]
        for axis, count in enumerate(counts)
    ]
    first = pieces[0]
    primitives = backend_of(first)
    shape = tuple(ends[-1] for ends in starts)
    like = primitives.empty_like if first.ndim > 2 else primitives.empty
    result = like(shape, first.dtype, first)
    for place, piece in by_place.items():
        result[tuple(slice(ends[at], ends[at + 1]) for ends, at in zip(starts, place, strict=True))] = piece
    return result


def _part_of(slices: tuple[slice, ...], chunk: Array) -> Array:
    """A part of a chunk, as a copy where a view would keep much more than itself in memory."""
    part = chunk[slices]
    return part.copy() if 2 * part.size < chunk.size else part


def _sum(shares: list[Array]) -> Array:
    total = shares[0] + shares[1] if len(shares) > 1 else shares[0]
    for share in shares[2:]:
        total += share
    return total


def _as_dtype(array: Array, dtype: str) -> Array:
    return array.astype(dtype, copy=False)


def _same(value: Any) -> Any:
    return value
