"""Compiled unfolding: NumPy's results, over geometries of each rank and memory order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from strategies import ORDERS, arranged, numbers
from tolerances import assert_close

from gpucnn.backends import backend_named
from gpucnn.geometry import ConvGeometry
from gpucnn.geometry.geometries import Channels, conv_geometry

Array = np.ndarray[Any, Any]
DTYPES = ("float32", "float64")
KNOWN = [  # rank 2: size, kernel, stride, padding, dilation
    ((7, 7), (3, 3), (1, 1), (1, 1), (1, 1)),
    ((56, 40), (3, 3), (1, 1), (1, 1), (1, 1)),
    ((33, 70), (7, 7), (2, 2), (3, 3), (1, 1)),
    ((12, 18), (2, 2), (2, 2), (0, 0), (1, 1)),
    ((90, 200), (3, 5), (1, 1), (2, 2), (2, 1)),  # several blocks of rows
    ((170, 141), (7, 7), (2, 4), (3, 2), (1, 1)),  # a channel in several parts
    ((4, 4), (1, 1), (1, 1), (5, 5), (1, 1)),  # windows wholly in padding
    ((3, 5), (3, 5), (4, 4), (7, 7), (1, 1)),
    ((20, 20), (2, 3), (5, 4), (1, 2), (3, 2)),
    ((1, 300), (1, 9), (1, 3), (0, 4), (1, 5)),
    ((300, 1), (9, 1), (3, 1), (4, 0), (5, 1)),
]


def geometries(count: int, seed: int) -> list[ConvGeometry]:
    """The known ones and random ones, of 1 to 40 channels."""
    rng = np.random.default_rng(seed)
    found = [_geometry(rng, *known) for known in KNOWN]
    while len(found) < count:
        rank = int(rng.integers(1, 4))
        kernel, stride, dilation = (rng.integers(1, most + 1, rank) for most in (4, 4, 3))
        padding = rng.integers(0, 4, (rank, 2))
        least = dilation * (kernel - 1) + 1 - padding.sum(axis=1)
        size = np.maximum(1, least + rng.integers(0, (40, 20, 9)[rank - 1], rank))
        found.append(_geometry(rng, size, kernel, stride, padding, dilation))
    return found


def _geometry(rng: np.random.Generator, size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Any:
    lists = [np.asarray(each).tolist() for each in (kernel, stride, padding, dilation)]
    channels = Channels(int(rng.choice([1, 2, 3, 4, 7, 16, 19, 40])), 1)
    return conv_geometry("unfold", tuple(np.asarray(size).tolist()), channels, *map(_tuples, lists))


def _tuples(values: list[Any]) -> tuple[Any, ...]:
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)


def columns_shape(n: int, geometry: ConvGeometry) -> tuple[int, int, int]:
    return n, geometry.channels.inputs * geometry.taps, int(np.prod(geometry.output_size))


@pytest.mark.parametrize("dtype", DTYPES)
def test_im2col_copies_the_same_bits(dtype: str) -> None:
    rng = np.random.default_rng(0)
    for number, geometry in enumerate(geometries(60, seed=1)):
        n = int(rng.integers(0, 4))
        image = numbers(rng, (n, geometry.channels.inputs, *geometry.input_size), dtype)
        image[rng.random(image.shape) < 0.1] = np.nan
        for order in ORDERS if number % 4 == 0 else ("contiguous", "channels_last"):
            results = []
            for name in ("compiled", "numpy"):
                columns = np.full(columns_shape(n, geometry), 7, dtype)
                backend_named(name).im2col(arranged(image, order), columns, geometry)
                results.append(columns)
            np.testing.assert_array_equal(*results, err_msg=f"{geometry} {order}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_col2im_sums_the_same_entries(dtype: str) -> None:
    rng = np.random.default_rng(2)
    for geometry in geometries(90, seed=3):
        n = int(rng.integers(0, 4))
        columns = numbers(rng, columns_shape(n, geometry), dtype)
        where = rng.random(columns.shape) < 0.01
        columns[where] = rng.choice([np.inf, np.nan], int(where.sum()))
        results = []
        for name in ("compiled", "numpy"):
            image = np.full((n, geometry.channels.inputs, *geometry.input_size), 7, dtype)
            backend_named(name).col2im(columns.copy(), image, geometry)
            results.append(image)
        assert_close(results[0], results[1], dtype)


def test_col2im_takes_columns_of_any_strides() -> None:
    geometry = geometries(1, seed=4)[0]
    columns = numbers(np.random.default_rng(5), columns_shape(2, geometry), "float32")
    expected, image = (np.zeros((2, geometry.channels.inputs, *geometry.input_size), np.float32) for _ in range(2))
    backend_named("compiled").col2im(columns, expected, geometry)
    for order in ("strided", "reversed", "channels_last"):
        backend_named("compiled").col2im(arranged(columns, order), image, geometry)
        assert image.tobytes() == expected.tobytes()
