"""The parts of the check, what tells most first, and how each is run in processes of its own."""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.processes import Execute, read_junit, read_sanitizer, without_host_name
from benchmarks.gpu_check.report import FAILED, NOT_RUN, PASSED, SHOWN, Outcome, Report

MOST_RESTARTS = 8  # of a worker whose device was lost
MOST_FAILURES = 100  # after which the suite stops: the device is lost, or nothing works


@dataclass(frozen=True)
class Context:
    """What all parts need: where to run and to write, how, and whom to tell."""

    backend: str
    out: Path
    report: Report
    execute: Execute
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


# --- The suite ----------------------------------------------------------------------------------------------------


def run_suite(context: Context, part: Part, limit_s: float) -> Outcome:
    """Pytest over the generic builds; its JUnit report counts."""
    junit, log = context.out / "suite.xml", context.out / "suite.log"
    for earlier in (junit, log):
        earlier.unlink(missing_ok=True)
    command = [
        *(sys.executable, "-m", "pytest", f"--backend={context.backend}", "-q", f"--maxfail={MOST_FAILURES}"),
        *("-p", "no:cacheprovider", f"--junitxml={junit.resolve()}"),
        *(("-k", context.filter) if context.filter else ()),
    ]
    ended = context.execute(command, log, limit_s, {}, lambda: context.show(_percent(log)))
    outcome = Outcome(part.name, FAILED, seconds=ended.seconds)
    if not junit.exists():
        outcome.reason = f"pytest wrote no report, see {log.name}: {_last_line(log)}"
        return outcome
    text = without_host_name(junit.read_text(encoding="utf-8"))
    junit.write_text(text, encoding="utf-8")
    tests = read_junit(text)
    outcome.passed, outcome.failed, outcome.not_run = tests.passed, tests.failed, tests.skipped
    outcome.failures = [*tests.failures[:SHOWN]]
    if ended.code is None:
        outcome.reason = "the time limit ended it, what is counted was run"
    elif tests.failed:
        outcome.reason = f"see {log.name}"
    elif not tests.passed:
        outcome.reason = "no test ran"
    elif ended.code:
        outcome.reason = f"pytest ended with status {ended.code}, see {log.name}"
    else:
        outcome.status = PASSED
    return outcome


def _percent(log: Path) -> str:
    found = re.findall(r"\[ *(\d+)%\]", log.read_text(errors="replace") if log.exists() else "")
    return f"{found[-1]} %" if found else ""


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


# --- Checks in a worker -------------------------------------------------------------------------------------------


def run_checks(context: Context, part: Part, limit_s: float) -> Outcome:
    """The checks of the family that has the part's name."""
    return _checked(context, part.name, part.name, limit_s)


def _checked(
    context: Context,
    name: str,
    family: str,
    limit_s: float,
    prefix: Sequence[str] = (),
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    """Run workers until each check of `family` was made, or time is up."""
    records, log = context.out / f"{name}.jsonl", context.out / f"{name}.log"
    for earlier in (records, log):
        earlier.unlink(missing_ok=True)
    command = [
        *(*prefix, sys.executable, "-m", "benchmarks.gpu_check.worker", family, "--backend", context.backend),
        *("--records", str(records.resolve()), "--filter", context.filter, *options),
    ]
    started, reason = time.perf_counter(), ""
    for _ in range(MOST_RESTARTS + 1):
        done = len(_finished(_events(records)))
        left = limit_s - (time.perf_counter() - started)
        poll = lambda: context.show(_progress(_events(records)))  # noqa: E731
        ended = context.execute([*command, "--skip", str(done)], log, left, environment or {}, poll)
        events = _events(records)
        total = next((event["total"] for event in events if "total" in event), None)
        reason = _why_unfinished(ended.code, total, events, log)
        if ended.code is None or total is None or len(_finished(events)) >= total:
            break
        if len(_finished(events)) == done and not _interrupted_check(events):
            break  # it gets no further
        _give_up_on_interrupted(records, events, ended.code)
    return _summary(context.report, name, _events(records), reason, time.perf_counter() - started)


def _events(records: Path) -> list[dict[str, Any]]:
    lines = records.read_text(encoding="utf-8").split("\n") if records.exists() else []
    return [json.loads(line) for line in lines[:-1]]  # the last one may be half written


def _finished(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if "check" in event]


def _interrupted_check(events: Sequence[dict[str, Any]]) -> str | None:
    """The check amid which the process ended."""
    return events[-1].get("begin") if events else None


def _give_up_on_interrupted(records: Path, events: Sequence[dict[str, Any]], code: int | None) -> None:
    """Count the check amid which a worker ended as failed, so that the next one goes on behind it."""
    name = _interrupted_check(events)
    if name is not None:
        event = {"check": name, "status": FAILED, "detail": f"its process ended with status {code}", "kernels": []}
        with records.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")


def _why_unfinished(code: int | None, total: int | None, events: Sequence[dict[str, Any]], log: Path) -> str:
    done = len(_finished(events))
    if code is None:
        amid = _interrupted_check(events)
        return f"the time limit ended it{f' amid {amid}' if amid else ''}, {done} of {total or '?'} checks were made"
    if total is None:
        return f"its process ended with status {code}, see {log.name}: {_last_line(log)}"
    return f"{done} of {total} checks were made, see {log.name}" if done < total else ""


def _progress(events: Sequence[dict[str, Any]]) -> str:
    total = next((event["total"] for event in events if "total" in event), None)
    return "" if total is None else f"{len(_finished(events))} of {total}"


def _summary(report: Report, name: str, events: Sequence[dict[str, Any]], reason: str, seconds: float) -> Outcome:
    outcome = Outcome(name, PASSED, reason, seconds=seconds)
    reasons: dict[str, int] = {}
    for event in _finished(events):
        outcome.passed += event["status"] == PASSED
        outcome.failed += event["status"] == FAILED
        outcome.not_run += event["status"] == NOT_RUN
        if event["status"] == FAILED:
            outcome.failures.append(f"{event['check']}: {event['detail']}")
        if event["status"] == NOT_RUN:
            reasons[event["detail"]] = reasons.get(event["detail"], 0) + 1
        else:
            report.count(event["kernels"], event["status"] == PASSED)
    outcome.failures = outcome.failures[:SHOWN]
    outcome.notes = [f"{count} not run: {detail}" for detail, count in reasons.items()]
    if outcome.failed or reason:
        outcome.status = FAILED
    elif not outcome.passed:
        outcome.status, outcome.reason = NOT_RUN, "no check could be made" if outcome.not_run else "no check was chosen"
    return outcome


# --- compute-sanitizer --------------------------------------------------------------------------------------------

_TOOL_OPTIONS = {"memcheck": ("--padding", "512"), "racecheck": ("--racecheck-report", "all")}


def run_sanitizer(context: Context, part: Part, limit_s: float) -> Outcome:
    """Each primitive at odd sizes under the tool of the part's name: no wrong result, and no error reported."""
    assert context.sanitizer is not None
    options = ("--tool", part.name, "--target-processes", "all", *_TOOL_OPTIONS.get(part.name, ()))
    outcome = _checked(context, part.name, "odd-shapes", limit_s, (context.sanitizer, *options), ("--guard",))
    log = context.out / f"{part.name}.log"
    found = read_sanitizer(log.read_text(errors="replace"))
    if found.errors is None:
        outcome.reason = outcome.reason or f"compute-sanitizer came to no summary, see {log.name}: {_last_line(log)}"
        outcome.status = FAILED
    elif found.errors:
        said = f"{found.errors} errors reported, see {log.name}"
        outcome.reason = f"{outcome.reason}; {said}" if outcome.reason else said
        outcome.status = FAILED
        outcome.failures = [*outcome.failures, *found.reports][:SHOWN]
    else:
        outcome.notes.append("no error reported")
    return outcome


# --- A cold start -------------------------------------------------------------------------------------------------


def run_cold_start(context: Context, part: Part, limit_s: float) -> Outcome:
    """The same layers in two processes that share an empty cache: the second must not compile."""
    started = time.perf_counter()
    said = []
    with tempfile.TemporaryDirectory(prefix="gpucnn-check-") as cache:
        environment = {"GPUCNN_CACHE_DIR": cache}
        for _ in range(2):
            left = limit_s - (time.perf_counter() - started)
            outcome = _checked(context, part.name, part.name, left, environment=environment)
            if outcome.status != PASSED:
                return outcome
            said.append(_finished(_events(context.out / f"{part.name}.jsonl"))[0]["detail"])
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
