"""Convolution where the answer is known: padding, 1 x 1 filters, each dtype, examples from the literature, edges."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import reference
from array_backends import ArrayBackend
from convolution_cases import CHANNELS, LAYOUTS, Array, plane
from strategies import ORDERS, arranged, dtype_of, numbers
from tolerances import assert_close, summed

import gpucnn.functional as F

# --- Padding, strides, 1 x 1 --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "padding", "pads"),
    [
        (7, 3, 1, 1, "valid", (0, 0)),
        (7, 3, 1, 1, "same", (1, 1)),
        (7, 4, 1, 1, "same", (1, 2)),
        (7, 4, 1, 1, "same_lower", (2, 1)),
        (8, 3, 2, 1, "same", (0, 1)),
        (8, 3, 2, 1, "same_lower", (1, 0)),
        (7, 3, 2, 1, "same", (1, 1)),
        (9, 2, 4, 1, "same", (0, 1)),
        (8, 1, 3, 1, "same", (0, 0)),  # 3 outputs span 7 inputs: nothing to add
        (6, 3, 2, 3, "same", (2, 3)),
        (6, 3, 2, 3, "same_lower", (3, 2)),
        (5, 2, 1, 1, 3, (3, 3)),  # whole windows of padding
        (5, 2, 1, 1, (4,), (4, 4)),
        (5, 2, 2, 1, ((5, 0),), (5, 0)),
        (1, 3, 1, 1, ((0, 2),), (0, 2)),
    ],
)
def test_padding_is_zeros_around_the_image(
    backend: ArrayBackend,
    rng: np.random.Generator,
    size: int,
    kernel: int,
    stride: int,
    dilation: int,
    padding: Any,
    pads: tuple[int, int],
) -> None:
    x, w = numbers(rng, (2, 3, size), "float64"), numbers(rng, (4, 3, kernel), "float64")
    y = backend.run(F.conv1d, x, w, None, stride, padding, dilation)
    padded = backend.run(F.conv1d, np.pad(x, ((0, 0), (0, 0), pads)), w, None, stride, 0, dilation)
    assert_close(y, padded)
    if padding in ("same", "same_lower"):
        assert y.shape[-1] == -(-size // stride)
    grad = numbers(rng, y.shape, "float64")
    grad_x = backend.run(F.conv1d_input, x.shape, w, grad, stride, padding, dilation)
    grad_padded = backend.run(F.conv1d_input, (2, 3, size + sum(pads)), w, grad, stride, 0, dilation)
    assert_close(grad_x, grad_padded[..., pads[0] : pads[0] + size])


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("order", ORDERS)
def test_pointwise_convolution_is_a_product_of_matrices(
    backend: ArrayBackend, rng: np.random.Generator, channels: tuple[int, int, int], order: str
) -> None:
    inputs, outputs, groups = channels
    x = arranged(numbers(rng, (2, inputs, 5, 6), "float32"), order)
    w, b = numbers(rng, (outputs, inputs // groups, 1, 1), "float32"), numbers(rng, (outputs,), "float32")
    grad = arranged(numbers(rng, (2, outputs, 5, 6), "float32"), order)
    w_groups = w.reshape(groups, -1, inputs // groups).astype(np.float64)
    x_groups, grad_groups = (array.reshape(2, groups, -1, 5, 6).astype(np.float64) for array in (x, grad))

    def forward(x_groups: Array) -> Array:
        y = np.einsum("goc,ngchw->ngohw", w_groups, x_groups)
        return y.reshape(2, outputs, *y.shape[3:]) + b[:, None, None]

    assert_close(backend.run(F.conv2d, x, w, b, groups=groups), forward(x_groups), np.float32)
    strided = backend.run(F.conv2d, x, w, b, stride=(2, 3), groups=groups)
    assert_close(strided, forward(x_groups[..., ::2, ::3]), np.float32)
    grad_x, grad_w, _ = backend.run(F.conv2d_backward, grad, x, w, groups=groups)
    assert_close(grad_x, np.einsum("goc,ngohw->ngchw", w_groups, grad_groups).reshape(x.shape), np.float32)
    assert_close(grad_w, np.einsum("ngohw,ngchw->goc", grad_groups, x_groups).reshape(w.shape), np.float32)


# --- Dtypes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)])
@pytest.mark.parametrize("channels", [(3, 2, 1), (2, 2, 2)])
def test_small_integers_are_summed_in_wider_ones_and_large_ones_wrap_around(
    backend: ArrayBackend, rng: np.random.Generator, dtype: str, channels: tuple[int, int, int]
) -> None:
    inputs, outputs, groups = channels
    shapes = (2, inputs, 5, 6), (outputs, inputs // groups, 3, 2), (outputs,), (2, outputs, 3, 5)
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    x, w, b, grad = (rng.integers(least, most, shape, dtype, endpoint=True) for shape in shapes)
    geometry = ((1, 1), ((0, 0), (0, 0)), (1, 1), groups)
    y = backend.run(F.conv2d, x, w, b, groups=groups)
    assert_close(y, reference.conv(x, w, b, *geometry), summed(dtype))
    out = backend.asarray(np.zeros(y.shape, y.dtype))
    assert F.conv2d(*map(backend.asarray, (x, w, b)), groups=groups, out=out) is out
    np.testing.assert_array_equal(backend.asnumpy(out), y)
    grad = grad.astype(y.dtype)
    results = backend.run(F.conv2d_backward, grad, x, w, b, groups=groups)
    for actual, expected in zip(results, reference.conv_backward(grad, x, w, *geometry), strict=True):
        assert_close(actual, expected, summed(dtype))


@pytest.mark.parametrize(("dtype", "wide"), [("uint8", "int32"), ("int8", "int32"), ("uint16", "int64")])
def test_sums_of_small_integers_are_exact(backend: ArrayBackend, dtype: str, wide: str) -> None:
    most = np.iinfo(dtype).max
    x, rows = np.full((1, 3, 4, 5), most, dtype), np.full((2, 3), most, dtype)
    results = {
        "conv2d": backend.run(F.conv2d, x, x[:, :, :3, :3]),
        "conv_transpose2d": backend.run(F.conv_transpose2d, x, x.reshape(3, 1, 4, 5)[..., :1, :1]),
        "conv2d_input": backend.run(F.conv2d_input, (1, 3, 4, 5), x[:, :, :1, :1], x[:, :1]),
        "conv2d_weight": backend.run(F.conv2d_weight, x, (1, 3, 1, 1), x[:, :1]),
        "locally_connected1d": backend.run(F.locally_connected1d, x[0], np.full((1, 5, 4, 1), most, dtype)),
        "linear": backend.run(F.linear, rows, rows),
    }
    terms = {
        "conv2d": 27,
        "conv_transpose2d": 3,
        "conv2d_input": 1,
        "conv2d_weight": 20,
        "locally_connected1d": 4,
        "linear": 3,
    }
    for name, result in results.items():
        assert result.dtype == wide, name
        assert (result == terms[name] * int(most) ** 2).all(), name


def test_small_integers_of_both_signs_go_together(backend: ArrayBackend) -> None:
    x, w = np.full((1, 1, 1, 3), 200, np.uint8), np.array([-1, 0, 1], np.int8).reshape(1, 1, 1, 3)
    y = backend.run(F.conv2d, x, w)
    assert (y.dtype, y.item()) == (np.int32, 0)
    with pytest.raises(TypeError, match=r"^conv2d: out has dtype uint8, expected int32, that of the result$"):
        F.conv2d(*map(backend.asarray, (x, w)), out=backend.asarray(np.zeros((1, 1, 1, 1), np.uint8)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("order", LAYOUTS)
def test_sums_of_16_bit_floats_are_kept_in_float32(backend: ArrayBackend, dtype: str, order: str) -> None:
    def ones(*shape: int) -> Array:
        return arranged(np.ones(shape, dtype_of(dtype)), order)

    many = 4096  # a sum kept in 16 bits stops growing at 2048, or 256
    bias = np.ones(2, dtype_of(dtype))
    results = [
        backend.run(F.conv2d, ones(1, many, 2, 2), ones(1, many, 1, 1)),
        backend.run(F.conv2d, ones(1, many // 4, 2, 2), ones(2, many // 4, 2, 2)),
        backend.run(F.conv2d, ones(1, 2, 64, 64), ones(2, 1, 64, 64), groups=2),
        backend.run(F.conv2d_input, (1, 2, 2, 2), ones(many, 2, 1, 1), ones(1, many, 2, 2)),
        backend.run(F.conv2d_weight, ones(4, 2, 32, 32), (2, 2, 1, 1), ones(4, 2, 32, 32)),
        backend.run(F.conv2d_backward, ones(4, 2, 32, 32), ones(4, 1, 32, 32), ones(2, 1, 1, 1), bias)[2],
    ]
    for result in results:
        assert result.dtype == dtype_of(dtype)
        assert np.all(result == many)


# --- Known answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "filters", "options", "expected"),
    [
        pytest.param(
            [[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 0], [0, 1, 1, 0, 0]],
            [[1, 0, 1], [0, 1, 0], [1, 0, 1]],
            {},
            [[4, 3, 4], [2, 4, 3], [2, 3, 4]],
            id="UFLDL: feature extraction using convolution",
        ),
        pytest.param(
            np.arange(9).reshape(3, 3),
            [[0, 1], [2, 3]],
            {"padding": 1, "stride": (3, 2)},
            [[0, 8], [6, 8]],
            id="Dive into Deep Learning, 7.3",
        ),
        pytest.param(
            np.arange(35).reshape(7, 5),
            np.ones((3, 3)),
            {"stride": 2, "padding": ((1, 1), (0, 0))},
            [[21, 33], [99, 117], [189, 207], [171, 183]],
            id="ONNX conv_with_strides_and_asymmetric_padding",
        ),
        pytest.param(
            np.arange(25).reshape(5, 5),
            np.ones((3, 3)),
            {"stride": 2, "padding": "same_lower"},
            [[12, 27, 24], [63, 108, 81], [72, 117, 84]],
            id="ONNX conv_with_autopad_same",
        ),
    ],
)
def test_answers_from_the_literature(
    backend: ArrayBackend, image: Any, filters: Any, options: dict[str, Any], expected: Any
) -> None:
    np.testing.assert_array_equal(backend.run(F.conv2d, plane(image), plane(filters), **options), plane(expected))


def test_channels_are_summed(backend: ArrayBackend) -> None:  # Dive into Deep Learning, 7.4
    x = np.stack([np.arange(9.0), np.arange(1.0, 10)]).reshape(1, 2, 3, 3)
    w = np.array([[[[0.0, 1], [2, 3]], [[1, 2], [3, 4]]]])
    np.testing.assert_array_equal(backend.run(F.conv2d, x, w), plane([[56, 72], [104, 120]]))


def test_alexnet_shapes(backend: ArrayBackend) -> None:
    """The network of 2012, with its second, fourth and fifth convolution parted in two groups."""
    x = np.ones((1, 3, 227, 227), np.float32)
    layers = [(96, 11, 4, 0, 1, 55), (256, 5, 1, 2, 2, 27), (384, 3, 1, 1, 1, 13), (384, 3, 1, 1, 2, 13)]
    layers.append((256, 3, 1, 1, 2, 13))
    for outputs, kernel, stride, padding, groups, size in layers:
        w = np.zeros((outputs, x.shape[1] // groups, kernel, kernel), np.float32)
        y = backend.run(F.conv2d, x, w, np.ones(outputs, np.float32), stride, padding, 1, groups)
        assert y.shape == (1, outputs, size, size)
        x = y[..., :-2:2, :-2:2] if size in (55, 27) else y  # the pooling's size: (55 - 3) / 2 + 1 = 27
    assert np.all(y == 1)


# --- Edges --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("groups", [1, 4])
def test_nan_and_infinity_stay_within_their_windows(
    backend: ArrayBackend, rng: np.random.Generator, order: str, groups: int
) -> None:
    x, w = numbers(rng, (3, 4, 9, 9), "float32"), numbers(rng, (4, 4 // groups, 3, 3), "float32")
    x[1, 0, 4, 4], x[1, 1, 8, 8] = np.nan, np.inf
    y = backend.run(F.conv2d, arranged(x, order), w, None, 2, 1, 1, groups)
    touched = np.zeros(y.shape, bool)
    # rows 3 to 5 are those of output 2, and 7 to 9 those of output 4
    touched[1, 0 if groups > 1 else slice(None), 2, 2] = touched[1, 1 if groups > 1 else slice(None), 4, 4] = True
    np.testing.assert_array_equal(np.isfinite(y), ~touched)
    grad_x = backend.run(
        F.conv2d_input, x.shape, w, arranged(np.where(touched, np.nan, 1), order).astype(x.dtype), 2, 1, 1, groups
    )
    touched_x = np.zeros(x.shape, bool)
    touched_x[1, 0 if groups > 1 else slice(None), 3:6, 3:6] = True
    touched_x[1, 1 if groups > 1 else slice(None), 7:9, 7:9] = True
    np.testing.assert_array_equal(np.isfinite(grad_x), ~touched_x)


@pytest.mark.parametrize(
    ("message", "op", "arguments", "options"),
    [
        (
            "conv2d: input has shape (1, 8, 5, 5), expected (N, C, H, W) with C = 3 * groups = 6, "
            "for weight (OC, C / groups, KH, KW) has shape (4, 3, 3, 3)",
            F.conv2d,
            ((1, 8, 5, 5), (4, 3, 3, 3)),
            {"groups": 2},
        ),
        (
            "conv1d: weight has 3 output channels, expected a multiple of groups = 2",
            F.conv1d,
            ((2, 5), (3, 1, 3)),
            {"groups": 2},
        ),
        ("conv2d: bias has shape (2,), expected (3,)", F.conv2d, ((1, 1, 5, 5), (3, 1, 3, 3), (2,)), {}),
        ("conv1d: window of axis 0 spans", F.conv1d, ((1, 1, 5), (1, 1, 3)), {"dilation": 3}),
        (
            "conv1d_backward: grad_output has shape (1, 1, 4), expected (1, 1, 3)",
            F.conv1d_backward,
            ((1, 1, 4), (1, 1, 5), (1, 1, 3)),
            {},
        ),
    ],
)
def test_errors_name_the_operation_and_the_argument(
    backend: ArrayBackend, message: str, op: Any, arguments: tuple[tuple[int, ...], ...], options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        backend.run(op, *map(np.ones, arguments), **options)
