"""A device that is a clock, for the benchmarks' own tests."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.device import Device

HOST_STEP_S = 1e-6  # of the host, to queue a kernel or an event


class ClockDevice(Device):
    """Queues work for a device whose time passes by itself; the host's passes as it is told to.

    `log` is what was queued. Arrays are NumPy's.
    """

    name = "Clock 100"
    l2_bytes = 1 << 20

    def __init__(self, flush_s: float = 40e-6) -> None:
        self.host = self.device = 0.0
        self.flush_s = flush_s
        self.log: list[str] = []
        self.lost = False
        self.free = 1 << 33
        self.released = 0
        self.spoiled: list[int] = []

    def perf_counter(self) -> float:
        return self.host

    def queue(self, name: str, seconds: float, host_s: float = HOST_STEP_S) -> None:
        self.log.append(name)
        self.host += host_s
        self.device = max(self.device, self.host) + seconds

    def call(self, seconds: float, host_s: float, waits: bool = False, name: str = "call") -> Any:
        """A call that takes the host and the device so long; one that `waits` lets the host wait for the device."""

        def call() -> None:
            self.queue(name, seconds, host_s)
            if waits:
                self.synchronize()

        return call

    def spoil(self, nbytes: int) -> None:
        self.spoiled.append(nbytes)

    def hold(self, seconds: float) -> None:
        self.queue("hold", seconds)

    def flush(self) -> None:
        self.queue("flush", self.flush_s)

    def event(self) -> float:
        self.queue("event", 0.0)
        return self.device

    def reached(self, event: float) -> bool:
        return event <= self.host

    def seconds(self, first: float, last: float) -> float:
        self.synchronize()
        return last - first

    def raw_launch(self, arrays: int) -> Any:
        return self.call(1e-6, 3e-6, name=f"raw {arrays}")

    def synchronize(self) -> None:
        if self.lost:
            raise RuntimeError("cudaErrorIllegalAddress")
        self.host = max(self.host, self.device)

    def free_bytes(self) -> int:
        return self.free

    def release(self) -> None:
        self.released += 1
