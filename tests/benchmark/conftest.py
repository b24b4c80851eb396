"""Fixtures of the benchmarks' tests: folders and a device of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_fakes import CPU_FACTS, CPU_LIMITS, Halves, layer_of, outcome
from gpu_fakes import ClockDevice

from benchmarks import environment, publishing, timing
from benchmarks.cases import Case
from benchmarks.gpu import sampling
from benchmarks.results import Outcome, Record, Run
from benchmarks.timing import Limits


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ClockDevice:
    """A device that is a clock, for `Halves` too."""
    device = ClockDevice()
    monkeypatch.setattr(sampling.time, "perf_counter", device.perf_counter)
    monkeypatch.setattr(Halves, "clock", device)
    return device


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Results go to folders of the test's, limits cost nothing, and the process keeps its threads."""
    monkeypatch.setattr(environment, "confine", lambda threads: None)
    monkeypatch.setattr(timing, "measure_limits", lambda *_: Limits(1e11, "NumPy", 1e10))
    monkeypatch.setattr(publishing, "RESULTS", tmp_path / "committed")
    monkeypatch.setattr(publishing, "LOCAL", tmp_path / "local")


@pytest.fixture
def small_run() -> Run:
    """A convolution with two peers, and a norm whose peer refused."""
    computing = Case(layer_of("VGG-16", "conv1_2"), "forward", 1)
    moving = Case(layer_of("ResNet-50", "bn1"), "training", 2)
    records = (
        Record.of(computing, [outcome("ours", 74, True), outcome("slow", 148), outcome("quick", 37)]),
        Record.of(moving, [outcome("ours", 2, True), Outcome("slow", False, "refused")]),
    )
    return Run("default", True, 1.0, CPU_FACTS, CPU_LIMITS, records)
