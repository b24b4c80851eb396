"""``python -m benchmarks.gpu.worker``: measures cases in this process, a line of JSON for each event.

A kernel that reads out of bounds leaves its process without a GPU, and one that hangs ends with its process: the
supervisor reads the lines, and starts another worker for the cases that are left.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, select
from benchmarks.layers import TIERS

EXIT_DEVICE_LOST = 3
EXIT_NO_PROVIDER = 4
SIMULATED_BATCH = 1

Say = Callable[..., None]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.worker", description=__doc__)
    parser.add_argument("--events", type=Path, required=True, help="the file to append lines to")
    parser.add_argument("--device", choices=("gpu", "simulator"), default="gpu")
    parser.add_argument("--tier", choices=TIERS, default="default")
    parser.add_argument("--filters", type=json.loads, default=[], help="a JSON list")
    parser.add_argument("--providers", type=json.loads, default=[], help="a JSON list of words")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, required=True, help="for the cases, from now on")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--done", type=int, default=0, help="cases that were measured before")
    parser.add_argument("--lost", type=json.loads, default=[], help="a JSON list of [case, provider, note]")
    return parser.parse_args(arguments)


def cases_of(tier: str, filters: Sequence[str], device: str) -> list[Case]:
    """The cases of a run, in its order; the simulator gets one image of each."""
    cases = select(tier, filters, "gpu")  # type: ignore[arg-type]
    if device == "simulator":
        cases = [replace(case, batch=SIMULATED_BATCH) for case in cases]
    return cases


def main(arguments: Sequence[str] | None = None) -> int:
    started = time.perf_counter()
    options = parse(arguments)
    with options.events.open("a", encoding="utf-8") as file:

        def say(**event: Any) -> None:
            file.write(json.dumps(event) + "\n")
            file.flush()

        return measure(options, say, started)


def measure(options: argparse.Namespace, say: Say, started: float) -> int:
    """Set up, and then the cases, while there is time."""
    from benchmarks import environment as host
    from benchmarks.gpu import environment
    from benchmarks.gpu.ahead import compile_ahead
    from benchmarks.gpu.sampling import DeviceLost
    from benchmarks.gpu.session import Session
    from benchmarks.providers import installed
    from benchmarks.session import Schedule

    host.confine(options.threads)
    used = environment.utilization() if options.device == "gpu" else None  # by others, for nothing has run yet
    device = environment.make_device(options.device)
    providers, absent = installed(options.threads, options.providers, "gpu")
    say(providers={provider.name: provider.version() for provider in providers}, absent=absent)
    if not providers:
        return EXIT_NO_PROVIDER
    if not options.done and not options.lost:
        facts = environment.describe(options.threads, providers, device)
        facts["clocks"] = {"at the start": environment.clocks()} if options.device == "gpu" else {}
        limits, empty_s = _limits(options.device, device)
        facts["device"]["event_overhead_s"] = empty_s
        if used is not None:
            facts["device"]["utilization"] = used
        if options.device == "gpu":
            facts["clocks"]["after the limits"] = environment.clocks()
        say(environment=facts, limits=asdict(limits))

    cases = cases_of(options.tier, options.filters, options.device)[options.done :]
    if options.device == "gpu" and not options.lost:
        began = time.perf_counter()
        programs = compile_ahead("cuda", device, providers, cases, options.threads, lambda: say(alive=True))
        say(programs=programs, seconds=round(time.perf_counter() - began, 1))

    def step(provider: str, doing: str) -> None:
        say(provider=provider, step=doing)

    lost = {(case, provider): note for case, provider, note in options.lost}
    session = Session(device, providers, step, lost)
    schedule = Schedule(options.seconds, len(cases), started=started)
    for case in cases:
        if schedule.left() <= 0:
            say(unreached=[case.id for case in cases[schedule.done :]])
            break
        say(case=case.id)
        before = time.perf_counter()
        share = schedule.share()
        try:
            record = session.record(case, share, options.rounds)
        except DeviceLost as error:
            say(lost=error.provider, note=error.note)
            return EXIT_DEVICE_LOST
        schedule.done += 1
        schedule.overhead_s += max(0.0, time.perf_counter() - before - share)
        say(record=asdict(record))
    if options.device == "gpu":
        say(clocks={"at the end": environment.clocks()})
    return 0


def _limits(kind: str, device: Any) -> tuple[Any, float]:
    """The device's limits, and what the events add to each time; the simulator's are not worth measuring."""
    from benchmarks.gpu.limits import measure_limits
    from benchmarks.gpu.sampling import overhead
    from benchmarks.timing import Limits

    if kind == "simulator":
        return Limits(1e9, "none", 1e9), 0.0
    return measure_limits(device), overhead(device, device.raw_launch(3)).median


if __name__ == "__main__":
    sys.exit(main())
