"""Workers that crash, hang, lose their device or take too long, and what is started and said after them."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from scripted_worker import script, started

from benchmarks import isolation
from benchmarks.isolation import MAX_WORKERS, Event, follow

BEGUN: list[Event] = [{"item": "b"}, {"by": "peer", "step": "check"}, {"by": "ours", "step": "time"}]


def done(item: str) -> list[Event]:
    return [{"item": item}, {"by": "ours", "step": "check"}, {"result": f"{item} is done"}]


def said(folder: Path, *scripts: tuple[list[Event], str], seconds: float = 60, **options: Any) -> list[Event]:
    """All that the workers of a task say, and all that is said of them."""
    return list(follow(script(folder, *scripts), folder / "events.jsonl", seconds, **options))


def test_a_worker_that_ends_well_is_the_only_one(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("an earlier run's")
    events = [{"providers": ["ours"]}, *done("a"), {"clocks": 1}]
    assert said(tmp_path, (events, "")) == events
    assert started(tmp_path) == [(0, {})]


@pytest.mark.table(1)
@pytest.mark.parametrize(
    ("code", "note"),
    [
        ("import os; os.kill(os.getpid(), 11)", "its process ended with status -11"),
        ("print('CUDA error'); sys.exit(9)", "its process ended with status 9: CUDA error"),
        ("import time; time.sleep(60)", "it said nothing for 1 s"),
        ("raise ValueError('no')", "its process ended with status 1: ValueError: no"),
    ],
)
def test_a_lost_worker_is_followed_by_one_for_the_rest(tmp_path: Path, code: str, note: str) -> None:
    events = said(tmp_path, ([*done("a"), *BEGUN], code), (done("b"), ""), silence_s=1)
    assert started(tmp_path) == [(0, {}), (1, {"ours": note})]
    lost = {"worker": 0, "item": "b", "lost": "ours", "note": note}
    assert events == [*done("a"), *BEGUN, lost, *done("b")]


def test_who_was_lost_is_known_until_the_item_is_done(tmp_path: Path) -> None:
    gone = [{"item": "a"}, {"by": "peer"}, {"lost": "ours", "note": "illegal address"}]
    nobody = [{"item": "a"}]
    last = [*done("a"), {"item": "b"}, {"by": "peer"}]
    events = said(tmp_path, (gone, "sys.exit(3)"), (nobody, "sys.exit(1)"), (last, "sys.exit(1)"), (done("b"), ""))
    note = "its process ended with status 1"
    assert started(tmp_path) == [
        (0, {}), (0, {"ours": "illegal address"}), (0, {"ours": "illegal address", "": note}), (1, {"peer": note})
    ]  # fmt: skip
    assert [event["note"] for event in events if "lost" in event] == ["illegal address", note, note]


def test_a_worker_that_gives_up_its_device_after_a_result_is_followed_by_another(tmp_path: Path) -> None:
    events = said(tmp_path, ([{"items": 2}, *done("a")], "sys.exit(3)"), ([{"items": 2}, *done("b")], "sys.exit(3)"))
    assert started(tmp_path) == [(0, {}), (1, {})]  # and none when all is done
    assert not any("trouble" in event or "lost" in event for event in events)


def test_a_line_that_a_lost_worker_did_not_finish_is_left_out(tmp_path: Path) -> None:
    half = f"open({str(tmp_path / 'events.jsonl')!r}, 'a').write('{{\"resu'); sys.exit(1)"
    events = said(tmp_path, (BEGUN, half), (done("b"), ""))
    assert events[-3:] == done("b")


def test_a_worker_that_cannot_begin_is_not_tried_again(tmp_path: Path) -> None:
    events = said(tmp_path, ([], "print('ImportError: no'); sys.exit(1)"))
    assert events == [{"trouble": "a worker was lost: its process ended with status 1: ImportError: no"}]
    assert len(started(tmp_path)) == 1


def test_workers_are_not_lost_for_ever(tmp_path: Path) -> None:
    events = said(tmp_path, *[(BEGUN, "sys.exit(1)")] * MAX_WORKERS)
    assert events[-1] == {"trouble": f"{MAX_WORKERS} workers were lost"}
    assert len(started(tmp_path)) == MAX_WORKERS


@pytest.mark.thorough
def test_a_worker_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "GRACE_S", 0.2)
    stubborn = "import signal, time; signal.signal(2, signal.SIG_IGN); time.sleep(60)"
    before = time.perf_counter()
    events = said(tmp_path, ([*done("a"), *BEGUN], stubborn), limit_s=2)
    assert events[-1] == {"trouble": "the time limit ended it amid b"}
    assert time.perf_counter() - before < 20
    assert said(tmp_path, ([], ""), limit_s=0) == [{"trouble": "the time limit ended it"}]


def test_closing_ends_the_worker(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    code = f"import time; time.sleep(4); open({str(alive)!r}, 'w').write('yes')"
    events = follow(script(tmp_path, (BEGUN, code)), tmp_path / "events.jsonl", 60)
    next(events)
    before = time.perf_counter()
    events.close()
    assert time.perf_counter() - before < 3.5
    assert not alive.exists()


def test_a_worker_is_told_the_time_and_has_its_environment_and_its_prefix(tmp_path: Path) -> None:
    code = "import os; print(os.environ['GIVEN'], sys.flags.dont_write_bytecode, seconds)"
    prefix = (sys.executable, "-c", "import os, sys; os.execv(sys.argv[1], [sys.argv[1], '-B', *sys.argv[2:]])")
    task = script(tmp_path, ([], code), environment={"GIVEN": 'it\'s "this"'}, prefix=prefix)
    assert not list(follow(task, tmp_path / "events.jsonl", 12.3))
    given, flag, seconds = (tmp_path / "events.log").read_text().rsplit(maxsplit=2)
    assert (given, flag) == ('it\'s "this"', "1")
    assert 11 < float(seconds) <= 12.3
