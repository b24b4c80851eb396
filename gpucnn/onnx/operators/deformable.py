"""Convolution whose taps are moved, each at each place, by offsets that a network computes."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn.geometry import conv_output_size
from gpucnn.onnx.operators.arrays import namespace, pairs
from gpucnn.onnx.operators.registry import Array, operator, refuse


@operator("DeformConv", 19)
def deform_conv(
    x: Array,
    w: Array,
    offset: Array,
    b: Array = None,
    mask: Array = None,
    *,
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    offset_group: int = 1,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Array:
    """The convolution of 2-d images, with samples interpolated between pixels, and 0 outside.

    Parameters
    ----------
    x : array [N, C, H, W]
    w : array [OC, C / group, KH, KW]
    offset : array [N, offset_group * KH * KW * 2, OH, OW]
        For each tap how far it is moved down, then how far to the right.
    b : array [OC], optional
    mask : array [N, offset_group * KH * KW, OH, OW], optional
        A factor for each tap.
    """
    if x.ndim != 4:
        raise refuse(f"the input has {x.ndim} dimensions, expected 4: images (N, C, H, W)")
    xp, (n, c, *size), kernel = namespace(x), x.shape, w.shape[2:]
    step, apart, edges = strides or [1, 1], dilations or [1, 1], pairs(pads or [0] * 4)
    out = conv_output_size(size, kernel, step, tuple(edges), apart)
    taps = kernel[0] * kernel[1]
    moved = offset.reshape(n, offset_group, *kernel, 2, *out)
    places = [_grid(xp, axis, kernel, out, step, apart, edges) + moved[:, :, :, :, axis] for axis in range(2)]
    images = x.reshape(n, offset_group, c // offset_group, size[0] * size[1])
    samples = _sampled(xp, images, [place.reshape(n, offset_group, -1) for place in places], size)
    if mask is not None:
        samples = samples * mask.reshape(n, offset_group, 1, -1)
    columns = samples.reshape(n, group, c // group * taps, out[0] * out[1])
    filters = w.reshape(group, w.shape[0] // group, -1)
    y = xp.matmul(filters, columns).reshape(n, w.shape[0], *out)
    return y if b is None else y + b.reshape(-1, 1, 1)


def _grid(xp: Any, axis: int, kernel: Any, out: Any, step: Any, apart: Any, edges: Any) -> Array:
    """The place of each tap along an axis, [KH, KW, OH, OW] with 1 for what it does not depend on."""
    taps = xp.arange(kernel[axis], dtype=np.float32) * apart[axis]
    starts = xp.arange(out[axis], dtype=np.float32) * step[axis] - edges[axis][0]
    shapes = ((-1, 1, 1, 1), (1, 1, -1, 1)) if axis == 0 else ((1, -1, 1, 1), (1, 1, 1, -1))
    return taps.reshape(shapes[0]) + starts.reshape(shapes[1])


def _sampled(xp: Any, images: Array, places: list[Array], size: list[int]) -> Array:
    """Values [N, G, C, P] of images [N, G, C, H * W] at P places of each group, between the four pixels around them."""
    firsts = [xp.floor(place) for place in places]
    total: Any = 0
    for down in range(2):
        for right in range(2):
            at = [first + more for first, more in zip(firsts, (down, right), strict=True)]
            inside = (at[0] >= 0) & (at[0] < size[0]) & (at[1] >= 0) & (at[1] < size[1])
            weights = [1 - xp.abs(place - pixel) for place, pixel in zip(places, at, strict=True)]
            weight = xp.where(inside, weights[0] * weights[1], 0).astype(images.dtype)
            pixel = xp.where(inside, at[0] * size[1] + at[1], 0).astype(np.int64)
            total = total + xp.take_along_axis(images, pixel[:, :, None], -1) * weight[:, :, None]
    return total
