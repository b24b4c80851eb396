"""Tables of whole networks: inference, training steps, and their memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as TerminalTable

from benchmarks.formatting import coloured, milliseconds, ratio_text
from benchmarks.networks.cases import OPERATIONS
from benchmarks.results import Outcome, Record, Run, row_of

TITLES = {"inference": "Inference", "training_step": "Training step"}
CONDITIONS = (
    "One batch, and the same weights for all. Inference is in evaluation mode and keeps nothing for a backward; a "
    "training step is forward, cross entropy, backward, and gradient descent with momentum"
)
MEMORY_CONDITIONS = (
    "The peak of the process's memory above what it was before the implementation had the network: weights, gradients, "
    "momentum, activations, workspace"
)


@dataclass(frozen=True)
class Table:
    """A heading, columns, and for each line the cells; `ratios` has a ratio for each cell that shows one, else None."""

    title: str
    headings: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    ratios: tuple[tuple[float | None, ...], ...]


def tables(run: Run) -> Iterator[Table]:
    """For each of gpucnn's implementations and each operation the times, then the memory, where it was counted."""
    for subject in run.subjects:
        for operation in OPERATIONS:
            records = [record for record in run.networks if record.operation == operation]
            times = [record for record in records if row_of(record, subject, run.subjects, run.limits)]
            if times:
                yield _times(run, subject, operation, times)
        counted = [record for record in run.networks if any(o.peak_bytes is not None for o in record.outcomes)]
        if counted:
            yield _memory(counted)


def implementations(records: list[Record]) -> list[str]:
    """Names of those that were timed in one of the cases."""
    outcomes = [outcome for record in records for outcome in record.outcomes]
    return list(dict.fromkeys(outcome.provider for outcome in outcomes if outcome.timing))


def label(record: Record) -> str:
    """For example ``ResNet-50, 4x3x224x224``."""
    return f"{record.network}, {record.shapes.partition(' -> ')[0]}"


def _times(run: Run, subject: str, operation: str, records: list[Record]) -> Table:
    """Our time, its spread and share of the limit; each peer's time and its ratio to ours."""
    peers = [name for name in implementations(records) if name not in run.subjects]
    headings = ["network", f"{subject}, ms", "spread", "of limit"]
    for peer in peers:
        headings += [f"{peer}, ms", "ratio"]
    lines, ratios = [], []
    for record in records:
        row = row_of(record, subject, run.subjects, run.limits)
        assert row is not None  # by the choice of records
        cells = [label(record), milliseconds(row.timing.median), f"{row.timing.spread:.0%}", f"{row.share:.0%}"]
        known: list[float | None] = [None] * len(cells)
        for peer in peers:
            outcome = _outcome(record, peer)
            ratio = outcome.timing.median / row.timing.median if outcome and outcome.timing else None
            cells += [_time(outcome), ratio_text(ratio)]
            known += [None, ratio]
        lines.append(tuple(cells))
        ratios.append(tuple(known))
    return Table(f"{TITLES[operation]}: {subject} and its peers", tuple(headings), tuple(lines), tuple(ratios))


def _memory(records: list[Record]) -> Table:
    """The peak of each implementation, in MB."""
    names = [name for name in implementations(records) if any(_peak(record, name) for record in records)]
    lines = tuple((label(record), *(_peak(record, name) for name in names)) for record in records)
    blank = tuple((None,) * (1 + len(names)) for _ in records)
    return Table("Peak memory of a training step, MB", ("network", *names), lines, blank)


def _outcome(record: Record, name: str) -> Outcome | None:
    return next((outcome for outcome in record.outcomes if outcome.provider == name), None)


def _time(outcome: Outcome | None) -> str:
    """The time, or the reason why there is none."""
    if outcome is None:
        return ""
    return milliseconds(outcome.timing.median) if outcome.timing else outcome.status


def _peak(record: Record, name: str) -> str:
    outcome = _outcome(record, name)
    return "" if outcome is None or outcome.peak_bytes is None else f"{outcome.peak_bytes / 1e6:.0f}"


def markdown_networks(run: Run) -> str:
    """The tables as Markdown; nothing where no network was timed."""
    parts = []
    for table in tables(run):
        lines = [
            f"| {' | '.join(table.headings)} |",
            "| --- |" + " --: |" * (len(table.headings) - 1),
            *(f"| {' | '.join(cells)} |" for cells in table.lines),
        ]
        parts += [f"**{table.title}**", "\n".join(lines)]
    if not parts:
        return ""
    memory = f" {MEMORY_CONDITIONS}." if any("memory" in part for part in parts) else ""
    return "\n\n".join([f"{CONDITIONS}.{memory}", *parts])


def print_networks(run: Run, console: Console) -> None:
    """The tables in the terminal."""
    for table in tables(run):
        shown = TerminalTable(title=table.title, title_justify="left")
        for place, heading in enumerate(table.headings):
            shown.add_column(heading, justify="right" if place else "left", overflow="fold")
        for cells, ratios in zip(table.lines, table.ratios, strict=True):
            shown.add_row(*(coloured(ratio, cell) for cell, ratio in zip(cells, ratios, strict=True)))
        console.print(shown)
