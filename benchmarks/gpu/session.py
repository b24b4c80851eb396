"""A case on a device: its arrays, every implementation's result checked, and then their times taken in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.cases import Case
from benchmarks.checking import Expectation
from benchmarks.data import Arrays, make_operands
from benchmarks.gpu.cuts import Cut, cut_of, expected, fault_of, result_bytes
from benchmarks.gpu.device import Device
from benchmarks.gpu.sampling import MAX_ROUNDS, Measured, Subject, host_time, interleave, survive
from benchmarks.providers import Call, Provider
from benchmarks.results import Outcome, Record

HEADROOM = 0.85  # of the free memory that a case may take


class Checked(NamedTuple):
    """A call whose result was right, after `seconds`; `hot` is the one whose host time is asked for."""

    call: Call
    hot: Call
    seconds: float


@dataclass
class Session:
    """The context in which cases are measured. `say` reports which implementation is about to run, and on what.

    `lost` are those that took the device with them, by case and name, with what they said: they are not run again. An
    empty name stands for all. `cut_of` chooses the part of a case that is checked.
    """

    device: Device
    providers: Sequence[Provider]
    say: Callable[[str, str], None] = lambda provider, step: None
    lost: Mapping[tuple[str, str], str] = field(default_factory=dict)
    cut_of: Callable[[Case], Cut] = cut_of
    _raw: dict[int, float] = field(default_factory=dict)

    def record(self, case: Case, budget_s: float, max_rounds: int = MAX_ROUNDS) -> Record:
        """Check and time one case; nothing of it stays on the device."""
        outcomes, calls, arrays = self.check(case)
        for provider, measured in self.time(calls, budget_s, max_rounds).items():
            outcomes[provider] = self._outcome(provider, measured)
        calls.clear()
        self.device.release()
        return Record.of(case, [outcomes[provider] for provider in self.providers], self.raw_launch(arrays))

    def check(self, case: Case) -> tuple[dict[Provider, Outcome], dict[Provider, Checked], int]:
        """The outcomes of those that must not be timed, the calls of the others, and the number of arrays of a call."""
        refusals = {provider: self._refusal(provider, case) for provider in self.providers}
        outcomes = {provider: outcome for provider, outcome in refusals.items() if outcome is not None}
        able = [provider for provider in self.providers if provider not in outcomes]
        needed, free = case.least_bytes * (2 + len(able)), self.device.free_bytes()
        if needed > HEADROOM * free:
            note = f"needs {needed / 2**30:.1f} GiB of the device's memory, {free / 2**30:.1f} are free"
            return {provider: Outcome.of(provider, "refused", note) for provider in self.providers} | outcomes, {}, 0
        if not able:
            return outcomes, {}, 0
        operands = make_operands(case)
        cut, expectations = expected(case, operands, self.cut_of)
        given = {name: self.device.asarray(array) for name, array in operands.items()}
        del operands
        calls: dict[Provider, Checked] = {}
        for provider in able:
            self.say(provider.name, "check")
            try:
                call, fault = provider.within(
                    lambda provider=provider: self._checked(provider, case, given, cut, expectations)  # type: ignore[misc]
                )
            except Exception as error:  # one implementation's failure must not end the run
                survive(self.device, provider.name, error)
                self.device.release()
                outcomes[provider] = Outcome.failed(provider, error)
            else:
                if fault is None:
                    calls[provider] = call
                else:
                    outcomes[provider] = Outcome.of(provider, "wrong", fault)
        return outcomes, calls, len(given) + len(expectations)

    def _refusal(self, provider: Provider, case: Case) -> Outcome | None:
        lost = self.lost.get((case.id, provider.name), self.lost.get((case.id, "")))
        if lost is not None:
            return Outcome.of(provider, "failed", lost)
        reason = provider.refuses(case)
        return None if reason is None else Outcome.of(provider, "refused", reason)

    def _checked(
        self, provider: Provider, case: Case, given: Arrays, cut: Cut, expectations: list[Expectation]
    ) -> tuple[Checked, str | None]:
        """The call of an implementation, and the fault of its result."""
        call = provider.prepare(case, given)
        self.device.spoil(result_bytes(cut, case, expectations))
        start = time.perf_counter()
        results = provider.results(call())
        self.device.synchronize()  # so that a failure is this implementation's
        seconds = time.perf_counter() - start
        fault = fault_of(cut, case, expectations, results, self.device)
        return Checked(call, provider.hot(call, results), seconds), fault

    def time(
        self, calls: Mapping[Provider, Checked], budget_s: float, max_rounds: int = MAX_ROUNDS
    ) -> dict[Provider, Measured | Exception]:
        """The times of every call, or the error that ended it."""

        def subject(provider: Provider, checked: Checked) -> Subject:
            def within(function: Callable[[], float]) -> float:
                self.say(provider.name, "time")
                return provider.within(function)

            return Subject(checked.call, within, checked.hot)

        subjects = {provider.name: subject(provider, checked) for provider, checked in calls.items()}
        measured = interleave(self.device, subjects, budget_s, max_rounds)
        return dict(zip(calls, measured.values(), strict=True))

    def _outcome(self, provider: Provider, measured: Measured | Exception) -> Outcome:
        if isinstance(measured, Exception):
            return Outcome.failed(provider, measured)
        note = f"the host shows in {measured.exposed} samples" if measured.exposed else ""
        return Outcome.of(provider, "timed", note, measured.cold, warm=measured.warm, host=measured.host)

    def raw_launch(self, arrays: int) -> float | None:
        """The host's time for a bare launch with the given number of arrays."""
        if not arrays:
            return None
        if arrays not in self._raw:
            self._raw[arrays] = host_time(self.device, self.device.raw_launch(arrays)).median
        return self._raw[arrays]
