"""Winograd's F(2x2, 3x3) in C++, for the forward and dgrad in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpucnn.backends.cpu.finishing import Finish
from gpucnn.backends.cpu.library import Kernel, Launch, Layout, shared_scratch, strides, vector_bytes
from gpucnn.backends.cpu.tiling import MIN_ITEMS, Samplings
from gpucnn.backends.numpy.memory import Array

TRANSFORMED_BYTES = 9 << 18  # of a region's transformed input, of which a frequency stays in the second-level cache
TILES = 96  # most in a region
PART_FILTERS = 192  # least in a part: each transforms its input anew, as many operations as for 30 filters
SLICE = 64  # channels of the filters that an item transforms together
FREQUENCIES = 16

_WINOGRAD = Kernel("winograd")
_TRANSFORM = Kernel("winograd", "transform_weights")

Contract = Callable[..., list[int]]


def plan(
    x: Layout, w: Layout, y: Layout, bias: Layout | None, samplings: Samplings, dtype: str, finish: Finish
) -> Contract:
    """The function of x, w, y, bias and residual that writes y and returns the images whose sums are not all finite.

    x [N, G * C, 1, H, W]; w [G, M, C, 1, 3, 3], its taps ascending; bias [G, M] or None; y [N, G * M, 1, OH, OW]; the
    residual is None, or has the strides of y.
    """
    batch, (groups, filters, channels) = x.shape[0], w.shape[:3]
    _, height, width = samplings
    lanes = vector_bytes() // x.itemsize
    vectors = -(-filters // lanes)
    residues = abs(height.spacing * width.spacing)
    high, wide = (-(-axis.targets // abs(axis.spacing)) for axis in (height, width))  # of one residue
    tile_n, tile_h, tile_w = region(batch * residues, -(-high // 2), -(-wide // 2), channels)
    bands = -(-batch * residues // tile_n)
    regions = bands * -(-high // (2 * tile_h)) * -(-wide // (2 * tile_w))
    parts = max(1, min(filters // PART_FILTERS, MIN_ITEMS // (groups * regions)))
    transforms_ahead = regions > 1  # else each filter is used in one work item alone
    part = channels if transforms_ahead else min(channels, SLICE)
    values = {
        **{"n": batch * residues, "groups": groups, "channels": channels, "filters": filters, "parts": parts},
        **{"slice": part},
        **{"h": height.sources, "w": width.sources, "oh": height.targets, "ow": width.targets},
        **{"least_h": height.least, "least_w": width.least},
        **{"gap_h": abs(height.spacing), "gap_w": abs(width.spacing)},
        **{"tile_n": tile_n, "tile_h": tile_h, "tile_w": tile_w},
        **strides("x", x, "ncdhw"),
        **strides("y", y, "ncdhw"),
        **strides("w", w, "gmcdhw"),
        **strides("bias", bias, "gm"),
        **finish._asdict(),
    }
    items, tiles = groups * regions * parts, tile_n * tile_h * tile_w
    pixels = max(8 * tiles * 4 * lanes, tile_n * (2 * tile_h + 2) * (2 * tile_w + 2) * channels)
    workspace = FREQUENCIES * (tiles * (channels + 4 * lanes) + 3 * lanes) + pixels + 4 * (tiles + 32) + 2 * lanes
    if not transforms_ahead:
        workspace += 256 * lanes + FREQUENCIES * (part + 1) * 4 * lanes + 3 * lanes
    transform = Launch(_TRANSFORM, dtype, values, groups * vectors, lanes * 256)
    multiply = Launch(_WINOGRAD, dtype, values, items, workspace)
    room = groups * vectors * lanes * (channels + 1) * FREQUENCIES

    def contract(x: Array, w: Array, y: Array, bias: Array | None, residual: Array | None) -> list[int]:
        packed, not_finite = None, np.empty(items, np.int64)
        if transforms_ahead:
            packed = shared_scratch("filters", room, dtype)
            transform(w=w, packed=packed)
        multiply(x=x, w=w, packed=packed, bias=bias, residual=residual, y=y, not_finite=not_finite)
        if not not_finite.any():
            return []
        by_band: Any = not_finite.reshape(groups, bands, -1).any(axis=(0, 2))
        return [n for n in range(batch) if any(by_band[i // tile_n] for i in range(n * residues, (n + 1) * residues))]

    return contract


def region(batch: int, high: int, wide: int, channels: int) -> tuple[int, int, int]:
    """Images, rows and columns of tiles in a region: about equal regions, of whole rows and images where they fit."""
    most = max(1, min(TILES, TRANSFORMED_BYTES // (4 * FREQUENCIES * channels)))
    columns = _equal(wide, most)
    rows = _equal(high, most // columns) if columns == wide else 1
    images = _equal(batch, most // (columns * rows)) if rows == high and columns == wide else 1
    return images, rows, columns


def _equal(count: int, most: int) -> int:
    """The least size of the fewest parts of `count` that hold at most `most`."""
    return -(-count // -(-count // max(1, min(most, count))))
