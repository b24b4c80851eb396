"""Taps of blocks of outputs, and columns that are added back, shared by convolution and unfolding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import memory
from gpucnn.backends.numpy.memory import Array, Block
from gpucnn.geometry import Sampling, Tap

Taps = tuple[list[Tap], list[Tap], list[Tap]]


def taps_of(samplings: Sequence[Sampling], block: Block) -> Taps:
    """The taps along (D, H, W) that the targets of `block`, three slices, read through."""
    d, h, w = (
        list(sampling.taps(targets.start, targets.stop)) for sampling, targets in zip(samplings, block, strict=True)
    )
    return d, h, w


def add_windows(columns: Array, taps: Taps, target: Array) -> None:
    """Add columns [N, C, KD, KH, KW, d, h, w] to the positions they were read from: target [N, C, D, H, W].

    Rows are first added up along D and H, for each tap along W, apart for each residue of H modulo the stride: whole
    planes of them are contiguous. One tap's positions are distinct, and the taps come in a fixed order, so the sum is
    bitwise reproducible.
    """
    depth, height, width = taps
    if not (depth and height and width):
        return
    front, top = (min(tap.source.start for tap in along) for along in (depth, height))
    back, bottom = (max(tap.source.stop for tap in along) for along in (depth, height))
    step = height[0].source.step
    shape = (back - front, step, -(-(bottom - top) // step), columns.shape[7])
    rows = memory.scratch("rows of windows", (*columns.shape[:2], columns.shape[4], *shape), target.dtype)
    rows[...] = 0
    for d, h in product(depth, height):
        first, residue = divmod(h.source.start - top, step)
        planes = slice(d.source.start - front, d.source.stop - front, d.source.step)
        part = rows[..., planes, residue, first : first + h.target.stop - h.target.start, :]
        np.add(part, columns[:, :, d.index, h.index, :, d.target, h.target], out=part)
    for residue, w in product(sorted({(h.source.start - top) % step for h in height}), width):
        image = target[:, :, front:back, top + residue : bottom : step, w.source]
        np.add(image, rows[:, :, w.index, :, residue, : image.shape[3], w.target], out=image)


def sums_of(part: Array) -> Array:
    """The array that sums for `part` are added up in: itself, or scratch in C order and the dtype of sums."""
    dtype = accumulator(part.dtype)
    if part.dtype == dtype and not memory.is_channels_last(part):
        return part
    return memory.scratch("sums of windows", part.shape, dtype)
