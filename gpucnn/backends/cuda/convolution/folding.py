"""Space to depth: blocks of an image's positions as channels, for convolutions of few channels.

A block of F positions along each axis, a multiple of the stride, holds C * F channels. A tap of a window over blocks
holds F taps of the kernel, one for each position, of which those beyond the kernel are zeros: its filters are the
columns of w, unfolded with windows of F and w's stride. So few channels fill the rows or runs of 16 bytes that tensor
cores take, at the price of these zeros.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

from gpucnn.backends.cuda.device.runtime import MAX_BYTES, Array, Runtime
from gpucnn.backends.cuda.launch.plans import empty
from gpucnn.backends.cuda.unfolding.unfolding import col2im, im2col
from gpucnn.geometry import Axis, ConvGeometry
from gpucnn.geometry.geometries import Channels

MAX_ROWS = 64  # of a fold: more of them have more zeros, for no fewer reads
MAX_LENGTH = 0.75  # of a folded forward's inner dimension, over that of the convolution as it is


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


class Fold(NamedTuple):
    """A convolution over blocks of `times` strides along each axis."""

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
        return self._unfolded(runtime, x, windows)

    def filters(self, runtime: Runtime, w: Array) -> Array:
        """The filters [OC, C / G * F, TD, TH, TW] of w [OC, C / G, KD, KH, KW]."""
        return self._unfolded(runtime, w, self._filter_windows)

    def gather_filters(self, runtime: Runtime, folded: Array, w: Array) -> None:
        """Write w [OC, C / G, KD, KH, KW] from its folded filters, of blocks of one stride: each is in one place."""
        columns = folded.reshape(*folded.shape[:2], -1)
        col2im(runtime, columns, w, self._windows(w, self._filter_windows))

    @property
    def _filter_windows(self) -> list[Axis]:
        return [
            Axis(
                axis.kernel, to.size, axis.stride, 1, to.low,
                (to.taps - 1) * axis.stride + to.size - to.low - axis.kernel, to.taps,
            )
            for axis, to in zip(self.geometry.axes, self.axes, strict=True)
        ]  # fmt: skip

    def _windows(self, x: Array, axes: list[Axis]) -> ConvGeometry:
        return ConvGeometry(self.geometry.rank, Channels(x.shape[1], 1), (axes[0], axes[1], axes[2]))

    def _unfolded(self, runtime: Runtime, x: Array, axes: list[Axis]) -> Array:
        rows = x.shape[1] * self.positions
        columns = empty(runtime, (len(x), rows, prod(axis.out for axis in axes)), x.dtype)
        im2col(runtime, x, columns, self._windows(x, axes))
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
    return fold if folded <= MAX_LENGTH * direct else None


@lru_cache(maxsize=1024)
def fold_of_gradient(geometry: ConvGeometry) -> Fold | None:
    """The blocks whose positions are rows of a dgrad's product, if that is faster than one product per residue.

    A step of f fragments of rows takes as long as 2 * f of them, and at least as 5 + f, for its copies. Of a ResNet's
    first layer 48 of 48 rows are used, by 25 / 16 taps a position, instead of 3 of 16 by 49 / 4: 5 times faster.

    Examples
    --------
    >>> from gpucnn.geometry.geometries import conv_geometry
    >>> stem = conv_geometry("conv2d", (224, 224), Channels(3, 64), 7, 2, 3, 1)
    >>> fold_of_gradient(stem).times
    (1, 2, 2)
    """
    channels = geometry.channels.inputs // geometry.channels.groups
    if _is_dilated(geometry) or channels >= MAX_ROWS:
        return None

    def products(rows: int, taps: int, positions: int) -> tuple[int, int]:
        """What they take, and what of it tensor cores do."""
        fragments = -(-rows // 16)
        return max(2 * fragments, 5 + fragments) * taps * positions, fragments * taps * positions

    runs = prod(-(-axis.size // axis.stride) for axis in geometry.axes)
    least, most_products = products(channels, geometry.taps, runs)
    best = None
    counts = [range(1, max(1, min(MAX_ROWS, axis.size) // axis.stride) + 1) for axis in geometry.axes]
    for d, h, w in product(*counts):
        if channels * d * h * w * prod(axis.stride for axis in geometry.axes) > MAX_ROWS:
            continue
        fold = Fold(geometry, (d, h, w))
        cost, on_tensor_cores = products(channels * fold.positions, fold.taps, prod(axis.blocks for axis in fold.axes))
        if cost < least and on_tensor_cores <= most_products:
            best, least = fold, cost
    return best


def _is_dilated(geometry: ConvGeometry) -> bool:
    return any(axis.dilation > 1 and axis.kernel > 1 for axis in geometry.axes)
