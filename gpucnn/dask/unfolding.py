"""im2col and col2im of Dask's arrays, each the other's gradient.

Columns are the positions of all windows in one axis, so that only rows of windows, along the first spatial axis, are
contiguous there.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import gpucnn.functional as F
from gpucnn.backends import backend_of
from gpucnn.dask._calls import DaskCall
from gpucnn.dask._tiles import Index, Source, Spans, sizes_of, spans_of, whole
from gpucnn.dask._windows import around, cut_at, ends_of, inputs_by_chunk, outputs_by_chunk, reading
from gpucnn.geometry import Axis
from gpucnn.geometry.arguments import integers
from gpucnn.geometry.geometries import Channels, conv_geometry

Array = Any
Given = dict[str, Any]


def _im2col(op: str, given: Given) -> Array:
    call = DaskCall(op, given)
    return _unfolded(call, call.images["input"], call.trial)


def _col2im_backward(op: str, given: Given) -> tuple[Array | None]:
    call = DaskCall(op, given)
    return (None if call.trial[0] is None else _unfolded(call, call.images["grad_output"], call.trial[0]),)


def _col2im(op: str, given: Given) -> Array:
    call = DaskCall(op, given)
    columns, space = call.images["input"], call.trial.shape[2:]
    axes = _axes(call, space)
    row = prod(axis.out for axis in axes[1:])
    of_windows = sizes_of(cut_at(axes[0].out, (end // row for end in ends_of(columns.chunks[2]))))
    return _folded(call, columns, axes, inputs_by_chunk(axes[0], of_windows), call.trial)


def _im2col_backward(op: str, given: Given) -> tuple[Array | None]:
    call = DaskCall(op, given)
    x, grad = call.images["input"], call.images["grad_output"]
    if call.trial[0] is None:
        return (None,)
    return (_folded(call, grad, _axes(call, x.shape[2:]), spans_of(x.chunks[2]), call.trial[0]),)


def _axes(call: DaskCall, space: tuple[int, ...]) -> tuple[Axis, ...]:
    """The windows along each spatial axis."""
    kernel = integers(call.op, "kernel_size", call.options["kernel_size"], len(space), 1)
    window = (call.options[name] for name in ("stride", "padding", "dilation"))
    return conv_geometry(call.op, space, Channels(1, 1), kernel, *window).axes[3 - len(space) :]


def _window(call: DaskCall, axes: tuple[Axis, ...], low: int, high: int) -> Given:
    """The arguments of a call on some rows, with so much padding around them."""
    kept = {name: call.options[name] for name in ("kernel_size", "stride", "dilation")}
    if not hasattr(kept["kernel_size"], "__len__"):
        kept["kernel_size"] = (kept["kernel_size"],) * len(axes)
    return {**kept, "padding": ((low, high), *((axis.low, axis.high) for axis in axes[1:]))}


def _unfolded(call: DaskCall, image: Array, trial: Array) -> Array:
    """The columns of an image, for each chunk of rows those of the windows with their centre there."""
    axes = _axes(call, image.shape[2:])
    rows, row = outputs_by_chunk(axes[0], image.chunks[2]), prod(axis.out for axis in axes[1:])
    readings = [reading(axes[0], span) for span in rows]
    others = [whole(size) for size in image.shape[3:]]
    batch = spans_of(image.chunks[0])
    read = tuple((each.start, each.stop) for each in readings)
    sources = {"input": Source(image, (batch, whole(image.shape[1]), read, *others))}

    def options(index: Index) -> Given:
        return _window(call, axes, readings[index[2]].low, readings[index[2]].high)

    tiles = call.tiles()
    key = tiles.compute("columns", F.im2col, (len(batch), 1, len(rows)), sources, options)
    chunks = (sizes_of(batch), trial.shape[1:2], tuple(row * size for size in sizes_of(rows)))
    return call.give_back(tiles.result("columns", key, chunks, trial))


def _folded(call: DaskCall, columns: Array, axes: tuple[Axis, ...], rows: Spans, trial: Array) -> Array:
    """The image of columns, each chunk of its rows from the columns of all windows that meet them."""
    row, batch = prod(axis.out for axis in axes[1:]), spans_of(columns.chunks[0])
    both = [around(axes[0], span) for span in rows]
    read = tuple((outputs.start * row, outputs.stop * row) for outputs, _ in both)
    sources = {"columns": Source(columns, (batch, whole(columns.shape[1]), read))}

    def options(index: Index) -> Given:
        (start, stop), image = rows[index[2]], both[index[2]][1]
        part = {"kept": slice(start - image.start, stop - image.start), "read": image.stop - image.start}
        return _window(call, axes, image.low, image.high) | part

    tiles = call.tiles()
    function = partial(_rows_of_columns, trial.shape[1], trial.shape[3:])
    others = [whole(size) for size in trial.shape[3:]]
    key = tiles.compute("image", function, (len(batch), 1, len(rows), *map(len, others)), sources, options)
    chunks = (sizes_of(batch), trial.shape[1:2], sizes_of(rows), *map(sizes_of, others))
    return call.give_back(tiles.result("image", key, chunks, trial))


def _rows_of_columns(
    channels: int, space: tuple[int, ...], columns: Array, kept: slice, read: int, **options: Any
) -> Array:
    """Some rows of an image, of those that the windows of some columns read."""
    image = backend_of(columns).zeros((len(columns), channels, read, *space), columns.dtype, columns)
    gradient: Any = F.im2col_backward(columns, image, **options)[0]
    return gradient[:, :, kept]


OPERATIONS = {
    **dict.fromkeys(("im2col", "unfold"), _im2col),
    **dict.fromkeys(("im2col_backward", "unfold_backward"), _im2col_backward),
    **dict.fromkeys(("col2im", "fold"), _col2im),
    **dict.fromkeys(("col2im_backward", "fold_backward"), _col2im_backward),
}
