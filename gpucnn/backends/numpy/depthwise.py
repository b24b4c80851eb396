"""Convolution of small groups, depthwise ones among them: some rows of the output as one product.

A group of few channels has too few filters for a fast matrix product. But R rows of the output are R filters with a
taller window that moves by R rows at a time: filter r holds the weights from row ``r * stride`` on, and else zeros.
This multiplies by zeros, too, at the speed of matrix products, and copies less than im2col.

As 0 * inf is NaN, what is not finite is computed anew from the weights as they are.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import columns, memory, threads
from gpucnn.backends.numpy.columns import Samplings
from gpucnn.backends.numpy.memory import Array
from gpucnn.geometry import Sampling
from gpucnn.geometry.caches import kept

MAX_ROWS, MAX_FILTERS = 8, 16  # of a band, and of a product: rows of a band times the filters of a group
SMALL_PLANE = 256  # outputs, below which products are small
LANES = 256  # channels of a piece
PIECE_BYTES = 1 << 20  # of windows' images


def contract(source: Array, weight: Array, samplings: Samplings, target: Array, bias: Array | None) -> None:
    """As `columns.contract`."""
    groups, filters, channels, *_ = weight.shape
    if _has_lanes(source, filters, channels, samplings):
        _contract_lanes(source, weight[:, 0, 0], samplings, target, bias)
        return
    targets = target.reshape(len(target), groups, filters, *target.shape[2:])
    with np.errstate(over="ignore", invalid="ignore"):
        for band in _bands(filters, samplings):
            matrix = band.zeros(weight.shape, weight.dtype)
            band.diagonals(matrix)[...] = weight[:, :, None]
            filled = matrix.reshape(groups, -1, *matrix.shape[3:])
            columns.contract_bands(source, filled, band.samplings, band.of(targets), bias)
    with np.errstate(over="ignore", invalid="ignore"):
        whole = np.isfinite(target.sum(dtype=accumulator(target.dtype)))
    if not whole:
        columns.contract(source, weight, samplings, target, bias)


def contract_weight(source: Array, grad: Array, samplings: Samplings, grad_w: Array) -> None:
    """As `columns.contract_weight`: a tap's gradient is the sum of those of the R filters."""
    groups, filters, channels, *_ = grad_w.shape
    if _has_lanes(source, filters, channels, samplings):
        _contract_weight_lanes(source, grad, samplings, grad_w[:, 0, 0])
        return
    grads = grad.reshape(len(grad), groups, filters, *grad.shape[2:])
    sums = np.zeros(grad_w.shape, accumulator(source.dtype))
    for band in _bands(filters, samplings):
        matrix = band.zeros(grad_w.shape, sums.dtype)
        flat = matrix.reshape(groups, -1, *matrix.shape[3:])
        columns.contract_weight_bands(source, band.of(grads), band.samplings, flat)
        sums += band.diagonals(matrix).sum(axis=2)
    grad_w[...] = sums


# --- Channels innermost ---------------------------------------------------------------------------------------------


def _has_lanes(source: Array, filters: int, channels: int, samplings: Samplings) -> bool:
    """Whether channels are innermost, of one filter each: they are in memory, or planes are small."""
    plane = samplings[1].targets * samplings[2].targets
    return filters == channels == 1 and (memory.is_channels_last(source) or plane < SMALL_PLANE)


def _contract_lanes(source: Array, weight: Array, samplings: Samplings, target: Array, bias: Array | None) -> None:
    """As `contract`, with weight [G, KD, KH, KW]: all taps of a pixel's channels at once."""
    dtype = accumulator(source.dtype)
    taps = np.ascontiguousarray(np.moveaxis(weight, 0, -1), dtype)

    def compute(item: columns.Item) -> None:
        chosen, images, space, _, reads = item
        windows = columns.windows_of(source[images, chosen], reads, last=True)
        part = target[images, chosen, *space]
        sums = memory.scratch("depthwise sums", (len(part), *part.shape[2:], part.shape[1]), dtype)
        np.einsum("ngabcxyz,abcg->nxyzg", windows.astype(dtype, copy=False), taps[..., chosen], out=sums)
        if bias is not None:
            np.add(sums, bias[chosen, 0], out=sums)
        part[...] = np.moveaxis(sums, -1, 1)

    threads.run(compute, _lanes(target.shape, samplings, _bytes_of_windows(source, samplings)))


def _contract_weight_lanes(source: Array, grad: Array, samplings: Samplings, grad_w: Array) -> None:
    """As `contract_weight`, with grad_w [G, KD, KH, KW]."""
    dtype = accumulator(source.dtype)

    def share_of(item: columns.Item) -> Array:
        chosen, images, space, _, reads = item
        windows = columns.windows_of(source[images, chosen], reads, last=True)
        part = np.moveaxis(grad[images, chosen, *space], 1, -1)
        lanes = memory.scratch("depthwise gradient", part.shape, dtype)
        lanes[...] = part
        by_image = np.einsum("nxyzg,ngabcxyz->nabcg", lanes, windows.astype(dtype, copy=False))  # shorter sums
        share: Array = by_image.sum(axis=0)
        return share

    sums = np.zeros((*grad_w.shape[1:], len(grad_w)), dtype)
    items = _lanes(grad.shape, samplings, _bytes_of_windows(source, samplings))
    for item, share in zip(items, threads.results_of(share_of, items), strict=True):
        sums[..., item[0]] += share
    grad_w[...] = np.moveaxis(sums, -1, 0)


def _bytes_of_windows(source: Array, samplings: Samplings) -> int:
    """Bytes that the windows of a position take, for each channel: those of another dtype than sums are copied."""
    dtype = accumulator(source.dtype)
    return dtype.itemsize * (1 if source.dtype == dtype else prod(len(axis.offsets) for axis in samplings))


@kept(columns.PLANS_BYTES)
def _lanes(shape: tuple[int, ...], samplings: Samplings, nbytes: int) -> tuple[columns.Item, ...]:
    """Pieces of targets [N, G, OD, OH, OW] with windows of so many bytes."""
    n, groups, *size = shape
    most = min(PIECE_BYTES, memory.WORKSPACE_BYTES) // (min(groups, LANES) * nbytes)
    return tuple(
        (chosen, images, tuple(space), slice(0, 1), columns.reads_of(samplings, tuple(space)))
        for (images, *space), chosen in product(memory.blocks((n, *size), most), memory.runs(groups, LANES))
    )


# --- Bands of rows --------------------------------------------------------------------------------------------------


class _Band(NamedTuple):
    """Output rows ``[start, stop)`` in bands of R rows each."""

    start: int
    stop: int
    rows: int
    height: Sampling  # of rows
    samplings: Samplings  # of bands

    def of(self, targets: Array) -> Array:
        """View [N, G, M, R, OD, bands, OW] of targets [N, G, M, OD, OH, OW]."""
        cut = targets[..., self.start : self.stop, :]
        bands = cut.reshape(*cut.shape[:4], cut.shape[4] // self.rows, self.rows, cut.shape[5])
        return np.moveaxis(bands, -2, 3)

    def zeros(self, weight: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Zeros [G, M, R, C, KD, rows of the input, KW] for a weight [G, M, C, KD, KH, KW]."""
        return np.zeros((*weight[:2], self.rows, *weight[2:4], len(self.samplings[1].offsets), weight[5]), dtype)

    def diagonals(self, matrix: Array) -> Array:
        """View [G, M, R, C, KD, KH, KW] of such an array: the weights of each of the R filters."""
        height, steps = self.height, list(matrix.strides)
        steps[2] += height.step * steps[5]
        steps[5] *= height.spacing
        shape = (*matrix.shape[:5], len(height.offsets), matrix.shape[6])
        first = matrix[..., height.offsets[0] - height.least :, :]
        return np.lib.stride_tricks.as_strided(first, shape, steps)


def _bands(filters: int, samplings: Samplings) -> list[_Band]:
    """Bands of about `MAX_FILTERS` filters that cover all rows, the last ones of fewer; single rows of far taps."""
    depth, height, width = samplings
    near = height.most - height.least < 4 * len(height.offsets)
    most = max(1, min(MAX_ROWS, MAX_FILTERS // filters, height.targets)) if near else 1
    rows = next((count for count in range(most, most // 2, -1) if height.targets % count == 0), most)
    whole = height.targets // rows * rows
    found = []
    for start, stop, each in ((0, whole, rows), (whole, height.targets, height.targets - whole)):
        if start < stop:
            first = start * height.step + height.least
            offsets = range(first, first + (each - 1) * height.step + height.most - height.least + 1)
            bands = Sampling((stop - start) // each, height.sources, each * height.step, offsets)
            found.append(_Band(start, stop, each, height, (depth, bands, width)))
    return found
