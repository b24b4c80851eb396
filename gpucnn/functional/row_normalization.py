"""Layer, RMS and group normalisation and their gradients: means over rows of one example."""

from __future__ import annotations

from typing import Any

from numpy import finfo

from gpucnn.backends.replaying import replayed
from gpucnn.functional._call import Array, Needs
from gpucnn.functional._norm_call import ROW, NormCall, group_shape, layer_shape
from gpucnn.geometry import NormGeometry
from gpucnn.geometry.arguments import boolean

__all__ = [
    "group_norm", "group_norm_backward", "layer_norm", "layer_norm_backward", "rms_norm", "rms_norm_backward",
]  # fmt: skip


@replayed
def layer_norm(
    input: Array,
    normalized_shape: Any,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    *,
    return_statistics: bool = False,
    residual: Array | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    out: Array | None = None,
) -> Any:
    """Normalise over the last axes, and scale and shift each of their elements.

    Parameters
    ----------
    input : array [*, *normalized_shape]
        Floating-point.
    normalized_shape : int or sequence of int
        The last axes, over which one mean and variance are taken.
    weight, bias : array of shape `normalized_shape`, optional
        Scale and shift.
    eps : float
        Added to the variance.
    return_statistics : bool
        Return the mean and the reciprocal standard deviation as well.
    residual, activation, negative_slope
        As in `batch_norm`: the result is ``activation(norm(input) + residual)``, in one pass.
    out : array in the shape of `input`, optional
        An array to write the result to, of any strides; it is returned.

    Returns
    -------
    array in the shape and dtype of `input`
    mean, rstd : array [*]
        With `return_statistics`; float32 for 16-bit `input`.

    Raises
    ------
    TypeError
        The dtype is not supported, or dtypes differ; parameters of a 16-bit `input` may be float32.
    ValueError
        Shapes do not fit, or a parameter is out of range.

    See Also
    --------
    layer_norm_backward, rms_norm, group_norm

    References
    ----------
    J. Ba, J. Kiros, G. Hinton, *Layer normalization*, 2016, arXiv:1607.06450v1.

    Examples
    --------
    >>> layer_norm(np.array([[1.0, 3.0], [10.0, 30.0]]), 2).round(3)
    array([[-1.,  1.],
           [-1.,  1.]])
    """
    call = NormCall(
        "layer_norm",
        input,
        eps=eps,
        finish=(residual, activation, negative_slope),
        out=out,
        weight=weight,
        bias=bias,
    )
    gives_statistics = boolean(call.op, "return_statistics", return_statistics)
    shape, leading = layer_shape(call, normalized_shape)
    y, mean, rstd = call.rows(shape)
    return call.result((y, mean.reshape(leading), rstd.reshape(leading)) if gives_statistics else y)


@replayed
def layer_norm_backward(
    grad_output: Array,
    input: Array,
    normalized_shape: Any,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    *,
    residual: Array | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    mean: Array | None = None,
    rstd: Array | None = None,
    needs: Needs = None,
) -> tuple[Array | None, ...]:
    """Gradients of `layer_norm`.

    Parameters
    ----------
    grad_output : array in the shape of `input`
        Gradient of the loss with respect to the output.
    input, normalized_shape, weight, bias, eps, residual, activation, negative_slope
        As they were given to `layer_norm`.
    mean, rstd : array [*], optional
        What the forward returned with `return_statistics`; recomputed where they are missing.
    needs : sequence of 3 bools, or of 4 with a residual, optional
        Which gradients to compute; the others are None.

    Returns
    -------
    tuple of (array or None)
        Gradients with respect to `input`, `weight` and `bias` (None where absent),
        and `residual` where one is given.

    Raises
    ------
    TypeError, ValueError
        As `layer_norm`, or shapes do not fit.

    Examples
    --------
    >>> grad_x, grad_w, grad_b = layer_norm_backward(np.ones((2, 3)), np.eye(2, 3), 3, np.ones(3), np.ones(3))
    >>> grad_b
    array([2., 2., 2.])
    """
    call = NormCall(
        "layer_norm_backward",
        input,
        grad_output,
        eps=eps,
        finish=(residual, activation, negative_slope),
        weight=weight,
        bias=bias,
        mean=mean,
        rstd=rstd,
    )
    shape, leading = layer_shape(call, normalized_shape)
    return call.row_backward(shape, leading, needs)


@replayed
def rms_norm(
    input: Array,
    normalized_shape: Any,
    weight: Array | None = None,
    eps: float | None = None,
    *,
    return_statistics: bool = False,
    residual: Array | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    out: Array | None = None,
) -> Any:
    """Divide by the root mean square over the last axes, and scale each of their elements.

    Parameters
    ----------
    input : array [*, *normalized_shape]
        Floating-point.
    normalized_shape : int or sequence of int
        The last axes, over which one mean square is taken.
    weight : array of shape `normalized_shape`, optional
        Scale.
    eps : float, optional
        Added to the mean square; by default the machine epsilon of `input`'s dtype, of float32 for 16-bit `input`.
    return_statistics : bool
        Return the reciprocal root mean square as well.
    residual, activation, negative_slope
        As in `batch_norm`: the result is ``activation(norm(input) + residual)``, in one pass.
    out : array in the shape of `input`, optional
        An array to write the result to, of any strides; it is returned.

    Returns
    -------
    array in the shape and dtype of `input`
    rstd : array [*]
        With `return_statistics`; float32 for 16-bit `input`.

    Raises
    ------
    TypeError
        The dtype is not supported, or dtypes differ; `weight` of a 16-bit `input` may be float32.
    ValueError
        Shapes do not fit, or a parameter is out of range.

    See Also
    --------
    rms_norm_backward, layer_norm

    Notes
    -----
    ``input * rstd * weight`` with ``rstd = 1 / sqrt(mean(input**2) + eps)``: layer norm with a mean of 0.

    References
    ----------
    B. Zhang, R. Sennrich, *Root mean square layer normalization*, NeurIPS 2019, arXiv:1910.07467v1.

    Examples
    --------
    >>> rms_norm(np.array([[3.0, 4.0], [30.0, 40.0]]), 2).round(3)
    array([[0.849, 1.131],
           [0.849, 1.131]])
    """
    finish = (residual, activation, negative_slope)
    call = _rms_call("rms_norm", input, None, eps, finish, out=out, weight=weight)
    gives_statistics = boolean(call.op, "return_statistics", return_statistics)
    shape, leading = layer_shape(call, normalized_shape)
    y, _, rstd = call.rows(shape, centred=False)
    return call.result((y, rstd.reshape(leading)) if gives_statistics else y)


@replayed
def rms_norm_backward(
    grad_output: Array,
    input: Array,
    normalized_shape: Any,
    weight: Array | None = None,
    eps: float | None = None,
    *,
    residual: Array | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    rstd: Array | None = None,
    needs: Needs = None,
) -> tuple[Array | None, ...]:
    """Gradients of `rms_norm`.

    Parameters
    ----------
    grad_output : array in the shape of `input`
        Gradient of the loss with respect to the output.
    input, normalized_shape, weight, eps, residual, activation, negative_slope
        As they were given to `rms_norm`.
    rstd : array [*], optional
        What the forward returned with `return_statistics`; recomputed where it is missing.
    needs : sequence of 2 bools, or of 3 with a residual, optional
        Which gradients to compute; the others are None.

    Returns
    -------
    tuple of (array or None)
        Gradients with respect to `input` and `weight` (None where absent), and `residual` where one is given.

    Raises
    ------
    TypeError, ValueError
        As `rms_norm`, or shapes do not fit.

    Examples
    --------
    >>> grad_x, grad_w = rms_norm_backward(np.ones((2, 2)), np.array([[3.0, 4.0], [4.0, 3.0]]), 2, np.ones(2))
    >>> grad_w.round(3)
    array([1.98, 1.98])
    """
    finish = (residual, activation, negative_slope)
    call = _rms_call("rms_norm_backward", input, grad_output, eps, finish, weight=weight, rstd=rstd)
    shape, leading = layer_shape(call, normalized_shape)
    call.expect_shape("rstd", call.rstd, leading)
    of_x, of_weight, *of_residual = call.needed(needs, 2)
    geometry, rows = NormGeometry(shape, ROW, centred=False), (shape[0], 1, 1, 1)
    if call.rstd is None:
        mean, rstd = call.statistics(geometry)
    else:
        mean = call.backend.zeros(rows, call.wide, on=call.x)
        rstd = call.rstd.reshape(rows).astype(call.wide, copy=False)
    grad_x, grad_weight, _, *others = call.backward(geometry, mean, rstd, (of_x, of_weight, False, *of_residual))
    return call.result((grad_x, grad_weight, *others))


def _rms_call(
    op: str, input: Array, grad_output: Array | None, eps: float | None, finish: Any, **others: Any
) -> NormCall:
    """The call of an RMS norm, with the machine epsilon where `eps` is None."""
    call = NormCall(op, input, grad_output, eps=0.0 if eps is None else eps, finish=finish, **others)
    if eps is None:
        call.eps = float(finfo(call.wide).eps)
    return call


@replayed
def group_norm(
    input: Array,
    num_groups: int,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    *,
    return_statistics: bool = False,
    residual: Array | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    out: Array | None = None,
) -> Any:
    """Normalise groups of channels of each image, and scale and shift each channel.

    Parameters
    ----------
    input : array [N, C, *space]
        Floating-point.
    num_groups : int
        Number of groups; divides C.
    weight, bias : array [C], optional
        Scale and shift.
    eps : float
        Added to the variance.
    return_statistics : bool
        Return the mean and the reciprocal standard deviation as well.
    residual, activation, negative_slope
        As in `batch_norm`: the result is ``activation(norm(input) + residual)``, in one pass.
    out : array in the shape of `input`, optional
        An array to write the result to, of any strides; it is returned.

    Returns
    -------
    array in the shape, dtype and memory order of `input`
    mean, rstd : array [N, num_groups]
        With `return_statistics`; float32 for 16-bit `input`.

    Raises
    ------
    TypeError
        The dtype is not supported, or dtypes differ; parameters of a 16-bit `input` may be float32.
    ValueError
        Shapes do not fit, there is no such activation, a parameter is out of range, or there is one value in all.

    See Also
    --------
    group_norm_backward, layer_norm, instance_norm

    References
    ----------
    Y. Wu, K. He, *Group normalization*, ECCV 2018, arXiv:1803.08494v3.

    Examples
    --------
    >>> group_norm(np.array([[[1.0], [3.0], [10.0], [30.0]]]), 2).round(3)[0, :, 0]
    array([-1.,  1., -1.,  1.])
    """
    call = NormCall(
        "group_norm",
        input,
        eps=eps,
        finish=(residual, activation, negative_slope),
        out=out,
        weight=weight,
        bias=bias,
    )
    gives_statistics = boolean(call.op, "return_statistics", return_statistics)
    shape = group_shape(call, num_groups)
    y, mean, rstd = call.rows(shape)
    return call.result((y, mean.reshape(shape[:2]), rstd.reshape(shape[:2])) if gives_statistics else y)


@replayed
def group_norm_backward(
    grad_output: Array,
    input: Array,
    num_groups: int,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    *,
    residual: Array | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    mean: Array | None = None,
    rstd: Array | None = None,
    needs: Needs = None,
) -> tuple[Array | None, ...]:
    """Gradients of `group_norm`.

    Parameters
    ----------
    grad_output : array in the shape of `input`
        Gradient of the loss with respect to the output.
    input, num_groups, weight, bias, eps, residual, activation, negative_slope
        As they were given to `group_norm`.
    mean, rstd : array [N, num_groups], optional
        What the forward returned with `return_statistics`; recomputed where they are missing.
    needs : sequence of 3 bools, or of 4 with a residual, optional
        Which gradients to compute; the others are None.

    Returns
    -------
    tuple of (array or None)
        Gradients with respect to `input`, `weight` and `bias` (None where absent),
        and `residual` where one is given.

    Raises
    ------
    TypeError, ValueError
        As `group_norm`, or shapes do not fit.

    Examples
    --------
    >>> x = np.arange(8.0).reshape(1, 4, 2)
    >>> grad_x, grad_w, grad_b = group_norm_backward(np.ones((1, 4, 2)), x, 2, np.ones(4), np.ones(4))
    >>> grad_b
    array([2., 2., 2., 2.])
    """
    call = NormCall(
        "group_norm_backward",
        input,
        grad_output,
        eps=eps,
        finish=(residual, activation, negative_slope),
        weight=weight,
        bias=bias,
        mean=mean,
        rstd=rstd,
    )
    shape = group_shape(call, num_groups)
    return call.row_backward(shape, shape[:2], needs)
