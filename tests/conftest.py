"""Fixtures of the suite: the backend under test, chosen by ``--backend``, and PyTorch where it is installed."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sample
from array_backends import BACKENDS, ArrayBackend
from checked_replays import checked_replays
from hypothesis import HealthCheck, Phase, settings

from gpucnn import simulator
from gpucnn.backends import available
from gpucnn.backends.cuda.device import nvrtc

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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", choices=list(BACKENDS), default="numpy", help="the arrays to run the suite on")
    parser.addoption("--all", action="store_true", help="run the whole suite, not a sample of it")
    parser.addoption("--rows", type=int, metavar="N", help="with --all: at most N rows of the suite's long tables")


def pytest_configure(config: pytest.Config) -> None:
    """The suite draws thousands of sizes: a build for each of them would be hours of compilation."""
    sample.everything, sample.longest = config.getoption("--all"), config.getoption("--rows")
    chosen = config.getoption("--backend")
    sample.divisor = 1 if chosen in ("numpy", "compiled") else 4
    os.environ["GPUCNN_CPU"] = "compiled" if chosen == "compiled" else "numpy"
    config.addinivalue_line("markers", "table(n): of the test's rows of parameters, n run without --all")
    config.addinivalue_line("markers", "thorough: runs under --all only")
    if chosen == "cuda":
        os.environ.setdefault("GPUCNN_BUILDS", "generic")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in its background
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header(config: pytest.Config) -> str:
    torch = "with" if importlib.util.find_spec("torch") else "without"
    extent = "the whole suite" if sample.everything else "a sample of the suite (--all runs everything)"
    if sample.longest:
        extent += f", at most {sample.longest} rows of its long tables"
    return f"gpucnn: {extent}, backend {config.getoption('--backend')}, {torch} PyTorch as a peer"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drop what the sample leaves out and, on another backend than NumPy, all that would say the same again."""
    kept = sample.sampled(items)
    if config.getoption("--backend") != "numpy":
        wanted = {"backend", "cupy"} if config.getoption("--backend") == "cuda" else {"backend"}
        folder = "cpu_backend" if config.getoption("--backend") == "compiled" else None
        kept = [
            item
            for item in kept
            if wanted.intersection(getattr(item, "fixturenames", ())) or item.path.parent.name == folder
        ]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def pytest_collection_finish() -> None:
    """What is there by now lives to the end: the garbage collector, which many tests call, need not visit it."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why tests were skipped, a line for each reason."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", ())
    )
    for reason, number in reasons.most_common():
        terminalreporter.write_line(f"skipped {number}: {reason}")


@pytest.fixture(scope="session", autouse=True)
def replays_are_checked() -> Iterator[None]:
    with checked_replays():
        yield


@pytest.fixture(scope="session")
def backend(request: pytest.FixtureRequest) -> ArrayBackend:
    """The arrays that the operations are tested on.

    Where GPUCNN_REQUIRE_SIMULATOR is set, as in CI, a compiler that the simulator lacks is an error.
    """
    name = request.config.getoption("--backend")
    if name == "simulator":
        _expect_simulator()
    reason = available()[name]
    if reason != "available":
        raise pytest.UsageError(f"--backend={name}: {reason}")
    return BACKENDS[name]


@pytest.fixture(scope="session")
def compiler() -> None:
    """For tests that run kernels in the simulator, whatever the backend of the others is."""
    _expect_simulator()


def _expect_simulator() -> None:
    reason = simulator.available()
    if reason != "available":
        if os.environ.get("GPUCNN_REQUIRE_SIMULATOR"):
            raise pytest.UsageError(f"GPUCNN_REQUIRE_SIMULATOR is set, but the simulator is {reason}")
        pytest.skip(reason)


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


@pytest.fixture(scope="session")
def model_file() -> Callable[..., Path]:
    """A function that finds a file of a package with a trained model, without importing it.

    The packages are optional; where GPUCNN_REQUIRE_MODELS is set, as in a task of CI, the absence of one is an error.
    """

    def find(package: str, *parts: str) -> Path:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            return Path(spec.origin).parent.joinpath(*parts)
        if os.environ.get("GPUCNN_REQUIRE_MODELS"):
            raise pytest.UsageError(f"GPUCNN_REQUIRE_MODELS is set, but {package} is not installed")
        pytest.skip(f"{package} is not installed")

    return find


@pytest.fixture(scope="session")
def jax() -> Any:
    """JAX, an optional peer; where GPUCNN_REQUIRE_JAX is set, as in a task of CI, its absence is an error."""
    if not os.environ.get("GPUCNN_REQUIRE_JAX"):
        pytest.importorskip("jax", reason="JAX is not installed")
    return importlib.import_module("jax")


@pytest.fixture(scope="session")
def dask() -> Any:
    """Dask, an optional peer; where GPUCNN_REQUIRE_DASK is set, as in CI, its absence is an error."""
    if not os.environ.get("GPUCNN_REQUIRE_DASK"):
        pytest.importorskip("dask.array", reason="Dask is not installed")
    return importlib.import_module("dask")


@pytest.fixture(scope="session")
def cupy() -> Any:
    """CuPy on a GPU, a real or a simulated one; where GPUCNN_REQUIRE_CUPY is set, as in CI, its absence is an error."""
    reason = available()["cuda"]
    if reason != "available":
        if os.environ.get("GPUCNN_REQUIRE_CUPY"):
            raise pytest.UsageError(f"GPUCNN_REQUIRE_CUPY is set, but CuPy is {reason}")
        pytest.skip(f"CuPy is {reason}")
    return importlib.import_module("cupy")


@pytest.fixture(scope="session")
def two_devices(cupy: Any) -> None:
    """For tests that need a second GPU, a real or a simulated one."""
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one GPU, the test needs two")


@pytest.fixture(scope="session")
def nvrtc_library() -> nvrtc.Nvrtc:
    """NVRTC, an optional peer; where GPUCNN_REQUIRE_NVRTC is set, as in CI, its absence is an error."""
    try:
        return nvrtc.load()
    except nvrtc.NvrtcNotFoundError as error:
        if os.environ.get("GPUCNN_REQUIRE_NVRTC"):
            raise
        pytest.skip(str(error))


@pytest.fixture
def sass_compiler(nvrtc_library: nvrtc.Nvrtc) -> nvrtc.Nvrtc:
    """NVRTC beside a disassembler; where GPUCNN_REQUIRE_NVRTC is set, as in CI, their absence is an error."""
    from benchmarks.sass import disassembler

    if disassembler() is None:
        reason = "nvdisasm is not installed: pip install nvidia-cuda-nvdisasm"
        assert not os.environ.get("GPUCNN_REQUIRE_NVRTC"), reason
        pytest.skip(reason)
    return nvrtc_library


@pytest.fixture
def rng() -> np.random.Generator:
    """The same numbers on each run."""
    return np.random.default_rng(20260101)
