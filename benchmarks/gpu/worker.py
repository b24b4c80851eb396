"""The work of a process that measures cases on a GPU, see `benchmarks.isolation`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from benchmarks.cases import Case, select
from benchmarks.isolation import EXIT_DEVICE_LOST, Say

if TYPE_CHECKING:  # these import NumPy, which must wait for the thread limits
    from benchmarks.gpu.session import Session
    from benchmarks.session import Schedule

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
    from benchmarks.gpu.session import Session
    from benchmarks.providers import installed
    from benchmarks.session import Schedule
    from gpucnn.backends.cuda.device.background import at_once

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
        say(**_machine(environment.describe(threads, present, subject), subject, on_gpu, used))
    if first and on_gpu:
        began = time.perf_counter()
        programs = compile_ahead("cuda", subject, present, cases, threads, lambda: say(alive=True))
        say(programs=programs, seconds=round(time.perf_counter() - began, 1))
    losses = {(case.id, who): note for case in cases[:1] for who, note in lost.items()}
    session = Session(subject, present, lambda provider, step: say(by=provider, step=step), losses)
    with at_once():  # no generic build serves, whatever GPUCNN_BUILDS says
        status = _measure(say, session, cases, Schedule(seconds, len(cases), started=started), rounds)
    if on_gpu and not status:
        say(clocks={"at the end": environment.clocks()})
    return status


def _machine(facts: dict[str, Any], device: Any, on_gpu: bool, used: float | None) -> dict[str, Any]:
    """The facts of the machine and its limits; those of the simulator are not worth measuring."""
    from benchmarks.gpu.environment import clocks
    from benchmarks.gpu.limits import measure_limits
    from benchmarks.gpu.sampling import overhead
    from benchmarks.timing import Limits

    limits, facts["clocks"], facts["device"]["event_overhead_s"] = Limits(1e9, "none", 1e9), {}, 0.0
    if on_gpu:
        before, limits = clocks(), measure_limits(device)
        facts["device"]["event_overhead_s"] = overhead(device, device.raw_launch(3)).median
        facts["clocks"] = {"at the start": before, "after the limits": clocks()}
    if used is not None:
        facts["device"]["utilization"] = used
    return {"environment": facts, "limits": asdict(limits)}


def _measure(say: Say, session: Session, cases: Sequence[Case], schedule: Schedule, rounds: int) -> int:
    """Measure the cases in order, until the time is over."""
    from benchmarks.gpu.sampling import DeviceLost

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
    return 0
