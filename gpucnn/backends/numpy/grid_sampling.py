"""Sampling of images at the positions of a grid, and its gradients, tap by tap.

Along each axis a sample has one tap (nearest), two (bilinear) or four (bicubic): inputs that it reads, with a weight
and the weight's slope with respect to the grid. The taps of a sample are the products of those of its axes. A tap of
weight 0 is not read: NaN and infinities there do not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import threads
from gpucnn.backends.numpy.memory import Array
from gpucnn.geometry import GridGeometry

PIECE_ITEMS = 1 << 18  # most samples of all channels of a piece, unless one channel has more
SHARPNESS = -0.75  # of the cubic: its slope at the neighbours


def grid_sample(x: Array, grid: Array, y: Array, geometry: GridGeometry) -> None:
    """Y [N, C, OD, OH, OW]: each sample's weighted sum over its taps."""

    def sample(piece: tuple[int, slice]) -> None:
        n, channels = piece
        planes = x[n, channels].reshape(-1, prod(geometry.input_size))
        total = np.zeros((len(planes), prod(geometry.output_size)), accumulator(x.dtype))
        for index, weight in _terms(grid[n], geometry):
            total += _products(planes[:, index], weight)
        y[n, channels] = total.reshape(-1, *geometry.output_size)

    threads.run(sample, _pieces(x, geometry))


def grid_sample_backward(
    grad_y: Array, x: Array, grid: Array, grad_x: Array | None, grad_grid: Array | None, geometry: GridGeometry
) -> None:
    """The requested gradients, those of a plane's inputs added in the order of the samples' taps."""
    if grad_x is not None:
        _input_gradient(grad_y, grid, grad_x, geometry)
    if grad_grid is not None:
        _grid_gradient(grad_y, x, grid, grad_grid, geometry)


def _pieces(x: Array, geometry: GridGeometry) -> list[tuple[int, slice]]:
    """An image and some of its channels each."""
    step = max(1, PIECE_ITEMS // max(1, prod(geometry.output_size)))
    return [(n, slice(c, c + step)) for n in range(len(x)) for c in range(0, x.shape[1], step)]


def _input_gradient(grad_y: Array, grid: Array, grad_x: Array, geometry: GridGeometry) -> None:
    def compute(piece: tuple[int, slice]) -> None:
        n, channels = piece
        indices, weights = zip(*_terms(grid[n], geometry), strict=True)
        index, weight = np.stack(indices, axis=1).ravel(), np.stack(weights, axis=1).ravel()
        read = np.flatnonzero(weight)
        index, weight, sample = index[read], weight[read], read // len(indices)
        for grad, result in zip(grad_y[n, channels], grad_x[n, channels], strict=True):
            terms = weight * grad.reshape(-1)[sample].astype(weight.dtype, copy=False)
            result[...] = np.bincount(index, terms, result.size).reshape(result.shape)  # summed in order, in float64

    threads.run(compute, _pieces(grad_x, geometry))


def _grid_gradient(grad_y: Array, x: Array, grid: Array, grad_grid: Array, geometry: GridGeometry) -> None:
    wide = accumulator(x.dtype)

    def compute(n: int) -> None:
        planes, grads = (array[n].reshape(x.shape[1], -1).astype(wide, copy=False) for array in (x, grad_y))
        total = np.zeros((geometry.rank, grads.shape[1]), wide)
        for taps in product(*_axes(grid[n], geometry)):
            products = np.einsum("co,co->o", planes[:, sum(tap.at for tap in taps)], grads)
            for coordinate, result in enumerate(total):  # the first one is along the last axis
                moved = 2 - coordinate
                d, h, w = (tap.slope if axis == moved else tap.weight for axis, tap in enumerate(taps))
                result += _products(products, d * h * w)
        grad_grid[n] = total.T.reshape(grad_grid.shape[1:])

    threads.run(compute, range(len(x)))


def _products(values: Array, weight: Array) -> Array:
    """``values * weight``, 0 where the weight is."""
    with np.errstate(invalid="ignore", over="ignore"):
        result: Array = values * weight
    result[..., weight == 0] = 0
    return result


# --- Taps -----------------------------------------------------------------------------------------------------------


class Tap(NamedTuple):
    """An input of each sample along an axis: its position, and weight and slope, which are 0 where it is outside."""

    at: Array
    weight: Array
    slope: Array


def _terms(grid: Array, geometry: GridGeometry) -> Iterator[tuple[Array, Array]]:
    """Positions in a plane, and weights, of all samples of an image: tap by tap."""
    for d, h, w in product(*_axes(grid, geometry)):
        yield d.at + h.at + w.at, d.weight * h.weight * w.weight


def _axes(grid: Array, geometry: GridGeometry) -> list[list[Tap]]:
    """The taps of all samples of an image along D, H and W, their positions as those in a plane."""
    grid = grid.reshape(-1, geometry.rank).astype(accumulator(grid.dtype), copy=False)
    one = np.ones(len(grid), grid.dtype)
    axes = [[Tap(np.zeros(len(grid), np.intp), one, 0 * one)]] * (3 - geometry.rank)
    for coordinate in grid.T[::-1]:
        size, *inner = geometry.input_size[len(axes) :]
        taps = _taps(coordinate, size, geometry)
        axes.append([tap._replace(at=tap.at * prod(inner)) for tap in taps])
    return axes


def _taps(coordinate: Array, size: int, geometry: GridGeometry) -> list[Tap]:
    """The taps of samples at coordinates, which are -1 and 1 at the ends of the axis."""
    low, span = _extent(size, geometry)
    with np.errstate(invalid="ignore", over="ignore"):
        x = low + (coordinate + 1) / 2 * span
    x[np.isnan(x) | (np.isinf(x) & (geometry.padding_mode == "reflection"))] = low
    slope = np.full_like(x, span / 2)
    if geometry.mode != "bicubic":
        x, direction = _padded(x, size, geometry)
        slope *= direction
    elif geometry.padding_mode != "reflection":  # bicubic taps are padded each on its own: these are the same ones
        x = np.clip(x, -4, size + 3)
    first = np.rint(x) if geometry.mode == "nearest" else np.floor(x)
    t = x - first
    if geometry.mode == "nearest":
        weights: list[tuple[Array, Any]] = [(np.ones_like(t), 0)]
    elif geometry.mode == "bilinear":
        weights = [(1 - t, -1), (t, 1)]
    else:
        weights, first = _cubic(t), first - 1
    return [_tap(first + k, weight, of_t * slope, size, geometry) for k, (weight, of_t) in enumerate(weights)]


def _tap(index: Array, weight: Array, slope: Array, size: int, geometry: GridGeometry) -> Tap:
    """The tap at integral positions, which a bicubic sample's padding moves into the axis."""
    if geometry.mode == "bicubic":
        index, _ = _padded(index, size, geometry)
    inside = (index >= 0) & (index < size)
    at = np.where(inside, index, 0).astype(np.intp)
    return Tap(at, np.where(inside, weight, 0), np.where(inside, slope, 0))


def _padded(x: Array, size: int, geometry: GridGeometry) -> tuple[Array, Any]:
    """Positions that the padding moves into the axis, and in which direction: 0 for those held at an end.

    With zeros they stay outside, but near enough for integers.
    """
    if geometry.padding_mode == "zeros":
        return np.clip(x, -2, size + 1), 1
    direction: Any = 1
    if geometry.padding_mode == "reflection":
        low, span = _extent(size, geometry)
        distance = np.fmod(abs(x - low), 2 * max(span, 1))
        is_back = distance > span
        direction = np.where(is_back ^ (x < low), -1, 1)
        x = low + np.where(is_back, 2 * span - distance, distance)
    return np.clip(x, 0, size - 1), np.where((x > 0) & (x < size - 1), direction, 0)


def _extent(size: int, geometry: GridGeometry) -> tuple[float, int]:
    """The position of coordinate -1, and the inputs from there to that of 1: about those reflections turn back."""
    return (0.0, size - 1) if geometry.align_corners else (-0.5, size)


def _cubic(t: Array) -> list[tuple[Array, Array]]:
    """Weights of the inputs at -1, 0, 1 and 2 for a position of t in [0, 1), and their slopes."""
    a = SHARPNESS

    def near(s: Array) -> tuple[Array, Array]:
        return ((a + 2) * s - (a + 3)) * s * s + 1, (3 * (a + 2) * s - 2 * (a + 3)) * s

    def far(s: Array) -> tuple[Array, Array]:
        return ((a * s - 5 * a) * s + 8 * a) * s - 4 * a, (3 * a * s - 10 * a) * s + 8 * a

    (after, slope_after), (beyond, slope_beyond) = near(1 - t), far(2 - t)
    return [far(1 + t), near(t), (after, -slope_after), (beyond, -slope_beyond)]
