"""Tables: coloured in the terminal, Markdown in the results folder and in the README."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.formatting import coloured, milliseconds, ratio_text
from benchmarks.networks.report import markdown_networks, print_networks
from benchmarks.results import REFERENCE, Ratios, Record, Row, Run, Summary, by_family, by_group, rows_of, summarize
from benchmarks.targets import COPY_SHARE, HOST_OVER_RAW, HOST_S, Reached, reached

README_MARKERS = {
    "cpu": ("<!-- benchmark:start -->", "<!-- benchmark:end -->"),
    "gpu": ("<!-- gpu-benchmark:start -->", "<!-- gpu-benchmark:end -->"),
}

LEGEND = (
    f"ratio = a peer's time / our time, above 1 we are quicker: to {REFERENCE} in its own memory order, "
    "and to whichever peer is quickest; "
    "limit = the measured GEMM or copy rate, whichever binds "
    "(data that fits the caches can pass the copy limit)"
)

GPU_LEGEND = (
    "times are the device's, each call from a flushed cache; PyTorch as it comes is the first ratio, its quickest mode "
    "(channels_last, cudnn.benchmark, torch.compile where they apply) the second"
)

# The tables of geometric means: a heading, and what puts a case into a row.
Kinds = Mapping[str, Callable[[Record], tuple[str, str]]]
KINDS: Kinds = {"group": by_group, "family": by_family}


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
    return f"{LEGEND}; {GPU_LEGEND}" if run.on_gpu else LEGEND


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


def span_text(ratios: Ratios | None) -> str:
    """The least and the largest ratio of a single case."""
    return "" if ratios is None else f"{ratios.lowest:.2f} to {ratios.highest:.2f}"


def summary_cells(summary: Summary) -> list[str]:
    """kind, operation, cases, share of the limit; mean and span of the ratios to PyTorch and to the quickest peer."""
    cells = [summary.kind, summary.operation.replace("_", " "), str(summary.cases), f"{summary.share:.0%}"]
    for ratios in (summary.reference, summary.best):
        cells += [ratio_text(ratios and ratios.mean), span_text(ratios)]
    return cells


TARGET_HEADINGS = (
    "target", "dtype", "cases", "ratio to the best peer", "wanted", "share of copy beyond the cache", "host per call",
    "over a raw launch",
)  # fmt: skip


def target_cells(figures: Reached) -> list[tuple[str, bool | None]]:
    """The cells of a target's line, and whether each is where it should be."""
    met = figures.met
    host = "" if figures.host_s is None else f"{figures.host_s * 1e6:.1f} µs"
    return [
        (figures.target.name, None),
        (figures.dtype, None),
        (str(figures.cases), None),
        (ratio_text(figures.ratio), met["ratio"]),
        (f"{figures.target.ratio:.2f}", None),
        ("" if figures.share is None else f"{figures.share:.0%}", met["share"]),
        (host, met["host_s"]),
        (ratio_text(figures.host_ratio), met["host_ratio"]),
    ]


def _wanted_line() -> str:
    return (
        f"Wanted of all: at least {COPY_SHARE:.0%} of the copy's rate on arrays beyond the cache, at most "
        f"{HOST_S * 1e6:.0f} µs of the host for a call and {HOST_OVER_RAW:.2f} times a raw launch"
    )


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
        own = [row for row in rows if row.subject == subject]
        if own:
            console.print(_case_table(subject, own))
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
            console.print(_target_table(subject, own, run.cache_bytes))
        if len(own) > 1:
            for kind, kind_of in KINDS.items():
                console.print(_summary_table(subject, kind, summarize(own, kind_of)))
    console.print(escape(headline(run)), highlight=False)
    console.print(legend(run), style="dim", highlight=False)


def _case_table(subject: str, rows: list[Row]) -> Table:
    table = Table(title=f"{subject} and the quickest peer", title_justify="left")
    table.add_column("case", no_wrap=True)
    table.add_column("operation", no_wrap=True)
    for heading in ("ms", "spread", "rate", "of limit", f"to {REFERENCE}", "to best"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("best peer", no_wrap=True)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        cells = row_cells(row)
        cells[4] = coloured(row.reference_ratio, cells[4])
        cells[5] = coloured(row.ratio, cells[5])
        last_of_family = following is not None and following.record.family != row.record.family
        table.add_row(
            f"{row.record.network} {row.record.layer}",
            row.record.operation + ("" if row.record.dtype == "float32" else " f16"),
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
        cells[4] = coloured(summary.reference and summary.reference.mean, cells[4])
        cells[6] = coloured(summary.best and summary.best.mean, cells[6])
        table.add_row(*cells)
    return table


def _target_table(subject: str, rows: list[Row], cache_bytes: int) -> Table:
    table = Table(title=f"{subject}: targets", title_justify="left", caption=_wanted_line(), caption_justify="left")
    for place, heading in enumerate(TARGET_HEADINGS):
        table.add_column(heading, justify="left" if place < 2 else "right")
    for figures in reached(rows, cache_bytes):
        cells = [
            text if met is None else f"[{'green' if met else 'red'}]{text}[/]" for text, met in target_cells(figures)
        ]
        table.add_row(*cells)
    return table


def markdown_summary(run: Run, kinds: Kinds = KINDS) -> str:
    """The geometric means as Markdown tables, one per subject and kind; a GPU's targets before them."""
    parts = []
    for subject in run.subjects:
        own = [row for row in rows_of(run) if row.subject == subject]
        parts.append(f"**{subject}**")
        if run.on_gpu:
            parts += [_markdown_targets(own, run.cache_bytes), _wanted_line() + "; **bold** is what falls short."]
        for kind, kind_of in kinds.items():
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


def _markdown_targets(rows: list[Row], cache_bytes: int) -> str:
    lines = [f"| {' | '.join(TARGET_HEADINGS)} |", "| --- | --- |" + " --: |" * (len(TARGET_HEADINGS) - 2)]
    for figures in reached(rows, cache_bytes):
        cells = [f"**{text}**" if met is False else text for text, met in target_cells(figures)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def markdown_report(run: Run) -> str:
    """The whole result for a reader of the repository."""
    lines = [f"# {title(run)}", "", headline(run), ""]
    lines += [_sentence(legend(run)), ""]
    if run.networks:
        lines += ["## Whole networks", "", markdown_networks(run), ""]
    if run.records:
        lines += ["## Geometric means", "", markdown_summary(run), "", "## Cases", "", *_markdown_cases(run)]
    if run.faults:
        lines += ["", "## Faults", ""]
        lines += [f"- {r.id}, {o.provider}, {o.status}: {o.note}" for r, o in run.faults]
    if run.unreached:
        lines += ["", "## Not reached in the time that there was", "", ", ".join(run.unreached)]
    return "\n".join(lines) + "\n"


def _markdown_cases(run: Run) -> list[str]:
    """The lines of the table of all cases."""
    gpu_headings = " warm ms | host µs | over raw |" if run.on_gpu else ""
    lines = [
        f"| case | operation | shapes | ms | spread | rate | of limit | to {REFERENCE} | to best | best peer |"
        + gpu_headings,
        "| --- | --- | --- | --: | --: | --: | --: | --: | --: | --- |" + " --: |" * gpu_headings.count("|"),
    ]
    several = len(run.subjects) > 1
    for row in rows_of(run):
        record = row.record
        name = f"{record.network} {record.layer}" + (f" ({row.subject})" if several else "")
        operation = record.operation.replace("_", " ") + ("" if record.dtype == "float32" else f", {record.dtype}")
        cells = [name, operation, record.shapes, *row_cells(row), *(_gpu_cells(row) if run.on_gpu else ())]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _gpu_cells(row: Row) -> list[str]:
    """The time from a warm cache; the host's time for a call, and its ratio to a raw launch."""
    return [
        milliseconds(row.warm.median) if row.warm else "",
        f"{row.host.median * 1e6:.1f}" if row.host else "",
        ratio_text(row.host_ratio),
    ]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def update_readme(path: Path, run: Run, details: str) -> None:
    """Replace what stands between the markers of `path` for this kind of device by the summary of `run`.

    `details` is the address of the full table, relative to the file. A GPU's summary is by groups alone.
    """
    start, end = README_MARKERS["gpu" if run.on_gpu else "cpu"]
    text = path.read_text()
    pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"{path.name} needs {start} and {end}, once each")
    block = "\n\n".join(
        [
            start,
            markdown_summary(run, {"group": by_group} if run.on_gpu else KINDS),
            headline(run).replace("\n", "; ") + ".",
            f"{_sentence(legend(run))} [All cases]({details}).",
            end,
        ]
    )
    path.write_text(pattern.sub(lambda _: block, text))
