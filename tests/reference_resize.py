"""The oracle of ONNX's Resize along one axis: a dense matrix, from the formulas of version 19, in exact positions."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from reference import Array, filter_weight

COORDINATES = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize",
)  # fmt: skip
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
HALF = Fraction(1, 2)


def resize_position(o: int, size: int, out: int, scale: Fraction, coordinates: str, roi: Any = (0, 1)) -> Fraction:
    """The position of output o; ``size * scale``, which is `out` before it is rounded, is the length resized."""
    length = size * scale
    if coordinates == "align_corners":
        return Fraction(0) if length == 1 else o * (size - 1) / (length - 1)
    if coordinates == "asymmetric":
        return o / scale
    if coordinates == "tf_crop_and_resize":
        start, end = map(Fraction, roi)
        if length <= 1:
            return HALF * (start + end) * (size - 1)
        return start * (size - 1) + o * (end - start) * (size - 1) / (length - 1)
    if coordinates == "pytorch_half_pixel" and length <= 1:
        return Fraction(0)
    position = (o + HALF) / scale - HALF
    if coordinates == "half_pixel_symmetric":
        position += Fraction(size, 2) * (1 - out / length)
    return position


def rounded(position: Fraction, rounding: str) -> int:
    """The nearest input; "round…" of a half is the one below, or above."""
    if rounding == "floor":
        return math.floor(position)
    if rounding == "ceil":
        return math.ceil(position)
    return math.ceil(position - HALF) if rounding == "round_prefer_floor" else math.floor(position + HALF)


def resize_matrix(
    size: int,
    out: int,
    scale: Fraction | None = None,
    *,
    mode: str,
    coordinates: str = "half_pixel",
    rounding: str = "round_prefer_floor",
    coefficient: float = -0.75,
    exclude_outside: bool = False,
    antialias: bool = False,
    roi: Any = (0, 1),
) -> Array:
    """The matrix [out, size]; without `exclude_outside` what is outside is the border."""
    matrix = np.zeros((out, size))
    scale = Fraction(out, size) if scale is None else scale
    squeeze = min(float(scale), 1.0) if antialias else 1.0
    reach = math.ceil(2 / squeeze) + 1
    for o in range(out):
        position = resize_position(o, size, out, scale, coordinates, roi)
        if mode == "nearest":
            matrix[o, min(max(rounded(position, rounding), 0), size - 1)] = 1
            continue
        near = math.floor(position)
        for i in range(near - reach, near + reach + 1):
            if exclude_outside and not 0 <= i < size:
                continue
            distance = float(i - position) * squeeze
            weight = filter_weight(distance, coefficient if mode == "cubic" else None)
            matrix[o, min(max(i, 0), size - 1)] += weight
        matrix[o] /= matrix[o].sum() or 1
    return matrix
