"""Tiles of interpolation (kernels/interpolate.cu): pure functions of its tables."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, log2
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends.cuda.device.limits import BANKS, MAX_SHARED_BYTES, SECTOR_BYTES
from gpucnn.backends.cuda.launch.shared_memory import bank_conflict, least_conflict, skewed

WANTED_BYTES = 24 << 10  # of shared memory, for several blocks on a multiprocessor
ALLOWED = 1.10  # bytes moved over the minimum, up to which other criteria decide
WANTED_ELEMENTS = 5120  # that a tile reads and writes, about
MAX_INNER = 8  # sectors of channels of a tile
CUTS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64)  # tiles of an axis
SPANS = (64, 32, 16, 8, 4, 2, 1)  # rows per step where those of a tile do not fit
HALF_WARP = 16
SAMPLE = 1024  # lanes that are checked for conflicts
TABLES_SHARE = 32  # least ratio of a block's bytes to those of its tables, which sets its number of channels
CONFLICT = 2

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

    def entry_of(self, outputs: Ints, place: int) -> Ints:
        """The place-th entry of each output, or its last."""
        return np.maximum(self.starts[outputs], np.minimum(self.starts[outputs] + place, self.starts[outputs + 1] - 1))

    def source_of(self, outputs: Ints, place: int) -> Ints:
        """Source of the place-th entry of each output."""
        sources: Ints = np.r_[self.sources, 0]
        return sources[self.entry_of(outputs, place)]


class ResampleTile(NamedTuple):
    """A block's share; all but the last are fields of ResampleParams."""

    tile_h: int
    tile_w: int
    inner: int
    span_h: int
    x_pitch: int
    z_pitch: int
    staged: int
    blended: int
    kept: int
    entries: int
    lanes: int
    chunk: int
    shared_bytes: int


class _Shape(NamedTuple):
    tile_h: int
    tile_w: int
    inner: int
    span_h: int
    columns: int  # of x, at most
    is_direct: bool  # all rows that a tile reads are staged together, and no sums of rows are kept
    lanes: int


class Resampling:
    """A resampling by tables of D, H and W, with the sizes in bytes of the kernel's sums and weights.

    Of `c` channels, `channels` are contiguous in memory: all or one.
    """

    def __init__(
        self, d: Table, h: Table, w: Table, c: int, channels: int, itemsize: int, sum_bytes: int, weight_bytes: int
    ) -> None:
        self.h, self.w = h, w
        self.depth = d.most_entries(1)
        self.c, self.channels = c, channels
        self.itemsize, self.sum_bytes, self.weight_bytes = itemsize, sum_bytes, weight_bytes
        self.sector = max(1, SECTOR_BYTES // itemsize)

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
        shapes = list(self._shapes())
        best: tuple[tuple[float, ...], ResampleTile] | None = None
        for most in (WANTED_BYTES, MAX_SHARED_BYTES):
            fitting = [(score, shape) for score, shape in shapes if self._tile(shape).shared_bytes <= most]
            for score, shape in sorted(fitting)[:8]:
                x_pitch, z_pitch, is_direct = self._pitches(shape)
                tile = self._tile(shape._replace(is_direct=is_direct), (x_pitch, z_pitch))
                if tile.shared_bytes <= MAX_SHARED_BYTES:
                    best = score, tile
                    break
            if best is not None and best[0][0] <= ALLOWED:
                break
        return None if best is None else best[1]

    def _shapes(self) -> Iterator[tuple[tuple[float, ...], _Shape]]:
        """Shapes of tiles, each with its cost."""
        h, w, sector = self.h, self.w, self.sector
        inners = [self.channels]
        if self.channels % sector == 0:
            inners = [n * sector for n in range(1, MAX_INNER + 1) if self.channels % (n * sector) == 0]
        of_heights = []
        for tile_h in sorted({-(-h.out // cuts) for cuts in CUTS}):
            first, last = h.windows(tile_h)
            of_heights.append((tile_h, int((last - first).sum()), max(1, int((last - first).max()))))
        conflicts = {inner: self._conflict_along_w(inner) for inner in inners}
        for tile_w in self._widths():
            is_cut = tile_w < w.out
            first, last = w.windows(tile_w) if is_cut else (np.zeros(1, int), np.full(1, w.size))
            if self.channels == 1:  # from sector to sector
                first, last = first // sector * sector, np.minimum(-(-last // sector) * sector, w.size)
            read_w, columns = int((last - first).sum()), max(1, int((last - first).max()))
            for inner in inners:
                ends = [is_cut * self._ends_apart(size, inner) * sector for size in (w.size, w.out)]
                for tile_h, read_h, need in of_heights:
                    read = read_w * read_h * (1 + ends[0] / (columns * inner))
                    written = h.out * w.out * (1 + ends[1] / (tile_w * inner))
                    halo = (read + written) / (h.size * w.size + h.out * w.out)
                    for span in (need, *(span for span in SPANS if span < need)):
                        lanes = span * inner if conflicts[inner] > CONFLICT else 0
                        if 0 < lanes < 2 * HALF_WARP:
                            lanes = -(-lanes // HALF_WARP) * HALF_WARP
                        idle = lanes / (span * inner) if lanes else 1.0
                        elements = (span * columns + tile_h * tile_w) * inner
                        shape = _Shape(tile_h, tile_w, inner, span, columns, span == need, lanes)
                        moved = halo * (1 + self._tables_share(shape, read_h / -(-h.out // tile_h)))
                        yield (round(max(moved, ALLOWED), 2), idle, abs(log2(elements / WANTED_ELEMENTS))), shape

    def _widths(self) -> list[int]:
        """Columns of tiles: all, or parts of whole sectors."""
        whole = self.sector if self.channels == 1 else 1
        cut = {-(-self.w.out // (cuts * whole)) * whole for cuts in CUTS[1:]}
        return sorted({self.w.out, *(width for width in cut if width < self.w.out)})

    def _ends_apart(self, size: int, inner: int) -> bool:
        """Whether parts of rows of `size` positions begin and end within sectors."""
        return inner == self.channels and size * inner * self.itemsize % SECTOR_BYTES != 0

    def _tables_share(self, shape: _Shape, read_h: float) -> float:
        """Ratio of the bytes of tables that a block reads to those of its tiles, each of which reads `read_h` rows."""
        tables, tile = self._table_bytes(shape), self._moved(shape, read_h)
        return tables / (tile * self._chunk(tables, tile, shape.inner))

    def _table_bytes(self, shape: _Shape) -> int:
        count = self.depth + self.h.most_entries(shape.tile_h) + self.w.most_entries(shape.tile_w)
        return count * (self.weight_bytes + 4) + (shape.tile_h + shape.tile_w) * 4 + 20 * SECTOR_BYTES

    def _moved(self, shape: _Shape, read_h: float) -> float:
        """Bytes of the arrays that a block moves per tile."""
        return (read_h * shape.columns + shape.tile_h * shape.tile_w) * shape.inner * self.itemsize

    def _chunk(self, tables: int, tile: float, inner: int) -> int:
        return min(self.c // inner, ceil(TABLES_SHARE * tables / tile))

    def _tile(self, shape: _Shape, pitches: tuple[int, int] | None = None) -> ResampleTile:
        """The tile, with these row pitches in shared memory."""
        tile_h, tile_w, inner, span, columns, is_direct, lanes = shape
        x_pitch, z_pitch = pitches or (columns * inner, tile_w * inner)
        staged, blended = (skewed(span * pitch, self.sum_bytes) + 1 for pitch in (x_pitch, z_pitch))
        kept = 0 if is_direct else skewed(tile_h * tile_w * inner, self.sum_bytes) + 1
        count = self.depth + self.h.most_entries(tile_h) + self.w.most_entries(tile_w)
        entries = -(-(max(skewed(count, 4), skewed(count, self.weight_bytes)) + 1) // 4) * 4
        tables = entries * (self.weight_bytes + 4) + (3 * tile_h + tile_w + 2) * 4
        shared_bytes = (staged + blended + kept) * self.sum_bytes + tables
        first, last = self.h.windows(tile_h)
        chunk = self._chunk(self._table_bytes(shape), self._moved(shape, float((last - first).mean())), inner)
        return ResampleTile(
            tile_h, tile_w, inner, span, x_pitch, z_pitch, staged, blended, kept, entries, lanes, chunk, shared_bytes
        )

    # --- Banks of shared memory -----------------------------------------------------------------------------------

    def _conflict_along_w(self, inner: int) -> int:
        """Worst conflict of the reads where neighbouring lanes have neighbouring columns."""
        worst = 1
        for start in range(0, BANKS, 5):  # where a warp begins
            lane = np.arange(start, max(start + 1, min(start + SAMPLE, self.w.out * inner)))
            column = np.minimum(lane // inner, self.w.out - 1)
            for place in self._places(self.w):
                entry, source = self.w.entry_of(column, place), self.w.source_of(column, place)
                worst = max(worst, bank_conflict(source * inner + lane % inner, self.sum_bytes))
                for shift in range(0, BANKS, 7):  # entries of D and H before those of W
                    worst = max(worst, *(bank_conflict(entry + shift, size) for size in (self.weight_bytes, 4)))
        return worst

    @staticmethod
    def _places(table: Table) -> tuple[int, ...]:
        """Entries of outputs that are checked."""
        most = table.most_entries(1)
        return tuple(sorted({0, min(1, most - 1), most // 2, most - 1} - {-1}))

    def _pitches(self, shape: _Shape) -> tuple[int, int, bool]:
        """Row pitches of inputs and of their sums along W in shared memory, for the fewest conflicts.

        Also whether rows of y can be computed from the latter without further conflicts.
        """
        inner, span, pack = shape.inner, shape.span_h, max(1, 16 // self.itemsize)
        run, x_run = shape.tile_w * inner, shape.columns * inner
        lane = np.arange(min(SAMPLE, (shape.lanes * shape.tile_w) if shape.lanes else span * run))
        if shape.lanes:
            column, row, c = lane // shape.lanes, lane % shape.lanes // inner, lane % inner
            row, c = np.where(row < span, row, 0), np.where(row < span, lane % shape.lanes % inner, 0)
            column = np.where(lane % shape.lanes // inner < span, column, column[0])
        else:
            column, row, c = lane % run // inner, lane // run, lane % inner
        sources = [self.w.source_of(column, place) * inner + c for place in self._places(self.w)]
        packs = pack * np.arange(-(-min(SAMPLE, span * x_run) // pack))
        reads = [(packs + j) for j in range(pack) if j < span * x_run]

        def x_conflict(pitch: int) -> int:
            places = [row * pitch + source for source in sources]
            places += [read // x_run * pitch + read % x_run for read in reads]
            return max(bank_conflict(place, self.sum_bytes) for place in places)

        last = (self.w.out - 1) % shape.tile_w * inner + inner  # elements of a row of the last tile
        gives = []
        starts = range(self.sector + pack - 1)  # of the first pack's elements
        for start, along in ((start, along) for start in starts for along in {run, last}):
            if start >= shape.tile_h * along:
                continue
            at = start + pack * np.arange(-(-min(SAMPLE, shape.tile_h * along) // pack))
            at = at[at < shape.tile_h * along]
            gives += [(self.h.source_of(at // along, place) % span, at % along) for place in self._places(self.h)[:2]]

        def z_conflict(pitch: int) -> int:
            return bank_conflict(row * pitch + column * inner + c, self.sum_bytes)

        def conflict(pitch: int) -> int:
            return max(z_conflict(pitch), *(bank_conflict(at * pitch + k, self.sum_bytes) for at, k in gives))

        x_pitch = least_conflict(x_run, x_conflict)
        z_pitch = least_conflict(run, conflict) if shape.is_direct else run
        is_direct = shape.is_direct and conflict(z_pitch) <= CONFLICT
        return x_pitch, z_pitch if is_direct else least_conflict(run, z_conflict), is_direct
