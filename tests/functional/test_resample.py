"""Resampling by any axes: those of ONNX's Resize, against its formulas and its reference implementation."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend
from hypothesis import assume, given
from hypothesis import strategies as st
from properties import run
from reference_resize import COORDINATES, ROUNDINGS, resize_matrix, resize_position
from sample import examples
from strategies import ORDERS, arranged, numbers
from tolerances import assert_close

import gpucnn.functional as F
from gpucnn.geometry import InterpolationAxis, resize_axis

Array = np.ndarray[Any, Any]


@st.composite
def resizes(draw: st.DrawFn, modes: tuple[str, ...] = ("nearest", "linear", "cubic")) -> dict[str, Any]:
    """The size and the options of an axis, by the names of `resize_matrix`."""
    size, out, scale = draw(st.integers(1, 14)), draw(st.integers(1, 20)), None
    if draw(st.booleans()):
        scale = draw(st.fractions(Fraction(1, 9), 4, max_denominator=12))
        out = int(size * scale)
        assume(out)
    roi = sorted(draw(st.tuples(*[st.integers(-4, 20)] * 2)))
    mode = draw(st.sampled_from(modes))
    return {
        "size": size, "out": out, "scale": scale, "mode": mode, "coordinates": draw(st.sampled_from(COORDINATES)),
        "rounding": draw(st.sampled_from(ROUNDINGS)), "coefficient": draw(st.sampled_from([-0.75, -0.5])),
        "exclude_outside": draw(st.booleans()), "antialias": mode != "nearest" and draw(st.booleans()),
        "roi": tuple(Fraction(edge, 16) for edge in roi),
    }  # fmt: skip


def axis_of(drawn: dict[str, Any]) -> InterpolationAxis:
    names = {
        "coordinates": "coordinate_transformation_mode",
        "rounding": "nearest_mode",
        "coefficient": "cubic_coeff_a",
    }
    return resize_axis(**{names.get(key, key): value for key, value in drawn.items()})


@pytest.mark.table(len(COORDINATES))
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_positions_are_those_of_the_formulas(coordinates: str) -> None:
    roi = Fraction(1, 4), Fraction(9, 8)
    for size, scale in product(range(1, 9), (None, Fraction(1, 3), Fraction(3, 5), Fraction(1), Fraction(7, 4))):
        out = 5 if scale is None else int(size * scale)
        if out:
            axis = resize_axis(
                size, out, scale, mode="linear", coordinate_transformation_mode=coordinates, roi=tuple(map(float, roi))
            )
            factor = Fraction(out, size) if scale is None else scale
            expected = [resize_position(o, size, out, factor, coordinates, roi) for o in range(out)]
            assert [axis.first + o * axis.scale for o in range(out)] == expected


@examples(400)
@given(drawn=st.lists(resizes(), min_size=1, max_size=3), order=st.sampled_from(ORDERS), seed=st.integers(0, 99))
def test_resample_is_a_product_with_the_matrix_of_each_axis(
    backend: ArrayBackend, drawn: list[dict[str, Any]], order: str, seed: int
) -> None:
    axes = [axis_of(each) for each in drawn]
    x, grad = (
        arranged(numbers(np.random.default_rng(seed), (2, 3, *sizes), "float64"), order)
        for sizes in ([axis.size for axis in axes], [axis.out for axis in axes])
    )
    y, grad_x = x, grad
    for place, each in enumerate(drawn, start=2):
        matrix = resize_matrix(**each)
        y = np.moveaxis(np.moveaxis(y, place, -1) @ matrix.T, -1, place)
        grad_x = np.moveaxis(np.moveaxis(grad_x, place, -1) @ matrix, -1, place)
    assert_close(run(backend, F.resample, x, axes), y)
    assert_close(run(backend, F.resample_backward, grad, x, axes)[0], grad_x)


@examples(200)
@given(resizes())
def test_the_reference_of_onnx_agrees(drawn: dict[str, Any]) -> None:
    """But where a position is an integer or halfway between two: there the reference goes by the rounding of floats."""
    onnx = pytest.importorskip("onnx")
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
    size, out, scale, coordinates = (drawn[name] for name in ("size", "out", "scale", "coordinates"))
    factor = Fraction(out, size) if scale is None else scale
    assume(coordinates != "pytorch_half_pixel" or size * factor > 1)  # else it is at -1/2, by the formula at 0
    drawn |= {"exclude_outside": drawn["exclude_outside"] and drawn["mode"] == "cubic"}
    positions = [resize_position(o, size, out, factor, coordinates, drawn["roi"]) for o in range(out)]
    clear = [(2 * position).denominator > 1 for position in positions]
    axis = axis_of(drawn)
    x = np.random.default_rng(size).standard_normal((1, 1, size))
    y = F.resample(x, [axis])[0, 0]
    if coordinates == "tf_crop_and_resize":
        y[[o not in axis.inside for o in range(out)]] = 7
    names = {
        "rounding": "nearest_mode",
        "coordinates": "coordinate_transformation_mode",
        "coefficient": "cubic_coeff_a",
    }
    attributes = {names.get(key, key): int(value) if isinstance(value, bool) else value for key, value in drawn.items()}
    for key in ("size", "out", "scale", "roi"):
        del attributes[key]
    inputs = {"x": x[0, 0], "roi": np.array([float(edge) for edge in drawn["roi"]])}
    inputs |= {"sizes": np.array([out])} if scale is None else {"scales": np.array([float(scale)])}
    names_of_inputs = [name if name in inputs else "" for name in ("x", "roi", "scales", "sizes")]
    node = onnx.helper.make_node("Resize", names_of_inputs, ["y"], **attributes, extrapolation_value=7.0)
    rounding = 1e-5 if drawn["mode"] == "cubic" else 1e-12  # it sums the terms of a cubic's weights in float32
    np.testing.assert_allclose(y[clear], evaluator(node).run(None, inputs)[0][clear], rtol=0, atol=rounding)
