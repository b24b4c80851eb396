"""Fixtures of the suite: the backend under test, chosen by ``--backend``, and PyTorch where it is installed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings

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


@dataclass(frozen=True)
class ArrayBackend:
    """One kind of array: how NumPy arrays become it, and how it becomes NumPy's again."""

    name: str
    asarray: Callable[[Any], Any]
    asnumpy: Callable[[Any], np.ndarray[Any, Any]]

    def run(self, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`operation` with each NumPy array among its arguments as this kind, and its results as NumPy arrays."""
        result = operation(*map(self._taken, args), **{name: self._taken(value) for name, value in kwargs.items()})
        return tuple(map(self._returned, result)) if isinstance(result, tuple) else self._returned(result)

    def _taken(self, value: Any) -> Any:
        return self.asarray(value) if isinstance(value, np.ndarray) else value

    def _returned(self, value: Any) -> Any:
        return None if value is None else self.asnumpy(value)


BACKENDS = {"numpy": ArrayBackend("numpy", lambda array: array, lambda array: array)}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", choices=sorted(BACKENDS), default="numpy", help="the arrays to run the suite on")


def pytest_report_header(config: pytest.Config) -> str:
    torch = "with" if importlib.util.find_spec("torch") else "without"
    return f"gpucnn: backend {config.getoption('--backend')}, {torch} PyTorch as a peer"


@pytest.fixture(scope="session")
def backend(request: pytest.FixtureRequest) -> ArrayBackend:
    """The arrays that the operations are tested on."""
    return BACKENDS[request.config.getoption("--backend")]


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
