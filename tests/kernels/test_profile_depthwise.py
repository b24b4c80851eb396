"""Memory profile of the depthwise kernels: what the benchmark's layers (test_profile_layers.py) do not show."""

from __future__ import annotations

import ml_dtypes  # noqa: F401  NumPy knows bfloat16 by name from here on
import pytest
from memory_traffic import excesses, image, profiled, widths
from planting import planted, replaced

import gpucnn.functional as F
from benchmarks import primitives
from gpucnn.geometry.geometries import Channels, conv_geometry

pytestmark = pytest.mark.usefixtures("compiler")

MOVED = 1.35  # times the least, halo and filters read again by each block included


@pytest.mark.thorough
@pytest.mark.parametrize("direction", ["forward", "backward_input", "backward_weight"])
@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_images_are_read_and_written_16_bytes_at_a_time(dtype: str, order: str, direction: str) -> None:
    """EfficientNet dw5_240."""
    x, grad_y = (image(2, 48, 28, 28, dtype=dtype, order=order) for _ in range(2))
    w, bias = image(48, 1, 5, 5, dtype=dtype), image(1, 48, dtype=dtype)[0]
    call, images = {
        "forward": (lambda: F.conv2d(x, w, bias, padding=2, groups=48), ("x", "y")),
        "backward_input": (
            lambda: F.conv2d_input(x.shape, w, grad_y, padding=2, groups=48), ("grad_y", "grad_x")
        ),
        "backward_weight": (lambda: F.conv2d_weight(x, w.shape, grad_y, padding=2, groups=48), ("x", "grad_y")),
    }[direction]  # fmt: skip
    (launch,) = (each for each in profiled(call)[1].launches if each.kernel == f"depthwise_{direction}")
    assert excesses(launch, moved=MOVED) == []
    for name in images:
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
