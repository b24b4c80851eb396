"""Compiled pooling: NumPy's results, over geometries of each rank, memory order and kind of content."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pooling_cases import content
from strategies import ORDERS, arranged, numbers
from tolerances import assert_close

from gpucnn.backends import backend_named
from gpucnn.backends.cpu import pooling
from gpucnn.geometry import PoolGeometry
from gpucnn.geometry.geometries import Divisor, adaptive_geometry, pool_geometry

Array = np.ndarray[Any, Any]
DTYPES = ("float32", "float64")
DIVISORS: tuple[Divisor, ...] = ("none", "padded", "valid", 7)
KNOWN = [  # size, kernel, stride, padding, dilation
    ((12, 14), 2, 2, 0, 1),
    ((27, 27), 3, 2, 0, 1),
    ((20, 33), 3, 2, 1, 1),
    ((9, 28), 3, 1, 1, 1),
    ((20, 20), 5, 1, 2, 1),
    ((13, 13), 13, 1, 6, 1),
    ((19, 20), (11, 6), 1, (5, 3), 1),  # windows that are doubled along both axes, or one; in a plane, or row by row
    ((30, 31), (7, 8), 1, (3, 4), 2),
    ((40, 17), (16, 3), 1, (8, 1), 1),
    ((17, 40), (3, 9), (2, 1), (1, 0), 1),
    ((70, 80), (7, 13), 1, (3, 6), 1),
    ((2, 16, 18), (1, 9, 6), 1, (0, 4, 2), 1),
    ((10, 130), 3, 2, 1, 1),  # too wide for a plane at once
    ((90, 120), 2, 2, 0, 1),
    ((7, 7), 7, 7, 0, 1),  # one window
    ((3, 70, 1), (3, 5, 1), (1, 2, 1), 0, 1),  # an axis of one column
    ((6, 10, 12), 2, 2, 0, 1),
    ((5, 9, 10), 3, 1, 1, 1),
    ((5, 6, 18), (5, 6, 18), 1, 0, 1),
    ((300,), 100, 90, 5, 1),  # long windows, of which NumPy has those that overlap
    ((300,), 100, 3, 5, 1),
    ((40, 41), 3, 2, 2, 2),
    ((30, 35), 4, 3, 1, 2),
    ((1, 1), 2, 1, 1, 2),  # nothing but padding
    ((9, 3), (2, 3), (1, 2), (1, 1), (9, 1)),
]


def geometries(count: int, seed: int) -> list[tuple[Any, ...]]:
    """The arguments of `pool_geometry`: the known ones, and random ones."""
    rng = np.random.default_rng(seed)
    found: list[tuple[Any, ...]] = [(*known, bool(index % 2)) for index, known in enumerate(KNOWN)]
    while len(found) < count:
        rank = int(rng.integers(1, 4))
        kernel, stride, dilation = (rng.integers(1, most + 1, rank) for most in (5, 4, 2))
        span = dilation * (kernel - 1) + 1
        padding = [tuple(rng.integers(0, most, 2).tolist()) for most in np.minimum(span, 4)]
        size = span + rng.integers(0, (70, 24, 9)[rank - 1], rank)
        shapes = [tuple(each.tolist()) for each in (size, kernel, stride)]
        found.append((*shapes, tuple(padding), tuple(dilation.tolist()), bool(rng.integers(2))))
    return found


def adaptive(count: int, seed: int) -> list[tuple[Any, ...]]:
    """Sizes and output sizes of adaptive pooling: fewer windows than inputs, and more."""
    rng = np.random.default_rng(seed)
    found: list[tuple[Any, ...]] = [((13, 13), (6, 6)), ((7, 5), (1, 1)), ((40, 70), (9, 1)), ((4, 5), (6, 11))]
    while len(found) < count:
        rank = int(rng.integers(1, 4))
        found.append(tuple(tuple(rng.integers(1, (60, 20, 9)[rank - 1], rank).tolist()) for _ in range(2)))
    return found


def all_geometries(divisor: Divisor = "none") -> list[PoolGeometry]:
    pools = [pool_geometry("pool", *arguments, divisor) for arguments in geometries(66, seed=1)]
    return pools + [adaptive_geometry("pool", *arguments, divisor) for arguments in adaptive(20, seed=2)]


def image(rng: np.random.Generator, size: tuple[int, ...], dtype: str, order: str, lead: tuple[int, int]) -> Array:
    return arranged(numbers(rng, (*lead, *size), dtype), order)


def lead_of(rng: np.random.Generator) -> tuple[int, int]:
    return int(rng.integers(1, 4)), int(rng.choice([1, 2, 3, 5, 16, 19, 40]))


def orders(number: int) -> tuple[str, ...]:
    return ORDERS if number % 5 == 0 else ("contiguous", "channels_last")


def of_both(primitive: str, inputs: tuple[Array, ...], shapes: dict[Any, tuple[int, ...]], *last: Any) -> Any:
    """The results of the compiled and of NumPy's primitive, of these dtypes and shapes."""
    results = []
    for name in ("compiled", "numpy"):
        backend = backend_named(name)
        made = [backend.empty_like(shape, dtype, inputs[0]) for dtype, shape in shapes.items()]
        for array in made:
            array[...] = 77
        getattr(backend, primitive)(*inputs, *made, *last)
        results.append(made)
    return zip(*results, strict=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_maxima_and_their_indices_are_the_same(dtype: str) -> None:
    rng = np.random.default_rng(3)
    for number, geometry in enumerate(all_geometries()):
        lead = lead_of(rng)
        kind = ("numbers", "ties", "NaN", "infinities")[number % 4]
        for order in orders(number):
            x = arranged(content(numbers(rng, (*lead, *geometry.input_size), dtype), kind, rng), order)
            shape = (*lead, *geometry.output_size)
            results = of_both("max_pool", (x,), {dtype: shape, "int64": shape}, geometry)
            expected, indices = (pair[1] for pair in results)
            backend = backend_named("compiled")
            y, at = backend.empty_like(shape, dtype, x), backend.empty_like(shape, np.int64, x)
            backend.max_pool(x, y, at, geometry)
            np.testing.assert_array_equal(at, indices, err_msg=f"{geometry} {order}")
            np.testing.assert_array_equal(y, expected, err_msg=f"{geometry} {order}")
            backend.max_pool(x, y, None, geometry)
            np.testing.assert_array_equal(y, expected, err_msg=f"{geometry} {order}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("divisor", DIVISORS)
def test_averages_and_their_gradients_agree(dtype: str, divisor: Divisor) -> None:
    rng = np.random.default_rng(4)
    for number, geometry in enumerate(all_geometries(divisor)):
        lead = lead_of(rng)
        for order in orders(number):
            x = image(rng, geometry.input_size, dtype, order, lead)
            grad = image(rng, geometry.output_size, dtype, order, lead)
            for primitive, given, size in (
                ("average_pool", x, geometry.output_size),
                ("average_pool_backward", grad, geometry.input_size),
            ):
                ((actual, expected),) = of_both(primitive, (given,), {dtype: (*lead, *size)}, geometry)
                assert_close(actual, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_goes_by_indices_has_the_same_bits(dtype: str) -> None:
    """Also by indices that no pooling gives."""
    rng = np.random.default_rng(5)
    for number, geometry in enumerate(all_geometries()):
        lead = lead_of(rng)
        plane = int(np.prod(geometry.input_size))
        for order in orders(number):
            grad = image(rng, geometry.output_size, dtype, order, lead)
            planes = image(rng, geometry.input_size, dtype, order, lead)
            indices = arranged(rng.integers(-1, plane, grad.shape), ORDERS[number % len(ORDERS)])
            narrow = indices.astype(np.int32) if number % 3 == 0 else indices
            for primitive, given, shape, *last in (
                ("max_pool_backward", grad, planes.shape, geometry),
                ("unpool", grad, planes.shape),
                ("gather", planes, grad.shape),
            ):
                ((actual, expected),) = of_both(primitive, (given, narrow), {dtype: shape}, *last)
                assert actual.tobytes() == expected.tobytes(), (primitive, geometry, order)


@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
def test_averages_of_long_windows_round_little(order: str) -> None:
    rng = np.random.default_rng(6)
    for size, out in (((300, 500), (1, 1)), ((56, 56), (1, 1)), ((1, 300_007), (1, 7)), ((4, 9000), (2, 3))):
        geometry = adaptive_geometry("pool", size, out, "valid")
        x = arranged((rng.random((1, 2, *geometry.input_size)) + 0.5).astype(np.float32), order)
        ((actual, _),) = of_both("average_pool", (x,), {"float32": (1, 2, *geometry.output_size)}, geometry)
        rows = [(o * size[0] // out[0], -(-(o + 1) * size[0] // out[0])) for o in range(out[0])]
        columns = [(o * size[1] // out[1], -(-(o + 1) * size[1] // out[1])) for o in range(out[1])]
        for i, (top, bottom) in enumerate(rows):
            for j, (left, right) in enumerate(columns):
                expected = x[:, :, 0, top:bottom, left:right].mean((-2, -1), np.float64)
                np.testing.assert_allclose(actual[:, :, 0, i, j], expected, rtol=1e-6)


def test_long_windows_that_overlap_are_numpys() -> None:
    for arguments, is_direct in ((((300,), 100, 90), True), (((300,), 100, 3), False), (((300,), 64, 1), True)):
        plan = pooling.plan_of(pool_geometry("pool", *arguments), True, False, "float32")
        assert plan.is_direct == is_direct
