"""The code of a page, run once: figures of measured things show the page's own numbers."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1]


def names(page: str) -> dict[str, Any]:
    """What the ```python blocks of `page`.md have defined when they have all run."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    defined: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile("\n".join(blocks), page, "exec"), defined)
    return defined
