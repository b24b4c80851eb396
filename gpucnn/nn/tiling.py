"""Inference in bounded memory: a network over images of any size, tile by tile, with the values of the whole.

A tile of the result reads a part of the image, which grows from layer to layer by what the windows reach over. The
network is run once without values, which gives the graph of its layers; for each tile, the span that each layer must
compute follows from the spans that its readers read, from the last layer to the first. Then the layers compute just
these spans, and pad where the image ends and nowhere else.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends import backend_of
from gpucnn.geometry import arguments
from gpucnn.nn._chain import expect_module
from gpucnn.nn._journal import Journal
from gpucnn.nn._loading import to_host
from gpucnn.nn._local import Local, Pointwise, Pooled, Span, Whole, function, local, sliced
from gpucnn.nn._progress import display
from gpucnn.nn._tracing import Sketch, watched
from gpucnn.nn.keeping import inference
from gpucnn.nn.module import Array, Module

__all__ = ["Tiling", "tiled", "tiling"]

MEMORY = 1 << 30  # bytes that tiles are chosen for, where neither a tile nor the memory is given
SAMPLED = 64  # tiles of an axis, at either end, whose sizes are computed beforehand: those between are alike

# Memory of results is lent by a pool, in blocks up to twice as large as asked for, and half as much more is kept free.
# Of U-Nets, ResNet-18 and plain convolutions a run took up to 1.7 times what the arrays themselves do.
POOLED = 2.0
WORKSPACE = 32 << 20  # bytes of the operations, beside their results


@dataclass(frozen=True)
class Tiling:
    """How `tiled` cuts a network's run, and what that takes; it prints as a sentence.

    Attributes
    ----------
    input_shape, output_shape : tuple of int
        Shapes of the whole, [N, C, *space].
    dtype : dtype
        Of the result.
    tile : tuple of int
        Positions of one tile along each spatial axis: of the result, or of the image that a global pooling pools.
    batch_size : int
        Images of one tile.
    tiles : int
        The number of tiles.
    reads : tuple of int
        Most positions of the input that a tile reads along each spatial axis.
    peak_bytes : int
        Bound of the memory that a tile takes on the CPU: its part of the input, the results of the layers, and the
        workspace of one thread. Not counted are the weights, and `x` and `out` as they are.
    """

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    tile: tuple[int, ...]
    batch_size: int
    tiles: int
    reads: tuple[int, ...]
    peak_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.tiles:,} tiles of {_sizes(self.tile)}, each of which reads at most {_sizes(self.reads)}, "
            f"in at most {self.peak_bytes / 2**20:,.0f} MiB"
        )


def _sizes(sizes: Sequence[int]) -> str:
    return " × ".join(map(str, sizes))


def tiling(model: Module, x: Any, *, tile: Any = None, batch_size: int = 1, memory: float | None = None) -> Tiling:
    """The tiles that `tiled` would cut a run into, and the memory that it would take; nothing is run.

    Parameters
    ----------
    model, x, tile, batch_size, memory
        As for `tiled`; of `x` only shape and dtype are read.

    Returns
    -------
    Tiling

    Raises
    ------
    TypeError, ValueError
        As `tiled`.

    Examples
    --------
    >>> from gpucnn import nn
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))
    >>> plan = tiling(model, np.zeros((1, 1, 300, 200), np.float32), tile=100)
    >>> plan.tiles, plan.reads, plan.output_shape
    (6, (104, 102), (1, 1, 300, 200))
    """
    return _Run("tiling", model, x).cut(tile, batch_size, memory)


def tiled(
    model: Module,
    x: Any,
    *,
    tile: Any = None,
    batch_size: int = 1,
    memory: float | None = None,
    out: Any = None,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Any:
    """Run a network over images tile by tile, in bounded memory; the result is that of the whole.

    Parameters
    ----------
    model : Module
        In evaluation mode. The message of the error for one that cannot be cut names the layer and the reason.
    x : array-like [N, C, *space] or [C, *space]
        Anything with ``shape``, ``dtype`` and slices that NumPy takes: an array of NumPy or CuPy, ``numpy.memmap``, a
        Zarr array, a data set of h5py. Its dtype is that of the model's parameters.
    tile : int or sequence of int, optional
        Positions of one tile along each spatial axis of the result; of the image that is pooled, where the model ends
        in a global pooling. The last tile of an axis is smaller where they do not divide it.
    batch_size : int
        Images that are computed at once.
    memory : number, optional
        Bytes that a tile may take, where `tile` is not given; 1 GiB where this is not given either.
    out : array-like, optional
        What the result is written to, such as a ``numpy.memmap``; a new array in memory where it is None.
    resume : str or path, optional
        A file that says how far the run is. It is written after each tile, when that is in `out`, and removed at the
        end; a run that finds it goes on from there.
    progress : bool
        Show the tiles and the memory beforehand, and the progress.

    Returns
    -------
    array [N, OC, *out] or [OC, *out]
        `out`, or a new array; in the model's memory, host or device, where `x` is, else NumPy's.

    Raises
    ------
    TypeError
        A layer cannot be cut, or the dtype is not the model's.
    ValueError
        A shape does not fit, no tile is small enough for `memory`, or `resume` is of another run: of other weights,
        shapes or tiles. The values of `x` are not compared.

    See Also
    --------
    tiling : what will be done, and the memory for it

    Notes
    -----
    Each tile is computed from exactly what it reads of the image, and layers pad at the image's borders only, so that
    there are neither seams nor blended overlaps. A position's value is the same sum of the same terms as in the whole.
    Where the algorithm is the same for both sizes, as on the CPU within ``gpucnn.algorithm("direct")``, NumPy and
    compiled kernels may still add in another order at an edge of a matrix; results of float32 then differ by its
    rounding.

    Cut are convolutions of all paddings, transposed convolutions, pools, upsampling, batch norm, local response norm,
    activations, sums, products and concatenations along the channels, slices, and modules that are made of these in
    any way. `AdaptiveAvgPool2d` and `AdaptiveMaxPool2d` to one position, and their kin, add up their tiles in float64;
    what follows, such as linear layers, runs once. Refused are layers that need the whole image in another way:
    group, instance and layer norm, locally connected and linear layers, max unpooling, batch norm and dropout in
    training, gates that a global pooling computes.

    Circular padding reads both ends of an axis: a tile at the border then takes the length of that axis.

    Examples
    --------
    >>> from gpucnn import nn
    >>> model = nn.models.UNet(num_classes=2, in_channels=1, width=4, depth=2, rng=0).eval()
    >>> x = np.random.default_rng(0).random((1, 1, 50, 70), np.float32)
    >>> y = tiled(model, x, tile=16, progress=False)
    >>> y.shape, bool(np.abs(y - model(x)).max() < 1e-6)
    ((1, 2, 50, 70), True)
    """
    run = _Run("tiled", model, x)
    plan = run.cut(tile, batch_size, memory)
    out = run.output(out, is_new_fine=resume is None or run.pooled is not None)
    journal = None if resume is None else Journal(resume, run.facts(plan))
    shown = display(1, progress)
    try:
        shown.line(f"tiled: {plan}")
        with inference():
            run.fill(out, plan, journal, lambda done: shown.step(plan.tiles - done, lambda: _where(done, plan)))
    finally:
        shown.close()
    return out


def _where(done: int, plan: Tiling) -> str:
    return f"tile {done:,}/{plan.tiles:,}"


# --- The graph of a network ---------------------------------------------------------------------------------------


class _RefusedError(TypeError):
    """A network that cannot be cut, with the layer's name in the message."""


class _Node(NamedTuple):
    """A layer, the nodes that it reads, and its name in a message."""

    layer: Local
    sources: tuple[int, ...]
    name: str


Nodes = dict[int, _Node]


class _Tracer:
    """The nodes of a network, recorded while it runs on a sketch: 0 is its input."""

    def __init__(self, op: str, model: Module, shape: tuple[int, ...], dtype: Any) -> None:
        self.op, self.model = op, model
        self.names = {module: name for name, module in reversed(list(model.named_modules()))}
        self.within: list[Module] = [model]
        self.nodes: Nodes = {}
        with inference(), watched(model, self.watching):
            result = model(self._added(Local(shape, dtype, lambda x: x), ()))
        if not isinstance(result, Sketch):
            raise self.refusal(f"it gives a {type(result).__name__}, expected one array")
        self.last = result.number

    def refusal(self, reason: str, name: str | None = None) -> _RefusedError:
        """The error that a layer, the one that runs unless it is named, cannot be cut."""
        return _RefusedError(f"{self.op}: {name or self._name()} cannot be cut into tiles: {reason}")

    def _name(self) -> str:
        module = self.within[-1]
        return f"{self.names[module] or 'the model'}, a {type(module).__name__},"

    def watching(self, module: Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The forward of a module, recorded; of one that is not known its parts are."""

        def recorded(x: Any, *inputs: Any, **options: Any) -> Any:
            self.within.append(module)
            if not isinstance(x, Sketch):
                raise self.refusal("it takes an array that no module made")
            made = local(module, x, inputs, options)
            result = self._followed(forward, x, *inputs, **options) if made is None else self._added(made, (x,))
            self.within.pop()
            return result

        return recorded

    def _followed(self, forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        try:
            return forward(*inputs, **options)
        except _RefusedError:
            raise
        except (TypeError, AttributeError) as error:
            raise self.refusal(f"it computes in a way that is not followed: {error}") from error

    def computed(self, name: Any, arguments: Sequence[Any], options: dict[str, Any]) -> Sketch:
        """What a function of NumPy, or a slice, makes of sketches."""
        if getattr(name, "__name__", "") == "getitem":
            return self._added(sliced(*arguments), arguments[:1])
        given = arguments[0] if name is np.concatenate else arguments
        return self._added(function(name, arguments, options), [each for each in given if isinstance(each, Sketch)])

    def _added(self, made: Local | str, sources: Sequence[Sketch]) -> Sketch:
        if isinstance(made, str):
            raise self.refusal(made)
        number = len(self.nodes)
        self.nodes[number] = _Node(made, tuple(each.number for each in sources), self._name())
        return Sketch(self, number, made.shape, made.dtype)


def _before(nodes: Nodes, last: int) -> Nodes:
    """The nodes that one depends on and itself, in order."""
    wanted = {last}
    for number in reversed(nodes):
        if number in wanted:
            wanted.update(nodes[number].sources)
    return {number: node for number, node in nodes.items() if number in wanted}


def _joined(nodes: Nodes) -> Nodes:
    """The nodes with modules that compute position by position, one after the other, as one: they run in one pass."""
    readers = Counter(source for node in nodes.values() for source in node.sources)
    joined = dict(nodes)
    for number, (layer, sources, name) in nodes.items():
        before = joined[sources[0]] if sources else None
        if isinstance(layer, Pointwise) and before and isinstance(before.layer, Pointwise) and readers[sources[0]] == 1:
            both = Pointwise([*before.layer.modules, *layer.modules], layer.shape, layer.dtype)
            joined[number] = _Node(both, before.sources, name)
    return _before(joined, max(joined))


# --- A run ----------------------------------------------------------------------------------------------------------


class _Run:
    """A network and its input: the nodes that run by tiles, and those after a global pooling, which run once."""

    def __init__(self, op: str, model: Module, x: Any) -> None:
        expect_module(op, model)
        if not (hasattr(x, "shape") and hasattr(x, "dtype") and hasattr(x, "__getitem__")):
            raise TypeError(f"{op}: x is a {type(x).__name__}, expected something with shape, dtype and slices")
        self.op, self.model, self.x = op, model, x
        rank = next((module.rank for module in model.modules() if hasattr(module, "rank")), len(x.shape) - 2)
        self.single = len(x.shape) == rank + 1
        shape = (1, *x.shape) if self.single else tuple(x.shape)
        if len(shape) != rank + 2 or 0 in shape:
            raise ValueError(f"{op}: x has shape {tuple(x.shape)}, expected [N, C, *space] or [C, *space], none empty")
        tracer = _Tracer(op, model, shape, x.dtype)
        nodes = _joined(_before(tracer.nodes, tracer.last))
        self.result = nodes[tracer.last].layer
        self._split(tracer, nodes)
        self.shape, self.target = shape, next(reversed(self.body.values())).layer
        parameter = next((each.data for each in model.parameters()), None)
        self.xp: Any = backend_of(x if parameter is None else parameter).xp
        self.last_reader = {source: number for number, node in self.body.items() for source in node.sources}

    def _split(self, tracer: _Tracer, nodes: Nodes) -> None:
        """Set `body`, the nodes that run by tiles, `pooled`, and `tail`, the nodes behind it."""
        self.pooled = next((number for number, node in nodes.items() if isinstance(node.layer, Pooled)), None)
        self.tail: Nodes = {}
        for number, node in nodes.items():
            behind = [source == self.pooled or source in self.tail for source in node.sources]
            if any(behind) and not all(behind):
                assert self.pooled is not None
                raise tracer.refusal(Pooled.reason, nodes[self.pooled].name)
            if behind and all(behind):
                self.tail[number] = node
            elif isinstance(node.layer, Whole):
                raise tracer.refusal(Whole.reason, node.name)
        self.body = nodes if self.pooled is None else _before(nodes, nodes[self.pooled].sources[0])
        self.pool: Any = None if self.pooled is None else nodes[self.pooled].layer

    # --- Tiles ------------------------------------------------------------------------------------------------------

    def cut(self, tile: Any, batch_size: int, memory: float | None) -> Tiling:
        """The tiles: as given, or the largest that fit into the memory."""
        space = self.target.shape[2:]
        batch = min(arguments.integer(self.op, "batch_size", batch_size, 1), self.shape[0])
        if tile is not None:
            if memory is not None:
                raise ValueError(f"{self.op}: got tile {tile} and memory {memory}, expected at most one of them")
            sizes = arguments.integers(self.op, "tile", tile, len(space), 1)
            return self._tiling(tuple(map(min, sizes, space)), batch)
        limit = MEMORY if memory is None else arguments.number(self.op, "memory", memory, least=1.0)
        sizes = space
        while (plan := self._tiling(sizes, batch)).peak_bytes > limit:
            longest = max(range(len(sizes)), key=lambda axis: sizes[axis])
            if sizes[longest] == 1:
                raise ValueError(
                    f"{self.op}: memory is {limit:.0f} bytes, expected at least {plan.peak_bytes}, those of a tile of 1"
                )
            sizes = (*sizes[:longest], -(-sizes[longest] // 2), *sizes[longest + 1 :])
        return plan

    def _tiling(self, tile: tuple[int, ...], batch: int) -> Tiling:
        space = self.target.shape[2:]
        lengths: dict[int, list[int]] = {number: [] for number in self.body}
        for axis, (size, step) in enumerate(zip(space, tile, strict=True)):
            spans = [self._spans(axis, span)[0] for span in _sample(list(_cut(size, step)))]
            for number in self.body:
                lengths[number].append(max(each[number][1] - each[number][0] for each in spans))
        counts = [-(-size // step) for size, step in zip((self.shape[0], *space), (batch, *tile), strict=True)]
        return Tiling(
            input_shape=self.shape,
            output_shape=self.result.shape,
            dtype=self.result.dtype,
            tile=tile,
            batch_size=batch,
            tiles=prod(counts),
            reads=tuple(lengths[0]),
            peak_bytes=self._peak(lengths, batch),
        )

    def _peak(self, lengths: dict[int, list[int]], batch: int) -> int:
        """The most bytes at once, of parts that are so long along each axis."""
        sizes = {
            number: batch * node.layer.shape[1] * prod(lengths[number]) * node.layer.dtype.itemsize
            for number, node in self.body.items()
        }
        live = most = columns = 0
        for number, (layer, sources, _) in self.body.items():
            extra = layer.copies * max([sizes[number], *(sizes[source] for source in sources)])
            if layer.columns:
                positions = prod(lengths[sources[0] if layer.of_input else number])
                columns = max(columns, layer.columns * positions * layer.dtype.itemsize)
            live += sizes[number]
            most = max(most, live + extra)
            live -= sum(sizes[source] for source in set(sources) if self.last_reader[source] == number)
        return math.ceil(POOLED * most) + columns + WORKSPACE

    def _spans(self, axis: int, span: Span) -> tuple[dict[int, Span], dict[int, Span]]:
        """The span along an axis that each node computes for a span of the last one, and that it reads."""
        wanted, given = {next(reversed(self.body)): span}, {}
        for number in reversed(self.body):
            layer, sources, _ = self.body[number]
            if not sources:
                continue
            start, stop = given[number] = layer.reads(axis, wanted[number])
            for source in sources:
                other = wanted.get(source, (start, stop))
                wanted[source] = min(start, other[0]), max(stop, other[1])
        return wanted, given

    def _part(self, images: slice, spans: Sequence[Span]) -> Array:
        """The last node of `body` for some images and spans."""
        along = [self._spans(axis, span) for axis, span in enumerate(spans)]
        values: dict[int, Array] = {}
        for number, (layer, sources, _) in self.body.items():
            wanted = [spans[number] for spans, _ in along]
            if not sources:
                values[number] = self._read(images, wanted)
                continue
            given = [spans[number] for _, spans in along]
            arrays = [_within(values[source], [spans[source] for spans, _ in along], given) for source in sources]
            values[number] = layer.part(arrays, given, wanted)
            del arrays
            for source in set(sources):
                if self.last_reader[source] == number:
                    del values[source]
        return values.popitem()[1]

    def _read(self, images: slice, spans: Sequence[Span]) -> Array:
        """A part of the input, on the model's device."""
        part = self.x[_at(images, spans, self.single)]
        if not isinstance(part, self.xp.ndarray) or isinstance(part, np.ndarray):
            part = self.xp.asarray(np.asarray(part))
        return part[None] if self.single else part

    # --- The whole --------------------------------------------------------------------------------------------------

    def output(self, out: Any, is_new_fine: bool) -> Any:
        """What the result is written to.

        Raises
        ------
        TypeError, ValueError
            It does not fit; a run that may be resumed has none.
        """
        shape = self.result.shape[1:] if self.single else self.result.shape
        if out is None:
            if not is_new_fine:
                raise ValueError(f"{self.op}: out is None, expected what outlives this process, to resume the run")
            is_here = isinstance(self.x, self.xp.ndarray)
            return (self.xp if is_here else np).empty(shape, self.result.dtype)
        if tuple(out.shape) != shape:
            raise ValueError(f"{self.op}: out has shape {tuple(out.shape)}, expected {shape}")
        if not np.can_cast(self.result.dtype, out.dtype, "same_kind"):
            raise TypeError(f"{self.op}: out has dtype {out.dtype}, expected one that takes {self.result.dtype}")
        arrays = isinstance(out, np.ndarray) and isinstance(self.x, np.ndarray)
        if out is self.x or (arrays and np.may_share_memory(out, self.x)):
            raise ValueError(f"{self.op}: out is in the memory of x, which later tiles read")
        return out

    def facts(self, plan: Tiling) -> dict[str, Any]:
        """What a run depends on, for its journal."""
        weights = hashlib.sha256(repr(self.model).encode())
        for name, array in self.model.state_dict().items():
            host = np.ascontiguousarray(to_host(array))
            weights.update(f"{name} {host.dtype} {host.shape} ".encode())
            weights.update(host.view(np.uint8).data if host.ndim else host.tobytes())
        return {
            "model and weights": weights.hexdigest(),
            "shape of x": list(self.shape),
            "dtype of x": str(np.dtype(self.x.dtype)),
            "tile": list(plan.tile),
            "batch_size": plan.batch_size,
        }

    def fill(self, out: Any, plan: Tiling, journal: Journal | None, step: Callable[[int], None]) -> None:
        """Compute all tiles into `out`, those that a journal has not."""
        begun, state = (0, None) if journal is None else journal.read()
        total = self._statistic(state)
        for done, (images, spans) in enumerate(_tiles(self.shape[0], self.target.shape[2:], plan), 1):
            if done <= begun:
                continue
            part = self._part(images, spans)
            if self.pool is None:
                self._write(out, _at(images, spans, self.single), part)
            else:
                total[images] = self.pool.with_part(total[images], part)
            del part
            for array in (self.x, out):
                _release(array)
            if journal is not None:
                _flush(out)
                journal.write(done, None if total is None else to_host(total).tolist())
            step(done)
        if self.pool is not None:
            self._write(out, ..., self._behind(total))
        if journal is not None:
            _flush(out)
            journal.remove()

    def _statistic(self, state: Any) -> Array:
        """The statistic [N, C] of a global pooling, at first or from a journal."""
        if self.pool is None:
            return None
        if state is None:
            return self.xp.full(self.pool.shape[:2], self.pool.first)
        return self.xp.asarray(np.array(state, np.float64))

    def _behind(self, total: Array) -> Array:
        """The result of the layers behind the global pooling."""
        assert self.pooled is not None
        values = {self.pooled: self.pool.finished(total)}
        for number, (layer, sources, _) in self.tail.items():
            arrays = [values[source] for source in sources]
            given = [(0, size) for size in arrays[0].shape[2:]]
            values[number] = layer.part(arrays, given, [(0, size) for size in layer.shape[2:]])
        last = values.popitem()[1]
        return last[0] if self.single else last

    def _write(self, out: Any, at: Any, part: Array) -> None:
        """Write a part of the result."""
        if self.single and at is not ...:
            part = part[0]
        out[at] = part if isinstance(out, self.xp.ndarray) else to_host(part)


def _cut(size: int, step: int) -> Iterator[Span]:
    """The spans of an axis."""
    return ((start, min(start + step, size)) for start in range(0, size, step))


def _tiles(batch: int, space: Sequence[int], plan: Tiling) -> Iterator[tuple[slice, tuple[Span, ...]]]:
    """The images and the spans of each tile, in order."""
    for images in _cut(batch, plan.batch_size):
        for spans in product(*(_cut(size, step) for size, step in zip(space, plan.tile, strict=True))):
            yield slice(*images), spans


def _sample(spans: list[Span]) -> list[Span]:
    """The spans at both ends, all of them where they are few."""
    return spans if len(spans) <= 2 * SAMPLED else spans[:SAMPLED] + spans[-SAMPLED:]


def _at(images: slice, spans: Sequence[Span], single: bool) -> tuple[slice, ...]:
    """The index of a part [N, C, *space] or [C, *space]."""
    return (*(() if single else (images,)), slice(None), *(slice(*span) for span in spans))


def _within(array: Array, spans: Sequence[Span], part: Sequence[Span]) -> Array:
    """A part of an array that has `spans` of an image."""
    if list(spans) == list(part):
        return array
    return array[(..., *(slice(a - start, b - start) for (start, _), (a, b) in zip(spans, part, strict=True)))]


# --- Files in memory ------------------------------------------------------------------------------------------------


def _mapping(array: Any) -> mmap.mmap | None:
    """The file that a NumPy array is mapped from, to which its changes go."""
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap) and array.mode == "c":
            return None
        array = array.base
    return array if isinstance(array, mmap.mmap) else None


def _release(array: Any) -> None:
    """Let go of the pages of a mapped file, which else stay in memory as long as there is any: they remain cached."""
    mapping = _mapping(array)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def _flush(array: Any) -> None:
    """Write to disk what was written to an array, where it is of a file."""
    file = _mapping(array) or array
    if hasattr(file, "flush"):
        file.flush()
