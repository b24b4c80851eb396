"""The choice of a convolution's algorithm on a GPU, by table."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest

import gpucnn
from benchmarks.cases import select
from benchmarks.kernel_model import geometry_of
from benchmarks.layers import ConvLayer
from gpucnn.backends.cuda.convolution import im2col
from gpucnn.backends.cuda.convolution import im2col as im2col_convolution
from gpucnn.backends.cuda.convolution.im2col import images_at_once
from gpucnn.backends.cuda.convolution.select import algorithm
from gpucnn.backends.cuda.convolution.split_k import weight_splits
from gpucnn.backends.cuda.device.limits import MAX_SHARED_BYTES, skewed
from gpucnn.backends.cuda.launch.plans import Layout, dense
from gpucnn.backends.cuda.unfolding.tiles import unfold_tile
from gpucnn.backends.dtypes import INTEGER, NUMERIC
from gpucnn.geometry import ConvGeometry
from gpucnn.geometry.geometries import Channels, conv_geometry
from gpucnn.numerics import choices

DIRECTIONS = ("forward", "backward_input", "backward_weight")


def layer(c: int, oc: int, kernel: int = 3, size: int = 14, groups: int = 1) -> ConvGeometry:
    return conv_geometry("conv2d", (size, size), Channels(c, oc, groups), kernel, 1, kernel // 2, 1)


def dense_layers() -> list[ConvGeometry]:
    """Those of the benchmark, grouped and transposed ones included, but no depthwise ones."""
    layers = {case.layer.untransposed for case in select("full", device="gpu") if isinstance(case.layer, ConvLayer)}
    return [geometry_of(each) for each in layers if not each.channels == each.groups > 1]


def layouts(geometry: ConvGeometry, dtype: str, n: int = 2, channels_last: bool = False) -> tuple[Layout, Layout]:
    """Those of x and y."""
    itemsize = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
    x = (n, geometry.channels.inputs, *geometry.input_size)
    y = (n, geometry.channels.outputs, *geometry.output_size)
    return dense(x, itemsize, channels_last), dense(y, itemsize, channels_last)


SM_70, SM_75, SM_80 = (7, 0), (7, 5), (8, 0)


def chosen(
    direction: str,
    geometry: ConvGeometry,
    dtype: str,
    channels_last: bool = False,
    capability: tuple[int, int] = SM_80,
) -> str:
    return algorithm(direction, geometry, dtype, *layouts(geometry, dtype, channels_last=channels_last), capability)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("geometry", "expected"),
    [
        (layer(64, 64), "implicit_gemm"),
        (layer(3, 64, 7, 224), "implicit_gemm"),
        (layer(256, 256, 1), "im2col"),  # without columns
        (layer(64, 64, groups=64), "depthwise"),
        (layer(64, 128, groups=64), "depthwise"),  # two filters a channel
        (layer(1, 64), "implicit_gemm"),  # one channel is no group
        (layer(64, 64, groups=32), "direct"),
        (layer(64, 8), "implicit_gemm"),
        (layer(2, 64), "implicit_gemm"),
        (layer(64, 64, 3, size=3), "implicit_gemm"),
        (layer(64, 64, 1, size=3), "im2col"),
        (layer(128, 128, groups=4), "implicit_gemm"),
    ],
)
def test_algorithms_by_size(direction: str, geometry: ConvGeometry, expected: str) -> None:
    assert chosen(direction, geometry, "float32") == expected


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("geometry", "expected"),
    [
        (layer(64, 64), "im2col"),
        (layer(64, 8), "direct"),
        (layer(2, 64), "direct"),
        (layer(64, 64, 3, size=3), "direct"),
        (layer(64, 64, 1, size=3), "im2col"),
        (layer(128, 128, groups=4), "im2col"),
    ],
)
def test_algorithms_by_size_where_there_is_no_implicit_gemm(
    direction: str, geometry: ConvGeometry, expected: str
) -> None:
    assert chosen(direction, geometry, "float32", capability=SM_70) == expected
    assert chosen(direction, geometry, "float64") == expected


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_depthwise_is_what_its_kernels_compute(direction: str) -> None:
    """Floats, in images without gaps, of which a tile fits a block's shared memory."""
    geometry = layer(8, 8, groups=8)
    for dtype in sorted(NUMERIC):
        floats = dtype in ("float16", "bfloat16", "float32", "float64")
        assert chosen(direction, geometry, dtype) == ("depthwise" if floats else "direct")
    assert chosen(direction, geometry, "float32", channels_last=True) == "depthwise"
    x, y = layouts(geometry, "float32")
    gaps = x._replace(strides=tuple(2 * step for step in x.strides))
    assert algorithm(direction, geometry, "float32", gaps, y, SM_80) == "direct"
    mixed = layouts(geometry, "float32", channels_last=True)[0]
    assert algorithm(direction, geometry, "float32", mixed, y, SM_80) == "depthwise"  # by copies in C order
    for name in ("direct", "im2col"):
        with gpucnn.algorithm(name):
            assert chosen(direction, geometry, "float32") == name


def test_filters_that_fill_shared_memory_are_left_to_the_direct_kernels() -> None:
    huge = conv_geometry("conv3d", (64, 64, 64), Channels(2, 2, 2), 33, 1, 16, 1)
    assert [chosen(direction, huge, "float64") for direction in DIRECTIONS] == ["direct"] * 3


@pytest.mark.parametrize("dtype", sorted(NUMERIC))
def test_what_a_product_cannot_compute_is_direct(dtype: str) -> None:
    for direction in DIRECTIONS:
        products = "direct" if dtype in INTEGER else "im2col"
        assert chosen(direction, layer(64, 64), dtype, capability=SM_70) == products
        for capability, gathered in ((SM_75, {"float16", "float32"}), (SM_80, {"float16", "bfloat16", "float32"})):
            expected = "implicit_gemm" if dtype in gathered else products
            assert chosen(direction, layer(64, 64), dtype, capability=capability) == expected


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("capability", [SM_70, SM_75, SM_80])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_no_dense_layer_of_the_benchmark_has_one_output_a_thread_in_16_bits(
    direction: str, dtype: str, capability: tuple[int, int]
) -> None:
    found = {geometry: chosen(direction, geometry, dtype, capability=capability) for geometry in dense_layers()}
    is_gathered = capability >= (SM_75 if dtype == "float16" else SM_80)
    assert len(found) > 40
    assert set(found.values()) == ({"im2col", "implicit_gemm"} if is_gathered else {"im2col"})


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_products_without_columns_are_those_of_cublas_where_it_has_the_precision(direction: str) -> None:
    for precision, expected in (("fp32", "im2col"), ("tf32", "im2col"), ("fp32x3", "implicit_gemm")):
        with gpucnn.precision(precision):
            assert chosen(direction, layer(64, 64), "float32") == "implicit_gemm"
            assert chosen(direction, layer(64, 64, 1), "float32") == expected
            assert chosen(direction, layer(64, 64, 1), "float16") == "im2col"
            assert chosen(direction, layer(64, 64), "float32", capability=SM_70) == "im2col"
            by_ffma = "implicit_gemm" if precision == "fp32" else "im2col"
            assert chosen(direction, layer(64, 64), "float32", capability=SM_75) == by_ffma
            assert chosen(direction, layer(64, 64), "complex64") == "im2col"


def test_the_callers_algorithm_is_taken() -> None:
    with gpucnn.algorithm("direct"):
        assert chosen("forward", layer(64, 64), "float32") == "direct"
        with gpucnn.algorithm("implicit_gemm"):
            assert chosen("forward", layer(1, 1), "float16") == "implicit_gemm"
            with pytest.raises(ValueError, match="'implicit_gemm' computes no convolution of float64, expected one of"):
                chosen("forward", layer(64, 64), "float64")
            for dtype, capability in (("float16", SM_70), ("bfloat16", SM_75)):
                on_this = "{} on a GPU of compute capability {}.{}, expected one of".format(dtype, *capability)
                with pytest.raises(ValueError, match=f"computes no convolution of {on_this}"):
                    chosen("forward", layer(64, 64), dtype, capability=capability)
        with gpucnn.algorithm("im2col"):
            assert chosen("forward", layer(1, 1), "float32") == "im2col"
            with pytest.raises(ValueError, match="algorithm: 'im2col' computes no convolution of int8"):
                chosen("backward_weight", layer(1, 1), "int8")
        assert choices().algorithm == "direct"
    assert choices().algorithm is None


def test_an_unknown_algorithm_is_refused() -> None:
    for name in ("fft", "fold", "Winograd", "", None):
        message = rf"^algorithm: name is {name!r}, expected one of \('direct', 'im2col', 'winograd', 'implicit_gemm'\)$"
        with pytest.raises(ValueError, match=message), gpucnn.algorithm(name):  # type: ignore[arg-type]
            pass


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_winograd_is_what_its_transforms_apply_to(direction: str) -> None:
    """Ungrouped 3 x 3 taps in full float32, by itself where the channels are many."""
    is_weight = direction == "backward_weight"
    assert chosen(direction, layer(256, 256), "float32") == ("implicit_gemm" if is_weight else "winograd")
    assert chosen(direction, layer(256, 256), "float32", capability=SM_70) == "im2col"
    on_turing = chosen(direction, layer(256, 256), "float32", capability=SM_75)
    assert on_turing == ("implicit_gemm" if is_weight else "winograd")
    assert chosen(direction, layer(512, 16), "float32") == "implicit_gemm"
    line = conv_geometry("conv1d", (56,), Channels(256, 256), 3, 1, 1, 1)
    volume = conv_geometry("conv3d", (3, 56, 56), Channels(256, 256), (1, 3, 3), 1, (0, 1, 1), 1)
    others = (layer(256, 256, 5), layer(256, 256, 3, groups=2), line, volume)
    with gpucnn.algorithm("winograd"):
        for geometry in (*others, layer(64, 64))[: 4 + is_weight]:
            with pytest.raises(
                ValueError, match=r"^algorithm: 'winograd' computes no such convolution of float32, exp"
            ):
                chosen(direction, geometry, "float32")
        with pytest.raises(ValueError, match=r"of float32 on a GPU of compute capability 7\.0"):
            chosen(direction, layer(64, 64), "float32", capability=SM_70)
        with gpucnn.precision("tf32"), pytest.raises(ValueError, match="'winograd' computes no such convolution"):
            chosen(direction, layer(64, 64), "float32")
        if not is_weight:
            assert chosen(direction, layer(1, 1), "float32") == "winograd"
    with gpucnn.precision("tf32"):
        assert chosen(direction, layer(256, 256), "float32") == "implicit_gemm"


@pytest.mark.parametrize(
    ("weights", "positions", "splits"),
    [
        *((1, 0, 1), (1, 511, 1), (1, 1024, 2), (9, 512 * 7, 7), (1, 10**9, 4096)),
        *((100, 10**9, 41), (4096, 10**9, 1), (2**30, 10**9, 1)),
    ],
)
def test_splits_of_a_backward_weight(weights: int, positions: int, splits: int) -> None:
    assert weight_splits(weights, positions) == splits


def test_workspace_holds_at_least_one_image() -> None:
    default = 256 << 20
    assert images_at_once(0) == default
    assert images_at_once(default) == images_at_once(10 * default) == 1
    assert images_at_once(default // 3) == 3
    with gpucnn.workspace_limit(1000):
        assert [images_at_once(size) for size in (100, 999, 1000, 1001)] == [10, 1, 1, 1]
        with gpucnn.workspace_limit(0):
            assert images_at_once(0) == images_at_once(1) == 1
    assert images_at_once(default) == 1
    with pytest.raises(ValueError, match=r"^workspace_limit: nbytes is -1, expected at least 0$"):
        gpucnn.workspace_limit(-1).__enter__()


def test_an_images_workspace_counts_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(im2col, "images_at_once", lambda image_bytes: asked.append(image_bytes) or 2)
    x = np.zeros((5, 4, 1, 8, 8), np.float32)
    geometry = layer(4, 8, size=8)
    assert list(im2col_convolution._chunks(x, geometry, 4)) == [slice(0, 2), slice(2, 4), slice(4, 6)]
    list(im2col_convolution._chunks(x, layer(4, 64, size=8), 2))
    list(im2col_convolution._chunks(x, geometry, 4, 10**6))
    assert asked == [4 * 9 * 64 * 4, 64 * 64 * 2, 10**6]


def test_images_share_a_product_where_that_moves_fewer_bytes() -> None:
    """The weight's gradient: copies of the images against a part of the sum for each."""
    small, large = layer(64, 64, size=56), layer(512, 512, size=7)
    is_one = im2col_convolution._is_one_product
    assert not is_one(small, 2, 4, False, False)  # 64 * 3136 * 2 > 36864 * 4
    assert is_one(large, 2, 4, False, False)
    assert is_one(small, 2, 4, False, True)  # channels-last gradients need no copy
    pointwise = layer(64, 256, 1, size=14)  # (256 + 64) * 196 * 2 > 16384 * 4 > 256 * 196 * 1
    assert not is_one(pointwise, 2, 4, False, False)
    assert is_one(pointwise, 2, 4, True, True)


@pytest.mark.parametrize("sum_bytes", [4, 8, 16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("w", [1, 170, 1895, 9001])
def test_tiles_of_an_unfolding_fit_with_the_words_that_are_left_out(
    w: int, channels_last: bool, sum_bytes: int
) -> None:
    tile = unfold_tile(960, 7, w, w, 1, sum_bytes, sum_bytes, 8, channels_last)
    assert skewed(prod(tile), sum_bytes) * sum_bytes <= MAX_SHARED_BYTES
