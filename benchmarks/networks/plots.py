"""The figure of whole networks: a bar for each implementation, one panel for each operation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

from benchmarks.networks.cases import OPERATIONS
from benchmarks.networks.report import TITLES, implementations, label
from benchmarks.results import Record, Run
from benchmarks.tables import milliseconds

COLOURS = ("#4477aa", "#ee6677", "#ccbb44", "#66ccee", "#aa3377", "#228833")
BAR_INCHES = 0.2
GAP_INCHES = 0.16  # between networks
PANEL_INCHES = 0.75  # of a panel in addition to its bars: its title and its axis
HEAD_INCHES = 1.1
WIDTH_INCHES = 9.5
LABEL_INCHES = 2.2


def draw_networks(run: Run, stem: Path) -> list[Path]:
    """Write the figure under the name `stem`; where no network was timed, remove that of an earlier run."""
    path = Path(f"{stem}-networks.png")
    timed = [record for record in run.networks if implementations([record])]
    if not timed:
        path.unlink(missing_ok=True)
        return []
    figure = _figure(run, timed)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return [path]


def _figure(run: Run, records: list[Record]) -> Any:
    names = implementations(records)
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}
    panels = {operation: [r for r in records if r.operation == operation] for operation in OPERATIONS}
    panels = {operation: members for operation, members in panels.items() if members}
    heights = {operation: PANEL_INCHES + _inches(members) for operation, members in panels.items()}
    height = HEAD_INCHES + sum(heights.values())
    figure = plt.figure(figsize=(WIDTH_INCHES, height))
    top = height - HEAD_INCHES
    for operation, members in panels.items():
        bottom, inches = top - heights[operation] + 0.45, _inches(members)
        width = WIDTH_INCHES - LABEL_INCHES - 0.2
        box = (LABEL_INCHES / WIDTH_INCHES, bottom / height, width / WIDTH_INCHES, inches / height)
        axes = figure.add_axes(box)
        _bars(axes, TITLES[operation], members, run.subjects, colours)
        top -= heights[operation]
    device = run.environment["device"]
    head: dict[str, Any] = {"va": "center", "x": 0.15 / WIDTH_INCHES}
    figure.text(y=1 - 0.25 / height, s="Whole networks: time for a batch", fontsize=13, weight="bold", **head)
    figure.text(
        y=1 - 0.52 / height,
        s=f"{device['name']}, {device['threads']} threads, {run.environment['date']}; "
        f"in brackets the ratio to {run.subjects[0]}",
        fontsize=9,
        color="#555555",
        **head,
    )
    handles = [Rectangle((0, 0), 1, 1, color=colour, label=name) for name, colour in colours.items()]
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (0.0, 1 - 0.8 / height)}
    figure.legend(handles=handles, ncols=len(handles), frameon=False, fontsize=9, **place)
    return figure


def _inches(records: list[Record]) -> float:
    """The height of a panel's bars."""
    return sum(GAP_INCHES + BAR_INCHES * len(implementations([record])) for record in records)


def _bars(axes: Any, title: str, records: list[Record], subjects: list[str], colours: dict[str, str]) -> None:
    """A group of bars for each network, from the top down."""
    top, ticks, longest = 0.0, [], 0.0
    for record in records:
        timings = {outcome.provider: outcome.timing for outcome in record.outcomes if outcome.timing}
        own = next((timings[name] for name in subjects if name in timings), None)
        first = top
        for name, timing in timings.items():
            top += BAR_INCHES
            middle, value = top - BAR_INCHES / 2, timing.median * 1e3
            axes.barh(middle, value, color=colours[name], height=0.85 * BAR_INCHES)
            spread = [[value - timing.p20 * 1e3], [timing.p80 * 1e3 - value]]
            axes.errorbar(value, middle, xerr=spread, color="#333333", linewidth=0.8)
            ratio = f" ({timing.median / own.median:.2f})" if own and name not in subjects else ""
            text = f"  {milliseconds(timing.median)} ms{ratio}"
            axes.text(timing.p80 * 1e3, middle, text, va="center", fontsize=8, color="#333333")
            longest = max(longest, timing.p80 * 1e3)
        ticks.append((first + top) / 2)
        top += GAP_INCHES
    axes.set_ylim(top, -GAP_INCHES / 2)
    axes.set_xlim(0, longest * 1.2)  # room for the text next to the longest bar
    axes.set_yticks(ticks, [label(record) for record in records], fontsize=9)
    axes.set_title(title, fontsize=10, weight="bold", loc="left", pad=4)
    axes.set_xlabel("ms", fontsize=8.5, loc="right", labelpad=1)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
