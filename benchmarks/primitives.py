"""Calls of a backend's primitives that make the arrays their results go to."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from gpucnn.backends.base import Backend, Epilogue
from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.layout import empty_rows_like
from gpucnn.geometry import ConvGeometry, InterpolationGeometry, NormGeometry, PoolGeometry

Array = Any
Results = tuple[Array, ...]


VARIANTS = {
    "max_pool_with_indices": "max_pool",
    "norm_backward_affine": "norm_backward",
    "norm_backward_input": "norm_backward",
}
"""Calls here that are a primitive without some of its results, or with all of them."""


def run(backend: Backend, primitive: str, *arguments: Any) -> Results:
    """Call `primitive` with these arguments and new arrays for the results, which are returned."""
    results: Results = globals()[primitive](backend, *arguments)
    return results


# --- Convolution --------------------------------------------------------------------------------------------------


def convolve(backend: Backend, x: Array, w: Array, bias: Array | None, geometry: ConvGeometry) -> Results:
    y = backend.empty_like((x.shape[0], geometry.channels.outputs, *geometry.output_size), x.dtype, x)
    backend.convolve(x, w, bias, y, geometry)
    return (y,)


def convolve_backward_input(
    backend: Backend, grad_y: Array, w: Array, bias: Array | None, geometry: ConvGeometry
) -> Results:
    grad_x = backend.empty_like((grad_y.shape[0], geometry.channels.inputs, *geometry.input_size), grad_y.dtype, grad_y)
    backend.convolve_backward_input(grad_y, w, bias, grad_x, geometry)
    return (grad_x,)


def convolve_backward_weight(backend: Backend, x: Array, grad_y: Array, geometry: ConvGeometry) -> Results:
    inputs, outputs, groups = geometry.channels
    grad_w = backend.empty((outputs, inputs // groups, *geometry.kernel_size), x.dtype, on=x)
    backend.convolve_backward_weight(x, grad_y, grad_w, geometry)
    return (grad_w,)


def locally_connect(backend: Backend, x: Array, w: Array, bias: Array | None, geometry: ConvGeometry) -> Results:
    y = backend.empty_like((x.shape[0], geometry.channels.outputs, *geometry.output_size), x.dtype, x)
    backend.locally_connect(x, w, bias, y, geometry)
    return (y,)


def locally_connect_backward_input(backend: Backend, grad_y: Array, w: Array, geometry: ConvGeometry) -> Results:
    grad_x = backend.empty_like((grad_y.shape[0], geometry.channels.inputs, *geometry.input_size), grad_y.dtype, grad_y)
    backend.locally_connect_backward_input(grad_y, w, grad_x, geometry)
    return (grad_x,)


def locally_connect_backward_weight(backend: Backend, x: Array, grad_y: Array, geometry: ConvGeometry) -> Results:
    inputs, outputs, _ = geometry.channels
    grad_w = backend.empty((outputs, *geometry.output_size, inputs, *geometry.kernel_size), x.dtype, on=x)
    backend.locally_connect_backward_weight(x, grad_y, grad_w, geometry)
    return (grad_w,)


# --- Unfolding ----------------------------------------------------------------------------------------------------


def im2col(backend: Backend, x: Array, geometry: ConvGeometry) -> Results:
    n, c = x.shape[:2]
    columns = backend.empty((n, c * geometry.taps, prod(geometry.output_size)), x.dtype, on=x)
    backend.im2col(x, columns, geometry)
    return (columns,)


def col2im(backend: Backend, columns: Array, geometry: ConvGeometry) -> Results:
    x = backend.empty((len(columns), geometry.channels.inputs, *geometry.input_size), columns.dtype, on=columns)
    backend.col2im(columns, x, geometry)
    return (x,)


# --- Pooling and resampling ---------------------------------------------------------------------------------------


def max_pool(backend: Backend, x: Array, geometry: PoolGeometry) -> Results:
    y = _image(backend, x, geometry.output_size)
    backend.max_pool(x, y, None, geometry)
    return (y,)


def max_pool_with_indices(backend: Backend, x: Array, geometry: PoolGeometry) -> Results:
    y = _image(backend, x, geometry.output_size)
    indices = backend.empty_like(tuple(y.shape), np.int64, x)
    backend.max_pool(x, y, indices, geometry)
    return y, indices


def max_pool_backward(backend: Backend, grad_y: Array, indices: Array, geometry: PoolGeometry) -> Results:
    grad_x = _image(backend, grad_y, geometry.input_size)
    backend.max_pool_backward(grad_y, indices, grad_x, geometry)
    return (grad_x,)


def unpool(backend: Backend, values: Array, indices: Array, size: tuple[int, ...]) -> Results:
    planes = _image(backend, values, size)
    backend.unpool(values, indices, planes)
    return (planes,)


def gather(backend: Backend, planes: Array, indices: Array) -> Results:
    values = _image(backend, planes, indices.shape[2:])
    backend.gather(planes, indices, values)
    return (values,)


def average_pool(backend: Backend, x: Array, geometry: PoolGeometry) -> Results:
    y = _image(backend, x, geometry.output_size)
    backend.average_pool(x, y, geometry)
    return (y,)


def average_pool_backward(backend: Backend, grad_y: Array, geometry: PoolGeometry) -> Results:
    grad_x = _image(backend, grad_y, geometry.input_size)
    backend.average_pool_backward(grad_y, grad_x, geometry)
    return (grad_x,)


def interpolate(backend: Backend, x: Array, geometry: InterpolationGeometry) -> Results:
    y = _image(backend, x, geometry.output_size)
    backend.interpolate(x, y, geometry)
    return (y,)


def interpolate_backward(backend: Backend, grad_y: Array, geometry: InterpolationGeometry) -> Results:
    grad_x = _image(backend, grad_y, geometry.input_size)
    backend.interpolate_backward(grad_y, grad_x, geometry)
    return (grad_x,)


def _image(backend: Backend, like: Array, size: tuple[int, ...]) -> Array:
    return backend.empty_like((*like.shape[:2], *size), like.dtype, like)


# --- Normalisation ------------------------------------------------------------------------------------------------


def norm_statistics(backend: Backend, x: Array, geometry: NormGeometry, eps: float) -> Results:
    found = _statistics(backend, x, geometry)
    backend.norm_statistics(x, *found, geometry, eps)
    return found


def norm_apply(
    backend: Backend,
    x: Array,
    mean: Array,
    var: Array,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    residual: Array | None,
    activation: str,
    negative_slope: float,
) -> Results:
    y = empty_rows_like(backend, x)
    backend.norm_apply(x, mean, var, weight, bias, y, eps, Epilogue(residual, activation, negative_slope))
    return (y,)


def norm_forward(
    backend: Backend,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    geometry: NormGeometry,
    eps: float,
    residual: Array | None,
    activation: str,
    negative_slope: float,
) -> Results:
    y, found = empty_rows_like(backend, x), _statistics(backend, x, geometry)
    epilogue = Epilogue(residual, activation, negative_slope)
    backend.norm_forward(x, weight, bias, y, *found, geometry, eps, epilogue)
    return y, *found


def norm_activation_backward(
    backend: Backend,
    grad_y: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None,
    bias: Array | None,
    residual: Array | None,
    activation: str,
    negative_slope: float,
) -> Results:
    grad = empty_rows_like(backend, x)
    epilogue = Epilogue(residual, activation, negative_slope)
    backend.norm_activation_backward(grad_y, x, mean, rstd, weight, bias, grad, epilogue)
    return (grad,)


def norm_backward(
    backend: Backend, grad_y: Array, x: Array, mean: Array, rstd: Array, weight: Array | None, geometry: NormGeometry
) -> Results:
    results = empty_rows_like(backend, x), *_affine(backend, x)
    backend.norm_backward(grad_y, x, mean, rstd, weight, *results, geometry)
    return results


def norm_backward_input(
    backend: Backend, grad_y: Array, x: Array, mean: Array, rstd: Array, weight: Array | None, geometry: NormGeometry
) -> Results:
    grad_x = empty_rows_like(backend, x)
    backend.norm_backward(grad_y, x, mean, rstd, weight, grad_x, None, None, geometry)
    return (grad_x,)


def norm_backward_affine(
    backend: Backend, grad_y: Array, x: Array, mean: Array, rstd: Array, geometry: NormGeometry
) -> Results:
    results = _affine(backend, x)
    backend.norm_backward(grad_y, x, mean, rstd, None, None, *results, geometry)
    return results


def _statistics(backend: Backend, x: Array, geometry: NormGeometry) -> Results:
    kept = tuple(1 if axis in geometry.axes else size for axis, size in enumerate(x.shape))
    return tuple(backend.empty(kept, accumulator(x.dtype), on=x) for _ in range(3))


def _affine(backend: Backend, x: Array) -> tuple[Array, Array]:
    shape, dtype = (1, *x.shape[1:3], 1), accumulator(x.dtype)
    return backend.empty(shape, dtype, on=x), backend.empty(shape, dtype, on=x)


# --- Element by element -------------------------------------------------------------------------------------------


def masked(backend: Backend, values: Array, mask: Array) -> Results:
    y = backend.xp.empty_like(values)
    backend.masked(values, mask, y)
    return (y,)


def copy(backend: Backend, x: Array, dtype: Any, channels_last: bool) -> Results:
    n, c, p = x.shape
    y = backend.empty((n, p, c), dtype, on=x).swapaxes(1, 2) if channels_last else backend.empty((n, c, p), dtype, on=x)
    backend.copy(x, y)
    return (y,)


def bias_activation(
    backend: Backend, x: Array, bias: Array | None, residual: Array | None, activation: str, negative_slope: float
) -> Results:
    y = backend.empty_like(tuple(x.shape), x.dtype, x)
    backend.bias_activation(x, bias, y, Epilogue(residual, activation, negative_slope))
    return (y,)


def bias_activation_backward(
    backend: Backend, grad_y: Array, y: Array, activation: str, negative_slope: float
) -> Results:
    grad_x = backend.empty_like(tuple(grad_y.shape), grad_y.dtype, grad_y)
    grad_bias = backend.empty(tuple(grad_y.shape[1:2]), grad_y.dtype, on=grad_y)
    backend.bias_activation_backward(grad_y, y, grad_x, grad_bias, Epilogue(None, activation, negative_slope))
    return grad_x, grad_bias


def channel_sums(backend: Backend, x: Array) -> Results:
    sums = backend.empty(tuple(x.shape[1:2]), x.dtype, on=x)
    backend.channel_sums(x, sums)
    return (sums,)
