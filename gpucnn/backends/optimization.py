"""Steps of optimisers, in place and element by element, on the arrays of any library."""

from __future__ import annotations

from typing import Any, NamedTuple

Array = Any


class Descent(NamedTuple):
    """The numbers of a step of stochastic gradient descent.

    `gradient_share` is that in the velocity, 1 less the dampening; `is_first` says that the velocity is not set yet.
    """

    lr: float
    momentum: float
    gradient_share: float
    weight_decay: float
    nesterov: bool
    maximize: bool
    is_first: bool


class AdamStep(NamedTuple):
    """The numbers of a step of Adam.

    `rate` is lr / (1 - beta1^t), `gradient_share` 1 - beta1, `kept_square` beta2, `square_share` 1 - beta2,
    `square_correction` sqrt(1 - beta2^t); `weight_decay` is that of the gradient, `shrinkage` the parameter's factor.
    """

    rate: float
    gradient_share: float
    kept_square: float
    square_share: float
    square_correction: float
    eps: float
    weight_decay: float
    shrinkage: float
    maximize: bool


def sgd(xp: Any, data: Array, grad: Array, velocity: Array | None, step: Descent) -> None:
    """Change `data`, and `velocity` where there is one, by the formula of `gpucnn.nn.SGD`."""
    grad, scratch = _penalised(xp, data, grad, step), xp.empty_like(data)
    direction = grad
    if velocity is not None:
        if step.is_first:
            velocity[...] = grad
        else:
            xp.multiply(grad, step.gradient_share, out=scratch)
            velocity *= step.momentum
            velocity += scratch
        direction = velocity
        if step.nesterov:
            xp.multiply(velocity, step.momentum, out=scratch)
            scratch += grad
            direction = scratch
    xp.multiply(direction, step.lr, out=scratch)
    data -= scratch


def adam(xp: Any, data: Array, grad: Array, mean: Array, square: Array, most: Array | None, step: AdamStep) -> None:
    """Change all arrays but `grad` by the formula of `gpucnn.nn.Adam`; `most` is the largest `square` so far."""
    if step.shrinkage != 1:
        data *= step.shrinkage
    grad, scratch = _penalised(xp, data, grad, step), xp.empty_like(data)
    xp.subtract(grad, mean, out=scratch)
    scratch *= step.gradient_share
    mean += scratch
    xp.multiply(grad, grad, out=scratch)
    scratch *= step.square_share
    square *= step.kept_square
    square += scratch
    if most is not None:
        xp.maximum(most, square, out=most)
        square = most
    xp.sqrt(square, out=scratch)
    scratch /= step.square_correction
    scratch += step.eps
    xp.divide(mean, scratch, out=scratch)
    scratch *= step.rate
    data -= scratch


def _penalised(xp: Any, data: Array, grad: Array, step: Descent | AdamStep) -> Array:
    """The gradient downhill, with the weight decay's part; `grad` itself where nothing changes."""
    if step.maximize:
        grad = -grad
    return grad + xp.multiply(data, step.weight_decay) if step.weight_decay else grad
