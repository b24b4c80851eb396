"""An interpolation along one axis as a sparse matrix, in arrays, from a geometry's formulas."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gpucnn.geometry import Filter, InterpolationAxis

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]

BLOCK_ENTRIES = 1 << 16  # of a filter's matrix that are computed at a time


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
    elif axis.filter == Filter(1):
        low, high, of_high = blended(axis)
        weight = of_high.astype(dtype)
        pairs = np.stack([low, high], axis=1), np.stack([1 - weight, weight], axis=1)
        found = Matrix(np.arange(0, 2 * axis.out + 1, 2), *(pair.reshape(-1) for pair in pairs))
    else:
        found = filtered(axis, axis.filter, dtype)
    if not adjoint:
        return found
    order = np.argsort(found.columns, kind="stable")
    starts = np.searchsorted(found.columns[order], np.arange(axis.size + 1))
    return Matrix(starts, found.rows[order], found.weights[order])


def located(axis: InterpolationAxis, outputs: Ints) -> tuple[Ints, Floats]:
    """The floor of each output's position, with the rounding, and what is beyond it, in [0, 1)."""
    first, parts = axis.first + axis.rounding, axis.parts
    if parts:
        low, beyond = np.divmod(outputs * int(axis.scale * parts) + int(first * parts), parts)
        return low, beyond / parts
    position = axis.positions(outputs) + float(axis.rounding)
    whole = np.floor(position)
    return whole.astype(np.int64), position - whole


def nearest(axis: InterpolationAxis) -> Ints:
    """The input [out] that each output of an axis copies."""
    low, beyond = located(axis, np.arange(axis.out))
    if not axis.parts:  # the rounding of 1 / 3.7 moves no sample: 37 / 3.7 is 10
        low = low + (beyond >= 1 - axis.size * 2.0**-40)
    return np.clip(low, 0, axis.size - 1)


def blended(axis: InterpolationAxis) -> tuple[Ints, Ints, Floats]:
    """The inputs [out] below and above each output's position, and the weight [out] of the one above."""
    floors, beyond = located(axis, np.arange(axis.out))
    last = axis.size - 1
    low = np.clip(floors, 0, last)
    return low, np.minimum(low + 1, last), np.clip(floors - low + beyond, 0.0, 1.0)


def filtered(axis: InterpolationAxis, filter: Filter, dtype: Any) -> Matrix:
    """The matrix [out, size] of a filter: some outputs at a time, whose float64 arrays are small."""
    step = max(1, BLOCK_ENTRIES // filter.taps)
    blocks = [_rows(axis, filter, np.arange(at, min(at + step, axis.out)), dtype) for at in range(0, axis.out, step)]
    counts, columns, weights = map(np.concatenate, zip(*blocks, strict=True))
    return Matrix(np.concatenate([[0], np.cumsum(counts)]), columns, weights)


def _rows(axis: InterpolationAxis, filter: Filter, outputs: Ints, dtype: Any) -> tuple[Ints, Ints, Any]:
    """The number of entries of each output, and their columns and weights, which are divided by their sum."""
    floors, beyond = located(axis, outputs)
    begin = np.floor(beyond - filter.radius * filter.stretch).astype(np.int64) + 1 + floors
    end = begin + filter.taps
    if filter.excludes_outside:
        begin, end = np.clip(begin, 0, axis.size), np.clip(end, 0, axis.size)
    counts = end - begin
    rows = np.repeat(np.arange(len(outputs)), counts)
    columns = np.arange(len(rows)) + (end - np.cumsum(counts))[rows]
    weights = _weights(((columns - floors[rows]) - beyond[rows]) / filter.stretch, filter)
    sums = np.bincount(rows, weights, len(outputs))
    weights /= np.where(sums == 0, 1, sums)[rows]
    if not filter.excludes_outside:  # a border that is repeated is one entry
        columns = np.clip(columns, 0, axis.size - 1)
        firsts = np.flatnonzero(np.diff(rows, prepend=-1) | np.diff(columns, prepend=-1))
        counts = np.bincount(rows[firsts])
        columns, weights = columns[firsts], np.add.reduceat(weights, firsts)
    return counts, columns, weights.astype(dtype)


def _weights(distance: Floats, filter: Filter) -> Floats:
    t = np.minimum(np.abs(distance), filter.radius)
    if filter.radius == 1:
        return 1 - t
    a = filter.coefficient
    return np.where(t < 1, (t - 1) * ((a + 2) * t * t - t - 1), a * (t - 1) * (t - 2) ** 2)
