"""The docstrings of `gpucnn.data` run as doctests."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from docstrings import documented, sections_of

from gpucnn import data

RECORDS = {"Images", "Split"}


@pytest.mark.parametrize("name", [name for name in data.__all__ if name not in RECORDS | {"Compose"}])
def test_each_parameter_is_named(name: str) -> None:
    found: Any = getattr(data, name)
    sections = sections_of(found)
    assert sections["Summary"].strip()
    assert sorted(documented(sections["Parameters"])) == sorted(inspect.signature(found).parameters)
    if inspect.isfunction(found):
        assert sections["Returns"].strip()
        assert sections["Raises"].strip()


def test_each_name_is_there() -> None:
    assert data.__all__ == sorted(data.__all__)
    assert all(getattr(data, name).__module__.startswith("gpucnn.data.") for name in data.__all__)
