"""Memory profile of the layout kernels on layers of real networks, counted in the simulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from strategies import arranged, dtype_of, numbers

import gpucnn
import gpucnn.functional as F
from gpucnn import simulator

pytestmark = pytest.mark.usefixtures("compiler")

MOVED = 1.10  # bytes over the least possible
SECTORS = 1.05  # of the requests over those that their bytes fill
CONFLICT = 2  # words of one bank that a round of lanes wants


def image(*shape: int, dtype: str = "float32", order: str = "contiguous") -> Any:
    return simulator.asarray(arranged(numbers(np.random.default_rng(1), shape, dtype), order))


def excesses(
    call: Callable[[], Any],
    kernels: set[str],
    moved: float = MOVED,
    sectors: float = SECTORS,
    conflict: int = CONFLICT,
) -> list[str]:
    """What the launches of a call exceed; they are of `kernels`."""
    with simulator.profile() as profile:
        call()
    assert {launch.kernel for launch in profile.launches} == kernels

    def found() -> Iterator[str]:
        for launch in profile.launches:
            if launch.moved_share > moved:
                yield f"{launch.kernel} moves {launch.moved_share:.3f} of the least, expected {moved}"
            if launch.sector_share > sectors:
                yield f"{launch.kernel} touches {launch.sector_share:.3f} of the ideal sectors, expected {sectors}"
            if launch.worst_conflict > conflict:
                yield f"{launch.kernel} has bank conflicts of {launch.worst_conflict}, expected {conflict}"

    return list(found())


def widest(call: Callable[[], Any]) -> dict[str, int]:
    """The most bytes that one lane reads, and writes, at once."""
    with simulator.profile() as profile:
        call()
    most = {"read": 0, "write": 0}
    for access in (access for launch in profile.launches for access in launch.accesses if access.space == "global"):
        most[access.kind] = max(most[access.kind], access.bytes)
    return most


# --- Packing ------------------------------------------------------------------------------------------------------

PACKED = {  # N, C, size
    "a photograph": (1, 3, 224),
    "ResNet conv2": (1, 64, 56),
    "ResNet conv4": (2, 256, 14),
    "ResNet conv5": (2, 512, 7),
    "DeepLab logits": (1, 21, 33),
    "many classes": (1, 64, 33),
    "a plane of 17 pixels squared": (1, 17, 17),
}


@pytest.mark.table(1)
@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("dtypes", ["float32 float32", "float32 float16", "float16 bfloat16", "float16 float32"])
@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
def test_copies_between_memory_orders_move_each_value_once(name: str, dtypes: str, order: str) -> None:
    n, c, size = PACKED[name]
    given, wanted = map(dtype_of, dtypes.split())
    x = image(n, c, size, size, dtype=given.name, order=order)
    copy = gpucnn.channels_last if order == "contiguous" else gpucnn.channels_first
    assert excesses(lambda: copy(x, wanted), {"pack"}) == []


@pytest.mark.parametrize("size", [56, 55])
def test_copies_read_and_write_16_bytes_at_once(size: int) -> None:
    assert widest(lambda: gpucnn.channels_last(image(1, 64, size, size))) == {"read": 16, "write": 16}
    assert widest(lambda: gpucnn.channels_first(image(1, 3, size, size, order="channels_last"))) == {
        "read": 16,
        "write": 16,
    }


# --- Bias and activation ------------------------------------------------------------------------------------------

BIASED = {  # N, C, size
    "ResNet conv2": (1, 64, 56),
    "ResNet conv4": (4, 256, 14),
    "DeepLab logits": (2, 21, 33),
    "ResNet conv5": (4, 512, 7),
}
each_order = pytest.mark.parametrize("order", ["contiguous", "channels_last"])


@pytest.mark.table(1)
@pytest.mark.parametrize("name", BIASED)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@each_order
def test_bias_and_activation_are_one_pass(name: str, dtype: str, order: str) -> None:
    n, c, size = BIASED[name]
    x, residual = (image(n, c, size, size, dtype=dtype, order=order) for _ in range(2))
    bias = image(1, c, dtype=dtype)[0]
    assert excesses(lambda: F.bias_activation(x, bias, residual), {"bias_activation"}) == []


@pytest.mark.table(1)
@pytest.mark.parametrize("name", ["ResNet conv2", "ResNet conv4", "ResNet conv5"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@each_order
def test_gradients_of_bias_and_activation_are_one_pass(name: str, dtype: str, order: str) -> None:
    n, c, size = BIASED[name]
    grad, y = (image(n, c, size, size, dtype=dtype, order=order) for _ in range(2))
    bias = image(1, c, dtype=dtype)[0]
    kernels = {"bias_activation_backward", "sum_splits"}
    assert excesses(lambda: F.bias_activation_backward(grad, grad, bias, output=y), kernels) == []


def test_flat_rows_of_any_length_are_read_by_16_bytes() -> None:
    x, bias = image(4, 512, 7, 7), image(1, 512)[0]
    assert excesses(lambda: F.bias_activation(x, bias), {"bias_activation"}) == []
    assert widest(lambda: F.bias_activation(x, bias)) == {"read": 16, "write": 16}


# --- Interpolation ------------------------------------------------------------------------------------------------

RESAMPLED = {  # channels, sizes, mode
    "FPN upsample": (32, (56, 56), (112, 112), "nearest"),
    "DeepLabV3 logits": (21, (33, 33), (513, 513), "bilinear"),
    "DeepLabV3+ decoder": (32, (33, 33), (129, 129), "bilinear"),
    "U-Net": (64, (32, 32), (64, 64), "bilinear"),
    "halved": (16, (128, 128), (64, 64), "bilinear"),
    "nearest-exact": (32, (20, 20), (33, 50), "nearest-exact"),
    "a signal": (32, (250,), (1000,), "linear"),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", RESAMPLED)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@each_order
def test_interpolation_reads_and_writes_about_once(name: str, dtype: str, order: str) -> None:
    c, size, out, mode = RESAMPLED[name]
    options: dict[str, Any] = {"size": out, "mode": mode, "align_corners": None if "nearest" in mode else False}
    x, grad = (image(1, c, *shape, dtype=dtype, order=order) for shape in (size, out))
    for call in (lambda: F.interpolate(x, **options), lambda: F.interpolate_backward(grad, x, **options)):
        assert excesses(call, {"resample_tiles"}, moved=1.35) == []
        assert widest(call) == {"read": 16, "write": 16}


# --- Unfolding ----------------------------------------------------------------------------------------------------

UNFOLDINGS = {  # channels, size, kernel, stride, padding
    "AlexNet conv1": (3, 227, 11, 4, 0),
    "ResNet conv2_3x3": (32, 56, 3, 1, 1),
    "ResNet conv3_3x3_s2": (64, 56, 3, 2, 1),
    "VGG conv1_1": (3, 224, 3, 1, 1),
}
each_unfolding = pytest.mark.parametrize("name", UNFOLDINGS)


@pytest.mark.thorough
@each_unfolding
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
def test_im2col_moves_each_value_once(name: str, dtype: str, order: str) -> None:
    c, size, kernel, stride, padding = UNFOLDINGS[name]
    x = image(1, c, size, size, dtype=dtype, order=order)
    sectors = SECTORS if order == "contiguous" else 1.10  # its values are read one by one, from the padding on
    assert excesses(lambda: F.im2col(x, kernel, 1, padding, stride), {"im2col"}, sectors=sectors) == []


@pytest.mark.table(1)
@each_unfolding
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_col2im_moves_each_value_once(name: str, dtype: str) -> None:
    c, size, kernel, stride, padding = UNFOLDINGS[name]
    out = (size + 2 * padding - kernel) // stride + 1
    columns = image(1, c * kernel**2, out**2, dtype=dtype)
    assert excesses(lambda: F.col2im(columns, size, kernel, 1, padding, stride), {"col2im"}) == []


def test_unfolding_reads_and_writes_16_bytes_at_once() -> None:
    x, columns = image(1, 2, 55, 55), image(1, 2 * 9, 53 * 53)  # rows that begin anywhere
    assert widest(lambda: F.im2col(x, 3)) == {"read": 16, "write": 16}
    assert widest(lambda: F.col2im(columns, 55, 3)) == {"read": 16, "write": 16}


def test_pixels_that_a_stride_leaves_out_are_not_read() -> None:
    x = image(1, 16, 56, 56)
    with simulator.profile() as profile:
        F.im2col(x, 1, stride=2)
    (launch,) = profile.launches
    read = sum(access.moved_bytes for access in launch.accesses if access.kind == "read")
    assert read < 0.8 * 16 * 56 * 56 * 4  # every other row, and what rows of 55 share of sectors
