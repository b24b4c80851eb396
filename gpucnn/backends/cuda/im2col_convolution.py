"""Convolution as im2col and a matrix product, by cuBLAS on a GPU: the second opinion beside the direct kernels.

A few images at a time are computed, `select.images_at_once` of them, so the workspace is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

from gpucnn.backends.cuda import select
from gpucnn.backends.cuda.biases import add_bias, run_of
from gpucnn.backends.cuda.packing import pack
from gpucnn.backends.cuda.runtime import Array
from gpucnn.backends.cuda.sums import add_parts
from gpucnn.backends.cuda.unfolding import fold_into, im2col
from gpucnn.geometry import ConvGeometry

if TYPE_CHECKING:
    from gpucnn.backends.cuda import CudaBackend


def forward(backend: CudaBackend, x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry) -> None:
    """Write y [N, OC, OD, OH, OW]: w [G, OC / G, C / G * K] times columns [N, G, C / G * K, O]."""
    filters = _filters(w, geometry)
    for images in _chunks(x, geometry):
        products = backend.xp.matmul(filters, _columns(backend, x[images], geometry))
        n, groups, oc_group, positions = products.shape
        rows, out = products.reshape(n, groups * oc_group, positions), _flat(y[images])
        if bias is not None and run_of(out) == positions and out.dtype.kind == "f":  # the order of the products
            add_bias(backend, rows, bias, None, out)
        else:
            pack(backend, rows, out, bias)


def backward_input(
    backend: CudaBackend, grad_y: Array, w: Array, bias: Array | None, grad_x: Array, geometry: ConvGeometry
) -> None:
    """Write grad_x [N, C, D, H, W]: the columns' gradient, w transposed times grad_y, folded."""
    filters = _filters(w, geometry).swapaxes(1, 2)
    for images in _chunks(grad_x, geometry):
        products = backend.xp.matmul(filters, _grouped(grad_y[images], geometry))
        n, groups, rows, positions = products.shape
        fold_into(backend, products.reshape(n, groups * rows, positions), grad_x[images], geometry)
    if bias is not None:
        grad_x += bias[:, None, None, None]


def backward_weight(backend: CudaBackend, x: Array, grad_y: Array, grad_w: Array, geometry: ConvGeometry) -> None:
    """Write grad_w [OC, C / G, KD, KH, KW]: each image's grad_y times its columns, added up in order."""
    grad_w[...] = 0
    for images in _chunks(x, geometry, grad_w.size):
        columns = _columns(backend, x[images], geometry)
        products = backend.xp.matmul(_grouped(grad_y[images], geometry), columns.swapaxes(2, 3))
        parts = backend.xp.concatenate([grad_w[None], products.reshape(-1, *grad_w.shape)])
        add_parts(backend.runtime, parts, grad_w)


def _chunks(x: Array, geometry: ConvGeometry, weights: int = 0) -> Iterator[slice]:
    """Images whose columns and products, of as many values as y or the weights have, fit the workspace."""
    c, oc, _ = geometry.channels
    values = max(c * geometry.taps * prod(geometry.output_size), oc * prod(geometry.output_size), weights)
    step = select.images_at_once(values * x.itemsize)
    return (slice(start, start + step) for start in range(0, x.shape[0], step))


def _filters(w: Array, geometry: ConvGeometry) -> Array:
    """W [OC, C / G, KD, KH, KW] as [G, OC / G, C / G * KD * KH * KW]."""
    _, oc, groups = geometry.channels
    return w.reshape(groups, oc // groups, -1)


def _columns(backend: CudaBackend, x: Array, geometry: ConvGeometry) -> Array:
    """The columns of x [N, C, D, H, W], [N, G, C / G * KD * KH * KW, OD * OH * OW]; x itself where a tap is a pixel."""
    pixels = all(sampling.is_identity for sampling in geometry.forward)
    rows = _flat(x) if pixels else im2col(backend, x, geometry)
    return rows.reshape(len(x), geometry.channels.groups, -1, rows.shape[2])


def _grouped(y: Array, geometry: ConvGeometry) -> Array:
    """Y [N, OC, OD, OH, OW] as [N, G, OC / G, OD * OH * OW]."""
    _, oc, groups = geometry.channels
    return y.reshape(len(y), groups, oc // groups, -1)


def _flat(image: Array) -> Array:
    """An image [N, C, D, H, W] as [N, C, D * H * W]; a view where its order allows."""
    return image.reshape(*image.shape[:2], -1)
