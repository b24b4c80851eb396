"""Max pooling over windows and over adaptive windows, and its gradients, for 1-d to 3-d images."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from gpucnn.backends.dtypes import ORDERED
from gpucnn.functional._call import Array, Call, Needs, lifted, lowered, needed, pooled_shape, space_of
from gpucnn.functional._family import replayed_family
from gpucnn.geometry import Padding, PoolGeometry, Size
from gpucnn.geometry.arguments import boolean
from gpucnn.geometry.geometries import adaptive_geometry, pool_geometry

__all__ = [
    "adaptive_max_pool1d", "adaptive_max_pool1d_backward", "adaptive_max_pool2d", "adaptive_max_pool2d_backward",
    "adaptive_max_pool3d", "adaptive_max_pool3d_backward", "max_pool1d", "max_pool1d_backward", "max_pool2d",
    "max_pool2d_backward", "max_pool3d", "max_pool3d_backward",
]  # fmt: skip


def max_pool_nd(
    rank: int,
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    out: Array | None = None,
) -> Any:
    """{n}-d max pooling: the largest value under each window.

    Parameters
    ----------
    input : array [N, C, {space}] or [C, {space}]
        Floating-point or integer.
    kernel_size, stride, dilation : int or sequence of {n} int
        Size of the window, its step (the window itself where it is None), and the step of its taps.
    padding : int, sequence of {n} int or (low, high) pairs, "valid", "same" or "same_lower"
        Positions around the image, whose values are never read; smaller than the dilated window.
    ceil_mode : bool
        Round the output size up: one more window that overhangs the high end, unless it would start past the image.
    return_indices : bool
        Return the indices of the maxima in addition to the result.
    out : array [N, C, {out}] or [C, {out}], optional
        An array to write the result to, of any strides; it is returned.

    Returns
    -------
    array [N, C, {out}] or [C, {out}]
        In the dtype and memory order of `input`.
    array of int64
        With `return_indices`: each maximum's position in its flattened plane, the first of equal ones.

    Raises
    ------
    TypeError
        The dtype is not supported, or a parameter is not an integer.
    ValueError
        Shapes do not fit, a parameter is out of range, or no window fits.

    See Also
    --------
    max_pool{n}d_backward, max_unpool{n}d, gpucnn.geometry.pool_output_size

    Notes
    -----
    NaN propagates; of several, the index is the last one's. A window that reads nothing but padding gives the lowest
    value of the dtype (-inf) and the index -1. PyTorch allows padding up to half the window, and no pairs.

    Examples
    --------
    >>> x = np.arange({4**n}.0).reshape(1, {4})
    >>> y, indices = max_pool{n}d(x, 2, return_indices=True)
    >>> y.shape, np.array_equal(y, indices)  # here each value is its own index
    ((1, {2}), True)
    """
    call = Call(f"max_pool{rank}d", ORDERED, input=input, out=out)
    (x,) = call.arrays
    space = space_of(call.op, x.shape, rank)
    geometry = pool_geometry(call.op, space, kernel_size, stride, padding, dilation, ceil_mode)
    return _max_pool(call, x, geometry, return_indices)


def max_pool_nd_backward(
    rank: int,
    grad_output: Array,
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    indices: Array | None = None,
    needs: Needs = None,
) -> tuple[Array | None]:
    """Gradient of `max_pool{n}d`: each output's gradient goes to the one input that was its maximum.

    Parameters
    ----------
    grad_output : array [N, C, {out}] or [C, {out}]
        Gradient of the loss with respect to the output.
    input, kernel_size, stride, padding, dilation, ceil_mode, return_indices
        As they were given to `max_pool{n}d`.
    indices : array of int64, optional
        What the forward returned; recomputed where it is missing.
    needs : sequence of 1 bool, optional
        Whether to compute it.

    Returns
    -------
    tuple of (array or None)
        Gradient with respect to `input`.

    Raises
    ------
    TypeError, ValueError
        As `max_pool{n}d`, or `grad_output` or `indices` do not have the output's shape, or `indices` leave the plane.

    Examples
    --------
    >>> x = np.arange({4**n}.0).reshape(1, {4})
    >>> (grad,) = max_pool{n}d_backward(np.ones((1, {2})), x, 2)
    >>> int((grad != 0).sum()), float(grad.flat[-1])  # one in each window, the last of all in the corner
    ({2**n}, 1.0)
    """
    call = Call(f"max_pool{rank}d_backward", ORDERED, grad_output=grad_output, input=input)
    boolean(call.op, "return_indices", return_indices)
    grad, x = call.arrays
    space = space_of(call.op, x.shape, rank)
    geometry = pool_geometry(call.op, space, kernel_size, stride, padding, dilation, ceil_mode)
    return _max_pool_backward(call, grad, x, geometry, indices, needs)


def adaptive_max_pool_nd(
    rank: int, input: Array, output_size: Any, return_indices: bool = False, *, out: Array | None = None
) -> Any:
    """{n}-d max pooling over a given number of windows.

    Parameters
    ----------
    input : array [N, C, {space}] or [C, {space}]
        Floating-point or integer.
    output_size : int, None, or sequence of {n} of them
        Size of the output; None keeps an axis as it is.
    return_indices : bool
        Return the indices of the maxima in addition to the result.
    out : array [N, C, {out}] or [C, {out}], optional
        An array to write the result to, of any strides; it is returned.

    Returns
    -------
    array [N, C, {out}] or [C, {out}]
        In the dtype and memory order of `input`.
    array of int64
        With `return_indices`: each maximum's position in its flattened plane, the first of equal ones.

    Raises
    ------
    TypeError
        The dtype is not supported, or `output_size` is not an integer.
    ValueError
        Shapes do not fit, or `output_size` is less than 1.

    See Also
    --------
    adaptive_max_pool{n}d_backward, max_pool{n}d

    Notes
    -----
    Along each axis output o reads inputs ``[floor(o * IN / OUT), ceil((o + 1) * IN / OUT))``, as in PyTorch.

    Examples
    --------
    >>> x = np.arange({5**n}.0).reshape(1, {5})
    >>> y = adaptive_max_pool{n}d(x, 3)
    >>> y.shape, float(y.max()) == {5**n} - 1
    ((1, {3}), True)
    """
    call = Call(f"adaptive_max_pool{rank}d", ORDERED, input=input, out=out)
    (x,) = call.arrays
    geometry = adaptive_geometry(call.op, space_of(call.op, x.shape, rank), output_size)
    return _max_pool(call, x, geometry, return_indices)


def adaptive_max_pool_nd_backward(
    rank: int,
    grad_output: Array,
    input: Array,
    output_size: Any,
    return_indices: bool = False,
    *,
    indices: Array | None = None,
    needs: Needs = None,
) -> tuple[Array | None]:
    """Gradient of `adaptive_max_pool{n}d`.

    Parameters
    ----------
    grad_output : array [N, C, {out}] or [C, {out}]
        Gradient of the loss with respect to the output.
    input, output_size, return_indices
        As they were given to `adaptive_max_pool{n}d`.
    indices : array of int64, optional
        What the forward returned; recomputed where it is missing.
    needs : sequence of 1 bool, optional
        Whether to compute it.

    Returns
    -------
    tuple of (array or None)
        Gradient with respect to `input`.

    Raises
    ------
    TypeError, ValueError
        As `adaptive_max_pool{n}d`, or `grad_output` or `indices` do not have the output's shape, or `indices` leave
        the plane.

    Examples
    --------
    >>> x = np.arange({5**n}.0).reshape(1, {5})
    >>> (grad,) = adaptive_max_pool{n}d_backward(np.ones((1, {1})), x, 1)
    >>> int((grad != 0).sum()), float(grad.flat[-1])
    (1, 1.0)
    """
    call = Call(f"adaptive_max_pool{rank}d_backward", ORDERED, grad_output=grad_output, input=input)
    boolean(call.op, "return_indices", return_indices)
    grad, x = call.arrays
    geometry = adaptive_geometry(call.op, space_of(call.op, x.shape, rank), output_size)
    return _max_pool_backward(call, grad, x, geometry, indices, needs)


max_pool1d, max_pool2d, max_pool3d = replayed_family(max_pool_nd)
max_pool1d_backward, max_pool2d_backward, max_pool3d_backward = replayed_family(max_pool_nd_backward)
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = replayed_family(adaptive_max_pool_nd)
adaptive_max_pool1d_backward, adaptive_max_pool2d_backward, adaptive_max_pool3d_backward = replayed_family(
    adaptive_max_pool_nd_backward
)


def _max_pool(call: Call, x: Array, geometry: PoolGeometry, return_indices: bool) -> Any:
    rank = geometry.rank
    image, y = lifted(x, rank), call.image(pooled_shape(x.shape, geometry), rank, like=x)
    if not boolean(call.op, "return_indices", return_indices):
        call.backend.max_pool(image, y, None, geometry)
        return call.result(lowered(y, rank, like=x))
    indices = call.backend.empty_like(tuple(y.shape), np.int64, image)
    call.backend.max_pool(image, y, indices, geometry)
    return call.result((lowered(y, rank, like=x), lowered(indices, rank, like=x)))


def _max_pool_backward(
    call: Call, grad: Array, x: Array, geometry: PoolGeometry, indices: Array | None, needs: Needs
) -> tuple[Array | None]:
    rank = geometry.rank
    call.expect_shape("grad_output", grad, pooled_shape(x.shape, geometry))
    if indices is not None:
        indices = call.also("indices", indices)
        call.expect_shape("indices", indices, pooled_shape(x.shape, geometry))
        call.expect_indices("indices", indices, prod(geometry.input_size))
    if not needed(call.op, needs, 1)[0]:
        return (None,)
    if indices is None:
        image, y = lifted(x, rank), call.image(grad.shape, rank, like=x)
        at = call.backend.empty_like(tuple(y.shape), np.int64, image)
        call.backend.max_pool(image, y, at, geometry)
    else:
        at = lifted(indices, rank)
    grad_x = call.image(x.shape, rank, like=grad)
    call.backend.max_pool_backward(lifted(grad, rank), at, grad_x, geometry)
    return call.result((lowered(grad_x, rank, like=x),))
