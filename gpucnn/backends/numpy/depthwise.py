"""Depthwise convolution: all taps of many channels at once, which are innermost.

A group of one channel and one filter is no matrix product. The part of the images that a block of outputs reads is
copied as [H, W, images, channels], and each inner loop of an einsum multiplies and adds a run of all of these lanes.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import memory, threads
from gpucnn.backends.numpy.columns import PLANS_BYTES, Piece, Samplings, reads_of, window_view
from gpucnn.backends.numpy.memory import Array
from gpucnn.geometry.caches import kept

LANES = 640  # channels of all images of a piece, at most: 256 took 1.5 times as long on EfficientNet's 7 x 7
PIECE_BYTES = 1 << 20  # of its images


def contract(source: Array, weight: Array, samplings: Samplings, target: Array, bias: Array | None) -> None:
    """As `columns.contract`, of one channel and one filter a group."""
    dtype = accumulator(source.dtype)
    taps = np.moveaxis(weight[:, 0, 0], 0, -1).astype(dtype, copy=False)

    def compute(piece: Piece) -> None:
        windows, part = _windows(source, piece), target[piece.images, piece.groups, *piece.space]
        weights = np.repeat(taps[:, :, :, None, piece.groups], len(part), axis=3)
        sums = memory.scratch("depthwise sums", (*part.shape[2:], *part.shape[:2]), dtype)
        np.einsum("ngabcxyz,abcng->xyzng", windows, weights, out=sums)
        if bias is not None:
            np.add(sums, bias[piece.groups, 0], out=sums)
        part[...] = sums.transpose(3, 4, 0, 1, 2)

    threads.run(compute, _pieces(target.shape, samplings, dtype.itemsize))


def contract_weight(source: Array, grad: Array, samplings: Samplings, grad_w: Array) -> None:
    """As `columns.contract_weight`, of one channel and one filter a group."""
    dtype = accumulator(source.dtype)

    def share_of(piece: Piece) -> Array:
        part = grad[piece.images, piece.groups, *piece.space].transpose(2, 3, 4, 0, 1)
        lanes = memory.scratch("depthwise gradient", part.shape, dtype)
        lanes[...] = part
        by_image = np.einsum("xyzng,ngabcxyz->abcng", lanes, _windows(source, piece))  # shorter sums
        share: Array = by_image.sum(axis=3)
        return share

    sums = np.zeros((*grad_w.shape[3:], len(grad_w)), dtype)
    items = _pieces(grad.shape, samplings, dtype.itemsize)
    for piece, share in zip(items, threads.results_of(share_of, items), strict=True):
        sums[..., piece.groups] += share
    grad_w[:, 0, 0] = np.moveaxis(sums, -1, 0)


def _windows(source: Array, piece: Piece) -> Array:
    """The windows that a piece reads, of a copy whose images and channels are innermost."""
    part = source[piece.images, piece.groups]
    lanes = memory.scratch("depthwise lanes", (*piece.reads.sizes, *part.shape[:2]), accumulator(source.dtype))
    return window_view(lanes.transpose(3, 4, 0, 1, 2), piece.reads, part)


@kept(PLANS_BYTES)
def _pieces(shape: tuple[int, ...], samplings: Samplings, itemsize: int) -> tuple[Piece, ...]:
    """Pieces of targets [N, G, OD, OH, OW]."""
    batch, groups, *size = shape
    runs = memory.runs(groups, LANES)
    images = memory.runs(batch, LANES // runs[0].stop)
    lanes_bytes = runs[0].stop * min(batch, LANES // runs[0].stop) * itemsize
    blocks = memory.blocks(size, min(PIECE_BYTES, memory.WORKSPACE_BYTES) // max(1, lanes_bytes))
    return tuple(
        Piece(chosen, several, block, slice(0, 1), reads_of(samplings, block))
        for chosen, several, block in product(runs, images, list(blocks))
    )
