"""Bias, residual and activation in one pass: the output handed over, one rounding, special values."""

from __future__ import annotations

import numpy as np
import pytest
from array_backends import ArrayBackend
from convolution_cases import bits
from strategies import numbers

import gpucnn.functional as F

FLOATS = ("float32", "float64", "float16", "bfloat16")


@pytest.mark.table(36)
@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "relu6"])
@pytest.mark.parametrize("slope", [0.3, 0.0, -0.5])
@pytest.mark.parametrize("dtype", FLOATS)
def test_gradients_are_the_same_with_the_output_handed_over(
    backend: ArrayBackend, dtype: str, activation: str, slope: float
) -> None:
    """Also where a slope turns the signs, so that the output's say nothing."""
    rng = np.random.default_rng(3)
    x, residual, grad = (numbers(rng, (2, 33, 5, 10), dtype) for _ in range(3))
    arguments = (x, numbers(rng, (33,), dtype), residual, activation, slope)
    y = backend.run(F.bias_activation, *arguments)
    assert bits(backend.run(F.bias_activation_backward, grad, *arguments, output=y)) == bits(
        backend.run(F.bias_activation_backward, grad, *arguments)
    )


def test_sums_of_16_bits_are_rounded_once(backend: ArrayBackend) -> None:
    x = np.full((1, 1, 1), 2048, np.float16)
    one = np.ones(1, np.float16)
    y = backend.run(F.bias_activation, x, one, np.ones((1, 1, 1), np.float16), "none")
    assert y.item() == 2050  # 2048 + 1 alone rounds to 2048


def test_relu6_ends_at_6(backend: ArrayBackend) -> None:
    x = np.array([[[np.nan, -np.inf, -1.0, -0.0, 0.5, 5.5, 6.0, 7.0, np.inf]]], np.float32)
    y = backend.run(F.bias_activation, x, None, None, "relu6")
    np.testing.assert_array_equal(y, [[[np.nan, 0, 0, 0, 0.5, 5.5, 6, 6, 6]]])
    for output in (None, y):
        (gx, _, _) = backend.run(F.bias_activation_backward, x + 1, x, None, None, "relu6", output=output)
        np.testing.assert_array_equal(gx, [[[np.nan, 0, 0, 0, 1.5, 6.5, 0, 0, 0]]])


def test_special_values(backend: ArrayBackend) -> None:
    x = np.array([[[np.nan, -np.inf, np.inf, -0.0, -2.0, 3.0]]], np.float32)
    grad = np.full(x.shape, 3, np.float32)
    for activation, unary in (("relu", F.relu), ("leaky_relu", F.leaky_relu)):
        y = backend.run(F.bias_activation, x, None, None, activation)
        np.testing.assert_array_equal(y, backend.run(unary, x))
        backward = getattr(F, f"{activation}_backward")
        (gx, _, _) = backend.run(F.bias_activation_backward, grad, x, None, None, activation)
        np.testing.assert_array_equal(gx, backend.run(backward, grad, x)[0])
