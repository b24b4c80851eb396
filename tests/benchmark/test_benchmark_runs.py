"""Runs of the benchmarks on a CPU: what they write, what may be published, and how calls are timed."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from bench_fakes import TRANSITION, Halves, OutOfMemory, Slow, Wrong

from benchmarks import __main__ as command
from benchmarks import environment, kernel_profile, publishing, report, session, timing
from benchmarks.results import Run, rows_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_command(folders, monkeypatch, tmp_path):
    """Run the command with the given providers; its status, and the files of its folder."""
    monkeypatch.setitem(command.BUDGET_S, "quick", 0.5)
    local = tmp_path / "local"

    def run(providers, *arguments):
        monkeypatch.setattr("benchmarks.providers.PROVIDERS", providers)
        status = command.main(["--quick", "--device", "cpu", "--out", str(local), *arguments])
        device = environment.slug(environment.device_name(), environment.available_cpus())
        found = local.iterdir() if local.exists() else ()
        return status, {path.name.removeprefix(device + "-"): path for path in found}

    return run


def test_a_run_writes_all_its_files_and_says_where(run_command, capsys):
    status, files = run_command((Halves, Slow), "--filter", "transition1")
    assert status == 0
    assert not publishing.RESULTS.exists()
    printed = capsys.readouterr().out
    assert all(f"wrote {path}\n" in printed for path in files.values())
    assert set(files) == {f"quick-filtered{end}" for end in (".json", ".md", "-roofline.png", "-speedup.png")}
    run = Run.load(files["quick-filtered.json"])
    assert not run.complete
    assert run.environment["versions"]["halves"] == "1"
    (row,) = rows_of(run)
    assert (row.subject, row.peer) == ("halves", "slow peer")
    assert {o.status for r in run.records for o in r.outcomes} == {"timed", "refused"}


def test_a_wrong_result_is_red_untimed_and_fails_the_run(run_command, capsys):
    status, files = run_command((Halves, Wrong, OutOfMemory), "--filter", "transition1/forward")
    assert status == command.EXIT_FAULT
    (record,) = Run.load(files["quick-filtered.json"]).records
    assert [o.status for o in record.outcomes] == ["timed", "wrong", "failed"]
    assert [o.timing is None for o in record.outcomes] == [False, True, True]
    printed = capsys.readouterr().out
    assert "WRONG" in printed
    assert "MemoryError: Out of memory allocating 3 bytes" in printed


def test_an_interrupted_run_keeps_what_it_has(run_command):
    class Interrupted(Halves):
        def refuses(self, case):
            return None if "layer_norm" in case.id else super().refuses(case)

        def prepare(self, case, arrays):
            if "layer_norm" in case.id:
                raise KeyboardInterrupt
            return super().prepare(case, arrays)

    status, files = run_command((Interrupted,), "--filter", "transition1,layer_norm")
    assert status == command.EXIT_INTERRUPTED
    run = Run.load(files["quick-filtered-partial.json"])
    assert not run.complete
    statuses = {record.id: record.outcomes[0].status for record in run.records}
    assert statuses == {TRANSITION: "timed", "densenet-121/transition1/backward": "refused"}


def test_mistaken_calls(run_command, capsys):
    assert run_command((Halves,), "--filter", "no such layer")[0] == command.EXIT_USAGE
    assert run_command((Halves,), "--providers", "nobody")[0] == command.EXIT_USAGE
    assert command.main(["--list", "--quick", "--filter", "alexnet"]) == 0
    assert "alexnet/conv1/backward_weight" in capsys.readouterr().out
    for mistake in (["--threads", "0"], ["--quick", "--full"], ["--readme", "README.md"]):
        with pytest.raises(SystemExit):
            command.parse(mistake)
    assert "--readme FILE is part of publishing: add --publish" in capsys.readouterr().err


# Committed results --------------------------------------------------------------------------------


def test_git_ignores_what_a_run_writes_by_default():
    assert command.parse([]).out == publishing.LOCAL
    written = publishing.LOCAL / "some-cpu.json"
    assert subprocess.run(["git", "check-ignore", "-q", written], cwd=ROOT).returncode == 0
    committed = publishing.RESULTS / "some-cpu.json"
    assert subprocess.run(["git", "check-ignore", "-q", committed], cwd=ROOT).returncode == 1


@pytest.mark.parametrize("parse", [command.parse, kernel_profile.main], ids=["benchmarks", "kernel_profile"])
def test_the_folder_of_committed_results_is_no_place_to_write_to(parse, capsys):
    with pytest.raises(SystemExit):
        parse(["--out", str(publishing.RESULTS)])
    assert "holds the committed results; --publish replaces them" in capsys.readouterr().err


@pytest.fixture
def publish(folders, tmp_path, small_run):
    """Publish a run's JSON where `small_run` has been published before; exit status, and the run that is committed."""
    readme = tmp_path / "README.md"
    readme.write_text("\n".join(report.README_MARKERS["cpu"]))
    publishing.write(small_run, publishing.RESULTS / "some-cpu")

    def run(changed):
        (tmp_path / "measured").mkdir()
        changed.save(tmp_path / "measured" / "some-cpu.json")
        measured = ["--report", str(tmp_path / "measured" / "some-cpu.json"), "--out", str(tmp_path / "local")]
        status = command.main([*measured, "--publish", "--readme", str(readme)])
        return status, Run.load(publishing.RESULTS / "some-cpu.json")

    return run


def test_a_published_run_replaces_the_committed_one_and_the_readmes_block(publish, small_run, tmp_path, capsys):
    again = replace(small_run, seconds=2.0)
    assert publish(again) == (0, again)
    assert "[The cases and all families](committed/some-cpu.md)" in (tmp_path / "README.md").read_text()
    printed = capsys.readouterr().out
    for name in ("local/some-cpu.json", "committed/some-cpu.json", "committed/some-cpu-speedup.png", "README.md"):
        assert f"wrote {tmp_path / name}\n" in printed


def busy_with(load):
    return lambda run: replace(run, environment=run.environment | {"device": run.environment["device"] | load})


@pytest.mark.table(1)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda run: replace(run, records=run.records[1:]), "compares with quick, slow, which this run does not"),
        (busy_with({"load": 0.7}), "the machine is busy (load 0.7, at most 0.5 for a result to commit)"),
        (busy_with({"kind": "gpu", "utilization": 0.3}), "the GPU is busy with other work (30% of the time)"),
        (busy_with({"kind": "gpu", "load": 1.1}), "the machine is busy (load 1.1, at most 1 for a result to commit)"),
        (lambda run: replace(run, complete=False), "only a whole run is published"),
        (lambda run: replace(run, tier="quick"), "only a whole run is published"),
    ],
    ids=["fewer peers", "busy", "busy GPU", "busy host of a GPU", "partial", "quick"],
)
def test_no_lesser_run_replaces_a_committed_result(publish, small_run, tmp_path, capsys, change, reason):
    readme = (tmp_path / "README.md").read_text()
    assert publish(change(small_run)) == (command.EXIT_USAGE, small_run)
    assert (tmp_path / "README.md").read_text() == readme
    assert (tmp_path / "local" / "some-cpu.json").exists()
    error = capsys.readouterr().err
    assert error.startswith("not published: ")
    assert reason in error


def test_what_will_not_be_published_is_not_measured(run_command, monkeypatch, capsys, small_run):
    monkeypatch.setattr(environment, "load", lambda: 0.0)
    monkeypatch.setattr(command, "measure", None)
    assert run_command((Halves, Slow), "--publish")[0] == command.EXIT_USAGE  # quick
    monkeypatch.setattr(command, "file_stem", lambda *_, **__: "some-cpu")
    publishing.write(small_run, publishing.RESULTS / "some-cpu")
    whole = ["--device", "cpu", "--out", str(publishing.RESULTS.parent / "local"), "--publish"]
    capsys.readouterr()
    assert command.main(whole) == command.EXIT_USAGE
    assert "which this run does not: install what is missing" in capsys.readouterr().err
    monkeypatch.setattr(environment, "load", lambda: 9.0)
    assert command.main(whole) == command.EXIT_USAGE
    assert "the machine is busy (load 9" in capsys.readouterr().err


def test_a_figure_that_a_run_does_not_draw_does_not_stay_from_the_run_before(small_run, tmp_path):
    written = publishing.write(small_run, tmp_path / "some-cpu")
    assert set(written) == set(tmp_path.iterdir())
    alone = [replace(r, outcomes=r.outcomes[:1]) for r in small_run.records]
    publishing.write(replace(small_run, records=tuple(alone)), tmp_path / "some-cpu")
    assert {path.name for path in tmp_path.iterdir()} == {"some-cpu.json", "some-cpu.md", "some-cpu-roofline.png"}


# The machine --------------------------------------------------------------------------------------


def test_every_library_is_confined_to_the_threads_and_the_facts_say_so():
    code = """
from benchmarks import environment
environment.confine(1)
import gpucnn, json, threadpoolctl
facts = environment.describe(1, [])
assert facts["gpucnn_threads"] == gpucnn.get_num_threads() == 1
assert {pool["num_threads"] for pool in facts["thread_pools"]} == {1}
gpucnn.set_num_threads(3)
assert environment.describe(1, [])["gpucnn_threads"] == 3
environment.confine(2)
assert gpucnn.get_num_threads() == 2
"""
    environ = {**os.environ, "GPUCNN_NUM_THREADS": "7"}
    ran = subprocess.run([sys.executable, "-c", code], env=environ, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_without_gpucnn_there_are_no_threads_of_it(monkeypatch):
    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    assert "gpucnn_threads" not in environment.describe(1, [])


def test_only_a_whole_default_run_has_the_plain_name():
    names = {
        command.file_stem(tier, "some-cpu", filtered, interrupted)
        for tier in ("quick", "default", "full")
        for filtered in (False, True)
        for interrupted in (False, True)
    }
    assert len(names) == 12
    assert environment.slug("Intel(R) Xeon(R) CPU @ 2.20GHz", 4) == "intel-xeon-4-threads"
    assert environment.slug("AMD EPYC 7B13", 1) == "amd-epyc-7b13-1-thread"
    assert command.file_stem("default", "some-cpu", False, False) == "some-cpu"
    assert command.file_stem("full", "some-gpu", True, True) == "some-gpu-full-filtered-partial"


def test_processors_of_one_name_are_told_apart_by_their_vector_extensions(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    for flags, name in (
        ("fpu avx2 avx512f", "AMD EPYC (AVX-512)"),
        ("fpu avx2", "AMD EPYC (AVX2)"),
        ("fpu sse2", "AMD EPYC"),
    ):
        cpuinfo.write_text(f"processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: {flags}\n")
        assert environment.device_name(cpuinfo) == name
    assert environment.device_name(tmp_path / "none")
    assert environment.slug("AMD EPYC (AVX-512)", 2) == "amd-epyc-avx-512-2-threads"


# Timing -------------------------------------------------------------------------------------------


def test_the_schedule_shares_what_is_left():
    schedule = session.Schedule(budget_s=100, cases=50)
    assert schedule.share() == pytest.approx(2, rel=0.01)
    schedule.done, schedule.overhead_s = 40, 200
    assert schedule.share() == pytest.approx(4)  # capped; five seconds overhead a case
    schedule.budget_s = 0
    assert schedule.share() == schedule.least_s


def test_interleaving_times_every_call_alike():
    order = []

    class Counting(Halves):
        def time(self, call, repeats):
            order.append(call)
            return 1e-3

    first, second = Counting(1), Counting(1)
    timings = timing.interleave({first: "a", second: "b"}, budget_s=0.0, max_rounds=9)
    assert {t.samples for t in timings.values()} == {timing.MIN_ROUNDS}
    assert order.count("a") == order.count("b")
    rounds = order[4:]  # after two warm-ups each; a warm call and a sample per turn
    assert rounds[:8] == ["a", "a", "b", "b", "b", "b", "a", "a"]


def test_short_calls_are_warmed_up_for_as_long_as_an_idle_cpu_takes_to_come_back() -> None:
    assert [timing.warming(seconds) for seconds in (0.02, 0.011, 1e-3, 0.0)] == [0, 2, 20, 1000]
