"""Convolution and its gradients, dense, grouped, depthwise, dilated, transposed, 1-d to 3-d."""

import pytest

from benchmarks.cases import CONVOLUTIONS as LAYERS
from benchmarks.cases import Case
from benchmarks.conftest import Measure
from benchmarks.providers import Provider

__all__ = ["LAYERS"]


@pytest.mark.benchmark(max_time=0.25, min_rounds=3)
def test_convolution(case: Case, provider: Provider, measure: Measure) -> None:
    measure(case, provider)
