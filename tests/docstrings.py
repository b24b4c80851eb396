"""Parts of docstrings in NumPy's style."""

from __future__ import annotations

import inspect
import re
from typing import Any

SECTION = re.compile(r"^(\w[\w ]*)\n-+$", re.MULTILINE)


def sections_of(function: Any) -> dict[str, str]:
    """The sections of a docstring in NumPy's style."""
    text = inspect.cleandoc(function.__doc__)
    first, *rest = SECTION.split(text)
    return {"Summary": first, **dict(zip(rest[::2], rest[1::2], strict=True))}


def documented(section: str) -> list[str]:
    """The names that a section of parameters lists."""
    lines = [line for line in section.splitlines() if line and not line.startswith(" ")]
    return [name.strip() for line in lines for name in line.partition(" : ")[0].split(",")]
