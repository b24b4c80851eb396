"""Cross entropy of classes and of single probabilities, and its gradients."""

from __future__ import annotations

from functools import cached_property
from math import prod
from numbers import Real
from typing import Any

import numpy as np

from gpucnn.backends.dtypes import FLOATING, INTEGER, accumulator
from gpucnn.functional._call import Array, Call, Needs, choice, needed, softmax_of
from gpucnn.geometry.arguments import integer, number

__all__ = [
    "binary_cross_entropy_with_logits", "binary_cross_entropy_with_logits_backward", "cross_entropy",
    "cross_entropy_backward",
]  # fmt: skip

REDUCTIONS = ("mean", "sum", "none")


def cross_entropy(
    input: Array,
    target: Array,
    weight: Array | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Array:
    """Cross entropy between logits and classes, or between logits and class probabilities.

    Parameters
    ----------
    input : array [N, C, *space] or [C]
        Logits, floating-point.
    target : array of integers [N, *space] or [], or array in the shape and dtype of `input`
        Classes in [0, C), or the probability of each class.
    weight : array [C], optional
        A weight for each class.
    ignore_index : int
        Class of the targets that are ignored.
    reduction : "mean", "sum" or "none"
        The mean is weighted by the targets' weights; for probabilities it is over N and the space.
    label_smoothing : float
        Share of each target that is spread over all classes, in [0, 1].

    Returns
    -------
    array [], or for "none" one loss for each target, [N, *space] or []

    Raises
    ------
    TypeError
        A dtype is not supported, or a parameter is not a number.
    ValueError
        Shapes do not fit, a parameter is out of range, or a class is.

    See Also
    --------
    cross_entropy_backward, log_softmax

    Notes
    -----
    Each loss is ``-sum over c of q[c] * log_softmax(x)[c]``, where q are the smoothed and weighted probabilities. The
    mean of no target is NaN, and its gradient 0. A class without a share adds nothing, also where its logit is -inf,
    for which PyTorch has NaN with probabilities. PyTorch's deprecated ``size_average`` and ``reduce`` are left out.

    Examples
    --------
    >>> round(float(cross_entropy(np.zeros((2, 2)), np.array([0, 1]))), 4)
    0.6931
    """
    call = Call("cross_entropy", FLOATING, optional=("weight",), input=input, weight=weight)
    x, w = call.arrays
    terms = _Terms(call, x, target, w, ignore_index, reduction, label_smoothing)
    logs = softmax_of(call, x, terms.axis, is_log=True)
    if terms.at is not None:
        losses = -_product(call, terms.share, logs[terms.at])
    else:
        losses = -_product(call, terms.shares, logs).sum(terms.axis)
    if reduction != "none":
        with np.errstate(invalid="ignore", divide="ignore"):
            losses = losses.sum() / terms.total
    return call.result(call.xp.asarray(losses, dtype=x.dtype))


def cross_entropy_backward(
    grad_output: Array,
    input: Array,
    target: Array,
    weight: Array | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    needs: Needs = None,
) -> tuple[Array | None, Array | None, None]:
    """Gradients of `cross_entropy`.

    Parameters
    ----------
    grad_output : array [] or number, or for "none" an array with one value for each target
        Gradient of the loss with respect to the output.
    input, target, weight, ignore_index, reduction, label_smoothing
        As they were given to `cross_entropy`.
    needs : sequence of 3 bools, optional
        Which gradients to compute; the others are None.

    Returns
    -------
    tuple of (array or None)
        Gradients with respect to `input`, to `target` where that holds probabilities, and None for `weight`.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`, or `grad_output` does not have the output's shape.

    Examples
    --------
    >>> cross_entropy_backward(1.0, np.array([[0.0, 0.0]]), np.array([0]))[0]
    array([[-0.5,  0.5]])
    """
    op = "cross_entropy_backward"
    is_number = isinstance(grad_output, Real | np.generic)
    arrays = {"input": input, "weight": weight} | ({} if is_number else {"grad_output": grad_output})
    call = Call(op, FLOATING, optional=("weight",), **arrays)
    x, w, *grads = call.arrays
    terms = _Terms(call, x, target, w, ignore_index, reduction, label_smoothing)
    grad = call.xp.asarray(number(op, "grad_output", grad_output), dtype=x.dtype) if is_number else grads[0]
    call.expect_shape("grad_output", grad, terms.shape if reduction == "none" else ())
    need_x, need_target, _ = needed(op, needs, 3)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = call.promoted(grad) / terms.total
    grad_x = grad_target = None
    if terms.at is not None and need_x:
        factor = _product(call, terms.share, scale)
        if np.isfinite(factor).all():
            grad_x = softmax_of(call, x, terms.axis, is_log=False)
            grad_x *= np.expand_dims(factor, terms.axis)
            grad_x[terms.at] -= factor
            return call.result((call.stored_like(grad_x, x), None, None))
    if grad.ndim:
        scale = call.xp.expand_dims(scale, terms.axis)
    logs = softmax_of(call, x, terms.axis, is_log=True)
    if need_x:
        slopes = call.xp.exp(logs) * terms.shares.sum(terms.axis, keepdims=True) - terms.shares
        with np.errstate(invalid="ignore"):  # the scale of a mean of nothing is infinite
            grad_x = call.stored_like(call.xp.where(slopes == 0, 0, slopes * scale), x)
    if need_target and terms.probabilities:
        with np.errstate(invalid="ignore"):
            grad_target = call.stored_like(-scale * (1 - terms.smoothing) * terms.class_weights * logs, x)
    return call.result((grad_x, grad_target, None))


def _product(call: Call, shares: Array, values: Array) -> Array:
    """Shares times values, which may be infinite where there is no share."""
    with np.errstate(invalid="ignore"):
        return call.xp.where(shares == 0, 0, shares * values)


class _Terms:
    """The parts of a cross entropy: each loss is ``-sum of shares * log_softmax(x)`` over the class axis.

    `shares` are the targets' probabilities, smoothed and weighted, in the shape of x; `total` is what their sum is
    divided by; `shape` is that of the losses. Where each target is one class, in host memory, `at` is its index in x,
    and `share`, in the shape of the losses, its share: they take less time than `shares`.
    """

    def __init__(
        self,
        call: Call,
        x: Array,
        target: Array,
        weight: Array | None,
        ignore_index: int,
        reduction: str,
        label_smoothing: float,
    ) -> None:
        if x.ndim < 1 or 0 in x.shape[min(1, x.ndim - 1) :]:
            raise ValueError(f"{call.op}: input has shape {x.shape}, expected (N, C, *space) or (C,) of at least 1")
        choice(call.op, "reduction", reduction, REDUCTIONS)
        ignored = integer(call.op, "ignore_index", ignore_index, -(2**31))
        self.smoothing = number(call.op, "label_smoothing", label_smoothing, 0.0, 1.0)
        self.axis = min(1, x.ndim - 1)
        classes = x.shape[self.axis]
        if x.ndim > 1:
            call.expect_per_channel("weight", weight, x)
        else:
            call.expect_shape("weight", weight, (classes,))
        wide = accumulator(x.dtype)
        ones = (1,) * (x.ndim - self.axis - 1)
        weights = call.xp.ones(classes, wide) if weight is None else weight.astype(wide)
        self.class_weights = weights.reshape(classes, *ones)
        self.shape = x.shape[: self.axis] + x.shape[self.axis + 1 :]
        classes_of = call.also("target", target)
        self.probabilities = classes_of.dtype.name not in INTEGER
        if self.probabilities:
            if classes_of.dtype != x.dtype:
                raise TypeError(
                    f"{call.op}: target has dtype {classes_of.dtype}, "
                    f"expected an integer dtype for classes, or {x.dtype} for probabilities"
                )
            if classes_of.shape != x.shape:
                raise ValueError(
                    f"{call.op}: target has shape {classes_of.shape}, expected {x.shape} as input for probabilities, "
                    f"{classes_of.dtype}; classes are of an integer dtype, such as target.astype(numpy.int64)"
                )
            self._kept = call.xp.ones(self.shape, bool)
        else:
            if classes_of.shape != self.shape:
                raise ValueError(
                    f"{call.op}: target has shape {classes_of.shape}, expected {self.shape}, "
                    f"a class for each place of input (N, C, *space) of shape {x.shape}"
                )
            self._kept = classes_of != ignored
            self._check_classes(call, classes_of, self._kept, classes)
        self._call, self._target, self._is_mean = call, classes_of, reduction == "mean"
        self.at: tuple[Array, ...] | None = None
        if call.backend.host and not self.probabilities and not self.smoothing:
            only = np.where(self._kept, classes_of, 0).astype(np.intp)
            places = np.ogrid[tuple(map(slice, self.shape))]
            self.at = (*places[: self.axis], only, *places[self.axis :])
            self.share = weights[only] * self._kept

    @cached_property
    def shares(self) -> Array:
        """The targets' probabilities, smoothed and weighted, in the shape of x."""
        smoothed = self._given * (1 - self.smoothing) + self.smoothing / len(self.class_weights)
        return smoothed * self.class_weights * self._call.xp.expand_dims(self._kept, self.axis)

    @cached_property
    def total(self) -> Any:
        """What the sum of the losses is divided by."""
        if not self._is_mean:
            return 1
        if self.probabilities:
            return prod(self.shape)
        if self.at is not None:
            return self.share.sum()
        return (self._given * self.class_weights * self._call.xp.expand_dims(self._kept, self.axis)).sum()

    @cached_property
    def _given(self) -> Array:
        """The targets' probabilities as they are given."""
        wide = self.class_weights.dtype
        if self.probabilities:
            return self._target.astype(wide)
        classes = self._call.xp.arange(len(self.class_weights)).reshape(self.class_weights.shape)
        return (self._call.xp.expand_dims(self._target, self.axis) == classes).astype(wide)

    @staticmethod
    def _check_classes(call: Call, target: Array, kept: Array, classes: int) -> None:
        """Raise ValueError for a class out of range, where values can be inspected."""
        if call.backend.host:
            wrong = target[kept & ((target < 0) | (target >= classes))]
            if wrong.size:
                raise ValueError(f"{call.op}: target holds {wrong[0]}, expected classes in [0, {classes})")


# --- Of single probabilities --------------------------------------------------------------------------------------


def binary_cross_entropy_with_logits(
    input: Array,
    target: Array,
    weight: Array | None = None,
    *,
    reduction: str = "mean",
    pos_weight: Array | None = None,
) -> Array:
    """Cross entropy between the sigmoid of logits and probabilities, element by element.

    Parameters
    ----------
    input : array
        Logits, floating-point, of any shape.
    target : array in the shape and dtype of `input`
        The probability of each, in [0, 1].
    weight : array that broadcasts to the shape of `input`, in its dtype, optional
        A factor for each loss.
    reduction : "mean", "sum" or "none"
        The mean is over all elements, whatever their weights.
    pos_weight : array that broadcasts to the shape of `input`, in its dtype, optional
        A factor for the terms of positive targets.

    Returns
    -------
    array [], or for "none" one loss for each element, in the memory order of `input`
        16-bit floats are computed and summed in float32.

    Raises
    ------
    TypeError
        A dtype is not supported, or there are two.
    ValueError
        Shapes do not fit, or `reduction` is none of these.

    See Also
    --------
    binary_cross_entropy_with_logits_backward, cross_entropy, sigmoid

    Notes
    -----
    Each loss is ``weight * (pos_weight * t * softplus(-x) + (1 - t) * softplus(x))``, where ``softplus(x)`` is
    ``log(1 + exp(x))``: no small loss is the difference of large numbers. The mean of no element is NaN. PyTorch's
    deprecated ``size_average`` and ``reduce`` are left out.

    Examples
    --------
    >>> float(binary_cross_entropy_with_logits(np.array([1000.0, -1000.0]), np.array([1.0, 1.0])))
    500.0
    """
    call = Call(
        "binary_cross_entropy_with_logits", FLOATING, optional=("weight", "pos_weight"),
        input=input, target=target, weight=weight, pos_weight=pos_weight,
    )  # fmt: skip
    x, t, w, pw = _binary(call, reduction)
    losses = (1 - t) * _softplus(call, x)
    positive = t * _softplus(call, -x)
    losses += positive if pw is None else positive * pw
    if w is not None:
        losses *= w
    given = call.arrays[0]
    if reduction == "none":
        return call.result(call.stored_like(losses, given))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        total = losses.sum() / (x.size if reduction == "mean" else 1)
        return call.result(call.xp.asarray(total, dtype=given.dtype))


def binary_cross_entropy_with_logits_backward(
    grad_output: Array,
    input: Array,
    target: Array,
    weight: Array | None = None,
    *,
    reduction: str = "mean",
    pos_weight: Array | None = None,
    needs: Needs = None,
) -> tuple[Array | None, Array | None, None, None]:
    """Gradients of `binary_cross_entropy_with_logits`.

    Parameters
    ----------
    grad_output : array [] or number, or for "none" an array in the shape of `input`
        Gradient with respect to the output.
    input, target, weight, reduction, pos_weight
        As they were given to `binary_cross_entropy_with_logits`.
    needs : sequence of 4 bools, optional
        Which gradients to compute; the others are None.

    Returns
    -------
    tuple of (array or None)
        Gradients with respect to `input` and `target`, and None for `weight` and `pos_weight`.

    Raises
    ------
    TypeError, ValueError
        As `binary_cross_entropy_with_logits`, or `grad_output` does not have the output's shape.

    Examples
    --------
    >>> binary_cross_entropy_with_logits_backward(1.0, np.array([0.0, 0.0]), np.array([1.0, 0.0]))[0]
    array([-0.25,  0.25])
    """
    is_number = isinstance(grad_output, Real)
    arrays = {"input": input, "target": target, "weight": weight, "pos_weight": pos_weight}
    call = Call(
        "binary_cross_entropy_with_logits_backward", FLOATING, optional=("weight", "pos_weight"),
        **arrays, **({} if is_number else {"grad_output": grad_output}),
    )  # fmt: skip
    x, t, w, pw = _binary(call, reduction)
    given = call.arrays[0]
    grad = call.xp.asarray(number(call.op, "grad_output", grad_output), dtype=x.dtype) if is_number else call.arrays[-1]
    call.expect_shape("grad_output", grad, x.shape if reduction == "none" else ())
    need_x, need_t, _, _ = needed(call.op, needs, 4)
    scale = call.promoted(grad) / (max(1, x.size) if reduction == "mean" else 1)
    scale = scale if w is None else scale * w
    grad_x = grad_t = None
    if need_x:
        with np.errstate(over="ignore"):
            positive = t / (1 + call.xp.exp(x))
            grad_x = (1 - t) / (1 + call.xp.exp(-x))
        grad_x -= positive if pw is None else positive * pw
        grad_x = call.stored_like(grad_x * scale, given)
    if need_t:
        positive = _softplus(call, -x)
        grad_t = (positive if pw is None else positive * pw) - _softplus(call, x)
        grad_t = call.stored_like(grad_t * scale, given)
    return call.result((grad_x, grad_t, None, None))


def _binary(call: Call, reduction: str) -> tuple[Array, Array, Array | None, Array | None]:
    """Input, target, weight and pos_weight of a call, checked, in the dtype of the computation."""
    x, t, w, pw = call.arrays[:4]
    choice(call.op, "reduction", reduction, REDUCTIONS)
    call.expect_shape("target", t, x.shape)
    for name, array in (("weight", w), ("pos_weight", pw)):
        if array is not None:
            ones = (1,) * (x.ndim - array.ndim)
            if array.ndim > x.ndim or any(n not in (1, m) for n, m in zip(ones + array.shape, x.shape, strict=True)):
                raise ValueError(
                    f"{call.op}: {name} has shape {array.shape}, expected one that broadcasts to {x.shape}"
                )
    wide = [None if array is None else call.promoted(array) for array in (x, t, w, pw)]
    return wide[0], wide[1], wide[2], wide[3]


def _softplus(call: Call, x: Array) -> Array:
    """``log(1 + exp(x))`` without overflow."""
    y = call.xp.log1p(call.xp.exp(-call.xp.abs(x)))
    y += call.xp.maximum(x, call.xp.zeros((), x.dtype))
    return y
