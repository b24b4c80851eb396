"""Threads of the NumPy backend where the process forks or ends: each case in a program of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

LONG = 120.0  # seconds after which a program hangs, on any machine

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")


def python(code: str) -> str:
    """What a program of its own prints; one that hangs, fails or writes to stderr fails the test."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(code)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=LONG, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


FORK = """
    import os, signal, sys, threading
    import numpy as np, threadpoolctl
    import gpucnn
    from gpucnn.backends.numpy import threads

    def blas():
        return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]

    def works():
        meet, out = threading.Barrier(2), np.zeros((2, 40, 40))
        def task(i):
            meet.wait(60)
            np.matmul(np.ones((40, 40)), np.ones((40, 40)), out=out[i])
        threads.run(task, range(2))
        return bool((out == 40).all()) and gpucnn.get_num_threads() == 2 and blas() == user

    gpucnn.set_num_threads(2)
    threadpoolctl.threadpool_limits(2, user_api="blas")
    user = blas()
    assert works()

    meet, end = threading.Barrier(3), threading.Event()
    other = threading.Thread(target=lambda: threads.run(lambda i: (meet.wait(60), end.wait(60)), range(2)))
    other.start()
    meet.wait(60)
    locked = threading.Barrier(2)
    def lock():
        with threads._pool._lock, threads._blas.lock:
            locked.wait(60)
            end.wait(60)
    holder = threading.Thread(target=lock)
    holder.start()
    locked.wait(60)
    assert not threads._libraries()[0] or blas() == [1] * len(user)

    def child():
        signal.alarm(60)
        return 0 if blas() == user and works() and works() else 1
"""

END = """
    end.set()
    other.join(60)
    holder.join(60)
    print("child", code, "parent", works())
"""


@forks
def test_a_child_forked_while_others_work_has_threads_and_blas_as_its_user_set_it() -> None:
    code = """
    if not (process := os.fork()):
        os._exit(child())
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    """
    assert python(FORK + code + END) == "child 0 parent True\n"


@forks
def test_a_process_of_multiprocessing_may_be_forked_while_others_work() -> None:
    code = """
    import multiprocessing
    process = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(child()))
    process.start()
    process.join(90)
    code = process.exitcode
    """
    assert python(FORK + code + END) == "child 0 parent True\n"


def test_waiting_threads_let_the_interpreter_end() -> None:
    code = """
    import atexit, threading
    import gpucnn
    from gpucnn.backends.numpy import threads

    gpucnn.set_num_threads(2)
    done = []
    def last():
        gpucnn.set_num_threads(5)  # threads that cannot be started any more
        threads.run(done.append, range(20))
        print(sorted(done) == list(range(20)))
    atexit.register(last)
    meet = threading.Barrier(2)
    threads.run(lambda i: meet.wait(60), range(2))
    class Late:
        def __del__(self, run=threads.run, append=done.append):
            run(append, range(20))
    late = Late()
    """
    assert python(code) == "True\n"


def test_a_thread_that_is_left_at_work_lets_the_interpreter_end() -> None:
    code = """
    import threading, time
    import gpucnn
    from gpucnn.backends.numpy import threads

    gpucnn.set_num_threads(2)
    meet = threading.Barrier(3)
    at_work = lambda: threads.run(lambda i: (meet.wait(60), time.sleep(60)), range(2))
    threading.Thread(target=at_work, daemon=True).start()
    meet.wait(60)
    """
    assert python(code) == ""
