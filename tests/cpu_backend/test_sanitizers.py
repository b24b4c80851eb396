"""Sanitizers find what is planted in a small kernel: `tests/sanitized.py` runs the real ones under them, in CI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sanitized

from gpucnn.backends.cpu import builds

READ, WRITE, WORKSPACE, OVERFLOW = range(4)
KERNEL = """// One access to element `at` of 8, or a sum that overflows for more than 7; by so many threads at once.
#include <sched.h>

#include <atomic>

#include "vectors.hpp"

struct Params {
  index_t what;
  index_t at;
  index_t threads;
};

static std::atomic<int> begun{0};

KERNEL plant(const Params* p, const scalar_t* x, scalar_t* y, scalar_t* workspace, int64_t item) {
  begun.fetch_add(1, std::memory_order_relaxed);
  while (begun.load(std::memory_order_relaxed) < p->threads) sched_yield();
  if (p->what == 0) y[0] = x[p->at];
  if (p->what == 1) y[p->at] = x[0];
  if (p->what == 2) workspace[p->at] = x[0];
  if (p->what == 3) y[0] = scalar_t(p->at + (INT64_MAX - 7));
}
"""
CODE = """
import sys
from pathlib import Path
import numpy as np
import gpucnn
from gpucnn.backends.cpu import builds
from gpucnn.backends.cpu.library import Kernel, launch
builds._FOLDERS = (Path(sys.argv[1]),)
what, at, threads = map(int, sys.argv[2:])
gpucnn.set_num_threads(threads)
x, y = (np.ones(8, np.float32) for _ in range(2))
values = {"what": what, "at": at, "threads": threads}
launch(Kernel("plant"), "float32", values, {"x": x, "y": y}, items=threads, workspace=8)
print("done")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted kernel, what it needs, and a cache."""
    folder = tmp_path_factory.mktemp("planted")
    for name in ("vectors.hpp", "threads.cpp"):
        shutil.copy(builds.folder() / name, folder)
    (folder / "plant.cpp").write_text(KERNEL)
    (folder / "cache").mkdir(mode=0o700)
    return folder


def run(folder: Path, kind: str, what: int, at: int, threads: int = 1) -> tuple[int, str]:
    """The exit status of the planted kernel under a sanitizer, and all that is printed."""
    library = sanitized.library(kind)
    if library is None:
        reason = f"{sanitized.LIBRARIES[kind]} is not installed: it comes with g++"
        assert not os.environ.get("GPUCNN_REQUIRE_SANITIZERS"), reason
        pytest.skip(reason)
    variables = {**sanitized.environment(kind), "LD_PRELOAD": library, "GPUCNN_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, "-c", CODE, str(folder), *map(str, (what, at, threads))]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.table(4)
@pytest.mark.parametrize(
    ("what", "found"),
    [
        (READ, "heap-buffer-overflow"),
        (WRITE, "heap-buffer-overflow"),
        (WORKSPACE, "heap-buffer-overflow"),
        (OVERFLOW, "signed integer overflow"),
    ],
)
def test_what_is_beyond_the_end_is_found(folder: Path, what: int, found: str) -> None:
    status, said = run(folder, "address", what, at=7)
    assert (status, "done" in said) == (0, True), said
    status, said = run(folder, "address", what, at=8)
    assert status != 0
    assert "done" not in said
    assert found in said
    assert "plant.cpp" in said


def test_a_race_is_found(folder: Path) -> None:
    status, said = run(folder, "thread", WORKSPACE, at=7, threads=2)  # each thread has its own
    assert (status, "done" in said) == (0, True), said
    for _ in range(5):  # on a busy machine one thread may do all before the other has begun
        status, said = run(folder, "thread", WRITE, at=7, threads=2)
        if status != 0:
            break
    assert status != 0
    assert "data race" in said
    assert "plant.cpp" in said
