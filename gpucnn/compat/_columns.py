"""im2col and col2im with all axes apart, [N, C, *kernel, *out], as Chainer and DeZero have them."""

from __future__ import annotations

from math import prod
from typing import Any

import gpucnn.functional as F
from gpucnn.compat._windows import Pairs

Array = Any
Ints = tuple[int, ...]


def columns_of(
    op: str, images: Array, kernel: Ints, stride: Ints, pad: Ints, outs: Ints, dilation: Ints | None = None
) -> Array:
    """The first `outs` windows along each axis of images [N, C, *space], zeros around them: [N, C, *kernel, *outs].

    Raises
    ------
    ValueError
        There is less than one window.
    """
    gaps = dilation or (1,) * len(kernel)
    if min(outs) < 1:
        raise ValueError(f"{op}: the output has size {outs}, expected at least 1 along each axis")
    pads = _pads(images.shape[2:], kernel, stride, pad, outs, gaps)
    columns = F.im2col(images, kernel, gaps, pads, stride)
    found = tuple(
        (size + sum(pair) - (d * (k - 1) + 1)) // s + 1
        for size, pair, k, s, d in zip(images.shape[2:], pads, kernel, stride, gaps, strict=True)
    )
    columns = columns.reshape(*images.shape[:2], *kernel, *found)
    return columns if found == outs else columns[(..., *map(slice, outs))]


def image_of(op: str, columns: Array, stride: Ints, pad: Ints, size: Ints, dilation: Ints | None = None) -> Array:
    """Images [N, C, *size], each the sum of the columns [N, C, *kernel, *out] of the windows that contain it.

    Raises
    ------
    ValueError
        The columns have another number of axes.
    """
    rank = len(size)
    if getattr(columns, "ndim", None) != 2 + 2 * rank:
        raise ValueError(f"{op}: col has shape {getattr(columns, 'shape', None)}, expected (N, C, *kernel, *out)")
    kernel, outs = columns.shape[2 : 2 + rank], columns.shape[2 + rank :]
    gaps = dilation or (1,) * rank
    pads = _pads(size, kernel, stride, pad, outs, gaps)
    matrices = columns.reshape(columns.shape[0], columns.shape[1] * prod(kernel), prod(outs))
    return F.col2im(matrices, size, kernel, gaps, pads, stride)


def _pads(sizes: Ints, kernel: Ints, stride: Ints, pad: Ints, outs: Ints, dilation: Ints) -> Pairs:
    """(low, high) of each axis: as many zeros at the high end as the windows read."""
    return tuple(
        (p, max(0, (out - 1) * s + d * (k - 1) + 1 - size - p))
        for size, k, s, p, out, d in zip(sizes, kernel, stride, pad, outs, dilation, strict=True)
    )
