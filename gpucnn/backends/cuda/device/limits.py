"""Limits of all devices: sizes of sectors and lines, and the banks of a block's shared memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

MAX_SHARED_BYTES = 48 << 10  # of one block
SECTOR_BYTES = 32  # smallest transfer of global memory
BANKS = 32  # of shared memory, words of 4 bytes
LINE_BYTES = 128


def power_of_two(least: int) -> int:
    """The smallest power of two that is at least `least`."""
    return 1 << max(0, least - 1).bit_length()


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
