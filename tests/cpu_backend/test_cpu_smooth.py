"""Softmax and the smooth activations in C++: each form of the kernels, and how exact their exponential is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from strategies import arranged

import gpucnn
from gpucnn.backends import Epilogue, smooth
from gpucnn.backends.cpu import CompiledBackend, builds
from gpucnn.backends.layout import outermost_first
from gpucnn.backends.normal import COEFFICIENTS

Array = np.ndarray[Any, Any]

KERNELS = CompiledBackend()
DTYPES = ("float32", "float64")
ORDERS = ("contiguous", "channels_last", "strided", "reversed")
CALLS: list[tuple[tuple[int, ...], int]] = [
    ((5,), 0),
    ((3, 1), 1),
    ((7, 10), 1),
    ((6, 37), 1),
    ((2, 9000), 1),  # more than a piece
    ((300, 70), 0),  # lanes whose sums are added block by block
    ((2, 21, 9, 11), 1),
    ((2, 3, 5, 130), 2),
    ((3, 70, 4), -1),
    ((40000, 2), 1),
]


def results(backend: Any, x: Array, grad: Array, axis: int) -> list[Array]:
    """Softmax, its logarithm, and their gradients."""
    found = []
    for is_log in (False, True):
        y = backend.softmax(x, axis, is_log)
        found += [y, backend.softmax_backward(grad, y, axis, is_log)]
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), CALLS)
def test_softmax_is_that_of_the_definition(
    rng: np.random.Generator, shape: tuple[int, ...], axis: int, dtype: str
) -> None:
    for order in ORDERS if len(shape) == 4 else ("contiguous", "strided"):
        x, grad = (arranged(rng.standard_normal(shape).astype(dtype), order) for _ in range(2))
        unit = float(np.finfo(dtype).eps)
        exact = x.astype(np.longdouble), grad.astype(np.longdouble)
        logs = smooth.softmax(np, exact[0], axis, True)
        y, gx, log, log_gx = results(KERNELS, x, grad, axis)
        assert {each.dtype for each in (y, gx, log, log_gx)} == {np.dtype(dtype)}
        assert {outermost_first(each) for each in (y, gx, log, log_gx)} == {outermost_first(x)}
        shares = np.exp(logs)
        assert (np.abs(y - shares) <= 8 * unit * shares).all()
        assert (np.abs(log - logs) <= 4 * unit * np.maximum(1, -logs)).all()
        wide = 4 + np.abs(grad).max()
        expected = shares * (exact[1] - (exact[1] * shares).sum(axis=axis, keepdims=True))
        np.testing.assert_allclose(gx.astype(float), expected.astype(float), rtol=0, atol=8 * wide * unit)
        expected = exact[1] - shares * exact[1].sum(axis=axis, keepdims=True)
        scale = 1 + float(np.abs(exact[1]).sum(axis=axis).max())
        np.testing.assert_allclose(log_gx.astype(float), expected.astype(float), rtol=0, atol=8 * scale * unit)


def test_gradients_take_a_result_in_another_order(rng: np.random.Generator) -> None:
    y, grad = (rng.standard_normal((2, 5, 6, 7)) for _ in range(2))
    for is_log in (False, True):
        expected = KERNELS.softmax_backward(grad, y, 1, is_log)
        turned = np.ascontiguousarray(y.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(KERNELS.softmax_backward(grad, turned, 1, is_log), expected)


def exponentials(x: Array) -> Array:
    """exp(x) as the kernel computes it: the gradient of log_softmax by y = x, where the sum of grad is -1."""
    y, grad = np.append(x, x.dtype.type(0)), np.zeros(x.size + 1, x.dtype)
    grad[-1] = -1
    return np.asarray(KERNELS.softmax_backward(grad, y, 0, True)[:-1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [200_003, 5])  # vectors, scalars
def test_exponentials_are_as_exact_as_they_say(dtype: str, count: int) -> None:
    """With a margin for machines without a fused multiply-add."""
    least, most, units = {"float32": (-104, 88.7, 1.5), "float64": (-746, 709.7, 1.2)}[dtype]
    for low, high in ((least, most), (-1, 1), (least, least + 20)):
        x = np.linspace(low, high, count).astype(dtype)
        exact = np.exp(x.astype(np.longdouble))
        unit = np.spacing(exact.astype(dtype)).astype(np.longdouble)
        assert (np.abs(exponentials(x) - exact) <= units * unit).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("repeats", [1, 9])
def test_exponentials_of_what_is_no_common_number(dtype: str, repeats: int) -> None:
    tiny = float(np.finfo(dtype).smallest_subnormal)
    x = [-np.inf, np.inf, np.nan, 0.0, -0.0, -1e30, 1e30, np.log(tiny), np.log(tiny) - 1, tiny, -tiny]
    expected = [0, np.inf, np.nan, 1, 1, 0, np.inf, tiny, 0, 1, 1]
    actual = exponentials(np.tile(np.array(x).astype(dtype), repeats))
    np.testing.assert_array_equal(actual, np.tile(np.array(expected).astype(dtype), repeats))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_without_a_finite_maximum_are_nan(dtype: str) -> None:
    """As rows and as lanes; others are not touched."""
    x = np.zeros((5, 20), dtype)
    x[0, :], x[1, 3], x[2, 4], x[3, 5] = -np.inf, np.inf, np.nan, -np.inf
    spoilt = np.array([True, True, True, False, False])
    for is_log in (False, True):
        y, turned = KERNELS.softmax(x, 1, is_log), KERNELS.softmax(x.T.copy(), 0, is_log)
        for found in (y, turned.T):
            np.testing.assert_array_equal(np.isnan(found).all(axis=1), spoilt)
            np.testing.assert_array_equal(np.isnan(found).any(axis=1), spoilt)
            assert found[3, 5] == (-np.inf if is_log else 0)


@pytest.mark.parametrize("kind", Epilogue.SMOOTH)
def test_smooth_activations_are_those_of_numpy(rng: np.random.Generator, kind: str) -> None:
    for dtype in DTYPES:
        unit = float(np.finfo(dtype).eps)
        for size in (1, 5, 16, 19, 40_001):
            x = (rng.standard_normal(size) * 6).astype(dtype)
            x[:1] = (0.0, -0.0, 60.0, -60.0, np.inf)[rng.integers(5)]
            grad = rng.standard_normal(size).astype(dtype)
            wide = x.astype(float)
            y, gx = KERNELS.smooth_activation(x, kind), KERNELS.smooth_activation_backward(grad, x, kind)
            with np.errstate(invalid="ignore"):
                expected = smooth.smooth_activation(np, wide, kind)
            np.testing.assert_allclose(
                y, expected, rtol=0, atol=4 * unit * max(1.0, float(np.abs(x[1:]).max(initial=1)))
            )
            slopes = smooth.smooth_activation_backward(np, grad.astype(float), wide, kind)
            np.testing.assert_allclose(gx, slopes, rtol=0, atol=16 * unit * float(np.abs(grad).max()))


def test_the_kernels_have_the_coefficients_of_the_normal_distribution() -> None:
    text = (builds.folder() / "smooth.hpp").read_text(encoding="utf-8")
    for dtype, name in (("float64", "IN_DOUBLE"), ("float32", "IN_FLOAT")):
        numbers = text.partition(f"{name}[] = {{")[2].partition("}")[0]
        assert tuple(map(float, numbers.split(","))) == COEFFICIENTS[dtype]


def test_one_number_has_an_activation() -> None:
    y = KERNELS.smooth_activation(np.array(0.0), "sigmoid")
    assert (y.shape, y) == ((), 0.5)


def test_smooth_activations_keep_the_order_of_their_first_array(rng: np.random.Generator) -> None:
    values, grads = rng.standard_normal((2, 2, 3, 4, 5))
    expected = KERNELS.smooth_activation_backward(grads, values, "gelu")
    for order in ORDERS:
        x, grad = arranged(values, order), arranged(grads, order)
        y, gx = KERNELS.smooth_activation(x, "gelu"), KERNELS.smooth_activation_backward(grad, values, "gelu")
        assert outermost_first(y) == outermost_first(gx) == outermost_first(x)
        np.testing.assert_array_equal(y, KERNELS.smooth_activation(values, "gelu"))
        np.testing.assert_array_equal(gx, expected)


def test_bits_do_not_depend_on_the_number_of_threads(rng: np.random.Generator) -> None:
    before, found = gpucnn.get_num_threads(), []
    x, grad = rng.standard_normal((2, 3, 400, 700)).astype(np.float32)
    try:
        for number in (1, 3):
            gpucnn.set_num_threads(number)
            values = [array for axis in (1, 2) for array in results(KERNELS, x, grad, axis)]
            values += [KERNELS.smooth_activation_backward(grad, x, "gelu")]
            found.append([array.tobytes() for array in values])
    finally:
        gpucnn.set_num_threads(before)
    assert found[0] == found[1]
