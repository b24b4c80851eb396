"""Compiled depthwise convolution and small groups: NumPy's results, over geometries of each rank and memory order."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from strategies import ORDERS, arranged, numbers
from tolerances import assert_close

from gpucnn import algorithm, get_num_threads, set_num_threads
from gpucnn.backends.cpu import depthwise
from gpucnn.backends.numpy import convolution
from gpucnn.geometry import ConvGeometry
from gpucnn.geometry.geometries import Channels, conv_geometry

Array = np.ndarray[Any, Any]
DTYPES = ("float32", "float64")
DIRECTIONS = ("forward", "backward_input", "backward_weight")
IN_NUMPY = {name: getattr(convolution, f"convolve_{name}".removesuffix("_forward")) for name in DIRECTIONS}
KNOWN = [  # channels, outputs and groups; size, kernel, stride, padding, dilation
    ((32, 32, 32), (9, 30), 3, 1, 1, 1),
    ((70, 70, 70), (14, 14), 5, 2, 2, 1),
    ((17, 17, 17), (20, 16), 7, 1, 3, 1),
    ((3, 3, 3), (40, 33), 3, 1, 2, 2),
    ((160, 160, 160), (7, 7), 3, 1, 1, 1),  # several blocks of channels
    ((48, 48, 48), (12, 29), 3, 2, 1, 1),  # a dgrad of pairs whose last has no odd target
    ((20, 20, 20), (6, 31), 3, 2, 3, 1),
    ((16, 16, 16), (150, 90), 3, 2, 1, 1),  # several boxes of rows
    ((2, 2, 2), (30000,), 9, 4, 4, 1),  # and of columns
    ((2, 2, 2), (30001,), 5, 1, 6, 3),  # whose runs are dilated
    ((32, 32, 32), (4, 4), 3, 5, 4, 1),  # inputs that no tap reaches, windows wholly in padding
    ((64, 64, 64), (3000,), 3, 1, 4, 4),  # pieces of a row, with the last one short
    ((40, 40, 40), (4001,), 5, 2, 2, 1),
    ((530, 530, 530), (14, 14), 3, 1, 1, 1),  # chunks of channels of a weight's gradient
    ((32, 32, 8), (14, 14), 3, 1, 1, 1),
    ((24, 48, 3), (9, 60), 3, 2, 1, 1),
    ((10, 30, 5), (6, 7, 8), 3, 2, 1, 1),
    ((30, 10, 5), (40, 21), 3, 1, 0, 2),
    ((64, 64, 4), (80, 40), 3, 1, 1, 1),
]


def geometries(count: int, seed: int) -> list[ConvGeometry]:
    """The known ones and random ones."""
    rng = np.random.default_rng(seed)
    found = [conv_geometry("test", size, Channels(*channels), *window) for channels, size, *window in KNOWN]
    while len(found) < count:
        rank = int(rng.integers(1, 4))
        kernel, stride, dilation = (rng.integers(1, most + 1, rank) for most in (5, 3, 3))
        padding = rng.integers(0, 5, (rank, 2))
        size = np.maximum(1, dilation * (kernel - 1) + 1 - padding.sum(axis=1)) + rng.integers(
            0, (60, 20, 6)[rank - 1], rank
        )
        groups, inputs, outputs = int(rng.integers(2, 40)), *rng.choice([1, 1, 1, 2, 4, 5, 16], 2).tolist()
        channels = Channels(inputs * groups, outputs * groups, groups)
        lists = [each.tolist() for each in (kernel, stride, padding, dilation)]
        window = [tuple(tuple(one) if isinstance(one, list) else one for one in each) for each in lists]
        found.append(conv_geometry("test", tuple(size.tolist()), channels, *window))
    return found


def arrays_of(rng: np.random.Generator, geometry: ConvGeometry, dtype: str) -> tuple[Array, Array, Array]:
    """X, w and grad_y."""
    inputs, outputs, groups = geometry.channels
    n = int(rng.integers(1, 4))
    return (
        numbers(rng, (n, inputs, *geometry.input_size), dtype),
        numbers(rng, (outputs, inputs // groups, *geometry.kernel_size), dtype),
        numbers(rng, (n, outputs, *geometry.output_size), dtype),
    )


def result(functions: Any, direction: str, arrays: tuple[Array, Array, Array], geometry: ConvGeometry) -> Array:
    """What a direction computes, in the memory order of its place in `arrays`; biases are 0, 1, ..."""
    x, w, grad_y = arrays
    given = {
        "forward": (x, w, np.arange(len(w), dtype=w.dtype)),
        "backward_input": (grad_y, w, np.arange(x.shape[1], dtype=w.dtype)),
        "backward_weight": (x, grad_y),
    }[direction]
    into = np.full_like({"forward": grad_y, "backward_input": x, "backward_weight": w}[direction], np.nan)
    functions[direction](*given, into, geometry)
    return into


COMPILED = {name: getattr(depthwise, name) for name in DIRECTIONS}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_are_those_of_numpy(dtype: str, direction: str) -> None:
    rng = np.random.default_rng(0)
    for number, geometry in enumerate(geometries(40, seed=1)):
        if not depthwise.computes(direction, geometry):
            continue
        arrays = arrays_of(rng, geometry, dtype)
        expected = result(IN_NUMPY, direction, arrays, geometry)
        orders = (*ORDERS[:2], ORDERS[2 + number % 3])
        for order in orders:
            x, w, grad_y = (arranged(each, order) for each in arrays)
            assert_close(result(COMPILED, direction, (x, w, grad_y), geometry), expected, dtype, factor=4)


def test_orders_may_differ() -> None:
    rng = np.random.default_rng(2)
    for geometry in geometries(len(KNOWN), seed=3):
        x, w, grad_y = arrays_of(rng, geometry, "float32")
        expected = result(IN_NUMPY, "forward", (x, w, grad_y), geometry)
        for mixed in ((arranged(x, "channels_last"), w, grad_y), (x, w, arranged(grad_y, "channels_last"))):
            assert_close(result(COMPILED, "forward", mixed, geometry), expected, "float32", factor=4)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_infinities_reach_only_the_windows_that_hold_them(direction: str) -> None:
    rng = np.random.default_rng(4)
    for geometry in geometries(len(KNOWN), seed=5):
        x, w, grad_y = arrays_of(rng, geometry, "float32")
        # in a weight's gradient those of grad_y would meet the zeros of padding
        for each in (x,) if direction == "backward_weight" else (x, grad_y):
            each[rng.random(each.shape) < 0.002] = np.inf
            each[rng.random(each.shape) < 0.002] = np.nan
        for order in ("contiguous", "channels_last"):
            arrays = arranged(x, order), w, arranged(grad_y, order)
            with algorithm("direct"), np.errstate(invalid="ignore"):
                expected = result(IN_NUMPY, direction, arrays, geometry)
            actual = result(COMPILED, direction, arrays, geometry)
            np.testing.assert_array_equal(np.isfinite(actual), np.isfinite(expected))


def test_gradients_of_no_image_are_zero() -> None:
    for geometry in geometries(len(KNOWN), seed=6):
        x, w, grad_y = arrays_of(np.random.default_rng(7), geometry, "float32")
        assert not result(COMPILED, "backward_weight", (x[:0], w, grad_y[:0]), geometry).any()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_bits_do_not_depend_on_threads(direction: str) -> None:
    geometry = conv_geometry("test", (60, 60), Channels(64, 64, 64), 3, 1, 1, 1)
    small = conv_geometry("test", (40, 40), Channels(64, 64, 16), 3, 1, 1, 1)
    row = conv_geometry("test", (3000,), Channels(64, 64, 64), 3, 1, 4, 4)
    before = get_num_threads()
    for each, order in product((geometry, small, row), ("contiguous", "channels_last")):
        x, w, grad_y = arrays_of(np.random.default_rng(8), each, "float32")
        arrays = arranged(x, order), w, arranged(grad_y, order)
        bits = []
        try:
            for threads in (1, 3):
                set_num_threads(threads)
                bits.append(result(COMPILED, direction, arrays, each).tobytes())
        finally:
            set_num_threads(before)
        assert bits[0] == bits[1]
