"""Collects ``bench_*.py`` and gives their tests one case and one provider each.

``pytest benchmarks/`` takes the quick cases; ``--tier default`` and ``--tier full`` take more,
``-k`` narrows. Every provider runs with the same number of threads, ``--threads`` or all CPUs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks import environment
from benchmarks.cases import Case, select
from benchmarks.layers import TIERS, Layer

Measure = Callable[[Case, Any], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpucnn benchmarks")
    group.addoption("--tier", choices=TIERS, default="quick", help="which cases to run")
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
    """Every case of the module's layers with every installed provider that takes it."""
    if not {"case", "provider"} <= set(metafunc.fixturenames):
        return
    layers: tuple[Layer, ...] = metafunc.module.LAYERS
    pairs = [
        pytest.param(case, provider, id=f"{case.id}-{provider.name}")
        for case in select(metafunc.config.getoption("--tier"), layers=layers)
        for provider in _providers(_threads(metafunc.config))
        if provider.refuses(case) is None
    ]
    metafunc.parametrize(("case", "provider"), pairs)


def _threads(config: pytest.Config) -> int:
    return config.getoption("--threads") or environment.available_cpus()


@cache
def _providers(threads: int) -> list[Any]:
    from benchmarks.providers import installed

    return installed(threads)[0]


@pytest.fixture
def measure(benchmark: Any) -> Measure:
    """Check a provider's result, then let pytest-benchmark time it."""
    from benchmarks.session import check

    def run(case: Case, provider: Any) -> None:
        outcomes, calls = check(case, [provider])
        if outcomes:
            pytest.fail(f"{outcomes[provider].status}: {outcomes[provider].note}", pytrace=False)
        benchmark.group = case.id
        benchmark.extra_info.update(
            provider=provider.name,
            version=provider.version(),
            threads=provider.threads,
            flops=case.flops,
            least_bytes=case.least_bytes,
        )
        benchmark(calls[provider])

    return run
