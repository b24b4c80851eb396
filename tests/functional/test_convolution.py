"""Convolution and its relatives where something is particular to one of them, and where the answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend
from convolution_cases import CHANNELS, LAYOUTS, Layer, bits, layers, plane
from families.convolution import convolution
from families.drawing import ALL
from hypothesis import given
from properties import check_gradients, check_pytorch, check_results
from sample import examples
from strategies import ORDERS, Windows, arranged, numbers

import gpucnn.functional as F


@examples(150)
@given(layer=layers(ALL, most=2000))
def test_each_gradient_alone_is_the_one_of_all(backend: ArrayBackend, layer: Layer) -> None:
    x, w, b, grad = layer.arrays()
    both = backend.run(layer.op("_backward"), grad, x, w, b, **layer.options)[:2]
    grad_x = backend.run(layer.op("_input"), x.shape, w, grad, **layer.options)
    grad_w = backend.run(layer.op("_weight"), x, w.shape, grad, **layer.options)
    assert bits((grad_x, grad_w)) == bits(both)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kernel", [3, 4])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_same_and_valid_are_pytorchs(backend: ArrayBackend, torch: Any, rank: int, kernel: int, padding: str) -> None:
    ones = (1,) * rank
    windows = Windows(rank, (7, 8, 9)[:rank], (kernel,) * rank, ones, ones, padding)
    check_pytorch(backend, torch, convolution(Layer(windows, 2, (2, 3, 1))))


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
def test_pointwise_convolutions_are_those_of_the_oracle(
    backend: ArrayBackend, channels: tuple[int, int, int], order: str, stride: tuple[int, int]
) -> None:
    case = convolution(Layer(Windows(2, (5, 6), (1, 1), stride, (1, 1), 0), 2, channels, "float32", (order,) * 3))
    check_results(backend, case)
    check_gradients(backend, case)


def test_image_of_one_pixel_is_in_c_order_as_much_as_channels_last(backend: ArrayBackend) -> None:
    y = backend.run(F.conv_transpose2d, np.ones((2, 5, 1, 1)), np.ones((5, 3, 4, 4)))
    assert y.flags.c_contiguous


# --- Integers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [(3, 2, 1), (2, 2, 2)])
@pytest.mark.parametrize(("dtype", "wide"), [("int8", "int32"), ("uint8", "int32"), ("uint16", "int64")])
def test_sums_of_small_integers_are_written_to_a_wider_array(
    backend: ArrayBackend, dtype: str, wide: str, channels: tuple[int, int, int]
) -> None:
    inputs, outputs, groups = channels
    most = np.iinfo(dtype).max
    x, w = np.full((2, inputs, 5, 6), most, dtype), np.full((outputs, inputs // groups, 3, 2), most, dtype)
    out = backend.asarray(np.zeros((2, outputs, 3, 5), wide))
    assert F.conv2d(*map(backend.asarray, (x, w)), groups=groups, out=out) is out
    assert (backend.asnumpy(out) == 6 * inputs // groups * int(most) ** 2).all()


def test_small_integers_of_both_signs_go_together(backend: ArrayBackend) -> None:
    x, w = np.full((1, 1, 1, 3), 200, np.uint8), np.array([-1, 0, 1], np.int8).reshape(1, 1, 1, 3)
    y = backend.run(F.conv2d, x, w)
    assert (y.dtype, y.item()) == (np.int32, 0)
    with pytest.raises(TypeError, match=r"^conv2d: out has dtype uint8, expected int32, that of the result$"):
        F.conv2d(*map(backend.asarray, (x, w)), out=backend.asarray(np.zeros((1, 1, 1, 1), np.uint8)))


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
def test_answers_of_transposed_convolution_from_the_literature(
    backend: ArrayBackend, image: Any, filters: Any, options: dict[str, Any], expected: Any
) -> None:
    y = backend.run(F.conv_transpose2d, plane(image), plane(filters), **options)
    np.testing.assert_array_equal(y, plane(expected))


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


@pytest.mark.parametrize("order", ORDERS)
def test_gradient_of_a_bias_over_many_pixels_loses_no_digits(backend: ArrayBackend, order: str) -> None:
    grad = arranged(np.random.default_rng(3).random((2, 3, 200, 210), np.float32), order)
    x, w, b = (np.ones(shape, np.float32) for shape in ((2, 1, 200, 210), (3, 1, 1, 1), 3))
    _, _, grad_b = backend.run(F.conv2d_backward, grad, x, w, b, needs=(False, False, True))
    np.testing.assert_allclose(grad_b, grad.sum(axis=(0, 2, 3), dtype=np.float64), rtol=3e-7)


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
