"""Max pooling with indices of the maxima, and the operations that use indices: backward, unpool and gather."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import prod

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import memory
from gpucnn.backends.numpy.memory import Array, Block
from gpucnn.backends.numpy.pooling import Passes, as_stored, in_pieces, separably, stored
from gpucnn.geometry import PoolGeometry

KEY_BYTES = 16  # of an element whose position is sought


def max_pool(x: Array, y: Array, indices: Array | None, geometry: PoolGeometry) -> None:
    """Y [N, C, OD, OH, OW], NaN where a window holds one, and the indices of the maxima: the first, or the last NaN."""
    x, space = stored(x)
    y = as_stored(y, space)
    dtype = accumulator(x.dtype)
    lowest = np.iinfo(dtype).min if dtype.kind in "iu" else -np.inf
    places = None if indices is None else as_stored(indices, space)
    if geometry.is_whole:
        _of_planes(x, y, places, space)
        return

    def pool(read: Block, written: Block, passes: Passes) -> None:
        part = y[written]
        best = separably(np.maximum, lowest, x[read], passes, part, dtype)
        if best is not part:
            part[...] = best
        if places is not None:
            _locate(x, read, passes, places[written], geometry.input_size, space)

    in_pieces(pool, x, y, geometry, space, True, dtype.itemsize if places is None else KEY_BYTES)


def _of_planes(x: Array, y: Array, indices: Array | None, space: int) -> None:
    """The maxima of whole planes and their positions, which need no keys."""
    planes = x.reshape(*x.shape[:space], prod(x.shape[space : space + 3]), *x.shape[space + 3 :])
    y[...] = planes.max(axis=space).reshape(y.shape)
    if indices is not None:
        first, last = planes.argmax(space), planes.shape[space] - 1 - np.flip(planes, space).argmax(space)
        indices[...] = np.where(np.isnan(y), last.reshape(y.shape), first.reshape(y.shape))


def _locate(x: Array, read: Block, passes: Passes, indices: Array, size: tuple[int, ...], space: int) -> None:
    """Write the positions of the maxima of ``x[read]`` in their planes of `size`, and -1 where a window reads nothing.

    They are those of the largest complex numbers, value + i * -position, which NumPy compares by their real parts
    first. NaN is infinity + i * (position + 1), which is larger than all else.
    """
    part = x[read]
    d, h, w = np.ogrid[read[space : space + 3]]
    places = as_stored((((d * size[1] + h) * size[2]) + w)[None, None].astype(np.float64), space)
    keys = memory.scratch("max_pool keys", part.shape, np.complex128)
    exact = part.dtype.kind not in "iu" or part.dtype.itemsize < 8  # as a real part, unlike an integer of 64 bits
    keys.real = part if exact else np.unique(part, return_inverse=True)[1].reshape(part.shape)
    keys.imag = -places
    np.copyto(keys, np.inf + 1j * (places + 1), where=np.isnan(keys.real))
    best = separably(np.maximum, complex(-np.inf, -np.inf), keys, passes, indices, keys.dtype)
    indices[...] = np.where(best.imag == -np.inf, -1, np.where(best.imag > 0, best.imag - 1, -best.imag))


# --- By indices ---------------------------------------------------------------------------------------------------

Chunks = Iterator[tuple[Array | slice, Array]]  # windows, and their positions in flat planes
MAX_WINDOWS = 1 << 16  # whose values are moved in one call: as indices into all planes they take half a megabyte
MAX_SUMS = 1 << 20  # positions that are written at a time: of larger planes, wider sums are taken part by part


def max_pool_backward(grad_y: Array, indices: Array, grad_x: Array, geometry: PoolGeometry) -> None:
    """grad_x [N, C, D, H, W]: grad_y scatter-added by the indices, in C order."""
    dtype = accumulator(grad_y.dtype)
    wide = grad_x.dtype != dtype
    for grads, planes, chunks in _flattened(grad_y, indices, grad_x):
        for run in memory.runs(planes.size, MAX_SUMS if wide else planes.size):
            total = memory.scratch("max_pool_backward", (run.stop - run.start,), dtype) if wide else planes
            total[...] = 0
            for windows, places in chunks():
                values = grads[windows]
                if wide:
                    inside = (run.start <= places) & (places < run.stop)
                    places, values = places[inside] - run.start, values[inside].astype(dtype)
                np.add.at(total, places, values)
            if wide:
                planes[run] = total


def unpool(values: Array, indices: Array, planes: Array) -> None:
    """Planes [N, C, OD, OH, OW] with values scattered by the indices; of values with one index the last is kept."""
    for read, written, chunks in _flattened(values, indices, planes):
        written[...] = 0
        for windows, places in chunks():
            written[places] = read[windows]


def gather(planes: Array, indices: Array, values: Array) -> None:
    """Values [N, C, D, H, W] of the planes at the indices, 0 where an index is -1."""
    for written, read, chunks in _flattened(values, indices, planes):
        written[...] = 0
        for windows, places in chunks():
            written[windows] = read[places]


def _flattened(values: Array, indices: Array, planes: Array) -> Iterator[tuple[Array, Array, Callable[[], Chunks]]]:
    """The values and planes of one block after the other, flat in memory order, and the chunks of their windows.

    Threads would not gain: `add.at` keeps the interpreter's lock.
    """
    values, space = stored(values)
    indices, planes = as_stored(indices, space), as_stored(planes, space)
    size = prod(planes.shape[space : space + 3])
    for block in memory.blocks(planes.shape[:space], MAX_SUMS // prod(planes.shape[space:])):
        yield values[block].reshape(-1), planes[block].reshape(-1), partial(_chunks, indices[block], size, space)


def _chunks(indices: Array, size: int, space: int) -> Chunks:
    """Chunks of windows without those of index -1, and their flat positions in all planes of `size`.

    Indices are stored as [N, C, D, H, W] or [N, D, H, W, C]; in the latter, plane neighbours have stride C.
    """
    windows, channels = prod(indices.shape[space : space + 3]), 1 if space == 2 else indices.shape[4]
    flat = indices.reshape(-1)
    for run in memory.runs(flat.size, MAX_WINDOWS):
        number = np.arange(run.start, run.stop)
        image, channel = number // (windows * channels), 0 if channels == 1 else number % channels
        places = (image * size + flat[run].astype(np.int64, copy=False)) * channels + channel
        inside = flat[run] >= 0
        yield (run, places) if inside.all() else (number[inside], places[inside])
