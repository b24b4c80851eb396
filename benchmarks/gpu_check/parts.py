"""The parts of the check, the most telling first, each run in separate processes."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu_check.report import FAILED, NOT_RUN, PASSED, SHOWN, Outcome, Report
from benchmarks.isolation import Event, Task, follow

WORKER = "benchmarks.gpu_check.worker"
SILENCE_S = 300.0  # that a check may take: compute-sanitizer slows it down many times
Follow = Callable[[Task, Path, float, float, float], Generator[Event]]


@dataclass(frozen=True)
class Context:
    """The context of all parts: backend, folder, options, and the receiver of progress."""

    backend: str
    out: Path
    report: Report
    follow: Follow = follow
    sanitizer: str | None = None
    filter: str = ""
    show: Callable[[str], None] = lambda text: None


@dataclass(frozen=True)
class Part:
    """`share` is its part of the time limit, of the shares of all parts that are run."""

    name: str
    title: str
    share: float
    run: Callable[[Context, Part, float], Outcome]
    default: bool = True


# --- Checks in workers --------------------------------------------------------------------------------------------


def run_suite(context: Context, part: Part, limit_s: float) -> Outcome:
    """Pytest over the generic builds, each test a check."""
    return _run(context, part.name, limit_s, Task("benchmarks.gpu_check.suite"))[0]


def run_checks(context: Context, part: Part, limit_s: float) -> Outcome:
    """The checks of the family that has the part's name."""
    return _run(context, part.name, limit_s, Task(WORKER, {"family": part.name}))[0]


def _run(context: Context, name: str, limit_s: float, task: Task) -> tuple[Outcome, list[dict[str, Any]]]:
    """Run workers until each check was made, or time is up; the outcome, and the results of the checks."""
    task = replace(task, options={"backend": context.backend, "filter": context.filter, **task.options})
    started = time.perf_counter()
    results, total, reason = [], None, ""
    with closing(context.follow(task, context.out / f"{name}.jsonl", limit_s, limit_s, SILENCE_S)) as events:
        for event in events:
            total = event.get("items", total)
            reason = event.get("trouble", reason)
            if "result" in event:
                results.append(event["result"])
            if total is not None:
                context.show(f"{len(results)} of {total}")
    if reason or total is None or len(results) < total:
        made = f"{len(results)} of {'?' if total is None else total} checks were made, see {name}.log"
        reason = f"{reason}; {made}" if reason else made
    outcome = Outcome(name, PASSED, reason, seconds=time.perf_counter() - started)
    _count(outcome, results, context.report)
    return outcome, results


def _count(outcome: Outcome, results: Sequence[dict[str, Any]], report: Report) -> None:
    """Count the results of a part, and the kernels that they name."""
    reasons: dict[str, int] = {}
    for result in results:
        outcome.passed += result["status"] == PASSED
        outcome.failed += result["status"] == FAILED
        outcome.not_run += result["status"] == NOT_RUN
        if result["status"] == FAILED:
            outcome.failures.append(f"{result['check']}: {result['detail']}")
        if result["status"] == NOT_RUN:
            reasons[result["detail"]] = reasons.get(result["detail"], 0) + 1
        else:
            report.count(result.get("kernels", ()), result["status"] == PASSED)
    outcome.failures = outcome.failures[:SHOWN]
    outcome.notes = [f"{count} not run: {detail}" for detail, count in reasons.items()][:SHOWN]
    if outcome.failed or outcome.reason:
        outcome.status = FAILED
    elif not outcome.passed:
        outcome.status, outcome.reason = NOT_RUN, "no check could be made" if outcome.not_run else "no check was chosen"


# --- compute-sanitizer --------------------------------------------------------------------------------------------

_TOOL_OPTIONS = {"memcheck": ("--padding", "512"), "racecheck": ("--racecheck-report", "all")}
_ERRORS = re.compile(r"^========= ERROR SUMMARY: (\d+) errors?", re.MULTILINE)
_HAZARDS = re.compile(
    r"^========= RACECHECK SUMMARY: (\d+) hazards? displayed \((\d+) errors?, (\d+) warnings?\)", re.MULTILINE
)
_REPORT = re.compile(r"^========= ((?:Invalid|Error|Race|Uninitialized|Barrier|Program hit|Warning).*)$", re.MULTILINE)


class Sanitized(NamedTuple):
    """The findings of compute-sanitizer; `errors` is None where it did not come to a summary."""

    errors: int | None
    reports: tuple[str, ...]  # the first line of each kind of report


def read_sanitizer(text: str) -> Sanitized:
    """The summaries of one or several runs, added up: errors, and hazards of racecheck with its warnings."""
    counts = [int(match[1]) for match in _ERRORS.finditer(text)] + [int(match[1]) for match in _HAZARDS.finditer(text)]
    reports = tuple(dict.fromkeys(match[1] for match in _REPORT.finditer(text)))
    return Sanitized(sum(counts) if counts else None, reports)


def run_sanitizer(context: Context, part: Part, limit_s: float) -> Outcome:
    """Each primitive at odd sizes under the tool of the part's name: no wrong result, and no error reported."""
    assert context.sanitizer is not None
    prefix = (context.sanitizer, "--tool", part.name, "--target-processes", "all", *_TOOL_OPTIONS.get(part.name, ()))
    task = Task(WORKER, {"family": "odd-shapes", "guard": True}, prefix=prefix)
    outcome, _ = _run(context, part.name, limit_s, task)
    log = context.out / f"{part.name}.log"
    text = log.read_text(errors="replace").strip()
    found = read_sanitizer(text)
    if found.errors == 0:
        outcome.notes.append("no error reported")
        return outcome
    outcome.status = FAILED
    if found.errors is None:
        last = text.rpartition("\n")[2] or "it said nothing"
        outcome.reason = outcome.reason or f"compute-sanitizer came to no summary, see {log.name}: {last}"
    else:
        said = f"{found.errors} errors reported, see {log.name}"
        outcome.reason = f"{outcome.reason}; {said}" if outcome.reason else said
        outcome.failures = [*outcome.failures, *found.reports][:SHOWN]
    return outcome


# --- A cold start -------------------------------------------------------------------------------------------------


def run_cold_start(context: Context, part: Part, limit_s: float) -> Outcome:
    """The same layers in two processes that share an empty cache: the second must not compile."""
    started = time.perf_counter()
    said = []
    with tempfile.TemporaryDirectory(prefix="gpucnn-check-") as cache:
        task = Task(WORKER, {"family": part.name}, {"GPUCNN_CACHE_DIR": cache})
        for _ in range(2):
            outcome, results = _run(context, part.name, limit_s - (time.perf_counter() - started), task)
            if outcome.status != PASSED:
                return outcome
            said.append(results[0]["detail"])
    outcome.seconds = time.perf_counter() - started
    outcome.notes = [f"cold {said[0]}", f"warm {said[1]}"]
    if not said[1].endswith(" 0 compiled"):
        outcome.status, outcome.reason = FAILED, "the second process compiled again"
    return outcome


PARTS = (
    Part("suite", "the test suite on the GPU, generic builds", 7.5, run_suite),
    Part("repeatability", "layers: three runs and both builds bit for bit, against NumPy", 6, run_checks),
    Part("large-arrays", "both sides of 2**31 elements", 2, run_checks),
    Part("memcheck", "compute-sanitizer: reads and writes out of bounds", 4, run_sanitizer),
    Part("racecheck", "compute-sanitizer: races on shared memory", 2, run_sanitizer),
    Part("synccheck", "compute-sanitizer: barriers that not all threads reach", 1.5, run_sanitizer),
    Part("graphs", "captured CUDA graphs replay to the same bits", 0.5, run_checks),
    Part("host-cost", "what a call costs on the host, beside a bare launch", 0.5, run_checks),
    Part("cold-start", "compiling a ResNet-50, and a second process that compiles nothing", 1.5, run_cold_start),
    Part("initcheck", "compute-sanitizer: reads of memory that was never written", 2, run_sanitizer, default=False),
)
