"""im2col and col2im, unpooling and interpolation."""

import pytest

from benchmarks.cases import RESAMPLINGS, UNFOLDINGS, Case
from benchmarks.conftest import Measure
from benchmarks.providers import Provider

LAYERS = (*UNFOLDINGS, *RESAMPLINGS)


@pytest.mark.benchmark(max_time=0.25, min_rounds=3)
def test_unfolding(case: Case, provider: Provider, measure: Measure) -> None:
    measure(case, provider)
