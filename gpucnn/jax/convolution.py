"""Convolutions, transposed ones and locally connected layers of 1-d to 3-d images, as JAX transforms them."""

from __future__ import annotations

from typing import Any

from gpucnn.functional._call import convolved_shape, transposed_shape
from gpucnn.functional._convolution_geometry import geometry_of, local_geometry, transposed_geometry
from gpucnn.functional._family import family
from gpucnn.jax._images import batched, unbatched
from gpucnn.jax._operations import frozen, product

Array = Any

__all__ = [
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "locally_connected1d",
    "locally_connected2d", "locally_connected3d",
]  # fmt: skip


def conv_nd(
    rank: int,
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Array:
    """`gpucnn.functional.conv{n}d` of JAX's arrays, under its transformations too."""
    op = f"conv{rank}d"
    x, w, b = batched(op, rank, input, weight, bias)
    geometry = geometry_of(op, rank, x.shape, w.shape, stride, padding, dilation, groups)
    options = frozen(stride=stride, padding=padding, dilation=dilation, groups=groups)
    return unbatched(product(op)(options, convolved_shape(x.shape, geometry), x, w, b), input, x)


def conv_transpose_nd(
    rank: int,
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Array:
    """`gpucnn.functional.conv_transpose{n}d` of JAX's arrays, under its transformations too."""
    op = f"conv_transpose{rank}d"
    x, w, b = batched(op, rank, input, weight, bias)
    geometry = transposed_geometry(op, rank, x.shape, w.shape, stride, padding, output_padding, dilation, groups)
    options = frozen(stride=stride, padding=padding, output_padding=output_padding, groups=groups, dilation=dilation)
    return unbatched(product(op)(options, transposed_shape(x.shape, geometry), x, w, b), input, x)


def locally_connected_nd(
    rank: int,
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
) -> Array:
    """`gpucnn.functional.locally_connected{n}d` of JAX's arrays, under its transformations too."""
    op = f"locally_connected{rank}d"
    x, w, b = batched(op, rank, input, weight, bias)
    geometry = local_geometry(op, rank, x.shape, w.shape, stride, padding, dilation)
    options = frozen(stride=stride, padding=padding, dilation=dilation)
    return unbatched(product(op)(options, convolved_shape(x.shape, geometry), x, w, b), input, x)


conv1d, conv2d, conv3d = family(conv_nd)
conv_transpose1d, conv_transpose2d, conv_transpose3d = family(conv_transpose_nd)
locally_connected1d, locally_connected2d, locally_connected3d = family(locally_connected_nd)
