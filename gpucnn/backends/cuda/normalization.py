"""The norms on the GPU: reductions over x seen as [N, G, C, P], and elementwise steps with their results.

The kernels see x's axes in the order in which they lie in memory, so channels-last images and any other view are read
in the same way as channels-first ones.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING

from gpucnn.backends.cuda import select
from gpucnn.backends.cuda.launching import Fields, Layout, Work, launch, layout, strides
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


def memory_order(x: Array | Layout) -> Axes:
    """The axes of x from the outermost to the innermost in memory; axes of size 1 come last."""
    return tuple(sorted(range(x.ndim), key=lambda axis: (x.shape[axis] == 1, -abs(x.strides[axis]))))


def _steps(order: Axes, **arrays: Layout | None) -> Fields:
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


# --- Sums ---------------------------------------------------------------------------------------------------------


def _sums(
    runtime: Runtime,
    kernels: tuple[Kernel, Kernel],
    works: tuple[Callable[..., Work], Callable[..., Work]],
    arrays: tuple[Array | None, ...],
    results: tuple[Array, Array],
    x: Array,
    part_values: int,
    facts: tuple[Hashable, ...],
) -> None:
    """Launch a reduction of `arrays` to `results`: in one go, or parts of them and then their combination.

    `part_values` is how many values a part of a sum leaves for the second kernel. `facts` begin with the axes that are
    reduced.
    """
    (axes, *_) = facts
    fields = reduction(tuple(x.shape), memory_order(x), axes)
    splits, kept = fields["splits"], fields["kept"]
    parts = None if splits == 1 else runtime.xp.empty((part_values, splits, kept), results[0].dtype)
    launch(runtime, kernels[0], x.dtype, (*arrays, parts, *results), works[0], *facts)
    if parts is not None:
        given = tuple(None if array is None else layout(array) for array in arrays)
        launch(runtime, kernels[1], x.dtype, (parts, *results), works[1], given, *facts)


def _parts_work(fields: Fields) -> Work:
    """A block for each part of `lanes` neighbouring sums."""
    kept, lanes, splits, run = (fields[name] for name in ("kept", "lanes", "splits", "run"))
    block = select.norm_block(lanes * run)
    extents = (fields["reduced"] + run + block, kept + lanes)
    return Work(fields, blocks=-(-kept // lanes) * splits, block=block, extents=extents)


def _combine_work(fields: Fields) -> Work:
    """A block for each sum."""
    return Work(fields, blocks=fields["kept"], extents=(fields["splits"] + STATISTICS_COMBINE.block,))


def _statistics_fields(x: Layout, mean: Layout, axes: Axes) -> Fields:
    order = memory_order(x)
    absent = dict.fromkeys(("y", "mean", "rstd", "weight"))
    return {**reduction(x.shape, order, axes), **_steps(order, x=x, **absent, sum=mean), "divisor": 1}


def _statistics_work(x: Layout, parts: Layout | None, mean: Layout, var: Layout, axes: Axes) -> Work:
    return _parts_work(_statistics_fields(x, mean, axes))


def _statistics_combine_work(parts: Layout, mean: Layout, var: Layout, arrays: tuple[Layout], axes: Axes) -> Work:
    (x,) = arrays
    return _combine_work(_statistics_fields(x, mean, axes))


Given = tuple[Layout, Layout, Layout, Layout, Layout | None]  # grad_y, x, mean, rstd, weight


def _backward_fields(arrays: Given, sums: Layout, axes: Axes, divisor: int) -> Fields:
    grad_y, x, mean, rstd, weight = arrays
    order = memory_order(x)
    steps = _steps(order, x=x, y=grad_y, mean=mean, rstd=rstd, weight=weight, sum=sums)
    return {**reduction(x.shape, order, axes), **steps, "divisor": divisor}


def _backward_sums_work(
    grad_y: Layout,
    x: Layout,
    mean: Layout,
    rstd: Layout,
    weight: Layout | None,
    parts: Layout | None,
    sum_g: Layout,
    sum_gh: Layout,
    axes: Axes,
    divisor: int,
) -> Work:
    return _parts_work(_backward_fields((grad_y, x, mean, rstd, weight), sum_g, axes, divisor))


def _backward_combine_work(
    parts: Layout, sum_g: Layout, sum_gh: Layout, arrays: Given, axes: Axes, divisor: int
) -> Work:
    return _combine_work(_backward_fields(arrays, sum_g, axes, divisor))


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
    _sums(
        runtime,
        (BACKWARD_SUMS, BACKWARD_SUMS_COMBINE),
        (_backward_sums_work, _backward_combine_work),
        (grad_y, x, mean, rstd, weight),
        (sum_g, sum_gh),
        x,
        part_values=2,
        facts=(axes, divisor),
    )
    return sum_g, sum_gh


# --- Element by element -------------------------------------------------------------------------------------------


def _elementwise_work(z: Layout, **arrays: Layout | None) -> Work:
    """One element of z a thread, in z's memory order."""
    order = memory_order(z)
    absent = dict.fromkeys(("x", "y", "mean", "rstd", "weight", "bias", "sum"))
    fields = {"count": z.size, **_sizes("size", z.shape, order), **_steps(order, **(absent | arrays), z=z)}
    return Work(fields, z.size)


def _apply_work(x: Layout, mean: Layout, rstd: Layout, weight: Layout | None, bias: Layout | None, y: Layout) -> Work:
    return _elementwise_work(y, x=x, mean=mean, rstd=rstd, weight=weight, bias=bias)


def _backward_apply_work(
    grad_y: Layout,
    x: Layout,
    mean: Layout,
    rstd: Layout,
    weight: Layout | None,
    mean_g: Layout,
    mean_gh: Layout,
    grad_x: Layout,
) -> Work:
    return _elementwise_work(grad_x, x=x, y=grad_y, mean=mean, rstd=rstd, weight=weight, sum=mean_g)


# --- Primitives ---------------------------------------------------------------------------------------------------


def norm_statistics(backend: CudaBackend, x: Array, geometry: NormGeometry) -> tuple[Array, Array]:
    """Mean and biased variance over ``geometry.axes``, as axes of size 1."""
    runtime = backend.runtime
    shape = [1 if axis in geometry.axes else size for axis, size in enumerate(x.shape)]
    mean, var = (runtime.xp.empty(shape, accumulator(x.dtype)) for _ in range(2))
    _sums(
        runtime,
        (STATISTICS, STATISTICS_COMBINE),
        (_statistics_work, _statistics_combine_work),
        (x,),
        (mean, var),
        x,
        part_values=3,
        facts=(geometry.axes,),
    )
    return mean, var


def norm_apply(
    backend: CudaBackend, x: Array, mean: Array, rstd: Array, weight: Array | None, bias: Array | None
) -> Array:
    """``(x - mean) * rstd * weight + bias``, in the dtype and memory order of x."""
    y = backend.runtime.xp.empty_like(x)
    launch(backend.runtime, APPLY, x.dtype, (x, mean, rstd, weight, bias, y), _apply_work)
    return y


def norm_forward(
    backend: CudaBackend, x: Array, weight: Array | None, bias: Array | None, geometry: NormGeometry, eps: float
) -> tuple[Array, Array, Array]:
    """Output by x's own statistics, and these: mean and biased variance."""
    mean, var = norm_statistics(backend, x, geometry)
    rstd = 1 / backend.runtime.xp.sqrt(var + eps)
    return norm_apply(backend, x, mean, rstd, weight, bias), mean, var


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
    arrays = (grad_y, x, mean, rstd, weight, mean_g, mean_gh, grad_x)
    launch(runtime, BACKWARD_APPLY, x.dtype, arrays, _backward_apply_work)
    return grad_x


def norm_backward(
    backend: CudaBackend,
    grad_y: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None,
    geometry: NormGeometry,
) -> tuple[Array, Array, Array]:
    """Gradients of x, weight and bias."""
    grad_x = norm_backward_input(backend, grad_y, x, mean, rstd, weight, geometry)
    return grad_x, *norm_backward_affine(backend, grad_y, x, mean, rstd, geometry)
