"""Tables: coloured in the terminal, Markdown in the results folder and in the README."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from benchmarks.formatting import milliseconds
from benchmarks.networks.report import markdown_networks, print_networks
from benchmarks.results import (
    FALLBACK,
    REFERENCES,
    Ratios,
    Record,
    Row,
    Run,
    Summary,
    by_family,
    by_group,
    rows_of,
    summarize,
)
from benchmarks.targets import COPY_SHARE, HOST_OVER_RAW, HOST_S, Reached, reached
from benchmarks.timing import Timing

README_MARKERS = {
    "cpu": ("<!-- benchmark:start -->", "<!-- benchmark:end -->"),
    "gpu": ("<!-- gpu-benchmark:start -->", "<!-- gpu-benchmark:end -->"),
}

# The tables of geometric means: a heading, and what puts a case into a row.
Kinds = Mapping[str, Callable[[Record], tuple[str, str]]]
KINDS: Kinds = {"group": by_group, "family": by_family}

TO = {
    "PyTorch": "to PyTorch: as it comes, in its own memory order",
    "plain CuPy": "to plain CuPy: as_strided, matmul and elementwise functions",
    FALLBACK: "to NumPy: gpucnn's NumPy backend",
}
CASE_HEADINGS = (
    "case", "operation", "shapes", "ms", "spread", "rate", "of limit", "to PyTorch", "to plain CuPy", "to best",
    "best peer", "NumPy ms", "to NumPy", "warm ms", "host µs", "over raw",
)  # fmt: skip
MARKDOWN_ALONE = ("shapes", "warm ms", "host µs", "over raw")  # for want of room in a terminal
MARKDOWN_ALONE_ON_GPU = (*MARKDOWN_ALONE, "spread", "rate", "NumPy ms")
SUMMARY_HEADINGS = ("to PyTorch", "range", "to plain CuPy", "to best", "range", "to NumPy")
TARGET_HEADINGS = (
    "target", "dtype", "cases", "to best", "wanted", "share of copy beyond the cache", "host per call",
    "over a raw launch",
)  # fmt: skip
TEXTS = ("case", "operation", "shapes", "best peer", "group", "family", "target", "dtype")  # aligned left


def headline(run: Run) -> str:
    """The device, the limits and the versions in two lines."""
    device = run.environment["device"]
    versions = ", ".join(f"{name} {text}" for name, text in run.environment["versions"].items())
    if run.on_gpu:
        return f"GPU: {_gpu_line(run)}\n{versions}; {run.environment['date']}"
    kind = "CPU only"
    return (
        f"{kind}: {device['name']}, {_threads(run)} for every provider; "
        f"limits: {run.limits.gemm_flops / 1e9:.0f} GFLOP/s float32 GEMM "
        f"({run.limits.gemm_library}), {run.limits.copy_bytes / 1e9:.1f} GB/s copy\n"
        f"{versions}; {run.environment['date']}"
    )


def _gpu_line(run: Run) -> str:
    """The GPU and its limits."""
    device, limits = run.environment["device"], run.limits
    rates = {"float32": limits.gemm_flops, **limits.other_flops}
    products = ", ".join(f"{rate / 1e12:.0f} TFLOP/s {name}" for name, rate in rates.items())
    clocks = [
        f"{moment}: {', '.join(f'{name} {value}' for name, value in known.items() if name != 'driver')}"
        for moment, known in run.environment.get("clocks", {}).items()
        if known
    ]
    parts = [
        str(device["name"]),
        f"{run.cache_bytes / 2**20:.0f} MiB L2",
        f"limits: {limits.copy_bytes / 1e9:.0f} GB/s copy, matrix products {products} ({limits.gemm_library})",
        *clocks,
    ]
    return "; ".join(parts)


def title(run: Run) -> str:
    """The device's name, and a CPU's threads."""
    name = str(run.environment["device"]["name"])
    return name if run.on_gpu else f"{name}, {_threads(run)}"


def legend(run: Run) -> str:
    """A sentence on the figures of the tables, about no peer that was not timed."""
    rows = rows_of(run)
    others = [text for name, text in TO.items() if any(name in row.named for row in rows)]
    if run.peers:
        others.append("to best: whichever peer is quickest")
    parts = [f"ratio = another's time / our time, above 1 we are quicker ({'; '.join(others)})"] if others else []
    parts.append(
        "limit = the measured GEMM or copy rate, whichever binds (data that fits the caches can pass the copy limit)"
    )
    if run.on_gpu:
        parts.append("times are the device's, each call from a flushed cache")
    if any(FALLBACK in row.named for row in rows):
        host = run.environment["host"]
        parts.append(
            f"gpucnn's NumPy backend ran on the same arrays on the host ({host['name']}, {_threads(run)}), while the "
            "GPU was idle"
        )
    return "; ".join(parts)


def _threads(run: Run) -> str:
    count = run.environment["device"]["threads"]
    return f"{count} thread" + ("s" if count != 1 else "")


def _wanted_line() -> str:
    return (
        f"Wanted of all: at least {COPY_SHARE:.0%} of the copy's rate on arrays beyond the cache, at most "
        f"{HOST_S * 1e6:.0f} µs of the host for a call and {HOST_OVER_RAW:.2f} times a raw launch"
    )


def progress_line(record: Record, row: Row | None) -> str:
    """The progress line of a finished case."""
    faults = [
        f"{outcome.provider} {outcome.status.upper()}: {outcome.note}"
        for outcome in record.outcomes
        if outcome.status in ("wrong", "failed")
    ]
    if row is not None:
        text = f"{milliseconds(row.timing.median)} ms"
        if row.ratio is not None:
            text += f", {row.ratio:.2f} x {row.peer}"
        for name in row.named:
            if name != row.peer:
                text += f", {row.ratio_to(name):.2f} x {name}"
        faults.insert(0, text)
    return f"{record.id}: {'; '.join(faults) or 'not timed'}"


# Tables, each made once for the terminal and for Markdown -----------------------------------------


class Cell(NamedTuple):
    """A cell's text, its colour in the terminal, and whether it is bold in Markdown."""

    text: str = ""
    colour: str = ""
    bold: bool = False


@dataclass
class Table:
    """Headings and rows of cells; a column without any text is not shown."""

    headings: Sequence[str]
    rows: list[list[Cell]]
    sections: Sequence[int] = ()  # rows that a line follows in the terminal

    def shown(self, without: Sequence[str] = ()) -> list[int]:
        """The columns that have text."""
        columns = range(len(self.headings))
        return [n for n in columns if self.headings[n] not in without and any(row[n].text for row in self.rows)]

    def markdown(self) -> str:
        shown = self.shown()
        lines = [
            [self.headings[n] for n in shown],
            ["---" if self.headings[n] in TEXTS else "--:" for n in shown],
            *([f"**{row[n].text}**" if row[n].bold else row[n].text for n in shown] for row in self.rows),
        ]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

    def terminal(self, title: str, without: Sequence[str] = (), caption: str = "") -> RichTable:
        shown = self.shown(without)
        table = RichTable(title=title, title_justify="left", caption=caption or None, caption_justify="left")
        for n in shown:
            table.add_column(
                self.headings[n], justify="left" if self.headings[n] in TEXTS else "right", no_wrap=not caption
            )
        for place, row in enumerate(self.rows):
            cells = [f"[{row[n].colour}]{row[n].text}[/]" if row[n].colour else escape(row[n].text) for n in shown]
            table.add_row(*cells, end_section=place in self.sections)
        return table


def _ratio(value: float | None) -> Cell:
    if value is None:
        return Cell()
    return Cell(
        f"{value:.2f}" if value < 100 else f"{value:.0f}",
        "green" if value >= 1 else "yellow" if value >= 0.5 else "red",
    )


def _mean(ratios: Ratios | None) -> Cell:
    return _ratio(ratios and ratios.mean)


def _range(ratios: Ratios | None) -> Cell:
    """The least and the largest ratio of a single case."""
    return Cell(f"{ratios.lowest:.2f} to {ratios.highest:.2f}") if ratios else Cell()


def _milliseconds(timing: Timing | None) -> Cell:
    return Cell(milliseconds(timing.median)) if timing else Cell()


def case_table(rows: Sequence[Row]) -> Table:
    """The cases of one subject."""
    families = [row.record.family for row in rows]
    last = [n for n in range(len(rows) - 1) if families[n] != families[n + 1]]
    return Table(CASE_HEADINGS, [_case_cells(row) for row in rows], last)


def _case_cells(row: Row) -> list[Cell]:
    record = row.record
    operation = record.operation.replace("_", " ") + ("" if record.dtype == "float32" else f", {record.dtype}")
    return [
        Cell(f"{record.network} {record.layer}"),
        Cell(operation),
        Cell(record.shapes),
        _milliseconds(row.timing),
        Cell(f"{row.timing.spread:.0%}"),
        Cell(f"{row.rate / 1e9:.3g} {row.unit}"),
        Cell(f"{row.share:.0%}"),
        *(_ratio(row.ratio_to(name)) for name in REFERENCES),
        _ratio(row.ratio),
        Cell(row.peer),
        _milliseconds(row.named.get(FALLBACK)),
        _ratio(row.ratio_to(FALLBACK)),
        _milliseconds(row.warm),
        Cell(f"{row.host.median * 1e6:.1f}" if row.host else ""),
        Cell("" if row.host_ratio is None else f"{row.host_ratio:.2f}"),
    ]


def summary_table(kind: str, summaries: Sequence[Summary]) -> Table:
    """The geometric means over the cases of each `kind` and operation."""
    headings = (kind, "operation", "cases", "of limit", *SUMMARY_HEADINGS)
    return Table(headings, [_summary_cells(summary) for summary in summaries])


def _summary_cells(summary: Summary) -> list[Cell]:
    reference, plain = (summary.named[name] for name in REFERENCES)
    return [
        Cell(summary.kind),
        Cell(summary.operation.replace("_", " ")),
        Cell(str(summary.cases)),
        Cell(f"{summary.share:.0%}"),
        _mean(reference),
        _range(reference),
        _mean(plain),
        _mean(summary.best),
        _range(summary.best),
        _mean(summary.named[FALLBACK]),
    ]


def target_table(rows: Sequence[Row], cache_bytes: int) -> Table:
    """The targets of a GPU's kernels, and the measured figures."""
    return Table(TARGET_HEADINGS, [_target_cells(figures) for figures in reached(rows, cache_bytes)])


def _target_cells(figures: Reached) -> list[Cell]:
    def figure(name: str, text: str) -> Cell:
        met = figures.met[name]
        return Cell() if met is None else Cell(text, "green" if met else "red", bold=not met)

    return [
        Cell(figures.target.name),
        Cell(figures.dtype),
        Cell(str(figures.cases)),
        figure("ratio", f"{figures.ratio or 0:.2f}"),
        Cell(f"{figures.target.ratio:.2f}"),
        figure("share", f"{figures.share or 0:.0%}"),
        figure("host_s", f"{(figures.host_s or 0) * 1e6:.1f} µs"),
        figure("host_ratio", f"{figures.host_ratio or 0:.2f}"),
    ]


# Reports ------------------------------------------------------------------------------------------


def print_report(run: Run, console: Console) -> None:
    """The table, the faults and the geometric means."""
    rows = rows_of(run)
    for subject in run.subjects:
        own = [row for row in rows if row.subject == subject]
        if own:
            title = f"{subject} and the quickest peer" if run.peers else subject
            console.print(case_table(own).terminal(title, MARKDOWN_ALONE_ON_GPU if run.on_gpu else MARKDOWN_ALONE))
    print_networks(run, console)
    for record, outcome in run.faults:
        console.print(
            f"[bold red]{outcome.status.upper()}[/] {escape(record.id)}, "
            f"{escape(outcome.provider)}: {escape(outcome.note)}"
        )
    if run.unreached:
        console.print(f"[yellow]{len(run.unreached)} cases were not reached in the time that there was[/]")
    for subject in run.subjects:
        own = [row for row in rows if row.subject == subject]
        if run.on_gpu and own:
            targets = target_table(own, run.cache_bytes)
            console.print(targets.terminal(f"{subject}: targets", caption=_wanted_line()))
        if len(own) > 1:
            for kind, kind_of in KINDS.items():
                means = summary_table(kind, summarize(own, kind_of))
                console.print(means.terminal(f"{subject}: geometric means by {kind}"))
    console.print(escape(headline(run)), highlight=False)
    console.print(legend(run), style="dim", markup=False, highlight=False)


def markdown_summary(run: Run) -> str:
    """The geometric means as Markdown tables, one per subject and kind; a GPU's targets before them."""
    parts = []
    for subject in run.subjects:
        own = [row for row in rows_of(run) if row.subject == subject]
        parts.append(f"**{subject}**" if own else f"**{subject}** was not timed")
        if run.on_gpu and own:
            parts += [target_table(own, run.cache_bytes).markdown(), _wanted_line() + "; **bold** is what falls short."]
        parts += [summary_table(kind, summarize(own, kind_of)).markdown() for kind, kind_of in KINDS.items() if own]
    return "\n\n".join(parts)


def markdown_report(run: Run) -> str:
    """The whole result for a reader of the repository."""
    lines = [f"# {title(run)}", "", headline(run), ""]
    lines += [_sentence(legend(run)), ""]
    if run.networks:
        lines += ["## Whole networks", "", markdown_networks(run), ""]
    if run.records:
        lines += ["## Geometric means", "", markdown_summary(run), "", "## Cases"]
    for subject in run.subjects:
        own = [row for row in rows_of(run) if row.subject == subject]
        if own:
            lines += ["", f"**{subject}**", "", case_table(own).markdown()]
    if run.faults:
        lines += ["", "## Faults", ""]
        lines += [f"- {r.id}, {o.provider}, {o.status}: {o.note}" for r, o in run.faults]
    if run.unreached:
        lines += ["", "## Not reached in the time that there was", "", ", ".join(run.unreached)]
    return "\n".join(lines) + "\n"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def update_readme(path: Path, run: Run, details: str) -> None:
    """Replace the text between the markers of `path` for this kind of device by the float32 groups of `run`.

    Everything else is in the file at `details`, an address relative to `path`.
    """
    start, end = README_MARKERS["gpu" if run.on_gpu else "cpu"]
    text = path.read_text()
    pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"{path.name} needs {start} and {end}, once each")
    subject = run.subjects[0]
    rows = [row for row in rows_of(run) if row.subject == subject and row.record.dtype == "float32"]
    block = "\n\n".join(
        [
            start,
            f"**{subject}**, geometric means",
            summary_table("group", summarize(rows, by_group)).markdown(),
            headline(run).replace("\n", "; ") + ".",
            f"{_sentence(legend(run))} [The cases and all families]({details}).",
            end,
        ]
    )
    path.write_text(pattern.sub(lambda _: block, text))
