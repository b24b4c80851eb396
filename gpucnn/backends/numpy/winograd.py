"""Convolution with three taps to an axis and stride 1 by Winograd's minimal filtering, F(2, 3) along each such axis.

Two outputs of a three-tap filter take four products in place of six; over height and width a tile of 2 x 2 outputs
takes 16 products in place of 36, so a matrix product does 2.25 times less. Images and filters are transformed to 4 x 4
frequencies by sums and differences, each frequency is one matrix product over the channels, and the products are
transformed back:

    d0 - d2, d1 - d3, d1 + d2, d2 - d1        of the inputs d0 … d3 of a tile
    w0, -w2, (w0 + w1 + w2) / 2, (w0 - w1 + w2) / 2        of the filter
    m0 + m2 + m3, m1 + m2 - m3        of the products m0 … m3: the two outputs

with signs and order such that the first two sums, and the last two, are one pass each.

Images are stored as phases, the even and the odd rows and columns, so that every sum is one pass over contiguous
memory: neighbouring tiles are at a constant offset, and sums across the ends of rows are never read.

With 64 to 512 channels it took 0.55 to 0.75 of the time of im2col and GEMM.

Errors are relative to the tile: small compared with its largest products, not with an output that its large values do
not contribute to. On images after a ReLU with 64 to 512 channels the root mean square error, against float64, was 1.1
to 1.3 times that of im2col and GEMM in float32, and 1.5 to 1.95 times that of PyTorch, which sums fewer consecutive
terms.

References
----------
A. Lavin, S. Gray, *Fast algorithms for convolutional neural networks*, 2015, arXiv:1509.09308v2.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import product
from math import isfinite
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import gemm, memory, threads
from gpucnn.backends.numpy.memory import Array, Block
from gpucnn.geometry import Sampling

Samplings = tuple[Sampling, Sampling, Sampling]

# Bytes of the transformed image of a piece; pieces of 1 to 2 MiB were within 5 % of the best on 64 to 256 channels.
PIECE_BYTES = 5 << 18
MIN_TILES = 160  # of a piece: fewer and the products read the filters more often than they use them
MAX_TILES = 320

# Channels that one product adds up, in a row: with 256 and 512 of them halves and quarters brought the error from 2.6
# of PyTorch's to 1.9, for 1.07 of the time.
MAX_TERMS = 128

FILTER = np.array([[1, 0, 0], [0, 0, -1], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5]])  # frequency, tap


def computes(samplings: Sequence[Sampling]) -> bool:
    """Whether the transforms apply to the taps of these axes (D, H, W): width has three, height three or one."""
    depth, height, width = samplings
    return depth.step == height.step == width.step == 1 and len(width.offsets) == 3 and len(height.offsets) in (1, 3)


class Part(NamedTuple):
    """Targets ``start, start + step, …`` of an axis, which read the sources ``start, start + step, …`` of their own."""

    targets: slice
    sources: slice
    sampling: Sampling


def undilated(sampling: Sampling) -> list[Part]:
    """A dilated axis as axes without dilation: targets of one residue read sources of one residue only."""
    step = abs(sampling.spacing) or 1
    parts = []
    for first in range(min(step, sampling.targets)):
        read = first + sampling.offsets[0]
        begin, between = read % step, sampling.spacing // step or 1
        tap = (read - begin) // step
        sampled = Sampling(
            targets=-(-(sampling.targets - first) // step),
            sources=max(0, -(-(sampling.sources - begin) // step)),
            step=1,
            offsets=range(tap, tap + len(sampling.offsets) * between, between),
        )
        parts.append(Part(slice(first, None, step), slice(begin, None, step), sampled))
    return parts


def contract(source: Array, weight: Array, samplings: Samplings, target: Array, bias: Array | None) -> bool:
    """As `columns.contract`, but return False if a value is not finite: a tile would spread it to its other outputs.

    source [N, G * C, D, H, W]; weight [G, M, C, KD, KH, KW]; target [N, G * M, *o], any strides; bias [G, M].
    """
    depth, height, width = samplings
    dtype, last = accumulator(source.dtype), memory.is_channels_last(source)
    flips = [axis.offsets[0] > axis.offsets[-1] for axis in samplings]
    with np.errstate(all="ignore"):  # here and below: non-finite results are recomputed, in the caller's errstate
        filters = transform_filters(weight, dtype, last, flips)
    height, width = (
        Sampling(s.targets, s.sources, s.step, s.offsets[::-1] if flip else s.offsets)
        for s, flip in zip((height, width), flips[1:], strict=True)
    )
    work = []
    for g, h, w in product(range(weight.shape[0]), undilated(height), undilated(width)):
        images = _Images(
            source=_group(source, weight.shape[2], g)[..., h.sources, w.sources],
            target=_group(target, weight.shape[1], g)[..., h.targets, w.targets],
            filters=filters[:, g],
            bias=None if bias is None else bias[g],
            samplings=(depth, h.sampling, w.sampling),
            last=last,
        )
        work += [(images, piece) for piece in images.pieces()]
    finite = [True]
    spaces = _Workspaces()

    def compute(item: tuple[_Images, Piece]) -> None:
        images, piece = item
        if finite[0]:
            space = spaces.of(images.shape_of(piece))
            with np.errstate(all="ignore"):
                images.compute(piece, space)
                whole = space.transform_back()
            if whole:
                images.write(piece, space)
            else:
                finite[0] = False

    threads.run(compute, work)
    return finite[0]


def _group(image: Array, channels: int, g: int) -> Array:
    return image[:, g * channels : (g + 1) * channels]


def transform_filters(weight: Array, dtype: np.dtype[Any], last: bool, flips: Sequence[bool]) -> Array:
    """[frequencies, G, M, KD * C] of weight [G, M, C, KD, KH, 3], or with `last` [frequencies, G, KD * C, M].

    Frequencies are (width, height), 4 x 4 of them or 4. Taps are reversed along the axes (D, H, W) that `flips` names,
    except the depth. Filters are transformed in their memory order; BLAS accepts a transpose.
    """
    groups, filters, channels, kd, kh, _ = weight.shape
    by_height, by_width = (FILTER[:, ::-1] if flip else FILTER for flip in flips[1:])
    matrix = by_width if kh == 1 else np.einsum("qj,ri->qrij", by_width, by_height).reshape(16, 9)
    matrix = np.ascontiguousarray(matrix, dtype)
    swapped = abs(weight.strides[1]) < abs(weight.strides[2])  # filters innermost, as in a backward-input
    taps = weight.transpose((0, 3, 2, 1, 4, 5) if swapped else (0, 1, 3, 2, 4, 5)).astype(dtype, copy=False)
    taps = taps.reshape(-1, kh * 3)
    result = memory.scratch("winograd filters", (len(matrix), len(taps)), dtype)

    def transform(chunk: slice) -> None:
        for start in range(chunk.start, chunk.stop, 4096):
            run = slice(start, min(start + 4096, chunk.stop))
            by_tap = memory.scratch("winograd taps", (kh * 3, run.stop - start), dtype)
            by_tap[...] = taps[run].T  # BLAS took 1.5 times as long with the transpose
            np.matmul(matrix, by_tap, out=result[:, run])

    threads.run(transform, memory.runs(len(taps), max(1 << 14, -(-len(taps) // 8))))
    shape = (kd * channels, filters) if swapped else (filters, kd * channels)
    result = result.reshape(-1, groups, *shape)
    return result if swapped == last else result.swapaxes(2, 3)


class Piece(NamedTuple):
    """Slices of images, depths, tile rows, tile columns, and of the filters."""

    block: Block
    filters: slice


class _Images:
    """One group's images, filters and targets."""

    def __init__(
        self, source: Array, target: Array, filters: Array, bias: Array | None, samplings: Samplings, last: bool
    ) -> None:
        self.source, self.target, self.filters, self.bias = source, target, filters, bias
        self.samplings, self.last = samplings, last
        self.tall = len(samplings[1].offsets) == 3  # tiles of two rows, else of one
        self.depth = filters.shape[1 if last else 2]  # of the products: depth taps times channels

    def pieces(self) -> list[Piece]:
        """Pieces of some hundred tiles, so that the transforms stay in cache; filters are cut if tiles are few."""
        n, outputs, *space = self.target.shape
        extents = (n, space[0], -(-space[1] // 2) if self.tall else space[1], -(-space[2] // 2))
        frequencies, tiles = len(self.filters), int(np.prod(extents))
        tile_bytes = frequencies * max(self.depth, outputs) * self.filters.itemsize
        most = min(max(MIN_TILES, PIECE_BYTES // tile_bytes), MAX_TILES, memory.WORKSPACE_BYTES // tile_bytes)
        blocks = list(memory.blocks(extents, most))
        parts = 1
        if len(blocks) < 4 and frequencies * tiles * outputs * self.depth > 1 << 24:
            parts = max(1, min(4 // len(blocks), outputs // 64))
        return [Piece(b, f) for b in blocks for f in memory.runs(outputs, -(-outputs // parts))]

    def shape_of(self, piece: Piece) -> PieceShape:
        """Shape of the workspace for the piece."""
        n, d, th, tw = (s.stop - s.start for s in piece.block)
        outputs = piece.filters.stop - piece.filters.start
        return PieceShape(self.depth, outputs, n, d, th, tw, 2 if self.tall else 1, self.filters.dtype, self.last)

    def compute(self, piece: Piece, space: _Workspace) -> None:
        """Fill the workspace with the products of the piece's images and filters."""
        filters = self.filters[:, :, piece.filters] if self.last else self.filters[:, piece.filters]
        if space.held != (self, piece.block):  # or the last piece was of the same image, for other filters
            self._read(piece, space)
            space.transform()
            space.held = self, piece.block
        left, right = (space.image, filters) if self.last else (filters, space.image)
        runs = memory.runs(self.depth, MAX_TERMS)
        if len(runs) == 1:
            gemm.multiply(left, right, space.products)
        else:
            self._multiply_runs(left, right, runs, space.products)
        if self.bias is not None:  # to the one frequency that is a term, with a plus, of every output
            bias = self.bias[piece.filters] if self.last else self.bias[piece.filters, None]
            np.add(space.constant, bias, out=space.constant)

    def _multiply_runs(self, left: Array, right: Array, runs: list[slice], result: Array) -> None:
        """Result [F, R, C] = left [F, R, depth] @ right [F, depth, C], a sum over each run of the depth, in order."""
        terms = memory.scratch("winograd terms", result.shape[1:], result.dtype)
        for a, b, out in zip(left, right, result, strict=True):
            gemm.multiply(a[:, runs[0]], b[runs[0]], out)
            for run in runs[1:]:
                gemm.multiply(a[:, run], b[run], terms)
                np.add(out, terms, out=out)

    def _read(self, piece: Piece, space: _Workspace) -> None:
        """Fill the phases with the inputs that the piece's tiles read, zero outside of the image."""
        images, depths, rows, columns = piece.block
        deep, height, width = self.samplings
        d, high, wide = space.size[1:]
        step = len(space.phases)
        by_row = [_overlap(rows.start * step + height.offsets[0] + a, step, high, height.sources) for a in range(step)]
        by_column = [_overlap(columns.start * 2 + width.offsets[0] + b, 2, wide, width.sources) for b in range(2)]
        by_tap = [_overlap(depths.start + offset, 1, d, deep.sources) for offset in deep.offsets]
        space.clear_outside([into for into, _ in (*by_tap, *by_row, *by_column)])
        for tap, (into_d, from_d) in enumerate(by_tap):
            chosen = slice(tap * len(self.source[0]), (tap + 1) * len(self.source[0]))
            for (a, (into_h, from_h)), (b, (into_w, from_w)) in product(enumerate(by_row), enumerate(by_column)):
                read = self.source[images, :, from_d, from_h, from_w]
                space.by_phase[a, b, chosen, :, into_d, into_h, into_w] = read.swapaxes(0, 1)

    def write(self, piece: Piece, space: _Workspace) -> None:
        """Write the results of the tiles to the target."""
        images, depths, rows, columns = piece.block
        step = len(space.phases)
        target = self.target[images, piece.filters, depths, rows.start * step : rows.stop * step]
        target = target[..., columns.start * 2 : columns.stop * 2]
        for a, b in product(range(step), range(2)):
            part = target[..., a::step, b::2]
            part[...] = space.results[a, b, ..., : part.shape[3], : part.shape[4]]


class PieceShape(NamedTuple):
    """The sizes that determine the arrays of a piece."""

    depth: int  # of the products: depth taps times channels
    outputs: int
    n: int
    d: int
    th: int  # rows of tiles
    tw: int  # tiles in a row
    rows: int  # of a tile
    dtype: np.dtype[Any]
    last: bool


class _Workspaces(threading.local):
    """A thread's workspaces, for the pieces of one call."""

    def __init__(self) -> None:
        self._of: dict[PieceShape, _Workspace] = {}

    def of(self, shape: PieceShape) -> _Workspace:
        if shape not in self._of:
            self._of = {shape: _Workspace(shape)}  # they share memory: only one is valid at a time
        return self._of[shape]


class _Workspace:
    """The workspace in which a thread transforms pieces of one shape, and the views of it.

    Tiles are contiguous, with one spare column per row of tiles and one spare row per image: n * d * high * wide of
    them for each channel, or with `last` each with its channels.
    """

    def __init__(self, shape: PieceShape) -> None:
        depth, outputs, n, d, th, tw, rows, dtype, last = shape
        wide, high = tw + 1, th + rows - 1
        self.size = n, d, high, wide
        length = n * d * high * wide
        tiles = length - wide if rows == 2 else length  # the last spare row is left out
        tall, unit = rows * rows, depth if last else 1
        self.phases = memory.scratch("winograd phases", (rows, 2, depth * length), dtype)
        self.by_phase = self.phases.reshape(rows, 2, *((n, d, high, wide, depth) if last else (depth, *self.size)))
        if last:
            self.by_phase = np.moveaxis(self.by_phase, -1, 2)
        self._filled: list[slice] = []
        self.held: tuple[_Images, Block] | None = None  # what is transformed
        image = memory.scratch("winograd image", (4, tall, depth * length), dtype)
        if rows == 2:
            vertical = memory.scratch("winograd vertical", (4, 2, depth * length), dtype)
            self._forward = _differences(self.phases, wide * unit, vertical)
        else:
            vertical, self._forward = self.phases, []
        self._forward += _differences(vertical.swapaxes(0, 1), unit, image)
        if last:
            self.image = image.reshape(-1, length, depth)[:, :tiles]
        else:
            self.image = image.reshape(-1, depth, length)[..., :tiles]

        flat = memory.scratch("winograd products", (4, tall, outputs * tiles), dtype)
        self.products = flat.reshape(-1, *((tiles, outputs) if last else (outputs, tiles)))
        self.constant = self.products[10 if rows == 2 else 2]  # the third along each axis
        halves = memory.scratch("winograd halves", (2, tall, outputs * tiles), dtype)
        self._back = _sums(flat, halves)
        if rows == 2:
            self._result = flat[0].reshape(2, 2, -1)  # [row, column] of the tile
            self._back += _sums(halves.swapaxes(0, 1), self._result)
        else:
            self._result = halves.swapaxes(0, 1)
        self._ones = np.ones(2 * rows * outputs * tiles, dtype)
        self._flat_result = (flat if rows == 2 else halves).reshape(-1)[: len(self._ones)]
        channel, tile = (1, outputs) if last else (tiles, 1)
        strides = [dtype.itemsize * s for s in (d * high * wide * tile, channel, high * wide * tile, wide * tile, tile)]
        self.results = np.lib.stride_tricks.as_strided(  # [row, column] of the tile, n, M, d, th, tw
            self._result, (rows, 2, n, outputs, d, th, tw), [*self._result.strides[:2], *strides]
        )

    def clear_outside(self, filled: list[slice]) -> None:
        """Zero all that `filled` does not cover; the zeros stay valid for pieces that fill the same."""
        if filled != self._filled:
            self.phases[...] = 0
            self._filled = filled

    def transform(self) -> None:
        """Transform phases to frequencies."""
        for operation, left, right, out in self._forward:
            operation(left, right, out)

    def transform_back(self) -> bool:
        """Transform products to results; return whether all of them are finite."""
        for operation, left, right, out in self._back:
            operation(left, right, out)
        return isfinite(self._flat_result @ self._ones)


Sum = tuple[np.ufunc, Array, Array, Array]  # operation, left, right, out


def _differences(phases: Array, step: int, out: Array) -> list[Sum]:
    """Sums that give the four frequencies of tiles of d0, d1 = phases[:, i] and d2, d3 = phases[:, i + step]."""
    n = phases.shape[-1] - step
    out[..., n:] = 0  # tiles past the last one
    firsts, lasts, out = phases[..., :n], phases[..., step:], out[..., :n]
    return [
        (np.subtract, firsts, lasts, out[:2]),
        (np.add, firsts[1], lasts[0], out[2]),
        (np.subtract, lasts[0], firsts[1], out[3]),
    ]


def _sums(m: Array, out: Array) -> list[Sum]:
    """Sums that give the two outputs of each tile from its four products."""
    return [(np.add, m[2], m[3], out[0]), (np.subtract, m[2], m[3], out[1]), (np.add, out, m[:2], out)]


def _overlap(start: int, step: int, count: int, size: int) -> tuple[slice, slice]:
    """Slices of the `count` positions ``start, start + step, …`` in [0, size): of the positions, and of the axis."""
    first = max(0, -(start // step))
    last = min(count, -((start - size) // step))
    if first >= last:
        return slice(0, 0), slice(0, 0)
    return slice(first, last), slice(start + first * step, start + (last - 1) * step + 1, step)
