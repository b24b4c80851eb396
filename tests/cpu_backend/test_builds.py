"""Builds of the CPU kernels: found or compiled once, kept, and compiled again where they are damaged."""

from __future__ import annotations

import io
import os
import random
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache as cache_of
from pathlib import Path
from typing import Any

import pytest
from small_kernels import VALUES, new_process, values

import gpucnn
from gpucnn import backends
from gpucnn.backends.cpu import builds
from gpucnn.compilation import trust
from gpucnn.compilation.cache import is_whole

pytestmark = pytest.mark.usefixtures("compiler", "kernels")


def quietly(done: Any, total: int) -> Any:
    return done


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A maker of compilers: shell scripts that note each call in a log and then run `body`."""

    def make(body: str) -> Path:
        script, log = tmp_path / "fake-compiler", tmp_path / "log"
        script.write_text(f'#!/bin/sh\necho "$@" >> "{log}"\n{body}\n')
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        return log

    return make


REAL = f'exec "{shutil.which("g++") or shutil.which("clang++")}" "$@"'


# --- Found or compiled ------------------------------------------------------------------------------------------------


def test_all_are_compiled_once_and_then_found(cache: Path, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log = fake(REAL)
    assert len(builds.missing()) == 4
    assert builds.load_all(quietly) == 4
    assert values() == VALUES
    assert builds.load_all(quietly) == 0
    assert builds.missing() == []
    new_process(monkeypatch)
    assert builds.load_all(quietly) == 0
    assert values() == VALUES
    assert len(log.read_text().splitlines()) == 4
    assert sorted(path.suffix for path in cache.iterdir()) == [".so"] * 4 + [".txt"]


def test_a_library_brings_those_of_its_dtype(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert builds.library("two", "float64").two() == 16
    found = sorted(path.name.split("-")[:2] for path in cache.glob("*.so"))
    assert found == [["one", "float64"], ["two", "float64"]]
    new_process(monkeypatch)
    monkeypatch.setattr(builds, "compiled", lambda wanted: pytest.fail("it was compiled again"))
    assert builds.library("two", "float64").two() == 16


def test_a_build_is_of_the_sources_that_it_is_named_after(kernels: Path, cache: Path) -> None:
    """Somebody who edits them meanwhile gets what he wrote from the next process."""
    named = {build.path for build in builds.builds()}
    (kernels / "one.cpp").write_text("not yet C++")
    (kernels / "vectors.hpp").write_text("not yet C++")
    builds.load_all(quietly)
    assert values() == VALUES
    assert named == set(cache.glob("*.so"))


def test_random_numbers_of_the_program_stay_as_they_are() -> None:
    random.seed(5)
    expected = random.random()
    random.seed(5)
    builds.load_all(quietly)
    assert random.random() == expected


def test_whatever_a_build_depends_on_is_in_its_name(kernels: Path, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def names() -> set[str]:
        new_process(monkeypatch)
        return {build.path.name for build in builds.builds()}

    seen = names()
    changes: list[Callable[[], object]] = [
        lambda: (kernels / "one.cpp").write_text("// another\n"),
        lambda: (kernels / "vectors.hpp").write_text("// another\n"),
        lambda: monkeypatch.setattr(builds, "FLAGS", ("-O1",)),
        lambda: monkeypatch.setattr(builds, "target_flags", lambda: ("-march=other",)),
        lambda: monkeypatch.setattr(builds, "_processor", lambda: "other"),
        lambda: monkeypatch.setenv("GPUCNN_CPU_FLAGS", "-O1"),
        lambda: fake(REAL),
    ]
    for change in changes:
        change()
        now = names()
        kept = [name for name in now & seen if not name.startswith("two")]
        assert len(now - seen) >= 2
        assert not kept
        seen |= now
    assert names() <= seen


def test_flags_of_the_environment_come_last(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log = fake(REAL)
    monkeypatch.setenv("GPUCNN_CPU_FLAGS", "-O1  -g")
    assert builds.load_all(quietly) == 4
    assert values() == VALUES
    for command in log.read_text().splitlines():
        options = command.split()
        assert options.index("-O1") > options.index("-O3")
        assert "-g" in options


def test_clang_heeds_what_sources_say_of_contraction(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log = fake("exit 1")
    found = builds.find_compiler()
    assert found is not None
    monkeypatch.setattr(builds, "find_compiler", lambda: replace(found, is_clang=True))
    with pytest.raises(RuntimeError, match="does not compile"):
        builds.load_all(quietly)
    for command in log.read_text().splitlines():
        assert command.split().index("-ffp-contract=fast-honor-pragmas") > command.split().index("-ffp-contract=fast")


def test_no_compiler_is_needed_where_all_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    builds.load_all(quietly)
    for name, value in (("CXX", "no-such-compiler"), ("CXX", ""), ("PATH", "")):
        monkeypatch.setenv(name, value)
        new_process(monkeypatch)
        assert builds.why_unavailable() == ""
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a program was run"))
        assert builds.load_all(quietly) == 0
        assert values() == VALUES


def test_a_new_compiler_compiles_again_and_is_the_one_that_is_noted(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    builds.load_all(quietly)
    fake(REAL)
    new_process(monkeypatch)
    assert builds.load_all(quietly) == 4
    monkeypatch.setenv("CXX", "no-such-compiler")
    new_process(monkeypatch)
    assert builds.load_all(quietly) == 0


def test_a_note_that_is_damaged_costs_what_was_compiled(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds.load_all(quietly)
    (note,) = cache.glob("*.txt")
    note.write_bytes(b"\xff half")
    monkeypatch.setenv("CXX", "no-such-compiler")
    new_process(monkeypatch)
    with pytest.raises(RuntimeError, match="no-such-compiler"):
        builds.load_all(quietly)
    monkeypatch.delenv("CXX")
    new_process(monkeypatch)
    assert builds.load_all(quietly) == 0
    assert b"half" not in note.read_bytes()


@pytest.mark.parametrize("length", [0, 1, 3000, -1])
def test_a_truncated_build_is_compiled_again(cache: Path, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    builds.load_all(quietly)
    path = next(cache.glob("one-float32-*.so"))
    # As another file: what is loaded must not be changed in place.
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:length])
    new_process(monkeypatch)
    assert [build.path for build in builds.missing()] == [path]
    assert builds.load_all(quietly) == 1
    assert is_whole(path)
    assert values() == VALUES


# --- Compilers that are missing or fail -----------------------------------------------------------------------------


def test_a_missing_compiler_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    expected = r"^compiled CPU kernels need g\+\+ 11 or newer, or clang\+\+ 15 or newer; install one"
    with pytest.raises(RuntimeError, match=expected):
        builds.load_all()
    new_process(monkeypatch)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match=r"that CXX names, 'no-such-compiler', which was not found; correct it$"):
        builds.load_all()
    assert "no-such-compiler" in builds.why_unavailable()


def test_a_failure_is_decided_once(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "usable_cores", lambda: 1)
    log = fake("echo one.cpp: error: no >&2; exit 1")
    message = r"(?s)^(one|two)\.cpp does not compile for float(32|64) with .*fake-compiler:\none\.cpp: error: no$"
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            builds.load_all(quietly)
    assert 1 <= len(log.read_text().splitlines()) <= 2  # the others are not tried; one had begun
    monkeypatch.delenv("CXX")  # a compiler that comes later changes nothing
    with pytest.raises(RuntimeError, match=message):
        builds.load_all(quietly)
    assert builds.why_unavailable() != ""


def test_long_messages_are_cut(fake: Any) -> None:
    fake('i=0; while [ $i -lt 500 ]; do echo "line $i" >&2; i=$((i+1)); done; exit 1')
    with pytest.raises(RuntimeError, match=r"line 19$"):
        builds.load_all(quietly)


def test_a_compiler_that_cannot_be_run(fake: Any) -> None:
    fake("").with_name("fake-compiler").write_text("#!/no/such/interpreter\n")
    with pytest.raises(RuntimeError, match=r"fake-compiler cannot be run: "):
        builds.load_all(quietly)


def test_a_compiler_that_writes_no_library(fake: Any) -> None:
    fake('while [ "$1" != -o ]; do shift; done; echo nothing > "$2"')
    with pytest.raises(RuntimeError, match=r"\.so: (invalid ELF header|file too short)"):
        builds.load_all(quietly)


def test_kernels_that_were_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "_FOLDERS", (tmp_path / "nowhere",))
    new_process(monkeypatch)
    with pytest.raises(RuntimeError, match="install gpucnn again"):
        builds.load_all(quietly)


def test_an_interrupt_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(done: Any, total: int) -> Any:
        yield next(iter(done))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        builds.load_all(interrupted)
    builds.load_all(quietly)
    assert values() == VALUES


# --- Folders that cannot be used ------------------------------------------------------------------------------------


def expect_private_builds(expected: str) -> None:
    """All is compiled in a private folder, with one warning."""
    with pytest.warns(RuntimeWarning, match=expected) as caught:
        assert builds.load_all(quietly) == 4
    assert len(caught) == 1
    assert values() == VALUES
    private = trust.private_folder() / "cpu"
    assert len(list(private.glob("*.so"))) >= 4
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    shutil.rmtree(private)


NOT_KEPT = r"compiled kernels cannot be kept, so each process compiles its own .*set GPUCNN_CACHE_DIR"


def test_a_folder_that_cannot_be_made(cache: Path) -> None:
    cache.parent.write_text("in the way")
    expect_private_builds(NOT_KEPT)


def test_a_folder_that_cannot_be_written(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = trust.make_folder

    def refuse(folder: Path) -> None:
        if folder == cache:
            raise PermissionError(13, "Permission denied", str(folder))
        make(folder)

    monkeypatch.setattr("gpucnn.compilation.cache.make_folder", refuse)
    expect_private_builds(NOT_KEPT)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_read_only_folder(cache: Path) -> None:
    cache.mkdir(parents=True, mode=0o500)
    expect_private_builds(NOT_KEPT)


def test_a_read_only_folder_still_serves_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    builds.load_all(quietly)
    new_process(monkeypatch)
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("it was written to"))
    assert builds.load_all(quietly) == 0


def test_no_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(builds, "cache_folder", no_home)
    expect_private_builds(NOT_KEPT)


def test_no_folder_at_all(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Path:
        raise FileNotFoundError("No usable temporary directory found")

    cache.parent.write_text("in the way")
    monkeypatch.setattr(builds, "private_folder", refuse)
    with pytest.raises(RuntimeError, match="No usable temporary directory"):
        builds.load_all(quietly)


def test_a_folder_that_others_can_write_to(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds.load_all(quietly)
    cache.chmod(0o777)
    new_process(monkeypatch)
    assert len(builds.missing()) == 4
    expect_private_builds(r"cache/cpu can be written by everybody \(mode 0777\), so others could put their code")


def test_a_build_that_others_can_write_to(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds.load_all(quietly)
    next(cache.glob("one-*.so")).chmod(0o775)
    new_process(monkeypatch)
    with pytest.warns(RuntimeWarning, match=r"one-.*\.so can be written by its group \(mode 0775\)") as caught:
        assert builds.load_all(quietly) == 1
    assert len(caught) == 1
    assert values() == VALUES
    shutil.rmtree(trust.private_folder())
    trust._private.clear()


def test_only_the_owner_may_write_to_what_is_made(cache: Path) -> None:
    before = os.umask(0o002)
    try:
        builds.load_all(quietly)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (cache, cache.parent)} == {0o700}
    assert not any(path.stat().st_mode & 0o022 for path in cache.iterdir())


# --- Progress ---------------------------------------------------------------------------------------------------------

LINE = "gpucnn: compiling its CPU kernels for this machine, once: {} of 4"


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_line(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", screen)
    builds.load_all()
    if terminal:
        assert screen.getvalue() == "".join("\r" + LINE.format(count) for count in range(5)) + "\n"
    else:
        assert screen.getvalue() == LINE.format(0) + "\n" + LINE.format(4) + "\n"
    new_process(monkeypatch)
    builds.load_all()  # finds all, and says nothing
    assert screen.getvalue().count("0 of 4") == 1


def test_a_failure_ends_the_line_of_a_terminal(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", screen)
    fake("exit 1")
    with pytest.raises(RuntimeError):
        builds.load_all()
    assert screen.getvalue() == "\r" + LINE.format(0) + "\n"


def test_a_program_without_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert builds.load_all() == 4


def test_as_many_compilers_as_cores(fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two cores, two compilers wait for each other."""
    monkeypatch.setattr(builds, "usable_cores", lambda: 2)
    meet = (
        f'mkdir "{tmp_path}/$$" ; i=0; while [ $(ls -d "{tmp_path}"/[0-9]* | wc -l) -lt 2 ] && [ $i -lt 600 ]; '
        "do sleep 0.1; i=$((i+1)); done; [ $i -lt 600 ] || exit 1"
    )
    fake(f"{meet}\n{REAL}")
    assert builds.load_all(quietly) == 4


# --- Ahead of time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("progress", [True, False])
def test_warming_up_compiles_all(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, progress: bool
) -> None:
    monkeypatch.setattr(backends, "_compiled_backend", cache_of(backends._compiled_backend.__wrapped__))
    done = gpucnn.warmup(backend="compiled", progress=progress)
    assert (done.cases, done.compiled, done.found) == (0, 4, 0)
    assert capsys.readouterr().err.endswith("warmup: CPU kernels ready 4/4\n" if progress else "")
    again = gpucnn.warmup([("relu", {"input": (2, 3)})], backend="compiled", progress=progress)
    assert (again.cases, again.compiled, again.found) == (1, 0, 4)
    assert values() == VALUES


def test_information(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("GPUCNN_CPU", "auto")
    before = gpucnn.info()["cpu"]
    assert (before["backend"], before["because"]) == ("compiled", "its kernels can be used here")
    advice = "the first operation compiles the others, or python -m gpucnn --build"
    assert before["builds"] == f"0 of 4 in {cache}; {advice}"
    assert not cache.exists()
    builds.load_all(quietly)
    assert gpucnn.info()["cpu"]["builds"] == f"4 of 4 in {cache}"
    monkeypatch.setenv("PATH", "")
    assert gpucnn.info()["cpu"]["compiler"] == "none, and none is needed"
    monkeypatch.setenv("GPUCNN_CPU", "numpy")
    assert gpucnn.info()["cpu"] == {"backend": "numpy", "because": "GPUCNN_CPU is numpy"}


@pytest.mark.parametrize(("choice", "named"), [("auto", "numpy"), ("compiled", "none, as GPUCNN_CPU is compiled")])
def test_information_on_what_is_missing(monkeypatch: pytest.MonkeyPatch, choice: str, named: str) -> None:
    monkeypatch.setenv("GPUCNN_CPU", choice)
    monkeypatch.setenv("PATH", "")
    state = gpucnn.info()["cpu"]
    assert (state["backend"], list(state)) == (named, ["backend", "because"])
    assert "install one" in state["because"]
    assert backends.available()["compiled"] == f"not available: {state['because']}"
