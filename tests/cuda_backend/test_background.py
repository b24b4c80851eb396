"""Compilation in the background: what serves meanwhile, when calls switch over, and what does not wait."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import gpucnn
import gpucnn.functional as F
from gpucnn import backends, simulator
from gpucnn.backends import replaying
from gpucnn.backends.cuda.device import background as module
from gpucnn.backends.cuda.device import compiler as compiler_module
from gpucnn.backends.cuda.device import cupy_runtime, nvrtc
from gpucnn.backends.cuda.device.autotune_cache import AutotuneCache
from gpucnn.backends.cuda.device.background import Background
from gpucnn.backends.cuda.device.compiler import Compiler
from gpucnn.backends.cuda.device.nvrtc import CompilationError, Nvrtc
from gpucnn.backends.cuda.device.runtime import Device, Function
from gpucnn.backends.cuda.device.simulator_runtime import SimulatorRuntime
from gpucnn.backends.cuda.device.sources import Source

SECONDS = 60.0  # that nothing here takes, unless it hangs


def build(source: Source) -> str:
    """Whether it is a specialised or a generic program."""
    return "specialised" if ",specialised" in source.name else "generic"


# --- On the simulator, as if it compiled specialised programs slowly ----------------------------------------------


class SlowRuntime(SimulatorRuntime):
    """The simulator with a background that compiles nothing before `let_go`; `failure` is what it then raises."""

    specialises = True

    def __init__(self) -> None:
        self.background = Background(self)
        self.let_go = threading.Event()
        self.failure: Exception | None = None
        self.capturing = False
        self.prepared: list[Source] = []
        self.loaded: set[Source] = set()
        self.compiled: list[str] = []  # by a call, which waited for it
        self.launched: list[str] = []

    def prepare(self, source: Source, device: Device) -> bool:
        if threading.current_thread().name == "gpucnn-compiler":  # not one of a warm-up
            assert self.let_go.wait(SECONDS)
        if self.failure is not None and build(source) == "specialised":
            raise self.failure
        SimulatorRuntime.function(self, source, device)
        self.prepared.append(source)
        return True

    def is_built(self, source: Source, device: Device) -> bool:
        return source in self.prepared

    def is_capturing(self) -> bool:
        return self.capturing

    def function(self, source: Source, device: Device) -> Function:  # type: ignore[override]
        function = SimulatorRuntime.function(self, source, device)
        if source not in self.loaded and source not in self.prepared:
            self.compiled.append(build(source))
        self.loaded.add(source)

        def launch(grid: Any, block: Any, args: Any, shared_mem: int = 0) -> None:
            self.launched.append(build(source))
            function(grid, block, args, shared_mem)

        return launch

    def drain(self) -> list[str]:
        """The builds that were launched since this was last asked."""
        launched, self.launched = self.launched, []
        return launched


@pytest.fixture
def slow(compiler: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowRuntime]:
    """The runtime of the simulator's arrays, with nothing planned or recorded yet."""
    with mock.patch.dict(backends._NATIVE), mock.patch.dict(replaying.REPLAYERS):
        runtime = SlowRuntime()
        backend = backends._with_replays(runtime)
        monkeypatch.setattr(backends, "_simulator_backend", lambda: backend)
        yield runtime
        runtime.let_go.set()
        runtime.background.wait()


X = np.random.default_rng(0).standard_normal((2, 3, 5, 6)).astype(np.float32)
W = np.random.default_rng(1).standard_normal((4, 3, 3, 2)).astype(np.float32)


def convolved(x: np.ndarray[Any, Any] = X) -> bytes:
    with gpucnn.algorithm("direct"):
        return simulator.asnumpy(F.conv2d(simulator.asarray(x), simulator.asarray(W), padding=1)).tobytes()


def recorded() -> int:
    replayer: Any = replaying.REPLAYERS[simulator.Array]
    return len(replayer.kept)


def test_the_generic_build_serves_until_the_specialised_one_is_compiled(slow: SlowRuntime) -> None:
    first = [convolved() for _ in range(3)]  # none of which waits
    assert slow.drain() == ["generic"] * 3
    assert slow.compiled == ["generic"]
    assert recorded() == 0
    slow.let_go.set()
    gpucnn.wait_for_builds()
    later = [convolved() for _ in range(3)]
    assert slow.drain() == ["specialised"] * 3
    assert slow.compiled == ["generic"]
    assert recorded() == 1
    assert set(first) == set(later)
    assert len(slow.prepared) == 1


def test_other_sizes_have_the_generic_build_at_once(slow: SlowRuntime) -> None:
    for width in (6, 5, 4):
        convolved(X[..., :width].copy())
    assert slow.drain() == ["generic"] * 3
    assert slow.compiled == ["generic"]


def test_sizes_that_do_not_recur_are_not_compiled(slow: SlowRuntime) -> None:
    slow.let_go.set()
    convolved()
    gpucnn.wait_for_builds()
    assert not slow.prepared
    convolved()
    gpucnn.wait_for_builds()
    assert list(map(build, slow.prepared)) == ["specialised"]


def test_what_is_on_disk_is_launched_by_the_first_call(slow: SlowRuntime) -> None:
    slow.is_built = lambda source, device: True  # type: ignore[method-assign]
    convolved()
    assert slow.drain() == ["specialised"]
    assert slow.background._thread is None


def test_each_program_of_a_call_switches_over_by_itself(slow: SlowRuntime) -> None:
    """A gradient of several kernels: it is recorded once all of them are those that stay."""
    x, w, grad = (simulator.asarray(np.ones(shape, np.float32)) for shape in ((1, 2, 4, 4), (3, 2, 1, 1), (1, 3, 4, 4)))

    def call() -> list[bytes]:
        with gpucnn.algorithm("direct"):
            results = F.conv2d_backward(grad, x, w, None)
        return [simulator.asnumpy(result).tobytes() for result in results[:2]]

    first = [call(), call()]
    launches = slow.drain()
    half = len(launches) // 2
    assert half > 1
    assert set(launches) == {"generic"}
    last = slow.background._queue.pop()
    slow.background._states.pop(last)
    slow.let_go.set()
    gpucnn.wait_for_builds()
    slow.let_go.clear()
    first.append(call())
    assert set(slow.drain()) == {"generic", "specialised"}
    assert recorded() == 0
    slow.let_go.set()
    gpucnn.wait_for_builds()
    assert [call(), call(), call()] == first
    assert slow.drain() == ["specialised"] * 3 * half
    assert recorded() == 1


def test_a_captured_call_waits_for_its_program(slow: SlowRuntime) -> None:
    """A graph would launch the generic build for as long as it is used."""
    slow.capturing = True
    convolved()
    assert (slow.drain(), slow.compiled) == (["specialised"], ["specialised"])
    slow.capturing = False
    other = X[..., :5].copy()
    for _ in range(2):
        convolved(other)
    assert slow.drain() == ["generic"] * 2
    slow.capturing = True
    convolved(other)  # the background has not compiled it yet
    assert slow.drain() == ["specialised"]
    assert not slow.prepared


def test_a_warm_up_leaves_nothing_to_the_background(slow: SlowRuntime) -> None:
    convolved()
    convolved()  # from now on, the background has it to compile
    slow.drain()
    case = ("conv2d", {"input": X.shape, "weight": W.shape, "padding": 1})
    with gpucnn.algorithm("direct"):
        gpucnn.warmup([case], backend="simulator", progress=False)
    assert set(slow.drain()) == {"specialised"}
    assert {"generic", "specialised"} <= set(map(build, slow.prepared))
    before = len(slow.compiled)
    convolved(X[..., :5].copy())
    assert slow.drain() == ["generic"]
    assert len(slow.compiled) == before


def test_what_does_not_compile_leaves_the_generic_build(slow: SlowRuntime) -> None:
    slow.failure = CompilationError("ptxas died")
    slow.let_go.set()
    others = X[..., :5].copy()
    expected = convolved(), convolved(others)
    convolved(), convolved(others)
    gpucnn.wait_for_builds()
    with pytest.warns(RuntimeWarning, match=r"^gpucnn: conv_forward\[.*background \(.*: ptxas died\)") as caught:
        assert convolved() == expected[0]
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        assert (convolved(), convolved(others)) == expected
        slow.capturing = True
        assert convolved() == expected[0]
    assert set(slow.drain()) == {"generic"}


def test_many_threads_ask_once(slow: SlowRuntime) -> None:
    with ThreadPoolExecutor(8) as threads:
        results = set(threads.map(lambda _: convolved(), range(24)))
        slow.let_go.set()
        gpucnn.wait_for_builds()
        results |= set(threads.map(lambda _: convolved(), range(24)))
    assert len(results) == 1
    assert len(slow.prepared) == 1
    assert slow.drain() == ["generic"] * 24 + ["specialised"] * 24


# --- The thread itself --------------------------------------------------------------------------------------------


class Programs:
    """A runtime without kernels, whose programs take `compile`."""

    def __init__(self, compile: Callable[[str], object]) -> None:
        self._compile = compile

    def prepare(self, source: Source, device: Any) -> bool:
        self._compile(source.name)
        return True

    def is_built(self, source: Source, device: Any) -> bool:
        return False

    def is_capturing(self) -> bool:
        return False


def ask(background: Background, name: str) -> bool:
    return background.is_ready(Source("kernel", name, ""), 0, recurs=True)


def test_programs_are_compiled_in_order_by_one_thread() -> None:
    compiled: list[tuple[str, int]] = []
    background = Background(Programs(lambda name: compiled.append((name, threading.get_ident()))))
    for name in "abc":
        assert not ask(background, name)
    background.wait()
    assert [name for name, _ in compiled] == ["a", "b", "c"]
    assert len({thread for _, thread in compiled} - {threading.get_ident()}) <= 3
    assert all(ask(background, name) for name in "abc")
    assert len(compiled) == 3
    assert background._thread is None  # there is none while there is nothing to do


def test_threads_that_ask_at_the_same_moment_ask_once() -> None:
    class Both(Programs):
        """Two threads find out at once that the program is not there."""

        def is_built(self, source: Source, device: Any) -> bool:
            both.wait(SECONDS)
            return False

    compiled: list[str] = []
    both, background = threading.Barrier(2), Background(Both(compiled.append))
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lambda _: ask(background, "a"), range(2))) == [False, False]
    background.wait()
    assert compiled == ["a"]


def test_waiting_where_nothing_is_compiled() -> None:
    gpucnn.wait_for_builds()
    Background(Programs(pytest.fail)).wait()


def test_calls_within_at_once_ask_for_nothing() -> None:
    background = Background(Programs(pytest.fail))
    with module.at_once():
        assert ask(background, "a")
    assert background._thread is None


def run(text: str) -> tuple[str, float]:
    """The output of a program, and the seconds that it took."""
    began = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(text)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout, time.perf_counter() - began


def test_the_end_of_a_program_waits_for_one_compilation_at_most() -> None:
    output, _ = run(
        """
        import atexit, threading, time
        from test_background import Background, Programs, ask
        started, begun, ended = threading.Event(), [], []

        def compile(name):
            begun.append(name)
            started.set()
            time.sleep(0.2)
            ended.append(name)

        background = Background(Programs(compile))
        for number in range(1000):
            ask(background, str(number))
        started.wait()
        # is called before the background is stopped, and an end that asks for more must not start another thread
        import gpucnn.backends.cuda.device.background as module
        atexit.unregister(module._stop)
        atexit.register(lambda: (ask(background, "more"), print(begun == ended, len(begun) < 50, background._thread)))
        atexit.register(module._stop)
        """
    )
    assert output == "True True None\n"


@pytest.mark.table(1)
@pytest.mark.parametrize("seconds", [0.02, 0.3, 0.5, 0.8])
def test_the_end_of_a_program_does_not_crash_nvrtc(nvrtc_library: Nvrtc, seconds: float) -> None:
    """As it did within most compilations, where the thread was not waited for."""
    run(
        f"""
        import time
        from gpucnn.backends.cuda.device import nvrtc
        from test_background import Background, Programs, ask
        loops = "for (int j = 0; j < 100; ++j) x[j] = x[j + 1] * {{i}}.5f + sinf(x[j + {{i}}]);"
        kernels = [f'extern "C" __global__ void k{{i}}(float* x) {{{{ {{loops.format(i=i)}} }}}}' for i in range(60)]
        library, options = nvrtc.load(), (*nvrtc.OPTIONS, "-arch=sm_90")
        background = Background(Programs(lambda name: library.compile(" ".join(kernels), name, options)))
        for number in range(100):
            ask(background, str(number))
        time.sleep({seconds})
        """
    )


def test_the_end_of_a_program_does_not_wait_for_a_compilation_that_hangs() -> None:
    _, seconds = run(
        """
        import threading
        from test_background import Background, Programs, ask, module
        module.EXIT_SECONDS = 0.1
        hung = threading.Event()
        background = Background(Programs(lambda name: (hung.set(), threading.Event().wait())))
        ask(background, "a")
        hung.wait()
        """
    )
    assert seconds < SECONDS / 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork processes")
def test_a_forked_process_has_a_background_of_its_own() -> None:
    """The fork happens while the thread compiles and its lock is taken."""
    output, _ = run(
        """
        import os, threading, warnings
        from test_background import Background, Programs, ask
        warnings.simplefilter("ignore")  # that a process with threads was forked
        child, compiling = [], threading.Event()

        def compile(name):
            compiling.set()
            if not child:
                threading.Event().wait(1)

        background = Background(Programs(compile))
        for name in "ab":
            ask(background, name)
        compiling.wait()
        with background._lock:
            process = os.fork()
            if process == 0:
                child.append(True)
                background.wait()
                asked = ask(background, "a"), ask(background, "b")
                background.wait()
                print(asked, ask(background, "a"), ask(background, "b"), flush=True)
                os._exit(0)
        assert os.waitpid(process, 0)[1] == 0
        """
    )
    assert output == "(False, False) True True\n"


def test_nvrtc_runs_without_the_interpreters_lock(nvrtc_library: Nvrtc) -> None:
    text = "\n".join(f"template __device__ int f<{n}>(int);" for n in range(400))
    source = f"template <int N> __device__ int f(int x) {{ return x * N; }}\n{text}\n"
    done = threading.Event()

    def compile() -> None:
        nvrtc_library.compile(source, "f", (*nvrtc.OPTIONS, "-arch=compute_80"))
        done.set()

    thread, steps = threading.Thread(target=compile), 0
    thread.start()
    while not done.is_set():
        steps += 1
    thread.join()
    assert steps > 1000


# --- On CuPy ------------------------------------------------------------------------------------------------------


class SlowNvrtc:
    """NVRTC, which compiles no specialised program before `let_go`, but for those that a call waits for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.let_go = threading.Event()
        self.compiled: list[tuple[str, str]] = []  # the build, and in which thread
        compile_by_nvrtc = Nvrtc.compile

        def compile(library: Nvrtc, text: str, name: str, options: Any) -> Any:
            thread = threading.current_thread().name
            if thread == "gpucnn-compiler":
                assert self.let_go.wait(SECONDS)
            self.compiled.append((build(Source("", name, "")), thread))
            return compile_by_nvrtc(library, text, name, options)

        monkeypatch.setattr(Nvrtc, "compile", compile)

    def drain(self) -> list[tuple[str, str]]:
        """What was compiled since this was last asked, a pair of build and thread each."""
        compiled, self.compiled = self.compiled, []
        return [(kind, "background" if thread == "gpucnn-compiler" else "call") for kind, thread in compiled]


@pytest.fixture
def slow_nvrtc(cupy: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SlowNvrtc]:
    """CuPy's backend with a background, no binaries and nothing planned or recorded; what g++ compiled stays."""
    monkeypatch.setenv("GPUCNN_BUILDS", "background")
    monkeypatch.setattr(cupy_runtime, "Compiler", partial(Compiler, folder=lambda: tmp_path))
    monkeypatch.setattr(cupy_runtime, "AutotuneCache", partial(AutotuneCache, folder=tmp_path / "autotune"))
    slow = SlowNvrtc(monkeypatch)
    backends._cupy_backend.cache_clear()
    backends._cupy_backend()
    yield slow
    slow.let_go.set()
    gpucnn.wait_for_builds()
    backends._cupy_backend.cache_clear()


def pooled(x: Any) -> np.ndarray[Any, Any]:
    values: np.ndarray[Any, Any] = F.max_pool2d(x, 2).get()
    return values


def test_a_call_does_not_wait_for_a_slow_nvrtc(cupy: Any, slow_nvrtc: SlowNvrtc) -> None:
    x, expected = cupy.asarray(X), F.max_pool2d(X, 2)
    for _ in range(3):
        np.testing.assert_array_equal(pooled(x), expected)
    assert slow_nvrtc.drain() == [("generic", "call")]
    np.testing.assert_array_equal(pooled(cupy.asarray(X[..., :4])), F.max_pool2d(X[..., :4].copy(), 2))
    assert slow_nvrtc.drain() == []
    slow_nvrtc.let_go.set()
    gpucnn.wait_for_builds()
    assert slow_nvrtc.drain() == [("specialised", "background")]
    replayer: Any = replaying.REPLAYERS[cupy.ndarray]
    assert not replayer.kept
    for _ in range(2):
        np.testing.assert_array_equal(pooled(x), expected)
    assert len(replayer.kept) == 1
    assert slow_nvrtc.drain() == []
    backends._cupy_backend.cache_clear()  # as in a new process, which finds it on disk
    backends._cupy_backend()
    np.testing.assert_array_equal(pooled(x), expected)
    assert slow_nvrtc.drain() == []
    runtime: Any = backends._cupy_backend().runtime  # type: ignore[attr-defined]
    assert [build(source) for source, _ in runtime._functions] == ["specialised"]


@pytest.mark.parametrize("asked", [True, False])
def test_a_stream_that_is_captured_has_specialised_programs(cupy: Any, slow_nvrtc: SlowNvrtc, asked: bool) -> None:
    x, y = cupy.asarray(X), cupy.empty((2, 3, 2, 3), np.float32)
    for _ in range(2 if asked else 0):
        F.max_pool2d(x, 2, out=y)
    threading.Timer(0.1, slow_nvrtc.let_go.set).start()  # what is being compiled already is waited for
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        F.max_pool2d(x, 2, out=y)
        graph = stream.end_capture()
        x.set(2 * X)
        graph.launch(stream)
        stream.synchronize()
    np.testing.assert_array_equal(y.get(), F.max_pool2d(2 * X, 2))
    assert slow_nvrtc.drain() == (
        [("generic", "call"), ("specialised", "background")] if asked else [("specialised", "call")]
    )
    runtime: Any = backends._cupy_backend().runtime  # type: ignore[attr-defined]
    assert build(list(runtime._functions)[-1][0]) == "specialised"


def test_warming_up_and_tuning_ask_for_nothing(cupy: Any, slow_nvrtc: SlowNvrtc) -> None:
    case = ("conv2d", {"input": X.shape, "weight": W.shape, "padding": 1})
    gpucnn.warmup([case], progress=False)
    assert {("specialised", "call"), ("generic", "call")} == set(slow_nvrtc.drain())
    gpucnn.tune([case], progress=False)
    assert {kind for kind, _ in slow_nvrtc.drain()} == {"specialised"}
    runtime: Any = backends._cupy_backend().runtime  # type: ignore[attr-defined]
    assert not runtime.background._states


def test_builds_of_two_devices(cupy: Any, slow_nvrtc: SlowNvrtc, two_devices: None) -> None:
    slow_nvrtc.let_go.set()
    for index in (0, 1):
        with cupy.cuda.Device(index):
            x = cupy.asarray(X)
        for _ in range(4):
            np.testing.assert_array_equal(pooled(x), F.max_pool2d(X, 2))
            gpucnn.wait_for_builds()
    assert slow_nvrtc.drain() == [("generic", "call"), ("specialised", "background")]
    assert cupy.cuda.runtime.getDevice() == 0


def test_a_folder_that_cannot_be_written_does_not_make_calls_wait(
    cupy: Any, slow_nvrtc: SlowNvrtc, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise OSError("read-only")

    monkeypatch.setattr(compiler_module, "write_whole", refuse)
    slow_nvrtc.let_go.set()
    x = cupy.asarray(X)
    with pytest.warns(RuntimeWarning, match="compiled kernels cannot be kept"):
        pooled(x)
    for _ in range(2):
        pooled(x)
        gpucnn.wait_for_builds()
    assert slow_nvrtc.drain() == [("generic", "call"), ("specialised", "background")]


def test_facts_name_the_builds(slow_nvrtc: SlowNvrtc) -> None:
    assert cupy_runtime.facts()["builds"] == "background"
