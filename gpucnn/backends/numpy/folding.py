"""The backward-input of a convolution as a matrix product and a fold: columns of gradients are added to an image.

It is the transpose of columns and a product, and the quicker way where the image has fewer channels than the output:
for the three of a first layer it took a third to a tenth of the time of windows of the gradient. The columns of a piece
stay in the cache, and so does the piece of the image, which is kept as phases, one for each stride residue: whatever
the stride, one tap adds to neighbouring numbers.
"""

from __future__ import annotations

from itertools import chain, product
from math import prod
from typing import Any

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import memory, threads
from gpucnn.backends.numpy.columns import as_columns
from gpucnn.backends.numpy.memory import Array, Block
from gpucnn.geometry import Axis, ConvGeometry

COLUMN_BYTES = 1 << 20
IMAGE_BYTES = 1 << 19  # of a piece of the image
LEAST_CHANNELS = 16  # of a piece that is cut by channels
LEAST_MULTIPLES = 8  # of the window: each piece computes the outputs anew that reach over its border


def fold_products(grad_y: Array, w: Array, bias: Array | None, geometry: ConvGeometry, grad_x: Array) -> None:
    """grad_x [N, C, D, H, W] from grad_y [N, OC, OD, OH, OW] and w [OC, C / groups, KD, KH, KW], plus bias [C].

    Each piece of the image adds up the taps in order, of the outputs in order: its own, whoever computes the others.
    """
    inputs, outputs, groups = geometry.channels
    dtype = accumulator(grad_y.dtype)
    matrix = w.astype(dtype, copy=False).reshape(groups, outputs // groups, -1).swapaxes(1, 2)  # [G, C taps, OC]
    channels, filters = inputs // groups, outputs // groups
    boxes = _boxes(geometry, channels * dtype.itemsize)
    parts = max(1, min(4 // max(1, len(grad_y) * groups * len(boxes)), channels // LEAST_CHANNELS))
    work = product(range(len(grad_y)), range(groups), boxes, memory.runs(channels, -(-channels // parts)))

    def compute(item: tuple[int, int, Block, slice]) -> None:
        n, g, box, run = item
        gradient = grad_y[n, g * filters : (g + 1) * filters]
        rows = matrix[g, run.start * geometry.taps : run.stop * geometry.taps]
        image = _Image(geometry.axes, box, run.stop - run.start, dtype)
        for block in image.blocks(max(rows.shape) * dtype.itemsize):
            read = as_columns(gradient[None, :, None, None, None, *block], dtype)
            columns = memory.scratch("fold columns", (len(rows), read.shape[1]), dtype)
            np.matmul(rows, read, out=columns)
            size = [s.stop - s.start for s in block]
            image.add(columns.reshape(-1, *geometry.kernel_size, *size), block)
        chosen = slice(g * channels + run.start, g * channels + run.stop)
        image.store(grad_x[n, chosen], None if bias is None else bias[chosen])

    threads.run(compute, list(work))


def _boxes(geometry: ConvGeometry, channel_bytes: int) -> list[tuple[slice, ...]]:
    """Pieces (D, H, W) of the image, cut along its first two axes only."""
    depth, height, width = geometry.axes
    image_bytes = min(IMAGE_BYTES, memory.WORKSPACE_BYTES)
    rows = max(image_bytes // (channel_bytes * width.size), LEAST_MULTIPLES * height.dilation * (height.kernel - 1) + 1)
    if depth.size == 1:
        slices = [slice(0, 1)]
    else:
        slices = memory.runs(depth.size, max(1, LEAST_MULTIPLES // 2 * depth.dilation * (depth.kernel - 1)))
    return [(d, h, slice(0, width.size)) for d in slices for h in memory.runs(height.size, rows)]


class _Image:
    """A piece of the image as phases [C, SD, SH, SW, d, h, w], padding and what lies over the piece's border included.

    Along an axis the number at ``position * stride + phase`` is that of the input ``base * stride + … - low``.
    """

    def __init__(
        self, axes: tuple[Axis, Axis, Axis], box: tuple[slice, ...], channels: int, dtype: np.dtype[Any]
    ) -> None:
        self.axes, self.box = axes, box
        self.outputs = tuple(_outputs(axis, span) for axis, span in zip(axes, box, strict=True))
        self.strides = tuple(axis.stride for axis in axes)
        counts = [
            max(0, out.stop - out.start) + (axis.kernel - 1) * axis.dilation // axis.stride
            for axis, out in zip(axes, self.outputs, strict=True)
        ]
        # an axis holds at least the inputs of the piece, those too that no output reads
        bases, sizes = [], []
        for axis, span, out, count in zip(axes, box, self.outputs, counts, strict=True):
            base = min(out.start, (span.start + axis.low) // axis.stride)
            end = max(out.start + count, (span.stop - 1 + axis.low) // axis.stride + 1)
            bases.append(base)
            sizes.append(end - base)
        self.bases = tuple(bases)
        self.phases = memory.scratch("fold image", (channels, *self.strides, *sizes), dtype)
        self.phases[...] = 0

    def blocks(self, column_bytes: int) -> list[tuple[slice, ...]]:
        """Blocks of the outputs that reach the piece, whose columns stay in the cache."""
        sizes = [max(0, out.stop - out.start) for out in self.outputs]
        if prod(sizes) == 0:
            return []
        blocks = memory.blocks(sizes, min(COLUMN_BYTES, memory.WORKSPACE_BYTES) // column_bytes)
        return [
            tuple(slice(out.start + s.start, out.start + s.stop) for out, s in zip(self.outputs, block, strict=True))
            for block in blocks
        ]

    def add(self, columns: Array, block: tuple[slice, ...]) -> None:
        """Add columns [C, KD, KH, KW, d, h, w] of the outputs of `block`, tap by tap."""
        for tap in product(*(range(axis.kernel) for axis in self.axes)):
            phase: tuple[int, ...] = ()
            where: Block = ()
            for k, axis, base, outputs in zip(tap, self.axes, self.bases, block, strict=True):
                shift, residue = divmod(k * axis.dilation, axis.stride)
                phase += (residue,)
                where += (slice(outputs.start + shift - base, outputs.stop + shift - base),)
            image = self.phases[_everything_at(phase, where)]
            np.add(image, columns[_everything_at(tap)], out=image)

    def store(self, target: Array, bias: Array | None) -> None:
        """Write the piece to target [C, D, H, W], plus bias [C]."""
        if bias is not None:
            np.add(self.phases, bias.astype(self.phases.dtype, copy=False).reshape(-1, *(1,) * 6), out=self.phases)
        for phases in product(*(range(stride) for stride in self.strides)):
            read: Block = ()
            write: Block = ()
            for residue, axis, base, span in zip(phases, self.axes, self.bases, self.box, strict=True):
                first = span.start + (residue - span.start - axis.low) % axis.stride
                begin = (first + axis.low) // axis.stride - base
                count = len(range(first, span.stop, axis.stride))
                read += (slice(begin, begin + count),)
                write += (slice(first, span.stop, axis.stride),)
            target[_everything_at(write)] = self.phases[_everything_at(phases, read)]


def _everything_at(*wheres: tuple[Any, ...]) -> Any:
    """All channels, at these positions."""
    return (slice(None), *chain(*wheres))


def _outputs(axis: Axis, span: slice) -> slice:
    """The outputs of which any tap reads an input in `span`, or lies between such."""
    first = max(0, -(-(span.start + axis.low - axis.dilation * (axis.kernel - 1)) // axis.stride))
    last = min(axis.out, (span.stop - 1 + axis.low) // axis.stride + 1)
    return slice(first, max(first, last))
