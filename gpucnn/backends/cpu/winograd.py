"""Winograd's F(2x2, 3x3) in C++, for the forward and dgrad in float32."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from gpucnn.backends.cpu.library import Kernel, aligned, launch, strides, vector_bytes
from gpucnn.backends.numpy.memory import Array
from gpucnn.geometry import Sampling

Samplings = tuple[Sampling, Sampling, Sampling]

TRANSFORMED_BYTES = 3 << 19  # of a region's transformed input, which stays in the second-level cache
TILES = 96  # most in a region
MIN_CHANNELS = 16
MIN_ITEMS = 16  # work items below which the filters are cut in parts too

_WINOGRAD = Kernel("winograd")
_TRANSFORM = Kernel("winograd", "transform_weights")


def computes(samplings: Samplings, channels: int, dtype: str) -> bool:
    """Whether this is a 3 x 3 convolution of float32 without stride and dilation, of some channels."""
    depth, *plane = samplings
    return (
        dtype == "float32"
        and depth.is_identity
        and depth.targets == 1
        and all(len(axis.offsets) == 3 and axis.step == 1 and abs(axis.spacing) == 1 for axis in plane)
        and channels >= MIN_CHANNELS
    )


def pays(samplings: Samplings, batch: int, filters: int, channels: int) -> bool:
    """Whether it takes less time than the implicit GEMM.

    Its products are 16 for a tile of four outputs, and their operands pass through the transforms, some 30 operations
    of a channel or filter; with few tiles the filters' transform counts.
    """
    _, height, width = samplings
    tiles = batch * -(-height.targets // 2) * -(-width.targets // 2)
    products = 16 * channels * filters
    transforms = 30 * (channels + filters) + 25 * channels * filters / tiles
    direct = 9 * channels * filters * height.targets * width.targets * batch / tiles
    return products + transforms * 16 < direct


def contract(x: Array, w: Array, samplings: Samplings, y: Array, bias: Array | None) -> list[int]:
    """As `convolution.contract`, for what this module computes; the images whose results are not all finite.

    x [N, G * C, 1, H, W]; w [G, M, C, 1, 3, 3], its taps ascending; bias [G, M] or None; y [N, G * M, 1, OH, OW].
    """
    groups, filters, channels = w.shape[:3]
    _, height, width = samplings
    lanes = vector_bytes() // x.itemsize
    vectors = -(-filters // lanes)
    tile_n, tile_h, tile_w = region(len(x), -(-height.targets // 2), -(-width.targets // 2), channels)
    regions = -(-len(x) // tile_n) * -(-height.targets // (2 * tile_h)) * -(-width.targets // (2 * tile_w))
    parts = min(-(-vectors // 4), max(1, MIN_ITEMS // (groups * regions)))
    values = {
        **{"n": len(x), "groups": groups, "channels": channels, "filters": filters, "parts": parts},
        **{"h": height.sources, "w": width.sources, "oh": height.targets, "ow": width.targets},
        **{"least_h": height.least, "least_w": width.least},
        **{"tile_n": tile_n, "tile_h": tile_h, "tile_w": tile_w},
        **strides("x", x[:, :, 0], "nchw"),
        **strides("y", y[:, :, 0], "nchw"),
        **strides("w", w[:, :, :, 0], "gmchw"),
        **strides("bias", bias, "gm"),
    }
    packed = aligned(groups * vectors * lanes * channels * 16, x.dtype)
    launch(_TRANSFORM, x.dtype.name, values, {"w": w, "packed": packed}, groups * vectors, lanes * 256)
    items = groups * regions * parts
    not_finite = np.empty(items, np.int64)
    tiles = tile_n * tile_h * tile_w
    pixels = max(8 * tiles * 4 * lanes, tile_n * (2 * tile_h + 2) * (2 * tile_w + 2) * channels)
    workspace = 16 * tiles * (channels + 4 * lanes) + pixels + 2 * (tiles + 32) + 2 * lanes
    arrays = {"x": x, "packed": packed, "bias": bias, "y": y, "not_finite": not_finite}
    launch(_WINOGRAD, x.dtype.name, values, arrays, items, workspace)
    if not not_finite.any():
        return []
    by_images = not_finite.reshape(groups, -(-len(x) // tile_n), -1).any(axis=(0, 2))
    return [n for n in range(len(x)) if by_images[n // tile_n]]


@lru_cache(maxsize=1024)
def region(batch: int, high: int, wide: int, channels: int) -> tuple[int, int, int]:
    """Images, rows and columns of tiles in a region: about equal regions, of whole rows and images where they fit."""
    most = max(1, min(TILES, TRANSFORMED_BYTES // (64 * channels)))
    columns = _equal(wide, most)
    rows = _equal(high, most // columns) if columns == wide else 1
    images = _equal(batch, most // (columns * rows)) if rows == high and columns == wide else 1
    return images, rows, columns


def _equal(count: int, most: int) -> int:
    """The least size of the fewest parts of `count` that hold at most `most`."""
    return -(-count // -(-count // max(1, min(most, count))))
