"""Listeners: per-thread hooks on the arrays and launches of calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
Array = Any


class Listener(Protocol):
    """Hooks on the new arrays and the launches of calls."""

    def new(self, make: Callable[..., Array], shape: tuple[int, ...], dtype: Any, zeros: bool) -> Array:
        """A new array as returned by ``make(shape, dtype)``, zeroed or uninitialised."""

    def launched(self, plan: Any, arrays: Sequence[Array | None]) -> bool:
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
def listening(listener: Listener | None) -> Iterator[None]:
    """Context in which `listener` records this thread's calls, or None does."""
    before, this_thread.listener = this_thread.listener, listener
    try:
        yield
    finally:
        this_thread.listener = before


def note_computed() -> None:
    """Notify the listener that a result is computed without a launch."""
    if this_thread.listener is not None:
        this_thread.listener.computed()


def computing(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, which computes without a launch, and notifies the listener of that."""

    @wraps(function)
    def noted(*arguments: P.args, **named: P.kwargs) -> R:
        note_computed()
        return function(*arguments, **named)

    return noted


def read(*constants: Array | None) -> None:
    """Notify the listener of arrays that are the same for all calls of one form."""
    if this_thread.listener is not None:
        this_thread.listener.constants([array for array in constants if array is not None])
