"""Tiles of interpolation (kernels/interpolate.cu): pure functions of its tables."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import ceil, log2
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends.cuda.device.limits import BANKS, MAX_SHARED_BYTES, SECTOR_BYTES, bank_conflict, skewed

WANTED_BYTES = 24 << 10  # of shared memory, for several blocks on a multiprocessor
ALLOWED = 1.10  # bytes moved over the minimum, up to which other criteria decide
WANTED_ELEMENTS = 5120  # that a tile stages at a time, and writes, about
MAX_INNER = 8  # sectors of channels of a tile
STEPS = (1, 4, 16)  # of a tile
CUTS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64)  # tiles of an axis
SPANS = (64, 32, 16, 8, 4, 2, 1)  # rows that are staged at a time where those of a tile do not fit
HALF_WARP = 16
TABLES_SHARE = 32  # least ratio of a block's bytes to those of its tables, which sets its number of channels

Ints = np.ndarray[Any, np.dtype[np.int64]]


class Table(NamedTuple):
    """An axis: output o reads entries [starts[o], starts[o + 1]) of sources, which ascend, of `size` inputs."""

    starts: Ints
    sources: Ints
    size: int

    @property
    def out(self) -> int:
        """Number of outputs."""
        return len(self.starts) - 1

    def windows(self, tile: int) -> tuple[Ints, Ints]:
        """Range [first, last) of the inputs that each tile of `tile` outputs reads."""
        begin, end = self._entries(tile)
        sources = np.r_[self.sources, 0]
        return np.where(begin < end, sources[begin], 0), np.where(begin < end, sources[end - 1] + 1, 0)

    def most_entries(self, tile: int) -> int:
        """Most entries of a tile of `tile` outputs."""
        begin, end = self._entries(tile)
        return int((end - begin).max())

    def _entries(self, tile: int) -> tuple[Ints, Ints]:
        edges = np.arange(0, self.out, tile)
        return self.starts[edges], self.starts[np.minimum(edges + tile, self.out)]


class ResampleTile(NamedTuple):
    """A block's share; all but the last are fields of ResampleParams."""

    tile_h: int
    tile_w: int
    inner: int
    band_h: int
    span_h: int
    ring: int
    x_pitch: int
    z_pitch: int
    staged: int
    blended: int
    entries: int
    lanes: int
    chunk: int
    shared_bytes: int


class _Cut(NamedTuple):
    """A way to cut an axis: outputs of a tile, inputs that all tiles read, and the most that one does."""

    tile: int
    read: int
    longest: int
    entries: int  # of a tile, at most
    band: int = 0  # outputs of one step of a tile
    ring: int = 0  # inputs that a step reads, at most


class Resampling(NamedTuple):
    """A resampling by tables of D, H and W, with the sizes in bytes of the kernel's sums and weights.

    Of `c` channels, `channels` are contiguous in memory: all or one.
    """

    d: Table
    h: Table
    w: Table
    c: int
    channels: int
    itemsize: int
    sum_bytes: int
    weight_bytes: int

    def tile(self) -> ResampleTile | None:
        """The tile of a block, or None where not even that of one output fits into shared memory.

        Examples
        --------
        >>> double = Table(np.arange(65), np.arange(64) // 2, 32)  # nearest
        >>> one = Table(np.arange(2), np.arange(1), 1)
        >>> tile = Resampling(one, double, double, 64, 1, 4, 4, 4).tile()
        >>> tile.tile_h, tile.tile_w, tile.span_h, tile.lanes
        (64, 64, 32, 0)
        """
        best = None
        for most in (WANTED_BYTES, MAX_SHARED_BYTES):
            best = min(self._candidates(most), default=None)
            if best is not None and best[0][:2] <= (ALLOWED, 1):
                break
        return None if best is None else best[1]

    def _candidates(self, most: int) -> Iterator[tuple[tuple[float, ...], ResampleTile]]:
        """Tiles that take at most `most` bytes of shared memory, each with its cost."""
        sector = self._sector
        inners = [self.channels]
        if self.channels % sector == 0:
            inners = [n * sector for n in range(1, MAX_INNER + 1) if self.channels % (n * sector) == 0]
        heights = list(self._heights())
        for w in self._widths():
            for inner in inners:
                is_cut = w.tile < self.w.out
                ends = [is_cut * self._ends_apart(size, inner) * sector for size in (self.w.size, self.w.out)]
                for h in heights:
                    tile = self._tile(h, w, inner, most)
                    if tile is None:
                        continue
                    read = w.read * h.read * (1 + ends[0] / (w.longest * inner))
                    written = self.h.out * self.w.out * (1 + ends[1] / (w.tile * inner))
                    halo = (read + written) / (self.h.size * self.w.size + self.h.out * self.w.out)
                    moved = halo * (1 + self._table_bytes(h, w) / (self._moved(h, w, inner) * tile.chunk))
                    idle = tile.lanes / (tile.span_h * inner) if tile.lanes else 1.0
                    elements = (tile.span_h * w.longest + h.band * w.tile) * inner
                    yield (round(max(moved, ALLOWED), 2), round(idle), abs(log2(elements / WANTED_ELEMENTS))), tile

    def _heights(self) -> Iterator[_Cut]:
        """Rows of tiles, in one step or several, which read their common rows once."""
        cuts = [_cut(self.h, tile, 1) for tile in sorted({-(-self.h.out // cuts) for cuts in CUTS})]
        for cut in cuts:
            for steps in STEPS:
                tile = min(cut.tile * steps, self.h.out)
                yield _cut(self.h, tile, 1)._replace(band=cut.tile, ring=cut.longest)
                if tile == self.h.out:
                    break

    @property
    def _sector(self) -> int:
        return max(1, SECTOR_BYTES // self.itemsize)

    def _widths(self) -> list[_Cut]:
        """Columns of tiles: all, or parts of whole sectors."""
        whole = self._sector if self.channels == 1 else 1
        cut = {-(-self.w.out // (cuts * whole)) * whole for cuts in CUTS[1:]}
        parts = [_cut(self.w, width, whole) for width in sorted(cut) if width < self.w.out]
        return [*parts, _Cut(self.w.out, self.w.size, max(1, self.w.size), self.w.most_entries(self.w.out))]

    def _ends_apart(self, size: int, inner: int) -> bool:
        """Whether parts of rows of `size` positions begin and end within sectors."""
        return inner == self.channels and size * inner * self.itemsize % SECTOR_BYTES != 0

    def _table_bytes(self, h: _Cut, w: _Cut) -> int:
        """Bytes of tables that a block reads."""
        return self._entries(h, w) * (self.weight_bytes + 4) + (h.tile + w.tile) * 4 + 20 * SECTOR_BYTES

    def _entries(self, h: _Cut, w: _Cut) -> int:
        return self.d.most_entries(1) + h.entries + w.entries

    def _moved(self, h: _Cut, w: _Cut, inner: int) -> float:
        """Bytes of the arrays that a block moves per tile."""
        return (h.read / -(-self.h.out // h.tile) * w.longest + h.tile * w.tile) * inner * self.itemsize

    def _tile(self, h: _Cut, w: _Cut, inner: int, most: int) -> ResampleTile | None:
        """The tile that stages the most rows at a time within `most` bytes of shared memory; None if none fits."""
        # Columns that read far from each other share banks: lanes run along rows, which begin in different banks.
        along_rows = inner < BANKS <= 4 * self.h.size * inner and self.w.size > 2 * self.w.out
        x_pitch, z_pitch = (_pitch(run * inner, inner, self.sum_bytes, along_rows) for run in (w.longest, w.tile))
        blended = skewed(h.ring * z_pitch, self.sum_bytes) + 1
        entries = self._entries(h, w)
        entries = -(-(max(skewed(entries, 4), skewed(entries, self.weight_bytes)) + 1) // 4) * 4
        others = blended * self.sum_bytes + entries * (self.weight_bytes + 4) + (2 * h.tile + w.tile + 3) * 4
        for span in (h.ring, *(span for span in SPANS if span < h.ring)):
            staged = skewed(span * x_pitch, self.sum_bytes) + 1
            shared_bytes = staged * self.sum_bytes + others
            if shared_bytes <= most:
                lanes = span * inner if along_rows else 0
                lanes = -(-lanes // HALF_WARP) * HALF_WARP
                chunk = ceil(TABLES_SHARE * self._table_bytes(h, w) / self._moved(h, w, inner))
                chunk = min(self.c // inner, chunk)
                return ResampleTile(
                    h.tile, w.tile, inner, h.band, span, h.ring, x_pitch, z_pitch, staged, blended, entries, lanes,
                    chunk, shared_bytes,
                )  # fmt: skip
        return None


def _cut(table: Table, tile: int, whole: int) -> _Cut:
    """Tiles of `tile` outputs, whose inputs begin and end at multiples of `whole`."""
    first, last = table.windows(tile)
    first, last = first // whole * whole, np.minimum(-(-last // whole) * whole, table.size)
    lengths = last - first
    return _Cut(tile, int(lengths.sum()), max(1, int(lengths.max())), table.most_entries(tile))


@lru_cache(maxsize=4096)
def _pitch(run: int, inner: int, sum_bytes: int, along_rows: bool) -> int:
    """Row pitch in shared memory: the least by which rows that lanes run along are in different banks."""
    if not along_rows:
        return run
    row, c = np.divmod(np.arange(BANKS), inner)
    pitches = range(run, run + 2 * BANKS, inner)
    return min(pitches, key=lambda pitch: bank_conflict(row * pitch + c, sum_bytes))  # the first of equal ones
