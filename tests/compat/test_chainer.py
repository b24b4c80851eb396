"""Chainer's functions against naive loops: every rank, ``cover_all``, sizes, and what is refused."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
import pytest
import reference
from array_backends import ArrayBackend
from covering import Covering, coverings
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses
from sample import examples
from strategies import numbers
from tolerances import assert_close

from gpucnn.compat import chainer

Array = np.ndarray[Any, Any]
FLOATS = st.sampled_from(["float16", "float32", "float64"])


def functions(name: str, rank: int) -> list[Any]:
    """The function of one rank, and that of all ranks."""
    return [getattr(chainer, f"{name}_{rank}d"), getattr(chainer, f"{name}_nd")]


# --- Convolution --------------------------------------------------------------------------------------------------


@examples(100)
@given(case=coverings(), groups=st.integers(1, 2), dtype=FLOATS, has_bias=st.booleans())
def test_convolution(backend: ArrayBackend, case: Covering, groups: int, dtype: str, has_bias: bool) -> None:
    rng = np.random.default_rng(1)
    x = numbers(rng, (2, 2 * groups, *case.sizes), dtype)
    w = numbers(rng, (3 * groups, 2, *case.kernel), dtype)
    b = numbers(rng, (3 * groups,), dtype) if has_bias else None
    options = {"cover_all": case.cover_all, "dilate": case.dilation, "groups": groups}
    for function in functions("convolution", case.rank):
        y = backend.run(function, x, w, b, case.stride, case.pad, **options)
        assert_close(y, reference.conv(x, w, b, *case.loops, groups), dtype)


@examples(100)
@given(case=coverings(), groups=st.integers(1, 2), dtype=FLOATS, has_bias=st.booleans())
def test_deconvolution(backend: ArrayBackend, case: Covering, groups: int, dtype: str, has_bias: bool) -> None:
    """To a size that the convolution reads: the gradient of the convolution."""
    rng = np.random.default_rng(2)
    x = numbers(rng, (2, 2 * groups, *case.outs), dtype)
    w = numbers(rng, (2 * groups, 3, *case.kernel), dtype)
    b = numbers(rng, (3 * groups,), dtype) if has_bias else None
    expected = reference.conv_backward_input(x, w, case.sizes, *case.loops, groups)
    if b is not None:
        expected = expected + reference.per_channel(b, x.ndim)
    for function in functions("deconvolution", case.rank):
        options = {"outsize": case.sizes, "dilate": case.dilation, "groups": groups}
        y = backend.run(function, x, w, b, case.stride, case.pad, **options)
        assert_close(y, expected, dtype)


def test_deconvolution_s_own_size_is_the_least(backend: ArrayBackend) -> None:
    x, w = np.ones((1, 1, 3, 2)), np.ones((1, 2, 3, 4))
    y = backend.run(chainer.deconvolution_2d, x, w, None, (2, 3), (1, 0), dilate=(1, 2))
    assert y.shape == (1, 2, *(chainer.get_deconv_outsize(*axis) for axis in ((3, 3, 2, 1), (2, 4, 3, 0, False, 2))))
    assert_close(y, reference.conv_transpose(x, w, None, (2, 3), [(1, 1), (0, 0)], (0, 0), (1, 2)))


def test_convolution_2d_s_relatives(backend: ArrayBackend, rng: np.random.Generator) -> None:
    x, w, b = (numbers(rng, shape, "float64") for shape in ((2, 3, 6, 5), (2, 3, 3, 2), (6,)))
    y = backend.run(chainer.dilated_convolution_2d, x, w, b[:2], 2, 1, 2, True)
    assert_close(y, backend.run(chainer.convolution_2d, x, w, b[:2], 2, 1, True, dilate=2))
    y = backend.run(chainer.depthwise_convolution_2d, x, w, b, (2, 1), 1)
    assert y.shape == (2, 6, 3, 6)
    for channel in range(3):
        for multiple in range(2):
            filters = w[multiple : multiple + 1, channel : channel + 1]
            index = 2 * channel + multiple
            one = reference.conv(
                x[:, channel : channel + 1], filters, b[index : index + 1], (2, 1), [(1, 1)] * 2, (1, 1)
            )
            assert_close(y[:, index], one[:, 0])
    w, b = numbers(rng, (4, 2, 4, 3, 3, 2), "float64"), numbers(rng, (4, 2, 4), "float64")
    y = backend.run(chainer.local_convolution_2d, x, w, b, (2, 1))
    assert_close(y, reference.locally_connected(x, w, b, (2, 1), [(0, 0)] * 2, (1, 1)))


# --- Pooling ------------------------------------------------------------------------------------------------------


def windows_of(case: Covering) -> Any:
    return reference.pool_windows(
        case.sizes, case.outs, case.kernel, case.stride, [(p, 0) for p in case.pad], (1,) * case.rank
    )


def within_windows(indices: Array, case: Covering) -> Array:
    """Positions in planes as positions in windows, found by going through each window's taps."""
    found = np.zeros_like(indices)
    for n, c, *out in np.ndindex(indices.shape):
        for at, tap in enumerate(np.ndindex(case.kernel)):
            pos = [o * s + t - p for o, s, t, p in zip(out, case.stride, tap, case.pad, strict=True)]
            if all(0 <= p < size for p, size in zip(pos, case.sizes, strict=True)):
                here = (n, c, *out)
                if indices[here] == np.ravel_multi_index(pos, case.sizes):
                    found[here] = at
    return found


@examples(60)
@given(case=coverings(pools=True), batch=st.integers(0, 2), dtype=FLOATS)
def test_max_pooling_and_upsampling(backend: ArrayBackend, case: Covering, batch: int, dtype: str) -> None:
    rng = np.random.default_rng(3)
    x = numbers(rng, (batch, 2, *case.sizes), dtype)
    y, indices = reference.max_over(x, case.outs, windows_of(case))
    pooled = case.kernel, case.stride, case.pad
    for function in functions("max_pooling", case.rank):
        assert_close(backend.run(function, x, *pooled, cover_all=case.cover_all), y, dtype)
        found, indexes = backend.run(function, x, *pooled, cover_all=case.cover_all, return_indices=True)
        assert_close(found, y, dtype)
        np.testing.assert_array_equal(indexes, within_windows(indices, case))
    up = numbers(rng, (batch, 2, *case.outs), dtype)
    expected = reference.max_pool_backward(up, indices, x.shape)
    for function in functions("upsampling", case.rank):
        arguments = {"outsize": case.sizes, "cover_all": case.cover_all}
        assert_close(backend.run(function, up, indexes, *pooled, **arguments), expected, dtype)


@examples(60)
@given(case=coverings(pools=True), dtype=FLOATS)
def test_average_pooling(backend: ArrayBackend, case: Covering, dtype: str) -> None:
    """Of the windows that fit."""
    case = Covering(case.sizes, case.kernel, case.stride, case.pad, case.dilation, cover_all=False)
    x = numbers(np.random.default_rng(4), (2, 2, *case.sizes), dtype)
    sums, counts = reference.sum_over(x, case.outs, windows_of(case)), reference.count_over(case.outs, windows_of(case))
    for function in functions("average_pooling", case.rank):
        y = backend.run(function, x, case.kernel, case.stride, case.pad)
        assert_close(y, sums / np.prod(case.kernel), dtype)
        if function is not chainer.average_pooling_2d:
            y = backend.run(function, x, case.kernel, case.stride, case.pad, pad_value=None)
            assert_close(y, sums / counts, dtype)


@examples(60)
@given(case=coverings(pools=True), dtype=FLOATS)
def test_unpooling(backend: ArrayBackend, case: Covering, dtype: str) -> None:
    x = numbers(np.random.default_rng(5), (2, 2, *case.outs), dtype)
    expected = reference.spread_over(x, case.sizes, windows_of(case))
    for function in functions("unpooling", case.rank):
        y = backend.run(function, x, case.kernel, case.stride, case.pad, case.sizes, case.cover_all)
        assert_close(y, expected, dtype)


def test_pooling_covers_all_by_default(backend: ArrayBackend) -> None:
    x = np.arange(25.0).reshape(1, 1, 5, 5)
    assert backend.run(chainer.max_pooling_2d, x, 2).shape == (1, 1, 3, 3)
    assert backend.run(chainer.max_pooling_2d, x, 2, cover_all=False).shape == (1, 1, 2, 2)
    assert backend.run(chainer.average_pooling_2d, x, 2).shape == (1, 1, 2, 2)
    assert backend.run(chainer.unpooling_2d, x, 2).shape == (1, 1, 9, 9)
    assert backend.run(chainer.unpooling_2d, x, 2, cover_all=False).shape == (1, 1, 10, 10)


def test_windows_past_the_image(backend: ArrayBackend) -> None:
    """Three positions with one of padding: the third window of two begins after them."""
    x = np.array([[[1.0, 2.0, 3.0]]])
    y, indexes = backend.run(chainer.max_pooling_1d, x, 2, 2, 1, return_indices=True)
    np.testing.assert_array_equal(y, [[[1, 3, -inf]]])
    np.testing.assert_array_equal(indexes, [[[1, 1, 0]]])
    up = backend.run(chainer.upsampling_1d, x, indexes, 2, 2, 1, (3,))
    np.testing.assert_array_equal(up, [[[1, 0, 2]]])
    np.testing.assert_array_equal(backend.run(chainer.unpooling_1d, x, 2, 2, 1, (3,)), [[[1, 2, 2]]])


def test_values_that_meet_are_added_and_others_stay_zero(backend: ArrayBackend) -> None:
    x, indexes = np.array([[[1.0, 10.0, np.inf]]]), np.array([[[1, 0, 7]]], np.int32)
    np.testing.assert_array_equal(backend.run(chainer.upsampling_1d, x, indexes, 2, 1, 0, (4,)), [[[0, 11, 0, 0]]])


# --- Columns ------------------------------------------------------------------------------------------------------


@examples(100)
@given(case=coverings(rank=2), dtype=st.sampled_from(["float32", "float64", "int64", "complex64"]))
def test_columns(backend: ArrayBackend, case: Covering, dtype: str) -> None:
    rng = np.random.default_rng(6)
    x = numbers(rng, (2, 3, *case.sizes), dtype)
    columns = reference.im2col(x, case.kernel, *case.loops).reshape(2, 3, *case.kernel, *case.outs)
    window = *case.kernel, *case.stride, *case.pad
    for sizes in ((None, None), case.outs):
        found = backend.run(chainer.im2col_gpu, x, *window, case.cover_all, *case.dilation, *sizes)
        assert_close(found, columns, dtype)
    found = backend.run(chainer.im2col, x, case.kernel, case.stride, case.pad, case.cover_all, case.dilation)
    assert_close(found, columns.reshape(2, -1, *case.outs), dtype)
    grad = numbers(rng, columns.shape, dtype)
    image = backend.run(chainer.col2im_gpu, grad, *case.stride, *case.pad, *case.sizes, *case.dilation)
    matrix = grad.reshape(2, 3 * int(np.prod(case.kernel)), -1)
    assert_close(image, reference.col2im(matrix, case.sizes, case.kernel, *case.loops), dtype)


@pytest.mark.parametrize("sizes", [(1, 2), (4, 9), (2, 2)])
def test_any_number_of_windows(backend: ArrayBackend, sizes: tuple[int, int]) -> None:
    """Fewer than fit, or so many that some read nothing."""
    x = np.arange(1.0, 31).reshape(1, 1, 5, 6)
    found = backend.run(chainer.im2col_gpu, x, 3, 2, 2, 1, 1, 0, False, 1, 2, *sizes)
    assert found.shape == (1, 1, 3, 2, *sizes)
    padded = np.pad(x, [(0, 0), (0, 0), (1, 20), (0, 20)])
    for ky, kx, oy, ox in np.ndindex(3, 2, *sizes):
        assert found[0, 0, ky, kx, oy, ox] == padded[0, 0, ky + 2 * oy, 2 * kx + ox]


@pytest.mark.parametrize("cover_all", [False, True])
def test_sizes_are_each_other_s_inverse(cover_all: bool) -> None:
    for size, k, s, p, d in np.ndindex(6, 3, 4, 2, 2):
        window = k + 1, s + 1, p, cover_all, d + 1
        least = chainer.get_deconv_outsize(size + 1, *window)
        assert chainer.get_conv_outsize(least, *window) == size + 1
        assert chainer.get_conv_outsize(least - 1, *window) == size


# --- What is refused ----------------------------------------------------------------------------------------------

X, W = np.ones((2, 3, 5, 5)), np.ones((4, 3, 3, 3))

test_wrong_values = refuses(
    ValueError,
    ("convolution_1d: x has shape (2, 3, 5, 5), expected 3 dimensions", lambda: chainer.convolution_1d(X, W)),
    ("deconvolution_2d: x has shape (2, 3, 5), expected 4 dimensions", lambda: chainer.deconvolution_2d(X[..., 0], W)),
    ("max_pooling_3d: x has shape (2, 3, 5, 5), expected 5 dimensions", lambda: chainer.max_pooling_3d(X, 2)),
    ("max_pooling_nd: x has 2 dimensions, expected 3 to 5 (N, C, *space)", lambda: chainer.max_pooling_nd(X[0, 0], 2)),
    (
        "conv2d: input has shape (2, 3, 5, 5), expected (N, C, H, W) with C = 4…",
        lambda: chainer.convolution_nd(X, np.ones((1, 4, 2, 2))),
    ),
    ("deconvolution_nd: outsize has 1 values, expected 2", lambda: chainer.deconvolution_nd(X, W, outsize=(9,))),
    (
        "deconvolution_nd: x has size 5 along spatial axis 0, expected 6",
        lambda: chainer.deconvolution_nd(X, np.ones((3, 1, 3, 3)), outsize=(8, 7)),
    ),
    (
        "max_pooling_nd: pad is (2, 2), expected less than the window, (2, 2)",
        lambda: chainer.max_pooling_2d(X, 2, 1, 2),
    ),
    (
        "max_pooling_nd: window of axis 0 spans 7, expected at most the padded input, 0 + 5 + 0 = 5",
        lambda: chainer.max_pooling_2d(X, 7, 1),
    ),
    ("average_pooling_nd: pad_value is 1, expected 0 or None", lambda: chainer.average_pooling_nd(X, 2, pad_value=1)),
    (
        "unpooling_nd: x has size 5 along spatial axis 1, expected 4",
        lambda: chainer.unpooling_2d(X, 2, outsize=(10, 8)),
    ),
    (
        "unpooling_nd: the output has size (-1, 1), expected at least 1 along each axis",
        lambda: chainer.unpooling_2d(X[:, :, :1, :2], (2, 2), 2, (1, 1)),
    ),
    (
        "upsampling_nd: indexes has shape (2, 3, 5), expected that of x, (2, 3, 5, 5)",
        lambda: chainer.upsampling_2d(X, np.ones((2, 3, 5), int), 2),
    ),
    ("im2col: x has shape (2, 3, 5), expected (N, C, H, W)", lambda: chainer.im2col(X[..., 0], 2)),
    ("im2col_gpu: img has shape (3, 5, 5), expected (N, C, H, W)", lambda: chainer.im2col_gpu(X[0], 2, 2, 1, 1, 0, 0)),
    (
        "im2col_gpu: the output has size (0, 4), expected at least 1 along each axis",
        lambda: chainer.im2col_gpu(X, 6, 2, 1, 1, 0, 0),
    ),
    ("im2col_gpu: out_h is 0, expected at least 1", lambda: chainer.im2col_gpu(X, 2, 2, 1, 1, 0, 0, out_h=0)),
    (
        "col2im_gpu: col has shape (2, 3, 5, 5), expected (N, C, *kernel, *out)",
        lambda: chainer.col2im_gpu(X, 1, 1, 0, 0, 5, 5),
    ),
)

test_wrong_types = refuses(
    TypeError,
    ("convolution_2d: x is of type list, expected an array", lambda: chainer.convolution_2d([1], W)),
    ("max_pooling_nd: cover_all is 1, expected True or False", lambda: chainer.max_pooling_2d(X, 2, cover_all=1)),  # type: ignore[arg-type]
    (
        "max_pooling_nd: x has dtype int64, expected bfloat16, float16, float32, float64",
        lambda: chainer.max_pooling_2d(X.astype(int), 2),
    ),
    ("max_pooling_nd: ksize is 2.0, expected an integer or 2 of them", lambda: chainer.max_pooling_2d(X, 2.0)),  # type: ignore[arg-type]
    ("upsampling_nd: indexes has dtype float64, expected int16, …", lambda: chainer.upsampling_2d(X, X, 2)),
)
