"""The sample of the suite that a plain `pytest` runs; ``--all`` runs everything, with ``--rows N`` shorter tables.

The sample takes of each test at most `ROWS` rows of its table of parameters, evenly spread from the first to the last.
Decorators say where it takes less:

- ``@examples(n)``: Hypothesis draws n examples under ``--all``, a tenth of them otherwise.
- ``@pytest.mark.table(n)``: at most n rows run; a table with no more rows than that is never cut.
- ``@pytest.mark.thorough``: slow, and its kind is tested by quicker ones; it runs under ``--all`` only.

With ``--all --rows N``, as in CI, tables that are marked, and those that tests cut by `some`, have at most N rows. On
another backend than NumPy, Hypothesis draws a quarter of the examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import pytest
from hypothesis import settings

Row = TypeVar("Row")
ROWS = 4
_SHARE = 10  # the sample draws this fraction of the examples
# Set by conftest before any test is imported:
everything = False
longest: int | None = None  # --rows
divisor = 1  # of the numbers of examples under --all


def examples(number: int) -> settings:
    """The decorator of a test that Hypothesis draws `number` examples for, under ``--all``."""
    return settings(max_examples=max(number // (divisor if everything else _SHARE), 5))


def sampled(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """The items of a run that are in the sample, in their order."""
    items = [item for item in items if everything or item.get_closest_marker("thorough") is None]
    tables: dict[tuple[Any, ...], list[pytest.Item]] = {}
    for item in items:
        tables.setdefault((item.path, getattr(item, "originalname", item.name)), []).append(item)
    kept = {item for rows in tables.values() for item in some(rows, _number(rows))}
    return [item for item in items if item in kept]


def _number(rows: Sequence[pytest.Item]) -> int | None:
    marker = rows[0].get_closest_marker("table")
    if marker is None:
        return None if everything else ROWS
    number = int(marker.args[0])
    return None if number >= len(rows) else number


def some(rows: Sequence[Row], number: int | None) -> Sequence[Row]:
    """`number` of the rows, evenly spread from the first to the last; all of them where it is None.

    With ``--all`` all rows, or those of ``--rows``.
    """
    if everything and number is not None:
        number = longest
    number = len(rows) if number is None else min(number, len(rows))
    return [rows[round(index * (len(rows) - 1) / max(number - 1, 1))] for index in range(number)]
