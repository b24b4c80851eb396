"""The look that all figures of the guide share: one palette, cells with numbers in them, arrows, and where to save."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

FOLDER = Path(__file__).resolve().parents[1] / "build" / "figures"
DPI = 150


class Colour(NamedTuple):
    """A light fill for a cell and a dark line for its edge, its arrows and its text."""

    light: str
    dark: str


INPUT = Colour("#d5e5f6", "#2463a8")  # what comes in
FILTER = Colour("#fde4c4", "#b8640a")  # what is learned
OUTPUT = Colour("#d5edd8", "#23803a")  # what goes out
GRADIENT = Colour("#f8d8e0", "#ad2f55")  # what flows back
EMPTY = Colour("#f4f4f4", "#9a9a9a")  # padding, zeros, what is not read
INK = "#222222"

plt.rcParams.update(
    {
        "figure.facecolor": "white",
        "axes.facecolor": "white",
        "font.size": 11,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": plt.cycler(color=[colour.dark for colour in (INPUT, FILTER, OUTPUT, GRADIENT)]),
    }
)


def canvas(width: float, height: float, unit: float = 0.48) -> tuple[Figure, Axes]:
    """An empty drawing, x to the right and y downwards, in which a cell of 1 × 1 is `unit` inches wide."""
    figure = plt.figure(figsize=(width * unit, height * unit))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    ax.axis("off")
    return figure, ax


def cell(
    ax: Axes, x: float, y: float, label: str = "", colour: Colour = INPUT, size: float = 1, font: float = 11
) -> None:
    """One square with its upper left corner at (x, y)."""
    ax.add_patch(Rectangle((x, y), size, size, facecolor=colour.light, edgecolor=colour.dark, linewidth=1))
    ax.text(x + size / 2, y + size / 2, label, ha="center", va="center", fontsize=font)


def cells(
    ax: Axes, values: object, x: float, y: float, colour: Colour = INPUT, size: float = 1, font: float = 11
) -> None:
    """A row or a table of cells with its upper left corner at (x, y); None and "" stay without a number."""
    table = np.atleast_2d(np.asarray(values, dtype=object))
    for row, line in enumerate(table):
        for column, value in enumerate(line):
            cell(ax, x + column * size, y + row * size, shown(value), colour, size, font)


def shown(value: object) -> str:
    """A number as briefly as it can be written."""
    if value is None or isinstance(value, str):
        return value or ""
    return f"{float(value):g}".replace("-", "−")  # type: ignore[arg-type]


def frame(ax: Axes, x: float, y: float, width: float, height: float, colour: Colour, line: float = 3) -> None:
    """A thick outline around cells."""
    ax.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=colour.dark, linewidth=line, zorder=4))


def arrow(
    ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = "#555555", line: float = 1.5
) -> None:
    """An arrow."""
    ax.annotate(
        "", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": line, "shrinkA": 0, "shrinkB": 0}
    )


def text(ax: Axes, x: float, y: float, words: str, font: float = 11, colour: str = INK, align: str = "center") -> None:
    """Words, centred on (x, y) unless `align` is left or right."""
    ax.text(x, y, words, ha=align, va="center", fontsize=font, color=colour, linespacing=1.35)


def save(figure: Figure, name: str) -> None:
    """Write the figure as `name`.png and close it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FOLDER / f"{name}.png", dpi=DPI)
    plt.close(figure)
