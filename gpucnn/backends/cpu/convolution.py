"""Convolution, dgrad and wgrad in C++: an implicit GEMM over tiles of outputs."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends.cpu.library import Kernel, launch, strides, vector_bytes
from gpucnn.backends.numpy.memory import Array
from gpucnn.geometry import ConvGeometry, Sampling

Samplings = tuple[Sampling, Sampling, Sampling]

BLOCK_BYTES = 384 << 10  # of the input of a tile, which stays in the second-level cache
POSITIONS = 256  # of a tile: each chunk of weights that is read serves so many
MIN_ITEMS = 16  # work items below which the filters are cut in parts too
MAX_ROWS = 14  # of a register tile: positions are rounded up to them

_CONVOLUTION = Kernel("convolution")
_PACK = Kernel("convolution", "pack_weights")


class Tile(NamedTuple):
    """Targets of one work item: images, and a box of positions."""

    n: int
    d: int
    h: int
    w: int


def convolve(x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry) -> None:
    """Y [N, OC, OD, OH, OW] = x [N, C, D, H, W] * w [OC, C / groups, KD, KH, KW] + bias [OC]."""
    inputs, outputs, groups = geometry.channels
    weight = w.reshape(groups, outputs // groups, inputs // groups, *geometry.kernel_size)
    contract(x, weight, geometry.forward, y, None if bias is None else bias.reshape(groups, -1))


def convolve_backward_input(grad_y: Array, w: Array, bias: Array | None, grad_x: Array, geometry: ConvGeometry) -> None:
    """grad_x [N, C, D, H, W] from grad_y [N, OC, OD, OH, OW]: a contraction for each stride residue."""
    inputs, outputs, groups = geometry.channels
    weight = w.reshape(groups, outputs // groups, inputs // groups, *geometry.kernel_size).swapaxes(1, 2)
    depth, height, width = geometry.axes
    residues = list(product(depth.backward, height.backward, width.backward))
    if len(residues) < prod(min(axis.stride, axis.size) for axis in geometry.axes):  # no tap reaches the others
        grad_x[...] = 0 if bias is None else bias.reshape(-1, 1, 1, 1)
    bias = None if bias is None else bias.reshape(groups, -1)
    for d, h, w_ in residues:
        taps: Any = tuple(slice(each.start, each.stop, each.step) for each in (r.kernel_indices for r in (d, h, w_)))
        target = grad_x[:, :, d.first :: depth.stride, h.first :: height.stride, w_.first :: width.stride]
        contract(grad_y, weight[:, :, :, *taps], (d.sampling, h.sampling, w_.sampling), target, bias)


def contract(x: Array, w: Array, samplings: Samplings, y: Array, bias: Array | None) -> None:
    """y[n, (g, m), o] = bias[g, m] + sum over c, t of w[g, m, c, t] * x[n, (g, c), where o reads at t].

    x [N, G * C, D, H, W]; w [G, M, C, KD, KH, KW]; bias [G, M] or None; y [N, G * M, *o], any strides.
    """
    if y.size == 0:
        return
    x, y, samplings = _flattened(x, y, samplings)
    groups, filters, channels = w.shape[:3]
    w = w[..., *[slice(None, None, -1 if axis.spacing < 0 else 1) for axis in samplings]]
    lanes = vector_bytes() // x.itemsize
    packed = np.empty(groups * -(-filters // lanes) * lanes * prod(w.shape[2:]), x.dtype)
    tile = tile_of(len(x), channels, samplings, x.itemsize)
    counts = [-(-count // each) for count, each in zip((len(x), *y.shape[2:]), tile, strict=True)]
    panels = -(-filters // (4 * lanes))
    parts = min(panels, max(1, MIN_ITEMS // (groups * prod(counts))))
    room = -(-prod(tile) // MAX_ROWS) * MAX_ROWS + MAX_ROWS
    block = tile.n * channels * prod(map(_extent, samplings, tile[1:]))
    pieces = prod(w.shape[3:]) * (1 + w.shape[2] * w.shape[5] // 256)
    values = {
        **{"n": len(x), "groups": groups, "channels": channels, "filters": filters, "parts": parts},
        **_axes(samplings),
        **dict(zip(("tile_n", "tile_d", "tile_h", "tile_w"), tile, strict=True)),
        **{"block": block, "room": room},
        **strides("x", x, "ncdhw"),
        **strides("y", y, "ncdhw"),
        **strides("w", w, "gmcdhw"),
        **strides("bias", bias, "gm"),
    }
    launch(_PACK, x.dtype.name, values, {"w": w, "packed": packed}, groups * panels)
    arrays = {"x": x, "packed": packed, "bias": bias, "y": y}
    workspace = block + lanes + 2 * room * 4 * lanes + 2 * (room + 4 * pieces + 8)
    launch(_CONVOLUTION, x.dtype.name, values, arrays, groups * prod(counts) * parts, workspace)


def _flattened(x: Array, y: Array, samplings: Samplings) -> tuple[Array, Array, Samplings]:
    """Images as one row each where every output reads the pixel at its place, and memory allows it."""
    if not all(sampling.is_identity for sampling in samplings):
        return x, y, samplings
    rows = [array.reshape(*array.shape[:2], 1, 1, -1) for array in (x, y)]
    if not all(np.may_share_memory(row, array) for row, array in zip(rows, (x, y), strict=True)):
        return x, y, samplings
    count = prod(y.shape[2:])
    one, along = Sampling(1, 1, 1, range(1)), Sampling(count, count, 1, range(1))
    return rows[0], rows[1], (one, one, along)


def _axes(samplings: Samplings) -> dict[str, int]:
    values = {}
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


def _extent(axis: Sampling, targets: int) -> int:
    """Positions of a block along an axis."""
    return targets if len(axis.offsets) == 1 else (targets - 1) * axis.step + axis.most - axis.least + 1


@lru_cache(maxsize=1024)
def tile_of(batch: int, channels: int, samplings: Samplings, itemsize: int) -> Tile:
    """The tile of a work item: whole rows and planes up to POSITIONS and BLOCK_BYTES, then images."""
    tile = [1, 1, 1, 1]
    for axis in (3, 2, 1, 0):
        count = batch if axis == 0 else samplings[axis - 1].targets
        most = max(1, POSITIONS // prod(tile))
        while most > 1 and _block_bytes(tile, axis, most, channels, samplings, itemsize) > BLOCK_BYTES:
            most = most * 3 // 4
        tile[axis] = -(-count // -(-count // min(most, count)))
        if tile[axis] < count:
            break
    return Tile(*tile)


def _block_bytes(tile: list[int], axis: int, count: int, channels: int, samplings: Samplings, itemsize: int) -> int:
    n, *space = [*tile[:axis], count, *tile[axis + 1 :]]
    return n * channels * itemsize * prod(map(_extent, samplings, space))
