"""Pooling on NumPy arrays where it is cut into pieces, runs on threads, or takes a way of its own, against loops."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
import reference
from hypothesis import given
from pooling_cases import (
    CONTENTS,
    ORDERED,
    Adaptive,
    Array,
    Pool,
    adaptives,
    as_tuple,
    assert_same_bits,
    operation,
    pools,
)
from sample import examples
from strategies import COMPLEX, FLOATS, arranged, numbers
from tolerances import assert_close

import gpucnn
import gpucnn.functional as F
from gpucnn.backends.numpy import pooling

LINEAR = (*FLOATS, *COMPLEX)
DENSE = ("contiguous", "channels_last")


@contextmanager
def cut(size: int, threads: int) -> Iterator[None]:
    """Pieces of `size` bytes, on so many threads."""
    before = gpucnn.get_num_threads()
    gpucnn.set_num_threads(threads)
    try:
        with mock.patch.object(pooling, "PIECE_BYTES", size):
            pooling._pieces.cache_clear()  # they were cut by the size of that time
            yield
    finally:
        pooling._pieces.cache_clear()
        gpucnn.set_num_threads(before)


def in_pieces(function: Any, *args: Any, **options: Any) -> tuple[Array, ...]:
    """The arrays that `function` gives where it is cut as far as it can be: the same bits on any number of threads."""
    results = []
    for threads in (1, 3):
        with cut(1, threads), np.errstate(invalid="ignore"):
            results.append(as_tuple(function(*args, **options)))
    for one, other in zip(*results, strict=True):
        assert_same_bits(one, other)
    return results[0]


def same_in_pieces(function: Any, *args: Any, exact: bool = False, **options: Any) -> tuple[Array, ...]:
    """The arrays that `function` gives as usual: those of pieces are the same, or as near as another order of sums."""
    with np.errstate(invalid="ignore"):
        usual = as_tuple(function(*args, **options))
    for whole, cut_up in zip(usual, in_pieces(function, *args, **options), strict=True):
        if exact or whole is None:
            assert_same_bits(cut_up, whole)
        else:
            assert_close(cut_up, reference.wide(whole), whole.dtype)
    return usual


# --- Pieces -------------------------------------------------------------------------------------------------------


@examples(120)
@given(pools(ORDERED, CONTENTS))
def test_maxima_in_pieces(pool: Pool) -> None:
    x = pool.input()
    max_pool, backward = operation("max_pool", pool.rank), operation("max_pool", pool.rank, "_backward")
    y, indices = same_in_pieces(max_pool, x, **pool.options, return_indices=True, exact=True)
    assert_same_bits(*same_in_pieces(max_pool, x, **pool.options, exact=True), y)
    same_in_pieces(backward, pool.grad(indices.shape), x, **pool.options, indices=indices, exact=True)


@examples(80)
@given(pools(LINEAR, CONTENTS))
def test_averages_in_pieces(pool: Pool) -> None:
    x = pool.input()
    for name in ("avg_pool", "sum_pool"):
        (y,) = same_in_pieces(operation(name, pool.rank), x, **pool.options)
        same_in_pieces(operation(name, pool.rank, "_backward"), pool.grad(y.shape), x, **pool.options)


def test_pieces_between_windows_have_no_gradient(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3, 9, 6))
    options = {"kernel_size": (1, 4), "stride": (5, 1), "padding": (0, 1)}
    (grad,) = same_in_pieces(F.sum_pool2d_backward, F.sum_pool2d(x, **options), x, **options)
    assert not grad[:, :, 1:5].any()


@examples(80)
@given(adaptives(FLOATS, CONTENTS))
def test_adaptive_pooling_in_pieces(case: Adaptive) -> None:
    x = case.input()
    same_in_pieces(operation("adaptive_max_pool", case.rank), x, case.out, return_indices=True, exact=True)
    same_in_pieces(operation("adaptive_avg_pool", case.rank), x, case.out)
    same_in_pieces(operation("adaptive_avg_pool", case.rank, "_backward"), case.grad(), x, case.out)


@pytest.mark.parametrize("order", DENSE)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int32"])
def test_unpooling_and_its_gradient_in_pieces(rng: np.random.Generator, order: str, dtype: str) -> None:
    x = arranged(numbers(rng, (3, 4, 5, 6), dtype), order)
    indices = arranged(rng.integers(-1, 120, x.shape), order)
    grad = arranged(numbers(rng, (3, 4, 10, 12), dtype), order)
    same_in_pieces(F.max_unpool2d, x, indices, 2, exact=True)
    same_in_pieces(lambda: F.max_unpool2d_backward(grad, x, indices, 2)[0], exact=True)


@pytest.mark.parametrize("order", DENSE)
def test_images_that_are_cut_by_themselves(rng: np.random.Generator, order: str) -> None:
    """At the sizes that come by default: a plane, then rows of a plane, then planes, are more than a piece."""
    for shape, lead in (((1, 1, 900, 700), "rows"), ((1, 3, 800, 500), "planes"), ((2, 40, 96, 97), "runs of planes")):
        x = arranged(rng.standard_normal(shape, dtype=np.float32), order)
        assert x.nbytes > pooling.PIECE_BYTES, lead
        for kernel, stride, padding in ((2, 2, 0), (3, 2, 1), (5, 1, 2)):
            results = []
            for threads in (1, 2):
                with cut(pooling.PIECE_BYTES, threads):
                    y, indices = F.max_pool2d(x, kernel, stride, padding, return_indices=True)
                    average = F.avg_pool2d(x, kernel, stride, padding)
                    (grad,) = F.avg_pool2d_backward(average, x, kernel, stride, padding)
                    (spread,) = F.max_pool2d_backward(y, x, kernel, stride, padding, indices=indices)
                    results.append((y, indices, average, grad, spread))
            for one, other in zip(*results, strict=True):
                assert_same_bits(one, other)
            values = np.take_along_axis(x.reshape(*shape[:2], -1), indices.reshape(*shape[:2], -1), -1)
            assert_same_bits(np.ascontiguousarray(y), values.reshape(y.shape))
            np.testing.assert_allclose(spread.sum(), y.sum(dtype=np.float64), rtol=1e-4)
            assert (F.max_pool2d(x, kernel, stride, padding) == y).all()


# --- Windows ------------------------------------------------------------------------------------------------------


@pytest.mark.table(2)
@pytest.mark.parametrize("order", DENSE)
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [4, 5, 6, 7, 8, 13])
def test_long_windows(rng: np.random.Generator, kernel: int, stride: int, dilation: int, order: str) -> None:
    x = arranged(numbers(rng, (2, 2, 27, 29), "float64"), order)
    pad = kernel * dilation // 2
    options = ((kernel, 4), (stride, 1), ((pad, pad - 1), (0, 2)), (dilation, 1))
    y, indices = F.max_pool2d(x, *options, return_indices=True)
    expected = reference.max_pool(x, *options)
    np.testing.assert_array_equal(y, expected[0])
    np.testing.assert_array_equal(indices, expected[1])
    np.testing.assert_array_equal(F.max_pool2d(x, *options), expected[0])
    sums = F.sum_pool2d(x, options[0], options[1], options[2], dilation=options[3])
    np.testing.assert_allclose(sums, reference.sum_pool(x, *options), rtol=1e-12, atol=1e-12)
    (grad,) = F.sum_pool2d_backward(sums, x, options[0], options[1], options[2], dilation=options[3])
    np.testing.assert_allclose(grad, reference.sum_pool_backward(sums, (27, 29), *options), rtol=1e-12, atol=1e-12)


@pytest.mark.table(1)
@pytest.mark.parametrize("kernel", [(3, 5), (16, 15), (16, 16)])
def test_indices_of_values_in_any_order(rng: np.random.Generator, kernel: tuple[int, int]) -> None:
    x = rng.permutation(2 * 20 * 21).astype(np.float32).reshape(1, 2, 20, 21)
    for array in (x, -np.sort(-x.reshape(-1)).reshape(x.shape), np.sort(x.reshape(-1)).reshape(x.shape)):
        y, indices = F.max_pool2d(array, kernel, 1, 1, return_indices=True)
        expected = reference.max_pool(array, kernel, (1, 1), ((1, 1), (1, 1)), (1, 1))
        np.testing.assert_array_equal(y, expected[0])
        np.testing.assert_array_equal(indices, expected[1])


@pytest.mark.parametrize("order", DENSE)
def test_nan_and_lowest_values_are_located_piece_by_piece(rng: np.random.Generator, order: str) -> None:
    x = rng.standard_normal((2, 3, 11, 12)).astype(np.float32)
    x[0, 1, 4:8, 3:9] = -np.inf
    x[1, 2, 5, 5:7] = np.nan
    x = arranged(x, order)
    for options in ((3, 2, 1), (2, 2, 0), (4, 1, 2)):
        pads = ((options[2],) * 2,) * 2
        expected = reference.max_pool(x, (options[0],) * 2, (options[1],) * 2, pads, (1, 1))
        for results in (F.max_pool2d(x, *options, return_indices=True), in_pieces_of_max(x, options)):
            np.testing.assert_array_equal(results[0], expected[0])
            np.testing.assert_array_equal(results[1], expected[1])


def in_pieces_of_max(x: Array, options: tuple[int, int, int]) -> tuple[Array, ...]:
    return in_pieces(F.max_pool2d, x, *options, return_indices=True)


# --- Averages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", DENSE)
@pytest.mark.parametrize("dtype", LINEAR)
def test_few_windows_of_many_taps(rng: np.random.Generator, dtype: str, order: str) -> None:
    for size, out in (((7, 7), (1, 1)), ((12, 20), (2, 3)), ((13, 21), (3, 4)), ((5, 40), (5, 1)), ((30, 41), (4, 16))):
        x = arranged(numbers(rng, (2, 3, *size), dtype), order)
        assert_close(F.adaptive_avg_pool2d(x, out), reference.adaptive_avg_pool(x, out), x.dtype)
        grad = arranged(numbers(rng, (2, 3, *out), dtype), order)
        (result,) = F.adaptive_avg_pool2d_backward(grad, x, out)
        assert_close(result, reference.adaptive_avg_pool_backward(grad, size), x.dtype)
    x = arranged(numbers(rng, (2, 3, 4, 3, 5), dtype), order)
    assert_close(F.adaptive_avg_pool3d(x, 1), reference.adaptive_avg_pool(x, (1, 1, 1)), x.dtype)


@pytest.mark.parametrize("size", [(7, 7), (16, 16), (56, 56), (300, 500)])
def test_averages_of_whole_planes_are_exact_to_a_rounding_or_two(
    rng: np.random.Generator, size: tuple[int, int]
) -> None:
    x = rng.uniform(0.5, 1.5, (1, 64, *size)).astype(np.float32)
    expected = x.mean((2, 3), np.float64, keepdims=True)
    error = np.abs(F.adaptive_avg_pool2d(x, 1) - expected)
    assert error.max() < 1.5 * np.finfo(np.float32).eps


def test_few_windows_that_overlap_or_leave_out_inputs(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3, 23, 26))
    for options in (((6, 7), (5, 4), ((2, 1), (0, 3)), (1, 1)), ((4, 5), (7, 6), ((0, 0), (1, 1)), (2, 1))):
        sums = F.sum_pool2d(x, options[0], options[1], options[2], dilation=options[3])
        np.testing.assert_allclose(sums, reference.sum_pool(x, *options), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_stays_in_its_window(rng: np.random.Generator, value: float) -> None:
    x = rng.standard_normal((3, 4, 20, 25)).astype(np.float32)
    x[1, 2, 7, 11] = value
    y = F.adaptive_avg_pool2d(x, (4, 5))
    np.testing.assert_array_equal(np.argwhere(~np.isfinite(y)), [[1, 2, 1, 2]])
    np.testing.assert_array_equal(y[1, 2, 1, 2], value)
    assert_close(y, reference.adaptive_avg_pool(x, (4, 5)), x.dtype)


def test_sums_between_rows_are_nobodys_business() -> None:
    """Where a row ends and the next one begins, and from plane to plane, infinities of both signs meet."""
    x = np.zeros((1, 2, 4, 6), np.float32)
    x[..., 0], x[..., -1] = np.inf, -np.inf
    with np.errstate(all="raise"):
        y = F.avg_pool2d(x, 3, 1, 1)
        (grad,) = F.avg_pool2d_backward(x, x, 3, 1, 1)
        tiles = F.sum_pool1d(np.repeat([[np.inf, -np.inf]], [7], axis=1).reshape(1, 1, 14), 7)
    assert tiles.tolist() == [[[np.inf, -np.inf]]]
    for result in (y, grad):
        assert (result[..., :2] == np.inf).all()
        assert (result[..., -2:] == -np.inf).all()
        assert (result[..., 2:-2] == 0).all()


@pytest.mark.parametrize("order", DENSE)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_windows_that_tile_repeat_their_gradient(rng: np.random.Generator, rank: int, order: str) -> None:
    """Also where pieces hold parts of windows, and where inputs at the end belong to none."""
    kernel, sizes = (2, 3, 5)[:rank], (5, 20, 36)[-rank:]
    x = arranged(rng.standard_normal((2, 3, *sizes)), order)
    grad = F.avg_pool3d(x, kernel) if rank == 3 else operation("avg_pool", rank)(x, kernel)
    expected = reference.avg_pool_backward(grad, sizes, kernel, kernel, ((0, 0),) * rank, (1,) * rank)
    backward = operation("avg_pool", rank, "_backward")
    np.testing.assert_allclose(backward(grad, x, kernel)[0], expected, rtol=1e-12)
    np.testing.assert_allclose(in_pieces(backward, grad, x, kernel)[0], expected, rtol=1e-12)
    with cut(2000, 2):
        np.testing.assert_allclose(backward(grad, x, kernel)[0], expected, rtol=1e-12)


# --- Indices ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", DENSE)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("least", [0, -1])
def test_gradients_of_large_planes(rng: np.random.Generator, least: int, dtype: str, order: str) -> None:
    grad = arranged(numbers(rng, (2, 3, 50, 60), dtype), order)
    x = arranged(numbers(rng, (2, 3, 100, 120), dtype), order)
    indices = rng.integers(least, 12000, grad.shape)
    indices[0, 0, 0, 0] = least
    (result,) = F.max_pool2d_backward(grad, x, 2, indices=arranged(indices, order))
    assert_close(result, reference.max_pool_backward(grad, indices, x.shape), x.dtype)
    (mixed,) = F.max_pool2d_backward(grad, x, 2, indices=indices.astype(np.int32))
    assert_same_bits(mixed, result)
