"""Tiles of im2col and col2im: pure functions of sizes.

Pitches by rule have as few bank conflicts as a search had: of layers, 6 % fewer to 14 % more accesses.
"""

from __future__ import annotations

from itertools import count

from gpucnn.backends.cuda.device.limits import BANKS, LINE_BYTES, MAX_SHARED_BYTES, SECTOR_BYTES, skewed

TILE_BYTES = 20 << 10  # of shared memory for the image tile of one block
LAST_TILE_BYTES = 44 << 10  # and where it takes a sector of channels of it
MIN_RUN_BYTES = 1536  # of neighbouring entries that a tap has in a tile: few of their sectors are in two tiles
FEW_CHANNELS = 8  # below which one bank has several elements of a warp's channels
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


def channel_pitch(least: int, channels: int, itemsize: int) -> int:
    """Channel pitch of a tile in shared memory, in elements, where lanes step through channels.

    An odd one, or, of few channels, one whose channels begin as many banks apart as a warp has elements of each.

    Examples
    --------
    >>> channel_pitch(600, 8, 4), channel_pitch(600, 3, 4)
    (601, 601)
    """
    if channels >= FEW_CHANNELS:
        return least | 1
    word, apart = max(1, 4 // itemsize), -(-BANKS // channels)
    return next(pitch for pitch in count(least) if skewed(pitch, itemsize) // word % BANKS == apart % BANKS)
