"""Images in another size."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from math import floor
from typing import Any

import numpy as np

import gpucnn.functional as F
from gpucnn.backends.dtypes import FLOATING
from gpucnn.geometry import InterpolationAxis, resize_axis
from gpucnn.onnx.operators.arrays import axes_of, ints, namespace
from gpucnn.onnx.operators.registry import Array, Host, operator, refuse

CROPPED = "tf_crop_and_resize"
_axis = lru_cache(maxsize=256)(resize_axis)


@operator("Resize", 11)
def resize(
    x: Array,
    roi: Host = None,
    scales: Host = None,
    sizes: Host = None,
    *,
    antialias: int = 0,
    axes: list[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Array:
    """The array in other sizes, by scales or by the sizes themselves."""
    chosen = axes_of(range(x.ndim) if axes is None else axes, x.ndim)
    outs, factors = _targets([x.shape[axis] for axis in chosen], scales, sizes, keep_aspect_ratio_policy)
    edges = [0.0] * len(chosen) + [1.0] * len(chosen)
    if coordinate_transformation_mode == CROPPED and roi is not None and roi.size:
        edges = [float(edge) for edge in roi.tolist()]
    plan: dict[int, InterpolationAxis] = {}
    for at, axis in enumerate(chosen):
        made = _axis(
            x.shape[axis],
            outs[at],
            factors[at],
            mode=mode,
            coordinate_transformation_mode=coordinate_transformation_mode,
            nearest_mode=nearest_mode,
            cubic_coeff_a=cubic_coeff_a,
            exclude_outside=bool(exclude_outside),
            antialias=bool(antialias),
            roi=(edges[at], edges[at + len(chosen)]),
        )
        if not made.is_identity:
            plan[axis] = made
    y = _resampled(x, plan)
    return _extrapolated(y, plan, extrapolation_value) if coordinate_transformation_mode == CROPPED else y


def _targets(now: list[int], scales: Any, sizes: Any, policy: str) -> tuple[list[int], list[Fraction | None]]:
    """The new sizes of axes, and their scales where these set the coordinates."""
    if scales is not None and scales.size:
        factors = [Fraction(float(scale)) for scale in scales.tolist()]
        if len(factors) != len(now) or min(factors) <= 0:
            raise ValueError(f"scales are {scales.tolist()}, expected {len(now)} of more than 0")
        return [floor(size * factor) for size, factor in zip(now, factors, strict=True)], list(factors)
    if sizes is None or sizes.size != len(now):
        raise ValueError(f"sizes are {None if sizes is None else sizes.tolist()}, expected {len(now)}, or scales")
    wanted = ints(sizes)
    if policy == "stretch":
        return wanted, [None] * len(now)
    if policy not in ("not_larger", "not_smaller"):
        raise refuse(f"keep_aspect_ratio_policy is {policy!r}, expected stretch, not_larger or not_smaller")
    ratios = [Fraction(out, size) for out, size in zip(wanted, now, strict=True)]
    ratio = min(ratios) if policy == "not_larger" else max(ratios)
    return [floor(ratio * size + Fraction(1, 2)) for size in now], [ratio] * len(now)


def _resampled(x: Array, plan: dict[int, InterpolationAxis]) -> Array:
    """X with the axes of the plan resampled, any three of them."""
    if not plan:
        return x
    dtype = x.dtype
    if dtype.name not in FLOATING and any(axis.blends for axis in plan.values()):
        return _resampled(x.astype(np.float32), plan).astype(dtype)
    if 3 <= x.ndim <= 5 and min(plan) > 1:
        space = range(2, x.ndim)
        return F.resample(x, [plan.get(axis) or InterpolationAxis(x.shape[axis], x.shape[axis]) for axis in space])
    if len(plan) > 3:
        raise refuse(f"resizes {len(plan)} axes, expected at most 3")
    xp, last = namespace(x), tuple(range(-len(plan), 0))
    moved = xp.moveaxis(x, tuple(plan), last)
    kept = moved.shape[: -len(plan)]
    y = F.resample(moved.reshape(1, -1, *moved.shape[-len(plan) :]), list(plan.values()))
    return xp.moveaxis(y.reshape(*kept, *y.shape[2:]), last, tuple(plan))


def _extrapolated(y: Array, plan: dict[int, InterpolationAxis], value: float) -> Array:
    """The value where a position is outside of the input."""
    for axis, made in plan.items():
        at = np.asarray(made.positions(np.arange(made.out)))
        for place in np.flatnonzero((at < 0) | (at > made.size - 1)).tolist():
            y[(slice(None),) * axis + (slice(place, place + 1),)] = value
    return y


@operator("Resize", 10)
def resize_of_old(x: Array, scales: Host, *, mode: str = "nearest") -> Array:
    """As `resize`, by scales, with the first corners in one place."""
    return resize(x, None, scales, None, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor")


@operator("Upsample", 9)
def upsample(x: Array, scales: Host, *, mode: str = "nearest") -> Array:
    """As `resize_of_old`."""
    return resize_of_old(x, scales, mode=mode)


@operator("Upsample", 7)
def upsample_by_attribute(x: Array, *, scales: list[float], mode: str = "nearest") -> Array:
    """As `upsample`."""
    return resize_of_old(x, np.array(scales, np.float32), mode=mode)


# --- At the positions of a grid ---------------------------------------------------------------------------------------

_SAMPLING = {
    "linear": "bilinear",
    "bilinear": "bilinear",
    "cubic": "bicubic",
    "bicubic": "bicubic",
    "nearest": "nearest",
}


@operator("GridSample")
def grid_sample(
    x: Array, grid: Array, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Array:
    """Images or volumes at given positions; version 16 has the modes under PyTorch's names."""
    if mode not in _SAMPLING:
        raise refuse(f"mode is {mode!r}, expected one of {', '.join(_SAMPLING)}")
    if mode in ("cubic", "bicubic") and x.ndim > 4:
        raise refuse(f"mode is {mode!r} for {x.ndim - 2}-d images, expected 2-d ones")
    return F.grid_sample(x, grid.astype(x.dtype, copy=False), _SAMPLING[mode], padding_mode, bool(align_corners))


@operator("AffineGrid")
def affine_grid(theta: Array, size: Host, *, align_corners: int = 0) -> Array:
    """The grid of an affine map."""
    return F.affine_grid(theta, tuple(ints(size)), bool(align_corners))
