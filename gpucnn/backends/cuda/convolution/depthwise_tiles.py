"""Tiles of depthwise convolution and their layout in shared memory: pure functions of sizes.

A block stages the boxes of its tile in shared memory once, so the tile determines the halo, which is read twice, and
the bytes in flight. The best of some tens of tiles is taken, by bytes moved and shared memory used.

Gain over the plain kernels, counted on layers (benchmarks/results/kernel-gains.md): 75 to 97 % of the sectors are saved
where channels are first, 93 to 99 % where they are last, mostly reads that L1 would serve; 25 to 90 % of the memory
instructions. Segments of 8 lanes save 57 % of those of a weight gradient over planes of 7 x 7. Two images of a block
save 10 % of the sectors of 5 x 5 filters over such planes, 17 % of those of the weight gradient, in a batch of 512.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import gcd, prod
from typing import NamedTuple

from gpucnn.backends.cuda.device.limits import MAX_SHARED_BYTES, power_of_two
from gpucnn.geometry import Axis, ConvGeometry

PLANES_BYTES = 16 * 1024  # of a block that takes several planes: many blocks, each with enough in flight
SHARED_WORTH = 400 * 1024  # bytes of shared memory that weigh as much as all bytes that a block moves
FEW_RESULTS = 64  # of a block, whose start costs as much as they do
SHORT_RUN = 64  # bytes of channels below which a burst of memory is not filled
SHORT_RUN_COST = 1.1
FILTER_SHARE = 1 / 32  # of the bytes that a block moves: it loops over images until its filters are at most this,
WANTED_BLOCKS = 1024  # as long as this many blocks are left, enough for any current device
BLOCK = 256
WARP = 32
SECTOR = 32  # bytes of global memory
NEARLY = 1.1  # times the least cost
MAX_ROWS = 8  # outputs of a column that one thread sums
MAX_SUMS = 16  # of one thread that has several channels, limited by registers
MAX_TAPS = 8  # rows of the filter that one thread takes at a time

ALONG_CHANNELS, ALONG_ROW, ALONG_ROWS, ALONG_PLANES = range(4)  # direction of a run, as in depthwise.cuh
Sizes = tuple[int, int, int]  # of D, H, W


class Side(NamedTuple):
    """The box of one array: its maximum sizes, its runs, and its layout in shared memory."""

    box: Sizes
    channels: int
    along: int
    runs: tuple[int, int, int, int]  # along C, D, H, W
    packs: int  # of one run
    pitches: tuple[int, int, int, int]  # of C, D, H, W
    elements: int  # in shared memory


class Tile(NamedTuple):
    """A block's part: channels of x, sizes within the array that is tiled, and the boxes of both arrays."""

    planes: int
    sizes: Sizes
    x: Side
    y: Side


class Walk(NamedTuple):
    """Thread mapping of a tile: `rows` per thread, `columns` of a row's residue, and `lanes` of all residues."""

    rows: int
    columns: int
    lanes: int
    classes: int
    slots: int
    segment: int = WARP


class Request(NamedTuple):
    """A depthwise convolution in one direction: all parameters of its tiles."""

    geometry: ConvGeometry
    direction: str
    itemsize: int
    channels_last: bool
    pack: int  # elements of one access of global memory

    @property
    def axes(self) -> tuple[Axis, Axis, Axis]:
        """Axes D, H and W."""
        return self.geometry.axes

    @property
    def multiplier(self) -> int:
        """Outputs of each channel."""
        return self.geometry.channels.outputs // self.geometry.channels.inputs

    @property
    def vec(self) -> int:
        """Neighbouring channels of one thread."""
        return self.pack if self.channels_last and self.multiplier == 1 else 1

    @property
    def taps(self) -> int:
        """Rows of the filter that one thread takes at a time."""
        height = self.geometry.axes[1]
        step = _tap_step(height) if self.direction == "backward_input" else 1
        return min(-(-height.kernel // step), MAX_TAPS)

    @property
    def written(self) -> Sizes:
        """Sizes of the array that is tiled: inputs for dgrad, else outputs."""
        return self.geometry.input_size if self.direction == "backward_input" else self.geometry.output_size

    @property
    def filter_bytes(self) -> int:
        """Bytes of one channel of x in shared memory: weights and bias, or sums of weights."""
        wide = max(4, self.itemsize)
        row = self.geometry.taps if self.direction == "backward_weight" else filter_pitch(self.geometry.taps)
        return self.multiplier * row * wide


def filter_pitch(taps: int) -> int:
    """Stride between filters in elements, an odd number, with room for a bias."""
    return (taps + 1) | 1


# --- Boxes ------------------------------------------------------------------------------------------------------------


def read_along(axis: Axis, tile: int, inverse: bool) -> tuple[int, int]:
    """The longest range that a tile along `axis` reads, and the sum over all tiles."""
    size, source = (axis.size, axis.out) if inverse else (axis.out, axis.size)
    tiles = -(-size // tile)
    if tiles > 64:  # near enough
        span = (axis.kernel - 1) * axis.dilation
        longest = (tile - 1 + span) // axis.stride + 1 if inverse else (tile - 1) * axis.stride + span + 1
        return min(longest, source), min(longest, source) * tiles
    lengths = []
    for first in range(0, size, tile):
        last = min(first + tile, size) - 1
        if inverse:
            begin = -(-(first + axis.low - (axis.kernel - 1) * axis.dilation) // axis.stride)
            end = (last + axis.low) // axis.stride + 1
        else:
            begin = first * axis.stride - axis.low
            end = last * axis.stride + (axis.kernel - 1) * axis.dilation - axis.low + 1
        lengths.append(max(0, min(end, source) - max(begin, 0)))
    return max(1, *lengths), sum(lengths)


def side(request: Request, box: Sizes, channels: int, along: int, sizes: Sizes) -> Side:
    """Shared-memory layout of the box of `channels` of an array of `sizes`."""
    pack, (d, h, w) = request.pack, box
    if along == ALONG_CHANNELS:
        run = _up(channels, pack)
        return Side(box, channels, along, (1, d, h, w), run // pack, (1, h * w * run, w * run, run), d * h * w * run)
    if along == ALONG_PLANES:
        box, runs = sizes, (1, 1, 1, 1)
        length = channels * prod(sizes)
        pitches = (prod(sizes), sizes[1] * sizes[2], sizes[2], 1)
    elif along == ALONG_ROWS:
        box, runs, length = (d, h, sizes[2]), (channels, d, 1, 1), h * sizes[2]
        pitch = _run(length, pack)
        pitches = (d * pitch, pitch, sizes[2], 1)
    else:
        runs, length = (channels, d, h, 1), w
        pitch = _run(length, pack)
        pitches = (d * h * pitch, h * pitch, pitch, 1)
    whole = _run(length, pack)
    return Side(box, channels, along, runs, whole // pack, pitches, prod(runs) * whole)


def _up(size: int, step: int) -> int:
    return -(-size // step) * step


def _run(length: int, pack: int) -> int:
    """Elements of shared memory for a run with any offset within a pack."""
    return _up(length + pack - 1, pack)


# --- The tile ---------------------------------------------------------------------------------------------------------


def tile(request: Request) -> Tile | None:
    """The tile of a block, or None where none fits."""
    found = [(cost, candidate) for candidate, cost in _candidates(request)]
    return min(found, key=lambda pair: pair[0])[1] if found else None


def shared_bytes(request: Request, candidate: Tile) -> tuple[int, int, int]:
    """Byte offsets of x and y in shared memory, and its end; y or x has length 0 where it is not staged."""
    x, y = (_up(part.elements * request.itemsize, 16) for part in (candidate.x, candidate.y))
    if request.channels_last and request.direction == "forward":
        y = 0
    if request.channels_last and request.direction == "backward_input":
        x = 0
    filters = _up(candidate.planes * request.filter_bytes, 16)
    return filters, filters + x, filters + x + y


def _candidates(request: Request) -> Iterator[tuple[Tile, float]]:
    """Tiles that fit, each with its cost."""
    inverse = request.direction == "backward_input"
    for along, planes, sizes in (_pixel_tiles if request.channels_last else _plane_tiles)(request):
        reads = [read_along(axis, tiled, inverse) for axis, tiled in zip(request.axes, sizes, strict=True)]
        box = (reads[0][0], reads[1][0], reads[2][0])
        x_box, y_box = (sizes, box) if inverse else (box, sizes)
        candidate = Tile(
            planes,
            sizes,
            side(request, x_box, planes, along, request.geometry.input_size),
            side(request, y_box, planes * request.multiplier, along, request.geometry.output_size),
        )
        taken = shared_bytes(request, candidate)[-1]
        if taken > MAX_SHARED_BYTES:
            continue
        halo = prod(total for _, total in reads)
        least = prod(request.geometry.output_size if inverse else request.geometry.input_size)
        if along == ALONG_PLANES:
            halo = least
        elif along == ALONG_ROWS:  # whole rows are read
            halo = reads[0][1] * reads[1][1] * (request.axes[2].out if inverse else request.axes[2].size)
        written = prod(request.written)
        if inverse:
            halo, least = halo * request.multiplier, least * request.multiplier
        else:
            written *= request.multiplier
        cost = (max(halo, least) + written) / (least + written) * (1 + taken / SHARED_WORTH)
        cost *= 1 + FEW_RESULTS / (planes * prod(sizes))
        if along == ALONG_ROW:  # its ends share their sectors with other tiles
            cost *= 1 + SECTOR / (box[2] * request.itemsize)
        if along == ALONG_CHANNELS and planes * request.itemsize < SHORT_RUN:
            cost *= SHORT_RUN_COST
        yield candidate, cost


def _plane_tiles(request: Request) -> Iterator[tuple[int, int, Sizes]]:
    """Whole planes, bands of whole rows of one, tiles of rows: (direction of runs, channels, sizes)."""
    geometry, (d, h, w) = request.geometry, request.written
    plane = prod(geometry.input_size) + request.multiplier * prod(geometry.output_size)
    yield ALONG_PLANES, _planes(request, plane * request.itemsize), (d, h, w)
    for tile_d, tile_h in product(_parts(d), _parts(h)):
        if (tile_d, tile_h) != (d, h):
            yield ALONG_ROWS, 1, (tile_d, tile_h, w)
    for tile_d, tile_h, tile_w in product(_parts(d), _parts(h), (2048, 1024, 512, 256, 128, 64)):
        if tile_w < w:
            yield ALONG_ROW, 1, (tile_d, tile_h, tile_w)


def _planes(request: Request, bytes_of_one: int) -> int:
    """Neighbouring channels of a block: as even parts of them as whole sectors of memory allow."""
    c = request.geometry.channels.inputs
    most = max(1, min(c, PLANES_BYTES // (bytes_of_one + request.filter_bytes)))
    even = -(-c // -(-c // most))
    sizes = (request.geometry.input_size, request.geometry.output_size)
    for count in (8, 4, 2):
        rounded = _up(even, count)
        if any(prod(size) * count // 2 * request.itemsize % 32 for size in sizes) and rounded <= 2 * most:
            return min(c, rounded)
    return even


def _pixel_tiles(request: Request) -> Iterator[tuple[int, int, Sizes]]:
    """Tiles of neighbouring channels that are innermost in memory."""
    d, h, w = request.written
    c = request.geometry.channels.inputs
    for run in (32, 64, 128):
        planes = max(request.pack, run // request.itemsize)
        if planes > c and run > 32:
            continue
        for tile_d, tile_h, tile_w in product(_parts(d), _parts(h), _parts(w)):
            yield ALONG_CHANNELS, min(planes, power_of_two(c)), (tile_d, tile_h, tile_w)


def _parts(size: int) -> list[int]:
    """Sizes of parts, even ones: the whole, a half, a third, … and a few small ones."""
    return sorted({-(-size // count) for count in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 28)}
                  | {part for part in (1, 2, 4, 8, 16, 32) if part < size})  # fmt: skip


def images(request: Request, candidate: Tile, n: int) -> int:
    """Number of images that a block loops over, so that its filters, or sums, are a small share of its bytes."""
    wide = request.itemsize if request.direction != "backward_weight" else 2 * max(4, request.itemsize)
    filters = candidate.planes * request.multiplier * request.geometry.taps * wide
    moved = (prod(candidate.x.box) + request.multiplier * prod(candidate.y.box)) * candidate.planes * request.itemsize
    tiles = prod(-(-whole // size) for whole, size in zip(request.written, candidate.sizes, strict=True))
    blocks = n * tiles * -(-request.geometry.channels.inputs // candidate.planes)  # of one image each
    return max(1, min(n, round(filters / (FILTER_SHARE * moved) + 0.5), blocks // WANTED_BLOCKS))


# --- The walk ---------------------------------------------------------------------------------------------------------


def walk(request: Request, candidate: Tile) -> Walk:
    """Thread mapping of a tile: few reads per sum and few idle threads; of nearly equal ones, the longest segment.

    A search over paddings for the fewest bank conflicts gained nothing over the rule of `_columns` (kernel-gains.md).
    """
    costs = [(_cost(request, candidate, found), found) for found in _walks(request, candidate)]
    least = min(costs)[0]
    return min((-found.segment, cost, found) for cost, found in costs if cost <= NEARLY * least)[-1]


def _walks(request: Request, candidate: Tile) -> Iterator[Walk]:
    inverse = request.direction == "backward_input"
    h, height, width = candidate.sizes[1], request.axes[1], request.axes[2]
    shared = height.stride * _output_step(height) if inverse else _output_step(height)  # row spacing of one residue
    classes, residues = min(shared, h), min(width.stride, candidate.sizes[2]) if inverse else 1
    most = min(MAX_ROWS, power_of_two(-(-h // shared)))
    if request.vec > 1:
        most = min(most, MAX_ROWS // 2, MAX_SUMS // request.vec // (2 if request.taps >= MAX_TAPS - 1 else 1))
    columns = _columns(request, -(-candidate.sizes[2] // residues))
    segments: tuple[int, ...] = (WARP,)
    if request.direction == "backward_weight" and not request.channels_last:
        # With a stride, segments of neighbouring taps read between each other's words.
        segments = (8, 16, WARP) if width.stride == 1 else (8,)
    for rows, segment in product((1, 2, 4, 7, 8), segments):
        if rows <= most:
            slots = classes * (-(-h // (classes * rows)) if shared <= h else 1)
            yield Walk(rows, columns, columns * residues, classes, slots, segment)


def _columns(request: Request, columns: int) -> int:
    """Item pitch of a row's columns: a warp that has several rows starts them apart, so that they share few banks."""
    if request.channels_last:
        return columns
    stride = request.axes[2].stride if request.direction == "forward" else 1
    return _up(columns, min(WARP, 8 * stride))


def _cost(request: Request, candidate: Tile, found: Walk) -> float:
    """Reads of shared memory per sum of one tap, times idle threads."""
    d, h, w = candidate.sizes
    axis = request.axes[1]
    step = _tap_step(axis)
    if request.direction == "backward_weight":
        taps = request.taps
        reads = (found.rows + (found.rows - 1) * step + taps) / (found.rows * taps)
        share = _up(d * found.slots * found.lanes, found.segment)
    else:
        taps = request.taps
        reads = ((found.rows - 1) * (step if request.direction == "forward" else 1) + 2 * taps) / (found.rows * taps)
        share = d * found.slots * found.lanes
    idle = share * found.rows / (d * h * w)
    few = max(1.0, BLOCK / (share * candidate.planes))
    return reads * idle * few


def _output_step(axis: Axis) -> int:
    return axis.dilation // gcd(axis.stride, axis.dilation)


def _tap_step(axis: Axis) -> int:
    return axis.stride // gcd(axis.stride, axis.dilation)
