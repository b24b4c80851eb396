"""Interpolation, separably by axis, and its adjoint.

Nearest samples are gathered. A linear sample weighs two inputs, a cubic one four, so along an axis the resampling is a
product with a matrix of few entries a row, and its gradient a product with the transpose. Cut into bands of rows, each
of which reads few columns, these are small dense products: on 2 cores DeepLabv3+'s decoder took 21 ms forward gathered
and 2.1 in bands, 50 and 2.2 ms backward. But a band multiplies its other inputs by zero, and 0 * inf is NaN: non-finite
data is gathered and summed entry by entry, so that it reaches only the samples that read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import memory, threads
from gpucnn.backends.numpy.memory import Array
from gpucnn.backends.samples import Matrix, matrix, nearest
from gpucnn.geometry import InterpolationAxis, InterpolationGeometry
from gpucnn.geometry.caches import kept

# Most inputs and outputs of one piece of work, whole planes. On FPN's and DeepLab's layers, 2 cores, 2**19 took 1.1
# times the time, 2**18 1.3 times; of 2**22 FPN's is a single piece.
PIECE_ITEMS = 1 << 20

BAND_COLUMNS = 10  # that a band reads, about: with more of them there are more zeros, with fewer more products
BAND_ROWS = 4  # of a band, at least
MATRIX_ITEMS = 1 << 18  # of all bands of an axis, at most: they stay in the cache
FEW_BANDS = 64  # of an axis; more of them are worth their calls where each takes a thousand items
MATRICES_BYTES = 32 << 20  # of all bands that are kept
FEW_ENTRIES = 16  # of a row, that are added one after the other for all rows at once


def interpolate(x: Array, y: Array, geometry: InterpolationGeometry) -> None:
    """Y [N, C, OD, OH, OW] of x [N, C, D, H, W]."""
    _in_pieces(x, y, geometry, adjoint=False)


def interpolate_backward(grad_y: Array, grad_x: Array, geometry: InterpolationGeometry) -> None:
    """grad_x [N, C, D, H, W]: each input's weighted sum over the outputs that read it."""
    _in_pieces(grad_y, grad_x, geometry, adjoint=True)


def _in_pieces(source: Array, target: Array, geometry: InterpolationGeometry, *, adjoint: bool) -> None:
    """Fill target, some images and channels at a time."""
    channels_last = memory.is_channels_last(source)
    passes = _passes(geometry.axes, 1 if channels_last else 2, adjoint)
    matrices = _matrices(passes, source.dtype, min(PIECE_ITEMS, source.size + target.size))

    def resample(images: memory.Block) -> None:
        here, there = source[images], target[images]
        if channels_last:
            here, there = np.moveaxis(here, 1, -1), np.moveaxis(there, 1, -1)
        if matrices is None or not _multiply(here, matrices, there):
            _gather(here, passes, there)

    if source.size:
        planes = prod(source.shape[2:]) + prod(target.shape[2:])
        threads.run(resample, list(memory.blocks(source.shape[:2], PIECE_ITEMS // planes)))


class _Pass(NamedTuple):
    """One axis that is resampled: dimension `dim` of the arrays in their memory order."""

    dim: int
    axis: InterpolationAxis
    adjoint: bool

    @property
    def size(self) -> int:
        return self.axis.out if self.adjoint else self.axis.size

    @property
    def out(self) -> int:
        return self.axis.size if self.adjoint else self.axis.out

    @property
    def growth(self) -> float:
        return self.out / self.size


def _passes(axes: Sequence[InterpolationAxis], first: int, adjoint: bool) -> list[_Pass]:
    """The passes, in the order with the smallest intermediates; (D, H, W) start at `first`."""
    passes = [_Pass(first + place, axis, adjoint) for place, axis in enumerate(axes) if not axis.is_identity]
    if prod(each.growth for each in passes) > 1:
        passes.reverse()  # rows grow before planes do: the last pass then writes long rows
    return sorted(passes, key=lambda each: each.growth)


# --- Entry by entry ------------------------------------------------------------------------------------------------


def _gather(source: Array, passes: Sequence[_Pass], target: Array) -> None:
    """The plain form: each pass gathers the inputs of its outputs, or sums the outputs of its inputs."""
    result = source
    for place, each in enumerate(passes):
        adds = each.adjoint or each.axis.blends
        dtype = accumulator(source.dtype) if adds else result.dtype
        shape = (*result.shape[: each.dim], each.out, *result.shape[each.dim + 1 :])
        last = place == len(passes) - 1 and target.dtype == dtype
        out = target if last else memory.scratch(f"resampling {place}", shape, dtype)
        if adds:
            _sum_entries(result.astype(dtype, copy=False), _matrix(each.axis, each.adjoint, dtype), each.dim, out)
        else:
            result.take(nearest(each.axis), axis=each.dim, out=out, mode="clip")  # all are in range: no second look
        result = out
    if result is not target:
        target[...] = result


def _matrix(axis: InterpolationAxis, adjoint: bool, dtype: np.dtype[Any]) -> Matrix:
    return matrix(axis, np.zeros(0, dtype).real.dtype, adjoint=adjoint)


def _sum_entries(x: Array, rows: Matrix, dim: int, y: Array) -> None:
    """Y, along `dim` of x: the sum of each row's entries in their order, without those of weight 0."""
    starts, columns, weights = rows
    counts = np.diff(starts)
    most = int(counts.max())

    def weighed(columns: Array, weights: Array) -> Array:
        weights = weights.reshape(-1, *(1,) * (x.ndim - 1 - dim))
        with np.errstate(invalid="ignore"):
            products: Array = x.take(columns, axis=dim) * weights
        np.copyto(products, 0, where=weights == 0)  # even for infinities and NaN
        return products

    if 0 < most <= FEW_ENTRIES:
        for place in range(most):
            entries = np.minimum(starts[:-1] + place, len(columns) - 1)
            products = weighed(columns[entries], np.where(place < counts, weights[entries], 0))
            np.copyto(y, products) if place == 0 else np.add(y, products, out=y)
        return
    y[...] = 0
    filled = np.flatnonzero(counts)
    if filled.size:
        sums = np.add.reduceat(weighed(columns, weights), starts[filled], axis=dim)
        y[(slice(None),) * dim + (filled,)] = sums


# --- In bands of matrices ------------------------------------------------------------------------------------------


class _Band(NamedTuple):
    """``out[rows] = matrix @ x[columns]``."""

    rows: slice
    columns: slice
    matrix: Array


_Matrices = list[tuple[int, int, tuple[_Band, ...]]]  # dimension and size of the output, and its bands


def _matrices(passes: Sequence[_Pass], dtype: np.dtype[Any], items: int) -> _Matrices | None:
    """The passes as products, for pieces of `items` items.

    None where that is not faster, or a matrix is large, or BLAS has no such product.
    """
    dtype = accumulator(dtype)
    if dtype.kind not in "fc" or not any(each.adjoint or each.axis.blends for each in passes):
        return None
    for each in passes:
        bands = each.out // _rows_of_bands(each.out, each.size)
        entries = each.axis.out * each.axis.taps
        if each.out * max(BAND_COLUMNS, BAND_ROWS / each.growth) + entries > MATRIX_ITEMS or bands > max(
            FEW_BANDS, items >> 10
        ):
            return None
    return [(each.dim, each.out, _bands(each.axis, each.adjoint, dtype)) for each in passes]


@kept(MATRICES_BYTES)
def _bands(axis: InterpolationAxis, adjoint: bool, dtype: np.dtype[Any]) -> tuple[_Band, ...]:
    """The matrix of an axis [out, size], or its transpose if `adjoint`, in bands of rows."""
    found = _matrix(axis, adjoint, dtype)
    count = len(found.starts) - 1
    rows = found.rows
    bands = []
    for cut in memory.runs(count, _rows_of_bands(count, axis.out if adjoint else axis.size)):
        entries = slice(found.starts[cut.start], found.starts[cut.stop])
        read = found.columns[entries]
        first, last = (read.min(), read.max() + 1) if read.size else (0, 0)
        dense = np.zeros((cut.stop - cut.start, last - first), dtype)
        np.add.at(dense, (rows[entries] - cut.start, read - first), found.weights[entries])
        bands.append(_Band(cut, slice(first, last), dense))
    return tuple(bands)


def _rows_of_bands(out: int, size: int) -> int:
    return max(BAND_ROWS, BAND_COLUMNS * out // size)


def _multiply(source: Array, matrices: _Matrices, target: Array) -> bool:
    """Fill target; return False, with target invalid, where a value is not finite."""
    dtype = matrices[0][2][0].matrix.dtype
    x = source
    if x.dtype != dtype or not x.flags.c_contiguous:
        x = memory.scratch("resampling source", source.shape, dtype)
        x[...] = source
    small_source = source.size < target.size
    if small_source and not np.isfinite(x).all():
        return False
    with np.errstate(invalid="ignore", over="ignore"):
        for place, (dim, out, bands) in enumerate(matrices):
            shape = (*x.shape[:dim], out, *x.shape[dim + 1 :])
            if place == len(matrices) - 1 and target.dtype == dtype and target.flags.c_contiguous:
                y = target
            else:
                y = memory.scratch(f"resampling {place}", shape, dtype)
            _apply(bands, dim, x, y)
            x = y
    if not small_source and not np.isfinite(x).all():
        return False
    if x is not target:
        target[...] = x
    return True


def _apply(bands: tuple[_Band, ...], dim: int, x: Array, y: Array) -> None:
    """One product along `dim` of x and y, both contiguous."""
    outer, inner = prod(x.shape[:dim]), prod(x.shape[dim + 1 :])
    if inner == 1:
        x, y = x.reshape(outer, -1), y.reshape(outer, -1)
        for rows, columns, matrix in bands:
            np.matmul(x[:, columns], matrix.T, out=y[:, rows])
    else:
        x, y = x.reshape(outer, -1, inner), y.reshape(outer, -1, inner)
        for rows, columns, matrix in bands:
            np.matmul(matrix, x[:, columns], out=y[:, rows])
