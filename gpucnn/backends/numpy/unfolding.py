"""im2col, col2im, and the locally connected layer as a batched GEMM over positions."""

from __future__ import annotations

from itertools import product
from math import gcd, prod
from typing import NamedTuple

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import memory, threads
from gpucnn.backends.numpy.memory import Array, Block
from gpucnn.backends.numpy.windows import Taps, add_windows, read_windows, taps_of
from gpucnn.geometry import Axis, ConvGeometry, Sampling

# Most entries of columns of one piece of work. Pieces of a quarter of that were no quicker on 2 threads than on one:
# their calls are so short that threads wait for each other.
PIECE_ITEMS = 1 << 21

# Fewest entries for the path through lanes. It costs some 100 us of calls.
LANES_FROM = 1 << 17

# Numbers of a locally connected layer's weights or windows that are not worth a thread.
WORTH_SHARING = 1 << 17


def im2col(x: Array, columns: Array, geometry: ConvGeometry) -> None:
    """Columns [N, C * taps, positions], in C order, of x [N, C, D, H, W]."""
    windows = columns.reshape(*x.shape[:2], *geometry.kernel_size, *geometry.output_size)
    if columns.size < LANES_FROM or _skips(geometry):
        read_windows(x[:, None], _everything(geometry), np.moveaxis(windows[:, None], 0, 5))
    else:
        threads.run(lambda images: _unfold(x[images], geometry, windows[images]), _pieces(windows))


def col2im(columns: Array, x: Array, geometry: ConvGeometry) -> None:
    """Image x [N, C, D, H, W], in C order, from columns [N, C * taps, positions]."""
    n, c = x.shape[:2]
    windows = columns.reshape(n, c, *geometry.kernel_size, *geometry.output_size)
    if columns.size < LANES_FROM or _skips(geometry):
        image = np.zeros((n, 1, c, *geometry.input_size), accumulator(columns.dtype))
        add_windows(np.moveaxis(windows[:, None], 0, 5), _everything(geometry), image)
        x[...] = image[:, 0]
    else:
        threads.run(lambda images: _fold(windows[images], geometry, x[images]), _pieces(windows))


def _skips(geometry: ConvGeometry) -> bool:
    """Whether there is one tap, or there are lanes that no tap reads: each axis has `stride` lanes."""
    return geometry.taps == 1 or any(axis.stride > axis.kernel for axis in geometry.axes[1:])


def _everything(geometry: ConvGeometry) -> Taps:
    return taps_of(geometry.forward, tuple(slice(0, out) for out in geometry.output_size))


def _pieces(windows: Array) -> list[Block]:
    """Blocks of images and channels."""
    return list(memory.blocks(windows.shape[:2], PIECE_ITEMS // prod(windows.shape[2:])))


# --- Through lanes -------------------------------------------------------------------------------------------------
#
# Lane (r, s) of an image holds its rows r, r + SH, ... and of those the columns s, s + SW, ...: the reads of one tap,
# contiguously. With "same" padding (OW = ceil(W / SW)) a lane's rows are as long as the output's, so that a tap reads,
# or adds to, whole planes in one run. A run that is shifted along W also crosses the ends of rows: its entries there
# belong to the padding, and are set to zero. On one core im2col of AlexNet's conv1 took 0.95 ms tap
# by tap and 0.32 through lanes, of ResNet-50's conv2_3x3 0.42 and 0.21, of its conv3_3x3 with stride 2 0.52 and 0.33;
# col2im 1.6 and 0.46, 1.1 and 0.33, 1.1 and 0.52.


class _Reads(NamedTuple):
    """Taps along one axis that read the same lane, at a spacing of `apart` entries."""

    taps: slice
    lane: int
    first: int  # position that the first tap reads for output 0; negative in the padding
    apart: int

    def last(self, kernel: int) -> int:
        """Position that the last tap reads for output 0."""
        return self.first + (len(range(kernel)[self.taps]) - 1) * self.apart


def _reads(axis: Axis, lanes: int) -> list[_Reads]:
    """The taps of `axis`, grouped by the lane of `lanes` that they read."""
    step = lanes // gcd(lanes, axis.dilation)
    groups = []
    for tap in range(min(step, axis.kernel)):
        first, lane = divmod(tap * axis.dilation - axis.low, lanes)
        groups.append(_Reads(slice(tap, None, step), lane, first, step * axis.dilation // lanes))
    return groups


def _unfold(x: Array, geometry: ConvGeometry, columns: Array) -> None:
    """Fill columns [N, C, KD, KH, KW, OD, OH, OW]: all taps of one lane in one copy of overlapping windows."""
    _, height, width = geometry.axes
    across = -(-width.size // width.stride)
    pitch = max(across, width.out)  # from row to row of a lane
    down = height.stride if pitch == width.out else 1  # lanes of rows; else runs end with each row anyway
    step = height.stride // down
    rows, places = _reads(height, down), _reads(width, width.stride)
    top = min(group.first for group in rows)
    bottom = (height.out - 1) * step + max(group.last(height.kernel) for group in rows) + 1
    before = max(0, *(-group.first for group in places), 0)
    after = max(0, *(group.last(width.kernel) for group in places), 0)

    shape = (width.stride, down, *x.shape[:3], bottom - top, pitch)
    buffer = memory.scratch("unfold", ((before + prod(shape) + after) * x.itemsize,), np.uint8)
    lanes: Array = np.ndarray(shape, x.dtype, buffer, before * x.itemsize)
    for s, r in product(range(width.stride), range(down)):
        source = x[..., r::down, s :: width.stride]
        start, stop = max(top, 0), max(0, top, min(bottom, source.shape[3]))
        lanes[s, r, ..., start - top : stop - top, : source.shape[4]] = source[..., start:stop, :]
        for outside in _outside(slice(start - top, stop - top), bottom - top):
            lanes[s, r, ..., outside, :] = 0

    of_place, of_row, n, c, d, h, w = lanes.strides
    for (kernel, target, source_d), row, place in product(geometry.forward[0].taps(), rows, places):
        part = columns[:, :, kernel, row.taps, place.taps, target]
        origin = place.lane * of_place + row.lane * of_row + source_d.start * d
        origin += (row.first - top) * h + (before + place.first) * w
        strides = (n, c, row.apart * h, place.apart * w, source_d.step * d, step * h, w)
        part[...] = np.ndarray(part.shape, x.dtype, buffer, origin, strides)
    depths, _, widths = (_targets(axis) for axis in geometry.forward)
    for tap, target in enumerate(depths):
        for outside in _outside(target, geometry.axes[0].out):
            columns[:, :, tap, :, :, outside] = 0
    for tap, target in enumerate(widths):
        for outside in _outside(target, width.out):
            columns[:, :, :, :, tap, ..., outside] = 0


def _fold(windows: Array, geometry: ConvGeometry, image: Array) -> None:
    """Fill image [N, C, D, H, W] with sums of windows [N, C, KD, KH, KW, OD, OH, OW]: first along D and H, then W."""
    dtype = accumulator(image.dtype)
    _, height, width = geometry.axes
    depths, rows, places = (list(axis.taps()) for axis in geometry.forward)
    down, across = -(-height.size // height.stride), -(-width.size // width.stride)
    planes = image.shape[:3]

    sums = memory.scratch("fold", (width.kernel, *planes, height.stride, down, width.out), dtype)
    by_tap = np.moveaxis(sums, 0, 2)  # [N, C, KW, D, lane, rows, OW]
    unwritten = set(range(height.stride))  # stored to first, not set to zero and added to: 1.6 times as quick in all
    if len(depths) != 1 or depths[0].source != slice(0, image.shape[2], 1):
        by_tap[...] = 0
        unwritten = set()
    for d, h in product(depths, rows):
        first, lane = divmod(h.source.start, height.stride)
        reached = slice(first, first + h.target.stop - h.target.start)
        total = by_tap[:, :, :, d.source, lane, reached]
        add = windows[:, :, d.index, h.index, :, d.target, h.target]
        if lane in unwritten:
            unwritten.remove(lane)
            total[...] = add
            for outside in _outside(reached, down):
                by_tap[..., lane, outside, :] = 0
        else:
            np.add(total, add, out=total)
    for lane in unwritten:
        by_tap[..., lane, :, :] = 0

    whole = (height.stride, width.stride) == (1, 1) and image.dtype == dtype  # the image is the only lane
    shape = (width.stride, *planes, height.stride, down, across)
    lanes = image.reshape(shape) if whole else memory.scratch("fold lanes", shape, dtype)
    unwritten = set(range(width.stride))
    for tap in places:
        first, lane = divmod(tap.source.start, width.stride)
        if across == width.out:
            for outside in _outside(tap.target, width.out):
                sums[tap.index, ..., outside] = 0
            total, add = lanes[lane].reshape(-1), sums[tap.index].reshape(-1)
            shift = first - tap.target.start
            place = slice(max(0, shift), total.size + min(0, shift))
            source = slice(max(0, -shift), total.size - max(0, shift))
        else:
            place, source = slice(first, first + tap.target.stop - tap.target.start), tap.target
            total, add = lanes[lane], sums[tap.index]
        if lane in unwritten:
            unwritten.remove(lane)
            total[..., place] = add[..., source]
            for outside in _outside(place, total.shape[-1]):
                total[..., outside] = 0
        else:
            np.add(total[..., place], add[..., source], out=total[..., place])
    for lane in unwritten:
        lanes[lane] = 0
    if not whole:
        for s, r in product(range(width.stride), range(height.stride)):
            part = image[..., r :: height.stride, s :: width.stride]
            part[...] = lanes[s, ..., r, : part.shape[3], : part.shape[4]]


def _targets(axis: Sampling) -> list[slice]:
    """The outputs of each tap that read an input through it."""
    targets = [slice(0, 0)] * len(axis.offsets)
    for tap in axis.taps():
        targets[tap.index] = tap.target
    return targets


def _outside(inside: slice, length: int) -> list[slice]:
    """The non-empty remainders of an axis outside `inside`."""
    return [part for part in (slice(0, inside.start), slice(inside.stop, length)) if part.start < part.stop]


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
    sums = np.zeros((n, 1, c, *geometry.input_size), dtype)
    for block in _blocks(geometry, n, dtype):
        size = _size(block)
        filters = _at_positions(w[:, *block], dtype).swapaxes(1, 2)  # [P, K, OC]
        grad = _images_at_positions(grad_y[:, :, *block], dtype)  # [P, OC, N]
        columns = (filters @ grad).reshape(*size, 1, c, *geometry.kernel_size, n)
        add_windows(columns.transpose(3, 4, 5, 6, 7, 8, 0, 1, 2), taps_of(geometry.forward, block), sums)
    grad_x[...] = sums[:, 0]


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
    n, c = x.shape[:2]
    size = _size(block)
    windows = np.empty((*size, 1, c, *geometry.kernel_size, n), accumulator(x.dtype))
    read_windows(x[:, None], taps_of(geometry.forward, block), windows.transpose(3, 4, 5, 6, 7, 8, 0, 1, 2))
    return windows.reshape(prod(size), c * geometry.taps, n)
