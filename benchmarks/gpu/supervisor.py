"""Workers and what they say: one is started, and another for the cases that are left where it was lost.

A worker is lost with its device, where a kernel reads out of bounds, or because it hangs. The implementation that ran
then is not run again on that case, and fails it; all the others are measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.processes import ROOT, end
from benchmarks.results import Record, record_from
from benchmarks.timing import Limits

SILENCE_S = 150.0  # without a word of a worker, after which it is ended; compilations take seconds
MOST_WORKERS = 8
POLL_S = 0.05

Event = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """What is to be measured, on what, and for how long."""

    device: str = "gpu"
    tier: str = "default"
    filters: Sequence[str] = ()
    providers: Sequence[str] = ()
    threads: int = 1
    seconds: float = 60.0
    rounds: int = 40

    def command(self, events: Path, done: int, lost: Sequence[Sequence[str]], seconds: float) -> list[str]:
        """What starts a worker for the cases after the first `done`."""
        options = {
            "events": events,
            "device": self.device,
            "tier": self.tier,
            "filters": json.dumps(list(self.filters)),
            "providers": json.dumps(list(self.providers)),
            "threads": self.threads,
            "seconds": round(seconds, 1),
            "rounds": self.rounds,
            "done": done,
            "lost": json.dumps(list(lost)),
        }
        named = [f"--{name}={value}" for name, value in options.items()]
        return [sys.executable, "-m", "benchmarks.gpu.worker", *named]


@dataclass
class Collected:
    """All that workers said: the records and what is known of the run. `trouble` says why there is no more."""

    records: list[Record] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    limits: Limits | None = None
    providers: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    unreached: list[str] = field(default_factory=list)
    trouble: str = ""

    def take(self, event: Event) -> None:
        """Keep what an event says."""
        if "record" in event:
            self.records.append(record_from(event["record"]))
        if "limits" in event:
            self.limits = Limits(**event["limits"])
            self.environment = event["environment"]
        if "providers" in event and not self.providers:
            self.providers, self.absent = event["providers"], event["absent"]
        if "clocks" in event:
            self.environment.setdefault("clocks", {}).update(event["clocks"])
        self.unreached += event.get("unreached", [])
        self.trouble = event.get("trouble", self.trouble)


Command = Callable[[Path, int, Sequence[Sequence[str]], float], Sequence[str]]


def follow(
    wanted: Wanted,
    environment: Mapping[str, str] | None = None,
    command: Command | None = None,
    silence_s: float = SILENCE_S,
) -> Iterator[Event]:
    """The events of all workers, as they come; leaving the loop ends the worker."""
    until = time.perf_counter() + wanted.seconds
    done = 0
    lost: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="gpucnn-benchmark-") as folder:
        for number in range(MOST_WORKERS):
            events, log = Path(folder, f"{number}.jsonl"), Path(folder, f"{number}.log")
            arguments = (command or wanted.command)(events, done, lost, until - time.perf_counter())
            case = provider = note = ""
            ended = ""
            for event in _events(arguments, events, log, environment or {}, silence_s):
                if "ended" in event:
                    ended = event["ended"]
                    continue
                if "case" in event:
                    case, provider = event["case"], ""
                provider = event.get("provider", provider)
                if "lost" in event:
                    provider, note = event["lost"], event["note"]
                    continue
                if "record" in event:
                    done += 1
                    case = provider = ""
                yield event
            if not ended:
                return
            said = note or ended
            if not (case and provider):
                yield {"trouble": f"a worker was lost: {said}"}
                return
            lost.append([case, provider, said])
            yield {"worker": number, "lost": provider, "case": case, "note": said}
        yield {"trouble": f"{MOST_WORKERS} workers were lost"}


def _events(
    command: Sequence[str], events: Path, log: Path, environment: Mapping[str, str], silence_s: float
) -> Iterator[Event]:
    """The events of one worker, and last how it ended, unless as it should."""
    events.touch()
    with log.open("wb") as output, events.open(encoding="utf-8") as lines:
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
            spoken = time.perf_counter()
            half = ""
            while True:
                over = process.poll() is not None  # before reading, so that nothing it said is missed
                for line in lines:
                    half += line
                    if half.endswith("\n"):
                        spoken = time.perf_counter()
                        yield json.loads(half)
                        half = ""
                if over:
                    break
                if time.perf_counter() - spoken > silence_s:
                    yield {"ended": f"it said nothing for {silence_s:.0f} s"}
                    return
                time.sleep(POLL_S)
            if process.returncode:
                yield {"ended": f"its process ended with status {process.returncode}{_last_line(log)}"}
        finally:
            if process.poll() is None:
                end(process)


def _last_line(log: Path) -> str:
    """What the worker's output ends with."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return f": {lines[-1].strip()[:300]}" if lines else ""


def chosen_gpu(index: int | None, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment in which a worker sees one GPU alone; `index` counts the visible ones, in nvidia-smi's order."""
    visible = [part.strip() for part in given.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    if index is None and not visible:
        return {}
    index = index or 0
    if visible and index >= len(visible):
        raise ValueError(f"--gpu is {index}, expected less than {len(visible)}, the number of visible GPUs")
    chosen = visible[index] if visible else str(index)
    return {"CUDA_VISIBLE_DEVICES": chosen, "CUDA_DEVICE_ORDER": given.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")}
