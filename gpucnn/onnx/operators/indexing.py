"""Elements by index: gathering, scattering, and what is made of indices."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn.onnx.operators.arrays import axis_of, ints, namespace
from gpucnn.onnx.operators.registry import Array, Host, operator, refuse

# --- Gathering --------------------------------------------------------------------------------------------------------


def _positive(indices: Array, size: int) -> Array:
    """Indices counted from the start.

    Raises
    ------
    IndexError
        One is outside; on a device, where a look at values would wait, it wraps around.
    """
    if isinstance(indices, np.ndarray) and indices.size:
        low, high = int(indices.min()), int(indices.max())
        if low < -size or high >= size:
            raise IndexError(f"an index is {low if low < -size else high}, expected one of {size}")
    return indices % size if size else indices


@operator("Gather")
def gather(x: Array, indices: Array, *, axis: int = 0) -> Array:
    """The slices at the indices along an axis."""
    axis = axis_of(axis, x.ndim)
    if isinstance(indices, np.ndarray) and not indices.ndim:
        return x[(*(slice(None),) * axis, indices.item(), ...)]
    return namespace(x).take(x, _positive(indices, x.shape[axis]), axis=axis)


@operator("GatherElements")
def gather_elements(x: Array, indices: Array, *, axis: int = 0) -> Array:
    """The element at each index along an axis, other indices being its place."""
    axis = axis_of(axis, x.ndim)
    return x[_places(namespace(x), indices, x.shape, axis)]


def _places(xp: Any, indices: Array, shape: tuple[int, ...], axis: int) -> tuple[Array, ...]:
    """An index along `axis`, and along the others that of the place in `indices`."""
    rank = indices.ndim
    along = [xp.arange(size).reshape(-1, *(1,) * (rank - at - 1)) for at, size in enumerate(indices.shape)]
    along[axis] = _positive(indices, shape[axis])
    return tuple(along)


@operator("GatherND")
def gather_nd(x: Array, indices: Array, *, batch_dims: int = 0) -> Array:
    """The slices at vectors of indices."""
    xp = namespace(x)
    reach = indices.shape[-1]
    places = [
        xp.arange(size).reshape(-1, *(1,) * (indices.ndim - at - 2)) for at, size in enumerate(x.shape[:batch_dims])
    ]
    places += [_positive(indices[..., at], x.shape[batch_dims + at]) for at in range(reach)]
    return x[tuple(places)]


@operator("Compress")
def compress(x: Array, condition: Array, *, axis: int | None = None) -> Array:
    """The slices for which a condition holds."""
    chosen = condition.nonzero()[0]
    if axis is None:
        return x.ravel()[chosen]
    return namespace(x).take(x, chosen, axis=axis_of(axis, x.ndim))


# --- Scattering -------------------------------------------------------------------------------------------------------

_REDUCTIONS = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _scattered(x: Array, places: tuple[Array, ...], updates: Array, reduction: str) -> Array:
    y = x.copy()
    if reduction == "none":
        y[places] = updates
        return y
    if reduction not in _REDUCTIONS:
        raise refuse(f"reduction is {reduction!r}, expected none, {', '.join(_REDUCTIONS)}")
    if not isinstance(y, np.ndarray):
        raise refuse(f"reduction is {reduction!r}, expected none on a device, where sums have no fixed order")
    _REDUCTIONS[reduction].at(y, places, updates)
    return y


@operator("ScatterElements")
def scatter_elements(x: Array, indices: Array, updates: Array, *, axis: int = 0, reduction: str = "none") -> Array:
    """X with updates at indices along an axis, other indices being their place."""
    axis = axis_of(axis, x.ndim)
    return _scattered(x, _places(namespace(x), indices, x.shape, axis), updates, reduction)


@operator("Scatter")
def scatter(x: Array, indices: Array, updates: Array, *, axis: int = 0) -> Array:
    """As `scatter_elements`, under its old name."""
    return scatter_elements(x, indices, updates, axis=axis)


@operator("ScatterND")
def scatter_nd(x: Array, indices: Array, updates: Array, *, reduction: str = "none") -> Array:
    """X with updates at vectors of indices."""
    places = tuple(_positive(indices[..., at], x.shape[at]) for at in range(indices.shape[-1]))
    return _scattered(x, places, updates, reduction)


# --- Made of indices --------------------------------------------------------------------------------------------------


@operator("OneHot")
def one_hot(indices: Array, depth: Host, values: Array, *, axis: int = -1) -> Array:
    """``values[1]`` at each index along a new axis, ``values[0]`` elsewhere."""
    xp = namespace(indices)
    (size,) = ints(depth)
    axis = axis_of(axis, indices.ndim + 1)
    at = xp.expand_dims(indices, axis)
    at = xp.where(at < 0, at + size, at)
    places = xp.arange(size).reshape(-1, *(1,) * (indices.ndim - axis))
    return xp.where(places == at, values[1], values[0]).astype(values.dtype, copy=False)


@operator("NonZero")
def nonzero(x: Array) -> Array:
    """The indices of the elements that are not 0, a column for each."""
    xp = namespace(x)
    return xp.stack([at.astype(np.int64, copy=False) for at in xp.atleast_1d(x).nonzero()][: max(x.ndim, 1)])


@operator("Trilu")
def triangle(x: Array, k: Host = None, *, upper: int = 1) -> Array:
    """The elements above, or below, a diagonal; 0 elsewhere."""
    xp = namespace(x)
    offset = 0 if k is None else ints(k)[0]
    rows, columns = xp.arange(x.shape[-2]).reshape(-1, 1), xp.arange(x.shape[-1])
    kept = columns - rows >= offset if upper else columns - rows <= offset
    return xp.where(kept, x, x.dtype.type(0))


@operator("ReverseSequence")
def reverse_sequence(x: Array, lengths: Host, *, batch_axis: int = 1, time_axis: int = 0) -> Array:
    """The first so many elements of each sequence in reverse."""
    xp = namespace(x)
    steps = np.arange(x.shape[time_axis]).reshape(-1, 1)
    long = np.asarray(lengths).reshape(1, -1)
    order = np.where(steps < long, long - 1 - steps, steps)
    order = order if time_axis == 0 else order.T
    return x[_places(xp, xp.asarray(order.reshape(*order.shape, *(1,) * (x.ndim - 2))), x.shape, time_axis)]


@operator("Unique")
def unique(x: Array, *, axis: int | None = None, sorted: int = 1) -> Any:
    """The distinct elements or slices, with their first places, their numbers and how often they occur."""
    if not isinstance(x, np.ndarray):
        raise refuse("the input is on a device, expected one of the host")
    found, first, inverse, counts = np.unique(x, True, True, True, axis=axis)
    inverse = inverse.ravel()
    if not sorted:
        order = np.argsort(first)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        found, first, inverse, counts = np.take(found, order, axis or 0), first[order], rank[inverse], counts[order]
    return found, *(array.astype(np.int64) for array in (first, inverse, counts))
