"""Sampling at the positions of a grid: what is not finite or far away, many samples of one value, nothing at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from array_backends import ArrayBackend
from families.sampling import MODES, PADDINGS
from tolerances import assert_close

import gpucnn.functional as F

Array = np.ndarray[Any, Any]
EVERY = [(mode, padding, aligned) for mode in MODES for padding in PADDINGS for aligned in (False, True)]
each_way = pytest.mark.parametrize(("mode", "padding", "aligned"), EVERY)


def positions(*coordinates: tuple[float, ...]) -> Array:
    """A grid [1, 1, OW, rank] of float32."""
    return np.array([[coordinates]], np.float32)


def both(backend: ArrayBackend, x: Array, grid: Array, *options: Any) -> list[Array]:
    """The samples, and the gradients of their sum."""
    y = backend.run(F.grid_sample, x, grid, *options)
    return [y, *backend.run(F.grid_sample_backward, np.ones_like(y), x, grid, *options)]


@each_way
def test_nan_is_minus_one(backend: ArrayBackend, mode: str, padding: str, aligned: bool) -> None:
    x = np.arange(1, 21, dtype=np.float32).reshape(1, 1, 4, 5)
    nan = both(backend, x, positions((np.nan, 0.3), (0.3, np.nan), (np.nan, np.nan)), mode, padding, aligned)
    ends = both(backend, x, positions((-1, 0.3), (0.3, -1), (-1, -1)), mode, padding, aligned)
    assert [array.tobytes() for array in nan] == [array.tobytes() for array in ends]


@each_way
@pytest.mark.parametrize("far", [np.inf, 3e38, 1e10, 1e5])
def test_far_outside(backend: ArrayBackend, mode: str, padding: str, aligned: bool, far: float) -> None:
    x = np.arange(1, 21, dtype=np.float32).reshape(1, 1, 4, 5)
    y, grad_x, grad_grid = both(backend, x, positions((far, 0), (-far, 0), (0, far)), mode, padding, aligned)
    if padding == "zeros":
        for array in (y, grad_x, grad_grid):
            np.testing.assert_array_equal(array, 0)
    elif padding == "border":
        at_ends = both(backend, x, positions((3, 0), (-3, 0), (0, 3)), mode, padding, aligned)
        for array, expected in zip((y, grad_x, grad_grid), at_ends, strict=True):
            assert_close(array, expected, factor=4)
    elif mode == "bicubic":
        assert np.isfinite(y).all()
    else:
        assert ((y >= 1) & (y <= 20)).all()
    assert np.isfinite(grad_grid).all()


@each_way
def test_images_of_one_value(backend: ArrayBackend, mode: str, padding: str, aligned: bool) -> None:
    x, rng = np.array([[[[3.0]]]]), np.random.default_rng(0)
    grid = rng.uniform(-4, 4, (1, 3, 5, 2))
    options = {"mode": mode, "padding_mode": padding, "align_corners": aligned}
    y, *grads = both(backend, x, grid, *options.values())
    assert_close(y, reference.grid_sample(x, grid, **options), factor=4)
    for grad, expected in zip(grads, reference.grid_sample_backward(np.ones_like(y), x, grid, **options), strict=True):
        assert_close(grad, expected, factor=4)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("mode", MODES)
def test_what_is_not_read_does_not_matter(backend: ArrayBackend, mode: str, broken: float) -> None:
    """A value of weight 0, and the gradient of a sample that reads nothing."""
    x = np.ones((1, 2, 3, 4))
    x[0, :, 0] = broken
    last_row, outside = np.array([[[[0.1, 1.0]]]]), np.array([[[[0.1, 0.0], [9.0, 9.0]]]])
    assert np.isfinite(backend.run(F.grid_sample, x, last_row, mode, "border", True)).all()
    _, grad_grid = backend.run(F.grid_sample_backward, np.ones((1, 2, 1, 1)), x, last_row, mode, "border", True)
    assert np.isfinite(grad_grid[..., 0]).all()
    if mode != "bicubic":  # whose slope along H is that between the rows before and after
        assert np.isfinite(grad_grid).all()
    grad = np.ones((1, 2, 1, 2))
    grad[..., 1] = broken
    grad_x, _ = backend.run(F.grid_sample_backward, grad, np.ones((1, 2, 3, 4)), outside, mode)
    assert np.isfinite(grad_x).all()


def test_many_samples_of_one_value(backend: ArrayBackend) -> None:
    """Each adds its gradient to the same corner."""
    x, grid = np.zeros((1, 1, 3, 3), np.float32), np.full((1, 40, 50, 2), -5, np.float32)
    grad = np.random.default_rng(0).standard_normal((1, 1, 40, 50)).astype(np.float32)
    grad_x, _ = backend.run(F.grid_sample_backward, grad, x, grid, "bilinear", "border")
    expected = np.zeros((1, 1, 3, 3))
    expected[0, 0, 0, 0] = grad.astype(np.float64).sum()
    assert_close(grad_x, expected, factor=40)


def test_gradients_do_not_depend_on_what_else_is_wanted(backend: ArrayBackend) -> None:
    rng = np.random.default_rng(0)
    x, grid = rng.standard_normal((2, 9, 4, 5)), rng.uniform(-1, 1, (2, 6, 7, 2))
    grad = rng.standard_normal((2, 9, 6, 7))
    of_both = backend.run(F.grid_sample_backward, grad, x, grid)
    of_x, nothing = backend.run(F.grid_sample_backward, grad, x, grid, needs=(True, False))
    assert nothing is None
    assert of_x.tobytes() == of_both[0].tobytes()
    assert backend.run(F.grid_sample_backward, grad, x, grid, needs=(False, True))[1].tobytes() == of_both[1].tobytes()
    assert F.grid_sample_backward(grad, x, grid, needs=(False, False)) == (None, None)


def test_an_affine_grid_of_the_identity_gives_the_image_back(backend: ArrayBackend) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    theta = np.tile(np.eye(2, 3), (2, 1, 1))
    for aligned in (False, True):
        grid = backend.run(F.affine_grid, theta, x.shape, aligned)
        assert_close(backend.run(F.grid_sample, x, grid, align_corners=aligned), x, factor=8)
