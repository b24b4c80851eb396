"""Statistics, application and gradients of the norms, over x seen as [N, G, C, P] (see `NormGeometry`).

A task sees arrays [A, B, C, N, P] with statistics [A, B, 1, 1, 1]: those of a batch norm are [G, 1, C, N, P], those of
the others [N, G, C, 1, P]. Threads take blocks with all values of some statistics.

Runs of values are summed in their dtype, and the sums of runs in float64. Where a mean is more than `FAR` deviations
away from zero it is subtracted first: variances and results are as exact with a large mean as without one. Where
squares leave the range of the dtype, as those of float32 values beyond 1e19 do, the sums are recomputed from values
scaled by a power of two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from gpucnn.backends.base import Epilogue
from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.layout import channels_are_inner
from gpucnn.backends.numpy import memory, threads
from gpucnn.backends.numpy.elementwise import activate, activation_backward, computed
from gpucnn.backends.numpy.memory import Array
from gpucnn.geometry import NormGeometry

BLOCK_VALUES = 1 << 19  # of a block, unless a statistic has more: with fewer, threads wait for the interpreter's lock
FAR = 2.0  # deviations; a variance about zero has at most 1 + FAR**2 times the rounding of one about the mean
LANES = 512  # least channels of a block where they are innermost: shorter loops take several times as long
RUN = 128  # values that are summed in the dtype of x

BATCH, ROW = (0, 2, 3), (2, 3)


# --- Primitives ---------------------------------------------------------------------------------------------------


def norm_statistics(x: Array, mean: Array, var: Array, rstd: Array, geometry: NormGeometry, eps: float) -> None:
    """Mean, biased variance and ``1 / sqrt(var + eps)`` over ``geometry.axes``, as axes of size 1."""

    def task(x: Array, mean: Array, var: Array, rstd: Array) -> None:
        _statistics(_rows(x, mean.dtype, "norm x"), mean, var, rstd, geometry.centred, eps)

    _in_blocks(task, x, mean, x, mean, var, rstd)


def norm_apply(
    x: Array,
    mean: Array,
    var: Array,
    weight: Array | None,
    bias: Array | None,
    y: Array,
    eps: float,
    epilogue: Epilogue,
) -> None:
    """Y = epilogue of ``(x - mean) / sqrt(var + eps) * weight + bias``."""

    def task(x: Array, mean: Array, var: Array, weight: Any, bias: Any, y: Array, residual: Any) -> None:
        rstd = 1 / np.sqrt(var + eps)
        _apply(_rows(x, mean.dtype, "norm x"), mean, rstd, weight, bias, y, replace(epilogue, residual=residual))

    _in_blocks(task, x, x, x, mean, var, weight, bias, y, epilogue.residual)


def norm_forward(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    y: Array,
    mean: Array,
    var: Array,
    rstd: Array,
    geometry: NormGeometry,
    eps: float,
    epilogue: Epilogue,
) -> None:
    """As `norm_apply` with x's own statistics, which are returned too: mean, variance, rstd."""

    def task(x: Array, mean: Array, var: Array, rstd: Array, weight: Any, bias: Any, y: Array, residual: Any) -> None:
        rows = _rows(x, mean.dtype, "norm x")
        _statistics(rows, mean, var, rstd, geometry.centred, eps)
        _apply(rows, mean, rstd, weight, bias, y, replace(epilogue, residual=residual))

    _in_blocks(task, x, mean, x, mean, var, rstd, weight, bias, y, epilogue.residual)


def norm_activation_backward(
    grad_y: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None,
    bias: Array | None,
    grad: Array,
    epilogue: Epilogue,
) -> None:
    """Grad = the gradient with respect to the activation's input, whose signs are recomputed."""
    wide = accumulator(x.dtype)
    signs = (x.astype(wide, copy=False) - mean) * rstd
    if weight is not None:
        signs *= weight
    if bias is not None:
        signs += bias
    if epilogue.residual is not None:
        signs += epilogue.residual.astype(wide, copy=False)
    with computed(grad) as result:
        activation_backward(grad_y, signs, result, epilogue)


def norm_backward(
    grad_y: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None,
    grad_x: Array | None,
    grad_weight: Array | None,
    grad_bias: Array | None,
    geometry: NormGeometry,
) -> None:
    """Gradients of weight and bias, and grad_x by the closed form, with g = grad_y * weight and h = (x - mean) * rstd:

    ``grad_x = rstd * (g - mean(g) - h * mean(g * h))``: the contributions through mean and variance are subtracted.
    Without a mean there is no mean(g).
    """

    def task(grad_y: Array, x: Array, mean: Array, rstd: Array, weight: Any, grad_x: Any) -> tuple[Array, ...]:
        grad = _rows(grad_y, mean.dtype, "norm grad")
        values, centre, scale = _centred(_rows(x, mean.dtype, "norm x"), mean, rstd)  # h = (values - centre) * scale
        sum_g, sum_gh = _channel_sums(grad), _channel_sums(grad, values)
        sum_gh -= np.multiply(sum_g, centre, out=_scratch("norm g", sum_g))
        sum_gh *= scale
        if grad_x is not None:
            mean_gh, mean_g = (_weighted(sums, weight) / geometry.count for sums in (sum_gh, sum_g))
            slope = -rstd * scale * mean_gh
            shift = -slope * centre - (rstd * mean_g if geometry.centred else 0)
            with _written(grad_x, grad) as out:
                np.multiply(values, slope.astype(mean.dtype), out=out)
                out += shift.astype(mean.dtype)
                g = np.multiply(grad, 1 if weight is None else weight, out=_scratch("norm g", grad))
                g *= rstd  # last, as in the shift: a gradient that is its own mean leaves 0
                out += g
        return tuple(_over_rows(sums) if by_row else sums.astype(np.float64) for sums in (sum_gh, sum_g))

    by_row = len(mean) == len(x)
    totals = [np.zeros((1, *x.shape[1:3], 1)) for _ in range(2)]
    for part, sums in _in_blocks(task, x, mean, grad_y, x, mean, rstd, weight, grad_x):
        for total, values in zip(totals, sums, strict=True):
            part(total)[...] += values
    for array, total in zip((grad_weight, grad_bias), totals, strict=True):
        if array is not None:
            array[...] = total


def moving_average(found: Array, average: Array, factor: float, momentum: float) -> None:
    """Average [C] = ``(1 - momentum) * average + momentum * mean``, where that is the mean over N of found * factor."""
    mean = (found * factor).mean(axis=(0, 2, 3))
    average[...] = (1 - momentum) * average.astype(mean.dtype, copy=False) + momentum * mean


# --- Blocks -------------------------------------------------------------------------------------------------------


def _in_blocks(task: Callable[..., Any], x: Array, mean: Array, *arrays: Array | None) -> list[tuple[Any, Any]]:
    """Call `task` with the parts of `arrays` that belong to a block of `mean`, block by block.

    Returns a function from an array to its part, and the task's result, for each block.
    """
    if not x.size:
        return []
    is_batch = len(mean) != len(x)
    extents = (mean.shape[1], 1) if is_batch else mean.shape[:2]

    def of_block(block: memory.Block) -> tuple[Any, Any]:
        def part(array: Array | None) -> Any:
            if array is None:
                return None
            array = array.transpose(1, 2, 0, 3)[:, None] if is_batch else array[..., None, :]
            return array[block[0] if len(array) > 1 else slice(None), block[1]]

        return part, task(*map(part, arrays))

    least = LANES if channels_are_inner(x) or (is_batch and x.shape[3] == 1) else 1
    most = max(BLOCK_VALUES * prod(extents) // x.size, least)
    with memory.short_buffers():
        return threads.results_of(of_block, list(memory.blocks(extents, most)))


def _is_summed_fast(x: Array) -> bool:
    """Whether all is in order, or rows of P are long, or channels are innermost."""
    innermost = min(range(5), key=lambda axis: abs(x.strides[axis]) if x.shape[axis] > 1 else x.nbytes)
    is_long = x.shape[4] >= RUN and x.strides[4] == x.itemsize
    return x.flags.c_contiguous or innermost < 3 or is_long


def _rows(x: Array, dtype: np.dtype[Any], name: str) -> Array:
    """X in the dtype of sums, in an order in which sums are fast."""
    if _is_summed_fast(x):
        return x.astype(dtype, copy=False)
    copy = memory.scratch(name, x.shape, dtype)
    copy[...] = x
    return copy


@contextmanager
def _written(y: Array, like: Array) -> Iterator[Array]:
    """An array for a result: y itself, or one in the dtype and order of `like`, which is written to y at the end."""
    if y.dtype == like.dtype and _is_summed_fast(y):
        yield y
        return
    result = _scratch("norm result", like)
    yield result
    with np.errstate(over="ignore"):
        y[...] = result


def _scratch(name: str, like: Array) -> Array:
    """Scratch in the shape, dtype and memory order of another array."""
    order = sorted(range(5), key=lambda axis: -abs(like.strides[axis]))
    scratch = memory.scratch(name, [like.shape[axis] for axis in order], like.dtype)
    return scratch.transpose([order.index(axis) for axis in range(5)])


# --- Element by element, over a block ------------------------------------------------------------------------------


def _apply(
    x: Array, mean: Array, rstd: Array, weight: Array | None, bias: Array | None, y: Array, epilogue: Epilogue
) -> None:
    x, mean, rstd = _centred(x, mean, rstd)
    scale, shift = rstd, -mean * rstd
    if prod(x.shape[3:]) > 1:  # else there are as many products of rstd and weights as values
        scale = scale if weight is None else scale * weight
        shift = shift if weight is None else shift * weight
        shift, weight, bias = shift if bias is None else shift + bias, None, None
    with _written(y, x) as out:
        np.multiply(x, scale, out=out)
        out += shift
        if weight is not None:
            out *= weight
        if bias is not None:
            out += bias
        if epilogue.residual is not None:
            out += epilogue.residual.astype(out.dtype, copy=False)
        activate(out, epilogue)


def _centred(x: Array, mean: Array, rstd: Array) -> tuple[Array, Array, Array]:
    """The arguments, or with ``x - mean`` and 0 where the mean is large, and an rstd of 1 to 2 where it is far from 1.

    So sums do not cancel. x and mean are multiplied by the power of two that rstd is divided by: products of x and of
    rstd stay within the range of the dtype.
    """
    far = 2.0 ** (np.finfo(x.dtype).maxexp // 4)
    if not ((rstd * far >= 1) & (rstd <= far)).all():
        exponent = np.frexp(rstd)[1] - 1
        x, mean, rstd = np.ldexp(x, exponent), np.ldexp(mean, exponent), np.ldexp(rstd, -exponent)
    with np.errstate(over="ignore"):
        is_near = (abs(mean) * rstd <= FAR).all()
    return (x, mean, rstd) if is_near else (np.subtract(x, mean, out=_scratch("norm h", x)), np.zeros_like(mean), rstd)


# --- Sums ---------------------------------------------------------------------------------------------------------


def _sums(a: Array, b: Array | None = None) -> Array:
    """Sums over the last axis in float64, of a or of a * b."""
    whole, sums = a.shape[-1] // RUN * RUN, np.zeros(a.shape[:-1])
    operands = [a] if b is None else [a, b]
    for cut, run in (slice(whole), RUN), (slice(whole, None), a.shape[-1] - whole):
        if run:
            runs = [array[..., cut].reshape(*array.shape[:-1], -1, run) for array in operands]
            sums += np.einsum("...p->..." if b is None else "...p,...p->...", *runs).sum(axis=-1, dtype=np.float64)
    return sums


def _channel_sums(a: Array, b: Array | None = None) -> Array:
    """Sums over N and P, of a or of a * b."""
    if prod(a.shape[3:]) == 1:
        return a if b is None else np.multiply(a, b, out=_scratch("norm products", a))
    if a.shape[4] < RUN:
        shape = (*a.shape[:3], 1, -1)
        a, b = a.reshape(shape), None if b is None else b.reshape(shape)
    return np.asarray(_sums(a, b).sum(axis=3, keepdims=True)[..., None])


def _weighted(sums: Array, weight: Array | None) -> Array:
    """Sums over C of the sums of channels times their weights, as axes of size 1."""
    return _sums(sums[..., 0, 0], None if weight is None else weight[..., 0, 0])[..., None, None, None]


def _over_rows(sums: Array) -> Array:
    """Sums over A, in float64."""
    matrix = sums.reshape(len(sums), -1)
    parts = [np.ones(run.stop - run.start, sums.dtype) @ matrix[run] for run in memory.runs(len(sums), RUN)]
    return np.sum(parts, axis=0, dtype=np.float64).reshape(1, *sums.shape[1:])


def _statistics(x: Array, mean: Array, var: Array, rstd: Array, centred: bool, eps: float) -> None:
    """Write mean, biased variance and reciprocal standard deviation of x."""
    limits = np.finfo(x.dtype)
    least, most = limits.tiny / limits.eps, limits.max  # of variances whose squares have all their digits
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        centre, square = _moments(x, centred)
        found = centre, square, 1 / np.sqrt(square + eps)
        if not ((least <= square + eps) & (square + eps <= most)).all():  # also where one is NaN
            exponent = np.clip(
                -np.frexp(abs(x).max(axis=(2, 3, 4), keepdims=True))[1], -limits.maxexp, 3 * limits.maxexp // 4
            )
            centre, square = _moments(np.ldexp(x, exponent), centred)
            scale, exact = np.ldexp(1.0, exponent), np.ldexp(square, -2 * exponent)
            fits = (least <= exact + eps) & (exact + eps <= most)
            deviation = np.where(fits, np.sqrt(exact + eps), np.sqrt(square + eps * scale * scale) / scale)
            found = np.ldexp(centre, -exponent), exact, 1 / deviation
        for array, values in zip((mean, var, rstd), found, strict=True):
            array[...] = values


def _moments(x: Array, centred: bool) -> tuple[Any, Any]:
    """Mean over C, N and P, and mean square about it, in float64."""

    def mean_of(a: Array, b: Array | None = None) -> Any:
        return _weighted(_channel_sums(a, b), None) / prod(x.shape[2:])

    mean, var = mean_of(x) if centred else np.zeros((*x.shape[:2], 1, 1, 1)), mean_of(x, x)
    var -= mean * mean
    if centred and not (mean * mean <= FAR * FAR * var).all():  # also where one is NaN
        centre = mean.astype(x.dtype)
        away = np.subtract(x, centre, out=_scratch("norm h", x))
        rest = mean_of(away)  # of the mean's rounding
        mean, var = centre + rest, mean_of(away, away) - rest * rest
    return mean, np.maximum(var, 0)
