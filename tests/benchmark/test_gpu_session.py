"""A GPU's session and its workers, and the NumPy backend beside it: checks, failures, lost devices."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from bench_fakes import (
    TRANSITION,
    A,
    B,
    FailsLater,
    Halves,
    LosesTheDevice,
    OutOfMemory,
    Slow,
    Wrong,
    case_of,
    measured,
    on_host,
)
from gpu_fakes import ClockDevice

from benchmarks import __main__ as command
from benchmarks.cases import select
from benchmarks.gpu import environment, fallback, worker
from benchmarks.gpu.sampling import DeviceLost
from benchmarks.gpu.session import Session
from benchmarks.isolation import EXIT_DEVICE_LOST
from benchmarks.providers import Provider
from benchmarks.results import record_from


def session_of(clock: ClockDevice, *kinds: type[Provider], **options: Any) -> Session:
    return Session(clock, [kind(1) for kind in kinds], **options)


def test_a_session_checks_and_times(clock: ClockDevice) -> None:
    record = session_of(clock, Halves, Slow, Wrong).record(case_of(TRANSITION), 0.1, 6)
    assert [outcome.status for outcome in record.outcomes] == ["timed", "timed", "wrong"]
    ours, slow, wrong = record.outcomes
    assert ours.timing is not None
    assert slow.timing is not None
    assert (ours.timing.median, slow.timing.median) == (pytest.approx(1e-4), pytest.approx(4e-4))
    assert ours.warm is not None
    assert ours.host is not None
    assert ours.host.median == pytest.approx(1e-6)
    assert (wrong.timing, wrong.warm, wrong.host) == (None, None, None)
    assert "expected" in wrong.note
    assert record.raw_launch_s == pytest.approx(3e-6)
    assert "raw 2" in clock.log  # the input and the output
    assert clock.released == 1
    assert clock.spoiled == [4 * 2 * 128 * 28 * 28] * 3  # memory held NaN before the checked calls


def test_one_failure_does_not_end_a_case(clock: ClockDevice) -> None:
    said: list[tuple[str, str]] = []
    session = session_of(clock, Halves, OutOfMemory, FailsLater, say=lambda *event: said.append(event))
    record = session.record(case_of(TRANSITION), 0.1, 6)
    assert [outcome.status for outcome in record.outcomes] == ["timed", "failed", "failed"]
    assert record.outcomes[1].note == "MemoryError: Out of memory allocating 3 bytes (of 2)"
    assert record.outcomes[2].note == "RuntimeError: launch failed"
    assert said[:3] == [("halves", "check"), ("out of memory", "check"), ("fails later", "check")]
    assert ("halves", "time") in said


@pytest.mark.thorough
def test_a_lost_device_says_who_had_it(clock: ClockDevice) -> None:
    session = session_of(clock, Halves, LosesTheDevice)
    with pytest.raises(DeviceLost) as lost:
        session.record(case_of(TRANSITION), 0.1, 6)
    assert (lost.value.provider, lost.value.note) == ("loses the device", "RuntimeError: cudaErrorIllegalAddress")
    clock.lost = False
    again = session_of(clock, Halves, LosesTheDevice, lost={(TRANSITION, "loses the device"): "it was lost"})
    record = again.record(case_of(TRANSITION), 0.1, 6)
    assert [(outcome.status, outcome.note) for outcome in record.outcomes] == [("timed", ""), ("failed", "it was lost")]
    nobody = session_of(clock, Halves, LosesTheDevice, lost={(TRANSITION, ""): "killed"})
    assert {outcome.note for outcome in nobody.record(case_of(TRANSITION), 0.1, 6).outcomes} == {"killed"}


def test_what_does_not_fit_is_not_tried(clock: ClockDevice) -> None:
    clock.free = 1000
    record = session_of(clock, Halves, Slow).record(case_of(TRANSITION), 0.1, 6)
    assert {outcome.status for outcome in record.outcomes} == {"refused"}
    assert "GiB of the device's memory" in record.outcomes[0].note
    assert clock.log == []


def test_a_case_that_nobody_takes_costs_nothing(clock: ClockDevice) -> None:
    record = session_of(clock, Halves).record(case_of("resnet-50/bn1/backward"), 0.1)
    assert [outcome.status for outcome in record.outcomes] == ["refused"]
    assert record.raw_launch_s is None


# --- Workers ------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_worker_measures_the_cases_that_are_left(clock: ClockDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[dict[str, Any]] = []
    monkeypatch.setattr(environment, "make_device", lambda kind: clock)
    monkeypatch.setattr("benchmarks.environment.confine", lambda threads: None)
    monkeypatch.setattr("benchmarks.providers.GPU_PROVIDERS", (Halves, LosesTheDevice))

    def run(done: int = 0, lost: dict[str, str] | None = None, seconds: float = 60.0) -> int:
        events.clear()
        options: Any = {"device": "simulator", "tier": "quick", "filters": ["transition1"]}
        return worker.work(lambda **event: events.append(event), done, lost or {}, seconds, **options)

    assert run() == EXIT_DEVICE_LOST
    assert events[0]["providers"] == {"halves": "1", "loses the device": "1"}
    assert events[2]["environment"]["device"]["name"] == "Clock 100"
    assert events[-1] == {"lost": "loses the device", "note": "RuntimeError: cudaErrorIllegalAddress"}
    clock.lost = False
    assert run(lost={"loses the device": "gone"}) == 0
    records = [record_from(event["result"]) for event in events if "result" in event]
    assert [record.id for record in records] == [TRANSITION, "densenet-121/transition1/backward"]
    assert [outcome.status for outcome in records[0].outcomes] == ["timed", "failed"]
    assert {outcome.status for outcome in records[1].outcomes} == {"refused"}  # lost on the case before alone
    assert not any("limits" in event for event in events)  # the first worker measured those
    assert run(done=1, seconds=0) == 0
    assert events[-1] == {"unreached": ["densenet-121/transition1/backward"]}
    monkeypatch.setattr("benchmarks.providers.GPU_PROVIDERS", ())
    assert run() == worker.EXIT_NO_PROVIDER


# --- The NumPy backend --------------------------------------------------------------------------------------------


def test_the_fallback_is_checked_and_then_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome_of(kind: type[Provider]) -> Any:
        (found,) = fallback.outcomes([case_of(TRANSITION)], kind(1), 0.2)
        return found

    timed = outcome_of(Halves)
    assert (timed.status, timed.ours) == ("timed", True)
    assert 1 <= timed.timing.samples <= fallback.MAX_ROUNDS
    wrong, failed = outcome_of(Wrong), outcome_of(OutOfMemory)
    assert (wrong.status, wrong.timing) == ("wrong", None)
    assert "expected" in wrong.note
    assert (failed.status, failed.note) == ("failed", "MemoryError: Out of memory allocating 3 bytes (of 2)")
    monkeypatch.setattr(fallback, "LONG_S", 0.0)
    monkeypatch.setattr(fallback, "interleave", None)
    assert outcome_of(Halves).timing.samples == 1  # that of the check


def test_the_fallback_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = iter((0.0, 0.0, 5.0, 6.0, 9.0, 9.0))

    class Clocked(fallback.Schedule):
        def left(self) -> float:
            return 10.0 - next(passed)

    monkeypatch.setattr(fallback, "Schedule", Clocked)
    monkeypatch.setattr(fallback, "_outcome", lambda case, provider, schedule: on_host(1.0))
    clock = iter((0.0, 4.0, 4.0, 9.5))
    monkeypatch.setattr(fallback, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    found = list(fallback.outcomes([case_of(TRANSITION)] * 4, Halves(1), 10.0))
    # Ten seconds are left, then ten, of which the first case took 4; then five, less than the 5.5 s of the second.
    assert [outcome.status for outcome in found] == ["timed", "timed", "refused", "refused"]
    assert found[-1].note == fallback.NOT_REACHED


def test_the_fallback_takes_the_float32_cases_that_the_gpu_was_timed_on_and_the_cheapest_first() -> None:
    cases = select("default", device="gpu")
    half = "resnet-50/bn1/backward/float16"
    records = [measured(name) for name in (A, B, half, TRANSITION)] + [
        measured("resnet-50/bn1/training", status="failed")
    ]
    chosen = [case.id for case in fallback.in_order(cases, records)]
    assert chosen == [TRANSITION, A, B]


@pytest.mark.parametrize(
    ("words", "wanted"), [([], True), (["numpy"], True), (["gpucnn"], True), (["torch", "cupy"], False)]
)
def test_the_fallback_is_left_out_by_providers(words: list[str], wanted: bool) -> None:
    assert fallback.is_wanted(words) == wanted
    assert command.split_filters(["numpy", "vgg"], "gpu") == (["numpy"], ["vgg"])
