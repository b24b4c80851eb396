"""Compiled elementwise primitives: the results of NumPy's, over sizes and memory orders that meet each path."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from strategies import ORDERS, arranged, numbers
from tolerances import assert_close

from gpucnn.backends import Backend, Epilogue, backend_named

Array = np.ndarray[Any, Any]
DTYPES = ("float32", "float64")
SHAPES = [
    (0, 3, 4), (0, 3, 0), (1, 1, 1), (2, 3, 7), (3, 4, 1), (2, 5, 40), (1, 2, 9), (5, 16, 1), (2, 33, 49),
    (3, 64, 25), (1, 40, 17), (2, 600, 3),
    (700, 3, 5),
]  # fmt: skip
LARGE = (1, 3, 90_000)  # several items of work
SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0)


def cases() -> list[tuple[tuple[int, ...], str, str]]:
    """Shapes, the memory order of an input, and that of another array: "contiguous" or "channels_last"."""
    dense = ("contiguous", "channels_last")
    return [*product(SHAPES, ORDERS, dense), *((LARGE, order, order) for order in dense)]


def filled(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Random numbers, some of them zero, infinite or NaN."""
    values = numbers(rng, shape, dtype)
    where = rng.random(shape) < 0.05
    values[where] = rng.choice(SPECIAL, int(where.sum()))
    return values


def both(method: str, *arguments: Any, like: Array, written: int) -> list[Array]:
    """The array at `written` among a primitive's arguments, by the compiled backend and by NumPy's."""
    results = []
    for name in ("compiled", "numpy"):
        result = np.full_like(like, 7)
        taken = [*arguments[:written], result, *arguments[written:]]
        getattr(backend_named(name), method)(*taken)
        results.append(result)
    return results


@pytest.mark.parametrize("dtype", DTYPES)
def test_copies_have_the_same_bits_in_any_order(dtype: str) -> None:
    rng = np.random.default_rng(0)
    for shape, order, other in product([*SHAPES, (2, 3, 4, 5, 6), (2, 17, 3, 8, 5), (2, 20, 9, 2)], ORDERS, ORDERS):
        x = arranged(filled(rng, shape, dtype), order)
        target = arranged(np.zeros(shape, dtype), other)
        backend_named("compiled").copy(x, target)
        np.testing.assert_array_equal(target, x, err_msg=f"{shape} {order} {other}")


@pytest.mark.parametrize("axes", [(), (1,), (0, 2), (1, 2), (1, 3)])
def test_copies_of_what_is_broadcast(axes: tuple[int, ...]) -> None:
    rng, shape = np.random.default_rng(2), (3, 21, 9, 18)
    x = np.broadcast_to(filled(rng, tuple(n if axis in axes else 1 for axis, n in enumerate(shape)), "float32"), shape)
    for order in ORDERS:
        target = arranged(np.zeros(shape, np.float32), order)
        backend_named("compiled").copy(x, target)
        np.testing.assert_array_equal(target, x, err_msg=order)


def test_a_copy_writes_nothing_beside_its_target() -> None:
    rng = np.random.default_rng(1)
    for c, p in product((2, 3, 4, 5, 17), (3, 9, 40)):
        x = numbers(rng, (2, c, p), "float32")
        larger = np.full((2, p + 2, c), -1, np.float32)
        backend_named("compiled").copy(x, larger[:, 1:-1].swapaxes(1, 2))
        assert (larger[:, [0, -1]] == -1).all()
        np.testing.assert_array_equal(larger[:, 1:-1], x.swapaxes(1, 2))


def test_copies_to_another_dtype_are_rounded() -> None:
    x = np.array([[[1.0, 1 / 3, 1e300]]])
    for dtype in ("float32", "float16"):
        y = np.zeros(x.shape, dtype)
        with np.errstate(over="ignore"):
            backend_named("compiled").copy(x, y)
            assert y.tobytes() == x.astype(dtype).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_select_even_from_what_is_not_finite(dtype: str) -> None:
    rng = np.random.default_rng(2)
    for shape, order, other in cases():
        values = arranged(filled(rng, shape, dtype), order)
        mask = arranged(rng.random(shape) < 0.5, other)
        like = arranged(np.zeros(shape, dtype), other)
        compiled, plain = both("masked", values, mask, like=like, written=2)
        assert compiled.tobytes() == plain.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu"])
def test_bias_and_activation(dtype: str, activation: str) -> None:
    rng = np.random.default_rng(3)
    for shape, order, other in cases():
        x, residual = (arranged(filled(rng, shape, dtype), order) for _ in range(2))
        bias = numbers(rng, (2 * shape[1],), dtype)[::2]
        like = arranged(np.zeros(shape, dtype), order if other == "contiguous" else other)
        for added, more in product((None, bias), (None, residual)):
            epilogue = Epilogue(more, activation, 0.2)
            with np.errstate(invalid="ignore"):
                compiled, plain = both("bias_activation", x, added, epilogue, like=like, written=2)
            assert_close(compiled, plain, dtype)


def test_residuals_between_other_fields() -> None:
    """Steps that are not whole elements: a kernel gets a copy."""
    records = np.zeros((3, 4, 50), [("flag", np.uint8), ("value", np.float32)])
    records["value"] = numbers(np.random.default_rng(6), records.shape, "float32")
    x = np.zeros(records.shape, np.float32)
    compiled, _ = both("bias_activation", x, None, Epilogue(records["value"]), like=x, written=2)
    np.testing.assert_array_equal(compiled, records["value"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu"])
def test_gradient_of_bias_and_activation(dtype: str, activation: str) -> None:
    rng = np.random.default_rng(4)
    for shape, order, other in cases():
        grad_y = arranged(np.abs(numbers(rng, shape, dtype)), order)
        y = arranged(filled(rng, shape, dtype), other)
        like = arranged(np.zeros(shape, dtype), order)
        sums = {}
        for added in (False, True):
            results = []
            for name in ("compiled", "numpy"):
                primitives: Backend = backend_named(name)
                grad_x, grad_bias = np.full_like(like, 7), np.full(shape[1], 7, dtype) if added else None
                primitives.bias_activation_backward(grad_y, y, grad_x, grad_bias, Epilogue(None, activation, 0.2))
                results.append(grad_x)
                sums[name] = grad_bias
            np.testing.assert_array_equal(*results)
        assert_close(sums["compiled"], sums["numpy"], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_by_channel(dtype: str) -> None:
    rng = np.random.default_rng(5)
    for shape, order in product([*SHAPES, LARGE, (2, 3, 4, 5), (2, 20, 3, 4, 5)], ORDERS):
        x = arranged(np.abs(numbers(rng, shape, dtype)), order)
        compiled, plain = both("channel_sums", x, like=np.zeros(shape[1], dtype), written=1)
        assert_close(compiled, plain, dtype)


def test_sums_of_rows_with_gaps_are_rounded_once() -> None:
    x = arranged(numbers(np.random.default_rng(6), (1, 3, 1000), "float32"), "strided")
    sums = np.zeros(3, np.float32)
    backend_named("compiled").channel_sums(x, sums)
    np.testing.assert_allclose(sums, x.sum(axis=(0, 2), dtype=np.float64), rtol=2.0**-23)


@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
def test_sums_of_many_numbers_keep_their_digits(order: str) -> None:
    x = arranged(np.full((1, 3, 1_000_003), 0.1, np.float32), order)
    sums = np.zeros(3, np.float32)
    backend_named("compiled").channel_sums(x, sums)
    np.testing.assert_allclose(sums, 1_000_003 * np.float64(np.float32(0.1)), rtol=1e-5)
