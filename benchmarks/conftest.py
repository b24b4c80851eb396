"""Collects ``bench_layers.py`` and gives its test one case and one provider each.

``pytest benchmarks/`` takes the quick cases; ``--tier default`` and ``--tier full`` take more, ``-k`` narrows by
family, network, operation and implementation. Every provider runs with the same number of threads, ``--threads`` or all
CPUs. On a machine with a GPU they run there (``--device cpu`` for the CPU): a round is a call and the wait for it, and
the device's own times are in each benchmark's extra info.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import environment
from benchmarks.__main__ import choose_device
from benchmarks.cases import Case, select
from benchmarks.gpu.worker import SIMULATED_BATCH
from benchmarks.layers import TIERS, Device

if TYPE_CHECKING:  # this imports NumPy, which must wait for the thread limits
    from benchmarks.providers import Provider

DEVICE_BUDGET_S = 0.2
Measure = Callable[[Case, Any], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpucnn benchmarks")
    group.addoption("--tier", choices=TIERS, default="quick", help="which cases to run")
    group.addoption("--device", choices=("auto", "cpu", "gpu", "simulator"), default="auto", help="where to run")
    group.addoption("--threads", type=int, default=None, help="threads of every provider")


def pytest_configure(config: pytest.Config) -> None:
    environment.confine(_threads(config))


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """The suites are not called ``test_*.py``, so that a plain ``pytest`` passes them by."""
    patterns = parent.config.getini("python_files")
    known = parent.session.isinitpath(file_path) or any(map(file_path.match, patterns))
    if file_path.match("bench_*.py") and not known:
        return pytest.Module.from_parent(parent, path=file_path)
    return None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every case with every installed provider that takes it, named after its family too, so that ``-k`` finds it."""
    if not {"case", "provider"} <= set(metafunc.fixturenames):
        return
    chosen = _device(metafunc.config.getoption("--device"))
    device: Device = "cpu" if chosen == "cpu" else "gpu"
    cases = select(metafunc.config.getoption("--tier"), device=device)
    if chosen == "simulator":
        cases = [replace(case, batch=SIMULATED_BATCH) for case in cases]
    pairs = [
        pytest.param(case, provider, id=f"{case.family}-{case.id}-{provider.name}")
        for case in cases
        for provider in _providers(_threads(metafunc.config), device)
        if provider.refuses(case) is None
    ]
    metafunc.parametrize(("case", "provider"), pairs)


def _threads(config: pytest.Config) -> int:
    return config.getoption("--threads") or environment.available_cpus()


@cache
def _device(wanted: str) -> str:
    chosen, why = choose_device(wanted)
    if chosen == "none":
        raise pytest.UsageError(why)
    return chosen


@cache
def _providers(threads: int, device: Device) -> list[Provider]:
    from benchmarks.providers import installed

    return installed(threads, device=device)[0]


@cache
def _on_device(kind: str) -> Any:
    """A device for all tests: its buffers are large."""
    from benchmarks.gpu.device import Device
    from benchmarks.gpu.environment import make_device

    return Device() if kind == "cpu" else make_device(kind)


@pytest.fixture
def measure(benchmark: Any, request: pytest.FixtureRequest) -> Measure:
    """Check a provider's result, then let pytest-benchmark time it."""
    from benchmarks.gpu.cuts import Cut, cut_of
    from benchmarks.gpu.session import Session

    def run(case: Case, provider: Provider) -> None:
        on_gpu = provider.device == "gpu"
        device = _on_device(_device(request.config.getoption("--device")) if on_gpu else "cpu")
        session = Session(device, [provider], cut_of=cut_of if on_gpu else Cut)
        outcomes, calls, _ = session.check(case)
        if outcomes:
            pytest.fail(f"{outcomes[provider].status}: {outcomes[provider].note}", pytrace=False)
        benchmark.group = case.id
        about = {"provider": provider.name, "version": provider.version(), "threads": provider.threads}
        benchmark.extra_info.update(about, flops=case.flops, least_bytes=case.least_bytes)
        if on_gpu:
            measured = session.time(calls, DEVICE_BUDGET_S)[provider]
            if isinstance(measured, Exception):
                raise measured
            benchmark.extra_info.update(device=device.name, **asdict(measured))

        def waited() -> None:
            calls[provider].call()
            device.synchronize()

        provider.within(lambda: benchmark(waited))

    return run
