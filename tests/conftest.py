"""Fixtures of the suite: the backend under test, chosen by ``--backend``, and PyTorch where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings

from gpucnn import simulator
from gpucnn.backends import Backend, available, backend_of

settings.register_profile(
    "suite",
    deadline=None,  # the machines are shared: time says nothing
    derandomize=True,  # the same examples on each run; --hypothesis-profile=explore draws others
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile(
    "explore",
    parent=settings.get_profile("suite"),
    derandomize=False,
    max_examples=1000,
)
settings.register_profile(
    "mutation",  # many short runs: whether a test fails matters, not on which example
    parent=settings.get_profile("suite"),
    max_examples=30,
    phases=[Phase.explicit, Phase.generate],
)
settings.load_profile("suite")


WRITING = ("batch_norm", "instance_norm")


@dataclass(frozen=True)
class ArrayBackend:
    """One kind of array: how NumPy arrays become it, with their strides, and how it becomes NumPy's again."""

    name: str
    asarray: Callable[[Any], Any]
    asnumpy: Callable[[Any], np.ndarray[Any, Any]]

    @property
    def primitives(self) -> Backend:
        """What computes on these arrays."""
        return backend_of(self.asarray(np.zeros(1)))

    def run(self, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`operation` with each NumPy array among its arguments as this kind, and its results as NumPy arrays.

        Of the arrays on a device only running statistics may be written to, and only by `WRITING` operations.
        """
        taken = [*map(self._taken, args)], {name: self._taken(value) for name, value in kwargs.items()}
        result = operation(*taken[0], **taken[1])
        if self.name != "numpy" and getattr(operation, "__name__", "") not in WRITING:
            pairs = zip((*args, *kwargs.values()), (*taken[0], *taken[1].values()), strict=True)
            for given, array in ((given, array) for given, array in pairs if array is not given):
                assert self.asnumpy(array).tobytes() == np.asarray(given).tobytes(), "an argument was written to"
        return tuple(map(self._returned, result)) if isinstance(result, tuple) else self._returned(result)

    def can_hold(self, dtype: Any) -> bool:
        """Whether there are arrays of this kind with that dtype."""
        try:
            self.asarray(np.zeros((), dtype))
        except (TypeError, ValueError):
            return False
        return True

    def _taken(self, value: Any) -> Any:
        is_array = isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray)
        return self.asarray(value) if is_array and self.can_hold(value.dtype) else value

    def _returned(self, value: Any) -> Any:
        return None if value is None else self.asnumpy(value)


def _cupy_asarray(host: np.ndarray[Any, Any]) -> Any:
    """A copy on the GPU with the strides of `host`; what lies between its elements is NaN."""
    cupy: Any = importlib.import_module("cupy")
    if not host.size or not host.flags.aligned or any(step % host.itemsize for step in host.strides):
        return cupy.asarray(host)
    reaches = [(size - 1) * step for size, step in zip(host.shape, host.strides, strict=True)]
    below, above = -sum(min(0, reach) for reach in reaches), sum(max(0, reach) for reach in reaches)
    memory = cupy.full(below + above + host.itemsize, 1 if host.dtype == np.bool_ else 0xFF, np.uint8)
    array = cupy.ndarray(host.shape, host.dtype, memory.data + below, strides=host.strides)
    array[...] = cupy.asarray(np.ascontiguousarray(host))
    return array


def _cupy_asnumpy(array: Any) -> np.ndarray[Any, Any]:
    """A copy on the CPU whose axes have the same order in memory."""
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    host: np.ndarray[Any, Any] = array.transpose(order).get()
    return host.transpose(sorted(range(array.ndim), key=order.__getitem__))


BACKENDS = {
    "numpy": ArrayBackend("numpy", lambda array: array, lambda array: array),
    "simulator": ArrayBackend("simulator", simulator.asarray, simulator.asnumpy),
    "cuda": ArrayBackend("cuda", _cupy_asarray, _cupy_asnumpy),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", choices=list(BACKENDS), default="numpy", help="the arrays to run the suite on")


def pytest_report_header(config: pytest.Config) -> str:
    torch = "with" if importlib.util.find_spec("torch") else "without"
    return f"gpucnn: backend {config.getoption('--backend')}, {torch} PyTorch as a peer"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On another backend than NumPy only the tests that run on it: the others would say the same again."""
    if config.getoption("--backend") != "numpy":
        kept = [item for item in items if "backend" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept


@pytest.fixture(scope="session")
def backend(request: pytest.FixtureRequest) -> ArrayBackend:
    """The arrays that the operations are tested on.

    Where GPUCNN_REQUIRE_SIMULATOR is set, as in CI, a compiler that the simulator lacks is an error.
    """
    name = request.config.getoption("--backend")
    reason = available()[name]
    if reason != "available":
        if name == "simulator" and not os.environ.get("GPUCNN_REQUIRE_SIMULATOR"):
            pytest.skip(reason)
        raise pytest.UsageError(f"--backend={name}: {reason}")
    return BACKENDS[name]


@pytest.fixture
def host_backend(backend: ArrayBackend) -> ArrayBackend:
    """`backend`, for tests of what only a backend in this process's memory can do: look at values."""
    if not backend.primitives.host:
        pytest.skip("values on a device are not looked at, that would wait for it")
    return backend


@pytest.fixture(scope="session")
def torch() -> Any:
    """PyTorch, an optional peer; where GPUCNN_REQUIRE_TORCH is set, as in CI, its absence is an error."""
    if os.environ.get("GPUCNN_REQUIRE_TORCH"):
        import torch
    else:
        torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.set_num_threads(1)
    return torch


@pytest.fixture
def rng() -> np.random.Generator:
    """The same numbers on each run."""
    return np.random.default_rng(20260101)
