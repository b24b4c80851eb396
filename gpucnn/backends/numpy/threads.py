"""Thread pool of the NumPy backend: one per process, whose threads take pieces of the caller's work.

NumPy releases the interpreter's lock within copies, arithmetic and matrix products, so pieces that consist of few large
calls run in parallel. The partition of the work never depends on the number of threads, and pieces write to disjoint
memory: results are bitwise the same for any number of threads.

BLAS is multithreaded too, which could change the order of its sums. So while pieces run, each matrix product takes one
thread. That holds for the BLAS libraries that threadpoolctl knows: OpenBLAS, MKL, BLIS and FlexiBLAS (Apple's
Accelerate is left as it is).

Guarantees of `run`:

- Several threads may call it concurrently. Each works on its own items, helped by idle threads of the pool, waits for
  none that is busy elsewhere, and gets only the exceptions of its items.
- ``np.errstate`` and all context variables of the caller hold for its items, whichever thread takes them. Filters of
  warnings are the process's; from Python 3.14 on those of ``warnings.catch_warnings`` can be a context variable too.
- When it returns or raises, even KeyboardInterrupt, no thread works on its items or keeps them alive, and BLAS has the
  number of threads that the user set, unless other threads are still within `run`.
- A process may fork while some of its threads are within `run`: the child starts new threads when it needs them, and
  its BLAS has the user's number.
- Idle threads do not keep the interpreter from exiting; where no thread can be started the caller does all the work.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar, copy_context
from ctypes import PYFUNCTYPE, c_int
from functools import cache, partial
from importlib.util import find_spec
from itertools import product
from queue import SimpleQueue
from typing import Any, TypeVar

from gpucnn.geometry.arguments import integer

__all__ = [
    "blas_libraries", "get_num_threads", "results_of", "run", "set_num_threads", "usable_cores",
]  # fmt: skip

Item = TypeVar("Item")
Result = TypeVar("Result")

_num_threads: int | None = None  # None until somebody asks or sets it


def get_num_threads() -> int:
    """Number of threads that an operation on NumPy arrays may use.

    Returns
    -------
    int
        What `set_num_threads` set; else the environment's ``GPUCNN_NUM_THREADS``; else the least number that it gives
        to BLAS (``OMP_NUM_THREADS``, ``OPENBLAS_NUM_THREADS``, ``MKL_NUM_THREADS``), and no more than the CPUs that the
        process may use. The environment is read once.

    Raises
    ------
    ValueError
        ``GPUCNN_NUM_THREADS`` is neither empty nor an integer of at least 1. The other variables are not gpucnn's:
        invalid values there are ignored, as BLAS does.

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
    """Let operations on NumPy arrays use up to `threads` threads; results are bitwise independent of it.

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
    While an operation runs, NumPy's BLAS is limited to one thread, in the whole process with most builds of BLAS, and
    restored afterwards: change its number of threads while no operation runs. The child of a fork keeps the setting and
    starts new threads.

    Examples
    --------
    >>> before = get_num_threads()
    >>> set_num_threads(1)
    >>> get_num_threads()
    1
    >>> set_num_threads(before)
    """
    global _num_threads
    _num_threads = integer("set_num_threads", "threads", threads, 1)


def _default() -> int:
    if own := os.environ.get("GPUCNN_NUM_THREADS", "").strip():
        if not own.isdecimal() or int(own) < 1:
            raise ValueError(f"GPUCNN_NUM_THREADS is {own!r}, expected an integer of at least 1")
        return int(own)
    of_blas = (os.environ.get(f"{name}_NUM_THREADS", "") for name in ("OMP", "OPENBLAS", "MKL"))
    outermost = (value.partition(",")[0].strip() for value in of_blas)  # "4,2" is 4, and 2 in each of those
    return min([usable_cores(), *(int(value) for value in outermost if value.isdecimal() and int(value))])


def usable_cores() -> int:
    """Cores that this process may use.

    Examples
    --------
    >>> usable_cores() >= 1
    True
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- Work ---------------------------------------------------------------------------------------------------------


def run(task: Callable[[Item], object], items: Sequence[Item]) -> None:
    """Call ``task(item)`` for each item, on as many threads as `set_num_threads` allows, in no certain order.

    A thread of the pool takes some 50 us to wake up, and each NumPy call of a task should take 20 us or more, or the
    threads wait for the interpreter's lock. A single item runs immediately, in the caller's thread.

    Tasks write to disjoint memory, do not wait for each other and do not fork. The caller's thread works too. A task
    that itself calls `run` executes those items sequentially. BLAS uses one thread within tasks.

    After an exception no further item is started. It is raised when the running items are done, the first one if there
    are several; only an interrupt (any exception that is no `Exception`) takes precedence.

    Examples
    --------
    >>> squares = [0] * 4
    >>> run(lambda i: squares.__setitem__(i, i * i), range(4))
    >>> squares
    [0, 1, 4, 9]
    """
    helpers = 0 if _nested.get() else min(get_num_threads(), len(items)) - 1
    with _one_blas_thread():
        if helpers < 1:
            for item in items:
                task(item)
            return
        job = _Job(task, items, helpers)
        try:
            _pool.offer(job)
            job.context.run(job.work)
        finally:
            job.finish()
        if job.errors:
            try:
                raise min(job.errors, key=lambda error: isinstance(error, Exception))  # the first of those
            finally:
                job.errors.clear()  # a traceback holds this frame: no cycle that keeps arrays until they are collected


def results_of(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """``function(item)`` for each item, in their order, by the threads of `run`.

    Examples
    --------
    >>> results_of(lambda i: i * i, range(4))
    [0, 1, 4, 9]
    """
    results: list[Any] = [None] * len(items)
    run(lambda i: results.__setitem__(i, function(items[i])), range(len(items)))
    return results


_nested = ContextVar("gpucnn: within a task, whose own items are not shared", default=False)


class _Job:
    """The items of one `run`, which the caller's thread and those that help take one by one."""

    def __init__(self, task: Callable[[Any], object], items: Sequence[Any], helpers: int) -> None:
        self.task: Any = task
        self.items = deque(items)  # none once one has failed
        self.errors: list[BaseException] = []
        self.locks = [threading.Lock() for _ in range(helpers)]  # each is held by a thread while it helps
        self.context: Any = copy_context()
        self.context.run(_nested.set, True)

    def work(self) -> None:
        """Take items until there are none left."""
        try:
            while True:
                try:
                    item = self.items.popleft()
                except IndexError:
                    return
                self.task(item)
        except BaseException as error:
            self.items.clear()
            self.errors.append(error)

    def help(self, lock: threading.Lock) -> None:
        """Work in the caller's context, as a thread of the pool."""
        with lock:
            if self.items:  # else all was done before this thread woke up
                self.context.copy().run(self.work)  # a copy, as no two threads can be in one context

    def finish(self) -> None:
        """Wait for the threads that help, and release the caller's objects."""
        try:
            self.items.clear()
            for lock in self.locks:
                with lock:  # who takes it later finds no items
                    pass
        except BaseException:  # an interrupt: still, the items under way write to the caller's arrays
            self.finish()
            raise
        self.task = self.context = None


class _Pool:
    """Threads that wait for jobs to help with."""

    BACKLOG = 256  # finished jobs that wait for busy threads to skip them: with more, jobs run without helpers

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[_Job, threading.Lock]] = SimpleQueue()
        self._lock = threading.RLock()
        self._threads = 0

    def offer(self, job: _Job) -> None:
        """Let as many threads help with `job` as it has locks."""
        with self._lock, suppress(RuntimeError):  # no more can be started, or the interpreter is ending
            while self._threads < len(job.locks):
                thread = threading.Thread(target=self._serve, name=f"gpucnn-{self._threads + 1}", daemon=True)
                Context().run(thread.start)  # from an empty context: it could keep the caller's for good
                self._threads += 1
        if self._jobs.qsize() < self.BACKLOG:
            for lock in job.locks[: self._threads]:
                self._jobs.put((job, lock))

    def _serve(self) -> None:
        for _, put in _libraries()[1]:
            put(1)
        while True:
            _Job.help(*self._jobs.get())


_pool = _Pool()


# --- BLAS ---------------------------------------------------------------------------------------------------------


_Put = Callable[[int], object]
_Functions = tuple[Callable[[], int], _Put]  # that get and set a number of threads


class _Blas:
    """Who needs NumPy's BLAS to run on one thread, and what sets its number back."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.users: set[object] = set()
        self.before: list[tuple[_Put, int]] = []


_blas = _Blas()


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Within the block, products take one thread each.

    At any point another thread may fork, and an interrupt or a re-entrant finaliser may intervene: so what sets a
    number back is recorded before it is set, and cleared after it has been restored.
    """
    blas, user = _blas, object()
    of_process, of_threads = _libraries()
    of_this_thread: list[tuple[_Put, int]] = []
    try:
        with blas.lock:
            blas.users.add(user)
            for get, put in of_process:
                if (threads := get()) > 1:  # not held by another user
                    blas.before.append((put, threads))
                    put(1)
        try:
            for get, put in of_threads:
                of_this_thread.append((put, get()))
                put(1)
            yield
        finally:
            for put, threads in of_this_thread:
                put(threads)
    finally:
        with blas.lock:
            blas.users.discard(user)
            if not blas.users:  # else the last one sets the numbers back
                for put, threads in blas.before:
                    put(threads)
                blas.before = []


def blas_libraries() -> list[Any]:
    """The BLAS libraries that NumPy may use, by threadpoolctl: those in its wheel, else all of the process."""
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]  # looks at every library: when needed

    numpy = find_spec("numpy")
    folder = os.path.dirname(os.path.realpath(numpy.origin)) if numpy and numpy.origin else ""
    libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    return [library for library in libraries if library.filepath.startswith(folder)] or list(libraries)


@cache
def _libraries() -> tuple[list[_Functions], list[_Functions]]:
    """Those of libraries with one number of threads for the process, and of libraries with one for each thread."""
    found: tuple[list[_Functions], list[_Functions]] = ([], [])
    for library in blas_libraries():
        found[library.internal_api in ("mkl", "blis") or _uses_openmp(library)].append(_functions(library))
    return found


def _uses_openmp(library: Any) -> bool:
    return bool(library.internal_api == "openblas" and library.threading_layer == "openmp")


def _functions(library: Any) -> _Functions:
    """Getter and setter of a library's number of threads.

    OpenBLAS's own are called here. threadpoolctl's, from 3.8 on, set it for the first thread that calls them and do
    nothing for all others; before, they took OpenMP's number for the process's. PYFUNCTYPE keeps the interpreter's
    lock, for which calls as short as these would have to queue again.
    """
    names = [
        (f"{prefix}openblas_get_num_threads{suffix}", f"{prefix}openblas_set_num_threads{suffix}")
        for prefix, suffix in product(("", "scipy_"), ("", "64_", "_64"))
    ]
    if _uses_openmp(library):
        names = [("omp_get_max_threads", "omp_set_num_threads")]
    asks, sets = PYFUNCTYPE(c_int), PYFUNCTYPE(None)
    for get, put in names:
        with suppress(AttributeError):
            return asks((get, library.dynlib)), sets((put, library.dynlib))
    if library.internal_api == "mkl":  # setting returns the thread's number, which is 0 while the process's applies
        return partial(library.set_num_threads, 0), library.set_num_threads
    return lambda: library.get_num_threads() or 1, library.set_num_threads


def _start_anew() -> None:
    """Reset the state in the child of a fork: only the forking thread is left; others may have held locks."""
    global _pool, _blas
    held, _pool, _blas = _blas, _Pool(), _Blas()
    for put, threads in held.before:  # for work that the child does not have
        put(threads)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
