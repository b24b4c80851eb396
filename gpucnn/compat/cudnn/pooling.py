"""Pooling, under the names and arguments of CuPy's cuDNN functions."""

from __future__ import annotations

from gpucnn.compat._arrays import Array, expect_shape, rank_of, taken
from gpucnn.compat._pooling import Windows, windows
from gpucnn.compat.cudnn.constants import FLOATS, one_of

__all__ = ["pooling_backward", "pooling_forward"]

Ints = tuple[int, ...]
_MODES = (
    "CUDNN_POOLING_MAX",
    "CUDNN_POOLING_AVERAGE_COUNT_INCLUDE_PADDING",
    "CUDNN_POOLING_AVERAGE_COUNT_EXCLUDE_PADDING",
    "CUDNN_POOLING_MAX_DETERMINISTIC",
)


def pooling_forward(x: Array, y: Array, ksize: Ints, stride: Ints, pad: Ints, mode: int) -> Array:
    """Pool images, and write the result to `y`.

    Parameters
    ----------
    x : array [N, C, *space]
        1-d to 3-d images, float16, float32 or float64.
    y : array [N, C, *out]
        Overwritten. Its size is the caller's: as many windows as fit, or one more that overhangs (Chainer's
        ``cover_all``).
    ksize, stride, pad : tuple of int
        Size of the window, its step and the padding, one value for each spatial axis; the padding is less than the
        window.
    mode : int
        A constant ``CUDNN_POOLING_…``.

    Returns
    -------
    array
        `y`.

    Raises
    ------
    TypeError
        An argument is no array, or a dtype is not supported or not that of `x`.
    ValueError
        Shapes do not fit, there is no such mode, or a parameter is out of range.

    Notes
    -----
    A maximum is NaN where its window has one; cuDNN passes over NaN. An average with padding is divided by the whole
    window, its overhang too. A window that reads nothing but padding gives -inf as a maximum and 0 as an average.

    Examples
    --------
    >>> x, y = np.arange(5.0).reshape(1, 1, 5), np.empty((1, 1, 3))
    >>> pooling_forward(x, y, (2,), (2,), (0,), 0)  # of CUDNN_POOLING_MAX
    array([[[1., 3., 4.]]])
    """
    op, name = "pooling_forward", one_of("pooling_forward", "mode", mode, *_MODES)
    image, output = taken(op, {"x": x, "y": y}, FLOATS).arrays
    pooled = _windows(op, image, output, ksize, stride, pad)
    if "MAX" in name:
        pooled.pool("max_pool{}d", image, output)
    else:
        pooled.pool("avg_pool{}d", image, output, count_include_pad="INCLUDE" in name)
    return y


def pooling_backward(x: Array, y: Array, gy: Array, ksize: Ints, stride: Ints, pad: Ints, mode: int) -> Array:
    """Compute the gradient of `pooling_forward`.

    Parameters
    ----------
    x, ksize, stride, pad, mode
        As they were given to `pooling_forward`.
    y : array [N, C, *out]
        Its result, whose values are not read.
    gy : array [N, C, *out]
        Gradient with respect to `y`.

    Returns
    -------
    array in the shape of `x`
        Gradient with respect to `x`. Of equal maxima in a window the first one receives it.

    Raises
    ------
    TypeError, ValueError
        As `pooling_forward`.

    Examples
    --------
    >>> x, gy = np.arange(5.0).reshape(1, 1, 5), np.ones((1, 1, 3))
    >>> pooling_backward(x, gy, gy, (2,), (2,), (0,), 0)
    array([[[0., 1., 0., 1., 1.]]])
    """
    op, name = "pooling_backward", one_of("pooling_backward", "mode", mode, *_MODES)
    received = taken(op, {"x": x, "y": y, "gy": gy}, FLOATS)
    image, output, grad = received.arrays
    pooled = _windows(op, image, output, ksize, stride, pad)
    expect_shape(op, "gy", grad, tuple(output.shape), "that of y, ")
    window = pooled.kernel, pooled.stride, pooled.pads
    if "MAX" in name:
        (gx,) = pooled.operation("max_pool{}d_backward")(pooled.met(grad), image, *window)
    else:
        backward = pooled.operation("avg_pool{}d_backward")
        (gx,) = backward(pooled.met(grad), image, *window, count_include_pad="INCLUDE" in name)
    return received.give_back(gx)


def _windows(op: str, image: Array, output: Array, ksize: Ints, stride: Ints, pad: Ints) -> Windows:
    rank_of(op, "x", image)
    if output.ndim != image.ndim:
        raise ValueError(f"{op}: y has {output.ndim} dimensions, expected {image.ndim}, as x")
    sizes, outs = tuple(image.shape[2:]), tuple(output.shape[2:])
    pooled = windows(op, "y", sizes, outs, ksize, stride, pad)
    expect_shape(op, "y", output, (*image.shape[:2], *outs), "(N, C, *out) = ")
    return pooled
