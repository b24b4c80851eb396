"""Max pooling with indices of the maxima, and the operations that use indices: backward, unpool and gather."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import memory, pooling
from gpucnn.backends.numpy.memory import Array, Block
from gpucnn.backends.numpy.pooling import Passes, as_stored, each_of, in_pieces, separably, stored, widened
from gpucnn.geometry import PoolGeometry

KEY_BYTES = 48  # of an element: its key, and what is computed of it


def _lowest(dtype: np.dtype[Any]) -> Any:
    return np.iinfo(dtype).min if dtype.kind in "iu" else -np.inf


def max_pool(x: Array, y: Array, indices: Array | None, geometry: PoolGeometry) -> None:
    """Y [N, C, OD, OH, OW], NaN where a window holds one, and the indices of the maxima: the first, or the last NaN."""
    x, space = stored(x)
    y = as_stored(y, space)
    dtype = accumulator(x.dtype)
    if indices is not None and geometry.is_whole:
        _of_planes(x, y, as_stored(indices, space), space)
        return

    def pool(read: Block, written: Block, passes: Passes) -> None:
        part = y[written]
        best = part if part.dtype == dtype else memory.scratch("max_pool", part.shape, dtype)
        separably(np.maximum, _lowest(dtype), widened("max_pool x", x[read], dtype), passes, best)
        if best is not part:
            part[...] = best

    in_pieces(pool, x, y, geometry, space, True, dtype.itemsize / x.itemsize)
    if indices is not None:
        _locate(x, as_stored(indices, space), geometry, space)


def _of_planes(x: Array, y: Array, indices: Array, space: int) -> None:
    """The maxima of whole planes and their positions, in 0.03 (of 56 x 56) to 0.3 (of 7 x 7) of the time of others."""
    planes = x.reshape(*x.shape[:space], prod(x.shape[space : space + 3]), *x.shape[space + 3 :])
    first, last = planes.argmax(space), planes.shape[space] - 1 - np.flip(planes, space).argmax(space)
    y[...] = np.take_along_axis(planes, np.expand_dims(first, space), space).reshape(y.shape)
    with np.errstate(invalid="ignore"):  # bfloat16 is compared to NaN
        indices[...] = np.where((y != y).reshape(first.shape), last, first).reshape(indices.shape)


def _locate(x: Array, indices: Array, geometry: PoolGeometry, space: int) -> None:
    """Write the positions of the maxima in their planes, and -1 where a window reads nothing.

    They are those of the largest complex numbers, value + i * -position, which NumPy compares by their real parts
    first. NaN is infinity + i * (position + 1), which is larger than all else.
    """
    _, height, width = geometry.input_size

    def locate(read: Block, written: Block, passes: Passes) -> None:
        part = x[read]
        d, h, w = (np.arange(*run.indices(size)) for run, size in zip(read[space:], geometry.input_size, strict=False))
        places = ((d[:, None, None] * height + h[:, None]) * width + w).astype(np.float64)
        places = places if space == 2 else places[..., None]
        keys = memory.scratch("max_pool keys", part.shape, np.complex128)
        exact = part.dtype.kind not in "iu" or part.dtype.itemsize < 8  # as a real part, unlike an integer of 64 bits
        keys.real = part if exact else np.unique(part, return_inverse=True)[1].reshape(part.shape)
        keys.imag = -places
        missing = np.isnan(keys.real)
        if missing.any():
            keys.real[missing] = np.inf
            np.copyto(keys.imag, places + 1, where=missing)
        best = memory.scratch("max_pool best keys", indices[written].shape, np.complex128)
        separably(np.maximum, complex(-np.inf, -np.inf), keys, passes, best)
        found = np.where(best.imag > 0, best.imag - 1, -best.imag)
        found[np.isinf(found)] = -1
        indices[written] = found

    in_pieces(locate, x, indices, geometry, space, True, KEY_BYTES / x.itemsize)


# --- By indices ---------------------------------------------------------------------------------------------------

# Windows whose gradients or values are scattered in one call: as indices into all planes they take half a megabyte.
MAX_WINDOWS = 1 << 16

# Parts of a plane whose sums are wider than its elements: all windows are looked at for each part.
PARTS, MIN_PART = 4, 1 << 19


def max_pool_backward(grad_y: Array, indices: Array, grad_x: Array, geometry: PoolGeometry) -> None:
    """grad_x [N, C, D, H, W]: grad_y scatter-added by the indices, in C order."""
    grad_y, space = stored(grad_y)
    indices, grad_x = as_stored(indices, space), as_stored(grad_x, space)
    dtype, size = accumulator(grad_y.dtype), prod(geometry.input_size)

    def add(block: Block) -> None:
        part, grad = grad_x[block].reshape(-1), grad_y[block].reshape(-1)
        if part.dtype == dtype:
            part[...] = 0
            for windows, places in _places(indices[block], size, space):
                np.add.at(part, places, grad[windows])
            return
        for run in memory.runs(part.size, max(MIN_PART, -(-part.size // PARTS))):
            total = memory.scratch("max_pool_backward", (run.stop - run.start,), dtype)
            total[...] = 0
            for windows, places in _places(indices[block], size, space):
                inside = (run.start <= places) & (places < run.stop)
                np.add.at(total, places[inside] - run.start, grad[windows][inside].astype(dtype))
            part[run] = total

    blocks = pooling.cut_up(grad_x.shape[:space], grad_x.nbytes)
    if (
        grad_y.size < grad_x.size
    ):  # `add.at` keeps the interpreter's lock: threads gain 1/8 with stride 1, else they lose
        list(map(add, blocks))
    else:
        each_of(add, blocks)


def unpool(values: Array, indices: Array, planes: Array) -> None:
    """Planes [N, C, OD, OH, OW] with values scattered by the indices; of values with one index the last is kept."""
    values, space = stored(values)
    size = prod(planes.shape[2:])
    indices, planes = as_stored(indices, space), as_stored(planes, space)

    def put(block: Block) -> None:
        part, read = planes[block].reshape(-1), values[block].reshape(-1)
        part[...] = 0
        for windows, places in _places(indices[block], size, space):
            part[places] = read[windows]

    each_of(put, pooling.cut_up(planes.shape[:space], planes.nbytes))


def gather(planes: Array, indices: Array, values: Array) -> None:
    """Values [N, C, D, H, W] of the planes at the indices, 0 where an index is -1."""
    planes, space = stored(planes)
    indices, values = as_stored(indices, space), as_stored(values, space)

    def take(block: Block) -> None:
        part, read = values[block].reshape(-1), planes[block].reshape(-1)
        for windows, places in _places(indices[block], prod(planes.shape[space : space + 3]), space):
            if isinstance(windows, slice):
                np.take(read, places, out=part[windows], mode="clip")
            else:
                part[windows] = read[places]

    if indices.size and indices.min() < 0:
        values[...] = 0
    each_of(take, pooling.cut_up(planes.shape[:space], planes.nbytes))


def _places(indices: Array, size: int, space: int) -> Iterator[tuple[Array | slice, Array]]:
    """Chunks of windows without those of index -1, and their flat positions in all planes of `size`.

    Indices are stored as [N, C, D, H, W] or [N, D, H, W, C]; in the latter, plane neighbours have stride C.
    """
    windows, channels = prod(indices.shape[space : space + 3]), 1 if space == 2 else indices.shape[4]
    flat = indices.reshape(-1)
    for run in memory.runs(flat.size, MAX_WINDOWS):
        number = np.arange(run.start, run.stop)
        image = number // (windows * channels)
        channel = 0 if channels == 1 else number % channels
        places = (image * size + flat[run].astype(np.int64, copy=False)) * channels + channel
        if flat[run].min() >= 0:
            yield run, places
        else:
            inside = flat[run] >= 0
            yield number[inside], places[inside]
