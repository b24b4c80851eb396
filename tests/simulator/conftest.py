"""The simulator's own tests need a C++ compiler; where there is none they are skipped, unless one is required."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpucnn import simulator

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = simulator.available()
    if missing == "available" or os.environ.get("GPUCNN_REQUIRE_SIMULATOR"):
        return
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("no_compiler") is None:
            item.add_marker(pytest.mark.skip(reason=missing))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "no_compiler: a test of the simulator that needs no C++ compiler")
