"""The profile of kernels whose requests can be counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import launch, line_of, module

import gpucnn.functional as F
from gpucnn import simulator
from gpucnn.simulator.profiles import AccessProfile, LaunchProfile, Profile

FILE = "profile.cu"


def floats(count: int) -> Any:
    return np.arange(count, dtype=np.float32)


def profiled(kernel: str, grid: int, block: int, *args: Any) -> LaunchProfile:
    """The profile of one launch."""
    with simulator.profile() as profile:
        launch(FILE, kernel, (grid,), (block,), *args)
    (only,) = profile.launches
    assert only.kernel == kernel
    return only


def the_access(launched: LaunchProfile, **wanted: Any) -> AccessProfile:
    """The only access with these attributes."""
    (found,) = (access for access in launched.accesses if all(getattr(access, name) == wanted[name] for name in wanted))
    return found


# --- Global memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "shift", "sectors", "ideal"),
    [(1, 0, 4, 4), (1, 8, 4, 4), (1, 1, 5, 4), (2, 0, 8, 4), (8, 0, 32, 4), (9, 0, 32, 4), (0, 3, 1, 1)],
)
def test_sectors_of_a_request(step: int, shift: int, sectors: int, ideal: int) -> None:
    found = profiled("copy", 2, 64, floats(128 * 9 + 8), floats(128), step, shift)
    read = the_access(found, kind="read")
    assert (read.space, read.array, read.bytes) == ("global", "x", 4)
    assert (read.requests, read.lanes) == (4, 128)
    assert (read.sectors, read.ideal_sectors) == (4 * sectors, 4 * ideal)
    write = the_access(found, kind="write")
    assert (write.array, write.requests, write.sectors, write.ideal_sectors) == ("y", 4, 16, 16)
    assert (write.worst_conflict, write.wavefronts) == (0, 0)
    assert found.requests == 8
    assert found.moved_bytes == 32 * (4 * sectors + 16)
    assert found.sector_share == (4 * sectors + 16) / (4 * ideal + 16)


def test_the_place_of_an_access_is_its_line() -> None:
    found = profiled("copy", 1, 32, floats(32), floats(32), 1, 0)
    line = line_of(FILE, "y[i] = x[i * step + shift]")
    assert {(access.file, access.line) for access in found.accesses} == {(FILE, line)}


@pytest.mark.parametrize(
    ("kernel", "dtype", "count", "width", "sectors"),
    [("copy_four", np.float32, 256, 16, 32), ("copy_bytes", np.int8, 64, 1, 2)],
)
def test_an_access_takes_as_many_sectors_as_its_lanes_fill(
    kernel: str, dtype: Any, count: int, width: int, sectors: int
) -> None:
    found = profiled(kernel, 1, 64, np.zeros(count, dtype), np.zeros(count, dtype))
    assert [(each.kind, each.bytes, each.requests, each.sectors) for each in found.accesses] == [
        (kind, width, 2, sectors) for kind in ("read", "write")
    ]


def test_a_part_of_a_warp_is_a_request() -> None:
    read = the_access(profiled("copy", 1, 40, floats(40), floats(40), 1, 0), kind="read")
    assert (read.requests, read.lanes, read.sectors) == (2, 40, 5)


def test_what_is_read_twice_is_moved_twice() -> None:
    found = profiled("read_twice", 1, 64, floats(64), floats(64))
    assert found.least_bytes == 2 * 256
    assert found.moved_bytes == 3 * 256
    assert found.moved_share == 1.5
    assert [(array.name, array.bytes, array.read_bytes, array.written_bytes) for array in found.arrays] == [
        ("x", 256, 256, 0),
        ("y", 256, 0, 256),
    ]


def test_lanes_that_leave_a_loop_early_are_matched_with_the_others() -> None:
    read = the_access(profiled("triangle", 1, 32, floats(32 * 32), floats(32)), kind="read")
    assert (read.requests, read.lanes) == (32, 32 * 33 // 2)  # iteration i has lanes i to 31
    assert read.sectors == sum(4 - i // 8 for i in range(32))


def test_barriers_part_what_lanes_do() -> None:
    line = line_of(FILE, "// by some, then by all")
    reads = [each for each in profiled("in_rounds", 1, 32, floats(600), floats(32)).accesses if each.line == line]
    assert sum(read.lanes for read in reads) == 4 + 32
    assert sum(read.sectors for read in reads) == 1 + 2


def test_instructions_of_one_line_are_put_together() -> None:
    read = the_access(profiled("two_widths", 1, 32, floats(128), floats(32)), kind="read")
    assert (read.bytes, read.requests, read.sectors) == (16, 2, 4 + 16)


def copied(x: Any, y: Any) -> list[tuple[int, int, int]]:
    """Of each array of a copy of 32 floats, the bytes of its own, and of what is read and written."""
    with simulator.profile() as profile:
        module(FILE).function("copy")((1,), (32,), (x, y, np.int32(1), np.int32(0)))
    (found,) = profile.launches
    return [(array.bytes, array.read_bytes, array.written_bytes) for array in found.arrays]


def test_an_array_that_begins_within_a_sector() -> None:
    x, y = simulator.asarray(floats(40)), simulator.asarray(floats(32))
    assert copied(x[1:33], y) == [(128, 160, 0), (128, 0, 128)]


def test_arrays_that_overlap_are_one() -> None:
    x = simulator.asarray(floats(96))
    assert copied(x[:64], x[32:]) == [(384, 128, 128)]


# --- Shared memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "width", "conflicts"),
    [  # by the step between lanes
        ("shared_four", 4, {1: 1, 2: 2, 4: 4, 32: 32, 33: 1, 0: 1, 3: 1}),
        ("shared_eight", 8, {1: 1, 2: 2, 16: 16, 0: 1, 17: 1}),
        ("shared_sixteen", 16, {1: 1, 2: 2, 8: 8, 9: 1}),
    ],
)
def test_bank_conflicts(kernel: str, width: int, conflicts: dict[int, int]) -> None:
    rounds = width // 4  # of 32 words
    for step, conflict in conflicts.items():
        found = profiled(kernel, 1, 32, floats(32), step)
        read = the_access(found, space="shared", kind="read")
        assert (read.bytes, read.worst_conflict, read.wavefronts) == (width, conflict, rounds * conflict), step
        assert (read.ideal_wavefronts, read.requests, read.sectors, read.array) == (rounds, 1, 0, "")
        assert found.worst_conflict == conflict


def test_the_worst_conflict_is_kept() -> None:
    read = the_access(profiled("shared_halving", 1, 32, floats(32), 4), space="shared", kind="read")
    assert (read.worst_conflict, read.wavefronts, read.requests) == (4, 4 + 2 + 1, 3)
    for steps in ((2, 8), (8, 2)):
        read = the_access(profiled("shared_two", 1, 32, floats(32), *steps), space="shared", kind="read")
        assert (read.worst_conflict, read.wavefronts, read.requests) == (8, 10, 2)


def test_an_asynchronous_copy_reads_and_writes_once() -> None:
    found = profiled("staged", 1, 64, floats(256), floats(64))
    line = line_of(FILE, "// copied")
    (read,) = (each for each in found.accesses if each.line == line and each.space == "global")
    (write,) = (each for each in found.accesses if each.kind == "write" and each.space == "shared")
    assert (read.kind, read.array, read.bytes, read.requests, read.sectors) == ("read", "x", 16, 2, 32)
    assert (write.kind, write.bytes, write.requests, write.wavefronts) == ("write", 16, 2, 8)


# --- Branches, barriers, warps ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "divergent"), [(1, 2), (16, 2), (32, 0), (64, 0)])
def test_branches_diverge_within_a_warp_only(bits: int, divergent: int) -> None:
    found = profiled("diverging", 1, 64, floats(64), floats(64), bits)
    line = line_of(FILE, "// which way")
    assert sum(branch.divergent for branch in found.branches if branch.line in (line - 1, line)) == divergent
    assert found.divergent_branches == divergent
    assert bool(found.branches) == bool(divergent)


def test_collectives_are_counted_by_warp() -> None:
    found = profiled("sum_of_warp", 1, 96, floats(96), floats(3), np.zeros(1, np.int32))
    assert [(each.name, each.line, each.executions) for each in found.collectives] == [
        ("__shfl_xor_sync", line_of(FILE, "// shuffled"), 3 * 5)
    ]
    counted = the_access(found, kind="atomic")
    assert (counted.array, counted.line, counted.requests, counted.lanes, counted.sectors) == (
        "count", line_of(FILE, "// counted"), 3, 6, 3
    )  # fmt: skip
    assert found.barriers == 0
    assert profiled("read_twice", 1, 64, floats(64), floats(64)).barriers == 2


# --- The profile --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["reverse", "random"])
@pytest.mark.parametrize("kernel", ["triangle", "read_twice"])
def test_counts_do_not_depend_on_the_order_of_threads(order: str, kernel: str) -> None:
    expected = profiled(kernel, 1, 32, floats(32 * 32), floats(32))
    with simulator.options(order=order):
        assert profiled(kernel, 1, 32, floats(32 * 32), floats(32)) == expected


def test_launches_are_kept_in_order_and_apart() -> None:
    with simulator.profile() as outer:
        launch(FILE, "copy_four", (1,), (32,), floats(128), floats(128))
        with simulator.profile() as inner:
            launch(FILE, "read_twice", (1,), (32,), floats(32), floats(32))
        launch(FILE, "copy", (1,), (32,), floats(32), floats(32), 1, 0)
    launch(FILE, "copy", (1,), (32,), floats(32), floats(32), 1, 0)
    assert [each.kernel for each in outer.launches] == ["copy_four", "copy"]
    assert [each.kernel for each in inner.launches] == ["read_twice"]
    assert outer.moved_bytes == sum(each.moved_bytes for each in outer.launches) == 1024 + 256


def test_mistakes_are_found_as_ever() -> None:
    with simulator.profile() as profile, pytest.raises(simulator.OutOfBounds, match="argument 0"):
        launch(FILE, "outside", (1,), (32,), floats(32), floats(32))
    assert profile.launches == []


def test_operations_are_profiled() -> None:
    x = simulator.asarray(np.zeros((1, 4, 8, 8), np.float32))
    with simulator.profile() as profile:
        F.max_pool2d(x, 2)
    (found,) = profile.launches
    assert found.kernel == "max_pool"
    assert found.least_bytes == x.nbytes + x.nbytes // 4
    assert {access.file for access in found.accesses if access.array == "x"} != {""}


@pytest.fixture(scope="module")
def two_launches() -> Profile:
    with simulator.profile() as profile:
        launch(FILE, "copy", (1,), (64,), floats(200), floats(64), 2, 0)
        launch(FILE, "shared_four", (1,), (32,), floats(32), 2)
        launch(FILE, "diverging", (1,), (32,), floats(32), floats(32), 1)
    return profile


def test_the_table_says_what_matters(two_launches: Profile) -> None:
    text = str(two_launches)
    assert "copy  1 blocks of 64 threads" in text
    assert "global memory: 768 bytes moved, 1.000 of the least; 6.00 sectors a request, 1.500 of ideal" in text
    assert "bank conflicts: 2-way; barriers: 1 by warps" in text
    (line,) = (line for line in text.splitlines() if "read x" in line and "shift" in line)
    number = line_of(FILE, "x[i * step + shift]")
    counts, source = line.split()[:9], line.split(maxsplit=9)[9]
    assert counts == [f"{FILE}:{number}", "read", "x", "4", "B", "2", "32.00", "8.00", "2.00"]
    assert source == "y[i] = x[i * step + shift];"
    assert f"{FILE}:{line_of(FILE, '// which way')}" in text
    assert "branches diverged" in text
    assert str(Profile()) == "no launches"


def test_json_holds_every_count(two_launches: Profile, tmp_path: Path) -> None:
    two_launches.save(tmp_path / "profile.json")
    launches = json.loads((tmp_path / "profile.json").read_text())["launches"]
    assert [each["kernel"] for each in launches] == ["copy", "shared_four", "diverging"]
    assert launches[0]["moved_bytes"] == two_launches.launches[0].moved_bytes
    assert launches[1]["worst_conflict"] == 2
    assert launches[0]["accesses"][0]["sectors"] == the_access(two_launches.launches[0], kind="read").sectors


def test_the_figure(two_launches: Profile, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    two_launches.plot(tmp_path / "profile.png")
    assert (tmp_path / "profile.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="no launch"):
        Profile().plot(tmp_path / "empty.png")
