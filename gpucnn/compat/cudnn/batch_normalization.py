"""Batch normalisation, under the names and arguments of CuPy's cuDNN functions."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import gpucnn.functional as F
from gpucnn.backends.dtypes import accumulator
from gpucnn.compat._arrays import Array, channels_first, channels_last, expect_shape, taken
from gpucnn.compat.cudnn.constants import CUDNN_TENSOR_NCHW, FLOATS, is_channels_last, one_of

__all__ = [
    "batch_normalization_backward", "batch_normalization_forward_inference", "batch_normalization_forward_training",
    "batch_normalization_forward_training_ex",
]  # fmt: skip

OPTIONAL = ("running_mean", "running_var", "mean", "inv_std")


def batch_normalization_forward_training(
    x: Array,
    gamma: Array,
    beta: Array,
    running_mean: Array | None,
    running_var: Array | None,
    mean: Array | None,
    inv_std: Array | None,
    eps: float,
    decay: float,
    is_for_conv2d: bool,
    cudnn_mode: int,
    debug: bool,
    d_layout: int = CUDNN_TENSOR_NCHW,
) -> Any:
    """Normalise by the batch's own statistics, and scale and shift.

    Parameters
    ----------
    x : array [N, C, *space] or [*, C]
        float16, float32 or float64.
    gamma, beta : array with a value for each mean
        Scale and shift, of any shape; cast to float32, or to float64 for `x` of it.
    running_mean, running_var : array with a value for each mean, or None
        Updated in place: ``running = decay * running + (1 - decay) * batch``, with the unbiased variance.
    mean, inv_std : array with a value for each mean, or None
        Both or none: overwritten with the batch's mean and the reciprocal of its standard deviation.
    eps : float
        Added to the variance; more than 0.
    decay : float
        Share of the running statistics that stays.
    is_for_conv2d : bool
        Images [N, C, *space]. Otherwise a mean is over all axes but the last.
    cudnn_mode : int
        Of images: a mean for each channel (``CUDNN_BATCHNORM_SPATIAL``, ``CUDNN_BATCHNORM_SPATIAL_PERSISTENT``) or for
        each channel and position (``CUDNN_BATCHNORM_PER_ACTIVATION``).
    debug : bool
        Has no effect.
    d_layout : int
        ``CUDNN_TENSOR_NHWC`` for images [N, *space, C].

    Returns
    -------
    array in the shape and dtype of `x`
        Alone where `mean` and `inv_std` are given.
    save_mean, save_inv_std : array in the shape of `gamma`
        Of the batch, where they are not given; float32 for float16 and float32, else float64.

    Raises
    ------
    TypeError
        An argument is no array, or the dtype of `x` is not supported.
    ValueError
        Shapes do not fit, one of two arrays is missing, a parameter is out of range, or there is but one value for each
        mean.

    Examples
    --------
    >>> x, one = np.array([[1.0, 10.0], [3.0, 30.0]]), np.ones(2)
    >>> how = {"eps": 1e-5, "decay": 0.9, "is_for_conv2d": False, "cudnn_mode": 0, "debug": False}
    >>> y, mean, inv_std = batch_normalization_forward_training(x, one, 0 * one, None, None, None, None, **how)
    >>> y.round(3)
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> mean, inv_std.round(3)
    (array([ 2., 20.]), array([1. , 0.1]))
    """
    op = "batch_normalization_forward_training"
    running, saved = {"running_mean": running_mean, "running_var": running_var}, {"mean": mean, "inv_std": inv_std}
    for pair in (running, saved):
        if len({array is None for array in pair.values()}) > 1:
            raise ValueError(f"{op}: got one of {' and '.join(pair)}, expected both or none")
    arrays = {"x": x, "gamma": gamma, "beta": beta, **running, **saved}
    batch = _Batch.of(op, arrays, is_for_conv2d, cudnn_mode, d_layout)
    averages = batch.parameter("running_mean"), batch.parameter("running_var")
    y, *statistics = F.batch_norm(
        batch.seen("x"),
        averages[0],
        averages[1],
        batch.parameter("gamma"),
        batch.parameter("beta"),
        training=True,
        momentum=1.0 - decay,
        eps=eps,
        return_statistics=True,
    )
    for name, array in zip(running, averages, strict=True):
        batch.store(name, array)
    if mean is None:
        shape = batch.received["gamma"].shape
        return batch.whole(y), *(batch.give_back(array.reshape(shape)) for array in statistics)
    for name, array in zip(saved, statistics, strict=True):
        batch.store(name, array)
    return batch.whole(y)


def batch_normalization_forward_training_ex(
    x: Array,
    gamma: Array,
    beta: Array,
    running_mean: Array | None,
    running_var: Array | None,
    mean: Array | None,
    inv_std: Array | None,
    eps: float,
    decay: float,
    is_for_conv2d: bool,
    cudnn_mode: int,
    debug: bool,
    d_layout: int = CUDNN_TENSOR_NCHW,
) -> tuple[Any, ...]:
    """As `batch_normalization_forward_training`, with None before its results: no space is reserved for the backward.

    Parameters
    ----------
    x, gamma, beta, running_mean, running_var, mean, inv_std, eps, decay, is_for_conv2d, cudnn_mode, debug, d_layout
        As in `batch_normalization_forward_training`.

    Returns
    -------
    tuple
        None, then the results of `batch_normalization_forward_training`.

    Raises
    ------
    TypeError, ValueError
        As `batch_normalization_forward_training`.
    """
    result = batch_normalization_forward_training(
        x, gamma, beta, running_mean, running_var, mean, inv_std, eps, decay, is_for_conv2d, cudnn_mode, debug, d_layout
    )
    return (None, *result) if mean is None else (None, result)


def batch_normalization_forward_inference(
    x: Array,
    gamma: Array,
    beta: Array,
    mean: Array,
    var: Array,
    eps: float,
    is_for_conv2d: bool,
    cudnn_mode: int,
    d_layout: int = CUDNN_TENSOR_NCHW,
) -> Array:
    """Normalise by given statistics, and scale and shift.

    Parameters
    ----------
    x, gamma, beta, eps, is_for_conv2d, cudnn_mode, d_layout
        As in `batch_normalization_forward_training`.
    mean, var : array with a value for each mean
        The statistics.

    Returns
    -------
    array in the shape and dtype of `x`

    Raises
    ------
    TypeError, ValueError
        As `batch_normalization_forward_training`.

    Examples
    --------
    >>> x, one = np.array([[1.0, 10.0], [3.0, 30.0]]), np.ones(2)
    >>> batch_normalization_forward_inference(x, one, one, 2 * one, 4 * one, 0.0, False, 0)
    array([[ 0.5,  5. ],
           [ 1.5, 15. ]])
    """
    op, arrays = "batch_normalization_forward_inference", {"gamma": gamma, "beta": beta, "mean": mean, "var": var}
    batch = _Batch.of(op, {"x": x, **arrays}, is_for_conv2d, cudnn_mode, d_layout)
    mean, var, gamma, beta = map(batch.parameter, ("mean", "var", "gamma", "beta"))
    return batch.whole(F.batch_norm(batch.seen("x"), mean, var, gamma, beta, eps=eps))


def batch_normalization_backward(
    x: Array,
    gamma: Array,
    gy: Array,
    mean: Array,
    inv_std: Array,
    eps: float,
    is_for_conv2d: bool,
    cudnn_mode: int,
    debug: bool,
    d_layout: int = CUDNN_TENSOR_NCHW,
    *,
    reserve_space: Any = None,
) -> tuple[Array, Array, Array]:
    """Compute the gradients of `batch_normalization_forward_training`.

    Parameters
    ----------
    x, gamma, eps, is_for_conv2d, cudnn_mode, debug, d_layout
        As they were given to `batch_normalization_forward_training`.
    gy : array in the shape of `x`
        Gradient with respect to its result.
    mean, inv_std : array with a value for each mean
        What it returned, or wrote to its arguments.
    reserve_space : None
        What `batch_normalization_forward_training_ex` returned first; has no effect.

    Returns
    -------
    tuple of three arrays
        Gradients with respect to `x`, `gamma` and `beta`, the last two in the shape of `gamma`: in its dtype where
        that is float32, or float64 for `x` of it, else in the dtype of `x`.

    Raises
    ------
    TypeError, ValueError
        As `batch_normalization_forward_training`.

    Examples
    --------
    >>> x, gy, one = np.array([[1.0], [3.0]]), np.array([[1.0], [0.0]]), np.ones(1)
    >>> gx, ggamma, gbeta = batch_normalization_backward(x, one, gy, 2 * one, one, 1e-5, False, 0, False)
    >>> ggamma, gbeta
    (array([-1.]), array([1.]))
    """
    op, arrays = "batch_normalization_backward", {"x": x, "gamma": gamma, "gy": gy, "mean": mean, "inv_std": inv_std}
    batch = _Batch.of(op, arrays, is_for_conv2d, cudnn_mode, d_layout)
    scale = batch.parameter("gamma")
    found: Any = F.batch_norm_backward(
        batch.seen("gy"),
        batch.seen("x"),
        None,
        None,
        scale,
        scale,  # in place of beta, of which only the shape counts
        training=True,
        eps=eps,
        mean=batch.parameter("mean"),
        rstd=batch.parameter("inv_std"),
    )
    gx, _, _, *gradients = found
    given = batch.received["gamma"]
    dtype = given.dtype if given.dtype == batch.wide else batch.received["x"].dtype
    ggamma, gbeta = (batch.give_back(array.astype(dtype, copy=False).reshape(given.shape)) for array in gradients)
    return batch.whole(gx), ggamma, gbeta


class _Batch(NamedTuple):
    """The arrays of a call, and how x is seen as [N, C, *] with a mean for each C."""

    received: dict[str, Any]
    give_back: Callable[[Any], Any]
    layout: str
    """Of "channels first", "channels last", "positions" (each has a mean) and "rows"."""

    @classmethod
    def of(
        cls, op: str, arrays: dict[str, Array | None], is_for_conv2d: bool, cudnn_mode: int, d_layout: int
    ) -> _Batch:
        """Take the arrays, and check what is not left to the operations."""
        modes = ("PER_ACTIVATION", "SPATIAL", "SPATIAL_PERSISTENT")
        mode = one_of(op, "cudnn_mode", cudnn_mode, *(f"CUDNN_BATCHNORM_{name}" for name in modes))
        layout = "channels last" if is_channels_last(op, "d_layout", d_layout) else "channels first"
        if not is_for_conv2d:
            layout = "rows"
        elif mode == "CUDNN_BATCHNORM_PER_ACTIVATION":
            layout = "positions"
        parameters = set(arrays) - {"x", "gy"}
        found = taken(op, arrays, FLOATS, optional=OPTIONAL, apart=dict.fromkeys(parameters, FLOATS))
        batch = cls(dict(zip(arrays, found.arrays, strict=True)), found.give_back, layout)
        x = batch.received["x"]
        if x.ndim < 2:
            raise ValueError(f"{op}: x has {x.ndim} dimensions, expected at least 2")
        if "gy" in arrays:
            expect_shape(op, "gy", batch.received["gy"], tuple(x.shape), "that of x, ")
        count = batch.seen("x").shape[1]
        for name in arrays:
            array = batch.received[name]
            if name in parameters and array is not None and array.size != count:
                raise ValueError(f"{op}: {name} has {array.size} values, expected {count}, one for each mean")
        return batch

    @property
    def wide(self) -> Any:
        """The dtype of parameters and statistics."""
        return accumulator(self.received["x"].dtype)

    def seen(self, name: str) -> Array:
        """The array of this name, in the shape of x, as [N, C, *]."""
        array = self.received[name]
        if self.layout == "rows":
            return array.reshape(prod(array.shape[:-1]), array.shape[-1])
        if self.layout == "positions":
            return array.reshape(array.shape[0], prod(array.shape[1:]))
        return channels_first(array) if self.layout == "channels last" else array

    def whole(self, result: Array) -> Array:
        """A result [N, C, *] in the shape of x, as the caller's kind."""
        if self.layout == "channels last":
            return self.give_back(channels_last(result))
        return self.give_back(result.reshape(self.received["x"].shape))

    def parameter(self, name: str) -> Array:
        """A parameter or statistic as [C] in the dtype that is computed in: the array itself where it is that."""
        array = self.received[name]
        if array is None:
            return None
        is_ready = array.ndim == 1 and array.dtype == self.wide
        return array if is_ready else array.astype(self.wide, copy=False).reshape(-1)

    def store(self, name: str, values: Array) -> None:
        """Write values [C] to the array of this name, if they are others than it holds."""
        array = self.received[name]
        if values is not array:
            array[...] = values.reshape(array.shape)
