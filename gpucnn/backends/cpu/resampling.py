"""Interpolation and its adjoint in C++: one kernel, by a sparse matrix for each axis."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn.backends.cpu.library import Kernel, Value, launch, strides
from gpucnn.backends.listening import read
from gpucnn.backends.numpy import memory
from gpucnn.backends.numpy.memory import Array
from gpucnn.backends.samples import matrix
from gpucnn.geometry import InterpolationAxis, InterpolationGeometry
from gpucnn.geometry.caches import kept

_RESAMPLE = Kernel("resample")

ITEM_TARGETS = 1 << 16  # of one item of work: some 50 us, which a thread takes to wake up
LANES = 16  # most rows that the kernel takes together
GROWN_BYTES = 1 << 20  # of the largest plane that is kept between its growth along W and that along H
TOGETHER = 1 << 14  # elements of smaller planes that are kept together, in the L2 cache
MATRICES_BYTES = 8 << 20  # of all matrices that are kept


def interpolate(x: Array, y: Array, geometry: InterpolationGeometry) -> None:
    """Y [N, C, OD, OH, OW] of x [N, C, D, H, W]."""
    _resample(x, y, _matrices(geometry.axes, False, x.dtype))


def interpolate_backward(grad_y: Array, grad_x: Array, geometry: InterpolationGeometry) -> None:
    """grad_x [N, C, D, H, W]: each input's weighted sum over the outputs that read it."""
    _resample(grad_y, grad_x, _matrices(geometry.axes, True, grad_y.dtype))


Matrices = tuple[Array, Array, Array]


def _resample(x: Array, y: Array, matrices: Matrices) -> None:
    """Y, dense, of x of any strides."""
    is_last = memory.is_channels_last(y)
    n, c, d, h, w = x.shape
    *_, td, th, tw = y.shape
    starts, index, weights = matrices
    items = max(1, min(64, max(x.size, y.size) // ITEM_TARGETS))
    plane = d * h * tw  # once it has grown along W
    grows = not is_last and td * th > d * h and plane * x.itemsize <= GROWN_BYTES
    planes = min(n * c, max(1, TOGETHER // plane)) if grows else 0
    values: dict[str, Value] = {
        **{"n": n, "c": c, "d": d, "h": h, "w": w, "td": td, "th": th, "tw": tw},
        **{"is_last": is_last, "planes": planes, "items": min(items, n * c) if grows else items},
    }
    x = _with_contiguous_rows(x, is_last)
    values |= strides("x", x, "ncdhw")
    wide, long = (-(-size // LANES) * LANES for size in (w, tw))
    workspace = w * c if is_last else (planes * d * h + LANES) * long + LANES * (2 * wide + long)
    arrays = {"x": x, "starts": starts, "index": index, "weights": weights, "y": y}
    if y.size:
        read(*matrices)
        launch(_RESAMPLE, x.dtype.name, values, arrays, int(values["items"]), workspace)


def _with_contiguous_rows(x: Array, is_last: bool) -> Array:
    """X, or a copy, with its rows [W], or [W, C] if `is_last`, contiguous."""
    step = x.itemsize
    for axis in (1, 4) if is_last else (4,):
        if x.shape[axis] > 1 and x.strides[axis] != step:
            return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1) if is_last else x.copy("C")
        step *= x.shape[axis]
    return x


@kept(MATRICES_BYTES)
def _matrices(axes: tuple[InterpolationAxis, ...], adjoint: bool, dtype: np.dtype[Any]) -> Matrices:
    """The matrices of the axes, or their transposes if `adjoint`, one after the other.

    Of each, starts [targets + 1] are of a target's entries among all: their sources and weights. Those of weight 0 are
    left out: an infinity or NaN reaches only targets that read it.
    """
    starts, index, weights = [], [], []
    before = 0
    for axis in axes:
        rows = matrix(axis, dtype, adjoint=adjoint)
        used = rows.weights != 0
        starts.append(before + np.concatenate([[0], np.cumsum(used)])[rows.starts])
        index.append(rows.columns[used])
        weights.append(rows.weights[used])
        before = int(starts[-1][-1])
    return np.concatenate(starts), np.concatenate(index), np.concatenate(weights)
