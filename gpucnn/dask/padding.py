"""Padding and cropping of Dask's arrays, and its gradient: slices put together, along one axis after the other."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import dask.array as da

import gpucnn.functional as F
from gpucnn.backends.dtypes import NUMERIC, accumulator
from gpucnn.dask._calls import expect_usable
from gpucnn.dask._tiles import in_one_chunk, rechunked
from gpucnn.functional._call import Call, needed
from gpucnn.functional._padding import checked_pairs, cropped, padded
from gpucnn.geometry.arguments import Pairs

Array = Any
Given = dict[str, Any]


def _pad(op: str, given: Given) -> Array:
    x, mode = given["input"], given["mode"]
    pairs = _pairs(op, {"input": x}, given)
    x = x[cropped(x.shape, pairs)]
    for axis, (low, high) in enumerate(pairs):
        low, high = max(low, 0), max(high, 0)
        if low or high:
            sizes = list(x.chunks[axis])
            sizes[0] += low
            sizes[-1] += high
            before = _edge(x, axis, low, mode, given["value"], at_end=False)
            after = _edge(x, axis, high, mode, given["value"], at_end=True)
            x = rechunked(da.concatenate([before, x, after], axis), {axis: tuple(sizes)})
    return x


def _pad_backward(op: str, given: Given) -> tuple[Array | None]:
    arrays = {name: given[name] for name in ("grad_output", "input")}
    grad, x = (each if isinstance(each, da.Array) else in_one_chunk(each) for each in arrays.values())
    pairs = _pairs(op, {"grad_output": grad, "input": x}, given)
    if grad.shape != padded(x.shape, pairs):
        raise ValueError(f"{op}: grad_output has shape {grad.shape}, expected {padded(x.shape, pairs)}")
    if not needed(op, given["needs"], 1)[0]:
        return (None,)
    kept = cropped(x.shape, pairs)
    inner = x[kept]
    grad = grad.astype(accumulator(grad.dtype))
    for axis, (low, high) in enumerate(pairs):
        if max(low, high) > 0:
            grad = _given_back(grad, axis, inner.shape[axis], max(low, 0), max(high, 0), given["mode"])
    grad = rechunked(grad, inner.chunks).astype(x.dtype)
    widths = [(part.start, size - part.stop) for part, size in zip(kept, x.shape, strict=True)]
    grad = F.pad(grad, [width for pair in reversed(widths) for width in pair])
    return (rechunked(grad, x.chunks),)


def _pairs(op: str, arrays: Mapping[str, Array], given: Given) -> Pairs:
    """(low, high) of each axis of the input, with all arguments checked."""
    for name, array in arrays.items():
        expect_usable(op, name, array)
    call = Call(op, NUMERIC, **{name: array._meta for name, array in arrays.items()})
    return checked_pairs(call, arrays["input"], given["pad"], given["mode"], given["value"])


def _along(axis: int, start: int | None, stop: int | None, step: int = 1) -> tuple[slice, ...]:
    return (slice(None),) * axis + (slice(start, stop, step),)


def _edge(x: Array, axis: int, width: int, mode: str, value: Any, at_end: bool) -> Array:
    """The padding at one end of an axis."""
    start, stop = _copied(mode, width, x.shape[axis], at_end)
    copied = rechunked(x[_along(axis, start, stop)], {axis: -1})
    if mode in ("reflect", "symmetric"):
        return copied[_along(axis, None, None, -1)]
    missing = width - (stop - start)
    if not missing:
        return copied
    function = partial(F.pad, pad=(0, 0) * (x.ndim - 1 - axis) + (0, missing), mode=mode, value=value)
    chunks = tuple((width,) if at == axis else sizes for at, sizes in enumerate(copied.chunks))
    return copied.map_blocks(function, dtype=x.dtype, chunks=chunks, meta=x._meta)


def _copied(mode: str, width: int, size: int, at_end: bool) -> tuple[int, int]:
    """The values along an axis, [start, stop), that the padding at one of its ends copies."""
    if mode == "circular":
        return (0, width) if at_end else (size - width, size)
    skipped = 1 if mode == "reflect" and width else 0
    count = {"constant": 0, "replicate": min(width, 1)}.get(mode, width)
    return (size - skipped - count, size - skipped) if at_end else (skipped, skipped + count)


def _given_back(grad: Array, axis: int, size: int, low: int, high: int, mode: str) -> Array:
    """The gradient of `size` values along an axis: each one's, and then those of the padding that copies it."""
    result = grad[_along(axis, low, low + size)]
    for width, first, at_end in ((low, 0, False), (high, low + size, True)):
        start, stop = _copied(mode, width, size, at_end)
        if start == stop:
            continue
        edge = grad[_along(axis, first, first + width)]
        if mode in ("reflect", "symmetric"):
            edge = edge[_along(axis, None, None, -1)]
        values = rechunked(result[_along(axis, start, stop)], {axis: -1})
        edge = rechunked(edge, dict(enumerate(values.chunks)) | {axis: -1})
        added = da.map_blocks(_added, values, edge, axis=axis, chunks=values.chunks, dtype=grad.dtype, meta=grad._meta)
        pieces = [result[_along(axis, None, start)], added, result[_along(axis, stop, None)]]
        result = da.concatenate(pieces, axis)
    return result


def _added(values: Array, edge: Array, axis: int) -> Array:
    """The sum, of one value and of all of the edge where that repeats it: one after the other."""
    if values.shape[axis] == edge.shape[axis]:
        return values + edge
    for place in range(edge.shape[axis]):
        values = values + edge[_along(axis, place, place + 1)]
    return values


OPERATIONS = {"pad": _pad, "pad_backward": _pad_backward}
