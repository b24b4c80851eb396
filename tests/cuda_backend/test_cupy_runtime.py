"""CuPy as the CUDA backend's runtime: devices, loading and launches, on the real CuPy and a real or simulated GPU."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cupy_watch import Watch

import gpucnn.functional as F
from gpucnn import backends
from gpucnn.backends.cuda.device import cupy_runtime
from gpucnn.backends.cuda.device.compiler import Binary, default_folder
from gpucnn.backends.cuda.device.cupy_runtime import CupyFunction, CupyRuntime
from gpucnn.backends.cuda.device.runtime import Device, Function, Runtime
from gpucnn.backends.cuda.device.sources import Source

SOURCE = Source(
    "add",
    "add[int32]",
    """
struct Params { int step, count; };
extern "C" __global__ void add(int* x, const int* absent, const Params p) {
  extern __shared__ int shared[];
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (absent == nullptr && i < p.count) x[i] += p.step;
}
""",
)
PARAMS = np.dtype([("step", "i4"), ("count", "i4")])


@pytest.fixture
def runtime(cupy: Any) -> CupyRuntime:
    return CupyRuntime()


def parameters(step: int) -> Any:
    return np.array((step, 50), PARAMS).view(f"V{PARAMS.itemsize}")


def add(runtime: CupyRuntime, function: Function, x: Any, step: int, shared_bytes: int = 0) -> None:
    """Add `step` to the 50 elements of x."""
    function((2,), (32,), (x, runtime.null, runtime.by_value(parameters(step))), shared_mem=shared_bytes)


def function_of(runtime: CupyRuntime, index: int = 0) -> CupyFunction:
    with runtime.xp.cuda.Device(index):
        function = runtime.function(SOURCE, runtime.device(runtime.xp.empty(1)))
    assert isinstance(function, CupyFunction)
    return function


def test_it_is_a_runtime(runtime: CupyRuntime, cupy: Any) -> None:
    typed: Runtime = runtime
    assert typed.xp is cupy
    assert typed.specialises == (cupy_runtime.os.environ.get("GPUCNN_BUILDS") != "generic")
    assert hash(runtime) == hash(runtime)


def test_builds_are_chosen_by_the_environment(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUCNN_BUILDS", "generic")
    assert not CupyRuntime().specialises
    monkeypatch.setenv("GPUCNN_BUILDS", "fast")
    with pytest.raises(ValueError, match="is 'fast', expected 'specialised' or 'background' or 'generic'"):
        CupyRuntime()


@pytest.mark.parametrize("has_ready_arguments", [True, False])
def test_arguments_are_made_ready_where_cupy_lets_them(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, has_ready_arguments: bool
) -> None:
    if not has_ready_arguments:
        monkeypatch.setattr(cupy.cuda, "function", None)
    runtime = CupyRuntime()
    kinds = [type(runtime.null).__name__, type(runtime.by_value(parameters(1))).__name__]
    assert kinds == (["CIntptr", "CNumpyArray"] if has_ready_arguments else ["uint64", "ndarray"])
    x = cupy.arange(50, dtype=np.int32)
    add(runtime, function_of(runtime), x, 7)
    assert x.tolist() == list(range(7, 57))


def test_cupys_own_function_is_launched_where_it_can_be_had(runtime: CupyRuntime, cupy: Any) -> None:
    function = function_of(runtime)
    bare = runtime.here(function, 0)
    assert type(bare) is cupy.cuda.Function
    x = cupy.zeros(50, np.int32)
    bare((2,), (32,), (x, runtime.null, runtime.by_value(parameters(3))), shared_mem=0)
    assert x.tolist() == [3] * 50


def test_makers_of_new_arrays(runtime: CupyRuntime, watch: Watch) -> None:
    made = [
        runtime.maker((2, 3), strides, np.dtype(np.float32), zeros)()
        for strides in ((12, 4), (4, 8))
        for zeros in (False, True)
    ]
    assert [(array.shape, array.strides, array.dtype) for array in made] == [
        ((2, 3), strides, np.float32) for strides in ((12, 4), (12, 4), (4, 8), (4, 8))
    ]
    assert [made[1].tolist(), made[3].tolist()] == [[[0.0] * 3] * 2] * 2
    assert watch.allocated[:4] == [24] * 4


def test_times_are_the_median_between_events(runtime: CupyRuntime, cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, done = iter([0.0, 5.0, 10.0, 11.0, 20.0, 22.5]), []

    class Event:
        def record(self) -> None:
            self.at = next(clock)

        def synchronize(self) -> None:
            done.append(self.at)

    monkeypatch.setattr(cupy.cuda, "Event", Event)
    monkeypatch.setattr(cupy.cuda, "get_elapsed_time", lambda begin, end: end.at - begin.at)
    called: list[int] = []
    assert runtime.milliseconds(lambda: called.append(1), runs=3) == 2.5
    assert (len(called), done) == (3, [5.0, 11.0, 22.5])


def test_calls_are_timed(runtime: CupyRuntime, cupy: Any) -> None:
    x, function = cupy.zeros(50, np.int32), function_of(runtime)
    assert runtime.milliseconds(lambda: add(runtime, function, x, 1), runs=3) >= 0
    assert x.tolist() == [3] * 50


def test_picks_are_those_of_the_current_device(runtime: CupyRuntime, cupy: Any, two_devices: None) -> None:
    first = runtime.autotune_cache()
    assert runtime.autotune_cache() is first
    assert first._facts["device"] == cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    assert first._facts["driver"] == cupy.cuda.runtime.driverGetVersion()
    assert runtime.autotune_cache(anew=True) is not first
    with cupy.cuda.Device(1):
        assert runtime.autotune_cache() is not runtime._autotune_caches[0]


def test_devices(runtime: CupyRuntime, cupy: Any) -> None:
    for index in range(cupy.cuda.runtime.getDeviceCount()):
        facts = cupy.cuda.runtime.getDeviceProperties(index)
        with cupy.cuda.Device(index):
            array = cupy.empty(1)
        capability = facts["major"], facts["minor"]
        expected = Device(index, facts["name"].decode(), capability, facts["multiProcessorCount"])
        assert runtime.device(array) == expected
        assert runtime.device(array) is runtime.device(array)


def test_constants_are_on_their_device(runtime: CupyRuntime, cupy: Any, two_devices: None) -> None:
    host = np.arange(3)
    with cupy.cuda.Device(1):
        device = runtime.device(cupy.empty(1))
    copy = runtime.constant(host, device)
    assert (copy.tolist(), copy.dtype, copy.data.device_id) == ([0, 1, 2], host.dtype, 1)
    assert cupy.cuda.runtime.getDevice() == 0


def test_a_launch_goes_to_the_kernels_device(runtime: CupyRuntime, cupy: Any, two_devices: None) -> None:
    first, second = functions = [function_of(runtime, index) for index in (0, 1)]
    assert [function_of(runtime, index) for index in (0, 1)] == functions
    assert first is not second
    with cupy.cuda.Device(1):
        x = cupy.arange(50, dtype=np.int32)
        add(runtime, second, x, 10)
    add(runtime, second, x, 1)
    add(runtime, second, x, 1, shared_bytes=100)
    assert cupy.cuda.runtime.getDevice() == 0
    assert cupy.asnumpy(x).tolist() == list(range(12, 62))


def test_a_binary_that_could_not_be_kept_is_loaded_from_a_temporary_file(
    runtime: CupyRuntime, cupy: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiled = runtime.compiler.compile
    kept_nowhere = SimpleNamespace(compile=lambda *wanted: Binary("x.cubin", compiled(*wanted).image, None))
    runtime.__dict__["compiler"] = kept_nowhere
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    x = cupy.zeros(50, np.int32)
    add(runtime, function_of(runtime), x, 2)
    assert x.tolist() == [2] * 50
    assert not list(tmp_path.iterdir())


def test_a_binary_that_the_driver_refuses(runtime: CupyRuntime) -> None:
    runtime.__dict__["compiler"] = SimpleNamespace(compile=lambda *wanted: Binary("x.cubin", b"the image", None))
    with pytest.raises(Exception, match="CUDA_ERROR") as caught:
        function_of(runtime)
    assert caught.value.__notes__[0].startswith("gpucnn: the driver did not load add[int32] from ")


def test_shared_memory_beyond_48_kib_is_asked_for_once(runtime: CupyRuntime, cupy: Any) -> None:
    function, asked = function_of(runtime), []
    kernel = function._kernel

    class Settings:
        def __setattr__(self, name: str, value: int) -> None:
            asked.append((name, value))
            setattr(kernel, name, value)

    function._kernel = Settings()
    x, own = cupy.zeros(50, np.int32), kernel.shared_size_bytes
    sizes = [0, 47 << 10, (48 << 10) - own, (48 << 10) - own + 1, (48 << 10) - own + 1, 60 << 10, 50 << 10]
    for shared_bytes in sizes:
        add(runtime, function, x, 1, shared_bytes)
    assert asked == [("max_dynamic_shared_size_bytes", size) for size in (sizes[3], 60 << 10)]
    assert x.tolist() == [len(sizes)] * 50


def test_a_kernel_is_compiled_once_for_all_processes(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GPUCNN_CACHE_DIR", str(tmp_path))
    assert default_folder() is not None
    device = CupyRuntime().device(cupy.empty(1))
    runtimes = [CupyRuntime() for _ in range(2)]
    assert [runtime.prepare(SOURCE, device) for runtime in runtimes] == [True, False]
    x = cupy.zeros(50, np.int32)
    add(runtimes[1], function_of(runtimes[1]), x, 1)
    assert not runtimes[1].prepare(SOURCE, device)
    assert x.tolist() == [1] * 50


def test_facts(cupy: Any) -> None:
    facts = cupy_runtime.facts()
    assert len(facts["devices"]) == cupy.cuda.runtime.getDeviceCount()
    assert facts.keys() == {"devices", "driver", "runtime", "nvrtc", "builds", "cublas"}
    assert cupy_runtime.why_unavailable() is None


def test_values_are_those_of_numpy(cupy: Any, rng: np.random.Generator) -> None:
    """A call for each kind of request: a kernel, a product, parts of sums, a table of constants."""
    x, w, b = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((2, 16, 8, 8), (32, 16, 3, 3), (32,)))
    calls = [
        partial(F.max_pool2d, x, 2),
        partial(F.conv2d, x, w, b, padding=1),
        partial(F.conv2d_weight, x, w.shape, F.conv2d(x, w)),
        partial(F.interpolate, x, None, 2, "nearest"),
    ]
    backend = backends.backend_named("cuda")
    for call in calls:
        given = [cupy.asarray(arg) if isinstance(arg, np.ndarray) else arg for arg in call.args]
        for _ in range(2):  # as recorded, and as replayed
            result = call.func(*given, **call.keywords)
            np.testing.assert_array_equal(cupy.asnumpy(result), call(), strict=True)
    assert backend.name == "cuda"
