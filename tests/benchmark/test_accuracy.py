"""Rounding errors of the compiled kernels on the benchmark's smaller layers: at most twice PyTorch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bench_fakes import one_of_each_kind

from benchmarks import accuracy
from benchmarks.accuracy import Errors, Row, errors_of, measured, small_cases, table
from benchmarks.data import make_arrays
from gpucnn.backends.cpu import builds

pytestmark = pytest.mark.skipif(bool(builds.why_unavailable()), reason="compiled kernels need a C++ compiler")


class Shifted:
    """A provider whose results are those of float64 but for one element, which is off by `amount`."""

    def __init__(self, amount: float) -> None:
        self.amount = amount

    def refuses(self, case: Any) -> None:
        return None

    def within(self, function: Any) -> Any:
        return function()

    def prepare(self, case: Any, arrays: Any) -> Any:
        result = arrays["input"].astype(np.float64) + arrays["bias"].reshape(-1, 1, 1)
        result = np.maximum(result, 0)
        result.flat[result.argmax()] += self.amount
        return lambda: result

    def results(self, returned: Any) -> list[Any]:
        return [returned]


def test_errors_are_in_units_of_the_sum_of_products() -> None:
    case = next(case for case in one_of_each_kind(2) if case.layer.computation == "activation")
    arrays = make_arrays(case)
    assert errors_of(case, arrays, [Shifted(0.0)]) == Errors(0.0, 0.0)  # type: ignore[list-item]
    x, bias = arrays["input"].astype(np.float64), arrays["bias"].reshape(-1, 1, 1)
    at = np.maximum(x + bias, 0).argmax()
    unit = np.finfo(np.float32).eps / accuracy.ROUNDING * (abs(x) + abs(bias)).flat[at]
    found = errors_of(case, arrays, [Shifted(3 * float(unit)), Shifted(float(unit))])  # type: ignore[list-item]
    assert found is not None
    assert found.largest == pytest.approx(3, rel=1e-3)


@pytest.mark.thorough
def test_errors_are_at_most_twice_those_of_pytorch(torch: Any) -> None:
    rows = list(measured(small_cases()))
    families: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        families.setdefault((row.case.family, row.case.operation), []).append(row)
    assert len(families) > 15
    for name, group in families.items():
        ours, theirs = (max(errors.largest for errors in each) for each in zip(*map(both, group), strict=True))
        assert ours <= 2 * theirs, f"{name}\n{table(group)}"


def both(row: Row) -> tuple[Errors, Errors]:
    return row.ours, row.theirs
