"""Mixed precision: 16-bit images and products of layers with float32 parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from gpucnn.backends import receive
from gpucnn.backends.layout import empty_in_order
from gpucnn.installing import optional

__all__ = ["mixed_precision"]

Array = Any
HALVES = ("float16", "bfloat16")
_half: ContextVar[np.dtype[Any] | None] = ContextVar("gpucnn_nn_mixed_precision", default=None)


@contextmanager
def mixed_precision(dtype: Any) -> Iterator[None]:
    """Within the block layers with float32 weights compute in 16 bits, as under ``torch.autocast``.

    Parameters
    ----------
    dtype : "float16", "bfloat16" or None
        The dtype of images; None, within another block, computes in the parameters' dtype again.

    Raises
    ------
    ModuleNotFoundError
        The dtype is bfloat16, and the package ml_dtypes, which defines it, is not installed.
    ValueError
        There is no such dtype.

    See Also
    --------
    LossScaler : which float16 needs, for small gradients
    fit : its `mixed_precision` trains a model so

    Notes
    -----
    Convolutions, transposed convolutions, locally connected and fully connected layers whose weights are float32 cast
    input and weight, once each forward, and add their bias in float32. Products are summed in float32, and results and
    the gradients of images rounded to 16 bits, those of parameters not at all. Norms take the images that they are
    given, with parameters and statistics in float32; all else computes in the dtype of its input, and sums of branches
    are in the wider one. Losses compute in float32. Parameters stay as they are, and with them optimisers and files.

    A backward goes through what its forward kept, within a block or not.

    Examples
    --------
    >>> from gpucnn import nn
    >>> layer = nn.Linear(3, 2)
    >>> with mixed_precision("float16"):
    ...     y = layer(np.ones((1, 3), np.float32))
    >>> layer.backward(y).dtype, y.dtype, layer.weight.grad.dtype
    (dtype('float32'), dtype('float16'), dtype('float32'))
    """
    token = _half.set(_named(dtype))
    try:
        yield
    finally:
        _half.reset(token)


def half() -> np.dtype[Any] | None:
    """The dtype of `mixed_precision`, where there is a block."""
    return _half.get()


def cast(array: Array, dtype: Any) -> Array:
    """An array in another floating-point dtype, in its memory order; itself where it has that dtype."""
    if array.dtype == dtype:
        return array
    backend, (given,), give_back = receive("cast", {"array": array})
    stored = empty_in_order(backend.xp, given.shape, dtype, given)
    backend.copy(given, stored)
    return give_back(stored)


def _named(dtype: Any) -> np.dtype[Any] | None:
    if dtype is None:
        return None
    if not isinstance(dtype, str) or dtype not in HALVES:
        raise ValueError(f"mixed_precision: dtype is {dtype!r}, expected 'float16', 'bfloat16' or None")
    return np.dtype(np.float16 if dtype == "float16" else optional("mixed_precision", "ml_dtypes", "train").bfloat16)
