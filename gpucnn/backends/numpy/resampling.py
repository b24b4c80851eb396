"""Interpolation, one axis after the other, and its adjoint.

Nearest samples are gathered. A linear sample weighs two inputs, so along an axis all of them are a product with a
matrix of two entries a row, and every gradient is one with its transpose. Cut into bands of rows, each of which reads
few columns, these are small dense products: on 2 cores DeepLabv3+'s decoder took 21 ms forward gathered and 2.1 in
bands, 50 and 2.2 ms backward. But in a band zeros meet its other inputs, and 0 * inf is NaN: what is not finite is
gathered and added up entry by entry, so that it reaches the samples that read it and no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import memory, threads
from gpucnn.backends.numpy.memory import Array
from gpucnn.geometry import InterpolationAxis, InterpolationGeometry

# Most inputs and outputs of one piece of work, whole planes. On FPN's and DeepLab's layers, 2 cores, 2**19 took 1.1
# times the time, 2**18 1.3 times; of 2**22 FPN's is a single piece.
PIECE_ITEMS = 1 << 20

BAND_COLUMNS = 10  # that a band reads, about: with more of them there are more zeros, with fewer more products
BAND_ROWS = 4  # of a band, at least
MATRIX_ITEMS = 1 << 18  # of all bands of an axis, at most: they stay in the cache

MOST_SLICES = 8


def interpolate(x: Array, geometry: InterpolationGeometry) -> Array:
    """Y [N, C, OD, OH, OW] of x [N, C, D, H, W]."""
    y = memory.empty((*x.shape[:2], *geometry.output_size), x.dtype, like=x)
    _in_pieces(x, y, geometry, adjoint=False)
    return y


def interpolate_backward(grad_y: Array, geometry: InterpolationGeometry) -> Array:
    """grad_x [N, C, D, H, W]: each input's weighted sum over the outputs that read it."""
    grad_x = memory.empty((*grad_y.shape[:2], *geometry.input_size), grad_y.dtype, like=grad_y)
    _in_pieces(grad_y, grad_x, geometry, adjoint=True)
    return grad_x


def _in_pieces(source: Array, target: Array, geometry: InterpolationGeometry, *, adjoint: bool) -> None:
    """Fill target, some images and channels at a time."""
    channels_last = memory.is_channels_last(source)
    passes = _passes(geometry.axes, 1 if channels_last else 2, adjoint)
    matrices = _matrices(passes, source.dtype)

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
    factor: int  # see _factor

    @property
    def size(self) -> int:
        return self.axis.out if self.adjoint else self.axis.size

    @property
    def out(self) -> int:
        return self.axis.size if self.adjoint else self.axis.out

    @property
    def growth(self) -> float:
        return self.out / self.size

    def in_blocks(self) -> list[tuple[slice, ...]]:
        """For each place in the blocks of `factor` outputs, where the outputs at that place are."""
        return [(*(slice(None),) * self.dim, slice(place, None, self.factor)) for place in range(self.factor)]


def _passes(axes: Sequence[InterpolationAxis], first: int, adjoint: bool) -> list[_Pass]:
    """What is to be done, in the order that makes what lies between the least; (D, H, W) start at `first`."""
    passes = [
        _Pass(first + place, axis, adjoint, _factor(axis)) for place, axis in enumerate(axes) if not _copies_all(axis)
    ]
    if prod(each.growth for each in passes) > 1:
        passes.reverse()  # rows grow before planes do: the last pass then writes long rows
    return sorted(passes, key=lambda each: each.growth)


def _copies_all(axis: InterpolationAxis) -> bool:
    return axis.low == tuple(range(axis.size)) and not any(axis.high_weight)


def _factor(axis: InterpolationAxis) -> int:
    """The outputs of each input where they are copies of it and equally many, up to MOST_SLICES; else 0."""
    factor, rest = divmod(axis.out, axis.size)
    if axis.high or rest or factor > MOST_SLICES or axis.low != tuple(o // factor for o in range(axis.out)):
        return 0
    return factor


# --- Entry by entry ------------------------------------------------------------------------------------------------


def _gather(source: Array, passes: Sequence[_Pass], target: Array) -> None:
    """The plain form: each pass takes the inputs of its outputs, or adds up the outputs of its inputs."""
    result = source
    for place, each in enumerate(passes):
        adds = each.adjoint or bool(each.axis.high)
        dtype = accumulator(source.dtype) if adds else result.dtype
        shape = (*result.shape[: each.dim], each.out, *result.shape[each.dim + 1 :])
        last = place == len(passes) - 1 and target.dtype == dtype
        out = target if last else memory.scratch(f"resampling {place}", shape, dtype)
        if each.factor:
            _add_blocks(result, each, out) if each.adjoint else _copy_blocks(result, each, out)
        elif each.adjoint:
            out[...] = _add_up(result.astype(dtype, copy=False), each)
        elif each.axis.high:
            out[...] = _blend(result.astype(dtype, copy=False), each)
        else:
            result.take(each.axis.low, axis=each.dim, out=out, mode="clip")  # all are in range: no second look
        result = out
    if result is not target:
        target[...] = result


# Blocks of equal samples are copied, and added up, by slices: of FPN's layer on 2 cores forward took 1.7 ms gathered
# and 0.9 by slices, backward 3.0 ms in bands of matrices and 1.1.


def _copy_blocks(x: Array, each: _Pass, y: Array) -> None:
    for place in each.in_blocks():
        y[place] = x


def _add_blocks(grad: Array, each: _Pass, grad_x: Array) -> None:
    first, second, *others = each.in_blocks()
    np.add(grad[first], grad[second], out=grad_x, dtype=grad_x.dtype)
    for place in others:
        np.add(grad_x, grad[place], out=grad_x)


def _blend(x: Array, each: _Pass) -> Array:
    axis = each.axis
    weight = _weights(x, each)
    low, high = x.take(axis.low, axis=each.dim), x.take(axis.high, axis=each.dim)
    result: Array = low * (1 - weight) + high * weight
    return result


def _add_up(grad: Array, each: _Pass) -> Array:
    dim, axis = each.dim, each.axis
    grad_x = np.zeros((*grad.shape[:dim], axis.size, *grad.shape[dim + 1 :]), grad.dtype)
    if axis.high:
        weight = _weights(grad, each)
        _add_runs(grad * (1 - weight), axis.low, dim, grad_x)
        _add_runs(grad * weight, axis.high, dim, grad_x)
    else:
        _add_runs(grad, axis.low, dim, grad_x)
    return grad_x


def _weights(like: Array, each: _Pass) -> Array:
    real: Any = like.real.dtype
    return np.array(each.axis.high_weight, real).reshape(-1, *(1,) * (like.ndim - 1 - each.dim))


def _add_runs(grad: Array, sources: tuple[int, ...], dim: int, grad_x: Array) -> None:
    """Add grad to grad_x along `dim`: sources never fall, so those of one input lie next to each other."""
    inputs, starts = np.unique(sources, return_index=True)
    grad_x[(slice(None),) * dim + (inputs,)] += np.add.reduceat(grad, starts, axis=dim)


# --- In bands of matrices ------------------------------------------------------------------------------------------


class _Band(NamedTuple):
    """``out[rows] = matrix @ x[columns]``."""

    rows: slice
    columns: slice
    matrix: Array


_Matrices = list[tuple[int, int, tuple[_Band, ...]]]  # dimension and size of the output, and its bands


def _matrices(passes: Sequence[_Pass], dtype: np.dtype[Any]) -> _Matrices | None:
    """The passes as products, or None where that is not quicker, or a matrix is large, or BLAS has no such product."""
    dtype = accumulator(dtype)
    if dtype.kind not in "fc" or not any((each.adjoint and not each.factor) or each.axis.high for each in passes):
        return None
    if any(each.out * max(BAND_COLUMNS, BAND_ROWS / each.growth) > MATRIX_ITEMS for each in passes):
        return None
    return [(each.dim, each.out, _bands(each.axis, each.adjoint, dtype)) for each in passes]


@lru_cache(maxsize=64)
def _bands(axis: InterpolationAxis, adjoint: bool, dtype: np.dtype[Any]) -> tuple[_Band, ...]:
    """The matrix of an axis [out, size], or its transpose if `adjoint`, in bands of rows."""
    outputs = np.arange(axis.out)
    rows, columns, entries = outputs, np.array(axis.low), np.ones(axis.out, dtype)
    if axis.high:
        weight = np.array(axis.high_weight, dtype)
        rows, columns = np.tile(outputs, 2), np.array(axis.low + axis.high)
        entries = np.concatenate([1 - weight, weight])
    shape = axis.out, axis.size
    if adjoint:
        rows, columns, shape = columns, rows, shape[::-1]
    bands = []
    for (band,) in memory.blocks(shape[:1], max(BAND_ROWS, BAND_COLUMNS * shape[0] // shape[1])):
        inside = (band.start <= rows) & (rows < band.stop)
        read = columns[inside]
        first, last = (read.min(), read.max() + 1) if read.size else (0, 0)
        matrix = np.zeros((band.stop - band.start, last - first), dtype)
        np.add.at(matrix, (rows[inside] - band.start, read - first), entries[inside])
        bands.append(_Band(band, slice(first, last), matrix))
    return tuple(bands)


def _multiply(source: Array, matrices: _Matrices, target: Array) -> bool:
    """Fill target; False, and target is not to be used, where something is not finite."""
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
