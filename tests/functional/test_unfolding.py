"""im2col and col2im: the order of rows and columns, the ranks they take, and the NumPy backend's pieces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend
from convolution_cases import Layer, bits
from families import FAMILIES
from families.convolution import unfolding
from hypothesis import given
from hypothesis import strategies as st
from properties import check_gradients, check_results
from sample import examples
from strategies import ORDERS, Windows, numbers

import gpucnn.functional as F
from gpucnn.backends.numpy import threads
from gpucnn.backends.numpy import unfolding as in_numpy
from gpucnn.geometry import im2col_shapes


def test_rows_run_over_channels_then_taps_and_columns_over_positions(backend: ArrayBackend) -> None:
    x = np.arange(24).reshape(1, 2, 3, 4)
    columns = backend.run(F.im2col, x, (2, 2), stride=(1, 2))
    np.testing.assert_array_equal(columns[0, 0], [0, 2, 4, 6])  # channel 0, tap (0, 0) at the 2 x 2 positions
    np.testing.assert_array_equal(columns[0, :, 0], [0, 1, 4, 5, 12, 13, 16, 17])  # the first window
    np.testing.assert_array_equal(columns[0, :, 3], [6, 7, 10, 11, 18, 19, 22, 23])  # the last


@pytest.mark.parametrize(
    ("shape", "kernel_size", "expected"),
    [
        ((2, 7), 3, (6, 5)),
        ((2, 7), (3,), (6, 5)),
        ((4, 2, 7), (3,), (4, 6, 5)),
        ((2, 6, 7), 3, (18, 20)),
        ((4, 2, 6, 7), 3, (4, 18, 20)),
        ((2, 5, 6, 7), (3, 3, 3), (54, 60)),
        ((4, 2, 5, 6, 7), 3, (4, 54, 60)),
    ],
)
def test_rank_is_that_of_the_kernel_or_else_of_the_image(
    backend: ArrayBackend, shape: tuple[int, ...], kernel_size: Any, expected: tuple[int, ...]
) -> None:
    x = np.zeros(shape)
    columns = backend.run(F.im2col, x, kernel_size)
    assert columns.shape == expected
    assert backend.run(F.im2col_backward, columns, x, kernel_size)[0].shape == shape
    rank = len(shape) - len(expected) + 1
    assert expected[-2:] == im2col_shapes(shape[-rank - 1], 1, shape[-rank:], kernel_size).columns
    assert backend.run(F.col2im, columns, shape[-rank:], kernel_size).shape == shape
    assert backend.run(F.col2im_backward, x, columns, shape[-rank:], kernel_size)[0].shape == expected


def test_ints_mean_2d_for_col2im(backend: ArrayBackend) -> None:
    assert backend.run(F.col2im, np.ones((8, 16)), 5, 2).shape == (2, 5, 5)
    assert backend.run(F.col2im, np.ones((8, 4)), 5, (2,)).shape == (4, 5)
    assert backend.run(F.col2im, np.ones((8, 4)), (5,), 2).shape == (4, 5)


# --- The NumPy backend's pieces ------------------------------------------------------------------------------------


@pytest.fixture
def on_numpy(backend: ArrayBackend) -> ArrayBackend:
    if backend.name != "numpy":
        pytest.skip("these pieces are the NumPy backend's")
    return backend


@examples(400)
@given(case=FAMILIES["unfold"].cases(), pieces=st.sampled_from([1, 300, in_numpy.PIECE_ITEMS]))
def test_pieces_are_those_of_the_oracle(on_numpy: ArrayBackend, case: Any, pieces: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_numpy, "PIECE_ITEMS", pieces)
        check_results(on_numpy, case)
        check_gradients(on_numpy, case)


LARGE = [
    pytest.param(Windows(2, (40, 23), (3, 3), (1, 1), (1, 1), (1, 1)), id="size kept"),
    pytest.param(Windows(2, (40, 24), (3, 3), (2, 2), (1, 1), (1, 1)), id="size halved"),
    pytest.param(Windows(2, (37, 41), (5, 7), (3, 4), (1, 1), (0, 2)), id="rows of another length"),
    pytest.param(Windows(2, (30, 29), (3, 2), (2, 3), (3, 2), (4, 5)), id="wide padding"),
    pytest.param(Windows(2, (31, 31), (2, 2), (5, 6), (1, 1), (0, 0)), id="stride beyond the window"),
]


@pytest.mark.parametrize("windows", LARGE)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("folds", [False, True])
def test_large_ones_are_those_of_the_oracle_whatever_the_threads(
    on_numpy: ArrayBackend, monkeypatch: pytest.MonkeyPatch, windows: Windows, order: str, folds: bool
) -> None:
    case = unfolding(Layer(windows, 2, (5, 1, 1), "float32", (order,) * 3), folds)
    monkeypatch.setattr(in_numpy, "PIECE_ITEMS", max(case.grad.size, case.first.size) // 4)
    check_results(on_numpy, case)
    results = []
    for count in (1, 2, 3):
        monkeypatch.setattr(threads, "_num_threads", count)
        results.append(bits(on_numpy.run(case.forward, **case.arguments)))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("windows", LARGE)
def test_what_stands_for_padding_is_not_added_and_what_is_odd_stays_in_place(
    on_numpy: ArrayBackend, rng: np.random.Generator, windows: Windows
) -> None:
    options, sizes = unfolding(Layer(windows, 2, (3, 1, 1)), folds=False).options, windows.sizes
    inside = on_numpy.run(F.im2col, np.ones((2, 3, *sizes), np.float32), **options)
    columns = numbers(rng, inside.shape, "float32")
    expected = on_numpy.run(F.col2im, columns, sizes, **options)
    odd = np.where(inside == 0, np.float32("nan"), columns)
    assert bits(on_numpy.run(F.col2im, odd, sizes, **options)) == bits(expected)
    image = np.full((2, 3, *sizes), np.nan, np.float32)
    assert np.array_equal(np.isnan(on_numpy.run(F.im2col, image, **options)), inside == 1)
