"""Every case of the layers with every implementation, under pytest-benchmark."""

import pytest

from benchmarks.cases import Case
from benchmarks.conftest import Measure
from benchmarks.providers import Provider


@pytest.mark.benchmark(max_time=0.25, min_rounds=3)
def test_layer(case: Case, provider: Provider, measure: Measure) -> None:
    measure(case, provider)
