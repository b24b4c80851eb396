"""Tiles of pooling and unpooling in shared memory (kernels/tiles.cuh): pure functions.

Arrays with dense planes are read in runs, several planes or a band of one at a time. Other arrays are not staged.

Gain over the plain kernels, counted on layers (benchmarks/results/kernel-gains.md): 19 to 99 % of the sectors are
saved, mostly reads that L1 would serve, at 0.3 to 3.4 times the memory instructions. Bands that are cut along rows,
too, save 63 to 68 % of the sectors of volumes and of unpooling where channels are last; small planes that share a block
save 22 to 39 % of those of 7 x 7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends.cuda.device.limits import MAX_SHARED_BYTES, SECTOR_BYTES
from gpucnn.backends.cuda.device.runtime import MAX_BYTES
from gpucnn.backends.cuda.launch.plans import INT32_END, Fields, Layout
from gpucnn.backends.layout import is_dense

WANTED_SHARED = 24 << 10  # enough that six or more blocks share a multiprocessor and each one's halo is small
WHOLE_SHARED = 16 << 10  # bytes up to which small planes share a block
WANTED_BLOCKS = 512  # below which small planes get separate blocks
MAX_HALO = 1.12  # elements read over elements there are, above which a tile may have MAX_SHARED_BYTES
PARTS = 32  # grains that a band of parts of rows has at most
SLACK = 64  # slots that the alignment of both ends may take

Sizes = tuple[int, ...]  # (D, H, W)
Ints = np.ndarray[Any, np.dtype[np.int64]]
Span = Callable[[int, Ints, Ints], Ints]


class Tile(NamedTuple):
    """A block's share of the array that is written, and its resources."""

    planes: int  # or images where channels are last
    band_axis: int
    bands: int
    tile: int
    row_bands: int
    row_tile: int  # along the next axis; all of it where row_bands is 1
    inner: int
    read: int  # elements at most
    written: int
    shared_bytes: int
    blocks: int  # of the launch

    def columns(self, width: int) -> int:
        """Elements of one row of the share where the array's rows have `width` positions."""
        if self.band_axis == 2:
            return self.tile * self.inner
        return (self.row_tile if self.band_axis == 1 and self.row_bands > 1 else width) * self.inner

    @property
    def fields(self) -> Fields:
        """The kernel parameters of the tile."""
        return {
            "tile_planes": self.planes,
            "band_axis": self.band_axis,
            "bands": self.bands,
            "tile": self.tile,
            "row_bands": self.row_bands,
            "row_tile": self.row_tile,
            "inner": self.inner,
            "read_slots": slots(self.read),
            "write_slots": slots(self.written),
        }


NOT_STAGED: Fields = {
    "tile_planes": 0, "band_axis": 0, "bands": 1, "tile": 0, "row_bands": 1, "row_tile": 0, "inner": 1, "read_slots": 0,
    "write_slots": 0,
}  # fmt: skip


def dense_order(*arrays: Layout) -> bool | None:
    """Whether all `arrays` [N, C, D, H, W] are dense with their channels last; None where they are dense in no order.

    Examples
    --------
    >>> shape = (2, 3, 1, 1, 2)
    >>> dense_order(Layout(shape, (24, 8, 8, 8, 4), 4)), dense_order(Layout(shape, (24, 4, 24, 24, 12), 4))
    (False, True)
    """
    for channels_last, order in ((False, (0, 1, 2, 3, 4)), (True, (0, 2, 3, 4, 1))):
        if all(is_dense(array, order) for array in arrays):
            return channels_last
    return None


def pack_of(*arrays: Layout) -> int:
    """Vector width of the first of `arrays` in elements: 16 bytes, or 1 element where one array is not aligned."""
    aligned = all(array.alignment == MAX_BYTES for array in arrays)
    return max(1, MAX_BYTES // arrays[0].itemsize) if aligned else 1


def slots(elements: int) -> int:
    """Slots that hold `elements` at any alignment; whole sectors of any type."""
    return -(-(elements + SLACK) // SECTOR_BYTES) * SECTOR_BYTES


def tile_of(
    read: Sizes,
    written: Sizes,
    span: Span,
    grain: Sequence[int],
    planes: int,
    channels: int,
    itemsize: int,
    shared: Callable[[int, int], int],
    *,
    parted: bool = False,
) -> Tile | None:
    """The tile of a block, or None where not even one position of a band fits.

    Parameters
    ----------
    read, written
        Sizes of both arrays.
    span
        ``span(axis, first, last)``: the number of positions read for [first, last) written, elementwise for arrays.
    grain
        Positions along each axis that should stay in one tile: they read the same inputs.
    planes
        Planes, or images where channels are last.
    channels
        Those that are innermost in memory; 1 where planes are.
    itemsize
        Bytes of an element.
    shared
        ``shared(read, written)``: bytes of shared memory for these numbers of elements.
    parted
        Whether the kernel accepts parts of rows, which it may where channels fill sectors.
    """
    if not planes * channels:
        return None
    axis = next((k for k in range(3) if max(read[k], written[k]) > 1), 2)
    cuts = _Cuts(read, written, axis, span, grain, channels, itemsize, shared)
    best = cuts.bands()
    if parted and axis < 2 and channels > 1 and channels * itemsize % SECTOR_BYTES == 0:
        parts = cuts.parts()
        if parts is not None and (best is None or best.halo > max(MAX_HALO, parts.halo + 0.05)):
            return cuts.tile(parts, planes)
    return None if best is None else cuts.tile(best, planes)


class _Cut(NamedTuple):
    """Bands of `positions`, of `inner` channels and, where they are cut, too, `row_tile` positions of the next axis."""

    halo: float  # elements read over those there are
    inner: int
    positions: int
    row_tile: int = 0


class _Cuts(NamedTuple):
    """The ways to cut planes along `axis`, and along the next; the other fields are parameters of `tile_of`."""

    read: Sizes
    written: Sizes
    axis: int
    span: Span
    grain: Sequence[int]
    channels: int
    itemsize: int
    shared: Callable[[int, int], int]

    def bands(self) -> _Cut | None:
        """Bands of whole rows with few reads, or None where not even one position fits."""
        best: _Cut | None = None
        for inner in _inner_candidates(self.channels, self.itemsize):
            for most in (WANTED_SHARED, MAX_SHARED_BYTES):
                positions = self._band(inner, most)
                halo = self._halo(self.axis, positions) if positions else 0.0
                if positions and (best is None or halo < best.halo - 0.01):
                    best = _Cut(halo, inner, positions)
            if best is not None and best.halo <= MAX_HALO:
                break
        return best

    def parts(self) -> _Cut | None:
        """Bands cut along the next axis, too, with the fewest reads; None if none fits."""
        axis, grain = self.axis, self.grain
        for most in (WANTED_SHARED, MAX_SHARED_BYTES):
            found = []
            for inner in _inner_candidates(self.channels, self.itemsize):
                if inner * self.itemsize > 2 * SECTOR_BYTES:
                    continue
                last = min(PARTS * grain[axis], self.written[axis] + grain[axis] - 1)
                for tile in range(grain[axis], last + 1, grain[axis]):
                    row_tile = self._row_tile(inner, tile, most)
                    if row_tile:
                        halo = round(self._halo(axis, tile) * self._halo(axis + 1, row_tile), 2)
                        found.append((halo, -inner, tile, row_tile))
            if found and (min(found)[0] <= MAX_HALO or most == MAX_SHARED_BYTES):
                halo, inner, tile, row_tile = min(found)
                return _Cut(halo, -inner, tile, row_tile)
        return None

    def _row_tile(self, inner: int, positions: int, most: int) -> int:
        """Positions of the next axis, whole grains, that a band fits with into `most` bytes; 0 if none does."""
        grain = self.grain[self.axis + 1]
        grains = -(-self.written[self.axis + 1] // grain)
        return grain * _largest(grains, lambda n: self._fits(_Cut(0, inner, positions, n * grain), most))

    def tile(self, cut: _Cut, planes: int) -> Tile:
        """The tile of a cut; planes that are not cut share a block."""
        bands, together = -(-self.written[self.axis] // cut.positions), 1
        next_size = self.written[min(self.axis + 1, 2)]
        row_tile = cut.row_tile or next_size
        row_bands = -(-next_size // row_tile) if cut.row_tile else 1
        slices = self.channels // cut.inner
        read, written = self._taken(cut)
        if bands == row_bands == 1 and not cut.row_tile:
            aligned = SECTOR_BYTES // self.itemsize or 1  # planes that begin and end with whole sectors
            wanted = -(-planes * slices // WANTED_BLOCKS // aligned) * aligned
            of_plane = (prod(self.read[self.axis :]) * cut.inner, prod(self.written[self.axis :]) * cut.inner)
            most = WHOLE_SHARED * aligned // self.shared(aligned * of_plane[0], aligned * of_plane[1])
            most = most // aligned * aligned if most >= aligned else most
            together = max(1, min(most, wanted, planes))
        read, written = together * read, together * written
        blocks = -(-planes // together) * bands * row_bands * slices
        sizes = (bands, cut.positions, row_bands, row_tile, cut.inner)
        return Tile(together, self.axis, *sizes, read, written, self.shared(read, written), blocks)

    def _band(self, inner: int, most: int) -> int:
        """The positions of a band that fits into `most` bytes, even ones; 0 if none does."""
        extent, grain = self.written[self.axis], self.grain[self.axis]
        low = _largest(extent, lambda positions: self._fits(_Cut(0, inner, positions), most))
        if low in (0, extent):
            return low
        step = grain if low >= grain else 1
        bands = -(-extent // (low // step * step))
        positions = -(-extent // bands // step) * step
        fits = self._fits(_Cut(0, inner, positions), most)
        return positions if fits else low  # shorter bands may begin where more is read

    def _fits(self, cut: _Cut, most: int) -> bool:
        return self.shared(*self._taken(cut)) <= most

    def _taken(self, cut: _Cut) -> tuple[int, int]:
        """Most elements that a block reads and writes."""
        rest = self.axis + (2 if cut.row_tile else 1)
        read, written = int(self._spans(self.axis, cut.positions).max()), cut.positions
        if cut.row_tile:
            read *= int(self._spans(self.axis + 1, cut.row_tile).max())
            written *= cut.row_tile
        return read * prod(self.read[rest:]) * cut.inner, written * prod(self.written[rest:]) * cut.inner

    def _halo(self, axis: int, positions: int) -> float:
        return int(self._spans(axis, positions).sum()) / self.read[axis]

    def _spans(self, axis: int, positions: int) -> Ints:
        """Number of positions read by each band of `positions` positions along `axis`."""
        if positions >= self.written[axis]:
            return np.array([self.read[axis]])
        firsts = np.arange(0, self.written[axis], positions)
        return self.span(axis, firsts, np.minimum(firsts + positions, self.written[axis]))


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `most` that fits, or 0; all below one that fits do."""
    if fits(most):
        return most
    low, high = 0, most - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _inner_candidates(channels: int, itemsize: int) -> list[int]:
    """Channels that a block may take, most first: all, or whole sectors of them."""
    if channels * itemsize % SECTOR_BYTES:
        return [channels]
    least = SECTOR_BYTES // itemsize or 1
    return [channels] + [
        inner for inner in range(channels - least, 0, -least) if channels % inner == 0 and inner % least == 0
    ]


def fits_int32(*sizes: Sizes) -> bool:
    """Whether positions in planes of these sizes are kept as int."""
    return all(prod(size) < INT32_END for size in sizes)
