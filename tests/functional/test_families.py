"""Properties of every family of operations, on drawn calls: results, gradients, dtypes, memory; PyTorch; slopes."""

from __future__ import annotations

from typing import Any

import pytest
from array_backends import ArrayBackend
from families import FAMILIES
from hypothesis import given
from hypothesis import strategies as st
from properties import check_gradients, check_pytorch, check_results, check_slopes
from sample import examples

every = pytest.mark.table(len(FAMILIES))


@every
@pytest.mark.parametrize("family", FAMILIES)
@examples(400)
@given(data=st.data())
def test_results_are_those_of_the_oracle(backend: ArrayBackend, family: str, data: st.DataObject) -> None:
    check_results(backend, data.draw(FAMILIES[family].cases()))


@every
@pytest.mark.parametrize("family", FAMILIES)
@examples(400)
@given(data=st.data())
def test_gradients_are_those_of_the_oracle(backend: ArrayBackend, family: str, data: st.DataObject) -> None:
    case = data.draw(FAMILIES[family].cases())
    needs = data.draw(st.tuples(*[st.booleans()] * len(case.arrays)), label="needs")
    check_gradients(backend, case, needs)


@every
@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.by_pytorch])
@examples(250)
@given(data=st.data())
def test_results_and_gradients_are_those_of_pytorch(
    backend: ArrayBackend, torch: Any, family: str, data: st.DataObject
) -> None:
    check_pytorch(backend, torch, data.draw(FAMILIES[family].cases("pytorch")))


@every
@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.by_slopes])
@examples(12)
@given(data=st.data())
def test_gradients_are_finite_differences(backend: ArrayBackend, family: str, data: st.DataObject) -> None:
    check_slopes(backend, data.draw(FAMILIES[family].cases("slopes")), FAMILIES[family].tolerance)
