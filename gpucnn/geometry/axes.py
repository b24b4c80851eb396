"""Positions that a window reads along one axis: the arithmetic under convolution, pooling and resampling."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import floor
from typing import NamedTuple


def extent(kernel: int, dilation: int) -> int:
    """Inputs from a window's first tap to its last, both counted."""
    return dilation * (kernel - 1) + 1


class Tap(NamedTuple):
    """One tap of a window along one axis: which targets read which sources through it."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a tap
    target: slice
    source: slice


@dataclass(frozen=True, slots=True)
class Sampling:
    """Where the targets along one axis read: tap t of target i reads source ``i * step + offsets[t]``.

    The forward of a convolution samples its input with ``step = stride``; its dilated backward samples the output's
    gradient with step 1, once per stride residue. Both are this.
    """

    targets: int
    sources: int
    step: int
    offsets: tuple[int, ...]

    def taps(self, start: int = 0, stop: int | None = None) -> Iterator[Tap]:
        """The taps that reach any source from targets ``[start, stop)``; target slices count from `start`."""
        stop = self.targets if stop is None else stop
        for index, offset in enumerate(self.offsets):
            first = max(start, -(offset // self.step))  # least i with i * step + offset >= 0
            last = min(stop, (self.sources - 1 - offset) // self.step + 1)
            if first < last:
                begin = first * self.step + offset
                source = slice(begin, begin + (last - 1 - first) * self.step + 1, self.step)
                yield Tap(index, slice(first - start, last - start), source)

    @property
    def is_identity(self) -> bool:
        """Whether each target reads just the source of its own position."""
        return self.offsets == (0,) and self.step == 1 and self.targets == self.sources


class Residue(NamedTuple):
    """The inputs ``first, first + stride, …`` of one axis and the kernel indices whose taps can reach them."""

    first: int
    kernel_indices: tuple[int, ...]
    sampling: Sampling


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a window that slides: output o, tap k reads input ``o * stride + k * dilation - low``."""

    size: int
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    low: int = 0
    high: int = 0
    out: int = 1

    @cached_property
    def forward(self) -> Sampling:
        """Each output samples the input."""
        offsets = tuple(k * self.dilation - self.low for k in range(self.kernel))
        return Sampling(self.out, self.size, self.stride, offsets)

    @cached_property
    def backward(self) -> tuple[Residue, ...]:
        """Each input samples the outputs, by stride residue: the dilated backward without its zeros.

        Input i and output o meet in tap k where ``i + low - k * dilation = o * stride``. All inputs of one residue
        i mod stride share the taps that can divide it, so each residue is a dense convolution with stride 1. A
        residue without taps reads nothing: its gradient is zero.
        """
        residues = []
        for first in range(min(self.stride, self.size)):
            reach = [(k, first + self.low - k * self.dilation) for k in range(self.kernel)]
            taps = [(k, shift // self.stride) for k, shift in reach if shift % self.stride == 0]
            count = -(-(self.size - first) // self.stride)
            sampling = Sampling(count, self.out, 1, tuple(offset for _, offset in taps))
            residues.append(Residue(first, tuple(k for k, _ in taps), sampling))
        return tuple(residues)

    def taps(self) -> Iterator[Tap]:
        """The taps of all outputs."""
        return self.forward.taps()

    def counts(self, *, padded: bool) -> tuple[int, ...]:
        """How many taps of each output's window lie on the input, or on the input and its padding."""
        begin, end = (-self.low, self.size + self.high) if padded else (0, self.size)
        counts = []
        for start in range(-self.low, self.out * self.stride - self.low, self.stride):
            first = max(-((start - begin) // self.dilation), 0)  # least k with start + k * dilation >= begin
            last = min(-((start - end) // self.dilation), self.kernel)  # least k with start + k * dilation >= end
            counts.append(max(last - first, 0))
        return tuple(counts)

    def first_inputs(self) -> tuple[int, ...]:
        """The first input that each output's window reads; -1 for a window wholly outside the input."""
        first = [-1] * self.out
        for tap in reversed(list(self.taps())):
            inputs = range(self.size)[tap.source]
            for output, position in zip(range(self.out)[tap.target], inputs, strict=True):
                first[output] = position
        return tuple(first)


@dataclass(frozen=True)
class AdaptiveAxis:
    """One axis of adaptive pooling: output o reads inputs ``[floor(o * size / out), ceil((o + 1) * size / out))``."""

    size: int
    out: int

    @property
    def windows(self) -> tuple[tuple[int, int], ...]:
        """``(start, stop)`` of each output's window."""
        return tuple((o * self.size // self.out, -(-(o + 1) * self.size // self.out)) for o in range(self.out))

    def taps(self) -> Iterator[tuple[int, list[int], list[int]]]:
        """As `Axis.taps`, but windows differ in length, so targets and sources are lists."""
        windows = self.windows
        for index in range(max(stop - start for start, stop in windows)):
            targets = [o for o, (start, stop) in enumerate(windows) if start + index < stop]
            yield index, targets, [windows[o][0] + index for o in targets]

    def counts(self, *, padded: bool) -> tuple[int, ...]:
        """The length of each window; there is no padding to count."""
        return tuple(stop - start for start, stop in self.windows)

    def first_inputs(self) -> tuple[int, ...]:
        """The first input of each window."""
        return tuple(start for start, _ in self.windows)


@dataclass(frozen=True)
class InterpolationAxis:
    """One axis of a resampling: output o is ``(1 - high_weight[o]) * input[low[o]] + high_weight[o] * input[high[o]]``.

    Where `high` is empty each output copies ``input[low[o]]``.
    """

    size: int
    out: int
    low: tuple[int, ...]
    high: tuple[int, ...] = ()
    high_weight: tuple[float, ...] = ()


def nearest_axis(size: int, out: int, factor: float | None, centre: Fraction) -> InterpolationAxis:
    """Output o copies input ``floor((o + centre) * size / out)``, or ``/ factor`` where the caller gave one.

    The ratio of two sizes is taken exactly, and what ``1 / factor`` rounds off moves no sample either: 37 / 3.7 is 10.
    """
    numerator, denominator = centre.as_integer_ratio()
    if factor is None:
        low = tuple((o * denominator + numerator) * size // (out * denominator) for o in range(out))
    else:
        scale, offset = (1.0 + 2**-40) / factor, float(centre)
        low = tuple(min(floor((o + offset) * scale), size - 1) for o in range(out))
    return InterpolationAxis(size, out, low)


def linear_axis(size: int, out: int, factor: float | None, align_corners: bool) -> InterpolationAxis:
    """Output o blends the two inputs around its position.

    With `align_corners` the first and last samples of both grids coincide; without, their borders do. An axis that
    keeps its size is copied, whatever the factor, as in PyTorch.
    """
    low, high, weight = [], [], []
    scale = size / out if factor is None or out == size else 1.0 / factor
    if align_corners:
        scale = (size - 1) / (out - 1) if out > 1 else 0.0
    for o in range(out):
        position = o * scale if align_corners else max(0.0, (o + 0.5) * scale - 0.5)
        below = min(floor(position), size - 1)
        low.append(below)
        high.append(min(below + 1, size - 1))
        weight.append(min(position - below, 1.0))
    return InterpolationAxis(size, out, tuple(low), tuple(high), tuple(weight))
