"""Norms in C++ against those in NumPy, in each order of an array's values and about each limit of a choice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from strategies import arranged
from tolerances import TOLERANCES

import gpucnn
from gpucnn.backends.base import Epilogue
from gpucnn.backends.cpu import CompiledBackend, normalization
from gpucnn.backends.layout import empty_rows_like
from gpucnn.backends.numpy import NumpyBackend
from gpucnn.geometry import NormGeometry

Array = np.ndarray[Any, Any]
Shape = tuple[int, int, int, int]

BATCH, ROW = (0, 2, 3), (2, 3)
SHAPES: list[Shape] = [
    (1, 1, 1, 2),
    (3, 5, 1, 49),
    (3, 2, 3, 50),
    (2, 3, 1, 4500),  # a plane is more than a piece
    (70, 2, 1, 67),
    (5, 7, 1, 9),  # planes shorter than a vector
    (3, 2, 4, 3),
    (90, 19, 1, 1),
    (9, 3, 37, 1),
    (40, 1, 67, 1),
    (300, 1, 5, 1),
    (3, 1, 8300, 1),  # a long row
    (2, 3, 24, 70),
    (2, 1, 70, 300),
    (3, 130, 1, 67),
]


def random_shape(rng: np.random.Generator) -> Shape:
    n, g, c, p = (int(rng.integers(1, most)) for most in (7, 6, 40, 80))
    return (n, g, 1 if rng.random() < 0.4 else c, 1 if rng.random() < 0.3 else p)


def drawn(rng: np.random.Generator, shape: Shape, dtype: str, order: str, mean: float = 0.0) -> Array:
    array = (rng.standard_normal(shape) + mean).astype(dtype)
    if order == "last":
        return np.ascontiguousarray(array.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    return arranged(array, order)


def results(
    backend: Any, shape: Shape, axes: tuple[int, ...], arrays: dict[str, Any], finish: Any, centred: bool = True
) -> list[Array]:
    """All that the primitives compute of `arrays`."""
    x, grad_y, weight, bias = (arrays[name] for name in ("x", "grad_y", "weight", "bias"))
    geometry, eps, epilogue = NormGeometry(shape, axes, centred), 1e-5, Epilogue(*finish)
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    statistics, again = ([np.empty(kept, x.dtype) for _ in range(3)] for _ in range(2))
    y, applied, before, grad_x, alone = (empty_rows_like(backend, x) for _ in range(5))
    grad_weight, grad_bias, others = np.empty((3, 1, *shape[1:3], 1), x.dtype)
    backend.norm_statistics(x, *statistics, geometry, eps)
    backend.norm_forward(x, weight, bias, y, *again, geometry, eps, epilogue)
    mean, var, rstd = statistics
    backend.norm_apply(x, mean, var, weight, bias, applied, eps, epilogue)
    backend.norm_activation_backward(grad_y, x, mean, rstd, weight, bias, before, epilogue)
    backend.norm_backward(grad_y, x, mean, rstd, weight, grad_x, grad_weight, grad_bias, geometry)
    backend.norm_backward(grad_y, x, mean, rstd, weight, alone, None, None, geometry)
    np.testing.assert_array_equal(alone, grad_x)
    backend.norm_backward(grad_y, x, mean, rstd, weight, None, others, grad_bias, geometry)
    np.testing.assert_array_equal(others, grad_weight)
    return [*statistics, *again, y, applied, before, grad_x, grad_weight, grad_bias]


def check(
    rng: np.random.Generator,
    shape: Shape,
    axes: tuple[int, ...],
    dtype: str,
    order: str,
    mean: float,
    centred: bool = True,
) -> None:
    parameters = (1, *shape[1:3], 1)
    arrays: dict[str, Any] = {
        "x": drawn(rng, shape, dtype, order, mean),
        "grad_y": drawn(rng, shape, dtype, order if rng.random() < 0.7 else "contiguous"),
        "weight": rng.standard_normal(parameters).astype(dtype) if rng.random() < 0.8 else None,
        "bias": rng.standard_normal(parameters).astype(dtype) if rng.random() < 0.8 else None,
    }
    # far from zero, so that rounding gives no value another sign
    residual = np.copysign(60, drawn(rng, shape, dtype, order)) if rng.random() < 0.5 else None
    activation = "none" if residual is None else ("none", "relu", "leaky_relu", "relu6")[rng.integers(4)]
    finish = (residual, activation, 0.3)
    found = results(CompiledBackend(), shape, axes, arrays, finish, centred)
    expected = results(NumpyBackend(), shape, axes, arrays, finish, centred)
    rstd = float(np.nan_to_num(abs(expected[2])).max())
    for actual, wanted in zip(found, expected, strict=True):
        scale = max(1.0, float(abs(wanted).max())) * max(1.0, rstd) * (1 + abs(mean))
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=2 * TOLERANCES[dtype] * scale)


@pytest.mark.parametrize("axes", [BATCH, ROW])
@pytest.mark.parametrize("shape", SHAPES)
def test_norms_are_those_of_numpy(rng: np.random.Generator, shape: Shape, axes: tuple[int, ...]) -> None:
    if np.prod([shape[axis] for axis in axes]) == 1:
        return
    for dtype in ("float32", "float64"):
        for order, mean in (("contiguous", 0), ("last", 3), ("strided", 0), ("offset", 0), ("reversed", 0)):
            check(rng, shape, axes, dtype, order, mean)


@pytest.mark.parametrize("seed", range(4))
def test_norms_of_random_shapes_are_those_of_numpy(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """With the limits of choices low, so that each algorithm is chosen for arrays of a few thousand values."""
    rng = np.random.default_rng(seed)
    limits = {"LONG_ROW": 16, "CACHED_BYTES": 1 << 12, "MIN_STRIP": 8, "MIN_ROWS": 3}
    for name, limit in limits.items():
        monkeypatch.setattr(normalization, name, limit)
    monkeypatch.setattr(normalization, "_items", lambda values: max(1, min(7, values >> 9)))
    normalization._form_of.cache_clear()
    for _ in range(20):
        shape, axes = random_shape(rng), (BATCH, ROW)[rng.integers(2)]
        order = ("contiguous", "last", "strided")[rng.integers(3)]
        if np.prod([shape[axis] for axis in axes]) > 2:
            check(rng, shape, axes, ("float32", "float64")[rng.integers(2)], order, 0.0)
        rows = (shape[0] * shape[1], 1, shape[2] * shape[3], 1)
        check(rng, rows, ROW, ("float32", "float64")[rng.integers(2)], order, 0.0, centred=False)
    normalization._form_of.cache_clear()


def test_bits_do_not_depend_on_the_number_of_threads(rng: np.random.Generator) -> None:
    before = gpucnn.get_num_threads()
    try:
        for shape, axes in (((4, 3, 1, 90000), BATCH), ((600, 1, 1000, 1), ROW), ((3, 1, 300000, 1), ROW)):
            for order in ("contiguous", "last"):
                arrays = {"x": drawn(rng, shape, "float32", order), "grad_y": drawn(rng, shape, "float32", order)}
                arrays |= {"weight": None, "bias": None}
                found = []
                for number in (1, 3):
                    gpucnn.set_num_threads(number)
                    found.append(results(CompiledBackend(), shape, axes, arrays, (None, "relu", 0.0)))
                assert [array.tobytes() for array in found[0]] == [array.tobytes() for array in found[1]]
    finally:
        gpucnn.set_num_threads(before)
