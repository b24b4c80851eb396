"""The GPU's part of ``python -m benchmarks``: what `benchmarks.gpu.supervisor` says, shown and kept."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import closing

from rich.console import Console

from benchmarks.gpu.environment import slug
from benchmarks.gpu.supervisor import Collected, Wanted, chosen_gpu, follow
from benchmarks.gpu.worker import cases_of
from benchmarks.gpu_check.processes import ended_by_sigterm
from benchmarks.layers import Tier
from benchmarks.progress import Shown
from benchmarks.providers import kinds
from benchmarks.publishing import EXIT_FAULT, EXIT_INTERRUPTED, EXIT_USAGE, file_stem, keep, split_filters
from benchmarks.results import Run

# Seconds for all but the report, which takes some fifteen: the default run ends within ten minutes.
BUDGET_S: dict[Tier, float] = {"quick": 60.0, "default": 540.0, "full": 1800.0}
MAX_ROUNDS: dict[Tier, int] = {"quick": 15, "default": 40, "full": 80}


def run_on_gpu(options: argparse.Namespace, device: str, threads: int, started: float) -> int:
    """Measure, print, write; the exit status."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    words, filters = split_filters(options.filters, "gpu")
    cases = cases_of(options.tier, filters, device)
    if not cases:
        console.print("no case matches; see --list", style="red")
        return EXIT_USAGE
    try:
        environment = chosen_gpu(options.gpu)
    except ValueError as error:
        console.print(str(error), style="red")
        return EXIT_USAGE
    seconds = BUDGET_S[options.tier] - (time.perf_counter() - started)
    wanted = Wanted(
        device, options.tier, filters, [*options.providers, *words], threads, seconds, MAX_ROUNDS[options.tier]
    )
    collected, interrupted = Collected(), False
    try:
        with ended_by_sigterm():
            collect(collected, wanted, environment, [case.id for case in cases], console)
    except KeyboardInterrupt:
        interrupted = True
    if collected.trouble:
        console.print(collected.trouble, style="red", markup=False, highlight=False)
    if interrupted and not collected.records:
        return EXIT_INTERRUPTED
    if not collected.providers:
        console.print("nothing was measured: no such implementation is installed here", style="red")
        return EXIT_USAGE
    if not collected.records or collected.limits is None:
        return EXIT_FAULT
    filtered = bool(options.filters or options.providers)
    broken = interrupted or bool(collected.trouble)
    run = Run(
        tier=options.tier,
        complete=not (filtered or broken or collected.unreached),
        seconds=round(time.perf_counter() - started, 1),
        environment=collected.environment,
        limits=collected.limits,
        records=tuple(collected.records),
        unreached=tuple(collected.unreached),
    )
    stem = slug(run.environment["device"]["name"])
    keep(run, options, file_stem(options.tier, stem, filtered or device == "simulator", broken), console)
    if interrupted:
        console.print(f"interrupted after {len(run.records)} of {len(cases)} cases", style="red")
        return EXIT_INTERRUPTED
    return EXIT_FAULT if run.faults or collected.trouble else 0


def collect(
    collected: Collected, wanted: Wanted, environment: dict[str, str], cases: list[str], console: Console
) -> None:
    """Keep and show all that workers say."""
    subjects = [kind.name for kind in kinds("gpu") if kind.ours]
    with Shown(cases, subjects, console) as shown, closing(follow(wanted, environment)) as events:
        for event in events:
            collected.take(event)
            if "record" in event and collected.limits is not None:
                shown.record(collected.records[-1], collected.limits)
            elif "absent" in event and not event.get("worker"):
                for name, version in event["providers"].items():
                    shown.line(f"{name} {version}")
                for name, reason in event["absent"].items():
                    shown.line(f"without {name} ({reason})", "yellow")
            elif "environment" in event:
                shown.line(f"on {event['environment']['device']['name']}")
            elif "programs" in event:
                shown.line(f"{event['programs']} programs compiled in {event['seconds']:.0f} s")
            elif "worker" in event:
                shown.line(f"{event['case']}: {event['lost']} took the device with it ({event['note']})", "red")
            elif "unreached" in event:
                shown.line(f"{len(event['unreached'])} cases are not reached: the time is over", "yellow")
