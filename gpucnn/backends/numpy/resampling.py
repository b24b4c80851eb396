"""Interpolation, separably by axis, and its adjoint.

Nearest samples are gathered. A linear sample weighs two inputs, a cubic one four, so along an axis the resampling is a
product with a matrix of few entries a row, and its gradient a product with the transpose. Cut into bands of rows, each
of which reads few columns, these are small dense products: on 2 cores DeepLabv3+'s decoder took 21 ms forward gathered
and 2.1 in bands, 50 and 2.2 ms backward. But a band multiplies its other inputs by zero, and 0 * inf is NaN: what is
not finite is summed entry by entry, so that it reaches only the samples that read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import memory, threads
from gpucnn.backends.numpy.memory import Array
from gpucnn.backends.samples import matrix, nearest
from gpucnn.geometry import InterpolationAxis, InterpolationGeometry
from gpucnn.geometry.caches import kept

# Most inputs and outputs of one piece of work, whole planes. On FPN's and DeepLab's layers, 2 cores, 2**19 took 1.1
# times the time, 2**18 1.3 times; of 2**22 FPN's is a single piece.
PIECE_ITEMS = 1 << 20

BAND_COLUMNS = 10  # that a band reads, about: with more of them there are more zeros, with fewer more products
BAND_ROWS = 4  # of a band, at least
BAND_ITEMS = 1 << 10  # inputs and outputs of a band, at least, about: fewer are not worth a call
MATRIX_ITEMS = 1 << 20  # of all bands of an axis, at most
MATRICES_BYTES = 32 << 20  # of all bands that are kept


def interpolate(x: Array, y: Array, geometry: InterpolationGeometry) -> None:
    """Y [N, C, OD, OH, OW] of x [N, C, D, H, W]."""
    _in_pieces(x, y, geometry, adjoint=False)


def interpolate_backward(grad_y: Array, grad_x: Array, geometry: InterpolationGeometry) -> None:
    """grad_x [N, C, D, H, W]: each input's weighted sum over the outputs that read it."""
    _in_pieces(grad_y, grad_x, geometry, adjoint=True)


class _Pass(NamedTuple):
    """The resampling of one axis, from `size` to `out`: dimension `dim` of the arrays in their memory order."""

    dim: int
    axis: InterpolationAxis
    adjoint: bool
    size: int
    out: int


def _in_pieces(source: Array, target: Array, geometry: InterpolationGeometry, *, adjoint: bool) -> None:
    """Fill target, some images and channels at a time."""
    channels_last = memory.is_channels_last(source)
    passes = _passes(geometry.axes, 1 if channels_last else 2, adjoint)
    adds = adjoint or any(axis.blends for axis in geometry.axes)
    dtype = accumulator(source.dtype) if adds else source.dtype

    def resample(images: memory.Block) -> None:
        x, result = source[images], target[images]
        if channels_last:
            x, result = np.moveaxis(x, 1, -1), np.moveaxis(result, 1, -1)
        x = np.ascontiguousarray(x, dtype)
        for place, each in enumerate(passes):
            if place == len(passes) - 1 and result.dtype == dtype and result.flags.c_contiguous:
                y = result
            else:
                shape = (*x.shape[: each.dim], each.out, *x.shape[each.dim + 1 :])
                y = memory.scratch(f"resampling {place}", shape, dtype)
            _along(x, each, y)
            x = y
        if x is not result:
            result[...] = x

    if source.size:
        planes = prod(source.shape[2:]) + prod(target.shape[2:])
        threads.run(resample, list(memory.blocks(source.shape[:2], PIECE_ITEMS // planes)))


def _passes(axes: Sequence[InterpolationAxis], first: int, adjoint: bool) -> list[_Pass]:
    """The passes, in the order with the smallest intermediates; (D, H, W) start at `first`."""
    passes = []
    for dim, axis in enumerate(axes, first):
        if not axis.is_identity:
            passes.append(_Pass(dim, axis, adjoint, *((axis.out, axis.size) if adjoint else (axis.size, axis.out))))
    if prod(each.out / each.size for each in passes) > 1:
        passes.reverse()  # rows grow before planes do: the last pass then writes long rows
    return sorted(passes, key=lambda each: each.out / each.size)


def _along(x: Array, each: _Pass, y: Array) -> None:
    """One pass from x to y, both contiguous and of the same dtype."""
    if not (each.adjoint or each.axis.blends):
        x.take(nearest(each.axis), axis=each.dim, out=y, mode="clip")  # all are in range: no second look
        return
    shape = prod(x.shape[: each.dim]), -1, prod(x.shape[each.dim + 1 :])
    x, y = x.reshape(shape), y.reshape(shape)
    rows = max(BAND_ROWS, BAND_COLUMNS * each.out // each.size, BAND_ITEMS * each.out // (x.size + y.size))
    entries = rows * each.size + each.axis.out * each.axis.taps  # of all bands, about, zeros included
    if entries > MATRIX_ITEMS:
        y[...] = _sums_of_entries(x, each)
        return
    with np.errstate(invalid="ignore", over="ignore"):
        for written, read, dense in _bands(each.axis, each.adjoint, x.dtype, rows):
            if x.shape[2] == 1:
                np.matmul(x[:, read, 0], dense.T, out=y[:, written, 0])
            else:
                np.matmul(dense, x[:, read], out=y[:, written])
        fewer = x if x.size < y.size else y
        odd = ~np.isfinite(fewer.sum(axis=(1, 2)))  # a sum that overflows costs time, nothing else
    if odd.any():
        y[odd] = _sums_of_entries(x[odd], each)


def _sums_of_entries(x: Array, each: _Pass) -> Array:
    """The result [outer, out, inner] of x [outer, size, inner], of which entries of weight 0 read nothing."""
    starts, columns, weights = matrix(each.axis, x.real.dtype, adjoint=each.adjoint)
    products = x.take(columns, axis=1)
    with np.errstate(invalid="ignore"):
        products *= weights[:, None]
    products[:, weights == 0] = 0  # even for infinities and NaN
    filled = np.flatnonzero(np.diff(starts))
    y = np.zeros((x.shape[0], each.out, x.shape[2]), x.dtype)
    y[:, filled] = np.add.reduceat(products, starts[filled], axis=1)
    return y


_Band = tuple[slice, slice, Array]  # rows written, columns read, matrix: y[rows] = matrix @ x[columns]


@kept(MATRICES_BYTES)
def _bands(axis: InterpolationAxis, adjoint: bool, dtype: np.dtype[Any], rows: int) -> tuple[_Band, ...]:
    """The matrix of an axis [out, size], or its transpose if `adjoint`, in bands of about as many rows."""
    found = matrix(axis, dtype, adjoint=adjoint)
    row_of_entry = found.rows
    bands = []
    for cut in memory.runs(len(found.starts) - 1, rows):
        entries = slice(found.starts[cut.start], found.starts[cut.stop])
        read = found.columns[entries]
        first, last = (read.min(), read.max() + 1) if read.size else (0, 0)
        dense = np.zeros((cut.stop - cut.start, last - first), dtype)
        np.add.at(dense, (row_of_entry[entries] - cut.start, read - first), found.weights[entries])
        bands.append((cut, slice(first, last), dense))
    return tuple(bands)
