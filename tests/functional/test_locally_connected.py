"""Locally connected layers and their gradients, against loops, a convolution at each position, and PyTorch's unfold."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import reference
from array_backends import ArrayBackend
from convolution_cases import (
    KIB,
    LAYOUTS,
    Array,
    Layer,
    bits,
    close_to_torch,
    frozen,
    held,
    layers,
    poisoned_memory,
    torch_leaves,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from sample import examples
from strategies import COMPLEX, FLOATS, INTEGERS, ORDERS, Windows, arranged, dtype_of, numbers
from tolerances import assert_close, summed

import gpucnn.functional as F
from gpucnn.backends.numpy import memory

CHANNELS = [(1, 1, 1), (2, 3, 1), (3, 2, 1)]


class Local(Layer):
    """A drawn locally connected layer."""

    @property
    def options(self) -> dict[str, Any]:
        w = self.windows
        return {"stride": w.stride, "padding": w.padding, "dilation": w.dilation}

    @property
    def loops(self) -> tuple[Any, ...]:
        return super().loops[:3]

    def op(self, suffix: str = "") -> Callable[..., Any]:
        return getattr(F, f"locally_connected{self.windows.rank}d{suffix}")

    def arrays(self) -> tuple[Array, Array, Array, Array]:
        x, _, _, grad = super().arrays()
        rng = np.random.default_rng(2)
        inputs, outputs, _ = self.channels
        w = numbers(rng, (outputs, *self.output_size, inputs, *self.windows.kernel), self.dtype)
        return x, arranged(w, self.orders[1]), numbers(rng, (outputs, *self.output_size), self.dtype), grad


def local_layers(dtypes: tuple[str, ...], most: int = 1500, **kwargs: Any) -> st.SearchStrategy[Local]:
    """Layers with at most `most` taps in the filters of each pair of channels."""
    return layers(dtypes, most, Local, CHANNELS, **kwargs)


@examples(200)
@given(layer=local_layers(FLOATS + COMPLEX + INTEGERS), with_bias=st.booleans())
def test_forward_is_the_loops(backend: ArrayBackend, layer: Local, with_bias: bool) -> None:
    x, w, b, _ = layer.arrays()
    b = b if with_bias else None
    frozen(x, w)
    with poisoned_memory():
        y = backend.run(layer.op(), x, w, b, **layer.options)
    expected = reference.locally_connected(layer.with_batch(x), w, b, *layer.loops)
    assert_close(y, layer.without(expected), summed(x.dtype))
    assert bits(backend.run(layer.op(), x, w, b, **layer.options)) == bits(y)


@examples(200)
@given(
    layer=local_layers(FLOATS + COMPLEX + INTEGERS, most=1000),
    with_bias=st.booleans(),
    needs=st.tuples(*(st.booleans(),) * 3),
)
def test_backward_is_the_loops(
    backend: ArrayBackend, layer: Local, with_bias: bool, needs: tuple[bool, bool, bool]
) -> None:
    x, w, b, grad = layer.arrays()
    b = b if with_bias else None
    frozen(x, w, grad)
    with poisoned_memory():
        results = backend.run(layer.op("_backward"), grad, x, w, b, **layer.options)
    expected = reference.locally_connected_backward(layer.with_batch(grad), layer.with_batch(x), w, *layer.loops)
    assert_close(results[0], layer.without(expected[0]), summed(x.dtype))
    assert_close(results[1], expected[1], summed(x.dtype))
    if b is None:
        assert results[2] is None
    else:
        assert_close(results[2], expected[2], summed(x.dtype))
    assert bits(backend.run(layer.op("_backward"), grad, x, w, b, **layer.options)) == bits(results)
    some = backend.run(layer.op("_backward"), grad, x, w, b, **layer.options, needs=needs)
    assert bits(some) == [part if need else None for part, need in zip(bits(results), needs, strict=True)]


@examples(40)
@given(layer=local_layers(("float32", "float64", "complex128"), rank=2, symmetric=True))
def test_forward_and_backward_are_pytorchs_of_unfolded_windows(backend: ArrayBackend, torch: Any, layer: Local) -> None:
    x, w, b, grad = layer.arrays()
    leaves = torch_leaves(torch, x, w, b)
    image, filters, bias = leaves
    options = {"dilation": layer.windows.dilation, "padding": layer.windows.padding, "stride": layer.windows.stride}
    assume(layer.batch != 0)  # PyTorch unfolds no empty batch
    columns = torch.nn.functional.unfold(layer.with_batch(image), layer.windows.kernel, **options)
    matrices = filters.reshape(filters.shape[0], columns.shape[-1], -1)
    expected = torch.einsum("nkp,opk->nop", columns, matrices)
    expected = layer.without(expected.reshape(layer.with_batch(grad).shape) + bias)
    close_to_torch(backend.run(layer.op(), x, w, b, **layer.options), expected)
    expected.backward(torch.from_numpy(grad.copy()))
    results = backend.run(layer.op("_backward"), grad, x, w, b, **layer.options)
    for actual, leaf in zip(results, leaves, strict=True):
        close_to_torch(actual, leaf.grad)


@examples(12)
@given(layer=local_layers(("float64", "complex128"), most=30, largest=3))
def test_gradients_are_finite_differences(backend: ArrayBackend, layer: Local) -> None:
    x, w, b, grad = layer.arrays()

    def forward(x: Array, w: Array, b: Array) -> Array:
        return backend.run(layer.op(), x, w, b, **layer.options)

    results = backend.run(layer.op("_backward"), grad, x, w, b, **layer.options)
    slopes = (
        reference.finite_difference(lambda x: forward(x, w, b), x, grad),
        reference.finite_difference(lambda w: forward(x, w, b), w, grad),
        reference.finite_difference(lambda b: forward(x, w, b), b, grad),
    )
    for actual, expected in zip(results, slopes, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


# --- Identities ---------------------------------------------------------------------------------------------------


@examples(60)
@given(layer=local_layers(("float64", "complex128")))
def test_one_filter_everywhere_is_a_convolution(backend: ArrayBackend, layer: Local) -> None:
    x, w, b, grad = layer.arrays()
    rank = layer.windows.rank
    first = (slice(None), *(0,) * rank)
    shared, bias = w[first], b[first]
    w = np.broadcast_to(w[(slice(None), *(slice(0, 1),) * rank)], w.shape)
    b = np.broadcast_to(b[(slice(None), *(slice(0, 1),) * rank)], b.shape)
    conv, conv_backward = getattr(F, f"conv{rank}d"), getattr(F, f"conv{rank}d_backward")
    assert_close(backend.run(layer.op(), x, w, b, **layer.options), backend.run(conv, x, shared, bias, **layer.options))
    results = backend.run(layer.op("_backward"), grad, x, w, b, **layer.options)
    expected = backend.run(conv_backward, grad, x, shared, bias, **layer.options)
    assert_close(results[0], expected[0])
    positions = tuple(range(1, rank + 1))
    assert_close(results[1].sum(axis=positions), expected[1])
    assert_close(results[2].sum(axis=positions), expected[2])


def test_each_position_has_a_filter_and_a_bias_of_its_own(backend: ArrayBackend) -> None:
    """Chainer's layout: the filter of output (o, oh, ow) is weight[o, oh, ow], an array [C, KH, KW]."""
    x = np.ones((1, 2, 3, 4))
    w, b = np.zeros((2, 2, 3, 2, 2, 2)), np.zeros((2, 2, 3))
    w[1, 0, 2] = np.arange(8.0).reshape(2, 2, 2)
    b[0, 1, 1] = 5
    x[0, 0, 0, 2] = 10  # the first tap of that window
    x[0, 1, 1, 3] = 100  # its last tap
    y = backend.run(F.locally_connected2d, x, w, b)
    expected = np.zeros((1, 2, 2, 3))
    expected[0, 1, 0, 2] = 10 * 0 + (1 + 2 + 3 + 4 + 5 + 6) + 100 * 7
    expected[0, 0, 1, 1] = 5
    np.testing.assert_array_equal(y, expected)
    grad = np.zeros_like(y)
    grad[0, 1, 0, 2] = 1
    grad_x, grad_w, grad_b = backend.run(F.locally_connected2d_backward, grad, x, w, b)
    np.testing.assert_array_equal(grad_x[0, :, :2, 2:], w[1, 0, 2])
    np.testing.assert_array_equal(grad_w[1, 0, 2], x[0, :, :2, 2:])
    assert (np.count_nonzero(grad_x), np.count_nonzero(grad_w), np.count_nonzero(grad_b)) == (7, 8, 1)


def test_window_as_large_as_the_image_is_a_linear_layer(backend: ArrayBackend, rng: np.random.Generator) -> None:
    x, w, b = (numbers(rng, shape, "float64") for shape in ((3, 2, 4, 5), (6, 40), (6,)))
    y = backend.run(F.locally_connected2d, x, w.reshape(6, 1, 1, 2, 4, 5), b.reshape(6, 1, 1))
    np.testing.assert_allclose(y[:, :, 0, 0], backend.run(F.linear, x.reshape(3, 40), w, b), rtol=0, atol=1e-12)


def test_batch_split_is_batch_whole(backend: ArrayBackend, rng: np.random.Generator) -> None:
    x, w, grad = (numbers(rng, shape, "float32") for shape in ((5, 2, 7), (3, 3, 2, 3), (5, 3, 3)))
    whole = backend.run(F.locally_connected1d_backward, grad, x, w, stride=2)
    parts = [backend.run(F.locally_connected1d_backward, grad[s], x[s], w, stride=2) for s in (np.s_[:2], np.s_[2:])]
    assert_close(whole[0], np.concatenate([part[0] for part in parts]))
    assert_close(whole[1], parts[0][1] + parts[1][1])


# --- Dtypes, memory, errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_of_16_bit_floats_are_kept_in_float32(backend: ArrayBackend, dtype: str) -> None:
    def ones(*shape: int) -> Array:
        return np.ones(shape, dtype_of(dtype))

    many = 4096  # a sum kept in 16 bits stops growing at 2048, or 256
    x, grad = ones(many, 1, 2), ones(many, 1, 2)
    results = (
        backend.run(F.locally_connected1d, ones(1, many, 2), ones(1, 2, many, 1)),
        backend.run(F.locally_connected1d_backward, ones(1, many, 2), ones(1, 1, 2), ones(many, 2, 1, 1))[0],
        *backend.run(F.locally_connected1d_backward, grad, x, ones(1, 2, 1, 1), ones(1, 2))[1:],
    )
    for result in results:
        assert result.dtype == dtype_of(dtype)
        assert np.all(result == many)
    w = ones(1, 64, 1, 64)  # 64 windows of 64 taps: the middle input stands in all of them
    w[0, 63, 0, 0] = many
    grad_x, _, _ = backend.run(F.locally_connected1d_backward, ones(1, 1, 64), ones(1, 1, 127), w)
    assert grad_x[0, 0, 63] == np.float32(many + 63).astype(grad_x.dtype) == many + 64


@pytest.mark.parametrize("dtype", ["int8", "uint16", "uint64"])
def test_small_integers_are_summed_in_wider_ones_and_large_ones_wrap_around(
    backend: ArrayBackend, rng: np.random.Generator, dtype: str
) -> None:
    shapes = (3, 2, 6), (2, 3, 2, 2), (2, 3), (3, 2, 3)
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    x, w, b, grad = (rng.integers(least, most, shape, dtype, endpoint=True) for shape in shapes)
    loops = ((2,), ((0, 0),), (1,))
    assert_close(
        backend.run(F.locally_connected1d, x, w, b, 2), reference.locally_connected(x, w, b, *loops), summed(dtype)
    )
    results = backend.run(F.locally_connected1d_backward, grad, x, w, b, 2)
    for actual, expected in zip(results, reference.locally_connected_backward(grad, x, w, *loops), strict=True):
        assert_close(actual, expected, summed(dtype))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("batch", [2, None])
@pytest.mark.parametrize("order", ORDERS)
def test_results_have_the_memory_order_of_the_first_array(
    backend: ArrayBackend, rank: int, batch: int | None, order: str
) -> None:
    w = Windows(rank, (3, 4, 5)[:rank], (2,) * rank, (1,) * rank, (1,) * rank, 1)
    layer = Local(w, batch, (3, 4, 1), "float32", (order, "contiguous", order))
    x, w, b, grad = layer.arrays()
    y = backend.run(layer.op(), x, w, b, **layer.options)
    grad_x, grad_w, grad_b = backend.run(layer.op("_backward"), grad, x, w, b, **layer.options)
    for image in (y, grad_x):
        last = np.moveaxis(image, -rank - 1, -1)
        assert (last if order == "channels_last" else image).flags.c_contiguous
    for result, given_ in product((y, grad_x, grad_w, grad_b), (x, w, b, grad)):
        assert not np.shares_memory(result, given_)


@pytest.mark.parametrize("limit", [1, 300, 3000])
@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_layer_cut_into_blocks_is_the_loops(
    backend: ArrayBackend, monkeypatch: pytest.MonkeyPatch, limit: int, order: str, dtype: str
) -> None:
    if backend.name != "numpy":
        pytest.skip("these blocks are the NumPy backend's")
    monkeypatch.setattr(memory, "WORKSPACE_BYTES", limit)
    w = Windows(3, (3, 4, 5), (2, 2, 3), (1, 2, 1), (1, 1, 2), ((1, 0), (0, 2), (1, 1)))
    layer = Local(w, 2, (2, 3, 1), dtype, (order, "contiguous", order))
    x, w, b, grad = layer.arrays()
    with poisoned_memory():
        y = backend.run(F.locally_connected3d, x, w, b, **layer.options)
        results = backend.run(F.locally_connected3d_backward, grad, x, w, b, **layer.options)
    assert_close(y, reference.locally_connected(x, w, b, *layer.loops), summed(x.dtype))
    expected = reference.locally_connected_backward(grad, x, w, *layer.loops)
    for actual, wanted in zip(results, expected, strict=True):
        assert_close(actual, wanted, summed(x.dtype))


@pytest.mark.parametrize("shape", [(1, 2, 16, 3), (16, 1, 2, 3), (2, 16, 1, 3), (16, 1, 32, 1)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_workspace_is_bounded(
    backend: ArrayBackend, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int, int], dtype: str
) -> None:
    if backend.name != "numpy":
        pytest.skip("tracemalloc sees the memory of NumPy only")
    limit = 64 * KIB
    monkeypatch.setattr(memory, "WORKSPACE_BYTES", limit)
    batch, inputs, outputs, kernel = shape
    layer = Local(Windows(2, (32, 32), (kernel,) * 2, (1, 1), (1, 1), 0), batch, (inputs, outputs, 1), dtype)
    x, w, _, grad = layer.arrays()
    wide = 4 * x.size  # the gradient of the image is added up in float32
    assert held(F.locally_connected2d, x, w) < 4 * limit
    assert held(lambda: F.locally_connected2d_backward(grad, x, w, needs=(True, False, False))[0]) < 5 * limit + wide
    assert held(lambda: F.locally_connected2d_backward(grad, x, w, needs=(False, True, False))[1]) < 5 * limit


@pytest.mark.parametrize(
    ("message", "shapes"),
    [
        ("locally_connected2d: weight has 4 dimensions, expected 6", ((1, 2, 5, 5), (3, 2, 3, 3))),
        ("locally_connected2d: input has shape (1, 2, 5, 5), expected (N, C, H, W) with C = 1,",
         ((1, 2, 5, 5), (3, 3, 3, 1, 3, 3))),
        ("locally_connected2d: weight has filters for (3, 4) outputs, expected (3, 3)",
         ((1, 2, 5, 5), (3, 3, 4, 2, 3, 3))),
        ("locally_connected2d: bias has shape (3,), expected (3, 3, 3)", ((1, 2, 5, 5), (3, 3, 3, 2, 3, 3), (3,))),
    ],
)  # fmt: skip
def test_errors_name_the_operation_and_the_argument(
    backend: ArrayBackend, message: str, shapes: tuple[tuple[int, ...], ...]
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        backend.run(F.locally_connected2d, *map(np.ones, shapes))
