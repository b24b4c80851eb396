"""The sample of the suite that a plain `pytest` runs; ``pytest --all`` runs everything, as CI does.

The sample takes of each test at most `ROWS` rows of its table of parameters, evenly spread from the first to the last.
Decorators say where it takes less:

- ``@examples(n)``: Hypothesis draws n examples under ``--all``, a tenth of them otherwise.
- ``@pytest.mark.table(n)``: at most n rows run.
- ``@pytest.mark.thorough``: slow, and its kind is tested by quicker ones; it runs under ``--all`` only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import pytest
from hypothesis import settings

Row = TypeVar("Row")
ROWS = 5
_SHARE = 10  # the sample draws this fraction of the examples
everything = False  # set by conftest before any test is imported


def examples(number: int) -> settings:
    """The decorator of a test that Hypothesis draws `number` examples for, under ``--all``."""
    return settings(max_examples=number if everything else max(number // _SHARE, 5))


def sampled(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """The items of a run that are in the sample, in their order."""
    items = [item for item in items if item.get_closest_marker("thorough") is None]
    tables: dict[tuple[Any, ...], list[pytest.Item]] = {}
    for item in items:
        tables.setdefault((item.path, getattr(item, "originalname", item.name)), []).append(item)
    dropped = {item for rows in tables.values() for item in set(rows) - set(some(rows, _number(rows[0])))}
    return [item for item in items if item not in dropped]


def _number(item: pytest.Item) -> int:
    marker = item.get_closest_marker("table")
    return ROWS if marker is None else int(marker.args[0])


def some(rows: Sequence[Row], number: int) -> Sequence[Row]:
    """All rows under ``--all``, otherwise `number` of them, evenly spread from the first to the last."""
    number = len(rows) if everything else min(number, len(rows))
    return [rows[round(index * (len(rows) - 1) / max(number - 1, 1))] for index in range(number)]
