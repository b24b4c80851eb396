"""The norms on the GPU: reductions over x seen as [N, G, C, P], and elementwise steps with their results.

The kernels see x's axes in the order in which they lie in memory, so channels-last images and any other view are read
in the same way as channels-first ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING

from gpucnn.backends.cuda import select
from gpucnn.backends.cuda.launching import Fields, launch, strides
from gpucnn.backends.cuda.runtime import Array, Runtime
from gpucnn.backends.cuda.sources import Kernel
from gpucnn.backends.dtypes import accumulator
from gpucnn.geometry import NormGeometry

if TYPE_CHECKING:
    from gpucnn.backends.cuda import CudaBackend

STATISTICS = Kernel("norm_statistics", "NormSumParams")
STATISTICS_COMBINE = Kernel("norm_statistics", "NormSumParams", "norm_statistics_combine", block=32)
BACKWARD_SUMS = Kernel("norm_backward_sums", "NormSumParams")
BACKWARD_SUMS_COMBINE = Kernel("norm_backward_sums", "NormSumParams", "norm_backward_sums_combine", block=32)
APPLY = Kernel("norm_apply", "NormParams")
BACKWARD_APPLY = Kernel("norm_backward_apply", "NormParams")

Axes = tuple[int, ...]


# --- What the kernels are told ------------------------------------------------------------------------------------


def memory_order(x: Array) -> Axes:
    """The axes of x from the outermost to the innermost in memory; axes of size 1 come last."""
    return tuple(sorted(range(x.ndim), key=lambda axis: (x.shape[axis] == 1, -abs(x.strides[axis]))))


def _steps(order: Axes, **arrays: Array | None) -> Fields:
    """The strides of each array [N, G, C, P] as the fields ``name_0`` to ``name_3``, axes in `order`."""
    numbers = [str(order.index(axis)) for axis in range(len(order))]
    fields: Fields = {}
    for name, array in arrays.items():
        fields |= strides(name, numbers, array)
    return fields


def _sizes(prefix: str, shape: Sequence[int], order: Axes) -> Fields:
    """The fields ``prefix_1`` to ``prefix_3``."""
    return {f"{prefix}_{number}": shape[axis] for number, axis in enumerate(order) if number}


@lru_cache(maxsize=1024)
def reduction(shape: Axes, order: Axes, axes: Axes) -> Fields:
    """The fields of NormSumParams that follow from the shape of x, its axes in memory order and the reduced axes.

    Examples
    --------
    >>> batch = reduction((8, 64, 1, 3136), (0, 1, 3, 2), axes=(0, 2, 3))
    >>> [batch[name] for name in ("kept", "reduced", "lanes", "splits", "run")]
    [64, 25088, 1, 6, 4182]
    >>> channels_last = reduction((8, 64, 1, 3136), (0, 3, 1, 2), axes=(0, 2, 3))
    >>> [channels_last[name] for name in ("kept", "reduced", "lanes", "splits", "run")]
    [64, 25088, 32, 196, 128]
    """
    kept_sizes = [1 if axis in axes else size for axis, size in enumerate(shape)]
    reduced_sizes = [size if axis in axes else 1 for axis, size in enumerate(shape)]
    kept, reduced = prod(kept_sizes), prod(reduced_sizes)
    lanes = _lanes(shape, order, axes)
    splits = select.norm_splits(-(-kept // lanes), reduced * lanes)
    run = max(1, -(-reduced // splits))
    return {
        "kept": kept,
        "reduced": reduced,
        **_sizes("kept", kept_sizes, order),
        **_sizes("reduced", reduced_sizes, order),
        "lanes": lanes,
        "splits": max(1, -(-reduced // run)),  # none of them empty
        "run": run,
    }


def _lanes(shape: Axes, order: Axes, axes: Axes) -> int:
    """How many sums lie side by side in memory: the least power of two that holds them, at most 32."""
    neighbours = 1
    for axis in reversed(order):
        if axis in axes and shape[axis] > 1:
            break
        neighbours *= 1 if axis in axes else shape[axis]
    return min(32, select.power_of_two(neighbours))


# --- Launches -----------------------------------------------------------------------------------------------------


def _reduce(
    runtime: Runtime,
    kernels: tuple[Kernel, Kernel],
    fields: Fields,
    arrays: Sequence[Array | None],
    results: tuple[Array, Array],
    part_values: int,
) -> None:
    """Launch a reduction of `arrays` (x or grad_y first) to `results`: in one go, or parts and then their combination.

    `part_values` is how many values a part of a sum leaves for the second kernel.
    """
    whole, combine = kernels
    x = arrays[0]
    assert x is not None
    kept, lanes, splits, run = (fields[name] for name in ("kept", "lanes", "splits", "run"))
    whole = replace(whole, block=select.norm_block(lanes * run))
    parts = None if splits == 1 else runtime.xp.empty((part_values, splits, kept), results[0].dtype)
    launch(
        runtime,
        whole,
        x.dtype,
        fields,
        (*arrays, parts, *results),
        blocks=-(-kept // lanes) * splits,
        extents=(fields["reduced"] + run + whole.block, kept + lanes),
    )
    if parts is not None:
        launch(runtime, combine, x.dtype, fields, (parts, *results), blocks=kept, extents=(splits + combine.block,))


def _backward_sums(
    runtime: Runtime,
    grad_y: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None,
    axes: Axes,
    divisor: int,
) -> tuple[Array, Array]:
    """Sums over `axes` of ``g = grad_y * weight`` and of ``g * (x - mean) * rstd``, each over `divisor`."""
    shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    sum_g, sum_gh = (runtime.xp.empty(shape, mean.dtype) for _ in range(2))
    order = memory_order(x)
    fields = {
        **reduction(tuple(x.shape), order, axes),
        **_steps(order, x=x, y=grad_y, mean=mean, rstd=rstd, weight=weight, sum=sum_g),
        "divisor": divisor,
    }
    arrays = (grad_y, x, mean, rstd, weight)
    _reduce(runtime, (BACKWARD_SUMS, BACKWARD_SUMS_COMBINE), fields, arrays, (sum_g, sum_gh), part_values=2)
    return sum_g, sum_gh


def _elementwise(z: Array, **arrays: Array | None) -> Fields:
    """The fields of NormParams for one element of z a thread, in z's memory order."""
    order = memory_order(z)
    absent = dict.fromkeys(("x", "y", "mean", "rstd", "weight", "bias", "sum"))
    return {"count": z.size, **_sizes("size", z.shape, order), **_steps(order, **(absent | arrays), z=z)}


# --- Primitives ---------------------------------------------------------------------------------------------------


def norm_statistics(backend: CudaBackend, x: Array, geometry: NormGeometry) -> tuple[Array, Array]:
    """Mean and biased variance over ``geometry.axes``, as axes of size 1."""
    xp = backend.runtime.xp
    shape = [1 if axis in geometry.axes else size for axis, size in enumerate(x.shape)]
    mean, var = (xp.empty(shape, accumulator(x.dtype)) for _ in range(2))
    order = memory_order(x)
    fields = {
        **reduction(tuple(x.shape), order, geometry.axes),
        **_steps(order, x=x, y=None, mean=None, rstd=None, weight=None, sum=mean),
        "divisor": 1,
    }
    _reduce(backend.runtime, (STATISTICS, STATISTICS_COMBINE), fields, (x,), (mean, var), part_values=3)
    return mean, var


def norm_apply(
    backend: CudaBackend, x: Array, mean: Array, rstd: Array, weight: Array | None, bias: Array | None
) -> Array:
    """``(x - mean) * rstd * weight + bias``, in the dtype and memory order of x."""
    y = backend.runtime.xp.empty_like(x)
    fields = _elementwise(y, x=x, mean=mean, rstd=rstd, weight=weight, bias=bias)
    launch(backend.runtime, APPLY, x.dtype, fields, (x, mean, rstd, weight, bias, y), threads=y.size)
    return y


def norm_backward_affine(
    backend: CudaBackend, grad_y: Array, x: Array, mean: Array, rstd: Array, geometry: NormGeometry
) -> tuple[Array, Array]:
    """Gradients of weight and bias, [1, G, C, 1]."""
    axes = geometry.affine_axes
    grad_bias, grad_weight = _backward_sums(backend.runtime, grad_y, x, mean, rstd, None, axes, divisor=1)
    return grad_weight, grad_bias


def norm_backward_input(
    backend: CudaBackend,
    grad_y: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None,
    geometry: NormGeometry,
) -> Array:
    """grad_x by the closed form, in the memory order of x."""
    runtime = backend.runtime
    count = max(1, geometry.count)  # an empty batch has none
    mean_g, mean_gh = _backward_sums(runtime, grad_y, x, mean, rstd, weight, geometry.axes, divisor=count)
    grad_x = runtime.xp.empty_like(x)
    fields = _elementwise(grad_x, x=x, y=grad_y, mean=mean, rstd=rstd, weight=weight, sum=mean_g)
    arrays = (grad_y, x, mean, rstd, weight, mean_g, mean_gh, grad_x)
    launch(runtime, BACKWARD_APPLY, x.dtype, fields, arrays, threads=grad_x.size)
    return grad_x
