"""gpucnn's NumPy backend on the cases of a GPU's run: the GPU's gain over the CPU of its machine.

It runs in the command's own process, once no worker times the GPU any more, on the same arrays in float32. The cheapest
cases come first, so that a short time leaves out the fewest. A call that takes long is timed while it is checked.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from benchmarks.cases import Case
from benchmarks.gpu.device import Device
from benchmarks.gpu.session import Session
from benchmarks.providers import Provider
from benchmarks.results import FALLBACK, Outcome, Record
from benchmarks.session import Schedule
from benchmarks.timing import Timing, interleave

MAX_S = 0.5  # for timing one case
MAX_ROUNDS = 9
LONG_S = 1.0  # of a call whose checked run is its only sample
FLOPS_PER_BYTE = 10  # about where the limits of a CPU meet
NOT_REACHED = "not reached in the time that there was"


def is_wanted(words: Sequence[str]) -> bool:
    """Whether ``--providers`` names the NumPy backend, or nothing."""
    return not words or any(word.lower() in FALLBACK.lower() for word in words)


def in_order(cases: Sequence[Case], records: Sequence[Record]) -> list[Case]:
    """The float32 cases that gpucnn was timed on, the cheapest first."""
    timed = {record.id for record in records if any(o.ours and o.status == "timed" for o in record.outcomes)}
    chosen = [case for case in cases if case.dtype == "float32" and case.id in timed]
    return sorted(chosen, key=lambda case: max(case.flops / FLOPS_PER_BYTE, case.least_bytes))


def outcomes(cases: Sequence[Case], provider: Provider, budget_s: float) -> Iterator[Outcome]:
    """The outcome of each case, in order; cases beyond the time budget are refused."""
    schedule = Schedule(budget_s, len(cases), most_s=MAX_S)
    longest = 0.0
    for case in cases:
        if schedule.left() <= longest:  # costs rise, so the next one takes about as long
            yield Outcome.of(provider, "refused", NOT_REACHED)
            continue
        started = time.perf_counter()
        yield _outcome(case, provider, schedule)
        schedule.done += 1
        longest = max(longest, time.perf_counter() - started)


def _outcome(case: Case, provider: Provider, schedule: Schedule) -> Outcome:
    """Check a result, then time the call."""
    started = time.perf_counter()
    try:
        outcomes, calls, _ = Session(Device(), [provider]).check(case)
        schedule.overhead_s += time.perf_counter() - started
        if provider in outcomes:
            return outcomes[provider]
        call, _, seconds = calls[provider]
        if seconds >= LONG_S:
            timing = Timing.of([seconds], 1)
        else:
            timing = interleave({provider: call}, schedule.share(), MAX_ROUNDS)[provider]
    except Exception as error:  # of one case; the others go on
        return Outcome.failed(provider, error)
    return Outcome.of(provider, "timed", timing=timing)


def added(record: Record, outcome: Outcome) -> Record:
    """`record` with the outcome of the NumPy backend."""
    return replace(record, outcomes=(*record.outcomes, outcome))
