"""Convolution of small groups, including depthwise: products with banded matrices, one band of rows at a time.

A group of few channels is too small for a GEMM: its filters give the product too few rows. So each product computes R
rows of the output. With the input's rows [C, KW, RB, OW] that a band of R outputs reads, copied once per tap along the
width, the output is

    y[(m, r), w] = sum over c, kw, i of matrix[(m, r), (c, kw, i)] * rows[(c, kw, i), w]

where ``matrix[(m, r), (c, kw, r * stride + kh)]`` is the filter's tap (kh, kw) and all else is 0. This does redundant
multiplications by zero, at GEMM speed, and copies less than im2col, in long runs: rows are contiguous, separated only
by the zeros of the padding. That took a third of the time of one product per group on ResNeXt's layers, and on
depthwise layers as much (3 x 3) to two thirds (7 x 7) of the time of passes over shifted planes with `numpy.einsum`,
the fastest alternative.

But 0 * inf is NaN: non-finite values would spread to other rows of their band, so another algorithm takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import isfinite, prod
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import gemm, memory, select, threads
from gpucnn.backends.numpy.memory import Array, Block
from gpucnn.geometry import Sampling
from gpucnn.geometry.caches import kept

Samplings = tuple[Sampling, Sampling, Sampling]
Part = tuple[Array, Samplings, Array]  # weight [G, M, C, KD, KH, KW], samplings and target [N, G * M, *o], any strides

LANES = 16  # columns from which BLAS takes a matrix that it need not transpose in half the time
# Bytes that a piece copies; short calls would contend for the interpreter's lock. Work of fewer than this many pieces
# is cut into that many.
MAX_BYTES, MIN_BYTES = 3 << 20, 256 << 10
PIECES = 4
PLANS_BYTES = 4 << 20  # of all plans that are kept


def contract_parts(source: Array, parts: Sequence[Part], bias: Array | None) -> list[Part]:
    """Fill targets of one source, each as `columns.contract` does; return the parts that are not finite.

    source [N, G * C, D, H, W]; bias [G, M] or None. A strided backward-input has one part for each stride residue.
    """
    left: dict[int, Part] = {}

    def attempt(piece: tuple[int, Callable[[], bool]]) -> None:
        index, compute = piece
        if index not in left and not compute():
            left[index] = parts[index]

    work = []
    dtype = accumulator(source.dtype)
    for index, (weight, samplings, target) in enumerate(parts):
        if not target.size:
            continue
        groups, filters, channels = weight.shape[:3]
        sources = source.reshape(source.shape[0], groups, channels, *source.shape[2:])
        targets = target.reshape(target.shape[0], groups, filters, *target.shape[2:])
        weight = weight.astype(dtype, copy=False)
        pieces = _contractions(sources, weight, samplings, targets, bias, PIECES // len(parts))
        work += [(index, piece) for piece in pieces]
    threads.run(attempt, work)
    return [left[index] for index in sorted(left)]


def _contractions(
    sources: Array, weight: Array, samplings: Samplings, targets: Array, bias: Array | None, least: int
) -> list[Callable[[], bool]]:
    """The pieces of a contraction: each fills its share of the targets, or returns False if that is not finite.

    sources [N, G, C, D, H, W]; weight [G, M, C, KD, KH, KW]; targets [N, G, M, OD, OH, OW]; bias [G, M] or None.
    They are at least `least`, unless the work is little.
    """
    filters, channels = weight.shape[1:3]
    dtype = weight.dtype
    rows = select.band_rows(filters, channels, samplings)
    matrix = _banded(weight, samplings[1], rows)[:, None, None]

    def compute(piece: Piece) -> bool:
        part = targets[piece.images, piece.groups, :, *piece.space]
        shape = piece.shape(part.shape, filters)
        in_place = (
            filters == 1
            and prod(shape) == part.size
            and part.dtype == dtype
            and part.strides[5] == dtype.itemsize
            and part.strides[4] >= part.shape[5] * dtype.itemsize
        )
        sums = part.reshape(shape) if in_place else memory.scratch("grouped sums", shape, dtype)
        windows = piece.reads.windows(sources[piece.images, piece.groups], dtype)
        with np.errstate(all="ignore"):  # non-finite results are recomputed, in the caller's errstate
            gemm.multiply(matrix[piece.groups], windows, sums.reshape(*shape[:4], -1, shape[6]))
            flat = sums.reshape(-1)
            if not isfinite(abs(np.vdot(flat, flat))):
                return False
        if bias is not None:
            np.add(sums, bias[piece.groups, None, None, :, None, None], out=sums)
        if not in_place:
            for onto, band in piece.share(part, sums):
                onto[...] = band
        return True

    return [partial(compute, piece) for piece in _pieces(sources, targets, samplings, rows, dtype, least)]


def contract_weight(x: Array, grad_y: Array, samplings: Samplings, grad_w: Array) -> None:
    """Fill grad_w [G, M, C, KD, KH, KW] from x [N, G * C, D, H, W] and grad_y [N, G * M, OD, OH, OW].

    The transposed product of a band's rows of grad_y with the input rows that it reads holds one partial sum of each
    tap per row of the band.
    """
    groups, filters, channels, *kernel = grad_w.shape
    sources = x.reshape(x.shape[0], groups, channels, *x.shape[2:])
    grads = grad_y.reshape(grad_y.shape[0], groups, filters, *grad_y.shape[2:])
    dtype = accumulator(x.dtype)
    if grads.size == 0:
        grad_w[...] = 0
        return
    rows = select.band_rows(filters, channels, samplings)
    pieces = _pieces(sources, grads, samplings, rows, dtype, PIECES)

    def share_of(piece: Piece) -> Array:
        part = grads[piece.images, piece.groups, :, *piece.space]
        shape = piece.shape(part.shape, filters)
        *outer, m, r, width = shape
        if m * r >= LANES:
            grad = np.moveaxis(memory.scratch("grouped gradient", (*outer, width, m, r), dtype), 4, 6)
        else:
            grad = memory.scratch("grouped gradient", shape, dtype)
        if prod(shape) > part.size:
            grad[...] = 0
        for one, band in piece.share(part, grad):
            band[...] = one
        windows = piece.reads.windows(sources[piece.images, piece.groups], dtype)
        terms = windows @ grad.reshape(*outer, m * r, width).swapaxes(-1, -2)
        return _taps(terms.sum((0, 2, 3)).swapaxes(-1, -2), filters, kernel, samplings[1], rows)

    sums = np.zeros((groups, filters, channels, *kernel), dtype)
    for piece, share in zip(pieces, threads.results_of(share_of, pieces), strict=True):
        sums[piece.groups] += share
    grad_w[...] = sums


# --- Matrices with bands --------------------------------------------------------------------------------------------


def _banded(weight: Array, height: Sampling, rows: int) -> Array:
    """Weight [G, M, C, KD, KH, KW] as matrices [G, (M, R), (C, KD, KW, rows of the input)]."""
    groups, filters, channels, kd, kh, kw = weight.shape
    band = select.band(height, rows) if rows else kh
    matrix = np.zeros((groups, filters, max(rows, 1), channels, kd, kw, band), weight.dtype)
    _diagonals(matrix, height, rows)[...] = weight[:, :, None].swapaxes(-1, -2)
    return matrix.reshape(groups, filters * max(rows, 1), -1)


def _taps(matrix: Array, filters: int, kernel: Sequence[int], height: Sampling, rows: int) -> Array:
    """Sums [G, M, C, KD, KH, KW] over the rows R of matrices as `_banded` makes."""
    kd, kh, kw = kernel
    band = select.band(height, rows) if rows else kh
    matrix = np.ascontiguousarray(matrix).reshape(len(matrix), filters, max(rows, 1), -1, kd, kw, band)
    sums: Array = _diagonals(matrix, height, rows).sum(2)
    return sums.swapaxes(-1, -2)


def _diagonals(matrix: Array, height: Sampling, rows: int) -> Array:
    """View [G, M, R, C, KD, KW, KH] of a contiguous matrix [G, M, R, C, KD, KW, rows of the input]."""
    if rows == 0:
        return matrix
    steps = list(matrix.strides)
    start = (height.offsets[0] - height.least) * steps[6]
    steps[2] += height.step * steps[6]
    steps[6] *= height.spacing
    return np.ndarray((*matrix.shape[:6], len(height.offsets)), matrix.dtype, matrix, start, steps)


# --- What a band reads ----------------------------------------------------------------------------------------------


class Reads(NamedTuple):
    """Layout of the rows of images [n, g, C, D, H, W] in one contiguous buffer, and the copies out of it.

    The buffer is [n, g, C, residues of the width's step, D, H, pitch], each row followed by as many zeros as the taps
    reach past its ends. The elements of one band and tap are then one contiguous run.
    """

    before: int  # zeros in front
    laid: tuple[int, ...]
    moves: list[tuple[Any, Any]]  # to where in this, from where in the image
    copied: tuple[
        int, ...
    ]  # [n, g, od, bands, C, KD, KW, 1, rows * pitch], or [n, g, od, 1, C, KD, KW, KH, OH * pitch]
    runs: list[tuple[slice, int, int, list[int]]]  # taps of one residue: how many, where they begin, and their steps
    matrix: tuple[int, int]  # rows and pitch of each band's matrix
    width: int  # of the pitch what is read

    def windows(self, image: Array, dtype: np.dtype[Any]) -> Array:
        """The inputs of the bands: [n, g, od, bands, (C, KD, KW, rows of the input), width]."""
        size = prod(self.laid)
        laid = memory.scratch("grouped rows", (self.before + size + self.laid[-1],), dtype)
        laid[...] = 0
        into = laid[self.before : self.before + size].reshape(self.laid)
        for to, source in self.moves:
            into[to] = image[source]
        copied = memory.scratch("grouped windows", self.copied, dtype)
        for taps, count, begin, steps in self.runs:
            shape = (*self.copied[:6], count, *self.copied[7:])
            strides = [step * dtype.itemsize for step in steps]
            copied[:, :, :, :, :, :, taps] = np.ndarray(shape, dtype, laid, begin * dtype.itemsize, strides)
        return copied.reshape(*self.copied[:4], *self.matrix)[..., : self.width]


class Piece(NamedTuple):
    """A block of targets, its (OD, OH, OW), and the inputs of its bands of R rows."""

    images: slice
    groups: slice
    space: Block
    bands: int
    rows: int
    reads: Reads

    def shape(self, part: Sequence[int], filters: int) -> tuple[int, ...]:
        """Shape [n, g, od, bands, M, R, OW] of the products for a part [n, g, M, od, OH, OW]."""
        n, g, _, od, *_ = part
        return (n, g, od, self.bands, filters, max(self.rows, 1), self.reads.width)

    def share(self, part: Array, sums: Array) -> list[tuple[Array, Array]]:
        """Slices of a part [n, g, M, od, OH, OW], each paired with its slice of `sums`, in the shape above."""
        n, g, m, od, oh, ow = part.shape
        if self.rows == 0:
            lines = sums.reshape(n, g, od, m, oh, -1)[..., :ow]
            return [(part, lines.transpose(0, 1, 3, 2, 4, 5))]
        bands = sums.transpose(0, 1, 4, 2, 3, 5, 6)
        whole, left = divmod(oh, self.rows)  # the last band may stick out
        lines = part[..., : whole * self.rows, :].reshape(n, g, m, od, whole, self.rows, ow)
        pairs = [(lines, bands[..., :whole, :, :])]
        if left:
            pairs.append((part[..., whole * self.rows :, :], bands[..., whole, :left, :]))
        return pairs


def _pieces(
    sources: Array, targets: Array, samplings: Samplings, rows: int, dtype: np.dtype[Any], least: int
) -> list[Piece]:
    """The pieces for targets [N, G, M, OD, OH, OW], planned once for the same shapes."""
    limits = (MAX_BYTES, MIN_BYTES, memory.WORKSPACE_BYTES)
    return _planned(sources.shape, targets.shape, samplings, rows, dtype.itemsize, max(1, least), limits)


@kept(PLANS_BYTES)
def _planned(
    sources: tuple[int, ...],
    targets: tuple[int, ...],
    samplings: Samplings,
    rows: int,
    itemsize: int,
    least: int,
    limits: tuple[int, int, int],
) -> list[Piece]:
    n, groups, filters, od, oh, ow = targets
    each = max(rows, 1)
    bands = -(-oh // each)
    band = select.band(samplings[1], rows) if rows else len(samplings[1].offsets)
    copied = sources[2] * len(samplings[0].offsets) * len(samplings[2].offsets) * band
    largest, smallest, workspace = limits
    share = n * groups * od * bands * ow * copied * itemsize // least + 1
    wanted = min(largest, max(smallest, share)) / copied
    most = min(wanted, workspace / (copied + 2 * filters * each)) / itemsize
    found = []
    for images, chosen, depths, several, columns in memory.blocks((n, groups, od, bands, ow), int(most)):
        lines = slice(several.start * each, min(several.stop * each, oh))
        shape = (images.stop - images.start, chosen.stop - chosen.start, *sources[2:])
        reads = _reads(shape, samplings, (depths, several, columns), rows)
        count = several.stop - several.start if rows else 1
        found.append(Piece(images, chosen, (depths, lines, columns), count, rows, reads))
    return found


def _reads(image: tuple[int, ...], samplings: Samplings, block: Block, rows: int) -> Reads:
    """The reads of a block (OD, bands, OW) from an image [n, g, C, D, H, W]; of (OD, OH, OW) with `rows` 0."""
    depths, bands, columns = block
    depth, height, width = samplings
    n, g, channels, *size = image
    od, many, ow = (axis.stop - axis.start for axis in block)
    to_d, from_d, deep = _positions(depth, depths.start, od, size[0])
    each = max(rows, 1)
    to_h, from_h, tall = _positions(height, bands.start * each, many * each, size[1])
    step = width.step
    every_tap = width.by_residue()
    residues = [width.offsets[taps[0]] % step for taps in every_tap]
    shifts = [offset // step + columns.start for offset in width.offsets]
    first = max(0, min(shifts))
    before, after = max(0, -min(shifts)), max(0, ow + max(shifts) - first)
    counts = [max(0, min(len(range(residue, size[2], step)) - first, after)) for residue in residues]
    pitch = max(after, before + max(counts), ow)
    plane = deep * tall * pitch

    moves, runs = [], []
    for i, (residue, count, taps) in enumerate(zip(residues, counts, every_tap, strict=True)):
        start = first * step + residue
        columns_read = slice(start, start + count * step, step)
        moves.append(((..., i, to_d, to_h, slice(0, count)), (..., from_d, from_h, columns_read)))
        begin = before + i * plane + (depth.offsets[0] - depth.least) * tall * pitch + shifts[taps[0]] - first
        steps = [
            g * channels * len(residues) * plane,
            channels * len(residues) * plane,
            depth.step * tall * pitch,
            each * height.step * pitch,
            len(residues) * plane,
            depth.spacing * tall * pitch,
            shifts[taps[1]] - shifts[taps[0]] if len(taps) > 1 else 0,
            height.spacing * pitch,
            1,
        ]
        if rows == 0:
            begin += (height.offsets[0] - height.least) * pitch
        runs.append((slice(taps.start, taps.stop, taps.step), len(taps), begin, steps))
    laid = (n, g, channels, len(residues), deep, tall, pitch)
    kd, kh, kw = (len(axis.offsets) for axis in samplings)
    if rows == 0:
        copied = (n, g, od, 1, channels, kd, kw, kh, many * pitch)
        return Reads(before, laid, moves, copied, runs, (channels * kd * kw * kh, many * pitch), many * pitch)
    band = select.band(height, rows)
    copied = (n, g, od, many, channels, kd, kw, 1, band * pitch)
    return Reads(before, laid, moves, copied, runs, (channels * kd * kw * band, pitch), ow)


def _positions(sampling: Sampling, start: int, targets: int, sources: int) -> tuple[slice, slice, int]:
    """Positions that targets from `start` on read: slices of them and of an axis of `sources`, and their number."""
    first = start * sampling.step + sampling.least
    count = (targets - 1) * sampling.step + select.reach(sampling)
    begin = min(count, max(0, -first))
    end = max(begin, min(count, sources - first))
    return slice(begin, end), slice(first + begin, first + end), count
