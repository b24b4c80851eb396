"""Implicit GEMM in C++: contractions of all kinds, and the gradient of the weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from gpucnn.backends.cpu.finishing import NOTHING, Finish
from gpucnn.backends.cpu.library import Kernel, Launch, Layout, shared_scratch, strides, vector_bytes
from gpucnn.backends.cpu.tiling import (
    BLOCK_BYTES,
    LEAST_CHANNELS,
    MIN_ITEMS,
    POSITIONS,
    Residue,
    Samplings,
    Tile,
    block_of,
    extent,
    fields,
    joint,
    read_share,
    tile_of,
    tiles_of,
)
from gpucnn.backends.listening import read
from gpucnn.backends.numpy.memory import Array
from gpucnn.geometry import Sampling

SLICE = 64  # channels of a block for which a tile is chosen; more are cut in slices if need be
FAR = 8  # sources between taps from which on most of what a small tile reads is not shared
FAR_POSITIONS = 2048  # of a tile then
KEPT_PANELS = 8  # of filters, whose sums an item keeps from one slice to the next
ROOM = 16  # positions and filters beyond the last, to whole register tiles

# Of a work item of a wgrad: so many lanes, taps times channels, that to fetch a gradient pays, and so many filters that
# to gather x does; the sums of both stay in the second-level cache.
LANES_OF_PART = 288
SUM_BYTES = 384 << 10
GATHERED = 128  # positions of a panel, as in the kernel
ROWS = 8  # filters of a register tile there
FEW = 32  # filters, for which the kernel gathers nothing
MIN_FILTERS = 64  # of a part, unless their sums do not fit
RANGE = 256  # positions of a range of tiles, whose sums are written, and read again to be added

_CONVOLUTION = Kernel("convolution")
_PACK = Kernel("convolution", "pack_weights")
_WEIGHT = Kernel("convolution_backward_weight")
_SUM = Kernel("convolution_backward_weight", "sum_ranges")


def plan(
    x: Layout,
    w: Layout,
    y: Layout,
    bias: Layout | None,
    residues: Sequence[Residue],
    offsets: Sequence[int],
    dtype: str,
    finish: Finish = NOTHING,
) -> Callable[..., None]:
    """The function of x [N, G * C, D, H, W], w [G, M, C, KD, KH, KW], y [N, G * M, *o], bias [G, M] and a residual.

    Bias and residual may be None; the residual has the strides of y.

    Of several residues, y is the first one's; the others' have the same strides, and begin at `offsets` from there.
    """
    batch, (groups, filters, channels) = x.shape[0], w.shape[:3]
    lanes = vector_bytes() // x.itemsize
    vectors = -(-filters // lanes)
    samplings, count, kernel = joint(residues), len(residues), w.shape[3:]
    most_taps, taps = max(map(_taps, residues)), sum(map(_taps, residues))
    skips = channels >= SLICE and most_taps > 1
    is_far = any(abs(axis.spacing) >= FAR for each in residues for axis in each.samplings)
    tile = tile_of(batch, min(channels, SLICE), samplings, x.itemsize, FAR_POSITIONS if is_far and skips else POSITIONS)
    splits_w = any(_splits(each.samplings[2], skips) for each in residues)
    position = _cropped(tile, samplings, splits_w) if skips else block_of(tile, 1, samplings)
    slices, part = slice_of(channels, position * x.itemsize, lanes)
    tiles = groups * tiles_of(tile, batch, samplings)
    parts = min(-(-vectors // 4), max(1, MIN_ITEMS // tiles))
    if slices > 1:
        parts = max(parts, -(-vectors // (4 * KEPT_PANELS)))
    room, block = prod(tile) + ROOM, position * part
    pieces, lists = most_taps * (1 + part * kernel[2] // 512), most_taps if skips else 1
    values = {
        **{"n": batch, "groups": groups, "channels": channels, "filters": filters, "parts": parts},
        **{"slice": part, "residues": count, "taps": taps},
        **{"block": block, "room": room, "pieces": pieces, "lists": lists, "splits_w": int(splits_w)},
        **fields(samplings, tile),
        **dict(zip(("wd", "wh", "ww"), kernel, strict=True)),
        **strides("x", x, "ncdhw"),
        **strides("y", y, "ncdhw"),
        **strides("w", w, "gmcdhw"),
        **strides("bias", bias, "gm"),
        **finish._asdict(),
    }
    table = np.array([_row(*each, kernel) for each in zip(residues, offsets, strict=True)], np.int64)
    turned = lanes * max(256, prod(kernel))
    packs_ahead = tiles > groups  # else each weight is used in one work item alone
    sums = room * 4 * lanes * (1 if slices == 1 else count * (-(-vectors // (4 * parts)) + 1))
    workspace = block + lanes + sums + room * 4 * lanes + 2 * count * (9 * pieces + 3 * lists * room + 16)
    if not packs_ahead:
        workspace += part * taps * 4 * lanes + turned
    pack = Launch(_PACK, dtype, values, groups * vectors, turned)
    multiply = Launch(_CONVOLUTION, dtype, values, tiles * parts, workspace)
    packed_size = groups * vectors * lanes * channels * taps

    def contract(x: Array, w: Array, y: Array, bias: Array | None, residual: Array | None = None) -> None:
        packed = None
        read(table)
        if packs_ahead:
            packed = shared_scratch("filters", packed_size, dtype)
            pack(w=w, residues=table, packed=packed)
        multiply(x=x, w=w, packed=packed, bias=bias, residual=residual, residues=table, y=y)

    return contract


def _splits(width: Sampling, skips: bool) -> bool:
    """Whether runs along W are of one tap: where taps are apart, or many of them read padding."""
    return abs(width.spacing) > 1 or (skips and read_share(width) < 0.95)


def _cropped(tile: Tile, samplings: Samplings, splits_w: bool) -> int:
    """Positions of a block without padding; with that along W unless runs are of one tap."""
    axes = zip(samplings, tile[1:], (True, True, splits_w), strict=True)
    extents = [(axis, extent(axis, count), crops) for axis, count, crops in axes]
    return tile.n * prod(
        min(size, axis.sources) if crops and len(axis.offsets) > 1 else size for axis, size, crops in extents
    )


def _taps(residue: Residue) -> int:
    return prod(map(len, residue.taps))


def _row(residue: Residue, offset: int, kernel: tuple[int, ...]) -> list[int]:
    """A residue as ``struct Residue`` of convolution.cpp."""
    axes, taps, steps = residue.samplings, residue.taps, (kernel[1] * kernel[2], kernel[2], 1)
    return [
        *(axis.targets for axis in axes),
        *(len(axis.offsets) for axis in axes),
        *(axis.least for axis in axes),
        *(abs(axis.spacing) or 1 for axis in axes),
        sum(each[0] * step for each, step in zip(taps, steps, strict=True)),
        *(each.step * step for each, step in zip(taps, steps, strict=True)),
        offset,
    ]


def slice_of(channels: int, position_bytes: int, lanes: int) -> tuple[int, int]:
    """Slices of the channels, whose blocks have some BLOCK_BYTES, and the channels of one: whole vectors, or all."""
    most = max(lanes, BLOCK_BYTES // position_bytes)
    if channels <= most:
        return 1, channels
    part = -(-channels // -(-channels // most))
    part = -(-part // lanes) * lanes
    return -(-channels // part), part


def plan_weight(
    x: Layout, grad_y: Layout, grad_w: Layout, samplings: Samplings, dtype: str
) -> Callable[[Array, Array, Array], None]:
    """The function of arrays x [N, G * C, D, H, W], grad_y [N, G * M, *o] and grad_w [G, M, C, KD, KH, KW]."""
    batch, (groups, filters, channels) = x.shape[0], grad_w.shape[:3]
    lanes, taps = vector_bytes() // x.itemsize, prod(grad_w.shape[3:])
    part_c, tile, in_place = _part_of_channels(x, filters, channels, samplings)
    row = -(-part_c * taps // lanes) * lanes
    parts_c, tiles = -(-channels // part_c), tiles_of(tile, batch, samplings)
    parts_m, part_m = _parts_of_filters(filters, SUM_BYTES // (row * x.itemsize))
    ranges = max(1, min(tiles, MIN_ITEMS // (groups * parts_c * parts_m), tiles * prod(tile) // RANGE))
    if groups * parts_c * parts_m * ranges < MIN_ITEMS // 2:
        most = max(MIN_FILTERS, filters * groups * parts_c * ranges // (MIN_ITEMS // 2))
        parts_m, part_m = _parts_of_filters(filters, min(part_m, most))
    items = groups * ranges * parts_c * parts_m
    block = 0 if in_place else block_of(tile, part_c, samplings)
    values = {
        **{"n": batch, "groups": groups, "channels": channels, "filters": filters},
        **{"part_m": part_m, "part_c": part_c, "parts_m": parts_m, "parts_c": parts_c},
        **{"tiles": tiles, "ranges": ranges, "row": row, "in_place": in_place},
        **{"block": block, "positions": prod(tile), "items": min(MIN_ITEMS, groups * filters)},
        **fields(samplings, tile),
        **strides("x", x, "ncdhw"),
        **strides("y", grad_y, "ncdhw"),
        **strides("w", grad_w, "gmcdhw"),
    }
    sums_size = (part_m + ROWS) * row
    panel = (GATHERED + 1) * 3 * lanes + 2 * GATHERED
    workspace = (sums_size if ranges == 1 else 0) + block + prod(tile) * (part_m + 4) + panel + 6 * lanes + ROWS
    correlate = Launch(_WEIGHT, dtype, values, items, workspace)
    if ranges == 1:
        return lambda x, grad_y, grad_w: correlate(x=x, grad_y=grad_y, sums=None, grad_w=grad_w)
    add = Launch(_SUM, dtype, values, min(MIN_ITEMS, groups * filters), row)

    def contract(x: Array, grad_y: Array, grad_w: Array) -> None:
        sums = shared_scratch("sums of filters", items * sums_size, dtype)
        correlate(x=x, grad_y=grad_y, sums=sums, grad_w=grad_w)
        add(sums=sums, grad_w=grad_w)

    return contract


def _part_of_channels(x: Layout, filters: int, channels: int, samplings: Samplings) -> tuple[int, Tile, bool]:
    """The channels of a work item of a wgrad, its tile, and whether it reads x in place.

    In place the vectors of a panel are of one tap, and there are two at least. A copy has so few channels that it holds
    what many positions read; few filters take less time to multiply with it than to gather panels.
    """
    batch, lanes = x.shape[0], vector_bytes() // x.itemsize
    taps = prod(len(axis.offsets) for axis in samplings)
    parts = max(1, round(channels * taps / LANES_OF_PART))
    is_innermost = strides("x", x, "ncdhw")["x_c"] == 1
    if is_innermost and channels % lanes == 0 and (filters > FEW or taps == 1):
        vectors = channels // lanes
        part = -(-vectors // parts)
        # three narrow vectors: with two, a register tile loads more than it multiplies
        part = min(vectors, max(2, part) if vector_bytes() == 64 else -(-part // 3) * 3)
        return lanes * (part + (vectors % part == 1)), tile_of(batch, 0, samplings, x.itemsize), True
    wanted = min(GATHERED * 3 // 4, batch * prod(axis.targets for axis in samplings))
    while True:
        part = -(-channels // parts)
        tile = tile_of(batch, part, samplings, x.itemsize)
        if prod(tile) >= wanted or part <= LEAST_CHANNELS:
            return part, tile, False
        parts *= 2


def _parts_of_filters(filters: int, most: int) -> tuple[int, int]:
    """The number of parts of about equal size, and the filters of a part: whole register tiles of at most `most`."""
    parts = -(-filters // max(ROWS, most))
    part = -(-filters // (parts * ROWS)) * ROWS
    return -(-filters // part), part
