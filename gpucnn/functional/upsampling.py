"""Upsampling: max unpooling, bed of nails, interpolation and resampling, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, prod
from typing import Any

from gpucnn.backends.deferring import deferring
from gpucnn.backends.dtypes import LINEAR, NUMERIC
from gpucnn.backends.replaying import replayed
from gpucnn.functional._call import Array, Call, Needs, choice, image_shape, lifted, lowered, needed
from gpucnn.functional._family import SPACE, family, replayed_family
from gpucnn.geometry import InterpolationAxis, InterpolationGeometry, Padding, PoolGeometry, Size
from gpucnn.geometry.arguments import boolean, integers, is_sequence, number
from gpucnn.geometry.caches import remembered
from gpucnn.geometry.geometries import adaptive_geometry, interpolation_geometry, resampling_geometry, unpool_size
from gpucnn.geometry.sizes import expect_largest

__all__ = [
    "bed_of_nails1d", "bed_of_nails1d_backward", "bed_of_nails2d", "bed_of_nails2d_backward", "bed_of_nails3d",
    "bed_of_nails3d_backward", "interpolate", "interpolate_backward", "max_unpool1d", "max_unpool1d_backward",
    "max_unpool2d", "max_unpool2d_backward", "max_unpool3d", "max_unpool3d_backward", "resample", "resample_backward",
]  # fmt: skip

# --- Unpooling ----------------------------------------------------------------------------------------------------


def max_unpool_nd(
    rank: int,
    input: Array,
    indices: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    output_size: Any = None,
) -> Array:
    """{n}-d max unpooling: put each value back where the maximum was, zeros elsewhere.

    Parameters
    ----------
    input : array [N, C, {space}] or [C, {space}]
        Floating-point, complex or integer.
    indices : array of int64, in the shape of `input`
        Position of each value in its flattened output plane, as ``max_pool{n}d(…, return_indices=True)`` gives.
    kernel_size, stride, padding
        As they were given to `max_pool{n}d`.
    output_size : int or sequence of int, optional
        Spatial size of the output, or its whole shape: less than a stride from the default,
        ``(IN - 1) * stride - low - high + kernel``. Pass the size that was pooled, since several pool to one.

    Returns
    -------
    array [N, C, {out}] or [C, {out}]
        In the dtype and memory order of `input`.

    Raises
    ------
    TypeError
        A dtype is not supported, or a parameter is not an integer.
    ValueError
        Shapes do not fit, a parameter or an index is out of range.

    See Also
    --------
    max_unpool{n}d_backward, max_pool{n}d

    Notes
    -----
    Where windows overlap, indices repeat: the last value in row-major order stays. The index -1, of a window that read
    nothing but padding, puts its value nowhere.

    Examples
    --------
    >>> x = np.arange({4**n}.0).reshape(1, {4})
    >>> y, indices = max_pool{n}d(x, 2, return_indices=True)
    >>> up = max_unpool{n}d(y, indices, 2)
    >>> up.shape, np.array_equal(up, np.where(np.isin(x, y), x, 0))
    ((1, {4}), True)
    """
    call = Call(f"max_unpool{rank}d", NUMERIC, input=input)
    (x,) = call.arrays
    size = _unpool_size(call, rank, x, kernel_size, stride, padding, output_size)
    at = _unpool_indices(call, indices, x, size)
    y = call.image((*x.shape[:-rank], *size), rank, like=x)
    call.backend.unpool(lifted(x, rank), lifted(at, rank), y)
    return call.result(lowered(y, rank, like=x))


def max_unpool_nd_backward(
    rank: int,
    grad_output: Array,
    input: Array,
    indices: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    output_size: Any = None,
    *,
    needs: Needs = None,
) -> tuple[Array | None, None]:
    """Gradient of `max_unpool{n}d`: the gradient at each value's index.

    Parameters
    ----------
    grad_output : array [N, C, {out}] or [C, {out}]
        Gradient of the loss with respect to the output.
    input, indices, kernel_size, stride, padding, output_size
        As they were given to `max_unpool{n}d`.
    needs : sequence of 2 bools, optional
        Which gradients to compute.

    Returns
    -------
    tuple of (array or None)
        Gradient with respect to `input`, and None for `indices`.

    Raises
    ------
    TypeError, ValueError
        As `max_unpool{n}d`, or `grad_output` does not have the output's shape.

    Notes
    -----
    A value that a later one with the same index replaced gets that index's gradient too, as in PyTorch.

    Examples
    --------
    >>> x, indices = np.ones((1, {1})), np.zeros((1, {1}), np.int64)
    >>> grad, _ = max_unpool{n}d_backward(np.ones((1, {2})), x, indices, 2)
    >>> grad.item()
    1.0
    """
    call = Call(f"max_unpool{rank}d_backward", NUMERIC, grad_output=grad_output, input=input)
    grad, x = call.arrays
    size = _unpool_size(call, rank, x, kernel_size, stride, padding, output_size)
    at = _unpool_indices(call, indices, x, size)
    call.expect_shape("grad_output", grad, (*x.shape[:-rank], *size))
    if not needed(call.op, needs, 2)[0]:
        return None, None
    grad_x = call.image(x.shape, rank, like=grad)
    call.backend.gather(lifted(grad, rank), lifted(at, rank), grad_x)
    return call.result((lowered(grad_x, rank, like=x), None))


def bed_of_nails_nd(rank: int, input: Array, scale_factor: Size) -> Array:
    """{n}-d unpooling by a bed of nails: each value at its block's first corner, zeros elsewhere.

    Parameters
    ----------
    input : array [N, C, {space}] or [C, {space}]
        Floating-point, complex or integer.
    scale_factor : int or sequence of {n} int
        Size of the block that each value becomes.

    Returns
    -------
    array [N, C, {out}] or [C, {out}]
        `scale_factor` times as large, in the dtype and memory order of `input`.

    Raises
    ------
    TypeError
        The dtype is not supported, or `scale_factor` is not an integer.
    ValueError
        Shapes do not fit, or `scale_factor` is less than 1.

    See Also
    --------
    bed_of_nails{n}d_backward, interpolate

    Examples
    --------
    >>> y = bed_of_nails{n}d(np.ones((1, {2})), 2)
    >>> y.shape, float(y.sum())
    ((1, {4}), {2**n}.0)
    """
    call = Call(f"bed_of_nails{rank}d", NUMERIC, input=input)
    (x,) = call.arrays
    image_shape(call.op, "input", x.shape, rank)
    factors = integers(call.op, "scale_factor", scale_factor, rank, 1)
    size = tuple(length * factor for length, factor in zip(x.shape[-rank:], factors, strict=True))
    y = lowered(call.image((*x.shape[:-rank], *size), rank, like=x), rank, like=x)
    y[...] = 0
    y[_nails(factors)] = x
    return call.result(y)


def bed_of_nails_nd_backward(
    rank: int, grad_output: Array, input: Array, scale_factor: Size, *, needs: Needs = None
) -> tuple[Array | None]:
    """Gradient of `bed_of_nails{n}d`: the gradient at each block's first corner.

    Parameters
    ----------
    grad_output : array [N, C, {out}] or [C, {out}]
        Gradient of the loss with respect to the output.
    input, scale_factor
        As they were given to `bed_of_nails{n}d`.
    needs : sequence of 1 bool, optional
        Whether to compute it.

    Returns
    -------
    tuple of (array or None)
        Gradient with respect to `input`.

    Raises
    ------
    TypeError, ValueError
        As `bed_of_nails{n}d`, or `grad_output` does not have the output's shape.

    Examples
    --------
    >>> (grad,) = bed_of_nails{n}d_backward(np.ones((1, {4})), np.ones((1, {2})), 2)
    >>> grad.shape, np.unique(grad)
    ((1, {2}), array([1.]))
    """
    call = Call(f"bed_of_nails{rank}d_backward", NUMERIC, grad_output=grad_output, input=input)
    grad, x = call.arrays
    image_shape(call.op, "input", x.shape, rank)
    factors = integers(call.op, "scale_factor", scale_factor, rank, 1)
    size = tuple(length * factor for length, factor in zip(x.shape[-rank:], factors, strict=True))
    call.expect_shape("grad_output", grad, (*x.shape[:-rank], *size))
    if not needed(call.op, needs, 1)[0]:
        return (None,)
    return call.result((grad[_nails(factors)].copy(order="K"),))


max_unpool1d, max_unpool2d, max_unpool3d = replayed_family(max_unpool_nd)
max_unpool1d_backward, max_unpool2d_backward, max_unpool3d_backward = replayed_family(max_unpool_nd_backward)
bed_of_nails1d, bed_of_nails2d, bed_of_nails3d = family(bed_of_nails_nd)
bed_of_nails1d_backward, bed_of_nails2d_backward, bed_of_nails3d_backward = family(bed_of_nails_nd_backward)


def _three(size: tuple[int, ...]) -> tuple[int, int, int]:
    d, h, w = (1,) * (3 - len(size)) + size
    return d, h, w


def _nails(factors: tuple[int, ...]) -> tuple[Any, ...]:
    return (..., *(slice(None, None, factor) for factor in factors))


def _unpool_size(
    call: Call, rank: int, x: Array, kernel_size: Size, stride: Size | None, padding: Padding, output_size: Any
) -> tuple[int, ...]:
    """The spatial size of the output; the caller may have given its whole shape."""
    shape = image_shape(call.op, "input", x.shape, rank)
    if is_sequence(output_size) and len(output_size) == x.ndim:
        leading = tuple(output_size)[:-rank]
        if leading != x.shape[:-rank]:
            raise ValueError(f"{call.op}: output_size begins with {leading}, expected {x.shape[:-rank]} as input does")
        output_size = tuple(output_size)[-rank:]
    return unpool_size(call.op, shape[2:], kernel_size, stride, padding, output_size)


def _unpool_indices(call: Call, indices: Array, x: Array, size: tuple[int, ...]) -> Array:
    at = call.also("indices", indices)
    call.expect_shape("indices", at, x.shape)
    call.expect_indices("indices", at, prod(size))
    return at


# --- Interpolation ------------------------------------------------------------------------------------------------

_LINEAR_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
_CUBIC_MODES = {1: "cubic", 2: "bicubic", 3: "tricubic"}


@replayed
def interpolate(
    input: Array,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Array:
    """Resample images to another size.

    Parameters
    ----------
    input : array [N, C, *space]
        1-d to 3-d images: floating-point or complex, and integer for the nearest modes.
    size : int or sequence of int, optional
        Spatial size of the output.
    scale_factor : float or sequence of float, optional
        Or the factor to the output's size, which is rounded down. Just one of the two is given.
    mode : str
        ``"nearest"`` (input ``floor(o * IN / OUT)``; nearest-neighbour unpooling), ``"nearest-exact"`` (the input
        nearest to the output's centre), by rank ``"linear"``, ``"bilinear"``, ``"trilinear"`` or ``"cubic"``,
        ``"bicubic"``, ``"tricubic"``, or ``"area"`` (adaptive average pooling).
    align_corners : bool, optional
        For the linear and cubic modes: the grids' first and last samples coincide, not their borders.
    recompute_scale_factor : bool, optional
        Whether the rounded size, and not the given `scale_factor`, sets the coordinates.
    antialias : bool
        For the linear and cubic modes: where an axis shrinks, its filter is stretched by as much, so that it averages.

    Returns
    -------
    array [N, C, *out]
        In the dtype and memory order of `input`.

    Raises
    ------
    TypeError
        The dtype is not supported, or a parameter is not a number.
    ValueError
        Shapes do not fit, or a parameter is out of range or does not go with the mode.

    See Also
    --------
    interpolate_backward, resample, bed_of_nails2d, conv_transpose2d

    Notes
    -----
    As PyTorch's: a given `scale_factor` sets the coordinates itself, though the output's size is rounded. The cubic
    filter has the coefficient -0.75 and repeats the borders; with `antialias` it has -0.5, and filters end at the
    borders, with their weights divided by their sum. PyTorch has cubic filters and antialiasing for 2-d images only.

    Sample positions are exact for every dtype, where PyTorch rounds those of float32 images to float32; so
    ``"nearest"`` can differ by one sample at a few sizes (2 to 82). With ``"nearest"``, an axis that keeps or doubles
    its size uses the sizes, not the factor; PyTorch does so for 2-d images and in every gradient. A sample of weight 0
    is not read: its NaN or infinity reaches no output.

    References
    ----------
    - R. Keys, *Cubic convolution interpolation for digital image processing*, IEEE Transactions on Acoustics, Speech,
      and Signal Processing, 1981.

    Examples
    --------
    >>> interpolate(np.array([[[1.0, 2.0]]]), scale_factor=2)
    array([[[1., 1., 2., 2.]]])
    >>> interpolate(np.array([[[1.0, 2.0]]]), size=3, mode="linear", align_corners=True)
    array([[[1. , 1.5, 2. ]]])
    >>> interpolate(np.array([[[0.0, 0, 4, 0, 0, 0]]]), size=3, mode="linear", antialias=True)
    array([[[0.57142857, 1.5       , 0.        ]]])
    """
    call = Call("interpolate", _dtypes(_is_nearest(mode)), input=input)
    (x,) = call.arrays
    given = size, scale_factor, mode, align_corners, recompute_scale_factor, antialias
    return _resampled(call, x, _interpolation(call.op, x.shape, *given))


@replayed
def interpolate_backward(
    grad_output: Array,
    input: Array,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
    *,
    needs: Needs = None,
) -> tuple[Array | None]:
    """Gradient of `interpolate`: each input's weighted sum over the outputs that read it.

    Parameters
    ----------
    grad_output : array [N, C, *out]
        Gradient of the loss with respect to the output.
    input, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias
        As they were given to `interpolate`.
    needs : sequence of 1 bool, optional
        Whether to compute it.

    Returns
    -------
    tuple of (array or None)
        Gradient with respect to `input`.

    Raises
    ------
    TypeError, ValueError
        As `interpolate`, or `grad_output` does not have the output's shape.

    Examples
    --------
    >>> interpolate_backward(np.ones((1, 1, 4)), np.zeros((1, 1, 2)), scale_factor=2)[0]
    array([[[2., 2.]]])
    """
    call = Call("interpolate_backward", _dtypes(_is_nearest(mode)), grad_output=grad_output, input=input)
    grad, x = call.arrays
    given = size, scale_factor, mode, align_corners, recompute_scale_factor, antialias
    return _resampled_backward(call, grad, x, _interpolation(call.op, x.shape, *given), needs)


@deferring
def resample(input: Array, axes: Sequence[InterpolationAxis]) -> Array:
    """Resample images along each axis at any positions that are evenly spaced, by any of `interpolate`'s filters.

    Parameters
    ----------
    input : array [N, C, *space]
        1-d to 3-d images: floating-point or complex, and integer where all axes copy.
    axes : sequence of `gpucnn.geometry.InterpolationAxis`
        The positions and the filter of each spatial axis; `gpucnn.geometry.resize_axis` makes those of ONNX's Resize.

    Returns
    -------
    array [N, C, *out]
        In the dtype and memory order of `input`.

    Raises
    ------
    TypeError
        The dtype is not supported, or something else is among `axes`.
    ValueError
        `axes` do not fit the input, or an axis goes backwards.

    See Also
    --------
    resample_backward, interpolate

    Examples
    --------
    >>> from gpucnn.geometry import resize_axis
    >>> axis = resize_axis(4, 2, mode="nearest", coordinate_transformation_mode="asymmetric")
    >>> resample(np.array([[[1, 2, 3, 4]]]), [axis])
    array([[[1, 3]]])
    """
    axes = _axes("resample", axes)
    call = Call("resample", _dtypes(not any(axis.blends for axis in axes)), input=input)
    (x,) = call.arrays
    return _resampled(call, x, _resampling(call.op, x.shape, axes))


@deferring
def resample_backward(
    grad_output: Array, input: Array, axes: Sequence[InterpolationAxis], *, needs: Needs = None
) -> tuple[Array | None]:
    """Gradient of `resample`: each input's weighted sum over the outputs that read it.

    Parameters
    ----------
    grad_output : array [N, C, *out]
        Gradient of the loss with respect to the output.
    input, axes
        As they were given to `resample`.
    needs : sequence of 1 bool, optional
        Whether to compute it.

    Returns
    -------
    tuple of (array or None)
        Gradient with respect to `input`.

    Raises
    ------
    TypeError, ValueError
        As `resample`, or `grad_output` does not have the output's shape.

    Examples
    --------
    >>> from gpucnn.geometry import resize_axis
    >>> resample_backward(np.ones((1, 1, 4)), np.zeros((1, 1, 2)), [resize_axis(2, 4)])[0]
    array([[[2., 2.]]])
    """
    axes = _axes("resample_backward", axes)
    dtypes = _dtypes(not any(axis.blends for axis in axes))
    call = Call("resample_backward", dtypes, grad_output=grad_output, input=input)
    grad, x = call.arrays
    return _resampled_backward(call, grad, x, _resampling(call.op, x.shape, axes), needs)


def _dtypes(copies: bool) -> frozenset[str]:
    return NUMERIC if copies else LINEAR


def _is_nearest(mode: str) -> bool:
    return isinstance(mode, str) and mode in ("nearest", "nearest-exact")


def _resampled(call: Call, x: Array, geometry: InterpolationGeometry | PoolGeometry) -> Array:
    rank = geometry.rank
    y = call.image((*x.shape[:2], *geometry.output_size[3 - rank :]), rank, like=x)
    if isinstance(geometry, PoolGeometry):
        call.backend.average_pool(lifted(x, rank), y, geometry)
    else:
        call.backend.interpolate(lifted(x, rank), y, geometry)
    return call.result(lowered(y, rank, like=x))


def _resampled_backward(
    call: Call, grad: Array, x: Array, geometry: InterpolationGeometry | PoolGeometry, needs: Needs
) -> tuple[Array | None]:
    rank = geometry.rank
    call.expect_shape("grad_output", grad, (*x.shape[:2], *geometry.output_size[3 - rank :]))
    if not needed(call.op, needs, 1)[0]:
        return (None,)
    grad_x = call.image(x.shape, rank, like=grad)
    if isinstance(geometry, PoolGeometry):
        call.backend.average_pool_backward(lifted(grad, rank), grad_x, geometry)
    else:
        call.backend.interpolate_backward(lifted(grad, rank), grad_x, geometry)
    return call.result((lowered(grad_x, rank, like=x),))


def _space(op: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    rank = len(shape) - 2
    if rank not in SPACE:
        raise ValueError(f"{op}: input has {len(shape)} dimensions, expected 3 to 5 (N, C, *space)")
    return image_shape(op, "input", shape, rank)[2:]


@remembered
def _interpolation(
    op: str,
    shape: tuple[int, ...],
    size: Any,
    scale_factor: Any,
    mode: str,
    align_corners: bool | None,
    recompute_scale_factor: bool | None,
    antialias: bool,
) -> InterpolationGeometry | PoolGeometry:
    """The sampling of the input by the output; an area is an adaptive average."""
    space = _space(op, shape)
    rank = len(space)
    filters = _LINEAR_MODES[rank], _CUBIC_MODES[rank]
    choice(op, "mode", mode, ("nearest", "nearest-exact", *filters, "area"), f"for {rank}-d images")
    if align_corners is not None:
        boolean(op, "align_corners", align_corners)
        if mode not in filters:
            raise ValueError(f"{op}: align_corners is {align_corners}, expected None with mode {mode!r}")
    if boolean(op, "antialias", antialias) and mode not in filters:
        raise ValueError(f"{op}: antialias is {antialias}, expected False with mode {mode!r}")
    out, factors = _resampled_size(op, space, size, scale_factor)
    if recompute_scale_factor is not None and boolean(op, "recompute_scale_factor", recompute_scale_factor):
        if factors is None:
            raise ValueError(f"{op}: recompute_scale_factor is {recompute_scale_factor}, expected False with a size")
        factors = None
    expect_largest(op, "scale_factor" if size is None else "size", out)
    if mode == "area":
        return adaptive_geometry(op, space, out, "valid")
    return interpolation_geometry(space, out, factors, mode, bool(align_corners), bool(antialias))


def _axes(op: str, axes: Sequence[InterpolationAxis]) -> tuple[InterpolationAxis, ...]:
    if not is_sequence(axes):
        raise TypeError(f"{op}: axes is {axes!r}, expected a sequence of InterpolationAxis")
    for axis in axes:
        if not isinstance(axis, InterpolationAxis):
            raise TypeError(f"{op}: {axis!r} is among axes, expected only InterpolationAxis")
        if axis.scale < 0:
            raise ValueError(f"{op}: the scale of {axis} in axes is negative, expected positions that do not go back")
    return tuple(axes)


def _resampling(op: str, shape: tuple[int, ...], axes: tuple[InterpolationAxis, ...]) -> InterpolationGeometry:
    space, sizes = _space(op, shape), tuple(axis.size for axis in axes)
    if sizes != space:
        raise ValueError(f"{op}: axes are of sizes {sizes}, expected {space} as those of input")
    integers(op, "out of axes", tuple(axis.out for axis in axes), len(axes), 1)
    expect_largest(op, "out of axes", tuple(axis.out for axis in axes))
    return resampling_geometry(axes)


def _resampled_size(
    op: str, space: tuple[int, ...], size: Any, scale_factor: Any
) -> tuple[tuple[int, ...], tuple[float, ...] | None]:
    """The output's spatial size, and the caller's factors where these are given."""
    rank = len(space)
    if (size is None) == (scale_factor is None):
        raise ValueError(f"{op}: got size {size} and scale_factor {scale_factor}, expected just one of them")
    if size is not None:
        return integers(op, "size", size, rank, 1), None
    given = tuple(scale_factor) if is_sequence(scale_factor) else (scale_factor,) * rank
    if len(given) != rank:
        raise ValueError(f"{op}: scale_factor has {len(given)} values, expected {rank}")
    factors = tuple(number(op, "scale_factor", factor, least=0.0, most=2.0**31) for factor in given)
    out = tuple(floor(length * factor) for length, factor in zip(space, factors, strict=True))
    if 0 in out:
        raise ValueError(f"{op}: scale_factor is {scale_factor}, which makes {space} to {out}, expected at least 1")
    return out, factors
