"""Pooling of ``chainer.functions``."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, prod
from typing import Any

import gpucnn.functional as F
from gpucnn.backends.dtypes import FLOATING
from gpucnn.compat._arrays import Array, rank_of, taken
from gpucnn.compat._pooling import Windows, windows
from gpucnn.compat._windows import outsize
from gpucnn.compat.chainer._ranks import of_rank
from gpucnn.geometry.arguments import boolean, integers

__all__ = [
    "average_pooling_1d", "average_pooling_2d", "average_pooling_3d", "average_pooling_nd", "max_pooling_1d",
    "max_pooling_2d", "max_pooling_3d", "max_pooling_nd",
]  # fmt: skip

Size = int | Sequence[int]


def max_pooling_nd(
    x: Array,
    ksize: Size,
    stride: Size | None = None,
    pad: Size = 0,
    cover_all: bool = True,
    return_indices: bool = False,
) -> Any:
    """Max pooling: the largest value under each window.

    Parameters
    ----------
    x : array [N, C, *space]
        1-d to 3-d images, floating-point.
    ksize, stride, pad : int or sequence of int
        Size of the window, its step (the window itself where it is None), and positions around the images, which are
        never read; less than the window.
    cover_all : bool
        One more window, which overhangs, where those that fit leave a rest: the default, other than that of
        `gpucnn.functional.max_pool2d`.
    return_indices : bool
        Return the indices of the maxima in addition to the result.

    Returns
    -------
    array [N, C, *out]
        -inf of windows that read nothing but padding.
    array of int64
        With `return_indices`: each maximum's position in its window, row-major, as the functions for upsampling take
        it; 0 of windows that read nothing but padding.

    Raises
    ------
    TypeError
        The dtype is not supported, or a parameter is not an integer.
    ValueError
        Shapes do not fit, a parameter is out of range, or no window fits.

    Examples
    --------
    >>> x = np.arange(5.0).reshape(1, 1, 5)
    >>> max_pooling_nd(x, 2), max_pooling_nd(x, 2, cover_all=False)
    (array([[[1., 3., 4.]]]), array([[[1., 3.]]]))
    >>> max_pooling_nd(x, 2, return_indices=True)[1]
    array([[[1, 1, 0]]])
    """
    op, rank = "max_pooling_nd", rank_of("max_pooling_nd", "x", x)
    backend, (image,), give_back = taken(op, {"x": x}, FLOATING)
    kernel, low = integers(op, "ksize", ksize, rank, 1), integers(op, "pad", pad, rank, 0)
    steps = kernel if stride is None else integers(op, "stride", stride, rank, 1)
    sizes = tuple(image.shape[2:])
    covers = boolean(op, "cover_all", cover_all)
    outs = tuple(outsize(*axis, covers) for axis in zip(sizes, kernel, steps, low, strict=True))
    pooled = windows(op, "the output", sizes, outs, kernel, steps, low)
    pool, window = pooled.operation("max_pool{}d"), (pooled.kernel, pooled.stride, pooled.pads)
    if not boolean(op, "return_indices", return_indices):
        return give_back(_extended(backend, pool(image, *window), outs, -inf))
    y, at = pool(image, *window, return_indices=True)
    within = _within_windows(backend.xp, _extended(backend, at, outs, -1), pooled)
    return give_back(_extended(backend, y, outs, -inf)), give_back(within)


def _extended(backend: Any, array: Array, outs: tuple[int, ...], value: float) -> Array:
    """`array` at the low end of one of the size `outs`, and `value` elsewhere; itself if it has that size."""
    if array.shape[2:] == outs:
        return array
    whole = backend.empty((*array.shape[:2], *outs), array.dtype, on=array)
    whole[...] = value
    whole[tuple(map(slice, array.shape))] = array
    return whole


def _within_windows(xp: Any, indices: Array, pooled: Windows) -> Array:
    """Positions in planes as positions in the windows that they are of; -1 as 0."""
    rest, found = indices, 0
    for axis in reversed(range(pooled.rank)):
        place, rest = rest % pooled.sizes[axis], rest // pooled.sizes[axis]
        starts = xp.arange(pooled.outs[axis]) * pooled.stride[axis] - pooled.pads[axis][0]
        taps = place - starts.reshape(-1, *(1,) * (pooled.rank - 1 - axis))
        found = found + taps * prod(pooled.kernel[axis + 1 :])
    return xp.where(indices < 0, 0, found)


def average_pooling_nd(
    x: Array, ksize: Size, stride: Size | None = None, pad: Size = 0, pad_value: int | None = 0
) -> Array:
    """Average pooling: the mean under each window.

    Parameters
    ----------
    x : array [N, C, *space]
        1-d to 3-d images, floating-point.
    ksize, stride, pad : int or sequence of int
        Size of the window, its step (the window itself where it is None), and zeros around the images; less than the
        window.
    pad_value : 0 or None
        Whether padding counts as zeros, or does not count.

    Returns
    -------
    array [N, C, *out]

    Raises
    ------
    TypeError
        The dtype is not supported, or a parameter is not an integer.
    ValueError
        Shapes do not fit, a parameter is out of range, or no window fits.

    Examples
    --------
    >>> x = np.ones((1, 1, 4))
    >>> average_pooling_nd(x, 2, pad=1), average_pooling_nd(x, 2, pad=1, pad_value=None)
    (array([[[0.5, 1. , 0.5]]]), array([[[1., 1., 1.]]]))
    """
    rank = rank_of("average_pooling_nd", "x", x)
    if pad_value is not None and pad_value != 0:
        raise ValueError(f"average_pooling_nd: pad_value is {pad_value!r}, expected 0 or None")
    pool = getattr(F, f"avg_pool{rank}d")
    return pool(x, ksize, stride, pad, count_include_pad=pad_value is not None)


def average_pooling_2d(x: Array, ksize: Size, stride: Size | None = None, pad: Size = 0) -> Array:
    """As `average_pooling_nd`, for 2-d images, whose padding counts as zeros.

    Raises
    ------
    ValueError
        `x` does not have 4 dimensions.
    """
    return _average_pooling_2d(x, ksize, stride, pad)


max_pooling_1d, max_pooling_2d, max_pooling_3d = (of_rank(max_pooling_nd, rank) for rank in (1, 2, 3))
average_pooling_1d, _average_pooling_2d, average_pooling_3d = (of_rank(average_pooling_nd, rank) for rank in (1, 2, 3))
