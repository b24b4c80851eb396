"""Memory profile of the layout kernels: what the benchmark's layers (test_profile_layers.py) do not show."""

from __future__ import annotations

from typing import Any

import pytest
from memory_traffic import SECTORS, expect_once, image, profiled, widest
from strategies import dtype_of

import gpucnn
import gpucnn.functional as F

pytestmark = pytest.mark.usefixtures("compiler")

WIDE = {"read": 16, "write": 16}
each_order = pytest.mark.parametrize("order", ["contiguous", "channels_last"])
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float16"])

# --- Packing ------------------------------------------------------------------------------------------------------

PACKED = {  # N, C, size
    "a photograph": (1, 3, 224),
    "DeepLab logits": (1, 21, 33),
    "many classes": (1, 64, 33),
    "a plane of 17 pixels squared": (1, 17, 17),
}


@pytest.mark.table(1)
@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("dtypes", ["float32 float32", "float32 float16", "float16 bfloat16", "float16 float32"])
@each_order
def test_copies_between_memory_orders_move_each_value_once(name: str, dtypes: str, order: str) -> None:
    n, c, size = PACKED[name]
    given, wanted = map(dtype_of, dtypes.split())
    x = image(n, c, size, size, dtype=given.name, order=order)
    copy = gpucnn.channels_last if order == "contiguous" else gpucnn.channels_first
    expect_once(lambda: copy(x, wanted), x)


@pytest.mark.parametrize("size", [56, 55])
def test_copies_read_and_write_16_bytes_at_once(size: int) -> None:
    assert widest(lambda: gpucnn.channels_last(image(1, 64, size, size))) == WIDE
    assert widest(lambda: gpucnn.channels_first(image(1, 3, size, size, order="channels_last"))) == WIDE


# --- Bias and activation ------------------------------------------------------------------------------------------

BIASED = {  # N, C, size
    "ResNet conv2": (1, 64, 56),
    "ResNet conv4": (4, 256, 14),
    "DeepLab logits": (2, 21, 33),
    "ResNet conv5": (4, 512, 7),
}


@pytest.mark.table(1)
@pytest.mark.parametrize("name", BIASED)
@each_dtype
@each_order
def test_bias_and_activation_and_their_gradients_are_one_pass(name: str, dtype: str, order: str) -> None:
    n, c, size = BIASED[name]
    x, residual = (image(n, c, size, size, dtype=dtype, order=order) for _ in range(2))
    bias = image(1, c, dtype=dtype)[0]
    y = expect_once(lambda: F.bias_activation(x, bias, residual), x, bias, residual)
    if name != "DeepLab logits":  # whose sums of planes are not aligned
        expect_once(lambda: F.bias_activation_backward(x, x, bias, output=y), x, y)


def test_flat_rows_of_any_length_are_read_by_16_bytes() -> None:
    x, bias = image(4, 512, 7, 7), image(1, 512)[0]
    expect_once(lambda: F.bias_activation(x, bias), x, bias)
    assert widest(lambda: F.bias_activation(x, bias)) == WIDE


# --- Interpolation ------------------------------------------------------------------------------------------------

RESAMPLED = {  # channels, sizes, mode
    "U-Net": (64, (32, 32), (64, 64), "bilinear"),
    "halved": (16, (128, 128), (64, 64), "bilinear"),
    "nearest-exact": (32, (20, 20), (33, 50), "nearest-exact"),
    "a signal": (32, (250,), (1000,), "linear"),
    "bicubic": (32, (32, 32), (64, 64), "bicubic"),
    "a thumbnail": (8, (160, 120), (64, 48), "antialiased bicubic"),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", RESAMPLED)
@each_dtype
@each_order
def test_interpolation_reads_and_writes_about_once(name: str, dtype: str, order: str) -> None:
    c, size, out, mode = RESAMPLED[name]
    antialias, mode = "antialiased" in mode, mode.split()[-1]
    corners = None if "nearest" in mode else False
    options: dict[str, Any] = {"size": out, "mode": mode, "align_corners": corners, "antialias": antialias}
    x, grad = (image(1, c, *shape, dtype=dtype, order=order) for shape in (size, out))
    for given, call in (
        (x, lambda: F.interpolate(x, **options)),
        (grad, lambda: F.interpolate_backward(grad, x, **options)),
    ):
        expect_once(call, given, moved=1.35)
        assert widest(call) == WIDE


# --- Unfolding ----------------------------------------------------------------------------------------------------

UNFOLDINGS = {  # channels, size, kernel, stride, padding
    "AlexNet conv1": (3, 227, 11, 4, 0),
    "ResNet conv2_3x3": (32, 56, 3, 1, 1),
    "ResNet conv3_3x3_s2": (64, 56, 3, 2, 1),
    "VGG conv1_1": (3, 224, 3, 1, 1),
}


@pytest.mark.table(1)
@pytest.mark.parametrize("name", UNFOLDINGS)
@each_dtype
@each_order
def test_unfolding_and_folding_move_each_value_once(name: str, dtype: str, order: str) -> None:
    c, size, kernel, stride, padding = UNFOLDINGS[name]
    x = image(1, c, size, size, dtype=dtype, order=order)
    sectors = SECTORS if order == "contiguous" else 1.10  # its values are read one by one, from the padding on
    columns = expect_once(lambda: F.im2col(x, kernel, 1, padding, stride), x, sectors=sectors)
    if order == "contiguous":
        expect_once(lambda: F.col2im(columns, size, kernel, 1, padding, stride), columns)


def test_unfolding_reads_and_writes_16_bytes_at_once() -> None:
    x, columns = image(1, 2, 55, 55), image(1, 2 * 9, 53 * 53)  # rows that begin anywhere
    assert widest(lambda: F.im2col(x, 3)) == WIDE
    assert widest(lambda: F.col2im(columns, 55, 3)) == WIDE


def test_pixels_that_a_stride_leaves_out_are_not_read() -> None:
    x = image(1, 16, 56, 56)
    _, profile = profiled(lambda: F.im2col(x, 1, stride=2))
    (launch,) = profile.launches
    read = sum(access.moved_bytes for access in launch.accesses if access.kind == "read")
    assert read < 0.8 * x.nbytes  # every other row, and what rows of 55 share of sectors
