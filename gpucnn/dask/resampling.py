"""Resampling of Dask's arrays, and gradients: each chunk from just the part that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import ceil, floor
from typing import Any

import gpucnn.functional as F
from gpucnn.backends import backend_of
from gpucnn.dask._calls import DaskCall
from gpucnn.dask._tiles import Index, Source, Span, Spans, sizes_of, spans_of, whole
from gpucnn.dask._windows import cut_at, ends_of
from gpucnn.geometry import InterpolationAxis
from gpucnn.geometry.geometries import interpolation_geometry

Array = Any
Given = dict[str, Any]


# --- Resampling ---------------------------------------------------------------------------------------------------


def _axes(call: DaskCall, space: tuple[int, ...], out: tuple[int, ...]) -> Sequence[InterpolationAxis]:
    options = call.options
    if "axes" in options:
        return tuple(options["axes"])
    factors = None
    if options["scale_factor"] is not None and not options["recompute_scale_factor"]:
        given = options["scale_factor"]
        factors = tuple(map(float, given if hasattr(given, "__len__") else (given,) * len(space)))
    choice = options["mode"], bool(options["align_corners"]), bool(options["antialias"])
    return interpolation_geometry(space, out, factors, *choice).axes[3 - len(space) :]


def _is_cut(axis: InterpolationAxis) -> bool:
    """Whether positions within a part of the axis are exact, as fractions are; else one task has all of it."""
    return not isinstance(axis.scale, float) and not isinstance(axis.first + axis.rounding, float) and axis.scale > 0


def _reach(axis: InterpolationAxis) -> int:
    """Most inputs to one side of its position that an output reads."""
    return 1 if axis.filter is None else ceil(axis.filter.radius * axis.filter.stretch) + 1


def _position(axis: InterpolationAxis, output: int) -> int:
    return floor(axis.first + output * axis.scale + axis.rounding)


def _outputs(axis: InterpolationAxis, sizes: Sequence[int]) -> Spans:
    """The outputs whose positions are in each chunk of the image."""
    if not _is_cut(axis):
        return whole(axis.out)
    half = Fraction(1, 2)
    return cut_at(axis.out, (ceil((end - half - axis.first) / axis.scale) for end in ends_of(sizes)))


def _read_by(axis: InterpolationAxis, outputs: Span) -> Span:
    """The inputs that outputs read, and perhaps a few more."""
    if not _is_cut(axis):
        return 0, axis.size
    reach = _reach(axis)
    start = min(max(_position(axis, outputs[0]) - reach, 0), axis.size - 1)
    return start, max(min(_position(axis, outputs[1] - 1) + reach + 1, axis.size), start + 1)


def _readers(axis: InterpolationAxis, inputs: Span) -> Span:
    """The outputs that read any of the inputs, and perhaps a few more; those beyond the image read its border."""
    reach = _reach(axis)
    first = ceil((inputs[0] - reach - 1 - axis.first - axis.rounding) / axis.scale) if inputs[0] else 0
    last = (
        floor((inputs[1] + reach + 1 - axis.first - axis.rounding) / axis.scale) if inputs[1] < axis.size else axis.out
    )
    start = min(max(first, 0), axis.out - 1)
    return start, max(min(last + 1, axis.out), start + 1)


def _part(axis: InterpolationAxis, outputs: Span, read: Span) -> InterpolationAxis:
    """The axis of some outputs, of the inputs [start, stop)."""
    first = axis.first + outputs[0] * axis.scale - read[0]
    return replace(axis, size=read[1] - read[0], out=outputs[1] - outputs[0], first=first)


def _resample(op: str, given: Given) -> Array:
    call = DaskCall(op, given)
    x, out = call.images["input"], call.trial.shape[2:]
    if given.get("mode") == "area":
        return getattr(F, f"adaptive_avg_pool{len(out)}d")(x, out)
    axes = _axes(call, x.shape[2:], out)
    outputs = [_outputs(axis, sizes) for axis, sizes in zip(axes, x.chunks[2:], strict=True)]
    reads = [tuple(_read_by(axis, span) for span in spans) for axis, spans in zip(axes, outputs, strict=True)]

    def options(index: Index) -> Given:
        parts = zip(axes, outputs, reads, index[2:], strict=True)
        return {"axes": [_part(axis, spans[at], read[at]) for axis, spans, read, at in parts]}

    batch, channels = (spans_of(sizes) for sizes in x.chunks[:2])
    tiles = call.tiles()
    grid = (len(batch), len(channels), *map(len, outputs))
    key = tiles.compute("image", F.resample, grid, {"input": Source(x, (batch, channels, *reads))}, options)
    chunks = tuple(sizes_of(spans) for spans in (batch, channels, *outputs))
    return tiles.result("image", key, chunks, call.trial)


def _resample_backward(op: str, given: Given) -> tuple[Array | None]:
    call = DaskCall(op, given)
    x, grad = call.images["input"], call.images["grad_output"]
    if call.trial[0] is None:
        return (None,)
    if given.get("mode") == "area":
        pooled: tuple[Array | None] = getattr(F, f"adaptive_avg_pool{grad.ndim - 2}d_backward")(grad, x, grad.shape[2:])
        return pooled
    axes = _axes(call, x.shape[2:], grad.shape[2:])
    inputs = [
        spans_of(sizes) if _is_cut(axis) else whole(axis.size) for axis, sizes in zip(axes, x.chunks[2:], strict=True)
    ]
    outputs = [
        tuple(_readers(axis, span) for span in spans) if _is_cut(axis) else whole(axis.out)
        for axis, spans in zip(axes, inputs, strict=True)
    ]

    def options(index: Index) -> Given:
        parts, kept, read = [], [], []
        for axis, spans, readers, at in zip(axes, inputs, outputs, index[2:], strict=True):
            start, stop = _read_by(axis, readers[at])
            start, stop = min(start, spans[at][0]), max(stop, spans[at][1])
            parts.append(_part(axis, readers[at], (start, stop)))
            kept.append(slice(spans[at][0] - start, spans[at][1] - start))
            read.append(stop - start)
        return {"axes": parts, "kept": tuple(kept), "read": tuple(read)}

    batch, channels = (spans_of(sizes) for sizes in x.chunks[:2])
    tiles = call.tiles()
    sources = {"grad_output": Source(grad, (batch, channels, *outputs))}
    key = tiles.compute("image", _gradient_of_part, (len(batch), len(channels), *map(len, inputs)), sources, options)
    chunks = tuple(sizes_of(spans) for spans in (batch, channels, *inputs))
    return (tiles.result("image", key, chunks, call.trial[0]),)


def _gradient_of_part(
    grad_output: Array, axes: Sequence[InterpolationAxis], kept: tuple[slice, ...], read: tuple[int, ...]
) -> Array:
    """The gradient of a part of the image, of sizes `read`, of which `kept` have all their readers among outputs."""
    image = backend_of(grad_output).zeros((*grad_output.shape[:2], *read), grad_output.dtype, grad_output)
    gradient: Any = F.resample_backward(grad_output, image, axes)[0]
    return gradient[..., *kept]


OPERATIONS = {
    **dict.fromkeys(("interpolate", "resample"), _resample),
    **dict.fromkeys(("interpolate_backward", "resample_backward"), _resample_backward),
}
