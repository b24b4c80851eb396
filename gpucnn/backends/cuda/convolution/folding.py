"""Space to depth: blocks of an image's positions as channels, for convolutions of few channels.

A block of F positions along each axis of the input, a multiple of the stride, holds C * F channels. A tap of a window
over blocks holds F taps of the kernel, one for each position, of which those beyond the kernel are zeros: its filters
are the columns of w, unfolded with windows of F and w's stride. Blocks of the output's positions are likewise OC * F
channels, each of which takes the taps of all. So few channels fill the rows or runs of 16 bytes that tensor cores take,
at the price of these zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import NamedTuple, TypeVar

from gpucnn.backends.cuda.device.runtime import MAX_BYTES, Array, Runtime
from gpucnn.backends.cuda.elementwise.packing import pack
from gpucnn.backends.cuda.launch.plans import empty
from gpucnn.backends.cuda.unfolding.unfolding import col2im, im2col
from gpucnn.geometry import Axis, ConvGeometry
from gpucnn.geometry.geometries import Channels

MAX_ROWS = 64  # of a group and a fold: more of them have more zeros, for no fewer reads
MAX_SHARE = 0.75  # of the convolution as it is, that a fold may take: it has more to copy


class FoldedAxis(NamedTuple):
    """Blocks along one axis: position r of block q is input ``q * size + r - cut``.

    Output o reads the blocks whose q * times is from o - before on, `taps` of them; of these, tap t holds the kernel's
    taps from ``t * stride - low`` on.
    """

    size: int
    cut: int
    times: int  # strides of a block
    blocks: int
    before: int
    taps: int
    low: int


class Line(NamedTuple):
    """A product whose rows are blocks of positions, along one axis.

    Tap t of block q reads input ``q * stride + t * step - low`` of `inputs`; position r of the block, counted backwards
    where taps go forwards, is output ``q * size + r - cut`` of `outputs`.
    """

    inputs: int
    outputs: int
    taps: int
    stride: int
    step: int  # 1 or -1
    low: int
    blocks: int
    size: int
    cut: int


@dataclass(frozen=True)  # and no tuple: a plan of one kind must not be found for the other
class Fold:
    """A convolution over blocks of the input, of `times` strides along each axis."""

    geometry: ConvGeometry
    times: tuple[int, int, int]

    @property
    def axes(self) -> list[FoldedAxis]:
        """The blocks along each axis."""
        return [_folded(axis, times) for axis, times in zip(self.geometry.axes, self.times, strict=True)]

    @property
    def positions(self) -> int:
        """Positions of a block."""
        return prod(axis.size for axis in self.axes)

    @property
    def taps(self) -> int:
        """Taps of a window, each of a block."""
        return prod(axis.taps for axis in self.axes)

    @property
    def lines(self) -> list[Line]:
        """The gradient of the input as a product."""
        return [
            Line(axis.out, axis.size, to.taps, to.times, -1, -to.before, to.blocks, to.size, to.cut)
            for axis, to in zip(self.geometry.axes, self.axes, strict=True)
        ]

    @property
    def convolution(self) -> ConvGeometry:
        """The convolution of blocks of one stride each."""
        axes = [
            Axis(to.blocks, to.taps, 1, 1, to.before, max(0, axis.out - 1 + to.taps - to.before - to.blocks), axis.out)
            for axis, to in zip(self.geometry.axes, self.axes, strict=True)
        ]
        c, oc, groups = self.geometry.channels
        return ConvGeometry(self.geometry.rank, Channels(c * self.positions, oc, groups), (axes[0], axes[1], axes[2]))

    def image(self, runtime: Runtime, x: Array) -> Array:
        """The blocks [N, C * F, QD, QH, QW] of x [N, C, D, H, W]."""
        windows = [
            Axis(axis.size, to.size, to.size, 1, to.cut, to.blocks * to.size - to.cut - axis.size, to.blocks)
            for axis, to in zip(self.geometry.axes, self.axes, strict=True)
        ]
        return _unfolded(runtime, x, windows)

    def filters(self, runtime: Runtime, w: Array) -> Array:
        """The filters [OC, C / G * F, TD, TH, TW] of w [OC, C / G, KD, KH, KW]."""
        return _unfolded(runtime, w, self._filter_windows)

    def gather_filters(self, runtime: Runtime, folded: Array, w: Array) -> None:
        """Write w [OC, C / G, KD, KH, KW] from its folded filters, of blocks of one stride: each is in one place."""
        col2im(runtime, folded.reshape(*folded.shape[:2], -1), w, _geometry(w, self._filter_windows))

    @property
    def _filter_windows(self) -> list[Axis]:
        return [
            Axis(
                axis.kernel, to.size, axis.stride, 1, to.low,
                (to.taps - 1) * axis.stride + to.size - to.low - axis.kernel, to.taps,
            )
            for axis, to in zip(self.geometry.axes, self.axes, strict=True)
        ]  # fmt: skip


@dataclass(frozen=True)
class OutputFold:
    """A convolution whose outputs are blocks of `times` positions along each axis."""

    geometry: ConvGeometry
    times: tuple[int, int, int]

    @property
    def positions(self) -> int:
        """Positions of a block."""
        return prod(self.times)

    @property
    def lines(self) -> list[Line]:
        """The outputs as a product."""
        return [
            Line(
                axis.size, axis.out, axis.kernel + (m - 1) * axis.stride, m * axis.stride, 1, axis.low,
                -(-axis.out // m), m, 0,
            )
            for axis, m in zip(self.geometry.axes, self.times, strict=True)
        ]  # fmt: skip

    @property
    def taps(self) -> int:
        """Taps of a block's window."""
        return prod(line.taps for line in self.lines)

    @property
    def convolution(self) -> ConvGeometry:
        """The convolution of all blocks."""
        axes = [Axis(to.inputs, to.taps, to.stride, 1, to.low, 0, to.blocks) for to in self.lines]
        c, oc, groups = self.geometry.channels
        return ConvGeometry(self.geometry.rank, Channels(c, oc * self.positions, groups), (axes[0], axes[1], axes[2]))

    def image(self, runtime: Runtime, y: Array) -> Array:
        """The blocks [N, OC * F, QD, QH, QW] of y [N, OC, OD, OH, OW]."""
        windows = [Axis(to.outputs, to.size, to.size, 1, 0, -to.outputs % to.size, to.blocks) for to in self.lines]
        return _unfolded(runtime, y, windows)

    def filters(self, runtime: Runtime, w: Array) -> Array:
        """The filters [OC * F, C / G, TD, TH, TW], with channels innermost, of w [OC, C / G, KD, KH, KW].

        Those of a block's last position are the first.
        """
        columns = _unfolded(runtime, w, self._filter_windows)
        (rows, channels), taps = w.shape[:2], columns.shape[2:]
        filters = empty(runtime, (rows * self.positions, *taps, channels), w.dtype)
        pack(runtime, columns.reshape(rows, channels, -1), filters.reshape(rows, -1, channels).swapaxes(1, 2))
        return runtime.xp.moveaxis(filters, -1, 1)

    def add_filters(self, runtime: Runtime, folded: Array, w: Array) -> None:
        """Write w [OC, C / G, KD, KH, KW] as the sums over a block's positions of folded [OC, C / G, F, TD, TH, TW].

        Its last position is the first.
        """
        columns = folded.reshape(len(w), w.shape[1] * self.positions, -1)
        col2im(runtime, columns, w, _geometry(w, self._filter_windows))

    @property
    def _filter_windows(self) -> list[Axis]:
        """Those of w: the taps of each position of a block begin a stride after those of the one before."""
        return [
            Axis(axis.kernel, m, 1, axis.stride, (m - 1) * axis.stride, (m - 1) * axis.stride, line.taps)
            for axis, m, line in zip(self.geometry.axes, self.times, self.lines, strict=True)
        ]


AnyFold = TypeVar("AnyFold", Fold, OutputFold)


def _geometry(x: Array, axes: list[Axis]) -> ConvGeometry:
    return ConvGeometry(len(axes), Channels(x.shape[1], 1), (axes[0], axes[1], axes[2]))


def _unfolded(runtime: Runtime, x: Array, axes: list[Axis]) -> Array:
    """The windows of x [N, C, D, H, W] as [N, C * taps, OD, OH, OW]."""
    rows = x.shape[1] * prod(axis.kernel for axis in axes)
    columns = empty(runtime, (len(x), rows, prod(axis.out for axis in axes)), x.dtype)
    im2col(runtime, x, columns, _geometry(x, axes))
    return columns.reshape(len(x), rows, *(axis.out for axis in axes))


def _folded(axis: Axis, times: int) -> FoldedAxis:
    """Blocks of that many strides, cut where a window reads the fewest of them."""
    size, stride = times * axis.stride, axis.stride

    def reach(cut: int) -> tuple[int, int]:
        """Blocks' strides before an output's own that it reads, and after it."""
        return (axis.low - cut + size - 1) // stride, (axis.kernel - 1 - axis.low + cut) // stride

    cut = min(range(stride), key=lambda cut: sum(reach(cut)))
    before, after = reach(cut)
    low = cut - axis.low + before * stride
    return FoldedAxis(size, cut, times, -(-(axis.size + cut) // size), before, before + after + 1, low)


@lru_cache(maxsize=1024)
def fold_of_input(geometry: ConvGeometry, itemsize: int) -> Fold | None:
    """Blocks of one stride for a forward and a wgrad, if they make its inner dimension shorter by a quarter.

    That of an AlexNet's first layer is 432 instead of 968, and of a ResNet's 256 instead of 392: 3 channels alone fill
    3 of 8 values of 16 bits.

    Examples
    --------
    >>> from gpucnn.geometry.geometries import conv_geometry
    >>> stem = conv_geometry("conv2d", (224, 224), Channels(3, 64), 7, 2, 3, 1)
    >>> fold_of_input(stem, 2).convolution.kernel_size, fold_of_input(stem, 4)
    ((1, 4, 4), None)
    """
    fold = Fold(geometry, (1, 1, 1))
    if _is_dilated(geometry) or fold.positions == 1:
        return None
    c, _, groups = geometry.channels
    whole = MAX_BYTES // itemsize
    folded, direct = (-(-each // whole) * taps for each, taps in (
        (c // groups * fold.positions, fold.taps), (c // groups, geometry.taps)
    ))  # fmt: skip
    return fold if folded <= MAX_SHARE * direct else None


@lru_cache(maxsize=1024)
def fold_of_gradient(geometry: ConvGeometry) -> Fold | None:
    """The blocks whose positions are rows of a dgrad's product, if that is faster than one product per residue.

    Of a ResNet's first layer 48 of 48 rows are used, by 25 / 16 taps a position, instead of 3 of 16 by 49 / 4: 5 times
    faster in the model on an H100.

    Examples
    --------
    >>> from gpucnn.geometry.geometries import conv_geometry
    >>> stem = conv_geometry("conv2d", (224, 224), Channels(3, 64), 7, 2, 3, 1)
    >>> fold_of_gradient(stem).times
    (1, 2, 2)
    """
    channels, axes = geometry.channels.inputs // geometry.channels.groups, geometry.axes
    if _is_dilated(geometry):
        return None
    strides = [axis.stride for axis in axes]
    most = [axis.size // axis.stride for axis in axes]
    folds = (Fold(geometry, times) for times in _times(channels * prod(strides), most))
    return _fastest(folds, channels, geometry.taps * prod(-(-axis.size // axis.stride) for axis in axes))


@lru_cache(maxsize=1024)
def fold_of_output(geometry: ConvGeometry) -> OutputFold | None:
    """The blocks whose positions are rows of a forward's product, or of a wgrad's, if that is faster.

    Of a ResNeXt's groups of 4 channels 64 of 64 rows are used, by 36 / 16 taps a position, instead of 4 of 16 by 9: 3
    times faster.

    Examples
    --------
    >>> from gpucnn.geometry.geometries import conv_geometry
    >>> fold_of_output(conv_geometry("conv2d", (56, 56), Channels(128, 128, 32), 3, 1, 1, 1)).times
    (1, 4, 4)
    """
    channels = geometry.channels.outputs // geometry.channels.groups
    if _is_dilated(geometry):
        return None
    folds = (OutputFold(geometry, times) for times in _times(channels, geometry.output_size))
    return _fastest(folds, channels, geometry.taps * prod(geometry.output_size))


def _times(rows: int, most: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Strides of a block along each axis, at most so many, whose rows fit if those of one stride are `rows`.

    The fewest along w first: taps along w follow each other, and of fewer strides more of them read the same.
    """
    for w in range(1, min(max(1, most[2]), MAX_ROWS // rows) + 1):
        for h in range(1, min(max(1, most[1]), MAX_ROWS // (rows * w)) + 1):
            for d in range(1, min(max(1, most[0]), MAX_ROWS // (rows * w * h)) + 1):
                yield d, h, w


def _fastest(folds: Iterable[AnyFold], channels: int, direct: int) -> AnyFold | None:
    """The fastest of them, if it takes less than that share of `direct` taps of all positions, and multiplies no more.

    A step of f fragments of rows takes as long as 2 * f of them, and at least as 5 + f, for its copies.
    """

    def products(rows: int, taps: int) -> tuple[int, int]:
        fragments = -(-rows // 16)
        return max(2 * fragments, 5 + fragments) * taps, fragments * taps

    whole, most_products = products(channels, direct)
    best, least = None, MAX_SHARE * whole
    for fold in folds:
        blocks = prod(line.blocks for line in fold.lines)
        cost, on_tensor_cores = products(channels * fold.positions, fold.taps * blocks)
        if cost < least and on_tensor_cores <= most_products:
            best, least = fold, cost
    return best


def _is_dilated(geometry: ConvGeometry) -> bool:
    return any(axis.dilation > 1 and axis.kernel > 1 for axis in geometry.axes)
