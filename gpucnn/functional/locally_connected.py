"""Locally connected layers, convolutions with a filter for each position, and their gradients, of rank 1 to 3."""

from __future__ import annotations

from typing import Any

from gpucnn.backends.dtypes import NUMERIC, accumulator
from gpucnn.functional._call import (
    Array,
    Needs,
    ProductCall,
    convolved_shape,
    lifted,
    lowered,
    needed,
)
from gpucnn.functional._convolution_geometry import local_geometry
from gpucnn.functional._family import replayed_family
from gpucnn.geometry import ConvGeometry, Padding, Size

__all__ = [
    "locally_connected1d", "locally_connected1d_backward", "locally_connected2d", "locally_connected2d_backward",
    "locally_connected3d", "locally_connected3d_backward",
]  # fmt: skip


def locally_connected_nd(
    rank: int,
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
) -> Array:
    """{n}-d locally connected layer: a convolution whose filters are not shared between positions.

    Parameters
    ----------
    input : array [N, C, {space}] or [C, {space}]
        Floating-point, complex or integer.
    weight : array [OC, {out}, C, {kernel}]
        A filter for each output, in the dtype of `input`.
    bias : array [OC, {out}], optional
        In the dtype of `input`, or float32 where that has 16 bits.
    stride, dilation : int or sequence of {n} int
        Step of the window, and step of its taps.
    padding : int, sequence of {n} int or (low, high) pairs, "valid", "same" or "same_lower"
        Zeros around the image.

    Returns
    -------
    array [N, OC, {out}] or [OC, {out}]
        In the dtype and memory order of `input`; of integers with 8 bits in int32, with 16 bits in int64.

    Raises
    ------
    TypeError
        Dtypes differ or are not supported, arrays are of two libraries, or a parameter is not an integer.
    ValueError
        Shapes do not fit, a parameter is out of range, or the window does not fit into the padded image.

    See Also
    --------
    locally_connected{n}d_backward, gpucnn.geometry.locally_connected_parameters

    Notes
    -----
    ``y[n, o, p] = bias[o, p] + sum over c, k of weight[o, p, c, k] * x[n, c, p * stride - padding + k * dilation]``.
    Integers are summed as in `conv{n}d`. The layout of `weight` is Chainer's (``local_convolution_{n}d``). PyTorch has
    no such operation.

    Examples
    --------
    >>> x = np.ones((1, 1, {4}))
    >>> w = np.ones((1, {3}, 1, {2}))
    >>> y = locally_connected{n}d(x, w)
    >>> y.shape, np.unique(y)
    ((1, 1, {3}), array([{2**n}.]))
    """
    call = ProductCall(f"locally_connected{rank}d", NUMERIC, input=input, weight=weight, bias=bias)
    x, w, b = call.arrays
    geometry = local_geometry(call.op, rank, x.shape, w.shape, stride, padding, dilation)
    call.expect_shape("bias", b, w.shape[: rank + 1])
    b = None if b is None else lifted(b, rank)[0]
    y = call.image(convolved_shape(x.shape, geometry), rank, like=x)
    call.backend.locally_connect(lifted(x, rank), _lifted_local(w, geometry), b, y, geometry)
    return call.result(lowered(y, rank, like=x))


def locally_connected_nd_backward(
    rank: int,
    grad_output: Array,
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    *,
    needs: Needs = None,
    dtype: Any = None,
) -> tuple[Array | None, Array | None, Array | None]:
    """Gradients of `locally_connected{n}d`.

    Parameters
    ----------
    grad_output : array [N, OC, {out}] or [OC, {out}]
        Gradient of the loss with respect to the output.
    input, weight, bias, stride, padding, dilation
        As they were given to `locally_connected{n}d`.
    needs : sequence of 3 bools, optional
        Which gradients to compute; the others are None.
    dtype : dtype, optional
        Of the gradients of `weight` and `bias`: float32 is possible where the images have 16 bits. By default each is
        in the dtype of its parameter.

    Returns
    -------
    tuple of (array or None)
        Gradients with respect to `input`, `weight` and `bias`, each in that one's shape; None for an absent bias. The
        first has the memory order of `grad_output`.

    Raises
    ------
    TypeError, ValueError
        As `locally_connected{n}d`, or `grad_output` does not have the output's shape.

    Examples
    --------
    >>> x, w = np.ones((2, 1, {4})), np.ones((1, {3}, 1, {2}))
    >>> grad_x, grad_w, grad_b = locally_connected{n}d_backward(np.ones((2, 1, {3})), x, w)
    >>> grad_x.shape, grad_w.shape, grad_b is None
    ((2, 1, {4}), (1, {3}, 1, {2}), True)
    """
    arrays = {"grad_output": grad_output, "input": input, "weight": weight, "bias": bias}
    call = ProductCall(f"locally_connected{rank}d_backward", NUMERIC, **arrays, dtype=dtype)
    grad, x, w, b = call.arrays
    geometry = local_geometry(call.op, rank, x.shape, w.shape, stride, padding, dilation)
    call.expect_shape("bias", b, w.shape[: rank + 1])
    call.expect_shape("grad_output", grad, convolved_shape(x.shape, geometry))
    need_x, need_w, need_b = needed(call.op, needs, 3)
    image, grad_image = lifted(x, rank), lifted(grad, rank)
    grad_x = grad_w = grad_b = None
    if need_x:
        filters = _lifted_local(call.conjugate(w), geometry)
        grad_x = call.image(x.shape, rank, like=grad)
        call.backend.locally_connect_backward_input(grad_image, filters, grad_x, geometry)
        grad_x = lowered(grad_x, rank, like=x)
    if need_w:
        grad_w = call.gradient_of(w)
        filters = _lifted_local(grad_w, geometry)
        call.backend.locally_connect_backward_weight(call.conjugate(image), grad_image, filters, geometry)
    if need_b and b is not None:
        sums = call.xp.sum(grad, axis=tuple(range(grad.ndim - b.ndim)), dtype=accumulator(grad.dtype))
        grad_b = sums.astype(call.gradient_dtype(b), copy=False)
    return call.result((grad_x, grad_w, grad_b))


locally_connected1d, locally_connected2d, locally_connected3d = replayed_family(locally_connected_nd)
locally_connected1d_backward, locally_connected2d_backward, locally_connected3d_backward = replayed_family(
    locally_connected_nd_backward
)


def _lifted_local(w: Array, geometry: ConvGeometry) -> Array:
    """Filters as [OC, OD, OH, OW, C, KD, KH, KW]."""
    inputs, outputs, _ = geometry.channels
    return w.reshape(outputs, *geometry.output_size, inputs, *geometry.kernel_size)
