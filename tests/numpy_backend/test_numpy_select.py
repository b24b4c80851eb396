"""The choice of a convolution's algorithm on the CPU, by table."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any, NamedTuple

import pytest

import gpucnn
from gpucnn.backends.numpy import columns, select
from gpucnn.geometry import Axis, ConvGeometry
from gpucnn.geometry.geometries import Channels, conv_geometry
from gpucnn.numerics import ALGORITHMS, choices


class Layer(NamedTuple):
    """A layer of a network and its batch."""

    batch: int
    geometry: ConvGeometry


def layer(
    batch: int,
    channels: tuple[int, int],
    sizes: int | tuple[int, ...],
    kernel: Any = 3,
    stride: Any = 1,
    padding: Any = None,
    dilation: int = 1,
    groups: int = 1,
) -> Layer:
    """Square where `sizes` is one number, as large as its input at stride 1 where `padding` is None."""
    sizes = (sizes, sizes) if isinstance(sizes, int) else sizes
    pads = kernel // 2 * dilation if padding is None else padding
    return Layer(batch, conv_geometry("conv", sizes, Channels(*channels, groups), kernel, stride, pads, dilation))


def chosen(layer: Layer, direction: str) -> str:
    return select.algorithm(direction, layer.geometry, layer.batch, choices().algorithm)


def forward(layer: Layer) -> str:
    return chosen(layer, "forward")


def backward_input(layer: Layer) -> set[str]:
    """The fold, or the algorithms of the stride residues that any tap reaches."""
    of_most = chosen(layer, "backward_input")
    if of_most == "fold":
        return {"fold"}
    parts = select.contractions("backward_input", layer.geometry)
    found = {select.contraction(layer.batch, *part, choices().algorithm) for part in parts}
    assert of_most in found
    return found


def folds(geometry: ConvGeometry, batch: int = 1) -> bool:
    return chosen(Layer(batch, geometry), "backward_input") == "fold"


LAYERS = {  # layer, forward, backward-input
    "alexnet conv1": (layer(4, (3, 96), 227, 11, 4, 0), "im2col", "fold"),
    "alexnet conv3": (layer(4, (256, 384), 13), "im2col", "fold"),
    "vgg-16 conv1_1": (layer(1, (3, 64), 224), "im2col", "fold"),
    "vgg-16 conv1_2": (layer(1, (64, 64), 224), "im2col", "im2col"),
    "vgg-16 conv3_2": (layer(1, (256, 256), 56), "im2col", "im2col"),
    "resnet-50 conv1": (layer(1, (3, 64), 224, 7, 2), "im2col", "fold"),
    "resnet-50 conv2 reduce": (layer(2, (256, 64), 56, 1), "im2col", "im2col"),
    "resnet-50 conv2 3x3": (layer(2, (64, 64), 56), "im2col", "im2col"),
    "resnet-50 conv2 expand": (layer(2, (64, 256), 56, 1), "im2col", "im2col"),
    "resnet-50 conv3 3x3 s2": (layer(2, (128, 128), 56, 3, 2), "im2col", "im2col"),
    "resnet-50 conv3 shortcut": (layer(2, (256, 512), 56, 1, 2), "im2col", "im2col"),
    "resnet-50 conv4 3x3": (layer(4, (256, 256), 14), "im2col", "im2col"),
    "resnet-50 conv5 3x3": (layer(4, (512, 512), 7), "im2col", "fold"),
    "resnext-50 conv2 3x3": (layer(2, (128, 128), 56, groups=32), "im2col", "im2col"),
    "resnext-50 conv5 3x3": (layer(2, (1024, 1024), 7, groups=32), "im2col", "im2col"),
    "mobilenet-v2, 56 x 56": (layer(2, (144, 144), 56, groups=144), "depthwise", "depthwise"),
    "mobilenet-v2, 7 x 7": (layer(2, (960, 960), 7, groups=960), "depthwise", "depthwise"),
    "depthwise, two filters a channel": (layer(2, (32, 64), 7, groups=32), "im2col", "im2col"),
    "depthwise, few channels": (layer(1, (3, 3), 512, groups=3), "im2col", "im2col"),
    "depthwise, few taps": (layer(1, (512, 512), (3200,), groups=512), "im2col", "im2col"),
    "depthwise, taps far from each other": (layer(4, (32, 32), 56, dilation=9, groups=32), "depthwise", "depthwise"),
    "deeplab aspp, rate 6": (layer(1, (2048, 256), 33, dilation=6), "direct", "direct"),
    "deeplab aspp, rate 12": (layer(1, (2048, 256), 33, dilation=12), "direct", "direct"),
    "deeplab aspp, rate 18": (layer(1, (2048, 256), 33, dilation=18), "direct", "direct"),
    "u-net second": (layer(1, (64, 64), 570, padding=0), "im2col", "im2col"),
    "dcgan first, of an image of 8": (layer(8, (512, 1024), 8, 4, 2, 1), "im2col", "fold"),
    "dcgan last": (layer(8, (3, 128), 64, 4, 2, 1), "im2col", "fold"),
    "3-d stem": (layer(1, (3, 64), (16, 112, 112), (3, 7, 7), (1, 2, 2), (1, 3, 3)), "im2col", "fold"),
    "3-d 3x3x3": (layer(1, (64, 64), (16, 56, 56)), "im2col", "im2col"),
    "1-d, 256 channels": (layer(4, (256, 256), (4096,)), "im2col", "im2col"),
    "1-d, 64 channels": (layer(4, (64, 64), (4096,)), "im2col", "im2col"),
    "one channel of 8 x 8": (layer(1, (1, 1), 8, padding=0), "im2col", "im2col"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_networks(name: str) -> None:
    case, output, gradient = LAYERS[name]
    assert forward(case) == output
    assert backward_input(case) == {gradient}


OF_WEIGHT = {
    "vgg-16 conv1_2": "im2col",
    "deeplab aspp, rate 12": "im2col",
    "resnext-50 conv2 3x3": "im2col",
    "resnext-50 conv5 3x3": "im2col",
    "mobilenet-v2, 56 x 56": "depthwise",
    "mobilenet-v2, 7 x 7": "depthwise",
    "depthwise, two filters a channel": "im2col",
    "depthwise, few channels": "im2col",
    "depthwise, few taps": "im2col",
    "depthwise, taps far from each other": "depthwise",
}


@pytest.mark.parametrize("name", OF_WEIGHT)
def test_weight_gradients(name: str) -> None:
    assert chosen(LAYERS[name][0], "backward_weight") == OF_WEIGHT[name]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("direction", ["forward", "backward_input"])
def test_what_is_chosen_by_cost_costs_least(name: str, direction: str) -> None:
    case, *_ = LAYERS[name]
    costs = select.costs(direction, case.geometry, case.batch)
    taken = chosen(case, direction)
    assert taken in costs
    assert all(cost is None or cost > 0 for cost in costs.values())
    if taken != "depthwise":
        assert costs[taken] == min(cost for cost in costs.values() if cost is not None)


@pytest.mark.parametrize("name", LAYERS)
def test_the_answer_depends_on_sizes_alone(name: str) -> None:
    case = LAYERS[name][0]
    before = gpucnn.get_num_threads()
    answers = set()
    try:
        for threads in (1, 2, 3, 2):
            gpucnn.set_num_threads(threads)
            select.algorithm.cache_clear()
            select.contraction.cache_clear()
            answers |= {(forward(case), *backward_input(case)), (forward(case), *backward_input(case))}
    finally:
        gpucnn.set_num_threads(before)
    assert len(answers) == 1


# --- Rules over many sizes ----------------------------------------------------------------------------------------

CHANNELS = (1, 3, 16, 64, 256, 1024)
SIZES = (1, 2, 7, 14, 56, 224)


def test_a_1x1_convolution_is_a_product() -> None:
    for c, oc, size, stride, batch in product(CHANNELS, CHANNELS, SIZES, (1, 2), (1, 8)):
        case = layer(batch, (c, oc), size, 1, stride)
        assert forward(case) == "im2col"
        assert backward_input(case) == {"im2col"}


@pytest.mark.thorough
def test_few_channels_fold_and_many_do_not() -> None:
    """More channels of the image make a fold dearer: once it is not taken it is not taken again."""
    for oc, (kernel, stride), size in product((64, 96, 256), ((3, 1), (7, 2), (11, 4), (4, 2)), (56, 112, 224)):
        layers = [layer(1, (c, oc), size, kernel, stride).geometry for c in range(1, 4 * oc)]
        taken = [folds(geometry) for geometry in layers]
        assert taken[2]
        assert taken == sorted(taken, reverse=True)
        assert not taken[-1] or prod(layers[-1].output_size) < 2 * oc


def test_weights_that_few_positions_use_are_not_copied() -> None:
    """A fold multiplies by them where they lie."""
    for channels, oc, size, batch in product((256, 1024), (512, 1024), (4, 7), (1, 4)):
        assert backward_input(layer(batch, (channels, oc), size)) == {"fold"}
    assert "fold" not in backward_input(layer(4, (512, 512), 28))


def test_taps_in_the_padding_are_what_direct_saves() -> None:
    """The larger the dilation the less of the window is inside, up to where just its middle is."""
    chosen = [forward(layer(1, (2048, 256), 33, dilation=rate)) == "direct" for rate in (1, 6, 12, 18, 33)]
    assert chosen == sorted(chosen)
    assert not chosen[0]
    assert chosen[-1]


def test_costs_grow_with_the_work() -> None:
    """Each algorithm's cost is positive, and larger for more images, channels, filters and pixels."""
    for cost in (select._columns, select._direct):

        def of(batch: int, c: int, oc: int, size: int, cost: Any = cost) -> float:
            geometry = layer(batch, (c, oc), size).geometry
            return float(cost(batch, (1, oc, c, 1, 3, 3), geometry.forward))

        base = of(1, 16, 16, 14)
        assert base > 0
        assert base < min(of(2, 16, 16, 14), of(1, 32, 16, 14), of(1, 16, 32, 14), of(1, 16, 16, 28))


def test_costs_count_groups() -> None:
    geometry = layer(1, (64, 64), 14, groups=4).geometry
    for cost in (select._columns, select._direct):
        one, four = (cost(1, (groups, 16, 16, 1, 3, 3), geometry.forward) for groups in (1, 4))
        assert four == pytest.approx(4 * one)


# --- The caller's choice ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["implicit_gemm", "winograd"])
@pytest.mark.parametrize("direction", ["forward", "backward_input", "backward_weight"])
def test_what_numpy_does_not_compute_is_refused(direction: str, name: str) -> None:
    message = rf"^algorithm: '{name}' is not computed by NumPy, expected 'direct' or 'im2col'$"
    with gpucnn.algorithm(name), pytest.raises(ValueError, match=message):
        chosen(LAYERS["resnet-50 conv2 3x3"][0], direction)


@pytest.mark.parametrize("name", select.ALGORITHMS)
def test_the_callers_algorithm_is_taken(name: str) -> None:
    """Also of depthwise and grouped layers, which have an algorithm of their own."""
    assert name in ALGORITHMS
    with gpucnn.algorithm(name):
        for case, _, _ in LAYERS.values():
            assert forward(case) == name
            assert backward_input(case) <= ({name, "fold"} if name == "im2col" else {name})
            assert chosen(case, "backward_weight") == name
    assert folds(LAYERS["vgg-16 conv1_1"][0].geometry)


def test_columns_and_a_product_fold_where_that_costs_less() -> None:
    with gpucnn.algorithm("im2col"):
        assert folds(LAYERS["resnet-50 conv1"][0].geometry)
        assert not folds(LAYERS["resnet-50 conv2 3x3"][0].geometry, 2)


# --- Pieces -------------------------------------------------------------------------------------------------------


def pieces_of(extents: tuple[int, ...], filters: int, channels: int, groups: int = 1) -> tuple[columns.Piece, ...]:
    """The pieces of 1 x 1 filters over `extents`, a batch and its pixels (D, H, W)."""
    depth, height, width = (Axis(size, out=size).forward for size in extents[1:])
    return columns.pieces(extents[0], (groups, filters, channels), (depth, height, width), 4)


def lengths(*runs: slice) -> tuple[int, ...]:
    return tuple(run.stop - run.start for run in runs)


@pytest.mark.parametrize("extents", [(1, 1, 1, 1), (1, 1, 14, 14), (8, 1, 7, 7), (2, 5, 9, 30), (1, 1, 224, 224)])
@pytest.mark.parametrize("filters", [1, 3, 64, 512])
@pytest.mark.parametrize("depth", [1, 27, 576, 4608, 10**6])
@pytest.mark.parametrize("groups", [1, 5])
def test_pieces_cover_all_targets_and_filters_once(
    extents: tuple[int, ...], filters: int, depth: int, groups: int
) -> None:
    pieces = pieces_of(extents, filters, depth, groups)
    covered = [prod(lengths(piece.groups, piece.images, *piece.space, piece.filters)) for piece in pieces]
    assert sum(covered) == groups * prod(extents) * filters
    starts = [(piece.groups.start, piece.images.start, *(s.start for s in piece.space), piece.filters.start)
              for piece in pieces]  # fmt: skip
    assert len(set(starts)) == len(starts)


def test_pieces_are_cut_for_threads_and_caches() -> None:
    def work(batch: int, size: int, filters: int, depth: int) -> tuple[int, int, int]:
        pieces = pieces_of((batch, 1, size, size), filters, depth)
        most = max(prod(lengths(piece.images, *piece.space)) for piece in pieces)
        return len(pieces), most, len({piece.filters.start for piece in pieces})

    assert work(1, 8, 1, 9)[0] == 1  # small work stays whole
    assert work(1, 7, 512, 4608) == (4, 49, 4)  # few positions, many filters: cut by filters
    count, most, parts = work(1, 56, 64, 576)
    assert (parts, most * 576 * 4 <= columns.PIECE_BYTES) == (1, True)
    assert count >= 4
    assert work(1, 14, 64, 10**6)[1] <= columns.MIN_POSITIONS
    assert [piece.groups for piece in pieces_of((1, 1, 14, 14), 16, 144, 32)] == [slice(0, 16), slice(16, 32)]
