"""Average, sum, lp and adaptive average pooling, and their gradients, for 1-d to 3-d images."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from gpucnn.backends.dtypes import FLOATING, LINEAR, NUMERIC, accumulator
from gpucnn.functional._call import Array, Call, Needs, lifted, lowered, needed, pooled_shape, space_of
from gpucnn.functional._family import family, replayed_family
from gpucnn.geometry import Padding, PoolGeometry, Size
from gpucnn.geometry.arguments import boolean, integers, number
from gpucnn.geometry.geometries import Divisor, adaptive_geometry, pool_geometry

__all__ = [
    "adaptive_avg_pool1d", "adaptive_avg_pool1d_backward", "adaptive_avg_pool2d", "adaptive_avg_pool2d_backward",
    "adaptive_avg_pool3d", "adaptive_avg_pool3d_backward", "avg_pool1d", "avg_pool1d_backward", "avg_pool2d",
    "avg_pool2d_backward", "avg_pool3d", "avg_pool3d_backward", "lp_pool1d", "lp_pool1d_backward", "lp_pool2d",
    "lp_pool2d_backward", "lp_pool3d", "lp_pool3d_backward", "sum_pool1d", "sum_pool1d_backward", "sum_pool2d",
    "sum_pool2d_backward", "sum_pool3d", "sum_pool3d_backward",
]  # fmt: skip

# --- Average and sum ----------------------------------------------------------------------------------------------


def avg_pool_nd(
    rank: int,
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: float | None = None,
    dilation: Size = 1,
    *,
    out: Array | None = None,
) -> Array:
    """{n}-d average pooling: the mean under each window.

    Parameters
    ----------
    input : array [N, C, {space}] or [C, {space}]
        Floating-point or complex.
    kernel_size, stride, dilation : int or sequence of {n} int
        Size of the window, its step (the window itself where it is None), and the step of its taps.
    padding : int, sequence of {n} int or (low, high) pairs, "valid", "same" or "same_lower"
        Zeros around the image; less than the dilated window.
    ceil_mode : bool
        Round the output size up: one more window that overhangs the high end, unless it would start past the image.
        The overhang never counts in the divisor.
    count_include_pad : bool
        Divide by the taps on image and padding; else by those on the image.
    divisor_override : number, optional
        Divide by this instead.
    out : array [N, C, {out}] or [C, {out}], optional
        An array to write the result to, of any strides; it is returned.

    Returns
    -------
    array [N, C, {out}] or [C, {out}]
        In the dtype and memory order of `input`.

    Raises
    ------
    TypeError
        The dtype is not supported, or a parameter is not a number.
    ValueError
        Shapes do not fit, a parameter is out of range, or no window fits.

    See Also
    --------
    avg_pool{n}d_backward, sum_pool{n}d, gpucnn.geometry.pool_output_size

    Notes
    -----
    A window that counts no tap gives 0, never NaN. 16-bit floats accumulate in float32. PyTorch has no `dilation`, no
    pairs, allows padding up to half the window, and has `divisor_override` for 2-d and 3-d only.

    Examples
    --------
    >>> y = avg_pool{n}d(np.arange({4**n}.0).reshape(1, {4}), 2)
    >>> y.shape, float(y.mean()) == ({4**n} - 1) / 2
    ((1, {2}), True)
    """
    call = Call(f"avg_pool{rank}d", LINEAR, input=input, out=out)
    (x,) = call.arrays
    space = space_of(call.op, x.shape, rank)
    divisor = _divisor(call, count_include_pad, divisor_override)
    geometry = pool_geometry(call.op, space, kernel_size, stride, padding, dilation, ceil_mode, divisor)
    y = call.image(pooled_shape(x.shape, geometry), rank, like=x)
    call.backend.average_pool(lifted(x, rank), y, geometry)
    return call.result(lowered(y, rank, like=x))


def avg_pool_nd_backward(
    rank: int,
    grad_output: Array,
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: float | None = None,
    dilation: Size = 1,
    *,
    needs: Needs = None,
) -> tuple[Array | None]:
    """Gradient of `avg_pool{n}d`: each output's gradient is spread evenly over its window.

    Parameters
    ----------
    grad_output : array [N, C, {out}] or [C, {out}]
        Gradient of the loss with respect to the output.
    input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dilation
        As they were given to `avg_pool{n}d`.
    needs : sequence of 1 bool, optional
        Whether to compute it.

    Returns
    -------
    tuple of (array or None)
        Gradient with respect to `input`.

    Raises
    ------
    TypeError, ValueError
        As `avg_pool{n}d`, or `grad_output` does not have the output's shape.

    Examples
    --------
    >>> (grad,) = avg_pool{n}d_backward(np.ones((1, {2})), np.ones((1, {4})), 2)
    >>> grad.shape, np.unique(grad)
    ((1, {4}), array([{0.5**n}]))
    """
    call = Call(f"avg_pool{rank}d_backward", LINEAR, grad_output=grad_output, input=input)
    grad, x = call.arrays
    space = space_of(call.op, x.shape, rank)
    divisor = _divisor(call, count_include_pad, divisor_override)
    geometry = pool_geometry(call.op, space, kernel_size, stride, padding, dilation, ceil_mode, divisor)
    return _average_pool_backward(call, grad, x, geometry, needs)


def sum_pool_nd(
    rank: int,
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    dilation: Size = 1,
    *,
    out: Array | None = None,
) -> Array:
    """{n}-d sum pooling: the sum under each window.

    Parameters
    ----------
    input : array [N, C, {space}] or [C, {space}]
        Floating-point, complex or integer.
    kernel_size, stride, padding, ceil_mode, dilation
        As in `avg_pool{n}d`.
    out : array [N, C, {out}] or [C, {out}], optional
        An array to write the result to, of any strides; it is returned.

    Returns
    -------
    array [N, C, {out}] or [C, {out}]
        In the dtype and memory order of `input`.

    Raises
    ------
    TypeError
        The dtype is not supported, or a parameter is not an integer.
    ValueError
        Shapes do not fit, a parameter is out of range, or no window fits.

    See Also
    --------
    sum_pool{n}d_backward, avg_pool{n}d

    Notes
    -----
    16-bit floats accumulate in float32; integers wrap around in their own type. PyTorch has no such operation.

    Examples
    --------
    >>> y = sum_pool{n}d(np.ones((1, {4})), 2)
    >>> y.shape, np.unique(y)
    ((1, {2}), array([{2**n}.]))
    """
    call = Call(f"sum_pool{rank}d", NUMERIC, input=input, out=out)
    (x,) = call.arrays
    space = space_of(call.op, x.shape, rank)
    geometry = pool_geometry(call.op, space, kernel_size, stride, padding, dilation, ceil_mode)
    y = call.image(pooled_shape(x.shape, geometry), rank, like=x)
    call.backend.average_pool(lifted(x, rank), y, geometry)
    return call.result(lowered(y, rank, like=x))


def sum_pool_nd_backward(
    rank: int,
    grad_output: Array,
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    dilation: Size = 1,
    *,
    needs: Needs = None,
) -> tuple[Array | None]:
    """Gradient of `sum_pool{n}d`: each output's gradient goes to all of its window.

    Parameters
    ----------
    grad_output : array [N, C, {out}] or [C, {out}]
        Gradient of the loss with respect to the output.
    input, kernel_size, stride, padding, ceil_mode, dilation
        As they were given to `sum_pool{n}d`.
    needs : sequence of 1 bool, optional
        Whether to compute it.

    Returns
    -------
    tuple of (array or None)
        Gradient with respect to `input`.

    Raises
    ------
    TypeError, ValueError
        As `sum_pool{n}d`, or `grad_output` does not have the output's shape.

    Examples
    --------
    >>> (grad,) = sum_pool{n}d_backward(np.ones((1, {2})), np.ones((1, {4})), 2)
    >>> grad.shape, np.unique(grad)
    ((1, {4}), array([1.]))
    """
    call = Call(f"sum_pool{rank}d_backward", NUMERIC, grad_output=grad_output, input=input)
    grad, x = call.arrays
    space = space_of(call.op, x.shape, rank)
    geometry = pool_geometry(call.op, space, kernel_size, stride, padding, dilation, ceil_mode)
    return _average_pool_backward(call, grad, x, geometry, needs)


def adaptive_avg_pool_nd(rank: int, input: Array, output_size: Any, *, out: Array | None = None) -> Array:
    """{n}-d average pooling over a given number of windows.

    Parameters
    ----------
    input : array [N, C, {space}] or [C, {space}]
        Floating-point or complex.
    output_size : int, None, or sequence of {n} of them
        Size of the output; None keeps an axis as it is.
    out : array [N, C, {out}] or [C, {out}], optional
        An array to write the result to, of any strides; it is returned.

    Returns
    -------
    array [N, C, {out}] or [C, {out}]
        In the dtype and memory order of `input`.

    Raises
    ------
    TypeError
        The dtype is not supported, or `output_size` is not an integer.
    ValueError
        Shapes do not fit, or `output_size` is less than 1.

    See Also
    --------
    adaptive_avg_pool{n}d_backward, avg_pool{n}d

    Notes
    -----
    Along each axis output o reads inputs ``[floor(o * IN / OUT), ceil((o + 1) * IN / OUT))``, as in PyTorch.

    Examples
    --------
    >>> adaptive_avg_pool{n}d(np.ones((1, {5})), 3).shape
    (1, {3})
    """
    call = Call(f"adaptive_avg_pool{rank}d", LINEAR, input=input, out=out)
    (x,) = call.arrays
    geometry = adaptive_geometry(call.op, space_of(call.op, x.shape, rank), output_size, "valid")
    y = call.image(pooled_shape(x.shape, geometry), rank, like=x)
    call.backend.average_pool(lifted(x, rank), y, geometry)
    return call.result(lowered(y, rank, like=x))


def adaptive_avg_pool_nd_backward(
    rank: int, grad_output: Array, input: Array, output_size: Any, *, needs: Needs = None
) -> tuple[Array | None]:
    """Gradient of `adaptive_avg_pool{n}d`.

    Parameters
    ----------
    grad_output : array [N, C, {out}] or [C, {out}]
        Gradient of the loss with respect to the output.
    input, output_size
        As they were given to `adaptive_avg_pool{n}d`.
    needs : sequence of 1 bool, optional
        Whether to compute it.

    Returns
    -------
    tuple of (array or None)
        Gradient with respect to `input`.

    Raises
    ------
    TypeError, ValueError
        As `adaptive_avg_pool{n}d`, or `grad_output` does not have the output's shape.

    Examples
    --------
    >>> (grad,) = adaptive_avg_pool{n}d_backward(np.ones((1, {1})), np.ones((1, {4})), 1)
    >>> grad.shape, np.unique(grad)
    ((1, {4}), array([{0.25**n}]))
    """
    call = Call(f"adaptive_avg_pool{rank}d_backward", LINEAR, grad_output=grad_output, input=input)
    grad, x = call.arrays
    geometry = adaptive_geometry(call.op, space_of(call.op, x.shape, rank), output_size, "valid")
    return _average_pool_backward(call, grad, x, geometry, needs)


# --- Lp -----------------------------------------------------------------------------------------------------------


def lp_pool_nd(
    rank: int,
    input: Array,
    norm_type: float,
    kernel_size: Size,
    stride: Size | None = None,
    ceil_mode: bool = False,
    padding: Padding = 0,
    dilation: Size = 1,
) -> Array:
    """{n}-d power-average pooling: ``(sum of x**p) ** (1 / p)`` under each window.

    Parameters
    ----------
    input : array [N, C, {space}] or [C, {space}]
        Floating-point.
    norm_type : float
        The power p, finite and more than 0.
    kernel_size, stride, ceil_mode, padding, dilation
        As in `avg_pool{n}d`.

    Returns
    -------
    array [N, C, {out}] or [C, {out}]
        In the dtype and memory order of `input`.

    Raises
    ------
    TypeError
        The dtype is not supported, or a parameter is not a number.
    ValueError
        Shapes do not fit, a parameter is out of range, or no window fits.

    See Also
    --------
    lp_pool{n}d_backward, avg_pool{n}d

    Notes
    -----
    As in PyTorch, it is ``(avg_pool(x**p) * taps) ** (1 / p)``. So no absolute value is taken: where p is odd, a sum
    may be negative, which gives NaN; pass ``abs(x)`` for a norm. And a window that overhangs under `ceil_mode` counts
    as if it were full of its mean. PyTorch has neither `padding` nor `dilation` here. Powers are taken in the dtype,
    or float32 for 16 bits: where their sum is beyond it, the result is infinite, as in PyTorch.

    Examples
    --------
    >>> y = lp_pool{n}d(np.ones((1, {4})), 1, 2)
    >>> y.shape, np.unique(y)
    ((1, {2}), array([{2**n}.]))
    """
    call = Call(f"lp_pool{rank}d", FLOATING, input=input)
    (x,) = call.arrays
    power, geometry, taps = _lp_arguments(call, rank, x, norm_type, kernel_size, stride, padding, dilation, ceil_mode)
    wide = _widened(lifted(x, rank))
    with _quiet():
        sums = _average_pool(call, wide**power, geometry) * taps
        y = call.image(pooled_shape(x.shape, geometry), rank, like=x)
        y[...] = sums ** (1 / power)
    return call.result(lowered(y, rank, like=x))


def lp_pool_nd_backward(
    rank: int,
    grad_output: Array,
    input: Array,
    norm_type: float,
    kernel_size: Size,
    stride: Size | None = None,
    ceil_mode: bool = False,
    padding: Padding = 0,
    dilation: Size = 1,
    *,
    needs: Needs = None,
) -> tuple[Array | None]:
    """Gradient of `lp_pool{n}d`; 0 where the sum of a window is 0, and NaN there for p < 1, as in PyTorch.

    Parameters
    ----------
    grad_output : array [N, C, {out}] or [C, {out}]
        Gradient of the loss with respect to the output.
    input, norm_type, kernel_size, stride, ceil_mode, padding, dilation
        As they were given to `lp_pool{n}d`.
    needs : sequence of 1 bool, optional
        Whether to compute it.

    Returns
    -------
    tuple of (array or None)
        Gradient with respect to `input`.

    Raises
    ------
    TypeError, ValueError
        As `lp_pool{n}d`, or `grad_output` does not have the output's shape.

    Examples
    --------
    >>> (grad,) = lp_pool{n}d_backward(np.ones((1, {2})), np.ones((1, {4})), 1, 2)
    >>> grad.shape, np.unique(grad)
    ((1, {4}), array([1.]))
    """
    call = Call(f"lp_pool{rank}d_backward", FLOATING, grad_output=grad_output, input=input)
    grad, x = call.arrays
    power, geometry, taps = _lp_arguments(call, rank, x, norm_type, kernel_size, stride, padding, dilation, ceil_mode)
    call.expect_shape("grad_output", grad, pooled_shape(x.shape, geometry))
    if not needed(call.op, needs, 1)[0]:
        return (None,)
    wide, upstream = _widened(lifted(x, rank)), _widened(lifted(grad, rank))
    with _quiet():
        sums = _average_pool(call, wide**power, geometry) * taps
        slope = call.xp.where(sums == 0, 0, upstream * taps * sums ** (1 / power - 1))
        spread = call.backend.empty_like(wide.shape, wide.dtype, slope)
        call.backend.average_pool_backward(slope, spread, geometry)
        grad_x = call.image(x.shape, rank, like=grad)
        grad_x[...] = spread * wide ** (power - 1)
    return call.result((lowered(grad_x, rank, like=x),))


avg_pool1d, avg_pool2d, avg_pool3d = replayed_family(avg_pool_nd)
avg_pool1d_backward, avg_pool2d_backward, avg_pool3d_backward = replayed_family(avg_pool_nd_backward)
sum_pool1d, sum_pool2d, sum_pool3d = replayed_family(sum_pool_nd)
sum_pool1d_backward, sum_pool2d_backward, sum_pool3d_backward = replayed_family(sum_pool_nd_backward)
adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = replayed_family(adaptive_avg_pool_nd)
adaptive_avg_pool1d_backward, adaptive_avg_pool2d_backward, adaptive_avg_pool3d_backward = replayed_family(
    adaptive_avg_pool_nd_backward
)
lp_pool1d, lp_pool2d, lp_pool3d = family(lp_pool_nd)
lp_pool1d_backward, lp_pool2d_backward, lp_pool3d_backward = family(lp_pool_nd_backward)


# --- What they share ----------------------------------------------------------------------------------------------


def _average_pool(call: Call, x: Array, geometry: PoolGeometry) -> Array:
    """Means of the windows of x [N, C, D, H, W], in its own dtype."""
    y = call.backend.empty_like((*x.shape[:2], *geometry.output_size), x.dtype, x)
    call.backend.average_pool(x, y, geometry)
    return y


def _average_pool_backward(
    call: Call, grad: Array, x: Array, geometry: PoolGeometry, needs: Needs
) -> tuple[Array | None]:
    rank = geometry.rank
    call.expect_shape("grad_output", grad, pooled_shape(x.shape, geometry))
    if not needed(call.op, needs, 1)[0]:
        return (None,)
    grad_x = call.image(x.shape, rank, like=grad)
    call.backend.average_pool_backward(lifted(grad, rank), grad_x, geometry)
    return call.result((lowered(grad_x, rank, like=x),))


def _divisor(call: Call, count_include_pad: bool, divisor_override: float | None) -> Divisor:
    padded = boolean(call.op, "count_include_pad", count_include_pad)
    if divisor_override is None:
        return "padded" if padded else "valid"
    divisor = number(call.op, "divisor_override", divisor_override)
    if divisor == 0:
        raise ValueError(f"{call.op}: divisor_override is 0, expected another number")
    return divisor


def _lp_arguments(
    call: Call,
    rank: int,
    x: Array,
    norm_type: float,
    kernel_size: Size,
    stride: Size | None,
    padding: Padding,
    dilation: Size,
    ceil_mode: bool,
) -> tuple[float, PoolGeometry, int]:
    """The power, the geometry of the mean, and the taps of a full window."""
    space = space_of(call.op, x.shape, rank)
    power = number(call.op, "norm_type", norm_type)
    if power <= 0:
        raise ValueError(f"{call.op}: norm_type is {power}, expected more than 0")
    geometry = pool_geometry(call.op, space, kernel_size, stride, padding, dilation, ceil_mode, "padded")
    return power, geometry, prod(integers(call.op, "kernel_size", kernel_size, rank, 1))


def _widened(x: Array) -> Array:
    """X in the dtype that its sums are kept in."""
    return x.astype(accumulator(x.dtype), copy=False)


def _quiet() -> Any:
    """Powers of 0 and of negative sums give inf and NaN, as documented, and no warnings."""
    return np.errstate(all="ignore")
