"""Layout changes between layers on a GPU, with and without a cast, and bias with activation."""

import pytest

from benchmarks.cases import ACTIVATIONS, LAYOUTS, Case
from benchmarks.conftest import Measure
from benchmarks.providers import Provider

LAYERS = (*LAYOUTS, *ACTIVATIONS)


@pytest.mark.benchmark(max_time=0.25, min_rounds=3)
def test_layout(case: Case, provider: Provider, measure: Measure) -> None:
    measure(case, provider)
