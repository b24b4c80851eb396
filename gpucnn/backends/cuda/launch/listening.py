"""Listeners: per-thread hooks on the arrays and launches of calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from gpucnn.backends.cuda.device.runtime import Array, Plan


class Listener(Protocol):
    """Hooks on all requests of calls to their runtime."""

    def new(self, make: Callable[..., Array], shape: tuple[int, ...], dtype: Any, zeros: bool) -> Array:
        """A new array as returned by ``make(shape, dtype)``, zeroed or uninitialised."""

    def launched(self, plan: Plan, arrays: Sequence[Array | None]) -> bool:
        """Record a launch over `arrays`; return whether to launch it."""

    def constants(self, arrays: Sequence[Array]) -> None:
        """Record arrays that launches will read, the same ones for all calls of one form."""

    def computed(self) -> None:
        """Record that a result was computed without a launch."""


class _Thread(threading.local):
    listener: Listener | None = None


this_thread = _Thread()
"""The listener of each thread's calls, if any."""


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Context in which `listener` records this thread's calls."""
    before, this_thread.listener = this_thread.listener, listener
    try:
        yield
    finally:
        this_thread.listener = before


def note_computed() -> None:
    """Notify the listener that a result is computed without a launch."""
    if this_thread.listener is not None:
        this_thread.listener.computed()


def read(*constants: Array) -> None:
    """Notify the listener of arrays that are the same for all calls of one form."""
    if this_thread.listener is not None:
        this_thread.listener.constants(constants)
