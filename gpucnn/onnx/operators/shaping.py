"""Shapes: reshaping, moving axes, joining, splitting, padding."""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import numpy as np

import gpucnn.functional as F
from gpucnn.onnx.operators.arrays import axes_of, axis_of, checked, ints, namespace
from gpucnn.onnx.operators.registry import Anywhere, Array, Host, operator, refuse

# --- The shape itself -------------------------------------------------------------------------------------------------


@operator("Shape")
def shape(x: Anywhere, *, start: int = 0, end: int | None = None) -> Array:
    """The sizes of the axes, as an array of the host."""
    return np.array(x.shape[slice(start, end)], np.int64)


@operator("Size")
def size(x: Anywhere) -> Array:
    """The number of elements."""
    return np.array(x.size, np.int64)


@operator("Identity")
def identity(x: Anywhere) -> Any:
    """X itself."""
    return x


@operator("Reshape", 5)
def reshape(x: Array, shape: Host, *, allowzero: int = 0) -> Array:
    """The elements in another shape, in which 0 keeps a size and -1 stands for what remains."""
    sizes = ints(shape)
    if not allowzero:
        sizes = [x.shape[at] if wanted == 0 else wanted for at, wanted in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Reshape", 1)
def reshape_by_attribute(x: Array, *, shape: list[int], consumed_inputs: list[int] | None = None) -> Array:
    """As `reshape`."""
    return reshape(x, np.array(shape))


@operator("Flatten")
def flatten(x: Array, *, axis: int = 1) -> Array:
    """The axes before `axis` as one, and those from it on as another."""
    axis = axis if axis == x.ndim else axis_of(axis, x.ndim)
    return x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


@operator("Squeeze", 13)
def squeeze(x: Array, axes: Host = None) -> Array:
    """The array without some axes of size 1."""
    return x.squeeze(None if axes is None else axes_of(ints(axes), x.ndim))


@operator("Squeeze", 1)
def squeeze_by_attribute(x: Array, *, axes: list[int] | None = None) -> Array:
    """As `squeeze`."""
    return x.squeeze(None if axes is None else axes_of(axes, x.ndim))


@operator("Unsqueeze", 13)
def unsqueeze(x: Array, axes: Host) -> Array:
    """The array with new axes of size 1."""
    return unsqueeze_by_attribute(x, axes=ints(axes))


@operator("Unsqueeze", 1)
def unsqueeze_by_attribute(x: Array, *, axes: list[int]) -> Array:
    """As `unsqueeze`."""
    rank = x.ndim + len(axes)
    new = axes_of(axes, rank)
    sizes = iter(x.shape)
    return x.reshape([1 if axis in new else next(sizes) for axis in range(rank)])


@operator("Transpose")
def transpose(x: Array, *, perm: list[int] | None = None) -> Array:
    """The axes in another order."""
    return x.transpose(perm)


@operator("Expand")
def expand(x: Array, shape: Host) -> Array:
    """The elements repeated along axes of size 1."""
    return namespace(x).broadcast_to(x, np.broadcast_shapes(x.shape, tuple(ints(shape))))


@operator("Tile", 6)
def tile(x: Array, repeats: Host) -> Array:
    """The array, repeated along each axis."""
    return namespace(x).tile(x, tuple(ints(repeats)))


# --- Joining and splitting --------------------------------------------------------------------------------------------


@operator("Concat", 4)
def concat(*arrays: Array, axis: int, out: Array = None) -> Array:
    """Arrays one after the other along an axis."""
    return namespace(arrays[0]).concatenate(arrays, axis, out)


@operator("Concat", 1)
def concat_of_old(*arrays: Array, axis: int = 1) -> Array:
    """As `concat`."""
    return concat(*arrays, axis=axis)


def _parts(x: Array, sizes: list[int], axis: int) -> tuple[Array, ...]:
    if sum(sizes) != x.shape[axis] or min(sizes, default=0) < 0:
        raise ValueError(f"split is {sizes}, expected parts of {x.shape[axis]}")
    ends = [0, *accumulate(sizes)]
    whole = (slice(None),) * axis
    return tuple(x[(*whole, slice(low, high))] for low, high in pairwise(ends))


def _equal(total: int, count: int) -> list[int]:
    """Sizes of `count` parts, of which the last may be smaller."""
    part = -(-total // count)
    return [min(part, max(total - at * part, 0)) for at in range(count)]


@operator("Split", 13)
def split(x: Array, sizes: Host = None, *, axis: int = 0, num_outputs: int | None = None, count: int) -> Any:
    """The array in parts along an axis."""
    axis = axis_of(axis, x.ndim)
    return _parts(x, _equal(x.shape[axis], num_outputs or count) if sizes is None else ints(sizes), axis)


@operator("Split", 1)
def split_by_attribute(x: Array, *, axis: int = 0, split: list[int] | None = None, count: int) -> Any:
    """As `split`."""
    axis = axis_of(axis, x.ndim)
    return _parts(x, _equal(x.shape[axis], count) if split is None else split, axis)


# --- Slicing ----------------------------------------------------------------------------------------------------------


@operator("Slice", 10)
def slice_(x: Array, starts: Host, ends: Host, axes: Host = None, steps: Host = None) -> Array:
    """Every so many elements from a start up to an end, along some axes."""
    firsts, lasts = ints(starts), ints(ends)
    return _sliced(
        x,
        firsts,
        lasts,
        list(range(len(firsts))) if axes is None else ints(axes),
        [1] * len(firsts) if steps is None else ints(steps),
    )


@operator("Slice", 1)
def slice_by_attributes(x: Array, *, starts: list[int], ends: list[int], axes: list[int] | None = None) -> Array:
    """As `slice_`."""
    return _sliced(x, starts, ends, list(range(len(starts))) if axes is None else axes, [1] * len(starts))


def _sliced(x: Array, starts: list[int], ends: list[int], axes: list[int], steps: list[int]) -> Array:
    index = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes_of(axes, x.ndim), steps, strict=True):
        total = x.shape[axis]
        # before the first element there is no end that Python would take as such
        index[axis] = slice(start, None if step < 0 and end < -total else end, step)
    return x[tuple(index)]


# --- Padding ----------------------------------------------------------------------------------------------------------

_MODES = {"constant": "constant", "edge": "replicate", "reflect": "reflect", "wrap": "wrap"}


@operator("Pad", 11)
def pad(x: Array, pads: Host, value: Host = None, axes: Host = None, *, mode: str = "constant") -> Array:
    """The array with a border, or cropped where a pad is negative."""
    return _padded(x, ints(pads), value, range(x.ndim) if axes is None else ints(axes), mode)


@operator("Pad", 2)
def pad_by_attributes(x: Array, *, pads: list[int], mode: str = "constant", value: float = 0.0) -> Array:
    """As `pad`."""
    return _padded(x, pads, np.array(value, x.dtype), range(x.ndim), mode)


def _padded(x: Array, pads: list[int], value: Any, axes: Any, mode: str) -> Array:
    axes = axes_of(axes, x.ndim)
    if len(pads) != 2 * len(axes):
        raise ValueError(f"pads have {len(pads)} values, expected two for each of {len(axes)} axes")
    if mode not in _MODES:
        raise refuse(f"mode is {mode!r}, expected one of {', '.join(_MODES)}")
    edges = [(0, 0)] * x.ndim
    for at, axis in enumerate(axes):
        edges[axis] = (pads[at], pads[at + len(axes)])
    if mode == "constant":
        return _filled(x, edges, 0 if value is None or not value.size else value.item())
    if isinstance(x, np.ndarray) or x.dtype.kind == "b" or mode == "wrap":  # gpucnn's mode goes round once at most
        for axis, (low, high) in enumerate(edges):
            if low or high:
                xp = namespace(x)
                x = xp.take(x, xp.asarray(_sources(x.shape[axis], low, high, mode)), axis=axis)
        return x
    return F.pad(x, tuple(end for edge in reversed(edges) for end in edge), _MODES[mode])


@lru_cache(256)
def _sources(size: int, low: int, high: int, mode: str) -> Array:
    """For each place of a padded axis that in the axis of so many elements."""
    kept = np.arange(max(-low, 0), size + min(high, 0))
    return np.pad(kept, (max(low, 0), max(high, 0)), mode)  # type: ignore[call-overload]  # the mode is one of _MODES


def _cropped(x: Array, edges: list[tuple[int, int]]) -> Array:
    """What negative pads leave."""
    return x[tuple(slice(max(-low, 0), size + min(high, 0)) for size, (low, high) in zip(x.shape, edges, strict=True))]


def _filled(x: Array, edges: list[tuple[int, int]], value: Any) -> Array:
    """X in an array of one value, in its memory order."""
    kept = _cropped(x, edges)
    shape = [size + low + high for size, (low, high) in zip(x.shape, edges, strict=True)]
    y = namespace(x).empty_like(x, shape=checked(shape, x.dtype))
    y[...] = value
    y[tuple(slice(max(low, 0), max(low, 0) + size) for size, (low, _) in zip(kept.shape, edges, strict=True))] = kept
    return y


# --- Blocks -----------------------------------------------------------------------------------------------------------


@operator("DepthToSpace")
def depth_to_space(x: Array, *, blocksize: int, mode: str = "DCR") -> Array:
    """Channels laid out as blocks of pixels."""
    n, c, h, w = x.shape
    b = blocksize
    if mode == "DCR":
        blocks = x.reshape(n, b, b, c // (b * b), h, w).transpose(0, 3, 4, 1, 5, 2)
    elif mode == "CRD":
        blocks = x.reshape(n, c // (b * b), b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    else:
        raise refuse(f"mode is {mode!r}, expected DCR or CRD")
    return blocks.reshape(n, c // (b * b), h * b, w * b)


@operator("SpaceToDepth")
def space_to_depth(x: Array, *, blocksize: int, mode: str = "DCR") -> Array:
    """Blocks of pixels laid out as channels."""
    n, c, h, w = x.shape
    b = blocksize
    blocks = x.reshape(n, c, h // b, b, w // b, b)
    if mode not in ("DCR", "CRD"):
        raise refuse(f"mode is {mode!r}, expected DCR or CRD")
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return blocks.transpose(order).reshape(n, c * b * b, h // b, w // b)
