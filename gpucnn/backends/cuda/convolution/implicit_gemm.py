"""Convolution as an implicit GEMM, on tensor cores or in full float32; of compute capability 7.5 and later.

Both factors are read with their channels innermost, in runs of 16 bytes: images and weights in another order, or of
other numbers of channels, are copied first, once per call. Columns are gathered on the way to shared memory.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from math import gcd, prod
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends.base import Epilogue
from gpucnn.backends.cuda.convolution import direct
from gpucnn.backends.cuda.convolution.fields import axis_fields, extents
from gpucnn.backends.cuda.convolution.folding import Fold, OutputFold, fold_of_gradient, fold_of_input, fold_of_output
from gpucnn.backends.cuda.convolution.select import SM_80
from gpucnn.backends.cuda.convolution.split_k import MAX_PART_VALUES, add_parts
from gpucnn.backends.cuda.device.runtime import MAX_BYTES, Array, Runtime
from gpucnn.backends.cuda.device.sources import Kernel
from gpucnn.backends.cuda.elementwise.bias_activation import Activation, activation_of, bias_dtype, in_order_of
from gpucnn.backends.cuda.elementwise.packing import copy, pack
from gpucnn.backends.cuda.launch.plans import IMAGE, SPACE, Fields, Layout, Work, empty, launch, layout, strides, zeros
from gpucnn.backends.layout import is_channels_last, is_dense, planes
from gpucnn.geometry import Axis, ConvGeometry
from gpucnn.geometry.geometries import Channels
from gpucnn.numerics import choices

GEMM = Kernel("implicit_gemm", "ImplicitGemmParams")
BACKWARD_WEIGHT = Kernel("implicit_gemm_backward_weight", "ImplicitGemmWeightParams")
GROUPED = ("n", "g", "c", *SPACE)
NO_EPILOGUE = Epilogue()

STEP_BYTES = 64  # of each row of both factors, which one step of the inner dimension takes
STEP_CHUNKS = STEP_BYTES // MAX_BYTES
WARP_COLUMNS = 64
FRAGMENT_CLOCKS = 512, 102, 307  # of a scheduler, on an H100, for a step of 16 rows by a warp's columns, by terms
STEP_CLOCKS = 300, 0, 0  # for what a warp's step issues besides, while FFMA waits; tensor cores do not
SHARED_BYTES = 128  # that shared memory moves in a clock
MULTIPROCESSORS, SCHEDULERS = (108, 132), 4  # of the devices that tiles are chosen for, whichever runs them
WANTED_WARPS = 2 * SCHEDULERS  # of a multiprocessor, to overlap copies and products
MIN_STEPS = 8  # of a part of a split sum
PART_STEPS = 24  # in whose time a part is written, read and added
MAX_BLOCKS = 4096  # beyond which the last ones matter no more


class Tile(NamedTuple):
    """What a block computes: `warps_m` by `warps_n` warps of 16 * `fragments` rows and 64 columns each."""

    fragments: int
    warps_m: int
    warps_n: int
    stages: int  # steps whose factors are in shared memory, up to 48 KiB
    sm_80: bool = True

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
            ("FRAGMENTS", self.fragments), ("WARPS_M", self.warps_m), ("WARPS_N", self.warps_n),
            ("STAGES", self.stages), ("SM_80", int(self.sm_80)),
        )  # fmt: skip

    def on(self, sm_80: bool) -> Tile:
        """The tile for a device with compute capability 8.0 or without it.

        Copies that wait need two stages, and with these two blocks of the largest tile fit a Turing multiprocessor.
        """
        return self if sm_80 else self._replace(stages=2, sm_80=False)


TILES = (
    Tile(4, 2, 2, 3), Tile(3, 2, 2, 3), Tile(4, 1, 2, 4), Tile(3, 1, 2, 3),
    Tile(2, 2, 2, 4), Tile(2, 1, 2, 4), Tile(1, 1, 2, 4),
)  # fmt: skip
"""Those that read and issue less for each product first.

That of 48 rows, which folds fill, has a stage fewer than fit: in the model L1 then holds a ResNet's first dgrad's taps
along w, which takes 0.7 of the time on an H100.
"""

_TERMS = {"fp32": 0, "tf32": 1, "fp32x3": 2}


def terms(dtype: np.dtype[Any]) -> int:
    """The values whose sum a factor is read as: two of TF32 make three products; 0 is float32 as it is, by FFMA."""
    return _TERMS[choices().precision] if dtype == np.float32 else 1


class Numbers(NamedTuple):
    """Those that a launch computes with: the terms of a factor, and the dtype of biases; and what the device has."""

    terms: int
    bias: str
    sm_80: bool  # asynchronous copies, and products of 16 values


def _rounded(dtype: np.dtype[Any]) -> str | None:
    """The dtype that factors are copied to where they must be rounded: then even those in the right order are."""
    return "tf32" if dtype == np.float32 and choices().precision == "tf32" else None


def tiles(terms: int) -> tuple[Tile, ...]:
    """The tiles for factors of so many terms: two need registers for fragments and sums twice, and time to split."""
    return TILES if terms < 2 else tuple(each for each in TILES if each.fragments == 2)


def tile(rows: int, columns: int, batch: int, terms: int = 1) -> Tile:
    """The tile for `batch` products of `rows` by `columns`: that which keeps a multiprocessor's schedulers least long.

    These take as long as the products, by a scheduler's warps, or as shared memory's accesses: of the fragments that
    warps read, and of the copies.

    Examples
    --------
    >>> [tile(*size, batch=1)[:3] for size in ((64, 32 * 56 * 56), (512, 32 * 28 * 28), (512, 32 * 7 * 7))]
    [(4, 1, 2), (4, 2, 2), (2, 2, 2)]
    """

    def duration(each: Tile) -> int:
        blocks = batch * -(-rows // each.rows) * -(-columns // each.columns)
        on_one = -(-blocks // MULTIPROCESSORS[-1])
        step = each.fragments * FRAGMENT_CLOCKS[terms] + STEP_CLOCKS[terms]
        products = -(-on_one * each.warps // SCHEDULERS) * step
        reads = 4 * (2 * each.fragments + 8) * each.warps
        return max(products, on_one * (reads + (each.rows + each.columns) * STEP_BYTES // SHARED_BYTES))

    return min(tiles(terms), key=duration)


def forward(
    runtime: Runtime,
    x: Array,
    w: Array,
    bias: Array | None,
    y: Array,
    geometry: ConvGeometry,
    epilogue: Epilogue = NO_EPILOGUE,
) -> None:
    """Write y [N, OC, OD, OH, OW]; with an epilogue only where there is no fold: `takes_epilogue`.

    The zeros of a fold's filters make NaN of an infinity or NaN that a window does not read: if there is such a result,
    which the product notes, these are computed anew.
    """
    fold, given = fold_of_input(geometry, x.itemsize), (x, w, bias, y, geometry)
    if fold is not None:
        x, w, geometry = fold.image(runtime, x), fold.filters(runtime, w), fold.convolution
    groups, blocks = geometry.channels.groups, fold_of_output(geometry) if _takes_blocks(y) else None
    filters = _filters(runtime, w if blocks is None else blocks.filters(runtime, w))
    image = _image(runtime, x, groups)
    not_finite = zeros(runtime, (1,), np.int32) if fold is not None or blocks is not None else None
    if blocks is None:
        _launch(runtime, image, filters, bias, y, _forward_work, epilogue, not_finite, geometry=geometry)
    else:
        _launch(runtime, image, filters, bias, y, _folded_work, not_finite=not_finite, fold=blocks)
    if not_finite is not None:
        direct.forward(runtime, *given, not_finite)


def multiply(runtime: Runtime, x: Array, w: Array, y: Array) -> None:
    """Write y [N, G * rows, D, H, W] as w [G * rows, 1, 1, 1, C] times x [N, G, C, D, H, W], C contiguous in both."""
    groups, depth = x.shape[1:3]
    axes = [Axis(size, 1, 1, 1, 0, 0, size) for size in x.shape[3:]]
    geometry = ConvGeometry(3, Channels(groups * depth, y.shape[1], groups), (axes[0], axes[1], axes[2]))
    _launch(runtime, x, w, None, y, _forward_work, geometry=geometry)


def takes_epilogue(x: Array, y: Array, geometry: ConvGeometry) -> bool:
    """Whether a forward is one launch: of a fold it is not, whose infinities and NaN are looked for in y."""
    return fold_of_input(geometry, x.itemsize) is None and not (_takes_blocks(y) and fold_of_output(geometry))


def _launch(
    runtime: Runtime,
    x: Array,
    w: Array,
    bias: Array | None,
    y: Array,
    work: Callable[..., Work],
    epilogue: Epilogue = NO_EPILOGUE,
    not_finite: Array | None = None,
    **facts: Hashable,
) -> None:
    """Launch the kernel over factors that are as it reads them; `not_finite` becomes 1 where a result is such."""
    residual = None if epilogue.residual is None else in_order_of(runtime, planes(epilogue.residual), planes(y))
    arrays = {"x": x, "w": w, "bias": bias, "residual": residual, "not_finite": not_finite, "y": y}
    capability = runtime.device(y).compute_capability
    numbers = Numbers(terms(x.dtype), bias_dtype(x, bias), sm_80=capability >= SM_80)
    facts |= {"numbers": numbers, "activation": activation_of(epilogue)}
    launch(runtime, GEMM, x.dtype, arrays, work, **facts)


def backward_input(
    runtime: Runtime, grad_y: Array, w: Array, bias: Array | None, grad_x: Array, geometry: ConvGeometry
) -> None:
    """Write grad_x [N, C, D, H, W]: for each residue modulo the stride the convolution of grad_y with its taps.

    Of few channels, it is one convolution of grad_y whose rows are blocks of grad_x's positions; what is not finite is
    computed anew, as by `forward`.
    """
    groups, fold = geometry.channels.groups, fold_of_gradient(geometry) if _takes_blocks(grad_x) else None
    filters = _transposed_filters(runtime, w if fold is None else fold.filters(runtime, w), groups)
    image = _image(runtime, grad_y, groups)
    if fold is None:
        _launch(runtime, image, filters, bias, grad_x, _backward_input_work, geometry=geometry)
    else:
        not_finite = zeros(runtime, (1,), np.int32)
        _launch(runtime, image, filters, bias, grad_x, _folded_work, not_finite=not_finite, fold=fold)
        direct.backward_input(runtime, grad_y, w, bias, grad_x, geometry, not_finite)


def backward_weight(runtime: Runtime, x: Array, grad_y: Array, grad_w: Array, geometry: ConvGeometry) -> None:
    """Write grad_w [OC, C / G, KD, KH, KW]: parts over runs of positions, and their sum in order."""
    if not x.shape[0]:
        grad_w[...] = 0
        return
    fold = fold_of_input(geometry, x.itemsize)
    if fold is not None:
        inner = fold.convolution
        folded = empty(runtime, (len(grad_w), grad_w.shape[1] * fold.positions, *inner.kernel_size), grad_w.dtype)
        backward_weight(runtime, fold.image(runtime, x), grad_y, folded, inner)
        fold.gather_filters(runtime, folded, grad_w)
        return
    blocks = fold_of_weight(geometry, x.itemsize)
    if blocks is None:
        _sum_positions(runtime, x, grad_y, grad_w, geometry)
        return
    inner = blocks.convolution
    parted = empty(runtime, (*grad_w.shape[:2], blocks.positions, *inner.kernel_size), np.dtype(np.float32))
    _sum_positions(runtime, x, blocks.image(runtime, grad_y), parted, inner, blocks.positions)
    blocks.add_filters(runtime, parted, grad_w)


def _sum_positions(
    runtime: Runtime, x: Array, grad_y: Array, grad_w: Array, geometry: ConvGeometry, block: int = 1
) -> None:
    """Write grad_w [OC, C / G, …]: of each pair of channels the taps' sums, of a block's positions from the last on."""
    groups, rows, taps = geometry.channels.groups, grad_y.shape[1], geometry.taps
    images, upstream = _image(runtime, x, groups), _image(runtime, grad_y, groups)
    depth = images.shape[2]
    factors, sm_80 = terms(x.dtype), runtime.device(x).compute_capability >= SM_80
    splits, _ = split_positions(x.shape[0], depth, x.itemsize, geometry, factors)
    parts = empty(runtime, (splits, rows, taps * depth), np.dtype(np.float32))
    arrays = {"x": images, "grad_y": upstream, "parts": parts}
    facts: dict[str, Hashable] = {"geometry": geometry, "block": block, "terms": factors, "sm_80": sm_80}
    launch(runtime, BACKWARD_WEIGHT, x.dtype, arrays, _backward_weight_work, **facts)
    total = parts[0]
    if splits > 1:
        total = empty(runtime, total.shape, grad_w.dtype)
        add_parts(runtime, parts, total)
    _reorder(runtime, total, grad_w, weight_chunks(grad_w.shape[1], x.itemsize) * MAX_BYTES // x.itemsize)


def _reorder(runtime: Runtime, total: Array, grad_w: Array, block: int) -> None:
    """Write total [OC, blocks of channels, taps, channels of a block] to grad_w [OC, C / G, *], of as many taps."""
    _, channels, *size = grad_w.shape
    ordered = grad_w if grad_w.flags.c_contiguous else empty(runtime, grad_w.shape, grad_w.dtype)
    by_tap = total.reshape(-1, prod(size), block)[..., :channels].swapaxes(1, 2)
    pack(runtime, by_tap, ordered.reshape(len(by_tap), -1, prod(size)))
    if ordered is not grad_w:
        copy(runtime, ordered, grad_w)


def _takes_blocks(y: Array) -> bool:
    """Whether rows may be positions of y: each value is written alone, so neighbours along w are to share sectors."""
    return not is_channels_last(y) or y.shape[1] * y.itemsize <= MAX_BYTES


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
    depth, target = padded_depth(each, x.itemsize), _rounded(x.dtype)
    if not target and depth == each and layout(x).pack(1) * x.itemsize == MAX_BYTES:
        return x.reshape(n, groups, each, *space)
    x = x if groups == 1 else _contiguous(runtime, x)
    image = empty(runtime, (n * groups, *space, depth), x.dtype)
    copy(runtime, x.reshape(n * groups, each, *space), runtime.xp.moveaxis(image, -1, 1), target)
    return runtime.xp.moveaxis(image.reshape(n, groups, *space, depth), -1, 2)


def _filters(runtime: Runtime, w: Array) -> Array:
    """W [OC, C / G, KD, KH, KW] as [OC, KD, KH, KW, C / G], filled up with zeros: a view of it, or a copy."""
    rows, c, *taps = w.shape
    last, target = runtime.xp.moveaxis(w, 1, -1), _rounded(w.dtype)
    if not target and last.flags.c_contiguous and c * w.itemsize % MAX_BYTES == 0 and layout(w).alignment == MAX_BYTES:
        return last
    depth = padded_depth(c, w.itemsize)
    filters = empty(runtime, (rows, *taps, depth), w.dtype)
    copy(runtime, w, runtime.xp.moveaxis(filters, -1, 1), target)
    return filters


def _transposed_filters(runtime: Runtime, w: Array, groups: int) -> Array:
    """W [OC, C / G, KD, KH, KW] as [C, KD, KH, KW, OC / G], filled up with zeros."""
    outputs, c, *taps = w.shape
    rows = outputs // groups
    w = _contiguous(runtime, w)
    depth = padded_depth(rows, w.itemsize)
    filters = empty(runtime, (groups, c * prod(taps), depth), w.dtype)
    pack(runtime, w.reshape(groups, rows, -1), filters.swapaxes(1, 2), target=_rounded(w.dtype))
    return filters.reshape(groups * c, *taps, depth)


# --- Works ------------------------------------------------------------------------------------------------------------


def _forward_work(
    x: Layout,
    w: Layout,
    bias: Layout | None,
    residual: Layout | None,
    not_finite: Layout | None,
    y: Layout,
    geometry: ConvGeometry,
    numbers: Numbers,
    activation: Activation,
) -> Work:
    fields: Fields = {"is_dgrad": 0, "is_backwards": 0}
    for name, axis in zip(SPACE, geometry.axes, strict=True):
        fields |= axis_fields(name, axis) | _positions(name, axis.out)
    work = _gemm_work(x, w, bias, y, fields, extents(geometry), numbers, not_finite, activation.smooth)
    epilogue = activation.fields
    if residual is not None:
        epilogue |= {"has_residual": 1, "vector": gcd(work.fields["vector"], residual.alignment // y.itemsize)}
    return work._replace(fields=work.fields | epilogue)


def _backward_input_work(
    x: Layout, w: Layout, bias: Layout | None, y: Layout, geometry: ConvGeometry, numbers: Numbers
) -> Work:
    fields: Fields = {"is_dgrad": 1, "is_backwards": 0}
    for name, axis in zip(SPACE, geometry.axes, strict=True):
        fields |= {**_positions(name, 0), **axis_fields(name, axis), name: axis.out, f"o{name}": axis.size}
    return _gemm_work(x, w, bias, y, fields, extents(geometry), numbers)


def _folded_work(
    x: Layout,
    w: Layout,
    bias: Layout | None,
    not_finite: Layout | None,
    y: Layout,
    fold: Fold | OutputFold,
    numbers: Numbers,
) -> Work:
    """A forward whose rows are blocks of y's positions too."""
    fields: Fields = {"is_dgrad": 0, "is_backwards": int(fold.lines[0].step > 0)}
    for name, line in zip(SPACE, fold.lines, strict=True):
        fields |= {
            **{name: line.inputs, f"o{name}": line.outputs, f"k{name}": line.taps},
            **{f"stride_{name}": line.stride, f"dilation_{name}": line.step, f"low_{name}": line.low},
            **_positions(name, line.blocks, line.size, line.cut),
        }
    reach = [(line.blocks + 1) * max(line.stride, line.size) + line.taps + abs(line.low) for line in fold.lines]
    return _gemm_work(x, w, bias, y, fields, (*extents(fold.geometry), *reach), numbers, not_finite)


def _positions(name: str, count: int, fold: int = 1, cut: int = 0) -> Fields:
    """The fields of a forward's positions along one axis."""
    return {
        **{f"residues_{name}": 1, f"run_{name}": count, f"tap_step_{name}": 1, f"output_step_{name}": 0},
        **{f"fold_{name}": fold, f"cut_{name}": cut},
    }


def _gemm_work(
    x: Layout,
    w: Layout,
    bias: Layout | None,
    y: Layout,
    axes: Fields,
    reach: tuple[int, ...],
    numbers: Numbers,
    not_finite: Layout | None = None,
    smooth: int = 0,
) -> Work:
    (n, groups, depth, *_), fold = x.shape, prod(axes[f"fold_{name}"] for name in SPACE)
    rows = y.shape[1] // groups * fold
    chunks = depth * x.itemsize // MAX_BYTES
    residues = prod(axes[f"residues_{name}"] for name in SPACE)
    positions = n * prod(axes[f"run_{name}"] for name in SPACE)
    chosen = tile(rows, positions, groups * residues, numbers.terms).on(numbers.sm_80)
    tiles_m, tiles_n = -(-rows // chosen.rows), -(-positions // chosen.columns)
    fields = {
        **axes,
        **{"n": n, "groups": groups, "rows": rows, "chunks": chunks, "chunks_at_once": chunks_at_once(chunks)},
        **{"tiles_m": tiles_m, "tiles_n": tiles_n, "adjacent_rows": gcd(axes["fold_w"], 16)},
        **strides("x", GROUPED, x),
        **strides("y", IMAGE, y),
        **strides("bias", ("c",), bias),
        **_accesses(y, rows, residues, fold),
        **{"has_residual": 0, "activation": 0, "negative_slope": 0.0},
        "notes_not_finite": int(not_finite is not None),
    }
    return Work(
        fields,
        blocks=groups * residues * tiles_m * tiles_n,
        block=32 * chosen.warps,
        extents=(*reach, positions + chosen.columns, (groups * rows + chosen.rows) * prod(w.shape[1:])),
        constants=(*chosen.constants, ("TERMS", numbers.terms), ("BIAS", numbers.bias), ("SMOOTH", smooth)),
    )


def chunks_at_once(chunks: int) -> int:
    """Chunks of a tap that follow each other before those of the next tap.

    All, if they are no whole steps, so that only the last step is not full; else those of one step, so that all taps of
    a few channels follow each other and find these in L1.
    """
    return chunks if chunks < 2 * STEP_CHUNKS else STEP_CHUNKS


def gemm_steps(taps: int, depth: int, itemsize: int) -> int:
    """Steps of a block's product, of so many taps of `depth` channels.

    Examples
    --------
    >>> gemm_steps(9, 64, 2), gemm_steps(9, 48, 2), gemm_steps(49, 8, 2)
    (18, 14, 13)
    """
    chunks = depth * itemsize // MAX_BYTES
    at_once = chunks_at_once(chunks)
    return -(-chunks // at_once) * -(-taps * at_once // STEP_CHUNKS)


def _accesses(y: Layout, rows: int, residues: int, fold: int) -> dict[str, int]:
    """The direction of accesses to y, along rows or positions, and their elements; one at a time of a fold."""
    if is_channels_last(y) and fold == 1:
        return {"rows_are_contiguous": 1, "vector": gcd(rows, y.pack(1))}
    vector = 1
    if residues == fold == 1 and is_dense(y, (2, 3, 4)):
        n, c, *space = y.shape
        vector = Layout((n, c, prod(space)), (*y.strides[:2], y.itemsize), y.itemsize, y.alignment).pack(2)
    return {"rows_are_contiguous": 0, "vector": vector}


@lru_cache(maxsize=1024)
def split_positions(n: int, depth: int, itemsize: int, geometry: ConvGeometry, terms: int = 1) -> tuple[int, int]:
    """The number of parts of a wgrad's sum, and the positions of each.

    It is that which keeps the multiprocessors of an A100 and an H100 least long: by whole blocks of each, so that the
    last of them are few. That is up to 1.3 times faster than twice as many warps as there are schedulers.
    """
    _, outputs, groups = geometry.channels
    positions, columns, step = n * prod(geometry.output_size), geometry.taps * depth, STEP_BYTES // itemsize
    chosen = weight_tile(outputs // groups, terms)
    blocks = groups * -(-outputs // groups // chosen.rows) * -(-columns // chosen.columns)
    steps = -(-positions // step)

    def duration(splits: int) -> int:
        on_each = (max(-(-blocks * splits // each), WANTED_WARPS // chosen.warps) for each in MULTIPROCESSORS)
        return sum(on_each) * (-(-steps // splits) + PART_STEPS)

    most = min(steps // MIN_STEPS, MAX_PART_VALUES // (outputs * columns), MAX_BLOCKS // blocks)
    run = -(-steps // min(range(1, max(1, most) + 1), key=duration)) * step
    return -(-positions // run), run


def weight_chunks(channels: int, itemsize: int) -> int:
    """Chunks of a block of channels in a wgrad's columns: of 64 or 32 bytes, if such blocks are whole; else of all.

    A tile of 128 columns holds 4 or 8 taps of a block, which read the same inputs: from L1 but for the first. In the
    model that is 1.3 times faster for 256 channels on an H100, where L2 limits tiles of one tap.

    Examples
    --------
    >>> [weight_chunks(channels, 2) for channels in (3, 48, 60, 64)]
    [1, 2, 8, 4]
    """
    whole = MAX_BYTES // itemsize
    chunks = -(-channels // whole)
    return next((block for block in (4, 2) if chunks % block == 0 and channels % whole == 0), chunks)


def fold_of_weight(geometry: ConvGeometry, itemsize: int) -> OutputFold | None:
    """Blocks of outputs for a wgrad: those of a forward, where all channels are one block of its columns."""
    channels = geometry.channels.inputs // geometry.channels.groups
    is_one = weight_chunks(channels, itemsize) * MAX_BYTES >= channels * itemsize
    return fold_of_output(geometry) if is_one else None


def weight_tile(rows: int, terms: int = 1) -> Tile:
    """The smallest that takes all rows, else the largest; warps that stand on each other have whole turns of chunks."""
    stacked = {4} if terms < 2 else {2}
    usable = [each for each in tiles(terms) if each.fragments in (stacked if each.warps_m == 2 else (1, 2, 4))]
    return next((each for each in reversed(usable) if rows <= each.rows), usable[0])


def _backward_weight_work(
    x: Layout, grad_y: Layout, parts: Layout, geometry: ConvGeometry, block: int, terms: int, sm_80: bool
) -> Work:
    n, groups, depth, *_ = x.shape
    rows, (splits, run) = parts.shape[1] // groups, split_positions(n, depth, x.itemsize, geometry, terms)
    chosen = weight_tile(rows, terms).on(sm_80)
    tiles_m, tiles_n = -(-rows // chosen.rows), -(-parts.shape[2] // chosen.columns)
    fields: Fields = {"n": n, "groups": groups, "rows": rows, "block": block, "splits": splits, "run": run}
    for name, axis in zip(SPACE, geometry.axes, strict=True):
        fields |= axis_fields(name, axis)
    fields |= {
        **{"row_chunks": grad_y.shape[2] * x.itemsize // MAX_BYTES, "chunks": depth * x.itemsize // MAX_BYTES},
        "chunks_at_once": weight_chunks(geometry.channels.inputs // groups, x.itemsize),
        **{"tiles_m": tiles_m, "tiles_n": tiles_n},
        **strides("x", GROUPED, x),
        **strides("y", GROUPED, grad_y),
    }
    return Work(
        fields,
        blocks=groups * splits * tiles_m * tiles_n,
        block=32 * chosen.warps,
        extents=(*extents(geometry), splits * run + run, parts.size + chosen.rows * parts.shape[2]),
        constants=(*chosen.constants, ("TERMS", terms)),
        shared_bytes=chosen.stages * (chosen.rows + chosen.columns) * STEP_BYTES,
    )
