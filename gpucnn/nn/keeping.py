"""The switch that decides whether modules keep arrays for a backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

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
