"""Positions read by the axes of windows and of resamplings, against loops over every output, tap and input."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpucnn.backends import samples
from gpucnn.backends.samples import blended, matrix, nearest
from gpucnn.geometry import (
    AdaptiveAxis,
    Axis,
    Filter,
    InterpolationAxis,
    InterpolationGeometry,
    Residue,
    Sampling,
    Tap,
    resize_axis,
)
from gpucnn.geometry.axes import filtered_axis, nearest_axis
from gpucnn.geometry.caches import bytes_of
from gpucnn.geometry.geometries import interpolation_geometry

Triple = tuple[int, int, int]  # output, tap, input

small = st.integers(1, 4)

# --- Axes ---------------------------------------------------------------------------------------------------------

axes = st.builds(
    Axis,
    size=st.integers(1, 9),
    kernel=small,
    stride=st.integers(1, 5),
    dilation=small,
    low=st.integers(0, 6),
    high=st.integers(0, 6),
    out=st.integers(1, 6),  # any: a transposed convolution's last windows leave inputs, ceil_mode's overhang
)


def meetings(axis: Axis) -> list[Triple]:
    """Every (output, tap, input) of an axis, by trying all."""
    everywhere = (
        (o, k, o * axis.stride + k * axis.dilation - axis.low) for o in range(axis.out) for k in range(axis.kernel)
    )
    return [(o, k, i) for o, k, i in everywhere if 0 <= i < axis.size]


def pairs(tap: Tap, targets: int, sources: int) -> Iterable[tuple[int, int]]:
    """The (target, source) that a tap joins; its slices end on the axis."""
    for where, length in ((tap.target, targets), (tap.source, sources)):
        assert 0 <= where.start < where.stop <= length
    return zip(range(targets)[tap.target], range(sources)[tap.source], strict=True)


@given(axes)
def test_forward_taps_meet_every_pair_once(axis: Axis) -> None:
    taps = list(axis.forward.taps())
    met = [(o, tap.index, i) for tap in taps for o, i in pairs(tap, axis.out, axis.size)]
    assert sorted(met) == meetings(axis)
    assert [tap.index for tap in taps] == sorted({k for _, k, _ in met})


@given(axes)
def test_taps_of_a_part_are_those_of_its_targets(axis: Axis) -> None:
    sampling = axis.forward
    everything = meetings(axis)
    for start in range(axis.out + 1):
        for stop in range(start, axis.out + 1):
            taps = sampling.taps(start, stop)
            met = [(start + t, tap.index, i) for tap in taps for t, i in pairs(tap, stop - start, axis.size)]
            assert sorted(met) == [triple for triple in everything if start <= triple[0] < stop]
        assert list(sampling.taps(start)) == list(sampling.taps(start, axis.out))
    assert list(sampling.taps(stop=1)) == list(sampling.taps(0, 1))


@given(axes)
def test_residues_together_meet_every_pair_once(axis: Axis) -> None:
    met = []
    for residue in axis.backward:
        inputs = range(residue.first, axis.size, axis.stride)
        sampling = residue.sampling
        assert (sampling.targets, sampling.sources, sampling.step) == (len(inputs), axis.out, 1)
        assert len(sampling.offsets) == len(residue.kernel_indices)
        for tap in sampling.taps():
            k = residue.kernel_indices[tap.index]
            met += [(o, k, inputs[t]) for t, o in pairs(tap, len(inputs), axis.out)]
    assert sorted(met) == meetings(axis)


@given(axes)
def test_residues_are_those_that_taps_can_reach(axis: Axis) -> None:
    reaching = {
        first: [k for k in range(axis.kernel) if (first + axis.low - k * axis.dilation) % axis.stride == 0]
        for first in range(min(axis.stride, axis.size))
    }
    found = {residue.first: list(residue.kernel_indices) for residue in axis.backward}
    assert list(found.items()) == [(first, taps) for first, taps in reaching.items() if taps]


def test_a_residue_that_no_tap_reaches_is_left_out() -> None:
    first, third = Axis(7, kernel=2, stride=3, low=1, out=3).backward
    assert first == Residue(0, range(1, 2), Sampling(3, 3, 1, range(1)))
    assert third == Residue(2, range(1), Sampling(2, 3, 1, range(1, 2)))
    assert [r.kernel_indices for r in Axis(4, kernel=3, stride=2, dilation=2, out=1).backward] == [range(3)]


def test_a_dense_layer_is_its_own_only_residue() -> None:
    axis = Axis(5, kernel=3, low=1, high=1, out=5)
    assert axis.forward == Sampling(5, 5, 1, range(-1, 2))
    assert axis.backward == (Residue(0, range(3), Sampling(5, 5, 1, range(1, -2, -1))),)


@given(axes)
def test_least_and_largest_offsets(axis: Axis) -> None:
    for sampling in (axis.forward, *(residue.sampling for residue in axis.backward)):
        assert (sampling.least, sampling.most) == (min(sampling.offsets), max(sampling.offsets))


def test_axes_take_no_more_for_millions_of_positions() -> None:
    axis = Axis(10**7, kernel=10**7, stride=10**7, out=1)
    assert bytes_of(axis.forward) < 1000
    many = Axis(10**7, kernel=3, stride=10**6, out=9)
    assert [residue.first for residue in many.backward] == [0, 1, 2]
    assert bytes_of(interpolation_geometry((10**7,), (9 * 10**6,), None, "nearest", False)) < 4000


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        (Axis(1), True),
        (Axis(5, out=5), True),
        (Axis(5, kernel=1, dilation=3, out=5), True),
        (Axis(5, out=4), False),
        (Axis(4, out=5), False),
        (Axis(5, stride=2, out=5), False),
        (Axis(5, low=1, out=5), False),
        (Axis(5, kernel=2, out=5), False),
    ],
)
def test_is_identity(axis: Axis, expected: bool) -> None:
    assert axis.forward.is_identity is expected


@given(st.integers(1, 20), st.integers(1, 20))
def test_adaptive_axis(size: int, out: int) -> None:
    axis = AdaptiveAxis(size, out)
    windows = [(math.floor(Fraction(o * size, out)), math.ceil(Fraction((o + 1) * size, out))) for o in range(out)]
    assert [axis.windows(o) for o in range(out)] == windows
    assert np.array(axis.windows(np.arange(out))).T.tolist() == [list(window) for window in windows]
    assert axis.longest == max(stop - start for start, stop in windows)
    for i, (first, stop) in enumerate(map(axis.transposed.windows, range(size))):
        assert [o for o, (start, end) in enumerate(windows) if start <= i < end] == list(range(first, stop))


# --- Resampling ---------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 60))
def test_nearest_axis_takes_the_ratio_exactly(size: int, out: int) -> None:
    axis = nearest_axis(size, out, None, Fraction(0))
    assert copied(axis) == [o * size // out for o in range(out)]
    assert axis.is_identity is (size == out)
    exact = nearest_axis(size, out, None, Fraction(1, 2))
    assert copied(exact) == [(2 * o + 1) * size // (2 * out) for o in range(out)]


def test_nearest_axis_of_sizes_whose_product_takes_63_bits() -> None:
    axis = nearest_axis(2**31 - 1, 2**31 - 1, None, Fraction(1, 2))
    last = InterpolationAxis(axis.size, 1, axis.scale, axis.first + (axis.out - 1) * axis.scale)
    assert copied(last) == [axis.size - 1]


@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 40))
def test_nearest_axis_with_a_factor(size: int, up: int, down: int) -> None:
    out = max(1, size * up // down)
    axis = nearest_axis(size, out, up / down, Fraction(0))
    assert copied(axis) == [min(o * down // up, size - 1) for o in range(out)]
    axis = nearest_axis(size, out, up / down, Fraction(1, 2))
    assert copied(axis) == [min((2 * o + 1) * down // (2 * up), size - 1) for o in range(out)]


def test_nearest_axis_steps_by_the_factor_and_not_by_the_sizes() -> None:
    assert copied(nearest_axis(3, 7, 2.5, Fraction(0))) == [0, 0, 0, 1, 1, 2, 2]
    assert copied(nearest_axis(3, 7, None, Fraction(0))) == [0, 0, 0, 1, 1, 2, 2]
    assert copied(nearest_axis(5, 4, 0.9, Fraction(0))) == [0, 1, 2, 3]
    assert copied(nearest_axis(5, 4, None, Fraction(1, 2))) == [0, 1, 3, 4]
    assert copied(nearest_axis(5, 4, 0.9, Fraction(1, 2))) == [0, 1, 2, 3]
    assert copied(nearest_axis(3, 8, 2.0, Fraction(0))) == [0, 0, 1, 1, 2, 2, 2, 2]
    assert copied(nearest_axis(11, 40, 3.7, Fraction(0)))[37] == 10  # 37 * (1 / 3.7) falls short of 10
    assert copied(nearest_axis(7, 8, 1.2, Fraction(0))) == [0, 0, 1, 2, 3, 4, 5, 5]


def copied(axis: InterpolationAxis) -> list[int]:
    """The input that each output of a nearest axis copies."""
    assert not axis.blends
    found: list[int] = nearest(axis).tolist()
    return found


def linear_axis(size: int, out: int, factor: float | None, align_corners: bool) -> InterpolationAxis:
    return filtered_axis(size, out, factor, align_corners, Filter(1))


def of_blend(axis: InterpolationAxis) -> tuple[list[int], list[int], list[float]]:
    """The inputs below and above each output of a linear axis, and the weights of the latter."""
    assert axis.blends
    low, high, weight = blended(axis)
    return low.tolist(), high.tolist(), weight.tolist()


def expect_blend(axis: InterpolationAxis, size: int, positions: list[Fraction]) -> None:
    """Output o of the axis reads between its two inputs at positions[o]."""
    assert (axis.size, axis.out) == (size, len(positions))
    for position, low, high, weight in zip(positions, *of_blend(axis), strict=True):
        assert 0 <= low < size
        assert high == min(low + 1, size - 1)
        assert 0.0 <= weight <= 1.0
        assert low * (1 - weight) + high * weight == pytest.approx(float(min(position, Fraction(size - 1))), abs=1e-9)
        if low == high:
            assert position >= size - 1 - Fraction(1, 10**9)


@given(st.integers(1, 30), st.integers(1, 30), st.none() | st.integers(1, 20), st.booleans())
def test_linear_axis(size: int, out: int, down: int | None, align_corners: bool) -> None:
    """Of given sizes, or with a factor of out / down."""
    half, scale, up = Fraction(1, 2), Fraction(size, out), out
    if down is not None:
        out = max(1, size * up // down)
        scale = Fraction(1) if out == size else Fraction(down, up)
    positions = [max(Fraction(0), (o + half) * scale - half) for o in range(out)]
    if align_corners:
        positions = [Fraction(o * (size - 1), max(out - 1, 1)) for o in range(out)]
    expect_blend(linear_axis(size, out, None if down is None else up / down, align_corners), size, positions)


def test_linear_axis_past_the_end_holds_the_last_input() -> None:
    axis = linear_axis(2, 9, 2.0, align_corners=False)
    low, high, weight = of_blend(axis)
    assert low == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert high == [1] * 9
    assert weight == [0.0, 0.25, 0.75, 0.25, 0.75, 1.0, 1.0, 1.0, 1.0]


def test_an_axis_that_keeps_its_size_is_copied() -> None:
    """As in PyTorch: 3 * 1.2 is 3 outputs, and these are the inputs."""
    axis = linear_axis(3, 3, 1.2, align_corners=False)
    assert axis.is_identity
    assert of_blend(axis) == ([0, 1, 2], [1, 2, 2], [0.0, 0.0, 0.0])


def test_interpolation_geometry() -> None:
    copy = InterpolationAxis(1, 1)
    geometry = interpolation_geometry((2, 3), (4, 3), None, "nearest", False)
    assert geometry == InterpolationGeometry(
        2, (copy, InterpolationAxis(2, 4, Fraction(1, 2)), InterpolationAxis(3, 3))
    )
    assert [copied(axis) for axis in geometry.axes] == [[0], [0, 0, 1, 1], [0, 1, 2]]
    assert (geometry.input_size, geometry.output_size) == ((1, 2, 3), (1, 4, 3))
    exact = interpolation_geometry((4,), (2,), None, "nearest-exact", False)
    assert (exact.axes[:2], copied(exact.axes[2])) == ((copy, copy), [1, 3])
    assert copied(interpolation_geometry((4,), (2,), None, "nearest", False).axes[2]) == [0, 2]
    factors = interpolation_geometry((5, 5, 5), (4, 7, 5), (0.9, 1.5, 1.1), "nearest-exact", False)
    assert [copied(axis) for axis in factors.axes] == [[0, 1, 2, 3], [0, 1, 1, 2, 3, 3, 4], [0, 1, 2, 3, 4]]
    assert copied(interpolation_geometry((7,), (8,), (1.2,), "nearest", False).axes[2]) == [0, 0, 1, 2, 3, 4, 5, 5]
    factor = interpolation_geometry((3,), (7,), (2.5,), "linear", False)
    assert factor.axes[2] == linear_axis(3, 7, 2.5, False) != linear_axis(3, 7, None, False)
    assert (factors.rank, factors.input_size, factors.output_size) == (3, (5, 5, 5), (4, 7, 5))
    aligned = interpolation_geometry((3,), (5,), None, "linear", True).axes[2]
    assert of_blend(aligned) == ([0, 0, 1, 1, 2], [1, 1, 2, 2, 2], [0.0, 0.5, 0.0, 0.5, 0.0])
    for axis in interpolation_geometry((2, 2), (4, 4), None, "bilinear", False).axes[1:]:
        assert of_blend(axis) == ([0, 0, 0, 1], [1, 1, 1, 1], [0.0, 0.25, 0.75, 0.25])


@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from([Filter(1), Filter(2, -0.75)]),
    st.booleans(),
    st.booleans(),
    st.integers(1, 5),
)
def test_matrix_of_a_filter(
    size: int, out: int, filter: Filter, align_corners: bool, antialias: bool, block: int
) -> None:
    """Rows that sum to 1 and never go back, in whatever blocks they are made; a whole position is one input's."""
    axis = filtered_axis(size, out, None, align_corners, filter, antialias)
    found = matrix(axis, np.dtype(np.float64), adjoint=False)
    ends = found.starts[1:] - 1
    dense = dense_of(found, (out, size))
    np.testing.assert_allclose(dense.sum(axis=1), 1, rtol=1e-12)
    assert (np.diff(found.columns[found.starts[:-1]]) >= 0).all()
    assert (np.diff(found.columns[ends]) >= 0).all()
    assert (np.diff(found.columns)[np.diff(found.rows) == 0] >= 0).all()
    np.testing.assert_array_equal(dense_of(matrix(axis, np.dtype(np.float64), adjoint=True), (size, out)), dense.T)
    assert max(np.diff(found.starts)) <= axis.taps
    scale = Fraction(axis.scale)
    for o in range(out if scale <= 1 or not antialias else 0):
        position = axis.first + o * scale
        if position.denominator == 1 and 0 <= position < size:
            assert dense[o].tolist() == [i == position for i in range(size)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "BLOCK_ENTRIES", block * axis.taps)
        for one, other in zip(found, matrix(axis, np.dtype(np.float64), adjoint=False), strict=True):
            np.testing.assert_array_equal(one, other)


def dense_of(found: samples.Matrix, shape: tuple[int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    dense = np.zeros(shape)
    np.add.at(dense, (found.rows, found.columns), found.weights)
    return dense


def test_filters_where_no_input_is_near() -> None:
    """What lies beyond the last input is it, or nothing."""
    for radius in (1, 2):
        axis = InterpolationAxis(2, 2, Fraction(1), Fraction(9), Filter(radius, -0.5))
        assert dense_of(matrix(axis, np.dtype(np.float64), adjoint=False), (2, 2)).tolist() == [[0, 1], [0, 1]]
        assert axis.filter is not None
        alone = replace(axis, filter=axis.filter._replace(excludes_outside=True))
        assert not dense_of(matrix(alone, np.dtype(np.float64), adjoint=False), (2, 2)).any()


@given(st.integers(1, 9), st.integers(1, 9), st.fractions(0, 4), st.fractions(-9, 9))
def test_outputs_inside(size: int, out: int, scale: Fraction, first: Fraction) -> None:
    axis = InterpolationAxis(size, out, scale, first)
    assert list(axis.inside) == [o for o in range(out) if 0 <= first + o * scale <= size - 1]
    assert axis.positions(3) == pytest.approx(float(first + 3 * scale))


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        (InterpolationAxis(3, 3), True),
        (InterpolationAxis(3, 3, first=Fraction(1, 2)), True),
        (InterpolationAxis(3, 3, first=Fraction(1)), False),
        (InterpolationAxis(3, 3, first=Fraction(-1, 2)), False),
        (InterpolationAxis(3, 3, first=Fraction(-1, 2), rounding=Fraction(1, 2)), True),
        (InterpolationAxis(3, 3, first=Fraction(1, 2), filter=Filter(1)), False),
        (InterpolationAxis(3, 3, filter=Filter(2)), True),
        (InterpolationAxis(3, 3, filter=Filter(2, stretch=1.5)), False),
        (InterpolationAxis(3, 3, Fraction(2)), False),
        (InterpolationAxis(3, 4), False),
        (InterpolationAxis(1, 1, Fraction(3), Fraction(9)), True),
    ],
)
def test_is_identity_of_a_resampling(axis: InterpolationAxis, expected: bool) -> None:
    assert axis.is_identity is expected


def test_positions_are_exact_where_63_bits_hold_them() -> None:
    half = InterpolationAxis(3, 6, Fraction(1, 2), Fraction(-1, 4))
    assert (half.parts, replace(half, rounding=Fraction(1, 3)).parts) == (4, 12)
    assert replace(half, scale=0.5).parts == replace(half, first=-0.25).parts == 0
    assert replace(half, scale=Fraction(1, 2**63)).parts == 0
    assert InterpolationAxis(9, 1, Fraction(2**63)).parts == 0


@pytest.mark.parametrize("scale", [0.6, Fraction(3, 5)])
def test_rounding_of_floats_moves_no_sample(scale: Fraction | float) -> None:
    """Every third output is at a whole position; of 0.6 as a float positions would take more than 63 bits."""
    size = 30_000
    axes = {
        rounding: resize_axis(size, 18_000, scale, coordinate_transformation_mode="asymmetric", nearest_mode=rounding)
        for rounding in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
    }
    assert (axes["ceil"].parts == 0) is isinstance(scale, float)
    outputs = np.arange(18_000)
    assert copied(axes["floor"]) == (outputs * 5 // 3).tolist()
    assert copied(axes["ceil"]) == np.minimum(-(-outputs * 5 // 3), size - 1).tolist()
    for rounding in ("round_prefer_floor", "round_prefer_ceil"):
        assert copied(axes[rounding]) == np.minimum((outputs * 10 + 3) // 6, size - 1).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "lanczos"}, "mode is 'lanczos', expected 'nearest', 'linear' or 'cubic'"),
        ({"nearest_mode": "up"}, "there is no nearest_mode 'up'"),
        ({"coordinate_transformation_mode": "pixel"}, "there is no coordinate_transformation_mode 'pixel'"),
        ({"coordinate_transformation_mode": "tf_crop_and_resize", "roi": (0.5, 0.25)},
         "roi is (0.5, 0.25), expected an end that is not before the start"),
    ],
)  # fmt: skip
def test_resize_axis_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^resize_axis: {re.escape(message)}$"):
        resize_axis(4, 8, **options)
