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
PIECE_ITEMS = 1 << 21

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


def locally_connect(x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry) -> None:
    """Y [N, OC, OD, OH, OW]: at each position, [OC, K] @ [K, N] with K = C * taps."""
    n = x.shape[0]
    dtype = accumulator(x.dtype)

    def compute(block: Block) -> None:
        result = _at_positions(w[:, *block], dtype) @ _columns_at(x, geometry, block)  # [P, OC, N]
        if bias is not None:
            np.add(result, _at_positions(bias[:, *block], dtype), out=result)
        part = y[:, :, *block]
        part[...] = result.transpose(2, 1, 0).reshape(part.shape)

    threads.run(compute, _blocks(geometry, n, dtype))


def locally_connect_backward_input(grad_y: Array, w: Array, grad_x: Array, geometry: ConvGeometry) -> None:
    """grad_x [N, C, D, H, W]: at each position, [K, OC] @ [OC, N], added back to where K was read."""
    n, c = grad_y.shape[0], geometry.channels.inputs
    dtype = accumulator(grad_y.dtype)
    sums = np.zeros((n, c, *geometry.input_size), dtype)
    for block in _blocks(geometry, n, dtype):
        size = _size(block)
        filters = _at_positions(w[:, *block], dtype).swapaxes(1, 2)  # [P, K, OC]
        grad = _images_at_positions(grad_y[:, :, *block], dtype)  # [P, OC, N]
        columns = (filters @ grad).reshape(*size, c, *geometry.kernel_size, n)
        add_windows(columns.transpose(7, 3, 4, 5, 6, 0, 1, 2), taps_of(geometry.forward, block), sums)
    grad_x[...] = sums


def locally_connect_backward_weight(x: Array, grad_y: Array, grad_w: Array, geometry: ConvGeometry) -> None:
    """grad_w [OC, OD, OH, OW, C, KD, KH, KW]: at each position, [OC, N] @ [N, K]."""
    dtype = accumulator(x.dtype)

    def compute(block: Block) -> None:
        columns = _columns_at(x, geometry, block)
        result = _images_at_positions(grad_y[:, :, *block], dtype) @ columns.swapaxes(1, 2)  # [P, OC, K]
        grad_w[:, *block] = result.swapaxes(0, 1).reshape(grad_w[:, *block].shape)

    threads.run(compute, _blocks(geometry, len(x), dtype))


def _at_positions(w: Array, dtype: np.dtype) -> Array:
    """W [OC, d, h, w, C, KD, KH, KW] as [P, OC, K], or bias [OC, d, h, w] as [P, OC, 1]."""
    positions = prod(w.shape[1:4])
    return w.reshape(w.shape[0], positions, -1).swapaxes(0, 1).astype(dtype, copy=False)


def _images_at_positions(grad_y: Array, dtype: np.dtype) -> Array:
    """grad_y [N, OC, d, h, w] as [P, OC, N]; N may be 0."""
    return grad_y.reshape(*grad_y.shape[:2], prod(grad_y.shape[2:])).transpose(2, 1, 0).astype(dtype)


def _size(block: Block) -> tuple[int, ...]:
    return tuple(s.stop - s.start for s in block)


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


def _columns_at(x: Array, geometry: ConvGeometry, block: Block) -> Array:
    """The windows [P, K, N] that are read at the positions (D, H, W) of a block."""
    windows = windows_of(x, reads_of(geometry.forward, block)).transpose(5, 6, 7, 1, 2, 3, 4, 0)
    columns = np.ascontiguousarray(windows, accumulator(x.dtype))
    return columns.reshape(prod(_size(block)), x.shape[1] * geometry.taps, len(x))
