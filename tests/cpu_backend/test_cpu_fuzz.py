"""A thousand drawn calls of all families, and that failures are told; `tests/fuzz.py` draws as many as are wanted."""

from __future__ import annotations

from typing import Any

import fuzz
import numpy as np
import pytest

PIECE = 100


@pytest.mark.parametrize("piece", range(10))
def test_drawn_calls_are_computed_as_in_float64(piece: int) -> None:
    failures = [each for index in range(PIECE) for each in fuzz.failures_of(1, piece * PIECE + index)]
    assert not failures, "\n\n".join(failures)


def test_each_family_is_drawn_and_each_call_again() -> None:
    families = {fuzz.drawn(2, index)[0] for index in range(PIECE)}
    assert families == set(fuzz.FAMILIES)
    for index in range(20):
        first, again = (fuzz.drawn(2, index)[1] for _ in range(2))
        for one, other in zip(first, again, strict=True):
            assert fuzz.described(one) == fuzz.described(other)
            pairs = zip(one.arrays.values(), other.arrays.values(), strict=True)
            assert all(a is b or a.tobytes() == b.tobytes() for a, b in pairs)


@pytest.mark.parametrize("fault", ["wrong", "unwritten", "shared out", "overwritten"])
def test_a_fault_is_found_and_told(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """One value of each result is wrong, or not written, or differs from one time to the next; or an argument is."""
    run, calls = fuzz.Call.run, []

    def faulty(call: fuzz.Call, backend: str, *rest: Any) -> Any:
        results = run(call, backend, *rest)
        if backend == "compiled":
            calls.append(call)
            for result in (result for result in results if result is not None and result.size):
                last = (-1,) * result.ndim
                if fault == "wrong":
                    result[last] += 1
                elif fault == "unwritten":
                    result[last] = np.empty_like(result)[last]
                elif fault == "shared out":
                    result[last] += len(calls) % 2
            if fault == "overwritten":
                next(iter(call.arrays.values())).flat[0] = 99  # type: ignore[union-attr]
        return results

    monkeypatch.setattr(fuzz.Call, "run", faulty)
    index = next(i for i in range(PIECE) if fuzz.drawn(3, i)[1][0].name == "conv2d" and fuzz.drawn(3, i)[1][0].exact)
    failures = fuzz.failures_of(3, index)
    assert failures
    assert failures[0].startswith(f"python tests/fuzz.py --seed 3 --first {index} --count 1\nF.conv2d(input=")
