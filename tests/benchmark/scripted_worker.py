"""A task for `benchmarks.isolation` whose workers say what a test scripted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.isolation import Say, Task


def script(folder: Path, *scripts: tuple[list[dict[str, Any]], str], **options: Any) -> Task:
    """A task of which each worker in turn says some events, and then ends as Python code does."""
    Path(folder, "started").touch()
    environment = {"PYTHONPATH": str(Path(__file__).parent), **options.pop("environment", {})}
    return Task("scripted_worker", {"folder": str(folder), "scripts": scripts}, environment, **options)


def started(folder: Path) -> list[tuple[int, dict[str, str]]]:
    """The items that were done, and who was lost on the next one, when each worker was started."""
    return [tuple(json.loads(line)) for line in Path(folder, "started").read_text().splitlines()]


def work(say: Say, done: int, lost: dict[str, str], seconds: float, folder: str, scripts: list[Any]) -> int:
    """Say the events of the script whose turn it is."""
    events, code = scripts[len(started(Path(folder)))]
    with Path(folder, "started").open("a") as file:
        file.write(json.dumps([done, lost]) + "\n")
    for event in events:
        say(**event)
    exec(code, {"sys": sys, "seconds": seconds})
    return 0
