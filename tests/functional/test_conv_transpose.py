"""Transposed convolution and its gradients, against loops, PyTorch, finite differences and the convolution itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import pytest
import reference
from array_backends import ArrayBackend
from convolution_cases import (
    CHANNELS,
    LAYOUTS,
    TORCH_TOLERANCE,
    Array,
    bits,
    close_to_torch,
    frozen,
    plane,
    poisoned_memory,
    torch_leaves,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from sample import examples
from strategies import COMPLEX, FLOATS, INTEGERS, ORDERS, arranged, dtype_of, numbers, paddings
from tolerances import assert_close, summed

import gpucnn.functional as F
from gpucnn.backends.numpy import memory

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Transposed:
    """A drawn transposed convolution."""

    sizes: Ints
    kernel: Ints
    stride: Ints
    dilation: Ints
    padding: Any
    output_padding: Ints
    batch: int | None  # None for an image without a batch axis
    channels: tuple[int, int, int]  # of input and output, and groups
    dtype: str = "float64"
    orders: tuple[str, str] = ("contiguous", "contiguous")  # of the image and the output's gradient

    @property
    def rank(self) -> int:
        return len(self.sizes)

    @property
    def options(self) -> dict[str, Any]:
        """As the public functions take them."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "output_padding": self.output_padding,
            "groups": self.channels[2],
            "dilation": self.dilation,
        }

    @property
    def resolved(self) -> tuple[Any, Ints]:
        """(low, high) of each axis, and what is added at its end."""
        pads, extra = reference.resolve_transposed_padding(
            self.padding, self.sizes, self.kernel, self.stride, self.dilation
        )
        return pads, extra if self.padding in ("same", "same_lower") else self.output_padding

    @property
    def output_size(self) -> Ints:
        pads, extra = self.resolved
        return reference.transposed_size(self.sizes, self.kernel, self.stride, pads, self.dilation, extra)

    def op(self, suffix: str = "") -> Callable[..., Any]:
        return getattr(F, f"conv_transpose{self.rank}d{suffix}")

    def arrays(self) -> tuple[Array, Array, Array, Array]:
        """Image, filters, bias and gradient of the output."""
        rng = np.random.default_rng(1)
        inputs, outputs, groups = self.channels
        batch = () if self.batch is None else (self.batch,)
        x = numbers(rng, (*batch, inputs, *self.sizes), self.dtype)
        w = numbers(rng, (inputs, outputs // groups, *self.kernel), self.dtype)
        grad = numbers(rng, (*batch, outputs, *self.output_size), self.dtype)
        x, grad = (arranged(each, order, bool(batch)) for each, order in zip((x, grad), self.orders, strict=True))
        return x, w, numbers(rng, (outputs,), self.dtype), grad

    def with_batch(self, array: Array) -> Array:
        return array[None] if self.batch is None else array

    def without(self, array: Array) -> Array:
        return array[0] if self.batch is None else array

    def forward_in_loops(self, x: Array, w: Array, b: Array | None) -> Array:
        pads, extra = self.resolved
        shape = (self.stride, pads, extra, self.dilation, self.channels[2])
        return self.without(reference.conv_transpose(self.with_batch(x), w, b, *shape))

    def backward_in_loops(self, grad: Array, x: Array, w: Array) -> tuple[Array, Array, Array]:
        shape = (self.stride, self.resolved[0], self.dilation, self.channels[2])
        grad_x, grad_w, grad_b = reference.conv_transpose_backward(self.with_batch(grad), self.with_batch(x), w, *shape)
        return self.without(grad_x), grad_w, grad_b


@st.composite
def transposed(draw: st.DrawFn, dtypes: tuple[str, ...], most: int = 3000, symmetric: bool = False) -> Transposed:
    """A transposed convolution of at most `most` products per pair of channels and image.

    `symmetric` draws only the paddings that PyTorch takes.
    """
    rank = draw(st.integers(1, 3))
    sizes = tuple(draw(st.integers(1, 6 if rank < 3 else 4)) for _ in range(rank))
    kernel = tuple(draw(st.integers(1, 4 if rank < 3 else 3)) for _ in range(rank))
    stride = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    dilation = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    padding = draw(paddings((4,) * rank, named=not symmetric))
    if symmetric and isinstance(padding, tuple):
        padding = tuple(pair[0] if isinstance(pair, tuple) else pair for pair in padding)
    same = padding in ("same", "same_lower")
    least = [0 if same else max(s, d) - 1 for s, d in zip(stride, dilation, strict=True)]
    output_padding = tuple(draw(st.integers(0, limit)) for limit in least)
    drawn = Transposed(
        sizes,
        kernel,
        stride,
        dilation,
        padding,
        output_padding,
        draw(st.sampled_from([None, 0, 1, 2, 3])),
        draw(st.sampled_from(CHANNELS)),
        draw(st.sampled_from(dtypes)),
        draw(st.tuples(*(st.sampled_from(ORDERS),) * 2)),
    )
    assume(min(drawn.output_size) >= 1 and prod(sizes) * prod(kernel) <= most)
    return drawn


# --- Against loops ------------------------------------------------------------------------------------------------


@examples(300)
@given(layer=transposed(FLOATS + COMPLEX + INTEGERS), with_bias=st.booleans())
def test_forward_is_the_loops(backend: ArrayBackend, layer: Transposed, with_bias: bool) -> None:
    x, w, b, _ = layer.arrays()
    b = b if with_bias else None
    frozen(x, w)
    with poisoned_memory():
        y = backend.run(layer.op(), x, w, b, **layer.options)
    assert_close(y, layer.forward_in_loops(x, w, b), summed(x.dtype))
    assert bits(backend.run(layer.op(), x, w, b, **layer.options)) == bits(y)


@examples(300)
@given(
    layer=transposed(FLOATS + COMPLEX + INTEGERS, most=2000),
    with_bias=st.booleans(),
    needs=st.tuples(*(st.booleans(),) * 3),
)
def test_backward_is_the_loops(
    backend: ArrayBackend, layer: Transposed, with_bias: bool, needs: tuple[bool, bool, bool]
) -> None:
    x, w, b, grad = layer.arrays()
    b = b if with_bias else None
    frozen(x, w, grad)
    with poisoned_memory():
        results = backend.run(layer.op("_backward"), grad, x, w, b, **layer.options)
    for actual, expected in zip(results, layer.backward_in_loops(grad, x, w), strict=True):
        if actual is not None:
            assert_close(actual, expected, summed(x.dtype))
    assert [result is None for result in results] == [False, False, b is None]
    assert bits(backend.run(layer.op("_backward"), grad, x, w, b, **layer.options)) == bits(results)
    some = backend.run(layer.op("_backward"), grad, x, w, b, **layer.options, needs=needs)
    assert bits(some) == [part if need else None for part, need in zip(bits(results), needs, strict=True)]


@examples(120)
@given(layer=transposed(tuple(TORCH_TOLERANCE), symmetric=True))
def test_forward_and_backward_are_pytorchs(backend: ArrayBackend, torch: Any, layer: Transposed) -> None:
    x, w, b, grad = layer.arrays()
    leaves = torch_leaves(torch, x, w, b)
    expected = getattr(torch.nn.functional, f"conv_transpose{layer.rank}d")(*leaves, **layer.options)
    close_to_torch(backend.run(layer.op(), x, w, b, **layer.options), expected)
    expected.backward(torch.from_numpy(grad.copy()))
    for actual, leaf in zip(backend.run(layer.op("_backward"), grad, x, w, b, **layer.options), leaves, strict=True):
        close_to_torch(actual, leaf.grad)


@examples(12)
@given(layer=transposed(("float64", "complex128"), most=40))
def test_gradients_are_finite_differences(backend: ArrayBackend, layer: Transposed) -> None:
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


@examples(100)
@given(layer=transposed(("float64", "complex128")))
def test_it_is_the_adjoint_of_the_convolution_by_conjugated_filters(backend: ArrayBackend, layer: Transposed) -> None:
    assume(all(extra < s for extra, s in zip(layer.output_padding, layer.stride, strict=True)))
    x, w, _, grad = layer.arrays()
    options = {**layer.options, "padding": layer.resolved[0]}
    del options["output_padding"]  # the convolution's rounding down of its output
    y = backend.run(layer.op(), x, w, **layer.options)
    assert y.shape == grad.shape
    convolved = backend.run(getattr(F, f"conv{layer.rank}d"), grad, w.conj(), **options)
    np.testing.assert_allclose(np.vdot(grad, y), np.vdot(convolved, x), rtol=0, atol=1e-9)
    by_input = backend.run(getattr(F, f"conv{layer.rank}d_input"), y.shape, w.conj(), x, **options)
    assert bits(by_input) == bits(y)


@pytest.mark.parametrize(("padding", "low"), [("same", 0), ("same_lower", 1)])
def test_same_makes_the_output_stride_times_the_input(
    backend: ArrayBackend, rng: np.random.Generator, padding: str, low: int
) -> None:
    x, w = numbers(rng, (2, 3, 5, 4), "float64"), numbers(rng, (3, 2, 4, 3), "float64")
    y = backend.run(F.conv_transpose2d, x, w, stride=(1, 2), padding=padding)
    assert y.shape == (2, 2, 5, 8)
    # of the 4 taps 3 are padding, of the 3 taps 1 is: the odd one at the high end, or the low end
    whole = backend.run(F.conv_transpose2d, x, w, stride=(1, 2))
    assert_close(y, whole[:, :, 1 + low : 6 + low, low : 8 + low])


def test_stride_1_is_the_full_convolution(backend: ArrayBackend, rng: np.random.Generator) -> None:
    a, v = rng.standard_normal(9), rng.standard_normal(4)
    y = backend.run(F.conv_transpose1d, a[None, None], v[None, None])
    np.testing.assert_allclose(y[0, 0], np.convolve(a, v), rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", LAYOUTS)
def test_filter_of_one_is_a_bed_of_nails_and_filter_of_ones_repeats(
    backend: ArrayBackend, rng: np.random.Generator, order: str
) -> None:
    x = arranged(numbers(rng, (2, 3, 4, 5), "float64"), order)
    nails = backend.run(F.conv_transpose2d, x, np.ones((3, 1, 1, 1)), stride=(2, 3), output_padding=(1, 2), groups=3)
    np.testing.assert_array_equal(nails, backend.run(F.bed_of_nails2d, x, (2, 3)))
    repeated = backend.run(F.conv_transpose2d, x, np.ones((3, 1, 2, 3)), stride=(2, 3), groups=3)
    np.testing.assert_array_equal(repeated, x.repeat(2, axis=2).repeat(3, axis=3))


@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("groups", [1, 4])
def test_outputs_that_no_input_reaches_are_the_bias(
    backend: ArrayBackend, rng: np.random.Generator, order: str, groups: int
) -> None:
    x, w = arranged(numbers(rng, (2, 4, 3, 3), "float32"), order), numbers(rng, (4, 4 // groups, 2, 1), "float32")
    b = np.array([1, 2, 3, 4], np.float32)
    options = {"stride": (4, 3), "output_padding": (3, 2), "groups": groups}
    reached = np.zeros((13, 9), bool)
    reached[np.ix_([0, 1, 4, 5, 8, 9], [0, 3, 6])] = True
    for bias in (b, None):
        with poisoned_memory():
            y = backend.run(F.conv_transpose2d, x, w, bias, **options)
        assert y.shape == (2, 4, 13, 9)
        left = np.zeros(4) if bias is None else bias
        assert np.all(y[..., ~reached] == left[:, None])
        assert np.all(y[..., reached] != left[:, None])


@pytest.mark.parametrize("output_padding", [0, 1, 2])
def test_output_padding_beyond_the_stride_adds_outputs(
    backend: ArrayBackend, rng: np.random.Generator, output_padding: int
) -> None:
    """It may be as large as the dilation allows, and then is no rounding of any convolution's output."""
    x, w, b = (numbers(rng, shape, "float64") for shape in ((2, 2, 4), (2, 3, 2), (3,)))
    y = backend.run(F.conv_transpose1d, x, w, b, output_padding=output_padding, dilation=3)
    assert y.shape == (2, 3, 7 + output_padding)
    assert_close(y[..., :7], backend.run(F.conv_transpose1d, x, w, b, dilation=3))
    np.testing.assert_array_equal(y[..., 7:], np.broadcast_to(b[:, None], (2, 3, output_padding)))
    grad = numbers(rng, y.shape, "float64")
    longer = backend.run(F.conv_transpose1d_backward, grad, x, w, b, 1, 0, output_padding, 1, 3)
    shorter = backend.run(F.conv_transpose1d_backward, grad[..., :7], x, w, b, 1, 0, 0, 1, 3)
    assert_close(longer[0], shorter[0])
    assert_close(longer[1], shorter[1])
    assert_close(longer[2], grad.sum(axis=(0, 2)))


# --- Dtypes and memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("order", LAYOUTS)
def test_sums_of_16_bit_floats_are_kept_in_float32(backend: ArrayBackend, dtype: str, order: str) -> None:
    def ones(*shape: int) -> Array:
        return arranged(np.ones(shape, dtype_of(dtype)), order)

    many = 4096  # a sum kept in 16 bits stops growing at 2048, or 256
    bias = np.ones(2, dtype_of(dtype))
    x, grad = ones(4, 2, 32, 32), ones(4, 2, 32, 32)
    results = (
        backend.run(F.conv_transpose2d, ones(1, many, 2, 2), ones(many, 2, 1, 1)),
        *backend.run(F.conv_transpose2d_backward, grad, x, ones(2, 2, 1, 1), bias)[1:],
        backend.run(F.conv_transpose2d_backward, ones(1, many, 2, 2), ones(1, 2, 2, 2), ones(2, many, 1, 1))[0],
    )
    for result in results:
        assert result.dtype == dtype_of(dtype)
        assert np.all(result == many)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("channels", [(4, 6, 2), (4, 4, 4)])
@pytest.mark.parametrize("batch", [2, None])
@pytest.mark.parametrize("order", ORDERS)
def test_results_have_the_memory_order_of_the_first_array(
    backend: ArrayBackend, rank: int, channels: tuple[int, int, int], batch: int | None, order: str
) -> None:
    ones = (1,) * rank
    layer = Transposed((3, 4, 5)[:rank], (2,) * rank, (2,) * rank, ones, 0, ones, batch, channels, orders=(order,) * 2)
    x, w, b, grad = layer.arrays()
    y = backend.run(layer.op(), x, w, b, **layer.options)
    grad_x, _, _ = backend.run(layer.op("_backward"), grad, x, w, **layer.options)
    for image in (y, grad_x):
        last = np.moveaxis(image, -rank - 1, -1)
        assert (last if order == "channels_last" else image).flags.c_contiguous


def test_image_of_one_pixel_is_in_c_order_as_much_as_channels_last(backend: ArrayBackend) -> None:
    y = backend.run(F.conv_transpose2d, np.ones((2, 5, 1, 1)), np.ones((5, 3, 4, 4)))
    assert y.flags.c_contiguous


@pytest.mark.parametrize("limit", [1, 300, 2000])
@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_transposed_convolution_cut_into_blocks_is_the_loops(
    backend: ArrayBackend, monkeypatch: pytest.MonkeyPatch, limit: int, order: str, channels: tuple[int, int, int]
) -> None:
    if backend.name != "numpy":
        pytest.skip("these blocks are the NumPy backend's")
    monkeypatch.setattr(memory, "WORKSPACE_BYTES", limit)
    layer = Transposed(
        (4, 5), (3, 2), (2, 3), (1, 2), ((1, 0), (0, 2)), (1, 2), 2, channels, "float32", orders=(order,) * 2
    )
    x, w, b, grad = layer.arrays()
    assert_close(
        backend.run(F.conv_transpose2d, x, w, b, **layer.options), layer.forward_in_loops(x, w, b), summed(x.dtype)
    )
    results = backend.run(F.conv_transpose2d_backward, grad, x, w, b, **layer.options)
    for actual, expected in zip(results, layer.backward_in_loops(grad, x, w), strict=True):
        assert_close(actual, expected, summed(x.dtype))


# --- Known answers ------------------------------------------------------------------------------------------------


def test_1d_example_of_cs231n(backend: ArrayBackend) -> None:
    """Stride 2: the filter [x, y, z] times a and times b, summed where both overlap: [ax, ay, az + bx, by, bz]."""
    (a, b), (x, y, z) = (2.0, 3.0), (5.0, 7.0, 11.0)
    image, filters = np.array([[[a, b]]]), np.array([[[x, y, z]]])
    result = backend.run(F.conv_transpose1d, image, filters, stride=2)
    np.testing.assert_array_equal(result, [[[a * x, a * y, a * z + b * x, b * y, b * z]]])
    # "need to crop one pixel from output to make output exactly 2x input"
    cropped = backend.run(F.conv_transpose1d, image, filters, stride=2, padding=((0, 1),))
    np.testing.assert_array_equal(cropped, result[..., :-1])


@pytest.mark.parametrize(
    ("image", "filters", "options", "expected"),
    [
        pytest.param(
            [[0, 1], [2, 3]],
            [[0, 1], [2, 3]],
            {},
            [[0, 0, 1], [0, 4, 6], [4, 12, 9]],
            id="Dive into Deep Learning, 14.10",
        ),
        pytest.param(
            [[0, 1], [2, 3]],
            [[0, 1], [2, 3]],
            {"stride": 2},
            [[0, 0, 0, 1], [0, 0, 2, 3], [0, 2, 0, 3], [4, 6, 6, 9]],
            id="Dive into Deep Learning, 14.10, stride",
        ),
        pytest.param(
            [[0, 1], [2, 3]], [[0, 1], [2, 3]], {"padding": 1}, [[4]], id="Dive into Deep Learning, 14.10, padding"
        ),
        pytest.param(
            [[3, 8, 1], [9, 5, 7], [3, 2, 6]],
            [[7, 2], [1, 9]],
            {"dilation": 2},
            [[21, 56, 13, 16, 2], [63, 35, 67, 10, 14], [24, 22, 76, 76, 21], [9, 5, 88, 45, 63], [3, 2, 33, 18, 54]],
            id="ONNX convtranspose_dilations",
        ),
        pytest.param(
            np.arange(9).reshape(3, 3),
            np.ones((3, 3)),
            {"stride": 2, "padding": "same"},
            [
                [0, 0, 1, 1, 3, 2],
                [0, 0, 1, 1, 3, 2],
                [3, 3, 8, 5, 12, 7],
                [3, 3, 7, 4, 9, 5],
                [9, 9, 20, 11, 24, 13],
                [6, 6, 13, 7, 15, 8],
            ],
            id="ONNX convtranspose_autopad_same",
        ),
    ],
)
def test_answers_from_the_literature(
    backend: ArrayBackend, image: Any, filters: Any, options: dict[str, Any], expected: Any
) -> None:
    y = backend.run(F.conv_transpose2d, plane(image), plane(filters), **options)
    np.testing.assert_array_equal(y, plane(expected))


def test_dcgan_generator_shapes(backend: ArrayBackend) -> None:
    """From 100 numbers to an image of 64 x 64; a generator of 2015, with an eighth of its channels."""
    x = np.ones((2, 100, 1, 1), np.float32)
    for outputs, stride, padding, size in (
        (128, 1, 0, 4),
        (64, 2, 1, 8),
        (32, 2, 1, 16),
        (16, 2, 1, 32),
        (3, 2, 1, 64),
    ):
        w = np.zeros((x.shape[1], outputs, 4, 4), np.float32)
        x = backend.run(F.conv_transpose2d, x, w, np.ones(outputs, np.float32), stride, padding)
        assert x.shape == (2, outputs, size, size)
    assert np.all(x == 1)


@pytest.mark.parametrize(
    ("message", "shapes", "options"),
    [
        ("input has shape (1, 2, 5), expected (N, C, W) with C = 3, for weight (C, OC / groups, KW) has",
         ((1, 2, 5), (3, 2, 3)), {}),
        ("input has shape (1, 3, 5), expected (N, C, W) with C a multiple of groups = 2",
         ((1, 3, 5), (3, 2, 3)), {"groups": 2}),
        ("bias has shape (2,), expected (4,)", ((1, 2, 5), (2, 2, 3), (2,)), {"groups": 2}),
        ("output_padding of axis 0 is 2, expected less than stride 2 or dilation 1", ((1, 2, 5), (2, 2, 3)),
         {"stride": 2, "output_padding": 2}),
        ("output_padding is (1,), expected 0 with padding 'same'", ((1, 2, 5), (2, 2, 3)),
         {"stride": 2, "output_padding": 1, "padding": "same"}),
        ("output of axis 0 has size 0, expected at least 1", ((1, 2, 1), (2, 2, 4)), {"padding": 2}),
    ],
)  # fmt: skip
def test_errors_name_the_operation_and_the_argument(
    backend: ArrayBackend, message: str, shapes: tuple[Ints, ...], options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape('conv_transpose1d: ' + message)}"):
        backend.run(F.conv_transpose1d, *map(np.ones, shapes), **options)
