"""Memory of large results, which the next ones take over when no array uses it any more.

The system zeroes memory page by page when it is first written to, and large arrays go back to it as soon as they are
freed. So a network that needs the same memory in each step has it zeroed in each step; in a training step of VGG-11
that took a third of the processor's time.

A result takes the smallest free block that is less than `FIT` times as large. What is in use and what is free are at
most `KEPT` times what has been in use at once: in training steps of ResNet-50, MobileNetV2 and VGG-11, and in
inference, no block was then new from the second step on; with less, or closer fits, up to half of the memory was.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from gpucnn.backends.listening import this_thread

Array = np.ndarray[Any, Any]

LINE = 64  # bytes of a cache line
LEAST_BYTES = 1 << 20  # smaller arrays are left to the C library, which keeps what is freed of them
FIT, KEPT = 2.0, 1.5


def empty(shape: Sequence[int], dtype: Any) -> Array:
    """An uninitialised array in C order, as `numpy.empty`; a large one in memory of the pool."""
    if (listener := this_thread.listener) is not None:
        recorded: Array = listener.new(empty, tuple(shape), dtype, zeros=False)
        return recorded
    dtype = np.dtype(dtype)
    count = prod(shape) * dtype.itemsize
    if count < LEAST_BYTES:
        return np.empty(shape, dtype)
    array: Array = np.asarray(_pool.lend(count))[:count].view(dtype).reshape(shape)
    return array


def release_memory() -> None:
    """Return to the system the memory that is kept for large results on the CPU.

    Results of a megabyte and more, when they are freed, leave their memory to the next ones, since the system would
    zero it anew. What is kept and what is in use are at most half more than what has been in use at once. Call this
    where that was much, and other programs, or other parts of this one, need it.

    Examples
    --------
    >>> release_memory()
    """
    _pool.release()


class _Lent:
    """The memory of an array and of its views, which returns to the pool with the last of them."""

    __slots__ = ("__array_interface__", "_give_back", "_memory")

    def __init__(self, memory: Array, give_back: Callable[[Array], None]) -> None:
        self._memory, self._give_back = memory, give_back
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self._give_back(self._memory)


class _Pool:
    """Blocks of memory; those that are free by their size, the sizes in the order in which they came back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._returned: deque[Array] = deque()  # without the lock: arrays are freed at any time, within `lend` too
        self._free: dict[int, list[Array]] = {}
        self._in_use = self._most = 0

    def lend(self, size: int) -> _Lent:
        """Memory of at least `size` bytes."""
        with self._lock:
            self._collect()
            fitting = min((free for free in self._free if size <= free < FIT * size), default=None)
            block = self._allocated(size) if fitting is None else self._taken(fitting)
            self._in_use += block.size
            self._most = max(self._most, self._in_use)
        return _Lent(block, self._returned.append)

    def release(self) -> None:
        """Free what no array uses."""
        with self._lock:
            self._collect()
            self._free.clear()
            self._most = self._in_use

    def _taken(self, size: int) -> Array:
        """A free block of that size, the last one that came back."""
        block = self._free[size].pop()
        if not self._free[size]:
            del self._free[size]
        return block

    def _allocated(self, size: int) -> Array:
        """A new block, in place of free ones, those of the oldest size first, where there would be too many."""
        in_use = self._in_use + size
        while self._free and in_use + self._free_bytes() > KEPT * max(self._most, in_use):
            self._taken(next(iter(self._free)))
        try:
            return _on_cache_line(size)
        except MemoryError:
            self._free.clear()
            return _on_cache_line(size)

    def _free_bytes(self) -> int:
        return sum(size * len(blocks) for size, blocks in self._free.items())

    def _collect(self) -> None:
        """Take in what has come back."""
        while self._returned:
            block = self._returned.popleft()
            self._in_use -= block.size
            self._free.setdefault(block.size, []).append(block)


def _on_cache_line(size: int) -> Array:
    """New memory whose address is a multiple of `LINE`: JAX takes no other without a copy."""
    memory = np.empty(size + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start : start + size]


_pool = _Pool()


def _begin_anew() -> None:
    """In the child of a fork, whose parent may have held the lock in another thread."""
    _pool._lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_begin_anew)
