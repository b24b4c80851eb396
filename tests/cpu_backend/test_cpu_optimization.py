"""Compiled steps of optimisers: the bits of NumPy's, whose blocks have those of the whole arrays."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from strategies import numbers

from gpucnn.backends import backend_named, optimization
from gpucnn.backends.numpy.optimization import BLOCK
from gpucnn.backends.optimization import AdamStep, Descent

Array = np.ndarray[Any, Any]
DTYPES = ("float32", "float64")
SHAPES: tuple[tuple[int, ...], ...] = ((), (1,), (7,), (33, 5), (61, 77), (2 * BLOCK + 3,), (64, 8, 3, 3), (0, 3))
SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0)

DESCENT = Descent(0.1, 0.9, 0.7, 0.01, nesterov=False, maximize=False, is_first=False)
DESCENTS = [
    DESCENT._replace(weight_decay=decay, nesterov=nesterov, maximize=maximize, is_first=first)
    for decay, nesterov, maximize, first in product((0.0, 0.01), *[(False, True)] * 3)
]
ADAM = AdamStep(0.03, 0.1, 0.999, 0.001, 0.3, 1e-8, 0.0, 1.0, maximize=False)
ADAMS = [
    ADAM._replace(weight_decay=decay, shrinkage=shrinkage, maximize=maximize)
    for decay, shrinkage, maximize in ((0.0, 1.0, False), (0.1, 1.0, True), (0.0, 0.97, False))
]


def filled(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Random numbers, some of them zero, infinite or NaN."""
    values = np.asarray(numbers(rng, shape, dtype))
    if values.size > 1:
        where = rng.random(shape) < 0.05
        values[where] = rng.choice(SPECIAL, int(where.sum()))
    return values


def expect_same_bits(method: str, arrays: list[Array | None], step: Any) -> None:
    """Compare what the plain function, NumPy's and the compiled backend make of copies of the arrays."""
    results = []
    for update in (
        lambda *given: getattr(optimization, method)(np, *given),
        getattr(backend_named("numpy"), method),
        getattr(backend_named("compiled"), method),
    ):
        copies = [None if array is None else array.copy(order="K") for array in arrays]
        with np.errstate(all="ignore"):
            update(*copies, step)
        results.append(copies)
    for plain, *others in zip(*results, strict=True):
        for other in others:
            np.testing.assert_array_equal(other, plain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_descent(shape: tuple[int, ...], dtype: str) -> None:
    rng = np.random.default_rng(len(shape))
    data, grad, velocity = (filled(rng, shape, dtype) for _ in range(3))
    for step in DESCENTS:
        expect_same_bits("sgd", [data, grad, velocity], step)
        expect_same_bits("sgd", [data, grad, None], step._replace(nesterov=False))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_adam(shape: tuple[int, ...], dtype: str) -> None:
    rng = np.random.default_rng(len(shape))
    data, grad, mean, square, most = (filled(rng, shape, dtype) for _ in range(5))
    for step in ADAMS:
        expect_same_bits("adam", [data, grad, mean, np.asarray(abs(square)), None], step)
        expect_same_bits("adam", [data, grad, mean, np.asarray(abs(square)), np.asarray(abs(most))], step)


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_any_order(dtype: str) -> None:
    """A gradient whose channels are innermost is that of a convolution's weight."""
    rng = np.random.default_rng(3)
    arrays = [numbers(rng, (64, 3, 3, 8), dtype) for _ in range(3)]
    for turned in product((False, True), repeat=3):
        given = [
            np.moveaxis(array, -1, 1) if turn else np.ascontiguousarray(np.moveaxis(array, -1, 1))
            for array, turn in zip(arrays, turned, strict=True)
        ]
        expect_same_bits("sgd", list(given), DESCENT)
        expect_same_bits("adam", [*given[:2], given[2], abs(given[2]), None], ADAM)
    expect_same_bits("sgd", [arrays[0], arrays[1][..., ::-1], None], DESCENT)
    expect_same_bits("sgd", [arrays[0], arrays[1].astype("float16"), None], DESCENT)
