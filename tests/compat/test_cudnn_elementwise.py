"""cuDNN's activations and softmax against their definitions, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference_norms
from array_backends import ArrayBackend
from refusals import refuses
from strategies import ORDERS, arranged, numbers
from tolerances import assert_close

from gpucnn.compat import cudnn

Array = np.ndarray[Any, Any]
COEF = 0.75
DTYPES = ["float16", "float32", "float64"]

Function = Callable[[float], float]
ACTIVATIONS: dict[str, tuple[int, Function, Function]] = {  # the constant, the function and its slope
    "sigmoid": (0, lambda x: 1 / (1 + math.exp(-x)), lambda x: math.exp(-x) / (1 + math.exp(-x)) ** 2),
    "relu": (1, lambda x: max(x, 0), lambda x: float(x > 0)),
    "tanh": (2, math.tanh, lambda x: 1 / math.cosh(x) ** 2),
    "clipped relu": (3, lambda x: min(max(x, 0), COEF), lambda x: float(0 < x < COEF)),
    "elu": (4, lambda x: x if x > 0 else COEF * math.expm1(x), lambda x: 1 if x > 0 else COEF * math.exp(x)),
}


@pytest.mark.table(15)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(backend: ArrayBackend, rng: np.random.Generator, name: str, order: str, dtype: str) -> None:
    mode, function, slope = ACTIVATIONS[name]
    x, gy = (arranged(numbers(rng, (3, 4, 5), dtype), order) for _ in range(2))
    x[0, 0, :3] = 0, COEF, 4
    x[0, 1, :2] = -4, -0.0
    y = backend.run(cudnn.activation_forward, x, mode, COEF)
    assert_close(y, reference_norms.each(function, x), dtype)
    expected = gy.astype(np.float64) * reference_norms.each(slope, x)
    # of y, which is rounded, as cuDNN computes it
    assert_close(backend.run(cudnn.activation_backward, x, y, gy, mode, COEF), expected, dtype, factor=2)


@pytest.mark.parametrize("shape", [(), (0, 3), (7,)])
def test_any_shape(backend: ArrayBackend, shape: tuple[int, ...]) -> None:
    x = np.ones(shape)
    for mode, function, _ in ACTIVATIONS.values():
        y = backend.run(cudnn.activation_forward, x, mode, COEF)
        assert_close(y, np.full(shape, function(1.0)), "float64")
        assert backend.run(cudnn.activation_backward, x, x, x, mode, COEF).shape == shape


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_and_infinity(backend: ArrayBackend, name: str) -> None:
    mode = ACTIVATIONS[name][0]
    with np.errstate(divide="raise", over="raise", invalid="raise"):
        y = backend.run(cudnn.activation_forward, np.array([np.nan, np.inf, -np.inf, 1e30, -1e30]), mode, COEF)
    limits = {
        "sigmoid": [1, 0], "relu": [np.inf, 0], "tanh": [1, -1], "clipped relu": [COEF, 0], "elu": [np.inf, -COEF],
    }  # fmt: skip
    most, least = limits[name]
    np.testing.assert_array_equal(y, [np.nan, most, least, 1e30 if most == np.inf else most, least])


def test_an_infinite_gradient_does_not_pass_a_closed_unit(backend: ArrayBackend) -> None:
    x, gy = np.array([-1.0, 9.0]), np.array([np.inf, np.nan])
    for mode, expected in ((1, [0, np.nan]), (3, [0, 0])):
        np.testing.assert_array_equal(backend.run(cudnn.activation_backward, x, x, gy, mode, COEF), expected)


FAST, ACCURATE, LOG = range(3)


@pytest.mark.table(15)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("axis", "dim"), [(0, 0), (1, 1), (-1, 3), (-4, 0), (2, 2)])
@pytest.mark.parametrize("algorithm", [FAST, ACCURATE, LOG])
def test_softmax(
    backend: ArrayBackend, rng: np.random.Generator, algorithm: int, axis: int, dim: int, dtype: str
) -> None:
    x, gy = (numbers(rng, (2, 3, 4, 2), dtype) for _ in range(2))
    is_log = algorithm == LOG
    forward = reference_norms.log_softmax if is_log else reference_norms.softmax
    backward = reference_norms.log_softmax_backward if is_log else reference_norms.softmax_backward
    y = backend.run(cudnn.softmax_forward, x, axis, algorithm)
    assert_close(y, forward(x, dim), dtype)
    assert_close(backend.run(cudnn.softmax_backward, y, gy, axis, algorithm), backward(gy, x, dim), dtype, factor=4)


def test_softmax_of_large_numbers(backend: ArrayBackend) -> None:
    x = np.array([[1e4, 0.0]])
    for algorithm, expected in ((FAST, [1, 0]), (ACCURATE, [1, 0]), (LOG, [0, -1e4])):
        np.testing.assert_array_equal(backend.run(cudnn.softmax_forward, x, 1, algorithm)[0], expected)


X = np.ones((2, 3))

test_wrong_values = refuses(
    ValueError,
    (
        "activation_forward: mode is 5, expected 0 (CUDNN_ACTIVATION_SIGMOID), 1 (CUDNN_ACTIVATION_RELU), "
        "2 (CUDNN_ACTIVATION_TANH), 3 (CUDNN_ACTIVATION_CLIPPED_RELU), 4 (CUDNN_ACTIVATION_ELU)",
        lambda: cudnn.activation_forward(X, cudnn.CUDNN_ACTIVATION_IDENTITY),
    ),
    ("activation_forward: coef is nan, expected a finite number", lambda: cudnn.activation_forward(X, 3, math.nan)),
    (
        "activation_backward: gy has shape (3,), expected that of x, (2, 3)",
        lambda: cudnn.activation_backward(X, X, X[0], 1),
    ),
    (
        "activation_backward: y has shape (2,), expected that of x, (2, 3)",
        lambda: cudnn.activation_backward(X, X[:, 0], X, 1),
    ),
    (
        "softmax_forward: algorithm is 3, expected 0 (CUDNN_SOFTMAX_FAST), 1 (CUDNN_SOFTMAX_ACCURATE), "
        "2 (CUDNN_SOFTMAX_LOG)",
        lambda: cudnn.softmax_forward(X, 1, 3),
    ),
    (
        "softmax_forward: axis is 2, expected less than x's 2 dimensions",
        lambda: cudnn.softmax_forward(X, 2, 1),
    ),
    ("softmax_forward: axis is -3, expected at least -2", lambda: cudnn.softmax_forward(X, -3, 1)),
    (
        "softmax_backward: gy has shape (2, 1), expected that of y, (2, 3)",
        lambda: cudnn.softmax_backward(X, X[:, :1], 1, 1),
    ),
)

test_wrong_types = refuses(
    TypeError,
    (
        "activation_forward: x has dtype int64, expected float16, float32, float64",
        lambda: cudnn.activation_forward(np.ones(3, np.int64), 1),
    ),
    (
        "activation_backward: x has dtype float64 and gy float32, expected one dtype for all",
        lambda: cudnn.activation_backward(X, X, X.astype(np.float32), 1),
    ),
    ("activation_forward: x is of type list, expected an array", lambda: cudnn.activation_forward([1.0], 1)),
    ("softmax_forward: axis is 1.0, expected an integer", lambda: cudnn.softmax_forward(X, 1.0, 1)),  # type: ignore[arg-type]
)
