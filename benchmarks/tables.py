"""Tables, each made once for the terminal and for Markdown, and numbers as they show them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table as RichTable

TEXTS = ("case", "operation", "shapes", "best peer", "group", "family", "target", "dtype", "network")  # aligned left


class Cell(NamedTuple):
    """A cell's text, its colour in the terminal, and whether it is bold in Markdown."""

    text: str = ""
    colour: str = ""
    bold: bool = False


Columns = Sequence[tuple[str, Callable[[Any], Cell | str]]]


@dataclass
class Table:
    """Headings and rows of cells."""

    title: str
    headings: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    sections: Sequence[int] = ()  # rows that a line follows in the terminal

    @staticmethod
    def of(title: str, columns: Columns, items: Sequence[Any], sections: Sequence[int] = ()) -> Table:
        """A row for each item, and the columns that have any text: a heading, and the function that makes a cell."""
        made = {}
        for place, (heading, make) in enumerate(columns):
            cells = [Cell(cell) if isinstance(cell, str) else cell for cell in map(make, items)]
            if any(cell.text for cell in cells):
                made[place, heading] = cells
        return Table(title, tuple(heading for _, heading in made), list(zip(*made.values(), strict=True)), sections)

    def markdown(self) -> str:
        lines = [
            self.headings,
            ["---" if heading in TEXTS else "--:" for heading in self.headings],
            *([f"**{cell.text}**" if cell.bold else cell.text for cell in row] for row in self.rows),
        ]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

    def terminal(self, without: Sequence[str] = (), caption: str = "", wraps: bool = False) -> RichTable:
        """The table for the terminal; one that `wraps` folds words that are longer than their column."""
        shown = [n for n, heading in enumerate(self.headings) if heading not in without]
        table = RichTable(title=self.title, title_justify="left", caption=caption or None, caption_justify="left")
        for n in shown:
            table.add_column(
                self.headings[n],
                justify="left" if self.headings[n] in TEXTS else "right",
                no_wrap=not (caption or wraps),
                overflow="fold" if wraps else "ellipsis",
            )
        for place, row in enumerate(self.rows):
            cells = [f"[{row[n].colour}]{row[n].text}[/]" if row[n].colour else escape(row[n].text) for n in shown]
            table.add_row(*cells, end_section=place in self.sections)
        return table


def milliseconds(seconds: float) -> str:
    """Three significant digits without an exponent."""
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def ratio(value: float | None) -> Cell:
    """Another's time over ours: green where we are not slower, red where we take more than twice as long."""
    if value is None:
        return Cell()
    text = f"{value:.2f}" if value < 100 else f"{value:.0f}"
    return Cell(text, "green" if value >= 1 else "yellow" if value >= 0.5 else "red")
