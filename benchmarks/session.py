"""A run: for each case prepare, check and time every provider, within a time budget."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.cases import Case
from benchmarks.checking import expect
from benchmarks.data import make_arrays
from benchmarks.gpu.cuts import Cut, fault_of
from benchmarks.gpu.device import Device
from benchmarks.providers import Call, Provider
from benchmarks.results import Outcome, Record, Status
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
    for case in cases:
        start = time.perf_counter()
        outcomes, calls = check(case, providers)
        schedule.overhead_s += time.perf_counter() - start
        timings = interleave(calls, schedule.share(), max_rounds) if calls else {}
        schedule.done += 1
        outcomes |= {
            provider: Outcome(provider.name, provider.ours, "timed", timing) for provider, timing in timings.items()
        }
        yield Record.of(case, [outcomes[provider] for provider in providers])


def check(case: Case, providers: Sequence[Provider]) -> tuple[dict[Provider, Outcome], dict[Provider, Call]]:
    """The outcome of each provider that must not be timed, and the calls of those that may be."""
    outcomes: dict[Provider, Outcome] = {}
    calls: dict[Provider, Call] = {}
    arrays = make_arrays(case)
    expectations = expect(case, arrays)
    for provider in providers:
        status: Status
        reason = provider.refuses(case)
        if reason:
            status, note = "refused", reason
        else:
            try:
                call = provider.prepare(case, arrays)
                fault = fault_of(Cut(case), case, expectations, provider.results(call()), Device())
            except Exception as error:  # one implementation's failure must not end the run
                status, note = "failed", f"{type(error).__name__}: {error}"
            else:
                if fault is None:
                    calls[provider] = call
                    continue
                status, note = "wrong", fault
        outcomes[provider] = Outcome(provider.name, provider.ours, status, note=note)
    return outcomes, calls
