"""Progress of a run: a bar in a terminal, else a line for each case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.report import progress_line
from benchmarks.results import Record, row_of
from benchmarks.timing import Limits


class Shown:
    """Shows the cases as they are measured; faults are lines in any case, and red."""

    def __init__(self, cases: Sequence[str], subjects: Sequence[str], console: Console) -> None:
        self._cases, self._subjects, self._console = cases, subjects, console
        self._count = 0
        self._bar = Progress(
            BarColumn(24),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Shown:
        self._bar.__enter__()
        self._task = self._bar.add_task(self._cases[0], total=len(self._cases))
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def record(self, record: Record, limits: Limits) -> None:
        """A case has been measured."""
        self._count += 1
        rows = (row_of(record, subject, self._subjects, limits) for subject in self._subjects)
        faulty = any(outcome.status in ("wrong", "failed") for outcome in record.outcomes)
        if faulty or not self._console.is_terminal:
            line = progress_line(record, next((row for row in rows if row), None))
            self.line(f"[{self._count:3}/{len(self._cases)}] {line}", "red" if faulty else None)
        following = self._cases[self._count] if self._count < len(self._cases) else ""
        self._bar.update(self._task, advance=1, description=following)

    def line(self, text: str, style: str | None = None) -> None:
        """A line to show in addition to the bar."""
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
