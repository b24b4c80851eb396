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
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.results import REFERENCE, Ratios, Row, Run, by_family, rows_of

COLOURS = {
    "forward": "#4477aa",
    "training": "#4477aa",
    "im2col": "#4477aa",
    "pack": "#4477aa",
    "unpack": "#ee6677",
    "inference": "#66ccee",
    "backward": "#ee6677",
    "backward_input": "#ee6677",
    "col2im": "#ee6677",
    "backward_weight": "#ccbb44",
}
DIRECTIONS = {
    "forward, training, im2col, pack": "#4477aa",
    "inference": "#66ccee",
    "backward (input), col2im, unpack": "#ee6677",
    "backward weight": "#ccbb44",
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SHORT_PEERS = {
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


def draw(run: Run, stem: Path) -> list[Path]:
    """Write the figures beside `stem`; without peers there are no speed-up bars."""
    rows = rows_of(run)
    written = []
    for subject in run.subjects:
        own = [row for row in rows if row.subject == subject]
        tag = "" if len(run.subjects) == 1 else "-" + subject.lower().replace(" ", "-")
        if any(row.ratio is not None for row in own):
            written.append(_save(_speedup(run, own), Path(f"{stem}{tag}-speedup.png")))
        if own:
            written.append(_save(_roofline(run, own), Path(f"{stem}{tag}-roofline.png")))
    return written


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _caption(run: Run) -> str:
    device = run.environment["device"]
    threads = "" if run.on_gpu else f", {device['threads']} threads"
    return f"{device['name']}{threads}, {run.environment['date']}"


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
    ratios = [ratio for row in shown for ratio in (row.ratio, row.reference_ratio) if ratio]
    low, high = min(0.8, min(ratios)) / 1.1, max(1.25, max(ratios)) * 1.1
    span = low, high * (high / low) ** 0.28  # room for the text beside the longest bar

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
    figure.text(
        0.15 / width,
        1 - 0.3 / height,
        f"{rows[0].subject}: speed-up over the quickest peer (right of the line: we are quicker)",
        fontsize=13,
        weight="bold",
        va="center",
    )
    figure.text(
        0.15 / width,
        1 - 0.58 / height,
        f"{_caption(run)}; geometric means above each panel, the text beside a bar names its peer",
        fontsize=9,
        color="#555555",
        va="center",
    )
    figure.legend(
        handles=[
            *(Rectangle((0, 0), 1, 1, color=c, label=n) for n, c in DIRECTIONS.items()),
            Line2D([], [], marker="|", color="black", linestyle="none", label=f"over {REFERENCE}"),
        ],
        loc="center left",
        bbox_to_anchor=(0.0, 1 - 0.85 / height),
        ncols=len(DIRECTIONS) + 1,
        frameon=False,
        fontsize=9,
    )
    return figure


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
    colours = [COLOURS.get(row.record.operation, "#bbbbbb") for row in rows]
    axes.barh(places, [r - 1 for r in ratios], left=1, color=colours, height=0.78)
    for place, ratio, row in zip(places, ratios, rows, strict=True):
        text = f" {ratio:.2f} {SHORT_PEERS.get(row.peer, row.peer)}"
        axes.text(max(ratio, row.reference_ratio or 1, 1), place, text, va="center", fontsize=6.5, color="#333333")
        if row.reference_ratio:
            axes.plot(row.reference_ratio, place, "|", color="black", markersize=6)
    axes.set_xscale("log")
    axes.set_xlim(span)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_yticks(places, [f"{r.record.network} {r.record.layer}" for r in rows], fontsize=7.5)
    axes.axvline(1, color="black", linewidth=1)
    best, reference = Ratios.of(ratios), Ratios.of(row.reference_ratio for row in rows)
    title = f"{family}: {best.mean:.2f}" if best else family
    if reference:
        title += f", over {REFERENCE} {reference.mean:.2f}"
    axes.set_title(title, fontsize=10, weight="bold", loc="left", pad=3)
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=7.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


# Roofline -----------------------------------------------------------------------------------------


def _roofline(run: Run, rows: Sequence[Row]) -> Any:
    """Convolutions under the two roofs; beside them what memory alone limits."""
    computing = [row for row in rows if row.record.flops]
    moving = [row for row in rows if not row.record.flops]
    panels = [bool(computing), bool(moving)]
    figure, grid = plt.subplots(
        1,
        sum(panels),
        figsize=(8.0 * panels[0] + 6.0 * panels[1], 6.8),
        width_ratios=[w for w, shown in zip((8.0, 6.0), panels, strict=True) if shown],
        squeeze=False,
        layout="constrained",
    )
    axes = list(grid[0])
    if computing:
        _roofs(axes.pop(0), run, computing)
    if moving:
        _bandwidths(axes.pop(0), run, moving)
    figure.suptitle(f"{rows[0].subject} under the measured limits: {_caption(run)}", fontsize=12, weight="bold")
    return figure


def _roofs(axes: Any, run: Run, rows: Sequence[Row]) -> None:
    gemm, copy = run.limits.gemm_flops / 1e9, run.limits.copy_bytes / 1e9
    families = list(dict.fromkeys(row.record.family for row in rows))
    intensities = [row.record.flops / row.record.least_bytes for row in rows]
    rates = [row.record.flops / row.timing.median / 1e9 for row in rows]
    left, right = min(intensities) / 2, max(max(intensities) * 2, 4 * gemm / copy)
    ridge = gemm / copy
    axes.plot([left, ridge, right], [left * copy, gemm, gemm], color="black", linewidth=1.4)
    for rate in run.limits.other_flops.values():  # other precisions
        axes.plot([rate / 1e9 / copy, right], [rate / 1e9] * 2, color="black", linewidth=0.8, linestyle="--")
    axes.text(
        0.015,
        0.98,
        f"roof: copy {copy:.1f} GB/s, then GEMM {gemm:.0f} GFLOP/s",
        transform=axes.transAxes,
        va="top",
        fontsize=9,
    )
    for row, intensity, rate in zip(rows, intensities, rates, strict=True):
        axes.plot(
            intensity,
            rate,
            marker=MARKERS[families.index(row.record.family) % len(MARKERS)],
            color=COLOURS.get(row.record.operation, "#bbbbbb"),
            markersize=6,
            alpha=0.8,
            markeredgecolor="white",
            markeredgewidth=0.4,
            linestyle="none",
        )
    axes.set(xscale="log", yscale="log", xlim=(left, right))
    axes.set_ylim(min(*rates, left * copy) / 1.5, max(*rates, gemm) * 1.8)
    axes.set_xlabel("flop per byte, every array moved once")
    axes.set_ylabel("GFLOP/s")
    axes.set_title("convolutions", loc="left")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    shapes = [
        Line2D([], [], marker=MARKERS[i % len(MARKERS)], color="#777777", linestyle="none", label=f)
        for i, f in enumerate(families)
    ]
    colours = [
        Line2D([], [], marker="o", color=c, linestyle="none", label=n)
        for n, c in DIRECTIONS.items()
        if any(COLOURS.get(row.record.operation) == c for row in rows)
    ]
    axes.legend(
        handles=[*shapes, *colours],
        fontsize=8,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.1),
        ncols=4,
        frameon=False,
    )


def _bandwidths(axes: Any, run: Run, rows: Sequence[Row]) -> None:
    copy = run.limits.copy_bytes / 1e9
    groups: dict[str, list[Row]] = {}
    for row in rows:
        label = f"{by_family(row.record)[0]} {row.record.operation}"
        groups.setdefault(label, []).append(row)
    for place, members in enumerate(groups.values()):
        for row in members:
            moved = row.record.least_bytes / 1e9
            if row.peer_timing:
                axes.plot(moved / row.peer_timing.median, place, "o", color="#cccccc", markersize=7)
            colour = COLOURS.get(row.record.operation, "#bbbbbb")
            axes.plot(moved / row.timing.median, place, "o", color=colour, markersize=6)
    axes.axvline(copy, color="black", linewidth=1.4)
    axes.text(copy, -0.75, f"copy {copy:.1f} GB/s ", ha="right", va="center", fontsize=9)
    axes.set_xscale("log")
    axes.set_yticks(range(len(groups)), list(groups), fontsize=8.5)
    axes.set_ylim(len(groups) - 0.4, -1.1)
    axes.set_xlabel("GB/s, every array moved once (grey: quickest peer)")
    axes.set_title("limited by memory", loc="left")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
