"""Batch, layer, group and instance normalisation and their gradients: one reduction seen four ways."""

from __future__ import annotations

from typing import Any

from gpucnn.backends.replaying import replayed
from gpucnn.functional._call import Array, Needs, needed
from gpucnn.functional._norm_call import BATCH, ROW, NormCall, batch_shape, group_shape, instance_shape, layer_shape
from gpucnn.geometry import NormGeometry
from gpucnn.geometry.arguments import boolean


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
        Return the mean and the reciprocal standard deviation that were used as well.
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
        The dtype is not taken, or dtypes differ; parameters of a 16-bit `input` may be float32.
    ValueError
        Shapes do not fit, a parameter is out of range, statistics are missing or read-only, or there is but one value
        for each channel to train on.

    See Also
    --------
    batch_norm_backward, layer_norm, group_norm, instance_norm

    Notes
    -----
    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` with the biased variance, taken in two passes. `momentum` is
    PyTorch's: what Chainer calls ``decay`` is 1 - momentum. An empty batch leaves the running statistics alone.

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
    normalise = _batch_norm if training is not False else _kept_batch_norm
    parameters = (input, running_mean, running_var, weight, bias, training, momentum, eps)
    return normalise(*parameters, return_statistics=return_statistics, out=out)


def _batch_norm(
    input: Array,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Array | None,
    bias: Array | None,
    training: bool,
    momentum: float,
    eps: float,
    *,
    return_statistics: bool,
    out: Array | None,
) -> Any:
    call = NormCall(
        "batch_norm", input, out=out, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var
    )
    running = (call.running_mean, call.running_var)
    gives_statistics = boolean(call.op, "return_statistics", return_statistics)
    shape = batch_shape(call, call.x)
    call.check_batch(shape, running, training, momentum, eps)
    if not training:
        y = call.kept(shape, running, eps)
        statistics: tuple[Array, ...] = call.kept_statistics(running, eps) if gives_statistics else ()
    else:
        y, *found = call.batch(shape, running, momentum, eps)
        statistics = tuple(found)
    return call.result((y, *(array.reshape(-1) for array in statistics)) if gives_statistics else y)


_kept_batch_norm = replayed(_batch_norm)  # in training the running statistics move, by no launch


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
    mean: Array | None = None,
    rstd: Array | None = None,
    needs: Needs = None,
) -> tuple[Array | None, None, None, Array | None, Array | None]:
    """Gradients of `batch_norm`; running statistics are not touched.

    Parameters
    ----------
    grad_output : array in the shape of `input`
        Gradient of the loss by the output.
    input, running_mean, running_var, weight, bias, training, momentum, eps
        As they were given to `batch_norm`.
    mean, rstd : array [C], optional
        What the forward returned with `return_statistics`; computed again where they are missing.
    needs : sequence of 5 bools, optional
        Which gradients to compute; the others are None.

    Returns
    -------
    tuple of (array or None)
        Gradients by `input`, `running_mean` and `running_var` (None), `weight` and `bias` (None where absent).

    Raises
    ------
    TypeError, ValueError
        As `batch_norm`, or shapes do not fit.

    Notes
    -----
    With g = grad_output * weight, h = (x - mean) * rstd and means over the batch, the training gradient is
    ``rstd * (g - mean(g) - h * mean(g * h))``: the closed form of backpropagation through the mean and the variance.
    Otherwise it is ``g * rstd``.

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
        weight=weight,
        bias=bias,
        running_mean=running_mean,
        running_var=running_var,
        mean=mean,
        rstd=rstd,
    )
    running = (call.running_mean, call.running_var)
    shape = batch_shape(call, call.x)
    call.check_batch(shape, running, training, momentum, eps, writes=False)
    call.check_statistics((shape[1],))
    needs_x, _, _, needs_w, needs_b = needed(call.op, needs, 5)
    centre, scale = call.handed_over(shape, BATCH)
    geometry = NormGeometry(shape, BATCH)
    if centre is None:
        centre, scale = call.batch_statistics(geometry, running, training, eps)
    grad_x, grad_w, grad_b = call.backward(geometry, centre, scale, (needs_x, needs_w, needs_b), training)
    return call.result((grad_x, None, None, grad_w, grad_b))


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
        Return the mean and the reciprocal standard deviation that were used as well.
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
        The dtype is not taken, or dtypes differ; parameters of a 16-bit `input` may be float32.
    ValueError
        Shapes do not fit, a parameter is out of range, statistics are missing or read-only, or each channel has but
        one value.

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
        "instance_norm", input, out=out, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var
    )
    gives_statistics = boolean(call.op, "return_statistics", return_statistics)
    running = (call.running_mean, call.running_var)
    shape = instance_shape(call, call.x)
    call.check_instance(shape, running, use_input_stats, momentum, eps)
    if not use_input_stats:
        y = call.kept(shape, running, eps)
        statistics: tuple[Array, ...] = call.kept_statistics(running, eps) if gives_statistics else ()
    else:
        y, *found = call.instances(shape, running, momentum, eps)
        statistics = tuple(found)
    kept = shape[:2] if use_input_stats else shape[1:2]
    return call.result((y, *(array.reshape(kept) for array in statistics)) if gives_statistics else y)


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
    mean: Array | None = None,
    rstd: Array | None = None,
    needs: Needs = None,
) -> tuple[Array | None, None, None, Array | None, Array | None]:
    """Gradients of `instance_norm`; running statistics are not touched.

    Parameters
    ----------
    grad_output : array in the shape of `input`
        Gradient of the loss by the output.
    input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        As they were given to `instance_norm`.
    mean, rstd : array [N, C] or [C], optional
        What the forward returned with `return_statistics`; computed again where they are missing.
    needs : sequence of 5 bools, optional
        Which gradients to compute; the others are None.

    Returns
    -------
    tuple of (array or None)
        Gradients by `input`, `running_mean` and `running_var` (None), `weight` and `bias` (None where absent).

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
        weight=weight,
        bias=bias,
        running_mean=running_mean,
        running_var=running_var,
        mean=mean,
        rstd=rstd,
    )
    running = (call.running_mean, call.running_var)
    shape = instance_shape(call, call.x)
    call.check_instance(shape, running, use_input_stats, momentum, eps, writes=False)
    call.check_statistics(shape[:2] if use_input_stats else shape[1:2])
    needs_x, _, _, needs_w, needs_b = needed(call.op, needs, 5)
    axes = ROW if use_input_stats else BATCH
    centre, scale = call.handed_over(shape, axes)
    geometry = NormGeometry(shape, axes)
    if centre is None and use_input_stats:
        centre, scale = call.statistics(geometry, eps)
    elif centre is None:
        centre, scale = call.kept_statistics(running, eps)
    grad_x, grad_w, grad_b = call.backward(geometry, centre, scale, (needs_x, needs_w, needs_b), use_input_stats)
    return call.result((grad_x, None, None, grad_w, grad_b))


@replayed
def layer_norm(
    input: Array,
    normalized_shape: Any,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    *,
    return_statistics: bool = False,
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
        The dtype is not taken, or dtypes differ; parameters of a 16-bit `input` may be float32.
    ValueError
        Shapes do not fit, or a parameter is out of range.

    See Also
    --------
    layer_norm_backward, group_norm

    References
    ----------
    J. Ba, J. Kiros, G. Hinton, *Layer normalization*, 2016, arXiv:1607.06450v1.

    Examples
    --------
    >>> layer_norm(np.array([[1.0, 3.0], [10.0, 30.0]]), 2).round(3)
    array([[-1.,  1.],
           [-1.,  1.]])
    """
    call = NormCall("layer_norm", input, out=out, weight=weight, bias=bias)
    gives_statistics = boolean(call.op, "return_statistics", return_statistics)
    shape, leading = layer_shape(call, call.x, normalized_shape, eps)
    y, mean, rstd = call.rows(shape, eps)
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
    mean: Array | None = None,
    rstd: Array | None = None,
    needs: Needs = None,
) -> tuple[Array | None, Array | None, Array | None]:
    """Gradients of `layer_norm`.

    Parameters
    ----------
    grad_output : array in the shape of `input`
        Gradient of the loss by the output.
    input, normalized_shape, weight, bias, eps
        As they were given to `layer_norm`.
    mean, rstd : array [*], optional
        What the forward returned with `return_statistics`; computed again where they are missing.
    needs : sequence of 3 bools, optional
        Which gradients to compute; the others are None.

    Returns
    -------
    tuple of (array or None)
        Gradients by `input`, `weight` and `bias` (None where absent).

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
    call = NormCall("layer_norm_backward", input, grad_output, weight=weight, bias=bias, mean=mean, rstd=rstd)
    shape, leading = layer_shape(call, call.x, normalized_shape, eps)
    return call.row_backward(shape, leading, eps, needs)


@replayed
def group_norm(
    input: Array,
    num_groups: int,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    *,
    return_statistics: bool = False,
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
        The dtype is not taken, or dtypes differ; parameters of a 16-bit `input` may be float32.
    ValueError
        Shapes do not fit, a parameter is out of range, or there is one value in all.

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
    call = NormCall("group_norm", input, out=out, weight=weight, bias=bias)
    gives_statistics = boolean(call.op, "return_statistics", return_statistics)
    shape = group_shape(call, call.x, num_groups, eps)
    y, mean, rstd = call.rows(shape, eps)
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
    mean: Array | None = None,
    rstd: Array | None = None,
    needs: Needs = None,
) -> tuple[Array | None, Array | None, Array | None]:
    """Gradients of `group_norm`.

    Parameters
    ----------
    grad_output : array in the shape of `input`
        Gradient of the loss by the output.
    input, num_groups, weight, bias, eps
        As they were given to `group_norm`.
    mean, rstd : array [N, num_groups], optional
        What the forward returned with `return_statistics`; computed again where they are missing.
    needs : sequence of 3 bools, optional
        Which gradients to compute; the others are None.

    Returns
    -------
    tuple of (array or None)
        Gradients by `input`, `weight` and `bias` (None where absent).

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
    call = NormCall("group_norm_backward", input, grad_output, weight=weight, bias=bias, mean=mean, rstd=rstd)
    shape = group_shape(call, call.x, num_groups, eps)
    return call.row_backward(shape, shape[:2], eps, needs)
