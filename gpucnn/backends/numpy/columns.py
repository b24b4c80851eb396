"""Convolution as im2col and GEMM, one block of outputs at a time.

A block's columns stay in a core's cache: they are written and multiplied before the next block begins, so they cost
about a tenth of the GEMM. Several small groups are one block, and one stack of products.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

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
    groups, filters, channels, *kernel = weight.shape
    rows, extents = targets.shape[3], (len(targets), *targets.shape[4:])
    dtype = accumulator(source.dtype)
    matrix = matrix_of(weight, dtype)
    if bias is not None:
        bias = np.repeat(bias.astype(dtype, copy=False), rows, axis=1)

    def compute(item: tuple[slice, Block, slice]) -> None:
        several, (images, *space), run = item
        windows = windows_of(of_groups(source, several, channels, images), samplings, tuple(space))
        part = targets[images, several, run, :, *space]
        chosen = slice(run.start * rows, run.stop * rows)
        added = None if bias is None else bias[several, chosen]
        _multiply(matrix[several, chosen], as_columns(windows, dtype), part, added)

    depth = channels * prod(kernel)
    work = pieces(extents, filters // rows, depth, dtype.itemsize)
    together = _together(len(work), prod(extents), depth, dtype)
    threads.run(compute, [(several, *piece) for several in memory.runs(groups, together) for piece in work])


def of_groups(image: Array, several: slice, channels: int, images: slice) -> Array:
    """The channels of some groups of some images."""
    return image[images, several.start * channels : several.stop * channels]


def _together(pieces: int, positions: int, depth: int, dtype: np.dtype[Any]) -> int:
    """Groups whose columns make one piece."""
    return (
        1
        if pieces > 1
        else max(1, min(PIECE_BYTES, memory.WORKSPACE_BYTES) // max(1, positions * depth * dtype.itemsize))
    )


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


@kept(PLANS_BYTES)  # 9 of the 75 us that a conv2d of 8 x 8 pixels took
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


def windows_of(source: Array, samplings: Samplings, block: Block, last: bool = False) -> Array:
    """Window view [n, C, KD, KH, KW, d, h, w] of source [n, C, D, H, W] for the targets of `block`.

    Where windows cross the border it is a view of a zero-padded copy of the part that they read, and so it is where
    they are not to be `last` but the source is: of a copy in C order.
    """
    part = _padded_part(source, samplings, block, last)
    shape, strides = list(part.shape[:2]), list(part.strides[:2])
    first: list[slice] = []
    for sampling, stride in zip(samplings, part.strides[2:], strict=True):
        offsets = sampling.offsets
        shape.append(len(offsets))
        strides.append(sampling.spacing * stride)
        first.append(slice(offsets[0] - sampling.least, None))
    shape += [s.stop - s.start for s in block]
    strides += [sampling.step * stride for sampling, stride in zip(samplings, part.strides[2:], strict=True)]
    return np.lib.stride_tricks.as_strided(part[:, :, *tuple(first)], shape, strides, writeable=False)


def _padded_part(source: Array, samplings: Samplings, block: Block, last: bool) -> Array:
    """The range of sources that the targets of `block` read, zero-padded outside the image."""
    into: Block = ()
    read: Block = ()
    sizes: list[int] = []
    inside = True
    for sampling, targets, size in zip(samplings, block, source.shape[2:], strict=True):
        begin = targets.start * sampling.step + sampling.least
        end = (targets.stop - 1) * sampling.step + sampling.most + 1
        inside = inside and begin >= 0 and end <= size
        low, high = min(max(begin, 0), size), max(min(end, size), 0)
        read += (slice(low, max(low, high)),)
        into += (slice(low - begin, max(low, high) - begin),)
        sizes.append(end - begin)
    if inside and (last or not memory.is_channels_last(source)):
        return source[:, :, *read]
    if last:
        buffer = memory.scratch("padded image", (source.shape[0], *sizes, source.shape[1]), source.dtype)
        buffer = np.moveaxis(buffer, -1, 1)
    else:
        buffer = memory.scratch("padded image", (*source.shape[:2], *sizes), source.dtype)
    for axis, (size, inner) in enumerate(zip(sizes, into, strict=True), start=2):
        for outside in (slice(0, max(0, inner.start)), slice(min(max(0, inner.stop), size), size)):
            if outside.start < outside.stop:
                buffer[(slice(None),) * axis + (outside,)] = 0
    buffer[:, :, *into] = source[:, :, *read]
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
    together = 1 if parts > 1 else _together(len(blocks), prod(extents), channels * taps, dtype)
    sums = np.empty((len(shares), groups, channels, taps, filters), dtype)

    def compute(item: tuple[int, slice, slice]) -> None:
        share, several, run = item
        into = sums[share, several, run]
        for number, (images, *space) in enumerate(blocks[shares[share]]):
            block = tuple(space)
            channel_run = slice(several.start * channels + run.start, (several.stop - 1) * channels + run.stop)
            windows = windows_of(source[images, channel_run], samplings, block)
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
