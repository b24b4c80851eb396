"""im2col and col2im, and the locally connected layer, which is a product of matrices at each position."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import memory
from gpucnn.backends.numpy.memory import Array, Block
from gpucnn.backends.numpy.windows import Taps, add_windows, read_windows, taps_of
from gpucnn.geometry import ConvGeometry


def _everything(geometry: ConvGeometry) -> Taps:
    return taps_of(geometry.forward, tuple(slice(0, out) for out in geometry.output_size))


def im2col(x: Array, geometry: ConvGeometry) -> Array:
    """Columns [N, C * taps, positions] of x [N, C, D, H, W]."""
    n, c = x.shape[:2]
    columns = np.empty((n, 1, c, *geometry.kernel_size, *geometry.output_size), x.dtype)
    read_windows(x[:, None], _everything(geometry), np.moveaxis(columns, 0, 5))
    return columns.reshape(n, c * geometry.taps, prod(geometry.output_size))


def col2im(columns: Array, geometry: ConvGeometry) -> Array:
    """Image [N, C, D, H, W] from columns [N, C * taps, positions]."""
    n, c = columns.shape[0], geometry.channels.inputs
    image = np.zeros((n, 1, c, *geometry.input_size), accumulator(columns.dtype))
    windows = columns.reshape(n, 1, c, *geometry.kernel_size, *geometry.output_size)
    add_windows(np.moveaxis(windows, 0, 5), _everything(geometry), image)
    return image[:, 0].astype(columns.dtype, copy=False)


# --- Locally connected: w [OC, OD, OH, OW, C, KD, KH, KW] ----------------------------------------------------------


def locally_connect(x: Array, w: Array, bias: Array | None, geometry: ConvGeometry) -> Array:
    """Y [N, OC, OD, OH, OW]: at each position, [OC, K] @ [K, N] with K = C * taps."""
    n = x.shape[0]
    dtype = accumulator(x.dtype)
    y = memory.empty((n, geometry.channels.outputs, *geometry.output_size), x.dtype, like=x)
    for block, columns in _position_blocks(x, geometry):
        filters = _at_positions(w[:, *block], dtype)
        result = filters @ columns  # [P, OC, N]
        y[:, :, *block] = result.transpose(2, 1, 0).reshape(y[:, :, *block].shape)
    if bias is not None:
        np.add(y, bias, out=y)
    return y


def locally_connect_backward_input(grad_y: Array, w: Array, geometry: ConvGeometry) -> Array:
    """grad_x [N, C, D, H, W]: at each position, [K, OC] @ [OC, N], added back to where K was read."""
    n, c = grad_y.shape[0], geometry.channels.inputs
    dtype = accumulator(grad_y.dtype)
    grad_x = np.zeros((n, 1, c, *geometry.input_size), dtype)
    for block in _blocks(geometry, n, dtype):
        size = _size(block)
        filters = _at_positions(w[:, *block], dtype).swapaxes(1, 2)  # [P, K, OC]
        grad = _images_at_positions(grad_y[:, :, *block], dtype)  # [P, OC, N]
        columns = (filters @ grad).reshape(*size, 1, c, *geometry.kernel_size, n)
        add_windows(columns.transpose(3, 4, 5, 6, 7, 8, 0, 1, 2), taps_of(geometry.forward, block), grad_x)
    result = memory.empty(grad_x[:, 0].shape, grad_y.dtype, like=grad_y)
    result[...] = grad_x[:, 0]
    return result


def locally_connect_backward_weight(x: Array, grad_y: Array, geometry: ConvGeometry) -> Array:
    """grad_w [OC, OD, OH, OW, C, KD, KH, KW]: at each position, [OC, N] @ [N, K]."""
    inputs, outputs, _ = geometry.channels
    grad_w = np.empty((outputs, *geometry.output_size, inputs, *geometry.kernel_size), x.dtype)
    for block, columns in _position_blocks(x, geometry):
        result = _images_at_positions(grad_y[:, :, *block], columns.dtype) @ columns.swapaxes(1, 2)  # [P, OC, K]
        grad_w[:, *block] = result.swapaxes(0, 1).reshape(grad_w[:, *block].shape)
    return grad_w


def _at_positions(w: Array, dtype: np.dtype) -> Array:
    """W [OC, d, h, w, C, KD, KH, KW] as [P, OC, K]."""
    positions = prod(w.shape[1:4])
    return w.reshape(w.shape[0], positions, -1).swapaxes(0, 1).astype(dtype, copy=False)


def _images_at_positions(grad_y: Array, dtype: np.dtype) -> Array:
    """grad_y [N, OC, d, h, w] as [P, OC, N]; N may be 0."""
    return grad_y.reshape(*grad_y.shape[:2], prod(grad_y.shape[2:])).transpose(2, 1, 0).astype(dtype)


def _size(block: Block) -> tuple[int, ...]:
    return tuple(s.stop - s.start for s in block)


def _blocks(geometry: ConvGeometry, n: int, dtype: np.dtype) -> Iterator[Block]:
    """Blocks of positions whose matrices, [K, N], [OC, K] and [OC, N] at each, stay within the workspace."""
    rows, outputs, images = geometry.channels.inputs * geometry.taps, geometry.channels.outputs, max(1, n)
    widest = max(rows * images, outputs * rows, outputs * images) * dtype.itemsize
    return memory.blocks(geometry.output_size, memory.WORKSPACE_BYTES // widest)


def _position_blocks(x: Array, geometry: ConvGeometry) -> Iterator[tuple[Block, Array]]:
    """Blocks of positions (D, H, W) and the windows read there, [P, K, N]."""
    n, c = x.shape[:2]
    dtype = accumulator(x.dtype)
    for block in _blocks(geometry, n, dtype):
        size = _size(block)
        windows = np.empty((*size, 1, c, *geometry.kernel_size, n), dtype)
        read_windows(x[:, None], taps_of(geometry.forward, block), windows.transpose(3, 4, 5, 6, 7, 8, 0, 1, 2))
        yield block, windows.reshape(prod(size), c * geometry.taps, n)
