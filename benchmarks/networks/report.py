"""Tables of whole networks: inference, training steps, and their memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from rich.console import Console

from benchmarks.networks.cases import OPERATIONS
from benchmarks.results import ORDERS, Outcome, Record, Row, Run, row_of
from benchmarks.tables import Cell, Table, milliseconds, ratio

IN_ORDERS = tuple(f"{order}, ms" for orders in ORDERS.values() for order in orders)
TITLES = {"inference": "Inference", "training_step": "Training step"}
CONDITIONS = (
    "One batch, and the same weights for all. Inference is in evaluation mode and keeps nothing for a backward; gpucnn "
    "runs nn.fused(model), with norms folded into convolutions, as ONNX Runtime folds them when it loads a graph, "
    "and PyTorch runs its modules as they are. A training step is forward, cross entropy, backward, and gradient "
    "descent with momentum"
)
MEMORY_CONDITIONS = (
    "The peak of the process's memory above what it was before the implementation had the network: weights, gradients, "
    "momentum, activations, workspace"
)


def tables(run: Run) -> Iterator[Table]:
    """For each of gpucnn's implementations and each operation the times, then the memory, where it was counted."""
    for subject in run.subjects:
        for operation in OPERATIONS:
            records = [record for record in run.networks if record.operation == operation]
            rows = [row for row in (row_of(record, subject, run.subjects, run.limits) for record in records) if row]
            if rows:
                yield _times(run, f"{TITLES[operation]}: {subject} and its peers", rows)
        counted = [record for record in run.networks if any(o.peak_bytes is not None for o in record.outcomes)]
        if counted:
            yield _memory(counted)


def implementations(records: Sequence[Record]) -> list[str]:
    """Names of those that were timed in one of the cases."""
    outcomes = [outcome for record in records for outcome in record.outcomes]
    return list(dict.fromkeys(outcome.provider for outcome in outcomes if outcome.timing))


def label(record: Record) -> str:
    """For example ``ResNet-50, 4x3x224x224``."""
    return f"{record.network}, {record.shapes.partition(' -> ')[0]}"


def _times(run: Run, title: str, rows: Sequence[Row]) -> Table:
    """Our time, its spread and share of the limit; each other's time and its ratio to ours; ours by memory order."""
    orders = ORDERS.get(rows[0].subject, {})
    columns: list[Any] = [
        ("network", lambda row: label(row.record)),
        (f"{rows[0].subject}, ms", lambda row: milliseconds(row.timing.median)),
        ("spread", lambda row: f"{row.timing.spread:.0%}"),
        ("of limit", lambda row: f"{row.share:.0%}"),
    ]
    for name in implementations([row.record for row in rows]):
        if name not in (*run.subjects, *orders.values()):
            columns += [
                (f"{name}, ms", lambda row, name=name: _time(_outcome(row.record, name))),
                ("ratio", lambda row, name=name: _ratio(row, _outcome(row.record, name))),
            ]
    columns += [(f"{order}, ms", partial(_time_in, order)) for order in orders]
    return Table.of(title, columns, rows)


def _time_in(order: str, row: Row) -> str:
    return milliseconds(row.orders[order].median) if order in row.orders else ""


def _memory(records: Sequence[Record]) -> Table:
    """The peak of each implementation, in MB."""
    peaks = [(name, partial(_peak, name)) for name in implementations(records)]
    return Table.of("Peak memory of a training step, MB", [("network", label), *peaks], records)


def _outcome(record: Record, name: str) -> Outcome | None:
    return next((outcome for outcome in record.outcomes if outcome.provider == name), None)


def _time(outcome: Outcome | None) -> str:
    """The time, or the reason why there is none."""
    if outcome is None:
        return ""
    return milliseconds(outcome.timing.median) if outcome.timing else outcome.status


def _ratio(row: Row, outcome: Outcome | None) -> Cell:
    return ratio(outcome.timing.median / row.timing.median if outcome and outcome.timing else None)


def _peak(name: str, record: Record) -> str:
    outcome = _outcome(record, name)
    return "" if outcome is None or outcome.peak_bytes is None else f"{outcome.peak_bytes / 1e6:.0f}"


def markdown_networks(run: Run) -> str:
    """The tables as Markdown; nothing where no network was timed."""
    parts = [part for table in tables(run) for part in (f"**{table.title}**", table.markdown())]
    memory = f" {MEMORY_CONDITIONS}." if any("memory" in part for part in parts) else ""
    return "\n\n".join([f"{CONDITIONS}.{memory}", *parts]) if parts else ""


def print_networks(run: Run, console: Console) -> None:
    """The tables in the terminal."""
    for table in tables(run):
        is_wide = any(heading in table.headings for heading in IN_ORDERS)
        console.print(table.terminal((*IN_ORDERS, "spread") if is_wide else (), wraps=True))
