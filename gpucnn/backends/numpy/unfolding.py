"""im2col, col2im, and the locally connected layer as a batched GEMM over positions."""

from __future__ import annotations

from math import prod

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import memory, threads
from gpucnn.backends.numpy.columns import reads_of, windows_of
from gpucnn.backends.numpy.memory import Array, Block
from gpucnn.backends.numpy.windows import add_windows, sums_of, taps_of
from gpucnn.geometry import ConvGeometry

# Most entries of columns of one piece of work. Pieces of a quarter of that were no quicker on 2 threads than on one:
# their calls are so short that threads wait for each other.
PIECE_ITEMS = 1 << 20

# Numbers of a locally connected layer's weights or windows that are not worth a thread.
WORTH_SHARING = 1 << 17


def im2col(x: Array, columns: Array, geometry: ConvGeometry) -> None:
    """Columns [N, C * taps, positions], in C order, of x [N, C, D, H, W]."""
    windows = columns.reshape(*x.shape[:2], *geometry.kernel_size, *geometry.output_size)
    reads = reads_of(geometry.forward, _everything(geometry))

    def copy(images: Block) -> None:
        windows[images] = windows_of(x[images], reads)

    threads.run(copy, _pieces(windows))


def col2im(columns: Array, x: Array, geometry: ConvGeometry) -> None:
    """Image x [N, C, D, H, W], in C order, from columns [N, C * taps, positions]."""
    windows = columns.reshape(*x.shape[:2], *geometry.kernel_size, *geometry.output_size)
    taps = taps_of(geometry.forward, _everything(geometry))

    def add(images: Block) -> None:
        part = x[images]
        sums = sums_of(part)
        sums[...] = 0
        add_windows(windows[images], taps, sums)
        if sums is not part:
            part[...] = sums

    threads.run(add, _pieces(windows))


def _everything(geometry: ConvGeometry) -> Block:
    return tuple(slice(0, out) for out in geometry.output_size)


def _pieces(windows: Array) -> list[Block]:
    """Blocks of images and channels."""
    return list(memory.blocks(windows.shape[:2], PIECE_ITEMS // prod(windows.shape[2:]))) if windows.size else []


# --- Locally connected: w [OC, OD, OH, OW, C, KD, KH, KW] ----------------------------------------------------------
#
# A stack of products, one at each position (d, h, w) of a block, with K = C * taps.


def locally_connect(x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry) -> None:
    """Y [N, OC, OD, OH, OW]: at each position, [OC, K] @ [K, N]."""
    dtype = accumulator(x.dtype)

    def compute(block: Block) -> None:
        result = _at_positions(w[:, *block], dtype) @ _columns_at(x, geometry, block)  # [d, h, w, OC, N]
        if bias is not None:
            np.add(result, _at_positions(bias[:, *block], dtype), out=result)
        y[:, :, *block] = result.transpose(4, 3, 0, 1, 2)

    threads.run(compute, _blocks(geometry, len(x), dtype))


def locally_connect_backward_input(grad_y: Array, w: Array, grad_x: Array, geometry: ConvGeometry) -> None:
    """grad_x [N, C, D, H, W]: at each position, [K, OC] @ [OC, N], added back to where K was read."""
    dtype = accumulator(grad_y.dtype)
    sums = np.zeros(grad_x.shape, dtype)
    for block in _blocks(geometry, len(grad_y), dtype):
        filters = _at_positions(w[:, *block], dtype).swapaxes(3, 4)
        products = filters @ grad_y[:, :, *block].transpose(2, 3, 4, 1, 0).astype(dtype)  # [d, h, w, K, N]
        columns = products.reshape(*products.shape[:3], sums.shape[1], *geometry.kernel_size, len(sums))
        add_windows(columns.transpose(7, 3, 4, 5, 6, 0, 1, 2), taps_of(geometry.forward, block), sums)
    grad_x[...] = sums


def locally_connect_backward_weight(x: Array, grad_y: Array, grad_w: Array, geometry: ConvGeometry) -> None:
    """grad_w [OC, OD, OH, OW, C, KD, KH, KW]: at each position, [OC, N] @ [N, K]."""
    dtype = accumulator(x.dtype)

    def compute(block: Block) -> None:
        gradient = grad_y[:, :, *block].transpose(2, 3, 4, 1, 0).astype(dtype)
        result = np.moveaxis(gradient @ _columns_at(x, geometry, block).swapaxes(3, 4), 3, 0)  # [OC, d, h, w, K]
        grad_w[:, *block] = result.reshape(grad_w[:, *block].shape)

    threads.run(compute, _blocks(geometry, len(x), dtype))


def _at_positions(w: Array, dtype: np.dtype) -> Array:
    """W [OC, d, h, w, C, KD, KH, KW] as [d, h, w, OC, K], or bias [OC, d, h, w] as [d, h, w, OC, 1]."""
    return np.moveaxis(w.reshape(*w.shape[:4], -1), 0, 3).astype(dtype, copy=False)


def _columns_at(x: Array, geometry: ConvGeometry, block: Block) -> Array:
    """The windows [d, h, w, K, N] that are read at the positions of a block."""
    windows = windows_of(x, reads_of(geometry.forward, block)).transpose(5, 6, 7, 1, 2, 3, 4, 0)
    columns = np.ascontiguousarray(windows, accumulator(x.dtype))
    return columns.reshape(*columns.shape[:3], prod(columns.shape[3:7]), len(x))


def _blocks(geometry: ConvGeometry, n: int, dtype: np.dtype) -> list[Block]:
    """Blocks of positions whose matrices, [K, N], [OC, K] and [OC, N] at each, stay within the workspace.

    There are some for each thread where a block's products are worth one.
    """
    rows, outputs, images = geometry.channels.inputs * geometry.taps, geometry.channels.outputs, max(1, n)
    widest = max(rows * images, outputs * rows, outputs * images)
    positions = prod(geometry.output_size)
    shares = max(1, min(8, positions * widest // WORTH_SHARING))
    most = min(memory.WORKSPACE_BYTES // (widest * dtype.itemsize), -(-positions // shares))
    return list(memory.blocks(geometry.output_size, most))
