"""Providers, outcomes and runs that the tests of the benchmarks share."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from gpu_fakes import ClockDevice
from rich.console import Console

from benchmarks import report
from benchmarks.cases import LAYERS, Case, select
from benchmarks.providers import Provider
from benchmarks.results import Outcome, Record, Run
from benchmarks.timing import Limits, Timing
from gpucnn.simulator import available

TRANSITION = "densenet-121/transition1/forward"
A, B = "mobilenetv2/dw_144/forward", "resnet-50/bn1/backward"
needs_simulator = pytest.mark.skipif(available() != "available", reason="the simulator needs a C++ compiler")


def layer_of(network: str, name: str) -> Any:
    return next(layer for layer in LAYERS if (layer.network, layer.name) == (network, name))


def case_of(identifier: str, batch: int = 2) -> Case:
    return replace(next(case for case in select("full", device="gpu") if case.id == identifier), batch=batch)


def is_small(case: Case) -> bool:
    sizes = np.prod(case.layer.input_shape(1)), np.prod(case.layer.output_shape(1))
    return bool(max(sizes) < 500_000 and case.flops / case.batch < 2e8)


@cache
def one_of_each_kind(batch: int = 11) -> tuple[Case, ...]:
    """A small case of each kind that a GPU's benchmark has."""
    kinds: dict[Any, Case] = {}
    for case in filter(is_small, select("default", device="gpu")):
        layer = case.layer
        kind = (case.family, case.operation, case.dtype, getattr(layer, "kind", ""), getattr(layer, "cast", False))
        kinds.setdefault(kind, replace(case, batch=batch))
    return tuple(kinds.values())


# --- Providers ----------------------------------------------------------------------------------------------------


class Halves(Provider):
    """Average pooling by 2x2 in NumPy: right, and all that it takes. `clock` is told how long a call takes."""

    name = "halves"
    requires = ("numpy",)
    ours = True
    repeats = 1  # of the computation in a call
    clock: ClockDevice | None = None

    def version(self) -> str:
        return "1"

    def refuses(self, case: Case) -> str | None:
        return None if case.id == TRANSITION else "not halves"

    def prepare(self, case: Case, arrays: Any) -> Any:
        n, c, h, w = arrays["input"].shape
        x = arrays["input"].reshape(n, c, h // 2, 2, w // 2, 2)
        halved = x.mean((3, 5), dtype=np.float32)

        def call() -> Any:
            if self.clock is not None:
                self.clock.queue(self.name, self.repeats * 1e-4)
                return halved
            for _ in range(self.repeats):
                result = x.mean((3, 5), dtype=np.float32)
            return result

        return call


class Slow(Halves):
    name = "slow peer"
    ours = False
    repeats = 4


class Wrong(Halves):
    """Right but for its last number."""

    name = "wrong peer"
    ours = False

    def results(self, returned: Any) -> list[Any]:
        wrong = returned.copy()
        wrong.flat[-1] += 1
        return [wrong]


class OutOfMemory(Halves):
    name = "out of memory"
    ours = False

    def prepare(self, case: Case, arrays: Any) -> Any:
        raise MemoryError("Out of memory allocating 3 bytes\n  (of 2)")


class FailsLater(Halves):
    """Fails in its third call: it was checked, and is being timed."""

    name = "fails later"
    ours = False

    def prepare(self, case: Case, arrays: Any) -> Any:
        call = super().prepare(case, arrays)
        left = iter(range(2))

        def failing() -> Any:
            if next(left, None) is None:
                self.fail()
            return call()

        return failing

    def fail(self) -> None:
        raise RuntimeError("launch failed")


class LosesTheDevice(FailsLater):
    name = "loses the device"

    def fail(self) -> None:
        assert self.clock is not None
        self.clock.lost = True
        raise RuntimeError("cudaErrorIllegalAddress")


# --- What was measured --------------------------------------------------------------------------------------------


def timing(seconds: float) -> Timing:
    return Timing(seconds, 0.9 * seconds, 1.1 * seconds, 5, 1)


def outcome(provider: str, milliseconds: float, ours: bool = False, peak: int | None = None) -> Outcome:
    return Outcome(provider, ours, "timed", timing(milliseconds / 1e3), peak_bytes=peak)


CPU: dict[str, Any] = {"kind": "cpu", "name": "Some CPU", "cpus": 2, "threads": 2, "load": 0.1}
CPU_FACTS = {"device": CPU, "versions": {"NumPy": "2"}, "date": "2026-01-01"}
CPU_LIMITS = Limits(100e9, "NumPy", 10e9)
GPU_FACTS: dict[str, Any] = {
    "device": {"kind": "gpu", "name": "NVIDIA Fake 100", "threads": 2, "l2_bytes": 50 << 20},
    "host": CPU,
    "versions": {"gpucnn": "1", "cuDNN": "9.10.2"},
    "date": "2026-01-01",
    "clocks": {"at the start": {"SM clock": "1980 MHz", "driver": "1.2"}},
}
GPU_LIMITS = Limits(50e12, "PyTorch", 3e12, {"tf32": 400e12, "float16": 750e12})


def measured(identifier: str, ours: float = 1e-4, peer: float = 2e-4, status: Any = "timed") -> Record:
    """A case as a GPU's run records it."""
    outcomes = [
        Outcome("gpucnn", True, "timed", timing(ours), "", timing(ours / 2), timing(7.9e-6)),
        Outcome("PyTorch", False, "timed", timing(peer), "", timing(peer), timing(2e-5)),
    ]
    if status != "timed":
        outcomes[0] = Outcome("gpucnn", True, status, note="so it was")
    return Record.of(case_of(identifier, 64), outcomes, 7.5e-6)


def on_host(seconds: float, status: Any = "timed", note: str = "") -> Outcome:
    return Outcome("gpucnn NumPy", True, status, timing(seconds) if status == "timed" else None, note)


def gpu_run(*records: Record) -> Run:
    return Run("default", True, 1.0, GPU_FACTS, GPU_LIMITS, records)


def printed(run: Run, width: int = 140) -> str:
    """What the terminal shows of a run."""
    console = Console(width=width, record=True, file=io.StringIO())
    report.print_report(run, console)
    return console.export_text()
