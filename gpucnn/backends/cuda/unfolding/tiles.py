"""Tiles of im2col and col2im: pure functions of sizes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends.cuda.device.limits import BANKS, LINE_BYTES, MAX_SHARED_BYTES, SECTOR_BYTES
from gpucnn.backends.cuda.launch.shared_memory import bank_conflict, least_conflict

TILE_BYTES = 20 << 10  # of shared memory for the image tile of one block
LAST_TILE_BYTES = 44 << 10  # and where it takes a sector of channels of it
MIN_RUN_BYTES = 1536  # of neighbouring entries that a tap has in a tile: few of their sectors are in two tiles
WANTED_TILES = 264  # two blocks for each multiprocessor of a large device


def unfold_tile(
    c: int, h: int, w: int, out: int, stride_h: int, itemsize: int, sum_bytes: int, planes: int, channels_last: bool
) -> tuple[int, int, int]:
    """Channels, rows and columns of the tiles for unfolding and folding `planes` images [C, H, W].

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
    most = min(most, MAX_SHARED_BYTES // (LINE_BYTES + max(4, sum_bytes)) * (LINE_BYTES // sum_bytes))  # skewed
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
        if half >= rows or half // stride_h * out * itemsize < MIN_RUN_BYTES:
            break
        rows = half
    while 2 * channels <= c and 2 * channels * rows * w <= 2048:
        channels *= 2
    return channels, rows, w


class Reader(NamedTuple):
    """Lane mapping of a tile's rows: adjacent lanes have a spacing of `pack` elements, `out` per row."""

    row_step: int
    step: int
    out: int
    pack: int
    shifts: tuple[int, ...]  # along a row, of different reads
    starts: tuple[int, ...]  # offsets of the first lane


@lru_cache(maxsize=1024)
def unfold_pitch(rows: int, w: int, itemsize: int, readers: tuple[Reader, ...]) -> int:
    """Row pitch of a tile in shared memory, in elements, for the fewest bank conflicts.

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
    """Channel pitch of a tile in shared memory, in elements, where lanes step through channels.

    Examples
    --------
    >>> unfold_plane(600, 8, 4)
    601
    """
    lane = np.arange(8 * BANKS)
    return least_conflict(least, lambda plane: bank_conflict(lane % channels * plane + lane // channels, itemsize))


def _row_conflict(
    rows: int, pitch: int, itemsize: int, row_step: int, step: int, out: int, pack: int, shifts: Any, starts: Any
) -> int:
    place = np.add.outer(np.array(starts), np.arange(0, max(1, min(rows // row_step, 64) * out), pack))
    at = place // out * row_step * pitch + place % out * step
    shift = np.add.outer(np.arange(min(row_step, 4)) * pitch, np.array(shifts)[:: -(-len(shifts) // 12)])
    return max(bank_conflict(row, itemsize) for row in np.add.outer(shift.ravel(), at).reshape(-1, at.shape[1]))
