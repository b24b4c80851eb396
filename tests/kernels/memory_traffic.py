"""The memory that calls move in the simulator, held to the least that their arrays ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from strategies import arranged, numbers

from gpucnn import simulator
from gpucnn.simulator import Profile
from gpucnn.simulator.profiles import LaunchProfile

MOVED = 1.10  # bytes over the least possible
SECTORS = 1.05  # of the requests over those that their bytes fill
CONFLICT = 2  # words of one bank that a round of lanes wants


def image(*shape: int, dtype: str = "float32", order: str = "contiguous") -> Any:
    """Numbers on the simulator."""
    return simulator.asarray(arranged(numbers(np.random.default_rng(1), shape, dtype), order))


def profiled(call: Callable[[], Any]) -> tuple[Any, Profile]:
    """What a call returns, and the profile of its launches."""
    with simulator.profile() as profile:
        result = call()
    return result, profile


def excesses(*launches: LaunchProfile, moved: float = MOVED, sectors: float = SECTORS) -> list[str]:
    """What the launches do beyond the limits."""

    def found() -> Iterator[str]:
        for launch in launches:
            if launch.moved_share > moved:
                yield f"{launch.kernel} moves {launch.moved_share:.3f} of the least, expected {moved}"
            if launch.sector_share > sectors:
                yield f"{launch.kernel} touches {launch.sector_share:.3f} of the ideal sectors, expected {sectors}"
            if launch.worst_conflict > CONFLICT:
                yield f"{launch.kernel} has bank conflicts of {launch.worst_conflict}, expected {CONFLICT}"

    return list(found())


def expect_once(
    call: Callable[[], Any], *given: Any, moved: float = MOVED, sectors: float = SECTORS, more: int = 0
) -> Any:
    """The result of a call that reads each of the arrays `given` once, and writes each result once.

    So does each of its launches with what it touches. All together move at most `more` bytes besides.
    """
    result, profile = profiled(call)
    assert excesses(*profile.launches, moved=moved, sectors=sectors) == []
    arrays = [*given, *(result if isinstance(result, tuple) else (result,))]
    least = sum(array.nbytes for array in arrays if array is not None)
    assert profile.moved_bytes <= moved * least + more, [launch.kernel for launch in profile.launches]
    return result


def widths(*launches: LaunchProfile, of: tuple[str, ...] = ()) -> dict[str, set[int]]:
    """By kind of access, the bytes that one lane moves at once of the arrays `of`, or of all."""
    found: dict[str, set[int]] = {}
    for access in (access for launch in launches for access in launch.accesses):
        if access.space == "global" and (not of or access.array in of):
            found.setdefault(access.kind, set()).add(access.bytes)
    return found


def widest(call: Callable[[], Any]) -> dict[str, int]:
    """The most bytes that one lane of a call reads, and writes, at once."""
    return {kind: max(found) for kind, found in widths(*profiled(call)[1].launches).items()}
