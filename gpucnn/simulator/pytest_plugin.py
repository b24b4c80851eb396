"""A plugin for pytest: tests of CuPy code on simulated CUDA, each with fresh memory and checked for leaks.

It is there wherever gpucnn is installed and does nothing without ``--cuda-simulator``. See
docs/test-cupy-code-without-a-gpu.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from gpucnn.simulator.cupy.allocations import Allocations, Left

MAKE = "python -m gpucnn.simulator.cupy DIR makes one, then run DIR/bin/python -m pytest"
LEAKS = ("report", "fail", "off")


@dataclass(frozen=True)
class _Setting:
    """An option that is a variable of the environment, which the simulated driver reads when it is loaded."""

    option: str
    variable: str
    pattern: str
    help: str

    @property
    def attribute(self) -> str:
        return self.option.removeprefix("--").replace("-", "_")


SETTINGS = (
    _Setting("--cuda-device", "GPUCNN_CUDA_DEVICE", "t4|a100|h100|rtx4090", "whose properties it reports"),
    _Setting("--cuda-devices", "GPUCNN_CUDA_DEVICES", "[0-8]", "the number of devices"),
    _Setting("--cuda-memory", "GPUCNN_CUDA_MEMORY", r"[1-9]\d*[KMG]?", "of each device, for instance 512M"),
    _Setting("--cuda-stream-seed", "GPUCNN_CUDA_STREAM_SEED", r"\d+", "of the order of unsynchronised streams"),
)

MARKERS = (
    "cuda_devices(n): needs so many simulated devices; skipped where there are fewer (--cuda-devices)",
    "cuda_memory(nbytes): each simulated device has so much memory in this test",
    "cuda_keeps_memory: what this test leaves allocated is meant to stay (--cuda-leaks)",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options for CuPy on simulated CUDA."""
    group = parser.getgroup("cuda-simulator", "CuPy on gpucnn's simulated CUDA")
    group.addoption(
        "--cuda-simulator",
        action="store_true",
        help="run on simulated CUDA, with fresh memory and a check for leaks for each test; an error elsewhere",
    )
    for setting in SETTINGS:
        group.addoption(setting.option, type=_checked(setting), metavar=setting.pattern, help=setting.help)
    group.addoption(
        "--cuda-stream-races",
        action="store_true",
        help="work that uses the same memory in two streams must be ordered between them",
    )
    group.addoption("--cuda-fast", action="store_true", help="run kernels without checks, many times faster")
    group.addoption(
        "--cuda-allocator",
        choices=("exact", "pool"),
        default="exact",
        help="exact (the default): each array is an allocation of its own, with bounds exact to the byte; pool: CuPy's",
    )
    group.addoption(
        "--cuda-leaks",
        choices=LEAKS,
        default="report",
        help="memory that a passed test leaves behind is reported at the end (the default), fails the test, or is off",
    )


def _checked(setting: _Setting) -> Any:
    def check(text: str) -> str:
        if not re.fullmatch(setting.pattern, text):
            raise argparse.ArgumentTypeError(f"must match {setting.pattern}, got {text!r}")
        return text

    return check


def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Set the variables before a conftest or a test imports CuPy."""
    options = early_config.known_args_namespace
    wanted = {setting.variable: getattr(options, setting.attribute, None) for setting in SETTINGS}
    wanted["GPUCNN_CUDA_CHECK"] = "0" if options.cuda_fast else None
    wanted["GPUCNN_CUDA_STREAM_RACES"] = "1" if options.cuda_stream_races else None
    given = {variable: value for variable, value in wanted.items() if value is not None}
    if given and not options.cuda_simulator:
        raise pytest.UsageError("the options --cuda-... are for --cuda-simulator, which is not given")
    late = [f"{variable}={value}" for variable, value in given.items() if os.environ.get(variable) != value]
    if late and "cupy_backends.cuda.api.runtime" in sys.modules:
        raise pytest.UsageError(
            "CuPy was imported before pytest read its options, by another plugin or by the program that runs pytest: "
            f"they come too late, so set {' '.join(late)} in the environment instead"
        )
    os.environ.update(given)


def pytest_configure(config: pytest.Config) -> None:
    """Describe the markers; under --cuda-simulator, check the environment."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    if config.getoption("--cuda-simulator"):
        reason = _why_not_simulated()
        if reason:
            raise pytest.UsageError(f"--cuda-simulator: {reason}; {MAKE}")
        config.pluginmanager.register(_Simulated(config), "gpucnn-cuda-simulated")


def _why_not_simulated() -> str | None:
    """Why CuPy does not run on simulated CUDA here; None if it does."""
    if importlib.util.find_spec("cupy_backends") is None:
        return "CuPy is not installed in this environment"
    try:
        importlib.import_module("cupy_backends.cuda.api.runtime")
        cuda = importlib.import_module("gpucnn.simulator.cuda")
    except ImportError as error:
        return f"CuPy cannot be imported ({error})"
    return None if cuda.is_loaded() else "the CuPy of this environment runs on a real CUDA driver"


@pytest.fixture
def cuda_simulator(request: pytest.FixtureRequest) -> ModuleType:
    """The module `gpucnn.simulator.cuda`: failures to inject, counts of calls, live memory, settings."""
    if not request.config.getoption("--cuda-simulator"):
        pytest.skip("needs --cuda-simulator")
    return importlib.import_module("gpucnn.simulator.cuda")


@dataclass(eq=False)  # pytest keeps plugins in sets
class _Simulated:
    """Hooks and fixtures that are there under --cuda-simulator only."""

    config: pytest.Config
    _allocations: Allocations | None = None
    _since: dict[pytest.Item, tuple[int, int]] = field(default_factory=dict)
    _failed: set[pytest.Item] = field(default_factory=set)
    _left: dict[str, list[Left]] = field(default_factory=dict)

    def pytest_report_header(self) -> str:
        """What the tests run on."""
        cuda = importlib.import_module("gpucnn.simulator.cuda")
        count = _device_count()
        name = _runtime().getDeviceProperties(0)["name"].decode() if count else "device"
        checks = "with checks" if cuda.checks_kernels() else "without checks"
        allocator = self.config.getoption("--cuda-allocator")
        version = importlib.import_module("cupy").__version__
        return f"simulated CUDA: CuPy {version}, {count} x {name}, kernels {checks}, {allocator} allocations"

    def pytest_sessionstart(self) -> None:
        """Record CuPy's allocations from here on."""
        from gpucnn.simulator.cupy.allocations import Allocations

        options = self.config.getoption
        self._allocations = Allocations(options("--cuda-allocator"), traced=options("--cuda-leaks") != "off")
        self._allocations.start()

    def pytest_sessionfinish(self) -> None:
        """Give CuPy its allocator back."""
        if self._allocations:
            self._allocations.stop()

    @pytest.fixture(autouse=True)
    def _cuda_memory(self, request: pytest.FixtureRequest) -> Iterator[None]:
        """Fresh memory and settings for each test; work that it left pending is done before it ends."""
        from gpucnn.simulator import cuda

        item = request.node
        _skip_without_devices(item)
        assert self._allocations
        self._allocations.free_pools()
        cuda.reset()
        # Fixtures of a wider scope have allocated theirs by now.
        self._since[item] = self._allocations.marker()
        limit = item.get_closest_marker("cuda_memory")
        limited = cuda.memory_limit(*limit.args, **limit.kwargs) if limit else nullcontext()
        with limited, _failures_in_destructors() as failures:
            yield
            _finish_devices()
        if failures:
            raise failures[0]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Note failures: their tracebacks keep arrays alive."""
        report = yield
        if report.failed:
            self._failed.add(item)
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        """Look for memory that a test left behind, when its fixtures have gone."""
        result = yield
        since = self._since.pop(item, None)
        how = self.config.getoption("--cuda-leaks")
        wanted = (
            since and how != "off" and item not in self._failed and not item.get_closest_marker("cuda_keeps_memory")
        )
        if since and wanted and self._allocations:
            getattr(item, "funcargs", {}).clear()  # the values of fixtures
            left = self._allocations.left(since)
            if left and how == "fail":
                pytest.fail("\n".join(["CUDA memory is left behind:", *map(str, left)]), pytrace=False)
            if left:
                self._left[item.nodeid] = left
        return result

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """List what was left behind."""
        if not self._left:
            return
        terminalreporter.section("CUDA memory that tests left behind")
        for test, left in self._left.items():
            terminalreporter.write_line(test)
            for item in left:
                terminalreporter.write_line(f"    {item}")


def _skip_without_devices(item: pytest.Item) -> None:
    marker = item.get_closest_marker("cuda_devices")
    if marker:
        needed, there = marker.args[0], _device_count()
        if there < needed:
            pytest.skip(f"needs {needed} simulated devices, --cuda-devices={needed}; there are {there}")


def _finish_devices() -> None:
    """Wait for all devices, so that the failure of pending work is the failure of the test that issued it."""
    runtime = _runtime()
    count = _device_count()
    current = runtime.getDevice() if count else 0
    try:
        for device in range(count):
            runtime.setDevice(device)
            runtime.deviceSynchronize()
    finally:
        if count:
            runtime.setDevice(current)


@contextmanager
def _failures_in_destructors() -> Iterator[list[BaseException]]:
    """The errors of CUDA that Python ignores otherwise: memory is freed when earlier work, which failed, is done."""
    failures: list[BaseException] = []
    others = sys.unraisablehook
    errors = (_runtime().CUDARuntimeError, importlib.import_module("cupy_backends.cuda.api.driver").CUDADriverError)

    def hook(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, errors):
            failures.append(unraisable.exc_value)
        else:
            others(unraisable)

    sys.unraisablehook = hook
    try:
        yield failures
    finally:
        sys.unraisablehook = others


def _runtime() -> Any:
    return importlib.import_module("cupy_backends.cuda.api.runtime")


def _device_count() -> int:
    """The number of devices; CUDA calls it an error if there is none."""
    runtime = _runtime()
    try:
        return int(runtime.getDeviceCount())
    except runtime.CUDARuntimeError:
        return 0
