"""Maximum, average and adaptive pooling, forward and backward."""

import pytest

from benchmarks.cases import POOLINGS as LAYERS
from benchmarks.cases import Case
from benchmarks.conftest import Measure
from benchmarks.providers import Provider

__all__ = ["LAYERS"]


@pytest.mark.benchmark(max_time=0.25, min_rounds=3)
def test_pooling(case: Case, provider: Provider, measure: Measure) -> None:
    measure(case, provider)
