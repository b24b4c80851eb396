"""Layouts in shared memory, and their bank conflicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpucnn.backends.cuda.device.limits import BANKS


def skewed(at: Any, itemsize: int) -> Any:
    """Padded offset of element `at` in shared memory that skips a word after each 32."""
    return at + at // (128 // itemsize) * max(1, 4 // itemsize)


def least_conflict(least: int, conflict: Callable[[int], int]) -> int:
    """The first pitch from `least` on with at most two-way conflicts, or the best of as many as there are banks."""
    worst = {}
    for size in range(least, least + BANKS):
        worst[size] = conflict(size)
        if worst[size] <= 2:
            return size
    return min(worst, key=worst.__getitem__)


def bank_conflict(at: np.ndarray[Any, Any], itemsize: int) -> int:
    """Worst bank conflict, in words of one bank, of an access by lanes to elements `at` of `itemsize` bytes."""
    lanes = BANKS if itemsize <= 4 else 4 * BANKS // itemsize
    word = skewed(at, itemsize) * itemsize // 4
    rounds = len(word) // lanes * lanes or len(word)
    word = np.unique(np.arange(rounds) // lanes * (1 << 32) + word[:rounds] % (1 << 31))
    return int(np.bincount((word >> 32) * BANKS + word % BANKS).max())
