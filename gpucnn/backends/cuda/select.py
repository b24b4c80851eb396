"""Choice of splits and tiles: pure functions of sizes, so that a result never depends on the device."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import gcd
from typing import Any, NamedTuple

import numpy as np

MOST_WEIGHT_THREADS = 128  # of a block of a backward weight
WORKSPACE_BYTES = 256 << 20  # columns, or products, that a convolution by im2col holds at once
MOST_PART_VALUES = 1 << 24  # sums of parts that a backward weight keeps between its two kernels: 64 MiB of float32
WANTED_BLOCKS = 4096  # enough to fill any device of today some ten times
LEAST_RUN = 512  # positions below which a part is not worth a block of its own


def weight_splits(weights: int, positions: int) -> int:
    """Into how many parts a backward weight cuts its sum over `positions`, for `weights` sums.

    Examples
    --------
    >>> weight_splits(weights=64 * 64 * 9, positions=8 * 56 * 56)  # filters enough to fill the device
    1
    >>> weight_splits(weights=64 * 9, positions=8 * 56 * 56)
    8
    """
    wanted = -(-WANTED_BLOCKS // max(1, weights))
    return max(1, min(wanted, positions // LEAST_RUN, MOST_PART_VALUES // max(1, weights)))


def weight_block(run: int) -> int:
    """Threads of a block that sums `run` positions of a backward weight: a power of two, each with some to sum.

    Examples
    --------
    >>> weight_block(40), weight_block(500), weight_block(10**6)
    (32, 128, 128)
    """
    return min(max(32, power_of_two(run // 4)), MOST_WEIGHT_THREADS)


def images_at_once(image_bytes: int) -> int:
    """How many images are computed at once, each of which takes `image_bytes` of workspace."""
    return max(1, WORKSPACE_BYTES // max(1, image_bytes))


# --- Unfolding ------------------------------------------------------------------------------------------------------

TILE_BYTES = 20 << 10  # of shared memory that one block keeps a tile of an image in
LAST_TILE_BYTES = 44 << 10  # and where it takes a sector of channels of it
MOST_SHARED_BYTES = 48 << 10  # of one block
LEAST_RUN_BYTES = 1536  # of neighbouring entries that a tap has in a tile: few of their sectors are in two tiles
SECTOR_BYTES = 32  # the least that memory moves
BANKS = 32  # of shared memory, words of 4 bytes
WANTED_TILES = 264  # two blocks for each multiprocessor of a large device


def unfold_tile(
    c: int, h: int, w: int, out: int, stride_h: int, itemsize: int, sum_bytes: int, planes: int, channels_last: bool
) -> tuple[int, int, int]:
    """Channels, rows and columns of the tiles in which `planes` images [C, H, W] are unfolded and folded.

    Tiles have whole rows, or parts of one. Where channels are innermost in memory a tile has a sector of them. Each
    element takes `sum_bytes` in shared memory, and there are `out` positions of the window for each `stride_h` rows.

    Examples
    --------
    >>> unfold_tile(64, 58, 58, 56, 1, 4, 4, planes=32, channels_last=False)  # whole planes
    (1, 58, 58)
    >>> unfold_tile(3, 227, 227, 55, 4, 4, 4, planes=32, channels_last=False)
    (1, 20, 227)
    >>> unfold_tile(64, 58, 58, 56, 1, 4, 4, planes=32, channels_last=True)
    (8, 20, 58)
    >>> unfold_tile(512, 9, 9, 7, 1, 4, 4, planes=32, channels_last=False)
    (16, 9, 9)
    """
    most = (LAST_TILE_BYTES if channels_last or itemsize < sum_bytes else TILE_BYTES) // sum_bytes
    most = min(most, MOST_SHARED_BYTES // (LINE_BYTES + max(4, sum_bytes)) * (LINE_BYTES // sum_bytes))  # skewed
    channels = min(c, SECTOR_BYTES // itemsize) if channels_last else 1
    if w * channels > most:
        return channels, 1, most // channels // BANKS * BANKS
    rows = min(h, most // (w * channels))
    if rows < h:
        rows = max(1, rows // stride_h) * stride_h if rows >= stride_h else rows
        tiles = -(-h // rows)
        rows = min(rows, -(-h // (tiles * stride_h)) * stride_h)  # of one size
    while planes * -(-c // channels) * -(-h // rows) < WANTED_TILES:
        half = -(-rows // (2 * stride_h)) * stride_h
        if half >= rows or half // stride_h * out * itemsize < LEAST_RUN_BYTES:
            break
        rows = half
    while 2 * channels <= c and 2 * channels * rows * w <= 2048:
        channels *= 2
    return channels, rows, w


def skewed(at: Any, itemsize: int) -> Any:
    """Where element `at` of an array in shared memory lies that leaves out a word after each 32."""
    return at + at // (128 // itemsize) * max(1, 4 // itemsize)


class Reader(NamedTuple):
    """How the lanes of warps go through the rows of a tile: lane by lane `pack` places on, `out` of them a row."""

    row_step: int
    step: int
    out: int
    pack: int
    shifts: tuple[int, ...]  # along a row, of different reads
    starts: tuple[int, ...]  # places before the first lane's


@lru_cache(maxsize=1024)
def unfold_pitch(rows: int, w: int, itemsize: int, readers: tuple[Reader, ...]) -> int:
    """Elements from one row of a tile in shared memory to the next, for the fewest bank conflicts.

    The first of up to 32 elements of padding that leaves no conflict beyond 2 is taken.

    Examples
    --------
    >>> rows_of_56 = Reader(1, 1, 56, 4, (0, 1, 2), (0,))
    >>> unfold_pitch(58, 58, 4, (rows_of_56,))
    60
    """
    return least_conflict(w, lambda pitch: max(_row_conflict(rows, pitch, itemsize, *each) for each in readers))


@lru_cache(maxsize=1024)
def unfold_plane(least: int, channels: int, itemsize: int) -> int:
    """Elements from one channel of a tile in shared memory to the next, where lanes go from channel to channel.

    Examples
    --------
    >>> unfold_plane(600, 8, 4)
    601
    """
    lane = np.arange(8 * BANKS)
    return least_conflict(least, lambda plane: bank_conflict(lane % channels * plane + lane // channels, itemsize))


def least_conflict(least: int, conflict: Callable[[int], int]) -> int:
    """The first number from `least` on that leaves no conflict beyond 2, or the best of as many as there are banks."""
    worst = {}
    for size in range(least, least + BANKS):
        worst[size] = conflict(size)
        if worst[size] <= 2:
            return size
    return min(worst, key=worst.__getitem__)


def _row_conflict(
    rows: int, pitch: int, itemsize: int, row_step: int, step: int, out: int, pack: int, shifts: Any, starts: Any
) -> int:
    place = np.add.outer(np.array(starts), np.arange(0, max(1, min(rows // row_step, 64) * out), pack))
    at = place // out * row_step * pitch + place % out * step
    shift = np.add.outer(np.arange(min(row_step, 4)) * pitch, np.array(shifts)[:: -(-len(shifts) // 12)])
    return max(bank_conflict(row, itemsize) for row in np.add.outer(shift.ravel(), at).reshape(-1, at.shape[1]))


def bank_conflict(at: np.ndarray[Any, Any], itemsize: int) -> int:
    """The most words of one bank that a round of lanes wants, whose elements of `itemsize` bytes lie at `at`."""
    lanes = BANKS if itemsize <= 4 else 4 * BANKS // itemsize
    word = skewed(at, itemsize) * itemsize // 4
    rounds = len(word) // lanes * lanes or len(word)
    word = np.unique(np.arange(rounds) // lanes * (1 << 32) + word[:rounds] % (1 << 31))
    return int(np.bincount((word >> 32) * BANKS + word % BANKS).max())


# --- Packing --------------------------------------------------------------------------------------------------------

PACK_SPAN = 64  # channels and positions of a tile, where there are so many
MOST_TILE = 6144  # elements of 4 bytes, or fewer wider ones, of a tile with whole rows


class Line(NamedTuple):
    """How lanes go through the rows of a tile on one side: see pack.cu."""

    row: int
    lanes: int
    pack: int
    is_one: bool
    is_ragged: bool = False


def pack_tile(c: int, p: int, whole_c: bool, whole_p: bool, itemsize: int) -> tuple[int, int]:
    """Channels and positions of a tile of [C, P]; all of those that are asked for whole, where they fit.

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
    most = MOST_TILE * 4 // max(4, itemsize)
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


# --- Bias and activation --------------------------------------------------------------------------------------------

CHUNK_BYTES = 16 << 10  # of each array that one block takes: four packs a thread
MOST_BIAS_BYTES = 32 << 10  # of shared memory for biases
LEAST_ROWS = 64  # of channels last, or so much of a row, for each part of a sum: what it costs is 1 to 2 % of them
MOST_BLOCKS = 2048
MOST_RAGGED_BYTES = 2048  # of a channel's neighbours, whose ends weigh little where there are more


def bias_chunk(c: int, run: int, itemsize: int, sum_bytes: int) -> tuple[int, int]:
    """Elements that one block takes, and how many channels' biases it keeps, each for `run` neighbours in memory.

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
    most = MOST_BIAS_BYTES // sum_bytes
    if min(c, chunk // run + 2) > most:
        chunk = most // 2
    return chunk, min(c, chunk // run + 2)


class BiasSums(NamedTuple):
    """How the gradient of a bias is summed: see BiasSumParams; `groups` are the channels or sets of channels."""

    piece: int
    pieces: int
    segments: int
    splits: int
    lanes: int
    teams: int
    groups: int
    pack: int


def bias_sums(rows: int, c: int, run: int, width: int, itemsize: int) -> BiasSums:
    """The parts of each channel's sum over `rows` of `run` neighbours in memory, `width` of them an access.

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
    if is_wide and 1 < run < whole <= 256 * width and run * itemsize <= MOST_RAGGED_BYTES:
        lanes, groups = whole // width, -(-c * run // whole)
        teams = 256 // lanes
        segments = max(teams, base // whole, -(-rows * groups // MOST_BLOCKS))
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
    segments = max(LEAST_ROWS, -(-rows * groups // MOST_BLOCKS))
    teams -= teams % 8 if teams > 8 else 0  # which begin at sectors
    return BiasSums(0, 1, segments, -(-rows // segments), lanes, teams, groups, pack)


# --- Norms ----------------------------------------------------------------------------------------------------------

LINE_BYTES = 128
NORM_THREADS = 256  # wanted of a block
MOST_NORM_THREADS = 512
MOST_NORM_SUMS = 64  # of a block: MOST_SUMS in norm_tiles.cuh
ROW_THREADS = 256  # of a block that holds rows: MOST_THREADS in norm_rows.cuh
ROWS_OF_BLOCK = 32  # that share what a block reads of weights, and more where rows are short
LEAST_LANES = 8  # threads of a segment of a row
MOST_ROW_SHARED = 40 << 10  # bytes of weights, and of the backward pass's sums


class NormTile(NamedTuple):
    """A block of a norm's general kernels; the fields are those of NormParams, and its threads."""

    sums: int
    side: int
    columns: int
    rows: int
    apart: int
    run: int
    block: int


def norm_tile(is_along: bool, inner: int, beside: int, reduced: int, pack: int, held: int, itemsize: int) -> NormTile:
    """What a block takes of sums over `reduced` elements each, whose threads hold `held` values in packs.

    Innermost in memory are `beside` neighbouring sums (`is_along`), or `inner` elements of one sum, `beside` of which
    lie side by side.

    Examples
    --------
    >>> norm_tile(False, 112 * 112, 64, 8 * 112 * 112, pack=4, held=32, itemsize=4)  # channels first: a run of a plane
    NormTile(sums=1, side=256, columns=256, rows=1, apart=1, run=8192, block=256)
    >>> norm_tile(False, 49, 2048, 8 * 49, pack=1, held=32, itemsize=4)  # eight planes end where a sector does
    NormTile(sums=8, side=49, columns=392, rows=1, apart=0, run=588, block=416)
    >>> norm_tile(True, 1, 144, 8 * 3136, pack=4, held=32, itemsize=4)  # channels last: 128 bytes of each pixel
    NormTile(sums=32, side=1, columns=8, rows=32, apart=8, run=256, block=256)
    """
    slots = held // pack if pack > 1 else 3 * held // 8  # single values and their places take more registers
    inner, beside = max(1, inner), max(1, beside)  # also of an empty batch
    if is_along:
        columns = min(beside // pack, max(1, LINE_BYTES // (pack * itemsize)), 32)
        return _norm_tile(columns * pack, 1, columns, 1, reduced, slots)
    packs, whole = inner // pack, SECTOR_BYTES // gcd(SECTOR_BYTES, inner * itemsize)
    sums = min(whole, beside, MOST_NORM_SUMS)
    while sums > 1 and sums * packs > MOST_NORM_THREADS:
        sums = -(-sums // 2)
    if sums == 1 and packs >= 32:
        side = max(32, min(NORM_THREADS, -(-reduced // (slots * pack * 32)) * 32))
        return _norm_tile(1, side, side, side * pack, reduced, slots)
    while 2 * sums <= min(beside, MOST_NORM_SUMS) and 2 * sums * packs <= NORM_THREADS:
        sums *= 2
    return _norm_tile(sums, packs, sums * packs, inner, reduced, slots)


def _norm_tile(sums: int, side: int, columns: int, width: int, reduced: int, slots: int) -> NormTile:
    """The tile whose rows of threads read `width` elements of each sum."""
    rows = max(1, min(NORM_THREADS // columns, -(-reduced // (width * slots))))
    apart = 1 if side == columns else columns if side == 1 and columns in (2, 4, 8, 16, 32) else 0
    return NormTile(sums, side, columns, rows, apart, slots * rows * width, -(-columns * rows // 32) * 32)


class NormRows(NamedTuple):
    """A block that holds rows whole; the fields are those of NormRowParams, its threads and shared memory."""

    lanes: int
    at_once: int
    turns: int
    block: int
    shared_bytes: int


def norm_rows(segments: int, length: int, along: bool, held: int, itemsize: int) -> NormRows | None:
    """How blocks take rows of `segments` times `length` values, or None where they are too large for that.

    A thread holds `held` values. Where weights move `along` a row, a block keeps them, `itemsize` bytes each.

    Examples
    --------
    >>> norm_rows(1, 768, True, held=32, itemsize=4)  # layer norm: a row a warp, by turns
    NormRows(lanes=32, at_once=8, turns=4, block=256, shared_bytes=9216)
    >>> norm_rows(4, 1024, False, held=16, itemsize=4)  # group norm: 64 lanes for each of its four channels
    NormRows(lanes=64, at_once=1, turns=1, block=256, shared_bytes=0)
    >>> norm_rows(8, 3136, False, held=16, itemsize=4) is None
    True
    """
    lanes = max(LEAST_LANES, power_of_two(-(-length // held)))
    shared_bytes = 3 * length * itemsize if along else 0
    if lanes * segments > ROW_THREADS or shared_bytes > MOST_ROW_SHARED:
        return None
    at_once = ROW_THREADS // (lanes * segments)
    turns = max(2, ROWS_OF_BLOCK // at_once) if along else 1
    return NormRows(lanes, at_once, turns, -(-at_once * segments * lanes // 32) * 32, shared_bytes)


def power_of_two(least: int) -> int:
    """The first power of two that is not below `least`."""
    return 1 << max(0, least - 1).bit_length()
