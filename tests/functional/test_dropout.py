"""Dropout: which elements it keeps, by seeds and generators, and its gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend
from hypothesis import given
from hypothesis import strategies as st
from sample import examples
from strategies import FLOATS, ORDERS, arranged, dtype_of, numbers
from tolerances import assert_close

import gpucnn.functional as F

Array = np.ndarray[Any, Any]


def dropped(values: Array, mask: Array, p: float) -> Array:
    """What is kept, scaled so that the mean stays."""
    return np.where(mask, values.astype(np.float64), 0) / (1 - p)


@examples(60)
@given(
    shape=st.lists(st.integers(0, 4), max_size=4).map(tuple),
    dtype=st.sampled_from(FLOATS),
    order=st.sampled_from(ORDERS),
    p=st.sampled_from((0.1, 0.5, 0.9, 1 / 3)),
    seed=st.integers(0, 999),
)
def test_kept_elements_are_scaled_and_the_gradient_is_too(
    backend: ArrayBackend, shape: tuple[int, ...], dtype: str, order: str, p: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x, grad = (arranged(numbers(rng, shape, dtype), order if len(shape) > 1 else "contiguous") for _ in range(2))
    y, mask = backend.run(F.dropout, x, p, rng=seed, return_mask=True)
    assert mask.dtype == np.bool_
    assert mask.shape == x.shape
    assert_close(y, dropped(x, mask, p), x.dtype)
    (gx,) = backend.run(F.dropout_backward, grad, x, p, mask=mask)
    assert_close(gx, dropped(grad, mask, p), x.dtype)
    (again,) = backend.run(F.dropout_backward, grad, x, p, rng=seed)
    assert again.tobytes() == gx.tobytes()


def test_a_seed_gives_the_same_mask_whatever_the_memory_order_and_dtype(
    backend: ArrayBackend, rng: np.random.Generator
) -> None:
    x = numbers(rng, (3, 4, 5), "float64")
    expected = backend.run(F.dropout, x, rng=7, return_mask=True)[1]
    for dtype in FLOATS:
        for order in ORDERS:
            other = arranged(x.astype(dtype_of(dtype)), order)
            mask = backend.run(F.dropout, other, rng=np.int32(7), return_mask=True)[1]
            np.testing.assert_array_equal(mask, expected)
    assert (backend.run(F.dropout, x, rng=8, return_mask=True)[1] != expected).any()


def test_a_generator_goes_on_from_call_to_call(backend: ArrayBackend) -> None:
    x = np.ones((6, 7))
    generator = backend.primitives.xp.random.default_rng(5)
    first, second = (backend.run(F.dropout, x, rng=generator) for _ in range(2))
    assert (first != second).any()
    generator = backend.primitives.xp.random.default_rng(5)
    np.testing.assert_array_equal(backend.run(F.dropout, x, rng=generator), first)
    np.testing.assert_array_equal(backend.run(F.dropout, x, rng=generator), second)
    np.testing.assert_array_equal(backend.run(F.dropout, x, rng=5), first)


def test_without_a_seed_masks_differ_and_the_global_seed_plays_no_part(backend: ArrayBackend) -> None:
    x = np.ones((40, 40))
    state = np.random.get_state()
    first, second = (backend.run(F.dropout, x) for _ in range(2))
    assert (first != second).any()
    assert state[2] == np.random.get_state()[2]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_p_is_the_share_that_is_dropped_and_the_mean_stays(backend: ArrayBackend, p: float) -> None:
    y, mask = backend.run(F.dropout, np.ones((400, 500)), p, rng=11, return_mask=True)
    deviation = 5 * np.sqrt(p * (1 - p) / mask.size)  # five standard deviations of the share
    assert abs(mask.mean() - (1 - p)) < deviation
    assert abs(y.mean() - 1) < deviation / (1 - p)
    assert (np.abs(mask.mean(axis=0) - (1 - p)) < 6 * np.sqrt(p * (1 - p) / 400)).all()
    neighbours = np.corrcoef(mask[:, :-1].ravel(), mask[:, 1:].ravel())[0, 1]
    assert abs(neighbours) < 5 / np.sqrt(mask.size)


@pytest.mark.parametrize("dtype", FLOATS)
def test_nothing_is_dropped_at_0_or_outside_training(
    backend: ArrayBackend, dtype: str, rng: np.random.Generator
) -> None:
    x = numbers(rng, (3, 4), dtype)
    x[0, 0] = np.nan
    for p, training in ((0, True), (0.0, True), (0.7, False), (1.0, False)):
        y, mask = backend.run(F.dropout, x, p, training, return_mask=True)
        assert y.tobytes() == x.tobytes()
        assert y.dtype == x.dtype
        assert not np.shares_memory(y, x)
        assert mask.all()
        (gx,) = backend.run(F.dropout_backward, x, x, p, training)  # which needs neither mask nor seed
        assert gx.tobytes() == x.tobytes()
        assert not np.shares_memory(gx, x)


@pytest.mark.parametrize("dtype", FLOATS)
def test_everything_is_dropped_at_1_infinities_as_well(backend: ArrayBackend, dtype: str) -> None:
    x = np.array([1, -2, np.nan, np.inf]).astype(dtype_of(dtype))
    y, mask = backend.run(F.dropout, x, 1.0, return_mask=True)
    (gx,) = backend.run(F.dropout_backward, x, x, 1)
    assert not mask.any()
    for result in (y, gx):
        assert result.dtype == x.dtype
        np.testing.assert_array_equal(result, np.zeros_like(x))


def test_dropped_infinities_and_nans_leave_zeros(backend: ArrayBackend) -> None:
    x = np.full((50, 2), [np.inf, np.nan])
    y, mask = backend.run(F.dropout, x, rng=1, return_mask=True)
    np.testing.assert_array_equal(y, np.where(mask, x, 0))


def test_a_gradient_needs_the_mask_or_the_seed(backend: ArrayBackend) -> None:
    x = np.ones((6, 7))
    with pytest.raises(ValueError, match=r"^dropout_backward: mask is None, expected the forward's, or a seed"):
        backend.run(F.dropout_backward, x, x, rng=np.random.PCG64(1))
    # a mask wins over what the seed would give
    mask = np.zeros(x.shape, bool)
    mask[2, 3] = True
    np.testing.assert_array_equal(backend.run(F.dropout_backward, x, x, rng=1, mask=mask)[0], 2.0 * mask)
    assert backend.run(F.dropout_backward, x, x, mask=mask, needs=(False,)) == (None,)


def test_the_result_is_that_of_pytorch_with_the_same_mask(
    backend: ArrayBackend, torch: Any, rng: np.random.Generator
) -> None:
    """PyTorch draws other numbers, so its mask is read off its result."""
    x, grad = (numbers(rng, (8, 9), "float32") for _ in range(2))
    torch.manual_seed(3)
    leaf = torch.from_numpy(x).requires_grad_()
    peer = torch.nn.functional.dropout(leaf, 0.3)
    peer.backward(torch.from_numpy(grad))
    mask = peer.detach().numpy() != 0
    assert 0 < mask.sum() < mask.size
    assert_close(backend.run(F.dropout_backward, x, x, 0.3, mask=mask)[0], peer.detach().numpy())
    assert_close(backend.run(F.dropout_backward, grad, x, 0.3, mask=mask)[0], leaf.grad.numpy())
