"""Compiled interpolation: NumPy's results, over sizes, modes and memory orders."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from strategies import ORDERS, arranged, numbers
from tolerances import assert_close

from gpucnn.backends import backend_named
from gpucnn.geometry import InterpolationGeometry
from gpucnn.geometry.geometries import interpolation_geometry

Array = np.ndarray[Any, Any]
DTYPES = ("float32", "float64")
KNOWN = [
    ((1, 1), (1, 1)), ((4, 5), (8, 10)), ((8, 10), (4, 5)), ((17, 33), (34, 66)), ((7, 20), (7, 41)),
    ((20, 7), (41, 7)), ((5, 400), (3, 1000)), ((2, 3, 4), (4, 6, 8)), ((5, 6, 18), (3, 13, 7)), ((1,), (30,)),
    ((50,), (17,)), ((9,), (9,)), ((600, 300), (601, 900)), ((3, 3), (12, 1)), ((1, 16), (5, 48)),
]  # fmt: skip


def geometries(count: int, seed: int) -> list[InterpolationGeometry]:
    """The known sizes and random ones, each in one of the modes."""
    rng = np.random.default_rng(seed)
    sizes = list(KNOWN)
    while len(sizes) < count:
        rank = int(rng.integers(1, 4))
        most = (60, 25, 8)[rank - 1]
        sizes.append(tuple(tuple(rng.integers(1, most, rank).tolist()) for _ in range(2)))  # type: ignore[arg-type]
    modes = [
        ("nearest", False), ("nearest-exact", False), ("linear", False), ("linear", True), ("cubic", False),
        ("antialiased linear", False), ("antialiased cubic", False),
    ]  # fmt: skip
    found = []
    for (size, out), (mode, aligned) in product(sizes, modes):
        factors = None
        if rng.random() < 0.2:
            factors = tuple(float(rng.uniform(0.9, 1.1) * o / s) for s, o in zip(size, out, strict=True))
        found.append(interpolation_geometry(size, out, factors, mode, aligned, "antialiased" in mode))
    return found


def images(rng: np.random.Generator, size: tuple[int, ...], dtype: str) -> Array:
    """Some images, now and then with numbers that are not finite."""
    large = int(np.prod(size)) > 10_000
    n, c = (1, 2) if large else (int(rng.integers(0, 4)), int(rng.choice([1, 2, 3, 5, 17, 40])))
    image = numbers(rng, (n, c, *size), dtype)
    if rng.random() < 0.3:
        where = rng.random(image.shape) < 0.02
        image[where] = rng.choice([np.inf, -np.inf, np.nan], int(where.sum()))
    return image


def both(method: str, source: Array, shape: tuple[int, ...], geometry: InterpolationGeometry) -> list[Array]:
    """The results of the compiled backend and of NumPy's, in the memory order of `source`."""
    results = []
    for name in ("compiled", "numpy"):
        primitives = backend_named(name)
        target = primitives.empty_like(shape, source.dtype, source)
        target[...] = 7
        with np.errstate(invalid="ignore"):
            getattr(primitives, method)(source, target, geometry)
        results.append(target)
    return results


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["interpolate", "interpolate_backward"])
def test_interpolation_agrees_with_numpy(method: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    for number, geometry in enumerate(geometries(36, seed=1)):
        sizes = geometry.input_size, geometry.output_size
        source_size, target_size = sizes if method == "interpolate" else sizes[::-1]
        image = images(rng, source_size, dtype)
        for order in ORDERS if number % 5 == 0 else ORDERS[:2]:
            compiled, plain = both(method, arranged(image, order), (*image.shape[:2], *target_size), geometry)
            assert_close(compiled, plain, dtype)


def test_nearest_samples_have_the_same_bits() -> None:
    rng = np.random.default_rng(2)
    for geometry in geometries(20, seed=3):
        if not any(axis.blends for axis in geometry.axes):
            image = images(rng, geometry.input_size, "float32")
            for order in ORDERS:
                shape = (*image.shape[:2], *geometry.output_size)
                np.testing.assert_array_equal(*both("interpolate", arranged(image, order), shape, geometry))


def test_an_infinity_reaches_only_the_samples_that_read_it() -> None:
    geometry = interpolation_geometry((5, 5), (9, 9), None, "linear", True)  # every second sample reads one input
    for order, value in product(("contiguous", "channels_last"), (np.inf, np.nan)):
        image = np.zeros((1, 3, 1, 5, 5), np.float32)
        image[:, :, :, 2, 2] = value
        compiled, _ = both("interpolate", arranged(image, order), (1, 3, 1, 9, 9), geometry)
        reached = ~np.isfinite(compiled[0, 0, 0])
        assert reached[3:6, 3:6].all()
        assert reached.sum() == 9
