"""Activations and softmax where something is particular to them: NaN, infinities, exactness, memory order."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import reference
from array_backends import ArrayBackend
from strategies import FLOATS, dtype_of, numbers
from tolerances import assert_close

import gpucnn.functional as F
from gpucnn.backends.normal import BOUND, normal_share_and_density

Array = np.ndarray[Any, Any]

# --- Activations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_activations_of_nan_zero_and_infinity(backend: ArrayBackend, dtype: str) -> None:
    x = np.array([np.nan, 0.0, -0.0, np.inf, -np.inf, -2.0]).astype(dtype_of(dtype))
    grad = np.full(6, 3.0).astype(x.dtype)
    some = x[[0, 1, 3, 5]]  # without what times a slope of zero is NaN
    for result, expected in (
        (backend.run(F.relu, x), [np.nan, 0, 0, np.inf, 0, 0]),
        (backend.run(F.relu_backward, grad, x)[0], [3, 0, 0, 3, 0, 0]),
        (backend.run(F.leaky_relu, x, 0.5), [np.nan, 0, 0, np.inf, -np.inf, -1]),
        (backend.run(F.leaky_relu, some, 0.0), [np.nan, 0, np.inf, 0]),
        (backend.run(F.leaky_relu_backward, grad, x, 0.5)[0], [1.5, 1.5, 1.5, 3, 1.5, 1.5]),
    ):
        np.testing.assert_array_equal(result.astype(np.float64), expected)


# --- Sigmoid and GELU ---------------------------------------------------------------------------------------------

SMOOTH: list[tuple[str, dict[str, Any]]] = [("sigmoid", {}), ("gelu", {}), ("gelu", {"approximate": "tanh"})]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shares_of_the_normal_distribution_are_as_exact_as_they_say(backend: ArrayBackend, dtype: str) -> None:
    limit = {"float32": 12.0, "float64": 37.0}[dtype]  # beyond it the share is no normal number
    x = np.concatenate([np.linspace(-limit, limit, 20001), [0.0, 1e-8, -1e-8, 40, BOUND]]).astype(dtype)
    shares = np.array([math.erfc(-float(v) / math.sqrt(2)) / 2 for v in x])
    densities = np.array([math.exp(-(float(v) ** 2) / 2) / math.sqrt(2 * math.pi) for v in x])
    share, density = backend.run(lambda array: normal_share_and_density(backend.primitives.xp, array), x)
    assert share.dtype == density.dtype == dtype
    square = np.minimum(x.astype(float) ** 2, limit**2)
    units = np.where(shares >= 0.01, 3, (4 + square) / 2)
    if dtype == "float64":  # in which the oracle rounds its argument, and libraries of C differ by as much
        units += 4 + square
    unit = np.finfo(dtype).eps
    assert (np.abs(share - shares) <= units * unit * shares).all()
    assert (np.abs(density - densities) <= (4 + square) * unit * densities + np.finfo(dtype).tiny).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sigmoids_are_exact_relative_to_themselves(backend: ArrayBackend, dtype: str) -> None:
    x = np.linspace(-80, 80, 4001).astype(dtype)
    expected = reference.sigmoid(x)
    assert (np.abs(backend.run(F.sigmoid, x) - expected) <= 3 * np.finfo(dtype).eps * expected).all()
    expected = reference.sigmoid_backward(np.ones_like(x), x)
    (slope,) = backend.run(F.sigmoid_backward, np.ones_like(x), x)
    assert (np.abs(slope - expected) <= 4 * np.finfo(dtype).eps * expected).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("name", "options"), SMOOTH, ids=str)
def test_smooth_activations_of_what_is_large_are_finite(
    backend: ArrayBackend, name: str, options: dict[str, Any], dtype: str
) -> None:
    most = float(ml_dtypes.finfo(dtype_of(dtype)).max)
    x = np.array([-most, -1000.0, 1000.0, most, np.nan, np.inf]).astype(dtype_of(dtype))
    y = backend.run(getattr(F, name), x, **options).astype(float)
    (gx,) = backend.run(getattr(F, f"{name}_backward"), np.ones_like(x), x, **options)
    np.testing.assert_array_equal(y[:4], [0, 0, 1, 1] if name == "sigmoid" else [0, 0, *x[2:4].astype(float)])
    np.testing.assert_array_equal(gx[:4].astype(float), [0, 0, 0, 0] if name == "sigmoid" else [0, 0, 1, 1])
    assert np.isnan(y[4])
    assert np.isnan(gx[4].astype(float))
    assert y[5] == (1 if name == "sigmoid" else np.inf)


# --- Softmax ------------------------------------------------------------------------------------------------------

SOFTMAX = ("softmax", "log_softmax")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax_gradients_are_the_same_with_the_output_handed_over(
    backend: ArrayBackend, name: str, dtype: str, rng: np.random.Generator
) -> None:
    x, grad = (numbers(rng, (2, 4, 3), dtype) for _ in range(2))
    backward = getattr(F, name + "_backward")
    output = backend.run(getattr(F, name), x, 1)
    (gx,), (same,) = backend.run(backward, grad, x, 1), backend.run(backward, grad, x, 1, output=output)
    assert_close(same, gx.astype(np.float64), x.dtype)  # the output is rounded to its dtype
    assert x.itemsize == 2 or same.tobytes() == gx.tobytes()
    (used,) = backend.run(backward, grad, x, 1, output=np.full_like(output, np.nan))
    assert np.isnan(used.astype(np.float64)).all()


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_softmax_of_large_and_infinite_numbers_neither_overflows_nor_warns(backend: ArrayBackend, dtype: str) -> None:
    x = np.array([[1e4, 0, -1e4], [1e30, 1e30, 0], [0, 0, -np.inf]]).astype(dtype_of(dtype))
    half = np.log(0.5)
    top = float(x[0, 0])
    logs = np.array([[0, -top, -2 * top], [half, half, -float(x[1, 0])], [half, half, -np.inf]])
    expected = np.array([[1, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0]])
    assert_close(backend.run(F.softmax, x, 1), expected, x.dtype)
    actual = backend.run(F.log_softmax, x, 1).astype(np.float64)
    np.testing.assert_allclose(actual, logs, rtol=1e-2 if dtype == "bfloat16" else 1e-6)
    grad = np.ones_like(x)
    assert_close(backend.run(F.softmax_backward, grad, x, 1)[0], np.zeros((3, 3)), x.dtype)
    assert_close(backend.run(F.log_softmax_backward, grad, x, 1)[0], 1 - 3 * expected, x.dtype)


@pytest.mark.parametrize("name", SOFTMAX)
def test_nan_spoils_only_its_row(backend: ArrayBackend, name: str) -> None:
    x = np.array([[0.0, np.nan, 1.0], [0.0, 1.0, 2.0]])
    y = backend.run(getattr(F, name), x, 1)
    (gx,) = backend.run(getattr(F, name + "_backward"), np.ones_like(x), x, 1)
    for result in (y, gx):
        np.testing.assert_array_equal(np.isnan(result), [[True] * 3, [False] * 3])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_softmax_keeps_the_sums_of_16_bits_in_float32(backend: ArrayBackend, dtype: str) -> None:
    x = np.zeros((1, 5000), dtype_of(dtype))
    np.testing.assert_allclose(backend.run(F.softmax, x, 1).astype(np.float64), 1 / 5000, rtol=8e-3)
    assert_close(backend.run(F.log_softmax, x, 1), np.full(x.shape, -np.log(5000)), x.dtype)
    (gx,) = backend.run(F.log_softmax_backward, np.ones_like(x), x, 1)
    np.testing.assert_allclose(gx.astype(np.float64), 0, atol=1e-4)
