"""Timing of a GPU by the benchmarks, on a device that is a clock."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gpu_fakes import ClockDevice

from benchmarks.gpu import device as devices
from benchmarks.gpu import limits, sampling
from benchmarks.gpu.sampling import Sampler, Subject, interleave
from gpucnn.backends.cuda.device.nvrtc import Nvrtc

# Samples ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host_s", [2e-6, 100e-6, 5e-3])
@pytest.mark.parametrize("seconds", [3e-6, 1e-3])
def test_a_cold_time_is_the_devices_alone(clock: ClockDevice, seconds: float, host_s: float) -> None:
    sampler = Sampler(clock, clock.call(seconds, host_s))
    assert sampler.cold() == pytest.approx(seconds)
    assert sampler.exposed == 0
    assert sampler.hold_s <= sampling.MAX_HOLD_S


def test_what_is_queued_for_a_cold_sample(clock: ClockDevice) -> None:
    sampler = Sampler(clock, clock.call(1e-3, 1e-6))
    for _ in range(3):
        clock.log.clear()
        sampler.cold()
        assert clock.log == ["hold", "flush", "event", "call", "event"]


def test_the_hold_grows_until_the_host_is_hidden(clock: ClockDevice) -> None:
    sampler = Sampler(clock, clock.call(1e-6, 300e-6))
    assert sampler.hold_s == sampling.MIN_HOLD_S
    sampler.cold()
    assert clock.log.count("flush") == 4  # held for 50, 100, 200 and 400 us, and the flush
    assert sampler.hold_s == pytest.approx(400e-6)
    clock.log.clear()
    sampler.cold()
    assert clock.log.count("flush") == 1


def test_a_warm_up_finds_the_hold(clock: ClockDevice) -> None:
    sampler = Sampler(clock, clock.call(1e-6, 300e-6))
    assert sampler.warm_up() == pytest.approx(301e-6)
    assert sampler.hold_s == pytest.approx(600e-6)
    clock.log.clear()
    sampler.cold()
    assert clock.log.count("flush") == 1


def test_a_call_that_waits_for_the_device_is_counted_as_exposed(clock: ClockDevice) -> None:
    sampler = Sampler(clock, clock.call(5e-6, 20e-6, waits=True))
    assert sampler.cold() >= 5e-6
    assert sampler.exposed == 1
    assert clock.log.count("call") == sampling.TRIES
    assert sampler.hold_s <= sampling.MAX_HOLD_S


def test_beside_a_long_call_the_host_does_not_matter(clock: ClockDevice) -> None:
    sampler = Sampler(clock, clock.call(0.5, 1e-5, waits=True))
    sampler.cold()
    assert (clock.log.count("call"), sampler.exposed) == (1, 0)


def test_a_warm_time_is_a_mean_without_a_flush(clock: ClockDevice) -> None:
    sampler = Sampler(clock, clock.call(20e-6, 1e-6))
    assert sampler.warm(10) == pytest.approx(20e-6, rel=0.01)
    assert clock.log == ["hold", "call", "event", *["call"] * 10, "event"]


def test_the_hosts_time_is_without_the_devices(clock: ClockDevice) -> None:
    sampler = Sampler(clock, clock.call(1e-3, 7e-6))
    assert sampler.host(8) == pytest.approx(7e-6)
    assert clock.host == pytest.approx(clock.device)  # waited for afterwards
    timing = sampling.host_time(clock, clock.raw_launch(4))
    assert timing.median == pytest.approx(3e-6)
    assert sampling.overhead(clock, clock.raw_launch(4)).median == pytest.approx(1e-6)


# Turns ------------------------------------------------------------------------------------------------------------


def test_all_calls_are_measured_alike_and_take_turns(clock: ClockDevice) -> None:
    subjects = {
        "quick": Subject(clock.call(10e-6, 5e-6, name="quick")), "slow": Subject(clock.call(80e-6, 50e-6, name="slow"))
    }  # fmt: skip
    measured = interleave(clock, subjects, budget_s=1.0, max_rounds=12)
    for name, seconds, host_s in (("quick", 10e-6, 5e-6), ("slow", 80e-6, 50e-6)):
        times: Any = measured[name]
        assert times.cold.median == pytest.approx(seconds)
        assert times.cold.samples == 12
        assert times.warm.median == pytest.approx(seconds, rel=0.2)
        assert times.host.median == pytest.approx(host_s)
        assert times.exposed == 0
    flushed = [clock.log[place + 2] for place, name in enumerate(clock.log) if name == "flush"]
    assert flushed.count("quick") == flushed.count("slow") == 12
    assert flushed[:6] == ["quick", "slow", "slow", "quick", "quick", "slow"]


def test_the_hosts_time_is_the_hot_calls(clock: ClockDevice) -> None:
    subject = Subject(clock.call(1e-5, 50e-6), hot=clock.call(1e-5, 6e-6, name="hot"))
    measured: Any = interleave(clock, {"a": subject}, budget_s=0.1)
    assert measured["a"].host.median == pytest.approx(6e-6)
    assert measured["a"].cold.median == pytest.approx(1e-5)
    assert "hot" in clock.log


def test_a_short_budget_still_gives_each_call_some_rounds(clock: ClockDevice) -> None:
    measured: Any = interleave(clock, {"a": Subject(clock.call(1e-3, 1e-5))}, budget_s=0.0)
    assert measured["a"].cold.samples == sampling.MIN_ROUNDS


def test_a_slow_call_has_few_turns_and_takes_none_from_others(clock: ClockDevice) -> None:
    subjects = {"slow": Subject(clock.call(2.0, 1e-5, name="slow")), "quick": Subject(clock.call(1e-4, 1e-5))}
    measured: Any = interleave(clock, subjects, budget_s=1.0, max_rounds=20)
    assert measured["slow"].cold.samples == sampling.SLOW_ROUNDS
    assert measured["slow"].cold.median == pytest.approx(2.0)
    assert measured["quick"].cold.samples == 20
    assert clock.log.count("slow") <= 8
    clock.log.clear()
    measured = interleave(clock, {"slow": subjects["slow"]}, budget_s=0.0)
    assert measured["slow"].host.median == pytest.approx(1e-5)


def test_a_call_that_fails_leaves_the_others(clock: ClockDevice) -> None:
    calls = iter([None] * 5)

    def failing() -> None:
        next(calls)

    with_within: list[str] = []

    def within(function: Any) -> Any:
        with_within.append("here")
        return function()

    subjects = {"fails": Subject(failing), "fine": Subject(clock.call(1e-6, 1e-6), within)}
    measured: Any = interleave(clock, subjects, budget_s=0.1)
    assert isinstance(measured["fails"], StopIteration)
    assert measured["fine"].cold.median == pytest.approx(1e-6)
    assert len(with_within) > 10


# The GPU ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def device(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> devices.CupyDevice:
    """The current GPU; its cache is that of the smallest flush, and `hold` and `read` are not launched but kept."""
    monkeypatch.setattr(devices, "MIN_FLUSHED", 1 << 20)
    device = devices.CupyDevice()
    device.l2_bytes = 1 << 20
    return device


def launched(device: devices.CupyDevice) -> list[Any]:
    """What the device launches of `hold` and `read` from now on, which are not run."""
    launches: list[Any] = []
    device._hold_kernel = lambda *launch: launches.append(("hold", *launch))
    device._read_kernel = lambda *launch: launches.append(("read", *launch))
    return launches


def test_cupys_device_flushes_twice_the_cache(cupy: Any, device: devices.CupyDevice) -> None:
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    assert devices.CupyDevice().l2_bytes == properties["l2CacheSize"]
    assert device.name == properties["name"].decode()
    launches = launched(device)
    values = set()
    for _ in range(2):
        device.flush()
        written = cupy.asnumpy(device._flushed[0])
        assert written.nbytes == 2 << 20
        values |= set(written.tobytes())
    assert len(values) == 2  # other bytes each time
    for name, grid, block, (read, count, never) in launches:
        assert (name, grid, block) == ("read", (4 * properties["multiProcessorCount"],), (256,))
        assert (read.nbytes, int(count), never.size) == (2 << 20, (2 << 20) // 16, 1)
    device.hold(25e-6)
    assert launches[-1] == ("hold", (1,), (1,), (np.uint64(25_000),))


def test_cupys_device_reads_what_it_wrote(cupy: Any, device: devices.CupyDevice) -> None:
    device._read_kernel = cupy.RawKernel(
        devices.SOURCE[devices.SOURCE.index('extern "C" __global__ void read') :], "read"
    )
    device.flush()
    device.synchronize()
    assert device._flushed[2].tolist() == [0]


def test_cupys_events_are_in_seconds(cupy: Any, device: devices.CupyDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    first, last = device.event(), device.event()
    monkeypatch.setattr(cupy.cuda, "get_elapsed_time", lambda begin, end: 3.0 if (begin, end) == (first, last) else 0)
    assert device.seconds(first, last) == pytest.approx(3e-3)
    assert device.reached(last)


def test_a_raw_launch_passes_arrays_and_a_structure(device: devices.CupyDevice) -> None:
    for arrays in (0, 3):
        device.raw_launch(arrays)()
    device.synchronize()


def test_cupys_device_gives_memory_back(cupy: Any, device: devices.CupyDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = cupy.cuda.MemoryPool()
    monkeypatch.setattr(cupy, "get_default_memory_pool", lambda: pool)
    with cupy.cuda.using_allocator(pool.malloc):
        device.spoil(1 << 20)
    assert pool.free_bytes() == 1 << 20
    device.release()
    assert pool.free_bytes() == 0
    assert device.free_bytes() == cupy.cuda.runtime.memGetInfo()[0]


def test_small_caches_are_flushed_all_the_same(device: devices.CupyDevice) -> None:
    launched(device)
    device.l2_bytes = 0
    device.flush()
    assert device._flushed[0].nbytes == devices.MIN_FLUSHED


def test_a_stream_that_is_not_the_default_one_is_refused(cupy: Any, device: devices.CupyDevice) -> None:
    with cupy.cuda.Stream(), pytest.raises(RuntimeError, match="CUPY_CUDA_PER_THREAD_DEFAULT_STREAM"):
        device.flush()


@pytest.mark.parametrize("text", [devices.SOURCE, devices.raw_source(0), devices.raw_source(5)])
def test_the_kernels_of_the_timing_compile(nvrtc_library: Nvrtc, text: str) -> None:
    assert nvrtc_library.compile(text, "bench.cu", ("-arch=sm_90",))


def test_the_copys_rate_counts_what_is_read_and_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    device: Any = ClockDevice()
    device.xp = np
    sizes: list[int] = []

    def copies(xp: Any, nbytes: int) -> list[Any]:
        sizes.append(nbytes)
        return [device.call(4e-3, 1e-6), device.call(2e-3, 1e-6)]

    products = {"float32": lambda: device.call(1.0, 1e-6), "float16": lambda: device.call(0.1, 1e-6)}
    monkeypatch.setattr(limits, "_copies", copies)
    monkeypatch.setattr(limits, "_products", lambda xp: ("a library", products))
    measured = limits.measure_limits(device)
    assert sizes == [1 << 29]  # the device's 8 GiB are to hold it eight times
    assert measured.copy_bytes == pytest.approx(2 * sizes[0] / 2e-3)
    assert measured.gemm_flops == pytest.approx(2 * 8192**3)
    assert measured.other_flops == {"float16": pytest.approx(2 * 8192**3 / 0.1)}
    assert measured.flops("float16") == measured.other_flops["float16"]
    assert measured.flops("float32") == measured.flops("bfloat16") == measured.gemm_flops
