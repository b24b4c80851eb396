"""Copies of images in another memory order and dtype."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from array_backends import ArrayBackend
from strategies import ORDERS, arranged, dtype_of, numbers

import gpucnn
from gpucnn.backends.dtypes import NUMERIC

FLOATS = ("float32", "float64", "float16", "bfloat16")
SHAPES = ((2, 3, 5, 7), (2, 66, 7, 7), (1, 4, 2000), (3, 1, 4, 5), (2, 70, 1, 1), (2, 3, 2, 3, 4), (4, 6))


def is_first(x: Any) -> bool:
    return bool(x.flags.c_contiguous)


def is_last(x: Any) -> bool:
    return bool(np.moveaxis(x, 1, -1).flags.c_contiguous)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", ORDERS)
def test_values_stay_and_strides_change(backend: ArrayBackend, shape: tuple[int, ...], order: str) -> None:
    x = arranged(numbers(np.random.default_rng(1), shape, "float32"), order)
    for copy, has_order in ((gpucnn.channels_last, is_last), (gpucnn.channels_first, is_first)):
        y = backend.run(copy, x)
        np.testing.assert_array_equal(y, x)
        assert y.dtype == x.dtype
        assert has_order(y)
        assert not np.shares_memory(x, y)


@pytest.mark.parametrize("dtype", sorted(NUMERIC))
def test_each_dtype_is_copied_to_the_bit(backend: ArrayBackend, dtype: str) -> None:
    x = numbers(np.random.default_rng(2), (2, 9, 6, 5), dtype)
    for copy in (gpucnn.channels_last, gpucnn.channels_first):
        y = backend.run(copy, x, x.dtype)
        assert y.dtype == x.dtype
        assert np.ascontiguousarray(y).tobytes() == x.tobytes()


@pytest.mark.parametrize("given", FLOATS)
@pytest.mark.parametrize("wanted", FLOATS)
def test_casts_are_numpys(backend: ArrayBackend, given: str, wanted: str) -> None:
    x = numbers(np.random.default_rng(3), (2, 5, 9, 8), given)
    x[0, 0, 0, :6] = [np.nan, np.inf, -np.inf, -0.0, 1e-7, 60000]
    for copy in (gpucnn.channels_last, gpucnn.channels_first):
        y = backend.run(copy, x, wanted)
        assert y.dtype == dtype_of(wanted)
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(y.astype(np.float64), x.astype(dtype_of(wanted)).astype(np.float64))


def test_doubles_are_rounded_once(backend: ArrayBackend) -> None:
    """Just above the middle of two numbers of 16 bits: by way of float32 it would be the middle, and round to even."""
    middle = np.array([[1 + 2.0**-11, -1 - 2.0**-11, 2 - 2.0**-11, 65520.0, 2.0**-25, 0.0]])
    above = np.nextafter(middle, np.inf)
    for x in (middle, above, np.nextafter(middle, -np.inf)):
        y = backend.run(gpucnn.channels_last, x, np.float16)
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(y, x.astype(np.float16))
    assert backend.run(gpucnn.channels_last, above, np.float16)[0, 0] == np.float16(1 + 2.0**-10)


def test_empty_batches(backend: ArrayBackend) -> None:
    x = np.ones((0, 3, 4, 5), np.float32)
    assert backend.run(gpucnn.channels_last, x, "float16").shape == x.shape
    assert backend.run(gpucnn.channels_first, x).dtype == np.float32


@pytest.mark.parametrize("copy", [gpucnn.channels_last, gpucnn.channels_first], ids=lambda copy: copy.__name__)
def test_what_is_not_taken_is_refused(backend: ArrayBackend, copy: Any) -> None:
    x, name = np.ones((2, 3, 4), np.float32), copy.__name__
    with pytest.raises(ValueError, match=f"^{name}: input has 1 dimensions, expected at least 2 "):
        backend.run(copy, x[0, 0])
    with pytest.raises(TypeError, match=f"^{name}: input has dtype bool"):
        backend.run(copy, x.astype(bool))
    with pytest.raises(TypeError, match=f"^{name}: dtype is int32, expected float32 or"):
        backend.run(copy, x, np.int32)
    with pytest.raises(TypeError, match=f"^{name}: dtype is float32, expected int8 or"):
        backend.run(copy, x.astype(np.int8), np.float32)
    with pytest.raises(TypeError, match=f"^{name}: dtype is 'junk', expected a dtype"):
        backend.run(copy, x, "junk")


def test_bfloat16_has_a_name(backend: ArrayBackend) -> None:
    y = backend.run(gpucnn.channels_last, np.ones((1, 2, 3), np.float32), ml_dtypes.bfloat16)
    assert y.dtype == ml_dtypes.bfloat16
