"""Convolution and its two gradients as matrix products over bounded blocks of windows.

All three contract windows with a matrix. The forward samples its input with the layer's stride; the backward-input
samples the output's gradient with stride 1 once per stride residue (no multiplication by the zeros of a dilated
gradient); the backward-weight contracts the forward's windows with the output's gradient. Channels-last input is
contracted in its own order, so that no transpose is taken in either layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import memory
from gpucnn.backends.numpy.memory import Array, Block
from gpucnn.backends.numpy.windows import read_windows, taps_of
from gpucnn.geometry import ConvGeometry, Sampling

Samplings = tuple[Sampling, Sampling, Sampling]

# Bytes of a depthwise block's sums and products, which stay in a core's L2.
DEPTHWISE_BYTES = 512 << 10


def convolve(x: Array, w: Array, bias: Array | None, geometry: ConvGeometry) -> Array:
    """Y [N, OC, OD, OH, OW] = x [N, C, D, H, W] * w [OC, C / groups, KD, KH, KW] + bias [OC]."""
    inputs, outputs, groups = geometry.channels
    y = memory.empty((x.shape[0], outputs, *geometry.output_size), x.dtype, like=x)
    weight = w.reshape(groups, outputs // groups, inputs // groups, *geometry.kernel_size)
    contract(x, weight, geometry.forward, y)
    return add_bias(y, bias)


def convolve_backward_input(grad_y: Array, w: Array, bias: Array | None, geometry: ConvGeometry) -> Array:
    """grad_x [N, C, D, H, W] from grad_y [N, OC, OD, OH, OW]: the dilated backward, by stride residue."""
    inputs, outputs, groups = geometry.channels
    grad_x = memory.empty((grad_y.shape[0], inputs, *geometry.input_size), grad_y.dtype, like=grad_y)
    weight = w.reshape(groups, outputs // groups, inputs // groups, *geometry.kernel_size).swapaxes(1, 2)
    depth, height, width = geometry.axes
    for d, h, w_ in product(depth.backward, height.backward, width.backward):
        taps: Any = np.ix_(d.kernel_indices, h.kernel_indices, w_.kernel_indices)
        part = grad_x[:, :, d.first :: depth.stride, h.first :: height.stride, w_.first :: width.stride]
        contract(grad_y, weight[:, :, :, *taps], (d.sampling, h.sampling, w_.sampling), part)
    return add_bias(grad_x, bias)


def convolve_backward_weight(x: Array, grad_y: Array, geometry: ConvGeometry) -> Array:
    """grad_w [OC, C / groups, KD, KH, KW]: each block of windows times its share of grad_y, summed in order."""
    inputs, outputs, groups = geometry.channels
    filters, channels = outputs // groups, inputs // groups
    dtype = accumulator(x.dtype)
    last = memory.is_channels_last(x)
    grad_w = np.zeros((groups, filters, channels * geometry.taps), dtype)
    for block, columns in window_blocks(x, geometry.kernel_size, geometry.forward, dtype, groups, filters, last):
        grad = grad_y[block[0], :, *block[1:]]
        grad = grad.reshape(grad.shape[0], groups, filters, -1)
        if last:  # [G, OC / G, n P] @ [G, n P, K]
            grad = np.ascontiguousarray(grad.transpose(1, 0, 3, 2), dtype).reshape(groups, -1, filters)
            grad_w += grad.swapaxes(1, 2) @ columns
        else:  # [G, OC / G, n P] @ [G, n P, K]
            grad = np.ascontiguousarray(grad.transpose(1, 2, 0, 3), dtype).reshape(groups, filters, -1)
            grad_w += grad @ columns.swapaxes(1, 2)
    if last:  # K is (taps, channels) there
        grad_w = grad_w.reshape(groups, filters, geometry.taps, channels).swapaxes(2, 3)
    return grad_w.reshape(outputs, channels, *geometry.kernel_size).astype(x.dtype, copy=False)


def add_bias(y: Array, bias: Array | None) -> Array:
    """Add bias [C] to y [N, C, …] in place."""
    if bias is not None:
        np.add(y, bias.reshape(-1, *(1,) * (y.ndim - 2)), out=y)
    return y


# --- The contraction ----------------------------------------------------------------------------------------------


def contract(source: Array, weight: Array, samplings: Samplings, target: Array) -> None:
    """target[n, (g, m), o] = sum over (c, t) of weight[g, m, c, t] * source[n, (g, c), where o's tap t reads].

    source [N, G * C, D, H, W]; weight [G, M, C, KD, KH, KW]; target [N, G * M, *o], any strides.
    """
    groups, filters, channels, *kernel = weight.shape
    if target.size == 0:
        return
    if prod(kernel) == 0:  # a stride residue that no tap reaches
        target[...] = 0
    elif groups > 1 and min(filters, channels) == 1 and memory.is_channels_last(source):
        _contract_depthwise(source, weight, samplings, target)
    elif memory.is_channels_last(source):
        _contract_channels_last(source, weight, samplings, target)
    else:
        _contract_channels_first(source, weight, samplings, target)


def _contract_channels_first(source: Array, weight: Array, samplings: Samplings, target: Array) -> None:
    """[G, M, K] @ [G, K, n P] for each block of n images and P positions, K = channels * taps."""
    groups, filters, channels, *kernel = weight.shape
    dtype = accumulator(source.dtype)
    matrix = np.ascontiguousarray(weight, dtype).reshape(groups, filters, -1)
    n = source.shape[0]
    if dtype == source.dtype and all(sampling.is_identity for sampling in samplings):
        # a 1x1 window is the image itself: the product reads and writes in place, without columns
        planes, result = memory.merged_rows(source, 2), memory.merged_rows(target, 2)
        if planes is not None and result is not None:
            planes = planes.reshape(n, groups, channels, -1)
            np.matmul(matrix, planes, out=result.reshape(n, groups, filters, -1))
            return
    for block, columns in window_blocks(source, kernel, samplings, dtype, groups, filters, channels_last=False):
        part = target[block[0], :, *block[1:]]
        part = part.reshape(part.shape[0], groups, filters, *part.shape[2:])
        result = memory.merged_rows(part[0], 2) if len(part) == 1 and part.dtype == dtype else None
        if result is not None:
            np.matmul(matrix, columns, out=result)
        else:
            product_ = (matrix @ columns).reshape(groups, filters, part.shape[0], *part.shape[3:])
            part[...] = np.moveaxis(product_, 2, 0)


def _contract_channels_last(source: Array, weight: Array, samplings: Samplings, target: Array) -> None:
    """[G, n P, K] @ [G, K, M] for each block, K = taps * channels."""
    groups, filters, channels, *kernel = weight.shape
    dtype = accumulator(source.dtype)
    matrix = np.ascontiguousarray(weight.transpose(0, 3, 4, 5, 2, 1), dtype).reshape(groups, -1, filters)
    if dtype == source.dtype and all(sampling.is_identity for sampling in samplings):
        pixels = memory.merged(np.moveaxis(source, 1, 0), 1)
        result = memory.merged(np.moveaxis(target, 1, 0), 1)
        if pixels is not None and result is not None:
            pixels = pixels.reshape(groups, channels, -1).swapaxes(1, 2)
            np.matmul(pixels, matrix, out=result.reshape(groups, filters, -1).swapaxes(1, 2))
            return
    for block, columns in window_blocks(source, kernel, samplings, dtype, groups, filters, channels_last=True):
        part = target[block[0], :, *block[1:]]
        part = part.reshape(part.shape[0], groups, filters, *part.shape[2:])
        product_ = (columns @ matrix).reshape(groups, part.shape[0], *part.shape[3:], filters)
        part[...] = product_.transpose(1, 0, 5, 2, 3, 4)


def window_blocks(
    source: Array,
    kernel: Sequence[int],
    samplings: Samplings,
    dtype: np.dtype[Any],
    groups: int,
    filters: int,
    channels_last: bool,
) -> Iterator[tuple[Block, Array]]:
    """Cut the targets into blocks and read each one's windows into columns, in one buffer of bounded size.

    The same bound holds for [G, filters, n P], the products or gradients that the caller has beside the columns.
    Yields the block, slices of (N, D, H, W) targets, and its columns: [G, K, n P] with K = (channels, taps), or with
    `channels_last` [G, n P, K] with K = (taps, channels).
    """
    n, c, *space = source.shape
    source = source.reshape(n, groups, c // groups, *space)
    depth = c // groups * prod(kernel)
    extents = (n, *(sampling.targets for sampling in samplings))
    buffer = None
    widest = groups * max(depth, filters) * dtype.itemsize
    for block in memory.blocks(extents, memory.WORKSPACE_BYTES // widest):
        size = tuple(s.stop - s.start for s in block)
        count = prod(size)
        if buffer is None:  # the first block is the largest
            buffer = np.empty(groups * depth * count, dtype)
        scratch = buffer[: groups * depth * count]
        if channels_last:
            windows = scratch.reshape(groups, *size, *kernel, c // groups).transpose(0, 8, 5, 6, 7, 1, 2, 3, 4)
            columns = scratch.reshape(groups, count, depth)
        else:
            windows = scratch.reshape(groups, c // groups, *kernel, *size)
            columns = scratch.reshape(groups, depth, count)
        read_windows(source[block[0]], taps_of(samplings, block[1:]), windows)
        yield block, columns


def _contract_depthwise(source: Array, weight: Array, samplings: Samplings, target: Array) -> None:
    """Add up weighted, shifted images whose channels are innermost, in blocks of whole pixels.

    Where a filter reads one channel, or one channel feeds it, channels-last windows would be copied number by number:
    this took a third to a tenth of that time on MobileNetV2's and EfficientNet's layers. Channels-first windows are
    copied row by row, and their batched product with one filter each is quicker than this.
    """
    groups, filters, channels = weight.shape[:3]
    dtype = accumulator(source.dtype)
    n = source.shape[0]
    size = target.shape[2:]
    sources = source.reshape(n, groups, channels, *source.shape[2:])
    targets = target.reshape(n, groups, filters, *size)
    weight = weight.astype(dtype, copy=False)[..., None, None, None]
    for ns, *dhw in memory.blocks((n, *size), DEPTHWISE_BYTES // (2 * groups * dtype.itemsize)):
        part = targets[ns, :, :, *dhw]
        sums = memory.empty((part.shape[0], groups, *part.shape[3:]), dtype, like=source)
        terms = np.empty_like(sums)
        taps = list(product(*taps_of(samplings, tuple(dhw))))
        for m in range(filters):
            sums[...] = 0
            for (d, h, w), c in product(taps, range(channels)):
                where = (slice(None), slice(None), d.target, h.target, w.target)
                read = sources[ns, :, c, d.source, h.source, w.source]
                np.multiply(read, weight[:, m, c, d.index, h.index, w.index], out=terms[where])
                np.add(sums[where], terms[where], out=sums[where])
            part[:, :, m] = sums
