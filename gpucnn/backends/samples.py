"""Sample positions and weights of an interpolation as arrays, per axis, from a geometry's formulas."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn.geometry import InterpolationAxis

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


def nearest(axis: InterpolationAxis) -> Ints:
    """The input [out] that each output of an axis copies."""
    outputs, last = np.arange(axis.out), axis.size - 1
    if isinstance(axis.scale, float):
        rounded: Ints = np.minimum((outputs + float(axis.centre)) * axis.scale, last).astype(np.int64)
        return rounded
    (step, steps), (centre, centres) = axis.scale.as_integer_ratio(), axis.centre.as_integer_ratio()
    return np.minimum((outputs * centres + centre) * step // (steps * centres), last)


def blended(axis: InterpolationAxis) -> tuple[Ints, Ints, Floats]:
    """The inputs [out] below and above each output's position, and the weight [out] of the one above."""
    last, centre = axis.size - 1, float(axis.centre)
    position = np.maximum((np.arange(axis.out) + centre) * float(axis.scale) - centre, 0.0)
    low = np.minimum(position, last).astype(np.int64)
    return low, np.minimum(low + 1, last), np.minimum(position - low, 1.0)
