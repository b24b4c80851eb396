"""Races between threads, warps and blocks: found where nothing orders two accesses, and only there."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from running import launch, line_of

from gpucnn import simulator
from gpucnn.simulator import Race, toolchain

ORDERS: list[dict[str, Any]] = [
    {"order": "forward"},
    {"order": "reverse"},
    {"order": "random", "seed": 1},
    {"order": "random", "seed": 2, "yield_every": 3},
]


@pytest.fixture(params=ORDERS, ids=lambda chosen: "-".join(map(str, chosen.values())))
def any_order(request: pytest.FixtureRequest) -> Any:
    """Every order in which threads and blocks can take their turns."""
    with simulator.options(**request.param):
        yield


def races(marks: str | list[str], kernel: str, grid: Any, block: Any, *args: Any, **kwargs: Any) -> str:
    """The message of the race, which must be at a line of races.cu that holds one of `marks`."""
    with pytest.raises(Race) as caught:
        launch("races.cu", kernel, grid, block, *args, **kwargs)
    lines = [line_of("races.cu", mark) for mark in ([marks] if isinstance(marks, str) else marks)]
    assert caught.value.file == "races.cu"
    assert caught.value.line in lines
    return str(caught.value)


@pytest.mark.usefixtures("any_order")
def test_a_barrier_between_fill_and_use() -> None:
    (y,) = launch("races.cu", "reverse", (1,), (64,), np.zeros(64, "f4"), 0)
    np.testing.assert_array_equal(y, np.arange(64)[::-1] + 1)
    with pytest.raises(simulator.SimulatorError) as caught:  # a read may also come before its write
        launch("races.cu", "reverse", (1,), (64,), np.zeros(64, "f4"), 1)
    assert type(caught.value) in (Race, simulator.UninitialisedRead)
    message = races(["// fill", "// use"], "reverse", (1,), (64,), np.zeros(64, "f4"), 2)
    assert "shared 'tile'" in message


@pytest.mark.usefixtures("any_order")
def test_a_barrier_in_each_step_of_a_reduction() -> None:
    x = np.arange(128, dtype="f4")
    _, y = launch("races.cu", "reduce_dynamic", (2,), (64,), x, np.zeros(2, "f4"), 0, shared_mem=256)
    np.testing.assert_array_equal(y, x.reshape(2, 64).sum(1))
    with pytest.raises(Race, match="dynamic shared memory"):
        launch("races.cu", "reduce_dynamic", (2,), (64,), x, np.zeros(2, "f4"), 1, shared_mem=256)


@pytest.mark.usefixtures("any_order")
def test_blocks_write_places_of_their_own() -> None:
    launch("races.cu", "between_blocks", (4,), (32,), np.zeros(128, "f4"), 0)
    message = races("// block write", "between_blocks", (4,), (32,), np.zeros(128, "f4"), 1)
    assert "write by another block" in message


@pytest.mark.usefixtures("any_order")
def test_a_block_does_not_overwrite_what_another_reads() -> None:
    launch("races.cu", "read_other_block", (4,), (1,), np.zeros(4, "f4"), np.zeros(4, "f4"), 0)
    with pytest.raises(Race, match="by another block"):
        launch("races.cu", "read_other_block", (4,), (1,), np.zeros(4, "f4"), np.zeros(4, "f4"), 1)


@pytest.mark.usefixtures("any_order")
@pytest.mark.parametrize("grid", [(1,), (5,)])
def test_sums_need_atomic_operations(grid: tuple[int]) -> None:
    (total,) = launch("races.cu", "accumulate", grid, (64,), np.zeros(1, "f4"), 0)
    assert total[0] == 64 * grid[0]
    races("// plain sum", "accumulate", grid, (64,), np.zeros(1, "f4"), 1)


@pytest.mark.usefixtures("any_order")
def test_plain_and_atomic_accesses_need_an_order_too() -> None:
    (x,) = launch("races.cu", "atomic_then_plain", (1,), (64,), np.zeros(2, "i4"), 0)
    assert x.tolist() == [63, 63]
    with pytest.raises(Race, match="atomic operation"):
        launch("races.cu", "atomic_then_plain", (1,), (64,), np.zeros(2, "i4"), 1)


def last_block(bug: int) -> tuple[float, float]:
    x = np.arange(512, dtype="f4")
    args = (x, np.zeros(8, "f4"), np.zeros(1, "f4"), np.zeros(1, "i4"))
    _, _, total, _ = launch("races.cu", "last_block", (8,), (64,), *args, bug)
    return float(total[0]), float(x.sum())


@pytest.mark.usefixtures("any_order")
def test_the_last_block_may_read_what_the_others_fenced() -> None:
    found, expected = last_block(0)
    assert found == expected
    with pytest.raises(Race, match="by another block") as caught:
        last_block(1)
    assert caught.value.line == line_of("races.cu", "// read of parts")


@pytest.mark.usefixtures("any_order")
def test_a_fence_is_for_what_its_thread_may_rely_on() -> None:
    args = (np.zeros(128, "f4"), np.zeros(1, "f4"), np.zeros(1, "i4"))
    _, total, _ = launch("races.cu", "fence_without_barrier", (4,), (32,), *args, 0)
    assert total[0] == 128
    with pytest.raises(Race):
        launch("races.cu", "fence_without_barrier", (4,), (32,), *args, 1)


@pytest.mark.usefixtures("any_order")
@pytest.mark.parametrize("bug", [1, 2])
def test_lanes_need_a_syncwarp(bug: int) -> None:
    (y,) = launch("races.cu", "neighbours", (1,), (64,), np.zeros(64, "f4"), 0)
    np.testing.assert_array_equal(y, np.arange(64) ^ 1)
    with pytest.raises((Race, simulator.UninitialisedRead)):
        launch("races.cu", "neighbours", (1,), (64,), np.zeros(64, "f4"), bug)


@pytest.mark.usefixtures("any_order")
def test_a_syncwarp_does_not_order_warps() -> None:
    (y,) = launch("races.cu", "across_warps", (1,), (64,), np.zeros(64, "f4"), 0)
    np.testing.assert_array_equal(y, np.arange(64) ^ 32)
    with pytest.raises((Race, simulator.UninitialisedRead)):
        launch("races.cu", "across_warps", (1,), (64,), np.zeros(64, "f4"), 1)


@pytest.mark.usefixtures("any_order")
def test_neighbouring_bytes_are_no_race() -> None:
    y, z = launch("races.cu", "small_neighbours", (1,), (64,), np.zeros(64, "u1"), np.zeros(64))
    np.testing.assert_array_equal(y, np.arange(64) + 1)
    assert z.view("f4")[6] == 1


def order_of(**chosen: Any) -> tuple[list[int], list[int]]:
    """The orders in which blocks, and the threads of the first, have taken their turns."""
    with simulator.options(**chosen):
        places, _ = launch("races.cu", "order", (6,), (40,), np.zeros(6 + 240, "i4"), np.zeros(7, "i4"))
    return places[:6].tolist(), places[6:46].tolist()


def test_orders() -> None:
    assert order_of() == (list(range(6)), list(range(40)))
    assert order_of(order="reverse") == (list(range(6))[::-1], list(range(40))[::-1])
    first, second = order_of(order="random", seed=1), order_of(order="random", seed=2)
    assert first == order_of(order="random", seed=1)
    assert first[0] != second[0]
    assert first[1] != second[1]
    for blocks, threads in (first, second):
        assert sorted(blocks) == list(range(6))
        assert sorted(threads) == list(range(40))


def test_epochs_start_again_before_they_run_out() -> None:
    library = toolchain.load(toolchain.runtime("assembly"))
    for epoch in (2**31 - 3, 2**31 + 5, 2**32 - 300):
        library.gpucnn_set_epoch(ctypes.c_uint32(epoch))
        for _ in range(4):
            launch("races.cu", "between_blocks", (4,), (32,), np.zeros(128, "f4"), 0)
            launch("races.cu", "reverse", (1,), (64,), np.zeros(64, "f4"), 0)
            with pytest.raises(Race):
                launch("races.cu", "between_blocks", (4,), (32,), np.zeros(128, "f4"), 1)
