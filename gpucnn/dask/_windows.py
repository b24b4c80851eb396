"""The part of an image that each chunk of a windowed operation's result reads, along one axis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from math import gcd
from typing import NamedTuple

from gpucnn.dask._tiles import Spans
from gpucnn.geometry import Axis
from gpucnn.geometry.axes import extent


class Reading(NamedTuple):
    """What one task reads along an axis, [start, stop), and the padding around it: nonzero at the image's ends only.

    A task that spreads outputs back to an image reads outputs; `extra` is what its result has at the high end beyond
    the last window.
    """

    start: int
    stop: int
    low: int
    high: int
    extra: int = 0


def cut_at(size: int, boundaries: Iterable[int]) -> Spans:
    """The spans of [0, size) between boundaries, of which those outside are left out."""
    inner = sorted({boundary for boundary in boundaries if 0 < boundary < size})
    ends = [0, *inner, size]
    return tuple(pairwise(ends))


def ends_of(sizes: Sequence[int]) -> list[int]:
    """Where the chunks along an axis end."""
    return list(accumulate(sizes))


# --- Windows that slide -------------------------------------------------------------------------------------------


def outputs_by_chunk(axis: Axis, sizes: Sequence[int]) -> Spans:
    """The outputs computed for each chunk of the image: those whose windows have their centre there."""
    centre = (extent(axis.kernel, axis.dilation) - 1) // 2
    return _reaching(axis, cut_at(axis.out, (-(-(end + axis.low - centre) // axis.stride) for end in ends_of(sizes))))


def outputs_within(axis: Axis, sizes: Sequence[int]) -> Spans:
    """The outputs in chunks of these sizes, as far as their windows reach the image."""
    return _reaching(axis, cut_at(axis.out, ends_of(sizes)))


def _reaching(axis: Axis, spans: Spans) -> Spans:
    """`spans`, where such with windows in padding alone are joined to their neighbours."""
    kept = [span for span in spans if _reaches(axis, span)]
    if not kept:
        return ((0, axis.out),)
    return cut_at(axis.out, (start for start, _ in kept[1:]))


def _reaches(axis: Axis, span: tuple[int, int]) -> bool:
    start, stop = _window(axis, span)
    return max(start, 0) < min(stop, axis.size)


def _window(axis: Axis, outputs: tuple[int, int]) -> tuple[int, int]:
    """The inputs from the first window's first tap to the last window's last one, padding counted."""
    first = outputs[0] * axis.stride - axis.low
    return first, (outputs[1] - 1) * axis.stride - axis.low + extent(axis.kernel, axis.dilation)


def reading(axis: Axis, outputs: tuple[int, int]) -> Reading:
    """What outputs read of the image. Padding that only a rounded-up number of outputs needs is left out."""
    start, stop = _window(axis, outputs)
    if not _reaches(axis, outputs):
        return Reading(0, axis.size, axis.low, axis.high)
    return Reading(max(start, 0), min(stop, axis.size), max(-start, 0), min(max(stop - axis.size, 0), axis.high))


# --- And back -----------------------------------------------------------------------------------------------------


def inputs_by_chunk(axis: Axis, sizes: Sequence[int]) -> Spans:
    """The inputs computed for each chunk of outputs, by a convolution that is transposed."""
    centre = (extent(axis.kernel, axis.dilation) - 1) // 2
    return cut_at(axis.size, (end * axis.stride + centre - axis.low for end in ends_of(sizes)))


def spreading(axis: Axis, inputs: tuple[int, int]) -> Reading:
    """The outputs whose windows hold any of the inputs, and the padding that cuts their spread off to these."""
    window, step = extent(axis.kernel, axis.dilation), axis.stride
    start, stop = inputs
    first = min(-(-(start + axis.low - window + 1) // step), (start + axis.low) // step)
    first = min(max(first, 0), axis.out - 1)
    last = min(max((stop - 1 + axis.low) // step, first), axis.out - 1)
    low = start + axis.low - first * step
    missing = stop - start + low - ((last - first) * step + window)
    return Reading(first, last + 1, low, max(-missing, 0), max(missing, 0))


def around(axis: Axis, inputs: tuple[int, int]) -> tuple[Reading, Reading]:
    """The outputs whose windows hold any of the inputs, and what they read of the image, with the inputs themselves."""
    outputs = spreading(axis, inputs)
    if not _reaches(axis, (outputs.start, outputs.stop)):  # those next to inputs that no window holds
        outputs = outputs._replace(start=0, stop=axis.out)
    image = reading(axis, (outputs.start, outputs.stop))
    return outputs, image._replace(stop=max(image.stop, inputs[1]))


# --- Adaptive windows ---------------------------------------------------------------------------------------------


def adaptive_spans(size: int, out: int, sizes: Sequence[int]) -> tuple[Spans, Spans]:
    """Inputs, near the chunks of the image, and the outputs that read just these.

    Windows repeat after every ``out / gcd(size, out)`` outputs: cut there, an adaptive pooling is several smaller ones.
    """
    repeats = gcd(size, out)
    inputs, outputs = size // repeats, out // repeats
    cuts = cut_at(repeats, ((2 * end + inputs) // (2 * inputs) for end in ends_of(sizes)))
    return tuple(tuple((start * unit, stop * unit) for start, stop in cuts) for unit in (inputs, outputs))  # type: ignore[return-value]
