"""An interpolation along one axis as a sparse matrix, in arrays, from a geometry's formulas."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gpucnn.geometry import Filter, InterpolationAxis

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


class Matrix(NamedTuple):
    """Outputs as weighted sums of inputs: row o has entries ``starts[o]`` to ``starts[o + 1]``, of ascending columns.

    Rows and their ends never go back. Entries of weight 0 are there where the filter reaches, so that rows are regular.
    """

    starts: Ints  # [rows + 1]
    columns: Ints  # [entries]
    weights: Any  # [entries]

    @property
    def rows(self) -> Ints:
        """The row [entries] of each entry."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


def matrix(axis: InterpolationAxis, dtype: Any, *, adjoint: bool) -> Matrix:
    """The matrix of an axis [out, size], or its transpose if `adjoint`, with weights in `dtype`."""
    if axis.is_identity or axis.filter is None:
        columns = np.arange(axis.out) if axis.is_identity else nearest(axis)
        found = Matrix(np.arange(axis.out + 1), columns, np.ones(axis.out, dtype))
    elif axis.filter.radius == axis.filter.stretch == 1:
        low, high, of_high = blended(axis)
        weight = of_high.astype(dtype)
        pairs = np.stack([low, high], axis=1), np.stack([1 - weight, weight], axis=1)
        found = Matrix(np.arange(0, 2 * axis.out + 1, 2), *(pair.reshape(-1) for pair in pairs))
    else:
        starts, columns, weights = filtered(axis, axis.filter)
        found = Matrix(starts, columns, weights.astype(dtype))
    if not adjoint:
        return found
    order = np.argsort(found.columns, kind="stable")
    starts = np.searchsorted(found.columns[order], np.arange(axis.size + 1))
    return Matrix(starts, found.rows[order], found.weights[order])


def located(axis: InterpolationAxis) -> tuple[Ints, Floats]:
    """The floor [out] of each output's position, with the rounding, and what is beyond it [out], in [0, 1)."""
    outputs, first, parts = np.arange(axis.out), axis.first + axis.rounding, axis.parts
    if parts:
        low, beyond = np.divmod(outputs * int(axis.scale * parts) + int(first * parts), parts)
        return low, beyond / parts
    position = axis.positions(outputs) + float(axis.rounding)
    whole = np.floor(position)
    return whole.astype(np.int64), position - whole


def nearest(axis: InterpolationAxis) -> Ints:
    """The input [out] that each output of an axis copies."""
    low, beyond = located(axis)
    if not axis.parts:  # the rounding of 1 / 3.7 moves no sample: 37 / 3.7 is 10
        low = low + (beyond >= 1 - axis.size * 2.0**-40)
    return np.clip(low, 0, axis.size - 1)


def blended(axis: InterpolationAxis) -> tuple[Ints, Ints, Floats]:
    """The inputs [out] below and above each output's position, and the weight [out] of the one above."""
    floors, beyond = located(axis)
    last = axis.size - 1
    low = np.clip(floors, 0, last)
    return low, np.minimum(low + 1, last), np.clip(floors - low + beyond, 0.0, 1.0)


def filtered(axis: InterpolationAxis, filter: Filter) -> Matrix:
    """The matrix [out, size] of a filter, in float64: its weights divided by their sum in each row."""
    floors, beyond = located(axis)
    begin = np.floor(beyond - filter.radius * filter.stretch).astype(np.int64) + 1 + floors
    end = begin + filter.taps
    if filter.excludes_outside:
        begin, end = np.clip(begin, 0, axis.size), np.clip(end, 0, axis.size)
    starts = np.concatenate([[0], np.cumsum(end - begin)])
    rows = np.repeat(np.arange(axis.out), end - begin)
    columns = np.arange(starts[-1]) + (begin - starts[:-1])[rows]
    weights = _weights((columns - floors[rows] - beyond[rows]) / filter.stretch, filter)
    sums = np.bincount(rows, weights, axis.out)
    weights /= np.where(sums == 0, 1, sums)[rows]
    if filter.excludes_outside:
        return Matrix(starts, columns, weights)
    columns = np.clip(columns, 0, axis.size - 1)
    firsts = np.flatnonzero(np.diff(rows, prepend=-1) | np.diff(columns, prepend=-1))  # a repeated border is one input
    return Matrix(np.searchsorted(firsts, starts), columns[firsts], np.add.reduceat(weights, firsts))


def _weights(distance: Floats, filter: Filter) -> Floats:
    t = np.minimum(np.abs(distance), filter.radius)
    if filter.radius == 1:
        return 1 - t
    a = filter.coefficient
    return np.where(t < 1, (t - 1) * ((a + 2) * t * t - t - 1), a * (t - 1) * (t - 2) ** 2)
