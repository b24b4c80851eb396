"""Pooling on the GPU, and the ways back by index: gathers, so that each result is one thread's and always the same."""

from __future__ import annotations

from math import gcd, prod
from typing import TYPE_CHECKING

import numpy as np

from gpucnn.backends.cuda.launching import INT32_END, Fields, Layout, Work, empty, launch, layout, strides
from gpucnn.backends.cuda.runtime import Array
from gpucnn.backends.cuda.sources import Kernel
from gpucnn.backends.layout import is_channels_last
from gpucnn.geometry import AdaptiveAxis, Axis, PoolGeometry
from gpucnn.geometry.geometries import Divisor

if TYPE_CHECKING:
    from gpucnn.backends.cuda import CudaBackend

MAX_POOL = Kernel("max_pool", "PoolParams")
MAX_POOL_WITH_INDICES = Kernel("max_pool", "PoolParams", function="max_pool_with_indices")
FIND_STRAYS = Kernel("max_pool_backward", "PoolParams", function="find_strays")
MAX_POOL_BACKWARD = Kernel("max_pool_backward", "PoolParams")
AVERAGE_POOL = Kernel("average_pool", "PoolParams")
AVERAGE_POOL_BACKWARD = Kernel("average_pool_backward", "PoolParams")
UNPOOL_CLAIM = Kernel("unpool", "PlaneParams", function="unpool_claim")
UNPOOL = Kernel("unpool", "PlaneParams")
GATHER = Kernel("gather", "PlaneParams")

SPACE = ("d", "h", "w")
IMAGE = ("n", "c", *SPACE)
DIVIDES = {"none": 0, "padded": 1, "valid": 2}  # the DIVIDES_… of pooling.cuh
DIVIDES_NUMBER = 3


# --- What the kernels are told ------------------------------------------------------------------------------------


def _pool_fields(
    geometry: PoolGeometry, x: Layout, y: Layout, indices: Layout | None = None, *, written: Layout
) -> Fields:
    """The fields of PoolParams for x [N, C, D, H, W], y and indices [N, C, OD, OH, OW]."""
    fields: Fields = {"n": x.shape[0], "c": x.shape[1]}
    for name, axis in zip(SPACE, geometry.axes, strict=True):
        fields |= _axis_fields(name, axis)
    fields |= {**strides("x", IMAGE, x), **strides("y", IMAGE, y), **strides("at", IMAGE, indices)}
    return {**fields, **_divisor_fields(geometry.divisor), "channels_last": int(is_channels_last(written))}


def _axis_fields(name: str, axis: Axis | AdaptiveAxis) -> Fields:
    adaptive = isinstance(axis, AdaptiveAxis)
    window = Axis(axis.size, out=axis.out) if isinstance(axis, AdaptiveAxis) else axis
    return {
        name: window.size,
        f"o{name}": window.out,
        f"adaptive_{name}": int(adaptive),
        f"k{name}": window.kernel,
        f"stride_{name}": window.stride,
        f"dilation_{name}": window.dilation,
        f"low_{name}": window.low,
        f"high_{name}": window.high,
        f"output_step_{name}": window.dilation // gcd(window.stride, window.dilation),
    }


def _divisor_fields(divisor: Divisor) -> Fields:
    if isinstance(divisor, str):
        return {"divides": DIVIDES[divisor], "divisor": 1.0}
    return {"divides": DIVIDES_NUMBER, "divisor": float(divisor)}


def _extents(geometry: PoolGeometry) -> tuple[int, ...]:
    """Bounds of the numbers that index arithmetic meets: along each axis, positions in a plane, taps of a window."""
    sliding = [axis for axis in geometry.axes if isinstance(axis, Axis)]
    return (
        *(
            axis.size + axis.low + axis.high + (axis.out + 1) * axis.stride + (axis.kernel + 1) * axis.dilation
            for axis in sliding
        ),
        prod(geometry.input_size),
        prod(axis.kernel for axis in sliding),
    )


def _plane_fields(values: Layout, planes: Layout, indices: Layout, *, written: Layout) -> Fields:
    """The fields of PlaneParams for values and indices [N, C, D, H, W] and planes [N, C, PD, PH, PW]."""
    return {
        **dict(zip(IMAGE, values.shape, strict=True)),
        **dict(zip(("pd", "ph", "pw"), planes.shape[2:], strict=True)),
        **strides("values", IMAGE, values),
        **strides("planes", IMAGE, planes),
        **strides("at", IMAGE, indices),
        "channels_last": int(is_channels_last(written)),
    }


def _int64(indices: Array) -> Array:
    """Indices as the kernels read them; callers may give any integers."""
    return indices.astype(np.int64, copy=False)


# --- Maximum ------------------------------------------------------------------------------------------------------


def max_pool(backend: CudaBackend, x: Array, geometry: PoolGeometry) -> Array:
    """Y [N, C, OD, OH, OW], NaN where a window holds one."""
    y = empty(backend.runtime, (*x.shape[:2], *geometry.output_size), x.dtype, like=x)
    launch(backend.runtime, MAX_POOL, x.dtype, (x, y), _forward_work, geometry)
    return y


def _forward_work(x: Layout, y: Layout, geometry: PoolGeometry) -> Work:
    return Work(_pool_fields(geometry, x, y, written=y), y.size, extents=_extents(geometry))


def max_pool_with_indices(backend: CudaBackend, x: Array, geometry: PoolGeometry) -> tuple[Array, Array]:
    """Y and indices [N, C, OD, OH, OW]; the first of equal maxima, the last of NaNs."""
    runtime = backend.runtime
    y = empty(runtime, (*x.shape[:2], *geometry.output_size), x.dtype, like=x)
    indices = empty(runtime, y.shape, np.int64, like=x)
    launch(runtime, MAX_POOL_WITH_INDICES, x.dtype, (x, y, indices), _with_indices_work, geometry)
    return y, indices


def _with_indices_work(x: Layout, y: Layout, indices: Layout, geometry: PoolGeometry) -> Work:
    return Work(_pool_fields(geometry, x, y, indices, written=y), y.size, extents=_extents(geometry))


def max_pool_backward(backend: CudaBackend, grad_y: Array, indices: Array, geometry: PoolGeometry) -> Array:
    """grad_x [N, C, D, H, W]: first which planes hold indices that stray from their windows, then the sums."""
    runtime = backend.runtime
    indices = _int64(indices)
    grad_x = empty(runtime, (*grad_y.shape[:2], *geometry.input_size), grad_y.dtype, like=grad_y)
    strays = runtime.xp.zeros(grad_y.shape[:2], np.int32)
    facts = (layout(grad_y), layout(grad_x), geometry)
    launch(runtime, FIND_STRAYS, indices.dtype, (indices, strays), _strays_work, *facts)
    launch(runtime, MAX_POOL_BACKWARD, grad_y.dtype, (grad_y, indices, strays, grad_x), _max_backward_work, geometry)
    return grad_x


def _strays_work(indices: Layout, strays: Layout, grad_y: Layout, grad_x: Layout, geometry: PoolGeometry) -> Work:
    return Work(
        _pool_fields(geometry, grad_x, grad_y, indices, written=grad_x), indices.size, extents=_extents(geometry)
    )


def _max_backward_work(grad_y: Layout, indices: Layout, strays: Layout, grad_x: Layout, geometry: PoolGeometry) -> Work:
    return Work(
        _pool_fields(geometry, grad_x, grad_y, indices, written=grad_x), grad_x.size, extents=_extents(geometry)
    )


# --- Average and sum ----------------------------------------------------------------------------------------------


def average_pool(backend: CudaBackend, x: Array, geometry: PoolGeometry) -> Array:
    """Y [N, C, OD, OH, OW]: each window's sum over its divisor."""
    y = empty(backend.runtime, (*x.shape[:2], *geometry.output_size), x.dtype, like=x)
    launch(backend.runtime, AVERAGE_POOL, x.dtype, (x, y), _forward_work, geometry)
    return y


def average_pool_backward(backend: CudaBackend, grad_y: Array, geometry: PoolGeometry) -> Array:
    """grad_x [N, C, D, H, W]: each input's sum over its windows, each over its divisor."""
    runtime = backend.runtime
    grad_x = empty(runtime, (*grad_y.shape[:2], *geometry.input_size), grad_y.dtype, like=grad_y)
    launch(runtime, AVERAGE_POOL_BACKWARD, grad_y.dtype, (grad_y, grad_x), _average_backward_work, geometry)
    return grad_x


def _average_backward_work(grad_y: Layout, grad_x: Layout, geometry: PoolGeometry) -> Work:
    return Work(_pool_fields(geometry, grad_x, grad_y, written=grad_x), grad_x.size, extents=_extents(geometry))


# --- By index -----------------------------------------------------------------------------------------------------


def unpool(backend: CudaBackend, values: Array, indices: Array, size: tuple[int, int, int]) -> Array:
    """Planes [N, C, *size] with values put where indices say; of values with one index the last stays.

    Raises
    ------
    ValueError
        A plane holds 2**31 values or more.
    """
    runtime = backend.runtime
    if prod(values.shape[2:]) >= INT32_END:
        raise ValueError(f"unpool: values has planes of {prod(values.shape[2:])} values, expected less than 2**31")
    indices = _int64(indices)
    planes = empty(runtime, (*values.shape[:2], *size), values.dtype, like=values)
    owners = empty(runtime, planes.shape, np.int32, like=values)
    owners.fill(-1)
    launch(runtime, UNPOOL_CLAIM, indices.dtype, (indices, owners), _claim_work, layout(values), layout(planes))
    launch(runtime, UNPOOL, values.dtype, (values, owners, planes), _unpool_work, layout(indices))
    return planes


def _claim_work(indices: Layout, owners: Layout, values: Layout, planes: Layout) -> Work:
    fields = _plane_fields(values, planes, indices, written=planes)
    return Work(fields, values.size, extents=(prod(planes.shape[2:]),))


def _unpool_work(values: Layout, owners: Layout, planes: Layout, indices: Layout) -> Work:
    fields = _plane_fields(values, planes, indices, written=planes)
    return Work(fields, planes.size, extents=(prod(planes.shape[2:]),))


def gather(backend: CudaBackend, planes: Array, indices: Array) -> Array:
    """The values [N, C, D, H, W] that indices point at in planes; 0 where an index is -1."""
    indices = _int64(indices)
    values = empty(backend.runtime, indices.shape, planes.dtype, like=planes)
    launch(backend.runtime, GATHER, planes.dtype, (planes, indices, values), _gather_work)
    return values


def _gather_work(planes: Layout, indices: Layout, values: Layout) -> Work:
    fields = _plane_fields(values, planes, indices, written=values)
    return Work(fields, values.size, extents=(prod(planes.shape[2:]),))
