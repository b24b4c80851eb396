"""Convolution as im2col and GEMM, by cuBLAS on a GPU: the alternative to the direct kernels.

It computes `images_at_once` images at a time, so the workspace is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from gpucnn.backends.base import Epilogue
from gpucnn.backends.cuda.convolution.gemm import as_matrices, multiply
from gpucnn.backends.cuda.convolution.split_k import add_parts
from gpucnn.backends.cuda.device.runtime import Array, Runtime
from gpucnn.backends.cuda.elementwise.bias_activation import bias_activation
from gpucnn.backends.cuda.elementwise.packing import pack
from gpucnn.backends.cuda.launch.plans import empty
from gpucnn.backends.cuda.unfolding.unfolding import col2im, im2col
from gpucnn.geometry import ConvGeometry

WORKSPACE_BYTES = 256 << 20  # workspace for the columns, or products, of a convolution by im2col


def images_at_once(image_bytes: int) -> int:
    """Number of images per GEMM, each of which takes `image_bytes` of workspace."""
    return max(1, WORKSPACE_BYTES // max(1, image_bytes))


def forward(runtime: Runtime, x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry) -> None:
    """Write y [N, OC, OD, OH, OW]: w [G, OC / G, C / G * K] times columns [N, G, C / G * K, O]."""
    filters = _filters(runtime, w, geometry)
    for images in _chunks(x, geometry):
        out = y[images]
        products = out if bias is None else empty(runtime, out.shape, out.dtype, like=out)
        multiply(runtime, filters, _columns(runtime, x[images], geometry), _grouped(products, geometry))
        if bias is not None:
            _add_bias(runtime, products, bias, out)


def backward_input(
    runtime: Runtime, grad_y: Array, w: Array, bias: Array | None, grad_x: Array, geometry: ConvGeometry
) -> None:
    """Write grad_x [N, C, D, H, W]: the columns' gradient, w transposed times grad_y, folded."""
    filters = _filters(runtime, w, geometry).swapaxes(2, 3)
    for images in _chunks(grad_x, geometry):
        out, upstream = grad_x[images], as_matrices(runtime, _grouped(grad_y[images], geometry))
        image = out if bias is None else empty(runtime, out.shape, out.dtype, like=out)
        if _is_pixel_by_pixel(geometry):
            multiply(runtime, filters, upstream, _grouped(image, geometry))
        else:
            n, groups, _, positions = upstream.shape
            columns = empty(runtime, (n, groups, filters.shape[2], positions), grad_y.dtype)
            multiply(runtime, filters, upstream, columns)
            col2im(runtime, columns.reshape(n, -1, positions), image, geometry)
        if bias is not None:
            _add_bias(runtime, image, bias, out)


def backward_weight(runtime: Runtime, x: Array, grad_y: Array, grad_w: Array, geometry: ConvGeometry) -> None:
    """Write grad_w [OC, C / G, KD, KH, KW]: each image's grad_y times its columns, summed in order."""
    if not x.shape[0]:
        grad_w[...] = 0
    for images in _chunks(x, geometry, grad_w.size):
        columns = _columns(runtime, x[images], geometry)
        upstream = as_matrices(runtime, _grouped(grad_y[images], geometry))
        before = int(images.start > 0)  # whether there is a sum of the images before
        parts = empty(runtime, (before + columns.shape[0], *grad_w.shape), grad_w.dtype)
        if before:
            parts[0] = grad_w
        n, groups, rows, _ = columns.shape
        products = parts[before:].reshape(n, groups, -1, rows)
        multiply(runtime, upstream, columns.swapaxes(2, 3), products)
        add_parts(runtime, parts, grad_w)


def _add_bias(runtime: Runtime, image: Array, bias: Array, out: Array) -> None:
    """Write `out`, of the memory order of `image` and without gaps, as image plus bias."""
    if out.dtype.kind == "f":
        bias_activation(runtime, _flat(image), bias, _flat(out), Epilogue())
    else:
        pack(runtime, _flat(image), _flat(out), bias)


def _chunks(x: Array, geometry: ConvGeometry, weights: int = 0) -> Iterator[slice]:
    """Images whose columns and products, of as many values as y or the weights have, fit the workspace."""
    c, oc, _ = geometry.channels
    values = max(c * geometry.taps * prod(geometry.output_size), oc * prod(geometry.output_size), weights)
    step = images_at_once(values * x.itemsize)
    return (slice(start, start + step) for start in range(0, x.shape[0], step))


def _filters(runtime: Runtime, w: Array, geometry: ConvGeometry) -> Array:
    """W [OC, C / G, KD, KH, KW] as [1, G, OC / G, C / G * KD * KH * KW]."""
    _, oc, groups = geometry.channels
    rows = w if w.flags.c_contiguous else _flat(w)
    if not rows.flags.c_contiguous:
        strided, rows = rows, empty(runtime, rows.shape, w.dtype)
        pack(runtime, strided, rows)
    return rows.reshape(1, groups, oc // groups, -1)


def _columns(runtime: Runtime, x: Array, geometry: ConvGeometry) -> Array:
    """The columns [N, G, C / G * KD * KH * KW, OD * OH * OW] of x [N, C, D, H, W]; x itself if pixel by pixel."""
    if _is_pixel_by_pixel(geometry):
        return as_matrices(runtime, _grouped(x, geometry))
    columns = empty(runtime, (x.shape[0], x.shape[1] * geometry.taps, prod(geometry.output_size)), x.dtype)
    im2col(runtime, x, columns, geometry)
    return _grouped(columns, geometry)


def _is_pixel_by_pixel(geometry: ConvGeometry) -> bool:
    """Whether each output's only tap is the input at the same position, so that the columns are the image itself."""
    return all((axis.kernel, axis.stride, axis.low, axis.out) == (1, 1, 0, axis.size) for axis in geometry.axes)


def _grouped(y: Array, geometry: ConvGeometry) -> Array:
    """Y [N, C, *], of either side of the convolution or columns, as [N, G, C / G, P]; a view where its order allows."""
    return y.reshape(y.shape[0], geometry.channels.groups, y.shape[1] // geometry.channels.groups, -1)


def _flat(image: Array) -> Array:
    """An image [N, C, D, H, W] as [N, C, D * H * W]; a view where its order allows."""
    return image.reshape(*image.shape[:2], -1)
