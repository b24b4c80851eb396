"""Barriers and warp operations: who must come, what they compute, and what is said of those who do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from running import fails, launch

from gpucnn import simulator
from gpucnn.simulator import SynchronisationError

FILE = "synchronisation.cu"


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
@pytest.mark.parametrize(
    ("kernel", "marks", "says"),
    [
        ("divergent", ("// first barrier", "// second barrier"), "waits at this barrier, but thread"),
        ("half_warp", ("// shuffle",), "only lanes 0x0000ffff have arrived"),
        ("outside_mask", ("// lane outside",), "which leaves it out"),
        ("source_outside", ("// source",), "reads from lane 20, which does not take part"),
        ("different_operations", ("// a vote", "// not a vote"), "divergent warp"),
        ("exited_lanes", ("// syncwarp",), "lanes 0x80000000 have returned"),
        ("barrier_against_warp", ("// barrier of eight", "// warp of the others"), "deadlock"),
    ],
)
def test_who_must_come(kernel: str, marks: tuple[str, ...], says: str, order: str) -> None:
    y = np.zeros(32, "f4" if kernel == "divergent" else "i4")
    with simulator.options(order=order):
        launch(FILE, kernel, (1,), (32,), y, 0)
        assert says in fails(FILE, SynchronisationError, marks, kernel, (1,), (32,), y, 1)


def test_threads_that_returned_do_not_come_to_a_barrier() -> None:
    launch(FILE, "early_exit", (1,), (64,), np.zeros(64, "f4"), 64)
    marks = ("// barrier after exit",)
    message = fails(FILE, SynchronisationError, marks, "early_exit", (1,), (64,), np.zeros(64, "f4"), 40)
    assert "40 threads wait at this barrier, but 24 threads, thread (63, 0, 0) among them, have already" in message


@pytest.mark.thorough
@pytest.mark.parametrize("context_switch", ["assembly", "ucontext"])
def test_barriers_that_count(context_switch: str) -> None:
    with simulator.options(context_switch=context_switch):
        (y,) = launch(FILE, "votes", (1,), (48,), np.zeros(48, "i4"))
        assert (y == 16 + 10000).all()
        (y,) = launch(FILE, "votes", (1,), (40,), np.zeros(40, "i4"))
        assert (y == 14 + 1000).all()


def lanes_read(which: int, argument: int, width: int) -> np.ndarray[Any, Any]:
    """The lane that each lane reads, after the documentation of the shuffles."""
    lane = np.arange(32)
    first = lane // width * width
    last = first + width - 1
    source = [first + argument % width, lane - argument, lane + argument, lane ^ argument][which]
    inside = [source == source, source >= first, source <= last, source <= last][which]
    return np.where(inside, source, lane)


@pytest.mark.parametrize("width", [32, 16, 8, 1])
@pytest.mark.parametrize("which", range(4))
def test_shuffles(which: int, width: int) -> None:
    x = np.arange(32, dtype="i4") * 7 - 30
    for argument in (0, 1, 3, 9, 16, 31):
        _, y = launch(FILE, "shuffles", (1,), (32,), x, np.zeros(32, "i4"), argument, width, which)
        np.testing.assert_array_equal(y, x[lanes_read(which, argument, width)], f"argument {argument}")


@pytest.mark.parametrize("width", [0, 3, 64])
def test_a_width_is_a_power_of_two(width: int) -> None:
    with pytest.raises(SynchronisationError, match="not a power of two"):
        launch(FILE, "shuffles", (1,), (32,), np.zeros(32, "i4"), np.zeros(32, "i4"), 1, width, 0)


def test_votes_and_reductions_of_a_warp() -> None:
    x = np.random.default_rng(0).integers(-50, 50, 32, dtype="i4")
    _, y = launch(FILE, "warp_votes", (1,), (32,), x, np.zeros(224, "u4"))
    votes = sum(1 << lane for lane in range(32) if x[lane] > 0)
    expected = [votes, 0, 1, x.sum(), x.min(), x.max()]
    np.testing.assert_array_equal(y[:192], np.repeat([int(value) % 2**32 for value in expected], 32))
    assert (y[192:] >> np.arange(32) & 1).all()


def test_shuffled_sums_of_floats_and_doubles() -> None:
    x = np.random.default_rng(0).standard_normal(32).astype("f4")
    _, y = launch(FILE, "sums", (1,), (32,), x, np.zeros(2))
    np.testing.assert_allclose(y, x.sum(dtype="f8"), rtol=1e-5)
    np.testing.assert_allclose(y[1], x.sum(dtype="f8"), rtol=1e-14)
