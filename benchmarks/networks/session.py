"""A run through the networks: for each case prepare, check and time every implementation, within a time budget."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

from benchmarks.layers import Tier
from benchmarks.networks.cases import NetworkCase
from benchmarks.networks.checking import find_difference
from benchmarks.networks.memory import growth_during, held_bytes
from benchmarks.networks.runners import RUNNERS, GpucnnNetwork, Results, Runner
from benchmarks.networks.subject import Subject, make_subject
from benchmarks.providers import Call, Provider
from benchmarks.providers.gpucnn import GpucnnNumpy
from benchmarks.results import Outcome, Record
from benchmarks.session import Schedule
from benchmarks.timing import interleave

BUDGET_S: dict[Tier, float] = {"quick": 5.0, "default": 150.0, "full": 400.0}
MAX_S = 40.0  # for the timing of one case
PATIENCE_S = 60.0  # training steps of seconds still get the least number of rounds


@dataclass(frozen=True)
class Ready:
    """A call that was made once, and the memory that the process gained since its implementation got the network."""

    call: Call
    held_bytes: int | None


def run(
    cases: Sequence[NetworkCase], providers: Sequence[Provider], budget_s: float, max_rounds: int
) -> Iterator[Record]:
    """Measure the cases one by one; the caller may stop between two of them.

    Providers without a runner are left out; there are no records if none has one.
    """
    runners = {each: RUNNERS[type(each)](each.threads) for each in providers if type(each) in RUNNERS}
    if not runners:
        return
    schedule = Schedule(budget_s, len(cases), most_s=MAX_S)
    for network, operations in groupby(cases, key=lambda case: case.network):
        subject = make_subject(network)
        multiply_adds = subject.multiply_adds()
        for case in operations:
            outcomes = measured(case, subject, runners, schedule, max_rounds)
            yield record_of(case, subject, multiply_adds, outcomes)


def measured(
    case: NetworkCase, subject: Subject, runners: Mapping[Provider, Runner], schedule: Schedule, max_rounds: int
) -> list[Outcome]:
    """Check and time all implementations; their memory is freed before the next case."""
    start = time.perf_counter()
    outcomes, ready = check(case, subject, runners)
    if case.operation == "training_step":
        for provider, each in ready.items():
            outcomes[provider] = provider.within(partial(with_peak, outcomes[provider], each))
    schedule.overhead_s += time.perf_counter() - start
    calls = {provider: each.call for provider, each in ready.items()}
    timings = interleave(calls, schedule.share(), max_rounds, PATIENCE_S) if calls else {}
    schedule.done += 1
    return [replace(outcome, timing=timings.get(provider)) for provider, outcome in outcomes.items()]


def check(
    case: NetworkCase, subject: Subject, runners: Mapping[Provider, Runner]
) -> tuple[dict[Provider, Outcome], dict[Provider, Ready]]:
    """The outcomes without timings, and the calls of the implementations that may be timed.

    Results are compared with those of the first peer, or against gpucnn's in float64 where only one implementation ran.
    """
    outcomes: dict[Provider, Outcome] = {}
    ready: dict[Provider, Ready] = {}
    results: dict[Provider, Results] = {}
    for provider, runner in runners.items():
        outcomes[provider] = Outcome.of(provider, "timed")
        reason = runner.refuses(case.operation)
        if reason:
            outcomes[provider] = Outcome.of(provider, "refused", reason)
            continue
        try:
            ready[provider], results[provider] = provider.within(partial(first_call, runner, subject, case.operation))
        except Exception as error:  # one implementation's failure must not end the run
            outcomes[provider] = Outcome.failed(provider, error)
    peers = [provider for provider in results if not provider.ours]
    if len(results) > 1 and peers:
        name, expected = peers[0].name, results[peers[0]]
    elif results:
        alone = GpucnnNumpy(next(iter(results)).threads)
        first = partial(first_call, GpucnnNetwork(alone.threads), subject.in_float64(), case.operation)
        name, expected = "gpucnn in float64", alone.within(first)[1]
    for provider, actual in results.items():
        difference = find_difference(actual, expected, subject.state)
        if difference is not None:
            outcomes[provider] = Outcome.of(provider, "wrong", f"{difference} (compared with {name})")
            del ready[provider]
    return outcomes, ready


def first_call(runner: Runner, subject: Subject, operation: str) -> tuple[Ready, Results]:
    """Prepare and call once."""
    before = held_bytes()
    prepared = runner.prepare(subject, operation)
    results = prepared.results(prepared.call())
    after = held_bytes()
    return Ready(prepared.call, None if before is None or after is None else after - before), results


def with_peak(outcome: Outcome, ready: Ready) -> Outcome:
    """The outcome with the peak of one more step: the memory held between steps plus that of the step."""
    growth = growth_during(ready.call)
    peak = None if growth is None or ready.held_bytes is None else ready.held_bytes + growth
    return replace(outcome, peak_bytes=peak)


def record_of(case: NetworkCase, subject: Subject, multiply_adds: int, outcomes: Sequence[Outcome]) -> Record:
    """The record of a case.

    A training step has three products of the size of the forward's. The least bytes are the images and the weights,
    which a step reads and writes, and so the momentum.
    """
    training = case.operation == "training_step"
    weights = subject.parameters * (4 if training else 1)
    return Record(
        id=case.id,
        network=case.network.name,
        layer=case.layer,
        operation=case.operation,
        family=case.family,
        shapes=case.shapes,
        flops=2 * multiply_adds * (3 if training else 1),
        least_bytes=subject.images.itemsize * (subject.images.size + weights),
        outcomes=tuple(outcomes),
    )
