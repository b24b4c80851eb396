"""A run: for each case prepare, check and time every provider, within a time budget."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.cases import Case
from benchmarks.gpu.cuts import Cut
from benchmarks.gpu.device import Device
from benchmarks.gpu.session import Session
from benchmarks.providers import Provider
from benchmarks.results import Outcome, Record
from benchmarks.timing import MAX_ROUNDS, interleave


@dataclass
class Schedule:
    """Shares the seconds that are left among the cases that are left."""

    budget_s: float
    cases: int
    least_s: float = 0.05
    most_s: float = 4.0
    started: float = field(default_factory=time.perf_counter)
    done: int = 0
    overhead_s: float = 0.0  # spent so far on data, preparation and checks

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.budget_s - (time.perf_counter() - self.started)

    def share(self) -> float:
        """Seconds for timing the next case, its expected overhead taken off."""
        overhead = self.overhead_s / self.done if self.done else 0.0
        share = self.left() / max(self.cases - self.done, 1) - overhead
        return min(max(share, self.least_s), self.most_s)


def run(
    cases: Sequence[Case], providers: Sequence[Provider], budget_s: float, max_rounds: int = MAX_ROUNDS
) -> Iterator[Record]:
    """Measure the cases one by one; the caller may stop between two of them."""
    schedule = Schedule(budget_s, len(cases))
    session = Session(Device(), providers, cut_of=Cut)
    for case in cases:
        start = time.perf_counter()
        outcomes, checked, _ = session.check(case)
        schedule.overhead_s += time.perf_counter() - start
        calls = {provider: each.call for provider, each in checked.items()}
        timings = interleave(calls, schedule.share(), max_rounds) if calls else {}
        schedule.done += 1
        outcomes |= {provider: Outcome.of(provider, "timed", timing=timing) for provider, timing in timings.items()}
        yield Record.of(case, [outcomes[provider] for provider in providers])
