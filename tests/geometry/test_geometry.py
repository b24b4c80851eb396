"""Sizes, paddings, axes and geometries, against loops that lay one window down after the other."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from fractions import Fraction
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused, refuses, saying
from sample import examples

import gpucnn.geometry
from gpucnn.geometry import (
    AdaptiveAxis,
    Axis,
    ConvGeometry,
    InterpolationAxis,
    NormGeometry,
    PoolGeometry,
    Window,
    conv_multiply_adds,
    conv_output_size,
    conv_parameters,
    conv_transpose_output_size,
    im2col_shapes,
    locally_connected_parameters,
    max_unpool_output_size,
    pool_output_size,
    receptive_field,
    same_padding,
)
from gpucnn.geometry.geometries import (
    Channels,
    adaptive_geometry,
    conv_geometry,
    conv_transpose_geometry,
    interpolation_geometry,
    pool_geometry,
    unpool_size,
)

LARGEST = 2**31 - 1
TRIVIAL = Axis(1)

small = st.integers(1, 4)
pads = st.integers(0, 5)
paddings = st.one_of(pads, st.tuples(st.tuples(pads, pads)), st.sampled_from(["valid", "same", "same_lower"]))


def test_it_needs_only_the_standard_library() -> None:
    """The geometry of a layer can be asked for where NumPy is not installed."""
    code = "import sys; sys.modules['numpy'] = None; import gpucnn.geometry as g; print(g.conv_output_size(227, 11, 4))"
    root = gpucnn.geometry.__path__[0] + "/../.."
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout == "55\n"


def test_every_public_name_is_there() -> None:
    assert [name for name in gpucnn.geometry.__all__ if not hasattr(gpucnn.geometry, name)] == []


# --- Output sizes -------------------------------------------------------------------------------------------------

KNOWN: dict[Callable[..., Any], dict[str, tuple[tuple[Any, ...], Any]]] = {
    # function: {layer: ((size, kernel, stride, padding, …), output)}
    conv_output_size: {
        "AlexNet conv1": ((227, 11, 4), 55),
        "VGG conv": ((224, 3, 1, 1), 224),
        "ResNet stem": ((224, 7, 2, 3), 112),
        "MobileNet stem in TensorFlow": ((224, 3, 2, "same"), 112),
        "DeepLab rate 18": ((33, 3, 1, 18, 18), 33),
        "DeepLab rate 24 with same": ((65, 3, 1, "same", 24), 65),
        "U-Net conv": ((572, 3, 1, "valid"), 570),
        "wav2vec encoder1": ((16000, 10, 5), 3199),
        "C3D conv": (((16, 112, 112), 3, 1, 1), (16, 112, 112)),
        "Inception 1x7": (((17, 17), (1, 7), 1, (0, 3)), (17, 17)),
        "different on each axis": (((10, 9), (3, 2), (2, 1), ((1, 0), (0, 2)), (1, 3)), (5, 8)),
        "one input": ((1, 1), 1),
        "stride past the input": ((1, 1, 7), 1),
        "window of the input's size": ((3, 3, 2), 1),
        "largest size": ((LARGEST, 1), LARGEST),
        "largest of all": ((LARGEST, LARGEST, 1, LARGEST), 2 * LARGEST + 1),
    },
    pool_output_size: {
        "AlexNet pool1": ((55, 3, 2), 27),
        "VGG pool": ((224, 2), 112),
        "SqueezeNet pool, where nothing overhangs": ((109, 3, 2, 0, 1, True), 54),
        "Inception branch": ((28, 3, 1, 1, 1, True), 28),
        "stride as the kernel": ((7, 3), 2),
        "one more that overhangs": (((7, 7), 2, None, 0, 1, True), (4, 4)),
        "one more that starts on the last input": ((3, 2, 3, 1, 1, True), 2),
        "no more that would start past the input": ((2, 2, 3, 1, 1, True), 1),
        "no more that would start in the padding": ((1, 2, 2, 1, 1, True), 1),
        "high padding alone": ((1, 2, 2, ((0, 1),), 1, True), (1,)),
        "a first that overhangs, as in PyTorch": ((2, 3, 2, 0, 1, True), 1),
        "a first that overhangs, dilated": ((4, 3, 3, 0, 2, True), 1),
        "same": ((7, 3, None, "same"), 3),
        "same with ceil_mode": ((7, 3, 2, "same", 1, True), 4),
        "dilated, asymmetric": ((5, 3, 2, ((1, 2),), 2), (2,)),
    },
    conv_transpose_output_size: {
        "DCGAN 5": ((32, 4, 2, 1), 64),
        "U-Net up": (((28, 28), 2, 2), (56, 56)),
        "FCN-32s": ((16, 64, 32), 544),
        "output_padding": ((112, 3, 2, 1, 1), 224),
        "output_padding below the dilation": ((5, 3, 1, 0, 2, 3), 13),
        "different on each axis": (((3, 4), 2, (3, 2), ((1, 0), (0, 2)), (2, 1)), (9, 7)),
        "same": ((7, 3, 2, "same"), 14),
        "same_lower, stride past the kernel": (((7, 3), 2, (3, 1), "same_lower", 0, 2), (21, 3)),
        "one left": ((2, 1, 1, ((0, 1),)), (1,)),
    },
    max_unpool_output_size: {
        "SegNet": ((56, 2, None, 0), 112),
        "of two axes": (((4, 5), 3, 2, 1), (7, 9)),
        "high padding alone": ((3, 3, 2, ((0, 1),)), (6,)),
        "valid": ((3, (3,), None, "valid"), (9,)),
        "same": ((4, 3, 2, "same"), 8),
        "same_lower": (((4, 2), 3, (2, 1), "same_lower"), (8, 2)),
        "one left": ((1, 2, 1, ((1, 0),)), (1,)),
    },
}


@pytest.mark.parametrize(
    ("function", "given", "expected"),
    [pytest.param(function, *row, id=name) for function, rows in KNOWN.items() for name, row in rows.items()],
)
def test_output_sizes_of_known_layers(function: Callable[..., Any], given: tuple[Any, ...], expected: Any) -> None:
    assert function(*given) == expected


@pytest.mark.parametrize(("given", "expected"), KNOWN[max_unpool_output_size].values())
def test_pooling_undoes_unpooling(given: tuple[Any, ...], expected: Any) -> None:
    size, kernel, stride, padding = given
    if stride is None:
        assert max_unpool_output_size(size, kernel, padding=padding) == expected
    assert conv_output_size(expected, kernel, stride or kernel, padding) in (size, (size,))


@examples(200)
@given(st.integers(1, 12), small, st.integers(1, 6), paddings, small, st.none() | st.booleans())
def test_output_size_is_the_number_of_windows(
    size: int, kernel: int, stride: int, padding: Any, dilation: int, ceil_mode: bool | None
) -> None:
    """Of a pooling, whose padding is less than its window, or of a convolution where `ceil_mode` is None."""
    resolved = reference.resolve_padding(padding, [size], [kernel], [stride], [dilation])
    (expected,) = reference.output_size([size], [kernel], [stride], resolved, [dilation], bool(ceil_mode))
    output_size, refusal = conv_output_size, "window of axis 0 spans"
    if ceil_mode is not None:
        output_size, refusal = partial(pool_output_size, ceil_mode=ceil_mode), f"{refusal}|less than the window"
    if expected and (ceil_mode is None or max(resolved[0]) <= dilation * (kernel - 1)):
        result = output_size(size, kernel, stride, padding, dilation)
        assert result == (expected if isinstance(padding, int | str) else (expected,))
    else:
        with pytest.raises(ValueError, match=refusal):
            output_size(size, kernel, stride, padding, dilation)


@given(st.integers(1, 9), small, small, paddings, small, st.data())
def test_a_transposed_size_is_one_whose_convolution_gives_the_input(
    size: int, kernel: int, stride: int, padding: Any, dilation: int, data: st.DataObject
) -> None:
    resolved, extra = reference.resolve_transposed_padding(padding, [size], [kernel], [stride], [dilation])
    asked = 0
    if padding not in ("same", "same_lower"):
        asked = data.draw(st.integers(0, max(stride, dilation) - 1))
        extra = (asked,)
    (expected,) = reference.transposed_size([size], [kernel], [stride], resolved, [dilation], extra)
    if expected > 0:
        result = conv_transpose_output_size(size, kernel, stride, padding, asked, dilation)
        assert result == (expected if isinstance(padding, int | str) else (expected,))
        if asked < stride:  # beyond it, the convolution has windows of its own at the end
            assert conv_output_size(expected, kernel, stride, resolved, dilation) == (size,)
    else:
        with pytest.raises(ValueError, match="cuts all of it"):
            conv_transpose_output_size(size, kernel, stride, padding, asked, dilation)


# --- Same padding -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "low", "high"),
    [
        (224, 3, 2, 1, 0, 1),
        (6, 4, 1, 1, 1, 2),
        (6, 4, 1, 3, 4, 5),
        (10, 2, 3, 1, 0, 1),  # stride > kernel, and padding all the same
        (7, 1, 3, 1, 0, 0),
        (8, 2, 5, 1, 0, 0),  # stride > kernel leaves inputs unread at the end
        (1, 1, 1, 1, 0, 0),
    ],
)
def test_same_padding(size: int, kernel: int, stride: int, dilation: int, low: int, high: int) -> None:
    assert same_padding(size, kernel, stride, dilation) == (low, high)
    assert same_padding(size, kernel, stride, dilation, lower=True) == (high, low)
    if (stride, dilation) == (1, 1):
        assert same_padding(size, kernel) == (low, high)
    assert same_padding((size,), kernel, stride, dilation) == ((low, high),)
    assert same_padding((size, 1), kernel, stride, dilation)[0] == (low, high)
    for form, pair in (("same", (low, high)), ("same_lower", (high, low))):
        axis = conv_geometry("op", (size,), Channels(1, 1), kernel, stride, form, dilation).axes[2]
        assert (axis.low, axis.high) == pair


@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 7), small)
def test_same_padding_is_the_least_that_keeps_all_windows(size: int, kernel: int, stride: int, dilation: int) -> None:
    low, high = same_padding(size, kernel, stride, dilation)
    assert low + high == reference.same_pads(size, kernel, stride, dilation)
    assert high - low in (0, 1)
    assert same_padding(size, kernel, stride, dilation, lower=True) == (high, low)
    for form in ("same", "same_lower"):
        assert conv_output_size(size, kernel, stride, form, dilation) == math.ceil(size / stride)


# --- Forms of arguments -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((7, 3), 5),
        (((7,), 3), (5,)),
        ((7, (3,)), (5,)),
        ((7, [3, 2]), (5, 6)),
        (([7, 8], 3), (5, 6)),
        (((7, 8), np.array([3, 2])), (5, 7)),
        ((7, 3, (1, 2)), (5, 3)),
        ((7, 3, 1, (0, 1)), (5, 7)),
        ((7, 3, 1, ((0, 1),)), (6,)),
        ((7, 3, 1, [[0, 1], [2, 2]]), (6, 9)),
        ((7, 3, 1, np.array([[0, 1], [2, 2]])), (6, 9)),
        ((7, 3, 1, ((0, 1), 2)), (6, 9)),
        ((7, 3, 1, "valid"), 5),
        (((7, 8), 3, 1, "valid"), (5, 6)),
        ((7, 3, 1, 0, (1, 2, 3)), (5, 3, 1)),
        ((np.int64(7), np.int8(3), np.uint16(2), np.int32(1)), 4),
        ((np.array(7), np.array(3)), 5),
        ((7, 3, 1, np.array(1)), 7),
        ((7, 3, 1, (np.array(1), (0, np.array(0)))), (7, 5)),
        (([np.int64(7)] * 2, range(2, 4)), (6, 5)),
    ],
)
def test_sizes_answer_in_the_form_they_were_asked_in(given: tuple[Any, ...], expected: Any) -> None:
    result = conv_output_size(*given)
    assert result == expected
    assert type(result) is type(expected)
    assert all(type(value) is int for value in (result if isinstance(result, tuple) else (result,)))


WINDOW = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
SIZED = {"input_size": 1, **WINDOW}
COUNTS = {"in_channels": 1, "out_channels": 1, "groups": 1, "rank": 1}  # of which there is one, not one for each axis
LOCAL = {"in_channels": 1, "out_channels": 1, "rank": 1, "kernel_size": 1, "output_size": 1}

OPERATIONS: dict[str, tuple[Callable[..., Any], dict[str, int]]] = {
    # by its name in messages, each function with the least value of each integer
    "conv_output_size": (conv_output_size, SIZED),
    "pool_output_size": (pool_output_size, SIZED),
    "conv_transpose_output_size": (conv_transpose_output_size, SIZED | {"output_padding": 0}),
    "max_unpool_output_size": (max_unpool_output_size, {"input_size": 1, "kernel_size": 1, "stride": 1, "padding": 0}),
    "same_padding": (same_padding, {"input_size": 1, "kernel_size": 1, "stride": 1, "dilation": 1}),
    "conv1d": (partial(conv_geometry, "conv1d", (9,), Channels(1, 1)), WINDOW),
    "conv_transpose1d": (
        partial(conv_transpose_geometry, "conv_transpose1d", (9,), Channels(1, 1)),
        WINDOW | {"output_padding": 0},
    ),
    "max_pool1d": (partial(pool_geometry, "max_pool1d", (9,)), WINDOW),
    "max_unpool1d": (
        partial(unpool_size, "max_unpool1d", (1,)),
        {"kernel_size": 1, "stride": 1, "padding": 0, "output_size": 1},
    ),
    "adaptive_max_pool1d": (partial(adaptive_geometry, "adaptive_max_pool1d", (9,)), {"output_size": 1}),
    "receptive_field": (lambda **window: receptive_field([Window(**window)]), WINDOW),
    "conv_parameters": (conv_parameters, COUNTS | {"kernel_size": 1}),
    "locally_connected_parameters": (locally_connected_parameters, LOCAL),
    "im2col_shapes": (im2col_shapes, COUNTS | SIZED),
    "conv_multiply_adds": (conv_multiply_adds, COUNTS | SIZED),
}


@pytest.mark.parametrize(("op", "name"), [(op, name) for op, (_, leasts) in OPERATIONS.items() for name in leasts])
def test_every_integer_is_checked(op: str, name: str) -> None:
    """What equals a number, and hashes as it, is refused too, whatever a cache holds of earlier calls."""
    function, leasts = OPERATIONS[op]
    valid, least, counted = leasts, leasts[name], name in COUNTS
    function(**valid)
    function(**valid | {name: np.int64(least)})
    if not counted:
        function(**valid | {name: [least]})
    scalar = {"padding": "an integer", "output_size": "an integer or 1 of them", **dict.fromkeys(COUNTS, "an integer")}
    item = {"padding": "an integer or a (low, high) pair for each axis"}
    if op.startswith("adaptive"):
        scalar = item = {"output_size": "an integer, None, or 1 of them"}
    for bad in (True, False, np.bool_(True), 1.0, np.float64(1), Fraction(1), "1", 1j, None, object(), {1: 2}.items):
        if bad is None and name in ("stride", "output_size"):
            continue
        for form, expected in ((bad, scalar), ([bad], item))[: 1 if counted else 2]:
            if isinstance(bad, str) and name == "padding" and form is bad:
                continue
            wanted = expected.get(name, "an integer or 1 of them")
            with pytest.raises(TypeError, match=saying(f"{op}: {name} is {bad!r}, expected {wanted}")) as caught:
                function(**valid | {name: form})
            assert caught.value.__suppress_context__
    for bad, bound in ((least - 1, f"least {least}"), (-(10**30), f"least {least}"), (2**31, f"most {LARGEST}")):
        for form in (bad, [bad])[: 1 if counted else 2]:
            with pytest.raises(ValueError, match=saying(f"{op}: {name} is {bad}, expected at {bound}")):
                function(**valid | {name: form})
    for form in ([least] * 2, [least] * 3) if op.endswith("1d") else ():
        with pytest.raises(ValueError, match=saying(f"{op}: {name} has {len(form)} values, expected 1")):
            function(**valid | {name: form})


@pytest.mark.parametrize("value", ["7", b"7", bytearray(b"7"), {7}, {7: 7}, iter([7])])
def test_what_has_no_order_of_axes_is_no_sequence(value: Any) -> None:
    message = f"conv_output_size: input_size is {value!r}, expected an integer or 1 of them"
    refused(TypeError, (message, lambda: conv_output_size(value, 3)))


CEIL_MODES: dict[str, Callable[[Any], Any]] = {
    "pool_output_size": lambda flag: pool_output_size(7, 2, ceil_mode=flag),
    "max_pool1d": lambda flag: pool_geometry("max_pool1d", (7,), 2, ceil_mode=flag).output_size[2],
}


@pytest.mark.parametrize("op", CEIL_MODES)
def test_flags_are_true_or_false(op: str) -> None:
    pool = CEIL_MODES[op]
    assert pool(True) == pool(np.bool_(True)) == pool(np.array(True)) == 4
    assert pool(False) == pool(np.bool_(False)) == pool(np.array(False)) == 3
    for bad in (1, 0, 1.0, None, "True", np.int64(1), np.array(1), np.array([True]), [True], SimpleNamespace(ndim=0)):
        with pytest.raises(TypeError, match=saying(f"{op}: ceil_mode is {bad!r}, expected True or False")):
            pool(bad)


def test_a_number_may_be_as_large_as_a_kernel_can_take() -> None:
    assert conv_output_size(LARGEST, 2, LARGEST, LARGEST, LARGEST) == 2
    assert conv_transpose_output_size(LARGEST, LARGEST, LARGEST, LARGEST, LARGEST - 1, LARGEST) > 2**61
    assert adaptive_geometry("op", (LARGEST,), LARGEST).output_size == (1, 1, LARGEST)


CHANNELS = Channels(1, 1)
EMPTY = "got an empty sequence, expected one value for each spatial axis"
SPANS = "spans dilation * (kernel - 1) + 1 ="
SHORT = "expected at most the padded input,"

test_what_cannot_be_done_says_so = refuses(
    ValueError,
    (
        f"conv_output_size: window of axis 1 {SPANS} 9, {SHORT} 1 + 4 + 1 = 6",
        lambda: conv_output_size((9, 4), 3, padding=(0, 1), dilation=4),
    ),
    ("conv_output_size: stride has 2 values, expected 1", lambda: conv_output_size((5,), 3, stride=(1, 2))),
    ("conv_output_size: padding has 1 values, expected 2", lambda: conv_output_size((5, 5), 3, padding=(1,))),
    (
        "conv_output_size: padding of an axis has 3 values, expected (low, high)",
        lambda: conv_output_size(5, 3, padding=((1, 2, 3),)),
    ),
    ("conv_output_size: padding is -1, expected at least 0", lambda: conv_output_size(5, 3, padding=((0, -1),))),
    ("conv_output_size: padding is -2, expected at least 0", lambda: conv_output_size(5, 3, padding=((-2, 0),))),
    (
        "conv_output_size: padding is 'SAME', expected numbers, 'valid', 'same' or 'same_lower'",
        lambda: conv_output_size(5, 3, padding="SAME"),
    ),
    (f"same_padding: {EMPTY}", lambda: same_padding((), 3)),
    (f"conv_output_size: {EMPTY}", lambda: conv_output_size(5, 3, padding=())),
    (f"conv_transpose_output_size: {EMPTY}", lambda: conv_transpose_output_size(5, 3, ())),
    (f"max_unpool_output_size: {EMPTY}", lambda: max_unpool_output_size(5, [])),
    (
        "pool_output_size: padding of axis 0 is (3, 3), expected less than the window, dilation * (kernel - 1) + 1 = 3",
        lambda: pool_output_size(4, 3, padding=3),
    ),
    (
        "avg_pool2d: padding of axis 1 is (3, 0), expected less than the window, … = 3",
        lambda: pool_geometry("avg_pool2d", (9, 9), 2, padding=((1, 1), (3, 0)), dilation=2),
    ),
    ("op: padding of axis 0 is (0, 2), expected less …", lambda: pool_geometry("op", (9,), 2, padding=((0, 2),))),
    (f"op: window of axis 0 {SPANS} 3, {SHORT} 0 + 2 + 0 = 2", lambda: pool_geometry("op", (2,), 3, 1, ceil_mode=True)),
    (f"op: window of axis 0 {SPANS} 3, {SHORT} 0 + 2 + 0 = 2", lambda: pool_geometry("op", (2,), 3, 2)),
    (f"op: window of axis 2 {SPANS} 3, …", lambda: conv_geometry("op", (5, 5, 2), CHANNELS, 3, 1, 0, 1)),
    (
        "conv_transpose_output_size: output_padding of axis 1 is 2, expected less than stride 2 or dilation 2",
        lambda: conv_transpose_output_size(4, 3, (2, 2), output_padding=(1, 2), dilation=2),
    ),
    (
        "op: output_padding of axis 0 is 1, expected less than stride 1 or dilation 1",
        lambda: conv_transpose_geometry("op", (4,), CHANNELS, 3, 1, 0, 1, 1),
    ),
    (
        "op: output of axis 1 has size 0, expected at least 1; padding (2, 1) cuts all of it",
        lambda: conv_transpose_geometry("op", (4, 1), CHANNELS, 3, 1, ((0, 0), (2, 1)), 0, 1),
    ),
    (
        "…output_padding is (1,), expected 0 with padding 'same_lower'",
        lambda: conv_transpose_output_size(4, 3, 2, "same_lower", 1),
    ),
    (
        "…output_padding is (0, 1), expected 0 with padding 'same'",
        lambda: conv_transpose_output_size((4, 4), 3, 2, "same", (0, 1)),
    ),
    ("…output of axis 1 has size 0, …", lambda: max_unpool_output_size((2, 1), 2, padding=((0, 0), (1, 1)))),
    ("op: output of axis 0 has size 0, expected at least 1", lambda: unpool_size("op", (1, 2), 2, None, 1, None)),
    (
        "op: output_size of axis 1 is 11, expected more than 5 and less than 11",
        lambda: unpool_size("op", (3, 3), 2, 3, 0, (10, 11)),
    ),
    ("…axis 0 is 4, expected more than 4 and less than 8", lambda: unpool_size("op", (3,), 2, None, 0, 4)),
    ("op: output_size has 3 values, expected 2", lambda: adaptive_geometry("op", (5, 5), (2, None, 3))),
)


def test_both_ends_of_a_pair_are_checked() -> None:
    message = "conv_output_size: padding is 1.5, expected an integer or a (low, high) pair for each axis"
    for pair in ((1.5, 1), (1, 1.5)):
        refused(TypeError, (message, lambda pair=pair: conv_output_size((5, 5), 3, padding=(0, pair))))
    assert conv_output_size(5, 3, padding=((1, 1),)) == (5,)
    for one in (True, 1.0):  # equals, and hashes as, what a cache now holds
        for pair in ((one, 1), (1, one)):
            refused(TypeError, ("…expected an integer…", lambda pair=pair: conv_output_size(5, 3, padding=(pair,))))


# --- Geometries ---------------------------------------------------------------------------------------------------


def test_conv_geometry_of_each_rank() -> None:
    line = conv_geometry("conv1d", (9,), Channels(4, 6, 2), 3, 2, "same", 2)
    width = Axis(9, 3, 2, 2, low=2, high=2, out=5)
    assert line == ConvGeometry(1, Channels(4, 6, 2), (TRIVIAL, TRIVIAL, width))
    plane = conv_geometry("conv2d", (9, 8), Channels(4, 6), (3, 2), (2, 1), ((1, 0), (0, 2)), (1, 3))
    height, width = Axis(9, 3, 2, 1, low=1, out=4), Axis(8, 2, 1, 3, high=2, out=7)
    assert plane == ConvGeometry(2, Channels(4, 6, 1), (TRIVIAL, height, width))
    assert (plane.input_size, plane.output_size) == ((1, 9, 8), (1, 4, 7))
    assert (plane.kernel_size, plane.taps) == ((1, 3, 2), 6)
    assert plane.forward == (TRIVIAL.forward, height.forward, width.forward)
    cube = conv_geometry("conv3d", (5, 6, 7), Channels(1, 1), (1, 2, 3), 1, 0, 1)
    assert cube == ConvGeometry(3, Channels(1, 1), (Axis(5, out=5), Axis(6, 2, out=5), Axis(7, 3, out=5)))
    assert (cube.input_size, cube.output_size) == ((5, 6, 7), (5, 5, 5))
    assert (cube.kernel_size, cube.taps) == ((1, 2, 3), 6)
    assert cube.forward == tuple(axis.forward for axis in cube.axes)


def test_conv_transpose_geometry_is_that_of_the_convolution_back() -> None:
    geometry = conv_transpose_geometry("op", (3, 4), Channels(6, 4, 2), 2, (3, 2), ((1, 0), (0, 2)), (2, 1), 1)
    axes = (TRIVIAL, Axis(9, 2, 3, 1, 1, 0, out=3), Axis(7, 2, 2, 1, 0, 2, out=4))
    assert geometry == ConvGeometry(2, Channels(6, 4, 2), axes)
    assert geometry.output_size == (1, 3, 4)
    same = conv_transpose_geometry("op", (3,), Channels(1, 1), 3, 2, "same", 0, 1)
    assert same.axes[2] == Axis(6, 3, 2, 1, 0, 1, out=3)
    lower = conv_transpose_geometry("op", (3,), Channels(1, 1), 3, 2, "same_lower", 0, 1)
    assert lower.axes[2] == Axis(6, 3, 2, 1, 1, 0, out=3)
    dilated = conv_transpose_geometry("op", (2, 2, 2), Channels(1, 1), 2, 1, "valid", (2, 0, 1), (3, 2, 2))
    assert dilated.input_size == (7, 4, 5)


def test_pool_geometry() -> None:
    pool = pool_geometry("max_pool2d", (7, 6), (3, 2))
    assert pool == PoolGeometry(2, (TRIVIAL, Axis(7, 3, 3, out=2), Axis(6, 2, 2, out=3)), "none")
    assert (pool.input_size, pool.output_size) == ((1, 7, 6), (1, 2, 3))
    ceiled = pool_geometry("avg_pool2d", (7, 6), 3, 2, ((2, 1), 0), 2, True, "padded")
    assert ceiled == PoolGeometry(2, (TRIVIAL, Axis(7, 3, 2, 2, 2, 1, out=4), Axis(6, 3, 2, 2, out=2)), "padded")
    same = pool_geometry("sum_pool3d", (5, 5, 5), 2, 3, "same_lower", divisor=7.5)
    assert same == PoolGeometry(3, (Axis(5, 2, 3, out=2),) * 3, 7.5)
    assert pool_geometry("op", (5,), 2, 2, "same_lower").axes[2] == Axis(5, 2, 2, low=1, out=3)


def test_adaptive_geometry() -> None:
    mixed = adaptive_geometry("op", (12, 5, 7), (4, 3, None), "valid")
    assert mixed == PoolGeometry(3, (Axis(12, 3, 3, out=4), AdaptiveAxis(5, 3), Axis(7, out=7)), "valid")
    assert (mixed.input_size, mixed.output_size) == ((12, 5, 7), (4, 3, 7))
    assert adaptive_geometry("op", (6, 9), 3) == PoolGeometry(
        2, (TRIVIAL, Axis(6, 2, 2, out=3), Axis(9, 3, 3, out=3)), "none"
    )
    assert adaptive_geometry("op", (6, 9), None).output_size == (1, 6, 9)
    assert adaptive_geometry("op", (3,), np.int32(5)).axes == (TRIVIAL, TRIVIAL, AdaptiveAxis(3, 5))
    assert adaptive_geometry("op", (3, 4), [1, np.int64(2)]).output_size == (1, 1, 2)


@given(st.integers(1, 12), st.integers(1, 12))
def test_adaptive_windows_do_not_depend_on_how_they_are_written(size: int, out: int) -> None:
    """Where out divides size the axis is an ordinary one; it reads what the adaptive one reads."""
    axis, plain = adaptive_geometry("op", (size,), out).axes[2], AdaptiveAxis(size, out)
    assert isinstance(axis, Axis) is (size % out == 0)
    if isinstance(axis, Axis):
        windows = [(o * axis.stride - axis.low, o * axis.stride - axis.low + axis.kernel) for o in range(out)]
        assert windows == [plain.windows(o) for o in range(out)]


@pytest.mark.parametrize(
    ("input_size", "kernel", "stride", "padding", "output_size", "expected"),
    [
        ((3,), 2, None, 0, None, (6,)),
        ((3, 4), 3, 2, 1, None, (5, 7)),
        ((3, 4), (3, 2), None, ((1, 0), (0, 1)), None, (8, 7)),
        ((3,), 2, None, "same", None, (6,)),
        ((3,), 2, 3, 0, 6, (6,)),  # default 8: the least
        ((3,), 2, 3, 0, 10, (10,)),  # and the most
        ((3, 3), 2, None, 0, (5, np.int64(7)), (5, 7)),
        ((3, 3), 2, None, 0, 6, (6, 6)),
        ((1,), 2, None, 1, 1, (1,)),  # default 0
    ],
)
def test_unpool_size(
    input_size: Any, kernel: Any, stride: Any, padding: Any, output_size: Any, expected: tuple[int, ...]
) -> None:
    result = unpool_size("op", input_size, kernel, stride, padding, output_size)
    assert result == expected
    assert all(type(value) is int for value in result)


@pytest.mark.parametrize(
    ("norm", "shape", "axes", "count"),
    [
        ("batch", (8, 6, 1, 35), (0, 2, 3), 8 * 35),
        ("instance", (8, 6, 1, 35), (2, 3), 35),
        ("group", (8, 2, 3, 35), (2, 3), 3 * 35),
        ("layer", (24, 1, 10, 1), (2, 3), 10),
    ],
)
def test_norm_geometry(norm: str, shape: tuple[int, int, int, int], axes: tuple[int, ...], count: int) -> None:
    geometry = NormGeometry(shape, axes)
    assert geometry.count == count
    x = np.arange(math.prod(shape)).reshape(shape)
    assert x.mean(axis=geometry.axes, keepdims=True).size * geometry.count == x.size
    assert x.sum(axis=geometry.affine_axes, keepdims=True).shape == (1, *shape[1:3], 1)


def test_geometries_are_values() -> None:
    """Equal by what they say, usable as keys, and never changed."""
    for value in (
        conv_geometry("op", (9,), Channels(1, 1), 3, 1, 0, 1),
        pool_geometry("op", (9,), 3),
        interpolation_geometry((2,), (4,), None, "nearest", False),
        NormGeometry((1, 2, 3, 4), (2, 3)),
        Axis(3),
        Axis(3).forward,
        AdaptiveAxis(5, 3),
        InterpolationAxis(1, 1),
    ):
        assert {value: "found"}[value] == "found"
        name = next(iter(type(value).__dataclass_fields__))
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, 0)
    assert conv_geometry("conv1d", (9,), Channels(1, 1), 3, 1, 0, 1) != conv_geometry(
        "", (9,), Channels(1, 2), 3, 1, 0, 1
    )


def test_a_second_call_is_looked_up() -> None:
    first = conv_geometry("op", (9, 9), Channels(2, 2), 3, 1, 1, 1)
    for stride, padding in ((np.int64(1), (1, 1)), ([1, 1], np.array([[1, 1], [1, 1]])), ((1, 1), ((1, 1), 1))):
        assert conv_geometry("op", (9, 9), Channels(2, 2), (3, 3), stride, padding, 1) is first
    rounds_up: Any = np.bool_(True)
    assert pool_geometry("op", (9,), 3, None, 0, 1, rounds_up) is pool_geometry("op", (9,), 3, 3, "valid", 1, True)
    assert conv_transpose_geometry("op", (9,), Channels(1, 1), 3, 1, 0, 0, 1) is conv_transpose_geometry(
        "op", (9,), Channels(1, 1), (3,), [1], "valid", 0, 1
    )
    assert adaptive_geometry("a", (9,), 4) is adaptive_geometry("b", (9,), (4,))
