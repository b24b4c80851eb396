"""The frozen geometries that the backends read, made and checked from the caller's arguments.

Each ``…_geometry`` function reads its arguments into plain tuples and hands them to a cached maker, so that every
way to write a window gives the same geometry. Repeated arguments cost a look-up.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from math import prod
from typing import Any, Literal, NamedTuple, TypeVar

from gpucnn.geometry.arguments import Pairs, boolean, integer, integers, is_sequence, padding_form, window_sizes
from gpucnn.geometry.axes import (
    AdaptiveAxis,
    Axis,
    Filter,
    InterpolationAxis,
    Sampling,
    filtered_axis,
    nearest_axis,
)
from gpucnn.geometry.caches import remembered
from gpucnn.geometry.sizes import expect_output, pool_axes, transposed_axes, unpooled_size, window_axes

Divisor = int | float | Literal["none", "padded", "valid"]
Ints = tuple[int, ...]
Three = tuple[int, int, int]
AnyAxis = TypeVar("AnyAxis")


def _three(axes: tuple[AnyAxis, ...], trivial: AnyAxis) -> tuple[AnyAxis, AnyAxis, AnyAxis]:
    """`axes` with trivial ones in front: 1-d and 2-d are 3-d."""
    d, h, w = (trivial,) * (3 - len(axes)) + axes
    return d, h, w


class _Sizes:
    """Sizes of a geometry's images along its axes (D, H, W)."""

    axes: tuple[Any, Any, Any]

    @cached_property
    def input_size(self) -> Three:
        """(D, H, W) of the input."""
        d, h, w = self.axes
        return d.size, h.size, w.size

    @cached_property
    def output_size(self) -> Three:
        """(OD, OH, OW)."""
        d, h, w = self.axes
        return d.out, h.out, w.out


# --- Convolution --------------------------------------------------------------------------------------------------


class Channels(NamedTuple):
    """Channels of a convolution's input and output, and the groups that divide them."""

    inputs: int
    outputs: int
    groups: int = 1


@dataclass(frozen=True)
class ConvGeometry(_Sizes):
    """A convolution, transposed convolution, locally connected layer or unfolding, without the batch size.

    `axes` are (D, H, W): 1-d and 2-d have leading axes of size 1, and `rank` keeps the true number.
    """

    rank: int
    channels: Channels
    axes: tuple[Axis, Axis, Axis]

    @cached_property
    def kernel_size(self) -> Three:
        """(KD, KH, KW)."""
        d, h, w = self.axes
        return d.kernel, h.kernel, w.kernel

    @cached_property
    def taps(self) -> int:
        """Taps of the window, KD * KH * KW."""
        return prod(self.kernel_size)

    @cached_property
    def forward(self) -> tuple[Sampling, Sampling, Sampling]:
        """The sampling of the input by the outputs along each axis."""
        d, h, w = self.axes
        return d.forward, h.forward, w.forward

    @cached_property
    def is_pixel_by_pixel(self) -> bool:
        """Whether each output's only tap is the input at the same position, so that columns are the image itself."""
        return all(axis.is_identity for axis in self.axes)


def conv_geometry(
    op: str, input_size: Ints, channels: Channels, kernel_size: Any, stride: Any, padding: Any, dilation: Any
) -> ConvGeometry:
    """The geometry of a convolution over `input_size`.

    Raises
    ------
    TypeError, ValueError
        A parameter is not an integer, out of range, or fits no window.
    """
    rank = len(input_size)
    kernel, steps, gaps = window_sizes(op, rank, kernel_size, stride, dilation)
    return _conv_geometry(op, input_size, channels, kernel, steps, padding_form(op, padding, rank), gaps)


@lru_cache(maxsize=1024)
def _conv_geometry(
    op: str, sizes: Ints, channels: Channels, kernel: Ints, stride: Ints, padding: str | Pairs, dilation: Ints
) -> ConvGeometry:
    axes = window_axes(op, sizes, kernel, stride, padding, dilation)
    return ConvGeometry(len(sizes), channels, _three(axes, Axis(1)))


def conv_transpose_geometry(
    op: str,
    input_size: Ints,
    channels: Channels,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
) -> ConvGeometry:
    """The geometry of the convolution whose backward-input is this transposed convolution.

    `input_size` is what the transposed convolution reads: the outputs of that convolution. `channels` are that
    convolution's too.
    """
    rank = len(input_size)
    kernel, steps, gaps = window_sizes(op, rank, kernel_size, stride, dilation)
    extra = integers(op, "output_padding", output_padding, rank, 0)
    form = padding_form(op, padding, rank)
    return _conv_transpose_geometry(op, input_size, channels, kernel, steps, form, extra, gaps)


@lru_cache(maxsize=1024)
def _conv_transpose_geometry(
    op: str,
    sizes: Ints,
    channels: Channels,
    kernel: Ints,
    stride: Ints,
    padding: str | Pairs,
    output_padding: Ints,
    dilation: Ints,
) -> ConvGeometry:
    axes = transposed_axes(op, sizes, kernel, stride, padding, output_padding, dilation)
    return ConvGeometry(len(sizes), channels, _three(axes, Axis(1)))


# --- Pooling ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PoolGeometry(_Sizes):
    """A pooling: its axes (D, H, W) and the divisor of a window's sum.

    `divisor` is ``"none"`` (sum pooling), ``"padded"`` (taps on input and padding), ``"valid"`` (taps on the input)
    or a number of the caller's.
    """

    rank: int
    axes: tuple[Axis | AdaptiveAxis, Axis | AdaptiveAxis, Axis | AdaptiveAxis]
    divisor: Divisor = "none"

    @cached_property
    def is_whole(self) -> bool:
        """Whether there is one window, which is the whole plane."""
        return all(isinstance(axis, Axis) and axis.is_whole for axis in self.axes)


@remembered
def pool_geometry(
    op: str,
    input_size: Ints,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    divisor: Divisor = "none",
) -> PoolGeometry:
    """The geometry of a pooling whose windows all have one shape.

    Raises
    ------
    TypeError, ValueError
        A parameter is not an integer or out of range, no window fits, or the padding is as large as the window.
    """
    rank = len(input_size)
    kernel, steps, gaps = window_sizes(op, rank, kernel_size, kernel_size if stride is None else stride, dilation)
    form = padding_form(op, padding, rank)
    rounds_up = boolean(op, "ceil_mode", ceil_mode)
    return _pool_geometry(op, input_size, kernel, steps, form, gaps, rounds_up, divisor)


@lru_cache(maxsize=1024)
def _pool_geometry(
    op: str,
    sizes: Ints,
    kernel: Ints,
    stride: Ints,
    padding: str | Pairs,
    dilation: Ints,
    ceil_mode: bool,
    divisor: Divisor,
) -> PoolGeometry:
    axes = pool_axes(op, sizes, kernel, stride, padding, dilation, ceil_mode)
    return PoolGeometry(len(sizes), _three(axes, Axis(1)), divisor)


@remembered
def adaptive_geometry(op: str, input_size: Ints, output_size: Any, divisor: Divisor = "none") -> PoolGeometry:
    """The geometry of an adaptive pooling; None in `output_size` keeps the axis as it is.

    Raises
    ------
    TypeError, ValueError
        `output_size` is no positive integer or None, or has the wrong number of them.
    """
    rank = len(input_size)
    wanted = tuple(output_size) if is_sequence(output_size) else (output_size,) * rank
    if len(wanted) != rank:
        raise ValueError(f"{op}: output_size has {len(wanted)} values, expected {rank}")
    expected = f"an integer, None, or {rank} of them"
    outs = tuple(
        size if out is None else integer(op, "output_size", out, 1, expected)
        for size, out in zip(input_size, wanted, strict=True)
    )
    return _adaptive_geometry(input_size, outs, divisor)


@lru_cache(maxsize=1024)
def _adaptive_geometry(sizes: Ints, outs: Ints, divisor: Divisor) -> PoolGeometry:
    axes = tuple(_adaptive_axis(size, out) for size, out in zip(sizes, outs, strict=True))
    return PoolGeometry(len(sizes), _three(axes, Axis(1)), divisor)


def _adaptive_axis(size: int, out: int) -> Axis | AdaptiveAxis:
    if size % out == 0:  # windows of one length that do not overlap: an ordinary pooling
        return Axis(size, size // out, size // out, out=out)
    return AdaptiveAxis(size, out)


@remembered
def unpool_size(op: str, input_size: Ints, kernel_size: Any, stride: Any, padding: Any, output_size: Any) -> Ints:
    """The spatial size that unpooling gives: `output_size` where it is given and within a stride of the default.

    Raises
    ------
    TypeError, ValueError
        A parameter is not an integer or out of range, or `output_size` is not one that the pooling could have read.
    """
    rank = len(input_size)
    kernel, steps, _ = window_sizes(op, rank, kernel_size, kernel_size if stride is None else stride, 1)
    default = unpooled_size(input_size, kernel, steps, padding_form(op, padding, rank))
    if output_size is None:
        return expect_output(op, default)
    sizes = integers(op, "output_size", output_size, rank, 1)
    for index, (size, usual, step) in enumerate(zip(sizes, default, steps, strict=True)):
        if not usual - step < size < usual + step:
            raise ValueError(
                f"{op}: output_size of axis {index} is {size}, "
                f"expected more than {usual - step} and less than {usual + step}"
            )
    return sizes


# --- Resampling ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InterpolationGeometry(_Sizes):
    """A resampling, axis by axis (D, H, W)."""

    rank: int
    axes: tuple[InterpolationAxis, InterpolationAxis, InterpolationAxis]


@lru_cache(maxsize=1024)
def interpolation_geometry(
    input_size: Ints,
    output_size: Ints,
    factors: tuple[float, ...] | None,
    mode: str,
    align_corners: bool,
    antialias: bool = False,
) -> InterpolationGeometry:
    """The sampling of the input by each output; `factors` are the caller's scale factors, if given."""
    axes = []
    given = (None,) * len(input_size) if factors is None else factors
    for size, out, factor in zip(input_size, output_size, given, strict=True):
        if mode == "nearest":
            axes.append(nearest_axis(size, out, factor, centre=Fraction(0)))
        elif mode == "nearest-exact":
            axes.append(nearest_axis(size, out, factor, centre=Fraction(1, 2)))
        else:
            cubic = Filter(2, -0.5 if antialias else -0.75)
            filter = cubic if "cubic" in mode else Filter(1)
            axes.append(filtered_axis(size, out, factor, align_corners, filter, antialias))
    return resampling_geometry(tuple(axes))


@lru_cache(maxsize=1024)
def resampling_geometry(axes: tuple[InterpolationAxis, ...]) -> InterpolationGeometry:
    """The resampling of images with these axes."""
    return InterpolationGeometry(len(axes), _three(axes, InterpolationAxis(1, 1)))


@dataclass(frozen=True)
class GridGeometry:
    """A sampling of images (D, H, W) at OD * OH * OW positions that a grid gives, each with `rank` coordinates."""

    rank: int
    input_size: Three
    output_size: Three
    mode: str  # "bilinear", "nearest" or "bicubic"
    padding_mode: str  # "zeros", "border" or "reflection"
    align_corners: bool

    @property
    def taps(self) -> int:
        """Inputs that a sample reads along an axis."""
        return {"nearest": 1, "bilinear": 2, "bicubic": 4}[self.mode]


# --- Normalisation ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NormGeometry:
    """A normalisation over x seen as [N, G, C, P]: the axes that share one mean and variance.

    =============  =====================  ===========  =================
    norm           [N, G, C, P]           reduced      statistics
    =============  =====================  ===========  =================
    batch          [N, C, 1, space]       N, C, P      [1, G, 1, 1]
    instance       [N, C, 1, space]       C, P         [N, G, 1, 1]
    group          [N, G, C / G, space]   C, P         [N, G, 1, 1]
    layer, RMS     [rows, 1, row, 1]      C, P         [N, 1, 1, 1]
    =============  =====================  ===========  =================

    Weight and bias are [1, G, C, 1] in all of them. A norm that is not `centred` takes 0 for the mean, and so the mean
    square for the variance: RMS norm, over rows with P = 1.
    """

    shape: tuple[int, int, int, int]
    axes: tuple[int, ...]
    centred: bool = True

    @property
    def kept(self) -> tuple[int, ...]:
        """The shape of statistics: x's, with the reduced axes of size 1."""
        return tuple(1 if axis in self.axes else size for axis, size in enumerate(self.shape))

    @property
    def count(self) -> int:
        """Values that share one mean."""
        return prod(self.shape[axis] for axis in self.axes)

    @property
    def affine_axes(self) -> tuple[int, ...]:
        """The axes over which weight and bias are shared."""
        return (0, 3)
