"""Compiled locally connected layers: NumPy's results, over geometries of each rank and memory order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from strategies import arranged, numbers
from tolerances import assert_close

from gpucnn.backends import backend_named
from gpucnn.geometry import ConvGeometry
from gpucnn.geometry.geometries import Channels, conv_geometry

Array = np.ndarray[Any, Any]
DTYPES = ("float32", "float64")


def geometries(count: int, seed: int) -> list[ConvGeometry]:
    """Random ones of few positions."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        rank = int(rng.integers(1, 4))
        kernel, stride, dilation = (tuple(rng.integers(1, most, rank).tolist()) for most in (4, 4, 3))
        padding = tuple(tuple(pair) for pair in rng.integers(0, 4, (rank, 2)).tolist())
        size = [
            max(1, d * (k - 1) + 1 - sum(pads) + int(rng.integers(0, (40, 9, 4)[rank - 1])))
            for k, d, pads in zip(kernel, dilation, padding, strict=True)
        ]
        channels = Channels(int(rng.choice([1, 2, 3, 8, 21])), int(rng.choice([1, 2, 4, 5, 17])))
        found.append(conv_geometry("local", tuple(size), channels, kernel, stride, padding, dilation))
    return found


def arrays(rng: np.random.Generator, n: int, geometry: ConvGeometry, dtype: str) -> tuple[Array, Array, Array, Array]:
    """An input, filters, a bias and a gradient of the output."""
    inputs, outputs, _ = geometry.channels
    x = numbers(rng, (n, inputs, *geometry.input_size), dtype)
    w = numbers(rng, (outputs, *geometry.output_size, inputs, *geometry.kernel_size), dtype)
    bias = numbers(rng, (outputs, *geometry.output_size), dtype)
    return x, w, bias, numbers(rng, (n, outputs, *geometry.output_size), dtype)


def both(method: str, taken: tuple[Any, ...], like: Array, geometry: ConvGeometry) -> tuple[Array, Array]:
    """The results of the compiled backend and of NumPy's, stored as `like`."""
    results = []
    for name in ("compiled", "numpy"):
        target = np.full_like(like, 7)
        getattr(backend_named(name), method)(*taken, target, geometry)
        results.append(target)
    return results[0], results[1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_locally_connected_layers_agree_with_numpy(dtype: str) -> None:
    rng = np.random.default_rng(0)
    for number, geometry in enumerate(geometries(40, seed=1)):
        x, w, bias, grad = arrays(rng, int(rng.choice([0, 1, 2, 4, 7, 9])), geometry, dtype)
        orders = ("contiguous", "channels_last", "strided")[number % 3], ("contiguous", "reversed")[number % 2]
        x_given, grad_given = (arranged(array, orders[0]) for array in (x, grad))
        w_given = arranged(w, orders[1])
        for added in (bias, None):
            assert_close(*both("locally_connect", (x_given, w_given, added), grad_given, geometry), dtype)
        assert_close(*both("locally_connect_backward_input", (grad_given, w_given), x_given, geometry), dtype)
        assert_close(*both("locally_connect_backward_weight", (x_given, grad_given), w, geometry), dtype)


def test_several_items_of_work() -> None:
    rng = np.random.default_rng(2)
    geometry = conv_geometry("local", (20, 37), Channels(12, 9), (3, 3), (1, 1), "same", (1, 1))
    x, w, bias, grad = arrays(rng, 3, geometry, "float32")
    assert_close(*both("locally_connect", (x, w, bias), grad, geometry))
    assert_close(*both("locally_connect_backward_input", (grad, w), x, geometry))
    assert_close(*both("locally_connect_backward_weight", (x, grad), w, geometry))
