"""Bounds, const, alignment, uninitialised reads, undefined arithmetic: each check fires, and is silent otherwise."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from running import launch, line_of, module, needs_gcc

from gpucnn import simulator
from gpucnn.simulator import (
    Misaligned,
    OutOfBounds,
    ReadOnlyWrite,
    SimulatorError,
    Trap,
    UndefinedBehaviour,
    UninitialisedRead,
    asarray,
    asnumpy,
)

X = np.arange(64, dtype=np.float32)


def fails(kind: type[SimulatorError], mark: str, kernel: str, grid: Any, block: Any, *args: Any, **kwargs: Any) -> str:
    """The message of the error, which must be of just this kind and at the line of memory.cu that holds `mark`."""
    with pytest.raises(kind) as caught:
        launch("memory.cu", kernel, grid, block, *args, **kwargs)
    assert type(caught.value) is kind
    assert (caught.value.file, caught.value.line) == ("memory.cu", line_of("memory.cu", mark))
    assert caught.value.kernel == kernel
    assert str(caught.value).startswith(f"memory.cu:{caught.value.line}: ")
    return str(caught.value)


@pytest.mark.parametrize(("shift", "byte"), [(1, 256), (-1, -4)])
def test_read_outside_an_array(shift: int, byte: int) -> None:
    _, y = launch("memory.cu", "copy", (2,), (32,), X, np.zeros(64, "f4"), 64, 0)
    np.testing.assert_array_equal(y, X)
    message = fails(OutOfBounds, "// global read", "copy", (2,), (32,), X, np.zeros(64, "f4"), 64, shift)
    assert f"read of 4 bytes at byte {byte} of argument 0 (float32[64]), which has 256 bytes" in message


def test_a_read_far_outside_is_told_from_the_nearest_array() -> None:
    """Which one that is, memory decides."""
    message = fails(OutOfBounds, "// global read", "copy", (2,), (32,), X, np.zeros(64, "f4"), 64, 1000)
    assert re.search(r"read of 4 bytes at byte -?\d+ of argument [01] \(float32\[64\]\), which has 256 bytes", message)


def test_the_error_knows_block_and_thread() -> None:
    with pytest.raises(OutOfBounds) as caught:
        launch("memory.cu", "copy", (2,), (32,), X, np.zeros(64, "f4"), 64, 1)
    assert caught.value.block == (1, 0, 0)
    assert caught.value.thread == (31, 0, 0)


@pytest.mark.parametrize("shift", [33, -1])
def test_write_outside_an_array(shift: int) -> None:
    (y,) = launch("memory.cu", "scatter", (1,), (32,), np.zeros(64, "f4"), 32)
    assert y.sum() == 32
    fails(OutOfBounds, "// global write", "scatter", (1,), (32,), np.zeros(64, "f4"), shift)


def test_nothing_was_written_outside() -> None:
    base = asarray(np.zeros(64, "f4"))
    with pytest.raises(OutOfBounds):
        module("memory.cu").function("scatter")((1,), (32,), (base[16:48], np.int32(1)))
    assert asnumpy(base[48:]).sum() == 0


def test_a_view_is_as_large_as_its_elements() -> None:
    base = asarray(np.zeros((4, 32), "f4"))
    scatter = module("memory.cu").function("scatter")
    scatter((1,), (32,), (base[1], np.int32(0)))
    scatter((1,), (32,), (base[::-1, ::-1], np.int32(-31)))  # the pointer is to the last element
    with pytest.raises(OutOfBounds):
        scatter((1,), (32,), (base[1], np.int32(1)))
    with pytest.raises(OutOfBounds):
        scatter((1,), (32,), (base[::-1, ::-1], np.int32(0)))
    with pytest.raises(OutOfBounds):
        scatter((1,), (1,), (base[:0], np.int32(0)))


def test_write_through_a_pointer_to_const() -> None:
    launch("memory.cu", "write_input", (1,), (32,), X, np.zeros(64, "f4"), 0)
    fails(ReadOnlyWrite, "// write through const", "write_input", (1,), (32,), X, np.zeros(64, "f4"), 1)


@pytest.mark.parametrize("shift", [1, -1, 200])
def test_shared_memory_has_bounds(shift: int) -> None:
    launch("memory.cu", "shared_bounds", (1,), (32,), np.zeros(32, "f4"), 0)
    fails(OutOfBounds, "// shared write", "shared_bounds", (1,), (32,), np.zeros(32, "f4"), shift)


def test_dynamic_shared_memory_has_bounds() -> None:
    (y,) = launch("memory.cu", "dynamic_bounds", (1,), (32,), np.zeros(32, "f4"), shared_mem=128)
    np.testing.assert_array_equal(y, X[:32])
    message = fails(OutOfBounds, "// dynamic write", "dynamic_bounds", (1,), (32,), np.zeros(32, "f4"), shared_mem=124)
    assert "at byte 124 of dynamic shared memory, which has 124 bytes" in message


def test_an_inner_index_has_bounds() -> None:
    launch("memory.cu", "inner_index", (1,), (4, 8), np.zeros(32, "f4"), 0)
    message = fails(OutOfBounds, "// inner index", "inner_index", (1,), (4, 8), np.zeros(32, "f4"), 1)
    assert "index 8 is out of bounds for type" in message


def test_a_local_array_has_bounds() -> None:
    (y,) = launch("memory.cu", "local_index", (1,), (1,), np.zeros(1, "f4"), 3)
    assert y[0] == 4
    fails(OutOfBounds, "// local index", "local_index", (1,), (1,), np.zeros(1, "f4"), 4)


@needs_gcc
def test_a_vector_must_be_aligned() -> None:
    vectors = module("memory.cu").function("vectors")
    x, y = asarray(X), asarray(np.zeros(8, "f4"))
    vectors((1,), (8,), (x[4:], y))
    np.testing.assert_array_equal(asnumpy(y), X[4:36].reshape(8, 4).sum(1))
    with pytest.raises(Misaligned) as caught:
        vectors((1,), (8,), (x[1:], y))
    assert caught.value.line == line_of("memory.cu", "// vector read")
    with pytest.raises(OutOfBounds):
        vectors((1,), (8,), (x[40:], y))


def test_a_null_pointer_may_be_asked_but_not_read() -> None:
    (y,) = launch("memory.cu", "null_pointer", (1,), (4,), None, np.zeros(4, "f4"))
    assert (y == -1).all()
    message = fails(OutOfBounds, "// read through null", "through_null", (1,), (4,), None, np.zeros(4, "f4"))
    assert "null pointer" in message


def test_shared_memory_starts_undefined() -> None:
    launch("memory.cu", "uninitialised", (1,), (64,), np.zeros(64, "f4"), 0)
    message = fails(UninitialisedRead, "// shared read", "uninitialised", (1,), (64,), np.zeros(64, "f4"), 1)
    assert "byte 20 of shared 'tile'" in message


def test_shared_memory_does_not_outlive_a_block() -> None:
    launch("memory.cu", "left_by_last_block", (3,), (32,), np.zeros(96, "f4"), 0)
    fails(UninitialisedRead, "// read of the last", "left_by_last_block", (3,), (32,), np.zeros(96, "f4"), 1)


def test_shared_memory_is_nan_where_nothing_checks() -> None:
    with simulator.options(mode="fast"):
        (y,) = launch("memory.cu", "uninitialised", (1,), (64,), np.zeros(64, "f4"), 1)
    assert np.isnan(y[4])
    assert np.isnan(y).sum() == 1


def test_single_bytes_and_halves_are_no_mistake() -> None:
    (y,) = launch("memory.cu", "bytes", (1,), (37,), np.zeros(37, "u1"))
    np.testing.assert_array_equal(y, np.arange(37)[::-1])
    x = np.arange(64, dtype=np.uint16)
    _, z = launch("memory.cu", "halves", (1,), (32,), x, np.zeros(32, "u4"), 32)
    np.testing.assert_array_equal(z, x.view(np.uint32)[::-1])


def test_overlapping_arguments_are_one_region() -> None:
    base = asarray(X)
    overlapping = module("memory.cu").function("overlapping")
    overlapping((1,), (32,), (base[16:48], base[16:48], np.int32(32)))
    np.testing.assert_array_equal(asnumpy(base[16:48]), X[16:48] + 1)
    even, odd = base[0:64:2], base[1:64:2]
    overlapping((1,), (1,), (even, odd, np.int32(1)))
    copy = module("memory.cu").function("copy")
    lower, upper = base[:32], base[31:]
    copy((1,), (1,), (lower, upper, np.int32(1), np.int32(63)))
    with pytest.raises(OutOfBounds, match="byte 256 of argument 0"):
        copy((1,), (1,), (lower, upper, np.int32(1), np.int32(64)))


def test_constants_and_globals_may_be_read() -> None:
    (y,) = launch("memory.cu", "constants", (1,), (3,), np.zeros(3, "f4"))
    assert y.tolist() == [1, 2, 1]


LARGEST = np.iinfo(np.int32).max


@pytest.mark.parametrize(
    ("which", "mark", "good", "bad"),
    [
        (0, "// addition", (LARGEST - 1, 1), (LARGEST, 1)),
        (1, "// subtraction", (-LARGEST, 1), (-LARGEST, 2)),
        (2, "// multiplication", (1 << 15, 1 << 15), (1 << 16, 1 << 15)),
        (3, "// division", (7, 2), (7, 0)),
        (3, "// division", (7, 2), (-LARGEST - 1, -1)),
        (4, "// remainder", (7, 2), (7, 0)),
        (5, "// shift", (1, 30), (1, 32)),
        (5, "// shift", (1, 30), (1, -1)),
        (6, "// negation", (7, 0), (-LARGEST - 1, 0)),
    ],
)
def test_undefined_arithmetic(which: int, mark: str, good: tuple[int, int], bad: tuple[int, int]) -> None:
    launch("memory.cu", "arithmetic", (1,), (1,), np.array(good, "i4"), np.zeros(1, "i4"), which)
    fails(UndefinedBehaviour, mark, "arithmetic", (1,), (1,), np.array(bad, "i4"), np.zeros(1, "i4"), which)


def test_unsigned_arithmetic_wraps() -> None:
    x = np.array([2**32 - 1, 2**31], "u4")
    _, y = launch("memory.cu", "unsigned_arithmetic", (1,), (1,), x, np.zeros(1, "u4"))
    assert y[0] == (2**32 - 1 + 3 * 2**31) % 2**32


def test_assertions() -> None:
    launch("memory.cu", "asserts", (1,), (32,), 3)
    message = fails(Trap, "// assertion", "asserts", (1,), (32,), 4)
    assert "assert(value == 3) failed" in message
