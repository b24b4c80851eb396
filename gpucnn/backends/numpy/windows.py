"""Taps of blocks of outputs, and columns that are added back, shared by convolution and unfolding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

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
    """Add columns [G, C, KD, KH, KW, N, d, h, w] to the positions they were read from: target [N, G, C, D, H, W].

    One tap's positions are distinct, and the taps come in a fixed order, so the sum is bitwise reproducible.
    """
    target = np.moveaxis(target, 0, 2)
    for d, h, w in product(*taps):
        image = target[..., d.source, h.source, w.source]
        np.add(image, columns[:, :, d.index, h.index, w.index, ..., d.target, h.target, w.target], out=image)
