"""Convolution with three taps to an axis and stride 1 by Winograd's minimal filtering, F(2, 3) along each such axis.

Two outputs of a three-tap filter take four products in place of six; over height and width a tile of 2 x 2 outputs
takes 16 products in place of 36, so a matrix product does 2.25 times less. Images and filters are transformed to 4 x 4
frequencies by sums and differences, each frequency is one matrix product over the channels, and the products are
transformed back:

    d0 - d2, d1 + d2, d2 - d1, d1 - d3        of the inputs d0 … d3 of a tile
    w0, (w0 + w1 + w2) / 2, (w0 - w1 + w2) / 2, w2        of the filter
    m0 + m1 + m2, m1 - m2 - m3        of the products m0 … m3: the two outputs

Images are held as phases, the even and the odd rows and columns, so that every sum is one pass over flat memory: what
lies a tile further is a constant distance away, and the sums across the ends of rows are never read.

With 64 to 512 channels it took 0.55 to 0.75 of the time of columns and a product.

References
----------
A. Lavin, S. Gray, *Fast algorithms for convolutional neural networks*, 2015, arXiv:1509.09308v2.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import memory, threads
from gpucnn.backends.numpy.memory import Array, Block
from gpucnn.geometry import Sampling

Samplings = tuple[Sampling, Sampling, Sampling]

# Bytes of the transformed image of a piece; pieces of 1 to 2 MiB were within 5 % of the best on 64 to 256 channels.
PIECE_BYTES = 5 << 18
LEAST_TILES = 112  # of a piece: fewer and the products read the filters more often than they use them
MOST_TILES = 256

FILTER = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])  # frequency, tap


def computes(samplings: Sequence[Sampling]) -> bool:
    """Whether the taps of these axes (D, H, W) are what the transforms take: width has three, height three or one."""
    depth, height, width = samplings
    return (
        depth.step == height.step == width.step == 1
        and len(width.offsets) == 3
        and len(height.offsets) in (1, 3)
        and len(depth.offsets) > 0
    )


class Part(NamedTuple):
    """Targets ``start, start + step, …`` of an axis, which read the sources ``start, start + step, …`` of their own."""

    targets: slice
    sources: slice
    sampling: Sampling


def undilated(sampling: Sampling) -> list[Part]:
    """A dilated axis as axes without dilation: targets of one residue read sources of one residue only."""
    step = abs(sampling.offsets[1] - sampling.offsets[0]) if len(sampling.offsets) > 1 else 1
    parts = []
    for first in range(min(step, sampling.targets)):
        reads = [first + offset for offset in sampling.offsets]
        begin = reads[0] % step
        sampled = Sampling(
            targets=-(-(sampling.targets - first) // step),
            sources=max(0, -(-(sampling.sources - begin) // step)),
            step=1,
            offsets=tuple((read - begin) // step for read in reads),
        )
        parts.append(Part(slice(first, None, step), slice(begin, None, step), sampled))
    return parts


def contract(source: Array, weight: Array, samplings: Samplings, target: Array, bias: Array | None) -> bool:
    """As `columns.contract`, but False where a value is not finite, which a tile would spread to its other outputs.

    source [N, G * C, D, H, W]; weight [G, M, C, KD, KH, KW]; target [N, G * M, *o], any strides; bias [G, M].
    """
    depth, height, width = samplings
    flips: Any = tuple(slice(None, None, -1 if s.offsets[0] > s.offsets[-1] else 1) for s in (height, width))
    weight = weight[..., *flips]
    height, width = (Sampling(s.targets, s.sources, s.step, tuple(sorted(s.offsets))) for s in (height, width))
    filters = transform_filters(weight, accumulator(source.dtype), last=memory.is_channels_last(source))
    work = []
    for g, h, w in product(range(weight.shape[0]), undilated(height), undilated(width)):
        images = _Images(
            source=_group(source, weight.shape[2], g)[..., h.sources, w.sources],
            target=_group(target, weight.shape[1], g)[..., h.targets, w.targets],
            filters=filters[:, g],
            bias=None if bias is None else bias[g],
            samplings=(depth, h.sampling, w.sampling),
            last=memory.is_channels_last(source),
        )
        work += [(images, piece) for piece in images.pieces()]
    finite = [True]

    def compute(item: tuple[_Images, Piece]) -> None:
        images, piece = item
        with np.errstate(all="ignore"):  # what is not finite is computed again, in the caller's own errstate
            if finite[0] and not images.compute(piece):
                finite[0] = False

    threads.run(compute, work)
    return finite[0]


def _group(image: Array, channels: int, g: int) -> Array:
    return image[:, g * channels : (g + 1) * channels]


def transform_filters(weight: Array, dtype: np.dtype[Any], last: bool) -> Array:
    """[frequencies, G, M, KD * C] of weight [G, M, C, KD, KH, 3], or with `last` [frequencies, G, KD * C, M].

    Frequencies are (width, height), 4 x 4 of them or 4.
    """
    groups, filters, *_, kh, _ = weight.shape
    matrix = FILTER if kh == 1 else np.einsum("qj,ri->qrij", FILTER, FILTER).reshape(16, 9)
    order = (0, 3, 2, 1, 4, 5) if last else (0, 1, 3, 2, 4, 5)
    taps = np.ascontiguousarray(weight.transpose(order), dtype).reshape(-1, kh * 3)
    frequencies = len(matrix)
    result = np.empty((frequencies, len(taps)), dtype)
    matrix = matrix.astype(dtype)
    rows = memory.runs(len(taps), max(1, -(-len(taps) // 4)) if len(taps) > 1 << 14 else len(taps))
    threads.run(lambda run: np.matmul(matrix, taps[run].T, out=result[:, run]), rows)
    inner = (-1, filters) if last else (filters, -1)
    return result.reshape(frequencies, groups, *inner)


class Piece(NamedTuple):
    """Slices of images, depths, tile rows, tile columns, and of the filters."""

    block: Block
    filters: slice


class _Images:
    """One group's images and what is to become of them."""

    def __init__(
        self, source: Array, target: Array, filters: Array, bias: Array | None, samplings: Samplings, last: bool
    ) -> None:
        self.source, self.target, self.filters, self.bias = source, target, filters, bias
        self.samplings, self.last = samplings, last
        self.tall = len(samplings[1].offsets) == 3  # tiles of two rows, else of one
        self.depth = filters.shape[1 if last else 2]  # of the products: depth taps times channels

    def pieces(self) -> list[Piece]:
        """Some hundred tiles each, so that what is transformed stays in the cache; filters are cut if tiles are few."""
        n, outputs, *space = self.target.shape
        extents = (n, space[0], -(-space[1] // 2) if self.tall else space[1], -(-space[2] // 2))
        frequencies, tiles = len(self.filters), int(np.prod(extents))
        tile_bytes = frequencies * max(self.depth, outputs) * self.filters.itemsize
        most = min(max(LEAST_TILES, PIECE_BYTES // tile_bytes), MOST_TILES, memory.WORKSPACE_BYTES // tile_bytes)
        blocks = list(memory.blocks(extents, most))
        parts = 1
        if len(blocks) < 4 and frequencies * tiles * outputs * self.depth > 1 << 24:
            parts = max(1, min(4 // len(blocks), outputs // 64))
        return [Piece(b, f) for b in blocks for f in memory.runs(outputs, -(-outputs // parts))]

    def compute(self, piece: Piece) -> bool:
        """Fill the piece's share of the target; False if it holds a value that is not finite."""
        (images, depths, rows, columns), chosen = piece
        n, d, th, tw = (s.stop - s.start for s in piece.block)
        wide = tw + 1  # tiles from one row to the next
        high = th + 1 if self.tall else th
        length = n * d * high * wide
        counted = length - wide if self.tall else length  # tiles, those between rows and images included
        filters = self.filters[:, :, chosen] if self.last else self.filters[:, chosen]
        outputs = chosen.stop - chosen.start
        frequencies, tall = len(self.filters), 4 if self.tall else 1
        dtype = self.filters.dtype

        phases = memory.scratch("winograd phases", (2 if self.tall else 1, 2, self.depth * length), dtype)
        self._read(phases, images, depths, rows, columns, (n, d, high, wide))
        unit = self.depth if self.last else 1  # from one tile to the next
        transformed = memory.scratch("winograd image", (4, tall, self.depth * length), dtype)
        if self.tall:
            vertical = memory.scratch("winograd vertical", (4, 2, self.depth * length), dtype)
            _differences(phases[0], phases[1], wide * unit, vertical)
        else:
            vertical = phases
        _differences(vertical[:, 0], vertical[:, 1], unit, transformed)

        products = memory.scratch("winograd products", (frequencies, outputs * counted), dtype)
        if self.last:
            image = transformed.reshape(frequencies, length, self.depth)[:, :counted]
            np.matmul(image, filters, out=products.reshape(frequencies, counted, outputs))
        else:
            image = transformed.reshape(frequencies, self.depth, length)[..., :counted]
            np.matmul(filters, image, out=products.reshape(frequencies, outputs, counted))
        if self.bias is not None:  # the one frequency that is a term, with a plus, of every output
            bias = self.bias[chosen] if self.last else self.bias[chosen, None]
            which = products[5 if self.tall else 1].reshape((counted, outputs) if self.last else (outputs, counted))
            np.add(which, bias, out=which)

        by_width = products.reshape(4, tall, -1)
        halves = memory.scratch("winograd halves", (2, tall, outputs * counted), dtype)
        _sums(by_width, halves)
        if self.tall:
            result = products.reshape(-1)[: halves.size // 2].reshape(2, 2, -1)  # (row, column) of the tile
            _sums(halves.swapaxes(0, 1), result)
        else:
            result = halves.reshape(1, 2, -1)
        finite = bool(np.isfinite(result @ np.ones(result.shape[-1], dtype)).all())
        self._write(result, piece, (n, d, high, wide), (outputs, counted))
        return finite

    def _read(
        self, phases: Array, images: slice, depths: slice, rows: slice, columns: slice, size: tuple[int, ...]
    ) -> None:
        """Fill phases [row phase, column phase, (KD, C) x (n, d, high, wide)] with the inputs, zero outside."""
        n, d, high, wide = size
        deep, height, width = self.samplings
        taps, channels = len(deep.offsets), self.source.shape[1]
        shape = (n, d, high, wide, taps, channels) if self.last else (taps, channels, n, d, high, wide)
        phases[...] = 0
        step = len(phases)
        for a, b in product(range(step), range(2)):
            view = phases[a, b].reshape(shape)
            view = np.moveaxis(view, (4, 5), (0, 1)) if self.last else view
            into_h, from_h = _overlap(rows.start * step + height.offsets[0] + a, step, high, self.source.shape[3])
            into_w, from_w = _overlap(columns.start * 2 + width.offsets[0] + b, 2, wide, self.source.shape[4])
            for tap, offset in enumerate(deep.offsets):
                into_d, from_d = _overlap(depths.start + offset, 1, d, self.source.shape[2])
                read = self.source[images, :, from_d, from_h, from_w]
                view[tap, :, :, into_d, into_h, into_w] = read.swapaxes(0, 1)

    def _write(self, result: Array, piece: Piece, size: tuple[int, ...], counts: tuple[int, int]) -> None:
        """Put result [row, column, M x (n, d, high, wide)] of the tiles where it belongs."""
        (images, depths, rows, columns), chosen = piece
        _, d, high, wide = size
        outputs, counted = counts
        step = len(result)
        target = self.target[images, chosen, depths, rows.start * step : rows.stop * step]
        target = target[..., columns.start * 2 : columns.stop * 2]
        channel, tile = (1, outputs) if self.last else (counted, 1)
        for a, b in product(range(step), range(2)):
            part = target[..., a::step, b::2]
            strides = (d * high * wide * tile, channel, high * wide * tile, wide * tile, tile)
            part[...] = np.lib.stride_tricks.as_strided(
                result[a, b], part.shape, [stride * result.itemsize for stride in strides]
            )


def _differences(even: Array, odd: Array, step: int, out: Array) -> None:
    """The four frequencies of tiles d0 = even[i], d1 = odd[i], d2 = even[i + step], d3 = odd[i + step]."""
    n = even.shape[-1] - step
    np.subtract(even[..., :n], even[..., step:], out=out[0, ..., :n])
    np.add(odd[..., :n], even[..., step:], out=out[1, ..., :n])
    np.subtract(even[..., step:], odd[..., :n], out=out[2, ..., :n])
    np.subtract(odd[..., :n], odd[..., step:], out=out[3, ..., :n])
    out[..., n:] = 0  # tiles past the last one


def _sums(m: Array, out: Array) -> None:
    """The two outputs of each tile from its four products."""
    np.add(m[1], m[2], out=out[0])
    np.add(out[0], m[0], out=out[0])
    np.subtract(m[1], m[2], out=out[1])
    np.subtract(out[1], m[3], out=out[1])


def _overlap(start: int, step: int, count: int, size: int) -> tuple[slice, slice]:
    """Which of the positions ``start, start + step, …`` lie in [0, size), and as a slice of what is there."""
    first = max(0, -(start // step))
    last = min(count, -((start - size) // step))
    if first >= last:
        return slice(0, 0), slice(0, 0)
    return slice(first, last), slice(start + first * step, start + (last - 1) * step + 1, step)
