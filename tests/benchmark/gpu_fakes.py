"""A device that is a clock, and arrays of NumPy in a GPU's place: for the benchmarks' own tests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

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


class BenchCupy(SimpleNamespace):
    """As much of CuPy as `CupyDevice` uses: arrays of NumPy with a GPU's memory pointer, kernels that write down."""

    def __init__(self, l2_bytes: int = 1 << 20, stream: int = 0, free: int = 1 << 34) -> None:
        super().__init__()
        self.queued: list[Any] = []
        self.pool_freed = 0

        def freed() -> None:
            self.pool_freed += 1

        properties = {
            "name": b"NVIDIA Fake 100", "l2CacheSize": l2_bytes, "multiProcessorCount": 10, "totalGlobalMem": 1 << 34,
            "major": 9, "minor": 0,
        }  # fmt: skip
        self.__version__ = "14.2.0"
        self.cuda = SimpleNamespace(
            runtime=SimpleNamespace(
                getDevice=lambda: 0,
                getDeviceProperties=lambda index: properties,
                memGetInfo=lambda: (free, 1 << 34),
                deviceSynchronize=lambda: self.queued.append("wait"),
                runtimeGetVersion=lambda: 13000,
                driverGetVersion=lambda: 13010,
            ),
            get_current_stream=lambda: SimpleNamespace(ptr=stream),
            Event=lambda: FakeEvent(self),
            get_elapsed_time=lambda first, last: 1e3 * (last.place - first.place),
        )
        self.get_default_memory_pool = lambda: SimpleNamespace(free_all_blocks=freed)
        self.RawKernel = lambda source, name: lambda grid, block, args: self.queued.append((name, grid, block, args))

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def zeros(self, shape: Any, dtype: str) -> Any:
        return DeviceArray.of(np.zeros(shape, dtype), self)

    def empty(self, shape: Any, dtype: str) -> Any:
        return DeviceArray.of(np.zeros(shape, dtype), self)

    def asarray(self, host: Any) -> Any:
        return np.array(host)

    def asnumpy(self, array: Any) -> Any:
        return np.asarray(array)


class DeviceArray(np.ndarray):
    """An array whose `data` sets memory on the device."""

    @staticmethod
    def of(array: Any, cupy: BenchCupy) -> Any:
        made = array.view(DeviceArray)
        made.cupy = cupy
        return made

    @property
    def data(self) -> Any:  # type: ignore[override]
        return SimpleNamespace(memset_async=lambda value, size: self.cupy.queued.append(("memset", value, size)))


class FakeEvent:
    """An event whose time is its place in the queue; done when the device was waited for."""

    def __init__(self, cupy: BenchCupy) -> None:
        self.cupy = cupy
        self.place = 0
        self.done = False

    def record(self) -> None:
        self.place = len(self.cupy.queued)
        self.cupy.queued.append("event")

    def synchronize(self) -> None:
        self.done = True
