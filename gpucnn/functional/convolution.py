"""Convolution, with an activation too, transposed convolution and their gradients, for 1-d to 3-d images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gpucnn.backends import Epilogue
from gpucnn.backends.dtypes import FLOATING, NUMERIC
from gpucnn.backends.layout import planes
from gpucnn.functional._call import (
    Array,
    Call,
    Needs,
    ProductCall,
    choice,
    convolved_shape,
    lifted,
    lowered,
    needed,
    shape_argument,
    transposed_shape,
)
from gpucnn.functional._convolution_geometry import geometry_of, transposed_geometry
from gpucnn.functional._family import replayed_family
from gpucnn.functional.activation import FUSED
from gpucnn.geometry import ConvGeometry, Padding, Size
from gpucnn.geometry.arguments import number

__all__ = [
    "conv1d", "conv1d_activation", "conv1d_activation_backward", "conv1d_backward", "conv1d_input",
    "conv1d_input_backward", "conv1d_weight", "conv1d_weight_backward", "conv2d", "conv2d_activation",
    "conv2d_activation_backward", "conv2d_backward", "conv2d_input", "conv2d_input_backward", "conv2d_weight",
    "conv2d_weight_backward", "conv3d", "conv3d_activation", "conv3d_activation_backward", "conv3d_backward",
    "conv3d_input", "conv3d_input_backward", "conv3d_weight", "conv3d_weight_backward", "conv_transpose1d",
    "conv_transpose1d_backward", "conv_transpose2d", "conv_transpose2d_backward", "conv_transpose3d",
    "conv_transpose3d_backward",
]  # fmt: skip


def conv_nd(
    rank: int,
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    out: Array | None = None,
) -> Array:
    """{n}-d convolution of an image with filters (cross-correlation, as in every CNN).

    Parameters
    ----------
    input : array [N, C, {space}] or [C, {space}]
        Floating-point, complex or integer.
    weight : array [OC, C / groups, {kernel}]
        The filters, in the dtype of `input`.
    bias : array [OC], optional
        In the dtype of `input`, or float32 where that has 16 bits.
    stride, dilation : int or sequence of {n} int
        Step of the window, and step of its taps.
    padding : int, sequence of {n} int or (low, high) pairs, "valid", "same" or "same_lower"
        Zeros around the image. ``"same"`` gives ceil(input / stride) outputs, with the odd zero at the high end;
        ``"same_lower"`` puts that at the low end.
    groups : int
        Divide the channels into groups that are convolved separately; ``groups = C`` is a depthwise convolution.
    out : array [N, OC, {out}] or [OC, {out}], optional
        An array to write the result to, of any strides; it is returned.

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
    conv{n}d_backward, conv{n}d_activation, conv_transpose{n}d, gpucnn.geometry.conv_output_size

    Notes
    -----
    ``y[n, o, p] = bias[o] + sum over c, k of weight[o, c, k] * x[n, c, p * stride - padding + k * dilation]``.

    16-bit floats accumulate in float32. Integers of 8 bits are summed in int32 and those of 16 bits in int64, and the
    result keeps that dtype, `out` too: one product can already be more than they hold. That matches ONNX's
    ConvInteger; PyTorch's and NumPy's products wrap around in their own dtype. Those of 32 and 64 bits do so here as
    well. The result repeats bit for bit. PyTorch takes ``"same"`` with stride 1 only, and no pairs.

    References
    ----------
    V. Dumoulin, F. Visin, *A guide to convolution arithmetic for deep learning*, 2016, arXiv:1603.07285v2.

    Examples
    --------
    >>> x = np.ones((1, 1, {5}))
    >>> w = np.ones((1, 1, {3}))
    >>> y = conv{n}d(x, w, stride=2)
    >>> y.shape, np.unique(y)
    ((1, 1, {2}), array([{3**n}.]))
    """
    call = ProductCall(f"conv{rank}d", NUMERIC, input=input, weight=weight, bias=bias, out=out)
    x, w, b = call.arrays
    geometry = geometry_of(call.op, rank, x.shape, w.shape, stride, padding, dilation, groups)
    call.expect_shape("bias", b, (w.shape[0],))
    return call.result(_forward(call, x, w, b, geometry))


def conv_nd_backward(
    rank: int,
    grad_output: Array,
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    needs: Needs = None,
    dtype: Any = None,
) -> tuple[Array | None, Array | None, Array | None]:
    """Gradients of `conv{n}d`.

    Parameters
    ----------
    grad_output : array [N, OC, {out}] or [OC, {out}]
        Gradient of the loss with respect to the output.
    input, weight, bias, stride, padding, dilation, groups
        As they were given to `conv{n}d`.
    needs : sequence of 3 bools, optional
        Which gradients to compute; the others are None.
    dtype : dtype, optional
        Of the gradients of `weight` and `bias`: float32 is possible where the images have 16 bits. By default each is
        in the dtype of its parameter.

    Returns
    -------
    tuple of (array or None)
        Gradients with respect to `input`, `weight` and `bias`, each in that one's shape; None for an absent bias. The
        first has the memory order of `grad_output`. Those of small integers are wider, as the results of the forward.

    Raises
    ------
    TypeError, ValueError
        As `conv{n}d`, or `grad_output` does not have the output's shape.

    Notes
    -----
    The gradient with respect to the input is the convolution of `grad_output`, dilated by the stride, with the rotated
    filters; it is computed by stride residue, without multiplying zeros. The gradient with respect to the weight is
    the convolution of the image with `grad_output` as a filter dilated by the stride. Complex gradients follow PyTorch:
    the other factor is conjugated. They are `conv{n}d_input`, `conv{n}d_weight` and a sum, whose own gradients give
    second derivatives.

    Examples
    --------
    >>> x, w = np.ones((1, 3, {4})), np.ones((8, 3, {2}))
    >>> grad_x, grad_w, grad_b = conv{n}d_backward(np.ones((1, 8, {2})), x, w, stride=2)
    >>> grad_x.shape, grad_w.shape, grad_b is None
    ((1, 3, {4}), (8, 3, {2}), True)
    """
    op, arrays = f"conv{rank}d_backward", {"grad_output": grad_output, "input": input, "weight": weight, "bias": bias}
    call = ProductCall(op, NUMERIC, **arrays, dtype=dtype)
    grad, x, w, b = call.arrays
    geometry = geometry_of(call.op, rank, x.shape, w.shape, stride, padding, dilation, groups)
    call.expect_shape("bias", b, (w.shape[0],))
    call.expect_shape("grad_output", grad, convolved_shape(x.shape, geometry))
    need_x, need_w, need_b = needed(call.op, needs, 3)
    return call.result(
        (
            _backward_input(call, grad, call.conjugate(w), None, geometry) if need_x else None,
            _backward_weight(call, call.conjugate(x), grad, geometry) if need_w else None,
            _bias_gradient(call, grad, b, rank) if need_b and b is not None else None,
        )
    )


def conv_nd_activation(
    rank: int,
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    residual: Array | None = None,
    activation: str = "relu",
    negative_slope: float = 0.01,
    out: Array | None = None,
) -> Array:
    """``activation(conv{n}d(input, weight, bias, …) + residual)``.

    Parameters
    ----------
    input : array [N, C, {space}] or [C, {space}]
        Floating-point.
    weight, bias, stride, padding, dilation, groups
        As `conv{n}d` takes them.
    residual : array [N, OC, {out}] or [OC, {out}], optional
        The result of a shortcut, added to the convolution's, in the dtype of `input`.
    activation : "none", "relu", "leaky_relu", "relu6" or one of the smooth ones
        As `bias_activation` takes it: "sigmoid", "hard_sigmoid", "silu", "hard_swish", "gelu" or "gelu_tanh".
    negative_slope : float
        Of "leaky_relu".
    out : array [N, OC, {out}] or [OC, {out}], optional
        An array to write the result to, of any strides; it is returned.

    Returns
    -------
    array [N, OC, {out}] or [OC, {out}]
        In the dtype and memory order of `input`.

    Raises
    ------
    TypeError, ValueError
        As `conv{n}d`, or there is no such activation.

    See Also
    --------
    conv{n}d_activation_backward, conv{n}d, bias_activation

    Notes
    -----
    The result has the bits of `bias_activation` after `conv{n}d`, so that of 16-bit floats is rounded after each of
    them. The compiled CPU kernels, and a GPU's implicit GEMM, add the residual and apply the activation to sums on
    their way to memory, where `bias_activation` would read and write each once more; others run both one after the
    other.

    Examples
    --------
    >>> x, w = np.ones((1, 1, {5})), -np.ones((1, 1, {3}))
    >>> np.unique(conv{n}d_activation(x, w, stride=2, residual=np.full((1, 1, {2}), {3**n}.5)))
    array([0.5])
    """
    op = f"conv{rank}d_activation"
    arrays = {"input": input, "weight": weight, "bias": bias, "residual": residual}
    call = Call(op, FLOATING, optional=("bias", "residual"), **arrays, out=out)
    x, w, b, r = call.arrays
    geometry = geometry_of(op, rank, x.shape, w.shape, stride, padding, dilation, groups)
    epilogue = _epilogue(call, x, b, r, geometry, activation, negative_slope)
    y = call.image(convolved_shape(x.shape, geometry), rank, like=x)
    call.backend.convolve_activation(lifted(x, rank), lifted(w, rank), b, y, geometry, epilogue)
    return call.result(lowered(y, rank, like=x))


def conv_nd_activation_backward(
    rank: int,
    grad_output: Array,
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    residual: Array | None = None,
    activation: str = "relu",
    negative_slope: float = 0.01,
    output: Array | None = None,
    needs: Needs = None,
) -> tuple[Array | None, Array | None, Array | None, Array | None]:
    """Gradients of `conv{n}d_activation`.

    Parameters
    ----------
    grad_output : array [N, OC, {out}] or [OC, {out}]
        Gradient of the loss with respect to the output.
    input, weight, bias, stride, padding, dilation, groups, residual, activation, negative_slope
        As they were given to `conv{n}d_activation`.
    output : array [N, OC, {out}] or [OC, {out}], optional
        What `conv{n}d_activation` returned; recomputed where it is missing.
    needs : sequence of 4 bools, optional
        Which gradients to compute; the others are None.

    Returns
    -------
    tuple of (array or None)
        Gradients with respect to `input`, `weight`, `bias` and `residual`, each in that one's dtype.

    Raises
    ------
    TypeError, ValueError
        As `conv{n}d_activation`, or shapes do not fit.

    Notes
    -----
    `bias_activation_backward`, then `conv{n}d_backward`. Smooth activations need the sum, which the
    forward does not write and this computes anew: to train, apply such an activation after the convolution.

    Examples
    --------
    >>> x, w = np.ones((1, 3, {4})), np.ones((8, 3, {2}))
    >>> grads = conv{n}d_activation_backward(np.ones((1, 8, {2})), x, w, stride=2)
    >>> grads[0].shape, grads[1].shape, grads[2:]
    ((1, 3, {4}), (8, 3, {2}), (None, None))
    """
    op = f"conv{rank}d_activation_backward"
    arrays = {"grad_output": grad_output, "input": input, "weight": weight, "bias": bias, "residual": residual}
    call = Call(op, FLOATING, optional=("bias", "residual", "output"), **arrays, output=output)
    grad, x, w, b, r, y = call.arrays
    geometry = geometry_of(op, rank, x.shape, w.shape, stride, padding, dilation, groups)
    epilogue = _epilogue(call, x, b, r, geometry, activation, negative_slope)
    shape = convolved_shape(x.shape, geometry)
    call.expect_shape("grad_output", grad, shape)
    call.expect_shape("output", y, shape)
    need_x, need_w, need_b, need_r = needed(op, needs, 4)
    need_b, need_r = need_b and b is not None, need_r and r is not None
    if not (need_x or need_w or need_b or need_r):
        return (None, None, None, None)
    if activation == "none":
        signs = lifted(grad, rank)
    elif y is not None and epilogue.keeps_signs:
        signs = lifted(y, rank)
    else:
        signs = call.image(shape, rank, like=x)
        before = replace(epilogue, activation="none")
        call.backend.convolve_activation(lifted(x, rank), lifted(w, rank), b, signs, geometry, before)
    grad_sum = call.image(shape, rank, like=grad)
    grad_b = call.gradient_of(b) if need_b else None
    call.activation_backward(planes(lifted(grad, rank)), planes(signs), planes(grad_sum), grad_b, epilogue)
    of_sum = lowered(grad_sum, rank, like=grad)
    return call.result(
        (
            _backward_input(call, of_sum, w, None, geometry) if need_x else None,
            _backward_weight(call, x, of_sum, geometry) if need_w else None,
            grad_b,
            of_sum if need_r else None,
        )
    )


def _epilogue(
    call: Call, x: Array, b: Array | None, r: Array | None, geometry: ConvGeometry, activation: str, slope: float
) -> Epilogue:
    """The epilogue of a convolution, whose arguments are checked."""
    call.expect_shape("bias", b, (geometry.channels.outputs,))
    call.expect_shape("residual", r, convolved_shape(x.shape, geometry))
    choice(call.op, "activation", activation, FUSED)
    residual = None if r is None else lifted(r, geometry.rank)
    return Epilogue(residual, activation, number(call.op, "negative_slope", slope))


def conv_nd_input(
    rank: int,
    input_size: Sequence[int],
    weight: Array,
    grad_output: Array,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    out: Array | None = None,
) -> Array:
    """Gradient of `conv{n}d` with respect to its input, of which only the shape is needed.

    Parameters
    ----------
    input_size : sequence of int
        Shape of the input, (N, C, {space}) or (C, {space}).
    weight : array [OC, C / groups, {kernel}]
    grad_output : array [N, OC, {out}] or [OC, {out}]
    stride, padding, dilation, groups
        As they were given to `conv{n}d`.
    out : array of shape `input_size`, optional
        An array to write the result to, of any strides; it is returned.

    Returns
    -------
    array of shape `input_size`

    Raises
    ------
    TypeError, ValueError
        As `conv{n}d`, or `grad_output` does not have the output's shape.

    Notes
    -----
    As ``torch.nn.grad.conv{n}d_input``. For complex arrays it is the adjoint of the convolution (conjugated filters).

    Examples
    --------
    >>> grad = conv{n}d_input((1, 1, {4}), np.ones((1, 1, {2})), np.ones((1, 1, {3})))
    >>> grad.shape, float(grad.max())
    ((1, 1, {4}), {2**n}.0)
    """
    call = ProductCall(f"conv{rank}d_input", NUMERIC, weight=weight, grad_output=grad_output, out=out)
    w, grad = call.arrays
    shape = shape_argument(call.op, "input_size", input_size)
    geometry = geometry_of(call.op, rank, shape, w.shape, stride, padding, dilation, groups, "input_size")
    call.expect_shape("grad_output", grad, convolved_shape(shape, geometry))
    return call.result(_backward_input(call, grad, call.conjugate(w), None, geometry))


def conv_nd_input_backward(
    rank: int,
    grad_grad_input: Array,
    input_size: Sequence[int],
    weight: Array,
    grad_output: Array,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    needs: Needs = None,
) -> tuple[Array | None, Array | None]:
    """Gradients of `conv{n}d_input`: second derivatives of `conv{n}d`.

    Parameters
    ----------
    grad_grad_input : array of shape `input_size`
        Gradient of the loss with respect to the result of `conv{n}d_input`.
    input_size, weight, grad_output, stride, padding, dilation, groups
        As they were given to `conv{n}d_input`.
    needs : sequence of 2 bools, optional
        Which gradients to compute; the others are None.

    Returns
    -------
    tuple of (array or None)
        Gradients with respect to `weight` and `grad_output`.

    Raises
    ------
    TypeError, ValueError
        As `conv{n}d_input`, or `grad_grad_input` does not have the shape `input_size`.
    """
    call = ProductCall(
        f"conv{rank}d_input_backward",
        NUMERIC,
        grad_grad_input=grad_grad_input,
        weight=weight,
        grad_output=grad_output,
    )
    grad_grad, w, grad = call.arrays
    shape = shape_argument(call.op, "input_size", input_size)
    geometry = geometry_of(call.op, rank, shape, w.shape, stride, padding, dilation, groups, "input_size")
    call.expect_shape("grad_output", grad, convolved_shape(shape, geometry))
    call.expect_shape("grad_grad_input", grad_grad, shape)
    need_w, need_grad = needed(call.op, needs, 2)
    return call.result(
        (
            _backward_weight(call, call.conjugate(grad_grad), grad, geometry) if need_w else None,
            _forward(call, grad_grad, w, None, geometry) if need_grad else None,
        )
    )


def conv_nd_weight(
    rank: int,
    input: Array,
    weight_size: Sequence[int],
    grad_output: Array,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    out: Array | None = None,
    dtype: Any = None,
) -> Array:
    """Gradient of `conv{n}d` with respect to its weight, of which only the shape is needed.

    Parameters
    ----------
    input : array [N, C, {space}] or [C, {space}]
    weight_size : sequence of int
        Shape of the weight, (OC, C / groups, {kernel}).
    grad_output : array [N, OC, {out}] or [OC, {out}]
    stride, padding, dilation, groups
        As they were given to `conv{n}d`.
    out : array of shape `weight_size`, optional
        An array to write the result to, of any strides; it is returned.
    dtype : dtype, optional
        Of the result: that of the images, which is the default, or float32 where they have 16 bits.

    Returns
    -------
    array of shape `weight_size`

    Raises
    ------
    TypeError, ValueError
        As `conv{n}d`, or `grad_output` does not have the output's shape.

    Notes
    -----
    As ``torch.nn.grad.conv{n}d_weight``. For complex arrays the image is conjugated.

    Examples
    --------
    >>> grad = conv{n}d_weight(np.ones((1, 1, {4})), (1, 1, {2}), np.ones((1, 1, {3})))
    >>> grad.shape, np.unique(grad)
    ((1, 1, {2}), array([{3**n}.]))
    """
    call = ProductCall(f"conv{rank}d_weight", NUMERIC, input=input, grad_output=grad_output, out=out, dtype=dtype)
    x, grad = call.arrays
    shape = shape_argument(call.op, "weight_size", weight_size)
    geometry = geometry_of(call.op, rank, x.shape, shape, stride, padding, dilation, groups, "input", "weight_size")
    call.expect_shape("grad_output", grad, convolved_shape(x.shape, geometry))
    return call.result(_backward_weight(call, call.conjugate(x), grad, geometry))


def conv_nd_weight_backward(
    rank: int,
    grad_grad_weight: Array,
    input: Array,
    weight_size: Sequence[int],
    grad_output: Array,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    needs: Needs = None,
) -> tuple[Array | None, Array | None]:
    """Gradients of `conv{n}d_weight`: second derivatives of `conv{n}d`.

    Parameters
    ----------
    grad_grad_weight : array of shape `weight_size`
        Gradient of the loss with respect to the result of `conv{n}d_weight`.
    input, weight_size, grad_output, stride, padding, dilation, groups
        As they were given to `conv{n}d_weight`.
    needs : sequence of 2 bools, optional
        Which gradients to compute; the others are None.

    Returns
    -------
    tuple of (array or None)
        Gradients with respect to `input` and `grad_output`.

    Raises
    ------
    TypeError, ValueError
        As `conv{n}d_weight`, or `grad_grad_weight` does not have the shape `weight_size`.
    """
    call = ProductCall(
        f"conv{rank}d_weight_backward",
        NUMERIC,
        grad_grad_weight=grad_grad_weight,
        input=input,
        grad_output=grad_output,
    )
    grad_grad, x, grad = call.arrays
    shape = shape_argument(call.op, "weight_size", weight_size)
    geometry = geometry_of(call.op, rank, x.shape, shape, stride, padding, dilation, groups, "input", "weight_size")
    call.expect_shape("grad_output", grad, convolved_shape(x.shape, geometry))
    call.expect_shape("grad_grad_weight", grad_grad, shape)
    need_x, need_grad = needed(call.op, needs, 2)
    return call.result(
        (
            _backward_input(call, grad, call.conjugate(grad_grad), None, geometry) if need_x else None,
            _forward(call, x, grad_grad, None, geometry) if need_grad else None,
        )
    )


def conv_transpose_nd(
    rank: int,
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    out: Array | None = None,
) -> Array:
    """{n}-d transposed convolution: each input adds its multiple of a filter to the output.

    Parameters
    ----------
    input : array [N, C, {space}] or [C, {space}]
        Floating-point, complex or integer.
    weight : array [C, OC / groups, {kernel}]
        The filters, in the dtype of `input`.
    bias : array [OC], optional
        In the dtype of `input`, or float32 where that has 16 bits.
    stride, dilation : int or sequence of {n} int
        Step of the filters in the output, and step of their taps.
    padding : int, sequence of {n} int or (low, high) pairs, "valid", "same" or "same_lower"
        The amount cut off the ends of the output. ``"same"`` gives input * stride outputs: the adjoint of a strided
        convolution with that padding.
    output_padding : int or sequence of {n} int
        Size added at the output's high end; less than `stride` or `dilation`.
    groups : int
        Divide the channels into groups that are convolved separately.
    out : array [N, OC, {out}] or [OC, {out}], optional
        An array to write the result to, of any strides; it is returned.

    Returns
    -------
    array [N, OC, {out}] or [OC, {out}]
        In the dtype and memory order of `input`; of integers with 8 bits in int32, with 16 bits in int64.

    Raises
    ------
    TypeError
        Dtypes differ or are not supported, arrays are of two libraries, or a parameter is not an integer.
    ValueError
        Shapes do not fit, a parameter is out of range, or the padding cuts off the whole output.

    See Also
    --------
    conv_transpose{n}d_backward, conv{n}d_input, gpucnn.geometry.conv_transpose_output_size

    Notes
    -----
    ``OUT = (IN - 1) * stride - low - high + dilation * (K - 1) + output_padding + 1``. It is the backward-input of the
    convolution with the same parameters and is computed as that, by stride residue, without multiplying zeros. Nothing
    is conjugated. Integers are summed as in `conv{n}d`. PyTorch has no ``"same"`` and no pairs here.

    References
    ----------
    V. Dumoulin, F. Visin, *A guide to convolution arithmetic for deep learning*, 2016, arXiv:1603.07285v2, §4.

    Examples
    --------
    >>> y = conv_transpose{n}d(np.ones((1, 1, {3})), np.ones((1, 1, {2})), stride=2)
    >>> y.shape, np.unique(y)
    ((1, 1, {6}), array([1.]))
    """
    call = ProductCall(f"conv_transpose{rank}d", NUMERIC, input=input, weight=weight, bias=bias, out=out)
    x, w, b = call.arrays
    geometry = transposed_geometry(call.op, rank, x.shape, w.shape, stride, padding, output_padding, dilation, groups)
    call.expect_shape("bias", b, (geometry.channels.inputs,))
    return call.result(_backward_input(call, x, w, b, geometry))


def conv_transpose_nd_backward(
    rank: int,
    grad_output: Array,
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    needs: Needs = None,
    dtype: Any = None,
) -> tuple[Array | None, Array | None, Array | None]:
    """Gradients of `conv_transpose{n}d`.

    Parameters
    ----------
    grad_output : array [N, OC, {out}] or [OC, {out}]
        Gradient of the loss with respect to the output.
    input, weight, bias, stride, padding, output_padding, groups, dilation
        As they were given to `conv_transpose{n}d`.
    needs : sequence of 3 bools, optional
        Which gradients to compute; the others are None.
    dtype : dtype, optional
        Of the gradients of `weight` and `bias`: float32 is possible where the images have 16 bits. By default each is
        in the dtype of its parameter.

    Returns
    -------
    tuple of (array or None)
        Gradients with respect to `input`, `weight` and `bias`, each in that one's shape; None for an absent bias. The
        first has the memory order of `grad_output`. Those of small integers are wider, as the results of the forward.

    Raises
    ------
    TypeError, ValueError
        As `conv_transpose{n}d`, or `grad_output` does not have the output's shape.

    Examples
    --------
    >>> x, w = np.ones((1, 1, {3})), np.ones((1, 1, {2}))
    >>> grad_x, grad_w, grad_b = conv_transpose{n}d_backward(np.ones((1, 1, {6})), x, w, stride=2)
    >>> np.unique(grad_x), np.unique(grad_w), grad_b is None
    (array([{2**n}.]), array([{3**n}.]), True)
    """
    arrays = {"grad_output": grad_output, "input": input, "weight": weight, "bias": bias}
    call = ProductCall(f"conv_transpose{rank}d_backward", NUMERIC, **arrays, dtype=dtype)
    grad, x, w, b = call.arrays
    geometry = transposed_geometry(call.op, rank, x.shape, w.shape, stride, padding, output_padding, dilation, groups)
    call.expect_shape("bias", b, (geometry.channels.inputs,))
    call.expect_shape("grad_output", grad, transposed_shape(x.shape, geometry))
    need_x, need_w, need_b = needed(call.op, needs, 3)
    # x is the output's gradient of the convolution that this transposes, grad its image
    return call.result(
        (
            _forward(call, grad, call.conjugate(w), None, geometry) if need_x else None,
            _backward_weight(call, grad, call.conjugate(x), geometry) if need_w else None,
            _bias_gradient(call, grad, b, rank) if need_b and b is not None else None,
        )
    )


conv1d, conv2d, conv3d = replayed_family(conv_nd)
conv1d_backward, conv2d_backward, conv3d_backward = replayed_family(conv_nd_backward)
conv1d_activation, conv2d_activation, conv3d_activation = replayed_family(conv_nd_activation)
conv1d_activation_backward, conv2d_activation_backward, conv3d_activation_backward = replayed_family(
    conv_nd_activation_backward
)
conv1d_input, conv2d_input, conv3d_input = replayed_family(conv_nd_input, first=1)
conv1d_input_backward, conv2d_input_backward, conv3d_input_backward = replayed_family(conv_nd_input_backward)
conv1d_weight, conv2d_weight, conv3d_weight = replayed_family(conv_nd_weight)
conv1d_weight_backward, conv2d_weight_backward, conv3d_weight_backward = replayed_family(conv_nd_weight_backward)
conv_transpose1d, conv_transpose2d, conv_transpose3d = replayed_family(conv_transpose_nd)
conv_transpose1d_backward, conv_transpose2d_backward, conv_transpose3d_backward = replayed_family(
    conv_transpose_nd_backward
)


# --- The three directions, over arrays of the caller's rank --------------------------------------------------------


def _forward(call: Call, x: Array, w: Array, bias: Array | None, geometry: ConvGeometry) -> Array:
    """The convolution of x with w."""
    rank = geometry.rank
    y = call.image(convolved_shape(x.shape, geometry), rank, like=x)
    call.backend.convolve(lifted(x, rank), lifted(w, rank), bias, y, geometry)
    return lowered(y, rank, like=x)


def _backward_input(call: Call, grad: Array, w: Array, bias: Array | None, geometry: ConvGeometry) -> Array:
    """The transposed convolution of grad with w; the adjoint of the convolution with the conjugate of w."""
    rank = geometry.rank
    image = call.image(transposed_shape(grad.shape, geometry), rank, like=grad)
    call.backend.convolve_backward_input(lifted(grad, rank), lifted(w, rank), bias, image, geometry)
    return lowered(image, rank, like=grad)


def _backward_weight(call: Call, x: Array, grad: Array, geometry: ConvGeometry) -> Array:
    """The wgrad [OC, C / groups, *k] of an image and an output's gradient, nothing conjugated."""
    rank, (inputs, outputs, groups) = geometry.rank, geometry.channels
    filters = call.weight_gradient((outputs, inputs // groups, *geometry.kernel_size[3 - rank :]), lifted(x, rank))
    call.backend.convolve_backward_weight(lifted(x, rank), lifted(grad, rank), lifted(filters, rank), geometry)
    return filters


def _bias_gradient(call: Call, grad: Array, bias: Array, rank: int) -> Array:
    """The sum of grad over all axes but the channels."""
    sums = call.gradient_of(bias)
    call.backend.channel_sums(lifted(grad, rank), sums)
    return sums
