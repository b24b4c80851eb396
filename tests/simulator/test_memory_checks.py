"""Bounds, const, alignment, uninitialised reads, undefined arithmetic: each check fires, and is silent otherwise."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from running import fails, launch, line_of, module, needs_gcc

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

FILE = "memory.cu"
X = np.arange(64, dtype=np.float32)
Y = np.zeros(64, np.float32)


class Check(NamedTuple):
    """A launch that is sound where the kernel's last argument is `good`, and not where it is `bad`."""

    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    args: tuple[Any, ...]
    good: int
    bad: int
    error: type[SimulatorError]
    mark: str  # of the line in memory.cu
    words: str = ""  # of the message


READ = "read of 4 bytes at byte {} of argument {} (float32[64]), which has 256 bytes"
CHECKS = {
    "after an array": Check(
        "copy", (2,), (32,), (X, Y, 64), 0, 1, OutOfBounds, "// global read", READ.format(256, 0)
    ),
    "before an array": Check(
        "copy", (2,), (32,), (X, Y, 64), 0, -1, OutOfBounds, "// global read", READ.format(-4, 0)
    ),
    "far from any": Check("copy", (2,), (32,), (X, Y, 64), 0, 1000, OutOfBounds, "// global read", "read of 4 bytes"),
    "write after an array": Check("scatter", (1,), (32,), (Y,), 32, 33, OutOfBounds, "// global write"),
    "write before an array": Check("scatter", (1,), (32,), (Y,), 32, -1, OutOfBounds, "// global write"),
    "const": Check("write_input", (1,), (32,), (X, Y), 0, 1, ReadOnlyWrite, "// write through const"),
    "after shared memory": Check("shared_bounds", (1,), (32,), (Y[:32],), 0, 1, OutOfBounds, "// shared write"),
    "before shared memory": Check("shared_bounds", (1,), (32,), (Y[:32],), 0, -1, OutOfBounds, "// shared write"),
    "far from shared memory": Check("shared_bounds", (1,), (32,), (Y[:32],), 0, 200, OutOfBounds, "// shared write"),
    "an inner index": Check(
        "inner_index", (1,), (4, 8), (Y[:32],), 0, 1, OutOfBounds, "// inner index", "index 8 is out of bounds for type"
    ),
    "a local array": Check("local_index", (1,), (1,), (Y[:1],), 3, 4, OutOfBounds, "// local index"),
    "undefined shared memory": Check(
        "uninitialised", (1,), (64,), (Y,), 0, 1, UninitialisedRead, "// shared read", "byte 20 of shared 'tile'"
    ),
    "shared memory of the block before": Check(
        "left_by_last_block", (3,), (32,), (np.zeros(96, "f4"),), 0, 1, UninitialisedRead, "// read of the last"
    ),
    "an assertion": Check("asserts", (1,), (32,), (), 3, 4, Trap, "// assertion", "assert(value == 3) failed"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_each_check_fires_and_is_silent_otherwise(name: str) -> None:
    check = CHECKS[name]
    launch(FILE, check.kernel, check.grid, check.block, *check.args, check.good)
    said = fails(FILE, check.error, (check.mark,), check.kernel, check.grid, check.block, *check.args, check.bad)
    assert check.words in said


def test_what_is_sound_computes() -> None:
    np.testing.assert_array_equal(launch(FILE, "copy", (2,), (32,), X, Y, 64, 0)[1], X)
    assert launch(FILE, "scatter", (1,), (32,), Y, 32)[0].sum() == 32
    assert launch(FILE, "local_index", (1,), (1,), Y[:1], 3)[0] == 4


def test_the_error_knows_block_and_thread() -> None:
    with pytest.raises(OutOfBounds) as caught:
        launch(FILE, "copy", (2,), (32,), X, Y, 64, 1)
    assert caught.value.block == (1, 0, 0)
    assert caught.value.thread == (31, 0, 0)


def test_nothing_was_written_outside() -> None:
    base = asarray(Y)
    with pytest.raises(OutOfBounds):
        module(FILE).function("scatter")((1,), (32,), (base[16:48], np.int32(1)))
    assert asnumpy(base[48:]).sum() == 0


def test_a_view_is_as_large_as_its_elements() -> None:
    base = asarray(np.zeros((4, 32), "f4"))
    scatter = module(FILE).function("scatter")
    scatter((1,), (32,), (base[1], np.int32(0)))
    scatter((1,), (32,), (base[::-1, ::-1], np.int32(-31)))  # the pointer is to the last element
    for view, threads, shift in ((base[1], 32, 1), (base[::-1, ::-1], 32, 0), (base[:0], 1, 0)):
        with pytest.raises(OutOfBounds):
            scatter((1,), (threads,), (view, np.int32(shift)))


def test_dynamic_shared_memory_has_bounds() -> None:
    (y,) = launch(FILE, "dynamic_bounds", (1,), (32,), Y[:32], shared_mem=128)
    np.testing.assert_array_equal(y, X[:32])
    said = fails(FILE, OutOfBounds, ("// dynamic write",), "dynamic_bounds", (1,), (32,), Y[:32], shared_mem=124)
    assert "at byte 124 of dynamic shared memory, which has 124 bytes" in said


@needs_gcc
def test_a_vector_must_be_aligned() -> None:
    vectors = module(FILE).function("vectors")
    x, y = asarray(X), asarray(np.zeros(8, "f4"))
    vectors((1,), (8,), (x[4:], y))
    np.testing.assert_array_equal(asnumpy(y), X[4:36].reshape(8, 4).sum(1))
    with pytest.raises(Misaligned) as caught:
        vectors((1,), (8,), (x[1:], y))
    assert caught.value.line == line_of(FILE, "// vector read")
    for view in (x[40:], x[:31]):  # the last begins after the array, or within it
        with pytest.raises(OutOfBounds):
            vectors((1,), (8,), (view, y))


def test_a_null_pointer_may_be_asked_but_not_read() -> None:
    (y,) = launch(FILE, "null_pointer", (1,), (4,), None, np.zeros(4, "f4"))
    assert (y == -1).all()
    said = fails(FILE, OutOfBounds, ("// read through null",), "through_null", (1,), (4,), None, Y[:4])
    assert "null pointer" in said


def test_shared_memory_is_nan_where_nothing_checks() -> None:
    with simulator.options(mode="fast"):
        (y,) = launch(FILE, "uninitialised", (1,), (64,), np.zeros(64, "f4"), 1)
    assert np.isnan(y[4])
    assert np.isnan(y).sum() == 1


def test_single_bytes_and_halves_are_no_mistake() -> None:
    (y,) = launch(FILE, "bytes", (1,), (37,), np.zeros(37, "u1"))
    np.testing.assert_array_equal(y, np.arange(37)[::-1])
    x = np.arange(64, dtype=np.uint16)
    _, z = launch(FILE, "halves", (1,), (32,), x, np.zeros(32, "u4"), 32)
    np.testing.assert_array_equal(z, x.view(np.uint32)[::-1])


def test_overlapping_arguments_are_one_region() -> None:
    base = asarray(X)
    overlapping = module(FILE).function("overlapping")
    overlapping((1,), (32,), (base[16:48], base[16:48], np.int32(32)))
    np.testing.assert_array_equal(asnumpy(base[16:48]), X[16:48] + 1)
    even, odd = base[0:64:2], base[1:64:2]
    overlapping((1,), (1,), (even, odd, np.int32(1)))
    copy = module(FILE).function("copy")
    lower, upper = base[:32], base[31:]
    copy((1,), (1,), (lower, upper, np.int32(1), np.int32(63)))
    with pytest.raises(OutOfBounds, match="byte 256 of argument 0"):
        copy((1,), (1,), (lower, upper, np.int32(1), np.int32(64)))


def test_constants_and_globals_may_be_read() -> None:
    (y,) = launch(FILE, "constants", (1,), (3,), np.zeros(3, "f4"))
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
    launch(FILE, "arithmetic", (1,), (1,), np.array(good, "i4"), np.zeros(1, "i4"), which)
    fails(FILE, UndefinedBehaviour, (mark,), "arithmetic", (1,), (1,), np.array(bad, "i4"), np.zeros(1, "i4"), which)


def test_unsigned_arithmetic_wraps() -> None:
    x = np.array([2**32 - 1, 2**31], "u4")
    _, y = launch(FILE, "unsigned_arithmetic", (1,), (1,), x, np.zeros(1, "u4"))
    assert y[0] == (2**32 - 1 + 3 * 2**31) % 2**32
