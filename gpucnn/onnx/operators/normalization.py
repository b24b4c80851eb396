"""Normalisation over batches, images, groups, rows and neighbouring channels."""

from __future__ import annotations

from typing import Any

import numpy as np

import gpucnn.functional as F
from gpucnn.backends.dtypes import accumulator
from gpucnn.onnx.operators.arrays import axes_of, axis_of, namespace
from gpucnn.onnx.operators.registry import Array, operator, refuse

_STASHED = {1: np.dtype(np.float32), 11: np.dtype(np.float64)}  # TensorProto's numbers of the dtypes of statistics


@operator("BatchNormalization", 14)
def batch_normalization(
    x: Array,
    scale: Array,
    b: Array,
    mean: Array,
    var: Array,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Any:
    """Each channel normalised by the given statistics, or by its own, which then update these."""
    if not training_mode:
        mean, var, scale, b = (_parameter(array, x.dtype) for array in (mean, var, scale, b))
        return F.batch_norm(x, mean, var, scale, b, eps=epsilon)
    axes = (0, *range(2, x.ndim))
    wide = x.astype(accumulator(x.dtype), copy=False)
    own_mean, own_var = (values.astype(mean.dtype) for values in (wide.mean(axis=axes), wide.var(axis=axes)))
    y = batch_normalization(x, scale, b, own_mean, own_var, epsilon=epsilon)
    kept = [old * old.dtype.type(momentum) + own * old.dtype.type(1 - momentum)
            for old, own in ((mean, own_mean), (var, own_var))]  # fmt: skip
    return y, *kept


def _parameter(array: Array, dtype: Any) -> Array:
    """A norm's parameter in a dtype that its images allow: theirs, or float32 for 16 bits."""
    return array if array.dtype in (dtype, accumulator(dtype)) else array.astype(accumulator(dtype))


def _spread(array: Array, x: Array, shape: tuple[int, ...]) -> Array:
    """A norm's parameter in the shape of the rows."""
    array = _parameter(array, x.dtype)
    xp = namespace(x)
    return array if array.shape == shape else xp.ascontiguousarray(xp.broadcast_to(array, shape))


@operator("BatchNormalization", 1)
def batch_normalization_for_inference(
    x: Array,
    scale: Array,
    b: Array,
    mean: Array,
    var: Array,
    *,
    consumed_inputs: list[int] | None = None,
    epsilon: float = 1e-5,
    is_test: int = 1,
    momentum: float = 0.9,
    spatial: int = 1,
    count: int,
) -> Array:
    """Each channel normalised by the given statistics; older versions train where they have more outputs."""
    if count > 1 or not is_test or not spatial:
        raise refuse("trains or has a mean for each place, expected the spatial form for inference")
    return batch_normalization(x, scale, b, mean, var, epsilon=epsilon)


@operator("InstanceNormalization")
def instance_normalization(x: Array, scale: Array, b: Array, *, epsilon: float = 1e-5) -> Array:
    """Each channel of each image, normalised."""
    return F.instance_norm(x, weight=scale, bias=b, eps=epsilon)


@operator("GroupNormalization", 21)
def group_normalization(
    x: Array, scale: Array, bias: Array, *, epsilon: float = 1e-5, num_groups: int, stash_type: int = 1
) -> Array:
    """Groups of channels of each image, normalised."""
    _stash(stash_type)
    return F.group_norm(x, num_groups, _parameter(scale, x.dtype), _parameter(bias, x.dtype), epsilon)


@operator("GroupNormalization", 18)
def group_normalization_by_groups(
    x: Array, scale: Array, bias: Array, *, epsilon: float = 1e-5, num_groups: int
) -> Array:
    """As `group_normalization`, with a scale for each group."""
    times = x.shape[1] // num_groups
    xp = namespace(x)
    return F.group_norm(x, num_groups, xp.repeat(scale, times), xp.repeat(bias, times), epsilon)


def _stash(stash_type: int) -> Any:
    if stash_type not in _STASHED:
        raise refuse(f"stash_type is {stash_type}, expected 1 for float32 or 11 for float64")
    return _STASHED[stash_type]


@operator("LayerNormalization")
def layer_normalization(
    x: Array,
    scale: Array,
    b: Array = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    count: int,
) -> Any:
    """The axes from `axis` on, normalised; and the statistics."""
    stash = _stash(stash_type)
    axis = axis_of(axis, x.ndim)
    shape = tuple(x.shape[axis:])
    weight, bias = _spread(scale, x, shape), None if b is None else _spread(b, x, shape)
    if count == 1:
        return F.layer_norm(x, shape, weight, bias, epsilon)
    y, mean, rstd = F.layer_norm(x, shape, weight, bias, epsilon, return_statistics=True)
    kept = (*x.shape[:axis], *(1,) * len(shape))
    return y, mean.reshape(kept).astype(stash, copy=False), rstd.reshape(kept).astype(stash, copy=False)


@operator("RMSNormalization")
def rms_normalization(x: Array, scale: Array, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Array:
    """The axes from `axis` on, divided by the root of their mean square."""
    _stash(stash_type)
    shape = tuple(x.shape[axis_of(axis, x.ndim) :])
    return F.rms_norm(x, shape, _spread(scale, x, shape), epsilon)


@operator("LRN")
def local_response_normalization(
    x: Array, *, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, size: int
) -> Array:
    """Each value over a power of the sum of squares of the channels around it."""
    if size % 2:
        return F.local_response_norm(x, size, alpha, beta, bias)
    xp = namespace(x)  # of an even window ONNX has the longer part after a channel, and PyTorch before it
    return xp.flip(F.local_response_norm(xp.flip(x, 1), size, alpha, beta, bias), 1)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(x: Array, *, axes: list[int] | None = None) -> Array:
    """The values less their mean, over their standard deviation."""
    over = axes_of([0, 2, 3] if axes is None else axes, x.ndim)
    wide = x.astype(accumulator(x.dtype), copy=False)
    centred = wide - wide.mean(axis=over, keepdims=True)
    deviation = namespace(x).sqrt((centred * centred).mean(axis=over, keepdims=True))
    return (centred / (deviation + 1e-9)).astype(x.dtype, copy=False)


@operator("LpNormalization")
def lp_normalization(x: Array, *, axis: int = -1, p: int = 2) -> Array:
    """Vectors along an axis, divided by their norm; 0 stays 0."""
    xp = namespace(x)
    if p not in (1, 2):
        raise refuse(f"p is {p}, expected 1 or 2")
    norm = xp.abs(x).sum(axis=axis, keepdims=True) if p == 1 else xp.sqrt((x * x).sum(axis=axis, keepdims=True))
    return xp.where(norm == 0, x.dtype.type(0), x / norm)
