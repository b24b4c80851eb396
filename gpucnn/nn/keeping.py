"""Blocks of code in which modules keep nothing for a backward, or after which they have their modes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["inference"]

_keeps: ContextVar[bool] = ContextVar("gpucnn_nn_keeps", default=True)


def keeps() -> bool:
    """Whether a backward may follow the forward that runs: False under `inference`."""
    return _keeps.get()


@contextmanager
def inference() -> Iterator[None]:
    """Within the block modules keep nothing for a backward: for evaluation, to save the memory.

    Examples
    --------
    >>> import numpy as np
    >>> from gpucnn import nn
    >>> with nn.inference():
    ...     y = nn.ReLU()(np.array([[-1.0, 2.0]]))
    """
    token = _keeps.set(False)
    try:
        yield
    finally:
        _keeps.reset(token)


@contextmanager
def modes(model: Any) -> Iterator[None]:
    """After the block each module below `model`, a `gpucnn.nn.Module`, is in the mode in which it was before."""
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def evaluation(model: Any) -> Iterator[None]:
    """Within the block `model` is in evaluation mode and keeps nothing; each module's mode is restored after it."""
    with modes(model), inference():
        model.eval()
        yield
