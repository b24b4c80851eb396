"""Work in processes that may be lost to a crash or a hang, or together with their GPU.

A kernel that reads out of bounds leaves its process without a GPU, and one that hangs ends with its process. So items,
such as the cases of a benchmark or the checks of a family, are worked through in a worker process, in order. It appends
a line of JSON to a file for each event, and `follow` reads the lines, starts another worker for the items that are left
where one was lost, and says who was lost:

==========================  =======================================================================
`items`                     how many items there are
`item`                      the name of the item that is begun
`by`                        who of several is about to run on it, such as an implementation
`result`                    what the item came to: it is done
`lost`, `note`              who lost the device, and the error; the worker ends after it
anything else               whatever the task has to say, which also shows that the worker is alive
==========================  =======================================================================

``python -m benchmarks.isolation MODULE FILE JSON`` is a worker: it calls the module's `work`.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).parents[1]
SILENCE_S = 150.0  # without a word of a worker, after which it is ended; compilations take seconds
GRACE_S = 20.0  # from the request to end until the process is killed
MAX_WORKERS = 8
POLL_S = 0.05
EXIT_DEVICE_LOST = 3  # no further item can run in this process

Event = dict[str, Any]
Say = Callable[..., None]


@dataclass(frozen=True)
class Task:
    """Work for workers: `module` has ``work(say, done, lost, seconds, **options)``, which returns an exit status.

    The first `done` items have results already. `lost` says of the next one who was lost on it, and how: it is not to
    be run by these again. Where no one is named, the name is empty. `seconds` are left.
    """

    module: str
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    prefix: Sequence[str] = ()  # of the command, such as compute-sanitizer

    def command(self, events: Path, done: int, lost: Mapping[str, str], seconds: float) -> list[str]:
        """The command that starts a worker."""
        given = {"done": done, "lost": lost, "seconds": round(seconds, 1), **self.options}
        worker = (sys.executable, "-m", "benchmarks.isolation", self.module, str(events.resolve()), json.dumps(given))
        return [*self.prefix, *worker]


def main(arguments: Sequence[str]) -> int:
    """Do a task's work in this process."""
    module, events, given = arguments
    with open(events, "a", encoding="utf-8") as file:

        def say(**event: Any) -> None:
            file.write(json.dumps(event) + "\n")
            file.flush()

        status: int = import_module(module).work(say, **json.loads(given))
        return status


def follow(
    task: Task, events: Path, seconds: float, limit_s: float = math.inf, silence_s: float = SILENCE_S
) -> Generator[Event]:
    """Yield the events of all workers, as they come; closing the generator ends the worker.

    After a loss there is ``{"worker": number, "item": name, "lost": who, "note": why}``, and last, where items are left
    that no worker will get to, ``{"trouble": why}``.

    Parameters
    ----------
    task : Task
        The work.
    events : Path
        The file that workers append their lines to. Their output goes to the log of the same name. Both are emptied.
    seconds : float
        The time that workers are told to keep to.
    limit_s : float
        The time after which the worker is ended, whatever it does.
    silence_s : float
        The time that a worker may say nothing.
    """
    started = time.perf_counter()
    log = events.with_suffix(".log")
    for file in (events, log):
        file.write_bytes(b"")
    done, lost = 0, dict[str, str]()
    with events.open(encoding="utf-8") as lines:
        for number in range(MAX_WORKERS):
            worker = _Worker()
            command = task.command(events, done, lost, started + seconds - time.perf_counter())
            try:
                with running(command, log, task.environment) as process:
                    ended = yield from worker.events(process, lines, log, started + limit_s, silence_s)
            except TimeoutError:
                yield {"trouble": f"the time limit ended it{f' amid {worker.item}' if worker.item else ''}"}
                return
            done += worker.results
            if not ended or done == worker.items:
                return
            if worker.results:
                lost = {}
            if worker.item:
                note = lost[worker.by] = worker.note or ended
                yield {"worker": number, "item": worker.item, "lost": worker.by, "note": note}
            elif not worker.results:
                yield {"trouble": f"a worker was lost: {ended}"}
                return
        yield {"trouble": f"{MAX_WORKERS} workers were lost"}


@dataclass
class _Worker:
    """The state of a worker by its events: the results, the current item, and who runs or was lost."""

    items: int | None = None
    results: int = 0
    item: str = ""
    by: str = ""
    note: str = ""

    def take(self, event: Event) -> None:
        self.items = event.get("items", self.items)
        if "item" in event:
            self.item, self.by = event["item"], ""
        self.by = event.get("by", self.by)
        if "lost" in event:
            self.by, self.note = event["lost"], event["note"]
        if "result" in event:
            self.results += 1
            self.item = self.by = ""

    def events(
        self, process: subprocess.Popen[bytes], lines: TextIO, log: Path, until: float, silence_s: float
    ) -> Generator[Event, None, str]:
        """Yield the worker's events; return the reason why it ended, empty where it finished its work."""
        printed = log.stat().st_size
        spoken = time.perf_counter()
        half = ""
        while True:
            over = process.poll() is not None  # before reading, so that nothing it said is missed
            for line in lines:
                half += line
                if half.endswith("\n"):
                    event, half = json.loads(half), ""
                    spoken = time.perf_counter()
                    self.take(event)
                    if "lost" not in event:
                        yield event
            if over:
                break
            if time.perf_counter() > until:
                raise TimeoutError
            if time.perf_counter() - spoken > silence_s:
                return f"it said nothing for {silence_s:.0f} s"
            time.sleep(POLL_S)
        if not process.returncode:
            return ""
        last = log.read_bytes()[printed:].decode(errors="replace").strip().rpartition("\n")[2].strip()
        return f"its process ended with status {process.returncode}{f': {last[:300]}' if last else ''}"


@contextmanager
def running(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in the repository, its output appended to `log`; leaving the block ends it and its children."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            _signal(process, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            _signal(process, getattr(signal, "SIGKILL", signal.SIGTERM))
            process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # it has ended
        if sys.platform == "win32":
            process.terminate()
        else:
            os.killpg(process.pid, number)


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
