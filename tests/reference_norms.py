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
RowFunction = Callable[..., Array]


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


def row_norm(
    x: Array, rows: tuple[int, int], weight: Array | None, bias: Array | None, eps: float
) -> tuple[Array, Array, Array]:
    """(y, mean [R], rstd [R]) of x as rows [R, M]; weight and bias broadcast against x."""
    values = wide(x).reshape(rows)
    mean, var = moments(values)
    normal, rstd = standardize(values, mean, var, eps)
    return normal.reshape(x.shape) * wide(weight, 1.0) + wide(bias), mean, rstd


def row_norm_backward(
    grad: Array, x: Array, rows: tuple[int, int], weight: Array | None, axes: tuple[int, ...], eps: float
) -> tuple[Array, Array, Array]:
    """(gx, gw, gb), the latter two summed over the axes along which weight and bias are the same."""
    grad, normal = wide(grad), row_norm(x, rows, None, None, eps)[0]
    grad_normal = grad * wide(weight, 1.0)
    gx = standardize_backward(grad_normal.reshape(rows), wide(x).reshape(rows), eps)
    return gx.reshape(x.shape), (grad * normal).sum(axis=axes), grad.sum(axis=axes)


def layer_norm(
    x: Array,
    normalized_shape: Sequence[int],
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
) -> tuple[Array, Array, Array]:
    """(y, mean, rstd) of x [*leading, *normalized_shape]; mean and rstd are [*leading]."""
    leading = x.shape[: x.ndim - len(normalized_shape)]
    y, mean, rstd = row_norm(x, (math.prod(leading), math.prod(normalized_shape)), weight, bias, eps)
    return y, mean.reshape(leading), rstd.reshape(leading)


def layer_norm_backward(
    grad: Array,
    x: Array,
    normalized_shape: Sequence[int],
    weight: Array | None = None,
    eps: float = 1e-5,
) -> tuple[Array, Array, Array]:
    """(gx, gw, gb), the latter two [*normalized_shape]."""
    rows = (x.size // math.prod(normalized_shape), math.prod(normalized_shape))
    return row_norm_backward(grad, x, rows, weight, tuple(range(x.ndim - len(normalized_shape))), eps)


def rms_norm(
    x: Array, normalized_shape: Sequence[int], weight: Array | None = None, bias: None = None, eps: float = 1e-5
) -> tuple[Array, Array]:
    """(y, rstd) of x [*leading, *normalized_shape]; rstd is [*leading]."""
    axes = tuple(range(x.ndim - len(normalized_shape), x.ndim))
    rstd = 1 / np.sqrt((wide(x) ** 2).mean(axis=axes) + eps)
    return wide(x) * rstd.reshape(*rstd.shape, *[1] * len(axes)) * wide(weight, 1.0), rstd


def rms_norm_backward(
    grad: Array, x: Array, normalized_shape: Sequence[int], weight: Array | None = None, eps: float = 1e-5
) -> tuple[Array, Array, None]:
    """(gx, gw, None) node by node: y = x * rstd * weight, rstd = square ** -1/2, square = mean(x * x) + eps."""
    axes = tuple(range(x.ndim - len(normalized_shape), x.ndim))
    normal, rstd = rms_norm(x, normalized_shape, eps=eps)
    rstd = rstd.reshape(*rstd.shape, *[1] * len(axes))
    grad_normal = wide(grad) * wide(weight, 1.0)
    grad_rstd = (grad_normal * wide(x)).sum(axis=axes, keepdims=True)
    grad_square = -0.5 * rstd**3 * grad_rstd
    gx = grad_normal * rstd + 2 * wide(x) * grad_square / math.prod(normalized_shape)
    return gx, (wide(grad) * normal).sum(axis=tuple(range(x.ndim - len(axes)))), None


def group_rows(x: Array, groups: int) -> tuple[int, int]:
    """The number of rows of x [N, C, *spatial] and their length."""
    return x.shape[0] * groups, math.prod(x.shape[1:]) // groups


def per_channel(values: Array | None, ndim: int) -> Array | None:
    """values [C] in a shape that broadcasts against [N, C, *spatial]."""
    return None if values is None else values.reshape(-1, *[1] * (ndim - 2))


def group_norm(
    x: Array, groups: int, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """(y, mean, rstd) of x [N, C, *spatial]; mean and rstd are [N, G]."""
    affine = per_channel(weight, x.ndim), per_channel(bias, x.ndim)
    y, mean, rstd = row_norm(x, group_rows(x, groups), *affine, eps)
    return y, mean.reshape(-1, groups), rstd.reshape(-1, groups)


def group_norm_backward(
    grad: Array, x: Array, groups: int, weight: Array | None = None, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """(gx, gw, gb), the latter two [C]."""
    axes = (0, *range(2, x.ndim))
    return row_norm_backward(grad, x, group_rows(x, groups), per_channel(weight, x.ndim), axes, eps)


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


# --- Local response norm ------------------------------------------------------------------------


def local_response_norm(x: Array, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Array:
    """x [N, C, *spatial] over the power of its squares, window by window of channels."""
    y = np.empty(x.shape)
    for c in range(x.shape[1]):
        y[:, c] = wide(x[:, c]) / _response(x, c, size, alpha, k) ** beta
    return y


def local_response_norm_backward(
    grad: Array, x: Array, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Array:
    """Scattered: what each output sends to each channel of its window."""
    gx = np.zeros(x.shape)
    for c in range(x.shape[1]):
        base, g = _response(x, c, size, alpha, k), wide(grad[:, c])
        gx[:, c] += g * base**-beta
        of_base = -beta * g * wide(x[:, c]) * base ** (-beta - 1)
        for other in _window(x, c, size):
            gx[:, other] += of_base * 2 * alpha / size * wide(x[:, other])
    return gx


def _window(x: Array, c: int, size: int) -> range:
    first = c - size // 2
    return range(max(first, 0), min(first + size, x.shape[1]))


def _response(x: Array, c: int, size: int, alpha: float, k: float) -> Array:
    squares = [wide(x[:, other]) ** 2 for other in _window(x, c, size)]
    return k + alpha / size * np.sum(squares, axis=0)


# --- Softmax and cross entropy ------------------------------------------------------------------


def softmax_row(row: Array) -> Array:
    """exp(x) / sum(exp(x)) of one row, shifted by its maximum."""
    powers: Array = np.exp(row - row.max())
    return np.asarray(powers / powers.sum())


def log_softmax_row(row: Array) -> Array:
    """x - log(sum(exp(x))) of one row, shifted by its maximum."""
    shifted = row - row.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def along(dim: int, function: RowFunction, *arrays: Array) -> Array:
    """A function of one row of each array, for every row along an axis."""
    given = [np.moveaxis(wide(array), dim, -1) for array in arrays]
    y = np.zeros(given[0].shape)
    for index in np.ndindex(y.shape[:-1]):
        y[index] = function(*(array[index] for array in given))
    return np.moveaxis(y, -1, dim)


def softmax(x: Array, dim: int) -> Array:
    """softmax_row along an axis."""
    return along(dim, softmax_row, x)


def log_softmax(x: Array, dim: int) -> Array:
    """log_softmax_row along an axis."""
    return along(dim, log_softmax_row, x)


def softmax_backward(grad: Array, x: Array, dim: int) -> Array:
    """gx of softmax: J^T grad, with J[i, j] = d softmax_i / d x_j = p_i (delta_ij - p_j)."""

    def row(grad: Array, x: Array) -> Array:
        p = softmax_row(x)
        return np.asarray((np.diag(p) - np.outer(p, p)).T @ grad)

    return along(dim, row, grad, x)


def log_softmax_backward(grad: Array, x: Array, dim: int) -> Array:
    """gx of log_softmax: J^T grad, with J[i, j] = d log softmax_i / d x_j = delta_ij - p_j."""

    def row(grad: Array, x: Array) -> Array:
        return np.asarray((np.eye(x.size) - softmax_row(x)[None, :]).T @ grad)

    return along(dim, row, grad, x)


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
    x, share = wide(x), wide(target)
    terms = wide(pos_weight, 1.0) * share * each(softplus, -x) + (1 - share) * each(softplus, x)
    losses = wide(weight, 1.0) * terms
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
    x, share, positive = wide(x), wide(target), wide(pos_weight, 1.0)
    factors = wide(weight, 1.0) * wide(np.asarray(grad)) / (x.size if reduction == "mean" and x.size else 1)
    gx = factors * ((1 - share) * each(slope, x) - positive * share * each(slope, -x))
    return gx, factors * (positive * each(softplus, -x) - each(softplus, x))


def each(function: Callable[[float], float], x: Array) -> Array:
    """A function of each element."""
    return np.array([function(float(value)) for value in x.ravel()], float).reshape(x.shape)


def softplus(value: float) -> float:
    """log(1 + exp(value)), of large values themselves."""
    return value if value > 40 else math.log1p(math.exp(value))


def slope(value: float) -> float:
    """1 / (1 + exp(-value))."""
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
