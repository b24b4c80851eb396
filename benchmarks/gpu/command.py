"""The GPU's part of ``python -m benchmarks``: reports of workers, shown and kept."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import publishing
from benchmarks.cases import Case
from benchmarks.gpu import fallback
from benchmarks.gpu.environment import chosen_gpu, slug
from benchmarks.gpu.worker import cases_of
from benchmarks.isolation import Event, Task, ended_by_sigterm, follow
from benchmarks.layers import Tier
from benchmarks.progress import Shown
from benchmarks.providers import kinds
from benchmarks.providers.gpucnn import GpucnnNumpy
from benchmarks.publishing import (
    EXIT_FAULT,
    EXIT_INTERRUPTED,
    check_publishable,
    file_stem,
    make_console,
    split_filters,
    usage,
)
from benchmarks.results import Record, Run, record_from
from benchmarks.timing import Limits

# Seconds for all but the report, which takes some fifteen: the default run ends within ten minutes.
BUDGET_S: dict[Tier, float] = {"quick": 60.0, "default": 540.0, "full": 1800.0}
HOST_SHARE = 0.2  # of them, for the NumPy backend on the host; it also gets what the GPU leaves
MAX_ROUNDS: dict[Tier, int] = {"quick": 15, "default": 40, "full": 80}


@dataclass
class Collected:
    """All reports of workers: the records and the facts of the run. `trouble` says why there are no more."""

    records: list[Record] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    limits: Limits | None = None
    providers: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    unreached: list[str] = field(default_factory=list)
    trouble: str = ""

    def take(self, event: Event) -> None:
        """Store the content of an event."""
        if "result" in event:
            self.records.append(record_from(event["result"]))
        if "limits" in event:
            self.limits = Limits(**event["limits"])
            self.environment = event["environment"]
        if "providers" in event and not self.providers:
            self.providers, self.absent = event["providers"], event["absent"]
        if "clocks" in event:
            self.environment.setdefault("clocks", {}).update(event["clocks"])
        self.unreached += event.get("unreached", [])
        self.trouble = event.get("trouble", self.trouble)


def subjects() -> list[str]:
    """The names of gpucnn's own implementations on a GPU."""
    return [kind.name for kind in kinds("gpu") if kind.ours]


def run_on_gpu(options: argparse.Namespace, device: str, threads: int, started: float) -> int:
    """Measure the GPU, then the NumPy backend; print, write; the exit status."""
    console = make_console(176)
    words, filters = split_filters(options.filters, "gpu")
    names = [*options.providers, *words]
    cases = cases_of(options.tier, filters, device)
    if not cases:
        return usage("no case matches; see --list", console)
    try:
        environment = chosen_gpu(options.gpu)
    except ValueError as error:
        return usage(str(error), console)
    whole = not (options.filters or options.providers or device == "simulator")

    def left() -> float:
        return BUDGET_S[options.tier] - (time.perf_counter() - started)

    def check() -> None:
        """Refuse, before measuring, runs that are known not to be publishable."""
        if options.publish:
            stem = file_stem(options.tier, slug(collected.environment["device"]["name"]), not whole, interrupted=False)
            peers = set(collected.providers) - set(subjects())
            check_publishable(whole and options.tier != "quick", collected.environment, peers, stem)

    seconds = left() * (1 - HOST_SHARE if fallback.is_wanted(names) else 1)
    wanted = {"device": device, "tier": options.tier, "filters": filters, "providers": names, "threads": threads}
    task = Task("benchmarks.gpu.worker", {**wanted, "rounds": MAX_ROUNDS[options.tier]}, environment)
    collected, interrupted = Collected(), False
    try:
        with ended_by_sigterm():
            collect(collected, task, seconds, [case.id for case in cases], console, check)
            if fallback.is_wanted(names) and collected.limits is not None:
                add_fallback(collected, cases, threads, left(), console)
    except KeyboardInterrupt:
        interrupted = True
    reached = f"{len(collected.records)} of {len(cases)}" if interrupted else ""
    return conclude(collected, options, whole, reached, started, console)


def conclude(
    collected: Collected, options: argparse.Namespace, whole: bool, reached: str, started: float, console: Console
) -> int:
    """Print and write the results of a `whole` run or of part of one, that of `reached` cases; the exit status."""
    if collected.trouble:
        console.print(collected.trouble, style="red", markup=False, highlight=False)
    if reached and not collected.records:
        return EXIT_INTERRUPTED
    if not collected.providers:
        return usage("nothing was measured: no such implementation is installed here", console)
    if not collected.records or collected.limits is None:
        return EXIT_FAULT
    broken = bool(reached or collected.trouble)
    run = Run(
        tier=options.tier,
        complete=whole and not broken,
        seconds=round(time.perf_counter() - started, 1),
        environment=collected.environment,
        limits=collected.limits,
        records=tuple(collected.records),
        unreached=tuple(collected.unreached),
    )
    stem = file_stem(options.tier, slug(run.environment["device"]["name"]), not whole, broken)
    status = publishing.conclude(run, options, stem, console, reached)
    return status or (EXIT_FAULT if collected.trouble else 0)


def collect(
    collected: Collected, task: Task, seconds: float, cases: list[str], console: Console, check: Callable[[], None]
) -> None:
    """Store and show all reports of workers; `check` may end the run once the machine and the peers are known."""
    with (
        tempfile.TemporaryDirectory(prefix="gpucnn-benchmark-") as folder,
        Shown(cases, subjects(), console) as shown,
        closing(follow(task, Path(folder, "events.jsonl"), seconds)) as events,
    ):
        for event in events:
            collected.take(event)
            if "result" in event and collected.limits is not None:
                shown.record(collected.records[-1], collected.limits)
            elif "absent" in event:
                for name, version in event["providers"].items():
                    shown.line(f"{name} {version}")
                for name, reason in event["absent"].items():
                    shown.line(f"without {name} ({reason})", "yellow")
            elif "environment" in event:
                check()
                shown.line(f"on {event['environment']['device']['name']}")
            elif "programs" in event:
                shown.line(f"{event['programs']} programs compiled in {event['seconds']:.0f} s")
            elif "worker" in event:
                shown.line(
                    f"{event['item']}: {event['lost'] or 'a worker'} took the device with it ({event['note']})", "red"
                )
            elif "unreached" in event:
                shown.line(f"{len(event['unreached'])} cases are not reached: the time is over", "yellow")


def add_fallback(collected: Collected, cases: Sequence[Case], threads: int, seconds: float, console: Console) -> None:
    """Time the NumPy backend on the collected cases for about `seconds`, while the GPU is idle."""
    assert collected.limits is not None
    places = {record.id: place for place, record in enumerate(collected.records)}
    chosen = fallback.in_order(cases, collected.records)
    if not chosen:
        return
    provider = GpucnnNumpy(threads)
    environment = collected.environment
    versions = {**environment["versions"], provider.name: provider.version()}
    collected.environment = {**environment, "versions": versions}
    missed = 0
    with Shown([case.id for case in chosen], subjects(), console) as shown:
        shown.line(f"{provider.name} on the host: {len(chosen)} cases, at most {max(0.0, seconds):.0f} s")
        for case, outcome in zip(chosen, fallback.outcomes(chosen, provider, seconds), strict=True):
            place = places[case.id]
            collected.records[place] = fallback.added(collected.records[place], outcome)
            if outcome.note == fallback.NOT_REACHED:
                missed += 1
            else:
                shown.record(collected.records[place], collected.limits)
        if missed:
            shown.line(f"{provider.name}: {missed} cases are not reached: the time is over", "yellow")
