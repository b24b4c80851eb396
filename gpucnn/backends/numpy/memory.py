"""Memory order and bounded workspace, shared by the NumPy backend's families."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from math import prod
from typing import Any

import numpy as np

from gpucnn.backends.layout import is_channels_last
from gpucnn.backends.listening import this_thread
from gpucnn.backends.numpy import pool

__all__ = [
    "Array", "Block", "blocks", "empty", "is_channels_last", "merged", "merged_rows", "runs", "scratch",
    "short_buffers",
]  # fmt: skip

Array = np.ndarray[Any, Any]
Block = tuple[slice, ...]

# Workspace limit: bytes of each kind of intermediate image (windows, products, …) per thread of a convolution.
# Pieces are smaller where that is faster.
WORKSPACE_BYTES = 8 << 20

# Most bytes of one scratch buffer that a thread keeps between calls; a larger one is freed after use.
SCRATCH_BYTES = 4 << 20


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[str, Array] = {}


_scratch = _Scratch()


def scratch(name: str, shape: Sequence[int], dtype: Any, most: int = SCRATCH_BYTES) -> Array:
    """An uninitialised array in a per-thread buffer, whose pages are mapped and often still cached.

    It is overwritten by the thread's next request for the same name. So each name belongs to one function, which is not
    re-entered while the array is in use; operations must not run in finalisers or signal handlers. A buffer of at most
    `most` bytes is kept.
    """
    if (listener := this_thread.listener) is not None:
        recorded: Array = listener.new(partial(scratch, name, most=most), tuple(shape), dtype, zeros=False)
        return recorded
    dtype = np.dtype(dtype)
    size = prod(shape) * dtype.itemsize
    buffer = _scratch.buffers.get(name)
    if buffer is None or buffer.size < size:
        buffer = np.empty(size + 64, np.uint8)
        buffer = buffer[-buffer.ctypes.data % 64 :]  # a cache line's start
        if size <= most:
            _scratch.buffers[name] = buffer
    return np.ndarray(tuple(shape), dtype, buffer)


@contextmanager
def short_buffers() -> Iterator[None]:
    """Within the block ufuncs buffer 1024 values of an operand that is broadcast, instead of 8192.

    Those leave the fastest cache: operations on rows of thousands of values took twice as long.
    """
    size = np.setbufsize(1024)  # of this context, and of threads in a copy of it
    try:
        yield
    finally:
        np.setbufsize(size)


def empty(shape: Sequence[int], dtype: Any, like: Array) -> Array:
    """An array [N, C, *spatial] in the memory order of `like`."""
    if like.flags.c_contiguous or not is_channels_last(like):
        return pool.empty(shape, dtype)
    n, c, *spatial = shape
    return pool.empty((n, *spatial, c), dtype).transpose(0, -1, *range(1, len(spatial) + 1))


def empty_for_copy(array: Array, dtype: Any = None) -> Array:
    """An array for a copy: in the same memory order without gaps, and channels last if and only if `array` is.

    Kernels see by the copy in which order `empty` made their result. `np.empty_like` closes gaps between channels, and
    puts axes of stride 0 innermost. A call that copies has no replay, so the array is no new one of a recorded call.
    """
    alike = np.empty_like(array, dtype)
    if is_channels_last(alike) == is_channels_last(array):
        return alike
    if not is_channels_last(array):
        return np.empty(array.shape, alike.dtype)
    return np.moveaxis(np.empty_like(np.moveaxis(array, 1, -1), dtype, order="C"), -1, 1)


def empty_in_c_order(shape: tuple[int, ...], dtype: Any, on: Array) -> Array:
    """An array in C order; all NumPy arrays are on one device."""
    return pool.empty(shape, dtype)


def zeros(shape: tuple[int, ...], dtype: Any, on: Array) -> Array:
    """An array of zeros in C order."""
    if (listener := this_thread.listener) is not None:
        recorded: Array = listener.new(np.zeros, shape, dtype, zeros=True)
        return recorded
    return np.zeros(shape, dtype)


def empty_weight(shape: tuple[int, ...], dtype: Any, x: Array) -> Array:
    """An array [OC, C / groups, *k] for a weight's gradient: with OC innermost where each filter reads all of x."""
    if x.shape[1] != shape[1]:
        return pool.empty(shape, dtype)
    return np.moveaxis(pool.empty((*shape[1:], shape[0]), dtype), -1, 0)


def blocks(extents: Sequence[int], most: int) -> Iterator[Block]:
    """Cut `extents` into blocks of about equal size and at most `most` items, in C order; at least one item each."""
    most = max(1, most)
    inner = [prod(extents[axis + 1 :]) for axis in range(len(extents))]
    # the first axis of which one step fits is cut into runs; those before it are walked one by one
    cut = next(axis for axis, items in enumerate(inner) if items <= most)
    steps = [1] * cut + [most // max(1, inner[cut])] + list(extents[cut + 1 :])
    yield from product(*(runs(length, step) for length, step in zip(extents, steps, strict=True)))


def runs(length: int, most: int) -> list[slice]:
    """Cut ``range(length)`` into the fewest runs of at most `most` items, of about equal size."""
    step = max(1, -(-length // max(1, -(-length // max(1, most)))))
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def merged(x: Array, first: int) -> Array | None:
    """A view of x with the axes from `first` on as one, or None where its strides do not allow that."""
    if x.flags.c_contiguous:
        return x.reshape(*x.shape[:first], prod(x.shape[first:]))
    size, stride = 1, x.itemsize
    for length, step in zip(reversed(x.shape[first:]), reversed(x.strides[first:]), strict=True):
        if length == 1:
            continue
        if size == 1:
            stride = step
        elif step != stride * size:
            return None
        size *= length
    shape, strides = (*x.shape[:first], size), (*x.strides[:first], stride)
    return np.lib.stride_tricks.as_strided(x, shape, strides)


def merged_rows(x: Array, first: int) -> Array | None:
    """As `merged`, but also None where the merged axis is not contiguous, which BLAS needs in place."""
    view = merged(x, first)
    return view if view is not None and view.strides[-1] == x.itemsize else None
