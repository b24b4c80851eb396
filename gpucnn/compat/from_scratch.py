"""im2col and col2im as in the books *Deep Learning from Scratch* and in DeZero, the framework of the third.

The first two books call them `im2col` and `col2im`, the third `im2col_array` and `col2im_array`. A row of the matrix is
a window: rows run over images, then positions; columns over channels, then taps, all row-major. The books' `im2col`
makes float64 of everything; here the dtype stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from gpucnn.compat._arrays import Array, expect_shape
from gpucnn.compat._columns import columns_of, image_of
from gpucnn.compat._windows import outsize
from gpucnn.geometry.arguments import integer, integers

__all__ = ["col2im", "col2im_array", "im2col", "im2col_array"]

Pair = int | Sequence[int]


def im2col(input_data: Array, filter_h: int, filter_w: int, stride: int = 1, pad: int = 0) -> Array:
    """Write each window of 2-d images as a row.

    Parameters
    ----------
    input_data : array [N, C, H, W]
        Floating-point, complex or integer.
    filter_h, filter_w : int
        Size of the window.
    stride, pad : int
        Its step, and zeros around the images.

    Returns
    -------
    array [N * OH * OW, C * filter_h * filter_w]

    Raises
    ------
    TypeError
        The dtype is not supported, or a parameter is not an integer.
    ValueError
        Shapes do not fit, a parameter is out of range, or no window fits.

    Examples
    --------
    >>> im2col(np.arange(9.0).reshape(1, 1, 3, 3), 2, 2)
    array([[0., 1., 3., 4.],
           [1., 2., 4., 5.],
           [3., 4., 6., 7.],
           [4., 5., 7., 8.]])
    """
    return _matrix(_unfold("im2col", input_data, (filter_h, filter_w), stride, pad))


def col2im(
    col: Array, input_shape: Sequence[int], filter_h: int, filter_w: int, stride: int = 1, pad: int = 0
) -> Array:
    """Add up the rows that `im2col` makes of images into images.

    Parameters
    ----------
    col : array [N * OH * OW, C * filter_h * filter_w]
        Floating-point, complex or integer.
    input_shape : sequence of 4 int
        Shape of the images, (N, C, H, W).
    filter_h, filter_w, stride, pad
        As they were given to `im2col`.

    Returns
    -------
    array [N, C, H, W]

    Raises
    ------
    TypeError, ValueError
        As `im2col`.

    Examples
    --------
    >>> col2im(np.ones((4, 4)), (1, 1, 3, 3), 2, 2)[0, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    """
    return _fold("col2im", col, input_shape, (filter_h, filter_w), stride, pad, to_matrix=True)


def im2col_array(img: Array, kernel_size: Pair, stride: Pair, pad: Pair, to_matrix: bool = True) -> Array:
    """Write each window of 2-d images as a row, or leave all axes apart.

    Parameters
    ----------
    img : array [N, C, H, W]
        Floating-point, complex or integer.
    kernel_size, stride, pad : int or sequence of 2 int
        Size of the window, its step, and zeros around the images.
    to_matrix : bool
        Return a matrix.

    Returns
    -------
    array [N * OH * OW, C * KH * KW], or [N, C, KH, KW, OH, OW] without `to_matrix`

    Raises
    ------
    TypeError, ValueError
        As `im2col`.

    Examples
    --------
    >>> im2col_array(np.ones((2, 3, 5, 5)), 3, 1, 1).shape
    (50, 27)
    >>> im2col_array(np.ones((2, 3, 5, 5)), 3, 1, 1, to_matrix=False).shape
    (2, 3, 3, 3, 5, 5)
    """
    columns = _unfold("im2col_array", img, kernel_size, stride, pad)
    return _matrix(columns) if to_matrix else columns


def col2im_array(
    col: Array, img_shape: Sequence[int], kernel_size: Pair, stride: Pair, pad: Pair, to_matrix: bool = True
) -> Array:
    """Add up what `im2col_array` makes of images into images.

    Parameters
    ----------
    col : array [N * OH * OW, C * KH * KW], or [N, C, KH, KW, OH, OW] without `to_matrix`
        Floating-point, complex or integer.
    img_shape : sequence of 4 int
        Shape of the images, (N, C, H, W).
    kernel_size, stride, pad, to_matrix
        As they were given to `im2col_array`.

    Returns
    -------
    array [N, C, H, W]

    Raises
    ------
    TypeError, ValueError
        As `im2col`.

    Examples
    --------
    >>> col2im_array(np.ones((50, 27)), (2, 3, 5, 5), 3, 1, 1).shape
    (2, 3, 5, 5)
    """
    return _fold("col2im_array", col, img_shape, kernel_size, stride, pad, to_matrix)


def _unfold(op: str, images: Array, kernel_size: Pair, stride: Pair, pad: Pair) -> Array:
    if getattr(images, "ndim", None) != 4:
        raise ValueError(f"{op}: images have shape {getattr(images, 'shape', None)}, expected (N, C, H, W)")
    kernel, steps, low = _pairs(op, kernel_size, stride, pad)
    outs = tuple(map(outsize, images.shape[2:], kernel, steps, low))
    return columns_of(op, images, kernel, steps, low, outs)


def _fold(
    op: str, columns: Array, shape: Sequence[int], kernel_size: Pair, stride: Pair, pad: Pair, to_matrix: bool
) -> Array:
    name = "input_shape" if op == "col2im" else "img_shape"
    if len(shape) != 4:
        raise ValueError(f"{op}: {name} is {tuple(shape)}, expected (N, C, H, W)")
    n, c, *size = (integer(op, name, item, 0) for item in shape)
    kernel, steps, low = _pairs(op, kernel_size, stride, pad)
    outs = tuple(map(outsize, size, kernel, steps, low))
    if to_matrix:
        expect_shape(op, "col", columns, (n * prod(outs), c * prod(kernel)))
        columns = columns.reshape(n, *outs, c, *kernel).transpose(0, 3, 4, 5, 1, 2)
    return image_of(op, columns, steps, low, tuple(size))


def _pairs(op: str, kernel_size: Pair, stride: Pair, pad: Pair) -> tuple[tuple[int, ...], ...]:
    kernel, steps = integers(op, "kernel_size", kernel_size, 2, 1), integers(op, "stride", stride, 2, 1)
    return kernel, steps, integers(op, "pad", pad, 2, 0)


def _matrix(columns: Array) -> Array:
    """[N, C, KH, KW, OH, OW] as [N * OH * OW, C * KH * KW]."""
    n, c, kh, kw, oh, ow = columns.shape
    return columns.transpose(0, 4, 5, 1, 2, 3).reshape(n * oh * ow, c * kh * kw)
