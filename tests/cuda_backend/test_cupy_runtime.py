"""CuPy as the CUDA backend's runtime: devices, loading and launches, held against a CuPy that only writes down."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_cupy import FakeCupy, FakeKernel

from gpucnn.backends.cuda.device.compiler import Binary
from gpucnn.backends.cuda.device.cupy_runtime import CupyRuntime
from gpucnn.backends.cuda.device.runtime import Device, Runtime
from gpucnn.backends.cuda.device.sources import Source

SOURCE = Source("add", "add[float32]", "the text")


@pytest.fixture
def runtime(cupy: FakeCupy) -> CupyRuntime:
    return CupyRuntime()


def array_on(index: int) -> Any:
    return SimpleNamespace(data=SimpleNamespace(device_id=index))


def test_it_is_a_runtime(runtime: CupyRuntime, cupy: FakeCupy) -> None:
    typed: Runtime = runtime
    assert typed.xp is cupy
    assert typed.specialises
    assert hash(runtime) == hash(runtime)


def test_builds_are_chosen_by_the_environment(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUCNN_BUILDS", "generic")
    assert not CupyRuntime().specialises
    monkeypatch.setenv("GPUCNN_BUILDS", "fast")
    with pytest.raises(ValueError, match="GPUCNN_BUILDS is 'fast', expected 'specialised' or 'generic'"):
        CupyRuntime()


def test_arguments_are_made_ready_where_cupy_lets_them(cupy: FakeCupy) -> None:
    record = np.array(b"four", "V4")
    runtime = CupyRuntime()
    assert (runtime.null, runtime.by_value(record)) == (np.uint64(0), record)
    cupy.cuda.function = SimpleNamespace(
        CIntptr=lambda value: ("pointer", value), CNumpyArray=lambda value: ("by value", value)
    )
    runtime = CupyRuntime()
    assert (runtime.null, runtime.by_value(record)) == (("pointer", 0), ("by value", record))


def test_cupys_own_function_is_launched_where_it_can_be_had(
    runtime: CupyRuntime, cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[Any] = []
    monkeypatch.setattr(FakeKernel, "kernel", lambda *args, **named: launched.append((args, named)), raising=False)
    function = runtime.function(SOURCE, runtime.device(array_on(1)))
    runtime.here(function, 0)((5,), (64,), (), shared_mem=0)
    assert launched[0][0][-3:] == ((5,), (64,), ())


def test_makers_of_new_arrays(runtime: CupyRuntime, cupy: FakeCupy) -> None:
    made = [
        runtime.maker((2, 3), strides, np.dtype(np.float32), zeros)()
        for strides in ((12, 4), (4, 8))
        for zeros in (False, True)
    ]
    assert [(array.shape, array.strides, array.dtype) for array in made] == [
        ((2, 3), strides, np.float32) for strides in ((12, 4), (12, 4), (4, 8), (4, 8))
    ]
    assert cupy.computed == ["zeros", "memset"]
    assert cupy.allocated == 4


def test_times_are_the_median_between_events(runtime: CupyRuntime, cupy: FakeCupy) -> None:
    clock, done = iter([0.0, 5.0, 10.0, 11.0, 20.0, 22.5]), []

    class Event:
        def record(self) -> None:
            self.at = next(clock)

        def synchronize(self) -> None:
            done.append(self.at)

    cupy.cuda.Event = Event
    cupy.cuda.get_elapsed_time = lambda begin, end: end.at - begin.at
    called: list[int] = []
    assert runtime.milliseconds(lambda: called.append(1), runs=3) == 2.5
    assert (len(called), done) == (3, [5.0, 11.0, 22.5])


def test_picks_are_those_of_the_current_device(runtime: CupyRuntime, cupy: FakeCupy) -> None:
    first = runtime.autotune_cache()
    assert runtime.autotune_cache() is first
    assert first._facts["device"] == "GPU 0"
    assert first._facts["driver"] == 12090
    assert runtime.autotune_cache(anew=True) is not first
    cupy.current = 1
    assert runtime.autotune_cache()._facts["compute capability"] == "8.6"


def test_devices(runtime: CupyRuntime) -> None:
    assert runtime.device(array_on(0)) == Device(0, "GPU 0", (8, 0), 100)
    assert runtime.device(array_on(1)) == Device(1, "GPU 1", (8, 6), 100)
    assert runtime.device(array_on(1)) is runtime.device(array_on(1))


def test_constants_are_waited_for_on_their_device(runtime: CupyRuntime, cupy: FakeCupy) -> None:
    host = np.arange(3)
    copy = runtime.constant(host, runtime.device(array_on(1)))
    assert (copy.shape, copy.dtype, copy.data.device_id) == ((3,), host.dtype, 1)
    assert cupy.waited == [1]
    assert cupy.current == 0


def test_each_device_has_its_own_binary(runtime: CupyRuntime, cupy: FakeCupy) -> None:
    functions = [runtime.function(SOURCE, runtime.device(array_on(index))) for index in (0, 1, 0, 1)]
    assert functions[:2] == functions[2:]
    for kernel, architecture in zip(cupy.kernels, (b"sm_80", b"sm_86"), strict=True):
        assert b"the text" in kernel.image
        assert architecture in kernel.image
    assert [kernel.loaded_on for kernel in cupy.kernels] == [0, 1]
    assert [kernel.name for kernel in cupy.kernels] == ["add", "add"]
    assert cupy.current == 0


def test_a_binary_that_could_not_be_kept_is_loaded_from_a_temporary_file(runtime: CupyRuntime, cupy: FakeCupy) -> None:
    runtime.__dict__["compiler"] = SimpleNamespace(compile=lambda source, target: Binary("x.cubin", b"the image", None))
    runtime.function(SOURCE, runtime.device(array_on(1)))
    (kernel,) = cupy.kernels
    assert kernel.image == b"the image"
    assert not Path(kernel.module.path).exists()


def test_a_binary_that_the_driver_refuses(runtime: CupyRuntime, cupy: FakeCupy) -> None:
    cupy.broken = True
    with pytest.raises(RuntimeError, match="INVALID_IMAGE") as caught:
        runtime.function(SOURCE, runtime.device(array_on(0)))
    assert caught.value.__notes__[0].startswith("gpucnn: the driver did not load add[float32] from ")


def test_a_launch_goes_to_the_kernels_device(runtime: CupyRuntime, cupy: FakeCupy) -> None:
    function = runtime.function(SOURCE, runtime.device(array_on(1)))
    args = (array_on(1), runtime.null, np.int32(3), runtime.by_value(np.array(b"four", "V4")))
    function((5,), (64,), args)
    with runtime.using(runtime.device(array_on(1))):
        function((5, 2), (64, 2), args, shared_mem=100)
    assert args[1:] == (np.uint64(0), np.int32(3), np.array(b"four", "V4"))  # eight bytes of zeros are a null pointer
    assert cupy.kernels[0].launches == [(1, (5,), (64,), args, 0), (1, (5, 2), (64, 2), args, 100)]
    assert cupy.current == 0


def test_shared_memory_beyond_48_kib_is_asked_for_once(runtime: CupyRuntime, cupy: FakeCupy) -> None:
    function = runtime.function(SOURCE, runtime.device(array_on(0)))
    (kernel,) = cupy.kernels
    for shared_mem in (0, 47 * 1024, 47 * 1024 + 1, 47 * 1024 + 1, 100 * 1024, 64 * 1024):
        function((1,), (32,), (), shared_mem=shared_mem)
    assert kernel.settings == [47 * 1024 + 1, 100 * 1024]  # 1 KiB of the 48 is the kernel's own
    assert len(kernel.launches) == 6
