"""The work of a process that measures cases on a GPU, see `benchmarks.isolation`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from benchmarks.cases import Case, select
from benchmarks.isolation import EXIT_DEVICE_LOST, Say

EXIT_NO_PROVIDER = 4
SIMULATED_BATCH = 1


def cases_of(tier: str, filters: Sequence[str], device: str) -> list[Case]:
    """The cases of a run, in its order; the simulator gets one image of each."""
    cases = select(tier, filters, "gpu")  # type: ignore[arg-type]
    if device == "simulator":
        cases = [replace(case, batch=SIMULATED_BATCH) for case in cases]
    return cases


def work(
    say: Say,
    done: int,
    lost: Mapping[str, str],
    seconds: float,
    *,
    device: str = "gpu",
    tier: str = "default",
    filters: Sequence[str] = (),
    providers: Sequence[str] = (),
    threads: int = 1,
    rounds: int = 40,
) -> int:
    """Set up, and then measure the cases, while there is time."""
    started = time.perf_counter()
    from benchmarks import environment as host
    from benchmarks.gpu import environment
    from benchmarks.gpu.ahead import compile_ahead
    from benchmarks.gpu.sampling import DeviceLost
    from benchmarks.gpu.session import Session
    from benchmarks.providers import installed
    from benchmarks.session import Schedule

    host.confine(threads)
    on_gpu, first = device == "gpu", not (done or lost)
    used = environment.utilization() if on_gpu else None  # by others, for nothing has run yet
    subject = environment.make_device(device)
    present, absent = installed(threads, providers, "gpu")
    say(providers={provider.name: provider.version() for provider in present}, absent=absent)
    if not present:
        return EXIT_NO_PROVIDER
    cases = cases_of(tier, filters, device)
    say(items=len(cases))
    cases = cases[done:]
    if first:
        facts = environment.describe(threads, present, subject)
        facts["clocks"] = {"at the start": environment.clocks()} if on_gpu else {}
        limits, facts["device"]["event_overhead_s"] = _limits(device, subject)
        if used is not None:
            facts["device"]["utilization"] = used
        if on_gpu:
            facts["clocks"]["after the limits"] = environment.clocks()
        say(environment=facts, limits=asdict(limits))
    if first and on_gpu:
        began = time.perf_counter()
        programs = compile_ahead("cuda", subject, present, cases, threads, lambda: say(alive=True))
        say(programs=programs, seconds=round(time.perf_counter() - began, 1))

    def step(provider: str, doing: str) -> None:
        say(by=provider, step=doing)

    session = Session(
        subject, present, step, {(case.id, who): note for case in cases[:1] for who, note in lost.items()}
    )
    schedule = Schedule(seconds, len(cases), started=started)
    for case in cases:
        if schedule.left() <= 0:
            say(unreached=[case.id for case in cases[schedule.done :]])
            break
        say(item=case.id)
        before = time.perf_counter()
        share = schedule.share()
        try:
            record = session.record(case, share, rounds)
        except DeviceLost as error:
            say(lost=error.provider, note=error.note)
            return EXIT_DEVICE_LOST
        schedule.done += 1
        schedule.overhead_s += max(0.0, time.perf_counter() - before - share)
        say(result=asdict(record))
    if on_gpu:
        say(clocks={"at the end": environment.clocks()})
    return 0


def _limits(kind: str, device: Any) -> tuple[Any, float]:
    """The device's limits, and the overhead of the events in each time; the simulator's are not worth measuring."""
    from benchmarks.gpu.limits import measure_limits
    from benchmarks.gpu.sampling import overhead
    from benchmarks.timing import Limits

    if kind == "simulator":
        return Limits(1e9, "none", 1e9), 0.0
    return measure_limits(device), overhead(device, device.raw_launch(3)).median
