"""Norms in C++, over x seen as [N, G, C, P] (see `NormGeometry`).

There are kernels for three orders of an array's values, the innermost of which are neighbours:

======  ==================  ==========================================================================
planes  [N, G, C, P]        images in C order
lanes   [N, P, G * C]       channels-last images; batch norm of short planes, as lanes [N, G * C * P]
rows    [N, G, C]           layer and RMS norm, and group norm without positions
======  ==================  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from gpucnn.backends.base import Epilogue
from gpucnn.backends.cpu.elementwise import ACTIVATIONS
from gpucnn.backends.cpu.library import Kernel, Launch, Value, launch, strides
from gpucnn.backends.dtypes import name_of
from gpucnn.backends.layout import channels_are_inner
from gpucnn.backends.listening import note_computed, read
from gpucnn.backends.numpy import normalization as plain
from gpucnn.backends.numpy import pool
from gpucnn.backends.numpy.memory import Array
from gpucnn.geometry import NormGeometry

ROW = (2, 3)
SHORT_PLANE = 16  # values; shorter planes of a batch are lanes
SHORT_ROW = 16  # values of a row of which a vector of rows is transposed: SHORT of norm_rows.cpp
LONG_ROW = 8192  # values of a row from which on gradients of weights are summed column by column
CACHED_BYTES = 1 << 19  # of a strip of lanes that is read again from the cache
MIN_STRIP = 128  # lanes, so that a row of a strip is read at the speed of memory
MIN_ITEMS = 16  # strips, if they can be so wide
MIN_ROWS = 32  # that an item has, to pay for what it prepares for each lane
MAX_PARTS = 32  # arrays of sums, which one thread adds up
MAX_LANES = 16  # values of a vector, of which the last one of a row may be no whole one

_FORWARD = {name: Kernel(f"norm_{name}", f"norm_{name}_forward") for name in ("planes", "lanes", "rows")}
_APPLY = {name: Kernel(f"norm_{name}", f"norm_{name}_apply") for name in ("planes", "lanes", "rows")}
_BACKWARD = {name: Kernel(f"norm_{name}", f"norm_{name}_backward") for name in ("planes", "lanes", "rows")}
_TOTALS, _MOVING_AVERAGE = Kernel("norm_totals"), Kernel("moving_average")
_MOMENTS, _COMBINE = Kernel("norm_lanes", "norm_lanes_moments"), Kernel("norm_lanes", "norm_lanes_combine")
_SHARES, _COLUMNS = Kernel("norm_rows", "norm_rows_shares"), Kernel("norm_rows", "norm_rows_columns")
_SUMS, _GRADIENT = Kernel("norm_lanes", "norm_lanes_sums"), Kernel("norm_lanes", "norm_lanes_gradient")


# --- Primitives ---------------------------------------------------------------------------------------------------


def norm_statistics(x: Array, mean: Array, var: Array, rstd: Array, geometry: NormGeometry, eps: float) -> None:
    """Mean, biased variance and ``1 / sqrt(var + eps)`` over ``geometry.axes``, as axes of size 1."""
    _forward(x, None, None, None, (mean, var, rstd), geometry, eps, Epilogue())


def norm_apply(
    x: Array,
    mean: Array,
    var: Array,
    weight: Array | None,
    bias: Array | None,
    y: Array,
    eps: float,
    epilogue: Epilogue,
) -> None:
    """Y = epilogue of ``(x - mean) / sqrt(var + eps) * weight + bias``."""
    _apply(None, x, mean, var, weight, bias, y, eps, epilogue)


def norm_forward(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    y: Array,
    mean: Array,
    var: Array,
    rstd: Array,
    geometry: NormGeometry,
    eps: float,
    epilogue: Epilogue,
) -> None:
    """As `norm_apply` with x's own statistics, which are returned too: mean, variance, rstd."""
    _forward(x, weight, bias, y, (mean, var, rstd), geometry, eps, epilogue)


def norm_activation_backward(
    grad_y: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None,
    bias: Array | None,
    grad: Array,
    epilogue: Epilogue,
) -> None:
    """Grad = the gradient with respect to the activation's input, whose signs are recomputed."""
    _apply(grad_y, x, mean, rstd, weight, bias, grad, None, epilogue)


def norm_backward(
    grad_y: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None,
    grad_x: Array | None,
    grad_weight: Array | None,
    grad_bias: Array | None,
    geometry: NormGeometry,
) -> None:
    """Gradients of weight and bias, and grad_x by the closed form, with g = grad_y * weight and h = (x - mean) * rstd:

    ``grad_x = rstd * (g - mean(g) - h * mean(g * h))``: the contributions through mean and variance are subtracted.
    Without a mean there is no mean(g).
    """
    form = _form(x, geometry.axes == ROW)
    arrays = {"grad_y": form.of(grad_y), "x": form.of(x), **form.parameters(mean=mean, rstd=rstd, weight=weight)}
    arrays |= {"grad_x": form.place(grad_x), "grad_weight": grad_weight, "grad_bias": grad_bias}
    _backward(form, arrays, geometry.centred)
    form.give(arrays["grad_x"], grad_x)


def moving_average(found: Array, average: Array, factor: float, momentum: float) -> None:
    """Average [C] = ``(1 - momentum) * average + momentum * mean``, where that is the mean over N of found * factor."""
    if average.dtype != found.dtype:
        note_computed()
        return plain.moving_average(found, average, factor, momentum)
    n, c = found.shape[:2]
    values = {"n": n, "c": c, **strides("average", average, "c"), "factor": factor, "momentum": momentum}
    arrays = {"found": np.ascontiguousarray(found), "average": average}
    launch(_MOVING_AVERAGE, name_of(found.dtype), values, arrays, workspace=c)


# --- Launches -----------------------------------------------------------------------------------------------------


def _forward(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    y: Array | None,
    statistics: tuple[Array, Array, Array],
    geometry: NormGeometry,
    eps: float,
    epilogue: Epilogue,
) -> None:
    """Statistics and, where there is an array for it, y."""
    mean, var, rstd = statistics
    form = _form(x, geometry.axes == ROW)
    arrays = {"x": form.of(x), "mean": mean, "var": var, "rstd": rstd}
    if form.name == "lanes" and form.is_split:
        partial = pool.empty((form.parts, 2, form.affine), np.float64)
        form.launch(_MOMENTS, {**arrays, "partial": partial}, form.parts)
        form.launch(_COMBINE, {**arrays, "partial": partial}, 1, eps=eps, parts=form.parts)
        if y is not None:
            _apply(None, x, mean, rstd, weight, bias, y, None, epilogue)
        return
    arrays |= form.parameters(weight=weight, bias=bias)
    arrays |= {"residual": form.of(epilogue.residual), "y": form.place(y)}
    form.launch(_FORWARD[form.name], arrays, form.items, eps=eps, centred=geometry.centred, **_fields(epilogue))
    form.give(arrays["y"], y)


def _apply(
    grad_y: Array | None,
    x: Array,
    mean: Array,
    var: Array,
    weight: Array | None,
    bias: Array | None,
    y: Array,
    eps: float | None,
    epilogue: Epilogue,
) -> None:
    """The epilogue's values, or with grad_y the gradient with respect to the activation's input.

    Where eps is None, rstd is passed as var.
    """
    form = _form(x, len(mean) > 1)
    arrays = {"grad_y": form.of(grad_y), "x": form.of(x), "residual": form.of(epilogue.residual)}
    arrays |= form.parameters(mean=mean, var=var, weight=weight, bias=bias)
    arrays["y"] = form.place(y)
    form.launch(_APPLY[form.name], arrays, form.passes, eps=eps or 0.0, has_rstd=eps is None, **_fields(epilogue))
    form.give(arrays["y"], y)


def _backward(form: _Form, arrays: dict[str, Array | None], centred: bool) -> None:
    """The gradients that there are arrays for."""
    by_columns, in_two_passes = (form.is_split and form.name == name for name in ("rows", "lanes"))
    parts = 1 if by_columns else form.parts
    arrays["sums"] = pool.empty((parts, 2, form.affine), np.float64)
    if by_columns:
        rstd: Any = arrays["rstd"]
        arrays |= {name: pool.empty(rstd.shape, rstd.dtype) for name in ("of_h", "shift")}
        form.launch(_SHARES, arrays, form.items, centred=centred)
        form.launch(_COLUMNS, arrays, form.parts)
    elif in_two_passes:
        form.launch(_SUMS, arrays, parts)
    else:
        form.launch(_BACKWARD[form.name], arrays, form.items, centred=centred)
    if in_two_passes or arrays["grad_weight"] is not None:
        form.launch(_TOTALS, arrays, 1, parts=parts, affine=form.affine)
    if in_two_passes and arrays["grad_x"] is not None:
        form.launch(_GRADIENT, arrays, form.passes)


def _fields(epilogue: Epilogue) -> dict[str, Value]:
    return {"activation": ACTIVATIONS[epilogue.activation], "negative_slope": epilogue.negative_slope}


# --- Forms --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Form:
    """An order of the values of arrays, and how kernels share the work."""

    name: str
    dtype: str
    is_last: bool  # whether channels are innermost
    values: Mapping[str, int]  # fields of the kernels' structure
    affine: int  # weights, or lanes that have one
    items: int  # that have whole statistics
    passes: int  # items of a pass value by value
    parts: int  # arrays of sums that are added up; or, where sums are split, their items
    is_split: bool  # whether gradients take two passes over all values; statistics of lanes too
    workspace: int = 0

    def launch(self, kernel: Kernel, arrays: Mapping[str, Array | None], items: int, **values: Value) -> None:
        _launch_of(self, kernel, items, tuple(values.items()))(**arrays)

    def of(self, array: Array | None) -> Array | None:
        """An array [N, G, C, P] in this order and without gaps: itself, or a copy."""
        return None if array is None else np.ascontiguousarray(self._seen(array))

    def place(self, array: Array | None) -> Array | None:
        """Where a result for an array [N, G, C, P] is written in this order: the array itself, or a new one."""
        if array is None or self._seen(array).flags.c_contiguous:
            return array
        return np.empty(self._seen(array).shape, self.dtype)

    def give(self, result: Array | None, array: Array | None) -> None:
        """Copy a result to the array that `place` was found for."""
        if array is not None and result is not array:
            self._seen(array)[...] = result

    def parameters(self, **arrays: Array | None) -> dict[str, Array]:
        """Statistics and parameters without gaps, and those that are missing."""
        given = {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}
        missing = {name: _missing(name, self.affine, self.dtype) for name in arrays.keys() - given.keys()}
        read(*missing.values())
        return given | missing

    def _seen(self, array: Array) -> Array:
        return array.transpose(0, 3, 1, 2) if self.is_last else array


_DEFAULTS: dict[str, Value] = {
    "eps": 0.0, "has_rstd": True, "activation": 0, "negative_slope": 0.0, "centred": True, "per_affine": 1,
}  # fmt: skip


@lru_cache(maxsize=1024)
def _launch_of(form: _Form, kernel: Kernel, items: int, values: tuple[tuple[str, Value], ...]) -> Launch:
    """The launch of a form, which there is one of for each layout; to make it takes as long as a small norm."""
    given = {**_DEFAULTS, **form.values, "items": items, "parts": items, **dict(values)}
    return Launch(kernel, form.dtype, given, items, form.workspace)


@lru_cache(maxsize=64)
def _missing(name: str, size: int, dtype: str) -> Array:
    """A weight of ones or a bias of zeros."""
    array = np.full(size, name == "weight", dtype)
    array.flags.writeable = False
    return array


def _form(x: Array, per_image: bool) -> _Form:
    return _form_of(x.shape, name_of(x.dtype), per_image, channels_are_inner(x))


def _items(values: int) -> int:
    """Items of work: one for less than 128 Ki values, as a thread takes 50 us to wake up, else of some 32 Ki each."""
    return 1 if values < 1 << 17 else min(64, values >> 15)


@lru_cache(maxsize=1024)
def _form_of(shape: tuple[int, int, int, int], dtype: str, per_image: bool, is_last: bool) -> _Form:
    n, g, c, p = shape
    if per_image and p == 1:
        return _rows(n, g, c, dtype, is_last)
    if is_last:
        return _lanes((n, p) if per_image else (1, n * p), g * c, c, 1, dtype, is_last)
    if not per_image and p < SHORT_PLANE:
        return _lanes((1, n), g * c * p, c * p, p, dtype, is_last)
    values = {"n": n, "g": g, "c": c, "p": p, "per_image": per_image}
    statistics, parts = (n * g, n) if per_image else (g, 1)
    most = _items(n * g * c * p)
    items, passes = min(statistics, most), min(n * g * c, most)
    return _Form("planes", dtype, is_last, values, g * c, items, passes, parts, False, statistics)


def _rows(n: int, g: int, c: int, dtype: str, is_last: bool) -> _Form:
    """[N, G, C], of which statistics are over C."""
    most, is_long = _items(n * g * c), c > LONG_ROW
    items = min(n * g, most) if is_long else max(1, min(n // MIN_ROWS, most, MAX_PARTS))
    parts = g * -(-c // LONG_ROW) if is_long else items
    passes = min(n * g, most)
    workspace = max(2 * (min(c, LONG_ROW) + MAX_LANES), SHORT_ROW * MAX_LANES)
    return _Form("rows", dtype, is_last, {"n": n, "g": g, "c": c}, g * c, items, passes, parts, is_long, workspace)


def _lanes(
    extents: tuple[int, int], lanes: int, per_statistic: int, per_affine: int, dtype: str, is_last: bool
) -> _Form:
    """[B, O, lanes], of which statistics, per_statistic lanes each, are over O."""
    b, o = extents
    values = {"b": b, "o": o, "lanes": lanes, "per_statistic": per_statistic, "per_affine": per_affine}
    width = -(-max(MIN_STRIP, lanes * b // MIN_ITEMS) // per_statistic) * per_statistic
    width = min(lanes, width)
    is_split = b == 1 and o * width * np.dtype(dtype).itemsize > CACHED_BYTES
    passes = max(1, min(_items(b * o * lanes), b * o // MIN_ROWS))
    workspace = 8 * lanes + b * lanes // per_statistic
    items, parts = b * -(-lanes // width), min(passes, MAX_PARTS) if is_split else b
    return _Form("lanes", dtype, is_last, {**values, "width": width}, lanes, items, passes, parts, is_split, workspace)
