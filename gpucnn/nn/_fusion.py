"""Forwards of several modules in one pass: of a norm, a sum with a shortcut, and an activation.

Results have the bits that they have one module after the other, and each module keeps what it keeps then: the backward
is that of the modules one by one. Not so fused are modules with another forward than their class's, and sums of 16
bits, which would be rounded once in place of twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

import gpucnn.functional as F
from gpucnn.nn._joining import added
from gpucnn.nn.activation import ReLU, ReLU6
from gpucnn.nn.module import Array, Module
from gpucnn.nn.normalization import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
    RMSNorm,
)

WIDE = {np.dtype(np.float32), np.dtype(np.float64)}
ACTIVATIONS = {ReLU: "relu", ReLU6: "relu6"}
NORMS = {
    *(BatchNorm1d, BatchNorm2d, BatchNorm3d, GroupNorm),
    *(InstanceNorm1d, InstanceNorm2d, InstanceNorm3d, LayerNorm, RMSNorm),
}


def through(modules: Iterable[Module], x: Array) -> Array:
    """The result of modules one after the other."""
    norm: Any = None  # the module before, whose forward is left to the next one
    for module in modules:
        if norm is not None and is_one_of(module, ACTIVATIONS):
            x = norm.finished(x, activation=ACTIVATIONS[type(module)])
            module.keep(x)
            norm = None
            continue
        if norm is not None:
            x, norm = norm(x), None
        if is_one_of(module, NORMS):
            norm = module
        else:
            x = module(x)
    return x if norm is None else norm(x)


def summed(last: Any, x: Array, shortcut: Array, activation: Module | None = None) -> Array:
    """``activation(last(x) + shortcut)``; the result of `last` has the shape and dtype of `shortcut`."""
    is_known = activation is None or is_one_of(activation, ACTIVATIONS)
    if not (is_known and is_one_of(last, NORMS) and _sums_exactly(x, shortcut)):
        return joined(last(x), shortcut, activation)
    y = last.finished(x, shortcut, None if activation is None else ACTIVATIONS[type(activation)])
    if activation is not None:
        activation.keep(y)
    return y


def joined(y: Array, shortcut: Array, activation: Module | None) -> Array:
    """``activation(y + shortcut)``, arrays of one shape."""
    if activation is None:
        return added(y, shortcut)
    if not (is_one_of(activation, ACTIVATIONS) and _sums_exactly(y, shortcut) and y.ndim > 2 and y.size):
        return activation(added(y, shortcut))
    total = F.bias_activation(y, residual=shortcut, activation=ACTIVATIONS[type(activation)])
    activation.keep(total)
    return total


def _sums_exactly(one: Array, other: Array) -> bool:
    """Whether a sum of the arrays is rounded in the dtype that it is computed in, so that passes can be joined."""
    return one.dtype == other.dtype and one.dtype in WIDE


def is_one_of(module: Module, classes: Iterable[type]) -> bool:
    """Whether a module is of one of `classes`, no subclass, and its forward is that of the class."""
    return type(module) in classes and "forward" not in vars(module)
