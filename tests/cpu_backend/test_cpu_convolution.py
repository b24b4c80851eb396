"""Convolutions in C++: drawn geometries against NumPy in float64, infinities, threads, and the choice of algorithm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import strategies
from strategies import ORDERS
from tolerances import TOLERANCES, assert_close

import gpucnn
import gpucnn.functional as F
from gpucnn.backends import backend
from gpucnn.backends.cpu import convolution, folding, select
from gpucnn.backends.cpu.convolution import convolve, convolve_backward_input, convolve_backward_weight
from gpucnn.backends.cpu.implicit_gemm import slice_of
from gpucnn.backends.cpu.select import Order
from gpucnn.backends.cpu.tiling import Tile, tile_of
from gpucnn.backends.cpu.winograd import region
from gpucnn.backends.numpy import convolution as in_numpy
from gpucnn.geometry import ConvGeometry, Sampling
from gpucnn.geometry.geometries import Channels, conv_geometry

pytestmark = pytest.mark.usefixtures("compiler")
DIRECTIONS = ("forward", "backward_input", "backward_weight")


def arranged(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: str, order: int | None = None
) -> np.ndarray[Any, Any]:
    """Normal numbers [N, C, D, H, W] in C order (0), with the channels innermost (1), or as a view with gaps (2)."""
    values = rng.standard_normal(shape).astype(dtype)
    order = rng.integers(3) if order is None else order
    if order == 1:
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(values, 1, -1)), -1, 1)
    if order == 2:
        wide = np.zeros((*shape[:-1], 2 * shape[-1] + 1), dtype)
        wide[..., 1::2] = values
        return wide[..., 1::2]
    return values


def drawn(seed: int) -> tuple[ConvGeometry, int, np.random.Generator]:
    """A geometry, a batch size, and the generator that drew them."""
    rng = np.random.default_rng(seed)
    rank = int(rng.choice([1, 2, 2, 2, 3]))
    groups = int(rng.choice([1, 1, 1, 2, 3]))
    channels = Channels(*(groups * int(count) for count in rng.choice([1, 2, 3, 5, 16, 17, 33, 70], 2)), groups)
    kernel = tuple(int(k) for k in rng.choice([1, 1, 2, 3, 3, 3, 5], rank))
    stride, dilation = (tuple(int(s) for s in rng.choice([1, 1, 1, 2, 3], rank)) for _ in range(2))
    padding = [tuple(int(p) for p in rng.integers(0, 4, 2)) for _ in range(rank)]
    most = {1: 200, 2: 40, 3: 12}[rank]
    reach = [d * (k - 1) + 1 - sum(p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = tuple(max(1, r, int(rng.integers(1, most))) for r in reach)
    return conv_geometry("conv", size, channels, kernel, stride, padding, dilation), int(rng.integers(1, 5)), rng


def computed(
    direction: str, geometry: ConvGeometry, batch: int, rng: np.random.Generator, dtype: str, order: int | None = None
) -> None:
    """Compare one direction with the NumPy backend's definition in float64."""
    inputs, outputs, groups = geometry.channels
    x = arranged(rng, (batch, inputs, *geometry.input_size), dtype, order)
    y = arranged(rng, (batch, outputs, *geometry.output_size), dtype, order)
    w = rng.standard_normal((outputs, inputs // groups, *geometry.kernel_size)).astype(dtype)
    bias = rng.standard_normal(outputs if direction == "forward" else inputs).astype(dtype)
    bias = bias if rng.integers(2) else None
    given, result = {
        "forward": ((x, w, bias), y),
        "backward_input": ((y, w, bias), x),
        "backward_weight": ((x, y), w),
    }[direction]
    plain, compiled = {
        "forward": (in_numpy.convolve, convolve),
        "backward_input": (in_numpy.convolve_backward_input, convolve_backward_input),
        "backward_weight": (in_numpy.convolve_backward_weight, convolve_backward_weight),
    }[direction]
    ours = np.full_like(result, np.nan)
    expected = np.zeros(result.shape)
    compiled(*given, ours, geometry)
    with gpucnn.algorithm("direct"):
        plain(*(None if each is None else each.astype(np.float64) for each in given), expected, geometry)
    scale = TOLERANCES[dtype] * max(1.0, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=scale, err_msg=f"{direction} {geometry} batch {batch}")


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_drawn_geometries(direction: str, dtype: str) -> None:
    for seed in range(120):
        geometry, batch, rng = drawn(seed)
        computed(direction, geometry, batch, rng, dtype)


def test_drawn_forwards_to_few_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a product and a fold, whatever their size."""
    monkeypatch.setattr(folding, "MULTIPLY_ADDS", 0)
    found = 0
    for seed in range(700):
        geometry, batch, rng = drawn(seed)
        if folding.computes("forward", geometry):
            found += 1
            computed("forward", geometry, batch, rng, str(rng.choice(["float32", "float64"])))
    assert found > 15


def test_images_of_many_columns_are_folded_in_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "MULTIPLY_ADDS", 0)
    monkeypatch.setattr(folding, "MAX_COLUMN_BYTES", 2000)
    monkeypatch.setattr(folding, "COLUMN_BYTES", 2000)
    folding._slabs.cache_clear()
    cut = 0
    for seed in range(700):
        geometry, batch, rng = drawn(seed)
        for direction in ("forward", "backward_input"):
            if folding.computes(direction, geometry):
                folded = folding._adjoint(geometry) if direction == "forward" else geometry
                cut += len(folding._slabs(folded, folded.channels.inputs * folded.taps * 4)) > 2
                computed(direction, geometry, batch, rng, "float32")
    folding._slabs.cache_clear()
    assert cut > 30


def layers() -> Iterator[tuple[ConvGeometry, int]]:
    """A layer for each algorithm, large enough for several work items, with tails of tiles."""
    for size, channels, kernel, options in (
        ((37, 45), Channels(70, 67), 3, {"padding": 1}),
        ((9, 7), Channels(150, 70), 3, {"padding": 1}),  # one region of tiles, filters in slices of channels
        ((17, 21), Channels(70, 33), 3, {"padding": (2, 3), "dilation": (2, 3)}),  # Winograd by residue
        ((37, 45), Channels(67, 35), 1, {}),
        ((37, 45), Channels(67, 3), 1, {}),
        ((37, 45), Channels(33, 40), 3, {"stride": 2, "padding": (1, 2)}),
        ((37, 45), Channels(20, 3), 5, {"padding": (1, 3)}),
        ((60, 60), Channels(3, 20), 7, {"stride": 2, "padding": 3}),
        ((33, 33), Channels(40, 20), 3, {"padding": 12, "dilation": 12}),
        ((9, 14, 13), Channels(18, 17), 3, {"padding": 1}),
        (
            (7, 9),
            Channels(70, 130),
            3,
            {"padding": 1, "stride": 2},
        ),  # from here on positions in the padding are skipped
        ((2, 7, 7), Channels(66, 64), 3, {"padding": 1}),
        ((5, 4), Channels(66, 70), 4, {"padding": 1, "stride": 2}),
        ((30, 31), Channels(600, 70), 3, {"padding": 9, "dilation": 9}),  # in slices of channels
        ((3, 3, 5), Channels(64, 64), (3, 1, 3), {"padding": (2, 0, 1), "stride": (1, 2, 1)}),
    ):
        given = {"stride": 1, "padding": 0, "dilation": 1} | options
        yield conv_geometry("conv", size, channels, kernel, **given), 3


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_layers_of_every_algorithm(direction: str) -> None:
    for geometry, batch in layers():
        computed(direction, geometry, batch, np.random.default_rng(7), "float32")


@pytest.mark.parametrize("order", ORDERS)
def test_products_of_pixels_in_any_memory_order(rng: np.random.Generator, order: str) -> None:
    """1 x 1 convolutions, and the columns of a dgrad of few channels: of planes that are one row, or a part of one."""
    x = strategies.arranged(rng.standard_normal((2, 20, 16, 20), dtype=np.float32), order)
    w = rng.standard_normal((24, 20, 1, 1), dtype=np.float32)
    stem = rng.standard_normal((20, 2, 3, 3), dtype=np.float32)
    results = []
    for name, dtype in (("compiled", np.float32), ("numpy", np.float64)):
        with backend(name):
            arrays = [array.astype(dtype) if name == "numpy" else array for array in (x, w, stem)]
            results.append((F.conv2d(*arrays[:2]), F.conv2d_input((2, 2, 16, 20), arrays[2], arrays[0], padding=1)))
    for ours, expected in zip(*results, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_of_few_channels_or_filters(dtype: str, order: int) -> None:
    """1 x 1 convolutions to and from up to 5 channels: several strips, rests of vectors, groups."""
    for few in range(1, 6):
        for many, groups in ((16, 1), (37, 2), (100, 1)):
            for inputs, outputs in ((few, many), (many, few), (few, few + 1)):
                channels = Channels(inputs * groups, outputs * groups, groups)
                geometry = conv_geometry("conv", (43, 61), channels, 1, 1, 0, 1)
                for direction in ("forward", "backward_input"):
                    computed(direction, geometry, 2, np.random.default_rng(few), dtype, order)


@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_infinities_stay_within_their_pixel(rng: np.random.Generator, order: str, value: float) -> None:
    x, w = rng.standard_normal((1, 23, 12, 13), dtype=np.float32), rng.standard_normal((3, 23, 1, 1), dtype=np.float32)
    expected = F.conv2d(x, w)
    expected[..., 5, 6] = value * np.sign(w[:, 14, 0, 0])
    x[0, 14, 5, 6] = value
    with backend("compiled"):
        np.testing.assert_allclose(F.conv2d(strategies.arranged(x, order), w), expected, atol=1e-5)


@pytest.mark.parametrize("padding", [0, (1, 0)])
def test_gradients_of_rows_that_no_window_reads_are_zero(rng: np.random.Generator, padding: Any) -> None:
    """One row of outputs, its channels innermost, of whose residues some have a second row of inputs, or none of it."""
    options = {"stride": 3, "padding": padding}
    w = rng.integers(-3, 4, (2, 24, 3, 1)).astype(np.float32)
    size = (2, 24, 5 - 2 * (padding != 0), 12)
    results = []
    for name, dtype in (("compiled", np.float32), ("numpy", np.float64)):
        with backend(name):
            grad = strategies.arranged(np.ones((2, 2, 1, 4), dtype), "channels_last")
            results.append(F.conv2d_input(size, w.astype(dtype), grad, **options))
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize(
    ("size", "channels", "kernel", "options"),
    [
        ((14, 15), Channels(96, 72), 3, {"padding": 1}),
        ((15, 14), Channels(80, 131), (3, 4), {"padding": (2, 1), "stride": 2}),
        ((11, 30), Channels(48, 40), 3, {"padding": 12, "dilation": (12, 2)}),
        ((5, 6, 7), Channels(64, 33), 3, {"padding": (1, 0, 1)}),
        ((19, 17), Channels(160, 96, 2), 5, {"padding": 2}),
        ((40, 41), Channels(208, 2), 1, {}),
        ((13, 12), Channels(32, 1024), 1, {"stride": 2}),
        ((600,), Channels(48, 24), 3, {}),
    ],
)
def test_weights_in_parts(
    size: tuple[int, ...], channels: Channels, kernel: Any, options: dict[str, Any], order: int
) -> None:
    """Gradients of weights whose channels, filters and positions are cut, from images copied or in place."""
    given = {"stride": 1, "padding": 0, "dilation": 1} | options
    geometry = conv_geometry("conv", size, channels, kernel, **given)
    for dtype in ("float32", "float64"):
        computed("backward_weight", geometry, 3, np.random.default_rng(3), dtype, order)


def test_bits_do_not_depend_on_the_number_of_threads(rng: np.random.Generator) -> None:
    threads = gpucnn.get_num_threads()
    try:
        for geometry, batch in layers():
            inputs, outputs, _ = geometry.channels
            x = rng.standard_normal((batch, inputs, *geometry.input_size), dtype=np.float32)
            y = rng.standard_normal((batch, outputs, *geometry.output_size), dtype=np.float32)
            w = rng.standard_normal((outputs, inputs, *geometry.kernel_size), dtype=np.float32)
            found = []
            for count in (1, 2, 5):
                gpucnn.set_num_threads(count)
                results = np.empty_like(y), np.empty_like(x), np.empty_like(w)
                convolve(x, w, None, results[0], geometry)
                convolve_backward_input(y, w, None, results[1], geometry)
                convolve_backward_weight(x, y, results[2], geometry)
                found.append([result.tobytes() for result in results])
            assert found[0] == found[1] == found[2]
    finally:
        gpucnn.set_num_threads(threads)


@pytest.mark.parametrize(
    ("height", "stride", "padding"), [(1, 1, (1, 0)), (1, 2, (2, 0)), (3, (3, 1), 0), (2, (2, 1), 0)]
)
def test_filters_of_one_pixel_where_one_row_is_read(
    rng: np.random.Generator, height: int, stride: Any, padding: Any
) -> None:
    """Rows in the padding are not those of the image, which kernels read in place where there are no others."""
    x = strategies.arranged(rng.standard_normal((2, 20, height, 9), dtype=np.float32), "channels_last")
    w, bias = (rng.standard_normal(shape, dtype=np.float32) for shape in ((18, 20, 1, 1), 18))
    with backend("compiled"), gpucnn.algorithm("implicit_gemm"):
        found = F.conv2d(x, w, bias, stride, padding)
    assert_close(found, F.conv2d(*(array.astype(np.float64) for array in (x, w, bias)), stride, padding))


def test_rows_of_taps_longer_than_a_chunk_of_sums(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 400, 30), dtype=np.float32)
    w = rng.standard_normal((18, 400, 3), dtype=np.float32)
    with backend("compiled"), gpucnn.algorithm("implicit_gemm"):
        found = F.conv1d(x, w)
    assert_close(found, F.conv1d(x.astype(np.float64), w.astype(np.float64)))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3e38])
def test_infinities_stay_within_their_windows(rng: np.random.Generator, value: float) -> None:
    x = rng.standard_normal((2, 20, 17, 19), dtype=np.float32)
    w = rng.standard_normal((18, 20, 3, 3), dtype=np.float32)
    x[1, 5, 8, 9] = value
    y = np.empty((2, 18, 17, 19), np.float32)
    geometry = conv_geometry("conv", (17, 19), Channels(20, 18), 3, 1, 1, 1)
    with gpucnn.algorithm("winograd"):
        convolve(x[:, :, None], w[:, :, None], None, y[:, :, None], geometry)
    expected = F.conv2d(x.astype(np.float64), w.astype(np.float64), padding=1)
    far = np.ones((17, 19), bool)
    far[7:10, 8:11] = False
    np.testing.assert_allclose(y[..., far], expected[..., far], rtol=1e-4, atol=1e-3)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(y[:, :, ~far], expected[:, :, ~far].astype(np.float32), rtol=1e-4)


def test_a_dilation_does_not_spread_infinities(rng: np.random.Generator) -> None:
    x = rng.standard_normal((3, 20, 17, 19), dtype=np.float32)
    w = rng.standard_normal((18, 20, 3, 3), dtype=np.float32)
    x[1, 5, 8, 9] = np.inf
    with backend("compiled"), gpucnn.algorithm("winograd"):
        found = F.conv2d(x, w, padding=2, dilation=2)
    reached = np.zeros((17, 19), bool)
    reached[6:11:2, 7:12:2] = True
    np.testing.assert_array_equal(np.isfinite(found[1]).all(axis=0), ~reached)
    assert np.isfinite(found[[0, 2]]).all()


def test_only_images_with_infinities_are_computed_again(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = rng.standard_normal((3, 20, 17, 19), dtype=np.float32)
    w = rng.standard_normal((18, 20, 3, 3), dtype=np.float32)
    x[1, 5, 8, 9] = np.inf
    compute, computed = convolution._compute, []

    def noted(x: Any, *rest: Any) -> list[int] | None:
        computed.append((len(x), rest[-1]))
        return compute(x, *rest)

    monkeypatch.setattr(convolution, "_compute", noted)
    with backend("compiled"), gpucnn.algorithm("winograd"):
        F.conv2d(x, w, padding=1)
    assert computed == [(3, "winograd"), (1, "implicit_gemm")]


# --- The choice -----------------------------------------------------------------------------------------------------

ONE = Sampling(1, 1, 1, range(1))


def same(count: int, taps: int = 3, step: int = 1, dilation: int = 1) -> Sampling:
    low = dilation * (taps // 2)
    return Sampling(-(-count // step), count, step, range(-low, low + 1, dilation))


@pytest.mark.parametrize(
    ("weight", "plane", "dtype", "order", "expected"),
    [
        ((1, 64, 64, 1, 3, 3), same(56), "float32", Order.ROWS, "winograd"),
        ((1, 64, 64, 1, 3, 3), same(56), "float64", Order.ROWS, "implicit_gemm"),
        ((1, 128, 128, 1, 3, 3), same(33, dilation=2), "float32", Order.ROWS, "winograd"),
        ((1, 64, 64, 1, 3, 3), same(33, dilation=12), "float32", Order.ROWS, "implicit_gemm"),
        ((1, 64, 3, 1, 3, 3), same(56), "float32", Order.ROWS, "implicit_gemm"),
        ((1, 64, 64, 1, 3, 3), same(56, step=2), "float32", Order.ROWS, "implicit_gemm"),
        ((1, 64, 64, 1, 1, 1), same(56, taps=1), "float32", Order.ROWS, "pointwise"),
        ((1, 64, 64, 1, 1, 1), same(56, taps=1), "float32", Order.OTHER, "implicit_gemm"),
        ((1, 64, 64, 1, 1, 1), same(7, taps=1), "float32", Order.ROWS, "implicit_gemm"),
        ((17, 1, 9, 1, 1, 1), same(7, taps=1), "float32", Order.ROWS, "pointwise"),
        ((1, 4, 64, 1, 1, 1), same(4, taps=1), "float32", Order.ROWS, "pointwise"),
        ((1, 4, 64, 1, 1, 1), same(3, taps=1), "float32", Order.ROWS, "implicit_gemm"),
        ((1, 4, 64, 1, 1, 1), same(3, taps=1), "float64", Order.ROWS, "pointwise"),
        ((1, 64, 64, 1, 1, 1), same(56, taps=1), "float32", Order.PIXELS, "implicit_gemm"),
        ((1, 4, 16, 1, 1, 1), same(56, taps=1), "float32", Order.PIXELS, "pointwise_dots"),
        ((1, 4, 15, 1, 1, 1), same(56, taps=1), "float32", Order.PIXELS, "implicit_gemm"),
    ],
)
def test_the_choice(weight: tuple[int, ...], plane: Sampling, dtype: str, order: Order, expected: str) -> None:
    assert select.contraction(8, weight, (ONE, plane, plane), dtype, order) == expected


def test_a_request_is_obeyed_or_refused(rng: np.random.Generator) -> None:
    x, w = rng.standard_normal((2, 17, 9, 9), dtype=np.float32), rng.standard_normal((4, 17, 3, 3), dtype=np.float32)
    with backend("numpy"), gpucnn.algorithm("direct"):
        direct = F.conv2d(x, w)
    with backend("compiled"):
        with gpucnn.algorithm("direct"):
            np.testing.assert_array_equal(F.conv2d(x, w), direct)
        for name in ("winograd", "implicit_gemm", "im2col"):
            with gpucnn.algorithm(name):
                np.testing.assert_allclose(F.conv2d(x, w), direct, atol=1e-4)
        with gpucnn.algorithm("winograd"), pytest.raises(ValueError, match="computes no convolution of float32"):
            F.conv2d(x, w, stride=2)
        with gpucnn.algorithm("winograd"), pytest.raises(ValueError, match="computes no backward weight convolution"):
            F.conv2d_weight(x, w.shape, direct)


def test_tiles() -> None:
    plane = (ONE, same(56), same(56))
    assert tile_of(8, 64, plane, 4) == Tile(1, 1, 4, 56)
    assert tile_of(8, 512, (ONE, same(7), same(7)), 4) == Tile(2, 1, 7, 7)
    assert tile_of(1, 1, (ONE, ONE, Sampling(10**7, 10**7, 1, range(1))), 4).w <= 256
    assert region(8, 28, 28, 64) == (1, 3, 28)
    assert region(8, 4, 4, 512) == (4, 4, 4)
    assert slice_of(512, 600, 16) == (1, 512)
    assert slice_of(2048, 4 * 33 * 33, 16) == (22, 96)


@pytest.mark.parametrize(
    ("call", "options", "algorithm"),
    [
        (("conv2d", (8, 64, 56, 56), (64, 64, 3, 3)), {"padding": 1}, "winograd"),
        (("conv2d", (8, 64, 56, 56), (64, 64, 1, 1)), {}, "pointwise"),
        (("conv2d", (8, 64, 56, 56), (64, 64, 1, 1)), {"channels_last": True}, "implicit_gemm"),
        (("conv2d", (8, 64, 56, 56), (2, 64, 1, 1)), {"channels_last": True}, "pointwise_dots"),
        (("conv2d", (2, 153, 7, 7), (17, 9, 1, 1)), {"groups": 17}, "pointwise"),
        (("conv2d", (8, 64, 56, 56), (64, 1, 3, 3)), {"groups": 64}, "depthwise"),
        (("conv2d", (8, 64, 56, 56), (64, 4, 1, 1)), {"groups": 16}, "pointwise"),
        (("conv2d", (8, 64, 56, 56), (64, 4, 1, 1)), {"groups": 16, "channels_last": True}, "depthwise"),
        (("conv2d", (8, 64, 56, 56), (64, 4, 3, 3)), {"groups": 16}, "depthwise"),
        (("conv2d_weight", (8, 64, 56, 56), (64, 4, 1, 1), (8, 64, 56, 56)), {"groups": 16}, "depthwise"),
        (("conv2d", (8, 36, 19, 19), (44, 9, 3, 3)), {"groups": 4, "stride": 2}, "implicit_gemm"),
        (("conv2d", (8, 36, 19, 19), (44, 9, 3, 3)), {"groups": 4}, "depthwise"),
        (("conv2d_input", (8, 3, 64, 64), (64, 3, 7, 7), (8, 64, 32, 32)), {"stride": 2, "padding": 3}, "fold"),
        (("conv2d", (8, 64, 56, 56), (3, 64, 3, 3)), {"padding": 1}, "fold"),
        (("conv2d", (8, 64, 56, 56), (3, 64, 3, 3)), {"padding": 1, "stride": 2}, "implicit_gemm"),
        (("conv2d", (8, 64, 9, 9), (3, 64, 3, 3)), {"padding": 1}, "implicit_gemm"),
        (("conv2d_weight", (8, 3, 64, 64), (64, 3, 7, 7), (8, 64, 58, 58)), {}, "implicit_gemm"),
        (("conv2d", (1, 2048, 33, 33), (256, 2048, 3, 3)), {"padding": 12, "dilation": 12}, "implicit_gemm"),
    ],
)
def test_explain_names_it(call: tuple[Any, ...], options: dict[str, Any], algorithm: str) -> None:
    told = gpucnn.explain(*call, backend="compiled", **options)
    assert (told.backend, told.algorithm) == ("compiled", algorithm)
    assert str(told).startswith(f"{algorithm}: ")


def test_the_layers_have_every_algorithm() -> None:
    """Those of `layers`, or what tests them would say nothing."""
    found = set()
    for geometry, batch in layers():
        inputs, outputs, _ = geometry.channels
        weight = (1, outputs, inputs, *geometry.kernel_size)
        found.add(select.contraction(batch, weight, geometry.forward, "float32", Order.ROWS))
        found.add(select.contraction(batch, weight, geometry.forward, "float32", Order.PIXELS))
        found.add(select.algorithm("backward_input", geometry))
    assert found >= {"winograd", "pointwise", "pointwise_dots", "implicit_gemm", "fold"}
