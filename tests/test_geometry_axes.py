"""Positions read by the axes of windows and of resamplings, against loops over every output, tap and input."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpucnn.geometry import (
    AdaptiveAxis,
    Axis,
    InterpolationAxis,
    InterpolationGeometry,
    Residue,
    Sampling,
    Tap,
)
from gpucnn.geometry.axes import linear_axis, nearest_axis
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
    taps = list(axis.taps())
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
def test_residues_share_out_inputs_and_taps(axis: Axis) -> None:
    inputs = [i for residue in axis.backward for i in range(residue.first, axis.size, axis.stride)]
    assert sorted(inputs) == list(range(axis.size))
    assert [residue.first for residue in axis.backward] == list(range(min(axis.stride, axis.size)))
    for residue in axis.backward:
        assert residue.kernel_indices == tuple(
            k for k in range(axis.kernel) if (residue.first + axis.low - k * axis.dilation) % axis.stride == 0
        )


def test_a_residue_that_no_tap_reaches_reads_nothing() -> None:
    nearest, second, third = Axis(7, kernel=2, stride=3, low=1, out=3).backward
    assert nearest == Residue(0, (1,), Sampling(3, 3, 1, (0,)))
    assert second == Residue(1, (), Sampling(2, 3, 1, ()))
    assert third == Residue(2, (0,), Sampling(2, 3, 1, (1,)))
    assert list(second.sampling.taps()) == []
    assert [r.kernel_indices for r in Axis(4, kernel=3, stride=2, dilation=2, out=1).backward] == [(0, 1, 2), ()]


def test_a_dense_layer_is_its_own_only_residue() -> None:
    axis = Axis(5, kernel=3, low=1, high=1, out=5)
    assert axis.forward == Sampling(5, 5, 1, (-1, 0, 1))
    assert axis.backward == (Residue(0, (0, 1, 2), Sampling(5, 5, 1, (1, 0, -1))),)


@given(axes)
def test_counts_are_the_taps_inside(axis: Axis) -> None:
    for padded in (False, True):
        inside = range(-axis.low, axis.size + axis.high) if padded else range(axis.size)
        expected = [
            sum(o * axis.stride + k * axis.dilation - axis.low in inside for k in range(axis.kernel))
            for o in range(axis.out)
        ]
        assert axis.counts(padded=padded) == tuple(expected)


@given(axes)
def test_first_inputs(axis: Axis) -> None:
    met = meetings(axis)
    expected = [min((i for output, _, i in met if output == o), default=-1) for o in range(axis.out)]
    assert axis.first_inputs() == tuple(expected)


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
    assert axis.windows == tuple(windows)
    assert axis.first_inputs() == tuple(start for start, _ in windows)
    assert axis.counts(padded=True) == axis.counts(padded=False) == tuple(stop - start for start, stop in windows)
    met = [(o, k, i) for k, targets, sources in axis.taps() for o, i in zip(targets, sources, strict=True)]
    assert sorted(met) == [(o, i - start, i) for o, (start, stop) in enumerate(windows) for i in range(start, stop)]
    assert [k for k, _, _ in axis.taps()] == list(range(max(axis.counts(padded=False))))


# --- Resampling ---------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 60))
def test_nearest_axis_takes_the_ratio_exactly(size: int, out: int) -> None:
    axis = nearest_axis(size, out, None, Fraction(0))
    assert axis == InterpolationAxis(size, out, tuple(o * size // out for o in range(out)))
    assert axis.high == axis.high_weight == ()
    exact = nearest_axis(size, out, None, Fraction(1, 2))
    assert exact == InterpolationAxis(size, out, tuple((2 * o + 1) * size // (2 * out) for o in range(out)))


@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 40))
def test_nearest_axis_with_a_factor(size: int, up: int, down: int) -> None:
    out = max(1, size * up // down)
    low = nearest_axis(size, out, up / down, Fraction(0)).low
    assert low == tuple(min(o * down // up, size - 1) for o in range(out))
    low = nearest_axis(size, out, up / down, Fraction(1, 2)).low
    assert low == tuple(min((2 * o + 1) * down // (2 * up), size - 1) for o in range(out))


def test_nearest_axis_steps_by_the_factor_and_not_by_the_sizes() -> None:
    assert nearest_axis(3, 7, 2.5, Fraction(0)).low == (0, 0, 0, 1, 1, 2, 2)
    assert nearest_axis(3, 7, None, Fraction(0)).low == (0, 0, 0, 1, 1, 2, 2)
    assert nearest_axis(5, 4, 0.9, Fraction(0)).low == (0, 1, 2, 3)
    assert nearest_axis(5, 4, None, Fraction(1, 2)).low == (0, 1, 3, 4)
    assert nearest_axis(5, 4, 0.9, Fraction(1, 2)).low == (0, 1, 2, 3)
    assert nearest_axis(3, 8, 2.0, Fraction(0)).low == (0, 0, 1, 1, 2, 2, 2, 2)
    assert nearest_axis(11, 40, 3.7, Fraction(0)).low[37] == 10  # 37 * (1 / 3.7) falls short of 10
    assert nearest_axis(7, 8, 1.2, Fraction(0)).low == (0, 0, 1, 2, 3, 4, 5, 5)


def expect_blend(axis: InterpolationAxis, size: int, positions: list[Fraction]) -> None:
    """Output o of the axis reads between its two inputs at positions[o]."""
    assert (axis.size, axis.out) == (size, len(positions))
    assert len(axis.low) == len(axis.high) == len(axis.high_weight) == len(positions)
    for position, low, high, weight in zip(positions, axis.low, axis.high, axis.high_weight, strict=True):
        assert 0 <= low < size
        assert high == min(low + 1, size - 1)
        assert 0.0 <= weight <= 1.0
        assert low * (1 - weight) + high * weight == pytest.approx(float(min(position, Fraction(size - 1))), abs=1e-9)
        if low == high:
            assert position >= size - 1 - Fraction(1, 10**9)


@given(st.integers(1, 30), st.integers(1, 30))
def test_linear_axis(size: int, out: int) -> None:
    half = Fraction(1, 2)
    positions = [max(Fraction(0), (o + half) * size / out - half) for o in range(out)]
    expect_blend(linear_axis(size, out, None, align_corners=False), size, positions)


@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from([None, 0.3, 2.0]))
def test_linear_axis_with_aligned_corners(size: int, out: int, factor: float | None) -> None:
    positions = [Fraction(o * (size - 1), max(out - 1, 1)) for o in range(out)]
    expect_blend(linear_axis(size, out, factor, align_corners=True), size, positions)


@given(st.integers(1, 30), st.integers(1, 20), st.integers(1, 20))
def test_linear_axis_with_a_factor(size: int, up: int, down: int) -> None:
    half = Fraction(1, 2)
    out = max(1, size * up // down)
    scale = Fraction(1) if out == size else Fraction(down, up)
    positions = [max(Fraction(0), (o + half) * scale - half) for o in range(out)]
    expect_blend(linear_axis(size, out, up / down, align_corners=False), size, positions)


def test_linear_axis_past_the_end_holds_the_last_input() -> None:
    axis = linear_axis(2, 9, 2.0, align_corners=False)
    assert axis.low == (0, 0, 0, 1, 1, 1, 1, 1, 1)
    assert axis.high == (1,) * 9
    assert axis.high_weight == (0.0, 0.25, 0.75, 0.25, 0.75, 1.0, 1.0, 1.0, 1.0)


def test_an_axis_that_keeps_its_size_is_copied() -> None:
    """As in PyTorch: 3 * 1.2 is 3 outputs, and these are the inputs."""
    axis = linear_axis(3, 3, 1.2, align_corners=False)
    assert axis == InterpolationAxis(3, 3, (0, 1, 2), (1, 2, 2), (0.0, 0.0, 0.0))


def test_interpolation_geometry() -> None:
    copy = InterpolationAxis(1, 1, (0,))
    nearest = interpolation_geometry((2, 3), (4, 3), None, "nearest", False)
    assert nearest == InterpolationGeometry(
        2, (copy, InterpolationAxis(2, 4, (0, 0, 1, 1)), InterpolationAxis(3, 3, (0, 1, 2)))
    )
    assert (nearest.input_size, nearest.output_size) == ((1, 2, 3), (1, 4, 3))
    exact = interpolation_geometry((4,), (2,), None, "nearest-exact", False)
    assert exact == InterpolationGeometry(1, (copy, copy, InterpolationAxis(4, 2, (1, 3))))
    assert interpolation_geometry((4,), (2,), None, "nearest", False).axes[2].low == (0, 2)
    factors = interpolation_geometry((5, 5, 5), (4, 7, 5), (0.9, 1.5, 1.1), "nearest-exact", False)
    assert [axis.low for axis in factors.axes] == [(0, 1, 2, 3), (0, 1, 1, 2, 3, 3, 4), (0, 1, 2, 3, 4)]
    factor = interpolation_geometry((7,), (8,), (1.2,), "nearest", False)
    assert factor.axes[2].low == (0, 0, 1, 2, 3, 4, 5, 5)
    factor = interpolation_geometry((3,), (7,), (2.5,), "linear", False)
    assert factor.axes[2] == linear_axis(3, 7, 2.5, False) != linear_axis(3, 7, None, False)
    assert (factors.rank, factors.input_size, factors.output_size) == (3, (5, 5, 5), (4, 7, 5))
    assert interpolation_geometry((3,), (5,), None, "linear", True).axes[2] == InterpolationAxis(
        3, 5, (0, 0, 1, 1, 2), (1, 1, 2, 2, 2), (0.0, 0.5, 0.0, 0.5, 0.0)
    )
    assert (
        interpolation_geometry((2, 2), (4, 4), None, "bilinear", False).axes[1:]
        == (InterpolationAxis(2, 4, (0, 0, 0, 1), (1, 1, 1, 1), (0.0, 0.25, 0.75, 0.25)),) * 2
    )
