"""Calls of a backend's primitives that make the arrays their results go to."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from gpucnn.backends.base import Backend
from gpucnn.geometry import ConvGeometry, InterpolationGeometry, PoolGeometry

Array = Any
Results = tuple[Array, ...]


def run(backend: Backend, primitive: str, *arguments: Any) -> Results:
    """What `primitive` makes of its arguments but for the results, which are new arrays."""
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
