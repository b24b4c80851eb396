"""Bias, residual and activation in one pass: the output handed over, one rounding, special values."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from array_backends import ArrayBackend
from convolution_cases import bits
from strategies import ORDERS, arranged, numbers

import gpucnn.functional as F

FLOATS = ("float32", "float64", "float16", "bfloat16")
SMOOTH = ("sigmoid", "hard_sigmoid", "silu", "hard_swish", "gelu", "gelu_tanh")


@pytest.mark.table(36)
@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "relu6", *SMOOTH])
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


@pytest.mark.table(24)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("activation", SMOOTH)
def test_smooth_activations_are_those_of_the_definition(
    backend: ArrayBackend, activation: str, dtype: str, order: str
) -> None:
    rng = np.random.default_rng(5)
    x, residual, grad = (arranged(4 * numbers(rng, (2, 19, 5, 10), dtype), order) for _ in range(3))
    bias = numbers(rng, (19,), dtype)
    total = reference.wide(x) + reference.wide(bias)[:, None, None] + reference.wide(residual)
    expected = reference.smooth_activation(total, activation)
    y = backend.run(F.bias_activation, x, bias, residual, activation)
    unit = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    within = 4 * unit if dtype in ("float32", "float64") else 0.6 * unit  # which is rounded once
    assert y.dtype == x.dtype
    # a sum is rounded before: of a large one the activation turns that into as much
    np.testing.assert_allclose(
        reference.wide(y), expected, rtol=within, atol=within * (1 + np.abs(total).max() if within < 1e-6 else 0.01)
    )

    gradients = backend.run(F.bias_activation_backward, grad, x, bias, residual, activation)
    slopes = reference.smooth_activation_backward(grad, total, activation)
    coarse = (8 if within < 1e-6 else 3) * unit * float(np.abs(reference.wide(grad)).max())
    inside = np.abs(np.abs(total) - 3) > 0.1  # where "hard_" ones have no corner
    for found in (gradients[0], gradients[2]):
        np.testing.assert_allclose(reference.wide(found)[inside], slopes[inside], rtol=0, atol=coarse)
    unrounded = reference.smooth_activation_backward(grad, total.astype(x.dtype), activation)
    sums = unrounded.sum(axis=(0, 2, 3))
    np.testing.assert_allclose(reference.wide(gradients[1]), sums, rtol=unit, atol=100 * 2.0**-23)


@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize("dtype", FLOATS)
def test_smooth_activations_of_special_values(backend: ArrayBackend, dtype: str, activation: str) -> None:
    """As PyTorch has them: a share of 0 of an infinity is no number; and gradients beyond all exponentials."""
    values = [np.nan, np.inf, -np.inf, -0.0, 0.0, 3.0, -3.0, 1200.0, -1200.0, 1e-3]
    x = np.tile(np.array(values), 4).reshape(2, 4, 5).astype(numbers(np.random.default_rng(0), (1,), dtype).dtype)
    is_share, half = activation.endswith("sigmoid"), 0.5 if activation.endswith("sigmoid") else 0.0
    y = reference.wide(backend.run(F.bias_activation, x, None, None, activation)).reshape(4, -1)
    ends = [1.0, 0.0] if is_share else [np.inf, np.nan]
    np.testing.assert_array_equal(y[:, :5], np.tile([np.nan, *ends, half, half], (4, 1)))
    assert is_share or np.signbit(y[:, 3]).all()
    near = reference.smooth_activation(x.reshape(4, -1)[:, 5:], activation)
    np.testing.assert_allclose(y[:, 5:], near, rtol=2.0**-7, atol=2.0**-20)
    grad = np.ones_like(x)
    (gx, _, _) = backend.run(F.bias_activation_backward, grad, x, None, None, activation)
    one = 0.0 if is_share else 1.0
    at_zero = {"sigmoid": 0.25, "hard_sigmoid": 1 / 6}.get(activation, 0.5)
    slopes = reference.wide(gx).reshape(4, -1)
    expected = np.tile([np.nan, one, 0, at_zero, at_zero, one, 0, one, 0], (4, 1))
    if activation == "hard_sigmoid":
        expected[:, 0] = 0  # as in PyTorch
    corners = [5, 6] if activation.startswith("hard") else []
    kept = [0, 1, 2, 3, 4, 7, 8, *corners]
    np.testing.assert_allclose(slopes[:, kept], expected[:, kept], rtol=2.0**-8, atol=0)
