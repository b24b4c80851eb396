"""Streams and events: when work runs, what waits for what, and what a missing wait does."""

from __future__ import annotations

import ctypes
import threading

import numpy as np
import pytest
from driving import CudaError, Driver

SOURCE = """
extern "C" __global__ void fill(float* y, float value, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = value;
}
extern "C" __global__ void add(float* y, const float* x, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] += x[i];
}
"""
N = 32
NOT_READY = "NOT_READY"
LEGACY, PER_THREAD = ctypes.c_void_p(1), ctypes.c_void_p(2)


class Work:
    """Kernels on arrays of 32 floats."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        module = driver.module(SOURCE)
        self._fill = driver.function(module, "fill")
        self._add = driver.function(module, "add")

    def array(self, value: float = 0) -> ctypes.c_void_p:
        pointer = self.driver.upload(np.full(N, value, np.float32))
        self.driver.call("cuCtxSynchronize")
        return pointer

    def fill(self, y: ctypes.c_void_p, value: float, stream: ctypes.c_void_p | None) -> None:
        self.driver.launch(self._fill, y, ctypes.c_float(value), ctypes.c_int(N), stream=stream)

    def add(self, y: ctypes.c_void_p, x: ctypes.c_void_p, stream: ctypes.c_void_p | None) -> None:
        self.driver.launch(self._add, y, x, ctypes.c_int(N), stream=stream)

    def values(self, pointer: ctypes.c_void_p) -> set[float]:
        """What is in the array now, whether work is pending or not."""
        host = (ctypes.c_float * N).from_address(pointer.value or 0)
        return set(host)


@pytest.fixture
def work(driver: Driver) -> Work:
    return Work(driver)


# ---- At once ---------------------------------------------------------------------------------------------------------


def test_work_runs_when_it_is_issued(driver: Driver, work: Work) -> None:
    y, stream = work.array(), driver.stream()
    work.fill(y, 3, stream)
    assert work.values(y) == {3}
    driver.call("cuStreamQuery", stream)


def test_an_event_is_done_at_once(driver: Driver, work: Work) -> None:
    stream, event = driver.stream(), driver.event()
    driver.call("cuEventRecord", event, stream)
    driver.call("cuEventQuery", event)


# ---- Late ------------------------------------------------------------------------------------------------------------


def test_work_stays_pending_until_its_stream_is_waited_for(late_driver: Driver, work: Work) -> None:
    y, stream, other = work.array(), late_driver.stream(), late_driver.stream()
    work.fill(y, 3, stream)
    late_driver.call("cuStreamSynchronize", other)
    assert work.values(y) == {0}
    late_driver.call("cuStreamSynchronize", stream)
    assert work.values(y) == {3}


def test_work_of_one_stream_keeps_its_order(late_driver: Driver, work: Work) -> None:
    y, stream = work.array(), late_driver.stream()
    for value in range(1, 6):
        work.fill(y, value, stream)
    late_driver.call("cuStreamSynchronize", stream)
    assert work.values(y) == {5}


def test_a_missing_wait_gives_wrong_numbers(late_driver: Driver, work: Work) -> None:
    x, y, producer, consumer = work.array(), work.array(), late_driver.stream(), late_driver.stream()
    work.fill(x, 3, producer)
    work.add(y, x, consumer)  # should wait for the producer
    late_driver.call("cuStreamSynchronize", consumer)
    assert work.values(y) == {0}


def test_a_wait_for_an_event_orders_two_streams(late_driver: Driver, work: Work) -> None:
    x, y, producer, consumer = work.array(), work.array(), late_driver.stream(), late_driver.stream()
    event = late_driver.event()
    work.fill(x, 3, producer)
    late_driver.call("cuEventRecord", event, producer)
    work.fill(x, 7, producer)  # after the event: not waited for
    late_driver.call("cuStreamWaitEvent", consumer, event, 0)
    work.add(y, x, consumer)
    late_driver.call("cuStreamSynchronize", consumer)
    assert (work.values(x), work.values(y)) == ({3}, {3})


def test_a_wait_is_for_the_last_record_before_it(late_driver: Driver, work: Work) -> None:
    x, producer, consumer, event = work.array(), late_driver.stream(), late_driver.stream(), late_driver.event()
    late_driver.call("cuEventRecord", event, producer)
    late_driver.call("cuStreamWaitEvent", consumer, event, 0)
    work.fill(x, 3, producer)
    late_driver.call("cuEventRecord", event, producer)
    late_driver.call("cuStreamSynchronize", consumer)
    assert work.values(x) == {0}
    late_driver.call("cuEventSynchronize", event)
    assert work.values(x) == {3}


def test_the_order_of_streams_follows_the_seed(driver: Driver, work: Work) -> None:
    def last_of(seed: int) -> set[float]:
        driver.set_stream_seed(seed)
        y = work.array()
        for value in range(1, 9):
            work.fill(y, value, driver.stream())
        driver.call("cuCtxSynchronize")
        return work.values(y)

    results = [last_of(seed) for seed in range(1, 9)]
    assert all(len(result) == 1 for result in results)
    assert len({result.pop() for result in results}) > 2


def test_polling_gets_on(late_driver: Driver, work: Work) -> None:
    y, stream, event = work.array(), late_driver.stream(), late_driver.event()
    work.fill(y, 1, stream)
    work.fill(y, 2, stream)
    late_driver.call("cuEventRecord", event, stream)
    for value in (1, 2, 2):  # the third piece is the record
        with pytest.raises(CudaError) as caught:
            late_driver.call("cuEventQuery", event)
        assert caught.value.name == NOT_READY
        assert work.values(y) == {value}
    late_driver.call("cuEventQuery", event)
    late_driver.call("cuStreamQuery", stream)


def test_a_destroyed_stream_still_does_its_work(late_driver: Driver, work: Work) -> None:
    y, stream = work.array(), late_driver.stream()
    work.fill(y, 3, stream)
    late_driver.call("cuStreamDestroy_v2", stream)
    assert work.values(y) == {0}
    late_driver.call("cuCtxSynchronize")
    assert work.values(y) == {3}


def test_a_destroyed_event_is_still_waited_for(late_driver: Driver, work: Work) -> None:
    y, producer, consumer, event = work.array(), late_driver.stream(), late_driver.stream(), late_driver.event()
    work.fill(y, 3, producer)
    late_driver.call("cuEventRecord", event, producer)
    late_driver.call("cuStreamWaitEvent", consumer, event, 0)
    late_driver.call("cuEventDestroy_v2", event)
    late_driver.call("cuStreamSynchronize", consumer)
    assert work.values(y) == {3}


def test_memory_that_is_used_too_early_again(late_driver: Driver, work: Work) -> None:
    """A workspace goes back to a pool, and on to another stream, before its first user is done."""
    workspace, y, first, second = work.array(), work.array(), late_driver.stream(), late_driver.stream()
    work.fill(workspace, 1, first)
    work.add(y, workspace, first)
    work.fill(workspace, 100, second)
    late_driver.call("cuStreamSynchronize", second)
    work.fill(workspace, 1, second)
    late_driver.call("cuStreamSynchronize", first)
    assert work.values(workspace) == {1}
    assert work.values(y) == {1}


# ---- Default streams -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [None, LEGACY], ids=["null", "legacy"])
def test_the_legacy_stream_waits_for_blocking_streams(
    late_driver: Driver, work: Work, legacy: ctypes.c_void_p | None
) -> None:
    x, y, blocking = work.array(), work.array(), late_driver.stream(flags=0)
    work.fill(x, 3, blocking)
    work.add(y, x, legacy)
    late_driver.call("cuStreamSynchronize", legacy)
    assert work.values(y) == {3}


def test_blocking_streams_wait_for_the_legacy_stream(late_driver: Driver, work: Work) -> None:
    x, y, blocking = work.array(), work.array(), late_driver.stream(flags=0)
    work.fill(x, 3, None)
    work.add(y, x, blocking)
    late_driver.call("cuStreamSynchronize", blocking)
    assert work.values(y) == {3}


def test_other_streams_do_not_wait_for_the_legacy_stream(late_driver: Driver, work: Work) -> None:
    x, y, stream = work.array(), work.array(), late_driver.stream()
    work.fill(x, 3, None)
    work.add(y, x, stream)
    late_driver.call("cuStreamSynchronize", stream)
    assert work.values(y) == {0}


def test_each_thread_has_a_default_stream_of_its_own(late_driver: Driver, work: Work) -> None:
    y = work.array()

    def elsewhere() -> None:
        late_driver.call("cuCtxSetCurrent", late_driver.context)
        late_driver.call("cuStreamSynchronize", PER_THREAD)

    work.fill(y, 3, PER_THREAD)
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert work.values(y) == {0}
    late_driver.call("cuStreamSynchronize", PER_THREAD)
    assert work.values(y) == {3}


# ---- Errors ----------------------------------------------------------------------------------------------------------


def test_an_error_is_reported_by_the_launch(driver: Driver, work: Work) -> None:
    short = driver.upload(np.zeros(8, np.float32))
    with pytest.raises(CudaError) as caught:
        work.fill(short, 3, driver.stream())
    assert caught.value.name == "ILLEGAL_ADDRESS"
    assert caught.value.detail == (
        "kernel.cu:4: write of 4 bytes at byte 32 of argument 0, which has 32 bytes: right past its end "
        "[fill, block (0, 0, 0), thread (8, 0, 0)]"
    )


def test_a_late_error_is_reported_by_the_call_that_waits(late_driver: Driver, work: Work) -> None:
    short, stream = late_driver.upload(np.zeros(8, np.float32)), late_driver.stream()
    work.fill(short, 3, stream)
    with pytest.raises(CudaError) as caught:
        late_driver.call("cuStreamSynchronize", stream)
    assert caught.value.name == "ILLEGAL_ADDRESS"
    assert caught.value.detail == (
        "kernel.cu:4: write of 4 bytes at byte 32 of argument 0, which has 32 bytes: right past its end "
        "[fill, block (0, 0, 0), thread (8, 0, 0)], which was launched by an earlier call"
    )
    late_driver.call("cuStreamSynchronize", stream)


def test_stale_handles(driver: Driver, work: Work) -> None:
    stream, event = driver.stream(), driver.event()
    driver.call("cuStreamDestroy_v2", stream)
    driver.call("cuEventDestroy_v2", event)
    for function, handle in (("cuStreamSynchronize", stream), ("cuEventSynchronize", event)):
        with pytest.raises(CudaError) as caught:
            driver.call(function, handle)
        assert caught.value.name == "INVALID_HANDLE"
        assert "or one that was destroyed" in caught.value.detail


# ---- Host functions --------------------------------------------------------------------------------------------------

HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
Callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


def test_a_host_function_runs_in_its_turn(late_driver: Driver, work: Work) -> None:
    y, stream = work.array(), late_driver.stream()
    seen: list[set[float]] = []
    function = HostFunction(lambda _: seen.append(work.values(y)))
    work.fill(y, 1, stream)
    late_driver.call("cuLaunchHostFunc", stream, function, None)
    work.fill(y, 2, stream)
    assert seen == []
    late_driver.call("cuStreamSynchronize", stream)
    assert seen == [{1}]


def test_a_callback_is_told_its_stream(driver: Driver) -> None:
    stream = driver.stream()
    seen: list[tuple[int, int, int]] = []
    callback = Callback(lambda *arguments: seen.append(arguments))
    driver.call("cuStreamAddCallback", stream, callback, ctypes.c_void_p(7), 0)
    assert seen == [(stream.value, 0, 7)]


def test_a_host_function_must_not_call_cuda(driver: Driver, work: Work) -> None:
    y, stream = work.array(), driver.stream()
    names: list[str] = []

    def call_cuda(_: int) -> None:
        with pytest.raises(CudaError) as caught:
            work.fill(y, 1, stream)
        names.append(caught.value.name)

    driver.call("cuLaunchHostFunc", stream, HostFunction(call_cuda), None)
    assert names == ["NOT_PERMITTED"]


def test_a_host_function_may_wait_for_a_thread_that_calls_cuda(late_driver: Driver, work: Work) -> None:
    y, stream, other = work.array(), late_driver.stream(), late_driver.stream()

    def elsewhere() -> None:
        late_driver.call("cuCtxSetCurrent", late_driver.context)
        work.fill(y, 5, other)
        late_driver.call("cuStreamSynchronize", other)

    def wait(_: int) -> None:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    function = HostFunction(wait)
    late_driver.call("cuLaunchHostFunc", stream, function, None)
    late_driver.call("cuStreamSynchronize", stream)
    assert work.values(y) == {5}


# ---- Properties ------------------------------------------------------------------------------------------------------


def test_properties_of_streams(driver: Driver) -> None:
    stream = driver.handle("cuStreamCreateWithPriority", 1, -99)
    flags, priority, context = ctypes.c_uint(), ctypes.c_int(), ctypes.c_void_p()
    driver.call("cuStreamGetFlags", stream, ctypes.byref(flags))
    driver.call("cuStreamGetPriority", stream, ctypes.byref(priority))
    driver.call("cuStreamGetCtx", stream, ctypes.byref(context))
    assert (flags.value, priority.value, context.value) == (1, -5, driver.context.value)
    ids = [ctypes.c_uint64(), ctypes.c_uint64()]
    for handle, number in zip((stream, driver.stream()), ids, strict=True):
        driver.call("cuStreamGetId", handle, ctypes.byref(number))
    assert ids[0].value != ids[1].value


@pytest.mark.parametrize(
    ("flags", "records", "name"),
    [((0, 2), 2, "INVALID_HANDLE"), ((0, 0), 1, "INVALID_HANDLE")],
    ids=["flags", "record"],
)
def test_elapsed_time_needs_two_timed_records(driver: Driver, flags: tuple[int, int], records: int, name: str) -> None:
    events = [driver.event(flag) for flag in flags]
    for event in events[:records]:
        driver.call("cuEventRecord", event, None)
    with pytest.raises(CudaError) as caught:
        driver.number("cuEventElapsedTime", *events, kind=ctypes.c_float)
    assert caught.value.name == name


def test_elapsed_time_is_known_when_both_are_done(late_driver: Driver) -> None:
    stream, events = late_driver.stream(), [late_driver.event(), late_driver.event()]
    for event in events:
        late_driver.call("cuEventRecord", event, stream)
    with pytest.raises(CudaError) as caught:
        late_driver.number("cuEventElapsedTime", *events, kind=ctypes.c_float)
    assert caught.value.name == NOT_READY
    late_driver.call("cuStreamSynchronize", stream)
    assert late_driver.number("cuEventElapsedTime", *events, kind=ctypes.c_float) >= 0
