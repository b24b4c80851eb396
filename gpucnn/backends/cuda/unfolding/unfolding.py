"""im2col and col2im on the GPU, tile by tile of the image."""

from __future__ import annotations

from math import prod

from gpucnn.backends.cuda.convolution.fields import axis_fields, extents
from gpucnn.backends.cuda.device.limits import MAX_SHARED_BYTES, power_of_two, skewed
from gpucnn.backends.cuda.device.runtime import MAX_BYTES, Array, Runtime
from gpucnn.backends.cuda.device.sources import Kernel
from gpucnn.backends.cuda.launch.plans import IMAGE, SPACE, Fields, Layout, Work, launch, strides
from gpucnn.backends.cuda.unfolding.tiles import channel_pitch, unfold_tile
from gpucnn.backends.dtypes import kernel_accumulator, name_of
from gpucnn.backends.layout import is_channels_last, is_dense
from gpucnn.geometry import Axis, ConvGeometry

IM2COL = Kernel("im2col", "UnfoldParams")
COL2IM = Kernel("col2im", "UnfoldParams")


def im2col(runtime: Runtime, x: Array, columns: Array, geometry: ConvGeometry) -> None:
    """Columns [N, C * KD * KH * KW, OD * OH * OW] of x."""
    launch(runtime, IM2COL, x.dtype, {"x": x, "columns": columns}, _im2col_work, geometry=geometry)


def _im2col_work(x: Layout, columns: Layout, geometry: ConvGeometry) -> Work:
    """Tiles of the inputs and padding covered by windows, staged in shared memory."""
    spans, rows = [(0, _reach(axis)) for axis in geometry.axes], geometry.axes[1]
    read = {tap * rows.dilation % rows.stride for tap in range(rows.kernel)}  # of the rows between two windows
    return _work(x, columns, geometry, spans, x.itemsize, has_gaps=len(read) < rows.stride)


def col2im(runtime: Runtime, columns: Array, x: Array, geometry: ConvGeometry) -> None:
    """Image x [N, C, D, H, W], of any strides: each input's sum over the entries that it was unfolded into.

    The columns of a 16-bit image may be in float32.
    """
    arrays = {"columns": columns, "x": x}
    facts = {"geometry": geometry, "sum_bytes": kernel_accumulator(x.dtype).itemsize, "entry": name_of(columns.dtype)}
    launch(runtime, COL2IM, x.dtype, arrays, _col2im_work, **facts)


def _col2im_work(columns: Layout, x: Layout, geometry: ConvGeometry, sum_bytes: int, entry: str) -> Work:
    """Tiles of the inputs, and of the padding adjacent to their rows, accumulated in shared memory."""
    depth, rows, row = geometry.axes
    spans = [(depth.low, depth.size), (rows.low, rows.size), (0, max(row.low + row.size, _reach(row)))]
    work = _work(x, columns, geometry, spans, sum_bytes, has_gaps=False)
    return work._replace(constants=(*work.constants, ("ENTRY", entry)))


def _work(
    x: Layout,
    columns: Layout,
    geometry: ConvGeometry,
    spans: list[tuple[int, int]],
    itemsize: int,
    *,
    has_gaps: bool,
) -> Work:
    """The launch over tiles of `spans`: along each axis the first input from the first padding, and how many.

    With `has_gaps` there are rows between the windows, or within them, that no tap reads.
    """
    (n, c), (_, axis_h, axis_w) = x.shape[:2], geometry.axes
    last = is_channels_last(x)
    contiguous = columns.strides[2] == columns.itemsize
    pack = columns.alignment // columns.itemsize or 1 if contiguous else 1
    tile = unfold_tile(
        c, spans[1][1], spans[2][1], axis_w.out, axis_h.stride, x.itemsize, itemsize, n * spans[0][1], last
    )
    tiles = [-(-size // part) for size, part in zip((c, spans[1][1], spans[2][1]), tile, strict=True)]
    pitch = -(-tile[2] // pack) * pack if axis_w.stride == 1 else tile[2]  # rows at the same place within a pack
    plane = channel_pitch(tile[1] * pitch, tile[0], itemsize) if last else tile[1] * pitch
    if skewed(tile[0] * plane, itemsize) * itemsize > MAX_SHARED_BYTES:
        pitch, plane = tile[2], tile[1] * tile[2]
    run = -(-tile[1] // axis_h.stride) * min(axis_w.out, -(-tile[2] // axis_w.stride))
    fields: Fields = {"n": n, "c": c}
    for name, axis, (first, span) in zip(SPACE, geometry.axes, spans, strict=True):
        fields |= axis_fields(name, axis) | {f"first_{name}": first, f"span_{name}": span}
        fields[f"step_{name}"] = min(axis.kernel, fields[f"tap_step_{name}"])
    fields |= {
        **strides("x", IMAGE, x),
        **strides("y", ("n", "c", "w"), columns),
        **dict(zip(("tile_c", "tile_h", "tile_w"), tile, strict=True)),
        **dict(zip(("tiles_c", "tiles_h", "tiles_w"), tiles, strict=True)),
        "plane": plane,
        "pitch": pitch,
        "shared": skewed(tile[0] * plane, itemsize),
        "lanes": min(256, max(16, power_of_two(-(-run // pack) + 1))),
        "x_is_dense": int(is_dense(x, (3, 4)) and x.alignment == MAX_BYTES and not has_gaps),  # whole accesses
        "x_is_channels_last": int(last),
        "has_gaps": int(has_gaps),
    }
    blocks = n * spans[0][1] * prod(tiles)
    reach = (*extents(geometry), prod(tile) + 256, run + 256 * pack)
    shared_bytes = fields["shared"] * itemsize
    return Work(fields, blocks=blocks, extents=reach, constants=(("PACK", pack),), shared_bytes=shared_bytes)


def _reach(axis: Axis) -> int:
    """Number of inputs from the first to the last in any window, padding included."""
    return (axis.out - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1
