"""Memory profile of the depthwise kernels on the benchmark's layers: bytes, sectors and bank conflicts."""

from __future__ import annotations

import ml_dtypes  # noqa: F401  NumPy knows bfloat16 by name from here on
import pytest
from memory_traffic import excesses, image, profiled, widths
from planting import planted, replaced

import gpucnn.functional as F
from benchmarks import primitives
from gpucnn import simulator
from gpucnn.geometry.geometries import Channels, conv_geometry

pytestmark = pytest.mark.usefixtures("compiler")

MOVED = 1.35  # times the least, halo and filters read again by each block included

LAYERS: dict[str, tuple[int, int, tuple[int, ...], int, int, int]] = {
    # images, some of the channels, size, kernel, stride, dilation
    "MobileNetV2 dw_96_s2": (1, 32, (112, 112), 3, 2, 1),
    "MobileNetV2 dw_144": (1, 48, (56, 56), 3, 1, 1),
    "MobileNetV2 dw_384": (4, 96, (14, 14), 3, 1, 1),
    "MobileNetV2 dw_960": (8, 160, (7, 7), 3, 1, 1),
    "EfficientNet dw5_240": (2, 48, (28, 28), 5, 1, 1),
    "EfficientNet dw5_672_s2": (4, 96, (14, 14), 5, 2, 1),
    "EfficientNet dw5_1152": (8, 128, (7, 7), 5, 1, 1),
    "ConvNeXt dw7_96": (1, 32, (56, 56), 7, 1, 1),
    "Conv-TasNet dw_dilated": (1, 64, (3200,), 3, 1, 32),
    "RepLKNet dw31": (2, 16, (32, 32), 31, 1, 1),  # as large as the image: channels last are turned by copies
}
each_direction = pytest.mark.parametrize("direction", ["forward", "backward_input", "backward_weight"])
each_order = pytest.mark.parametrize("order", ["contiguous", "channels_last"])


def launch_of(layer: str, direction: str, order: str, dtype: str) -> simulator.LaunchProfile:
    """The convolution's launch of a layer in one direction."""
    n, c, size, kernel, stride, dilation = LAYERS[layer]
    rank = len(size)
    windows = {"stride": stride, "padding": dilation * (kernel - 1) // 2, "dilation": dilation, "groups": c}
    x = image(n, c, *size, dtype=dtype, order=order)
    grad_y = image(n, c, *(-(-length // stride) for length in size), dtype=dtype, order=order)
    w, bias = image(c, 1, *(kernel,) * rank, dtype=dtype), image(1, c, dtype=dtype)[0]
    _, profile = profiled({
        "forward": lambda: getattr(F, f"conv{rank}d")(x, w, bias, **windows),
        "backward_input": lambda: getattr(F, f"conv{rank}d_input")(x.shape, w, grad_y, **windows),
        "backward_weight": lambda: getattr(F, f"conv{rank}d_weight")(x, w.shape, grad_y, **windows),
    }[direction])  # fmt: skip
    (launch,) = (launch for launch in profile.launches if launch.kernel == f"depthwise_{direction}")
    others = {launch.kernel for launch in profile.launches} - {launch.kernel}
    assert others <= ({"pack", "sum_splits"} if kernel == 31 else {"sum_splits"})
    return launch


@pytest.mark.table(1)
@each_direction
@each_order
@pytest.mark.parametrize(
    ("layer", "dtype"),
    [(layer, "float32") for layer in LAYERS]
    + [
        (layer, dtype)
        for layer in ("MobileNetV2 dw_144", "MobileNetV2 dw_384", "EfficientNet dw5_672_s2")
        for dtype in ("float16", "bfloat16")
    ],
)
def test_each_value_is_moved_about_once(layer: str, dtype: str, order: str, direction: str) -> None:
    assert excesses(launch_of(layer, direction, order, dtype), moved=MOVED) == []


@pytest.mark.thorough
@each_direction
@each_order
def test_images_are_read_and_written_16_bytes_at_a_time(order: str, direction: str) -> None:
    launch = launch_of("EfficientNet dw5_240", direction, order, "float32")
    images = {"forward": ("x", "y"), "backward_input": ("grad_y", "grad_x"), "backward_weight": ("x", "grad_y")}
    for name in images[direction]:
        assert set().union(*widths(launch, of=(name,)).values()) == {16}, name


def test_more_filters_a_channel_read_it_once() -> None:
    w = image(32, 1, 3, 3)
    for order in ("contiguous", "channels_last"):
        x = image(2, 16, 28, 28, order=order)
        _, profile = profiled(lambda x=x: F.conv2d(x, w, padding=1, groups=16))  # type: ignore[misc]
        assert profile.launches[0].moved_share <= MOVED


def test_a_second_reading_would_be_seen() -> None:
    staging = "    stage(x + n * p.x_n, from, box, place.c, place.channels, inputs);\n"
    text = replaced("depthwise_forward.cu", staging, 2 * staging)
    geometry = conv_geometry("conv", (14, 14), Channels(96, 96, 96), 3, 1, 1, 1)
    x, w = image(4, 96, 1, 14, 14), image(96, 1, 1, 3, 3)
    with planted("depthwise_forward.cu", text) as backend:
        _, profile = profiled(lambda: primitives.run(backend, "convolve", x, w, None, geometry))
    assert profile.launches[0].moved_share > MOVED
