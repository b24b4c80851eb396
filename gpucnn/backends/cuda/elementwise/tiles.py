"""Tiles of copies between memory orders, and chunks of bias and activation: pure functions of sizes.

Over tiles of 64 x 64, tiles with whole rows save 54 % of the sectors and 91 % of the memory instructions of images of
3 channels, 7 % and 51 % of planes of 7 x 7. Over an odd pitch, the one of the fewest bank conflicts saves up to 41 % of
the accesses to shared memory: 29 % of a layer of 256 channels by 14 x 14, none of one of 64 by 56 x 56.
"""

from __future__ import annotations

from functools import lru_cache
from math import gcd
from typing import NamedTuple

import numpy as np

from gpucnn.backends.cuda.device.limits import BANKS, SECTOR_BYTES, bank_conflict, least_conflict, power_of_two

PACK_SPAN = 64  # channels and positions of a tile, at most
MAX_TILE = 6144  # elements of 4 bytes, or fewer wider ones, of a tile with whole rows
CHUNK_BYTES = 16 << 10  # of each array that one block takes: four packs a thread
MAX_BIAS_BYTES = 32 << 10  # of shared memory for biases
MIN_ROWS = 64  # of channels last, or so much of a row, for each part of a sum: what it costs is 1 to 2 % of them
MAX_BLOCKS = 2048
MAX_RAGGED_BYTES = 2048  # of a channel's contiguous run; the ends of longer ones hardly matter


class Line(NamedTuple):
    """Lane mapping of the rows of a tile on one side: see pack.cu."""

    row: int
    lanes: int
    pack: int
    is_one: bool
    is_ragged: bool = False


def pack_tile(c: int, p: int, whole_c: bool, whole_p: bool, itemsize: int) -> tuple[int, int]:
    """Channels and positions of a tile of [C, P]; all of an axis that is requested whole, where they fit.

    Examples
    --------
    >>> pack_tile(64, 56 * 56, False, False, 4)
    (64, 64)
    >>> pack_tile(3, 224 * 224, True, False, 4)
    (3, 1024)
    >>> pack_tile(512, 49, False, True, 4)
    (64, 49)
    >>> pack_tile(64, 55 * 55, False, True, 4)
    (32, 128)
    """
    most = MAX_TILE * 4 // max(4, itemsize)
    if whole_c and whole_p and c * p <= most:
        return c, p
    if whole_c and c * BANKS <= most:
        return c, min(p, 1024, _floor_power(most // c))
    if whole_p and p * BANKS <= most:
        return min(c, 1024, _floor_power(most // p)), p
    if whole_p and p * 8 <= most:
        return min(c, _floor_power(most // p)), p
    if (whole_c or whole_p) and itemsize <= 4:  # long rows, whose ends share sectors
        long = 512 // itemsize
        return (min(c, long), min(p, BANKS)) if whole_c else (min(c, BANKS), min(p, long))
    area = PACK_SPAN * PACK_SPAN * 4 // max(4, itemsize)
    span = min(PACK_SPAN, _floor_power(most // PACK_SPAN))
    tile_c, tile_p = min(c, span), min(p, span)
    if tile_c < span:
        tile_p = min(p, 1024 if c > 1 else area, area // power_of_two(tile_c))
    elif tile_p < span:
        tile_c = min(c, 1024, area // power_of_two(tile_p))
    return tile_c, tile_p


def _floor_power(most: int) -> int:
    return 1 << (most.bit_length() - 1)


@lru_cache(maxsize=1024)
def pack_pitch(row: int, itemsize: int, read: Line, written: Line, turned: bool) -> int:
    """Elements from row to row of x in a tile's shared memory, for the fewest bank conflicts.

    Examples
    --------
    >>> rows = Line(64, 16, 4, False)
    >>> pack_pitch(64, 4, rows, rows, turned=True)
    65
    """
    lane = np.arange(32 * BANKS)
    reads = []
    for line, is_turned in ((read, False), (written, turned)):
        lanes = len(lane) if line.is_one else line.lanes
        places = [(lane // lanes, lane % lanes * line.pack + j) for j in range(line.pack)]
        if line.is_one:  # single elements before the first sector that is whole
            places.append((np.zeros(2 * line.pack, int), np.arange(2 * line.pack)))
        if line.is_ragged:  # single elements at both ends of rows that begin anywhere
            sector = 2 * line.pack
            ends = [each for n in range(1, sector) for each in (np.arange(n), np.arange(line.row - n, line.row))]
            places += [(np.zeros_like(end), end) for end in ends]
        reads += [(o + k // line.row, k % line.row, is_turned) for o, k in places]

    def conflict(pitch: int) -> int:
        return max(bank_conflict(i * pitch + o if is_turned else o * pitch + i, itemsize) for o, i, is_turned in reads)

    return least_conflict(row, conflict)


def bias_chunk(c: int, run: int, itemsize: int, sum_bytes: int) -> tuple[int, int]:
    """Elements of one block, and the number of biases that it keeps, each for `run` contiguous elements.

    Examples
    --------
    >>> bias_chunk(c=64, run=56 * 56, itemsize=4, sum_bytes=4)
    (4096, 3)
    >>> bias_chunk(c=64, run=1, itemsize=4, sum_bytes=4)  # channels last
    (4096, 64)
    >>> bias_chunk(c=2048, run=1, itemsize=4, sum_bytes=4)  # each bias is read for 16 elements
    (32768, 2048)
    """
    base = CHUNK_BYTES // itemsize
    chunk = -(-16 * min(c, base) // base) * base if run == 1 else base
    most = MAX_BIAS_BYTES // sum_bytes
    if min(c, chunk // run + 2) > most:
        chunk = most // 2
    return chunk, min(c, chunk // run + 2)


class BiasSums(NamedTuple):
    """Partition of the sum of a bias gradient: see BiasSumParams; `groups` are the channels or sets of channels."""

    piece: int
    pieces: int
    segments: int
    splits: int
    lanes: int
    teams: int
    groups: int
    pack: int


def bias_sums(rows: int, c: int, run: int, width: int, itemsize: int) -> BiasSums:
    """The parts of each channel's sum over `rows` of `run` contiguous elements, with vector width `width`.

    Examples
    --------
    >>> bias_sums(rows=32, c=64, run=56 * 56, width=4, itemsize=4)
    BiasSums(piece=3136, pieces=1, segments=1, splits=32, lanes=256, teams=1, groups=64, pack=4)
    >>> bias_sums(rows=32 * 56 * 56, c=64, run=1, width=4, itemsize=4)
    BiasSums(piece=0, pieces=1, segments=64, splits=1568, lanes=16, teams=16, groups=1, pack=4)
    >>> bias_sums(rows=32, c=512, run=7 * 7, width=4, itemsize=4)  # eight channels end where a sector does
    BiasSums(piece=0, pieces=1, segments=10, splits=4, lanes=98, teams=2, groups=64, pack=4)
    """
    base = CHUNK_BYTES // itemsize
    whole = SECTOR_BYTES // gcd(SECTOR_BYTES, run * itemsize) * run  # elements of channels that fill sectors
    is_wide = 2 * width * itemsize == SECTOR_BYTES and c * run * itemsize % SECTOR_BYTES == 0
    if is_wide and 1 < run < whole <= 256 * width and run * itemsize <= MAX_RAGGED_BYTES:
        lanes, groups = whole // width, -(-c * run // whole)
        teams = 256 // lanes
        segments = max(teams, base // whole, -(-rows * groups // MAX_BLOCKS))
        return BiasSums(0, 1, segments, -(-rows // segments), lanes, teams, groups, width)
    if run > 1:
        pieces = -(-run // (2 * base))
        piece = -(-run // (pieces * BANKS)) * BANKS if pieces > 1 else run
        pieces = -(-run // piece)
        segments = max(1, base // piece)
        lanes = min(256, max(16, power_of_two(-(-piece // width))))
        return BiasSums(piece, pieces, segments, -(-rows * pieces // segments), lanes, 256 // lanes, c, width)
    pack = gcd(width, c)
    lanes = min(64, c // pack)
    teams = 256 // lanes
    groups = -(-c // (lanes * pack))
    segments = max(MIN_ROWS, -(-rows * groups // MAX_BLOCKS))
    teams -= teams % 8 if teams > 8 else 0  # which begin at sectors
    return BiasSums(0, 1, segments, -(-rows // segments), lanes, teams, groups, pack)
