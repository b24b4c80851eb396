"""Tiles of pooling and unpooling in shared memory (kernels/tiles.cuh): pure functions.

Arrays with dense planes are read in runs, several planes or a band of one at a time. Other arrays are not staged.

Gain over the plain kernels, counted on layers (benchmarks/results/kernel-gains.md): 19 to 99 % of the sectors, mostly
reads that L1 would serve, at 0.3 to 3.4 times the memory instructions.
Bands that are cut along rows, too, save 63 to 68 % of the sectors of volumes and of unpooling where channels are last;
small planes that share a block save 22 to 39 % of those of 7 x 7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends.cuda.device.limits import MAX_SHARED_BYTES
from gpucnn.backends.cuda.device.runtime import MAX_BYTES
from gpucnn.backends.cuda.launch.plans import INT32_END, Fields, Layout
from gpucnn.backends.layout import is_dense

WANTED_SHARED = 24 << 10  # enough that six or more blocks share a multiprocessor and each one's halo is small
WHOLE_SHARED = 16 << 10  # bytes up to which small planes share a block
WANTED_BLOCKS = 512  # below which small planes get separate blocks
MAX_HALO = 1.12  # elements read over elements there are, above which a tile may have MAX_SHARED_BYTES
PARTS = 32  # grains that a band of parts of rows has at most
SECTOR = 32  # bytes of global memory that are moved together
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
    return -(-(elements + SLACK) // SECTOR) * SECTOR


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
    read_unit, written_unit = prod(read[axis + 1 :]), prod(written[axis + 1 :])
    extent = written[axis]

    def spans(positions: int) -> Ints:
        return _spans(read, written, axis, span, positions)

    def cost(positions: int, inner: int) -> int:
        return shared(int(spans(positions).max()) * read_unit * inner, positions * written_unit * inner)

    def band(inner: int, most: int) -> int:
        """The positions of a band that fits into `most` bytes; 0 if none does."""
        if cost(extent, inner) <= most:
            return extent
        low, high = 0, extent - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if cost(middle, inner) <= most else (low, middle - 1)
        if not low:
            return 0
        step = grain[axis] if low >= grain[axis] else 1
        bands = -(-extent // (low // step * step))
        positions = -(-extent // bands // step) * step
        return positions if cost(positions, inner) <= most else low  # shorter bands may begin where more is read

    best: tuple[float, int, int] | None = None  # elements read over those there are, inner, positions
    for inner in _inner_candidates(channels, itemsize):
        for most in (WANTED_SHARED, MAX_SHARED_BYTES):
            positions = band(inner, most)
            halo = int(spans(positions).sum()) / read[axis] if positions else 0.0
            if positions and (best is None or halo < best[0] - 0.01):
                best = (halo, inner, positions)
        if best is not None and best[0] <= MAX_HALO:
            break
    if parted and axis < 2 and channels > 1 and channels * itemsize % SECTOR == 0:
        parts = _parted(read, written, axis, span, grain, channels, itemsize, shared)
        if parts is not None and (best is None or best[0] > max(MAX_HALO, parts[0] + 0.05)):
            _, inner, positions, row_tile = parts
            bands, row_bands = -(-extent // positions), -(-written[axis + 1] // row_tile)
            taken = _taken(read, written, axis, span, inner, positions, row_tile)
            blocks = planes * bands * row_bands * (channels // inner)
            return Tile(1, axis, bands, positions, row_bands, row_tile, inner, *taken, shared(*taken), blocks)
    if best is None:
        return None
    _, inner, positions = best
    bands, together = -(-extent // positions), 1
    if bands == 1:
        aligned = SECTOR // itemsize or 1  # planes that begin and end with whole sectors
        wanted = -(-planes * (channels // inner) // WANTED_BLOCKS // aligned) * aligned
        of_plane = (read[axis] * read_unit * inner, extent * written_unit * inner)
        most = WHOLE_SHARED * aligned // shared(aligned * of_plane[0], aligned * of_plane[1])
        most = most // aligned * aligned if most >= aligned else most
        together = max(1, min(most, wanted, planes))
    taken = (together * int(spans(positions).max()) * read_unit * inner, together * positions * written_unit * inner)
    blocks = -(-planes // together) * bands * (channels // inner)
    return Tile(together, axis, bands, positions, 1, written[min(axis + 1, 2)], inner, *taken, shared(*taken), blocks)


def _spans(read: Sizes, written: Sizes, axis: int, span: Span, positions: int) -> Ints:
    """Number of positions read by each band of `positions` positions along `axis`."""
    if positions >= written[axis]:
        return np.array([read[axis]])
    firsts = np.arange(0, written[axis], positions)
    return span(axis, firsts, np.minimum(firsts + positions, written[axis]))


def _taken(read: Sizes, written: Sizes, axis: int, span: Span, inner: int, tile: int, row_tile: int) -> tuple[int, int]:
    """Most elements that a block reads and writes: bands of `tile` along `axis`, of `row_tile` along the next."""
    longest, widest = (
        _spans(read, written, axis, span, tile).max(),
        _spans(read, written, axis + 1, span, row_tile).max(),
    )
    return int(longest) * int(widest) * prod(read[axis + 2 :]) * inner, tile * row_tile * prod(
        written[axis + 2 :]
    ) * inner


def _parted(
    read: Sizes,
    written: Sizes,
    axis: int,
    span: Span,
    grain: Sequence[int],
    channels: int,
    itemsize: int,
    shared: Callable[[int, int], int],
) -> tuple[float, int, int, int] | None:
    """The halo, `inner`, and positions along `axis` and the next of the bands with least reads; None if none fits."""
    candidates = [inner for inner in _inner_candidates(channels, itemsize) if inner * itemsize <= 2 * SECTOR]

    def halo(of: int, positions: int) -> float:
        return int(_spans(read, written, of, span, positions).sum()) / read[of]

    for most in (WANTED_SHARED, MAX_SHARED_BYTES):
        found = []
        for inner in candidates:
            for tile in range(grain[axis], min(PARTS * grain[axis], written[axis] + grain[axis] - 1) + 1, grain[axis]):
                low, high = 0, -(-written[axis + 1] // grain[axis + 1])  # grains along the next axis
                while low < high:
                    middle = (low + high + 1) // 2
                    taken = _taken(read, written, axis, span, inner, tile, middle * grain[axis + 1])
                    low, high = (middle, high) if shared(*taken) <= most else (low, middle - 1)
                if low:
                    row_tile = low * grain[axis + 1]
                    found.append((round(halo(axis, tile) * halo(axis + 1, row_tile), 2), -inner, tile, row_tile))
        if found and (min(found)[0] <= MAX_HALO or most == MAX_SHARED_BYTES):
            share, inner, tile, row_tile = min(found)
            return share, -inner, tile, row_tile
    return None


def _inner_candidates(channels: int, itemsize: int) -> list[int]:
    """Channels that a block may take, most first: all, or whole sectors of them."""
    if channels * itemsize % SECTOR:
        return [channels]
    least = SECTOR // itemsize or 1
    return [channels] + [
        inner for inner in range(channels - least, 0, -least) if channels % inner == 0 and inner % least == 0
    ]


def fits_int32(*sizes: Sizes) -> bool:
    """Whether positions in planes of these sizes are kept as int."""
    return all(prod(size) < INT32_END for size in sizes)
