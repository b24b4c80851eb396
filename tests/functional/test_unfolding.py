"""im2col and col2im, and their gradients, against loops, PyTorch, and the convolutions that are made of them."""

from __future__ import annotations

import re
from math import prod
from typing import Any

import numpy as np
import pytest
import reference
from array_backends import ArrayBackend
from convolution_cases import Array, Layer, bits, close_to_torch, frozen, layers, poisoned_memory, torch_leaves
from hypothesis import assume, given
from hypothesis import strategies as st
from sample import examples
from strategies import COMPLEX, FLOATS, INTEGERS, ORDERS, Windows, arranged, dtype_of, numbers
from tolerances import assert_close

import gpucnn.functional as F
from gpucnn.backends.numpy import threads, unfolding
from gpucnn.geometry import im2col_shapes

NUMERIC = FLOATS + COMPLEX + INTEGERS
CHANNELS = [(1, 1, 1), (2, 1, 1), (3, 1, 1)]


class Unfolding(Layer):
    """Drawn windows to unfold."""

    @property
    def options(self) -> dict[str, Any]:
        w = self.windows
        return {"kernel_size": w.kernel, "dilation": w.dilation, "padding": w.padding, "stride": w.stride}

    @property
    def loops(self) -> tuple[Any, ...]:
        return super().loops[:3]

    def arrays(self) -> tuple[Array, Array]:  # type: ignore[override]
        """An image and its windows' columns, not those of this image."""
        x = super().arrays()[0]
        batch = () if self.batch is None else (self.batch,)
        shape = (*batch, self.channels[0] * prod(self.windows.kernel), prod(self.output_size))
        columns = numbers(np.random.default_rng(2), shape, self.dtype)
        # a matrix has no channels-last order: its rows are what lies innermost
        return x, arranged(columns, self.orders[2], self.batch is not None)

    def im2col(self, x: Array) -> Array:
        w = self.windows
        return self.without(reference.im2col(self.with_batch(x), w.kernel, *self.loops))

    def col2im(self, columns: Array) -> Array:
        w = self.windows
        return self.without(reference.col2im(self.with_batch(columns), w.sizes, w.kernel, *self.loops))


def unfoldings(dtypes: tuple[str, ...], most: int = 2000, **kwargs: Any) -> st.SearchStrategy[Unfolding]:
    """Windows of at most `most` rows times columns of one channel."""
    return layers(dtypes, most, Unfolding, CHANNELS, **kwargs)


# --- Against loops and PyTorch ------------------------------------------------------------------------------------


@examples(200)
@given(case=unfoldings(NUMERIC))
def test_im2col_and_its_backward_are_the_loops(backend: ArrayBackend, case: Unfolding) -> None:
    x, grad = case.arrays()
    frozen(x, grad)
    with poisoned_memory():
        columns = backend.run(F.im2col, x, **case.options)
        (grad_x,) = backend.run(F.im2col_backward, grad, x, **case.options)
    assert columns.dtype == x.dtype
    np.testing.assert_array_equal(reference.wide(columns), case.im2col(x))  # copies, so equal in every dtype
    assert_close(grad_x, case.col2im(grad), x.dtype)
    assert bits(backend.run(F.im2col_backward, grad, x, **case.options)) == bits(grad_x)
    assert backend.run(F.im2col_backward, grad, x, **case.options, needs=(False,)) == (None,)


@examples(200)
@given(case=unfoldings(NUMERIC))
def test_col2im_and_its_backward_are_the_loops(backend: ArrayBackend, case: Unfolding) -> None:
    grad, columns = case.arrays()
    frozen(grad, columns)
    with poisoned_memory():
        image = backend.run(F.col2im, columns, case.windows.sizes, **case.options)
        (grad_columns,) = backend.run(F.col2im_backward, grad, columns, case.windows.sizes, **case.options)
    assert_close(image, case.col2im(columns), grad.dtype)
    assert grad_columns.dtype == grad.dtype
    np.testing.assert_array_equal(reference.wide(grad_columns), case.im2col(grad))
    assert bits(backend.run(F.col2im, columns, case.windows.sizes, **case.options)) == bits(image)
    skipped = backend.run(F.col2im_backward, grad, columns, case.windows.sizes, **case.options, needs=(False,))
    assert skipped == (None,)


@examples(80)
@given(case=unfoldings(("float32", "float64", "complex128"), rank=2, symmetric=True))
def test_unfold_and_fold_are_pytorchs(backend: ArrayBackend, torch: Any, case: Unfolding) -> None:
    assume(case.batch != 0)  # PyTorch takes no empty batch here
    image, columns = case.arrays()
    (leaf,) = torch_leaves(torch, image)
    expected = torch.nn.functional.unfold(leaf, **case.options)
    close_to_torch(backend.run(F.unfold, image, **case.options), expected)
    expected.backward(torch.from_numpy(columns.copy()))
    close_to_torch(backend.run(F.unfold_backward, columns, image, **case.options)[0], leaf.grad)

    (leaf,) = torch_leaves(torch, columns)
    expected = torch.nn.functional.fold(leaf, case.windows.sizes, **case.options)
    close_to_torch(backend.run(F.fold, columns, case.windows.sizes, **case.options), expected)
    expected.backward(torch.from_numpy(image.copy()))
    grad = backend.run(F.fold_backward, image, columns, case.windows.sizes, **case.options)[0]
    close_to_torch(grad, leaf.grad)


@examples(12)
@given(case=unfoldings(("float64", "complex128"), most=60, largest=3))
def test_gradients_are_finite_differences(backend: ArrayBackend, case: Unfolding) -> None:
    image, columns = case.arrays()
    sizes = case.windows.sizes
    (actual,) = backend.run(F.im2col_backward, columns, image, **case.options)
    expected = reference.finite_difference(lambda x: backend.run(F.im2col, x, **case.options), image, columns)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)
    (actual,) = backend.run(F.col2im_backward, image, columns, sizes, **case.options)
    expected = reference.finite_difference(lambda c: backend.run(F.col2im, c, sizes, **case.options), columns, image)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


# --- Identities ---------------------------------------------------------------------------------------------------


@examples(60)
@given(case=unfoldings(("float64", "complex128")))
def test_each_is_the_adjoint_of_the_other(backend: ArrayBackend, case: Unfolding) -> None:
    x, columns = case.arrays()
    unfolded = backend.run(F.im2col, x, **case.options)
    folded = backend.run(F.col2im, columns, case.windows.sizes, **case.options)
    np.testing.assert_allclose(np.vdot(columns, unfolded), np.vdot(folded, x), rtol=0, atol=1e-9)


@examples(80)
@given(case=layers(("float64", "complex128")))
def test_convolution_is_filters_times_columns(backend: ArrayBackend, case: Layer) -> None:
    x, w, b, grad = case.arrays()
    _, outputs, groups = case.channels
    options = {key: value for key, value in case.options.items() if key != "groups"}
    columns = backend.run(F.im2col, case.with_batch(x), case.windows.kernel, **options)
    n, rows, positions = columns.shape
    matrices = w.reshape(groups, -1, rows // groups)
    y = matrices @ columns.reshape(n, groups, rows // groups, positions)
    y = case.without(y.reshape(n, outputs, *case.output_size)) + b.reshape(-1, *(1,) * case.windows.rank)
    assert_close(backend.run(case.op(), x, w, b, **case.options), y)

    # and its gradient by the image is their adjoint: conjugated filters times the output's gradient, folded
    grad = case.with_batch(grad).reshape(n, groups, outputs // groups, positions)
    columns = (matrices.conj().swapaxes(1, 2) @ grad).reshape(n, rows, positions)
    image = backend.run(F.col2im, columns, case.windows.sizes, case.windows.kernel, **options)
    grad = case.arrays()[3]
    assert_close(backend.run(case.op("_input"), x.shape, w, grad, **case.options), case.without(image))


def test_fold_of_unfold_counts_the_windows(backend: ArrayBackend, rng: np.random.Generator) -> None:
    x = numbers(rng, (2, 3, 6, 7), "float64")
    options = {"kernel_size": (3, 2), "stride": (2, 1), "padding": ((1, 0), (0, 2)), "dilation": (1, 2)}

    def there_and_back(image: Array) -> Array:
        return backend.run(F.fold, backend.run(F.unfold, image, **options), (6, 7), **options)

    counts = there_and_back(np.ones_like(x))
    assert counts.min() >= 1
    np.testing.assert_allclose(there_and_back(x), counts * x, rtol=1e-14)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "complex64"])
def test_windows_side_by_side_fold_back_to_the_image(
    backend: ArrayBackend, rng: np.random.Generator, rank: int, dtype: str
) -> None:
    x = numbers(rng, (2, 3, 4, 6, 2)[: rank + 2], dtype)
    kernel = (2, 3, 1)[:rank]
    columns = backend.run(F.im2col, x, kernel, stride=kernel)
    assert bits(backend.run(F.col2im, columns, x.shape[2:], kernel, stride=kernel)) == bits(x)


# --- Known answers ------------------------------------------------------------------------------------------------


def test_rows_run_over_channels_then_taps_and_columns_over_positions(backend: ArrayBackend) -> None:
    x = np.arange(24).reshape(1, 2, 3, 4)
    columns = backend.run(F.im2col, x, (2, 2), stride=(1, 2))
    np.testing.assert_array_equal(columns[0, 0], [0, 2, 4, 6])  # channel 0, tap (0, 0) at the 2 x 2 positions
    np.testing.assert_array_equal(columns[0, :, 0], [0, 1, 4, 5, 12, 13, 16, 17])  # the first window
    np.testing.assert_array_equal(columns[0, :, 3], [6, 7, 10, 11, 18, 19, 22, 23])  # the last


def test_windows_of_a_3d_image(backend: ArrayBackend) -> None:
    x = np.arange(27).reshape(1, 3, 3, 3)
    columns = backend.run(F.im2col, x, (2, 3, 1), padding=((1, 0), (0, 0), (0, 0)))
    assert columns.shape == (6, 9)
    np.testing.assert_array_equal(columns[:, 0], [0, 0, 0, 0, 3, 6])  # its upper half is padding
    np.testing.assert_array_equal(columns[:, 8], [11, 14, 17, 20, 23, 26])
    assert backend.run(F.im2col, x[None], 2).shape == (1, 8, 8)


def test_alexnet_columns_of_cs231n(backend: ArrayBackend) -> None:
    """ "X_col of size [363 x 3025], where every column is a stretched out receptive field": 11 x 11 x 3, 55 x 55."""
    columns = backend.run(F.im2col, np.ones((3, 227, 227), np.int8), 11, stride=4)
    assert columns.shape == (363, 3025)


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


def test_fold_and_unfold_are_other_names() -> None:
    assert (F.unfold, F.unfold_backward) == (F.im2col, F.im2col_backward)
    assert (F.fold, F.fold_backward) == (F.col2im, F.col2im_backward)


# --- The NumPy backend's lanes and pieces --------------------------------------------------------------------------


@pytest.fixture
def on_numpy(backend: ArrayBackend) -> ArrayBackend:
    if backend.name != "numpy":
        pytest.skip("these lanes and pieces are the NumPy backend's")
    return backend


@examples(400)
@given(case=unfoldings(NUMERIC), pieces=st.sampled_from([1, 300, unfolding.PIECE_ITEMS]))
def test_through_lanes_they_are_the_loops(on_numpy: ArrayBackend, case: Unfolding, pieces: int) -> None:
    image, columns = case.arrays()
    frozen(image, columns)
    with pytest.MonkeyPatch.context() as patch, poisoned_memory():
        patch.setattr(unfolding, "LANES_FROM", 0)
        patch.setattr(unfolding, "PIECE_ITEMS", pieces)
        unfolded = on_numpy.run(F.im2col, image, **case.options)
        folded = on_numpy.run(F.col2im, columns, case.windows.sizes, **case.options)
        assert bits(on_numpy.run(F.col2im, columns, case.windows.sizes, **case.options)) == bits(folded)
    assert unfolded.dtype == image.dtype
    np.testing.assert_array_equal(reference.wide(unfolded), case.im2col(image))
    assert_close(folded, case.col2im(columns), columns.dtype)


LARGE = [
    pytest.param((40, 23), (3, 3), (1, 1), (1, 1), (1, 1), id="size kept"),
    pytest.param((40, 24), (3, 3), (2, 2), (1, 1), (1, 1), id="size halved"),
    pytest.param((37, 41), (5, 7), (3, 4), (1, 1), (0, 2), id="rows of another length"),
    pytest.param((30, 29), (3, 2), (2, 3), (3, 2), (4, 5), id="wide padding"),
    pytest.param((31, 31), (2, 2), (5, 6), (1, 1), (0, 0), id="stride beyond the window"),
]


@pytest.mark.parametrize(("sizes", "kernel", "stride", "dilation", "padding"), LARGE)
@pytest.mark.parametrize("order", ORDERS)
def test_large_ones_are_the_loops_whatever_the_threads(
    on_numpy: ArrayBackend,
    monkeypatch: pytest.MonkeyPatch,
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    padding: tuple[int, ...],
    order: str,
) -> None:
    monkeypatch.setattr(unfolding, "LANES_FROM", 0)
    case = Unfolding(Windows(2, sizes, kernel, stride, dilation, padding), 2, (5, 1, 1), orders=(order,) * 3)
    image, columns = (array.astype(np.float32) for array in case.arrays())
    monkeypatch.setattr(unfolding, "PIECE_ITEMS", columns.size // 4)
    results = []
    for count in (1, 2, 3):
        monkeypatch.setattr(threads, "_num_threads", count)
        unfolded = on_numpy.run(F.im2col, image, **case.options)
        results.append((unfolded, on_numpy.run(F.col2im, columns, sizes, **case.options)))
    np.testing.assert_array_equal(results[0][0], case.im2col(image))
    assert_close(results[0][1], case.col2im(columns), columns.dtype)
    assert bits(results[0]) == bits(results[1]) == bits(results[2])


@pytest.mark.parametrize(("sizes", "kernel", "stride", "dilation", "padding"), LARGE)
def test_what_stands_for_padding_is_not_added_and_what_is_odd_stays_in_place(
    on_numpy: ArrayBackend,
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    padding: tuple[int, ...],
) -> None:
    monkeypatch.setattr(unfolding, "LANES_FROM", 0)
    case = Unfolding(Windows(2, sizes, kernel, stride, dilation, padding), 2, (3, 1, 1), "float32")
    inside = on_numpy.run(F.im2col, np.ones((2, 3, *sizes), np.float32), **case.options)
    columns = numbers(rng, inside.shape, "float32")
    expected = on_numpy.run(F.col2im, columns, sizes, **case.options)
    odd = np.where(inside == 0, np.float32("nan"), columns)
    assert bits(on_numpy.run(F.col2im, odd, sizes, **case.options)) == bits(expected)
    image = np.full((2, 3, *sizes), np.nan, np.float32)
    assert np.array_equal(np.isnan(on_numpy.run(F.im2col, image, **case.options)), inside == 1)


# --- Dtypes, memory, errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_of_16_bit_floats_are_kept_in_float32(backend: ArrayBackend, dtype: str) -> None:
    columns = np.ones((64 * 64, 64 * 64), dtype_of(dtype))  # 64 x 64 windows of 64 x 64 taps meet at the middle
    image = backend.run(F.col2im, columns, (127, 127), (64, 64))
    assert (image.dtype, image[0, 63, 63], image[0, 0, 0]) == (columns.dtype, 4096, 1)


def test_integers_wrap_around_in_their_own_type(backend: ArrayBackend) -> None:
    image = backend.run(F.col2im, np.full((2, 3), 100, np.int8), (4,), (2,))
    np.testing.assert_array_equal(image, np.array([[100, -56, -56, 100]], np.int8))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kernel", [1, 2])
def test_results_are_new_contiguous_arrays(backend: ArrayBackend, order: str, kernel: int) -> None:
    case = Unfolding(Windows(2, (4, 5), (kernel,) * 2, (1, 1), (1, 1), 0), 2, (3, 1, 1), orders=(order,) * 3)
    image, columns = case.arrays()
    results = (
        backend.run(F.im2col, image, **case.options),
        backend.run(F.col2im, columns, (4, 5), **case.options),
        *backend.run(F.im2col_backward, columns, image, **case.options),
        *backend.run(F.col2im_backward, image, columns, (4, 5), **case.options),
    )
    for result in results:
        assert result.flags.c_contiguous
        assert result.flags.writeable
        assert not np.shares_memory(result, image)
        assert not np.shares_memory(result, columns)


@pytest.mark.parametrize(
    ("message", "op", "shapes", "sizes"),
    [
        ("im2col: input has 1 dimensions", F.im2col, ((5,),), (2,)),
        ("im2col: kernel_size has 4 values, expected 1 to 3", F.im2col, ((1, 1, 5),), ((1, 1, 1, 1),)),
        ("im2col: window of axis 1 spans", F.im2col, ((1, 5, 5),), ((2, 6),)),
        ("im2col_backward: grad_output has shape (4, 15), expected (4, 16)",
         F.im2col_backward, ((4, 15), (1, 5, 5)), (2,)),
        ("col2im: input has 6 rows, expected a multiple of the window's 4 taps", F.col2im, ((6, 16),), ((5, 5), 2)),
        ("col2im: input has 15 columns, expected one for each of the window's 16 positions",
         F.col2im, ((4, 15),), ((5, 5), 2)),
        ("col2im: input has 4 dimensions, expected 3", F.col2im, ((1, 1, 4, 16),), ((5, 5), 2)),
        ("col2im_backward: grad_output has shape (1, 5, 4), expected (1, 5, 5)",
         F.col2im_backward, ((1, 5, 4), (4, 16)), ((5, 5), 2)),
    ],
)  # fmt: skip
def test_errors_name_the_operation_and_the_argument(
    backend: ArrayBackend, message: str, op: Any, shapes: tuple[tuple[int, ...], ...], sizes: tuple[Any, ...]
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        backend.run(op, *map(np.ones, shapes), *sizes)
