"""Races between threads, warps and blocks: found where nothing orders two accesses, and only there."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np
import pytest
from running import fails, launch

from gpucnn import simulator
from gpucnn.simulator import Race, SimulatorError, UninitialisedRead, toolchain

FILE = "races.cu"
ORDERS: list[dict[str, Any]] = [
    {"order": "forward"},
    {"order": "reverse"},
    {"order": "random", "seed": 1},
    {"order": "random", "seed": 2, "yield_every": 3},
]


def zeros(count: int, dtype: str = "f4") -> Any:
    return np.zeros(count, dtype)


@pytest.fixture(params=ORDERS, ids=lambda chosen: "-".join(map(str, chosen.values())))
def any_order(request: pytest.FixtureRequest) -> Any:
    """Every order in which threads and blocks can take their turns."""
    with simulator.options(**request.param):
        yield


class Planted(NamedTuple):
    """A kernel that computes `expected` in its argument `result`, and one whose last argument plants a race."""

    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    args: tuple[Any, ...]
    expected: Any = None
    result: int = 0
    bug: int = 1
    errors: tuple[type[SimulatorError], ...] = (Race,)
    marks: tuple[str, ...] = ()  # of the lines in races.cu
    words: str = ""  # of the message
    shared_mem: int = 0


EARLY = (Race, UninitialisedRead)  # a read may also come before its write
X = np.arange(512, dtype="f4")
PLANTED = {
    "no barrier between fill and use": Planted(
        "reverse", (1,), (64,), (zeros(64),), np.arange(64)[::-1] + 1, errors=EARLY
    ),
    "a second fill": Planted(
        "reverse", (1,), (64,), (zeros(64),), bug=2, marks=("// fill", "// use"), words="shared 'tile'"
    ),
    "no barrier in a step of a reduction": Planted(
        "reduce_dynamic", (2,), (64,), (X[:128], zeros(2)), X[:128].reshape(2, 64).sum(1), 1,
        words="dynamic shared memory", shared_mem=256,
    ),
    "blocks that write one place": Planted(
        "between_blocks", (4,), (32,), (zeros(128),), marks=("// block write",), words="write by another block"
    ),
    "a block that overwrites what another reads": Planted(
        "read_other_block", (4,), (1,), (zeros(4), zeros(4)), words="by another block"
    ),
    "a plain sum": Planted("accumulate", (1,), (64,), (zeros(1),), [64], marks=("// plain sum",)),
    "a plain sum of blocks": Planted("accumulate", (5,), (64,), (zeros(1),), [320], marks=("// plain sum",)),
    "plain beside atomic": Planted(
        "atomic_then_plain", (1,), (64,), (zeros(2, "i4"),), [63, 63], words="atomic operation"
    ),
    "no fence before the last block": Planted(
        "last_block", (8,), (64,), (X, zeros(8), zeros(1), zeros(1, "i4")), [X.sum()], 2,
        marks=("// read of parts",), words="by another block",
    ),
    "a fence for what its thread may not rely on": Planted(
        "fence_without_barrier", (4,), (32,), (zeros(128), zeros(1), zeros(1, "i4")), [128], 1
    ),
    "no syncwarp": Planted("neighbours", (1,), (64,), (zeros(64),), np.arange(64) ^ 1, errors=EARLY),
    "a syncwarp too late": Planted("neighbours", (1,), (64,), (zeros(64),), bug=2, errors=EARLY),
    "a syncwarp for two warps": Planted("across_warps", (1,), (64,), (zeros(64),), np.arange(64) ^ 32, errors=EARLY),
}  # fmt: skip


@pytest.mark.usefixtures("any_order")
@pytest.mark.parametrize("name", PLANTED)
def test_a_race_is_found_and_none_where_there_is_order(name: str) -> None:
    race = PLANTED[name]
    sound = launch(FILE, race.kernel, race.grid, race.block, *race.args, 0, shared_mem=race.shared_mem)
    if race.expected is not None:
        np.testing.assert_array_equal(sound[race.result], race.expected)
    said = fails(
        FILE, race.errors, race.marks, race.kernel, race.grid, race.block, *race.args, race.bug,
        shared_mem=race.shared_mem,
    )  # fmt: skip
    assert race.words in said


@pytest.mark.usefixtures("any_order")
def test_neighbouring_bytes_are_no_race() -> None:
    y, z = launch(FILE, "small_neighbours", (1,), (64,), np.zeros(64, "u1"), np.zeros(64))
    np.testing.assert_array_equal(y, np.arange(64) + 1)
    assert z.view("f4")[6] == 1


def order_of(**chosen: Any) -> tuple[list[int], list[int]]:
    """The orders in which blocks, and the threads of the first, have taken their turns."""
    with simulator.options(**chosen):
        places, _ = launch(FILE, "order", (6,), (40,), np.zeros(6 + 240, "i4"), np.zeros(7, "i4"))
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
            launch(FILE, "between_blocks", (4,), (32,), np.zeros(128, "f4"), 0)
            launch(FILE, "reverse", (1,), (64,), np.zeros(64, "f4"), 0)
            with pytest.raises(Race):
                launch(FILE, "between_blocks", (4,), (32,), np.zeros(128, "f4"), 1)
