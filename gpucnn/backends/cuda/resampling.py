"""Interpolation and its adjoint on the GPU: one kernel, told by tables along each axis what to add up."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gpucnn.backends.cuda import replays, select
from gpucnn.backends.cuda.launching import Fields, Layout, Work, empty, launch, plain, strides
from gpucnn.backends.cuda.runtime import MOST_BYTES, Array, Device, Runtime
from gpucnn.backends.cuda.sources import Kernel
from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.layout import is_channels_last
from gpucnn.geometry import InterpolationAxis, InterpolationGeometry

if TYPE_CHECKING:
    from gpucnn.backends.cuda import CudaBackend

RESAMPLE = Kernel("interpolate", "ResampleParams", function="resample")
RESAMPLE_ROWS = Kernel("interpolate", "ResampleParams", function="resample_rows")

IMAGE = ("n", "c", "d", "h", "w")
Host = np.ndarray[tuple[int, ...], np.dtype[np.generic]]


def interpolate(backend: CudaBackend, x: Array, geometry: InterpolationGeometry) -> Array:
    """Y [N, C, OD, OH, OW] of x [N, C, D, H, W]."""
    return _resampled(backend, x, geometry, geometry.output_size, adjoint=False)


def interpolate_backward(backend: CudaBackend, grad_y: Array, geometry: InterpolationGeometry) -> Array:
    """grad_x [N, C, D, H, W]: each input's weighted sum over the outputs that read it."""
    return _resampled(backend, grad_y, geometry, geometry.input_size, adjoint=True)


def _resampled(
    backend: CudaBackend, x: Array, geometry: InterpolationGeometry, size: tuple[int, int, int], *, adjoint: bool
) -> Array:
    runtime = backend.runtime
    y = empty(runtime, (*x.shape[:2], *size), x.dtype, like=x)
    device, dtype = runtime.device(x), _weight_dtype(x.dtype)
    tables = _tables(plain(runtime), device, geometry, adjoint, dtype)
    arrays = (x, y, *tables)
    replays.read(*tables)
    sum_bytes = max(accumulator(x.dtype).itemsize, dtype.itemsize)
    rows = None if is_channels_last(y) else _rows(geometry, adjoint, x.shape[1], x.itemsize, sum_bytes, dtype)
    if rows is None or not x.size:
        launch(runtime, RESAMPLE, x.dtype, arrays, _work)
    else:
        bounds = _bounds(plain(runtime), device, rows)
        replays.read(bounds)
        launch(runtime, RESAMPLE_ROWS, x.dtype, (*arrays, bounds), _rows_work, rows)
    return y


def _work(x: Layout, y: Layout, *tables: Layout) -> Work:
    fields = _fields(x, y) | dict.fromkeys(("w", "tile_h", "chunk", "staged", "combined", "entries", "x_is_dense"), 1)
    return Work(fields, y.size, extents=(y.shape[4] + 1,))


def _rows_work(
    x: Layout, y: Layout, starts: Layout, sources: Layout, weights: Layout, bounds: Layout, rows: Rows
) -> Work:
    n, c, od, oh, ow = y.shape
    h, w = x.shape[3:]
    slices_are_aligned = x.shape[2] == 1 or x.strides[2] % MOST_BYTES == 0
    is_dense = (
        slices_are_aligned and (h == 1 or x.strides[3] == w * x.itemsize) and (w == 1 or x.strides[4] == x.itemsize)
    )
    fields = _fields(x, y) | {
        **{"w": w, "tile_h": rows.tile, "chunk": rows.chunk, "x_is_dense": int(is_dense and x.alignment == MOST_BYTES)},
        **{"staged": rows.staged, "combined": rows.combined, "entries": rows.entries},
    }
    blocks = n * -(-c // rows.chunk) * od * -(-oh // rows.tile)
    reach = (ow + 1, rows.tile * max(w, ow) + 256 * MOST_BYTES, rows.staged + 256 * MOST_BYTES)
    return Work(fields, blocks=blocks, extents=reach, shared_bytes=rows.shared_bytes)


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


# --- Rows ---------------------------------------------------------------------------------------------------------


TABLES_SHARE = 32  # times as much as its tables is what a block moves, by taking so many channels


class Rows(NamedTuple):
    """A resampling by rows: see ResampleParams; `bounds` are the rows of x that each tile reads, [first, last)."""

    tile: int
    chunk: int
    staged: int
    combined: int
    entries: int
    shared_bytes: int
    bounds: tuple[tuple[int, int], ...]


@lru_cache(maxsize=256)
def _rows(
    geometry: InterpolationGeometry, adjoint: bool, c: int, itemsize: int, sum_bytes: int, dtype: np.dtype[np.generic]
) -> Rows | None:
    """How a resampling goes by rows, or None where the sums of one do not fit into shared memory."""
    starts, sources, _ = host_tables(geometry, adjoint, dtype)
    (_, _, w), (od, oh, ow) = geometry.input_size, geometry.output_size
    if adjoint:
        (_, _, w), (od, oh, ow) = geometry.output_size, geometry.input_size
    first_h, first_w = od + 1, od + 1 + oh + 1
    depth = int(np.diff(starts[: od + 1]).max())
    columns = int(starts[first_w + ow] - starts[first_w])
    for is_staged, tile in [*((True, tile) for tile in (32, 16, 8, 4, 2, 1)), (False, 4), (False, 1)]:
        bounds, most = [], 0
        for row in range(0, oh, tile):
            begin, end = starts[first_h + row], starts[first_h + min(row + tile, oh)]
            read = sources[begin:end]
            bounds.append((int(read.min()), int(read.max()) + 1) if len(read) else (0, 0))
            most = max(most, int(end - begin))
        rows = max(last - first for first, last in bounds)
        staged = select.skewed(rows * w, sum_bytes) + 1 if is_staged else 0
        combined = select.skewed(tile * w, sum_bytes) + 1
        count = depth + most + columns
        entries = -(-(max(select.skewed(count, 4), select.skewed(count, dtype.itemsize)) + 1) // 4) * 4
        tables = entries * (dtype.itemsize + 4) + (select.skewed(tile + ow + 2, 4) + 1) * 4
        shared_bytes = (staged + combined) * sum_bytes + tables
        fits_well = not is_staged or tile == 1 or rows * w + tile * ow <= select.MOST_TILE
        if shared_bytes <= select.MOST_SHARED_BYTES and fits_well:
            chunk = min(c, -(-TABLES_SHARE * tables // ((rows * w + tile * ow) * itemsize)))
            return Rows(tile, chunk, staged, combined, entries, shared_bytes, tuple(bounds))
    return None


@lru_cache(maxsize=256)
def _bounds(runtime: Runtime, device: Device, rows: Rows) -> Array:
    """The rows that tiles read, on `device`."""
    return runtime.constant(np.array(rows.bounds, np.int32), device)


# --- Tables -------------------------------------------------------------------------------------------------------


class Tables(NamedTuple):
    """What each output adds up: entries ``starts[o]`` to ``starts[o + 1]``, the axes D, H and W one after the other."""

    starts: Array  # int32 [OD + 1 + OH + 1 + OW + 1]
    sources: Array  # int32 [entries]
    weights: Array  # [entries]


def _weight_dtype(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """The dtype of the kernels' real_t; integers are only copied and added, by weights of 1."""
    if dtype.kind in "iu":
        return np.dtype(np.uint64 if dtype.itemsize == 8 else np.uint32)
    return np.zeros(0, accumulator(dtype)).real.dtype


@lru_cache(maxsize=256)
def _tables(
    runtime: Runtime, device: Device, geometry: InterpolationGeometry, adjoint: bool, dtype: np.dtype[np.generic]
) -> Tables:
    """The tables of a resampling on `device`, so that a layer's second call copies nothing there."""
    return Tables(*(runtime.constant(table, device) for table in host_tables(geometry, adjoint, dtype)))


def host_tables(geometry: InterpolationGeometry, adjoint: bool, dtype: np.dtype[np.generic]) -> Tables:
    """The tables of a resampling as NumPy arrays, their weights in `dtype`."""
    starts, sources, weights = [], [], []
    entries = 0
    for axis in geometry.axes:
        targets, read, weight = _entries(axis, dtype)
        count = axis.out
        if adjoint:
            targets, read, count = read, targets, axis.size
        order = np.argsort(targets, kind="stable")
        sources.append(read[order])
        weights.append(weight[order])
        starts.append(entries + np.searchsorted(targets[order], np.arange(count + 1)))
        entries += len(order)
    return Tables(
        np.concatenate(starts).astype(np.int32), np.concatenate(sources).astype(np.int32), np.concatenate(weights)
    )


def _entries(axis: InterpolationAxis, dtype: np.dtype[np.generic]) -> tuple[Host, Host, Host]:
    """Outputs, the inputs that they read and their weights, one entry each.

    An axis that only copies has one for each output. In others, weights of 0 have entries too: where the NumPy backend
    makes NaN of infinity, so do the kernels.
    """
    outputs, low = np.arange(axis.out), np.array(axis.low)
    if not any(axis.high_weight) and (not axis.high or axis.low == tuple(range(axis.size))):
        return outputs, low, np.ones(axis.out, dtype)
    high_weight = np.array(axis.high_weight, dtype)
    return (
        np.concatenate([outputs, outputs]),
        np.concatenate([low, np.array(axis.high)]),
        np.concatenate([1 - high_weight, high_weight]),
    )
