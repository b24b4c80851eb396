"""The NumPy backend's threads: how many, who does what, and what others notice of it: nothing."""

from __future__ import annotations

import contextvars
import faulthandler
import gc
import os
import random
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import threadpoolctl

import gpucnn
from gpucnn.backends.numpy import threads

LONG = 60.0  # seconds after which something hangs, on any machine


@pytest.fixture(autouse=True)
def pool(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[threads._Pool]:
    """A pool of the test's own, and the process's number of threads as it was; a test that hangs ends the suite."""
    before = gpucnn.get_num_threads()
    monkeypatch.setattr(threads, "_pool", pool := threads._Pool())
    with capfd.disabled():
        stderr = os.dup(sys.__stderr__.fileno())
    faulthandler.dump_traceback_later(4 * LONG, exit=True, file=stderr)
    yield pool
    faulthandler.cancel_dump_traceback_later()
    os.close(stderr)
    gpucnn.set_num_threads(before)


def side_by_side(*functions: Callable[[], object]) -> None:
    """Call each in a thread of its own; one that hangs, or raises, fails the test."""
    errors: list[BaseException] = []

    def call(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    callers = [threading.Thread(target=call, args=(function,), daemon=True) for function in functions]
    for caller in callers:
        caller.start()
    deadline = time.monotonic() + LONG
    for caller in callers:
        caller.join(max(0.0, deadline - time.monotonic()))
    assert not any(caller.is_alive() for caller in callers), "a thread hangs"
    if errors:
        raise errors[0]


def together(count: int) -> Callable[[], object]:
    """What lets `count` tasks go on only once all of them have started: each is on another thread then."""
    barrier = threading.Barrier(count)
    return lambda: barrier.wait(LONG)


# --- How many -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 6),
        ({"GPUCNN_NUM_THREADS": "9"}, 9),  # the user's word: more than there are CPUs
        ({"GPUCNN_NUM_THREADS": " 2 ", "OMP_NUM_THREADS": "1"}, 2),
        ({"GPUCNN_NUM_THREADS": "", "OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"OMP_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "2", "MKL_NUM_THREADS": "3"}, 2),
        ({"OMP_NUM_THREADS": "64"}, 6),
        ({"OMP_NUM_THREADS": "many", "OPENBLAS_NUM_THREADS": "0", "MKL_NUM_THREADS": "-1"}, 6),
    ],
)
def test_the_environment_says_how_many(
    environment: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GPUCNN", "OMP", "OPENBLAS", "MKL"):
        monkeypatch.delenv(f"{name}_NUM_THREADS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    monkeypatch.setattr(threads, "_num_threads", None)
    assert gpucnn.get_num_threads() == expected
    monkeypatch.setenv("GPUCNN_NUM_THREADS", "5")
    assert gpucnn.get_num_threads() == expected  # read once


@pytest.mark.parametrize("nonsense", ["two", "0", "-1", "1.5", "4,2"])
def test_nonsense_in_our_own_variable_is_an_error(nonsense: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUCNN_NUM_THREADS", nonsense)
    monkeypatch.setattr(threads, "_num_threads", None)
    with pytest.raises(ValueError, match=f"GPUCNN_NUM_THREADS is '{nonsense}', expected an integer of at least 1"):
        gpucnn.get_num_threads()
    gpucnn.set_num_threads(2)  # who sets it does not care for the environment
    assert gpucnn.get_num_threads() == 2


def test_how_many_is_an_integer_of_at_least_one() -> None:
    for wrong in (True, 1.0, "2", None, np.array([1])):
        with pytest.raises(TypeError, match=r"set_num_threads: threads is .*, expected an integer"):
            gpucnn.set_num_threads(wrong)  # type: ignore[arg-type]
    for few in (0, -3):
        with pytest.raises(ValueError, match=f"set_num_threads: threads is {few}, expected at least 1"):
            gpucnn.set_num_threads(few)
    gpucnn.set_num_threads(np.int64(3))  # type: ignore[arg-type]
    assert type(gpucnn.get_num_threads()) is int


# --- Who does what ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_item_is_done_once(count: int) -> None:
    gpucnn.set_num_threads(count)
    for length in (0, 1, 2, 3, 50):
        done: list[int] = []
        threads.run(done.append, range(length))
        assert sorted(done) == list(range(length))


def test_as_many_threads_as_set_and_the_caller_is_one_of_them(pool: threads._Pool) -> None:
    for count in (3, 2):  # the pool keeps its threads, and does not use all of them
        gpucnn.set_num_threads(count)
        meet, who = together(count), set()

        def task(item: int) -> None:
            meet()  # noqa: B023 - called before the next round
            who.add(threading.get_ident())  # noqa: B023

        threads.run(task, range(count))
        assert len(who) == count
        assert threading.get_ident() in who
        assert pool._threads == 2
    seen: set[int] = set()
    threads.run(lambda item: (time.sleep(0.001), seen.add(threading.get_ident())), range(30))
    assert len(seen) <= 2


def test_a_single_item_and_a_single_thread_need_no_pool(pool: threads._Pool) -> None:
    who: list[int] = []
    gpucnn.set_num_threads(4)
    threads.run(lambda item: who.append(threading.get_ident()), [0])
    gpucnn.set_num_threads(1)
    threads.run(lambda item: who.append(threading.get_ident()), range(5))
    assert who == [threading.get_ident()] * 6
    assert pool._threads == 0


def test_what_a_task_runs_is_not_cut_further() -> None:
    gpucnn.set_num_threads(3)
    meet = together(3)
    threads.run(lambda item: meet(), range(3))
    meet = together(2)

    def outer(item: int) -> None:
        meet()
        inner: list[int] = []
        threads.run(lambda i: (time.sleep(0.002), inner.append(threading.get_ident())), range(9))
        assert inner == [threading.get_ident()] * 9  # though a third thread is free

    threads.run(outer, range(2))
    meet = together(3)
    threads.run(lambda item: meet(), range(3))  # nested no more


def test_where_no_thread_can_be_started_the_caller_does_all(
    pool: threads._Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    gpucnn.set_num_threads(4)
    monkeypatch.setattr(threading.Thread, "start", start)
    done: list[int] = []
    for _ in range(3):
        threads.run(done.append, range(10))
    assert done == [*range(10)] * 3
    assert pool._jobs.qsize() == 0


def test_a_caller_does_not_wait_for_threads_that_are_busy_elsewhere(pool: threads._Pool) -> None:
    gpucnn.set_num_threads(2)
    meet, end = together(3), threading.Event()
    busy = threading.Thread(target=lambda: threads.run(lambda item: (meet(), end.wait(LONG)), range(2)), daemon=True)
    busy.start()
    meet()
    done: list[int] = []
    side_by_side(lambda: [threads.run(done.append, range(3)) for _ in range(3000)])
    assert len(done) == 9000
    assert pool._jobs.qsize() <= pool.BACKLOG  # what waits for the busy thread does not pile up
    end.set()
    busy.join(LONG)
    meet = together(2)
    threads.run(lambda item: meet(), range(2))  # it passed them over, and is there again


class Written(Sequence[int]):
    """``range(length)`` whose iterator, a generator, suffers no two threads at once."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        return range(self._length)[index]


@pytest.mark.parametrize("items", [range, Written])
def test_many_small_runs_of_several_threads_lose_nothing(items: Callable[[int], Sequence[int]]) -> None:
    """Every wake-up counts: one that is lost hangs a thread, one that comes too early leaves an item undone."""
    gpucnn.set_num_threads(3)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns almost anywhere

    def caller(seed: int) -> None:
        rng = random.Random(seed)
        for turn in range(1500):
            done = [0] * rng.randint(2, 9)
            fails = rng.choice([None, None, None, rng.randrange(len(done))])

            def task(item: int) -> None:
                if item == fails:  # noqa: B023 - called before the next turn
                    raise LookupError(seed, turn)  # noqa: B023
                done[item] += 1  # noqa: B023

            if fails is None:
                threads.run(task, items(len(done)))
                assert done == [1] * len(done)
            else:
                with pytest.raises(LookupError) as caught:
                    threads.run(task, items(len(done)))
                assert caught.value.args == (seed, turn)
                assert done[fails] == 0
                assert max(done) <= 1
            assert not threads._nested.get()

    try:
        side_by_side(*(lambda seed=seed: caller(seed) for seed in range(4)))
    finally:
        sys.setswitchinterval(interval)
    assert not threads._blas.users


# --- Exceptions ---------------------------------------------------------------------------------------------------


def test_the_first_exception_is_raised_and_ends_the_work() -> None:
    gpucnn.set_num_threads(2)
    meet, started, failed = together(2), [], threading.Event()

    def task(item: int) -> None:
        started.append(item)
        if item < 2:
            meet()
        if item == 0:
            failed.set()
            raise KeyError("first")
        failed.wait(LONG)
        time.sleep(0.02)
        raise ValueError("second")

    with pytest.raises(KeyError, match="first") as caught:
        threads.run(task, range(100))
    assert sorted(started) == [0, 1]
    assert caught.value.__context__ is None
    meet = together(2)
    threads.run(lambda item: meet(), range(2))  # the pool is there still


def test_an_interrupt_goes_before_an_error() -> None:
    gpucnn.set_num_threads(2)
    meet, failed, main = together(2), threading.Event(), threading.get_ident()

    def task(item: int) -> None:
        meet()
        if threading.get_ident() == main:
            failed.wait(LONG)
            time.sleep(0.02)
            raise KeyboardInterrupt
        failed.set()
        raise ValueError

    with pytest.raises(KeyboardInterrupt):
        threads.run(task, range(2))


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="the system sends no signal to a thread")
@pytest.mark.parametrize("waiting", [False, True])
def test_ctrl_c_ends_the_work_when_no_thread_is_at_it(waiting: bool) -> None:
    gpucnn.set_num_threads(2)
    meet, main, ended, started = together(2), threading.main_thread().ident, threading.Event(), []
    assert main == threading.get_ident()

    def task(item: int) -> None:
        started.append(item)
        meet()
        if threading.get_ident() == main:
            if not waiting:
                for _ in range(int(LONG / 0.005)):
                    time.sleep(0.005)
            return
        for _ in range(3):  # impatient
            time.sleep(0.03)
            signal.pthread_kill(main, signal.SIGINT)
            if not waiting:
                break
        time.sleep(0.1)
        ended.set()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            threads.run(task, range(2 if waiting else 50))
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.is_set()
    assert len(started) == 2
    assert not threads._nested.get()
    assert not threads._blas.users


# --- What holds within tasks --------------------------------------------------------------------------------------


def test_errstate_and_other_context_of_the_caller_hold_in_every_thread() -> None:
    gpucnn.set_num_threads(2)
    variable = contextvars.ContextVar("variable", default="default")
    meet, found = together(2), []
    zeros = np.zeros(4)

    def task(item: int) -> None:
        meet()
        found.append(variable.get())
        variable.set(f"of task {item}")
        with pytest.raises(FloatingPointError, match="divide by zero"):
            1 / zeros

    variable.set("the caller's")
    with np.errstate(divide="raise"):
        threads.run(task, range(2))
    assert found == ["the caller's"] * 2
    meet, states = together(2), []
    with np.errstate(divide="ignore", invalid="print"):
        threads.run(lambda item: (meet(), states.append(np.geterr())), range(2))
        assert states == [np.geterr()] * 2


def test_warnings_of_tasks_come_to_the_callers_filters() -> None:
    gpucnn.set_num_threads(2)
    meet = together(2)
    with pytest.warns(RuntimeWarning, match="divide by zero"):
        threads.run(lambda item: (meet(), np.ones(3) / np.zeros(3)), range(2))


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_keeps_the_items_or_the_task_alive(fails: bool) -> None:
    gpucnn.set_num_threads(3)
    gc.disable()  # references alone must do, and no cycle
    try:
        for turn in range(300):
            array, item = np.zeros(3), np.ones(3)
            context = contextvars.copy_context()
            context.run(HELD.set, held := np.zeros(3))

            def task(part: Any, array: Any = array, turn: int = turn) -> None:
                array.sum()
                if fails and turn % 2:
                    raise KeyError(part)

            alive = [weakref.ref(thing) for thing in (array, item, held, task)]
            try:
                context.run(threads.run, task, [item] * (2 + turn % 5))
            except KeyError:
                assert fails
            del array, item, held, task, context
            assert [thing() for thing in alive] == [None] * 4
    finally:
        gc.enable()


HELD: contextvars.ContextVar[Any] = contextvars.ContextVar("HELD")


# --- BLAS ---------------------------------------------------------------------------------------------------------


def blas_threads() -> list[int]:
    """The number of threads of each BLAS library that is held, by threadpoolctl's word."""
    controllers = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
    return [library.num_threads for library in controllers if "numpy" in library.filepath]


@pytest.fixture
def two() -> Iterator[None]:
    """NumPy's BLAS, with two threads as its user's setting."""
    threads.run(lambda item: None, [0])
    if not threads._libraries()[0] or not blas_threads():
        pytest.skip("NumPy's BLAS has no number of threads for the process")
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        yield


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("count", [1, 2])
def test_blas_takes_one_thread_within_tasks_and_its_users_number_after(count: int) -> None:
    gpucnn.set_num_threads(count)
    within: list[list[int]] = []
    assert blas_threads() == [2]
    threads.run(lambda item: within.append(blas_threads()), [0])
    threads.run(lambda item: within.append(blas_threads()), range(2))
    with threads._one_blas_thread():
        threads.run(lambda item: within.append(blas_threads()), range(2))
        within.append(blas_threads())
    assert within == [[1]] * 6
    assert blas_threads() == [2]
    with pytest.raises(ZeroDivisionError):
        threads.run(lambda item: 1 / item, range(2))
    assert blas_threads() == [2]
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        threads.run(lambda item: within.append(blas_threads()), range(2))
        assert blas_threads() == [1]
    assert blas_threads() == [2]


@pytest.mark.usefixtures("two")
def test_blas_is_held_by_whichever_thread_comes_and_until_the_last_one_has_gone() -> None:
    gpucnn.set_num_threads(1)
    events = [threading.Event() for _ in range(3)]
    found: list[list[int]] = []

    def first() -> None:
        threads.run(lambda item: (events[0].set(), events[1].wait(LONG)), [0])
        found.append(blas_threads())  # the second still needs it
        events[2].set()

    def second() -> None:
        events[0].wait(LONG)
        threads.run(lambda item: (found.append(blas_threads()), events[1].set(), events[2].wait(LONG)), [0])

    side_by_side(first, second)
    assert found == [[1], [1]]
    assert blas_threads() == [2]
    threads.run(lambda item: found.append(blas_threads()), [0])
    side_by_side(lambda: threads.run(lambda item: found.append(blas_threads()), [0]))
    assert found == [[1]] * 4
    assert blas_threads() == [2]


@pytest.mark.usefixtures("two")
def test_products_have_the_same_bits_with_any_numbers_of_threads(rng: np.random.Generator) -> None:
    a, b = (rng.standard_normal((6, *shape)).astype(np.float32) for shape in ((70, 1500), (1500, 90)))
    results = set()
    for of_blas in (1, 2):
        for count in (1, 2, 4):
            gpucnn.set_num_threads(count)
            out = np.empty((6, 70, 90), np.float32)
            with threadpoolctl.threadpool_limits(of_blas, user_api="blas"):
                threads.run(lambda i, out=out: np.matmul(a[i], b[i], out=out[i]), range(6))
            results.add(out.tobytes())
    assert len(results) == 1


def test_a_hold_that_was_interrupted_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    number = [4]

    def put(threads: int) -> None:
        number[0] = threads
        if threads == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(threads, "_libraries", lambda: ([(lambda: number[0], put)], []))
    with pytest.raises(KeyboardInterrupt), threads._one_blas_thread():
        pass
    assert number == [4]
    assert not threads._blas.users


def test_a_number_that_its_user_changes_meanwhile_is_held_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    number = [4]
    put = partial(number.__setitem__, 0)
    monkeypatch.setattr(threads, "_libraries", lambda: ([(lambda: number[0], put)], []))
    with threads._one_blas_thread():
        assert number == [1]
        put(3)
        with threads._one_blas_thread():
            assert number == [1]
        assert number == [1]
    assert number == [3]


@pytest.mark.parametrize(
    ("api", "layer", "affixes", "expected"),
    [
        ("openblas", "pthreads", ("", ""), "openblas_set_num_threads"),
        ("openblas", "pthreads", ("scipy_", "64_"), "scipy_openblas_set_num_threads64_"),
        ("openblas", "openmp", ("", "64_"), "omp_set_num_threads"),
        ("openblas", "pthreads", ("my_", ""), "threadpoolctl's"),
    ],
)
def test_openblas_is_set_by_its_own_functions(
    api: str, layer: str, affixes: tuple[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    openblas = [f"{affixes[0]}openblas_{verb}_num_threads{affixes[1]}" for verb in ("get", "set")]
    names = [*openblas, "omp_get_max_threads", "omp_set_num_threads"]
    library, _ = controller(api, layer)
    library.set_num_threads, library.dynlib = "threadpoolctl's", SimpleNamespace(**{name: name for name in names})

    def prototype(*types: object) -> Callable[[tuple[str, object]], object]:
        return lambda function: getattr(function[1], function[0])

    monkeypatch.setattr(threads, "PYFUNCTYPE", prototype)
    assert threads._functions(library)[1] == expected


def controller(api: str, layer: str = "pthreads", start: int = 4) -> tuple[Any, threading.local]:
    """What threadpoolctl makes of a library that counts threads for each thread, as MKL and OpenMP do."""

    class Number(threading.local):
        value = 0 if api == "mkl" else start

    here = Number()

    def put(threads: int) -> int:
        before, here.value = here.value, threads
        return before

    library = SimpleNamespace(
        internal_api=api, threading_layer=layer, filepath="lib.so", dynlib=None,
        get_num_threads=lambda: here.value or start, set_num_threads=put,
    )  # fmt: skip
    return library, here


@pytest.mark.parametrize(
    ("api", "layer", "mine"), [("mkl", "intel", 0), ("blis", "pthreads", 4), ("openblas", "openmp", 4)]
)
def test_a_blas_that_counts_for_each_thread_is_held_in_each(
    api: str, layer: str, mine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, here = controller(api, layer)
    found = SimpleNamespace(select=lambda user_api: SimpleNamespace(lib_controllers=[library]))
    monkeypatch.setattr(threadpoolctl, "ThreadpoolController", lambda: found)
    monkeypatch.setattr(threads, "_libraries", cache(threads._libraries.__wrapped__))
    gpucnn.set_num_threads(2)
    within: list[int] = []

    def caller(meet: Callable[[], object]) -> None:
        threads.run(lambda item: (meet(), within.append(here.value)), range(2))
        with threads._one_blas_thread():
            threads.run(lambda item: within.append(here.value), range(2))
            within.append(here.value)
        assert here.value == mine

    side_by_side(*(lambda: caller(together(1)) for _ in range(3)))
    caller(together(2))
    assert within == [1] * 20


def test_only_numpys_own_blas_is_held_where_it_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def library(path: str) -> Any:
        result, _ = controller("mkl")
        result.filepath = path
        return result

    home = os.path.dirname(os.path.realpath(np.__file__))
    for paths, expected in [
        ([f"{home}.libs/libscipy_openblas.so", "/elsewhere/scipy.libs/libscipy_openblas.so"], 1),
        (["/lib/libopenblas.so", "/lib/libblis.so"], 2),
        ([], 0),
    ]:
        libraries = SimpleNamespace(lib_controllers=[library(path) for path in paths])
        found = SimpleNamespace(select=lambda user_api, libraries=libraries: libraries)
        monkeypatch.setattr(threadpoolctl, "ThreadpoolController", lambda found=found: found)
        of_process, of_threads = threads._libraries.__wrapped__()
        assert (len(of_process), len(of_threads)) == (0, expected)
