"""Memory profile of the depthwise kernels on the benchmark's layers: bytes, sectors and bank conflicts."""

from __future__ import annotations

from typing import Any

import ml_dtypes  # noqa: F401  NumPy knows bfloat16 by name from here on
import numpy as np
import pytest
from planting import planted, replaced
from strategies import arranged

import gpucnn.functional as F
from benchmarks import primitives
from gpucnn import simulator
from gpucnn.geometry.geometries import Channels, conv_geometry

pytestmark = pytest.mark.usefixtures("compiler")

MAX_MOVED = 1.35  # times the least, halo and filters read again by each block included
MAX_SECTORS = 1.05  # times the ideal
MAX_CONFLICT = 2  # words of one bank at once

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
}
LARGE_FILTER = (2, 16, (32, 32), 31, 1, 1)  # RepLKNet


def profiled(layer: tuple[Any, ...], direction: str, order: str, dtype: str) -> simulator.LaunchProfile:
    """The convolution's launch of a layer in one direction."""
    n, c, size, kernel, stride, dilation = layer
    rank = len(size)
    windows = {"stride": stride, "padding": dilation * (kernel - 1) // 2, "dilation": dilation, "groups": c}
    outputs = tuple(-(-length // stride) for length in size)

    def image(shape: tuple[int, ...]) -> Any:
        values = np.random.default_rng(1).standard_normal(shape).astype(np.dtype(dtype))
        return simulator.asarray(arranged(values, order))

    x, grad_y = image((n, c, *size)), image((n, c, *outputs))
    w = simulator.asarray(np.ones((c, 1, *(kernel,) * rank), np.dtype(dtype)))
    bias = simulator.asarray(np.ones(c, np.dtype(dtype)))
    with simulator.profile() as profile:
        if direction == "forward":
            getattr(F, f"conv{rank}d")(x, w, bias, **windows)
        elif direction == "backward_input":
            getattr(F, f"conv{rank}d_input")(x.shape, w, grad_y, **windows)
        else:
            getattr(F, f"conv{rank}d_weight")(x, w.shape, grad_y, **windows)
    (launch,) = (launch for launch in profile.launches if launch.kernel == f"depthwise_{direction}")
    others = {launch.kernel for launch in profile.launches} - {launch.kernel}
    assert others <= ({"pack", "sum_splits"} if kernel == 31 else {"sum_splits"})
    return launch


def holds(launch: simulator.LaunchProfile, name: str) -> None:
    assert launch.moved_bytes <= MAX_MOVED * launch.least_bytes, name
    assert launch.sectors <= MAX_SECTORS * launch.ideal_sectors, name
    assert launch.worst_conflict <= MAX_CONFLICT, name


@pytest.mark.table(1)
@pytest.mark.parametrize("direction", ["forward", "backward_input", "backward_weight"])
@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
@pytest.mark.parametrize("layer", LAYERS)
def test_float32(layer: str, order: str, direction: str) -> None:
    holds(profiled(LAYERS[layer], direction, order, "float32"), layer)


@pytest.mark.thorough
@pytest.mark.parametrize("direction", ["forward", "backward_input", "backward_weight"])
@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floats(dtype: str, order: str, direction: str) -> None:
    for layer in ("MobileNetV2 dw_144", "MobileNetV2 dw_384", "EfficientNet dw5_672_s2"):
        holds(profiled(LAYERS[layer], direction, order, dtype), layer)


@pytest.mark.thorough
@pytest.mark.parametrize("direction", ["forward", "backward_input", "backward_weight"])
@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
def test_a_filter_as_large_as_the_image(order: str, direction: str) -> None:
    holds(profiled(LARGE_FILTER, direction, order, "float32"), direction)


@pytest.mark.thorough
@pytest.mark.parametrize("direction", ["forward", "backward_input", "backward_weight"])
@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
def test_images_are_read_and_written_16_bytes_at_a_time(order: str, direction: str) -> None:
    launch = profiled(LAYERS["EfficientNet dw5_240"], direction, order, "float32")
    small = ("w", "bias", "parts")
    accesses = [access for access in launch.accesses if access.space == "global" and access.array not in small]
    assert {access.array for access in accesses} == {
        "forward": {"x", "y"}, "backward_input": {"grad_y", "grad_x"}, "backward_weight": {"x", "grad_y"}
    }[direction]  # fmt: skip
    assert {access.bytes for access in accesses} == {16}


def test_more_filters_a_channel_read_it_once() -> None:
    x = simulator.asarray(np.ones((2, 16, 28, 28), np.float32))
    w = simulator.asarray(np.ones((32, 1, 3, 3), np.float32))
    for order in ("contiguous", "channels_last"):
        given = simulator.asarray(arranged(simulator.asnumpy(x), order))
        with simulator.profile() as profile:
            F.conv2d(given, w, padding=1, groups=16)
        assert profile.launches[0].moved_bytes <= MAX_MOVED * profile.launches[0].least_bytes


def test_a_second_reading_would_be_seen() -> None:
    staging = "    stage(x + n * p.x_n, from, box, place.c, place.channels, inputs);\n"
    text = replaced("depthwise_forward.cu", staging, 2 * staging)
    geometry = conv_geometry("conv", (14, 14), Channels(96, 96, 96), 3, 1, 1, 1)
    x = simulator.asarray(np.ones((4, 96, 1, 14, 14), np.float32))
    w = simulator.asarray(np.ones((96, 1, 1, 3, 3), np.float32))
    with planted("depthwise_forward.cu", text) as backend, simulator.profile() as profile:
        primitives.run(backend, "convolve", x, w, None, geometry)
    assert profile.launches[0].moved_bytes > MAX_MOVED * profile.launches[0].least_bytes
