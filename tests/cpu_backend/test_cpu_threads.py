"""Threads of the CPU kernels: job after job, several callers, forks, the end of a process, and too little memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

import gpucnn
from gpucnn.backends import backend_named
from gpucnn.backends.base import Epilogue
from gpucnn.backends.cpu.elementwise import ACTIVATIONS
from gpucnn.backends.cpu.library import Kernel, launch

pytestmark = pytest.mark.usefixtures("compiler")
RELU = Epilogue(activation="relu")


@pytest.fixture(params=[2, 5])
def several_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """More threads than there may be cores."""
    before = gpucnn.get_num_threads()
    gpucnn.set_num_threads(request.param)
    yield request.param
    gpucnn.set_num_threads(before)


def relu(seed: int, items: int = 13) -> None:
    """One launch of many small items; its result is checked."""
    x = np.random.default_rng(seed).standard_normal((3, 7, 11), dtype=np.float32)
    y = np.full_like(x, np.nan)
    fields = {f"{name}_{axis}": step // 4 for name in ("x", "y") for axis, step in zip("nri", x.strides, strict=True)}
    values = {**dict.fromkeys(("residual_n", "residual_r", "residual_i", "bias_r", "bias_i"), 0), **fields}
    values |= {
        "n": 3,
        "r": 7,
        "i": 11,
        "activation": ACTIVATIONS["relu"],
        "smooth": 0,
        "negative_slope": 0,
        "items": items,
    }
    arrays = {"x": x, "bias": None, "residual": None, "y": y}
    launch(Kernel("bias_activation"), "float32", values, arrays, items, workspace=100 + seed % 5000)
    np.testing.assert_array_equal(y, np.maximum(x, 0))


def test_one_job_after_the_other(several_threads: int) -> None:
    for seed in range(2000):
        relu(seed, items=1 + seed % 17)


def test_several_callers_at_once(several_threads: int) -> None:
    failures: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for seed in range(first, first + 300):
                relu(seed)
        except BaseException as error:
            failures.append(error)

    callers = [threading.Thread(target=work, args=(1000 * i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not failures


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks of processes with threads
def test_a_fork_has_threads_of_its_own(several_threads: int) -> None:
    relu(1)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for seed in range(50):
                relu(seed)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    relu(2)


def test_a_process_ends_while_threads_wait() -> None:
    code = (
        "import numpy as np, gpucnn, gpucnn.functional as F\n"
        "gpucnn.set_num_threads(4)\n"
        "with gpucnn.backend('compiled'):\n"
        "    print(F.conv2d(np.ones((4, 20, 60, 60), 'f4'), np.ones((4, 20, 3, 3), 'f4')).max())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "180.0\n"


def test_too_little_memory(several_threads: int) -> None:
    x = np.ones((1, 1, 1), np.float32)
    values = {**dict.fromkeys(("residual_n", "residual_r", "residual_i", "bias_r", "bias_i"), 0), "items": 2}
    values |= {f"{name}_{axis}": 1 for name in ("x", "y") for axis in "nri"}
    values |= {"n": 1, "r": 1, "i": 1, "activation": 0, "smooth": 0, "negative_slope": 0}
    arrays = {"x": x, "bias": None, "residual": None, "y": x.copy()}
    with pytest.raises(MemoryError, match="bytes of workspace for a thread"):
        launch(Kernel("bias_activation"), "float32", values, arrays, items=2, workspace=1 << 58)
    backend_named("compiled").bias_activation(x, None, arrays["y"], RELU)  # and the next one is right
    assert arrays["y"].item() == 1
