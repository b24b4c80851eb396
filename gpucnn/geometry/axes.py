"""Positions that a window reads along one axis: the arithmetic under convolution, pooling and resampling.

No axis lists its positions: offsets and indices are ranges, windows and samples are formulas, which the backends apply
to arrays of outputs. So an axis takes as little time and memory for 10 million positions as for 10.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from math import gcd
from typing import Any, NamedTuple

from gpucnn.geometry.caches import kept


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
    """The sources that the targets along one axis read: tap t of target i reads source ``i * step + offsets[t]``.

    The forward of a convolution samples its input with ``step = stride``; its dilated backward samples the output's
    gradient with step 1, once per stride residue. Both are described here.
    """

    targets: int
    sources: int
    step: int
    offsets: range
    least: int = field(init=False, repr=False, compare=False)
    """The least of the offsets."""
    most: int = field(init=False, repr=False, compare=False)
    """The largest of the offsets."""
    spacing: int = field(init=False, repr=False, compare=False)
    """From one tap's offset to the next tap's; 0 where there is one tap."""

    def __post_init__(self) -> None:
        ends = self.offsets[0], self.offsets[-1]
        object.__setattr__(self, "least", min(ends))
        object.__setattr__(self, "most", max(ends))
        object.__setattr__(self, "spacing", self.offsets.step if len(self.offsets) > 1 else 0)

    def by_residue(self) -> list[range]:
        """The taps whose offsets are equal modulo `step`, by that residue."""
        period = self.step // gcd(self.step, self.spacing)
        count = len(self.offsets)
        firsts = sorted(range(min(count, period)), key=lambda k: self.offsets[k] % self.step)
        return [range(k, count, period) for k in firsts]

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
        """Whether each target reads just the source at its own position."""
        return self.least == self.most == 0 and self.step == 1 and self.targets == self.sources


class Residue(NamedTuple):
    """The inputs ``first, first + stride, …`` of one axis and the kernel indices whose taps can reach them."""

    first: int
    kernel_indices: range
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
        offsets = range(-self.low, self.kernel * self.dilation - self.low, self.dilation)
        return Sampling(self.out, self.size, self.stride, offsets)

    @property
    def backward(self) -> tuple[Residue, ...]:
        """Each input samples the outputs, by stride residue: the dilated backward without its zeros.

        Input i and output o meet in tap k where ``i + low - k * dilation = o * stride``. All inputs of one residue
        i mod stride share the taps that can divide it, so each residue is a dense convolution with stride 1. Residues
        that no tap can reach are left out: the gradient of their inputs is zero.
        """
        return _residues(self)

    def taps(self) -> Iterator[Tap]:
        """The taps of all outputs."""
        return self.forward.taps()

    @property
    def is_identity(self) -> bool:
        """Whether each window is the input at its own position."""
        return self.forward.is_identity

    @property
    def is_whole(self) -> bool:
        """Whether there is one window, which is all of the input."""
        return self.out == 1 and self.forward.offsets == range(self.size)

    @property
    def tiles(self) -> bool:
        """Whether windows follow each other from the first input on, without gaps, padding or overlap."""
        return self.forward.offsets == range(self.stride)


@kept(1 << 20)
def _residues(axis: Axis) -> tuple[Residue, ...]:
    common = gcd(axis.stride, axis.dilation)
    period, spacing = axis.stride // common, axis.dilation // common  # of the taps of a residue, and of their outputs
    residues = []
    for k in range(min(axis.kernel, period)):
        first = (k * axis.dilation - axis.low) % axis.stride
        if first < axis.size:
            indices = range(k, axis.kernel, period)
            start = (first + axis.low - k * axis.dilation) // axis.stride
            offsets = range(start, start - len(indices) * spacing, -spacing)
            count = -(-(axis.size - first) // axis.stride)
            residues.append(Residue(first, indices, Sampling(count, axis.out, 1, offsets)))
    return tuple(sorted(residues))


@dataclass(frozen=True)
class AdaptiveAxis:
    """One axis of adaptive pooling: output o reads inputs ``[floor(o * size / out), ceil((o + 1) * size / out))``."""

    size: int
    out: int

    def windows(self, outputs: Any) -> tuple[Any, Any]:
        """The first input that each of `outputs` reads and the one after the last: of an int, or an array of int64."""
        return outputs * self.size // self.out, -(-(outputs + 1) * self.size // self.out)

    @property
    def is_identity(self) -> bool:
        """Whether each window is the input at its own position."""
        return self.size == self.out

    @property
    def longest(self) -> int:
        """Inputs of the longest window."""
        return -(-(self.out - gcd(self.size, self.out) + self.size) // self.out)

    @property
    def transposed(self) -> AdaptiveAxis:
        """The axis whose windows hold the outputs that read each input."""
        return AdaptiveAxis(self.out, self.size)


@dataclass(frozen=True)
class InterpolationAxis:
    """One axis of a resampling: output o reads the input at a position that is linear in o.

    Without `blends` it copies input ``floor((o + centre) * scale)``. With it, it blends the two inputs around position
    ``(o + centre) * scale - centre``. Positions before the first input or after the last one are theirs.
    """

    size: int
    out: int
    scale: Fraction | float = Fraction(1)
    centre: Fraction = Fraction(0)
    blends: bool = False

    @property
    def is_identity(self) -> bool:
        """Whether each output is the input at its own position."""
        return self.size == self.out and (self.size == 1 or self.scale == 1)


def nearest_axis(size: int, out: int, factor: float | None, centre: Fraction) -> InterpolationAxis:
    """Output o copies input ``floor((o + centre) * size / out)``, or ``/ factor`` where the caller gave one.

    The ratio of two sizes is taken exactly, and the rounding of ``1 / factor`` moves no sample either: 37 / 3.7 is 10.
    With a centre of 0, an axis that keeps or doubles its size uses the sizes, not the factor, as in PyTorch.
    """
    if factor is None or factor * size == out or (centre == 0 and out in (size, 2 * size)):
        return InterpolationAxis(size, out, Fraction(size, out), centre)
    return InterpolationAxis(size, out, (1.0 + 2**-40) / factor, centre)


def linear_axis(size: int, out: int, factor: float | None, align_corners: bool) -> InterpolationAxis:
    """Output o blends the two inputs around its position.

    With `align_corners` the first and last samples of both grids coincide; without, their borders do. An axis that
    keeps its size is copied, whatever the factor, as in PyTorch.
    """
    scale = size / out if factor is None or out == size else 1.0 / factor
    if align_corners:
        scale = (size - 1) / (out - 1) if out > 1 else 0.0
    return InterpolationAxis(size, out, scale, Fraction(0 if align_corners else 1, 2), blends=True)
