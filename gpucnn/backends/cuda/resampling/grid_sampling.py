"""Sampling at the positions of a grid on the GPU; the scatter of its backward is a sort and a gather."""

from __future__ import annotations

from math import prod

import numpy as np

from gpucnn.backends.cuda.device.runtime import Array, Runtime
from gpucnn.backends.cuda.device.sources import Kernel
from gpucnn.backends.cuda.launch.plans import IMAGE, Fields, Layout, Work, empty, launch, strides
from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.layout import is_channels_last
from gpucnn.geometry import GridGeometry

SAMPLE = Kernel("grid_sample", "GridSampleParams")
BACKWARD_GRID = Kernel("grid_sample_backward_grid", "GridSampleParams")
BACKWARD_KEYS = Kernel("grid_sample_backward_input", "GridSampleParams", "grid_sample_backward_keys")
BACKWARD_INPUT = Kernel("grid_sample_backward_input", "GridSampleParams")

CHANNELS = 8  # of a thread: CHANNELS in grid_sample.cuh
GRID = ("n", "d", "h", "w", "a")
PADDINGS = ("zeros", "border", "reflection")  # by their numbers in grid_sample.cuh


def grid_sample(runtime: Runtime, x: Array, grid: Array, y: Array, geometry: GridGeometry) -> None:
    """Y [N, C, OD, OH, OW]: each sample's weighted sum over its taps."""
    launch(runtime, SAMPLE, x.dtype, {"x": x, "grid": grid, "y": y}, _sample_work, geometry=geometry)


def _sample_work(x: Layout, grid: Layout, y: Layout, geometry: GridGeometry) -> Work:
    n, c = x.shape[:2]
    work = _work(n, c, geometry, x=x, grid=grid, y=y, written=y)
    return work._replace(threads=n * work.fields["slots"] * prod(geometry.output_size))


def grid_sample_backward(
    runtime: Runtime,
    grad_y: Array,
    x: Array,
    grid: Array,
    grad_x: Array | None,
    grad_grid: Array | None,
    geometry: GridGeometry,
) -> None:
    """The requested gradients: grad_x by sorting the taps of all samples by the inputs that they are of."""
    given = {"grad_y": grad_y, "x": x, "grid": grid}
    if grad_grid is not None:
        arrays = given | {"z": grad_grid}
        launch(runtime, BACKWARD_GRID, x.dtype, arrays, _backward_grid_work, geometry=geometry)
    if grad_x is not None and grad_x.size:
        shape = (len(x) * prod(geometry.output_size) * geometry.taps**geometry.rank,)  # for a radix sort
        keys, weights = empty(runtime, shape, np.int64), empty(runtime, shape, accumulator(x.dtype))
        arrays = {"grid": grid, "keys": keys, "weights": weights}
        launch(runtime, BACKWARD_KEYS, x.dtype, arrays, _keys_work, geometry=geometry)
        arrays = {"grad_y": grad_y, "keys": runtime.xp.sort(keys), "weights": weights, "z": grad_x}
        launch(runtime, BACKWARD_INPUT, x.dtype, arrays, _backward_input_work, geometry=geometry)


def _backward_grid_work(grad_y: Layout, x: Layout, grid: Layout, geometry: GridGeometry) -> Work:
    n, c = x.shape[:2]
    work = _work(n, c, geometry, x=x, grid=grid, y=grad_y)
    return work._replace(threads=n * prod(geometry.output_size))


def _keys_work(grid: Layout, geometry: GridGeometry) -> Work:
    work = _work(grid.shape[0], 1, geometry, grid=grid)
    return work._replace(threads=grid.shape[0] * prod(geometry.output_size))


def _backward_input_work(grad_y: Layout, z: Layout, geometry: GridGeometry) -> Work:
    n, c = z.shape[:2]
    work = _work(n, c, geometry, x=z, y=grad_y, written=z)
    return work._replace(threads=n * work.fields["slots"] * prod(geometry.input_size))


def _work(
    n: int,
    c: int,
    geometry: GridGeometry,
    *,
    x: Layout | None = None,
    grid: Layout | None = None,
    y: Layout | None = None,
    written: Layout | None = None,
) -> Work:
    """The launch without its number of threads; of the strides of x or z, of the grid, and of y or grad_y."""
    slots = -(-c // CHANNELS)
    fields: Fields = {"n": n, "c": c, "slots": slots, "rank": geometry.rank}
    fields |= dict(zip(("d", "h", "w"), geometry.input_size, strict=True))
    fields |= dict(zip(("od", "oh", "ow"), geometry.output_size, strict=True))
    fields |= {"padding": PADDINGS.index(geometry.padding_mode), "aligned": int(geometry.align_corners)}
    fields |= {**strides("x", IMAGE, x), **strides("y", IMAGE, y), **strides("grid", GRID, grid)}
    fields["channels_last"] = int(written is not None and is_channels_last(written))
    planes = max(prod(geometry.input_size), prod(geometry.output_size) * geometry.taps**geometry.rank)
    extents = (n * slots * planes, slots * (CHANNELS + 1), *(2 * size + 8 for size in geometry.input_size))
    return Work(fields, extents=extents, constants=(("TAPS", geometry.taps),))
