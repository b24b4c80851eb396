"""Times of calls on a device, by events on its stream.

A cold sample queues, one after the other: a kernel that holds the stream, the flush of the cache, an event, the call,
an event. While the first two run the host queues the call, whose kernels then follow the event without a gap: the time
between the events is the device's alone. Whether that held is checked afterwards, by asking whether the device had
reached the first event when all was queued; where it had, the hold is made longer and the sample is taken again. So one
way of timing serves calls of microseconds and of milliseconds, of one kernel and of twenty.

A warm sample is the same without the flush, and with several calls in a row between the events.

The host's time is that of issuing calls without waiting for the device, as it is spent in a program that keeps the
device busy.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from benchmarks.gpu.device import Device
from benchmarks.results import described
from benchmarks.timing import Timing

Call = Callable[[], object]

MIN_HOLD_S = 50e-6
MAX_HOLD_S = 20e-3
TRIES = 8  # of a sample, each with twice the hold
LONG_S = 10e-3  # of a call in comparison with which the host's time is negligible
WARM_SAMPLE_S = 200e-6  # a warm sample repeats its call until it lasts this long
MAX_QUEUED = 32  # calls between two waits: a stream takes some thousand launches before the host has to wait
HOST_SAMPLES = 5
HOST_SAMPLE_S = 4e-3  # of device time that one sample of the host's time may queue; it has four calls at least
MIN_HOST_CALLS = 4
MIN_ROUNDS = 5
MAX_ROUNDS = 40
WARM_EVERY = 4  # rounds
SLOW_S = 0.1  # of a call that gets `SLOW_ROUNDS` turns, whatever the budget
SLOW_ROUNDS = 2


class DeviceLost(Exception):  # noqa: N818 - it ends this process's use of the device
    """The device no longer answers, since `provider` ran."""

    def __init__(self, provider: str, note: str) -> None:
        super().__init__(f"{provider}: {note}")
        self.provider, self.note = provider, note


def survive(device: Device, provider: str, error: Exception) -> None:
    """Go on after a failure, where the device does; else raise `DeviceLost`."""
    try:
        device.synchronize()
    except Exception:
        raise DeviceLost(provider, described(error)) from error


class Sampler:
    """Samples of one call; the hold that hides the host from the device is found as they are taken."""

    def __init__(self, device: Device, call: Call) -> None:
        self.device, self.call = device, call
        self.hold_s = MIN_HOLD_S
        self.exposed = 0

    def warm_up(self) -> float:
        """Warm-up calls until no first-time work is left; the seconds of one call, host and device."""
        for _ in range(3):
            start = time.perf_counter()
            self.call()
            queued = time.perf_counter() - start
            self.device.synchronize()
            seconds = time.perf_counter() - start
            if seconds > SLOW_S:
                break
        self.hold_s = min(MAX_HOLD_S, max(MIN_HOLD_S, 2 * queued))
        return seconds

    def cold(self) -> float:
        """The call once, from a flushed cache."""
        return self._hidden(1, self.device.flush)

    def warm(self, calls: int) -> float:
        """The mean of `calls` calls in a row, after one that is not counted."""
        return self._hidden(calls, self.call) / calls

    def _hidden(self, calls: int, before: Call) -> float:
        for _ in range(TRIES):
            seconds, exposed = self._sample(calls, before)
            if not exposed or seconds > LONG_S * calls:
                return seconds
            self.hold_s = min(MAX_HOLD_S, 2 * self.hold_s)
        self.exposed += 1
        return seconds

    def _sample(self, calls: int, before: Call) -> tuple[float, bool]:
        """The seconds of all calls, and whether the device had to wait for the host."""
        device = self.device
        device.hold(self.hold_s * calls)
        before()
        first = device.event()
        for _ in range(calls):
            self.call()
        last = device.event()
        exposed = device.reached(first)
        return device.seconds(first, last), exposed

    def host(self, calls: int) -> float:
        """The mean time of issuing `calls` calls, without waiting for them."""
        self.device.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            self.call()
        seconds = (time.perf_counter() - start) / calls
        self.device.synchronize()
        return seconds


@dataclass(frozen=True)
class Measured:
    """The times of one call: from a cold and from a warm cache, and the host's."""

    cold: Timing
    warm: Timing
    host: Timing
    exposed: int  # samples in which the device had to wait for the host


@contextmanager
def without_collections() -> Iterator[None]:
    """Within the block, Python collects no garbage."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


Within = Callable[[Callable[[], float]], float]


@dataclass
class Subject:
    """One call that takes its turn; `within` runs a function where the call has to be made: a thread, a setting.

    The host's time is that of `hot`, the same call into an array that is there, where there is such a one.
    """

    call: Call
    within: Within = lambda function: function()
    hot: Call | None = None


def interleave(
    device: Device, subjects: Mapping[str, Subject], budget_s: float, max_rounds: int = MAX_ROUNDS
) -> dict[str, Measured | Exception]:
    """Measure every call, in turns whose order rotates, for about `budget_s` seconds in all.

    A call that fails is left out from then on, and its error is returned. Calls of more than `SLOW_S` have few turns.

    Raises
    ------
    DeviceLost
        A call took the device with it.
    """
    turns = _Turns(device, subjects)
    with without_collections():
        turns.warm_up()
        for number in range(turns.rounds(budget_s, max_rounds)):
            turns.device_round(number)
        for number in range(HOST_SAMPLES):
            turns.host_round(number)
    return {name: turns.measured(name) for name in subjects}


class _Turns:
    """The samples of several calls, taken in turns."""

    def __init__(self, device: Device, subjects: Mapping[str, Subject]) -> None:
        self.device, self.subjects = device, subjects
        self.order = list(subjects)
        self.samplers = {name: Sampler(device, subject.call) for name, subject in subjects.items()}
        self.hot = {name: Sampler(device, subject.hot or subject.call) for name, subject in subjects.items()}
        self.once: dict[str, float] = {}
        self.failed: dict[str, Exception] = {}
        self.cold, self.warm, self.host = ({name: list[float]() for name in subjects} for _ in range(3))

    def turn(self, name: str, take: Callable[[], float], kept: list[float]) -> None:
        """Take a sample of the call, and keep it."""
        if name in self.failed:
            return
        try:
            kept.append(self.subjects[name].within(take))
        except Exception as error:  # of one implementation; the others go on
            survive(self.device, name, error)
            self.failed[name] = error

    def warm_up(self) -> None:
        """Warm up all calls, until no first-time work is left."""
        for name in self.order:
            seconds: list[float] = []
            self.turn(name, self.samplers[name].warm_up, seconds)
            self.once[name] = seconds[0] if seconds else 0.0
            if not self.is_slow(name):
                self.turn(name, self.hot[name].warm_up, [])

    def rotated(self) -> list[str]:
        """The order of this round; the next one begins with the second."""
        order, self.order = self.order, [*self.order[1:], *self.order[:1]]
        return order

    def is_slow(self, name: str) -> bool:
        return self.once[name] > SLOW_S

    def rounds(self, budget_s: float, most: int) -> int:
        """The number of rounds of calls that are not slow that the budget allows for."""
        quick = [seconds for name, seconds in self.once.items() if not self.is_slow(name)]
        if not quick:
            return min(SLOW_ROUNDS, most)
        turn_s = sum(quick) + 1e-3 * len(quick)
        return min(max(int(0.6 * budget_s / turn_s), MIN_ROUNDS), most)

    def device_round(self, number: int) -> None:
        """A cold sample of each call, and now and then a warm one."""
        for name in self.rotated():
            if self.is_slow(name) and number >= SLOW_ROUNDS:
                continue
            sampler = self.samplers[name]
            self.turn(name, sampler.cold, self.cold[name])
            if number % WARM_EVERY == 0 and self.cold[name]:
                calls = min(MAX_QUEUED, math.ceil(WARM_SAMPLE_S / max(self.cold[name][-1], 1e-9)))
                self.turn(name, partial(sampler.warm, calls), self.warm[name])

    def host_round(self, number: int) -> None:
        """A sample of the host's time for each call."""
        for name in self.rotated():
            if not self.cold[name] or (self.is_slow(name) and number):
                continue
            affordable = int(HOST_SAMPLE_S / max(self.cold[name][-1], 1e-9))
            calls = 1 if self.is_slow(name) else max(MIN_HOST_CALLS, affordable)
            self.turn(name, partial(self.hot[name].host, min(MAX_QUEUED, calls)), self.host[name])

    def measured(self, name: str) -> Measured | Exception:
        if name in self.failed:
            return self.failed[name]
        cold, warm, host = (Timing.of(samples[name], 1) for samples in (self.cold, self.warm, self.host))
        return Measured(cold, warm, host, self.samplers[name].exposed)


def host_time(device: Device, call: Call) -> Timing:
    """The host's time for one call alone, such as a raw launch."""
    return _alone(device, call, lambda sampler: sampler.host(MAX_QUEUED), 3 * HOST_SAMPLES, MAX_QUEUED)


def overhead(device: Device, call: Call) -> Timing:
    """The cold time of an empty kernel: it is part of every time, and not subtracted."""
    return _alone(device, call, Sampler.cold, 2 * HOST_SAMPLES)


def _alone(device: Device, call: Call, take: Callable[[Sampler], float], samples: int, calls: int = 1) -> Timing:
    sampler = Sampler(device, call)
    sampler.warm_up()
    with without_collections():
        return Timing.of([take(sampler) for _ in range(samples)], calls)
