"""Depthwise convolution: groups of one channel and one filter, which are no matrix products.

In lanes, images and channels are innermost: the part of the images that a block of outputs reads is copied as
[H, W, images, channels], and each inner loop of an einsum multiplies and adds a run of all of these lanes, tap by tap.

In planes, whole padded planes are rows of numbers. A tap of stride 1 reads such a row from another place on, so it is
one product and one sum of rows. What they hold between an image's rows is not used. With few taps, which have few
passes, this takes half to two thirds of the time of lanes, whose copies are transposes (MobileNetV2's 56 x 56).
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from math import prod
from typing import Any

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import memory, threads
from gpucnn.backends.numpy.columns import PLANS_BYTES, Piece, Samplings, reads_of, window_view
from gpucnn.backends.numpy.memory import Array
from gpucnn.geometry.caches import kept

LANES = 640  # channels of all images of a piece, at most: 256 took 1.5 times as long on EfficientNet's 7 x 7
PIECE_BYTES = 1 << 20  # of its images
PLANE_PIECE_BYTES = 2 << 20  # of a piece of planes: of half of that two threads take 1.1 times as long
MIN_PLANE = 256  # numbers of a plane: calls on rows of fewer cost more than they compute
FEW_TAPS = 9


def contract(source: Array, weight: Array, samplings: Samplings, target: Array, bias: Array | None) -> None:
    """As `columns.contract`, of one channel and one filter a group."""
    if not memory.is_channels_last(source) and _takes_planes(samplings, accumulator(source.dtype).itemsize):
        _contract_planes(source, weight, samplings, target, bias)
    else:
        _contract_lanes(source, weight, samplings, target, bias)


def contract_weight(source: Array, grad: Array, samplings: Samplings, grad_w: Array) -> None:
    """As `columns.contract_weight`, of one channel and one filter a group."""
    sums = np.zeros((*grad_w.shape[3:], len(grad_w)), accumulator(source.dtype))
    in_planes = not memory.is_channels_last(source) and _takes_planes(samplings, sums.itemsize)
    share_of, pieces = (_share_of_planes, _planes) if in_planes else (_share_of_lanes, _lanes)
    items = pieces(grad.shape, samplings, sums.itemsize)
    shares = threads.results_of(lambda piece: share_of(source, grad, piece), items)
    for piece, share in zip(items, shares, strict=True):
        sums[..., piece.groups] += share
    grad_w[:, 0, 0] = np.moveaxis(sums, -1, 0)


# --- Planes -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _takes_planes(samplings: Samplings, itemsize: int) -> bool:
    """Whether taps are few and of stride 1, and planes neither small nor more than a piece."""
    if any(axis.step > 1 for axis in samplings if axis.targets > 1):
        return False
    plane = prod((axis.targets - 1) * axis.step + axis.most - axis.least + 1 for axis in samplings)
    is_small = plane * itemsize <= min(PLANE_PIECE_BYTES, memory.WORKSPACE_BYTES)
    return plane >= MIN_PLANE and is_small and prod(len(axis.offsets) for axis in samplings) <= FEW_TAPS


def _contract_planes(source: Array, weight: Array, samplings: Samplings, target: Array, bias: Array | None) -> None:
    dtype = accumulator(source.dtype)
    taps = np.moveaxis(weight[:, 0, 0], 0, -1).astype(dtype, copy=False)
    depth, height, width = target.shape[2:]

    def compute(piece: Piece) -> None:
        windows, part = _windows_of_planes(source, piece, dtype), target[piece.images, piece.groups]
        plane, row = (prod(piece.reads.sizes[axis:]) for axis in (1, 2))
        length = (depth - 1) * plane + (height - 1) * row + width
        rows = np.lib.stride_tricks.as_strided(
            windows, (*windows.shape[:5], length), (*windows.strides[:5], dtype.itemsize), writeable=False
        )
        sums = memory.scratch("depthwise sums", (*part.shape[:2], depth * plane), dtype)
        products = memory.scratch("depthwise products", (*part.shape[:2], length), dtype)
        sums[...] = 0 if bias is None else bias[piece.groups]
        with memory.short_buffers(), np.errstate(over="ignore", invalid="ignore"):  # between rows
            for tap in np.ndindex(taps.shape[:3]):
                sums[..., :length] += np.multiply(rows[:, :, *tap], taps[*tap, piece.groups, None], out=products)
        part[...] = sums.reshape(*part.shape[:3], -1, row)[:, :, :, :height, :width]

    threads.run(compute, _planes(target.shape, samplings, dtype.itemsize))


def _share_of_planes(source: Array, grad: Array, piece: Piece) -> Array:
    dtype = accumulator(source.dtype)
    windows, part = _windows_of_planes(source, piece, dtype), grad[piece.images, piece.groups].astype(dtype, copy=False)
    share = np.empty((*windows.shape[2:5], part.shape[1]), dtype)
    for tap in np.ndindex(share.shape[:3]):
        share[tap] = np.einsum("ngxyz,ngxyz->ngxy", windows[:, :, *tap], part).sum(axis=(0, 2, 3))
    return share


def _windows_of_planes(source: Array, piece: Piece, dtype: np.dtype[Any]) -> Array:
    """The windows that a piece reads, of a padded copy."""
    part = source[piece.images, piece.groups]
    planes = memory.scratch("depthwise planes", (*part.shape[:2], *piece.reads.sizes), dtype)
    return window_view(planes, piece.reads, part)


@kept(PLANS_BYTES)
def _planes(shape: tuple[int, ...], samplings: Samplings, itemsize: int) -> tuple[Piece, ...]:
    """Pieces of whole planes of targets [N, G, OD, OH, OW]."""
    everything = tuple(slice(0, size) for size in shape[2:])
    reads = reads_of(samplings, everything)
    most = min(PLANE_PIECE_BYTES, memory.WORKSPACE_BYTES) // (prod(reads.sizes) * itemsize)
    blocks = memory.blocks(shape[:2], most)
    return tuple(Piece(chosen, images, everything, slice(0, 1), reads) for images, chosen in blocks)


# --- Lanes ------------------------------------------------------------------------------------------------------------


def _contract_lanes(source: Array, weight: Array, samplings: Samplings, target: Array, bias: Array | None) -> None:
    dtype = accumulator(source.dtype)
    taps = np.moveaxis(weight[:, 0, 0], 0, -1).astype(dtype, copy=False)

    def compute(piece: Piece) -> None:
        windows, part = _windows_of_lanes(source, piece), target[piece.images, piece.groups, *piece.space]
        weights = np.repeat(taps[:, :, :, None, piece.groups], len(part), axis=3)
        sums = memory.scratch("depthwise sums", (*part.shape[2:], *part.shape[:2]), dtype)
        np.einsum("ngabcxyz,abcng->xyzng", windows, weights, out=sums)
        if bias is not None:
            np.add(sums, bias[piece.groups, 0], out=sums)
        part[...] = sums.transpose(3, 4, 0, 1, 2)

    threads.run(compute, _lanes(target.shape, samplings, dtype.itemsize))


def _share_of_lanes(source: Array, grad: Array, piece: Piece) -> Array:
    part = grad[piece.images, piece.groups, *piece.space].transpose(2, 3, 4, 0, 1)
    lanes = memory.scratch("depthwise gradient", part.shape, accumulator(source.dtype))
    lanes[...] = part
    by_image = np.einsum("xyzng,ngabcxyz->abcng", lanes, _windows_of_lanes(source, piece))  # shorter sums
    share: Array = by_image.sum(axis=3)
    return share


def _windows_of_lanes(source: Array, piece: Piece) -> Array:
    """The windows that a piece reads, of a copy whose images and channels are innermost."""
    part = source[piece.images, piece.groups]
    lanes = memory.scratch("depthwise lanes", (*piece.reads.sizes, *part.shape[:2]), accumulator(source.dtype))
    return window_view(lanes.transpose(3, 4, 0, 1, 2), piece.reads, part)


@kept(PLANS_BYTES)
def _lanes(shape: tuple[int, ...], samplings: Samplings, itemsize: int) -> tuple[Piece, ...]:
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
