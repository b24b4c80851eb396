"""Average and sum pooling: separable sums, one axis at a time, divided by the number of taps."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import memory
from gpucnn.backends.numpy.memory import Array, Block
from gpucnn.backends.numpy.pooling import AnyAxis, Passes, as_stored, in_pieces, separably, stored, widened
from gpucnn.geometry import AdaptiveAxis, PoolGeometry
from gpucnn.geometry.caches import kept

# The work of averages of whole planes for a byte, where that of two passes is 1: threads pay from 5 MiB on.
WHOLE = 1 / 16

# Numbers of a whole plane that BLAS adds up in one go, as a product with ones: of 7 x 7 and 14 x 14 its sums are as
# exact as PyTorch's, of 56 x 56 a third so: NumPy adds up those in pairs.
SHORT = 256
DIVISORS_BYTES = 1 << 20  # of all windows' divisors that are kept


def average_pool(x: Array, y: Array, geometry: PoolGeometry) -> None:
    """Y [N, C, OD, OH, OW]: each window's sum over its divisor."""
    x, space = stored(x)
    y = as_stored(y, space)
    dtype = accumulator(x.dtype)
    divisor = _divisor(geometry, dtype, space, y.shape)

    def pool(read: Block, written: Block, passes: Passes) -> None:
        part = y[written]
        total = part if part.dtype == dtype else memory.scratch("average_pool", part.shape, dtype)
        wide = widened("average_pool x", x[read], dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # of partial sums, which are nobody's
            if geometry.is_whole and space == 2 and wide.flags.c_contiguous:
                planes = wide.reshape(*wide.shape[:2], -1)
                short = planes.shape[2] <= SHORT
                total[:, :, 0, 0, 0] = planes @ np.ones(planes.shape[2], dtype) if short else planes.sum(axis=2)
            else:
                separably(np.add, 0, wide, passes, total)
        if divisor is not None:
            np.divide(total, divisor[written], out=total)
        if total is not part:
            part[...] = total

    in_pieces(pool, x, y, geometry, space, True, weight=WHOLE if geometry.is_whole else 1)


def average_pool_backward(grad_y: Array, grad_x: Array, geometry: PoolGeometry) -> None:
    """grad_x [N, C, D, H, W]: each window's gradient over its divisor, added to all inputs of the window."""
    grad_y, space = stored(grad_y)
    grad_x = as_stored(grad_x, space)
    dtype = accumulator(grad_y.dtype)
    divisor = _divisor(geometry, dtype, space, grad_y.shape)

    def spread(read: Block, written: Block, passes: Passes) -> None:
        part = grad_x[written]
        total = part if part.dtype == dtype else memory.scratch("average_pool_backward", part.shape, dtype)
        grad = widened("average_pool_backward grad", grad_y[read], dtype)
        if divisor is not None:
            share = memory.scratch("average_pool_backward share", grad.shape, dtype)
            grad = np.divide(grad, divisor[read], out=share)
        separably(np.add, 0, grad, passes[::-1], total)  # rows grow last, by copies of whole rows
        if total is not part:
            part[...] = total

    in_pieces(spread, grad_y, grad_x, geometry, space, False, weight=WHOLE if geometry.is_whole else 1)


@kept(DIVISORS_BYTES)
def _divisor(geometry: PoolGeometry, dtype: np.dtype[Any], space: int, shape: tuple[int, ...]) -> Array | None:
    """The divisor of each window's sum, broadcast to `shape`, that of the windows."""
    if geometry.divisor == "none":
        return None
    real = np.zeros(0, dtype).real.dtype
    if not isinstance(geometry.divisor, str):
        return np.broadcast_to(np.array(geometry.divisor, real), shape)
    padded = geometry.divisor == "padded"
    d, h, w = (tap_counts(axis, padded) for axis in geometry.axes)
    counts: Array = d[:, None, None] * h[:, None] * w
    counts = np.maximum(counts, 1).astype(real, copy=False)  # a window that counts no tap sums to 0, and stays 0
    return np.broadcast_to(as_stored(counts[None, None], space), shape)


def tap_counts(axis: AnyAxis, padded: bool) -> Array:
    """The number of taps that count in each output's window: those in the input, or with its padding if `padded`."""
    if isinstance(axis, AdaptiveAxis):
        windows: tuple[Array, Array] = axis.windows(np.arange(axis.out))
        return windows[1] - windows[0]
    begin, end = (-axis.low, axis.size + axis.high) if padded else (0, axis.size)
    reach = axis.dilation * (axis.kernel - 1)
    first_full = min(max(0, -(-(begin + axis.low) // axis.stride)), axis.out)
    full_end = min(max(first_full, (end - 1 - reach + axis.low) // axis.stride + 1), axis.out)
    counts = np.full(axis.out, axis.kernel)
    for edge in (slice(0, first_full), slice(full_end, axis.out)):  # the others are full
        starts = np.arange(edge.start, edge.stop) * axis.stride - axis.low
        first = np.maximum(-((starts - begin) // axis.dilation), 0)  # least k with start + k * dilation >= begin
        last = np.minimum(-((starts - end) // axis.dilation), axis.kernel)  # least k with start + k * dilation >= end
        counts[edge] = np.maximum(last - first, 0)
    return counts
