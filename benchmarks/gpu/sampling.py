"""Times of calls on a device, by events on its stream.

A cold sample queues, one after the other: a kernel that holds the stream, the flush of the cache, an event, the call,
an event. While the first two run the host queues the call, whose kernels then follow the event without a gap: the time
between the events is the device's alone. Whether that came true is seen afterwards, by asking whether the device had
come to the first event when all was queued; where it had, the hold is made longer and the sample is taken again. So one
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

from benchmarks.gpu.device import Device
from benchmarks.timing import Timing

Call = Callable[[], object]

LEAST_HOLD_S = 50e-6
MOST_HOLD_S = 20e-3
TRIES = 8  # of a sample, each with twice the hold
LONG_S = 10e-3  # of a call beside which the host's time is nothing
WARM_SAMPLE_S = 200e-6  # a warm sample repeats its call until it lasts this long
MOST_QUEUED = 32  # calls between two waits: a stream takes some thousand launches before the host has to wait
HOST_SAMPLES = 7
HOST_SAMPLE_S = 30e-3  # of device time that one sample of the host's time may queue
MIN_ROUNDS = 5
MAX_ROUNDS = 40
PATIENCE_S = 1.5  # a case whose least rounds would take longer gets fewer


class DeviceLost(Exception):  # noqa: N818 - it ends this process's use of the device
    """The device answers no more, since `provider` ran."""

    def __init__(self, provider: str, note: str) -> None:
        super().__init__(f"{provider}: {note}")
        self.provider, self.note = provider, note


def survive(device: Device, provider: str, error: Exception) -> None:
    """Go on after a failure, where the device does; else raise `DeviceLost`."""
    try:
        device.synchronize()
    except Exception:
        raise DeviceLost(provider, described(error)) from error


def described(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:400]


@dataclass(frozen=True)
class Sample:
    """Seconds of a call; `exposed` says that the device had to wait for the host meanwhile."""

    seconds: float
    exposed: bool


class Sampler:
    """Samples of one call; the hold that hides the host from the device is found as they are taken."""

    def __init__(self, device: Device, call: Call) -> None:
        self.device, self.call = device, call
        self.hold_s = LEAST_HOLD_S
        self.exposed = 0

    def warm_up(self) -> float:
        """Calls until nothing is made for the first time any more; the seconds that one takes, host and device."""
        for _ in range(2):
            self.call()
        self.device.synchronize()
        start = time.perf_counter()
        self.call()
        queued = time.perf_counter() - start
        self.device.synchronize()
        self.hold_s = min(MOST_HOLD_S, max(LEAST_HOLD_S, 2 * queued))
        return time.perf_counter() - start

    def cold(self) -> float:
        """The call once, from a flushed cache."""
        return self._hidden(1, self.device.flush)

    def warm(self, calls: int) -> float:
        """The mean of so many calls in a row, after one that is not counted."""
        return self._hidden(calls, self.call) / calls

    def _hidden(self, calls: int, before: Call) -> float:
        for _ in range(TRIES):
            sample = self._sample(calls, before)
            if not sample.exposed or sample.seconds > LONG_S * calls:
                return sample.seconds
            self.hold_s = min(MOST_HOLD_S, 2 * self.hold_s)
        self.exposed += 1
        return sample.seconds

    def _sample(self, calls: int, before: Call) -> Sample:
        device = self.device
        device.hold(self.hold_s * calls)
        before()
        first = device.event()
        for _ in range(calls):
            self.call()
        last = device.event()
        exposed = device.reached(first)
        return Sample(device.seconds(first, last), exposed)

    def host(self, calls: int) -> float:
        """The mean time of issuing so many calls, without waiting for them."""
        self.device.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            self.call()
        seconds = (time.perf_counter() - start) / calls
        self.device.synchronize()
        return seconds


@dataclass(frozen=True)
class Measured:
    """What was measured of one call: its times from a cold and from a warm cache, and the host's."""

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

    A call that fails is left out from then on, and its error is given back.

    Raises
    ------
    DeviceLost
        A call took the device with it.
    """
    if not subjects:
        return {}
    samplers = {name: Sampler(device, subject.call) for name, subject in subjects.items()}
    hot = {name: Sampler(device, subject.hot or subject.call) for name, subject in subjects.items()}
    failed: dict[str, Exception] = {}
    once: dict[str, float] = {}
    cold: dict[str, list[float]] = {name: [] for name in subjects}
    warm: dict[str, list[float]] = {name: [] for name in subjects}
    host: dict[str, list[float]] = {name: [] for name in subjects}

    def turn(name: str, function: Callable[[Sampler], float], using: Mapping[str, Sampler] = samplers) -> float | None:
        if name in failed:
            return None
        try:
            return subjects[name].within(lambda: function(using[name]))
        except Exception as error:  # of one implementation; the others go on
            survive(device, name, error)
            failed[name] = error
            return None

    order = list(subjects)
    with without_collections():
        for name in order:
            seconds = turn(name, Sampler.warm_up)
            if seconds is not None:
                once[name] = seconds
        turn_s = sum(once.values()) + 1e-3 * len(once)
        least = max(1, min(MIN_ROUNDS, int(PATIENCE_S / max(turn_s, 1e-9))))
        rounds = min(max(int(0.6 * budget_s / max(turn_s, 1e-9)), least), max_rounds)
        for number in range(rounds):
            for name in order:
                _keep(cold[name], turn(name, Sampler.cold))
                if number % 4 == 0 and cold[name]:
                    calls = _calls_for(WARM_SAMPLE_S, cold[name][-1])
                    _keep(warm[name], turn(name, lambda sampler, calls=calls: sampler.warm(calls)))  # type: ignore[misc]
            order.append(order.pop(0))
        for name in order:
            turn(name, Sampler.warm_up, hot)
        for _ in range(min(HOST_SAMPLES, rounds)):
            for name in order:
                if cold[name]:
                    calls = max(2, int(min(MOST_QUEUED, HOST_SAMPLE_S / max(cold[name][-1], 1e-9))))
                    _keep(host[name], turn(name, lambda sampler, calls=calls: sampler.host(calls), hot))  # type: ignore[misc]
            order.append(order.pop(0))
    return {
        name: failed.get(name)
        or Measured(
            Timing.of(cold[name], 1), Timing.of(warm[name], 1), Timing.of(host[name], 1), samplers[name].exposed
        )
        for name in subjects
    }


def _calls_for(seconds: float, each: float) -> int:
    return min(MOST_QUEUED, max(1, math.ceil(seconds / max(each, 1e-9))))


def _keep(samples: list[float], seconds: float | None) -> None:
    if seconds is not None:
        samples.append(seconds)


def host_time(device: Device, call: Call, samples: int = 3 * HOST_SAMPLES) -> Timing:
    """The host's time for one call alone, such as a raw launch."""
    sampler = Sampler(device, call)
    sampler.warm_up()
    with without_collections():
        return Timing.of([sampler.host(MOST_QUEUED) for _ in range(samples)], MOST_QUEUED)


def overhead(device: Device, call: Call) -> Timing:
    """What a cold sample of a kernel that does nothing shows: it is in every time, and not taken off."""
    sampler = Sampler(device, call)
    sampler.warm_up()
    with without_collections():
        return Timing.of([sampler.cold() for _ in range(2 * HOST_SAMPLES)], 1)
