"""Missing synchronisation between streams is reported, in whichever order the work happens to run."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from driving import CudaError, Driver

SOURCE = """
extern "C" {
__global__ void fill(float* y, float value) { y[threadIdx.x] = value; }
__global__ void add(float* y, const float* x) { y[threadIdx.x] += x[threadIdx.x]; }
__global__ void count(int* y) { atomicAdd(y, 1); }
}
"""
N = 32
MISSING = "an event to wait for is missing, or a synchronisation"


class Streams:
    """Two streams and kernels for them."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        module = driver.module(SOURCE)
        self.functions = {name: driver.function(module, name) for name in ("fill", "add", "count")}
        self.first, self.second = driver.stream(), driver.stream()

    def array(self) -> ctypes.c_void_p:
        return self.driver.upload(np.zeros(2 * N, np.float32))

    def launch(self, name: str, *values: Any, stream: ctypes.c_void_p | None) -> None:
        self.driver.launch(self.functions[name], *values, stream=stream)

    def conflict(self, name: str, *values: Any, stream: ctypes.c_void_p | None) -> str:
        """The text of the error of a launch that nothing orders with an earlier one."""
        with pytest.raises(CudaError) as caught:
            self.launch(name, *values, stream=stream)
        assert caught.value.name == "LAUNCH_FAILED"
        return caught.value.detail

    def wait(self, waiting: ctypes.c_void_p, recorded: ctypes.c_void_p) -> None:
        event = self.driver.event()
        self.driver.call("cuEventRecord", event, recorded)
        self.driver.call("cuStreamWaitEvent", waiting, event, 0)

    def id(self, stream: ctypes.c_void_p) -> int:
        number = ctypes.c_uint64()
        self.driver.call("cuStreamGetId", stream, ctypes.byref(number))
        return number.value


@pytest.fixture
def streams(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Streams:
    monkeypatch.setenv("GPUCNN_CUDA_STREAM_RACES", "1")
    driver.library.cudasim_reset()  # settings are read again
    return Streams(driver)


ONE = ctypes.c_float(1)


def test_a_read_of_what_another_stream_writes(streams: Streams) -> None:
    x, y = streams.array(), streams.array()
    streams.launch("fill", x, ONE, stream=streams.first)
    assert streams.conflict("add", y, x, stream=streams.second) == (
        "kernel.cu:4: read of 4 bytes at byte 0 of argument 1 conflicts with the write by 'fill' in stream "
        f"{streams.id(streams.first)}; nothing orders it before this work in stream {streams.id(streams.second)}: "
        f"{MISSING} [add, block (0, 0, 0), thread (0, 0, 0)]"
    )


def test_a_write_of_what_another_stream_reads(streams: Streams) -> None:
    x, y = streams.array(), streams.array()
    streams.launch("add", y, x, stream=streams.first)
    text = streams.conflict("fill", x, ONE, stream=streams.second)
    assert "write of 4 bytes at byte 0 of argument 0 conflicts with the read by 'add' in stream" in text


def test_the_order_of_execution_does_not_matter(driver: Driver, streams: Streams) -> None:
    for seed in range(1, 5):
        driver.set_stream_seed(seed)
        x, y = streams.array(), streams.array()
        driver.call("cuCtxSynchronize")
        streams.launch("fill", x, ONE, stream=streams.first)
        streams.launch("add", y, x, stream=streams.second)
        with pytest.raises(CudaError) as caught:
            driver.call("cuCtxSynchronize")
        assert MISSING in caught.value.detail
        driver.call("cuCtxSynchronize")


def test_copies_and_fills_count(driver: Driver, streams: Streams) -> None:
    x, nbytes = streams.array(), ctypes.c_size_t(4 * N)
    streams.launch("fill", x, ONE, stream=streams.first)
    with pytest.raises(CudaError) as caught:
        driver.call("cuMemsetD8Async", x, ctypes.c_ubyte(0), nbytes, streams.second)
    assert caught.value.detail.startswith("cuMemsetD8Async: write of 128 bytes conflicts with the write by 'fill'")
    with pytest.raises(CudaError) as caught:
        driver.download(x, N)  # in the default stream, which does not wait for the first
    assert caught.value.detail.startswith("cuMemcpyDtoH: read of 128 bytes conflicts with the write by 'fill'")


# ---- What is in order ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["event", "stream", "event-synchronised", "context", "query", "through-a-third"])
def test_what_orders_two_streams(driver: Driver, streams: Streams, how: str) -> None:
    x, y, third, event = streams.array(), streams.array(), driver.stream(), driver.event()
    streams.launch("fill", x, ONE, stream=streams.first)
    driver.call("cuEventRecord", event, streams.first)
    if how == "event":
        driver.call("cuStreamWaitEvent", streams.second, event, 0)
    elif how == "stream":
        driver.call("cuStreamSynchronize", streams.first)
    elif how == "event-synchronised":
        driver.call("cuEventSynchronize", event)
    elif how == "context":
        driver.call("cuCtxSynchronize")
    elif how == "query":
        driver.call("cuStreamQuery", streams.first)
    else:
        streams.wait(third, streams.first)
        streams.wait(streams.second, third)
    streams.launch("add", y, x, stream=streams.second)


def test_an_event_orders_what_was_recorded_only(driver: Driver, streams: Streams) -> None:
    x, y, event = streams.array(), streams.array(), driver.event()
    driver.call("cuEventRecord", event, streams.first)
    streams.launch("fill", x, ONE, stream=streams.first)
    driver.call("cuStreamWaitEvent", streams.second, event, 0)
    assert MISSING in streams.conflict("add", y, x, stream=streams.second)


def test_blocking_streams_are_ordered_by_the_legacy_stream(driver: Driver, streams: Streams) -> None:
    x, y, blocking, other = streams.array(), streams.array(), driver.stream(flags=0), driver.stream(flags=0)
    streams.launch("fill", x, ONE, stream=blocking)
    streams.launch("add", y, x, stream=None)
    streams.launch("fill", x, ONE, stream=other)
    assert MISSING in streams.conflict("fill", x, ONE, stream=blocking)


def test_parts_of_one_allocation(streams: Streams) -> None:
    x = streams.array()
    upper = ctypes.c_void_p((x.value or 0) + 4 * N)
    streams.launch("fill", x, ONE, stream=streams.first)
    streams.launch("fill", upper, ONE, stream=streams.second)


def test_two_readers(streams: Streams) -> None:
    x, y, z = streams.array(), streams.array(), streams.array()
    streams.launch("add", y, x, stream=streams.first)
    streams.launch("add", z, x, stream=streams.second)


def test_atomic_operations_of_two_streams(streams: Streams) -> None:
    x = streams.array()
    streams.launch("count", x, stream=streams.first)
    streams.launch("count", x, stream=streams.second)
    text = streams.conflict("fill", x, ONE, stream=streams.first)
    assert "conflicts with the atomic operation by 'count'" in text


def test_memory_that_was_freed_and_allocated_again(driver: Driver, streams: Streams) -> None:
    x = streams.array()
    streams.launch("fill", x, ONE, stream=streams.first)
    driver.free(x)  # waits for the device
    streams.launch("fill", streams.array(), ONE, stream=streams.second)


def test_sticky_errors_are_left_by_a_reset(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUCNN_CUDA_STICKY", "1")
    driver.library.cudasim_reset()
    fill, short = driver.kernel(SOURCE, "fill"), driver.alloc(4)
    for _ in range(2):
        with pytest.raises(CudaError) as caught:
            driver.launch(fill, short, ONE)
        assert caught.value.name == "ILLEGAL_ADDRESS"
    assert caught.value.detail == (
        "a kernel has failed on device 0, which stays unusable until cuDevicePrimaryCtxReset"
    )
    driver.call("cuDevicePrimaryCtxReset_v2", 0)
    driver.launch(driver.kernel(SOURCE, "fill"), driver.alloc(4 * N), ONE)
