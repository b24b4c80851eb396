"""Losses: the distance of a network's output from its target, and the gradient that its backward starts from."""

from __future__ import annotations

from typing import Any

import numpy as np

import gpucnn.functional as F
from gpucnn.backends import backend_of, receive
from gpucnn.backends.dtypes import FLOATING, accumulator, describe
from gpucnn.backends.layout import stored_like
from gpucnn.geometry.arguments import plain
from gpucnn.nn.module import Array, Module
from gpucnn.nn.precision import HALVES, cast, half

__all__ = ["BCEWithLogitsLoss", "CrossEntropyLoss", "Loss", "MSELoss"]

REDUCTIONS = ("mean", "sum", "none")


class Loss(Module):
    """The base of losses: ``loss(output, target)``, then ``loss.backward()``, the gradient with respect to `output`.

    Attributes
    ----------
    reduction : "mean", "sum" or "none"
        The reduction of the losses of the targets.
    """

    reduction: str

    def forward(self, output: Array, target: Array) -> Array:  # type: ignore[override]
        """The loss."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def backward(self, grad_output: Any = 1.0) -> Array:
        """The gradient with respect to the last forward's `output`, times `grad_output`."""
        raise NotImplementedError(f"{type(self).__name__} defines no backward")

    def _wide(self, output: Array) -> Array:
        """The output as the loss takes it: within `mixed_precision` in float32, if it has 16 bits."""
        is_mixed = half() is not None and str(getattr(output, "dtype", None)) in HALVES
        return cast(output, np.float32) if is_mixed else output

    def count(self, output: Array, target: Array) -> Any:
        """The number that the mean divides the sum of the losses by, a number or an array []: here that of samples.

        `evaluate` and `fit` weight batches by it, so that their mean is that over all targets, whatever the batches.
        """
        return len(output) if output.ndim else 1


class CrossEntropyLoss(Loss):
    """Cross entropy between logits and classes, or between logits and class probabilities.

    Parameters
    ----------
    weight : array [C], optional
        A weight for each class, in the dtype of the logits. It moves with the module and is part of its state.
    ignore_index : int
        Class of targets that do not count.
    reduction : "mean", "sum" or "none"
        The mean is weighted by the targets' weights; for probabilities it is over N and the space.
    label_smoothing : float
        Share of each target that is spread over all classes, in [0, 1].

    Raises
    ------
    ValueError
        `reduction` or `label_smoothing` is none of these.

    See Also
    --------
    gpucnn.functional.cross_entropy : the shapes and dtypes taken, and the formula

    Notes
    -----
    As ``torch.nn.CrossEntropyLoss``, without its deprecated ``size_average`` and ``reduce``.

    Examples
    --------
    >>> loss = CrossEntropyLoss()
    >>> round(float(loss(np.zeros((1, 4)), np.array([2]))), 4)
    1.3863
    >>> loss.backward()
    array([[ 0.25,  0.25, -0.75,  0.25]])
    """

    buffer_names = ("weight",)

    def __init__(
        self,
        weight: Array | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        self.weight = weight
        self.ignore_index = plain(ignore_index)
        self.reduction = _reduction("CrossEntropyLoss", reduction)
        if not 0.0 <= label_smoothing <= 1.0:
            raise ValueError(f"CrossEntropyLoss: label_smoothing is {label_smoothing}, expected a number in [0, 1]")
        self.label_smoothing = plain(label_smoothing)

    def forward(self, output: Array, target: Array) -> Array:  # type: ignore[override]
        """The loss of logits [N, C, *space] or [C] for classes [N, *space] or [], or for probabilities."""
        wide = self._wide(output)
        value = F.cross_entropy(wide, target, self.weight, **self._options())
        self.keep(wide, target, output.dtype)
        return value

    def backward(self, grad_output: Any = 1.0) -> Array:
        """The gradient with respect to the last forward's logits."""
        output, target, dtype = self.kept()
        needs = (True, False, False)
        grads = F.cross_entropy_backward(grad_output, output, target, self.weight, **self._options(), needs=needs)
        return cast(grads[0], dtype)

    def count(self, output: Array, target: Array) -> Any:
        """The sum of the weights of the targets that are not ignored; for probabilities, the number of targets."""
        if target.dtype.kind not in "iu":
            return output.size // output.shape[min(1, output.ndim - 1)]
        counted = target != self.ignore_index
        if self.weight is None:
            return counted.sum()
        weights = self.weight.astype(accumulator(self.weight.dtype), copy=False)
        return (weights[backend_of(target).xp.where(counted, target, 0)] * counted).sum()

    def _options(self) -> dict[str, Any]:
        return {
            "ignore_index": self.ignore_index,
            "reduction": self.reduction,
            "label_smoothing": self.label_smoothing,
        }

    def extra_repr(self) -> str:
        """The options that differ from the defaults."""
        defaults = {"ignore_index": -100, "reduction": "mean", "label_smoothing": 0.0}
        return ", ".join(f"{name}={value!r}" for name, value in self._options().items() if value != defaults[name])


class ElementLoss(Loss):
    """The base of losses of single elements."""

    def count(self, output: Array, target: Array) -> Any:
        """The number of elements."""
        return output.size

    def extra_repr(self) -> str:
        """The reduction, if it is not the mean."""
        return "" if self.reduction == "mean" else f"reduction={self.reduction!r}"


class BCEWithLogitsLoss(ElementLoss):
    """Cross entropy between the sigmoid of logits and probabilities, element by element: for yes or no.

    Parameters
    ----------
    weight : array that broadcasts to the logits' shape, in their dtype, optional
        A factor for each loss.
    reduction : "mean", "sum" or "none"
        The mean is over all elements, whatever their weights.
    pos_weight : array that broadcasts to the logits' shape, in their dtype, optional
        A factor for the terms of positive targets: the share of negatives over that of positives evens them out.

    Raises
    ------
    ValueError
        `reduction` is none of these.

    See Also
    --------
    gpucnn.functional.binary_cross_entropy_with_logits : the shapes and dtypes taken, and the formula

    Notes
    -----
    As ``torch.nn.BCEWithLogitsLoss``, without its deprecated ``size_average`` and ``reduce``. The weights move with the
    module and are part of its state.

    Examples
    --------
    >>> loss = BCEWithLogitsLoss()
    >>> round(float(loss(np.zeros(2), np.array([1.0, 0.0]))), 4)
    0.6931
    >>> loss.backward()
    array([-0.25,  0.25])
    """

    buffer_names = ("weight", "pos_weight")

    def __init__(
        self, weight: Array | None = None, *, reduction: str = "mean", pos_weight: Array | None = None
    ) -> None:
        self.weight, self.pos_weight = weight, pos_weight
        self.reduction = _reduction("BCEWithLogitsLoss", reduction)

    def forward(self, output: Array, target: Array) -> Array:  # type: ignore[override]
        """The loss of logits for probabilities of the same shape and dtype."""
        wide = self._wide(output)
        value = F.binary_cross_entropy_with_logits(wide, target, self.weight, **self._options())
        self.keep(wide, target, output.dtype)
        return value

    def backward(self, grad_output: Any = 1.0) -> Array:
        """The gradient with respect to the last forward's logits."""
        output, target, dtype = self.kept()
        needs = (True, False, False, False)
        grads = F.binary_cross_entropy_with_logits_backward(
            grad_output, output, target, self.weight, **self._options(), needs=needs
        )
        return cast(grads[0], dtype)

    def _options(self) -> dict[str, Any]:
        return {"reduction": self.reduction, "pos_weight": self.pos_weight}


class MSELoss(ElementLoss):
    """The mean of the squared differences.

    Parameters
    ----------
    reduction : "mean", "sum" or "none"
        The reduction of the squared differences; the mean is over all elements.

    Raises
    ------
    ValueError
        `reduction` is none of these.

    Notes
    -----
    As ``torch.nn.MSELoss``, but output and target have one shape: nothing is broadcast. Sums of 16-bit floats are
    float32.

    Examples
    --------
    >>> loss = MSELoss()
    >>> float(loss(np.array([1.0, 2.0]), np.array([1.0, 4.0])))
    2.0
    >>> loss.backward()
    array([ 0., -2.])
    """

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = _reduction("MSELoss", reduction)

    def forward(self, output: Array, target: Array) -> Array:  # type: ignore[override]
        """The loss of floating-point arrays of one shape and dtype.

        Raises
        ------
        TypeError
            A dtype is not supported, or there are two.
        ValueError
            The shapes differ.
        """
        backend, (given, y), give_back = receive("MSELoss", {"output": output, "target": target})
        x = self._wide(given)
        if x.dtype.name not in FLOATING:
            raise TypeError(f"MSELoss: output has dtype {x.dtype}, expected {describe(FLOATING)}")
        if y.dtype != x.dtype:
            raise TypeError(f"MSELoss: target has dtype {y.dtype}, expected {x.dtype} as output")
        if y.shape != x.shape:
            raise ValueError(f"MSELoss: target has shape {tuple(y.shape)}, expected {tuple(x.shape)} as output")
        wide = accumulator(x.dtype)
        difference = stored_like(backend.xp, x.astype(wide, copy=False) - y, x, wide)
        self.keep(difference, given.dtype, give_back)
        losses = stored_like(backend.xp, backend.xp.square(difference), x, wide)
        if self.reduction != "none":
            losses = losses.sum()
            if self.reduction == "mean":
                losses = losses / x.size if x.size else losses * np.nan
        return give_back(backend.xp.asarray(losses, dtype=x.dtype))

    def backward(self, grad_output: Any = 1.0) -> Array:
        """The gradient with respect to the last forward's output."""
        difference, dtype, give_back = self.kept()
        scale = 2.0 / max(1, difference.size) if self.reduction == "mean" else 2.0
        grad = plain(grad_output) if isinstance(grad_output, np.generic) else grad_output
        return give_back(stored_like(backend_of(difference).xp, difference * scale * grad, difference, dtype))


def _reduction(op: str, reduction: str) -> str:
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ValueError(f"{op}: reduction is {reduction!r}, expected one of {', '.join(map(repr, REDUCTIONS))}")
    return reduction
