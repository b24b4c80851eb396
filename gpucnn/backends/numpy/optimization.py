"""Steps of optimisers in NumPy: its passes over memory are over blocks, which stay in the cache in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpucnn.backends import optimization
from gpucnn.backends.numpy import memory, threads
from gpucnn.backends.numpy.memory import Array
from gpucnn.backends.optimization import AdamStep, Descent

BLOCK = 1 << 17  # elements: of less, calls cost more than they compute


def sgd(data: Array, grad: Array, velocity: Array | None, step: Descent) -> None:
    """As `gpucnn.backends.optimization.sgd`."""
    _by_blocks(optimization.sgd, step, data, grad, velocity)


def adam(data: Array, grad: Array, mean: Array, square: Array, most: Array | None, step: AdamStep) -> None:
    """As `gpucnn.backends.optimization.adam`."""
    _by_blocks(optimization.adam, step, data, grad, mean, square, most)


def _by_blocks(update: Callable[..., None], step: Any, *arrays: Array | None) -> None:
    """Call `update` with blocks of the arrays, or with the arrays where their elements are not in one order."""
    size = next(array.size for array in arrays if array is not None)
    if size <= BLOCK or not all(array is None or array.flags.c_contiguous for array in arrays):
        update(np, *arrays, step)
        return
    flat = [None if array is None else array.reshape(-1) for array in arrays]

    def update_run(run: slice) -> None:
        update(np, *(None if array is None else array[run] for array in flat), step)

    threads.run(update_run, memory.runs(size, BLOCK))
