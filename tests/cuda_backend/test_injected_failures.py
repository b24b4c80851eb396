"""Each CUDA call of a training step fails once: a clear error, no memory left behind, and the next step right.

A failure that the library in between copes with, as CuPy's pool does with the first allocation that fails, may leave no
trace at all; what is never allowed is a result that differs in a bit.
"""

from __future__ import annotations

import gc
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import sample
from simulated_cuda import REASON, is_installed

if not is_installed():
    pytest.skip(REASON, allow_module_level=True)

import cupy

from gpucnn import backends, nn
from gpucnn.backends import replaying
from gpucnn.backends.cuda.convolution import gemm
from gpucnn.backends.cuda.device import cublas, cupy_runtime
from gpucnn.backends.cuda.launch import plans
from gpucnn.simulator import cuda

ERRORS = ("CUDA_ERROR_OUT_OF_MEMORY", "CUDA_ERROR_LAUNCH_FAILED")
CLEAR = re.compile(r"out of memory|launch fail|CUDA_ERROR_\w+|cudaError\w+|CUBLAS_STATUS_\w+|NVRTC_ERROR_\w+", re.I)
QUESTIONS = ("cuCtxGetCurrent", "cuCtxGetDevice")
"""Calls that the runtime library makes before each of its own: hundreds of a kind, of which some are taken."""
QUESTIONS_APART = 24


class Training:
    """A small network in training on the simulated GPU, which can go back to where it began."""

    def __init__(self) -> None:
        layers = (
            *(nn.Conv2d(3, 4, 3, padding=1, rng=0), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(4, 16, 3, padding=1, rng=1), nn.ReLU()),  # by cuBLAS
            *(nn.Flatten(), nn.Linear(256, 5, rng=2)),
        )
        self.model = nn.Sequential(*layers).to("cuda")
        self.loss = nn.CrossEntropyLoss()
        rng = np.random.default_rng(3)
        self.x = cupy.asarray(rng.standard_normal((4, 3, 8, 8)).astype("f4"))
        self.y = cupy.asarray(rng.integers(0, 5, 4))
        self.begin = {name: array.copy() for name, array in self.model.state_dict().items()}
        self.restarted()

    def restarted(self) -> Training:
        """The same network at the beginning, after a failure too."""
        self.model.load_state_dict(self.begin)
        self.model.zero_grad()
        self.optimizer = nn.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        return self

    def step(self) -> list[bytes]:
        """One step; the bits of the loss, the gradients and the new state."""
        loss = self.loss(self.model(self.x), self.y)
        self.model.backward(self.loss.backward())
        self.optimizer.step()
        grads = [parameter.grad for parameter in self.model.parameters()]
        return [cupy.asnumpy(array).tobytes() for array in (loss, *grads, *self.model.state_dict().values())]


@contextmanager
def new_backend(folder: Path) -> Iterator[None]:
    """The backend over CuPy as a new process has it, with an empty folder of binaries: nothing is planned or loaded."""
    runtime = cupy_runtime.CupyRuntime()
    runtime.compiler._folder = lambda: folder
    handles = mock.patch.object(cublas, "_handles", cublas._Handles())
    with handles, mock.patch.dict(backends._NATIVE), mock.patch.dict(replaying.REPLAYERS):
        backends._with_replays(runtime)
        yield
    for plan in (plans._plan, gemm._plan):  # they keep runtimes, and with them what those loaded
        plan.cache_clear()
    cupy.clear_memo()


@pytest.fixture(autouse=True)
def pool() -> Iterator[None]:
    """CuPy's own pool, whatever the suite's allocator."""
    with cupy.cuda.using_allocator(cupy.get_default_memory_pool().malloc):
        yield


def at_rest() -> list[int]:
    """The sizes of all memory that is allocated when nobody computes."""
    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()
    cupy.get_default_pinned_memory_pool().free_all_blocks()
    return sorted(allocation.nbytes for allocation in cuda.live_allocations())


def call_numbers(before: dict[str, int]) -> list[tuple[str, int]]:
    """The calls since then, by name and number, that may fail: of the runtime's questions one in some."""
    counted = Counter(cuda.calls())
    counted.subtract(before)
    return [
        (function, number)
        for function, calls in counted.items()
        for number in range(1, calls + 1, QUESTIONS_APART if function in QUESTIONS else 1)
        if not re.search(r"Destroy|Free|Unload|Release", function)  # had it done nothing, that would be no one's leak
    ]


class Trial:
    """Computations in which one call fails, and what was wrong with any of them."""

    def __init__(self, right: list[bytes]) -> None:
        self.right = right
        self.wrong: list[str] = []
        self.raised = 0

    def fails_at(self, function: str, number: int, error: str, compute: Callable[[], list[bytes]]) -> None:
        """Compute with a failure."""
        where = f"{function} number {number}, {error}"
        try:
            with cuda.failing(function, number, error=error):
                found = compute()
        except Exception as raised:
            self.raised += 1
            self._judge(raised, where)
        else:
            self.is_right(found, f"{where}: a wrong result, and no error")

    def is_right(self, found: list[bytes], otherwise: str) -> None:
        """Note what is wrong unless the result is right."""
        if found != self.right:
            self.wrong.append(otherwise)

    def _judge(self, raised: Exception, where: str) -> None:
        said = [f"{type(each).__name__}: {each}" for each in (raised, raised.__cause__, raised.__context__) if each]
        if not CLEAR.search(" from ".join(said)):
            self.wrong.append(f"{where}: an error that does not name it, {' from '.join(said)}")


@pytest.mark.table(1)
@pytest.mark.parametrize("error", ERRORS)
def test_each_call_of_a_step_that_is_warm(error: str, tmp_path: Path) -> None:
    with new_backend(tmp_path):
        training = Training()
        right = training.step()
        for _ in range(2):  # planned, recorded; replayed from now on
            assert training.restarted().step() == right
        before = cuda.calls()
        training.restarted().step()
        numbers, trial = call_numbers(before)[:: 1 if sample.everything else 3], Trial(right)
        training.restarted()
        memory = at_rest()
        for function, number in numbers:
            trial.fails_at(function, number, error, lambda: training.restarted().step())
            trial.is_right(training.restarted().step(), f"{function} number {number}, {error}: the next step is wrong")
        training.restarted()
        assert not trial.wrong, "\n".join(trial.wrong)
        assert at_rest() == memory
    assert trial.raised > len(numbers) // 2


@pytest.mark.table(1)
@pytest.mark.parametrize("error", ERRORS)
def test_each_call_of_a_first_step(error: str, tmp_path: Path) -> None:
    """Arrays go to the device, kernels are compiled and loaded, libraries are started."""
    with new_backend(tmp_path / "first"):
        right = Training().step()
    with new_backend(tmp_path / "counted"):
        before = cuda.calls()
        Training().step()
        numbers, trial = call_numbers(before)[:: 1 if sample.everything else 9], Trial(right)
    memory = at_rest()
    for index, (function, number) in enumerate(numbers):
        compiles = function.startswith("nvrtc")  # the others need not wait for compilers
        with new_backend(tmp_path / (str(index) if compiles else "counted")):
            trial.fails_at(function, number, error, lambda: Training().step())
            trial.is_right(Training().step(), f"{function} number {number}, {error}: the next step is wrong")
        if at_rest() != memory:
            trial.wrong.append(f"{function} number {number}, {error}: memory is left behind")
            memory = at_rest()
    assert not trial.wrong, "\n".join(trial.wrong)
    assert trial.raised > len(numbers) // 2
