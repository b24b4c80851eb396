"""Tiles of a convolution's outputs, and the layouts that its kernels read: pure functions of shapes and strides."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import NamedTuple

from gpucnn.backends.cpu.library import Layout
from gpucnn.geometry import Sampling

Samplings = tuple[Sampling, Sampling, Sampling]

BLOCK_BYTES = 384 << 10  # of the input of a tile, which stays in the second-level cache
POSITIONS = 256  # of a tile: each chunk of weights that is read serves so many
LEAST_CHANNELS = 16  # of a block, to which a wgrad cuts what would leave a tile few positions
MIN_ITEMS = 16  # work items below which filters or positions are cut in parts too


class Tile(NamedTuple):
    """Targets of one work item: images, and a box of positions."""

    n: int
    d: int
    h: int
    w: int


class Residue(NamedTuple):
    """Targets of a contraction that read through the same taps: a stride residue of a dgrad, or all of a forward."""

    samplings: Samplings
    taps: tuple[range, range, range]
    """Indices of taps of the filters, in the order of ascending offsets."""


def whole(samplings: Samplings) -> Residue:
    """All taps of filters, whose order is that of ascending offsets."""
    depth, height, width = (range(len(axis.offsets)) for axis in samplings)
    return Residue(samplings, (depth, height, width))


def joint(residues: Sequence[Residue]) -> Samplings:
    """Samplings of as many targets as any residue has, at all sources from the first to the last that one reads."""
    depth, height, width = (_joint(axes) for axes in zip(*(each.samplings for each in residues), strict=True))
    return depth, height, width


def _joint(axes: Sequence[Sampling]) -> Sampling:
    offsets = range(min(axis.least for axis in axes), max(axis.most for axis in axes) + 1)
    return Sampling(max(axis.targets for axis in axes), axes[0].sources, axes[0].step, offsets)


@lru_cache(maxsize=1024)
def tile_of(batch: int, channels: int, samplings: Samplings, itemsize: int, positions: int = POSITIONS) -> Tile:
    """The tile of a work item: whole rows and planes up to so many positions and BLOCK_BYTES, then images."""
    tile = [1, 1, 1, 1]
    for axis in (3, 2, 1, 0):
        count = batch if axis == 0 else samplings[axis - 1].targets
        most = min(count, max(1, positions // prod(tile)))
        while most > 1 and block_of(_with(tile, axis, most), channels, samplings) * itemsize > BLOCK_BYTES:
            most = most * 3 // 4
        tile[axis] = -(-count // -(-count // most))
        if tile[axis] < count:
            break
    return Tile(*tile)


def _with(tile: list[int], axis: int, count: int) -> Tile:
    return Tile._make((*tile[:axis], count, *tile[axis + 1 :]))


def block_of(tile: Tile, channels: int, samplings: Samplings) -> int:
    """Scalars of the block of a tile's input; see blocks.hpp."""
    return tile.n * channels * prod(extent(axis, count) for axis, count in zip(samplings, tile[1:], strict=True))


def extent(axis: Sampling, targets: int) -> int:
    """Positions of a block along an axis: with one tap those that are read, else all that lie between as well."""
    return targets if len(axis.offsets) == 1 else (targets - 1) * axis.step + axis.most - axis.least + 1


def read_share(axis: Sampling) -> float:
    """The share of the taps of all targets that read a source, and not padding."""
    reached = sum(len(range(axis.targets)[tap.target]) for tap in axis.taps())
    return reached / (axis.targets * len(axis.offsets))


def tiles_of(tile: Tile, batch: int, samplings: Samplings) -> int:
    """Tiles of all outputs of a batch."""
    counts = (batch, *(axis.targets for axis in samplings))
    return prod(-(-count // each) for count, each in zip(counts, tile, strict=True))


def fields(samplings: Samplings, tile: Tile) -> dict[str, int]:
    """The samplings and a tile, as fields of the kernels' ``Params``."""
    values = {f"tile_{name}": size for name, size in tile._asdict().items()}
    for name, axis in zip("dhw", samplings, strict=True):
        values |= {
            name: axis.sources,
            f"o{name}": axis.targets,
            f"k{name}": len(axis.offsets),
            f"step_{name}": axis.step,
            f"least_{name}": axis.least,
            f"gap_{name}": abs(axis.spacing) or 1,
        }
    return values


def flattened(x: Layout, y: Layout, samplings: Samplings) -> tuple[Layout, Layout, Samplings]:
    """Images as one row each, where every output reads the pixel at its place and memory allows it."""
    if not all(axis.is_identity for axis in samplings):
        return x, y, samplings
    rows = [_one_row(layout) for layout in (x, y)]
    if None in rows:
        return x, y, samplings
    count = prod(y.shape[2:])
    one, along = Sampling(1, 1, 1, range(1)), Sampling(count, count, 1, range(1))
    return rows[0] or x, rows[1] or y, (one, one, along)


def _one_row(layout: Layout) -> Layout | None:
    """[N, C, D, H, W] as [N, C, 1, 1, D * H * W]; None where positions are not evenly spaced."""
    axes = [(size, step) for size, step in zip(layout.shape[2:], layout.strides[2:], strict=True) if size > 1]
    for (_, outer), (size, inner) in pairwise(axes):
        if outer != size * inner:
            return None
    step = axes[-1][1] if axes else layout.itemsize
    shape = (*layout.shape[:2], 1, 1, prod(layout.shape[2:]))
    return Layout(shape, (*layout.strides[:2], 0, 0, step), layout.itemsize)
