"""Convolution as an implicit GEMM on tensor cores, of compute capability 8.0 and later.

Both factors are read with their channels innermost, in runs of 16 bytes: images and weights in another order, or of
other numbers of channels, are copied first, once per call. Columns are gathered on the way to shared memory.
"""

from __future__ import annotations

from math import gcd, prod
from typing import NamedTuple

import numpy as np

from gpucnn.backends.cuda.convolution.fields import IMAGE, SPACE, axis_fields, bias_dtype, extents
from gpucnn.backends.cuda.convolution.split_k import MAX_PART_VALUES, add_parts
from gpucnn.backends.cuda.device.runtime import MAX_BYTES, Array, Runtime
from gpucnn.backends.cuda.device.sources import Kernel
from gpucnn.backends.cuda.elementwise.packing import copy, pack
from gpucnn.backends.cuda.launch.plans import Fields, Layout, Work, empty, launch, layout, strides, zeros
from gpucnn.backends.layout import is_channels_last, is_dense
from gpucnn.geometry import ConvGeometry

GEMM = Kernel("implicit_gemm", "ImplicitGemmParams")
BACKWARD_WEIGHT = Kernel("implicit_gemm_backward_weight", "ImplicitGemmWeightParams")
GROUPED = ("n", "g", "c", *SPACE)

STEP_BYTES = 64  # of each row of both factors, which one step of the inner dimension takes
WARP_COLUMNS = 64
MULTIPROCESSORS, SCHEDULERS = 132, 4  # of the device that tiles are chosen for, whichever runs them
WANTED_WARPS = 2 * MULTIPROCESSORS * SCHEDULERS  # of a wgrad
MIN_STEPS = 8  # of a part of a split sum


class Tile(NamedTuple):
    """What a block computes: `warps_m` by `warps_n` warps of 16 * `fragments` rows and 64 columns each."""

    fragments: int
    warps_m: int
    warps_n: int
    stages: int  # steps whose factors are in shared memory, up to 48 KiB

    @property
    def rows(self) -> int:
        """Rows of the block."""
        return 16 * self.fragments * self.warps_m

    @property
    def columns(self) -> int:
        """Columns of the block."""
        return WARP_COLUMNS * self.warps_n

    @property
    def warps(self) -> int:
        """Warps of the block."""
        return self.warps_m * self.warps_n

    @property
    def constants(self) -> tuple[tuple[str, int], ...]:
        """The macros of a program for it."""
        return (
            ("FRAGMENTS", self.fragments), ("WARPS_M", self.warps_m), ("WARPS_N", self.warps_n), ("STAGES", self.stages)
        )  # fmt: skip


TILES = (Tile(4, 2, 2, 3), Tile(4, 1, 2, 4), Tile(2, 2, 2, 4), Tile(2, 1, 2, 4), Tile(1, 1, 2, 4))
"""Those that read and issue less for each product first."""


def tile(rows: int, columns: int, batch: int) -> Tile:
    """The tile for `batch` products of `rows` by `columns`: that which keeps a multiprocessor's schedulers least long.

    A warp's step takes as long as its fragments, and once more for its copies and what else it issues.

    Examples
    --------
    >>> [tile(*size, batch=1)[:3] for size in ((64, 32 * 56 * 56), (512, 32 * 28 * 28), (512, 32 * 7 * 7))]
    [(4, 1, 2), (4, 2, 2), (2, 2, 2)]
    """

    def duration(each: Tile) -> int:
        blocks = batch * -(-rows // each.rows) * -(-columns // each.columns)
        warps = -(-blocks // MULTIPROCESSORS) * each.warps
        return -(-warps // SCHEDULERS) * (each.fragments + 1)

    return min(TILES, key=duration)


def forward(runtime: Runtime, x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry) -> None:
    """Write y [N, OC, OD, OH, OW]."""
    groups = geometry.channels.groups
    arrays = {"x": _image(runtime, x, groups), "w": _filters(runtime, w), "bias": bias, "y": y}
    facts = {"geometry": geometry, "is_dgrad": False, "biases": bias_dtype(x, bias)}
    launch(runtime, GEMM, x.dtype, arrays, _gemm_work, **facts)


def backward_input(
    runtime: Runtime, grad_y: Array, w: Array, bias: Array | None, grad_x: Array, geometry: ConvGeometry
) -> None:
    """Write grad_x [N, C, D, H, W]: for each residue modulo the stride the convolution of grad_y with its taps."""
    groups = geometry.channels.groups
    filters = _transposed_filters(runtime, w, groups)
    arrays = {"x": _image(runtime, grad_y, groups), "w": filters, "bias": bias, "y": grad_x}
    facts = {"geometry": geometry, "is_dgrad": True, "biases": bias_dtype(grad_y, bias)}
    launch(runtime, GEMM, grad_y.dtype, arrays, _gemm_work, **facts)


def backward_weight(runtime: Runtime, x: Array, grad_y: Array, grad_w: Array, geometry: ConvGeometry) -> None:
    """Write grad_w [OC, C / G, KD, KH, KW]: parts over runs of positions, and their sum in order."""
    if not x.shape[0]:
        grad_w[...] = 0
        return
    groups, rows, taps = geometry.channels.groups, grad_w.shape[0], geometry.taps
    images, upstream = _image(runtime, x, groups), _image(runtime, grad_y, groups)
    depth = images.shape[2]
    splits, _ = split_positions(x.shape[0], depth, x.itemsize, geometry)
    parts = empty(runtime, (splits, rows, taps * depth), np.dtype(np.float32))
    arrays = {"x": images, "grad_y": upstream, "parts": parts}
    launch(runtime, BACKWARD_WEIGHT, x.dtype, arrays, _backward_weight_work, geometry=geometry)
    total = parts[0]
    if splits > 1:
        total = empty(runtime, total.shape, grad_w.dtype)
        add_parts(runtime, parts, total)
    by_tap = total.reshape(rows, *geometry.kernel_size, depth)[..., : grad_w.shape[1]]
    copy(runtime, runtime.xp.moveaxis(by_tap, -1, 1), grad_w)


# --- Factors with their channels innermost --------------------------------------------------------------------------


def padded_depth(channels: int, itemsize: int) -> int:
    """`channels`, filled up to whole runs of 16 bytes."""
    whole = MAX_BYTES // itemsize
    return -(-channels // whole) * whole


def _contiguous(runtime: Runtime, array: Array) -> Array:
    """The array in C order: itself, or a copy."""
    if array.flags.c_contiguous:
        return array
    contiguous = empty(runtime, array.shape, array.dtype)
    copy(runtime, array, contiguous)
    return contiguous


def _image(runtime: Runtime, x: Array, groups: int) -> Array:
    """X [N, C, D, H, W] as [N, G, C / G, D, H, W] with channels innermost, filled up with zeros: a view, or a copy."""
    n, c, *space = x.shape
    each = c // groups
    depth = padded_depth(each, x.itemsize)
    if depth == each and layout(x).pack(1) * x.itemsize == MAX_BYTES:
        return x.reshape(n, groups, each, *space)
    x = x if groups == 1 else _contiguous(runtime, x)
    image = (empty if depth == each else zeros)(runtime, (n * groups, *space, depth), x.dtype)
    copy(runtime, x.reshape(n * groups, each, *space), runtime.xp.moveaxis(image[..., :each], -1, 1))
    return runtime.xp.moveaxis(image.reshape(n, groups, *space, depth), -1, 2)


def _filters(runtime: Runtime, w: Array) -> Array:
    """W [OC, C / G, KD, KH, KW] as [OC, KD, KH, KW, C / G], filled up with zeros: a view of it, or a copy."""
    rows, c, *taps = w.shape
    last = runtime.xp.moveaxis(w, 1, -1)
    if last.flags.c_contiguous and c * w.itemsize % MAX_BYTES == 0 and layout(w).alignment == MAX_BYTES:
        return last
    depth = padded_depth(c, w.itemsize)
    filters = (empty if depth == c else zeros)(runtime, (rows, *taps, depth), w.dtype)
    copy(runtime, w, runtime.xp.moveaxis(filters[..., :c], -1, 1))
    return filters


def _transposed_filters(runtime: Runtime, w: Array, groups: int) -> Array:
    """W [OC, C / G, KD, KH, KW] as [C, KD, KH, KW, OC / G], filled up with zeros."""
    outputs, c, *taps = w.shape
    rows = outputs // groups
    w = _contiguous(runtime, w)
    depth = padded_depth(rows, w.itemsize)
    filters = (empty if depth == rows else zeros)(runtime, (groups, c * prod(taps), depth), w.dtype)
    pack(runtime, w.reshape(groups, rows, -1), filters[..., :rows].swapaxes(1, 2))
    return filters.reshape(groups * c, *taps, depth)


# --- Works ------------------------------------------------------------------------------------------------------------


def _gemm_work(
    x: Layout, w: Layout, bias: Layout | None, y: Layout, geometry: ConvGeometry, is_dgrad: bool, biases: str
) -> Work:
    n, groups, depth, *_ = x.shape
    rows = y.shape[1] // groups
    chunks = depth * x.itemsize // MAX_BYTES
    fields: Fields = {"n": n, "groups": groups, "rows": rows, "chunks": chunks, "is_dgrad": int(is_dgrad)}
    for name, axis in zip(SPACE, geometry.axes, strict=True):
        fields |= axis_fields(name, axis)
        if is_dgrad:
            fields |= {name: axis.out, f"o{name}": axis.size}
        else:
            fields |= {f"residues_{name}": 1, f"run_{name}": axis.out, f"tap_step_{name}": 1, f"output_step_{name}": 0}
    residues = prod(fields[f"residues_{name}"] for name in SPACE)
    positions = n * prod(fields[f"run_{name}"] for name in SPACE)
    chosen = tile(rows, positions, groups * residues)
    tiles_m, tiles_n = -(-rows // chosen.rows), -(-positions // chosen.columns)
    fields |= {
        **{"taps_at_once": {1: 4, 2: 2}.get(chunks, 1), "tiles_m": tiles_m, "tiles_n": tiles_n},
        **strides("x", GROUPED, x),
        **strides("y", IMAGE, y),
        **strides("bias", ("c",), bias),
        **_accesses(y, rows, residues),
    }
    return Work(
        fields,
        blocks=groups * residues * tiles_m * tiles_n,
        block=32 * chosen.warps,
        extents=(*extents(geometry), positions + chosen.columns, (groups * rows + chosen.rows) * prod(w.shape[1:])),
        constants=(*chosen.constants, ("BIAS", biases)),
    )


def _accesses(y: Layout, rows: int, residues: int) -> dict[str, int]:
    """The direction of accesses to y, along rows or positions, and their elements."""
    if is_channels_last(y):
        return {"rows_are_contiguous": 1, "vector": gcd(rows, y.pack(1))}
    vector = 1
    if residues == 1 and is_dense(y, (2, 3, 4)):
        n, c, *space = y.shape
        planes = Layout((n, c, prod(space)), (*y.strides[:2], y.itemsize), y.itemsize, y.alignment)
        vector = planes.pack(2)
    return {"rows_are_contiguous": 0, "vector": vector}


def split_positions(n: int, depth: int, itemsize: int, geometry: ConvGeometry) -> tuple[int, int]:
    """The number of parts of a wgrad's sum, and the positions of each."""
    _, outputs, groups = geometry.channels
    positions, columns, step = n * prod(geometry.output_size), geometry.taps * depth, STEP_BYTES // itemsize
    chosen = weight_tile(outputs // groups)
    blocks = groups * -(-outputs // groups // chosen.rows) * -(-columns // chosen.columns)
    steps = -(-positions // step)
    wanted = min(
        -(-WANTED_WARPS // (blocks * chosen.warps)), steps // MIN_STEPS, MAX_PART_VALUES // (outputs * columns)
    )
    run = -(-steps // max(1, wanted)) * step
    return -(-positions // run), run


def weight_tile(rows: int) -> Tile:
    """The smallest that takes all rows, else the largest; warps that stand on each other have 64 rows each."""
    tiles = [each for each in TILES if each.warps_m == 1 or each.fragments == 4]
    return next((each for each in reversed(tiles) if rows <= each.rows), tiles[0])


def _backward_weight_work(x: Layout, grad_y: Layout, parts: Layout, geometry: ConvGeometry) -> Work:
    n, groups, depth, *_ = x.shape
    rows, (splits, run) = parts.shape[1] // groups, split_positions(n, depth, x.itemsize, geometry)
    chosen = weight_tile(rows)
    tiles_m, tiles_n = -(-rows // chosen.rows), -(-parts.shape[2] // chosen.columns)
    fields: Fields = {"n": n, "groups": groups, "rows": rows, "splits": splits, "run": run}
    for name, axis in zip(SPACE, geometry.axes, strict=True):
        fields |= axis_fields(name, axis)
    fields |= {
        **{"row_chunks": grad_y.shape[2] * x.itemsize // MAX_BYTES, "chunks": depth * x.itemsize // MAX_BYTES},
        **{"tiles_m": tiles_m, "tiles_n": tiles_n},
        **strides("x", GROUPED, x),
        **strides("y", GROUPED, grad_y),
    }
    return Work(
        fields,
        blocks=groups * splits * tiles_m * tiles_n,
        block=32 * chosen.warps,
        extents=(*extents(geometry), splits * run + run, parts.size + chosen.rows * parts.shape[2]),
        constants=chosen.constants,
        shared_bytes=chosen.stages * (chosen.rows + chosen.columns) * STEP_BYTES,
    )
