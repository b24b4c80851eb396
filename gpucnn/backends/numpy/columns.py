"""Convolution as im2col and GEMM, one block of outputs at a time.

A block's columns stay in a core's cache: they are written and multiplied before the next block begins, so they cost
about a tenth of the GEMM. Several small groups are one block, and one stack of products.
"""

from __future__ import annotations

from itertools import product
from math import prod
from operator import mul
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import memory, threads
from gpucnn.backends.numpy.memory import Array, Block
from gpucnn.geometry import Sampling
from gpucnn.geometry.caches import kept

Samplings = tuple[Sampling, Sampling, Sampling]

# Bytes of a piece's columns. On ResNet's and VGG's layers 1 to 3 MiB were within 3 % of each other, 16 MiB took 1.1.
PIECE_BYTES = 2 << 20
MIN_POSITIONS = 192  # of a piece, for each one's product reads the whole weight
PLANS_BYTES = 4 << 20  # of all lists of pieces that are kept
MIN_ROWS = 64  # of a piece of a weight's gradient: products of fewer are slow
WORTH_SHARING = 1 << 22  # multiply-adds below which a piece is not worth a thread


def contract(source: Array, weight: Array, samplings: Samplings, target: Array, bias: Array | None) -> None:
    """target[n, (g, m), o] = bias[g, m] + sum over c, t of weight[g, m, c, t] * source[n, (g, c), where o reads at t].

    source [N, G * C, D, H, W]; weight [G, M, C, KD, KH, KW]; target [N, G * M, *o], any strides; bias [G, M] or None.
    """
    groups, filters, channels, *_ = weight.shape
    matrix = matrix_of(weight, accumulator(source.dtype))
    targets = target.reshape(len(target), groups, filters, *target.shape[2:])

    def compute(piece: Piece) -> None:
        several, images, space, run, reads = piece
        windows = windows_of(source[images, several.start * channels : several.stop * channels], reads)
        added = None if bias is None else bias[several, run]
        _multiply(matrix[several, run], as_columns(windows, matrix.dtype), targets[images, several, run, *space], added)

    threads.run(compute, pieces(len(source), weight.shape[:3], samplings, matrix.itemsize))


def contract_weight(source: Array, grad: Array, samplings: Samplings, grad_w: Array) -> None:
    """grad_w[g, m, c, t] = sum over n, o of grad[n, (g, m), o] * source[n, (g, c), where o reads at t].

    The channels are cut into pieces of work, each of which adds up all positions, block by block.
    """
    dtype = accumulator(source.dtype)
    groups, filters, channels, *kernel = grad_w.shape
    taps, extents = prod(kernel), (len(grad), *grad.shape[2:])
    runs = channel_runs(channels, taps, prod(extents) * filters)
    most = fitting(max(runs[0].stop * taps, filters) * dtype.itemsize)
    blocks = list(memory.blocks(extents, most))
    together = memory.runs(groups, most // max(1, prod(extents)) if len(runs) == 1 else 1)

    def compute(item: tuple[slice, slice]) -> None:
        several, run = item
        read = slice(several.start * channels + run.start, (several.stop - 1) * channels + run.stop)
        into = np.moveaxis(grad_w[several, :, run], 1, -1)  # [g, c, KD, KH, KW, M]
        sums = np.zeros((len(into), prod(into.shape[1:5]), filters), dtype)
        for images, *space in blocks:
            columns = as_columns(windows_of(source[images, read], reads_of(samplings, tuple(space))), dtype)
            part = grad[images, several.start * filters : several.stop * filters, None, None, None, *space]
            gradient = as_columns(part, dtype, "convolution gradient").reshape(len(sums), filters, -1)
            sums += columns.reshape(len(sums), -1, columns.shape[1]) @ gradient.swapaxes(1, 2)
        into[...] = sums.reshape(into.shape)

    threads.run(compute, list(product(together, runs)))


# --- Pieces of work -------------------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """What one call of a thread computes."""

    groups: slice
    images: slice
    space: Block  # (D, H, W) of the targets
    filters: slice
    reads: Reads


@kept(PLANS_BYTES)
def pieces(batch: int, weight: tuple[int, ...], samplings: Samplings, itemsize: int) -> tuple[Piece, ...]:
    """The pieces of a contraction with (groups, filters, channels): columns stay in the cache, and threads have work.

    Few positions with many filters are cut by filters, and each thread computes its own columns.
    """
    groups, filters, channels = weight
    extents = (batch, *(axis.targets for axis in samplings))
    depth, positions = channels * prod(len(axis.offsets) for axis in samplings), prod(extents)
    most, shares = fitting(max(depth, filters) * itemsize), _shares(positions * filters * depth)
    blocks = list(memory.blocks(extents, min(most, max(-(-positions // shares), MIN_POSITIONS))))
    parts = max(1, min(shares // len(blocks), filters // 64))
    together = memory.runs(groups, most // max(1, positions))
    work = product(together, blocks, memory.runs(filters, -(-filters // parts)))
    return tuple(
        Piece(several, images, tuple(space), run, reads_of(samplings, tuple(space)))
        for several, (images, *space), run in work
    )


def _shares(multiplications: int) -> int:
    """Number of pieces that a group's work is worth, at most 4."""
    return max(1, min(4, multiplications // WORTH_SHARING))


def channel_runs(channels: int, taps: int, multiplications: int) -> list[slice]:
    """Runs of a group's channels, for pieces of work with so many multiplications for each channel and tap."""
    parts = min(_shares(multiplications * channels * taps), channels * taps // MIN_ROWS)
    return memory.runs(channels, -(-channels // max(1, parts)))


def fitting(column_bytes: int) -> int:
    """Number of positions whose columns, of `column_bytes` each, are a piece."""
    return max(1, min(max(PIECE_BYTES // column_bytes, MIN_POSITIONS), memory.WORKSPACE_BYTES // column_bytes))


def matrix_of(weight: Array, dtype: np.dtype[Any]) -> Array:
    """The matrices [G, M, K], K = (C, taps), of weight [G, M, C, KD, KH, KW].

    A copy follows the memory order of filters and channels, which is swapped for dgrad: BLAS accepts a transpose.
    """
    groups, filters, *depth = weight.shape
    if abs(weight.strides[1]) < abs(weight.strides[2]):
        swapped = np.ascontiguousarray(weight.transpose(0, 2, 3, 4, 5, 1), dtype)
        return swapped.reshape(groups, prod(depth), filters).swapaxes(1, 2)
    return np.ascontiguousarray(weight, dtype).reshape(groups, filters, prod(depth))


def _multiply(matrix: Array, columns: Array, part: Array, bias: Array | None) -> None:
    """Part [n, g, M, d, h, w] = matrix [g, M, K] @ columns [g * K, n P] + bias [g, M], in place where BLAS can."""
    n, groups, filters, *size = part.shape
    in_place = memory.merged_rows(part[0], 2) if n == 1 and part.dtype == matrix.dtype else None
    shape = (groups, filters, columns.shape[1])
    result = memory.scratch("convolution products", shape, matrix.dtype) if in_place is None else in_place
    np.matmul(matrix, columns.reshape(groups, -1, columns.shape[1]), out=result)
    if bias is not None:
        np.add(result, bias[:, :, None], out=result)
    if in_place is None:
        part[...] = np.moveaxis(result.reshape(groups, filters, n, *size), 2, 0)


def as_columns(windows: Array, dtype: np.dtype[Any], name: str = "convolution columns") -> Array:
    """[K, n P] of windows [n, C, KD, KH, KW, d, h, w], K = (channels, taps)."""
    n, c, *kernel = windows.shape[:5]
    if kernel == [1, 1, 1] and n == 1 and windows.dtype == dtype:  # the image itself
        in_place = memory.merged_rows(windows[0, :, 0, 0, 0], 1)
        if in_place is not None:
            return in_place
    ordered = windows.transpose(1, 2, 3, 4, 0, 5, 6, 7)
    columns = memory.scratch(name, ordered.shape, dtype)
    columns[...] = ordered
    return columns.reshape(c * prod(kernel), -1)


# --- Windows --------------------------------------------------------------------------------------------------------


class Reads(NamedTuple):
    """The sources that a block of targets reads, along (D, H, W)."""

    taps: tuple[int, ...]
    targets: tuple[int, ...]
    spacings: tuple[int, ...]  # from one tap's source to the next one's
    steps: tuple[int, ...]  # from one target's source to the next one's
    first: Block  # where the first tap of the first target is in the range that is read
    sizes: tuple[int, ...]  # of that range, padding included
    inner: Block  # its part within the image
    into: Block  # where that part is in it
    padded: tuple[bool, ...]  # whether there is more


def reads_of(samplings: Samplings, block: Block) -> Reads:
    """The reads of the targets of `block`."""
    return Reads(*zip(*map(_reads_along, samplings, block), strict=True))


def _reads_along(sampling: Sampling, targets: slice) -> tuple[Any, ...]:
    """The fields of `Reads`, of one axis."""
    begin = targets.start * sampling.step + sampling.least
    size = (targets.stop - 1) * sampling.step + sampling.most + 1 - begin
    low = min(max(begin, 0), sampling.sources)
    high = max(low, min(begin + size, sampling.sources))
    first = slice(sampling.offsets[0] - sampling.least, None)
    return (
        len(sampling.offsets), targets.stop - targets.start, sampling.spacing, sampling.step, first, size,
        slice(low, high), slice(low - begin, high - begin), high - low < size,
    )  # fmt: skip


def windows_of(source: Array, reads: Reads) -> Array:
    """Window view [n, C, KD, KH, KW, d, h, w] of source [n, C, D, H, W] for a block of targets.

    It is a view of a zero-padded copy, in C order, where windows cross the border or the channels are innermost.
    """
    if not any(reads.padded) and (source.flags.c_contiguous or not memory.is_channels_last(source)):
        return window_view(source[:, :, *reads.inner], reads)
    part = memory.scratch("padded image", (*source.shape[:2], *reads.sizes), source.dtype)
    return window_view(part, reads, source)


def window_view(part: Array, reads: Reads, source: Array | None = None) -> Array:
    """Window view of part [n, C, *sizes], all that is read, which is first copied from a `source` that is given."""
    if source is not None:
        if any(reads.padded):
            part[...] = 0
        part[:, :, *reads.into] = source[:, :, *reads.inner]
    shape = (*part.shape[:2], *reads.taps, *reads.targets)
    of_axes = part.strides[2:]
    strides = (*part.strides[:2], *map(mul, reads.spacings, of_axes), *map(mul, reads.steps, of_axes))
    return np.lib.stride_tricks.as_strided(part[:, :, *reads.first], shape, strides, writeable=False)
