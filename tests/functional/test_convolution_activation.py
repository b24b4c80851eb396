"""Convolution with an epilogue: it has the bits of the convolution and of bias_activation after it."""

from __future__ import annotations

import numpy as np
import pytest
from array_backends import ArrayBackend
from convolution_cases import Layer, bits, layers
from hypothesis import given
from hypothesis import strategies as st
from sample import examples
from strategies import FLOATS, ORDERS, arranged, numbers

import gpucnn.functional as F

ACTIVATIONS = (
    *("none", "relu", "leaky_relu", "relu6"),
    *("sigmoid", "hard_sigmoid", "silu", "hard_swish", "gelu", "gelu_tanh"),
)


@examples(400)
@given(
    layer=layers(FLOATS),
    activation=st.sampled_from(ACTIVATIONS),
    order=st.sampled_from((None, *ORDERS)),
    with_bias=st.booleans(),
)
def test_results_have_the_bits_of_one_after_the_other(
    backend: ArrayBackend, layer: Layer, activation: str, order: str | None, with_bias: bool
) -> None:
    x, w, b, grad = layer.arrays()
    bias = b if with_bias else None
    y = backend.run(layer.op(), x, w, bias, **layer.options)
    batched = layer.batch is not None
    residual = None
    if order is not None:
        residual = arranged(numbers(np.random.default_rng(2), grad.shape, layer.dtype), order, batched)
    images = [layer.with_batch(y), None if residual is None else layer.with_batch(residual)]
    expected = layer.without(backend.run(F.bias_activation, images[0], None, images[1], activation))
    options = {**layer.options, "residual": residual, "activation": activation}
    result = backend.run(layer.op("_activation"), x, w, bias, **options)
    assert bits(result) == bits(expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("groups", [1, 20])
@pytest.mark.parametrize("kernel", [1, 3])
def test_special_values(backend: ArrayBackend, kernel: int, groups: int, activation: str) -> None:
    """Of sums that are NaN, infinite or -0, in each channel another one."""
    x = np.zeros((1, 20, 12, 12), np.float32)
    bias = np.tile(np.array([np.nan, -np.inf, np.inf, -0.0, -2.0, 3.0, 7.0, 0.0, 6.0, -1e-45], np.float32), 2)
    w = np.full((20, 20 // groups, kernel, kernel), -0.0, np.float32)
    padding = kernel // 2
    y = backend.run(F.conv2d, x, w, bias, padding=padding, groups=groups)
    result = backend.run(F.conv2d_activation, x, w, bias, padding=padding, groups=groups, activation=activation)
    assert bits(result) == bits(backend.run(F.bias_activation, y, None, None, activation))


@pytest.mark.parametrize("slope", [0.3, 0.0, -0.5])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_are_the_same_with_the_output_handed_over(
    backend: ArrayBackend, activation: str, slope: float
) -> None:
    """Also where a slope turns the signs, so that the output's say nothing."""
    rng = np.random.default_rng(3)
    x, residual, grad = (numbers(rng, (2, 6, 9, 8), "float32") for _ in range(3))
    w = numbers(rng, (6, 3, 3, 3), "float32")
    options = {"padding": 1, "groups": 2, "residual": residual, "activation": activation, "negative_slope": slope}
    y = backend.run(F.conv2d_activation, x, w, None, **options)
    first = backend.run(F.conv2d_activation_backward, grad, x, w, None, **options, output=y)
    second = backend.run(F.conv2d_activation_backward, grad, x, w, None, **options)
    assert bits(first) == bits(second)
