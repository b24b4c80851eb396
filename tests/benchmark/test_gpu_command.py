"""The benchmarks' command on a machine with a GPU, whose workers say what a test has them say; and that machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bench_fakes import GPU_FACTS, GPU_LIMITS, TRANSITION, A, B, measured, needs_simulator, on_host
from scripted_worker import script

from benchmarks import __main__ as command
from benchmarks import publishing, report
from benchmarks.gpu import command as gpu_command
from benchmarks.gpu import environment, fallback
from benchmarks.gpu.command import Collected
from benchmarks.gpu.environment import chosen_gpu
from benchmarks.isolation import follow
from benchmarks.results import Run, rows_of

ROOT = Path(__file__).parents[2]
HELLO: list[dict[str, Any]] = [
    {"providers": {"gpucnn": "1"}, "absent": {"torch.compile": "not installed: triton"}},
    {"environment": GPU_FACTS, "limits": asdict(GPU_LIMITS)},
]


def result(identifier: str, status: str = "timed") -> list[dict[str, Any]]:
    """What a worker says while it measures a case."""
    record = asdict(measured(identifier, status=status))
    return [{"item": identifier}, {"by": "gpucnn", "step": "check"}, {"result": record}]


def said(*events: dict[str, Any]) -> Any:
    yield from HELLO
    yield from events


@pytest.fixture
def on_a_gpu(folders: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU, on whose host each case takes 31 ms."""
    monkeypatch.setattr(environment, "why_none", lambda: None)
    monkeypatch.setattr(fallback, "outcomes", lambda cases, provider, seconds: (on_host(0.031) for _ in cases))


@pytest.fixture
def run_command(on_a_gpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run the command where workers say the given events; its status, and the files that it wrote."""

    def run(events: Any, *arguments: str) -> tuple[int, dict[str, Path]]:
        monkeypatch.setattr(gpu_command, "follow", lambda task, file, seconds: limits.append(seconds) or events)
        status = command.main(["--out", str(tmp_path), *arguments])
        return status, {path.name: path for path in tmp_path.iterdir()}

    limits: list[float] = []
    yield run
    assert all(0.75 * gpu_command.BUDGET_S["default"] < seconds for seconds in limits)  # the workers' share of the time
    assert all(seconds < 0.81 * gpu_command.BUDGET_S["default"] for seconds in limits)


def test_what_workers_say_is_collected() -> None:
    collected = Collected()
    again = {"providers": {"gpucnn": "1"}, "absent": {}}
    for event in [*HELLO, *result(A), again, {"clocks": {"at the end": {"power": "300 W"}}}, {"unreached": [B]}]:
        collected.take(event)
    assert collected.records == [measured(A)]
    assert (collected.limits, collected.providers, collected.trouble) == (GPU_LIMITS, {"gpucnn": "1"}, "")
    assert set(collected.environment["clocks"]) == {"at the start", "at the end"}
    assert (collected.absent, collected.unreached) == (HELLO[0]["absent"], [B])


def test_a_run_on_a_gpu_writes_all_its_files(run_command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    status, files = run_command(said(*result(A), *result(B), {"unreached": [TRANSITION, "x"]}))
    assert status == 0
    ends = (".json", ".md", "-over-numpy.png", "-roofline.png", "-speedup.png")
    assert set(files) == {f"nvidia-fake-100{end}" for end in ends}
    run = Run.load(files["nvidia-fake-100.json"])
    assert run.on_gpu
    assert run.complete  # neither filtered nor interrupted: it may be published
    assert run.records == tuple(fallback.added(measured(name), on_host(0.031)) for name in (A, B))
    assert (run.subjects, run.peers, run.unreached) == (["gpucnn"], ["PyTorch"], (TRANSITION, "x"))
    printed = capsys.readouterr().out
    for words in (
        "measuring on the GPU", "without torch.compile (not installed: triton)", "3000 GB/s copy",
        "750 TFLOP/s float16", "2 cases were not reached",
    ):  # fmt: skip
        assert words in printed
    assert f"{TRANSITION}, x" in files["nvidia-fake-100.md"].read_text()


def test_what_will_not_be_published_is_not_measured_on_a_gpu(
    run_command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    published = publishing.RESULTS / "nvidia-fake-100.json"
    with_peer = HELLO[0] | {"providers": {"gpucnn": "1", "PyTorch": "2"}}
    assert run_command((event for event in [with_peer, HELLO[1], *result(A)]), "--publish")[0] == 0
    before = published.read_text()

    def begins(*events: dict[str, Any]) -> Any:
        yield from events
        raise AssertionError("nothing is measured after this")

    used = HELLO[1] | {"environment": GPU_FACTS | {"device": GPU_FACTS["device"] | {"utilization": 0.5}}}
    for events, reason in (
        (HELLO, "compares with PyTorch, which this run does not"),  # the worker found none
        ([with_peer, used], "the GPU is busy with other work (50% of the time)"),
    ):
        capsys.readouterr()
        assert run_command(begins(*events), "--publish")[0] == command.EXIT_USAGE
        assert reason in capsys.readouterr().err
    assert published.read_text() == before


@pytest.mark.thorough
@pytest.mark.usefixtures("on_a_gpu")
def test_a_run_that_is_told_to_end_ends_its_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    told = f"import os, signal, time; time.sleep(1); os.kill({os.getpid()}, signal.SIGTERM)"
    code = f"{told}; time.sleep(4); open({str(alive)!r}, 'w')"
    task = script(tmp_path, ([*HELLO, *result(A)], code))
    monkeypatch.setattr(gpu_command, "follow", lambda _, file, seconds: follow(task, file, seconds))
    assert command.main(["--out", str(tmp_path)]) == command.EXIT_INTERRUPTED
    assert (tmp_path / "nvidia-fake-100-partial.json").exists()
    time.sleep(0.1)
    assert not alive.exists()


@pytest.mark.thorough
def test_an_earlier_result_is_printed_and_drawn_again(run_command: Any, tmp_path: Path) -> None:
    _, files = run_command(said(*result(A)))
    files["nvidia-fake-100.md"].unlink()
    (tmp_path / "README.md").write_text("\n".join(report.README_MARKERS["gpu"]))
    earlier = str(files["nvidia-fake-100.json"])
    assert command.main(["--report", earlier, "--out", str(tmp_path)]) == 0
    assert files["nvidia-fake-100.md"].exists()
    assert command.main(["--report", earlier, "--publish", "--readme", str(tmp_path / "README.md")]) == 0
    assert "(committed/nvidia-fake-100.md)" in (tmp_path / "README.md").read_text()


@pytest.mark.thorough
def test_failures_and_interruptions_keep_what_there_is(run_command: Any) -> None:
    assert run_command(said(*result(A, "wrong")))[0] == command.EXIT_FAULT

    def interrupted() -> Any:
        yield from said(*result(A))
        raise KeyboardInterrupt

    status, files = run_command(interrupted())
    assert status == command.EXIT_INTERRUPTED
    assert "nvidia-fake-100-partial.json" in files
    assert run_command(said(*result(A), {"trouble": "all were lost"}))[0] == command.EXIT_FAULT
    assert run_command(event for event in [{"trouble": "no"}])[0] == command.EXIT_USAGE
    assert run_command(said(), "--filter", "no such layer")[0] == command.EXIT_USAGE


def test_the_device_is_chosen_and_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(environment, "why_none", lambda: "CuPy is not installed")
    assert command.choose_device("auto") == (
        "cpu", "measuring on the CPU, for there is no GPU to measure on: CuPy is not installed"
    )  # fmt: skip
    assert command.choose_device("gpu") == ("none", "no GPU to measure on: CuPy is not installed")
    assert command.main(["--device", "gpu"]) == command.EXIT_USAGE
    monkeypatch.setattr(environment, "why_none", lambda: None)
    assert command.choose_device("auto")[0] == command.choose_device("gpu")[0] == "gpu"
    assert command.choose_device("cpu")[0] == "cpu"
    assert command.main(["--list", "--device", "gpu", "--filter", "pack"]) == 0
    assert "resnet-50/conv2_out_cast/pack" in capsys.readouterr().out
    assert command.split_filters(["cudnn,compile", "vgg"], "gpu") == (["cudnn", "compile"], ["vgg"])
    with pytest.raises(SystemExit):
        command.parse(["--gpu", "-1"])


@pytest.mark.thorough
@needs_simulator
def test_end_to_end_on_the_simulator(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--device", "simulator", "--quick", "--out", str(tmp_path)]
    command += ["--filter", "transition1/forward", "--providers", "gpucnn"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    run = Run.load(tmp_path / "simulator-quick-filtered.json")
    timed = {(r.id, o.provider) for r in run.records for o in r.outcomes if o.status == "timed"}
    assert timed >= {(TRANSITION, name) for name in ("gpucnn", "gpucnn channels_last", "gpucnn NumPy")}
    assert all(row.ratio_to("gpucnn NumPy") for row in rows_of(run))
    assert (tmp_path / "simulator-quick-filtered-gpucnn-over-numpy.png").exists()
    assert run.environment["device"]["kind"] == "gpu"


@pytest.mark.thorough
@needs_simulator
def test_the_suites_of_pytest_benchmark_run_on_a_device(tmp_path: Path) -> None:
    written = tmp_path / "benchmark.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "benchmarks/bench_layers.py"]
    command += ["--device", "simulator", "-k", "transition1/forward-gpucnn] and not last"]
    environ = {key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"}
    ran = subprocess.run(
        [*command, "--benchmark-json", str(written)], cwd=ROOT, capture_output=True, text=True, env=environ
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (benchmark,) = json.loads(written.read_text())["benchmarks"]
    facts = benchmark["extra_info"]
    assert (facts["device"], facts["provider"]) == ("simulator", "gpucnn")
    assert facts["cold"]["median"] > 0


# --- The NumPy backend beside it ----------------------------------------------------------------------------------


def test_the_fallback_runs_when_no_worker_is_left_and_within_the_time(
    run_command: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: list[Any] = []

    def events() -> Any:
        try:
            yield from said(*result(A), *result(B))
        finally:
            steps.append("worker ended")

    def outcomes(cases: Any, provider: Any, seconds: float) -> Any:
        steps.append(seconds)
        yield on_host(0.031)
        yield on_host(0.0, "refused", fallback.NOT_REACHED)

    monkeypatch.setattr(fallback, "outcomes", outcomes)
    status, files = run_command(events())
    assert status == 0
    ended, seconds = steps
    assert ended == "worker ended"
    assert seconds < gpu_command.BUDGET_S["default"]
    printed = capsys.readouterr().out
    for words in ("gpucnn NumPy on the host: 2 cases", "310.00 x gpucnn NumPy", "1 cases are not reached"):
        assert words in printed
    run = Run.load(files["nvidia-fake-100.json"])
    assert [o.status for record in run.records for o in record.outcomes if o.provider == "gpucnn NumPy"] == [
        "timed", "refused"
    ]  # fmt: skip


@pytest.mark.thorough
def test_an_interruption_of_the_fallback_keeps_what_was_measured(
    run_command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outcomes(cases: Any, provider: Any, seconds: float) -> Any:
        yield on_host(0.031)
        raise KeyboardInterrupt

    monkeypatch.setattr(fallback, "outcomes", outcomes)
    status, files = run_command(said(*result(A), *result(B)))
    assert status == command.EXIT_INTERRUPTED
    run = Run.load(files["nvidia-fake-100-partial.json"])
    assert sorted(len(record.outcomes) for record in run.records) == [2, 3]


# --- The machine --------------------------------------------------------------------------------------------------


def test_a_gpu_is_chosen_by_its_number() -> None:
    assert chosen_gpu(None, {}) == {}
    assert chosen_gpu(1, {}) == {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert chosen_gpu(1, {"CUDA_VISIBLE_DEVICES": "4, 6"})["CUDA_VISIBLE_DEVICES"] == "6"
    assert chosen_gpu(None, {"CUDA_VISIBLE_DEVICES": "GPU-ab,GPU-cd"})["CUDA_VISIBLE_DEVICES"] == "GPU-ab"
    with pytest.raises(ValueError, match="--gpu is 2, expected less than 2"):
        chosen_gpu(2, {"CUDA_VISIBLE_DEVICES": "4,6"})


def test_the_gpus_facts(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    device = environment.make_device("gpu")  # CuPy may start programs to find CUDA

    def smi(arguments: Any, **options: Any) -> Any:
        asked.append(arguments)
        values = {"clocks.sm": "1980 MHz", "clocks.mem": "2619 MHz", "power.draw": "[N/A]", "power.limit": "700.00 W"}
        line = ", ".join(values.get(name, "7") for name in environment.CLOCKS.values())
        return type("Done", (), {"stdout": line + "\n"})

    monkeypatch.setattr(cupy.cuda.runtime, "runtimeGetVersion", lambda: 12090)
    monkeypatch.setattr(cupy.cuda.runtime, "driverGetVersion", lambda: 13010)
    monkeypatch.setattr(environment.subprocess, "run", smi)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    known = environment.clocks()
    assert known == {
        "SM clock": "1980 MHz", "memory clock": "2619 MHz", "power limit": "700.00 W", "temperature": "7", "driver": "7"
    }  # fmt: skip
    assert asked[0][-1] == "--id=3"
    monkeypatch.setattr("benchmarks.environment.subprocess.run", smi)
    facts = environment.describe(2, [], device)
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    assert facts["device"]["name"] == properties["name"].decode()
    assert facts["device"]["compute_capability"] == f"{properties['major']}.{properties['minor']}"
    versions = [facts["versions"][name] for name in ("CUDA", "driver's CUDA", "driver")]
    assert versions == ["12.9", "13.1", "7"]
    assert facts["host"]["kind"] == "cpu"
    assert environment.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert [environment._cudnn(number) for number in (91002, 8907)] == ["9.10.2", "8.9.7"]


def test_a_machine_without_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(environment.subprocess, "run", missing)
    assert environment.clocks() == {}
    assert environment.utilization() is None


@pytest.mark.parametrize(("answer", "share"), [("37 %", 0.37), ("0 %", 0.0), ("[N/A]", None)])
def test_the_share_of_time_that_a_gpu_was_used_before(
    monkeypatch: pytest.MonkeyPatch, answer: str, share: float | None
) -> None:
    monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=f"{answer}\n"))
    assert environment.utilization() == share
