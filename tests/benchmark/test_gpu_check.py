"""The command for a machine with a GPU: what it says, counts and writes, with fakes in place of the GPU."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import launches
import numpy as np
import pytest
from gpu_fakes import ClockDevice

import gpucnn
from benchmarks import primitives
from benchmarks.gpu import sampling
from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check import cold_start, host_cost, large_arrays, parts, preflight, report, suite, worker
from benchmarks.gpu_check.checks import Check
from benchmarks.gpu_check.machine import KernelBuild, Machine, NotRun, Recorder, assembled
from benchmarks.isolation import EXIT_DEVICE_LOST, ROOT, Event, Task, follow
from benchmarks.primitives import VARIANTS, agree, calls
from gpucnn.backends import Backend, available
from gpucnn.backends.cuda.device import cupy_runtime
from gpucnn.installing import install_command

FACTS = {"device": "GPU 0", "commit": "unknown"}

# --- Preflight ----------------------------------------------------------------------------------------------------


def test_a_machine_without_cupy_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert command.main(["--out", str(tmp_path / "new")]) == 2
    assert install_command("cuda12") in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_missing_packages_name_the_test_extra() -> None:
    reasons = preflight.missing("cuda", "compute-sanitizer", lambda module: None if module == "hypothesis" else True)
    assert reasons == {"suite": f"hypothesis not installed: {install_command('test')}"}
    reasons = preflight.missing("cuda", "compute-sanitizer", lambda module: None)
    assert {"suite", "repeatability", "memcheck"} <= set(reasons)
    assert "pytest, hypothesis, ml_dtypes" in reasons["suite"]


def test_a_missing_sanitizer_says_where_it_comes_from() -> None:
    reasons = preflight.missing("cuda", None, lambda module: True)
    assert set(reasons) == set(preflight.SANITIZER_PARTS)
    assert "CUDA toolkit" in reasons["memcheck"]
    assert "nvidia-cuda-sanitizer-api" in reasons["memcheck"]


@pytest.mark.parametrize("folder", ["cuda_sanitizer_api/bin", "cu13/compute-sanitizer", "cu13/bin"])
def test_the_sanitizer_is_found_in_nvidias_wheels(tmp_path: Path, folder: str) -> None:
    assert preflight.find_sanitizer({"CUDA_PATH": str(tmp_path)}, [], lambda name: None) is None
    path = tmp_path / folder / "compute-sanitizer"
    path.parent.mkdir(parents=True)
    path.touch()
    assert preflight.find_sanitizer({}, [tmp_path], lambda name: None) == str(path)
    assert preflight.find_sanitizer({}, [tmp_path], lambda name: "first") == "first"


# --- What compute-sanitizer leaves --------------------------------------------------------------------------------

CLEAN_MEMCHECK = "========= COMPUTE-SANITIZER\npassed unpool\n========= ERROR SUMMARY: 0 errors\n"
MEMCHECK = """========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at conv_forward+0x2b0 in conv_forward.cu:41
=========     by thread (33,0,0) in block (2,0,0)
=========     Address 0x7f2b3dc00a84 is out of bounds
=========
========= Target application returned an error
========= ERROR SUMMARY: 31 errors
"""
CLEAN_RACECHECK = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
RACECHECK = """========= Error: Race reported between Write access at norm_statistics+0x340 in norms.cuh:61
=========     and Read access at norm_statistics+0x390 in norms.cuh:63 [64 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        (CLEAN_MEMCHECK, 0),
        (MEMCHECK, 31),
        (CLEAN_RACECHECK, 0),
        (RACECHECK, 1),
        (CLEAN_MEMCHECK + MEMCHECK, 31),
        ("========= Error: No attachable process found.\n", None),
        ("", None),
    ],
)
def test_summaries_of_compute_sanitizer(text: str, errors: int | None) -> None:
    assert parts.read_sanitizer(text).errors == errors


def test_the_kind_of_a_sanitizers_report_is_kept() -> None:
    assert parts.read_sanitizer(MEMCHECK).reports == ("Invalid __global__ write of size 4 bytes",)
    assert parts.read_sanitizer(RACECHECK).reports[0].startswith("Error: Race reported between Write")


# --- Parts, with a fake in place of workers ---------------------------------------------------------------------------


class Workers:
    """In place of `follow`: the events of one of `runs`, or an error, for each task; every task leaves the same log."""

    def __init__(self, *runs: Sequence[Event] | BaseException, log: str = "") -> None:
        self.runs, self.log = list(runs), log
        self.tasks: list[Task] = []

    def __call__(self, task: Task, events: Path, *limits: float) -> Generator[Event]:
        self.tasks.append(task)
        events.with_suffix(".log").write_text(self.log)
        run = self.runs.pop(0)
        if isinstance(run, BaseException):
            raise run
        yield from run


SUITE = """
import os
import pytest

@pytest.mark.parametrize("x", ["x"])
def test_wrong(x): raise AssertionError("off\\nmore")
def test_crash(): os._exit(9)
def test_two(): pass
def test_skipped(): pytest.skip("no")
@pytest.fixture
def broken(): {}["k"]
def test_setup(broken): pass
@pytest.fixture
def late():
    yield
    raise ValueError("t")
def test_teardown(late): pass
@pytest.mark.xfail
def test_expected(): raise AssertionError
def test_ten(): pass
def test_left_out(): raise AssertionError
"""


def made(name: str, status: str = "passed", detail: str = "", kernels: Sequence[str] = ()) -> Event:
    return {"result": {"check": name, "status": status, "detail": detail, "seconds": 0.1, "kernels": list(kernels)}}


ONE = ({"items": 1}, made("a"))


def run_part(name: str, out: Path, workers: Workers, **context: Any) -> tuple[report.Outcome, report.Report]:
    part = next(part for part in parts.PARTS if part.name == name)
    written = report.Report(dict(FACTS))
    return part.run(parts.Context("cuda", out, written, workers, "sanitizer", **context), part, 60.0), written


def test_kernels_of_checks_are_counted(tmp_path: Path) -> None:
    one, two = "gather[int8,int32,generic]", "unpool[int8,int32,generic]"
    results = made("a", kernels=[one]), made("b", "failed", "other bits", [one, two]), made("c", "not run", "no")
    workers = Workers([{"items": 3}, *results])
    outcome, written = run_part("repeatability", tmp_path, workers, filter="x")
    assert (outcome.status, outcome.passed, outcome.failed, outcome.not_run) == ("failed", 1, 1, 1)
    assert outcome.failures == ["b: other bits"]
    assert outcome.notes == ["1 not run: no"]
    assert written.kernels == {
        KernelBuild("gather", "int8", "int32", "generic"): report.Launched(1, 1),
        KernelBuild("unpool", "int8", "int32", "generic"): report.Launched(0, 1),
    }
    assert workers.tasks[0].module == "benchmarks.gpu_check.worker"
    assert workers.tasks[0].options == {"backend": "cuda", "filter": "x", "family": "repeatability"}


@pytest.mark.parametrize(
    ("events", "status", "reason"),
    [
        ([{"trouble": "ImportError: no"}], "failed", "ImportError: no; 0 of ? checks were made, see graphs.log"),
        ([{"items": 9}, made("a")], "failed", "1 of 9 checks were made, see graphs.log"),
        ([{"items": 0}], "not run", "no check was chosen"),
        ([{"items": 1}, made("a", "not run", "no")], "not run", "no check could be made"),
        (ONE, "passed", ""),
    ],
)
def test_a_part_passes_when_all_checks_were_made(
    tmp_path: Path, events: Sequence[Event], status: str, reason: str
) -> None:
    outcome, _ = run_part("graphs", tmp_path, Workers(events))
    assert (outcome.status, outcome.reason) == (status, reason)


@pytest.mark.parametrize(
    ("name", "log", "status"),
    [
        ("memcheck", CLEAN_MEMCHECK, "passed"),
        ("memcheck", MEMCHECK, "failed"),
        ("racecheck", CLEAN_RACECHECK, "passed"),
        ("racecheck", RACECHECK, "failed"),
        ("synccheck", "no summary\n", "failed"),
    ],
)
def test_a_sanitizer_passes_by_its_summary(tmp_path: Path, name: str, log: str, status: str) -> None:
    workers = Workers(ONE, log=log)
    outcome, written = run_part(name, tmp_path, workers)
    assert outcome.status == status, outcome
    assert workers.tasks[0].prefix[:3] == ("sanitizer", "--tool", name)
    assert workers.tasks[0].options["guard"]
    assert not written.kernels or status


def test_a_warm_start_must_not_compile(tmp_path: Path) -> None:
    cold, warm, again = ([{"items": 1}, made("r", detail=f"9.0 s, {n} compiled")] for n in (90, 0, 10))
    workers = Workers(cold, warm)
    outcome, _ = run_part("cold-start", tmp_path, workers)
    assert outcome.status == "passed"
    assert outcome.notes == ["cold 9.0 s, 90 compiled", "warm 9.0 s, 0 compiled"]
    first, second = (task.environment["GPUCNN_CACHE_DIR"] for task in workers.tasks)
    assert first == second
    outcome, _ = run_part("cold-start", tmp_path, Workers(cold, again))
    assert (outcome.status, outcome.reason) == ("failed", "the second process compiled again")


def test_each_test_of_the_suite_is_a_check(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("def pytest_addoption(parser): parser.addoption('--backend')")
    (tmp_path / "test_some.py").write_text(SUITE)
    task = Task("benchmarks.gpu_check.suite", {"backend": "numpy", "filter": "not left", "tests": [str(tmp_path)]})
    workers = Workers(list(follow(task, tmp_path / "told.jsonl", 60)))
    outcome, _ = run_part("suite", tmp_path, workers)
    assert (outcome.status, outcome.passed, outcome.failed, outcome.not_run) == ("failed", 2, 4, 2)
    assert outcome.reason == ""
    assert workers.tasks[0].module == task.module
    named = [line.partition("::")[2] for line in outcome.failures]
    crashed = named.pop(1)
    assert crashed.startswith("test_crash: its process ended with status 9")
    assert named == ["test_wrong[x]: AssertionError: off", "test_setup: KeyError: 'k'", "test_teardown: ValueError: t"]
    assert outcome.notes == ["1 not run: no", "1 not run: it is expected to fail"]


def test_the_suite_stops_where_the_device_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        raise RuntimeError("cudaErrorIllegalAddress")

    runtime = SimpleNamespace(deviceSynchronize=gone)
    xp = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))
    monkeypatch.setattr(cupy_runtime, "CupyRuntime", lambda: SimpleNamespace(xp=xp))
    item: Any = SimpleNamespace(nodeid="a", session=SimpleNamespace(shouldstop=False))
    for status, backend in (("passed", "cuda"), ("failed", "simulator"), ("failed", "cuda")):
        assert not item.session.shouldstop
        plugin = suite.Told(lambda **event: None, 0, {}, backend)
        protocol = plugin.pytest_runtest_protocol(item)
        next(protocol)
        plugin.status = status
        assert next(protocol, "ended") == "ended"
    assert plugin.device_lost
    assert "cudaErrorIllegalAddress" in item.session.shouldstop
    monkeypatch.setattr(pytest, "main", lambda arguments, plugins: setattr(plugins[0], "device_lost", True))
    assert suite.work(lambda **event: None, 0, {}, 60, backend="cuda") == EXIT_DEVICE_LOST


# --- The command --------------------------------------------------------------------------------------------------


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has all but compute-sanitizer."""
    found = preflight.Preflight(None, {"memcheck": "not found"}, None)
    monkeypatch.setattr(preflight, "look", lambda backend: found)
    monkeypatch.setattr(command, "facts", lambda backend: dict(FACTS))


def read(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "gpu_check.json").read_text())
    return content


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize(
    ("runs", "names", "code", "status", "parts"),
    [
        ([ONE, ONE], "repeatability,graphs", 0, "passed", [("passed", "")] * 2),
        (
            [({"items": 1}, made("a", "failed")), ONE], "repeatability,graphs", 1, "failed",
            [("failed", ""), ("passed", "")],
        ),
        ([ONE], "memcheck,graphs", 1, "incomplete", [("not run", "not found"), ("passed", "")]),
        (
            [ONE, KeyboardInterrupt()], "repeatability,large-arrays,graphs", 130, "incomplete",
            [("passed", ""), ("not run", "interrupted"), ("not run", "not reached")],
        ),
        (
            [OSError("no space"), ONE], "repeatability,graphs", 1, "failed",
            [("failed", "OSError: no space"), ("passed", "")],
        ),
    ],
    ids=["all passed", "one failed", "one cannot be run", "interrupted", "a fault of the command"],
)  # fmt: skip
def test_the_command_says_and_writes_whether_all_passed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], runs: list[Any], names: str, code: int, status: str, parts: Any
) -> None:
    assert command.main(["--out", str(tmp_path), "--parts", names], Workers(*runs)) == code
    content = read(tmp_path)
    assert content["status"] == status
    assert [part["name"] for part in content["parts"]] == names.split(",")
    assert [(part["status"], part["reason"]) for part in content["parts"]] == parts
    assert ("without memcheck: not found" in capsys.readouterr().err) == ("memcheck" in names)
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.usefixtures("on_a_gpu")
def test_a_run_without_a_part_that_can_be_run_is_a_mistake(tmp_path: Path) -> None:
    assert command.main(["--out", str(tmp_path), "--parts", "memcheck"], Workers()) == 2


def test_mistaken_calls(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments in ([], ["--out", "x", "--parts", "nothing"], ["--out", "x", "--limit-minutes", "0"]):
        with pytest.raises(SystemExit) as ended:
            command.main(arguments)
        assert ended.value.code == 2
    assert "there is no nothing, expected some of suite, repeatability" in capsys.readouterr().err
    assert command.main(["--list"]) == 0
    assert "initcheck" in capsys.readouterr().out


# --- The report ---------------------------------------------------------------------------------------------------


def test_the_report_says_which_kernels_passed_and_not_where(tmp_path: Path) -> None:
    written = report.Report({"device": "GPU 0", "commit": "abc"}, complete=True)
    outside = "/".join(("", "home", "someone", "x.py"))
    failure = f"b: {ROOT}/kernels/common.cuh and {outside}"
    written.outcomes.append(report.Outcome("repeatability", "failed", "a | b", 1, 1, 0, 2.5, [failure]))
    written.count(["gather[int8,int64,generic]", "gather[float32,int64,generic]"], True)
    written.count(["gather[int8,int64,generic]"], False)
    written.write(tmp_path)
    markdown = (tmp_path / "gpu_check.md").read_text()
    assert markdown.startswith("# GPU check: failed\n")
    assert "| repeatability | failed | 1 | 1 | 0 | 2 | a \\| b |" in markdown
    assert "| gather | int64 | generic | float32, int8 (FAILED) |" in markdown
    assert "kernels/common.cuh and …/x.py" in markdown
    assert str(ROOT) not in markdown + (tmp_path / "gpu_check.json").read_text()
    assert read(tmp_path)["kernels"][1] == {
        "kernel": "gather", "dtype": "int8", "index": "int64", "build": "generic", "passed": 1, "failed": 1
    }  # fmt: skip


def test_facts_without_a_gpu_or_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = report.facts("simulator")
    assert (known["device"], known["gpucnn"], known["NumPy"]) == ("simulator", gpucnn.__version__, np.__version__)
    assert len(known["digest of gpucnn and kernels"]) == 12
    monkeypatch.setattr(report, "ROOT", tmp_path)
    assert report.sources_facts()["commit"] == report.sources_facts()["tree clean"] == "unknown"


# --- Workers and their checks -------------------------------------------------------------------------------------


def bare(kind: str = "cuda", runtime: Any = None) -> Machine:
    return Machine(kind, runtime, ClockDevice(), Recorder(), {})


def test_a_worker_reports_each_outcome_and_stops_where_the_device_is_lost() -> None:
    def raising(error: Exception) -> Callable[[], str]:
        def run() -> str:
            raise error

        return run

    events: list[dict[str, Any]] = []
    checks = [
        Check("a", lambda: "fine"),
        Check("b", raising(NotRun("too small"))),
        Check("c", raising(AssertionError("other bits"))),
        Check("d", raising(ValueError("no"))),
    ]
    assert worker.run(checks, bare(), lambda **event: events.append(event)) == 0
    assert [(event["result"]["status"], event["result"]["detail"]) for event in events if "result" in event] == [
        ("passed", "fine"), ("not run", "too small"), ("failed", "other bits"), ("failed", "ValueError: no")
    ]  # fmt: skip
    lost = bare()
    lost.device.lost = True  # type: ignore[attr-defined]
    assert worker.run(checks, lost, lambda **event: events.append(event)) == EXIT_DEVICE_LOST
    assert events[-1]["result"]["check"] == "c"


def test_the_check_that_lost_its_worker_fails_and_the_next_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [Check(name, lambda name=name: name) for name in ("a", "ab", "b", "c a")]  # type: ignore[misc]
    monkeypatch.setattr(worker, "machine", lambda backend, guard: bare())
    monkeypatch.setitem(worker.FAMILIES, "graphs", lambda machine: checks)
    events: list[Event] = []
    lost = {"": "it said nothing"}
    worker.work(lambda **event: events.append(event), 1, lost, 60, family="graphs", backend="cuda", filter="a")
    assert events[0] == {"items": 3}
    results = [event["result"] for event in events if "result" in event]
    assert [(result["check"], result["status"], result["detail"]) for result in results] == [
        ("ab", "failed", "it said nothing"), ("c a", "passed", "c a")
    ]  # fmt: skip


def test_each_primitive_is_called_at_both_scales() -> None:
    for scale in ("layers", "odd"):
        names = [call.name for call in calls(scale)]  # type: ignore[arg-type]
        assert len(set(names)) == len(names)
        called = {VARIANTS.get(call.primitive, call.primitive) for call in calls(scale)}
        assert called == Backend.__abstractmethods__ - {"empty", "empty_like"}


def test_results_agree_up_to_rounding() -> None:
    x = np.ones((2, 3), np.float32)
    assert agree((x, x), (x, x)) == ""
    assert agree((x,), (x + np.float32(1e-6),)) == ""
    assert "off by" in agree((x,), (x + np.float32(1e-3),))
    assert "expected float64" in agree((x,), (x.astype(np.float64),))
    assert agree((np.arange(3),), (np.arange(3) % 2,)) == "1 of 3 integers are wrong"
    assert "off by nan" in agree((x * np.float32(np.nan),), (x,))
    for special in (np.nan, np.inf):
        expected = x.copy()
        expected[0, 0] = special
        assert agree((expected,), (expected,)) == ""
        assert agree((x,), (expected,)) == "other infinities or NaN"


class Hollow(np.ndarray):
    """An array that has strides and no memory behind them."""

    def fill(self, value: Any) -> None:
        pass


class HollowNamespace:
    """NumPy's functions, with new arrays that take no memory."""

    def empty(self, shape: Sequence[int], dtype: Any = float) -> Any:
        strides = [np.dtype(dtype).itemsize * int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
        return np.lib.stride_tricks.as_strided(np.zeros(1, dtype), tuple(shape), strides).view(Hollow)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def launching_nothing(xp: Any) -> Machine:
    """A machine over arrays of `xp`."""
    return assembled("cuda", launches.Recorder(True, "cuda", xp), ClockDevice())


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # what is computed of results that nobody wrote
def test_each_kernel_is_launched_by_the_small_calls() -> None:
    """So that compute-sanitizer, which looks at these, sees every kernel."""
    subject = launching_nothing(np)
    for call in calls("odd"):
        call.run(subject.backends["generic"])
    launched = {KernelBuild.of(name).kernel for name in subject.recorder.drain()}
    sources = (Path(__file__).parents[2] / "kernels").glob("*.cu")
    entry = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(')
    kernels = {name for source in sources for name in entry.findall(source.read_text())}
    assert len(kernels) > 20
    assert kernels - launched == set()
    told = (Path(__file__).parents[2] / "benchmarks/results/README.md").read_text()
    table = told.partition("## What has run on a GPU")[2].partition('\n"All" is')[0]
    assert set(re.findall(r"`(\w+)`", table)) <= kernels


@pytest.mark.parametrize("side", large_arrays.IMAGES)
@pytest.mark.parametrize("call", large_arrays.large_calls(), ids=lambda call: call.name)
def test_large_arrays_lie_where_they_are_said_to(call: large_arrays.Large, side: str) -> None:
    subject = launching_nothing(HollowNamespace())
    dtypes = call.batched_dtypes or (call.dtype,) * len(call.batched)
    shapes = [(large_arrays.IMAGES[side], *shape) for shape in call.batched]
    given = list(map(HollowNamespace().empty, shapes, dtypes))
    with gpucnn.algorithm("direct"):
        shared = call.shared(large_arrays.IMAGES[side])
        primitives.run(subject.backends["generic"], call.primitive, *given, *shared)
    builds = [build for build in map(KernelBuild.of, subject.recorder.drain()) if build.kernel == call.kernel]
    assert [build.index for build in builds] == [large_arrays.INDEX[side]]


def test_the_host_cost_of_a_call_is_told_beside_a_bare_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = bare(runtime=SimpleNamespace(xp=np))
    device: Any = machine.device
    monkeypatch.setattr(sampling.time, "perf_counter", device.perf_counter)

    def call(x: Any, w: Any, b: Any, **out: Any) -> None:
        device.queue("out" if out else "new", 1e-7, 4e-6 if out else 5e-6)

    monkeypatch.setattr(host_cost, "_CALLS", {"call": call})
    assert next(host_cost.host_cost(machine)).run() == "5.0 us, 4.0 us with out=; a bare launch 3.0 us"
    assert "raw 4" in device.log
    with pytest.raises(NotRun, match="the simulator's host is its device"):
        next(host_cost.host_cost(bare("simulator"))).run()


def test_a_cold_start_compiles_each_layer_for_its_sizes() -> None:
    with launches.recording(specialises=True) as recorder:
        cold_start.run_layers(np)
    kernels = {launch.source.kernel for launch in recorder.launches.values()}
    assert kernels >= {
        "implicit_gemm",
        "winograd_output",
        "max_pool_backward",
        "average_pool_backward",
        "norm_statistics",
    }
    assert len(recorder.launches) > 80
    assert len(cold_start.resnet50_convolutions()) == 23
    with pytest.raises(NotRun, match="one generic build"):
        next(cold_start.cold_start(bare("simulator"))).run()


@pytest.mark.parametrize("name", host_cost._CALLS)
def test_the_calls_whose_host_cost_is_told_run(name: str) -> None:
    x, w, b = np.ones((2, 32, 7, 7)), np.ones((32, 1, 3, 3)), np.ones(32)
    out = np.zeros_like(x)
    assert host_cost._CALLS[name](x, w, b, out=out) is out
    np.testing.assert_array_equal(host_cost._CALLS[name](x, w, b), out)


def test_large_arrays_are_not_tried_where_they_do_not_fit() -> None:
    small = bare()
    small.device.free = 0  # type: ignore[attr-defined]
    checks = list(large_arrays.large_arrays(small))
    assert len(checks) == 2 * len(large_arrays.large_calls())
    with pytest.raises(NotRun, match=r"needs \d\.\d GiB of the device's memory, 0\.0 are free"):
        checks[0].run()


@pytest.mark.thorough
def test_end_to_end_on_the_simulator(tmp_path: Path) -> None:
    if available()["simulator"] != "available":
        pytest.skip(available()["simulator"])
    arguments = ["--out", str(tmp_path), "--backend", "simulator", "--parts", "repeatability,large-arrays"]
    assert command.main([*arguments, "--filter", "gather"]) == 0
    content = read(tmp_path)
    assert (content["status"], content["only what contains"]) == ("passed", "gather")
    assert [part["passed"] for part in content["parts"]] == [3, 2]
    assert {(kernel["index"], kernel["build"]) for kernel in content["kernels"]} == {
        ("int32", "generic"), ("int32", "specialised"), ("int64", "generic"), ("int64", "specialised")
    }  # fmt: skip
