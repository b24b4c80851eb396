"""Tiles of depthwise convolutions on the GPU: which are chosen, by table, and that none of them changes a result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_cases import DEPTHWISE, Case
from strategies import arranged, numbers

import gpucnn.functional as F
from gpucnn import simulator
from gpucnn.backends.cuda import CudaBackend
from gpucnn.backends.cuda.convolution import depthwise, depthwise_tiles
from gpucnn.backends.cuda.convolution.depthwise_tiles import (
    ALONG_CHANNELS,
    ALONG_PLANES,
    ALONG_ROW,
    ALONG_ROWS,
    Request,
)
from gpucnn.backends.cuda.device.simulator_runtime import SimulatorRuntime
from gpucnn.backends.cuda.launch.plans import Layout, layout
from gpucnn.geometry import ConvGeometry
from gpucnn.geometry.geometries import Channels, conv_geometry

DIRECTIONS = ("forward", "backward_input", "backward_weight")


def layer(c: int, size: Any, kernel: int, stride: int = 1, dilation: int = 1, multiplier: int = 1) -> ConvGeometry:
    sizes = (size, size) if isinstance(size, int) else size
    channels = Channels(c, c * multiplier, c)
    return conv_geometry("conv", sizes, channels, kernel, stride, dilation * (kernel - 1) // 2, dilation)


LAYERS = {
    "dw_96_s2": layer(96, 112, 3, 2),
    "dw_144": layer(144, 56, 3),
    "dw_384": layer(384, 14, 3),
    "dw_960": layer(960, 7, 3),
    "dw5_240": layer(240, 28, 5),
    "dw5_672_s2": layer(672, 14, 5, 2),
    "dw5_1152": layer(1152, 7, 5),
    "dw7_96": layer(96, 56, 7),
    "dw_dilated": layer(512, (3200,), 3, dilation=32),
}


def chosen(geometry: ConvGeometry, direction: str, channels_last: bool = False, itemsize: int = 4) -> depthwise.Plan:
    plan = depthwise._plan(Request(geometry, direction, itemsize, channels_last, 16 // itemsize))
    assert plan is not None
    return plan


# --- Choices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("geometry", "along", "several"),
    [
        (LAYERS["dw_960"], ALONG_PLANES, True),
        (LAYERS["dw5_672_s2"], ALONG_PLANES, True),
        (LAYERS["dw7_96"], ALONG_PLANES, False),
        (layer(8, 224, 3), ALONG_ROWS, False),
        (layer(8, (100_000,), 3), ALONG_ROW, False),
        (layer(4, (64, 40, 40), 3), ALONG_ROWS, False),
    ],
)
def test_what_a_block_takes_of_planes(direction: str, geometry: ConvGeometry, along: int, several: bool) -> None:
    tile = chosen(geometry, direction).tile
    assert (tile.x.along, tile.y.along) == (along, along)
    assert (tile.planes > 1) == several
    if along == ALONG_PLANES and several:  # whole sectors of memory
        assert tile.planes * tile.x.pitches[0] * 4 % 32 == 0


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("name", LAYERS)
def test_tiles_fit_and_threads_cover_them(name: str, itemsize: int, channels_last: bool, direction: str) -> None:
    request, tile, walk = chosen(LAYERS[name], direction, channels_last, itemsize)
    assert depthwise_tiles.shared_bytes(request, tile)[-1] <= depthwise_tiles.MAX_SHARED_BYTES
    assert walk.rows * walk.slots >= tile.sizes[1]
    assert walk.lanes >= tile.sizes[2]
    if channels_last:
        assert tile.x.along == ALONG_CHANNELS
        assert tile.planes * itemsize >= 32  # a sector of memory


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_enough_blocks_for_a_gpu(name: str, direction: str) -> None:
    request, tile, _ = plan = chosen(LAYERS[name], direction)
    for n in (1, 2, 64, 1000):
        images = depthwise_tiles.images(request, tile, n)
        alone = n * depthwise._tiles(plan) * -(-request.geometry.channels.inputs // tile.planes)
        assert 1 <= images <= n
        assert images == 1 or alone // images >= depthwise_tiles.WANTED_BLOCKS
    few = depthwise_tiles.images(request, tile, 10**6)
    assert few <= 64


def test_a_filter_that_fills_shared_memory_has_no_tile() -> None:
    geometry = layer(4, 128, 127)
    assert depthwise._plan(Request(geometry, "forward", 4, False, 4)) is None


@pytest.mark.parametrize(
    ("strides", "pack"),
    [
        ((4 * 64, 64, 64, 8, 1), 4),
        ((8 * 64, 64, 64, 8, 1), 4),  # half of the channels of an array
        ((4 * 64 + 2, 64, 64, 8, 1), 1),
        ((4 * 64, 1, 256, 32, 4), 4),
        ((6 * 64, 1, 384, 48, 6), 1),  # 4 of 6 channels that are last
    ],
)
def test_images_may_lie_apart_but_not_rows(strides: tuple[int, ...], pack: int) -> None:
    layout = Layout((2, 4, 1, 8, 8), tuple(4 * step for step in strides), 4)
    request = depthwise._request("forward", layout, layout, layer(4, 8, 3))
    assert request is not None
    assert request.pack == pack
    assert request.channels_last == (strides[1] == 1)
    moved = layout._replace(alignment=4)
    unaligned = depthwise._request("forward", moved, layout, layer(4, 8, 3))
    assert unaligned is not None
    assert unaligned.pack == 1
    gaps = layout._replace(strides=(layout.strides[0], 4 * 64, *layout.strides[2:4], 8))
    assert depthwise._request("forward", gaps, layout, layer(4, 8, 3)) is None


# --- Results ----------------------------------------------------------------------------------------------------------


def results(n: int, geometry: ConvGeometry, order: str) -> list[np.ndarray[Any, Any]]:
    """Of every direction by the depthwise kernels, held to the NumPy backend's."""
    c, oc, _ = geometry.channels
    rng = np.random.default_rng(n)
    x = arranged(numbers(rng, (n, c, *geometry.input_size), "float32"), order)
    y = arranged(numbers(rng, (n, oc, *geometry.output_size), "float32"), order)
    w, bias = numbers(rng, (oc, 1, *geometry.kernel_size), "float32"), numbers(rng, (oc,), "float32")
    assert all(depthwise.takes(direction, layout(x), layout(y), geometry) for direction in DIRECTIONS)
    found = []
    for primitive, arguments in (
        ("convolve", (x, w, bias, geometry)),
        ("convolve_backward_input", (y, w, bias[:c], geometry)),
        ("convolve_backward_weight", (x, y, geometry)),
    ):
        case = Case(primitive, primitive, arguments, None)
        (result,) = case.run(CudaBackend(SimulatorRuntime()), simulator.asarray)
        found.append(simulator.asnumpy(result))
        assert case.agrees((found[-1],)), primitive
    return found


@pytest.fixture
def forgotten() -> Any:
    """No plans, before and after."""
    depthwise._plan.cache_clear()
    yield
    depthwise._plan.cache_clear()


THROUGH_IMAGES = {"WANTED_BLOCKS": 1, "FILTER_SHARE": 1 / 1000}
SMALL_TILES = {"MAX_SHARED_BYTES": 2400, "PLANES_BYTES": 1000}


@pytest.mark.thorough
@pytest.mark.usefixtures("compiler", "forgotten")
@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("name", "limits"),
    [
        *((name, THROUGH_IMAGES) for name in ("small planes", "channels of many lines")),
        *((name, SMALL_TILES) for name in ("residues without taps", "several readers along each axis")),
        *((name, cut) for name in ("3-d, all different", "aligned planes") for cut in (THROUGH_IMAGES, SMALL_TILES)),
    ],
)
def test_blocks_of_several_images_and_small_tiles_give_the_same_bits(
    name: str, limits: dict[str, float], order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, geometry = DEPTHWISE[name]
    n = 5 if limits is THROUGH_IMAGES else n
    usual = results(n, geometry, order)
    for constant, value in limits.items():
        monkeypatch.setattr(depthwise_tiles, constant, value)
    depthwise._plan.cache_clear()
    for one, other in zip(usual[:2], results(n, geometry, order)[:2], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.thorough
@pytest.mark.usefixtures("compiler")
def test_images_whose_tiles_do_not_fit_with_channels_last_are_turned() -> None:
    rng = np.random.default_rng(7)
    x, grad = (arranged(numbers(rng, (1, 8, 32, 32), "float32"), "channels_last") for _ in range(2))
    w, bias = numbers(rng, (8, 1, 31, 31), "float32"), numbers(rng, (8,), "float32")
    options = {"padding": 15, "groups": 8}

    def gradients_too(x: Any, grad: Any, w: Any, bias: Any) -> tuple[Any, ...]:
        return (
            F.conv2d(x, w, bias, **options),
            F.conv2d_input(x.shape, w, grad, **options),
            F.conv2d_weight(x, w.shape, grad, **options),
        )

    with simulator.profile() as profile:
        results = gradients_too(*map(simulator.asarray, (x, grad, w, bias)))
    launched = {launch.kernel for launch in profile.launches}
    assert launched >= {"pack", *(f"depthwise_{direction}" for direction in DIRECTIONS)}
    assert results[0].strides == results[1].strides == x.strides
    expected = gradients_too(x, grad, w, bias)
    for result, wanted in zip(results, expected, strict=True):
        np.testing.assert_allclose(simulator.asnumpy(result), wanted, rtol=1e-5, atol=2e-5 * np.abs(wanted).max())
