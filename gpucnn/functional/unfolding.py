"""im2col (unfold) and col2im (fold), each the other's gradient, for 1-d to 3-d images."""

from __future__ import annotations

from math import prod
from typing import Any

from gpucnn.backends.dtypes import NUMERIC
from gpucnn.backends.replaying import replayed
from gpucnn.functional._call import Array, Call, Needs, image_shape, lifted, needed
from gpucnn.geometry import ConvGeometry, Padding, Size
from gpucnn.geometry.arguments import integers, is_sequence
from gpucnn.geometry.caches import remembered
from gpucnn.geometry.geometries import Channels, conv_geometry

__all__ = [
    "col2im", "col2im_backward", "fold", "fold_backward", "im2col", "im2col_backward", "unfold", "unfold_backward",
]  # fmt: skip

_RANKS = {2: 1, 3: 2, 4: 2, 5: 3}


@replayed
def im2col(
    input: Array,
    kernel_size: Size,
    dilation: Size = 1,
    padding: Padding = 0,
    stride: Size = 1,
    *,
    out: Array | None = None,
) -> Array:
    """Write each window of an image as a column: a convolution becomes a product of matrices.

    Parameters
    ----------
    input : array [N, C, *space] or [C, *space]
        1-d to 3-d images of any floating-point, complex or integer dtype.
    kernel_size : int or sequence of int
        Its length is the rank of the images. An int means 2-d for 3 and 4 dimensions, as in PyTorch (1-d for 2, 3-d
        for 5): give a sequence of one for a batch of 1-d images.
    dilation, stride : int or sequence of int
        Step of the window's taps, and of the window.
    padding : int, sequence of int or (low, high) pairs, "valid", "same" or "same_lower"
        Zeros around the image.
    out : array [N, C * prod(kernel), L] or [C * prod(kernel), L], optional
        An array to write the result to, of any strides; it is returned.

    Returns
    -------
    array [N, C * prod(kernel), L] or [C * prod(kernel), L]
        One column for each of the L positions of the window; rows run over channels, then taps, row-major.

    Raises
    ------
    TypeError
        The dtype is not supported, or a parameter is not an integer.
    ValueError
        Shapes do not fit, a parameter is out of range, or the window does not fit into the padded image.

    See Also
    --------
    col2im, gpucnn.geometry.im2col_shapes

    Notes
    -----
    ``weight.reshape(OC, -1) @ im2col(x, k)`` is ``conv2d(x, weight).reshape(N, OC, -1)``. PyTorch's ``unfold`` takes
    2-d images of floating-point dtype. Another name of this function is ``unfold``.

    Examples
    --------
    >>> im2col(np.arange(9.0).reshape(1, 3, 3), 2)
    array([[0., 1., 3., 4.],
           [1., 2., 4., 5.],
           [3., 4., 6., 7.],
           [4., 5., 7., 8.]])
    """
    call = Call("im2col", NUMERIC, input=input, out=out)
    (x,) = call.arrays
    geometry = _images_geometry(call.op, x.shape, kernel_size, dilation, padding, stride)
    rank = geometry.rank
    columns = call.in_c_order((*x.shape[: -rank - 1], *_matrix(geometry)))
    call.backend.im2col(lifted(x, rank), columns.reshape(-1, *columns.shape[-2:]), geometry)
    return call.result(columns)


@replayed
def im2col_backward(
    grad_output: Array,
    input: Array,
    kernel_size: Size,
    dilation: Size = 1,
    padding: Padding = 0,
    stride: Size = 1,
    *,
    needs: Needs = None,
) -> tuple[Array | None]:
    """Gradient of `im2col`: each input's sum over the columns that contain it.

    Parameters
    ----------
    grad_output : array [N, C * prod(kernel), L] or [C * prod(kernel), L]
        Gradient of the loss with respect to the output.
    input, kernel_size, dilation, padding, stride
        As they were given to `im2col`.
    needs : sequence of 1 bool, optional
        Whether to compute it.

    Returns
    -------
    tuple of (array or None)
        Gradient with respect to `input`.

    Raises
    ------
    TypeError, ValueError
        As `im2col`, or `grad_output` does not have the output's shape.

    Examples
    --------
    >>> im2col_backward(np.ones((1, 4, 4)), np.zeros((1, 1, 3, 3)), 2)[0][0, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    """
    call = Call("im2col_backward", NUMERIC, grad_output=grad_output, input=input)
    grad, x = call.arrays
    geometry = _images_geometry(call.op, x.shape, kernel_size, dilation, padding, stride)
    rank = geometry.rank
    rows, positions = _matrix(geometry)
    call.expect_shape("grad_output", grad, (*x.shape[: -rank - 1], rows, positions))
    if not needed(call.op, needs, 1)[0]:
        return (None,)
    image = call.in_c_order(x.shape)
    call.backend.col2im(grad.reshape(-1, rows, positions), lifted(image, rank), geometry)
    return call.result((image,))


@replayed
def col2im(
    input: Array,
    output_size: Size,
    kernel_size: Size,
    dilation: Size = 1,
    padding: Padding = 0,
    stride: Size = 1,
    *,
    out: Array | None = None,
) -> Array:
    """Add up columns into the image that `im2col` would have read them from.

    Parameters
    ----------
    input : array [N, C * prod(kernel), L] or [C * prod(kernel), L]
        Of any floating-point, complex or integer dtype.
    output_size : int or sequence of int
        Spatial size of the image. Its length, or that of `kernel_size`, is the rank; two ints mean 2-d.
    kernel_size, dilation, stride : int or sequence of int
    padding : int, sequence of int or (low, high) pairs, "valid", "same" or "same_lower"
        As they are given to `im2col`.
    out : array [N, C, *output_size] or [C, *output_size], optional
        An array to write the result to, of any strides; it is returned.

    Returns
    -------
    array [N, C, *output_size] or [C, *output_size]

    Raises
    ------
    TypeError
        The dtype is not supported, or a parameter is not an integer.
    ValueError
        Shapes do not fit, a parameter is out of range, or the window does not fit into the padded image.

    See Also
    --------
    im2col

    Notes
    -----
    It is the adjoint of `im2col`, not its inverse: an input that appears in several columns gets their sum. 16-bit
    floats accumulate in float32; the order of the sum is fixed. Another name of this function is ``fold``.

    Examples
    --------
    >>> col2im(np.ones((4, 4)), (3, 3), 2)[0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    """
    call = Call("col2im", NUMERIC, input=input, out=out)
    (columns,) = call.arrays
    geometry = _columns_geometry(call.op, columns.shape, output_size, kernel_size, dilation, padding, stride)
    rank = geometry.rank
    image = call.in_c_order((*columns.shape[:-2], geometry.channels.inputs, *geometry.input_size[3 - rank :]))
    call.backend.col2im(columns.reshape(-1, *columns.shape[-2:]), lifted(image, rank), geometry)
    return call.result(image)


@replayed
def col2im_backward(
    grad_output: Array,
    input: Array,
    output_size: Size,
    kernel_size: Size,
    dilation: Size = 1,
    padding: Padding = 0,
    stride: Size = 1,
    *,
    needs: Needs = None,
) -> tuple[Array | None]:
    """Gradient of `col2im`: the columns of the image's gradient.

    Parameters
    ----------
    grad_output : array [N, C, *output_size] or [C, *output_size]
        Gradient of the loss with respect to the output.
    input, output_size, kernel_size, dilation, padding, stride
        As they were given to `col2im`.
    needs : sequence of 1 bool, optional
        Whether to compute it.

    Returns
    -------
    tuple of (array or None)
        Gradient with respect to `input`.

    Raises
    ------
    TypeError, ValueError
        As `col2im`, or `grad_output` does not have the output's shape.

    Examples
    --------
    >>> col2im_backward(np.ones((1, 3, 3)), np.zeros((4, 4)), 3, 2)[0].shape
    (4, 4)
    """
    call = Call("col2im_backward", NUMERIC, grad_output=grad_output, input=input)
    grad, columns = call.arrays
    geometry = _columns_geometry(call.op, columns.shape, output_size, kernel_size, dilation, padding, stride)
    rank = geometry.rank
    space = geometry.input_size[3 - rank :]
    call.expect_shape("grad_output", grad, (*columns.shape[:-2], geometry.channels.inputs, *space))
    if not needed(call.op, needs, 1)[0]:
        return (None,)
    grad_columns = call.in_c_order(columns.shape)
    call.backend.im2col(lifted(grad, rank), grad_columns.reshape(-1, *columns.shape[-2:]), geometry)
    return call.result((grad_columns,))


unfold, unfold_backward = im2col, im2col_backward
fold, fold_backward = col2im, col2im_backward


@remembered
def _images_geometry(
    op: str, shape: tuple[int, ...], kernel_size: Size, dilation: Size, padding: Padding, stride: Size
) -> ConvGeometry:
    """The geometry of unfolding images of this shape."""
    rank = _rank_of_images(op, len(shape), kernel_size)
    _, channels, *space = image_shape(op, "input", shape, rank)
    return conv_geometry(op, tuple(space), Channels(channels, 1), kernel_size, stride, padding, dilation)


def _rank_of_images(op: str, dimensions: int, kernel_size: Any) -> int:
    if is_sequence(kernel_size):
        if len(kernel_size) not in (1, 2, 3):
            raise ValueError(f"{op}: kernel_size has {len(kernel_size)} values, expected 1 to 3")
        return len(kernel_size)
    if dimensions not in _RANKS:
        raise ValueError(f"{op}: input has {dimensions} dimensions, expected (N, C, *space) or (C, *space)")
    return _RANKS[dimensions]


def _matrix(geometry: ConvGeometry) -> tuple[int, int]:
    """Rows and columns of an image's windows."""
    return geometry.channels.inputs * geometry.taps, prod(geometry.output_size)


@remembered
def _columns_geometry(
    op: str,
    shape: tuple[int, ...],
    output_size: Size,
    kernel_size: Size,
    dilation: Size,
    padding: Padding,
    stride: Size,
) -> ConvGeometry:
    """The geometry of the unfolding that gives columns of this shape."""
    if len(shape) not in (2, 3):
        raise ValueError(
            f"{op}: input has {len(shape)} dimensions, expected 3 (N, C * prod(kernel), L) or 2 (C * prod(kernel), L)"
        )
    sequences = [value for value in (output_size, kernel_size) if is_sequence(value)]
    rank = len(sequences[0]) if sequences else 2  # type: ignore[arg-type]
    if rank not in (1, 2, 3):
        raise ValueError(f"{op}: output_size has {rank} values, expected 1 to 3")
    space = integers(op, "output_size", output_size, rank, 1)
    taps = prod(integers(op, "kernel_size", kernel_size, rank, 1))
    rows, columns = shape[-2:]
    if rows == 0 or rows % taps:
        raise ValueError(f"{op}: input has {rows} rows, expected a multiple of the window's {taps} taps")
    geometry = conv_geometry(op, space, Channels(rows // taps, 1), kernel_size, stride, padding, dilation)
    positions = prod(geometry.output_size)
    if columns != positions:
        raise ValueError(
            f"{op}: input has {columns} columns, expected one for each of the window's {positions} positions"
        )
    return geometry
