"""Batch, layer, group and instance normalisation, forward and backward."""

import pytest

from benchmarks.cases import NORMALIZATIONS as LAYERS
from benchmarks.cases import Case
from benchmarks.conftest import Measure
from benchmarks.providers import Provider

__all__ = ["LAYERS"]


@pytest.mark.benchmark(max_time=0.25, min_rounds=3)
def test_normalization(case: Case, provider: Provider, measure: Measure) -> None:
    measure(case, provider)
