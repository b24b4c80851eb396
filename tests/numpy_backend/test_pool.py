"""Memory of large results: taken over when nothing uses it, bounded, and safe with views, threads and forks."""

from __future__ import annotations

import gc
import os
import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gpucnn
from gpucnn.backends.numpy import pool

Array = np.ndarray[Any, Any]
LARGE = (3, pool.LEAST_BYTES)  # bytes


@pytest.fixture(autouse=True)
def new_pool(monkeypatch: pytest.MonkeyPatch) -> pool._Pool:
    fresh = pool._Pool()
    monkeypatch.setattr(pool, "_pool", fresh)
    return fresh


def address(array: Array) -> int:
    return int(array.ctypes.data)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "complex64", ml_dtypes.bfloat16])
def test_arrays_are_as_numpys(dtype: Any) -> None:
    for shape in ((), (0, 4), (3,), (1000, 1100), (2, 3, 700, 801)):
        array, plain = pool.empty(shape, dtype), np.empty(shape, dtype)
        assert (array.shape, array.dtype, array.strides) == (plain.shape, plain.dtype, plain.strides)
        assert array.flags.writeable
        assert array.flags.aligned
        array[...] = 1


def test_memory_is_taken_over_when_the_last_view_is_gone() -> None:
    first = pool.empty(LARGE, "int8")
    place, view = address(first), first[1:, ::2].T
    del first
    second = pool.empty(LARGE, "int8")
    assert not np.may_share_memory(second, view)
    view[...] = 3
    second[...] = 4
    assert (view == 3).all()
    del view
    assert address(pool.empty(LARGE, "int8")) == place


def test_memory_is_taken_over_by_arrays_of_about_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    new: list[int] = []
    allocated = pool._Pool._allocated
    monkeypatch.setattr(pool._Pool, "_allocated", lambda self, size: new.append(size) or allocated(self, size))
    ten = 10 * pool.LEAST_BYTES
    for size in (ten, ten, 6 * pool.LEAST_BYTES, ten // 2 + 1, ten // 2, ten + 1):
        pool.empty((size,), "int8")
    assert new == [ten, ten // 2, ten + 1]


def test_the_smallest_fit_is_taken() -> None:
    arrays = [pool.empty((size * pool.LEAST_BYTES,), "int8") for size in (9, 7, 8)]
    places = [address(array) for array in arrays]
    del arrays[:]
    assert address(pool.empty((6 * pool.LEAST_BYTES,), "int8")) == places[1]


def test_what_is_kept_is_bounded_by_what_was_in_use(new_pool: pool._Pool) -> None:
    arrays: list[Array] = []
    sizes = np.random.default_rng(0).integers(1, 40, 200).tolist()
    for size in sizes:
        arrays = [*arrays[-size % 5 :], pool.empty((size * pool.LEAST_BYTES,), "int8")]
        assert new_pool._in_use + new_pool._free_bytes() <= pool.KEPT * new_pool._most
    assert new_pool._most < 7 * 40 * pool.LEAST_BYTES * pool.FIT


def test_release_frees_what_no_array_uses(new_pool: pool._Pool) -> None:
    kept = pool.empty(LARGE, "int8")
    kept[...] = 5
    pool.empty(LARGE, "float32")
    gpucnn.release_memory()
    assert (len(new_pool._free), len(new_pool._returned)) == (0, 0)
    assert new_pool._in_use == new_pool._most == kept.nbytes
    assert (kept == 5).all()


def test_without_memory_what_is_kept_is_freed(monkeypatch: pytest.MonkeyPatch, new_pool: pool._Pool) -> None:
    pool.empty(LARGE, "int8")
    empty, failures = np.empty, [MemoryError()]

    def failing(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return empty(*arguments)

    monkeypatch.setattr(np, "empty", failing)
    array = pool.empty((20 * pool.LEAST_BYTES,), "int8")
    assert array.size == 20 * pool.LEAST_BYTES
    assert not new_pool._free


def test_arrays_of_cycles_come_back_while_memory_is_lent(new_pool: pool._Pool) -> None:
    """A collection of garbage can free arrays at any time, within the pool too."""
    for number in range(50):
        cycle: list[Any] = [pool.empty(LARGE, "int8")]
        cycle.append(cycle)
        del cycle
        if number % 7 == 0:
            gc.collect()
    gc.collect()
    pool.empty(LARGE, "int8")
    assert new_pool._in_use <= 2 * 3 * pool.LEAST_BYTES


def test_threads_never_share_memory() -> None:
    wrong = []

    def use(number: int) -> None:
        for size in range(60):
            array = pool.empty((pool.LEAST_BYTES + 4096 * (size % 5),), "int8")
            array[::4096] = number
            if (array[::4096] != number).any():
                wrong.append(number)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_the_child_of_a_fork_is_not_held_up(new_pool: pool._Pool) -> None:
    with new_pool._lock:
        child = os.fork()
        if child == 0:
            pool.empty(LARGE, "int8")
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
