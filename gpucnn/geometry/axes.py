"""Positions that a window reads along one axis: the arithmetic under convolution, pooling and resampling.

No axis lists its positions: offsets and indices are ranges, windows and samples are formulas, which the backends apply
to arrays of outputs. So an axis takes as little time and memory for 10 million positions as for 10.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from math import ceil, floor, gcd, lcm
from typing import Any, NamedTuple

from gpucnn.geometry.arguments import boolean, integer, number
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

    @property
    def is_identity(self) -> bool:
        """Whether each window is the input at its own position."""
        return self.forward.is_identity

    @property
    def is_whole(self) -> bool:
        """Whether there is one window, which is all of the input."""
        return self.out == 1 and self.forward.offsets == range(self.size)


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


class Filter(NamedTuple):
    """Weights of the inputs around an output's position, by their distance, in inputs.

    ``Filter(1)`` is linear, ``1 - distance``; ``Filter(2, coefficient)`` is the cubic convolution with that coefficient
    (R. Keys, 1981). Both are 0 from `radius` on. The weights of an output are divided by their sum.
    """

    radius: int
    coefficient: float = 0.0
    stretch: float = 1.0
    """Factor to all distances: that of an image that shrinks, where its filter also averages (antialiasing)."""
    excludes_outside: bool = False
    """Whether there are no inputs before the first and after the last one, or else these are repeated."""

    @property
    def taps(self) -> int:
        """Most inputs that an output reads."""
        return ceil(2 * self.radius * self.stretch)


@dataclass(frozen=True)
class InterpolationAxis:
    """One axis of a resampling: output o is at the position ``first + o * scale`` of the input.

    With a `filter` it blends the inputs around its position, without one it copies the input at the floor of its
    position plus `rounding`. What lies before the first input or after the last one is that input, or nothing: see
    `Filter`. The scale is not negative.
    """

    size: int
    out: int
    scale: Fraction | float = Fraction(1)
    first: Fraction | float = field(default=Fraction(0), hash=False)  # a fraction's hash takes a microsecond
    filter: Filter | None = None
    rounding: Fraction | float = field(default=Fraction(0), hash=False)

    @property
    def blends(self) -> bool:
        """Whether outputs are weighted sums, and not copies."""
        return self.filter is not None

    @property
    def taps(self) -> int:
        """Most inputs that an output reads."""
        return 1 if self.filter is None else self.filter.taps

    def positions(self, outputs: Any) -> Any:
        """The positions of `outputs`, an int or an array, as floats."""
        return outputs * float(self.scale) + float(self.first)

    @property
    def parts(self) -> int:
        """Parts of an input of which all positions, with `rounding`, are multiples; 0 where 63 bits are too few."""
        scale, first = self.scale, self.first + self.rounding
        if isinstance(scale, float) or isinstance(first, float):
            return 0
        parts = lcm(scale.denominator, first.denominator)
        return parts if parts * (max(1, self.out - 1) * scale + abs(first) + 1) < 2**63 else 0

    @property
    def inside(self) -> range:
        """The outputs whose positions are neither before the first input nor after the last one."""
        scale, first, last = Fraction(self.scale), Fraction(self.first), self.size - 1
        if scale == 0:
            return range(self.out if 0 <= first <= last else 0)
        return range(max(0, ceil(-first / scale)), min(self.out, floor((last - first) / scale) + 1))

    @property
    def is_identity(self) -> bool:
        """Whether each output is the input at its own position."""
        if self.size != self.out or self.size == 1:
            return self.size == self.out
        is_copied = 0 <= self.first + self.rounding < 1
        if self.filter is not None:
            is_copied = self.first == 0 and self.filter.stretch == 1
        return self.scale == 1 and is_copied


def nearest_axis(size: int, out: int, factor: float | None, centre: Fraction) -> InterpolationAxis:
    """Output o copies input ``floor((o + centre) * size / out)``, or ``/ factor`` where the caller gave one.

    The ratio of two sizes is taken exactly. With a centre of 0, an axis that keeps or doubles its size uses the sizes,
    not the factor, as in PyTorch.
    """
    keeps = centre == 0 and out in (size, 2 * size)
    scale = Fraction(size, out) if factor is None or factor * size == out or keeps else 1.0 / factor
    return InterpolationAxis(size, out, scale, centre * scale)


def filtered_axis(
    size: int, out: int, factor: float | None, align_corners: bool, filter: Filter, antialias: bool = False
) -> InterpolationAxis:
    """Output o blends the inputs around its position, by PyTorch's rules.

    With `align_corners` the first and last samples of both grids coincide; without, their borders do, and with
    `antialias` always. An axis that keeps its size is copied, whatever the factor, but by a cubic filter without
    `antialias`.
    """
    keeps = out == size and (filter.radius == 1 or antialias)
    scale = Fraction(size, out) if factor is None or factor * size == out or keeps else 1.0 / factor
    if align_corners:
        scale = Fraction(size - 1, out - 1) if out > 1 else Fraction(0)
    first = (scale - 1) / 2 if antialias or not align_corners else Fraction(0)
    if antialias:
        filter = filter._replace(stretch=max(float(scale), 1.0), excludes_outside=True)
    return InterpolationAxis(size, out, scale, first, filter)


def resize_axis(
    size: int,
    out: int,
    scale: Fraction | float | None = None,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    exclude_outside: bool = False,
    antialias: bool = False,
    roi: tuple[float, float] = (0.0, 1.0),
) -> InterpolationAxis:
    """An axis resampled by the rules of ONNX's Resize.

    Parameters
    ----------
    size, out : int
        Inputs and outputs.
    scale : Fraction or float, optional
        Outputs per input, where it was given: the number of outputs is it times `size`, rounded.
    mode : str
        ``"nearest"``, ``"linear"`` or ``"cubic"``.
    coordinate_transformation_mode : str
        ``"half_pixel"``, ``"half_pixel_symmetric"``, ``"pytorch_half_pixel"``, ``"align_corners"``, ``"asymmetric"`` or
        ``"tf_crop_and_resize"``. The last reads the region `roi`; what lies outside of the input is that of the border,
        and not a value of the caller's: `InterpolationAxis.inside` are the other outputs.
    nearest_mode : str
        ``"round_prefer_floor"``, ``"round_prefer_ceil"``, ``"floor"`` or ``"ceil"``.
    cubic_coeff_a : float
        Coefficient of the cubic filter.
    exclude_outside : bool
        Whether weights of inputs outside are 0, and the others divided by their sum; or else borders are repeated.
    antialias : bool
        Whether the filter is stretched where an image shrinks.
    roi : pair of float
        Start and end of the region, 0 the first input and 1 the last one.

    Returns
    -------
    InterpolationAxis

    Raises
    ------
    TypeError, ValueError
        A number is none, or out of range; there is no such mode; the region ends before it starts.

    References
    ----------
    - ONNX, *Operator Resize*, version 19.

    Examples
    --------
    >>> axis = resize_axis(4, 8, mode="linear")
    >>> axis.scale, axis.first, axis.inside
    (Fraction(1, 2), Fraction(-1, 4), range(1, 7))
    """
    op = "resize_axis"
    size, out = (integer(op, name, value, 1) for name, value in (("size", size), ("out", out)))
    exclude_outside, antialias = boolean(op, "exclude_outside", exclude_outside), boolean(op, "antialias", antialias)
    cubic_coeff_a = number(op, "cubic_coeff_a", cubic_coeff_a)
    if scale is not None and not isinstance(scale, Fraction):
        scale = Fraction(number(op, "scale", scale, least=0.0))
    if scale is not None and scale <= 0:
        raise ValueError(f"{op}: scale is {scale}, expected a positive number")
    step = Fraction(size, out) if scale is None else 1 / scale
    length = size / step  # the outputs, before their number is rounded
    stretch = max(float(step), 1.0) if antialias else 1.0
    first = Fraction(0)
    if coordinate_transformation_mode in ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel"):
        first = (step - 1) / 2
        if coordinate_transformation_mode == "half_pixel_symmetric":
            first += (size - out * step) / 2
        elif coordinate_transformation_mode == "pytorch_half_pixel" and length <= 1:
            first = Fraction(0)
    elif coordinate_transformation_mode == "align_corners":
        step = (size - 1) / (length - 1) if length > 1 else Fraction(0)
    elif coordinate_transformation_mode == "tf_crop_and_resize":
        first, last = (Fraction(number(op, "roi", edge)) * (size - 1) for edge in roi)
        if last < first:
            raise ValueError(f"resize_axis: roi is {roi}, expected an end that is not before the start")
        step, first = ((last - first) / (length - 1), first) if length > 1 else (Fraction(0), (first + last) / 2)
    elif coordinate_transformation_mode != "asymmetric":
        raise ValueError(f"resize_axis: there is no coordinate_transformation_mode {coordinate_transformation_mode!r}")
    axis = InterpolationAxis(size, out, step, first)
    if mode == "nearest":
        return _rounded_axis(axis, nearest_mode)
    if mode not in ("linear", "cubic"):
        raise ValueError(f"resize_axis: mode is {mode!r}, expected 'nearest', 'linear' or 'cubic'")
    filter = Filter(1) if mode == "linear" else Filter(2, cubic_coeff_a)
    return replace(axis, filter=filter._replace(stretch=stretch, excludes_outside=exclude_outside))


def _rounded_axis(axis: InterpolationAxis, nearest_mode: str) -> InterpolationAxis:
    """The axis whose outputs copy the inputs at their rounded positions."""
    halves = {"round_prefer_floor": Fraction(-1, 2), "round_prefer_ceil": Fraction(1, 2)}
    if nearest_mode not in {*halves, "floor", "ceil"}:
        raise ValueError(f"resize_axis: there is no nearest_mode {nearest_mode!r}")
    rounding = halves.get(nearest_mode, Fraction(0))
    if nearest_mode in ("ceil", "round_prefer_floor"):  # rounded up, by a floor
        parts = replace(axis, rounding=rounding).parts
        rounding += Fraction(parts - 1, parts) if parts else 1 - Fraction(axis.size, 2**39)
    return replace(axis, rounding=rounding)
