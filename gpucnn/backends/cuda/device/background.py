"""Compilation in the background: a thread compiles specialised programs while generic builds serve.

The thread calls the compiler and nothing of CUDA: the next call that wants a program loads it. So no context, stream or
capture of another thread is touched. NVRTC, called by ctypes, runs without the interpreter's lock.
"""

from __future__ import annotations

import atexit
import os
import threading
import warnings
from collections import deque
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol
from weakref import WeakSet

from gpucnn.backends.cuda.device.sources import Source

EXIT_SECONDS = 10.0  # that the program's end waits for the compilation in progress, at most

_Program = tuple[Source, Hashable]  # and its device
_WAITING, _BUILT = "waiting", "built"


class _Runtime(Protocol):
    """A runtime, as far as it is needed here."""

    def prepare(self, source: Source, device: Any) -> bool:
        """Compile `source` for `device`."""

    def is_built(self, source: Source, device: Any) -> bool:
        """Whether `source` needs no compilation."""

    def is_capturing(self) -> bool:
        """Whether the current stream is being captured."""


_at_once: ContextVar[bool] = ContextVar("gpucnn_at_once", default=False)


@contextmanager
def at_once() -> Iterator[None]:
    """Within the block, calls wait for the programs that they launch, as they do without a background."""
    token = _at_once.set(True)
    try:
        yield
    finally:
        _at_once.reset(token)


class Background:
    """The thread of a runtime, which exists while there are programs to compile, and compiles them in order."""

    def __init__(self, runtime: _Runtime) -> None:
        self._runtime = runtime
        self._warned = False
        self.forget()
        _all.add(self)

    def forget(self) -> None:
        """Begin anew, in a forked process: it has no thread, and the lock may have been taken."""
        self._lock = threading.Lock()
        self._states: dict[_Program, str | Exception] = {}
        self._queue: deque[_Program] = deque()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def is_ready(self, source: Source, device: Hashable, recurs: bool) -> bool:
        """Whether to launch the specialised program of `source`, and not the generic one.

        It is where it is compiled already, within `at_once`, and where a stream is being captured, since a graph keeps
        what it captured. Otherwise the thread compiles it if it `recurs`: sizes that never do are not worth that.
        """
        if _at_once.get():
            return True
        program = (source, device)
        state = self._states.get(program)
        if isinstance(state, Exception):
            self._warn(source, state)
            return False
        if state == _BUILT or self._runtime.is_capturing():
            return True
        if state is None:
            if self._runtime.is_built(source, device):
                return True
            if recurs:
                self._ask(program)
        return False

    def wait(self, timeout: float | None = None) -> None:
        """Wait until what was asked for so far is compiled."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(timeout)

    def stop(self) -> None:
        """Compile nothing more: the process ends, which crashes NVRTC if it is unloaded while it compiles."""
        with self._lock:
            self._stopped = True
            self._queue.clear()
        self.wait(EXIT_SECONDS)

    def _ask(self, program: _Program) -> None:
        with self._lock:
            if self._stopped or program in self._states:  # of another thread that was quicker
                return
            self._states[program] = _WAITING
            self._queue.append(program)
            if self._thread is None:
                thread = threading.Thread(target=self._compile, name="gpucnn-compiler", daemon=True)
                thread.start()  # it waits for the lock
                self._thread = thread

    def _compile(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._thread = None
                    return
                program = self._queue.popleft()
            try:
                self._runtime.prepare(*program)
                self._states[program] = _BUILT
            except Exception as error:  # its generic build stays
                self._states[program] = error

    def _warn(self, source: Source, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"gpucnn: {source.name} could not be compiled in the background ({type(error).__name__}: {error}); its "
                "generic build stays, and those of others that cannot be, without further warnings",
                RuntimeWarning,
                stacklevel=2,
            )


_all: WeakSet[Background] = WeakSet()


def wait() -> None:
    """Wait until nothing is left to compile in the background, of any runtime."""
    for background in list(_all):
        background.wait()


def _stop() -> None:
    for background in list(_all):
        background.stop()


def _forget() -> None:
    for background in list(_all):
        background.forget()


atexit.register(_stop)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget)
