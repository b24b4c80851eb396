"""Convolution as im2col and GEMM, by cuBLAS on a GPU: the alternative to the direct kernels.

It computes `images_at_once` images at a time, so the workspace is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

from gpucnn.backends.cuda.convolution.gemm import as_matrices, multiply
from gpucnn.backends.cuda.convolution.split_k import add_parts
from gpucnn.backends.cuda.device.runtime import MAX_BYTES, Array, Runtime
from gpucnn.backends.cuda.elementwise.packing import pack
from gpucnn.backends.cuda.launch.plans import empty
from gpucnn.backends.cuda.unfolding.unfolding import col2im, im2col
from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.layout import is_channels_last, planes
from gpucnn.geometry import ConvGeometry
from gpucnn.numerics import choices


def images_at_once(image_bytes: int) -> int:
    """Number of images per GEMM, each of which takes `image_bytes` of workspace."""
    return max(1, choices().workspace_bytes // max(1, image_bytes))


def forward(runtime: Runtime, x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry) -> None:
    """Write y [N, OC, OD, OH, OW]: w [G, OC / G, C / G * K] times columns [N, G, C / G * K, O]."""
    filters = _filters(runtime, w, geometry)
    for images in _chunks(x, geometry, x.itemsize if bias is None else bias.itemsize):
        _multiply_biased(runtime, filters, _columns(runtime, x[images], geometry), bias, y[images], geometry)


def backward_input(
    runtime: Runtime, grad_y: Array, w: Array, bias: Array | None, grad_x: Array, geometry: ConvGeometry
) -> None:
    """Write grad_x [N, C, D, H, W]: the columns' gradient, w transposed times grad_y, folded.

    The columns of 16-bit images are in float32, so that each result is rounded once.
    """
    filters = _filters(runtime, w, geometry).swapaxes(2, 3)
    sums = accumulator(grad_y.dtype)
    for images in _chunks(grad_x, geometry, sums.itemsize):
        out, upstream = grad_x[images], as_matrices(runtime, _grouped(grad_y[images], geometry))
        if geometry.is_pixel_by_pixel:
            _multiply_biased(runtime, filters, upstream, bias, out, geometry)
            continue
        columns = _empty_columns(runtime, len(out), geometry, sums)
        multiply(runtime, filters, upstream, _grouped(columns, geometry))
        image = out if bias is None else empty(runtime, out.shape, sums, like=out)
        col2im(runtime, columns, image, geometry)
        if bias is not None:
            pack(runtime, planes(image), planes(out), _in_dtype(runtime, bias, sums))


def backward_weight(runtime: Runtime, x: Array, grad_y: Array, grad_w: Array, geometry: ConvGeometry) -> None:
    """Write grad_w [OC, C / G, KD, KH, KW]: grad_y times the columns, over one image or all of a chunk at a time.

    The products are parts of the sum, of 16-bit images in float32, which are added in the order of the images.
    """
    if not x.shape[0]:
        grad_w[...] = 0
        return
    sums = accumulator(x.dtype)
    as_one = _is_one_product(geometry, x.itemsize, sums.itemsize, is_channels_last(x), is_channels_last(grad_y))
    part_bytes = 0 if as_one else grad_w.size * sums.itemsize
    multiply_chunk = _multiply_as_one if as_one else _multiply_image_by_image
    chunks = list(_chunks(x, geometry, x.itemsize, part_bytes))
    if len(chunks) == 1 and (as_one or len(x) == 1):
        multiply_chunk(runtime, x, grad_y, grad_w[None], geometry)
        return
    total = grad_w if len(chunks) == 1 or grad_w.dtype == sums else empty(runtime, grad_w.shape, sums)
    for images in chunks:
        before = int(images.start > 0)  # whether there is a sum of the images before
        count = 1 if as_one else len(x[images])
        parts = empty(runtime, (before + count, *grad_w.shape), sums)
        if before:
            pack(runtime, _as_row(total), _as_row(parts[0]))
        multiply_chunk(runtime, x[images], grad_y[images], parts[before:], geometry)
        add_parts(runtime, parts, total)
    if total is not grad_w:
        pack(runtime, _as_row(total), _as_row(grad_w))


def _as_row(weights: Array) -> Array:
    return weights.reshape(1, 1, -1)


def _multiply_image_by_image(runtime: Runtime, x: Array, grad_y: Array, parts: Array, geometry: ConvGeometry) -> None:
    """Write parts [N, OC, C / G, KD, KH, KW]: each image's grad_y times its columns."""
    columns = _columns(runtime, x, geometry)
    upstream = as_matrices(runtime, _grouped(grad_y, geometry))
    products = parts.reshape(*columns.shape[:2], -1, columns.shape[2])
    multiply(runtime, upstream, columns.swapaxes(2, 3), products)


def _multiply_as_one(runtime: Runtime, x: Array, grad_y: Array, parts: Array, geometry: ConvGeometry) -> None:
    """Write parts [1, OC, C / G, KD, KH, KW]: all images' grad_y times their columns, as one product over N * O."""
    groups = geometry.channels.groups
    if geometry.is_pixel_by_pixel:
        columns = _joined(runtime, x.reshape(*x.shape[:2], -1))
    else:
        rows, positions = x.shape[1] * geometry.taps, prod(geometry.output_size)
        columns = _empty_rows(runtime, (rows,), len(x) * positions, x.dtype)
        im2col(runtime, x, columns.reshape(rows, len(x), positions).swapaxes(0, 1), geometry)
    upstream = _joined(runtime, grad_y.reshape(*grad_y.shape[:2], -1))
    columns, upstream = (
        as_matrices(runtime, each.reshape(1, groups, -1, each.shape[1])) for each in (columns, upstream)
    )
    products = parts.reshape(1, groups, upstream.shape[2], columns.shape[2])
    multiply(runtime, upstream, columns.swapaxes(2, 3), products)


def _joined(runtime: Runtime, images: Array) -> Array:
    """Images [N, C, P] as rows [C, N * P]: a view of one image or of channels-last ones, else a copy."""
    n, c, positions = images.shape
    if n == 1 or images.strides[0] == positions * images.strides[2]:
        return images.swapaxes(0, 1).reshape(c, n * positions)
    rows = _empty_rows(runtime, (c,), n * positions, images.dtype)
    pack(runtime, images, rows.reshape(c, n, positions).swapaxes(0, 1))
    return rows


def _is_one_product(geometry: ConvGeometry, itemsize: int, sum_itemsize: int, x_is_last: bool, y_is_last: bool) -> bool:
    """Whether joining a chunk's images for one product moves fewer bytes than a part of the sum per image does."""
    c, oc, groups = geometry.channels
    joined = 0 if y_is_last else oc
    if geometry.is_pixel_by_pixel and not x_is_last:
        joined += c
    weights = oc * (c // groups) * geometry.taps
    return joined * prod(geometry.output_size) * itemsize <= weights * sum_itemsize


def _multiply_biased(
    runtime: Runtime, filters: Array, columns: Array, bias: Array | None, y: Array, geometry: ConvGeometry
) -> None:
    """Write y [N, C, *] = filters times columns, plus bias [C], rounded once.

    The products are added to a bias of y's dtype at each position of y. One of float32 would be rounded there if y has
    16 bits: it is added to products in float32, which takes 10 bytes moved for each value in place of 6.
    """
    if bias is None or bias.dtype == y.dtype:
        if bias is not None:
            pack(runtime, runtime.xp.broadcast_to(bias[None, :, None], planes(y).shape), planes(y))
        multiply(runtime, filters, columns, _grouped(y, geometry), add=bias is not None)
        return
    sums = empty(runtime, y.shape, bias.dtype, like=y)
    multiply(runtime, filters, columns, _grouped(sums, geometry))
    pack(runtime, planes(sums), planes(y), bias)


def _in_dtype(runtime: Runtime, bias: Array, dtype: Any) -> Array:
    if bias.dtype == dtype:
        return bias
    wide = empty(runtime, bias.shape, dtype)
    pack(runtime, bias[None, None], wide[None, None])
    return wide


def _chunks(x: Array, geometry: ConvGeometry, itemsize: int, part_bytes: int = 0) -> Iterator[slice]:
    """Images whose columns, or products of as many values as y has, or else parts of the sum fit the workspace."""
    c, oc, _ = geometry.channels
    values = max(c * geometry.taps, oc) * prod(geometry.output_size)
    step = images_at_once(max(values * itemsize, part_bytes))
    return (slice(start, start + step) for start in range(0, x.shape[0], step))


def _filters(runtime: Runtime, w: Array, geometry: ConvGeometry) -> Array:
    """W [OC, C / G, KD, KH, KW] as [1, G, OC / G, C / G * KD * KH * KW]."""
    _, oc, groups = geometry.channels
    rows = w if w.flags.c_contiguous else planes(w)
    if not rows.flags.c_contiguous:
        strided, rows = rows, empty(runtime, rows.shape, w.dtype)
        pack(runtime, strided, rows)
    return rows.reshape(1, groups, oc // groups, -1)


def _columns(runtime: Runtime, x: Array, geometry: ConvGeometry) -> Array:
    """The columns [N, G, C / G * KD * KH * KW, OD * OH * OW] of x [N, C, D, H, W]; x itself if pixel by pixel."""
    if geometry.is_pixel_by_pixel:
        return as_matrices(runtime, _grouped(x, geometry))
    columns = _empty_columns(runtime, len(x), geometry, x.dtype)
    im2col(runtime, x, columns, geometry)
    return _grouped(columns, geometry)


def _empty_columns(runtime: Runtime, n: int, geometry: ConvGeometry, dtype: Any) -> Array:
    """New columns [N, C * KD * KH * KW, OD * OH * OW]."""
    return _empty_rows(runtime, (n, geometry.channels.inputs * geometry.taps), prod(geometry.output_size), dtype)


def _empty_rows(runtime: Runtime, shape: tuple[int, ...], length: int, dtype: Any) -> Array:
    """New rows [*shape, length], each at a multiple of 16 bytes, which cuBLAS's fast kernels require."""
    per_access = max(1, MAX_BYTES // dtype.itemsize)
    padded = empty(runtime, (*shape, -(-length // per_access) * per_access), dtype)
    return padded[..., :length]


def _grouped(y: Array, geometry: ConvGeometry) -> Array:
    """Y [N, C, *], of either side of the convolution or columns, as [N, G, C / G, P]; a view where its order allows."""
    return y.reshape(y.shape[0], geometry.channels.groups, y.shape[1] // geometry.channels.groups, -1)
