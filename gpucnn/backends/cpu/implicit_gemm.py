"""Implicit GEMM in C++: contractions of all kinds, and the gradient of the weight."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from gpucnn.backends.cpu.library import Kernel, Launch, Layout, shared_scratch, strides, vector_bytes
from gpucnn.backends.cpu.tiling import MIN_ITEMS, Samplings, block_of, fields, tile_of, tiles_of
from gpucnn.backends.numpy.memory import Array

ROOM = 16  # positions and filters beyond the last, to whole register tiles
RANGE_BYTES = 4 << 20  # of the sums of a range of tiles, of which there are more the smaller they are

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
    lanes = vector_bytes() // x.itemsize
    row = _rounded_runs(samplings, channels, lanes)
    tile = tile_of(batch, channels, samplings, x.itemsize)
    tiles = tiles_of(tile, batch, samplings)
    ranges = max(1, min(tiles, MIN_ITEMS // groups, RANGE_BYTES // (filters * row * x.itemsize)))
    parts = min(-(-filters // 16), max(1, MIN_ITEMS // 2 // (groups * ranges)))
    part, block = -(-filters // parts), block_of(tile, channels, samplings)
    parts = -(-filters // part)
    values = {
        **{"n": batch, "groups": groups, "channels": channels, "filters": filters},
        **{"tiles": tiles, "ranges": ranges, "parts": parts, "part": part, "row": row},
        **{"block": block, "positions": prod(tile), "items": min(MIN_ITEMS, groups * filters)},
        **fields(samplings, tile),
        **strides("x", x, "ncdhw"),
        **strides("y", grad_y, "ncdhw"),
        **strides("w", grad_w, "gmcdhw"),
    }
    workspace = block + 6 * lanes + prod(tile) * part + ROOM + 2 * prod(tile)
    correlate = Launch(_WEIGHT, dtype, values, groups * ranges * parts, workspace)
    add = Launch(_SUM, dtype, values, min(MIN_ITEMS, groups * filters), row)
    sums_size = groups * ranges * parts * (part + ROOM) * row

    def contract(x: Array, grad_y: Array, grad_w: Array) -> None:
        sums = shared_scratch("sums of filters", sums_size, dtype)
        correlate(x=x, grad_y=grad_y, sums=sums)
        add(sums=sums, grad_w=grad_w)

    return contract


def _rounded_runs(samplings: Samplings, channels: int, lanes: int) -> int:
    """Scalars of all runs of a block that an output reads (see blocks.hpp), each rounded up to whole vectors."""
    depth, height, width = (len(axis.offsets) for axis in samplings)
    if abs(samplings[2].spacing) > 1:
        return depth * height * width * -(-channels // lanes) * lanes
    return depth * height * -(-channels * width // lanes) * lanes
