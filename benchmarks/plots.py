"""The figures: speed-up bars per family, and the roofline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks import report
from benchmarks.results import FALLBACK, PLAIN_CUPY, PYTORCH, Ratios, Row, Run, by_family, rows_by_subject, rows_of

COLOURS = {
    **dict.fromkeys(("forward", "training", "im2col", "pack"), "#4477aa"),
    "inference": "#66ccee",
    **dict.fromkeys(("backward", "backward_input", "col2im", "unpack"), "#ee6677"),
    "backward_weight": "#ccbb44",
}
GREY, PLAIN_COLOUR = "#cccccc", "#222222"  # of operations without a colour, and of peers; of plain CuPy
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SHORT_NAMES = {
    "gpucnn compiled channels_last": "gpucnn compiled NHWC",
    "PyTorch channels_last": "PyTorch NHWC",
    "PyTorch cudnn.benchmark": "PyTorch, search",
    "PyTorch channels_last, cudnn.benchmark": "PyTorch NHWC, search",
    "ONNX Runtime": "ONNX RT",
}

BAR_INCHES = 0.17
HEADER_INCHES = 0.62  # of a family: its title and its axis
COLUMN_INCHES = 6.6
LABEL_INCHES = 2.3
COLUMNS = 3
LEGEND_ENTRY_INCHES = 2.7


def draw(run: Run, stem: Path) -> list[Path]:
    """Write the figures that the run has rows for, named after `stem`; their paths.

    One of an earlier run that this run has no rows for is removed.
    """
    written = []
    for subject, own in rows_by_subject(run).items():
        tag = "" if len(run.subjects) == 1 else "-" + subject.lower().replace(" ", "-")
        figures = {
            "speedup": _speedup(run, own) if any(row.ratio is not None for row in own) else None,
            "roofline": _roofline(run, own) if own else None,
            "over-numpy": _over_numpy(run, own) if any(FALLBACK in row.named for row in own) else None,
        }
        for name, figure in figures.items():
            written += save(figure, Path(f"{stem}{tag}-{name}.png"))
    return written


# What all figures share ---------------------------------------------------------------------------


def save(figure: Any, path: Path) -> list[Path]:
    """Write a figure, or remove the one of an earlier run where there is none; what was written."""
    if figure is None:
        path.unlink(missing_ok=True)
        return []
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return [path]


def caption(run: Run) -> str:
    return f"{report.title(run)}, {run.environment['date']}"


def head(figure: Any, lines: tuple[str, str], handles: Sequence[Any], below: tuple[float, float, float]) -> None:
    """A title, a line in grey and a legend, in inches `below` the upper edge."""
    width, height = figure.get_size_inches()
    title, remark, legend = (1 - inches / height for inches in below)
    place: dict[str, Any] = {"x": 0.15 / width, "va": "center"}
    figure.text(y=title, s=lines[0], fontsize=13, weight="bold", **place)
    figure.text(y=remark, s=lines[1], fontsize=9, color="#555555", **place)
    place = {"loc": "center left", "bbox_to_anchor": (0.0, legend)}
    figure.legend(handles=handles, ncols=len(handles), frameon=False, fontsize=9, **place)


def frame_of_bars(
    axes: Any, title: str, places: Sequence[float], names: Sequence[str], sizes: tuple[float, float], pad: int
) -> None:
    """The frame of horizontal bars: their names and a scale, in fonts of `sizes`, and a title."""
    axes.set_yticks(places, names, fontsize=sizes[0])
    axes.set_title(title, fontsize=10, weight="bold", loc="left", pad=pad)
    axes.tick_params(axis="x", labelsize=sizes[1])
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    grid(axes, "x")


def grid(axes: Any, axis: Any = "both") -> None:
    axes.grid(axis=axis, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def mark(label: str, colour: str, marker: str = "o") -> Line2D:
    """The entry of a legend for points of one kind."""
    return Line2D([], [], marker=marker, color=colour, linestyle="none", label=label)


def _plain(*axes: Any) -> None:
    """Numbers without powers of ten."""
    for axis in axes:
        axis.set_major_formatter("{x:g}")


def _ticks(axis: Any) -> None:
    """Marks of a logarithmic axis at 1, 2 and 5 times the powers of ten."""
    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axis.set_minor_formatter(NullFormatter())
    _plain(axis)


# Speed-up -----------------------------------------------------------------------------------------


def _speedup(run: Run, rows: Sequence[Row]) -> Any:
    """One panel a family, its cases sorted by ratio, packed into columns of equal height."""
    families: dict[str, list[Row]] = {}
    for row in rows:
        if row.ratio is not None:
            families.setdefault(by_family(row.record)[0], []).append(row)
    columns = _pack(families)
    height = 1.1 + max(sum(_panel_inches(families[name]) for name in column) for column in columns)
    width = COLUMN_INCHES * len(columns)
    figure = plt.figure(figsize=(width, height))
    shown = [row for members in families.values() for row in members]
    ratios = [ratio for row in shown for ratio in (row.ratio, row.ratio_to(PYTORCH)) if ratio]
    low, high = min(0.8, min(ratios)) / 1.1, max(1.25, max(ratios)) * 1.1
    span = low, high * (high / low) ** 0.28  # room for the text next to the longest bar

    for place, column in enumerate(columns):
        top = height - 1.1
        for name in column:
            inches = _panel_inches(families[name])
            box = (
                (place * COLUMN_INCHES + LABEL_INCHES) / width,
                (top - inches + 0.3) / height,
                (COLUMN_INCHES - LABEL_INCHES - 0.15) / width,
                (inches - HEADER_INCHES) / height,
            )
            _bars(figure.add_axes(box), name, families[name], span)
            top -= inches
    lines = (
        f"{rows[0].subject}: speed-up over the quickest peer (right of the line: we are quicker)",
        f"{caption(run)}; geometric means above each panel, the text beside a bar names its peer",
    )
    handles: list[Any] = [Rectangle((0, 0), 1, 1, color=c, label=n) for n, c in _directions(shown).items()]
    if any(PYTORCH in row.named for row in shown):
        handles.append(mark(f"over {PYTORCH}", "black", "|"))
    head(figure, lines, handles, (0.3, 0.58, 0.85))
    return figure


def _directions(rows: Sequence[Row]) -> dict[str, str]:
    """The operations of `rows` that share a colour, by names for a legend."""
    found: dict[str, list[str]] = {}
    present = {row.record.operation for row in rows}
    for operation in sorted(present, key=lambda name: [*COLOURS, name].index(name)):
        found.setdefault(_colour(operation), []).append(operation.replace("_", " "))
    return {", ".join(names): colour for colour, names in found.items()}


def _colour(operation: str) -> str:
    return COLOURS.get(operation, GREY)


def _panel_inches(rows: Sequence[Row]) -> float:
    return HEADER_INCHES + BAR_INCHES * len(rows)


def _pack(families: dict[str, list[Row]]) -> list[list[str]]:
    """Families in columns of about equal height, the largest placed first."""
    columns: list[list[str]] = [[] for _ in range(min(COLUMNS, len(families)))]
    filled = [0.0] * len(columns)
    for name in sorted(families, key=lambda name: -len(families[name])):
        shortest = filled.index(min(filled))
        columns[shortest].append(name)
        filled[shortest] += _panel_inches(families[name])
    return columns


def _bars(axes: Any, family: str, rows: list[Row], span: tuple[float, float]) -> None:
    rows = sorted(rows, key=lambda row: row.ratio or 0.0)
    ratios = [row.ratio or 1.0 for row in rows]
    places = range(len(rows))
    colours = [_colour(row.record.operation) for row in rows]
    axes.barh(places, [r - 1 for r in ratios], left=1, color=colours, height=0.78)
    for place, ratio, row in zip(places, ratios, rows, strict=True):
        text = f" {ratio:.2f} {SHORT_NAMES.get(row.peer, row.peer)}"
        reference = row.ratio_to(PYTORCH)
        axes.text(max(ratio, reference or 1, 1), place, text, va="center", fontsize=6.5, color="#333333")
        if reference:
            axes.plot(reference, place, "|", color="black", markersize=6)
    axes.set_xscale("log")
    axes.set_xlim(span)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.axvline(1, color="black", linewidth=1)
    best, references = Ratios.of(ratios), Ratios.of(row.ratio_to(PYTORCH) for row in rows)
    title = f"{family}: {best.mean:.2f}" if best else family
    if references:
        title += f", over {PYTORCH} {references.mean:.2f}"
    names = [f"{row.record.network} {row.record.layer}" for row in rows]
    frame_of_bars(axes, title, places, names, (7.5, 7.5), pad=3)
    _ticks(axes.xaxis)


# Roofline -----------------------------------------------------------------------------------------


def _roofline(run: Run, rows: Sequence[Row]) -> Any:
    """Convolutions under the two roofs, next to the memory-bound operations; one legend below both."""
    computing = [row for row in rows if row.record.flops]
    moving = [row for row in rows if not row.record.flops]
    widths = [width for width, shown in ((8.0, computing), (6.0, moving)) if shown]
    figure, grid = plt.subplots(
        1, len(widths), figsize=(sum(widths), 7.2), width_ratios=widths, squeeze=False, layout="constrained"
    )
    axes = list(grid[0])
    handles = [mark(name, colour) for name, colour in _directions(rows).items()]
    if computing:
        handles += _roofs(axes.pop(0), run, computing)
    if moving:
        handles += _bandwidths(axes.pop(0), run, moving)
    _legend_below(figure, handles, max(1, int(sum(widths) / LEGEND_ENTRY_INCHES)))
    _title(figure, f"{rows[0].subject} under the measured limits\n{caption(run)}")
    return figure


def _legend_below(figure: Any, handles: Sequence[Any], columns: int) -> None:
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)


def _title(figure: Any, text: str) -> None:
    figure.suptitle(text, fontsize=11, weight="bold", x=0.01, ha="left")


def _roofs(axes: Any, run: Run, rows: Sequence[Row]) -> list[Any]:
    """Draw a point a case; the legend's entries for the families."""
    gemm, copy = run.limits.gemm_flops / 1e9, run.limits.copy_bytes / 1e9
    families = list(dict.fromkeys(row.record.family for row in rows))
    intensities = [row.record.flops / row.record.least_bytes for row in rows]
    rates = [row.record.flops / row.timing.median / 1e9 for row in rows]
    left, right = min(intensities) / 2, max(max(intensities) * 2, 4 * gemm / copy)
    ridge = gemm / copy
    axes.plot([left, ridge, right], [left * copy, gemm, gemm], color="black", linewidth=1.4)
    for rate in run.limits.other_flops.values():  # other precisions
        axes.plot([rate / 1e9 / copy, right], [rate / 1e9] * 2, color="black", linewidth=0.8, linestyle="--")
    roof = f"roof: copy {copy:.1f} GB/s, then GEMM {gemm:.0f} GFLOP/s"
    axes.text(0.015, 0.98, roof, transform=axes.transAxes, va="top", fontsize=9)
    markers = {family: MARKERS[number % len(MARKERS)] for number, family in enumerate(families)}
    form: dict[str, Any] = {"markersize": 6, "alpha": 0.8, "markeredgecolor": "white", "markeredgewidth": 0.4}
    for row, intensity, rate in zip(rows, intensities, rates, strict=True):
        axes.plot(intensity, rate, markers[row.record.family], color=_colour(row.record.operation), **form)
    axes.set(xscale="log", yscale="log", xlim=(left, right))
    axes.set_ylim(min(*rates, left * copy) / 1.5, max(*rates, gemm) * 1.8)
    axes.set_xlabel("flop per byte, every array moved once")
    axes.set_ylabel("GFLOP/s")
    axes.set_title("convolutions", loc="left")
    _plain(axes.xaxis, axes.yaxis)
    grid(axes)
    return [mark(family, "#777777", marker) for family, marker in markers.items()]


def _bandwidths(axes: Any, run: Run, rows: Sequence[Row]) -> list[Any]:
    """Draw a line of points for each operation of a family; the legend's entry for the peers."""
    copy = run.limits.copy_bytes / 1e9
    groups: dict[str, list[Row]] = {}
    for row in rows:
        label = f"{by_family(row.record)[0]} {row.record.operation}"
        groups.setdefault(label, []).append(row)
    for place, members in enumerate(groups.values()):
        for row in members:
            moved = row.record.least_bytes / 1e9
            if row.peer_timing:
                axes.plot(moved / row.peer_timing.median, place, "o", color=GREY, markersize=7)
            axes.plot(moved / row.timing.median, place, "o", color=_colour(row.record.operation), markersize=6)
    axes.axvline(copy, color="black", linewidth=1.4)
    axes.text(copy, -0.75, f"copy {copy:.1f} GB/s ", ha="right", va="center", fontsize=9)
    axes.set_xscale("log")
    axes.set_yticks(range(len(groups)), list(groups), fontsize=8.5)
    axes.set_ylim(len(groups) - 0.4, -1.1)
    axes.set_xlabel("GB/s, every array moved once")
    axes.set_title("limited by memory", loc="left")
    _plain(axes.xaxis)
    grid(axes, "x")
    return [mark("quickest peer (limited by memory)", GREY)] if any(row.peer for row in rows) else []


# Drawn layers -------------------------------------------------------------------------------------


def draw_scatter(run: Run, path: Path) -> list[Path]:
    """A point a case at the quickest peer's time and its ratio to ours; nothing where there is no peer."""
    rows = [row for row in rows_of(run) if row.peer_timing]
    return save(_scatter(run, rows) if rows else None, path)


def _scatter(run: Run, rows: Sequence[Row]) -> Any:
    families = list(dict.fromkeys(row.record.family for row in rows))
    markers = {family: MARKERS[number % len(MARKERS)] for number, family in enumerate(families)}
    figure, axes = plt.subplots(figsize=(9.5, 6.8), layout="constrained")
    form: dict[str, Any] = {"markersize": 6, "alpha": 0.75, "markeredgecolor": "white", "markeredgewidth": 0.4}
    for row in rows:
        if row.peer_timing and row.ratio:
            colour = _colour(row.record.operation)
            axes.plot(row.peer_timing.median * 1e3, row.ratio, markers[row.record.family], color=colour, **form)
    axes.axhline(1, color="black", linewidth=1)
    axes.set(
        xscale="log", yscale="log", xlabel="ms, quickest peer", ylabel="its time over ours (above 1 we are quicker)"
    )
    _ticks(axes.xaxis)
    _ticks(axes.yaxis)
    grid(axes)
    handles = [mark(name, colour) for name, colour in _directions(rows).items()]
    _legend_below(figure, [*handles, *(mark(name, "#777777", sign) for name, sign in markers.items())], 4)
    mean = Ratios.of(row.ratio for row in rows)
    title = f"{rows[0].subject} on {len(rows)} cases of drawn layers"
    _title(figure, f"{title}: geometric mean {mean.mean:.2f}\n{caption(run)}" if mean else title)
    return figure


# Over the CPU -------------------------------------------------------------------------------------


def _over_numpy(run: Run, rows: Sequence[Row]) -> Any:
    """For each family a line of points: speed-ups over the NumPy backend, of gpucnn and of plain CuPy."""
    rows = [row for row in rows if FALLBACK in row.named]
    families = list(dict.fromkeys(row.record.family for row in rows))
    figure, axes = plt.subplots(figsize=(9.5, 1.9 + 0.42 * len(families)), layout="constrained")
    for row in rows:
        place, fallback = families.index(row.record.family), row.named[FALLBACK].median
        axes.plot(fallback / row.timing.median, place, "o", color=_colour(row.record.operation), alpha=0.8)
        if PLAIN_CUPY in row.named:
            axes.plot(fallback / row.named[PLAIN_CUPY].median, place + 0.22, "|", color=PLAIN_COLOUR, markersize=6)
    means = [Ratios.of(row.ratio_to(FALLBACK) for row in rows if row.record.family == family) for family in families]
    labels = [f"{family}: {mean.mean:.3g}" for family, mean in zip(families, means, strict=True) if mean]
    axes.set_yticks(range(len(families)), labels, fontsize=8.5)
    axes.set_ylim(len(families) - 0.4, -0.6)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("times as fast as the NumPy backend (geometric means by the names)")
    _ticks(axes.xaxis)
    grid(axes, "x")
    handles = [mark(name, colour) for name, colour in _directions(rows).items()]
    if any(PLAIN_CUPY in row.named for row in rows):
        handles.append(mark(PLAIN_CUPY, PLAIN_COLOUR, "|"))
    _legend_below(figure, handles, 3)
    title = f"{rows[0].subject} over gpucnn's NumPy backend, float32\n{caption(run)}"
    if run.on_gpu:
        host = run.environment["host"]
        title += f"; NumPy on {host['name']}, {host['threads']} threads"
    _title(figure, title)
    return figure
