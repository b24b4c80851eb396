"""Pooling, unpooling and gathering on the GPU, as gathers: one thread computes each result, deterministically."""

from __future__ import annotations

from collections.abc import Callable
from math import gcd, prod

import numpy as np

from gpucnn.backends.cuda.device.runtime import Array, Runtime
from gpucnn.backends.cuda.device.sources import Kernel
from gpucnn.backends.cuda.launch.plans import IMAGE, INT32_END, SPACE, Fields, Layout, Work, launch, strides, zeros
from gpucnn.backends.cuda.pooling.tiles import NOT_STAGED, Ints, Tile, dense_order, fits_int32, pack_of, slots, tile_of
from gpucnn.backends.layout import is_channels_last
from gpucnn.geometry import AdaptiveAxis, Axis, PoolGeometry

MAX_POOL = Kernel("max_pool", "PoolParams")
MAX_POOL_WITH_INDICES = Kernel("max_pool", "PoolParams", function="max_pool_with_indices")
MAX_POOL_BACKWARD = Kernel("max_pool_backward", "PoolParams")
MAX_POOL_BACKWARD_OUT_OF_WINDOW = Kernel("max_pool_backward", "PoolParams", function="max_pool_backward_out_of_window")
AVERAGE_POOL = Kernel("average_pool", "PoolParams")
AVERAGE_POOL_BACKWARD = Kernel("average_pool_backward", "PoolParams")
UNPOOL = Kernel("unpool", "PlaneParams")
UNPOOL_ANYWHERE = Kernel("unpool", "PlaneParams", function="unpool_anywhere")
GATHER = Kernel("gather", "PlaneParams")

DIVIDES = {"none": 0, "padded": 1, "valid": 2}  # the DIVIDES_… of pooling.cuh
DIVIDES_NUMBER = 3
INT_BYTES = 4  # of an index in shared memory
FLAGS = 32  # planes whose flags a block of max_pool_backward_out_of_window or unpool_anywhere looks at
PART = 4096  # positions of a plane that unpool_anywhere computes per pass
LARGEST_BLOCK = 1024
LARGE_WINDOW = 256  # taps, from which on one window has several threads
LANES_BELOW = 256  # windows of a block below which several threads share each


# --- Kernel parameters --------------------------------------------------------------------------------------------


def _pool_fields(
    geometry: PoolGeometry, x: Layout, y: Layout, indices: Layout | None = None, *, written: Layout
) -> Fields:
    """The fields of PoolParams for x [N, C, D, H, W], y and indices [N, C, OD, OH, OW]."""
    fields: Fields = {"n": x.shape[0], "c": x.shape[1]}
    for name, axis in zip(SPACE, geometry.axes, strict=True):
        fields |= _axis_fields(name, axis)
    fields |= {**strides("x", IMAGE, x), **strides("y", IMAGE, y), **strides("at", IMAGE, indices)}
    by = geometry.divisor
    divides, divisor = (DIVIDES[by], 1.0) if isinstance(by, str) else (DIVIDES_NUMBER, float(by))
    return {**fields, "divides": divides, "divisor": divisor, "channels_last": int(is_channels_last(written))}


def _axis_fields(name: str, axis: Axis | AdaptiveAxis) -> Fields:
    adaptive = isinstance(axis, AdaptiveAxis)
    window = Axis(axis.size, out=axis.out) if isinstance(axis, AdaptiveAxis) else axis
    return {
        name: window.size,
        f"o{name}": window.out,
        f"adaptive_{name}": int(adaptive),
        f"k{name}": _taps(axis),
        f"stride_{name}": window.stride,
        f"dilation_{name}": window.dilation,
        f"low_{name}": window.low,
        f"high_{name}": window.high,
        f"output_step_{name}": window.dilation // gcd(window.stride, window.dilation),
        f"readers_{name}": _readers(axis),
    }


def _taps(axis: Axis | AdaptiveAxis) -> int:
    """Taps of the longest window."""
    return _most_of_a_share(axis.size, axis.out) if isinstance(axis, AdaptiveAxis) else axis.kernel


def _readers(axis: Axis | AdaptiveAxis) -> int:
    """Outputs that read one input, at most."""
    if isinstance(axis, AdaptiveAxis):
        return _most_of_a_share(axis.out, axis.size)
    return min(axis.out, -(-axis.kernel // (axis.stride // gcd(axis.stride, axis.dilation))))


def _most_of_a_share(total: int, parts: int) -> int:
    """The maximum length of [floor(i * total / parts), ceil((i + 1) * total / parts))."""
    return total // parts if total % parts == 0 else min(total, (total - 1) // parts + 2)


def _extents(geometry: PoolGeometry) -> tuple[int, ...]:
    """Bounds of index arithmetic: along each axis, positions in a plane, taps of a window."""
    sliding = [axis for axis in geometry.axes if isinstance(axis, Axis)]
    return (
        *((axis.size + 1) * (axis.out + 1) for axis in geometry.axes if isinstance(axis, AdaptiveAxis)),
        *(
            axis.size + axis.low + axis.high + (axis.out + 1) * axis.stride + (axis.kernel + 1) * axis.dilation
            for axis in sliding
        ),
        prod(geometry.input_size),
        prod(axis.kernel for axis in sliding),
    )


def _plane_fields(values: Layout, planes: Layout, indices: Layout, *, written: Layout) -> Fields:
    """The fields of PlaneParams for values and indices [N, C, D, H, W] and planes [N, C, PD, PH, PW]."""
    return {
        **dict(zip(IMAGE, values.shape, strict=True)),
        **dict(zip(("pd", "ph", "pw"), planes.shape[2:], strict=True)),
        **strides("values", IMAGE, values),
        **strides("planes", IMAGE, planes),
        **strides("at", IMAGE, indices),
        "channels_last": int(is_channels_last(written)),
    }


def _int64(indices: Array) -> Array:
    """Indices as the kernels read them; callers may give any integers."""
    return indices.astype(np.int64, copy=False)


# --- Tiles --------------------------------------------------------------------------------------------------------


def _inputs_within(axis: Axis | AdaptiveAxis, first: Ints, last: Ints) -> Ints:
    """Inputs from the first to the last that outputs [first, last) read, as in pooling.cuh."""
    if isinstance(axis, AdaptiveAxis):
        span: Ints = axis.windows(last - 1)[1] - axis.windows(first)[0]
        return span
    begin = np.clip(first * axis.stride - axis.low, 0, axis.size - 1)
    end = (last - 1) * axis.stride - axis.low + (axis.kernel - 1) * axis.dilation + 1
    return np.maximum(1, np.minimum(end, axis.size) - begin)


def _outputs_within(axis: Axis | AdaptiveAxis, first: Ints, last: Ints) -> Ints:
    """Outputs from the first to the last that read any of the inputs [first, last), as in pooling.cuh."""
    if isinstance(axis, AdaptiveAxis):
        return _inputs_within(axis.transposed, first, last)
    begin = np.clip(-(-(first + axis.low - (axis.kernel - 1) * axis.dilation) // axis.stride), 0, axis.out - 1)
    return np.maximum(1, np.minimum((last - 1 + axis.low) // axis.stride + 1, axis.out) - begin)


def _tile(
    geometry: PoolGeometry,
    arrays: tuple[Layout, ...],
    shared: Callable[[int, int], int],
    *,
    backward: bool = False,
    parted: bool = False,
) -> Tile | None:
    """A block's share of the array that is written; None where `arrays` are not to be staged.

    `shared` gives the bytes of shared memory for numbers of elements read and written.
    """
    channels_last = dense_order(*arrays)
    if channels_last is None or not fits_int32(geometry.input_size, geometry.output_size):
        return None
    n, c = arrays[0].shape[:2]
    sizes = (geometry.input_size, geometry.output_size)
    span = _outputs_within if backward else _inputs_within
    return tile_of(
        read=sizes[backward],
        written=sizes[not backward],
        span=lambda axis, first, last: span(geometry.axes[axis], first, last),
        grain=[axis.stride if backward and isinstance(axis, Axis) else 1 for axis in geometry.axes],
        planes=n if channels_last else n * c,
        channels=c if channels_last else 1,
        itemsize=arrays[0].itemsize,
        shared=shared,
        parted=parted,
    )


def _work(fields: Fields, geometry: PoolGeometry, arrays: tuple[Layout, ...], tile: Tile | None, written: int) -> Work:
    """The launch of a kernel that stages `tile`, or that has some threads for each element `written`."""
    extents = _extents(geometry)
    if tile is None:
        fields = {**fields, **NOT_STAGED, "row_lanes": 1, "by_rows": 0, "row_slots": 0}
        threads = written * fields["lanes"]
        extents = (*extents, arrays[0].size + threads + LARGEST_BLOCK)  # all threads may loop over the inputs
        return Work(fields, threads, extents=extents, constants=(("PACK", 1),))
    return Work(
        {**fields, **tile.fields, "channels_last": int(bool(dense_order(*arrays)))},
        blocks=tile.blocks if written else 0,
        extents=extents,
        constants=(("PACK", pack_of(*arrays)),),
        shared_bytes=tile.shared_bytes,
    )


# --- Forward ------------------------------------------------------------------------------------------------------


def max_pool(runtime: Runtime, x: Array, y: Array, indices: Array | None, geometry: PoolGeometry) -> None:
    """Y [N, C, OD, OH, OW], NaN where a window holds one, and indices: the first of equal maxima, the last of NaNs."""
    kernel, arrays = MAX_POOL if indices is None else MAX_POOL_WITH_INDICES, {"x": x, "y": y, "indices": indices}
    launch(runtime, kernel, x.dtype, arrays, _forward_work, geometry=geometry, is_max=True)


def average_pool(runtime: Runtime, x: Array, y: Array, geometry: PoolGeometry) -> None:
    """Y [N, C, OD, OH, OW]: each window's sum over its divisor."""
    launch(runtime, AVERAGE_POOL, x.dtype, {"x": x, "y": y}, _forward_work, geometry=geometry, is_max=False)


def _forward_work(x: Layout, y: Layout, geometry: PoolGeometry, is_max: bool, indices: Layout | None = None) -> Work:
    arrays = (x, y) if indices is None else (x, y, indices)
    w, by_rows = geometry.axes[2], is_max and _by_rows(geometry)
    of_output = x.itemsize + (0 if indices is None else INT_BYTES)

    def row_slots(read: int) -> int:
        return slots(read // w.size * w.out) if by_rows else 0

    def shared(read: int, written: int) -> int:
        return slots(read) * x.itemsize + row_slots(read) * (x.itemsize + INT_BYTES) + slots(written) * of_output

    taps = [_taps(axis) for axis in geometry.axes]
    tile = None if _reads_once(geometry, arrays) else _tile(geometry, arrays, shared, parted=not is_max)
    fields = _pool_fields(geometry, x, y, indices, written=y)
    fields |= {"lanes": 1, "by_rows": int(by_rows), "row_slots": 0}
    if tile is None:
        fields["lanes"] = 32 if taps[2] >= 32 and prod(taps) >= LARGE_WINDOW else 1
        return _work(fields, geometry, arrays, None, y.size)
    columns = tile.columns(w.out)
    fields |= {"row_lanes": columns, "row_slots": row_slots(tile.read)}
    if not by_rows and not dense_order(*arrays):
        if tile.written < LANES_BELOW and taps[2] >= 4 and prod(taps) >= 32:
            fields["lanes"] = 16 if taps[2] <= 16 else 32  # one or two windows per warp: two-way bank conflicts at most
        else:
            fields["row_lanes"] = _row_lanes(w, columns)
    return _work(fields, geometry, arrays, tile, y.size)


def _reads_once(geometry: PoolGeometry, arrays: tuple[Layout, ...]) -> bool:
    """Whether plain kernels read each input once, in order: small windows that share no input, channels last."""
    few = prod(_taps(axis) for axis in geometry.axes) < LARGE_WINDOW
    return few and bool(dense_order(*arrays)) and all(_readers(axis) == 1 for axis in geometry.axes)


def _by_rows(geometry: PoolGeometry) -> bool:
    """Whether row maxima, shared by several windows, save half of the comparisons, and more than a few.

    Of windows of 13 x 13 they save 75 % of the memory instructions.
    """
    d, h, w = geometry.axes
    if not (isinstance(d, Axis) and isinstance(h, Axis) and isinstance(w, Axis)):
        return False
    if d.size == d.out == h.size == h.out == 1:  # one row, so that bands do not consist of whole rows
        return False
    rows = d.kernel * h.kernel
    shared = w.kernel * min(d.stride, d.kernel) * min(h.stride, h.kernel) + rows
    return rows > 1 and 2 * shared <= rows * w.kernel and rows * w.kernel - shared >= 12


def _row_lanes(axis: Axis | AdaptiveAxis, columns: int) -> int:
    """Item pitch between rows of windows: windows of two rows in one warp may conflict in a bank.

    With a stride of 2 those of one row conflict already; at least half a warp per row limits conflicts to two ways, for
    up to 15 % fewer accesses to shared memory by 16 % more instructions.
    """
    stride = axis.stride if isinstance(axis, Axis) else 1
    if columns == 1 or (stride == 1 and (columns >= 32 or columns == axis.size)):
        return columns
    return -(-columns // 16) * 16


# --- Backward -----------------------------------------------------------------------------------------------------


def max_pool_backward(runtime: Runtime, grad_y: Array, indices: Array, grad_x: Array, geometry: PoolGeometry) -> None:
    """grad_x [N, C, D, H, W], assuming in-window indices; planes with out-of-window indices are recomputed."""
    indices = _int64(indices)
    out_of_window = zeros(runtime, grad_y.shape[:2], np.int32)
    arrays = {"grad_y": grad_y, "indices": indices, "out_of_window": out_of_window, "grad_x": grad_x}
    launch(runtime, MAX_POOL_BACKWARD, grad_y.dtype, arrays, _max_backward_work, geometry=geometry)
    launch(runtime, MAX_POOL_BACKWARD_OUT_OF_WINDOW, grad_y.dtype, arrays, _out_of_window_work, geometry=geometry)


def _max_backward_work(grad_y: Layout, indices: Layout, grad_x: Layout, geometry: PoolGeometry) -> Work:
    def shared(read: int, written: int) -> int:
        return slots(read) * (grad_y.itemsize + INT_BYTES) + slots(written) * grad_y.itemsize

    return _backward_work(geometry, (grad_y, grad_x, indices), shared)


def _out_of_window_work(
    grad_y: Layout, indices: Layout, out_of_window: Layout, grad_x: Layout, geometry: PoolGeometry
) -> Work:
    done = _max_backward_work(grad_y, indices, grad_x, geometry)
    return done._replace(threads=0, blocks=-(-out_of_window.size // FLAGS) if grad_x.size else 0, shared_bytes=0)


def average_pool_backward(runtime: Runtime, grad_y: Array, grad_x: Array, geometry: PoolGeometry) -> None:
    """grad_x [N, C, D, H, W]: each input's sum over its windows, each over its divisor."""
    arrays = {"grad_y": grad_y, "grad_x": grad_x}
    launch(runtime, AVERAGE_POOL_BACKWARD, grad_y.dtype, arrays, _average_backward_work, geometry=geometry)


def _average_backward_work(grad_y: Layout, grad_x: Layout, geometry: PoolGeometry) -> Work:
    def shared(read: int, written: int) -> int:
        return slots(read) * max(grad_y.itemsize, 4) + slots(written) * grad_y.itemsize  # gradients are widened

    return _backward_work(geometry, (grad_y, grad_x), shared)


def _backward_work(geometry: PoolGeometry, arrays: tuple[Layout, ...], shared: Callable[[int, int], int]) -> Work:
    grad_y, grad_x, *indices = arrays
    tile = _tile(geometry, arrays, shared, backward=True, parted=True)
    fields = _pool_fields(geometry, grad_x, grad_y, *indices, written=grad_x)
    columns = 1 if tile is None else tile.columns(geometry.input_size[2])
    fields |= {"lanes": 1, "row_lanes": columns, "by_rows": 0, "row_slots": 0}
    return _work(fields, geometry, arrays, tile, grad_x.size)


# --- By index -----------------------------------------------------------------------------------------------------


def unpool(runtime: Runtime, values: Array, indices: Array, planes: Array) -> None:
    """Planes [N, C, OD, OH, OW] with values scattered by the indices; of values with one index the last is kept.

    Raises
    ------
    ValueError
        A plane holds 2**31 values or more.
    """
    if prod(values.shape[2:]) >= INT32_END:
        raise ValueError(f"unpool: values has planes of {prod(values.shape[2:])} values, expected less than 2**31")
    indices = _int64(indices)
    out_of_window = zeros(runtime, planes.shape[:2], np.int32)
    arrays = {"values": values, "indices": indices, "out_of_window": out_of_window, "planes": planes}
    launch(runtime, UNPOOL, values.dtype, arrays, _unpool_work)  # no launch where they are not staged
    launch(runtime, UNPOOL_ANYWHERE, values.dtype, arrays, _unpool_anywhere_work)


def _unpool_tile(values: Layout, indices: Layout, planes: Layout) -> Tile | None:
    """A block's share of `planes`; None where the arrays are not to be staged."""
    read, written = values.shape[2:], planes.shape[2:]
    channels_last = dense_order(values, indices, planes)
    if channels_last is None or not fits_int32(read, written):
        return None

    def span(axis: int, first: Ints, last: Ints) -> Ints:
        begin = first * read[axis] // written[axis] - 1
        end = -(-last * read[axis] // written[axis]) + 1
        return np.minimum(end, read[axis]) - np.maximum(begin, 0)

    def shared(read: int, written: int) -> int:
        return (slots(read) + slots(written)) * (values.itemsize + INT_BYTES)

    n, c = values.shape[:2]
    grain = [max(1, -(-places // of)) for places, of in zip(written, read, strict=True)]
    planes_of = (n, c) if channels_last else (n * c, 1)
    return tile_of(read, written, span, grain, *planes_of, values.itemsize, shared, parted=True)


def _unpool_fields(values: Layout, indices: Layout, planes: Layout) -> tuple[Fields, Tile | None]:
    tile = _unpool_tile(values, indices, planes)
    fields = _plane_fields(values, planes, indices, written=planes)
    if tile is None:
        return {**fields, **NOT_STAGED}, None
    return {**fields, **tile.fields, "channels_last": int(bool(dense_order(values, indices, planes)))}, tile


def _plane_extents(values: Layout, planes: Layout) -> tuple[int, ...]:
    """Bounds of index arithmetic."""
    pairs = zip(values.shape[2:], planes.shape[2:], strict=True)
    return (prod(planes.shape[2:]), *((size + 1) * (places + 1) for size, places in pairs))


def _unpool_work(values: Layout, indices: Layout, planes: Layout) -> Work:
    fields, tile = _unpool_fields(values, indices, planes)
    if tile is None:
        return Work(fields, blocks=0)
    constants = (("PACK", pack_of(values, indices, planes)),)
    return Work(
        fields,
        blocks=tile.blocks,
        extents=_plane_extents(values, planes),
        constants=constants,
        shared_bytes=tile.shared_bytes,
    )


def _unpool_anywhere_work(values: Layout, indices: Layout, out_of_window: Layout, planes: Layout) -> Work:
    fields, tile = _unpool_fields(values, indices, planes)
    pack = 1 if tile is None else pack_of(values, indices, planes)
    blocks = out_of_window.size if tile is None else -(-out_of_window.size // FLAGS)
    extents = (*_plane_extents(values, planes), prod(planes.shape[2:]) + PART)
    return Work(fields, blocks=blocks if planes.size else 0, extents=extents, constants=(("PACK", pack),))


def gather(runtime: Runtime, planes: Array, indices: Array, values: Array) -> None:
    """Values [N, C, D, H, W] of the planes at the indices; 0 where an index is -1."""
    indices = _int64(indices)
    launch(runtime, GATHER, planes.dtype, {"planes": planes, "indices": indices, "values": values}, _gather_work)


def _gather_work(planes: Layout, indices: Layout, values: Layout) -> Work:
    fields = {**_plane_fields(values, planes, indices, written=values), **NOT_STAGED}
    return Work(fields, values.size, extents=(prod(planes.shape[2:]),))
