"""Forwards of several modules in one pass: of a norm or a convolution, a sum with a shortcut, and an activation.

Results have the bits that they have one module after the other, and each module keeps what it keeps then: the backward
is that of the modules one by one. Not so fused are modules with another forward than their class's, and sums of 16
bits, which a norm would round once in place of twice. A smooth activation, whose backward needs what a convolution in
one pass does not write, is fused with one where no backward can follow: under `inference`. On a GPU its bits are those
of the epilogue, within rounding of the module's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

import gpucnn.functional as F
from gpucnn.nn._joining import added
from gpucnn.nn.activation import GELU, Hardsigmoid, Hardswish, Identity, ReLU, ReLU6, Sigmoid, SiLU
from gpucnn.nn.module import Array, Module
from gpucnn.nn.precision import half

WIDE = {np.dtype(np.float32), np.dtype(np.float64)}
ACTIVATIONS = {ReLU: "relu", ReLU6: "relu6"}
SMOOTH = {Sigmoid: "sigmoid", SiLU: "silu", Hardsigmoid: "hard_sigmoid", Hardswish: "hard_swish"}


def through(modules: Iterable[Module], x: Array, **finish: Any) -> Array:
    """The result of modules one after the other, the last of which finishes with `finish`, where that is given."""
    waiting: Any = None  # the module before, whose forward is left to the next one
    for module in modules:
        activation = None if waiting is None else _joins(waiting, module)
        if activation is not None:
            x = waiting.finished(x, activation=activation)
            module.keep(x)
            waiting = None
            continue
        if is_one_of(module, (Identity,)):
            module.keep()
            continue
        if waiting is not None:
            x, waiting = waiting(x), None
        if finishes(module):
            waiting = module
        else:
            x = module(x)
    if waiting is None:
        return x
    return waiting.finished(x, **finish) if finish else waiting(x)


def _joins(before: Module, activation: Module) -> str | None:
    """The name of an activation that can be part of the forward of the module before it."""
    if is_one_of(activation, ACTIVATIONS):
        return ACTIVATIONS[type(activation)]
    if activation.keeps or not getattr(before, "takes_smooth", False) or half() is not None:
        return None
    if is_one_of(activation, (GELU,)):
        return "gelu" if activation.approximate == "none" else "gelu_tanh"  # type: ignore[attr-defined]
    return SMOOTH[type(activation)] if is_one_of(activation, SMOOTH) else None


def summed(modules: Sequence[Module], x: Array, shortcut: Array, activation: Module | None = None) -> tuple[Array, Any]:
    """``activation(f(x) + shortcut)`` where f runs modules one after the other, and the dtype of f's result.

    That has the shape of `shortcut`.
    """
    is_known = activation is None or is_one_of(activation, ACTIVATIONS)
    last = ending(modules)
    if not (is_known and last is not None and finishes(last) and half() is None and _sums_exactly(x, shortcut)):
        y = through(modules, x)
        return joined(y, shortcut, activation), y.dtype
    name = "none" if activation is None else ACTIVATIONS[type(activation)]
    y = through(modules, x, residual=shortcut, activation=name)
    if activation is not None:
        activation.keep(y)
    return y, y.dtype


def joined(y: Array, shortcut: Array, activation: Module | None) -> Array:
    """``activation(y + shortcut)``, arrays of one shape."""
    if activation is None:
        return added(y, shortcut)
    if not (is_one_of(activation, ACTIVATIONS) and _sums_exactly(y, shortcut) and y.ndim > 2 and y.size):
        return activation(added(y, shortcut))
    total = F.bias_activation(y, residual=shortcut, activation=ACTIVATIONS[type(activation)])
    activation.keep(total)
    return total


def ending(modules: Sequence[Module]) -> Module | None:
    """The last module that does something."""
    return next((module for module in reversed(modules) if not is_one_of(module, (Identity,))), None)


def finishes(module: Module) -> bool:
    """Whether a module's forward is that of its class, which can add a residual and apply an activation: `finished`."""
    if "forward" in vars(module) or not _has_finished(type(module)):
        return False
    children = getattr(module, "finished_by", None)  # of a Sequential: its last module, which does that
    if children is None:
        return True
    last = ending(children())
    return last is not None and finishes(last)


def _has_finished(kind: Any) -> bool:
    """Whether the first class that has a forward of any kind, in the order in which Python looks, has `finished`."""
    if kind not in _KNOWN:
        _KNOWN[kind] = "finished" in next(vars(each) for each in kind.__mro__ if _FORWARDS & vars(each).keys())
    return _KNOWN[kind]


_FORWARDS = {"forward", "finished"}
_KNOWN: dict[Any, bool] = {}


def _sums_exactly(one: Array, other: Array) -> bool:
    """Whether a sum of the arrays is rounded in the dtype that it is computed in, so that passes can be joined."""
    return one.dtype == other.dtype and one.dtype in WIDE


def is_one_of(module: Module, classes: Iterable[type]) -> bool:
    """Whether a module is of one of `classes`, no subclass, and its forward is that of the class."""
    return type(module) in classes and "forward" not in vars(module)
