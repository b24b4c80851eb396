"""16-bit floats on the compiled backend: exact conversions, of arrays in any memory order, around float32 kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from strategies import dtype_of

import gpucnn
import gpucnn.functional as F
from gpucnn.backends.base import Backend, Epilogue
from gpucnn.backends.cpu import widening

HALVES = ("float16", "bfloat16")


def double(x: Any, y: Any) -> None:
    """A primitive, in place of `average_pool`: y = 2 x, in float32 and no other dtype."""
    assert x.dtype == y.dtype == np.float32
    np.multiply(x, 2, out=y)


double.__name__ = "average_pool"
doubled = widening.widened(double)


@pytest.mark.parametrize("dtype", HALVES)
def test_every_value_is_widened_exactly_and_narrowed_to_itself(dtype: str) -> None:
    x = np.arange(1 << 16).astype(np.uint16).view(dtype_of(dtype))
    x = x[np.abs(x.astype(np.float32)) < 3e4]  # no NaN either
    y = np.empty_like(x)
    doubled(x, y)
    assert (y.astype(np.float32) == 2 * x.astype(np.float32)).all()
    assert np.array_equal(np.signbit(y), np.signbit(x))


@pytest.mark.parametrize("dtype", HALVES)
def test_results_are_rounded_as_numpy_rounds_them(dtype: str) -> None:
    halves = np.arange(0, 1 << 16, 3).astype(np.uint16).view(dtype_of(dtype)).astype(np.float32)
    halves = halves[np.isfinite(halves)]
    between = np.concatenate([halves, np.nextafter(halves, np.float32(np.inf)), np.nextafter(halves, np.float32(0))])
    ties = halves[:-1] / 2 + halves[1:] / 2
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 1 << 32, 1 << 16, dtype=np.uint32).view(np.float32)
    special = np.array(
        [0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.99, 65520, 3e38, 1e-45, 2**-25, 2**-24, -(2**-14)]
    )
    wide = np.concatenate([between, ties, drawn, special.astype(np.float32)])
    with np.errstate(over="ignore", invalid="ignore"):
        expected = wide.astype(dtype_of(dtype))
    y = np.empty_like(expected)
    widening._narrow(wide, y)
    nan = np.isnan(wide)
    assert np.isnan(y[nan].astype(np.float32)).all()
    assert np.array_equal(y.view(np.uint16)[~nan], expected.view(np.uint16)[~nan])


@pytest.mark.parametrize("dtype", HALVES)
def test_special_values_stay(dtype: str) -> None:
    x = np.array([np.inf, -np.inf, np.nan, -0.0] * 8, dtype_of(dtype))
    y = np.empty_like(x)
    doubled(x, y)
    np.testing.assert_array_equal(y.astype(np.float32), x.astype(np.float32))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "arranged",
    [
        np.ascontiguousarray,
        np.asfortranarray,
        lambda x: x.transpose(1, 2, 0),
        lambda x: x[:, ::2],
        lambda x: x[::-1],
        lambda x: x[:, :1],
        lambda x: x[:, None],
        lambda x: np.broadcast_to(x[:1], x.shape),
    ],
)
def test_arrays_in_any_memory_order(arranged: Any, dtype: str) -> None:
    x = arranged(np.arange(-60, 60).reshape(4, 5, 6).astype(dtype_of(dtype)))
    whole = np.full((*x.shape[:-1], 2 * x.shape[-1]), 7, x.dtype)
    for y in (np.empty_like(x), np.empty(x.shape, x.dtype), whole[..., ::2]):
        doubled(x, y)
        np.testing.assert_array_equal(y, 2 * x)
    assert (whole[..., 1::2] == 7).all()


def test_inputs_are_not_written() -> None:
    x, y = np.ones((2, 3), np.float16), np.empty((2, 3), np.float16)
    x.flags.writeable = False
    doubled(x, y)
    assert (y == 2).all()


def test_values_that_have_no_16_bit_result_warn_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    x = np.array([[60000, -60000]] * 2, np.float16)
    for y in (np.empty_like(x), np.empty((2, 4), np.float16)[:, ::2]):
        doubled(x, y)
        np.testing.assert_array_equal(y, [[np.inf, -np.inf]] * 2)
    assert not recwarn.list


def test_a_residual_is_widened() -> None:
    def add(x: Any, bias: Any, y: Any, epilogue: Epilogue) -> None:
        assert bias is None
        np.add(x, epilogue.residual, out=y)
        assert y.dtype == np.float32

    add.__name__ = "bias_activation"
    x, y = np.full((2, 3, 4), 1.5, np.float16), np.empty((2, 3, 4), np.float16)
    widening.widened(add)(x, None, y, Epilogue(x, "relu"))
    assert (y == 3).all()


def test_each_table_entry_is_a_primitive_and_its_results_are_parameters() -> None:
    for name, results in widening.RESULTS.items():
        assert results <= set(getattr(Backend, name).__annotations__), name


@pytest.mark.parametrize("dtype", HALVES)
def test_a_convolution_is_rounded_once(dtype: str) -> None:
    rng = np.random.default_rng(1)
    x, w = (rng.standard_normal(shape).astype(dtype_of(dtype)) for shape in ((2, 19, 9, 8), (20, 19, 3, 3)))
    with gpucnn.backend("compiled"):
        y = F.conv2d(x, w, padding=1)
        wide = F.conv2d(x.astype(np.float32), w.astype(np.float32), padding=1)
    np.testing.assert_array_equal(y, wide.astype(x.dtype), strict=True)


def test_nearest_samples_are_copied_in_their_dtype() -> None:
    x = np.arange(12).reshape(1, 1, 3, 4).astype(np.float16)
    with gpucnn.backend("compiled"):
        np.testing.assert_array_equal(F.interpolate(x, scale_factor=2), x.repeat(2, -1).repeat(2, -2))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_empty_batch_is_computed_by_any_algorithm(dtype: str) -> None:
    x, w = np.empty((0, 16, 5, 5), dtype), np.ones((4, 16, 3, 3), dtype)
    for name in ("direct", "im2col", "winograd", "implicit_gemm"):
        with gpucnn.backend("compiled"), gpucnn.algorithm(name):
            assert F.conv2d(x, w).shape == (0, 4, 3, 3)
