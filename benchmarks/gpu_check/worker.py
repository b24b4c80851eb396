"""``python -m benchmarks.gpu_check.worker``: one family of checks in this process, a line of JSON for each event.

The parent starts it, reads the lines, and where the process ended amid a check starts another for what is left.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.checks import Check, graphs, odd_shapes, repeatability
from benchmarks.gpu_check.cold_start import cold_start
from benchmarks.gpu_check.host_cost import host_cost
from benchmarks.gpu_check.large_arrays import large_arrays
from benchmarks.gpu_check.machine import Machine, NotRun, machine

FAMILIES: dict[str, Callable[[Machine], Iterable[Check]]] = {
    "repeatability": repeatability,
    "odd-shapes": odd_shapes,
    "large-arrays": large_arrays,
    "graphs": graphs,
    "cold-start": cold_start,
    "host-cost": host_cost,
}
EXIT_DEVICE_LOST = 3  # no check has a chance in this process any more


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check.worker", description=__doc__)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--backend", choices=("cuda", "simulator"), default="cuda")
    parser.add_argument("--records", type=Path, required=True, help="the file to append lines to")
    parser.add_argument("--skip", type=int, default=0, help="checks that were made before")
    parser.add_argument("--filter", default="", help="only checks whose name contains it")
    parser.add_argument("--guard", action="store_true", help="memory of its own for each array, for a sanitizer")
    options = parser.parse_args(arguments)
    subject = machine(options.backend, options.guard)
    chosen = [check for check in FAMILIES[options.family](subject) if options.filter in check.name]
    with options.records.open("a", encoding="utf-8") as file:

        def say(**event: Any) -> None:
            file.write(json.dumps(event) + "\n")
            file.flush()

        say(total=len(chosen))
        return run(chosen[options.skip :], subject, say)


def run(checks: Iterable[Check], subject: Machine, say: Callable[..., None]) -> int:
    """Make the checks; stop where the device does not answer any more."""
    for check in checks:
        say(begin=check.name)
        subject.recorder.drain()
        started = time.perf_counter()
        status, detail = outcome(check)
        seconds = round(time.perf_counter() - started, 3)
        say(check=check.name, status=status, detail=detail, seconds=seconds, kernels=subject.recorder.drain())
        print(f"{status:8} {check.name} {detail}".rstrip(), flush=True)
        if status == "failed":
            try:
                subject.synchronise()
            except Exception as error:
                print(f"the device does not answer any more: {error}", flush=True)
                return EXIT_DEVICE_LOST
    return 0


def outcome(check: Check) -> tuple[str, str]:
    """Its status and what there is to say."""
    try:
        return "passed", check.run()
    except NotRun as reason:
        return "not run", str(reason)
    except AssertionError as error:
        return "failed", str(error) or "AssertionError"
    except Exception as error:  # of any kind: the others are to be made all the same
        return "failed", f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main())
