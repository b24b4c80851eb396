"""Pooling of Dask's arrays over windows and adaptive windows, and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np

from gpucnn.backends import backend_of
from gpucnn.dask._calls import DaskCall
from gpucnn.dask._tiles import Index, Source, Spans, sizes_of, spans_of
from gpucnn.dask._windows import Reading, adaptive_spans, around, outputs_by_chunk, reading
from gpucnn.geometry import Axis
from gpucnn.geometry.geometries import pool_geometry

Array = Any
Given = dict[str, Any]
Window = Callable[[Index], Given]
"""The arguments of one task that say what its windows are."""


def _axes(call: DaskCall, x: Array) -> tuple[Axis, ...]:
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    geometry = pool_geometry(call.op, x.shape[2:], *(call.options[name] for name in names))
    return geometry.axes[3 - geometry.rank :]  # type: ignore[return-value]  # none of them is adaptive


def _padded(readings: Sequence[Sequence[Reading]]) -> Window:
    def options(index: Index) -> Given:
        return {
            "padding": tuple((along[at].low, along[at].high) for along, at in zip(readings, index[2:], strict=True))
        }

    return options


def _read(readings: Sequence[Sequence[Reading]]) -> list[Spans]:
    return [tuple((each.start, each.stop) for each in along) for along in readings]


# --- Forward ------------------------------------------------------------------------------------------------------


def _pool(op: str, given: Given) -> Any:
    call = DaskCall(op, given)
    x = call.images["input"]
    axes = _axes(call, x)
    outputs = [outputs_by_chunk(axis, sizes) for axis, sizes in zip(axes, x.chunks[2:], strict=True)]
    readings = [[reading(axis, span) for span in spans] for axis, spans in zip(axes, outputs, strict=True)]
    return _pooled(call, x, _read(readings), outputs, _padded(readings))


def _adaptive_pool(op: str, given: Given) -> Any:
    call = DaskCall(op, given)
    x = call.images["input"]
    result = call.trial[0] if isinstance(call.trial, tuple) else call.trial
    axes = zip(x.shape[2:], result.shape[2:], x.chunks[2:], strict=True)
    inputs, outputs = zip(*(adaptive_spans(*axis) for axis in axes), strict=True)
    return _pooled(call, x, inputs, outputs, _adaptive(outputs))


def _adaptive(outputs: Sequence[Spans]) -> Window:
    def options(index: Index) -> Given:
        return {"output_size": sizes_of([spans[at] for spans, at in zip(outputs, index[2:], strict=True)])}

    return options


def _pooled(call: DaskCall, x: Array, inputs: Sequence[Spans], outputs: Sequence[Spans], window: Window) -> Any:
    """The result, of which each chunk is computed from the part of x that it reads, and the indices if requested."""
    batch, channels = (spans_of(sizes) for sizes in x.chunks[:2])
    gives_indices = isinstance(call.trial, tuple)

    def options(index: Index) -> Given:
        place = {"start": tuple(s[at][0] for s, at in zip(inputs, index[2:], strict=True)), "plane": x.shape[2:]}
        return call.options | window(index) | (place if gives_indices else {})

    tiles = call.tiles()
    grid = (len(batch), len(channels), *map(len, outputs))
    sources = {"input": Source(x, (batch, channels, *inputs))}
    function = partial(_with_indices, call.function) if gives_indices else call.function
    key = tiles.compute("pooled" if gives_indices else "image", function, grid, sources, options)
    chunks = tuple(sizes_of(spans) for spans in (batch, channels, *outputs))
    if not gives_indices:
        return call.give_back(tiles.result("image", key, chunks, call.trial))
    return tuple(
        call.give_back(tiles.result(part, key, chunks, meta, item))
        for item, (part, meta) in enumerate(zip(("image", "indices"), call.trial, strict=True))
    )


def _with_indices(
    function: Callable[..., Any], input: Array, start: tuple[int, ...], plane: tuple[int, ...], **options: Any
) -> tuple[Array, Array]:
    """The maxima of a part of the image, and their indices in the image's `plane`, in which it begins at `start`."""
    y, indices = function(input, **options)
    return y, _moved(indices, input.shape[2:], start, plane)


def _moved(indices: Array, plane: Sequence[int], start: Sequence[int], into: Sequence[int]) -> Array:
    """Flat indices in one plane as those in another one, in which the first begins at `start`; -1 stays."""
    moved, rest, step = indices * 0, indices, prod(into)
    outer = prod(plane)
    for size, first, length in zip(plane, start, into, strict=True):
        outer, step = outer // size, step // length
        moved = moved + (rest // outer + first) * step
        rest = rest % outer
    return _where(indices < 0, indices, moved)


def _where(condition: Array, yes: Array, no: Array) -> Array:
    xp = np if isinstance(condition, np.ndarray) else backend_of(condition).xp
    return xp.where(condition, yes, no)


# --- Gradients ----------------------------------------------------------------------------------------------------


def _pool_backward(op: str, given: Given) -> tuple[Array | None]:
    call = DaskCall(op, given)
    x = call.images["input"]
    if call.trial[0] is None:
        return (None,)
    axes = _axes(call, x)
    inputs = [spans_of(sizes) for sizes in x.chunks[2:]]
    both = [[around(axis, span) for span in spans] for axis, spans in zip(axes, inputs, strict=True)]
    outputs = [[each[0] for each in along] for along in both]
    images = [[each[1] for each in along] for along in both]
    return (_spread(call, inputs, _read(outputs), _read(images), _padded(images)),)


def _adaptive_pool_backward(op: str, given: Given) -> tuple[Array | None]:
    call = DaskCall(op, given)
    x, grad = call.images["input"], call.images["grad_output"]
    if call.trial[0] is None:
        return (None,)
    axes = zip(x.shape[2:], grad.shape[2:], x.chunks[2:], strict=True)
    inputs, outputs = zip(*(adaptive_spans(*axis) for axis in axes), strict=True)
    return (_spread(call, inputs, outputs, inputs, _adaptive(outputs)),)


def _spread(
    call: DaskCall, inputs: Sequence[Spans], outputs: Sequence[Spans], images: Sequence[Spans], window: Window
) -> Array:
    """The gradient of the image: of each chunk from the outputs whose windows meet it, and all that these read."""
    x = call.images["input"]
    batch, channels = (spans_of(sizes) for sizes in x.chunks[:2])
    sources = {
        name: Source(array, (batch, channels, *(images if name == "input" else outputs)))
        for name, array in call.images.items()
        if name != "input" or _reads_values(call)
    }

    def options(index: Index) -> Given:
        spans = [(each[at], read[at]) for each, read, at in zip(inputs, images, index[2:], strict=True)]
        kept = tuple(slice(start - first, stop - first) for (start, stop), (first, _) in spans)
        place = {
            "kept": kept,
            "start": tuple(first for _, (first, _) in spans),
            "read": sizes_of([read for _, read in spans]),
            "plane": x.shape[2:],
        }
        return call.options | window(index) | place

    tiles = call.tiles()
    grid = (len(batch), len(channels), *map(len, inputs))
    key = tiles.compute("image", partial(_part_of_gradient, call.function), grid, sources, options)
    chunks = tuple(sizes_of(spans) for spans in (batch, channels, *inputs))
    return call.give_back(tiles.result("image", key, chunks, call.trial[0]))


def _reads_values(call: DaskCall) -> bool:
    """Whether the gradient depends on the image, and not on its shape alone."""
    return "lp_pool" in call.op or ("max_pool" in call.op and "indices" not in call.images)


def _part_of_gradient(
    function: Callable[..., Any],
    grad_output: Array,
    kept: tuple[slice, ...],
    start: tuple[int, ...],
    read: tuple[int, ...],
    plane: tuple[int, ...],
    input: Array | None = None,
    indices: Array | None = None,
    **options: Any,
) -> Array:
    """The gradient of the part of the image that some outputs read, of which `kept` have all their windows among them.

    The part begins at `start` of the image's `plane` and has the sizes `read`. An image whose values do not matter is
    zeros.
    """
    if input is None:
        shape = (*grad_output.shape[:2], *read)
        input = backend_of(grad_output).zeros(shape, grad_output.dtype, grad_output)
    if indices is not None:
        options["indices"] = _moved_back(indices, plane, start, read)
    (gradient,) = function(grad_output, input, **options)
    return gradient[..., *kept] if gradient.shape[2:] != sizes_of([(s.start, s.stop) for s in kept]) else gradient


def _moved_back(indices: Array, plane: Sequence[int], start: Sequence[int], into: Sequence[int]) -> Array:
    """Flat indices in a plane as those in the part of it that begins at `start`; -1 stays."""
    return _moved(indices, plane, [-first for first in start], into)


_POOLS = ("max_pool{n}d", "avg_pool{n}d", "sum_pool{n}d", "lp_pool{n}d")
_ADAPTIVE = ("adaptive_max_pool{n}d", "adaptive_avg_pool{n}d")

OPERATIONS = {
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(_ADAPTIVE, _adaptive_pool),
    **{f"{name}_backward": _pool_backward for name in _POOLS},
    **{f"{name}_backward": _adaptive_pool_backward for name in _ADAPTIVE},
}
