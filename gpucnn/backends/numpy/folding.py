"""Dgrad as GEMM and fold (col2im): columns of gradients are added to an image.

It is the transpose of im2col and GEMM, and faster where the image has fewer channels than the output: for the three of
a first layer it took a third to a tenth of the time of windows of the gradient. The columns of a block of outputs stay
in the cache. The weight is multiplied without a copy, which also makes it faster for a large weight with few positions:
ResNet's last 3 x 3 took 0.8 of the time, DCGAN's first layer 0.6.
"""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import memory, threads
from gpucnn.backends.numpy.columns import as_columns, channel_runs, fitting
from gpucnn.backends.numpy.memory import Array
from gpucnn.backends.numpy.windows import add_windows, sums_of, taps_of
from gpucnn.geometry import ConvGeometry


def fold_products(grad_y: Array, w: Array, bias: Array | None, geometry: ConvGeometry, grad_x: Array) -> None:
    """grad_x [N, C, D, H, W] from grad_y [N, OC, OD, OH, OW] and w [OC, C / groups, KD, KH, KW], plus bias [C]."""
    dtype = accumulator(grad_y.dtype)
    outputs, groups, taps = prod(geometry.output_size), geometry.channels.groups, geometry.taps
    filters, channels = len(w) // groups, w.shape[1]
    matrix = w.astype(dtype, copy=False).reshape(groups, filters, -1).swapaxes(1, 2)  # [G, C taps, OC]
    runs = channel_runs(channels, taps, len(grad_y) * outputs * filters)
    largest = memory.WORKSPACE_BYTES // (prod(geometry.input_size) * dtype.itemsize)  # channels of sums
    runs = memory.runs(channels, min(runs[0].stop, largest))
    most = fitting(max(runs[0].stop * taps, filters) * dtype.itemsize)
    images_together = memory.runs(len(grad_y), most // max(1, outputs))
    blocks = list(memory.blocks(geometry.output_size, most))

    def compute(item: tuple[slice, int, slice]) -> None:
        images, g, run = item
        chosen = slice(g * channels + run.start, g * channels + run.stop)
        part = grad_x[images, chosen]
        sums = sums_of(part)
        sums[...] = 0 if bias is None else bias[chosen, None, None, None]
        gradient = grad_y[images, g * filters : (g + 1) * filters]
        rows = matrix[g, run.start * taps : run.stop * taps]
        for block in blocks:
            read = as_columns(gradient[:, :, None, None, None, *block], dtype)
            columns = memory.scratch("fold columns", (len(rows), read.shape[1]), dtype)
            np.matmul(rows, read, out=columns)
            size = [s.stop - s.start for s in block]
            columns = columns.reshape(-1, *geometry.kernel_size, len(part), *size)
            add_windows(np.moveaxis(columns, 4, 0), taps_of(geometry.forward, block), sums)
        if sums is not part:
            part[...] = sums

    threads.run(compute, list(product(images_together, range(groups), runs)))
