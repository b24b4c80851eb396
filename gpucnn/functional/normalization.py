"""Batch and instance normalisation and their gradients: means of each channel, over the batch or one image."""

from __future__ import annotations

from typing import Any

from gpucnn.backends.replaying import replayed
from gpucnn.functional._call import Array, Needs
from gpucnn.functional._norm_call import BATCH, ROW, NormCall
from gpucnn.geometry import NormGeometry
from gpucnn.geometry.arguments import boolean

__all__ = ["batch_norm", "batch_norm_backward", "instance_norm", "instance_norm_backward"]


@replayed
def batch_norm(
    input: Array,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    return_statistics: bool = False,
    residual: Array | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    out: Array | None = None,
) -> Any:
    """Normalise each channel over the batch, and scale and shift it.

    Parameters
    ----------
    input : array [N, C, *space] or [N, C]
        Floating-point.
    running_mean, running_var : array [C] or None
        Statistics used where not `training`, and updated in place where `training`.
    weight, bias : array [C], optional
        Scale (gamma) and shift (beta).
    training : bool
        Normalise by the batch's own statistics.
    momentum : float
        ``running = (1 - momentum) * running + momentum * batch``, with the unbiased variance of the batch.
    eps : float
        Added to the variance.
    return_statistics : bool
        Return the mean and the reciprocal standard deviation in addition to the result.
    residual : array in the shape and dtype of `input`, optional
        The result of a shortcut, added to the norm's output.
    activation : None, "none", "relu", "leaky_relu" or "relu6"
        Applied last. The norm, the sum and the activation are one pass, rounded once.
    negative_slope : float
        Of "leaky_relu".
    out : array in the shape of `input`, optional
        An array to write the result to, of any strides; it is returned.

    Returns
    -------
    array in the shape, dtype and memory order of `input`
    mean, rstd : array [C]
        With `return_statistics`; float32 for 16-bit `input`.

    Raises
    ------
    TypeError
        The dtype is not supported, or dtypes differ; parameters of a 16-bit `input` may be float32.
    ValueError
        Shapes do not fit, there is no such activation, a parameter is out of range, statistics are missing or
        read-only, or there is but one value for each channel to train on.

    See Also
    --------
    batch_norm_backward, layer_norm, group_norm, instance_norm

    Notes
    -----
    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` with the biased variance, taken in two passes. `momentum` is
    PyTorch's: what Chainer calls ``decay`` is 1 - momentum. An empty batch leaves the running statistics alone.
    Values whose squares leave the range of the dtype are normalised all the same, up to half of its largest number;
    `running_var` is then infinite, as in PyTorch.

    References
    ----------
    S. Ioffe, C. Szegedy, *Batch normalization*, ICML 2015, arXiv:1502.03167v3.

    Examples
    --------
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> batch_norm(x, None, None, training=True).round(3)
    array([[-1., -1.],
           [ 1.,  1.]])
    """
    call = NormCall(
        "batch_norm",
        input,
        eps=eps,
        momentum=momentum,
        finish=(residual, activation, negative_slope),
        out=out,
        weight=weight,
        bias=bias,
        running_mean=running_mean,
        running_var=running_var,
    )
    return _forward(call, BATCH, boolean(call.op, "training", training), return_statistics)


@replayed
def batch_norm_backward(
    grad_output: Array,
    input: Array,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Array | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    mean: Array | None = None,
    rstd: Array | None = None,
    needs: Needs = None,
) -> tuple[Array | None, ...]:
    """Gradients of `batch_norm`; running statistics are not touched.

    Parameters
    ----------
    grad_output : array in the shape of `input`
        Gradient of the loss with respect to the output.
    input, running_mean, running_var, weight, bias, training, momentum, eps, residual, activation, negative_slope
        As they were given to `batch_norm`.
    mean, rstd : array [C], optional
        What the forward returned with `return_statistics`; recomputed where they are missing.
    needs : sequence of 5 bools, or of 6 with a residual, optional
        Which gradients to compute; the others are None.

    Returns
    -------
    tuple of (array or None)
        Gradients with respect to `input`, `running_mean` and `running_var` (None), `weight` and `bias` (None where
        absent), and `residual` where one is given.

    Raises
    ------
    TypeError, ValueError
        As `batch_norm`, or shapes do not fit.

    Notes
    -----
    With g = grad_output * weight, h = (x - mean) * rstd and means over the batch, the training gradient is
    ``rstd * (g - mean(g) - h * mean(g * h))``: the closed form of backpropagation through the mean and the variance.
    Otherwise it is ``g * rstd``. With an activation, grad_output is first multiplied by its derivative, at values that
    are recomputed, and rounded to its dtype as between two operations; that is also the gradient with respect to
    `residual`.

    Examples
    --------
    >>> x = np.array([[1.0, 10.0], [3.0, 31.0]])
    >>> grads = batch_norm_backward(np.ones((2, 2)), x, None, None, training=True)
    >>> grads[0].round(6) + 0.0
    array([[0., 0.],
           [0., 0.]])
    """
    call = NormCall(
        "batch_norm_backward",
        input,
        grad_output,
        eps=eps,
        momentum=momentum,
        finish=(residual, activation, negative_slope),
        weight=weight,
        bias=bias,
        running_mean=running_mean,
        running_var=running_var,
        mean=mean,
        rstd=rstd,
    )
    return _backward(call, BATCH, boolean(call.op, "training", training), needs)


@replayed
def instance_norm(
    input: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    return_statistics: bool = False,
    residual: Array | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    out: Array | None = None,
) -> Any:
    """Normalise each channel of each image by itself, and scale and shift it.

    Parameters
    ----------
    input : array [N, C, *space]
        Floating-point.
    running_mean, running_var : array [C] or None
        Updated in place with the batch's average where `use_input_stats`, else used in place of it.
    weight, bias : array [C], optional
        Scale and shift.
    use_input_stats : bool
        Normalise by the images' own statistics.
    momentum, eps
        As in `batch_norm`.
    return_statistics : bool
        Return the mean and the reciprocal standard deviation in addition to the result.
    residual, activation, negative_slope
        As in `batch_norm`: the result is ``activation(norm(input) + residual)``, in one pass.
    out : array in the shape of `input`, optional
        An array to write the result to, of any strides; it is returned.

    Returns
    -------
    array in the shape, dtype and memory order of `input`
    mean, rstd : array [N, C], or [C] without `use_input_stats`
        With `return_statistics`; float32 for 16-bit `input`.

    Raises
    ------
    TypeError
        The dtype is not supported, or dtypes differ; parameters of a 16-bit `input` may be float32.
    ValueError
        Shapes do not fit, there is no such activation, a parameter is out of range, statistics are missing or
        read-only, or each channel has but one value.

    See Also
    --------
    instance_norm_backward, batch_norm

    References
    ----------
    D. Ulyanov, A. Vedaldi, V. Lempitsky, *Instance normalization*, 2016, arXiv:1607.08022v3.

    Examples
    --------
    >>> instance_norm(np.array([[[1.0, 3.0], [10.0, 30.0]]])).round(3)
    array([[[-1.,  1.],
            [-1.,  1.]]])
    """
    call = NormCall(
        "instance_norm",
        input,
        eps=eps,
        momentum=momentum,
        finish=(residual, activation, negative_slope),
        out=out,
        weight=weight,
        bias=bias,
        running_mean=running_mean,
        running_var=running_var,
    )
    return _forward(call, ROW, boolean(call.op, "use_input_stats", use_input_stats), return_statistics)


@replayed
def instance_norm_backward(
    grad_output: Array,
    input: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Array | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    mean: Array | None = None,
    rstd: Array | None = None,
    needs: Needs = None,
) -> tuple[Array | None, ...]:
    """Gradients of `instance_norm`; running statistics are not touched.

    Parameters
    ----------
    grad_output : array in the shape of `input`
        Gradient of the loss with respect to the output.
    input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps, residual, activation, negative_slope
        As they were given to `instance_norm`.
    mean, rstd : array [N, C] or [C], optional
        What the forward returned with `return_statistics`; recomputed where they are missing.
    needs : sequence of 5 bools, or of 6 with a residual, optional
        Which gradients to compute; the others are None.

    Returns
    -------
    tuple of (array or None)
        Gradients with respect to `input`, `running_mean` and `running_var` (None), `weight` and `bias` (None where
        absent), and `residual` where one is given.

    Raises
    ------
    TypeError, ValueError
        As `instance_norm`, or shapes do not fit.

    Examples
    --------
    >>> x = np.array([[[1.0, 3.0, 4.0]]])
    >>> grad_x, _, _, grad_w, grad_b = instance_norm_backward(np.ones((1, 1, 3)), x, weight=np.ones(1))
    >>> bool(abs(grad_x).max() < 1e-12), grad_b is None
    (True, True)
    """
    call = NormCall(
        "instance_norm_backward",
        input,
        grad_output,
        eps=eps,
        momentum=momentum,
        finish=(residual, activation, negative_slope),
        weight=weight,
        bias=bias,
        running_mean=running_mean,
        running_var=running_var,
        mean=mean,
        rstd=rstd,
    )
    return _backward(call, ROW, boolean(call.op, "use_input_stats", use_input_stats), needs)


def _forward(call: NormCall, axes: tuple[int, ...], own: bool, return_statistics: bool) -> Any:
    """The norm over `axes` by the input's own statistics, or by the running ones."""
    gives_statistics = boolean(call.op, "return_statistics", return_statistics)
    geometry = call.of_channels(axes, own, updates=True)
    if own:
        y, *statistics = call.tracked(geometry)
    else:
        y, statistics = call.kept(geometry), [*call.kept_statistics(geometry)] if gives_statistics else []
    if not gives_statistics:
        return call.result(y)
    return call.result((y, *[array.reshape(_returned(geometry)) for array in statistics]))


def _backward(call: NormCall, axes: tuple[int, ...], own: bool, needs: Needs) -> tuple[Array | None, ...]:
    """The gradients of `_forward`."""
    geometry = call.of_channels(axes, own)
    mean, rstd = call.handed_over(geometry, _returned(geometry))
    wanted = call.needed(needs, 5)
    if mean is None:
        mean, rstd = call.statistics(geometry) if own else call.kept_statistics(geometry)
    grad_x, *others = call.backward(geometry, mean, rstd, (wanted[0], *wanted[3:]), own)
    return call.result((grad_x, None, None, *others))


def _returned(geometry: NormGeometry) -> tuple[int, ...]:
    """The shape in which statistics are returned: [C] of a batch, [N, C] of images."""
    return geometry.shape[1:2] if geometry.axes == BATCH else geometry.shape[:2]
