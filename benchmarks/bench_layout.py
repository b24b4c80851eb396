"""What lies between the layers on a GPU: changes of memory order, with and without a cast, bias and activation."""

import pytest

from benchmarks.cases import ACTIVATIONS, LAYOUTS, Case
from benchmarks.conftest import Measure
from benchmarks.providers import Provider

LAYERS = (*LAYOUTS, *ACTIVATIONS)


@pytest.mark.benchmark(max_time=0.25, min_rounds=3)
def test_layout(case: Case, provider: Provider, measure: Measure) -> None:
    measure(case, provider)
