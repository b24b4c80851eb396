"""Networks as chains of layers, which conversion and transfer split and rebuild."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import numpy as np

from gpucnn.nn.containers import Sequential
from gpucnn.nn.module import Module, Parameter

M = TypeVar("M", bound=Module)


def chain(op: str, model: Module) -> dict[str, Module]:
    """The layers that `model` runs one after the other, by name."""
    if not isinstance(model, Sequential) or type(model).forward is not Sequential.forward:
        raise TypeError(
            f"{op}: model is a {type(model).__name__}, expected a Sequential: of others it is not known that they run "
            "their children one after the other"
        )
    return dict(model.named_children())


def twin(module: M) -> M:
    """A second module around the same arrays, with separate parameters, modes and parts; it keeps no forward."""
    other = copy.copy(module)
    other._kept = None
    for name, value in list(vars(other).items()):
        if isinstance(value, Parameter):
            setattr(other, name, Parameter(value.data, value.requires_grad))
        elif isinstance(value, Module):
            setattr(other, name, twin(value))
        elif isinstance(value, np.random.Generator):
            setattr(other, name, copy.deepcopy(value))
    return other


def expect_module(op: str, model: Any) -> None:
    """Raise TypeError unless `model` is a Module."""
    if not isinstance(model, Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise TypeError(f"{op}: model is {what}, expected a Module")


def pair_of(op: str, batch: Any) -> tuple[Any, Any]:
    """A loader's batch, which is a pair.

    Raises
    ------
    TypeError
        It is something else, as the parts of a single batch are when that was given in place of a list of batches.
    ValueError
        It has more or fewer parts.
    """
    if not isinstance(batch, tuple | list):
        raise TypeError(
            f"{op}: loader gave a {type(batch).__name__} as a batch, expected (x, y); a single batch goes in a list, "
            "[(x, y)]"
        )
    if len(batch) != 2:
        raise ValueError(f"{op}: loader gave a batch of {len(batch)} things, expected (x, y)")
    return batch[0], batch[1]
