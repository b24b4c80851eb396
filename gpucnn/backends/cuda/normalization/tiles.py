"""Tiles and rows of the norms: pure functions of sizes.

Rows that a block holds save 33 to 73 % of the sectors over the general kernels, and 51 to 95 % of the memory
instructions (benchmarks/results/kernel-gains.md). In these, several sums of a block save 34 to 37 % of the sectors of
planes of 7 x 7, whose ends share sectors, at up to three times the memory instructions, to shared memory.
"""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

from gpucnn.backends.cuda.device.limits import LINE_BYTES, SECTOR_BYTES, power_of_two

NORM_THREADS = 256  # wanted of a block
MAX_NORM_THREADS = 512
MAX_NORM_SUMS = 64  # of a block: MAX_SUMS in norm_tiles.cuh
ROW_THREADS = 256  # of a block that holds rows: MAX_THREADS in norm_rows.cuh
ROWS_OF_BLOCK = 32  # that share the weights that a block reads, and more where rows are short
MAX_TURNS = 8  # of a block, whose weights and sums of columns cost as much as a turn, where
WANTED_BLOCKS = 512  # remain
MIN_LANES = 8  # threads of a segment of a row: single values of 4 bytes fill a sector
MAX_ROW_SHARED = 40 << 10  # bytes of weights, and of the backward pass's sums


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
    """Tile of a block for sums over `reduced` elements each, whose threads hold `held` values in packs.

    Innermost in memory are `beside` neighbouring sums (`is_along`), or `inner` elements of each of `beside` adjacent
    sums.

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
    sums = min(whole, beside, MAX_NORM_SUMS)
    while sums > 1 and sums * packs > MAX_NORM_THREADS:
        sums = -(-sums // 2)
    if sums == 1 and packs >= 32:
        splits = -(-reduced // (slots * pack * NORM_THREADS))
        side = max(32, -(-reduced // (max(1, splits) * slots * pack * 32)) * 32)
        return _norm_tile(1, side, side, side * pack, reduced, slots)
    while 2 * sums <= min(beside, MAX_NORM_SUMS) and 2 * sums * packs <= NORM_THREADS:
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


def norm_rows(
    segments: int, length: int, along: bool, held: int, itemsize: int, pack: int = 1, rows: int = 1
) -> NormRows | None:
    """Block shape for `rows` of `segments` times `length` values, or None where they are too large.

    A thread holds `held` values in packs. Where weights vary `along` a row, a block keeps them, `itemsize` bytes each.

    Examples
    --------
    >>> norm_rows(1, 768, True, held=32, itemsize=4)  # layer norm: a row a warp, by turns
    NormRows(lanes=32, at_once=8, turns=4, block=256, shared_bytes=9216)
    >>> norm_rows(4, 1024, False, held=16, itemsize=4)  # group norm: 64 lanes for each of its four channels
    NormRows(lanes=64, at_once=1, turns=1, block=256, shared_bytes=0)
    >>> norm_rows(8, 3136, False, held=16, itemsize=4) is None
    True
    """
    least = MIN_LANES // 2 if along and pack >= 4 else MIN_LANES  # these are whole sectors, and fewer lanes idle
    lanes = max(least, power_of_two(-(-length // held)))
    shared_bytes = 3 * length * itemsize if along else 0
    if lanes * segments > ROW_THREADS or shared_bytes > MAX_ROW_SHARED:
        return None
    at_once = ROW_THREADS // (lanes * segments)
    turns = max(2, ROWS_OF_BLOCK // at_once, min(MAX_TURNS, rows // (WANTED_BLOCKS * at_once))) if along else 1
    return NormRows(lanes, at_once, turns, -(-at_once * segments * lanes // 32) * 32, shared_bytes)
