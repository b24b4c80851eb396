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

import contextvars
import ctypes
import os
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from importlib.util import find_spec
from itertools import product
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
    if _here.nested:
        for item in items:
            task(item)
        return
    helpers = min(get_num_threads(), len(items)) - 1 if len(items) > 1 else 0
    with _OneBlasThread():
        if helpers < 1:
            for item in items:
                task(item)
            return
        job = _Job(task, items)
        _here.nested = True
        try:
            _pool.offer(job, helpers)
            job.work()
        except BaseException as error:
            job.fail(error)
        finally:
            _here.nested = False
            job.finish()
    if job.error is not None:
        try:
            raise job.error
        finally:
            job.error = None  # its traceback holds this frame: no cycle that keeps arrays until they are collected


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


class _Job:
    """The items of one `run`, handed out one by one to whichever thread asks next.

    It is closed once items have run out, one has failed or the caller gives up. As threads of the pool leave only a
    closed job, and join only an open one, their number rises, then falls, and comes back to 0 no more than once.
    """

    def __init__(self, task: Callable[[Any], object], items: Sequence[Any]) -> None:
        self._task: Any = task
        self._items = iter(items)
        self._context: Any = contextvars.copy_context()
        self._lock = threading.Lock()
        self._helpers = 0
        self._left = threading.Lock()  # released by the last helper
        self._left.acquire()
        self.error: BaseException | None = None

    def work(self) -> None:
        """Take items until there are none left."""
        task = self._task
        while True:
            with self._lock:
                item = next(self._items, _NONE)
                if item is _NONE:
                    self._items = _NONE
                    return
            task(item)

    def fail(self, error: BaseException) -> None:
        """Start no further items."""
        with self._lock:
            self._items = _NONE
            if self.error is None or not isinstance(error, Exception):
                self.error = error

    def help(self) -> None:
        """Join, work in the caller's context and leave, as a thread of the pool."""
        with self._lock:
            if self._items is _NONE:
                return  # all was done before this thread woke up
            self._helpers += 1
        try:
            for swap in _blas.own:
                swap(1)
            self._context.copy().run(self.work)  # a copy, as no two threads can be in one context
        except BaseException as error:
            self.fail(error)
        with self._lock:
            self._helpers -= 1
            if self._helpers == 0:
                self._left.release()

    def finish(self) -> None:
        """Close, wait until all threads of the pool have left, and release the caller's objects."""
        try:
            with self._lock:
                self._items = _NONE
                helped = self._helpers > 0
            if helped:
                self._left.acquire()
        except BaseException:  # an interrupt: still, the items under way write to the caller's arrays
            self.finish()
            raise
        self._task = self._context = None


_NONE: Any = iter(())  # both the items of a closed job and what comes after the last one


class _Pool:
    """Threads that wait for jobs to help with."""

    # Most finished jobs still queued for a busy thread to skip: later jobs run without helpers.
    BACKLOG = 256

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._lock = threading.RLock()
        self._threads = 0

    def offer(self, job: _Job, helpers: int) -> None:
        """Let up to `helpers` threads help with `job`."""
        if self._threads < helpers:
            self._start(helpers)
        for _ in range(min(helpers, self._threads, self.BACKLOG - self._jobs.qsize())):
            self._jobs.put(job)

    def _start(self, threads: int) -> None:
        with self._lock, suppress(RuntimeError):  # no more can be started, or the interpreter is ending
            while self._threads < threads:
                thread = threading.Thread(target=self._serve, name=f"gpucnn-{self._threads + 1}", daemon=True)
                contextvars.Context().run(thread.start)  # from an empty context: it could keep the caller's for good
                self._threads += 1

    def _serve(self) -> None:
        _here.nested = True
        while True:
            self._jobs.get().help()


class _Here(threading.local):
    nested = False  # whether this thread is already at a job: what it runs is not cut further


_here = _Here()
_pool = _Pool()


# --- BLAS ---------------------------------------------------------------------------------------------------------


_Get = Callable[[], int]
_Set = Callable[[int], object]
_Swap = Callable[[int], int]  # sets a number of threads and returns the value that restores it


class _Blas:
    """NumPy's BLAS, and the users that need it to run on one thread."""

    def __init__(self, shared: Sequence[tuple[_Get, _Set]] | None = None, own: Sequence[_Swap] = ()) -> None:
        self.shared = shared  # libraries with one number for the process; None until they have been looked for
        self.own = own  # libraries with a number for each thread
        self.before: list[tuple[_Set, int]] = []  # what sets the first back
        self.users: set[_OneBlasThread] = set()
        self.lock = threading.RLock()


class _OneBlasThread(AbstractContextManager[None]):
    """Within the block, products take one thread each; it takes 1 us, where threadpoolctl's calls took 4.5.

    At any point another thread may fork, and an interrupt or a re-entrant finaliser may intervene: so what sets a
    number back is recorded before it is set, and cleared after it has been restored.
    """

    __slots__ = ("_own",)

    def __enter__(self) -> None:
        self._own: list[tuple[_Swap, int]] = []
        blas = _blas
        try:
            with blas.lock:
                if blas.shared is None:
                    blas.shared, blas.own = _find()
                blas.users.add(self)
                for get, put in blas.shared:
                    if (threads := get()) > 1:  # not held by another user
                        blas.before.append((put, threads))
                        put(1)
            for swap in blas.own:
                self._own.append((swap, swap(1)))
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *exception: object) -> None:
        try:
            for swap, before in self._own:
                swap(before)
        finally:
            blas = _blas
            with blas.lock:
                numbers = blas.before
                blas.users.discard(self)
                if not blas.users:  # else the last one sets the numbers back
                    for put, threads in numbers:
                        put(threads)
                    blas.before = []


_blas = _Blas()


def blas_libraries() -> list[Any]:
    """The BLAS libraries that NumPy may use, by threadpoolctl: those in its wheel, else all of the process."""
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]  # looks at every library: when needed

    numpy = find_spec("numpy")
    folder = os.path.dirname(os.path.realpath(numpy.origin)) if numpy and numpy.origin else ""
    libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    return [library for library in libraries if library.filepath.startswith(folder)] or list(libraries)


def _find() -> tuple[list[tuple[_Get, _Set]], list[_Swap]]:
    """Setters of the number of threads of the `blas_libraries`: per process, or per calling thread."""
    libraries = blas_libraries()
    own = [library for library in libraries if library.internal_api in ("mkl", "blis") or _uses_openmp(library)]
    return [_functions(library) for library in libraries if library not in own], [_swap(library) for library in own]


def _uses_openmp(library: Any) -> bool:
    return bool(library.internal_api == "openblas" and library.threading_layer == "openmp")


def _functions(library: Any) -> tuple[_Get, _Set]:
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
    asks, sets = ctypes.PYFUNCTYPE(ctypes.c_int), ctypes.PYFUNCTYPE(None)
    for get, put in names:
        with suppress(AttributeError):
            return asks((get, library.dynlib)), sets((put, library.dynlib))
    return lambda: library.get_num_threads() or 1, library.set_num_threads


def _swap(library: Any) -> _Swap:
    if library.internal_api == "mkl":  # returns the thread's number, which is 0 while the process's applies
        swap: _Swap = library.set_num_threads
        return swap
    get, put = _functions(library)

    def exchange(threads: int) -> int:
        before = get()
        put(threads)
        return before

    return exchange


def _start_anew() -> None:
    """Reset the state in the child of a fork: only the forking thread is left; others may have held locks."""
    global _pool, _blas
    before = _blas.before
    _pool, _blas = _Pool(), _Blas(_blas.shared, _blas.own)
    for put, threads in before:  # held for work that the child does not have
        put(threads)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
