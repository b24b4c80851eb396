"""Receptive fields and costs of layers and stacks of layers: published networks, and brute force."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import FrozenInstanceError
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused, refuses

from gpucnn.geometry import (
    Im2colShapes,
    ReceptiveField,
    Window,
    conv_multiply_adds,
    conv_output_size,
    conv_parameters,
    im2col_shapes,
    locally_connected_parameters,
    receptive_field,
)

small = st.integers(1, 4)

# --- Receptive fields ---------------------------------------------------------------------------------------------

CONV, POOL = Window(3, padding=1), Window(2, stride=2)
ALEXNET = [
    Window(11, stride=4),
    Window(3, stride=2),
    Window(5, padding=2),
    Window(3, stride=2),
    *[CONV] * 3,
    Window(3, stride=2),
]
VGG16 = [*[CONV] * 2, POOL, *[CONV] * 2, POOL, *([CONV] * 3 + [POOL]) * 3]
STEM = [Window(7, stride=2, padding=3), Window(3, stride=2, padding=1)]


def bottlenecks(count: int, stride: int) -> list[Window]:
    """A stage of ResNet-50 as first published: the stride in the first 1x1."""
    return [Window(1, stride=stride), CONV, Window(1), *[Window(1), CONV, Window(1)] * (count - 1)]


RESNET50 = [*STEM, *bottlenecks(3, 1), *bottlenecks(4, 2), *bottlenecks(6, 2), *bottlenecks(3, 2)]


@pytest.mark.parametrize(
    ("layers", "size", "stride"),
    [
        pytest.param(ALEXNET, 195, 32, id="AlexNet"),
        pytest.param(VGG16, 212, 32, id="VGG-16"),
        pytest.param(STEM, 11, 4, id="ResNet stem"),
        pytest.param(RESNET50, 483, 32, id="ResNet-50"),
        pytest.param([Window(3, dilation=2**i) for i in range(6)], 127, 1, id="dilations that double"),
        pytest.param([Window(2, dilation=2**i) for i in range(10)] * 3, 3070, 1, id="WaveNet"),
        pytest.param([Window(3, padding=18, dilation=18)], 37, 1, id="DeepLab rate 18"),
    ],
)
def test_receptive_field_of_published_networks(layers: list[Window], size: int, stride: int) -> None:
    field = receptive_field(layers)
    assert (field.size, field.stride) == (size, stride)


def test_receptive_field_in_full() -> None:
    assert receptive_field([]) == ReceptiveField(1, 1, 0, Fraction(0))
    assert receptive_field(STEM) == ReceptiveField(11, 4, -5, Fraction(0))
    assert receptive_field(Window(3) for _ in range(7)).size == 1 + 7 * 2
    assert receptive_field([2]) == ReceptiveField(2, 1, 0, Fraction(1, 2))
    assert receptive_field([Window(4, padding=((2, 1),))]) == ReceptiveField((4,), (1,), (-2,), (Fraction(-1, 2),))
    assert receptive_field([(3, 2), 3]) == ReceptiveField((5, 4), (1, 1), (0, 0), (Fraction(2), Fraction(3, 2)))
    stride: Any = np.int64(2)
    assert receptive_field([Window(3, stride, "valid"), Window(3)]) == ReceptiveField(7, 2, 0, Fraction(3))
    mixed: Any = (1, 0, (2, 0))
    field = receptive_field([Window((3, 1, 2), stride=2, padding=mixed, dilation=(2, 1, 3)), 2])
    centre = (Fraction(2), Fraction(1), Fraction(1, 2))
    assert field == ReceptiveField((7, 3, 6), (2, 2, 2), (-1, 0, -2), centre)
    assert all(type(value) is int for value in (*field.size, *field.stride, *field.start))
    assert type(receptive_field([3]).centre) is Fraction


layers = st.builds(
    Window,
    kernel_size=small,
    stride=st.integers(1, 3),
    padding=st.one_of(st.integers(0, 3), st.tuples(st.tuples(st.integers(0, 3), st.integers(0, 3)))),
    dilation=st.integers(1, 3),
)


def inputs_of(output: int, windows: Sequence[Any]) -> set[int]:
    """The inputs that an output of a stack reads, padding too, layer by layer back to the input."""
    seen = {output}
    for window in reversed(windows):
        ((low, _),) = reference.resolve_padding(window.padding, [1], [1], [1], [1])
        taps = range(0, window.kernel_size * window.dilation, window.dilation)
        seen = {position * window.stride - low + tap for position in seen for tap in taps}
    return seen


@given(st.lists(layers, min_size=1, max_size=4))
def test_receptive_field_is_what_can_be_reached(windows: list[Window]) -> None:
    field = receptive_field(windows)
    if any(isinstance(window.padding, tuple) for window in windows):
        field = ReceptiveField(*(part for (part,) in field))
    for output in (0, 1, 5):
        seen = inputs_of(output, windows)
        first = output * field.stride + field.start
        assert (min(seen), max(seen) + 1) == (first, first + field.size)
        assert Fraction(min(seen) + max(seen), 2) == output * field.stride + field.centre


@given(st.lists(st.tuples(layers, layers), min_size=1, max_size=4))
def test_each_axis_has_its_own_receptive_field(stacks: list[tuple[Window, Window]]) -> None:
    def joined(part: str) -> list[tuple[Any, Any]]:
        return [(getattr(a, part), getattr(b, part)) for a, b in stacks]

    paddings = [tuple(p[0] if isinstance(p, tuple) else p for p in pair) for pair in joined("padding")]
    parts = zip(joined("kernel_size"), joined("stride"), paddings, joined("dilation"), strict=True)
    field = receptive_field([Window(*part) for part in parts])
    for axis in (0, 1):
        alone = receptive_field([stack[axis] for stack in stacks])
        assert [part[axis] for part in field] == [part[0] if isinstance(part, tuple) else part for part in alone]


def test_a_window_is_a_value() -> None:
    assert Window(3) == Window(3, 1, 0, 1)
    with pytest.raises(FrozenInstanceError):
        Window(3).stride = 2  # type: ignore[misc]


# --- Parameters and costs -----------------------------------------------------------------------------------------

VGG16_CHANNELS = [(224, 3, 64), (224, 64, 64), (112, 64, 128), (112, 128, 128), (56, 128, 256), *[(56, 256, 256)] * 2]
VGG16_CHANNELS += [(28, 256, 512), *[(28, 512, 512)] * 2, *[(14, 512, 512)] * 3]


def test_vgg16_by_the_books() -> None:
    """Its convolutions have 14.7 million parameters and take 15.3 billion multiply-adds."""
    assert sum(conv_parameters(c, oc, 3) for _, c, oc in VGG16_CHANNELS) == 14_714_688
    assert sum(conv_multiply_adds(c, oc, size, 3, padding=1) for size, c, oc in VGG16_CHANNELS) == 15_346_630_656


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"in_channels": 3, "out_channels": 96, "kernel_size": 11}, 34944),
        ({"in_channels": 3, "out_channels": 96, "kernel_size": 11, "bias": False}, 34848),
        ({"in_channels": 96, "out_channels": 256, "kernel_size": 5, "groups": 2}, 307456),
        ({"in_channels": 1, "out_channels": 512, "kernel_size": 10, "rank": 1}, 5632),
        ({"in_channels": 3, "out_channels": 64, "kernel_size": 3, "rank": 3}, 5248),
        ({"in_channels": 3, "out_channels": 64, "kernel_size": (3,), "rank": 3}, 640),
        ({"in_channels": 192, "out_channels": 224, "kernel_size": (1, 7)}, 301280),
        ({"in_channels": np.int64(4), "out_channels": np.int32(2), "kernel_size": [np.int8(1)] * 3}, 10),
    ],
)
def test_conv_parameters(arguments: dict[str, Any], expected: int) -> None:
    result = conv_parameters(**arguments)
    assert result == expected
    assert type(result) is int


@pytest.mark.parametrize(("f", "w", "d"), [(11, 55, 3), (3, 13, 256), (1, 1, 1), (2, 5, 7)])
def test_sharing_saves_a_factor_of_all_positions(f: int, w: int, d: int) -> None:
    """F²D parameters a filter where filters are shared, F²W²D where they are not."""
    assert conv_parameters(d, 1, f, bias=False) == f**2 * d
    assert locally_connected_parameters(d, 1, f, w, bias=False) == f**2 * w**2 * d
    assert locally_connected_parameters(d, 1, f, w) == f**2 * w**2 * d + w**2
    assert locally_connected_parameters(d, 96, f, w) == 96 * locally_connected_parameters(d, 1, f, w)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((3, 96, 11, 55), 105_705_600),
        ((3, 96, 11, (55, 55), False), 105_415_200),
        ((2, 5, 3, 4, True, 1), 5 * 4 * (2 * 3 + 1)),
        ((2, 5, 3, 4, True, 3), 5 * 64 * (2 * 27 + 1)),
        ((2, 5, (3, 2), 4), 5 * 16 * (2 * 6 + 1)),
        ((2, 5, 3, (4,)), 5 * 4 * (2 * 3 + 1)),
    ],
)
def test_locally_connected_parameters(arguments: tuple[Any, ...], expected: int) -> None:
    assert locally_connected_parameters(*arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "columns", "filters", "product"),
    [
        pytest.param((3, 96, 227, 11, 4), (363, 3025), (96, 363), (96, 3025), id="AlexNet conv1"),
        pytest.param((96, 256, 27, 5, 1, 2, 1, 2), (1200, 729), (128, 1200), (128, 729), id="AlexNet conv2, grouped"),
        pytest.param((3, 64, 224, 7, 2, 3), (147, 12544), (64, 147), (64, 12544), id="ResNet stem"),
        pytest.param((64, 64, 224, 3, 1, "same"), (576, 50176), (64, 576), (64, 50176), id="VGG conv1_2"),
        pytest.param((256, 256, 33, 3, 1, 12, 12), (2304, 1089), (256, 2304), (256, 1089), id="DeepLab rate 12"),
        pytest.param((1, 512, 16000, 10, 5, 0, 1, 1, 1), (10, 3199), (512, 10), (512, 3199), id="wav2vec encoder1"),
        pytest.param((3, 64, (16, 8, 8), 3, 1, 1), (81, 1024), (64, 81), (64, 1024), id="C3D conv"),
    ],
)
def test_im2col_shapes(arguments: tuple[Any, ...], columns: Any, filters: Any, product: Any) -> None:
    shapes = im2col_shapes(*arguments)
    assert shapes == Im2colShapes(columns, filters, product)
    groups = arguments[7] if len(arguments) > 7 else 1
    cost = conv_multiply_adds(*arguments)
    assert cost == filters[0] * filters[1] * columns[1] * groups
    assert {type(value) for value in (*shapes.columns, *shapes.filters, *shapes.product, cost)} == {int}


def test_what_is_left_out_is_a_plain_layer() -> None:
    """Two axes, stride 1, no padding, no dilation, one group."""
    assert im2col_shapes(2, 3, 6, 3) == ((18, 16), (3, 18), (3, 16))
    assert conv_multiply_adds(2, 3, 6, 3) == 3 * 16 * 18
    assert conv_parameters(2, 3, 3) == 3 * (18 + 1)
    assert locally_connected_parameters(2, 3, 3, 4) == 3 * 16 * (18 + 1)


@given(
    sizes=st.lists(st.integers(4, 7), min_size=1, max_size=3),
    kernel=st.integers(1, 3),
    stride=small,
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    channels=st.tuples(small, small, st.integers(1, 3)),
)
def test_costs_are_those_of_the_loops(
    sizes: list[int], kernel: int, stride: int, padding: int, dilation: int, channels: tuple[int, int, int]
) -> None:
    rank = len(sizes)
    sizes = [size + 1 for size in sizes]  # so that a window always fits
    inputs, outputs, groups = channels[0] * channels[2], channels[1] * channels[2], channels[2]
    pads, window = ((padding, padding),) * rank, (kernel,) * rank
    columns = reference.im2col(np.zeros((1, channels[0], *sizes)), window, (stride,) * rank, pads, (dilation,) * rank)
    arguments = (inputs, outputs, sizes, kernel, stride, padding, dilation, groups)
    depth, positions = columns.shape[1:]
    shapes = im2col_shapes(*arguments)
    assert shapes == ((depth, positions), (channels[1], depth), (channels[1], positions))
    assert conv_multiply_adds(*arguments) == groups * channels[1] * depth * positions
    assert conv_parameters(inputs, outputs, window, groups) == outputs * (depth + 1)
    cube = (inputs, outputs, sizes[0], kernel, stride, padding, dilation, groups, rank)
    side = conv_output_size(sizes[0], kernel, stride, padding, dilation)
    assert im2col_shapes(*cube).columns == (depth, side**rank)
    assert conv_multiply_adds(*cube) == outputs * depth * side**rank


# --- Errors -------------------------------------------------------------------------------------------------------

EMPTY = "got an empty sequence, expected one value for each spatial axis"

test_values_that_are_refused = refuses(
    ValueError,
    (
        "receptive_field: padding is 'same', expected numbers; same_padding gives them for an input size",
        lambda: receptive_field([Window(3, padding="same")]),
    ),
    ("receptive_field: kernel_size has 3 values, expected 2", lambda: receptive_field([(3, 3), (3, 3, 3)])),
    (f"receptive_field: {EMPTY}", lambda: receptive_field([3, ()])),
    (f"conv_parameters: {EMPTY}", lambda: conv_parameters(8, 8, ())),
    (f"locally_connected_parameters: {EMPTY}", lambda: locally_connected_parameters(8, 8, 3, ())),
    (f"im2col_shapes: {EMPTY}", lambda: im2col_shapes(8, 8, (), 3)),
    ("…in_channels is 9, expected a multiple of groups = 2", lambda: conv_parameters(9, 8, 3, 2)),
    ("…out_channels is 9, expected a multiple of groups = 2", lambda: conv_parameters(8, 9, 3, 2)),
    ("im2col_shapes: in_channels is 3, expected a multiple …", lambda: im2col_shapes(3, 8, 5, 3, groups=2)),
    ("conv_multiply_adds: out_channels is 9, expected a …", lambda: conv_multiply_adds(4, 9, 5, 3, groups=4)),
    ("…output_size has 3 values, expected 2", lambda: locally_connected_parameters(3, 8, (3, 3), (5, 5, 5))),
    ("…stride has 3 values, expected 2", lambda: conv_multiply_adds(4, 8, (5, 5), 3, (1, 1, 1))),
    ("im2col_shapes: window of axis 0 spans …, 0 + 2 + 0 = 2", lambda: im2col_shapes(3, 8, 2, 3)),
)


def test_each_window_is_asked_for_as_many_values_as_the_first_has() -> None:
    message = "receptive_field: kernel_size is 1.0, expected an integer or 2 of them"
    refused(TypeError, (message, lambda: receptive_field([Window((3, 3)), Window(1.0)])))
