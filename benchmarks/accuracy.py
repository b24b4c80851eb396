"""``python -m benchmarks.accuracy``: rounding errors of gpucnn's compiled kernels and of PyTorch, against float64.

The error of an element is its difference to float64 over the sum of the absolute products that make it up, or over
the mean of these sums where that is more, in units of float32's epsilon; of a norm, over what the benchmark's checks
allow, in the same units. What is exact, as maxima and copies are, is left out. Arrays and expectations are those of
the checks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.cases import Case, select
from benchmarks.checking import ROUNDING, expect
from benchmarks.data import make_arrays
from benchmarks.providers.base import Provider
from benchmarks.providers.gpucnn import GpucnnCompiled, GpucnnCompiledChannelsLast
from benchmarks.providers.pytorch import PyTorch, PyTorchChannelsLast

OURS, PEERS = (GpucnnCompiled, GpucnnCompiledChannelsLast), (PyTorch, PyTorchChannelsLast)
MAX_FLOPS = 5e8  # of a case by default: half a second in all
MAX_BYTES = 3e7


@dataclass(frozen=True)
class Errors:
    """The largest and the mean error of a case's results, the worse of the two memory orders."""

    largest: float
    mean: float


@dataclass(frozen=True)
class Row:
    """A case by gpucnn and by PyTorch."""

    case: Case
    ours: Errors
    theirs: Errors

    @property
    def ratio(self) -> float:
        """The largest error of gpucnn over that of PyTorch."""
        return self.ours.largest / self.theirs.largest if self.theirs.largest else float(self.ours.largest > 0)


def small_cases(filters: Sequence[str] = ()) -> list[Case]:
    """The float32 cases of the benchmark that take little time."""
    cases = select(filters=filters)
    return [
        case
        for case in cases
        if case.dtypes == ("float32", "float32") and case.flops <= MAX_FLOPS and case.least_bytes <= MAX_BYTES
    ]


def errors_of(case: Case, arrays: dict[str, Any], providers: Iterable[Provider]) -> Errors | None:
    """The errors of a case by some providers; None if none of them takes it, or its results are exact."""
    expected, found = expect(case, arrays), []
    for provider in providers:
        if provider.refuses(case):
            continue
        results = provider.within(lambda each=provider: each.results(each.prepare(case, arrays)()))  # type: ignore[misc]
        for expectation, got in zip(expected, results, strict=False):
            units = np.broadcast_to(np.asarray(expectation.tolerance) / ROUNDING, expectation.values.shape)
            if units.any():
                values = got if expectation.where is None else got[expectation.where]
                found.append(abs(values - expectation.values) / np.maximum(units, units.mean()))
    if not found:
        return None
    return Errors(max(float(each.max()) for each in found), max(float(each.mean()) for each in found))


def measured(cases: Iterable[Case]) -> Iterator[Row]:
    """The errors of cases whose results are rounded, one after the other."""
    ours, peers = ([kind(1) for kind in kinds] for kinds in (OURS, PEERS))
    for case in cases:
        arrays = make_arrays(case)
        found = [errors_of(case, arrays, providers) for providers in (ours, peers)]
        if found[0] is not None and found[1] is not None:
            yield Row(case, found[0], found[1])


def table(rows: Sequence[Row]) -> str:
    """A line for each family and operation, and the cases whose ratios are worst."""
    lines = [
        f"{'family, operation':40} {'cases':>5} {'max':>8} {'mean':>8} {'PyTorch':>8} {'mean':>8} {'max ratio':>9}"
    ]
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault(f"{row.case.family}, {row.case.operation}", []).append(row)
    for name, group in kinds.items():
        ours, theirs = max(row.ours.largest for row in group), max(row.theirs.largest for row in group)
        means = [float(np.mean([row.ours.mean for row in group])), float(np.mean([row.theirs.mean for row in group]))]
        figures = (ours, means[0], theirs, means[1])
        lines.append(f"{name:40} {len(group):5} {' '.join(f'{each:8.4f}' for each in figures)} {ours / theirs:6.2f}")
    lines.append("\nworst cases by the ratio of largest errors:")
    for row in sorted(rows, key=lambda row: -row.ratio)[:10]:
        lines.append(f"{row.ratio:6.2f}  {row.ours.largest:.4f} and {row.theirs.largest:.4f}  {row.case.id}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--filter", action="append", default=[], help="only cases whose names contain this")
    given = parser.parse_args(arguments)
    for kind in (*OURS, *PEERS):
        if reason := kind.why_absent():
            sys.exit(f"{kind.name}: {reason}")
    rows = []
    for row in measured(small_cases(given.filter)):
        rows.append(row)
        if sys.stderr.isatty():
            print(f"\r{len(rows)} cases measured", end="", file=sys.stderr, flush=True)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
