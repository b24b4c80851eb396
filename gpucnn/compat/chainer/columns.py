"""im2col and col2im of ``chainer.functions`` and ``chainer.utils.conv``, and the sizes that they go by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from gpucnn.compat._arrays import Array, rank_of
from gpucnn.compat._columns import columns_of, image_of
from gpucnn.compat._windows import outsize, transposed_outsize
from gpucnn.geometry.arguments import boolean, integer, integers

__all__ = ["col2im_gpu", "get_conv_outsize", "get_deconv_outsize", "im2col", "im2col_gpu"]

Size = int | Sequence[int]
Ints = tuple[int, ...]
NO_SIZE: Mapping[str, None] = {"out_h": None, "out_w": None}


def get_conv_outsize(size: int, k: int, s: int, p: int, cover_all: bool = False, d: int = 1) -> int:
    """Number of windows along an axis.

    Parameters
    ----------
    size, k, s, p, d : int
        Size of the axis and of the window, stride, padding, dilation.
    cover_all : bool
        Count one more window, which overhangs, where those that fit leave a rest.

    Returns
    -------
    int

    Examples
    --------
    >>> get_conv_outsize(5, 2, 2, 0), get_conv_outsize(5, 2, 2, 0, cover_all=True)
    (2, 3)
    """
    return outsize(size, k, s, p, cover_all, d)


def get_deconv_outsize(size: int, k: int, s: int, p: int, cover_all: bool = False, d: int = 1) -> int:
    """Least size of an axis with `size` windows.

    Parameters
    ----------
    size, k, s, p, cover_all, d
        As in `get_conv_outsize`, but `size` is the number of windows.

    Returns
    -------
    int

    Examples
    --------
    >>> get_deconv_outsize(3, 2, 2, 0), get_deconv_outsize(3, 2, 2, 0, cover_all=True)
    (6, 5)
    """
    return transposed_outsize(size, k, s, p, cover_all, d)


def im2col(x: Array, ksize: Size, stride: Size = 1, pad: Size = 0, cover_all: bool = False, dilate: Size = 1) -> Array:
    """Write the window at each position of 2-d images to the channels there.

    Parameters
    ----------
    x : array [N, C, H, W]
        Floating-point, complex or integer.
    ksize, stride, pad, dilate : int or sequence of 2 int
        Size of the window, its step, zeros around the images, and the step of the window's taps.
    cover_all : bool
        One more window, which overhangs, where those that fit leave a rest.

    Returns
    -------
    array [N, C * KH * KW, OH, OW]

    Raises
    ------
    TypeError
        The dtype is not supported, or a parameter is not an integer.
    ValueError
        Shapes do not fit, a parameter is out of range, or no window fits.

    Examples
    --------
    >>> im2col(np.ones((2, 3, 5, 5)), 3).shape
    (2, 27, 3, 3)
    """
    op = "im2col"
    kernel, steps = integers(op, "ksize", ksize, 2, 1), integers(op, "stride", stride, 2, 1)
    low, gaps = integers(op, "pad", pad, 2, 0), integers(op, "dilate", dilate, 2, 1)
    columns = _windows_of(op, "x", x, (kernel, steps, low, gaps), cover_all)
    n, c, _, _, oh, ow = columns.shape
    return columns.reshape(n, c * prod(kernel), oh, ow)


def im2col_gpu(
    img: Array,
    kh: int,
    kw: int,
    sy: int,
    sx: int,
    ph: int,
    pw: int,
    cover_all: bool = False,
    dy: int = 1,
    dx: int = 1,
    out_h: int | None = None,
    out_w: int | None = None,
) -> Array:
    """Collect the windows of 2-d images, on a GPU or on the CPU.

    Parameters
    ----------
    img : array [N, C, H, W]
        Floating-point, complex or integer.
    kh, kw, sy, sx, ph, pw : int
        Size of the window, its step, and zeros around the images, each along height and width.
    cover_all : bool
        One more window, which overhangs, where those that fit leave a rest.
    dy, dx : int
        Step of the window's taps.
    out_h, out_w : int, optional
        Number of windows, whatever fits: they read zeros beyond the image.

    Returns
    -------
    array [N, C, KH, KW, OH, OW]

    Raises
    ------
    TypeError, ValueError
        As `im2col`.

    Examples
    --------
    >>> im2col_gpu(np.arange(9.0).reshape(1, 1, 3, 3), 2, 2, 1, 1, 0, 0)[0, 0, :, :, 0, 0]
    array([[0., 1.],
           [3., 4.]])
    """
    op = "im2col_gpu"
    kernel, steps = integers(op, "kh and kw", (kh, kw), 2, 1), integers(op, "sy and sx", (sy, sx), 2, 1)
    low, gaps = integers(op, "ph and pw", (ph, pw), 2, 0), integers(op, "dy and dx", (dy, dx), 2, 1)
    return _windows_of(op, "img", img, (kernel, steps, low, gaps), cover_all, {"out_h": out_h, "out_w": out_w})


def col2im_gpu(col: Array, sy: int, sx: int, ph: int, pw: int, h: int, w: int, dy: int = 1, dx: int = 1) -> Array:
    """Add up the windows of `im2col_gpu` into 2-d images, on a GPU or on the CPU.

    Parameters
    ----------
    col : array [N, C, KH, KW, OH, OW]
        Floating-point, complex or integer.
    sy, sx, ph, pw, dy, dx : int
        As they were given to `im2col_gpu`.
    h, w : int
        Size of the images.

    Returns
    -------
    array [N, C, H, W]

    Raises
    ------
    TypeError, ValueError
        As `im2col`.

    Examples
    --------
    >>> col2im_gpu(np.ones((1, 1, 2, 2, 2, 2)), 1, 1, 0, 0, 3, 3)[0, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    """
    op = "col2im_gpu"
    steps, low = integers(op, "sy and sx", (sy, sx), 2, 1), integers(op, "ph and pw", (ph, pw), 2, 0)
    size, gaps = integers(op, "h and w", (h, w), 2, 1), integers(op, "dy and dx", (dy, dx), 2, 1)
    return image_of(op, col, steps, low, size, gaps)


def _windows_of(
    op: str,
    name: str,
    images: Array,
    parameters: tuple[Ints, Ints, Ints, Ints],
    cover_all: bool,
    requested: Mapping[str, int | None] = NO_SIZE,
) -> Array:
    """The windows [N, C, KH, KW, OH, OW] of images, by kernel, stride, padding and dilation."""
    if rank_of(op, name, images) != 2:
        raise ValueError(f"{op}: {name} has shape {tuple(images.shape)}, expected (N, C, H, W)")
    kernel, steps, low, gaps = parameters
    covers = boolean(op, "cover_all", cover_all)
    axes = zip(images.shape[2:], kernel, steps, low, gaps, requested.items(), strict=True)
    outs = tuple(
        outsize(size, k, s, p, covers, d) if out is None else integer(op, key, out, 1)
        for size, k, s, p, d, (key, out) in axes
    )
    return columns_of(op, images, kernel, steps, low, outs, gaps)
