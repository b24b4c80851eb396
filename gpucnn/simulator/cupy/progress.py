"""The steps of a long command, each with the time that it took, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


def _console() -> Any:
    """Rich's console for a terminal; None without a terminal or without Rich."""
    if not sys.stderr.isatty():
        return None
    try:
        return import_module("rich.console").Console(stderr=True, highlight=False)
    except ImportError:
        return None


class Progress:
    """Reports steps: at a terminal with Rich the running one turns, else a line follows each."""

    def __init__(self) -> None:
        self.console = _console()
        self.started = time.monotonic()

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Report `what` and the seconds that the block took."""
        began = time.monotonic()
        if self.console:
            with self.console.status(what):
                yield
        else:
            yield
        line = f"{time.monotonic() - began:6.1f} s  {what}"
        if self.console:
            self.console.print(line, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def seconds(self) -> float:
        """The time since the start."""
        return time.monotonic() - self.started
