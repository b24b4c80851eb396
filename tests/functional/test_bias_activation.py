"""Bias, residual and activation in one pass, and their gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend
from strategies import ORDERS, arranged, numbers
from tolerances import assert_close

import gpucnn.functional as F

ACTIVATIONS = ("none", "relu", "leaky_relu")
FLOATS = ("float32", "float64", "float16", "bfloat16")
SHAPES = ((2, 3, 5, 7), (4, 6), (1, 33, 50), (2, 4, 2, 3, 4))


def drawn(shape: tuple[int, ...], dtype: str, order: str = "contiguous") -> list[Any]:
    rng = np.random.default_rng(len(shape))
    x, residual, grad = (arranged(numbers(rng, shape, dtype), order) for _ in range(3))
    return [grad, x, numbers(rng, shape[1:2], dtype), residual]


def exact_sum(x: Any, bias: Any, residual: Any) -> Any:
    total = x.astype(np.float64)
    if bias is not None:
        total = total + bias.astype(np.float64).reshape(-1, *(1,) * (x.ndim - 2))
    return total if residual is None else total + residual.astype(np.float64)


def activated(total: Any, activation: str) -> Any:
    return {"none": total, "relu": np.maximum(total, 0), "leaky_relu": np.where(total > 0, total, 0.3 * total)}[
        activation
    ]


def slopes(total: Any, activation: str) -> Any:
    return {"none": np.ones_like(total), "relu": total > 0, "leaky_relu": np.where(total > 0, 1, 0.3)}[activation]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(backend: ArrayBackend, shape: tuple[int, ...], dtype: str, activation: str) -> None:
    grad, x, bias, residual = drawn(shape, dtype)
    for given in ((bias, residual), (bias, None), (None, residual), (None, None)):
        total = exact_sum(x, *given)
        y = backend.run(F.bias_activation, x, *given, activation, 0.3)
        assert_close(y, activated(total, activation), x.dtype)
        for output in (None, y):
            gradients = backend.run(F.bias_activation_backward, grad, x, *given, activation, 0.3, output=output)
            expected = grad.astype(np.float64) * slopes(total, activation)
            assert_close(gradients[0], expected, x.dtype)
            assert [gradient is None for gradient in gradients[1:]] == [array is None for array in given]
            if given[0] is not None:
                axes = (0, *range(2, x.ndim))
                scale = np.abs(expected).sum(axis=axes)
                assert (np.abs(gradients[1].astype(np.float64) - expected.sum(axis=axes)) <= 1e-2 * scale + 1e-2).all()
            if given[1] is not None:
                np.testing.assert_array_equal(gradients[2], gradients[0])
                assert not np.shares_memory(gradients[2], gradients[0])


@pytest.mark.parametrize("order", ORDERS)
def test_memory_orders(backend: ArrayBackend, order: str) -> None:
    plain, turned = drawn((2, 5, 4, 6), "float32"), drawn((2, 5, 4, 6), "float32", order)
    expected = backend.run(F.bias_activation, *plain[1:])
    for residual in (plain[3], turned[3]):
        y = backend.run(F.bias_activation, turned[1], turned[2], residual)
        np.testing.assert_array_equal(y, expected)
        gradients = backend.run(F.bias_activation_backward, turned[0], turned[1], turned[2], residual)
        for gradient, other in zip(gradients, backend.run(F.bias_activation_backward, *plain), strict=True):
            np.testing.assert_allclose(gradient, other, rtol=1e-5, atol=1e-6)
    if order in ("contiguous", "channels_last"):
        assert y.strides == gradients[0].strides == turned[1].strides


def test_sums_of_16_bits_are_rounded_once(backend: ArrayBackend) -> None:
    x = np.full((1, 1, 1), 2048, np.float16)
    one = np.ones(1, np.float16)
    y = backend.run(F.bias_activation, x, one, np.ones((1, 1, 1), np.float16), "none")
    assert y.item() == 2050  # 2048 + 1 alone rounds to 2048


def test_special_values(backend: ArrayBackend) -> None:
    x = np.array([[[np.nan, -np.inf, np.inf, -0.0, -2.0, 3.0]]], np.float32)
    grad = np.full(x.shape, 3, np.float32)
    for activation, unary in (("relu", F.relu), ("leaky_relu", F.leaky_relu)):
        y = backend.run(F.bias_activation, x, None, None, activation)
        np.testing.assert_array_equal(y, backend.run(unary, x))
        backward = getattr(F, f"{activation}_backward")
        (gx, _, _) = backend.run(F.bias_activation_backward, grad, x, None, None, activation)
        np.testing.assert_array_equal(gx, backend.run(backward, grad, x)[0])


@pytest.mark.parametrize("slope", [0.0, -0.5])
def test_slopes_that_turn_the_signs(backend: ArrayBackend, slope: float) -> None:
    grad, x, bias, residual = drawn((2, 3, 4), "float32")
    total = exact_sum(x, bias, residual)
    y = backend.run(F.bias_activation, x, bias, residual, "leaky_relu", slope)
    gx = backend.run(F.bias_activation_backward, grad, x, bias, residual, "leaky_relu", slope, output=y)[0]
    np.testing.assert_allclose(gx, grad * np.where(total > 0, 1, slope), rtol=1e-6)


def test_what_is_not_needed_is_left_out(backend: ArrayBackend) -> None:
    given = drawn((2, 3, 4), "float32")
    whole = backend.run(F.bias_activation_backward, *given)
    for needs in ((True, False, False), (False, True, False), (False, False, True), (False, False, False)):
        some = backend.run(F.bias_activation_backward, *given, needs=needs)
        for one, other, need in zip(some, whole, needs, strict=True):
            assert (one is not None) == need
            if need:
                np.testing.assert_array_equal(one, other)


def test_empty_batches(backend: ArrayBackend) -> None:
    x, bias = np.ones((0, 3, 4), np.float32), np.ones(3, np.float32)
    assert backend.run(F.bias_activation, x, bias).shape == (0, 3, 4)
    gx, gb, _ = backend.run(F.bias_activation_backward, x, x, bias)
    assert gx.shape == (0, 3, 4)
    np.testing.assert_array_equal(gb, np.zeros(3, np.float32))


def test_convolution_and_its_bias_in_two_steps(backend: ArrayBackend) -> None:
    rng = np.random.default_rng(2)
    x, w, b = (numbers(rng, shape, "float64") for shape in ((2, 3, 6, 6), (4, 3, 3, 3), (4,)))
    y = backend.run(F.bias_activation, backend.run(F.conv2d, x, w), b)
    np.testing.assert_allclose(y, backend.run(F.relu, backend.run(F.conv2d, x, w, b)), atol=1e-12)
