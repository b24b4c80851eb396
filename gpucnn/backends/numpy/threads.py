"""Threads of the NumPy backend: one pool for the process, whose threads take pieces of the caller's work.

NumPy lets go of the interpreter's lock within copies, arithmetic and products of matrices, so pieces that consist of
few large calls run side by side. How work is cut never depends on the number of threads, and the pieces write to places
of their own: results have the same bits whatever the number of threads.

BLAS has threads too, and where it used them its sums could be cut in another way. So while pieces run each of its
products takes one thread.
"""

from __future__ import annotations

import contextvars
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

__all__ = ["get_num_threads", "one_blas_thread", "run", "set_num_threads"]

Item = TypeVar("Item")

_VARIABLES = ("GPUCNN_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_num_threads: int | None = None  # None until somebody asks or sets it


def get_num_threads() -> int:
    """How many threads an operation on NumPy arrays may use.

    Returns
    -------
    int
        What `set_num_threads` set; else ``GPUCNN_NUM_THREADS``, else the least that the environment allows BLAS
        (``OMP_NUM_THREADS``, ``OPENBLAS_NUM_THREADS``, ``MKL_NUM_THREADS``) and no more than the process has CPUs.

    Examples
    --------
    >>> get_num_threads() >= 1
    True
    """
    global _num_threads
    if _num_threads is None:
        _num_threads = _default()
    return _num_threads


def set_num_threads(threads: int) -> None:
    """Let operations on NumPy arrays use up to `threads` threads; results do not depend on it, not by a bit.

    Parameters
    ----------
    threads : int
        At least 1. It holds for the process: all of its threads that call operations share one pool.

    Raises
    ------
    TypeError
        `threads` is no integer.
    ValueError
        It is less than 1.

    Notes
    -----
    While an operation multiplies matrices, NumPy's BLAS is held to one thread in the whole process, and set back
    afterwards. After a fork the child starts threads of its own.

    Examples
    --------
    >>> before = get_num_threads()
    >>> set_num_threads(1)
    >>> get_num_threads()
    1
    >>> set_num_threads(before)
    """
    global _num_threads
    if isinstance(threads, bool) or not hasattr(threads, "__index__"):
        raise TypeError(f"set_num_threads: threads is {threads!r}, expected an integer")
    if (count := threads.__index__()) < 1:
        raise ValueError(f"set_num_threads: threads is {count}, expected at least 1")
    _num_threads = count


def _default() -> int:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own, *of_blas = (os.environ.get(name, "").partition(",")[0].strip() for name in _VARIABLES)
    if own.isdecimal() and int(own):
        return int(own)
    return min([cpus, *(int(value) for value in of_blas if value.isdecimal() and int(value))])


# --- Work ---------------------------------------------------------------------------------------------------------


class _Job:
    """Items of one call, handed out one by one to whichever thread asks next."""

    def __init__(self, task: Callable[[Any], object], items: Sequence[Any]) -> None:
        self._task = task
        self._items = iter(items)
        self._lock = threading.Lock()
        self._idle = threading.Lock()  # held while threads of the pool are at work
        self._helpers = 0
        self.error: BaseException | None = None

    def help(self) -> None:
        """What a thread of the pool does: join, work, and tell the caller when the last one has left."""
        with self._lock:
            if self._items is _NONE:
                return  # all was done before this thread woke up
            self._helpers += 1
            if self._helpers == 1:
                self._idle.acquire()
        self.work()
        with self._lock:
            self._helpers -= 1
            if self._helpers == 0:
                self._idle.release()

    def work(self) -> None:
        """Take items until there are none left, or until one has failed."""
        while True:
            with self._lock:
                item = next(self._items, _NONE)
                if item is _NONE:
                    self._items = _NONE
                    return
            try:
                self._task(item)
            except BaseException as error:
                with self._lock:
                    self.error = self.error or error
                    self._items = _NONE
                return

    def wait(self) -> None:
        """Until no thread of the pool is at it any more."""
        with self._idle:
            pass


_NONE: Any = iter(())


class _Pool:
    """Threads that wait for jobs to help with."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[contextvars.Context, _Job]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0

    def offer(self, job: _Job, helpers: int) -> None:
        """Let up to `helpers` threads help with `job`, in the caller's context (NumPy's errstate is part of it)."""
        if self._threads < helpers:
            with self._lock:
                while self._threads < helpers:
                    self._threads += 1
                    threading.Thread(target=self._serve, name=f"gpucnn-{self._threads}", daemon=True).start()
        for _ in range(helpers):
            self._jobs.put((contextvars.copy_context(), job))

    def _serve(self) -> None:
        _here.nested = True
        for library in _libraries():
            if library.threading_layer == "openmp":  # there the number is each thread's own
                library.set_num_threads(1)
        while True:
            context, job = self._jobs.get()
            context.run(job.help)
            del context, job  # or its arrays would live until the next job


class _Here(threading.local):
    nested = False  # whether this thread is already at a job: what it runs is not cut further


_here = _Here()
_pool = _Pool()


def run(task: Callable[[Item], object], items: Sequence[Item]) -> None:
    """Call ``task(item)`` for each item, on as many threads as `set_num_threads` allows, in no certain order.

    A thread of the pool takes some 50 us to wake up, and each NumPy call of a task should take 20 us or more, or the
    threads wait for the interpreter's lock. A single item runs at once, in the caller's thread.

    Tasks write to disjoint memory. The caller's thread takes its part; the first exception ends the work and is raised.
    A task that itself calls `run` does those items one after the other. BLAS uses one thread within tasks.

    Examples
    --------
    >>> squares = [0] * 4
    >>> run(lambda i: squares.__setitem__(i, i * i), range(4))
    >>> squares
    [0, 1, 4, 9]
    """
    if _here.nested:
        for item in items:
            task(item)
        return
    with one_blas_thread():
        helpers = min(get_num_threads(), len(items)) - 1
        if helpers < 1:
            for item in items:
                task(item)
            return
        job = _Job(task, items)
        _pool.offer(job, helpers)
        _here.nested = True
        try:
            job.work()
        finally:
            _here.nested = False
            job.wait()
    if job.error is not None:
        raise job.error


# --- BLAS ---------------------------------------------------------------------------------------------------------


class _Blas:
    """The BLAS libraries of the process, held to one thread while anyone needs that."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.before: list[int] = []


_blas = _Blas()


@cache
def _libraries() -> list[Any]:
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]  # looks at every library: when needed

    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within the block, products of matrices take one thread each, in every thread of the process."""
    libraries = _libraries()
    with _blas.lock:
        _blas.users += 1
        if _blas.users == 1:
            _blas.before = [library.get_num_threads() for library in libraries]
            for library, before in zip(libraries, _blas.before, strict=True):
                if before != 1:
                    library.set_num_threads(1)
    try:
        yield
    finally:
        with _blas.lock:
            _blas.users -= 1
            if _blas.users == 0:
                for library, before in zip(libraries, _blas.before, strict=True):
                    if before != 1:
                        library.set_num_threads(before)


def _start_anew() -> None:
    """In the child of a fork only the thread that forked is left, and locks may be held by those that are not."""
    global _pool, _blas
    held, libraries = _blas, _libraries() if _libraries.cache_info().currsize else []
    _pool, _blas = _Pool(), _Blas()
    if held.users:  # by operations that the child does not have
        for library, before in zip(libraries, held.before, strict=True):
            library.set_num_threads(before)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
