"""Copies between memory orders and dtypes on the GPU, with coalesced reads and writes, and masked ones."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from gpucnn.backends.cuda.device.limits import SECTOR_BYTES, power_of_two, skewed
from gpucnn.backends.cuda.device.runtime import MAX_BYTES, Array, Runtime
from gpucnn.backends.cuda.device.sources import Kernel
from gpucnn.backends.cuda.elementwise.tiles import Line, pack_pitch, pack_tile
from gpucnn.backends.cuda.launch.plans import Layout, Work, is_addressable, launch, strides
from gpucnn.backends.dtypes import kernel_accumulator
from gpucnn.backends.layout import is_dense
from gpucnn.backends.listening import note_computed

PACK = Kernel("pack", "PackParams")
AXES = ("n", "c", "p")


def pack(runtime: Runtime, x: Array, y: Array, bias: Array | None = None, target: str | None = None) -> None:
    """Write x [N, C, P] plus bias [C] to y [N, C, P], whatever the strides of the two.

    Without bias, y may have more channels than x: these are filled with zeros. `target` is y's dtype, or "tf32" for
    float32 that is rounded to what tensor cores read of it.
    """
    sum_bytes = kernel_accumulator(x.dtype).itemsize
    arrays = {"x": x, "bias": bias, "y": y}
    launch(runtime, PACK, x.dtype, arrays, _work, target=target or y.dtype.name, sum_bytes=sum_bytes)


def copy(runtime: Runtime, x: Array, y: Array, target: str | None = None) -> None:
    """Write x [N, C, *] to y, and zeros to channels that only y has: as planes by `pack`, or by the array library."""
    planes, channels = _planes(y), x.shape[1]
    if planes is not None:
        pack(runtime, x.reshape(*x.shape[:2], planes.shape[2]), planes, target=target)
        return
    note_computed()
    y[:, :channels] = x
    y[:, channels:] = 0


def masked(runtime: Runtime, values: Array, mask: Array, y: Array) -> None:
    """Y = values where the mask is True, and 0 elsewhere, whatever the values are there.

    CuPy's `where` would save a pass, but returns C order, and float32 for bfloat16.
    """
    note_computed()
    y[...] = 0
    runtime.xp.copyto(y, values, where=mask)


def _planes(x: Array) -> Array | None:
    """X [N, C, *] as [N, C, P], if there is such a view and its elements are aligned to their size."""
    if x.ndim < 3 or not x.size or not is_addressable(x):
        return None
    axes = [(size, step) for size, step in zip(x.shape[2:], x.strides[2:], strict=True) if size > 1]
    if any(step != size * inner for (_, step), (size, inner) in pairwise(axes)):
        return None
    return x.reshape(*x.shape[:2], -1)


class _Side(NamedTuple):
    """Memory order of one of the arrays: whether along channels, and the vector width."""

    along_c: bool
    pack: int
    may_be_one: bool  # adjacent rows that need not start at a sector


def _work(x: Layout, bias: Layout | None, y: Layout, target: str, sum_bytes: int) -> Work:
    if not y.size:
        return Work({}, blocks=0)
    same = bias is None and x.shape == y.shape
    if same and is_dense(x, (0, 1, 2)) and is_dense(y, (0, 1, 2)):  # in the same order, no transpose
        x, y = (array._replace(shape=(1, 1, x.size), strides=(0, 0, array.itemsize)) for array in (x, y))
    n, c, p = y.shape
    read, written = _side(x), _side(y)
    whole_c, whole_p = (
        any(side.may_be_one and side.along_c == axis for side in (read, written)) for axis in (True, False)
    )
    tile = pack_tile(c, p, whole_c, whole_p, x.itemsize)
    lines = [_line(side, tile, array.shape[1:]) for side, array in ((read, x), (written, y))]
    turned = read.along_c != written.along_c
    row, rows = tile if read.along_c else tile[::-1]
    pitch = pack_pitch(row, x.itemsize, lines[0], lines[1], turned)
    room = -(-(skewed(tile[0], sum_bytes) + 1) * sum_bytes // MAX_BYTES) * MAX_BYTES if bias is not None else 0
    fields = {
        **{"n": n, "c": c, "p": p, "x_channels": x.shape[1]},
        **strides("x", AXES, x),
        **strides("y", AXES, y),
        **strides("bias", ("c",), bias),
        **{"tile_c": tile[0], "tile_p": tile[1]},
        **{"x_along_c": int(read.along_c), "y_along_c": int(written.along_c)},
        **{"x_is_one": int(lines[0].is_one), "y_is_one": int(lines[1].is_one)},
        **{"x_lanes": lines[0].lanes, "y_lanes": lines[1].lanes},
        **{"pitch": pitch, "biases": room // sum_bytes},
    }
    return Work(
        fields,
        blocks=n * -(-c // tile[0]) * -(-p // tile[1]),
        extents=(c + tile[0], p + tile[1], x.size + 2 * tile[0] * tile[1]),
        constants=(("X_PACK", read.pack), ("Y_PACK", written.pack), ("TARGET", target)),
        shared_bytes=room + (skewed(rows * pitch, x.itemsize) + 1) * x.itemsize,
    )


def _line(side: _Side, tile: tuple[int, int], sizes: tuple[int, ...]) -> Line:
    """Lane mapping of a tile on one side, of so many channels and positions."""
    axis = 0 if side.along_c else 1
    row = min(tile[axis], sizes[axis])
    is_one = side.may_be_one and row == sizes[axis]
    lanes = 256 if is_one else min(256, power_of_two(-(-row // side.pack)))
    return Line(row, lanes, side.pack, is_one, side.may_be_one and not is_one)


def _side(x: Layout) -> _Side:
    along_c = _channels_are_innermost(x)
    inner, outer = (1, 2) if along_c else (2, 1)
    is_packed = x.shape[inner] == 1 or x.strides[inner] == x.itemsize
    row_bytes = x.shape[inner] * x.itemsize
    follow = is_packed and (x.shape[outer] == 1 or x.strides[outer] == row_bytes)
    is_wide = is_packed and (follow or row_bytes >= SECTOR_BYTES)  # else no row holds a whole sector
    width = x.alignment // x.itemsize or 1 if is_wide else 1
    return _Side(along_c, width, follow and row_bytes % SECTOR_BYTES != 0)


def _channels_are_innermost(x: Layout) -> bool:
    """Whether channels of x [N, C, P] have a smaller stride than positions."""
    _, c, p = x.shape
    return bool(c > 1 and (p == 1 or abs(x.strides[1]) < abs(x.strides[2])))
