"""Direct convolution, tap by tap: each tap of the window is a matrix product over the shifted image.

    y[n, :, o] = bias + sum over taps t of weight[:, :, t] @ x[n, :, where o reads at t]

Taps in the padding are skipped, which matters where the dilation is about as large as the image: on DeepLab's pooling
pyramid (rate 12 over 33 x 33, 2048 channels) it took half of the time of im2col and GEMM.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import columns, memory, threads
from gpucnn.backends.numpy.columns import Samplings, as_columns, pieces
from gpucnn.backends.numpy.memory import Array, Block
from gpucnn.backends.numpy.windows import taps_of


def contract(source: Array, weight: Array, samplings: Samplings, target: Array, bias: Array | None) -> None:
    """As `columns.contract`.

    source [N, G * C, D, H, W]; weight [G, M, C, KD, KH, KW]; target [N, G * M, *o], any strides; bias [G, M] or None.
    """
    groups, filters, channels = weight.shape[:3]
    dtype = accumulator(source.dtype)
    by_tap = np.ascontiguousarray(weight.transpose(0, 3, 4, 5, 1, 2), dtype)
    sources = source.reshape(source.shape[0], groups, channels, *source.shape[2:])
    targets = target.reshape(target.shape[0], groups, filters, *target.shape[2:])

    def compute(item: tuple[int, Block, slice]) -> None:
        g, (images, *space), chosen = item
        block = tuple(space)
        where: Any = (images, g, chosen, *block)
        part = targets[where]  # [n, M, d, h, w]
        sums = memory.scratch("direct sums", part.shape, dtype)
        sums[...] = 0 if bias is None else bias[g, chosen].reshape(-1, 1, 1, 1)
        for d, h, w in product(*taps_of(samplings, block)):
            read = sources[images, g, :, None, None, None, d.source, h.source, w.source]  # a window of one tap
            into = sums[:, :, d.target, h.target, w.target]
            matrix = by_tap[g, d.index, h.index, w.index]
            terms = matrix[chosen] @ as_columns(read, dtype)
            terms = terms.reshape(-1, into.shape[0], *into.shape[2:]).swapaxes(0, 1)
            np.add(into, terms, out=into)
        part[...] = sums

    work = pieces((source.shape[0], *target.shape[2:]), filters, channels, dtype.itemsize)
    threads.run(compute, [(g, *piece) for g in range(groups) for piece in work])


def contract_weight(source: Array, grad: Array, samplings: Samplings, grad_w: Array) -> None:
    """As `columns.contract_weight`: each tap is a product of the output's gradient with the shifted image."""
    for taps in product(*(range(len(sampling.offsets)) for sampling in samplings)):
        d, h, w = (replace(s, offsets=s.offsets[t : t + 1]) for s, t in zip(samplings, taps, strict=True))
        kd, kh, kw = (slice(t, t + 1) for t in taps)
        columns.contract_weight(source, grad, (d, h, w), grad_w[..., kd, kh, kw])
