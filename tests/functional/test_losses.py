"""Losses where something is particular to them: what does not count, large logits, classes that are none."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import reference_norms
from array_backends import ArrayBackend
from strategies import FLOATS, dtype_of, numbers
from tolerances import assert_close

import gpucnn.functional as F

Array = np.ndarray[Any, Any]


def test_gradients_repeat_and_take_a_number_for_an_array_without_axes(
    backend: ArrayBackend, rng: np.random.Generator
) -> None:
    for dtype in FLOATS:
        x, target = numbers(rng, (4, 3), dtype), np.array([0, 2, 1, 1])
        expected, _, _ = backend.run(F.cross_entropy_backward, np.array(2.0).astype(x.dtype), x, target)
        for grad in (2, 2.0, np.float32(2), np.array(2.0).astype(x.dtype)):
            actual = backend.run(F.cross_entropy_backward, grad, x, target)[0]
            assert actual.dtype == x.dtype
            assert actual.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32", "uint64", "int64"])
def test_classes_are_of_any_integer_dtype(backend: ArrayBackend, dtype: str, rng: np.random.Generator) -> None:
    x, target = numbers(rng, (4, 3), "float64"), np.array([0, 2, 1, 1])
    expected = backend.run(F.cross_entropy, x, target)
    assert backend.run(F.cross_entropy, x, target.astype(dtype)) == expected  # also where -100 is beyond the dtype


# --- What does not count ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_mean_of_nothing_is_nan_and_its_gradient_zero(backend: ArrayBackend, dtype: str, smoothing: float) -> None:
    x = np.ones((2, 3), dtype_of(dtype))
    target = np.array([-100, -100])
    for reduction, expected in (("mean", np.nan), ("sum", 0), ("none", [0, 0])):
        options = {"reduction": reduction, "label_smoothing": smoothing}
        loss = backend.run(F.cross_entropy, x, target, **options)
        np.testing.assert_array_equal(loss.astype(np.float64), expected)
        gx, _, _ = backend.run(F.cross_entropy_backward, np.ones_like(loss), x, target, **options)
        np.testing.assert_array_equal(gx, np.zeros_like(x))


def test_the_mean_by_weights_of_zero_is_nan_and_its_gradient_zero(backend: ArrayBackend) -> None:
    x, target, weight = np.ones((2, 3)), np.array([0, 1]), np.array([0.0, 0.0, 1.0])
    assert np.isnan(backend.run(F.cross_entropy, x, target, weight))
    gx, _, _ = backend.run(F.cross_entropy_backward, 1.0, x, target, weight)
    np.testing.assert_array_equal(gx, np.zeros_like(x))


def test_an_empty_batch_has_no_mean(backend: ArrayBackend) -> None:
    x = np.ones((0, 3), np.float32)
    for target in (np.ones(0, np.int64), x):
        assert np.isnan(backend.run(F.cross_entropy, x, target))
        assert backend.run(F.cross_entropy, x, target, reduction="sum") == 0
        assert backend.run(F.cross_entropy, x, target, reduction="none").shape == (0,)
        gx, gt, _ = backend.run(F.cross_entropy_backward, 1.0, x, target)
        assert gx.shape == x.shape
        assert target is not x or gt.shape == x.shape


def test_what_is_ignored_changes_nothing(backend: ArrayBackend, rng: np.random.Generator) -> None:
    x, target, weight = numbers(rng, (4, 3), "float64"), np.array([2, 7, 0, 7]), np.array([1.0, 2.0, 3.0])
    options = {"ignore_index": 7, "label_smoothing": 0.1}
    kept = backend.run(F.cross_entropy, x[::2].copy(), target[::2].copy(), weight, **options)
    np.testing.assert_allclose(backend.run(F.cross_entropy, x, target, weight, **options), kept, rtol=1e-15)
    gx, _, _ = backend.run(F.cross_entropy_backward, 1.0, x, target, weight, **options)
    np.testing.assert_array_equal(gx[1::2], 0)
    assert (gx[::2] != 0).all()


def test_a_class_that_is_ignored_is_only_ignored_as_a_target(backend: ArrayBackend, rng: np.random.Generator) -> None:
    x = numbers(rng, (2, 3), "float64")
    loss = backend.run(F.cross_entropy, x, np.array([1, 2]), ignore_index=1)
    np.testing.assert_allclose(loss, -reference_norms.log_softmax(x, 1)[1, 2])


# --- Large and infinite logits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_large_logits_neither_overflow_nor_vanish(backend: ArrayBackend, dtype: str) -> None:
    x = np.array([[1e4, -1e4, 0], [1e4, -1e4, 0]], dtype)
    target = np.array([0, 1])
    np.testing.assert_array_equal(backend.run(F.cross_entropy, x, target, reduction="none"), [0, 2e4])
    gx, _, _ = backend.run(F.cross_entropy_backward, 1.0, x, target, reduction="sum")
    np.testing.assert_array_equal(gx, [[0, 0, 0], [1, -1, 0]])


def test_a_logit_of_minus_infinity_counts_only_where_it_has_a_share(backend: ArrayBackend) -> None:
    x = np.array([[1.0, -np.inf, 0.0], [1.0, -np.inf, 0.0]])
    p = np.exp(1) / (1 + np.exp(1))
    loss = backend.run(F.cross_entropy, x, np.array([0, 1]), reduction="none")
    np.testing.assert_allclose(loss, [-np.log(p), np.inf])
    gx, _, _ = backend.run(F.cross_entropy_backward, 1.0, x, np.array([0, 1]), reduction="sum")
    np.testing.assert_allclose(gx, [[p - 1, 0, 1 - p], [p, -1, 1 - p]])
    shares = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    np.testing.assert_allclose(backend.run(F.cross_entropy, x, shares, reduction="none"), [-np.log(p), np.inf])
    smooth = backend.run(F.cross_entropy, x, np.array([0, 0]), label_smoothing=0.1)
    assert smooth == np.inf


def test_a_nan_spoils_its_own_loss_alone(backend: ArrayBackend) -> None:
    x = np.array([[1.0, np.nan, 0.0], [1.0, 2.0, 0.0]])
    loss = backend.run(F.cross_entropy, x, np.array([0, 1]), reduction="none")
    np.testing.assert_array_equal(np.isnan(loss), [True, False])
    gx, _, _ = backend.run(F.cross_entropy_backward, np.ones(2), x, np.array([0, 1]), reduction="none")
    np.testing.assert_array_equal(np.isnan(gx), [[True] * 3, [False] * 3])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_of_16_bits_are_kept_in_float32(backend: ArrayBackend, dtype: str) -> None:
    x = np.zeros((70_000, 2), dtype_of(dtype))  # whose summed loss float16 cannot hold
    target = np.zeros(len(x), np.int64)
    assert_close(backend.run(F.cross_entropy, x, target), np.array(np.log(2)), x.dtype)
    x = np.zeros((1, 5000), x.dtype)
    assert_close(backend.run(F.cross_entropy, x, target[:1]), np.array(np.log(5000)), x.dtype)


@pytest.mark.parametrize("wrong", [3, -1, -100, 255])
def test_classes_that_are_none_are_refused(host_backend: ArrayBackend, wrong: int) -> None:
    """Where values can be looked at, as NumPy's can."""
    arguments = {"input": np.ones((2, 3)), "target": np.array([0, wrong])}
    for operation, grad in ((F.cross_entropy, ()), (F.cross_entropy_backward, (1.0,))):
        with pytest.raises(ValueError, match=rf"target holds {wrong}, expected classes in \[0, 3\)"):
            host_backend.run(operation, *grad, **arguments, ignore_index=7)
        host_backend.run(operation, *grad, **arguments, ignore_index=wrong)


# --- Of single probabilities --------------------------------------------------------------------------------------

BINARY = F.binary_cross_entropy_with_logits
BINARY_BACKWARD = F.binary_cross_entropy_with_logits_backward


@pytest.mark.parametrize("dtype", FLOATS)
def test_binary_losses_of_large_logits_are_exact(backend: ArrayBackend, dtype: str) -> None:
    x = np.array([1000.0, -1000.0, 20.0, -20.0, 0.0]).astype(dtype_of(dtype))
    right, wrong = (x >= 0).astype(x.dtype), (x < 0).astype(x.dtype)
    small = np.log1p(np.exp(-20.0))
    for target, expected in (
        (right, [0, 0, small, small, np.log(2)]),
        (wrong, [1000, 1000, 20 + small, 20 + small, np.log(2)]),
    ):
        losses = backend.run(BINARY, x, target, reduction="none").astype(float)
        np.testing.assert_allclose(
            losses, expected, rtol=float(ml_dtypes.finfo(x.dtype).eps), atol=1e-8 * (dtype == "float16")
        )
        gx = backend.run(BINARY_BACKWARD, np.ones_like(x), x, target, reduction="none")[0].astype(float)
        assert np.isfinite(gx).all()
