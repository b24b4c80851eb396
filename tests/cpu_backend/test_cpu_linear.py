"""Compiled fully connected layers: the results of BLAS, over sizes around vectors and blocks, and memory orders."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
from strategies import numbers
from tolerances import assert_close

import gpucnn
from gpucnn.backends import backend_named
from gpucnn.backends.cpu import linear

Array = np.ndarray[Any, Any]
DTYPES = ("float32", "float64")
ROWS = (1, 3, 4, 7, linear.MAX_ROWS, linear.MAX_ROWS + 1)
SIZES = ((1, 1), (37, 171), (1030, 4), (515, 9), (16, 258), (64, 64), (2100, 300))  # inputs and outputs


def calls(rng: np.random.Generator, n: int, inputs: int, outputs: int, dtype: str) -> Iterator[tuple[str, Any, Any]]:
    """By name of a primitive its arguments, and the shape of its result."""
    x, w, bias, grad = (
        numbers(rng, shape, dtype) for shape in ((n, inputs), (outputs, inputs), (outputs,), (n, outputs))
    )
    yield "linear", (x, w, bias), (n, outputs)
    yield "linear", (x, w, None), (n, outputs)
    yield "linear_backward_input", (grad, w), (n, inputs)
    yield "linear_backward_weight", (x, grad), (outputs, inputs)


def computed(name: str, arguments: Any, shape: tuple[int, ...], backend: str = "compiled") -> Array:
    result = np.full(shape, 7, arguments[0].dtype)
    getattr(backend_named(backend), name)(*arguments, result)
    return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
def test_results_are_those_of_exact_sums(dtype: str, rows: int) -> None:
    rng = np.random.default_rng(rows)
    for inputs, outputs in SIZES:
        for name, arguments, shape in calls(rng, rows, inputs, outputs, dtype):
            found = computed(name, arguments, shape)
            wide = tuple(None if each is None else each.astype(np.longdouble) for each in arguments)
            x, other, *bias = wide
            products = {"linear": lambda x, w: x @ w.T, "linear_backward_input": np.matmul}
            exact = products.get(name, lambda x, grad: grad.T @ x)(x, other)
            exact = exact if not bias or bias[0] is None else exact + bias[0]
            assert_close(found, exact.astype(np.float64), dtype)


def test_arrays_that_are_not_in_c_order_are_taken() -> None:
    rng = np.random.default_rng(0)
    for name, arguments, shape in calls(rng, 4, 37, 171, "float32"):
        expected = computed(name, arguments, shape)
        for turned in product((False, True), repeat=2):
            given = (
                *(np.asfortranarray(each) if turn else each for turn, each in zip(turned, arguments, strict=False)),
                *arguments[2:],
            )
            result = np.full(shape[::-1], 7, np.float32).T
            getattr(backend_named("compiled"), name)(*given, result)
            assert_close(result, expected)


def test_bits_do_not_depend_on_threads() -> None:
    rng = np.random.default_rng(1)
    before = gpucnn.get_num_threads()
    try:
        for name, arguments, shape in calls(rng, 4, 2100, 300, "float32"):
            results = []
            for threads in (1, 3):
                gpucnn.set_num_threads(threads)
                results.append(computed(name, arguments, shape).tobytes())
            assert results[0] == results[1]
    finally:
        gpucnn.set_num_threads(before)


@pytest.mark.parametrize("name", ["linear", "linear_backward_input", "linear_backward_weight"])
def test_what_is_not_finite_stays_where_it_counts(name: str) -> None:
    rng = np.random.default_rng(2)
    for found, arguments, shape in calls(rng, 4, 37, 171, "float32"):
        if found != name:
            continue
        arguments[0][1, 3], arguments[1][2, 5] = np.nan, np.inf
        compiled, plain = (computed(name, arguments, shape, backend) for backend in ("compiled", "numpy"))
        np.testing.assert_array_equal(np.isfinite(compiled), np.isfinite(plain))
