"""The device interface of the benchmarks: arrays to it and back, events on its stream, and a cache to flush.

All timed work runs on the default stream of CuPy and PyTorch, where both run by default, so events recorded by one
bracket the kernels of the other, and no stream has to wait for another.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = Any
Host = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]

FLUSHED = 2  # times the cache's size that is written, and then read
MIN_FLUSHED = 64 << 20  # bytes, if the driver does not report the cache's size
PARAMETER_BYTES = 128  # of the structure that a raw launch passes in addition to its arrays

# `hold` keeps the stream busy for a time. `read` leaves nothing but clean lines in the cache, so that a timed kernel
# does not pay for writing back what the flush wrote. The raw launches do nothing: only their host time is asked for.
SOURCE = """
extern "C" __global__ void hold(unsigned long long nanoseconds) {
  unsigned long long start, now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
  do {
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  } while (now - start < nanoseconds);
}

extern "C" __global__ void read(const uint4* data, unsigned long long count, unsigned int* never) {
  unsigned int sum = 0;
  unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
  for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
    uint4 value = data[i];
    sum += value.x ^ value.y ^ value.z ^ value.w;
  }
  if (sum == 0x9e3779b9u) *never = sum;
}
"""


class Device:
    """A device on whose stream calls are queued, in order: this one is the host, where each is computed as it comes."""

    name = "host"
    l2_bytes = 0

    def asarray(self, host: Host) -> Array:
        """A copy of a host array on the device."""
        return host

    def asnumpy(self, array: Array) -> Host:
        """A copy of a device array on the host, once it has been computed."""
        host: Host = array
        return host

    def taken(self, array: Array, axis: int | None, chosen: Indices | None) -> Host:
        """The slices `chosen` along `axis`, or all of the array, on the host."""
        host = self.asnumpy(array)
        return host if axis is None or chosen is None else host.take(chosen, axis=axis)

    def at(self, array: Array, where: Sequence[Indices]) -> Host:
        """The elements at `where`, on the host."""
        host: Host = self.asnumpy(array)[tuple(where)]
        return host

    def finite(self, array: Array) -> bool:
        """Whether no element is infinite or NaN."""
        return bool(np.isfinite(self.asnumpy(array)).all())

    def spoil(self, nbytes: int) -> None:
        """Leave NaN in memory that the next array of `nbytes` bytes may get."""

    def hold(self, seconds: float) -> None:
        """Queue a kernel that keeps the stream busy for the given time."""

    def flush(self) -> None:
        """Queue a flush of the cache."""

    def event(self) -> Any:
        """Queue the recording of a time."""
        return time.perf_counter()

    def reached(self, event: Any) -> bool:
        """Whether the device has reached `event`; does not wait."""
        return False

    def seconds(self, first: Any, last: Any) -> float:
        """The time between two events; waits for the second."""
        return float(last - first)

    def raw_launch(self, arrays: int) -> Callable[[], None]:
        """A bare launch of an empty kernel with the given number of arrays and one structure."""
        return lambda: None

    def synchronize(self) -> None:
        """Wait for all that is queued; raises where the device was lost."""

    def free_bytes(self) -> int:
        """Bytes of available memory."""
        return 1 << 40

    def release(self) -> None:
        """Give memory that is kept for reuse back to the driver."""


class CupyDevice(Device):
    """The current GPU, by CuPy."""

    def __init__(self) -> None:
        import cupy

        self.xp: Any = cupy
        runtime = cupy.cuda.runtime
        properties = runtime.getDeviceProperties(runtime.getDevice())
        self.name = properties["name"].decode()
        self.l2_bytes = int(properties["l2CacheSize"])
        self._multiprocessors = int(properties["multiProcessorCount"])
        self._hold_kernel = cupy.RawKernel(SOURCE, "hold")
        self._read_kernel = cupy.RawKernel(SOURCE, "read")
        self._flushes = 0

    @cached_property
    def _flushed(self) -> tuple[Array, Array, Array]:
        """Memory that a flush writes, reads, and seems to write; not allocated unless something is timed."""
        if self.xp.cuda.get_current_stream().ptr != 0:
            raise RuntimeError(
                "CuPy's current stream is not the default one: unset CUPY_CUDA_PER_THREAD_DEFAULT_STREAM"
            )
        count = max(FLUSHED * self.l2_bytes, MIN_FLUSHED) // 4
        written, read, never = (self.xp.zeros(size, "uint32") for size in (count, count, 1))
        return written, read, never

    def asarray(self, host: Host) -> Array:
        """A copy with the strides of `host`, if without its gaps."""
        order = sorted(range(host.ndim), key=lambda axis: -abs(host.strides[axis]))
        array: Array = self.xp.asarray(np.ascontiguousarray(host.transpose(order)))
        return array.transpose(np.argsort(order).tolist())

    def asnumpy(self, array: Array) -> Host:
        host: Host = self.xp.asnumpy(array)
        return host

    def taken(self, array: Array, axis: int | None, chosen: Indices | None) -> Host:
        if axis is not None:
            array = array.take(self.xp.asarray(chosen), axis=axis)
        return self.asnumpy(array)

    def at(self, array: Array, where: Sequence[Indices]) -> Host:
        return self.asnumpy(array[tuple(self.xp.asarray(axis) for axis in where)])

    def finite(self, array: Array) -> bool:
        return bool(self.xp.isfinite(array).all())

    def spoil(self, nbytes: int) -> None:
        spoiled = self.xp.empty(max(1, nbytes // 2), "uint16")
        spoiled.fill(0xFFFF)  # NaN in every floating-point format

    def hold(self, seconds: float) -> None:
        self._hold_kernel((1,), (1,), (np.uint64(seconds * 1e9),))

    def flush(self) -> None:
        self._flushes += 1
        written, read, never = self._flushed
        written.data.memset_async(self._flushes % 256, written.nbytes)
        count = np.uint64(read.nbytes // 16)
        self._read_kernel((4 * self._multiprocessors,), (256,), (read, count, never))

    def event(self) -> Any:
        event = self.xp.cuda.Event()
        event.record()
        return event

    def reached(self, event: Any) -> bool:
        return bool(event.done)

    def seconds(self, first: Any, last: Any) -> float:
        last.synchronize()
        return float(self.xp.cuda.get_elapsed_time(first, last)) / 1e3

    def raw_launch(self, arrays: int) -> Callable[[], None]:
        kernel = self.xp.RawKernel(raw_source(arrays), "raw")
        given = tuple(self.xp.zeros(32, "float32") for _ in range(arrays))
        structure = np.zeros((), f"V{PARAMETER_BYTES}")
        return lambda: kernel((1,), (32,), (*given, structure))

    def synchronize(self) -> None:
        self.xp.cuda.runtime.deviceSynchronize()

    def free_bytes(self) -> int:
        return int(self.xp.cuda.runtime.memGetInfo()[0])

    def release(self) -> None:
        self.xp.get_default_memory_pool().free_all_blocks()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()


def raw_source(arrays: int) -> str:
    """An empty kernel's text: the given number of pointers, and a structure as large as gpucnn's."""
    pointers = "".join(f"float* a{number}, " for number in range(arrays))
    return (
        f"struct Parameters {{ char bytes[{PARAMETER_BYTES}]; }};\n"
        f'extern "C" __global__ void raw({pointers}Parameters p) {{}}\n'
    )


class SimulatedDevice(Device):
    """`gpucnn.simulator` in a GPU's place, to try the command: its times are those of the simulation."""

    name = "simulator"

    def __init__(self) -> None:
        from gpucnn import simulator

        self._simulator = simulator

    def asarray(self, host: Host) -> Array:
        return self._simulator.asarray(host)

    def asnumpy(self, array: Array) -> Host:
        return self._simulator.asnumpy(array)
