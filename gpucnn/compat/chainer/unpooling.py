"""Unpooling and upsampling of ``chainer.functions``."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from gpucnn.backends.dtypes import FLOATING, INTEGER
from gpucnn.compat._arrays import Array, Taken, expect_shape, rank_of, taken
from gpucnn.compat._columns import image_of
from gpucnn.compat._pooling import Windows, windows
from gpucnn.compat._windows import transposed_outsize
from gpucnn.compat.chainer._ranks import of_rank
from gpucnn.geometry.arguments import boolean, integers

__all__ = [
    "unpooling_1d", "unpooling_2d", "unpooling_3d", "unpooling_nd", "upsampling_1d", "upsampling_2d", "upsampling_3d",
    "upsampling_nd",
]  # fmt: skip

Size = int | Sequence[int]


def unpooling_nd(
    x: Array,
    ksize: Size,
    stride: Size | None = None,
    pad: Size = 0,
    outsize: Sequence[int] | None = None,
    cover_all: bool = True,
) -> Array:
    """Add each value to all positions of its window: the adjoint of sum pooling.

    Parameters
    ----------
    x : array [N, C, *space]
        1-d to 3-d images, floating-point.
    ksize, stride, pad : int or sequence of int
        As they were given to the pooling.
    outsize : sequence of int, optional
        Spatial size of the result, one that pools to the size of `x`; by default the least.
    cover_all : bool
        The pooling's, which the default of `outsize` depends on.

    Returns
    -------
    array [N, C, *out]

    Raises
    ------
    TypeError
        The dtype is not supported, or a parameter is not an integer.
    ValueError
        Shapes do not fit, or a parameter is out of range.

    Examples
    --------
    >>> x = np.array([[[1.0, 2.0]]])
    >>> unpooling_nd(x, 2, cover_all=False), unpooling_nd(x, 2, outsize=(3,))
    (array([[[1., 1., 2., 2.]]]), array([[[1., 1., 2.]]]))
    """
    received, pooled = _unpooled("unpooling_nd", {"x": x}, ksize, stride, pad, outsize, cover_all)
    values = received.arrays[0]
    image = received.backend.empty((*values.shape[:2], *pooled.sizes), values.dtype, on=values)
    return received.give_back(pooled.spread(values, image))


def upsampling_nd(
    x: Array,
    indexes: Array,
    ksize: Size,
    stride: Size | None = None,
    pad: Size = 0,
    outsize: Sequence[int] | None = None,
    cover_all: bool = True,
) -> Array:
    """Put each value where the maximum of its window was, zeros elsewhere.

    Parameters
    ----------
    x : array [N, C, *space]
        1-d to 3-d images, floating-point.
    indexes : array of integers, in the shape of `x`
        Position of each value in its window, as `max_pooling_nd` returns it. One that is in no window puts its value
        nowhere.
    ksize, stride, pad, outsize, cover_all
        As in `unpooling_nd`.

    Returns
    -------
    array [N, C, *out]
        The sum of the values that meet at a position.

    Raises
    ------
    TypeError, ValueError
        As `unpooling_nd`.

    Examples
    --------
    >>> x, indexes = np.array([[[1.0, 2.0]]]), np.array([[[1, 0]]])
    >>> upsampling_nd(x, indexes, 2, outsize=(4,))
    array([[[0., 1., 2., 0.]]])
    """
    op = "upsampling_nd"
    received, pooled = _unpooled(op, {"x": x, "indexes": indexes}, ksize, stride, pad, outsize, cover_all)
    xp, (values, at) = received.backend.xp, received.arrays
    expect_shape(op, "indexes", at, tuple(values.shape), "that of x, ")
    taps = xp.arange(prod(pooled.kernel)).reshape(-1, *(1,) * pooled.rank)
    columns = xp.where(taps == at[:, :, None], values[:, :, None], 0).astype(values.dtype, copy=False)
    columns = columns.reshape(*values.shape[:2], *pooled.kernel, *pooled.outs)
    low = tuple(low for low, _ in pooled.pads)
    return received.give_back(image_of(op, columns, pooled.stride, low, pooled.sizes))


def _unpooled(
    op: str,
    arrays: dict[str, Array],
    ksize: Size,
    stride: Size | None,
    pad: Size,
    outsize: Sequence[int] | None,
    cover_all: bool,
) -> tuple[Taken, Windows]:
    """Take the arrays, and check the pooling that made the size of `x`."""
    x, rank = arrays["x"], rank_of(op, "x", arrays["x"])
    received = taken(op, arrays, FLOATING, apart={"indexes": INTEGER})
    kernel, low = integers(op, "ksize", ksize, rank, 1), integers(op, "pad", pad, rank, 0)
    steps = kernel if stride is None else integers(op, "stride", stride, rank, 1)
    outs, covers = tuple(x.shape[2:]), boolean(op, "cover_all", cover_all)
    if outsize is None:
        sizes = tuple(transposed_outsize(*axis, covers) for axis in zip(outs, kernel, steps, low, strict=True))
        if min(sizes) < 1:
            raise ValueError(f"{op}: the output has size {sizes}, expected at least 1 along each axis")
    else:
        sizes = integers(op, "outsize", outsize, rank, 1)
    return received, windows(op, "x", sizes, outs, kernel, steps, low)


unpooling_1d, unpooling_2d, unpooling_3d = (of_rank(unpooling_nd, rank) for rank in (1, 2, 3))
upsampling_1d, upsampling_2d, upsampling_3d = (of_rank(upsampling_nd, rank) for rank in (1, 2, 3))
