"""The three directions of a convolution, under the names and arguments of CuPy's cuDNN functions."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import gpucnn.functional as F
from gpucnn.compat._arrays import Array, channels_first, expect_shape, rank_of, taken
from gpucnn.compat._windows import Pairs, covering, unread
from gpucnn.compat.cudnn.constants import CUDNN_TENSOR_NCHW, FLOATS, is_channels_last
from gpucnn.functional._convolution_geometry import geometry_of
from gpucnn.geometry.arguments import integer, integers
from gpucnn.numerics import workspace_limit

__all__ = [
    "convolution_backward_data", "convolution_backward_filter", "convolution_forward", "get_max_workspace_size",
    "set_max_workspace_size",
]  # fmt: skip

Ints = tuple[int, ...]

# --- Workspace ----------------------------------------------------------------------------------------------------

_DEFAULT_WORKSPACE = 8 << 20  # what CuPy reports where no one set it; gpucnn's own default holds then
_workspace: int | None = None


def get_max_workspace_size() -> int:
    """Bytes of workspace that a convolution may take: what was set, else CuPy's default of 8 MiB.

    Notes
    -----
    Until `set_max_workspace_size` is called, the limit in force is that of `gpucnn.workspace_limit`.

    Examples
    --------
    >>> get_max_workspace_size()
    8388608
    """
    return _DEFAULT_WORKSPACE if _workspace is None else _workspace


def set_max_workspace_size(size: int) -> None:
    """Bound the workspace of this module's convolutions, as `gpucnn.workspace_limit` does within a block.

    Parameters
    ----------
    size : int
        Bytes. Less than a convolution needs for one image bounds nothing: none is refused.

    Raises
    ------
    TypeError, ValueError
        `size` is not an integer, or negative.
    """
    global _workspace
    _workspace = integer("set_max_workspace_size", "size", size, 0)


def _limited() -> AbstractContextManager[None]:
    return nullcontext() if _workspace is None else workspace_limit(_workspace)


# --- The three directions -----------------------------------------------------------------------------------------


def convolution_forward(
    x: Array,
    W: Array,
    b: Array | None,
    y: Array,
    pad: Ints,
    stride: Ints,
    dilation: Ints | None,
    groups: int,
    *,
    auto_tune: bool,
    tensor_core: str,
    d_layout: int = CUDNN_TENSOR_NCHW,
    w_layout: int = CUDNN_TENSOR_NCHW,
) -> None:
    """Convolve (cross-correlate) images with filters, and write the result to `y`.

    Parameters
    ----------
    x : array [N, C, *space]
        1-d to 3-d images, float16, float32 or float64.
    W : array [OC, C / groups, *kernel]
        Filters, of any strides, negative ones too.
    b : array of OC values, or None
        Added to each channel of the result.
    y : array [N, OC, *out]
        Overwritten, whatever it holds. Its size is the caller's: as many windows as fit, or one more that overhangs
        (Chainer's ``cover_all``).
    pad, stride, dilation : tuple of int
        One value for each spatial axis; None as `dilation` means 1.
    groups : int
        Groups that divide the channels.
    auto_tune : bool
        Has no effect: the algorithm follows from sizes, or from `gpucnn.tuned`.
    tensor_core : "auto", "always" or "never"
        Has no effect: 16-bit floats use tensor cores where there are any, float32 as `gpucnn.precision` says.
    d_layout, w_layout : int
        ``CUDNN_TENSOR_NHWC`` for images [N, *space, C] and filters [OC, *kernel, C / groups].

    Raises
    ------
    TypeError
        An argument is no array, or a dtype is not supported or not that of `x`.
    ValueError
        Shapes do not fit, or a parameter is out of range.

    Notes
    -----
    float16 is summed in float32. The result repeats bit for bit.

    Examples
    --------
    >>> y = np.empty((1, 1, 2, 2))
    >>> x, W = np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2))
    >>> convolution_forward(x, W, None, y, (0, 0), (1, 1), (1, 1), 1, auto_tune=True, tensor_core="auto")
    >>> y[0, 0]
    array([[4., 4.],
           [4., 4.]])
    """
    options = pad, stride, dilation, groups
    layer = _layer("convolution_forward", {"x": x, "W": W, "y": y}, b, options, tensor_core, (d_layout, w_layout))
    layer.expect_bias("y", layer.filters.shape[0])
    with _limited():
        layer.operation("conv{}d")(
            layer.image, layer.filters, layer.bias, layer.stride, layer.pads, layer.dilation, groups, out=layer.output
        )


def convolution_backward_data(
    W: Array,
    x: Array,
    b: Array | None,
    y: Array,
    pad: Ints,
    stride: Ints,
    dilation: Ints | None,
    groups: int,
    *,
    deterministic: bool,
    auto_tune: bool,
    tensor_core: str,
    d_layout: int = CUDNN_TENSOR_NCHW,
    w_layout: int = CUDNN_TENSOR_NCHW,
) -> None:
    """Compute the gradient of `convolution_forward` with respect to its images: a transposed convolution.

    Parameters
    ----------
    W : array [OC, C / groups, *kernel]
        The filters.
    x : array [N, OC, *out]
        Gradient with respect to the convolution's result, or the images of a transposed convolution.
    b : array of C values, or None
        Added to each channel of the result.
    y : array [N, C, *space]
        The result; overwritten.
    pad, stride, dilation, groups, auto_tune, tensor_core, d_layout, w_layout
        As in `convolution_forward`.
    deterministic : bool
        Has no effect: results always repeat bit for bit.

    Raises
    ------
    TypeError, ValueError
        As `convolution_forward`.

    Examples
    --------
    >>> y = np.empty((1, 1, 3))
    >>> x, W = np.ones((1, 1, 2)), np.ones((1, 1, 2))
    >>> how = {"deterministic": True, "auto_tune": True, "tensor_core": "auto"}
    >>> convolution_backward_data(W, x, None, y, (0,), (1,), (1,), 1, **how)
    >>> y[0, 0]
    array([1., 2., 1.])
    """
    options = pad, stride, dilation, groups
    layer = _layer("convolution_backward_data", {"y": y, "W": W, "x": x}, b, options, tensor_core, (d_layout, w_layout))
    layer.expect_bias("y", layer.image.shape[1])
    with _limited():
        layer.operation("conv_transpose{}d")(
            layer.output,
            layer.filters,
            layer.bias,
            layer.stride,
            layer.pads,
            layer.unread,
            groups,
            layer.dilation,
            out=layer.image,
        )


def convolution_backward_filter(
    x: Array,
    gy: Array,
    gW: Array,
    pad: Ints,
    stride: Ints,
    dilation: Ints | None,
    groups: int,
    *,
    deterministic: bool,
    auto_tune: bool,
    tensor_core: str,
    d_layout: int = CUDNN_TENSOR_NCHW,
    w_layout: int = CUDNN_TENSOR_NCHW,
) -> None:
    """Compute the gradient of `convolution_forward` with respect to its filters.

    Parameters
    ----------
    x : array [N, C, *space]
        The images.
    gy : array [N, OC, *out]
        Gradient with respect to the convolution's result.
    gW : array [OC, C / groups, *kernel]
        The result; overwritten.
    pad, stride, dilation, groups, auto_tune, tensor_core, d_layout, w_layout
        As in `convolution_forward`.
    deterministic : bool
        Has no effect: results always repeat bit for bit.

    Raises
    ------
    TypeError, ValueError
        As `convolution_forward`.

    Examples
    --------
    >>> gW = np.empty((1, 1, 2))
    >>> x, gy = np.arange(3.0).reshape(1, 1, 3), np.ones((1, 1, 2))
    >>> how = {"deterministic": True, "auto_tune": True, "tensor_core": "auto"}
    >>> convolution_backward_filter(x, gy, gW, (0,), (1,), (1,), 1, **how)
    >>> gW[0, 0]
    array([1., 3.])
    """
    options = pad, stride, dilation, groups
    op, arrays = "convolution_backward_filter", {"x": x, "gW": gW, "gy": gy}
    layer = _layer(op, arrays, None, options, tensor_core, (d_layout, w_layout))
    with _limited():
        layer.operation("conv{}d_weight")(
            layer.image,
            tuple(layer.filters.shape),
            layer.output,
            layer.stride,
            layer.pads,
            layer.dilation,
            groups,
            out=layer.filters,
        )


# --- What they share ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    """A checked convolution: views with channels first, and its parameters."""

    op: str
    rank: int
    image: Array
    filters: Array
    output: Array
    bias: Array | None
    stride: Ints
    pads: Pairs
    dilation: Ints
    unread: Ints
    """Positions at the high end of each axis of the padded image that no window reaches."""

    def operation(self, name: str) -> Any:
        return getattr(F, name.format(self.rank))

    def expect_bias(self, name: str, channels: int) -> None:
        """Raise ValueError unless the bias, if any, has a value for each channel."""
        if self.bias is not None and self.bias.shape != (channels,):
            expected = f"one for each of {name}'s {channels} channels"
            raise ValueError(f"{self.op}: b has {self.bias.size} values, expected {expected}")


def _layer(
    op: str,
    arrays: dict[str, Array],
    bias: Array | None,
    options: tuple[Any, Any, Any, Any],
    tensor_core: str,
    layouts: tuple[int, int],
) -> _Layer:
    """Check a convolution: `arrays` are image, filters and output, by the names that the caller knows them by."""
    if tensor_core not in ("auto", "always", "never"):
        raise ValueError(f"{op}: tensor_core is {tensor_core!r}, expected 'auto', 'always' or 'never'")
    image, filters, output, b = taken(op, {**arrays, "b": bias}, FLOATS, optional=("b",)).arrays
    image_name, filters_name, output_name = arrays
    rank = rank_of(op, image_name, image)
    for name, array in ((filters_name, filters), (output_name, output)):
        if array.ndim != rank + 2:
            raise ValueError(f"{op}: {name} has {array.ndim} dimensions, expected {rank + 2}, as {image_name}")
    if is_channels_last(op, "d_layout", layouts[0]):
        image, output = channels_first(image), channels_first(output)
    if is_channels_last(op, "w_layout", layouts[1]):
        filters = channels_first(filters)
    pad, stride, dilation, groups = options
    low = integers(op, "pad", pad, rank, 0)
    steps = integers(op, "stride", stride, rank, 1)
    gaps = integers(op, "dilation", 1 if dilation is None else dilation, rank, 1)
    sizes, kernel, outs = image.shape[2:], filters.shape[2:], output.shape[2:]
    pads = covering(op, output_name, sizes, outs, kernel, steps, low, gaps)
    shapes = tuple(image.shape), tuple(filters.shape)
    geometry_of(op, rank, *shapes, steps, pads, gaps, groups, image_name, filters_name)
    expect_shape(op, output_name, output, (image.shape[0], filters.shape[0], *outs), "(N, OC, *out) = ")
    flat = None if b is None else b.reshape(-1)
    rest = unread(sizes, pads, outs, kernel, steps, gaps)
    return _Layer(op, rank, image, filters, output, flat, steps, pads, gaps, rest)
