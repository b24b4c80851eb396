"""Interpolation and its adjoint on the GPU, by per-axis tables of sources and weights."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gpucnn.backends import listening
from gpucnn.backends.cuda.device.limits import SECTOR_BYTES
from gpucnn.backends.cuda.device.runtime import MAX_BYTES, Array, Device, Runtime
from gpucnn.backends.cuda.device.sources import Kernel
from gpucnn.backends.cuda.launch.plans import IMAGE, Fields, Layout, Work, launch, strides
from gpucnn.backends.cuda.resampling.tiles import ResampleTile, Resampling, Table
from gpucnn.backends.dtypes import kernel_accumulator
from gpucnn.backends.layout import is_channels_last, is_dense
from gpucnn.backends.samples import matrix
from gpucnn.geometry import InterpolationGeometry
from gpucnn.geometry.caches import kept

RESAMPLE = Kernel("interpolate", "ResampleParams", function="resample")
RESAMPLE_TILES = Kernel("interpolate", "ResampleParams", function="resample_tiles")

TABLES_BYTES = 64 << 20  # of all tables that are kept on devices


def interpolate(runtime: Runtime, x: Array, y: Array, geometry: InterpolationGeometry) -> None:
    """Y [N, C, OD, OH, OW] of x [N, C, D, H, W]."""
    _resample(runtime, x, y, geometry, adjoint=False)


def interpolate_backward(runtime: Runtime, grad_y: Array, grad_x: Array, geometry: InterpolationGeometry) -> None:
    """grad_x [N, C, D, H, W]: each input's weighted sum over the outputs that read it."""
    _resample(runtime, grad_y, grad_x, geometry, adjoint=True)


def _resample(runtime: Runtime, x: Array, y: Array, geometry: InterpolationGeometry, *, adjoint: bool) -> None:
    sums = kernel_accumulator(x.dtype)
    dtype = np.zeros(0, sums).real.dtype  # of weights, the kernels' real_t: integers are only added, by weights of 1
    tables = _tables(runtime, runtime.device(x), geometry, adjoint, dtype)
    arrays = {"x": x, "y": y, **dict(zip(("starts", "sources", "weights"), tables, strict=True))}
    listening.read(*tables)
    inner = x.shape[1] if is_channels_last(y) else 1
    tile = _tile(geometry, adjoint, x.shape[1], inner, x.itemsize, sums.itemsize, dtype) if x.size else None
    if tile is None:
        launch(runtime, RESAMPLE, x.dtype, arrays, _work)
    else:
        launch(runtime, RESAMPLE_TILES, x.dtype, arrays, _tiles_work, tile=tile)


def _work(x: Layout, y: Layout) -> Work:
    fields = _fields(x, y) | dict.fromkeys(("w", *ResampleTile._fields[:-1], "x_joined", "y_joined", "x_is_dense"), 1)
    return Work(fields, y.size, extents=(y.shape[4] + 1,))


OF_A_POSITION, OF_A_ROW, OF_ALL_ROWS = 0, 1, 2  # contiguous elements of a tile


def _tiles_work(x: Layout, y: Layout, tile: ResampleTile) -> Work:
    n, c, od, oh, ow = y.shape
    channels_last = is_channels_last(y)
    slices = c // tile.inner
    joined = OF_A_POSITION if channels_last and slices > 1 else OF_ALL_ROWS if tile.tile_w == ow else OF_A_ROW
    of_sectors = x.shape[4] * tile.inner * x.itemsize % SECTOR_BYTES == 0  # each row separately
    fields = _fields(x, y) | {
        "w": x.shape[4],
        **dict(zip(tile._fields[:-1], tile[:-1], strict=True)),
        **{"x_joined": OF_A_ROW if joined == OF_ALL_ROWS and of_sectors else joined, "y_joined": joined},
        "x_is_dense": int(x.alignment == MAX_BYTES and _has_dense_slices(x, channels_last)),
    }
    blocks = n * -(-slices // tile.chunk) * od * -(-oh // tile.tile_h) * -(-ow // tile.tile_w)
    reach = (
        ow + tile.tile_w,
        oh + tile.tile_h,
        c + tile.chunk * tile.inner,
        x.shape[3] + tile.span_h,
    )
    return Work(fields, blocks=blocks, extents=reach, shared_bytes=tile.shared_bytes)


def _has_dense_slices(x: Layout, channels_last: bool) -> bool:
    """Whether elements [H, W] of x, or [H, W, C] where channels are last, are contiguous, and slices are aligned."""
    if not is_dense(x, (3, 4, 1) if channels_last else (3, 4)):
        return False
    return x.shape[2] == 1 or x.strides[2] % MAX_BYTES == 0


def _fields(x: Layout, y: Layout) -> Fields:
    od, oh, _ = y.shape[2:]
    return {
        **dict(zip(("n", "c", "od", "oh", "ow"), y.shape, strict=True)),
        "starts_h": od + 1,
        "starts_w": od + 1 + oh + 1,
        **strides("x", IMAGE, x),
        **strides("y", IMAGE, y),
        "channels_last": int(is_channels_last(y)),
    }


@lru_cache(maxsize=256)
def _tile(
    geometry: InterpolationGeometry,
    adjoint: bool,
    c: int,
    inner: int,
    itemsize: int,
    sum_bytes: int,
    dtype: np.dtype[np.generic],
) -> ResampleTile | None:
    """The tile of a block, where `inner` channels are contiguous in memory; None where none fits into shared memory."""
    starts, sources, _ = host_tables(geometry, adjoint, dtype)
    sizes = geometry.output_size if adjoint else geometry.input_size
    outs = geometry.input_size if adjoint else geometry.output_size
    tables, place = [], 0
    for size, out in zip(sizes, outs, strict=True):
        own = starts[place : place + out + 1].astype(np.int64)
        tables.append(Table(own - own[0], sources[own[0] : own[-1]].astype(np.int64), size))
        place += out + 1
    d, h, w = tables
    return Resampling(d, h, w, c, inner, itemsize, sum_bytes, dtype.itemsize).tile()


# --- Tables -------------------------------------------------------------------------------------------------------


class Tables(NamedTuple):
    """Terms of each output: entries ``starts[o]`` to ``starts[o + 1]``, by ascending sources; axes D, H and W."""

    starts: Array  # int32 [OD + 1 + OH + 1 + OW + 1]
    sources: Array  # int32 [entries]
    weights: Array  # [entries]


@kept(TABLES_BYTES)
def _tables(
    runtime: Runtime, device: Device, geometry: InterpolationGeometry, adjoint: bool, dtype: np.dtype[np.generic]
) -> Tables:
    """The tables of a resampling on `device`, so that a layer's second call copies nothing there."""
    return Tables(*(runtime.constant(table, device) for table in host_tables(geometry, adjoint, dtype)))


def host_tables(geometry: InterpolationGeometry, adjoint: bool, dtype: np.dtype[np.generic]) -> Tables:
    """The tables of a resampling as NumPy arrays, their weights in `dtype`."""
    matrices = [matrix(axis, dtype, adjoint=adjoint) for axis in geometry.axes]
    before = np.cumsum([0, *(len(each.columns) for each in matrices)])
    starts = [first + each.starts for first, each in zip(before, matrices, strict=False)]
    return Tables(
        np.concatenate(starts).astype(np.int32),
        np.concatenate([each.columns for each in matrices]).astype(np.int32),
        np.concatenate([each.weights for each in matrices]),
    )
