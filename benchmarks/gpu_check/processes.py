"""Other programs: running them with a time limit and a log, and reading what pytest and compute-sanitizer leave."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

ROOT = Path(__file__).parents[2]
GRACE_S = 20.0  # from the request to end until the process is killed: pytest writes its report in it
POLL_S = 0.2


class Ended(NamedTuple):
    """How a process ended; `code` is None where the limit ended it."""

    code: int | None
    seconds: float


Execute = Callable[[Sequence[str], Path, float, Mapping[str, str], Callable[[], None]], Ended]


def execute(
    command: Sequence[str], log: Path, limit_s: float, environment: Mapping[str, str], poll: Callable[[], None]
) -> Ended:
    """Run `command` in the repository for at most `limit_s` seconds, its output appended to `log`."""
    started = time.perf_counter()
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        try:
            while process.poll() is None and time.perf_counter() - started < limit_s:
                time.sleep(POLL_S)
                poll()
        except KeyboardInterrupt:
            end(process)
            raise
        if process.poll() is None:
            end(process)
            return Ended(None, time.perf_counter() - started)
    return Ended(process.returncode, time.perf_counter() - started)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process and its children to end, and make them."""
    _signal(process, signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    _signal(process, getattr(signal, "SIGKILL", signal.SIGTERM))
    process.wait()


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Within the block, SIGTERM does what Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        if sys.platform == "win32":
            process.terminate()
        else:
            os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):  # it has ended
        pass


# --- pytest -------------------------------------------------------------------------------------------------------


class Tests(NamedTuple):
    """What a JUnit report counts; errors are failures."""

    passed: int
    failed: int
    skipped: int
    failures: tuple[str, ...]  # "test: first line of the message"


def read_junit(text: str) -> Tests:
    """The counts of a JUnit report of pytest."""
    passed = failed = skipped = 0
    failures = []
    for case in ET.fromstring(text).iter("testcase"):
        trouble = next((child for child in case if child.tag in ("failure", "error")), None)
        if trouble is not None:
            failed += 1
            message = (trouble.get("message") or "").strip().splitlines() or [""]
            failures.append(f"{case.get('classname', '')}::{case.get('name', '')}: {message[0]}")
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return Tests(passed, failed, skipped, tuple(failures))


def without_host_name(junit: str) -> str:
    """A JUnit report that does not say where it was made."""
    return re.sub(r' hostname="[^"]*"', "", junit)


# --- compute-sanitizer --------------------------------------------------------------------------------------------

_ERRORS = re.compile(r"^========= ERROR SUMMARY: (\d+) errors?", re.MULTILINE)
_HAZARDS = re.compile(
    r"^========= RACECHECK SUMMARY: (\d+) hazards? displayed \((\d+) errors?, (\d+) warnings?\)", re.MULTILINE
)
_REPORT = re.compile(r"^========= ((?:Invalid|Error|Race|Uninitialized|Barrier|Program hit|Warning).*)$", re.MULTILINE)


class Sanitized(NamedTuple):
    """What compute-sanitizer found; `errors` is None where it did not come to a summary."""

    errors: int | None
    reports: tuple[str, ...]  # the first line of each kind of report


def read_sanitizer(text: str) -> Sanitized:
    """The summaries of one or several runs, added up: errors, and hazards of racecheck with its warnings."""
    counts = [int(match[1]) for match in _ERRORS.finditer(text)] + [int(match[1]) for match in _HAZARDS.finditer(text)]
    reports = tuple(dict.fromkeys(match[1] for match in _REPORT.finditer(text)))
    return Sanitized(sum(counts) if counts else None, reports)
