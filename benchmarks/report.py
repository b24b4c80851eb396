"""Tables: coloured in the terminal, Markdown in the results folder and in the README."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from benchmarks.networks.report import markdown_networks, print_networks
from benchmarks.results import (
    FALLBACK,
    ORDERS,
    PLAIN_CUPY,
    PYTORCH,
    Ratios,
    Record,
    Row,
    Run,
    Summary,
    by_family,
    by_group,
    in_dtype,
    rows_by_subject,
    rows_of,
    summarize,
)
from benchmarks.tables import Cell, Columns, Table, milliseconds, ratio
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
WANTED = (
    f"Wanted of all: at least {COPY_SHARE:.0%} of the copy's rate on arrays beyond the cache, at most "
    f"{HOST_S * 1e6:.0f} µs of the host for a call and {HOST_OVER_RAW:.2f} times a raw launch"
)
# Columns that only Markdown has, for want of room in a terminal.
IN_ORDERS = tuple(f"{order} ms" for orders in ORDERS.values() for order in orders)
MARKDOWN_ALONE = ("shapes", "best ms", *IN_ORDERS, "warm ms", "host µs", "over raw")
MARKDOWN_ALONE_BESIDE_NUMPY = (*MARKDOWN_ALONE, "spread", "rate", "NumPy ms")


def headline(run: Run) -> str:
    """The device, the limits and the versions in two lines."""
    versions = ", ".join(f"{name} {text}" for name, text in run.environment["versions"].items())
    return f"{_gpu_line(run) if run.on_gpu else _cpu_line(run)}\n{versions}; {run.environment['date']}"


def _cpu_line(run: Run) -> str:
    limits = run.limits
    return (
        f"CPU only: {title(run)} for every provider; limits: {limits.gemm_flops / 1e9:.0f} GFLOP/s float32 GEMM "
        f"({limits.gemm_library}), {limits.copy_bytes / 1e9:.1f} GB/s copy"
    )


def _gpu_line(run: Run) -> str:
    device, limits = run.environment["device"], run.limits
    rates = {"float32": limits.gemm_flops, **limits.other_flops}
    products = ", ".join(f"{rate / 1e12:.0f} TFLOP/s {name}" for name, rate in rates.items())
    clocks = [
        f"{moment}: {', '.join(f'{name} {value}' for name, value in known.items() if name != 'driver')}"
        for moment, known in run.environment.get("clocks", {}).items()
        if known
    ]
    parts = [
        f"GPU: {device['name']}",
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
    orders = {row.subject: row.orders for row in rows if row.orders}
    parts = [f"ratio = another's time / our time, above 1 we are quicker ({'; '.join(others)})"] if others else []
    parts.append(
        "limit = the measured GEMM or copy rate, whichever binds (data that fits the caches can pass the copy limit)"
    )
    if run.on_gpu:
        parts.append("times are the device's, each call from a flushed cache")
    parts += [f"{name} is in the quicker of {' and '.join(times)} on each case" for name, times in orders.items()]
    if run.on_gpu and any(FALLBACK in row.named for row in rows):
        host = run.environment["host"]
        parts.append(
            f"gpucnn's NumPy backend ran on the same arrays on the host ({host['name']}, {_threads(run)}), while the "
            "GPU was idle"
        )
    return "; ".join(parts)


def _threads(run: Run) -> str:
    count = run.environment["device"]["threads"]
    return f"{count} thread" + ("s" if count != 1 else "")


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


# Tables -------------------------------------------------------------------------------------------


def _milliseconds(timing: Timing | None) -> str:
    return milliseconds(timing.median) if timing else ""


CASE_COLUMNS: Columns = (
    ("case", lambda row: f"{row.record.network} {row.record.layer}"),
    ("operation", lambda row: row.record.operation.replace("_", " ") + in_dtype(row.record.dtype)),
    ("shapes", lambda row: row.record.shapes),
    ("ms", lambda row: _milliseconds(row.timing)),
    ("spread", lambda row: f"{row.timing.spread:.0%}"),
    ("rate", lambda row: f"{row.rate / 1e9:.3g} {row.unit}"),
    ("of limit", lambda row: f"{row.share:.0%}"),
    ("to PyTorch", lambda row: ratio(row.ratio_to(PYTORCH))),
    ("to plain CuPy", lambda row: ratio(row.ratio_to(PLAIN_CUPY))),
    ("to best", lambda row: ratio(row.ratio)),
    ("best peer", lambda row: row.peer),
    ("best ms", lambda row: _milliseconds(row.peer_timing)),
    ("NumPy ms", lambda row: _milliseconds(row.named.get(FALLBACK))),
    ("to NumPy", lambda row: ratio(row.ratio_to(FALLBACK))),
    *((name, lambda row, name=name: _milliseconds(row.orders.get(name.removesuffix(" ms")))) for name in IN_ORDERS),
    ("warm ms", lambda row: _milliseconds(row.warm)),
    ("host µs", lambda row: f"{row.host.median * 1e6:.1f}" if row.host else ""),
    ("over raw", lambda row: "" if row.host_ratio is None else f"{row.host_ratio:.2f}"),
)
CASE_HEADINGS = tuple(heading for heading, _ in CASE_COLUMNS)


def case_table(rows: Sequence[Row], title: str = "") -> Table:
    """The cases of one subject."""
    families = [row.record.family for row in rows]
    last = [n for n in range(len(rows) - 1) if families[n] != families[n + 1]]
    return Table.of(title, CASE_COLUMNS, rows, last)


def _mean(ratios: Ratios | None) -> Cell:
    return ratio(ratios.mean if ratios else None)


def _range(ratios: Ratios | None) -> str:
    """The least and the largest ratio of a single case."""
    return f"{ratios.lowest:.2f} to {ratios.highest:.2f}" if ratios else ""


SUMMARY_COLUMNS: Columns = (
    ("operation", lambda summary: summary.operation.replace("_", " ")),
    ("cases", lambda summary: str(summary.cases)),
    ("of limit", lambda summary: f"{summary.share:.0%}"),
    ("to PyTorch", lambda summary: _mean(summary.named[PYTORCH])),
    ("range", lambda summary: _range(summary.named[PYTORCH])),
    ("to plain CuPy", lambda summary: _mean(summary.named[PLAIN_CUPY])),
    ("to best", lambda summary: _mean(summary.best)),
    ("range", lambda summary: _range(summary.best)),
    ("to NumPy", lambda summary: _mean(summary.named[FALLBACK])),
)


def summary_table(kind: str, summaries: Sequence[Summary], title: str = "") -> Table:
    """The geometric means over the cases of each `kind` and operation."""
    return Table.of(title, ((kind, lambda summary: summary.kind), *SUMMARY_COLUMNS), summaries)


def _figure(name: str, text: str, scale: float = 1) -> Callable[[Reached], Cell]:
    """A figure of a target, green where it meets it, else red and bold."""

    def cell(figures: Reached) -> Cell:
        met, value = figures.met[name], getattr(figures, name)
        return Cell() if met is None else Cell(text.format(value * scale), "green" if met else "red", bold=not met)

    return cell


TARGET_COLUMNS: Columns = (
    ("target", lambda figures: figures.target.name),
    ("dtype", lambda figures: figures.dtype),
    ("cases", lambda figures: str(figures.cases)),
    ("to best", _figure("ratio", "{:.2f}")),
    ("wanted", lambda figures: f"{figures.target.ratio:.2f}"),
    ("share of copy beyond the cache", _figure("share", "{:.0%}")),
    ("host per call", _figure("host_s", "{:.1f} µs", 1e6)),
    ("over a raw launch", _figure("host_ratio", "{:.2f}")),
)


def target_table(rows: Sequence[Row], cache_bytes: int, title: str = "") -> Table:
    """The targets of a GPU's kernels, and the measured figures."""
    return Table.of(title, TARGET_COLUMNS, reached(rows, cache_bytes))


# Reports ------------------------------------------------------------------------------------------


def print_report(run: Run, console: Console) -> None:
    """The table, the faults and the geometric means."""
    rows = rows_by_subject(run)
    for subject, own in rows.items():
        if own:
            cases = case_table(own, f"{subject} and the quickest peer" if run.peers else subject)
            wide = run.on_gpu or any(FALLBACK in row.named for row in own)
            console.print(cases.terminal(MARKDOWN_ALONE_BESIDE_NUMPY if wide else MARKDOWN_ALONE))
    print_networks(run, console)
    for record, outcome in run.faults:
        fault = f"{record.id}, {outcome.provider}: {outcome.note}"
        console.print(f"[bold red]{outcome.status.upper()}[/] {escape(fault)}")
    if run.unreached:
        console.print(f"[yellow]{len(run.unreached)} cases were not reached in the time that there was[/]")
    for subject, own in rows.items():
        if run.on_gpu and own:
            console.print(target_table(own, run.cache_bytes, f"{subject}: targets").terminal(caption=WANTED))
        if len(own) > 1:
            for kind, kind_of in KINDS.items():
                means = summary_table(kind, summarize(own, kind_of), f"{subject}: geometric means by {kind}")
                console.print(means.terminal())
    console.print(escape(headline(run)), highlight=False)
    console.print(legend(run), style="dim", markup=False, highlight=False)


def markdown_summary(run: Run) -> str:
    """The geometric means as Markdown tables, one per subject and kind; a GPU's targets before them."""
    parts = []
    for subject, own in rows_by_subject(run).items():
        parts.append(f"**{subject}**" if own else f"**{subject}** was not timed")
        if run.on_gpu and own:
            parts += [target_table(own, run.cache_bytes).markdown(), WANTED + "; **bold** is what falls short."]
        parts += [summary_table(kind, summarize(own, kind_of)).markdown() for kind, kind_of in KINDS.items() if own]
    return "\n\n".join(parts)


def markdown_report(run: Run) -> str:
    """The whole result for a reader of the repository."""
    lines = [f"# {title(run)}", "", headline(run), "", _sentence(legend(run)), ""]
    if run.networks:
        lines += ["## Whole networks", "", markdown_networks(run), ""]
    if run.records:
        lines += ["## Geometric means", "", markdown_summary(run), "", "## Cases"]
    for subject, own in rows_by_subject(run).items():
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
    subject, rows = next(iter(rows_by_subject(run).items()))
    parts = [
        start,
        f"**{subject}**, geometric means",
        summary_table("group", summarize([row for row in rows if row.record.dtype == "float32"], by_group)).markdown(),
        headline(run).replace("\n", "; ") + ".",
        f"{_sentence(legend(run))} [The cases and all families]({details}).",
        end,
    ]
    path.write_text(pattern.sub(lambda _: "\n\n".join(parts), text))
