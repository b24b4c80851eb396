"""Batch, layer, group and instance normalisation and their gradients: one reduction seen four ways."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from gpucnn.backends.dtypes import FLOATING, accumulator
from gpucnn.functional._call import Array, Call, Needs, needed, number
from gpucnn.geometry import NormGeometry
from gpucnn.geometry.arguments import boolean, integer, integers, is_sequence

_BATCH = (0, 2, 3)  # axes of [N, G, C, P] that share a mean: one for each channel
_ROW = (2, 3)  # one for each row


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
    call = _NormCall("batch_norm", input, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
    x, w, b, running = call.x, call.weight, call.bias, (call.running_mean, call.running_var)
    gives_statistics = boolean(call.op, "return_statistics", return_statistics)
    shape = _batch_shape(call, x)
    call.check_batch(shape, running, training, momentum, eps)
    mean, rstd = call.batch_statistics(shape, running, training, momentum, eps)
    y = call.apply(shape, mean, rstd, w, b)
    return call.result((y, mean.reshape(-1), rstd.reshape(-1)) if gives_statistics else y)


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
    call = _NormCall(
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
    shape = _batch_shape(call, call.x)
    call.check_batch(shape, running, training, momentum, eps, writes=False)
    call.check_statistics((shape[1],))
    needs_x, _, _, needs_w, needs_b = needed(call.op, needs, 5)
    centre, scale = call.handed_over(shape, _BATCH)
    if centre is None:
        centre, scale = call.batch_statistics(shape, running, training, 0.0, eps, writes=False)
    geometry = NormGeometry(shape, _BATCH)
    grad_x = None
    if needs_x:
        grad_x = call.backward_input(geometry, centre, scale, own_statistics=training)
    grad_w, grad_b = call.backward_affine(geometry, centre, scale, needs_w, needs_b)
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
    call = _NormCall(
        "instance_norm", input, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var
    )
    gives_statistics = boolean(call.op, "return_statistics", return_statistics)
    running = (call.running_mean, call.running_var)
    shape = _instance_shape(call, call.x)
    call.check_instance(shape, running, use_input_stats, momentum, eps)
    mean, rstd = call.instance_statistics(shape, running, use_input_stats, momentum, eps)
    y = call.apply(shape, mean, rstd, call.weight, call.bias)
    kept = shape[:2] if use_input_stats else shape[1:2]
    return call.result((y, mean.reshape(kept), rstd.reshape(kept)) if gives_statistics else y)


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
    call = _NormCall(
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
    shape = _instance_shape(call, call.x)
    call.check_instance(shape, running, use_input_stats, momentum, eps, writes=False)
    call.check_statistics(shape[:2] if use_input_stats else shape[1:2])
    needs_x, _, _, needs_w, needs_b = needed(call.op, needs, 5)
    axes = _ROW if use_input_stats else _BATCH
    centre, scale = call.handed_over(shape, axes)
    if centre is None:
        centre, scale = call.instance_statistics(shape, running, use_input_stats, 0.0, eps, writes=False)
    geometry = NormGeometry(shape, axes)
    grad_x = None
    if needs_x:
        grad_x = call.backward_input(geometry, centre, scale, own_statistics=use_input_stats)
    grad_w, grad_b = call.backward_affine(geometry, centre, scale, needs_w, needs_b)
    return call.result((grad_x, None, None, grad_w, grad_b))


def layer_norm(
    input: Array,
    normalized_shape: Any,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    *,
    return_statistics: bool = False,
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
    call = _NormCall("layer_norm", input, weight=weight, bias=bias)
    gives_statistics = boolean(call.op, "return_statistics", return_statistics)
    shape, leading = _layer_shape(call, call.x, normalized_shape, eps)
    mean, rstd = call.statistics(NormGeometry(shape, _ROW), eps)
    y = call.apply(shape, mean, rstd, call.weight, call.bias)
    return call.result((y, mean.reshape(leading), rstd.reshape(leading)) if gives_statistics else y)


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
    call = _NormCall("layer_norm_backward", input, grad_output, weight=weight, bias=bias, mean=mean, rstd=rstd)
    shape, leading = _layer_shape(call, call.x, normalized_shape, eps)
    return call.row_backward(shape, leading, eps, needs)


def group_norm(
    input: Array,
    num_groups: int,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    *,
    return_statistics: bool = False,
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
    call = _NormCall("group_norm", input, weight=weight, bias=bias)
    gives_statistics = boolean(call.op, "return_statistics", return_statistics)
    shape = _group_shape(call, call.x, num_groups, eps)
    mean, rstd = call.statistics(NormGeometry(shape, _ROW), eps)
    y = call.apply(shape, mean, rstd, call.weight, call.bias)
    return call.result((y, mean.reshape(shape[:2]), rstd.reshape(shape[:2])) if gives_statistics else y)


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
    call = _NormCall("group_norm_backward", input, grad_output, weight=weight, bias=bias, mean=mean, rstd=rstd)
    shape = _group_shape(call, call.x, num_groups, eps)
    return call.row_backward(shape, shape[:2], eps, needs)


# --- What they share ----------------------------------------------------------------------------------------------

Shape4 = tuple[int, int, int, int]
Running = tuple[Array | None, Array | None]


class _NormCall(Call):
    """The arrays of one norm and the steps over x seen as [N, G, C, P].

    A 16-bit x may come with float32 parameters and statistics, as is usual in mixed-precision training.
    """

    def __init__(self, op: str, input: Array, grad_output: Array | None = None, **parameters: Array | None) -> None:
        optional = () if op.endswith("_backward") else ("grad_output",)
        super().__init__(op, FLOATING, optional=optional, input=input, grad_output=grad_output)
        self.x, self.grad = self.arrays
        self.wide = accumulator(self.dtype)
        self.weight: Array | None = None
        self.bias: Array | None = None
        self.running_mean: Array | None = None
        self.running_var: Array | None = None
        self.mean: Array | None = None
        self.rstd: Array | None = None
        for name, array in parameters.items():
            if array is not None:
                array = self.also(name, array)
                if array.dtype not in (self.dtype, self.wide):
                    usable = f"{self.dtype} as input has"
                    if self.wide != self.dtype:
                        usable += f", or {self.wide}"
                    raise TypeError(f"{op}: {name} has dtype {array.dtype}, expected {usable}")
                setattr(self, name, array)
        self.expect_shape("grad_output", self.grad, self.x.shape)

    # --- Checks ---------------------------------------------------------------------------------------------------

    def check_affine(self, shape: tuple[int, ...]) -> None:
        self.expect_shape("weight", self.weight, shape)
        self.expect_shape("bias", self.bias, shape)

    def check_statistics(self, shape: tuple[int, ...]) -> None:
        """Raise unless mean and rstd are both absent, or both of `shape`."""
        if (self.mean is None) != (self.rstd is None):
            raise ValueError(f"{self.op}: got one of mean and rstd, expected both or none")
        self.expect_shape("mean", self.mean, shape)
        self.expect_shape("rstd", self.rstd, shape)

    def check_running(self, channels: int, running: Running, uses: bool, writes: bool) -> None:
        """Raise unless the running statistics are there where they are used, and can be updated where they are kept."""
        if (running[0] is None) != (running[1] is None):
            raise ValueError(f"{self.op}: got one of running_mean and running_var, expected both or none")
        if uses and running[0] is None:
            raise ValueError(f"{self.op}: running_mean and running_var are None, expected arrays to normalise by")
        for name, array in zip(("running_mean", "running_var"), running, strict=True):
            self.expect_shape(name, array, (channels,))
            if writes and array is not None and not getattr(array.flags, "writeable", True):
                raise ValueError(f"{self.op}: {name} is read-only, expected an array that can be updated in place")

    def check_batch(
        self, shape: Shape4, running: Running, training: bool, momentum: float, eps: float, writes: bool = True
    ) -> None:
        self.check_affine((shape[1],))
        boolean(self.op, "training", training)
        self.check_running(shape[1], running, uses=not training, writes=writes and training)
        number(self.op, "momentum", momentum)
        if number(self.op, "eps", eps, least=0.0) == 0 and training:
            raise ValueError(f"{self.op}: eps is 0, expected more than 0 in training")
        if training and shape[0] * shape[3] == 1:
            raise ValueError(f"{self.op}: input has shape {self.x.shape}, expected more than one value per channel")

    def check_instance(
        self, shape: Shape4, running: Running, use_input_stats: bool, momentum: float, eps: float, writes: bool = True
    ) -> None:
        self.check_affine((shape[1],))
        boolean(self.op, "use_input_stats", use_input_stats)
        self.check_running(shape[1], running, uses=not use_input_stats, writes=writes and use_input_stats)
        number(self.op, "momentum", momentum)
        number(self.op, "eps", eps, least=0.0)
        if use_input_stats and shape[3] == 1:
            raise ValueError(f"{self.op}: input has shape {self.x.shape}, expected more than one value per channel")

    # --- Steps ----------------------------------------------------------------------------------------------------

    def statistics(self, geometry: NormGeometry, eps: float) -> tuple[Array, Array]:
        """Mean and reciprocal standard deviation of x itself."""
        mean, var = self.backend.norm_statistics(self.x.reshape(geometry.shape), geometry)
        return mean, self.reciprocal(var, eps)

    def reciprocal(self, var: Array, eps: float) -> Array:
        return 1 / self.xp.sqrt(var + eps)

    def batch_statistics(
        self, shape: Shape4, running: Running, training: bool, momentum: float, eps: float, writes: bool = True
    ) -> tuple[Array, Array]:
        """The statistics that a batch is normalised by, [1, C, 1, 1]; updates the running ones."""
        if not training:
            return self.kept_statistics(running, eps)
        geometry = NormGeometry(shape, _BATCH)
        if not geometry.count:
            nothing = self.xp.zeros((1, shape[1], 1, 1), self.wide)
            return nothing, nothing
        mean, var = self.backend.norm_statistics(self.x.reshape(shape), geometry)
        if writes:
            unbiased = var * (geometry.count / (geometry.count - 1))
            self.update(running, mean.reshape(-1), unbiased.reshape(-1), momentum)
        return mean, self.reciprocal(var, eps)

    def instance_statistics(
        self, shape: Shape4, running: Running, use_input_stats: bool, momentum: float, eps: float, writes: bool = True
    ) -> tuple[Array, Array]:
        """The statistics that images are normalised by, [N or 1, C, 1, 1]; updates the running ones."""
        if not use_input_stats:
            return self.kept_statistics(running, eps)
        geometry = NormGeometry(shape, _ROW)
        mean, var = self.backend.norm_statistics(self.x.reshape(shape), geometry)
        if writes and shape[0]:
            unbiased = var * (geometry.count / (geometry.count - 1))
            self.update(running, mean.mean(axis=(0, 2, 3)), unbiased.mean(axis=(0, 2, 3)), momentum)
        return mean, self.reciprocal(var, eps)

    def kept_statistics(self, running: Running, eps: float) -> tuple[Array, Array]:
        mean, var = (array.astype(self.wide).reshape(1, -1, 1, 1) for array in running)  # type: ignore[union-attr]
        return mean, self.reciprocal(var, eps)

    def update(self, running: Running, mean: Array, var: Array, momentum: float) -> None:
        """Move the running statistics towards the batch's, in place."""
        for array, new in zip(running, (mean, var), strict=True):
            if array is not None:
                array[...] = (1 - momentum) * array.astype(new.dtype) + momentum * new

    def spread(self, array: Array | None, shape: Shape4) -> Array | None:
        """Weight or bias as [1, G, C, 1]."""
        return None if array is None else array.reshape(1, *shape[1:3], 1).astype(self.wide, copy=False)

    def apply(self, shape: Shape4, mean: Array, rstd: Array, weight: Array | None, bias: Array | None) -> Array:
        x = self.x.reshape(shape)
        y = self.backend.norm_apply(x, mean, rstd, self.spread(weight, shape), self.spread(bias, shape))
        return y.reshape(self.x.shape)

    def handed_over(self, shape: Shape4, axes: tuple[int, ...]) -> tuple[Array | None, Array | None]:
        """The forward's mean and rstd as axes of x, or None."""
        if self.mean is None or self.rstd is None:
            return None, None
        kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
        return self.mean.reshape(kept).astype(self.wide), self.rstd.reshape(kept).astype(self.wide)

    def backward_input(self, geometry: NormGeometry, mean: Array, rstd: Array, own_statistics: bool) -> Array:
        """Gradient by x, whose own statistics mean and rstd are, or which does not move them."""
        grad, x = self.grad.reshape(geometry.shape), self.x.reshape(geometry.shape)
        weight = self.spread(self.weight, geometry.shape)
        if own_statistics:
            result = self.backend.norm_backward_input(grad, x, mean, rstd, weight, geometry)
        else:
            result = (grad * (rstd if weight is None else rstd * weight)).astype(self.dtype, copy=False)
        return result.reshape(self.x.shape)

    def backward_affine(
        self, geometry: NormGeometry, mean: Array, rstd: Array, needs_weight: bool, needs_bias: bool
    ) -> tuple[Array | None, Array | None]:
        """Gradients by weight and bias, each in that one's shape and dtype."""
        wanted = (self.weight if needs_weight else None, self.bias if needs_bias else None)
        if all(array is None for array in wanted):
            return None, None
        grad, x = self.grad.reshape(geometry.shape), self.x.reshape(geometry.shape)
        grads = self.backend.norm_backward_affine(grad, x, mean, rstd, geometry)
        grad_weight, grad_bias = (
            None if array is None else grad.reshape(array.shape).astype(array.dtype, copy=False)
            for array, grad in zip(wanted, grads, strict=True)
        )
        return grad_weight, grad_bias

    def row_backward(
        self, shape: Shape4, kept: tuple[int, ...], eps: float, needs: Needs
    ) -> tuple[Array | None, Array | None, Array | None]:
        """Gradients of layer and group norm."""
        self.check_statistics(kept)
        needs_x, needs_w, needs_b = needed(self.op, needs, 3)
        geometry = NormGeometry(shape, _ROW)
        mean, rstd = self.handed_over(shape, _ROW)
        if mean is None:
            mean, rstd = self.statistics(geometry, eps)
        grad_x = self.backward_input(geometry, mean, rstd, own_statistics=True) if needs_x else None
        return self.result((grad_x, *self.backward_affine(geometry, mean, rstd, needs_w, needs_b)))


def _batch_shape(call: Call, x: Array) -> Shape4:
    """[N, C, 1, P]."""
    if x.ndim < 2:
        raise ValueError(f"{call.op}: input has {x.ndim} dimensions, expected at least 2 (N, C, *space)")
    _require_values(call, x)
    return x.shape[0], x.shape[1], 1, prod(x.shape[2:])


def _instance_shape(call: Call, x: Array) -> Shape4:
    """[N, C, 1, P]."""
    if x.ndim < 3:
        raise ValueError(f"{call.op}: input has {x.ndim} dimensions, expected at least 3 (N, C, *space)")
    _require_values(call, x)
    return x.shape[0], x.shape[1], 1, prod(x.shape[2:])


def _group_shape(call: _NormCall, x: Array, num_groups: int, eps: float) -> Shape4:
    """[N, G, C / G, P]."""
    if x.ndim < 2:
        raise ValueError(f"{call.op}: input has {x.ndim} dimensions, expected at least 2 (N, C, *space)")
    _require_values(call, x)
    groups = integer(call.op, "num_groups", num_groups, 1)
    n, c, *space = x.shape
    if c % groups:
        raise ValueError(f"{call.op}: input has {c} channels, expected a multiple of num_groups = {groups}")
    call.check_affine((c,))
    number(call.op, "eps", eps, least=0.0)
    if n * (c // groups) * prod(space) == 1:
        raise ValueError(f"{call.op}: input has shape {x.shape}, expected more than one value per group")
    return n, groups, c // groups, prod(space)


def _layer_shape(call: _NormCall, x: Array, normalized_shape: Any, eps: float) -> tuple[Shape4, tuple[int, ...]]:
    """[rows, 1, row, 1], and the shape of the rows."""
    values = len(normalized_shape) if is_sequence(normalized_shape) else 1
    row: Sequence[int] = integers(call.op, "normalized_shape", normalized_shape, values, 1)
    if not row:
        raise ValueError(f"{call.op}: normalized_shape is empty, expected at least one axis")
    if x.shape[-len(row) :] != tuple(row):
        raise ValueError(f"{call.op}: input has shape {x.shape}, expected it to end in normalized_shape = {tuple(row)}")
    call.check_affine(tuple(row))
    number(call.op, "eps", eps, least=0.0)
    leading = x.shape[: x.ndim - len(row)]
    return (prod(leading), 1, prod(row), 1), leading


def _require_values(call: Call, x: Array) -> None:
    if 0 in x.shape[1:]:
        raise ValueError(f"{call.op}: input has shape {x.shape}, expected channels and spatial sizes of at least 1")
