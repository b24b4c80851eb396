"""Max unpooling and bed of nails where something is particular to them: indices that repeat, the pooling undone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from array_backends import ArrayBackend
from families.drawing import seeds, sizes_of
from hypothesis import given
from hypothesis import strategies as st
from pooling_cases import LEADS, assert_same_bits, operation
from sample import examples
from strategies import paddings, pair_of

import gpucnn.functional as F


@examples(300)
@given(st.data())
def test_unpooling_puts_maxima_where_they_were(backend: ArrayBackend, data: st.DataObject) -> None:
    """Whatever the windows, the size that was pooled is one that unpooling takes."""
    rank = data.draw(st.integers(1, 3))
    kernel, stride = data.draw(sizes_of(rank, 4)), data.draw(sizes_of(rank, 4))
    padding = data.draw(paddings(tuple(k - 1 for k in kernel)))
    least = [1 if padding in ("same", "same_lower") else k - sum(pair_of(padding, a)) for a, k in enumerate(kernel)]
    sizes = tuple(data.draw(st.integers(max(1, few), max(6, few))) for few in least)
    lead = data.draw(st.sampled_from(LEADS))
    shape = (*lead, *sizes)
    x = np.random.default_rng(data.draw(seeds)).permutation(math.prod(shape)).reshape(shape) + 1.0
    options = {"kernel_size": kernel, "stride": stride, "padding": padding}
    ceil_mode = data.draw(st.booleans())
    y, indices = backend.run(operation("max_pool", rank), x, **options, ceil_mode=ceil_mode, return_indices=True)
    up = backend.run(operation("max_unpool", rank), y, indices, **options, output_size=sizes)
    assert up.shape == x.shape
    np.testing.assert_array_equal(up, np.where(np.isin(x, y), x, 0))
    (back,) = backend.run(operation("max_unpool", rank, "_backward"), x, y, indices, **options, output_size=sizes)[:1]
    assert_same_bits(back, np.where(indices < 0, 0, y))


def test_of_values_with_one_index_the_last_stays_and_minus_one_is_nowhere(backend: ArrayBackend) -> None:
    x = np.array([[[1.0, 2], [3, 4]]])
    indices = np.array([[[5, 5], [-1, 0]]])
    y = backend.run(F.max_unpool2d, x, indices, 2)
    assert y.tolist() == [[[4, 0, 0, 0], [0, 2, 0, 0], [0] * 4, [0] * 4]]
    grad, _ = backend.run(F.max_unpool2d_backward, np.arange(1.0, 17).reshape(1, 4, 4), x, indices, 2)
    assert grad.tolist() == [[[6, 6], [0, 1]]]


def test_unpooling_where_the_default_size_is_nothing(backend: ArrayBackend) -> None:
    """One value pooled by a window of 2 with padding 1 and stride 4: (1 - 1) * 4 - 2 + 2 = 0, but it was 1."""
    x, indices = np.array([[5.0]]), np.array([[0]])
    assert backend.run(F.max_unpool1d, x, indices, 2, 4, 1, 1).tolist() == [[5]]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_nails_are_an_unpooling_to_first_corners(backend: ArrayBackend, rng: np.random.Generator, rank: int) -> None:
    x = rng.standard_normal((2, 3, *(2,) * rank))
    plane = np.arange(6**rank).reshape((6,) * rank)[(slice(None, None, 3),) * rank]
    corners = np.broadcast_to(plane, x.shape)
    expected = backend.run(operation("max_unpool", rank), x, corners, 3)
    assert_same_bits(backend.run(operation("bed_of_nails", rank), x, 3), expected)
