"""Interpolation, separably by axis, and its adjoint.

Nearest samples are gathered. A linear sample weighs two inputs, so along an axis the resampling is a product with a
matrix of two entries a row, and its gradient a product with the transpose. Cut into bands of rows, each of which reads
few columns, these are small dense products: on 2 cores DeepLabv3+'s decoder took 21 ms forward gathered and 2.1 in
bands, 50 and 2.2 ms backward. But a band multiplies its other inputs by zero, and 0 * inf is NaN: non-finite data is
gathered and accumulated entry by entry, so that it reaches only the samples that read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import memory, threads
from gpucnn.backends.numpy.memory import Array
from gpucnn.backends.samples import blended, nearest
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
        if each.adjoint:
            out[...] = _add_up(result.astype(dtype, copy=False), each)
        elif each.axis.blends:
            out[...] = _blend(result.astype(dtype, copy=False), each)
        else:
            result.take(nearest(each.axis), axis=each.dim, out=out, mode="clip")  # all are in range: no second look
        result = out
    if result is not target:
        target[...] = result


def _blend(x: Array, each: _Pass) -> Array:
    low, high, weight = _blended(x, each)
    result: Array = _weighed(x.take(low, axis=each.dim), 1 - weight) + _weighed(x.take(high, axis=each.dim), weight)
    return result


def _add_up(grad: Array, each: _Pass) -> Array:
    dim, axis = each.dim, each.axis
    grad_x = np.zeros((*grad.shape[:dim], axis.size, *grad.shape[dim + 1 :]), grad.dtype)
    if axis.blends:
        low, high, weight = _blended(grad, each)
        _add_runs(_weighed(grad, 1 - weight), low, dim, grad_x)
        _add_runs(_weighed(grad, weight), high, dim, grad_x)
    else:
        _add_runs(grad, nearest(axis), dim, grad_x)
    return grad_x


def _weighed(x: Array, weight: Array) -> Array:
    """The product, and 0 where the weight is 0, even for infinities and NaN."""
    with np.errstate(invalid="ignore"):
        product: Array = x * weight
    np.copyto(product, 0, where=weight == 0)
    return product


def _blended(like: Array, each: _Pass) -> tuple[Array, Array, Array]:
    """The inputs below and above, and the weight of the one above as an array that multiplies one `like` this."""
    low, high, weight = blended(each.axis)
    real: Any = like.real.dtype
    return low, high, weight.astype(real).reshape(-1, *(1,) * (like.ndim - 1 - each.dim))


def _add_runs(grad: Array, sources: Array, dim: int, grad_x: Array) -> None:
    """Add grad to grad_x along `dim`: sources never decrease, so the outputs of one input are adjacent."""
    starts = np.flatnonzero(np.diff(sources, prepend=-1))
    grad_x[(slice(None),) * dim + (sources[starts],)] += np.add.reduceat(grad, starts, axis=dim)


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
        if each.out * max(BAND_COLUMNS, BAND_ROWS / each.growth) > MATRIX_ITEMS or bands > max(FEW_BANDS, items >> 10):
            return None
    return [(each.dim, each.out, _bands(each.axis, each.adjoint, dtype)) for each in passes]


@kept(MATRICES_BYTES)
def _bands(axis: InterpolationAxis, adjoint: bool, dtype: np.dtype[Any]) -> tuple[_Band, ...]:
    """The matrix of an axis [out, size], or its transpose if `adjoint`, in bands of rows."""
    outputs = np.arange(axis.out)
    if axis.blends:
        low, high, of_high = blended(axis)
        weight = of_high.astype(dtype)
        rows, columns = np.tile(outputs, 2), np.concatenate([low, high])
        entries = np.concatenate([1 - weight, weight])
    else:
        rows, columns, entries = outputs, nearest(axis), np.ones(axis.out, dtype)
    shape = axis.out, axis.size
    if adjoint:
        rows, columns, shape = columns, rows, shape[::-1]
    order = np.argsort(rows, kind="stable")
    rows, columns, entries = rows[order], columns[order], entries[order]
    cuts = memory.runs(shape[0], _rows_of_bands(*shape))
    edges = np.searchsorted(rows, [0, *(cut.stop for cut in cuts)])
    bands = []
    for cut, start, stop in zip(cuts, edges, edges[1:], strict=False):
        read = columns[start:stop]
        first, last = (read.min(), read.max() + 1) if read.size else (0, 0)
        matrix = np.zeros((cut.stop - cut.start, last - first), dtype)
        np.add.at(matrix, (rows[start:stop] - cut.start, read - first), entries[start:stop])
        bands.append(_Band(cut, slice(first, last), matrix))
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
