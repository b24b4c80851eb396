"""The sample of the suite: which rows and examples a plain `pytest` runs, and that ``--all`` leaves nothing out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import sample

TESTS = Path(__file__).parents[1]
SUITE = """
import pytest, sample
from hypothesis import given, strategies as st

drawn = []

@pytest.mark.table(3)
@pytest.mark.parametrize("row", range(9))
def test_table(row): pass

@pytest.mark.parametrize("row", range(20))
def test_long(row): pass

@pytest.mark.table(20)
@pytest.mark.parametrize("row", range(20))
def test_quick(row): pass

@pytest.mark.thorough
def test_thorough(): pass

@sample.examples(200)
@given(st.integers())
def test_drawn(value): drawn.append(value)

def test_count(): print("examples:", len(drawn))
"""


@pytest.mark.table(1)
@pytest.mark.parametrize(
    ("options", "rows", "drawn"),
    [((), "048", 20), (("--all",), "012345678", 200), (("--all", "--rows=4"), "0358", 200)],
)
def test_rows_and_examples(tmp_path: Path, options: tuple[str, ...], rows: str, drawn: int) -> None:
    (tmp_path / "test_it.py").write_text(SUITE)
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    command = [sys.executable, "-m", "pytest", "-vs", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), *options]
    environment = {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    run = subprocess.run([*command, "test_it.py"], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert run.returncode == 0, run.stdout
    assert [row for row in "012345678" if f"test_table[{row}] PASSED" in run.stdout] == list(rows)
    assert run.stdout.count("test_long[") == (20 if options else sample.ROWS)
    assert run.stdout.count("test_quick[") == 20
    assert ("test_thorough PASSED" in run.stdout) == bool(options)
    assert abs(int(run.stdout.split("examples: ")[1].split()[0]) - drawn) <= 5  # Hypothesis may repeat an example


def test_some_rows_reach_from_the_first_to_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "everything", False)
    assert sample.some(range(100), 4) == [0, 33, 66, 99]
    assert sample.some(range(2), 4) == [0, 1]
    assert sample.some(range(5), 1) == [0]
    monkeypatch.setattr(sample, "everything", True)
    assert sample.some(range(5), 1) == [0, 1, 2, 3, 4]
    monkeypatch.setattr(sample, "longest", 3)
    assert sample.some(range(5), 1) == [0, 2, 4]
    assert sample.some(range(5), None) == [0, 1, 2, 3, 4]


def test_files_of_tests_have_names_of_their_own() -> None:
    """pytest collects no two modules of one name: CI, which gives some folders a run of their own, would not notice."""
    names = Counter(path.name for path in TESTS.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
