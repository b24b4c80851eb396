"""Tables: coloured in the terminal, Markdown in the results folder and in the README."""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.results import REFERENCE, Ratios, Record, Row, Run, Summary, by_family, by_group, rows_of, summarize

README_START = "<!-- benchmark:start -->"
README_END = "<!-- benchmark:end -->"

LEGEND = (
    f"ratio = a peer's time / our time, above 1 we are quicker: to {REFERENCE} in its own memory order, "
    "and to whichever peer is quickest; "
    "limit = the measured GEMM or copy rate, whichever binds "
    "(data that fits the caches can pass the copy limit)"
)

# The tables of geometric means: a heading, and what puts a case into a row.
KINDS = {"group": by_group, "family": by_family}


def headline(run: Run) -> str:
    """The device, the limits and the versions in two lines."""
    device = run.environment["device"]
    versions = ", ".join(f"{name} {text}" for name, text in run.environment["versions"].items())
    kind = "CPU only" if device["kind"] == "cpu" else "GPU"
    return (
        f"{kind}: {device['name']}, {_threads(run)} for every provider; "
        f"limits: {run.limits.gemm_flops / 1e9:.0f} GFLOP/s float32 GEMM "
        f"({run.limits.gemm_library}), {run.limits.copy_bytes / 1e9:.1f} GB/s copy\n"
        f"{versions}; {run.environment['date']}"
    )


def _threads(run: Run) -> str:
    count = run.environment["device"]["threads"]
    return f"{count} thread" + ("s" if count != 1 else "")


def row_cells(row: Row) -> list[str]:
    """time, spread, rate, share of the limit, ratio to PyTorch, ratio to the quickest peer, that peer."""
    return [
        milliseconds(row.timing.median),
        f"{row.timing.spread:.0%}",
        f"{row.rate / 1e9:.3g} {row.unit}",
        f"{row.share:.0%}",
        ratio_text(row.reference_ratio),
        ratio_text(row.ratio),
        row.peer or "no peer",
    ]


def milliseconds(seconds: float) -> str:
    """Three significant digits without an exponent."""
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def ratio_text(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def span_text(ratios: Ratios | None) -> str:
    """The least and the largest ratio of a single case."""
    return "" if ratios is None else f"{ratios.lowest:.2f} to {ratios.highest:.2f}"


def summary_cells(summary: Summary) -> list[str]:
    """kind, operation, cases, share of the limit; mean and span of the ratios to PyTorch and to the quickest peer."""
    cells = [summary.kind, summary.operation.replace("_", " "), str(summary.cases), f"{summary.share:.0%}"]
    for ratios in (summary.reference, summary.best):
        cells += [ratio_text(ratios and ratios.mean), span_text(ratios)]
    return cells


def progress_line(record: Record, row: Row | None) -> str:
    """What a finished case says of itself while the run goes on."""
    faults = [
        f"{outcome.provider} {outcome.status.upper()}: {outcome.note}"
        for outcome in record.outcomes
        if outcome.status in ("wrong", "failed")
    ]
    if row is not None:
        text = f"{milliseconds(row.timing.median)} ms"
        if row.ratio is not None:
            text += f", {row.ratio:.2f} x {row.peer}"
        if row.reference_ratio is not None and row.peer != REFERENCE:
            text += f", {row.reference_ratio:.2f} x {REFERENCE}"
        faults.insert(0, text)
    return f"{record.id}: {'; '.join(faults) or 'not timed'}"


def print_report(run: Run, console: Console) -> None:
    """The table, the faults and the geometric means."""
    rows = rows_of(run)
    for subject in run.subjects:
        console.print(_case_table(subject, [row for row in rows if row.subject == subject]))
    for record, outcome in run.faults:
        console.print(
            f"[bold red]{outcome.status.upper()}[/] {escape(record.id)}, "
            f"{escape(outcome.provider)}: {escape(outcome.note)}"
        )
    for subject in run.subjects:
        own = [row for row in rows if row.subject == subject]
        if len(own) > 1:
            for kind, kind_of in KINDS.items():
                console.print(_summary_table(subject, kind, summarize(own, kind_of)))
    console.print(escape(headline(run)), highlight=False)
    console.print(LEGEND, style="dim", highlight=False)


def _case_table(subject: str, rows: list[Row]) -> Table:
    table = Table(title=f"{subject} and the quickest peer", title_justify="left")
    table.add_column("case", no_wrap=True)
    table.add_column("operation", no_wrap=True)
    for heading in ("ms", "spread", "rate", "of limit", f"to {REFERENCE}", "to best"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("best peer", no_wrap=True)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        cells = row_cells(row)
        cells[4] = _coloured(row.reference_ratio, cells[4])
        cells[5] = _coloured(row.ratio, cells[5])
        last_of_family = following is not None and following.record.family != row.record.family
        table.add_row(
            f"{row.record.network} {row.record.layer}",
            row.record.operation,
            *cells,
            end_section=last_of_family,
        )
    return table


def _summary_table(subject: str, kind: str, summaries: list[Summary]) -> Table:
    table = Table(title=f"{subject}: geometric means by {kind}", title_justify="left")
    table.add_column(kind, no_wrap=True)
    table.add_column("operation", no_wrap=True)
    for heading in ("cases", "of limit", f"to {REFERENCE}", "range", "to best peer", "range"):
        table.add_column(heading, justify="right", no_wrap=True)
    for summary in summaries:
        cells = summary_cells(summary)
        cells[4] = _coloured(summary.reference and summary.reference.mean, cells[4])
        cells[6] = _coloured(summary.best and summary.best.mean, cells[6])
        table.add_row(*cells)
    return table


def _coloured(ratio: float | None, text: str) -> str:
    if ratio is None:
        return text
    return f"[{'green' if ratio >= 1 else 'yellow' if ratio >= 0.5 else 'red'}]{text}[/]"


def markdown_summary(run: Run) -> str:
    """The geometric means as Markdown tables, one per subject and kind."""
    parts = []
    for subject in run.subjects:
        own = [row for row in rows_of(run) if row.subject == subject]
        parts.append(f"**{subject}**")
        for kind, kind_of in KINDS.items():
            lines = [
                f"| {kind} | operation | cases | share of the limit "
                f"| ratio to {REFERENCE} | range | ratio to the best peer | range |",
                "| --- | --- | --: | --: | --: | --: | --: | --: |",
            ]
            for summary in summarize(own, kind_of):
                cells = summary_cells(summary)
                cells[6] = cells[6] or "no peer"
                lines.append(f"| {' | '.join(cells)} |")
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def markdown_report(run: Run) -> str:
    """The whole result for a reader of the repository."""
    lines = [f"# {run.environment['device']['name']}, {_threads(run)}", "", headline(run), ""]
    lines += [LEGEND[0].upper() + LEGEND[1:] + ".", "", "## Geometric means", ""]
    lines += [markdown_summary(run), "", "## Cases", ""]
    lines += [
        f"| case | operation | shapes | ms | spread | rate | of limit | to {REFERENCE} | to best | best peer |",
        "| --- | --- | --- | --: | --: | --: | --: | --: | --: | --- |",
    ]
    several = len(run.subjects) > 1
    for row in rows_of(run):
        record = row.record
        name = f"{record.network} {record.layer}" + (f" ({row.subject})" if several else "")
        cells = [name, record.operation.replace("_", " "), record.shapes, *row_cells(row)]
        lines.append(f"| {' | '.join(cells)} |")
    if run.faults:
        lines += ["", "## Faults", ""]
        lines += [f"- {r.id}, {o.provider}, {o.status}: {o.note}" for r, o in run.faults]
    return "\n".join(lines) + "\n"


def update_readme(path: Path, run: Run, details: str) -> None:
    """Replace what stands between the markers of `path` by the summary of `run`.

    `details` is the address of the full table, relative to the file.
    """
    text = path.read_text()
    pattern = re.compile(f"{re.escape(README_START)}.*?{re.escape(README_END)}", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"{path.name} needs {README_START} and {README_END}, once each")
    block = "\n\n".join(
        [
            README_START,
            markdown_summary(run),
            headline(run).replace("\n", "; ") + ".",
            f"{LEGEND[0].upper()}{LEGEND[1:]}. [All cases]({details}).",
            README_END,
        ]
    )
    path.write_text(pattern.sub(lambda _: block, text))
