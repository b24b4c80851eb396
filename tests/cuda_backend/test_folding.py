"""Blocks of positions as channels: the same convolution, and the choice of the blocks."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
import pytest
from strategies import arranged

from gpucnn.backends.cuda.convolution import implicit_gemm
from gpucnn.backends.cuda.convolution.folding import (
    MAX_ROWS,
    Fold,
    OutputFold,
    _folded,
    fold_of_gradient,
    fold_of_input,
    fold_of_output,
)
from gpucnn.geometry import Axis, ConvGeometry
from gpucnn.geometry.geometries import Channels, conv_geometry


def conv(channels: int, size: int, kernel: int, stride: int, low: int, groups: int = 1, rank: int = 2) -> ConvGeometry:
    return conv_geometry("conv", (size,) * rank, Channels(channels, 64, groups), kernel, stride, low, 1)


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_each_pair_of_an_output_and_a_tap_is_met_once(stride: int, times: int) -> None:
    """Tap t of the window of output o is tap ``t * stride - low + r`` of the kernel for position r of a block."""
    for size, kernel, low, high in product((5, 12), (1, 2, 3, 4, 7), (0, 1, 2, 5), (0, 3)):
        if size + low + high < kernel:
            continue
        out = (size + low + high - kernel) // stride + 1
        axis = Axis(size, kernel, stride, 1, low, high, out)
        to = _folded(axis, times)
        expected = {
            (o, k, o * stride + k - low) for o in range(out) for k in range(kernel) if 0 <= o * stride + k - low < size
        }
        found = []
        for q, t, r in product(range(to.blocks), range(to.taps), range(to.size)):
            o, k, i = q * to.times + to.before - t, t * stride - to.low + r, q * to.size + r - to.cut
            if 0 <= o < out and 0 <= k < kernel and 0 <= i < size:
                found.append((o, k, i))
        assert len(found) == len(expected)
        assert set(found) == expected
        assert 0 <= to.low < to.size
        assert (to.taps - 1) * stride + to.size - to.low >= kernel


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_each_pair_is_met_once_by_a_block_of_outputs(stride: int, times: int) -> None:
    for size, kernel, low, high in product((5, 12), (1, 2, 3, 4), (0, 1, 4), (0, 3)):
        if size + low + high < kernel:
            continue
        geometry = conv_geometry("conv", (size,), Channels(4, 4), kernel, stride, ((low, high),), 1)
        (out,) = geometry.output_size[2:]
        to = OutputFold(geometry, (1, 1, times)).lines[2]
        expected = {
            (o, k, o * stride + k - low) for o in range(out) for k in range(kernel) if 0 <= o * stride + k - low < size
        }
        found = []
        for q, t, r in product(range(to.blocks), range(to.taps), range(to.size)):
            o, i, k = q * to.size + r - to.cut, q * to.stride + t * to.step - to.low, t - r * stride
            if 0 <= o < out and 0 <= k < kernel and 0 <= i < size:
                found.append((o, k, i))
        assert len(found) == len(expected)
        assert set(found) == expected


@pytest.mark.parametrize(
    ("geometry", "times"),
    [
        (conv_geometry("conv", (56, 56), Channels(128, 128, 32), 3, 1, 1, 1), (1, 4, 4)),  # a ResNeXt's
        (conv_geometry("conv", (56, 56), Channels(64, 24), 3, 1, 1, 1), None),  # 3 of 4 rows are used
        (conv_geometry("conv", (56, 56), Channels(64, 64), 3, 1, 1, 1), None),
        (conv_geometry("conv", (56, 56), Channels(64, 2), 1, 1, 0, 1), None),  # no taps to share
        (conv_geometry("conv", (56, 56), Channels(64, 2), 3, 1, 2, 2), None),
    ],
)
def test_outputs_are_folded_where_rows_are_few(geometry: ConvGeometry, times: tuple[int, ...] | None) -> None:
    fold = fold_of_output(geometry)
    assert (fold and fold.times) == times


@pytest.mark.parametrize(
    ("geometry", "taps", "length"),
    [
        (conv(3, 224, 7, 2, 3), (1, 4, 4), 12),  # a ResNet's
        (conv(3, 227, 11, 4, 0), (1, 3, 3), 48),  # an AlexNet's
        (conv(3, 64, 4, 2, 1), (1, 2, 2), 12),  # a discriminator's
        (conv(3, 224, 3, 1, 1), None, 0),  # no stride
        (conv(8, 224, 3, 2, 1), None, 0),  # no padding of channels to save
        (conv(3, 224, 1, 2, 0), None, 0),  # 3 of 4 positions are not read
        (conv_geometry("conv", (64, 64), Channels(3, 64), 7, 2, 3, 2), None, 0),
    ],
)
def test_images_are_folded_where_that_shortens_the_product(
    geometry: ConvGeometry, taps: tuple[int, ...] | None, length: int
) -> None:
    fold = fold_of_input(geometry, 2)
    assert (fold and fold.convolution.kernel_size) == taps
    if fold is not None:
        assert fold.convolution.channels.inputs == length
        assert fold.convolution.output_size == geometry.output_size


@pytest.mark.parametrize(
    ("geometry", "times", "rows"),
    [
        (conv(3, 224, 7, 2, 3), (1, 2, 2), 48),
        (conv(3, 227, 11, 4, 0), (1, 1, 1), 48),
        (conv(3, 224, 3, 1, 1), (1, 4, 4), 48),
        (conv(3, 112, 3, 1, 1, rank=3), (4, 2, 2), 48),
        (conv(64, 56, 3, 1, 1), None, 0),
        (conv(64, 56, 3, 2, 1), None, 0),
        (conv(16, 56, 3, 1, 1), None, 0),  # a fragment is full
        (conv_geometry("conv", (64, 64), Channels(3, 64), 3, 1, 2, 2), None, 0),
    ],
)
def test_gradients_are_folded_where_rows_are_few(
    geometry: ConvGeometry, times: tuple[int, ...] | None, rows: int
) -> None:
    fold = fold_of_gradient(geometry)
    assert (fold and fold.times) == times
    if fold is not None:
        channels = geometry.channels.inputs // geometry.channels.groups
        assert channels * fold.positions == rows <= MAX_ROWS
        assert prod(axis.blocks * axis.size for axis in fold.axes) >= prod(geometry.input_size)


def test_long_pixels_are_written_as_they_are() -> None:
    """Of a channels-last image, neighbouring positions are as many bytes apart as its channels are."""
    for channels, order, taken in (
        (3, "contiguous", True),
        (64, "contiguous", True),
        (3, "channels_last", True),
        (64, "channels_last", False),
    ):
        assert implicit_gemm._takes_blocks(arranged(np.zeros((2, channels, 5, 5), np.float16), order)) == taken


def test_folds_of_two_kinds_have_two_plans() -> None:
    geometry = conv(4, 16, 3, 1, 1)
    assert len({Fold(geometry, (1, 2, 2)), OutputFold(geometry, (1, 2, 2))}) == 2


def test_the_convolution_of_blocks_has_the_same_outputs() -> None:
    geometry = conv(3, 227, 11, 4, 0)
    folded = Fold(geometry, (1, 1, 1)).convolution
    assert folded.input_size == (1, 57, 57)
    assert [axis.stride for axis in folded.axes] == [1, 1, 1]
    assert folded.channels == (48, 64, 1)
