"""Implicit GEMM in C++: contractions of all kinds, and the gradient of the weight."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from gpucnn.backends.cpu.library import Kernel, Launch, Layout, shared_scratch, strides, vector_bytes
from gpucnn.backends.cpu.tiling import LEAST_CHANNELS, MIN_ITEMS, Samplings, Tile, block_of, fields, tile_of, tiles_of
from gpucnn.backends.numpy.memory import Array

ROOM = 16  # positions and filters beyond the last, to whole register tiles

# Of a work item of a wgrad: so many lanes, taps times channels, that to fetch a gradient pays, and so many filters that
# to gather x does; the sums of both stay in the second-level cache.
LANES_OF_PART = 288
SUM_BYTES = 384 << 10
GATHERED = 128  # positions of a panel, as in the kernel
ROWS = 8  # filters of a register tile there
FEW = 32  # filters, for which the kernel gathers nothing
RANGE = 512  # positions of a range of tiles, whose sums are written, and read again to be added

_CONVOLUTION = Kernel("convolution")
_PACK = Kernel("convolution", "pack_weights")
_WEIGHT = Kernel("convolution_backward_weight")
_SUM = Kernel("convolution_backward_weight", "sum_ranges")


def plan(x: Layout, w: Layout, y: Layout, bias: Layout | None, samplings: Samplings, dtype: str) -> Callable[..., None]:
    """The function of arrays x [N, G * C, D, H, W], w [G, M, C, KD, KH, KW], y [N, G * M, *o] and bias [G, M] or None.

    The taps of w ascend.
    """
    batch, (groups, filters, channels) = x.shape[0], w.shape[:3]
    lanes = vector_bytes() // x.itemsize
    vectors = -(-filters // lanes)
    tile = tile_of(batch, channels, samplings, x.itemsize)
    tiles = groups * tiles_of(tile, batch, samplings)
    parts = min(-(-vectors // 4), max(1, MIN_ITEMS // tiles))
    room, block = prod(tile) + ROOM, block_of(tile, channels, samplings)
    pieces = prod(w.shape[3:]) * (1 + channels * w.shape[5] // 16)
    values = {
        **{"n": batch, "groups": groups, "channels": channels, "filters": filters, "parts": parts},
        **{"block": block, "room": room},
        **fields(samplings, tile),
        **strides("x", x, "ncdhw"),
        **strides("y", y, "ncdhw"),
        **strides("w", w, "gmcdhw"),
        **strides("bias", bias, "gm"),
    }
    pack = Launch(_PACK, dtype, values, groups * vectors, lanes * max(256, prod(w.shape[3:])))
    workspace = block + lanes + 2 * room * 4 * lanes + 2 * (room + 4 * pieces + 8)
    multiply = Launch(_CONVOLUTION, dtype, values, tiles * parts, workspace)
    packed_size = groups * vectors * lanes * prod(w.shape[2:])

    def contract(x: Array, w: Array, y: Array, bias: Array | None) -> None:
        packed = shared_scratch("filters", packed_size, dtype)
        pack(w=w, packed=packed)
        multiply(x=x, packed=packed, bias=bias, y=y)

    return contract


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
        parts_m, part_m = _parts_of_filters(filters, filters * groups * parts_c * ranges // (MIN_ITEMS // 2))
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
        part = max(2, -(-vectors // parts))
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
