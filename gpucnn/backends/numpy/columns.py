"""Convolution as im2col and GEMM, one block of outputs at a time.

A block's columns stay in a core's cache: they are written and multiplied before the next block begins, so they cost
about a tenth of the GEMM. Channels-last images give rows in place of columns, in their own memory order.
"""

from __future__ import annotations

import threading
from itertools import product
from math import prod
from typing import Any

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import gemm, memory, threads
from gpucnn.backends.numpy.memory import Array, Block
from gpucnn.geometry import Sampling
from gpucnn.geometry.caches import kept

Samplings = tuple[Sampling, Sampling, Sampling]

# Bytes of a piece's columns. On ResNet's and VGG's layers 1 to 3 MiB were within 3 % of each other, 16 MiB took 1.1.
PIECE_BYTES = 2 << 20
MIN_POSITIONS = 192  # of a piece, for each one's product reads the whole weight
WORTH_PACKING = 1 << 18  # weights that are not worth a thread to copy
PLANS_BYTES = 4 << 20  # of all lists of pieces that are kept
WORTH_SHARING = 1 << 22  # multiply-adds below which a piece is not worth a thread


def contract(source: Array, weight: Array, samplings: Samplings, target: Array, bias: Array | None) -> None:
    """target[n, (g, m), o] = bias[g, m] + sum over c, t of weight[g, m, c, t] * source[n, (g, c), where o reads at t].

    source [N, G * C, D, H, W]; weight [G, M, C, KD, KH, KW]; target [N, G * M, *o], any strides; bias [G, M] or None.
    """
    groups, filters, channels, *kernel = weight.shape
    dtype = accumulator(source.dtype)
    last = memory.is_channels_last(source)
    matrix = matrix_of(weight, dtype, last)
    sources = source.reshape(source.shape[0], groups, channels, *source.shape[2:])
    targets = target.reshape(target.shape[0], groups, filters, *target.shape[2:])
    if bias is not None:
        bias = bias.astype(dtype, copy=False)

    latest = _Latest()

    def compute(item: tuple[int, Block, slice]) -> None:
        g, (images, *space), chosen = item
        block = tuple(space)
        where: Any = (images, g, chosen, *block)
        part = targets[where]  # [n, M, d, h, w]
        if latest.read != (g, images, block):
            windows = windows_of(sources[images, g], samplings, block)
            latest.made = as_rows(windows, dtype) if last else as_columns(windows, dtype)
            latest.read = g, images, block
        added = None if bias is None else bias[g, chosen]
        if last:
            _multiply_rows(latest.made, matrix[g, :, chosen], part, added)
        else:
            _multiply_columns(matrix[g, chosen], latest.made, part, added)

    work = pieces((source.shape[0], *target.shape[2:]), filters, channels * prod(kernel), dtype.itemsize)
    threads.run(compute, [(g, *piece) for g in range(groups) for piece in work])


class _Latest(threading.local):
    """Per-thread cache of the last columns, which the next piece may reuse for other filters."""

    read: Any = None
    made: Array


def matrix_of(weight: Array, dtype: np.dtype[Any], last: bool) -> Array:
    """The matrices [G, M, K], K = (C, taps), of weight [G, M, C, KD, KH, KW]; [G, K, M], K = (taps, C), if `last`.

    The copy follows the memory order of filters and channels, which is swapped for dgrad. There is no copy where the
    weight already has that order: BLAS accepts a transpose.
    """
    groups, filters, *depth = weight.shape
    swapped = abs(weight.strides[1]) < abs(weight.strides[2])
    row = (3, 4, 5, 2) if last else (2, 3, 4, 5)
    ordered = weight.transpose((0, *row, 1) if swapped else (0, 1, *row))
    if ordered.dtype != dtype or not ordered.flags.c_contiguous:
        packed = np.empty(ordered.shape, dtype)
        axis = 4 if swapped and last else 1  # the outermost in memory

        def pack(run: slice) -> None:
            where = (slice(None),) * axis + (run,)
            packed[where] = ordered[where]

        each = -(-WORTH_PACKING * ordered.shape[axis] // ordered.size)
        threads.run(pack, memory.runs(ordered.shape[axis], each))
        ordered = packed
    matrix = ordered.reshape((groups, prod(depth), filters) if swapped else (groups, filters, prod(depth)))
    return matrix if swapped == last else matrix.swapaxes(1, 2)


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


def _multiply_columns(matrix: Array, columns: Array, part: Array, bias: Array | None) -> None:
    """Part [n, M, d, h, w] = matrix [M, K] @ columns [K, n P] + bias [M], in place where BLAS can."""
    in_place = memory.merged_rows(part[0], 1) if len(part) == 1 and part.dtype == matrix.dtype else None
    shape = (len(matrix), columns.shape[1])
    result = memory.scratch("convolution products", shape, matrix.dtype) if in_place is None else in_place
    gemm.multiply(matrix, columns, result)
    if bias is not None:
        np.add(result, bias[:, None], out=result)
    if in_place is None:
        part[...] = result.reshape(len(matrix), part.shape[0], *part.shape[2:]).swapaxes(0, 1)


def _multiply_rows(rows: Array, matrix: Array, part: Array, bias: Array | None) -> None:
    """Part [n, M, d, h, w] = rows [n P, K] @ matrix [K, M] + bias [M], in place where BLAS can."""
    in_place = _pixels(part) if part.dtype == matrix.dtype else None
    shape = (len(rows), matrix.shape[1])
    result = memory.scratch("convolution products", shape, matrix.dtype) if in_place is None else in_place
    gemm.multiply(rows, matrix, result)
    if bias is not None:
        np.add(result, bias, out=result)
    if in_place is None:
        part[...] = np.moveaxis(result.reshape(part.shape[0], *part.shape[2:], -1), -1, 1)


def as_columns(windows: Array, dtype: np.dtype[Any], name: str = "convolution columns") -> Array:
    """[K, n P] of windows [n, C, KD, KH, KW, d, h, w], K = (channels, taps)."""
    n, c, *kernel = windows.shape[:5]
    if prod(kernel) == 1 and n == 1 and windows.dtype == dtype:  # a 1x1 window's column is the image itself
        in_place = memory.merged_rows(windows[0, :, 0, 0, 0], 1)
        if in_place is not None:
            return in_place
    ordered = windows.transpose(1, 2, 3, 4, 0, 5, 6, 7)
    columns = memory.scratch(name, ordered.shape, dtype)
    columns[...] = ordered
    return columns.reshape(c * prod(kernel), -1)


def as_rows(windows: Array, dtype: np.dtype[Any], name: str = "convolution columns") -> Array:
    """[n P, K] of windows [n, C, KD, KH, KW, d, h, w], K = (taps, channels)."""
    if prod(windows.shape[2:5]) == 1 and windows.dtype == dtype:
        in_place = _pixels(windows[:, :, 0, 0, 0])
        if in_place is not None:
            return in_place
    ordered = windows.transpose(0, 5, 6, 7, 2, 3, 4, 1)
    rows = memory.scratch(name, ordered.shape, dtype)
    rows[...] = ordered
    return rows.reshape(-1, prod(windows.shape[1:5]))


def _pixels(image: Array) -> Array | None:
    """A view [n P, C] of image [n, C, d, h, w] that BLAS takes, or None."""
    view = memory.merged(np.moveaxis(image, 1, 0), 1)
    if view is None or (len(view) > 1 and view.strides[0] != view.itemsize):
        return None
    return view.T


def windows_of(source: Array, samplings: Samplings, block: Block) -> Array:
    """Window view [n, C, KD, KH, KW, d, h, w] of source [n, C, D, H, W] for the targets of `block`.

    Where windows cross the border it is a view of a zero-padded copy of the part that they read.
    """
    part = _padded_part(source, samplings, block)
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


def _padded_part(source: Array, samplings: Samplings, block: Block) -> Array:
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
    if inside:
        return source[:, :, *read]
    if memory.is_channels_last(source):
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
    """grad_w[g, m, c, t] = sum over n, o of grad[n, (g, m), o] * source[n, (g, c), where o reads at t].

    Either the positions are cut into pieces, whose sums are added in order, or the channels are.
    """
    dtype = accumulator(source.dtype)
    n, (groups, filters, channels, *kernel) = len(source), grad_w.shape
    taps = prod(kernel)
    sources = source.reshape(n, groups, channels, *source.shape[2:])
    grads = grad.reshape(n, groups, filters, *grad.shape[2:])
    extents = (n, *grad.shape[2:])
    whole = filters * channels * taps
    worth = n * prod(grad.shape[2:]) * whole // WORTH_SHARING
    by_channels = whole * dtype.itemsize > PARTIAL_BYTES
    parts = min(8, channels, max(2, whole * dtype.itemsize // PARTIAL_BYTES)) if by_channels and worth > 1 else 1
    chosen = memory.runs(channels, -(-channels // parts))
    widest = -(-channels // parts) * taps
    blocks = list(memory.blocks(extents, _fitting(max(widest, filters) * dtype.itemsize)))
    most = len(blocks) if by_channels else -(-len(blocks) // max(1, min(8, worth)))
    shares = memory.runs(len(blocks), most)
    target = np.moveaxis(grad_w.reshape(groups, filters, channels, taps), 1, -1)
    if not blocks:
        target[...] = 0
        return
    is_direct = target.dtype == dtype and target.flags.c_contiguous
    sums = [target if is_direct else np.empty(target.shape, dtype)]
    sums += [np.empty(target.shape, dtype) for _ in shares[1:]]
    last = memory.is_channels_last(source)

    def compute(item: tuple[int, int, slice]) -> None:
        share, g, run = item
        into = sums[share][g, run]
        for number, (images, *space) in enumerate(blocks[shares[share]]):
            block = tuple(space)
            windows = windows_of(sources[images, g, run], samplings, block)
            gradient = grads[images, g, :, None, None, None, *block]
            terms = memory.scratch("convolution products", (into.shape[0] * taps, filters), dtype)
            if last:  # K is (taps, channels) there
                rows = as_rows(windows, dtype)
                gemm.multiply(rows.T, as_rows(gradient, dtype, "convolution gradient"), terms)
                by_tap: Array = terms.reshape(taps, -1, filters).swapaxes(0, 1)
            else:
                columns = as_columns(windows, dtype)
                gemm.multiply(columns, as_columns(gradient, dtype, "convolution gradient").T, terms)
                by_tap = terms.reshape(into.shape)
            if number:
                np.add(into, by_tap, out=into)
            else:
                into[...] = by_tap

    threads.run(compute, list(product(range(len(shares)), range(groups), chosen)))
    for following in sums[1:]:
        sums[0] += following
    if sums[0] is not target:
        target[...] = sums[0]
