"""Interpolation and its adjoint on the GPU: one kernel, told by tables along each axis what to add up."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gpucnn.backends.cuda.launching import Layout, Work, empty, launch, strides
from gpucnn.backends.cuda.runtime import Array, Device, Runtime
from gpucnn.backends.cuda.sources import Kernel
from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.layout import is_channels_last
from gpucnn.geometry import InterpolationAxis, InterpolationGeometry

if TYPE_CHECKING:
    from gpucnn.backends.cuda import CudaBackend

RESAMPLE = Kernel("interpolate", "ResampleParams", function="resample")

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
    tables = _tables(runtime, runtime.device(x), geometry, adjoint, _weight_dtype(x.dtype))
    arrays = (x, y, tables.starts, tables.sources, tables.weights)
    launch(runtime, RESAMPLE, x.dtype, arrays, _work)
    return y


def _work(x: Layout, y: Layout, *tables: Layout) -> Work:
    od, oh, ow = y.shape[2:]
    fields = {
        **dict(zip(("n", "c", "od", "oh", "ow"), y.shape, strict=True)),
        "starts_h": od + 1,
        "starts_w": od + 1 + oh + 1,
        **strides("x", IMAGE, x),
        **strides("y", IMAGE, y),
        "channels_last": int(is_channels_last(y)),
    }
    return Work(fields, y.size, extents=(ow + 1,))


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
