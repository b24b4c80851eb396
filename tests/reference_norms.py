"""The oracle's second part: normalisation, softmax and losses, by definition and in float64.

Backwards follow the computational graph node by node, or the explicit Jacobian of each row, so
that they are independent of the closed forms that they are held against.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
RowFunction = Callable[[Array], Array]


def wide(array: Array | None, default: float = 0.0) -> Array:
    """The same values in float64; the default where there is no array."""
    return np.array(default) if array is None else array.astype(np.float64)


# --- One row: the statistics and the graph ------------------------------------------------------


def moments(rows: Array) -> tuple[Array, Array]:
    """(mean, biased variance), both [R], of rows [R, M]."""
    mean = np.array([row.sum() / row.size for row in rows])
    squares = [((row - m) ** 2).sum() / row.size for row, m in zip(rows, mean, strict=True)]
    return mean, np.array(squares)


def standardize(rows: Array, mean: Array, var: Array, eps: float) -> tuple[Array, Array]:
    """(normalised rows [R, M], reciprocal standard deviation [R])."""
    rstd = 1 / np.sqrt(var + eps)
    return (rows - mean[:, None]) * rstd[:, None], rstd


def standardize_backward_graph(grad: Array, row: Array, eps: float) -> Array:
    """The gradient of one row [M] normalised by its own statistics, one node after the other."""
    m = row.size
    mean = row.sum() / m
    centred = row - mean
    squares = centred**2
    var = squares.sum() / m
    std = math.sqrt(var + eps)
    inverse = 1 / std  # and the result is centred * inverse

    grad_inverse = (grad * centred).sum()
    grad_std = grad_inverse * -1 / std**2
    grad_var = grad_std * 0.5 / std
    grad_squares = grad_var * np.ones(m) / m
    grad_centred = grad * inverse + grad_squares * 2 * centred
    grad_mean = -grad_centred.sum()
    return np.asarray(grad_centred + grad_mean * np.ones(m) / m)


def standardize_backward(grads: Array, rows: Array, eps: float) -> Array:
    """standardize_backward_graph for every row of [R, M]."""
    pairs = zip(grads, rows, strict=True)
    gx = [standardize_backward_graph(grad, row, eps) for grad, row in pairs]
    return np.array(gx).reshape(rows.shape)


# --- Batch norm ---------------------------------------------------------------------------------


class BatchNorm(NamedTuple):
    """What batch_norm gives; mean and rstd [C] are those it normalised with."""

    y: Array
    mean: Array
    rstd: Array
    running_mean: Array | None
    running_var: Array | None


def channel_rows(x: Array) -> Array:
    """[C, N * prod(spatial)] of x [N, C, *spatial]."""
    return wide(x).swapaxes(0, 1).reshape(x.shape[1], x.size // x.shape[1])


def from_channel_rows(rows: Array, shape: Sequence[int]) -> Array:
    """The inverse of channel_rows."""
    n, c, *sizes = shape
    return rows.reshape(c, n, *sizes).swapaxes(0, 1)


def affine(rows: Array, weight: Array | None, bias: Array | None) -> Array:
    """rows [C, M] times weight [C] plus bias [C]."""
    return rows * wide(weight, 1.0).reshape(-1, 1) + wide(bias).reshape(-1, 1)


def blend(running: Array | None, new: Array, momentum: float) -> Array | None:
    """The running statistic after one more batch."""
    return None if running is None else (1 - momentum) * wide(running) + momentum * new


def batch_norm(
    x: Array,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> BatchNorm:
    """x [N, C, *spatial] normalised per channel; the running variance is the unbiased one."""
    rows = channel_rows(x)
    if training:
        mean, var = moments(rows)
        m = rows.shape[1]
        running_mean = blend(running_mean, mean, momentum)
        running_var = blend(running_var, var * m / (m - 1), momentum)
    else:
        assert running_mean is not None
        assert running_var is not None
        mean, var = wide(running_mean), wide(running_var)
    normal, rstd = standardize(rows, mean, var, eps)
    y = from_channel_rows(affine(normal, weight, bias), x.shape)
    return BatchNorm(y, mean, rstd, running_mean, running_var)


def batch_norm_backward_graph(
    grad: Array,
    x: Array,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Array | None = None,
    training: bool = False,
    eps: float = 1e-5,
) -> tuple[Array, Array, Array]:
    """(gx, gw, gb) node by node: beta, gamma, then the graph of the statistics."""
    rows, grads = channel_rows(x), channel_rows(grad)
    statistics = batch_norm(x, running_mean, running_var, training=training, eps=eps)
    normal = channel_rows(statistics.y)
    grad_bias = grads.sum(axis=1)
    grad_weight = (grads * normal).sum(axis=1)
    grad_normal = affine(grads, weight, None)
    grad_rows = standardize_backward(grad_normal, rows, eps) if training else grad_normal * statistics.rstd[:, None]
    return from_channel_rows(grad_rows, x.shape), grad_weight, grad_bias


# --- Norms of each sample -----------------------------------------------------------------------


def layer_norm(
    x: Array,
    normalized_shape: Sequence[int],
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
) -> tuple[Array, Array, Array]:
    """(y, mean, rstd) of x [*leading, *normalized_shape]; mean and rstd are [*leading]."""
    leading = x.shape[: x.ndim - len(normalized_shape)]
    rows = wide(x).reshape(math.prod(leading), math.prod(normalized_shape))
    mean, var = moments(rows)
    normal, rstd = standardize(rows, mean, var, eps)
    y = normal.reshape(x.shape) * wide(weight, 1.0) + wide(bias)
    return y, mean.reshape(leading), rstd.reshape(leading)


def layer_norm_backward(
    grad: Array,
    x: Array,
    normalized_shape: Sequence[int],
    weight: Array | None = None,
    eps: float = 1e-5,
) -> tuple[Array, Array, Array]:
    """(gx, gw, gb), the latter two [*normalized_shape]."""
    leading = tuple(range(x.ndim - len(normalized_shape)))
    shape = (x.size // math.prod(normalized_shape), math.prod(normalized_shape))
    grad, normal = wide(grad), layer_norm(x, normalized_shape, eps=eps)[0]
    grad_normal = grad * wide(weight, 1.0)
    gx = standardize_backward(grad_normal.reshape(shape), wide(x).reshape(shape), eps)
    return gx.reshape(x.shape), (grad * normal).sum(axis=leading), grad.sum(axis=leading)


def group_norm(
    x: Array, groups: int, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """(y, mean, rstd) of x [N, C, *spatial]; mean and rstd are [N, G]."""
    rows = wide(x).reshape(x.shape[0] * groups, math.prod(x.shape[1:]) // groups)
    mean, var = moments(rows)
    normal, rstd = standardize(rows, mean, var, eps)
    y = from_channel_rows(affine(channel_rows(normal.reshape(x.shape)), weight, bias), x.shape)
    return y, mean.reshape(-1, groups), rstd.reshape(-1, groups)


def group_norm_backward(
    grad: Array, x: Array, groups: int, weight: Array | None = None, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """(gx, gw, gb), the latter two [C]."""
    shape = (x.shape[0] * groups, math.prod(x.shape[1:]) // groups)
    grads, normal = channel_rows(grad), channel_rows(group_norm(x, groups, eps=eps)[0])
    grad_normal = from_channel_rows(affine(grads, weight, None), x.shape)
    gx = standardize_backward(grad_normal.reshape(shape), wide(x).reshape(shape), eps)
    return gx.reshape(x.shape), (grads * normal).sum(axis=1), grads.sum(axis=1)


def instance_norm(
    x: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> BatchNorm:
    """x [N, C, *spatial] normalised per sample and channel; mean and rstd are then [N, C].

    The running statistics take the batch's mean of the means and of the unbiased variances.
    """
    if not use_input_stats:
        return batch_norm(x, running_mean, running_var, weight, bias, eps=eps)
    y, mean, rstd = group_norm(x, x.shape[1], weight, bias, eps)
    m = math.prod(x.shape[2:])
    unbiased = (1 / rstd**2 - eps) * m / (m - 1)
    running_mean = blend(running_mean, mean.mean(axis=0), momentum)
    running_var = blend(running_var, unbiased.mean(axis=0), momentum)
    return BatchNorm(y, mean, rstd, running_mean, running_var)


def instance_norm_backward(
    grad: Array,
    x: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    use_input_stats: bool = True,
    eps: float = 1e-5,
) -> tuple[Array, Array, Array]:
    """(gx, gw, gb), the latter two [C]."""
    if use_input_stats:
        return group_norm_backward(grad, x, x.shape[1], weight, eps)
    return batch_norm_backward_graph(grad, x, running_mean, running_var, weight, False, eps)


# --- Softmax and cross entropy ------------------------------------------------------------------


def softmax_row(row: Array) -> Array:
    """exp(x) / sum(exp(x)) of one row, shifted by its maximum."""
    powers: Array = np.exp(row - row.max())
    return np.asarray(powers / powers.sum())


def log_softmax_row(row: Array) -> Array:
    """x - log(sum(exp(x))) of one row, shifted by its maximum."""
    shifted = row - row.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def along(x: Array, dim: int, function: RowFunction) -> Array:
    """A function of one row, for every row along an axis."""
    y = np.moveaxis(wide(x), dim, -1)
    for index in np.ndindex(y.shape[:-1]):
        y[index] = function(y[index])
    return np.moveaxis(y, -1, dim)


def softmax(x: Array, dim: int) -> Array:
    """softmax_row along an axis."""
    return along(x, dim, softmax_row)


def log_softmax(x: Array, dim: int) -> Array:
    """log_softmax_row along an axis."""
    return along(x, dim, log_softmax_row)


def softmax_jacobian(row: Array) -> Array:
    """J[i, j] = d softmax_i / d x_j = p_i (delta_ij - p_j)."""
    p = softmax_row(row)
    return np.asarray(np.diag(p) - np.outer(p, p))


def log_softmax_jacobian(row: Array) -> Array:
    """J[i, j] = d log softmax_i / d x_j = delta_ij - p_j."""
    return np.asarray(np.eye(row.size) - softmax_row(row)[None, :])


def backward_by_jacobian(grad: Array, x: Array, dim: int, jacobian: RowFunction) -> Array:
    """gx of an operation on each row along an axis: J^T grad."""
    rows, grads = np.moveaxis(wide(x), dim, -1), np.moveaxis(wide(grad), dim, -1)
    gx = np.zeros(rows.shape)
    for index in np.ndindex(rows.shape[:-1]):
        gx[index] = jacobian(rows[index]).T @ grads[index]
    return np.moveaxis(gx, -1, dim)


def softmax_backward(grad: Array, x: Array, dim: int) -> Array:
    """gx of softmax."""
    return backward_by_jacobian(grad, x, dim, softmax_jacobian)


def log_softmax_backward(grad: Array, x: Array, dim: int) -> Array:
    """gx of log_softmax."""
    return backward_by_jacobian(grad, x, dim, log_softmax_jacobian)


def cross_entropy_terms(
    shape: Sequence[int],
    target: Array,
    weight: Array | None,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[Array, float]:
    """(q [N, C, *], divisor of the mean): the loss at a position is -sum over c of q log p.

    With class indices [N, *] the divisor is the weight of all targets, with probabilities
    [N, C, *] the number of positions.
    """
    c = shape[1]
    weights = np.ones(c) if weight is None else wide(weight)
    probabilities, kept = np.zeros(tuple(shape)), np.ones((shape[0], *shape[2:]))
    if target.ndim == len(shape):
        probabilities, divisor = wide(target), float(kept.size)
    else:
        divisor = 0.0
        for n, *pos in np.ndindex(target.shape):
            label = int(target[(n, *pos)])
            if label == ignore_index:
                kept[(n, *pos)] = 0
            else:
                probabilities[(n, label, *pos)] = 1
                divisor += weights[label]
    smoothed = probabilities * (1 - label_smoothing) + label_smoothing / c
    per_class = weights.reshape(-1, *[1] * (len(shape) - 2))
    return smoothed * per_class * kept[:, None], divisor


def cross_entropy(
    x: Array,
    target: Array,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Array:
    """The loss of logits x [N, C, *]: [N, *] under "none", else []; the mean of nothing is NaN."""
    q, divisor = cross_entropy_terms(x.shape, target, weight, ignore_index, label_smoothing)
    losses: Array = -(q * log_softmax(x, 1)).sum(axis=1)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return np.asarray(losses.sum())
    return np.asarray(losses.sum() / divisor if divisor else math.nan)


def cross_entropy_backward(
    grad: Array,
    x: Array,
    target: Array,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> tuple[Array, Array | None]:
    """(gx, gradient of the target probabilities or None); what is ignored has the gradient 0."""
    q, divisor = cross_entropy_terms(x.shape, target, weight, ignore_index, label_smoothing)
    grad_losses = np.broadcast_to(wide(grad), (x.shape[0], *x.shape[2:]))
    if reduction == "mean" and divisor:
        grad_losses = grad_losses / divisor
    gx = log_softmax_backward(-q * grad_losses[:, None], x, 1)
    if target.ndim < x.ndim:
        return gx, None
    weights = wide(weight, 1.0).reshape(-1, *[1] * (x.ndim - 2))
    grad_smoothed = -weights * log_softmax(x, 1) * grad_losses[:, None]
    return gx, grad_smoothed * (1 - label_smoothing)


def binary_cross_entropy_with_logits(
    x: Array, target: Array, weight: Array | None = None, *, reduction: str = "mean", pos_weight: Array | None = None
) -> Array:
    """-weight * (pos_weight * t * log(sigmoid(x)) + (1 - t) * log(sigmoid(-x))) of each element."""
    losses = np.zeros(x.shape)
    factors, positives = (np.broadcast_to(np.ones(()) if w is None else wide(w), x.shape) for w in (weight, pos_weight))
    for at in np.ndindex(x.shape):
        value, share = float(x[at]), float(target[at])
        terms = positives[at] * share * _softplus(-value) + (1 - share) * _softplus(value)
        losses[at] = factors[at] * terms
    if reduction == "none":
        return losses
    return np.asarray(losses.sum() if reduction == "sum" else losses.sum() / x.size if x.size else np.nan)


def binary_cross_entropy_with_logits_backward(
    grad: Array,
    x: Array,
    target: Array,
    weight: Array | None = None,
    *,
    reduction: str = "mean",
    pos_weight: Array | None = None,
) -> tuple[Array, Array]:
    """(gx, g_target)."""
    gx, gt = np.zeros(x.shape), np.zeros(x.shape)
    factors, positives = (np.broadcast_to(np.ones(()) if w is None else wide(w), x.shape) for w in (weight, pos_weight))
    grads = np.broadcast_to(wide(np.asarray(grad)), x.shape)
    for at in np.ndindex(x.shape):
        value, share = float(x[at]), float(target[at])
        factor = factors[at] * grads[at] / (x.size if reduction == "mean" else 1)
        gx[at] = factor * ((1 - share) * _slope(value) - positives[at] * share * _slope(-value))
        gt[at] = factor * (positives[at] * _softplus(-value) - _softplus(value))
    return gx, gt


def _softplus(value: float) -> float:
    """log(1 + exp(value)), of large values themselves."""
    return value if value > 40 else math.log1p(math.exp(value))


def _slope(value: float) -> float:
    """1 / (1 + exp(-value))."""
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
