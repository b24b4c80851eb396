"""Winograd's filtering: how exact its sums are, and that it keeps apart what is no number."""

from __future__ import annotations

import numpy as np
import pytest

import gpucnn
import gpucnn.functional as F
from gpucnn import simulator

pytestmark = pytest.mark.usefixtures("compiler")


def test_errors_are_those_of_a_sequential_sum() -> None:
    """Against float64: a sequential sum of float32 over the inputs of a tile, which the transforms mix."""
    rng = np.random.default_rng(1)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 160, 8, 9), (12, 160, 3, 3)))
    exact, size = (F.conv2d(*map(np.float64, each), padding=1) for each in ((x, w), (abs(x), abs(w))))
    with gpucnn.algorithm("winograd"):
        y = simulator.asnumpy(F.conv2d(simulator.asarray(x), simulator.asarray(w), padding=1))
    error = abs(y - exact)
    assert (error <= 9 * 160 * 2.0**-24 * size).all()
    sequential = F.conv2d(simulator.asarray(x), simulator.asarray(w), padding=1)
    assert np.sqrt(np.mean(error**2)) <= 2 * np.sqrt(np.mean((simulator.asnumpy(sequential) - exact) ** 2))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_reaches_only_the_windows_that_read_it(value: float) -> None:
    x, w = np.ones((1, 4, 8, 8), np.float32), np.full((2, 4, 3, 3), 1.5, np.float32)
    x[0, 2, 3, 3] = value
    bias = np.ones(2, np.float32)
    with gpucnn.algorithm("direct"):
        expected = F.conv2d(x, w, bias, padding=1)
    assert not np.isfinite(expected).all()
    with gpucnn.algorithm("winograd"):
        y = F.conv2d(*map(simulator.asarray, (x, w, bias)), padding=1)
    np.testing.assert_array_equal(simulator.asnumpy(y), expected)


def test_as_many_images_at_once_as_the_workspace_holds() -> None:
    rng = np.random.default_rng(2)
    x, w = (simulator.asarray(rng.standard_normal(shape).astype(np.float32)) for shape in ((3, 8, 6, 6), (8, 8, 3, 3)))
    with gpucnn.algorithm("winograd"):
        y = simulator.asnumpy(F.conv2d(x, w, padding=1))
        with gpucnn.workspace_limit(16 * 9 * 16 * 4 * 2):  # the transforms of two images
            np.testing.assert_array_equal(simulator.asnumpy(F.conv2d(x, w, padding=1)), y)
    assert F.conv2d(x[:0], w, padding=1).shape == (0, 8, 6, 6)
