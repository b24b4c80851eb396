"""The work of a process that makes one family of checks, see `benchmarks.isolation`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from benchmarks.gpu_check.checks import Check, graphs, odd_shapes, repeatability
from benchmarks.gpu_check.cold_start import cold_start
from benchmarks.gpu_check.host_cost import host_cost
from benchmarks.gpu_check.large_arrays import large_arrays
from benchmarks.gpu_check.machine import Machine, NotRun, machine
from benchmarks.isolation import EXIT_DEVICE_LOST, Say

FAMILIES: dict[str, Callable[[Machine], Iterable[Check]]] = {
    "repeatability": repeatability,
    "odd-shapes": odd_shapes,
    "large-arrays": large_arrays,
    "graphs": graphs,
    "cold-start": cold_start,
    "host-cost": host_cost,
}


def work(
    say: Say,
    done: int,
    lost: Mapping[str, str],
    seconds: float,
    *,
    family: str,
    backend: str,
    filter: str = "",
    guard: bool = False,
) -> int:
    """Make the checks that are left, of those whose name contains `filter`.

    `guard` keeps GPU arrays out of a common pool, where a sanitizer would not see reads past their ends.
    """
    subject = machine(backend, guard)
    chosen = [check for check in FAMILIES[family](subject) if filter in check.name]
    say(items=len(chosen))
    chosen = chosen[done:]
    if lost:
        say(result={"check": chosen.pop(0).name, "status": "failed", "detail": lost[""], "kernels": []})
    return run(chosen, subject, say)


def run(checks: Iterable[Check], subject: Machine, say: Say) -> int:
    """Make the checks; stop where the device does not answer any more."""
    for check in checks:
        print(check.name, flush=True)
        say(item=check.name)
        subject.recorder.drain()
        started = time.perf_counter()
        status, detail = outcome(check)
        seconds = round(time.perf_counter() - started, 3)
        kernels = subject.recorder.drain()
        say(result={"check": check.name, "status": status, "detail": detail, "seconds": seconds, "kernels": kernels})
        print(f"  {status} {detail}".rstrip(), flush=True)
        if status == "failed":
            try:
                subject.synchronise()
            except Exception as error:
                print(f"the device does not answer any more: {error}", flush=True)
                return EXIT_DEVICE_LOST
    return 0


def outcome(check: Check) -> tuple[str, str]:
    """Its status and remark."""
    try:
        return "passed", check.run()
    except NotRun as reason:
        return "not run", str(reason)
    except AssertionError as error:
        return "failed", str(error) or "AssertionError"
    except Exception as error:  # of any kind: the others are to be made all the same
        return "failed", f"{type(error).__name__}: {error}"
