"""im2col and col2im in C++."""

from __future__ import annotations

from math import prod

import numpy as np

from gpucnn.backends.cpu.library import Kernel, Value, launch, strides
from gpucnn.backends.numpy.memory import Array
from gpucnn.geometry import ConvGeometry

_IM2COL = Kernel("im2col")
_COL2IM = Kernel("col2im")

ITEM_ENTRIES = 1 << 17  # of the columns, for one item of work: some 50 us, which a thread takes to wake up
CHANNELS = 8  # as in kernels/cpu/im2col.cpp
LANES = 16  # channels that are read together where they are innermost
SUMS_BYTES = 1 << 15  # of a block of col2im's partial sums, which stay in the L1 cache


def im2col(x: Array, columns: Array, geometry: ConvGeometry) -> None:
    """Columns [N, C * taps, positions], in C order, of x [N, C, D, H, W]."""
    n, c = x.shape[:2]
    depth, height, width = geometry.axes
    is_planar = _is_planar(x)
    c_block = _channels_of_item(geometry)
    if not is_planar:
        c_block = max(c_block, LANES)
    oh_block = -(-height.out // _parts_of_channel(geometry)) if is_planar and c_block == 1 else height.out
    values: dict[str, Value] = {
        **window_fields(geometry),
        **strides("x", x, "ncdhw"),
        **_columns_strides(geometry),
        **{"n": n, "is_planar": is_planar, "c_block": c_block, "oh_block": oh_block},
    }
    workspace = 0 if is_planar else min(c, c_block) * prod(geometry.input_size)
    if width.stride > 1:
        split = prod(-(-axis.size // axis.stride) * axis.stride for axis in (height, width))
        workspace += min(c, c_block, CHANNELS) * depth.size * split
    arrays = {"x": x, "columns": columns}
    launch(_IM2COL, x.dtype.name, values, arrays, n * -(-c // c_block) * -(-height.out // oh_block), workspace)


def col2im(columns: Array, x: Array, geometry: ConvGeometry) -> None:
    """Image x [N, C, D, H, W], in C order, from columns [N, C * taps, positions]."""
    n, c = x.shape[:2]
    depth, height, width = geometry.axes
    entries = columns if columns.flags.c_contiguous else np.ascontiguousarray(columns)
    c_block = _channels_of_item(geometry)
    row = width.kernel * width.out  # of the partial sums
    rows = max(1, min(-(-height.size // height.stride), SUMS_BYTES // (row * x.itemsize)))
    blocks = depth.size * -(-height.size // (height.stride * rows))
    parts = min(blocks, _parts_of_channel(geometry)) if c_block == 1 else 1
    values: dict[str, Value] = {
        **window_fields(geometry),
        **_columns_strides(geometry),
        **{"n": n, "rows": rows, "c_block": c_block, "parts": parts},
    }
    workspace = rows * (row + width.size + width.stride)
    arrays = {"columns": entries, "x": x}
    launch(_COL2IM, x.dtype.name, values, arrays, n * -(-c // c_block) * parts, workspace)


def window_fields(geometry: ConvGeometry) -> dict[str, Value]:
    """The kernels' fields that describe images [C, D, H, W] and the windows that slide over them."""
    values: dict[str, Value] = {"c": geometry.channels.inputs}
    for name, axis in zip("dhw", geometry.axes, strict=True):
        values |= {name: axis.size, f"k{name}": axis.kernel, f"o{name}": axis.out}
        values |= {f"s{name}": axis.stride, f"d{name}": axis.dilation, f"p{name}": axis.low}
    return values


def _columns_strides(geometry: ConvGeometry) -> dict[str, Value]:
    of_channel = geometry.taps * prod(geometry.output_size)
    return {"columns_n": geometry.channels.inputs * of_channel, "columns_c": of_channel}


def _channels_of_item(geometry: ConvGeometry) -> int:
    return max(1, ITEM_ENTRIES // (geometry.taps * prod(geometry.output_size)))


def _parts_of_channel(geometry: ConvGeometry) -> int:
    """Parts of a channel that make an item, of half as many entries as one of several channels."""
    return max(1, 2 * geometry.taps * prod(geometry.output_size) // ITEM_ENTRIES)


def _is_planar(x: Array) -> bool:
    """Whether each plane [D, H, W] of x is contiguous."""
    step = x.itemsize
    for size, stride in zip(reversed(x.shape[2:]), reversed(x.strides[2:]), strict=True):
        if size > 1 and stride != step:
            return False
        step *= size
    return True
