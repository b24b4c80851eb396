"""Average and sum pooling: separable sums, one axis at a time, divided by the number of taps."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy.memory import Array, Block
from gpucnn.backends.numpy.pooling import AnyAxis, Passes, as_stored, in_pieces, reads, separably, stored, within
from gpucnn.geometry import AdaptiveAxis, PoolGeometry
from gpucnn.geometry.caches import kept

# Numbers of a whole plane that BLAS adds up in one go: of 7 x 7 and 14 x 14 its sums are as exact as PyTorch's, of
# 56 x 56 a third so: NumPy adds up those in pairs.
SHORT = 256
DIVISORS_BYTES = 1 << 20  # of all windows' divisors that are kept


def average_pool(x: Array, y: Array, geometry: PoolGeometry) -> None:
    """Y [N, C, OD, OH, OW]: each window's sum over its divisor."""
    x, space = stored(x)
    y = as_stored(y, space)
    dtype = accumulator(x.dtype)
    divisor = _divisor(geometry, dtype, space, y.shape)
    of_planes = geometry.is_whole and space == 2

    def pool(read: Block, written: Block, passes: Passes) -> None:
        part = y[written]
        if of_planes:
            planes = x[read].reshape(part.size, -1).astype(dtype, copy=False)
            size = planes.shape[1]
            total = (planes @ np.ones(size, dtype) if size <= SHORT else planes.sum(axis=1)).reshape(part.shape)
        else:
            total = separably(np.add, 0, x[read], passes, part, dtype)
        if divisor is not None:
            np.divide(total, divisor[written], out=part, casting="unsafe")
        elif total is not part:
            part[...] = total

    in_pieces(pool, x, y, geometry, space, True, 1 if of_planes else dtype.itemsize)


def average_pool_backward(grad_y: Array, grad_x: Array, geometry: PoolGeometry) -> None:
    """grad_x [N, C, D, H, W]: each window's gradient over its divisor, added to all inputs of the window."""
    grad_y, space = stored(grad_y)
    grad_x = as_stored(grad_x, space)
    dtype = accumulator(grad_y.dtype)
    divisor = _divisor(geometry, dtype, space, grad_y.shape)

    def spread(read: Block, written: Block, passes: Passes) -> None:
        part = grad_x[written]
        total = grad_y[read] if divisor is None else np.divide(grad_y[read], divisor[read], dtype=dtype)
        if not geometry.is_whole:  # rows grow last, by copies of whole rows
            total = separably(np.add, 0, total, passes[::-1], part, dtype)
        if total is not part:
            part[...] = total

    in_pieces(spread, grad_y, grad_x, geometry, space, False, dtype.itemsize)


@kept(DIVISORS_BYTES)
def _divisor(geometry: PoolGeometry, dtype: np.dtype[Any], space: int, shape: tuple[int, ...]) -> Array | None:
    """The divisor of each window's sum, None of plain sums, broadcast to `shape`, that of the windows."""
    if geometry.divisor == "none":
        return None
    real = np.zeros(0, dtype).real.dtype
    if not isinstance(geometry.divisor, str):
        return np.broadcast_to(np.array(geometry.divisor, real), shape)
    d, h, w = (tap_counts(axis, geometry.divisor == "padded") for axis in geometry.axes)
    counts: Array = d[:, None, None] * h[:, None] * w
    counts = np.maximum(counts, 1).astype(real, copy=False)  # a window that counts no tap sums to 0, and stays 0
    return np.broadcast_to(as_stored(counts[None, None], space), shape)


def tap_counts(axis: AnyAxis, padded: bool) -> Array:
    """The number of taps that count in each output's window: those in the input, or with its padding if `padded`."""
    if isinstance(axis, AdaptiveAxis):
        return reads(axis, 0, axis.out, True)[1]
    begin, end = (-axis.low, axis.size + axis.high) if padded else (0, axis.size)
    last = end - 1 - axis.dilation * (axis.kernel - 1)  # where a window may start
    first_full = min(-(-(begin + axis.low) // axis.stride), axis.out)
    full_end = min(max(first_full, (last + axis.low) // axis.stride + 1), axis.out)
    counts = np.full(axis.out, axis.kernel)
    for start, stop in ((0, first_full), (full_end, axis.out)):  # the windows between them are full
        counts[start:stop] = within(*reads(axis, start, stop, True), begin, end)[1]
    return counts
