"""Max and average pooling of 1-d to 3-d images, as JAX transforms them."""

from __future__ import annotations

from typing import Any

from gpucnn.functional._call import pooled_shape
from gpucnn.functional._family import family
from gpucnn.geometry.geometries import adaptive_geometry, pool_geometry
from gpucnn.jax._images import batched, unbatched
from gpucnn.jax._operations import frozen, linear, maximum

Array = Any

__all__ = [
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d",
]  # fmt: skip


def max_pool_nd(
    rank: int,
    input: Array,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """`gpucnn.functional.max_pool{n}d` of JAX's arrays, under its transformations too; indices are JAX's integers."""
    op = f"max_pool{rank}d"
    (x,) = batched(op, rank, input)
    geometry = pool_geometry(op, x.shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
    window = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
    found = maximum(op)(frozen(**window, ceil_mode=ceil_mode), pooled_shape(x.shape, geometry), x)
    y, indices = (unbatched(result, input, x) for result in found)
    return (y, indices) if return_indices else y


def avg_pool_nd(
    rank: int,
    input: Array,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: float | None = None,
    dilation: Any = 1,
) -> Array:
    """`gpucnn.functional.avg_pool{n}d` of JAX's arrays, under its transformations too."""
    op = f"avg_pool{rank}d"
    (x,) = batched(op, rank, input)
    geometry = pool_geometry(op, x.shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
    window = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
    counts = {"count_include_pad": count_include_pad, "divisor_override": divisor_override}
    options = frozen(**window, ceil_mode=ceil_mode, **counts)
    return unbatched(linear(op)(options, pooled_shape(x.shape, geometry), x), input, x)


def adaptive_max_pool_nd(rank: int, input: Array, output_size: Any, return_indices: bool = False) -> Any:
    """`gpucnn.functional.adaptive_max_pool{n}d` of JAX's arrays, under its transformations too."""
    op = f"adaptive_max_pool{rank}d"
    (x,) = batched(op, rank, input)
    geometry = adaptive_geometry(op, x.shape[2:], output_size)
    found = maximum(op)(frozen(output_size=output_size), pooled_shape(x.shape, geometry), x)
    y, indices = (unbatched(result, input, x) for result in found)
    return (y, indices) if return_indices else y


def adaptive_avg_pool_nd(rank: int, input: Array, output_size: Any) -> Array:
    """`gpucnn.functional.adaptive_avg_pool{n}d` of JAX's arrays, under its transformations too."""
    op = f"adaptive_avg_pool{rank}d"
    (x,) = batched(op, rank, input)
    geometry = adaptive_geometry(op, x.shape[2:], output_size)
    return unbatched(linear(op)(frozen(output_size=output_size), pooled_shape(x.shape, geometry), x), input, x)


max_pool1d, max_pool2d, max_pool3d = family(max_pool_nd)
avg_pool1d, avg_pool2d, avg_pool3d = family(avg_pool_nd)
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = family(adaptive_max_pool_nd)
adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = family(adaptive_avg_pool_nd)
