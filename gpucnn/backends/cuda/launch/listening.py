"""Listeners: what hears of the arrays and launches that a thread's calls ask for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from gpucnn.backends.cuda.device.runtime import Array, Plan

_state = threading.local()


class Listener(Protocol):
    """What hears of all that calls ask of their runtime."""

    def new(self, make: Callable[..., Array], shape: tuple[int, ...], dtype: Any, zeros: bool) -> Array:
        """A new array as ``make(shape, dtype)`` returns it, of zeros or uninitialised."""

    def launched(self, plan: Plan, arrays: Sequence[Array | None]) -> bool:
        """Hear of a launch over `arrays`; whether it is to be made."""

    def constants(self, arrays: Sequence[Array]) -> None:
        """Hear of arrays that launches are about to read, the same ones for all calls of the same form."""

    def computed(self) -> None:
        """Hear that something was computed by other means than a launch."""


def current() -> Listener | None:
    """What listens to this thread's calls, if anything does."""
    return getattr(_state, "listener", None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within the block, `listener` hears of this thread's calls."""
    before = current()
    _state.listener = listener
    try:
        yield
    finally:
        _state.listener = before


def note_computed() -> None:
    """Tell the listener that something is computed by other means than a launch."""
    listener = current()
    if listener is not None:
        listener.computed()


def read(*constants: Array) -> None:
    """Tell the listener of arrays that are the same for all calls of the same form."""
    listener = current()
    if listener is not None:
        listener.constants(constants)
