"""Sums of the norms that are large enough to be split, who sums what, and copies between memory orders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference_norms
from array_backends import ArrayBackend
from strategies import arranged, dtype_of, numbers
from tolerances import assert_close

import gpucnn.functional as F
from gpucnn.backends.cuda import select
from gpucnn.backends.cuda.normalization import memory_order, reduction
from gpucnn.backends.cuda.packing import pack

BATCH, ROW, AFFINE = (0, 2, 3), (2, 3), (0, 3)


# --- Who sums what ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strides", "shape", "expected"),
    [
        ((96, 24, 12, 1), (2, 4, 2, 12), (0, 1, 2, 3)),
        ((96, 2, 1, 8), (2, 4, 2, 12), (0, 3, 1, 2)),  # channels last
        ((96, 24, 12, -1), (2, 4, 2, 12), (0, 1, 2, 3)),
        ((48, 12, 5, 1), (2, 4, 1, 12), (0, 1, 3, 2)),  # an axis of size 1 comes last, whatever its stride
    ],
)
def test_axes_in_the_order_of_memory(
    strides: tuple[int, ...], shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    x = np.lib.stride_tricks.as_strided(np.zeros(400)[200:], shape, [8 * step for step in strides])
    assert memory_order(x) == expected


@pytest.mark.parametrize(
    ("shape", "order", "axes", "lanes"),
    [
        ((8, 64, 1, 49), (0, 1, 3, 2), BATCH, 1),
        ((8, 64, 1, 49), (0, 3, 1, 2), BATCH, 32),  # channels last: neighbours are sums of their own
        ((8, 3, 1, 49), (0, 3, 1, 2), BATCH, 4),
        ((8, 64, 1, 1), (0, 1, 2, 3), BATCH, 32),
        ((8, 4, 16, 49), (0, 3, 1, 2), ROW, 1),  # group norm, channels last: a group's channels are neighbours
        ((8, 4, 16, 49), (0, 3, 1, 2), AFFINE, 32),
        ((8, 4, 2, 49), (0, 3, 1, 2), AFFINE, 8),
        ((100, 1, 96, 1), (0, 2, 1, 3), ROW, 1),  # layer norm
        ((100, 1, 96, 1), (0, 2, 1, 3), AFFINE, 32),
    ],
)
def test_sums_that_lie_side_by_side_are_taken_together(
    shape: tuple[int, ...], order: tuple[int, ...], axes: tuple[int, ...], lanes: int
) -> None:
    assert reduction(shape, order, axes)["lanes"] == lanes


@pytest.mark.parametrize("axes", [BATCH, ROW, AFFINE])
@pytest.mark.parametrize("shape", [(0, 3, 1, 4), (1, 1, 1, 1), (5, 3, 2, 8191), (4097, 1, 768, 1), (1, 2, 1, 1 << 26)])
def test_parts_cover_a_sum_and_none_is_empty(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    fields = reduction(shape, (0, 1, 2, 3), axes)
    splits, run, reduced = fields["splits"], fields["run"], fields["reduced"]
    assert fields["kept"] * reduced == np.prod(shape)
    assert splits * run >= reduced
    assert (splits - 1) * run < max(1, reduced)
    assert splits == 1 or fields["lanes"] * run >= select.LEAST_PART


def test_blocks_are_powers_of_two_that_hold_all_lanes() -> None:
    assert [select.norm_block(values) for values in (0, 1, 128, 129, 1000, 10**9)] == [32, 32, 32, 64, 256, 256]


# --- Split sums ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", ["batch_norm", "instance_norm"])
def test_large_sums(backend: ArrayBackend, name: str, order: str, rng: np.random.Generator) -> None:
    """Two channels that one part could not hold; halves of the second lie far apart, as its parts' means do."""
    x = rng.standard_normal((2, 2, 90, 100)).astype(np.float32)
    x[:, 1, :50] += 1000
    x = arranged(x, order)
    grad = (x + rng.standard_normal(x.shape)).astype(x.dtype)
    weight, bias = np.array([2, -1], np.float32), np.array([0, 1], np.float32)
    arguments = (None, None, weight, bias, True)
    exact, exact_mean, exact_rstd = getattr(reference_norms, name)(x, *arguments)[:3]
    y, mean, rstd = backend.run(getattr(F, name), x, *arguments, return_statistics=True)
    np.testing.assert_allclose(mean, exact_mean, rtol=3e-7, atol=1e-8)
    np.testing.assert_allclose(rstd, exact_rstd, rtol=3e-7)
    assert_close(y, exact)
    gradients = "batch_norm_backward_graph" if name == "batch_norm" else "instance_norm_backward"
    expected = getattr(reference_norms, gradients)(grad, x, None, None, weight, True)
    gx, _, _, gw, gb = backend.run(getattr(F, name + "_backward"), grad, x, *arguments)
    for actual, wanted in zip((gx, gw, gb), expected, strict=True):
        assert_close(actual, wanted)
    again = backend.run(getattr(F, name + "_backward"), grad, x, *arguments)
    assert [gx.tobytes(), gw.tobytes(), gb.tobytes()] == [again[i].tobytes() for i in (0, 3, 4)]


# --- Packing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "complex64", "int8", "uint16"])
@pytest.mark.parametrize("shape", [(2, 33, 40), (1, 70, 1), (3, 1, 65), (0, 4, 5)])
def test_packing(
    backend: ArrayBackend, shape: tuple[int, int, int], dtype: str, has_bias: bool, rng: np.random.Generator
) -> None:
    if backend.name == "numpy":
        pytest.skip("a step of the GPU's convolutions")
    primitives: Any = backend.primitives
    x = numbers(rng, shape, dtype_of(dtype))
    bias = numbers(rng, shape[1:2], dtype_of(dtype)) if has_bias else None
    expected = x if bias is None else (x + bias[:, None]).astype(x.dtype)
    for order in ("contiguous", "channels_last", "strided", "reversed"):
        for out_order in ("contiguous", "channels_last", "strided"):
            out = backend.asarray(arranged(np.zeros_like(x), out_order))
            given: Any = None if bias is None else backend.asarray(bias)
            pack(primitives, backend.asarray(arranged(x, order)), out, given)
            np.testing.assert_array_equal(backend.asnumpy(out), expected)
