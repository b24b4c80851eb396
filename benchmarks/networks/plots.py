"""The figure of whole networks: a bar for each implementation, one panel for each operation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.patches import Rectangle

from benchmarks.networks.cases import OPERATIONS
from benchmarks.networks.report import TITLES, implementations, label
from benchmarks.plots import SHORT_NAMES, caption, frame_of_bars, head, plt, save
from benchmarks.results import Record, Run, row_of
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
    timed = [record for record in run.networks if implementations([record])]
    return save(_figure(run, timed) if timed else None, Path(f"{stem}-networks.png"))


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
        _bars(axes, TITLES[operation], members, run, colours)
        top -= heights[operation]
    lines = ("Whole networks: time for a batch", f"{caption(run)}; in brackets the ratio to {run.subjects[0]}")
    handles = [
        Rectangle((0, 0), 1, 1, color=colour, label=SHORT_NAMES.get(name, name)) for name, colour in colours.items()
    ]
    head(figure, lines, handles, (0.25, 0.52, 0.8))
    return figure


def _inches(records: list[Record]) -> float:
    """The height of a panel's bars."""
    return sum(GAP_INCHES + BAR_INCHES * len(implementations([record])) for record in records)


def _bars(axes: Any, title: str, records: list[Record], run: Run, colours: dict[str, str]) -> None:
    """A group of bars for each network, from the top down."""
    top, ticks, longest = 0.0, [], 0.0
    for record in records:
        timings = {outcome.provider: outcome.timing for outcome in record.outcomes if outcome.timing}
        rows = (row_of(record, subject, run.subjects, run.limits) for subject in run.subjects)
        own = next((row.timing for row in rows if row), None)
        first = top
        for name, timing in timings.items():
            top += BAR_INCHES
            middle, value = top - BAR_INCHES / 2, timing.median * 1e3
            axes.barh(middle, value, color=colours[name], height=0.85 * BAR_INCHES)
            spread = [[value - timing.p20 * 1e3], [timing.p80 * 1e3 - value]]
            axes.errorbar(value, middle, xerr=spread, color="#333333", linewidth=0.8)
            ratio = f" ({timing.median / own.median:.2f})" if own and timing is not own else ""
            text = f"  {milliseconds(timing.median)} ms{ratio}"
            axes.text(timing.p80 * 1e3, middle, text, va="center", fontsize=8, color="#333333")
            longest = max(longest, timing.p80 * 1e3)
        ticks.append((first + top) / 2)
        top += GAP_INCHES
    axes.set_ylim(top, -GAP_INCHES / 2)
    axes.set_xlim(0, longest * 1.2)  # room for the text next to the longest bar
    axes.set_xlabel("ms", fontsize=8.5, loc="right", labelpad=1)
    frame_of_bars(axes, title, ticks, [label(record) for record in records], (9, 8), pad=4)
