"""Convolutions of ``chainer.functions``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gpucnn.functional as F
from gpucnn.compat._arrays import Array, rank_of
from gpucnn.compat._windows import covering, unread
from gpucnn.compat._windows import outsize as covered
from gpucnn.compat.chainer._ranks import of_rank
from gpucnn.geometry.arguments import integers

__all__ = [
    "convolution_1d", "convolution_2d", "convolution_3d", "convolution_nd", "deconvolution_1d", "deconvolution_2d",
    "deconvolution_3d", "deconvolution_nd", "depthwise_convolution_2d", "dilated_convolution_2d",
    "local_convolution_2d",
]  # fmt: skip

Size = int | Sequence[int]


def convolution_nd(
    x: Array,
    W: Array,
    b: Array | None = None,
    stride: Size = 1,
    pad: Size = 0,
    cover_all: bool = False,
    dilate: Size = 1,
    groups: int = 1,
) -> Array:
    """Convolution of images with filters (cross-correlation).

    Parameters
    ----------
    x : array [N, C, *space]
        1-d to 3-d images.
    W : array [OC, C / groups, *kernel]
        The filters, in the dtype of `x`.
    b : array [OC], optional
        Added to each channel of the result.
    stride, pad, dilate : int or sequence of int
        Step of the window, zeros around the images, and step of the window's taps.
    cover_all : bool
        One more window, which overhangs, where those that fit leave a rest.
    groups : int
        Groups that divide the channels.

    Returns
    -------
    array [N, OC, *out]

    Raises
    ------
    TypeError, ValueError
        As `gpucnn.functional.conv2d`.

    Examples
    --------
    >>> x, W = np.ones((1, 1, 5)), np.ones((1, 1, 2))
    >>> convolution_nd(x, W, stride=2), convolution_nd(x, W, stride=2, cover_all=True)
    (array([[[2., 2.]]]), array([[[2., 2., 1.]]]))
    """
    op, rank = "convolution_nd", rank_of("convolution_nd", "x", x)
    padding: Any = pad
    if cover_all:
        sizes, kernel = x.shape[2:], W.shape[2:]
        steps, low, gaps = _columns(op, rank, stride, pad, dilate)
        outs = [covered(*axis[:4], True, axis[4]) for axis in zip(sizes, kernel, steps, low, gaps, strict=True)]
        padding = covering(op, "the output", sizes, outs, kernel, steps, low, gaps)
    return getattr(F, f"conv{rank}d")(x, W, b, stride, padding, dilate, groups)


def convolution_2d(
    x: Array,
    W: Array,
    b: Array | None = None,
    stride: Size = 1,
    pad: Size = 0,
    cover_all: bool = False,
    *,
    dilate: Size = 1,
    groups: int = 1,
) -> Array:
    """As `convolution_nd`, for 2-d images.

    Raises
    ------
    ValueError
        `x` does not have 4 dimensions.
    """
    return _convolution_2d(x, W, b, stride, pad, cover_all, dilate, groups)


def dilated_convolution_2d(
    x: Array,
    W: Array,
    b: Array | None = None,
    stride: Size = 1,
    pad: Size = 0,
    dilate: Size = 1,
    cover_all: bool = False,
) -> Array:
    """As `convolution_2d`, with `dilate` before `cover_all` and without groups.

    Raises
    ------
    ValueError
        `x` does not have 4 dimensions.
    """
    return convolution_2d(x, W, b, stride, pad, cover_all, dilate=dilate)


def depthwise_convolution_2d(x: Array, W: Array, b: Array | None = None, stride: Size = 1, pad: Size = 0) -> Array:
    """Convolution of each channel with filters of its own.

    Parameters
    ----------
    x : array [N, C, H, W]
        Images.
    W : array [M, C, KH, KW]
        M filters for each channel.
    b : array [C * M], optional
        Added to each channel of the result.
    stride, pad : int or sequence of 2 int
        Step of the window, and zeros around the images.

    Returns
    -------
    array [N, C * M, OH, OW]
        M results of the first channel, then those of the second one, and so on.

    Raises
    ------
    TypeError, ValueError
        As `gpucnn.functional.conv2d`.

    Examples
    --------
    >>> x, W = np.ones((1, 2, 3, 3)), np.arange(4.0).reshape(2, 2, 1, 1)
    >>> depthwise_convolution_2d(x, W)[0, :, 0, 0]
    array([0., 2., 1., 3.])
    """
    multiplier, channels, *kernel = W.shape
    filters = W.swapaxes(0, 1).reshape(multiplier * channels, 1, *kernel)
    return convolution_2d(x, filters, b, stride, pad, groups=channels)


def local_convolution_2d(x: Array, W: Array, b: Array | None = None, stride: Size = 1) -> Array:
    """Convolution with separate filters at each position.

    Parameters
    ----------
    x : array [N, C, H, W]
        Images.
    W : array [OC, OH, OW, C, KH, KW]
        The filters.
    b : array [OC, OH, OW], optional
        Added to the result.
    stride : int or sequence of 2 int
        Step of the window.

    Returns
    -------
    array [N, OC, OH, OW]

    Raises
    ------
    TypeError, ValueError
        As `gpucnn.functional.locally_connected2d`.

    Examples
    --------
    >>> local_convolution_2d(np.ones((1, 1, 3, 3)), np.ones((4, 2, 2, 1, 2, 2))).shape
    (1, 4, 2, 2)
    """
    return F.locally_connected2d(x, W, b, stride)


def deconvolution_nd(
    x: Array,
    W: Array,
    b: Array | None = None,
    stride: Size = 1,
    pad: Size = 0,
    outsize: Sequence[int] | None = None,
    dilate: Size = 1,
    groups: int = 1,
) -> Array:
    """Transposed convolution: each input adds its multiple of a filter to the output.

    Parameters
    ----------
    x : array [N, C, *space]
        1-d to 3-d images.
    W : array [C, OC / groups, *kernel]
        The filters, in the dtype of `x`.
    b : array [OC], optional
        Added to each channel of the result.
    stride, pad, dilate : int or sequence of int
        As they were given to the convolution.
    outsize : sequence of int, optional
        Spatial size of the result, one that the convolution makes the size of `x` of, with or without ``cover_all``.
        By default it is the least without.
    groups : int
        Groups that divide the channels.

    Returns
    -------
    array [N, OC, *out]

    Raises
    ------
    TypeError, ValueError
        As `gpucnn.functional.conv_transpose2d`, or `outsize` is none that the convolution could have read.

    Examples
    --------
    >>> x, W = np.ones((1, 1, 2)), np.ones((1, 1, 2))
    >>> deconvolution_nd(x, W, stride=2).shape, deconvolution_nd(x, W, stride=2, outsize=(5,)).shape
    ((1, 1, 4), (1, 1, 5))
    """
    op, rank = "deconvolution_nd", rank_of("deconvolution_nd", "x", x)
    padding: Any = pad
    rest: Size = 0
    if outsize is not None:
        kernel, sizes = W.shape[2:], integers(op, "outsize", outsize, rank, 1)
        steps, low, gaps = _columns(op, rank, stride, pad, dilate)
        padding = covering(op, "x", sizes, x.shape[2:], kernel, steps, low, gaps)
        rest = unread(sizes, padding, x.shape[2:], kernel, steps, gaps)
    return getattr(F, f"conv_transpose{rank}d")(x, W, b, stride, padding, rest, groups, dilate)


def deconvolution_2d(
    x: Array,
    W: Array,
    b: Array | None = None,
    stride: Size = 1,
    pad: Size = 0,
    outsize: Sequence[int] | None = None,
    *,
    dilate: Size = 1,
    groups: int = 1,
) -> Array:
    """As `deconvolution_nd`, for 2-d images.

    Raises
    ------
    ValueError
        `x` does not have 4 dimensions.
    """
    return _deconvolution_2d(x, W, b, stride, pad, outsize, dilate, groups)


convolution_1d, _convolution_2d, convolution_3d = (of_rank(convolution_nd, rank) for rank in (1, 2, 3))
deconvolution_1d, _deconvolution_2d, deconvolution_3d = (of_rank(deconvolution_nd, rank) for rank in (1, 2, 3))


def _columns(op: str, rank: int, stride: Size, pad: Size, dilate: Size) -> tuple[tuple[int, ...], ...]:
    """Stride, pad and dilation, one for each axis."""
    steps, low = integers(op, "stride", stride, rank, 1), integers(op, "pad", pad, rank, 0)
    return steps, low, integers(op, "dilate", dilate, rank, 1)
