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
WORTH_SHARING = 1 << 22  # multiply-adds below which a piece is not worth a thread


def contract(source: Array, weight: Array, samplings: Samplings, target: Array, bias: Array | None) -> None:
    """target[n, (g, m), o] = bias[g, m] + sum over c, t of weight[g, m, c, t] * source[n, (g, c), where o reads at t].

    source [N, G * C, D, H, W]; weight [G, M, C, KD, KH, KW]; target [N, G * M, *o], any strides; bias [G, M] or None.
    """
    contract_bands(
        source, weight, samplings, target.reshape(len(target), *weight.shape[:2], 1, *target.shape[2:]), bias
    )


def contract_bands(source: Array, weight: Array, samplings: Samplings, targets: Array, bias: Array | None) -> None:
    """As `contract`, with weight [G, M * R, C, KD, KH, KW] and targets [N, G, M, R, *o]."""
    groups, filters, channels, *_ = weight.shape
    rows, dtype = targets.shape[3], accumulator(source.dtype)
    matrix = matrix_of(weight, dtype)
    if bias is not None:
        bias = np.repeat(bias.astype(dtype, copy=False), rows, axis=1)

    def compute(item: Item) -> None:
        several, images, space, run, reads = item
        windows = windows_of(source[images, several.start * channels : several.stop * channels], reads)
        part = targets[images, several, run, :, *space]
        chosen = slice(run.start * rows, run.stop * rows)
        added = None if bias is None else bias[several, chosen]
        _multiply(matrix[several, chosen], as_columns(windows, dtype), part, added)

    threads.run(compute, _items(len(source), groups, filters // rows, channels, samplings, dtype.itemsize))


Item = tuple[slice, slice, Block, slice, "Reads"]  # groups, images, (D, H, W) of targets, filters, what is read


@kept(PLANS_BYTES)
def _items(
    batch: int, groups: int, filters: int, channels: int, samplings: Samplings, itemsize: int
) -> tuple[Item, ...]:
    """The work items of a contraction."""
    extents, depth = (batch, *(axis.targets for axis in samplings)), channels * prod(len(a.offsets) for a in samplings)
    work = pieces(extents, filters, depth, itemsize)
    several = memory.runs(groups, _together(len(work), prod(extents), depth, itemsize))
    return tuple(
        (run, images, tuple(space), part, reads_of(samplings, tuple(space)))
        for run in several
        for (images, *space), part in work
    )


def _together(pieces: int, positions: int, depth: int, itemsize: int) -> int:
    """Groups whose columns make one piece."""
    if pieces > 1:
        return 1
    return max(1, min(PIECE_BYTES, memory.WORKSPACE_BYTES) // max(1, positions * depth * itemsize))


def matrix_of(weight: Array, dtype: np.dtype[Any]) -> Array:
    """The matrices [G, M, K], K = (C, taps), of weight [G, M, C, KD, KH, KW].

    A copy follows the memory order of filters and channels, which is swapped for dgrad: BLAS accepts a transpose.
    """
    groups, filters, *depth = weight.shape
    if abs(weight.strides[1]) < abs(weight.strides[2]):
        swapped = np.ascontiguousarray(weight.transpose(0, 2, 3, 4, 5, 1), dtype)
        return swapped.reshape(groups, prod(depth), filters).swapaxes(1, 2)
    return np.ascontiguousarray(weight, dtype).reshape(groups, filters, prod(depth))


Pieces = tuple[tuple[Block, slice], ...]


@kept(PLANS_BYTES)
def pieces(extents: tuple[int, ...], filters: int, depth: int, itemsize: int) -> Pieces:
    """Blocks of (N, D, H, W) targets and runs of filters, cut so that columns stay in the cache and threads have work.

    `depth` is the length of a column. Few positions with many filters are cut by filters, and each thread computes
    its own columns.
    """
    positions, most = prod(extents), _fitting(max(depth, filters) * itemsize)
    shares = min(4, positions * filters * depth // WORTH_SHARING)
    if shares > 1:
        most = min(most, max(-(-positions // shares), min(MIN_POSITIONS, positions)))
    blocks = list(memory.blocks(extents, most))
    parts = max(1, min(shares // len(blocks), filters // 64))
    return tuple((block, run) for block in blocks for run in memory.runs(filters, -(-filters // parts)))


def _fitting(column_bytes: int) -> int:
    """Number of positions in a piece whose columns take `column_bytes` each."""
    return max(1, min(max(PIECE_BYTES // column_bytes, MIN_POSITIONS), memory.WORKSPACE_BYTES // column_bytes))


def _multiply(matrix: Array, columns: Array, part: Array, bias: Array | None) -> None:
    """Part [n, g, M, R, d, h, w] = matrix [g, M * R, K] @ columns [g * K, n P] + bias, in place where BLAS can."""
    n, groups, filters, rows, *size = part.shape
    in_place = memory.merged_rows(part[0, :, :, 0], 2) if n == rows == 1 and part.dtype == matrix.dtype else None
    shape = (*matrix.shape[:2], columns.shape[1])
    result = memory.scratch("convolution products", shape, matrix.dtype) if in_place is None else in_place
    np.matmul(matrix, columns.reshape(groups, -1, columns.shape[1]), out=result)
    if bias is not None:
        np.add(result, bias[:, :, None], out=result)
    if in_place is None:
        part[...] = np.moveaxis(result.reshape(groups, filters, rows, n, *size), 3, 0)


def as_columns(windows: Array, dtype: np.dtype[Any], name: str = "convolution columns") -> Array:
    """[K, n P] of windows [n, C, KD, KH, KW, d, h, w], K = (channels, taps)."""
    n, c, *kernel = windows.shape[:5]
    if kernel[1:] == [1, 1] and 1 in (c, kernel[0]) and n == 1 and windows.dtype == dtype:  # the image itself
        in_place = memory.merged_rows(windows[0, :, :, 0, 0].reshape(c * kernel[0], *windows.shape[5:]), 1)
        if in_place is not None:
            return in_place
    ordered = windows.transpose(1, 2, 3, 4, 0, 5, 6, 7)
    columns = memory.scratch(name, ordered.shape, dtype)
    columns[...] = ordered
    return columns.reshape(c * prod(kernel), -1)


class Reads(NamedTuple):
    """The sources that a block of targets reads, along (D, H, W)."""

    taps: tuple[int, ...]
    targets: tuple[int, ...]
    spacings: tuple[int, ...]  # from one tap's source to the next one's
    steps: tuple[int, ...]  # from one target's source to the next one's
    first: Block  # where the first tap of the first target is in the range that is read
    inner: Block  # that range within the image
    sizes: tuple[int, ...]  # of all of the range, padding included
    into: Block  # where the image's part is in it
    padding: tuple[Block, ...]  # and where zeros are


def reads_of(samplings: Samplings, block: Block) -> Reads:
    """The reads of the targets of `block`."""
    inner: Block = ()
    into: Block = ()
    sizes: tuple[int, ...] = ()
    padding: tuple[Block, ...] = ()
    for axis, (sampling, targets) in enumerate(zip(samplings, block, strict=True)):
        begin = targets.start * sampling.step + sampling.least
        size = (targets.stop - 1) * sampling.step + sampling.most + 1 - begin
        low = min(max(begin, 0), sampling.sources)
        high = max(low, min(begin + size, sampling.sources))
        for outside in (slice(0, low - begin), slice(max(0, high - begin), size)):
            if max(0, outside.start) < min(outside.stop, size):
                padding += ((slice(None),) * (2 + axis) + (slice(outside.start, min(outside.stop, size)),),)
        inner, into, sizes = (*inner, slice(low, high)), (*into, slice(low - begin, high - begin)), (*sizes, size)
    return Reads(
        tuple(len(sampling.offsets) for sampling in samplings),
        tuple(targets.stop - targets.start for targets in block),
        tuple(sampling.spacing for sampling in samplings),
        tuple(sampling.step for sampling in samplings),
        tuple(slice(sampling.offsets[0] - sampling.least, None) for sampling in samplings),
        inner,
        sizes,
        into,
        padding,
    )


def windows_of(source: Array, reads: Reads, last: bool = False) -> Array:
    """Window view [n, C, KD, KH, KW, d, h, w] of source [n, C, D, H, W] for a block of targets.

    Where windows cross the border it is a view of a zero-padded copy of the part that they read, and so it is where
    they are not to be `last` but the source is: of a copy in C order.
    """
    in_place = not reads.padding and (last or source.flags.c_contiguous or not memory.is_channels_last(source))
    part = source[:, :, *reads.inner] if in_place else _padded_part(source, reads, last)
    shape = (*part.shape[:2], *reads.taps, *reads.targets)
    of_axes = part.strides[2:]
    strides = (*part.strides[:2], *map(mul, reads.spacings, of_axes), *map(mul, reads.steps, of_axes))
    return np.lib.stride_tricks.as_strided(part[:, :, *reads.first], shape, strides, writeable=False)


def _padded_part(source: Array, reads: Reads, last: bool) -> Array:
    """The sources that a block of targets reads, with zeros outside of the image."""
    n, c = source.shape[:2]
    shape = (n, *reads.sizes, c) if last else (n, c, *reads.sizes)
    buffer = memory.scratch("padded image", shape, source.dtype)
    if last:
        buffer = np.moveaxis(buffer, -1, 1)
    for outside in reads.padding:
        buffer[outside] = 0
    buffer[:, :, *reads.into] = source[:, :, *reads.inner]
    return buffer


# --- The gradient with respect to the weight ------------------------------------------------------------------------

PARTIAL_BYTES = 1 << 20  # of one piece's sums: larger weights are cut by channels, with all positions to each piece


def contract_weight(source: Array, grad: Array, samplings: Samplings, grad_w: Array) -> None:
    """grad_w[g, m, c, t] = sum over n, o of grad[n, (g, m), o] * source[n, (g, c), where o reads at t]."""
    grads = grad.reshape(len(grad), *grad_w.shape[:2], 1, *grad.shape[2:])
    contract_weight_bands(source, grads, samplings, grad_w)


def contract_weight_bands(source: Array, grads: Array, samplings: Samplings, grad_w: Array) -> None:
    """As `contract_weight`, with grads [N, G, M, R, *o] and grad_w [G, M * R, C, KD, KH, KW].

    Either the positions are cut into pieces, whose sums are added in order, or the channels are.
    """
    dtype = accumulator(source.dtype)
    groups, filters, channels, *kernel = grad_w.shape
    taps, extents = prod(kernel), (len(grads), *grads.shape[4:])
    whole = filters * channels * taps
    worth = prod(extents) * whole // WORTH_SHARING
    by_channels = whole * dtype.itemsize > PARTIAL_BYTES
    parts = min(8, channels, max(2, whole * dtype.itemsize // PARTIAL_BYTES)) if by_channels and worth > 1 else 1
    widest = -(-channels // parts) * taps
    blocks = list(memory.blocks(extents, _fitting(max(widest, filters) * dtype.itemsize)))
    if not blocks:
        grad_w[...] = 0
        return
    most = len(blocks) if by_channels else -(-len(blocks) // max(1, min(8, worth)))
    shares = memory.runs(len(blocks), most)
    together = 1 if parts > 1 else _together(len(blocks), prod(extents), channels * taps, dtype.itemsize)
    sums = np.empty((len(shares), groups, channels, taps, filters), dtype)

    def compute(item: tuple[int, slice, slice]) -> None:
        share, several, run = item
        into = sums[share, several, run]
        for number, (images, *space) in enumerate(blocks[shares[share]]):
            block = tuple(space)
            channel_run = slice(several.start * channels + run.start, (several.stop - 1) * channels + run.stop)
            windows = windows_of(source[images, channel_run], reads_of(samplings, block))
            gradient = grads[images, several, :, :, None, *block]  # [n, g, M, R, 1, d, h, w]
            columns = as_columns(windows, dtype).reshape(len(into), into.shape[1] * taps, -1)
            gradient = as_columns(gradient, dtype, "convolution gradient").reshape(len(into), filters, -1)
            by_tap = (columns @ gradient.swapaxes(1, 2)).reshape(into.shape)
            if number:
                np.add(into, by_tap, out=into)
            else:
                into[...] = by_tap

    several = memory.runs(groups, together)
    threads.run(compute, list(product(range(len(shares)), several, memory.runs(channels, -(-channels // parts)))))
    for following in sums[1:]:
        sums[0] += following
    grad_w.reshape(groups, filters, channels, taps)[...] = np.moveaxis(sums[0], -1, 1)
