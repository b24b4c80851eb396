"""Depthwise convolution in C++, and that of small groups or of few channels: forward, dgrad and wgrad.

Lanes run along channels where each has one filter and they fill vectors: in place where they are innermost in memory,
else on blocks of channels that are transposed to the workspace and back. So they do in groups of 4, 8 or 16 channels,
in place. `depthwise_groups` computes the others.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

from gpucnn.backends.cpu import depthwise_groups
from gpucnn.backends.cpu.depthwise_groups import by_group
from gpucnn.backends.cpu.finishing import NOTHING, Finish
from gpucnn.backends.cpu.library import VECTOR_BYTES, Kernel, Launch, Layout, layout, strides
from gpucnn.backends.dtypes import name_of
from gpucnn.backends.numpy.memory import Array, scratch
from gpucnn.geometry import Axis, ConvGeometry
from gpucnn.geometry.axes import extent

_PIXELS, _PIXELS_GRADIENT, _PLANES, _PLANES_GRADIENT, _WEIGHT, _GRADIENT = (
    Kernel("depthwise", "depthwise_" + name)
    for name in ("pixels", "pixels_gradient", "planes", "planes_gradient", "weight", "gradient")
)
_LANES, _LANES_GRADIENT, _LANES_WEIGHT, _LANES_TOTAL = (
    Kernel("depthwise_lanes", "depthwise_lanes" + suffix) for suffix in ("", "_gradient", "_weight", "_total")
)
GROUPS = (4, 8, 16)  # channels of groups for which depthwise_lanes is built
MAX_CHANNELS = 16  # of a small group, on either side
WIDE = 8  # channels of a group that dgrad or a strided forward writes: more take 0.5 to 1 of the time as implicit GEMM
FEW, FEW_PAIRS = 8, 12  # channels, and pairs in wgrad, of a single group: an implicit GEMM takes 1 to 18 times as long
MIN_PAIRS = 32  # of channels of a group, for its wgrad to be an implicit GEMM
ITEM = 1 << 18  # multiply-adds of a work item, which take some 10 us
MIN_ITEMS, MAX_ITEMS = 4, 64  # fewer take less time than a thread to wake up
MIN_UNITS = 16  # rows of targets, else they are cut into pieces: those read some sources again
ELEMENT = 8  # multiply-adds that take as long as to read and write an element
ITEM_ELEMENTS = 1 << 17  # of a part of a wgrad's batch
ITEM_CHANNELS = 256  # least of an item of wgrad, where they are innermost: of 128, some layers took a quarter more time
PIXELS = 512  # of grad_y whose products are summed before they join the others: short sums are more exact
MAX_PARTS = 8  # of a wgrad's batch, each with partial sums
BOX_BYTES = 384 << 10  # of a box's copies, which stay in the second-level cache
CHUNKS = (64, 32, 16)  # channels that are transposed together: as many as let a box hold whole planes
CACHED_BYTES = 8 << 20  # of images that last-level caches hold beside others
FILLED, STRIDED_FILLED = 0.7, 0.5  # of the lanes: with fewer, lanes along positions take 0.2 to 0.9 of the time
BLOCK = 7  # targets along the width of a register block


def computes(direction: str, geometry: ConvGeometry) -> bool:
    """Whether this module computes a `direction` of a convolution of this geometry."""
    inputs, outputs, groups = geometry.channels
    if groups == 1:
        return max(inputs, outputs) <= FEW and (direction != "backward_weight" or inputs * outputs <= FEW_PAIRS)
    if max(inputs, outputs) > MAX_CHANNELS * groups:
        return False
    if direction != "backward_weight":
        written, strides = inputs if direction == "backward_input" else outputs, [axis.stride for axis in geometry.axes]
        is_wide = written > WIDE * groups and (direction == "backward_input" or max(strides) > 1)
        return inputs == outputs or not is_wide
    # a wgrad of more takes 0.25 to 1 of the time as an implicit GEMM, except that of 8 by 8 channels in lanes
    pairs = inputs * outputs // groups**2
    return pairs < MIN_PAIRS or inputs == outputs == 8 * groups


def forward(x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry, finish: Finish = NOTHING) -> None:
    """Y [N, OC, OD, OH, OW] from x [N, C, D, H, W], w [OC, C / groups, KD, KH, KW] and bias [OC]."""
    _contract(x, w, bias, y, geometry, "forward", finish)


def backward_input(grad_y: Array, w: Array, bias: Array | None, grad_x: Array, geometry: ConvGeometry) -> None:
    """grad_x [N, C, D, H, W] from grad_y [N, OC, OD, OH, OW], plus bias [C]."""
    _contract(grad_y, w, bias, grad_x, geometry, "backward_input")


def backward_weight(x: Array, grad_y: Array, grad_w: Array, geometry: ConvGeometry) -> None:
    """grad_w [OC, C / groups, KD, KH, KW] from x [N, C, D, H, W] and grad_y [N, OC, OD, OH, OW]."""
    layouts = layout(x), layout(grad_y)
    plan = _plan_gradient if _in_lanes(geometry, *layouts) else depthwise_groups.plan_gradient
    plan(*layouts, layout(grad_w), geometry, name_of(x.dtype))(x, grad_y, grad_w)


def _in_lanes(geometry: ConvGeometry, source: Layout, target: Layout) -> bool:
    """Whether lanes run along channels: each has one filter and they fill vectors, or groups are parts of a vector."""
    inputs, outputs, groups = geometry.channels
    if inputs != outputs:
        return False
    lanes, is_innermost = VECTOR_BYTES // source.itemsize, _is_innermost(source, target)
    if inputs > groups:
        return inputs // groups in GROUPS and inputs % lanes == 0 and is_innermost
    if is_innermost or inputs >= 2 * lanes:
        return inputs >= lanes
    filled = inputs / (-(-inputs // lanes) * lanes)
    return filled > (FILLED if all(axis.stride == 1 for axis in geometry.axes) else STRIDED_FILLED)


def _contract(
    source: Array,
    w: Array,
    bias: Array | None,
    target: Array,
    geometry: ConvGeometry,
    direction: str,
    finish: Finish = NOTHING,
) -> None:
    if target.size == 0:
        return
    layouts = layout(source), layout(target)
    plan = _plan if _in_lanes(geometry, *layouts) else depthwise_groups.plan
    of_weights = layout(w), None if bias is None else layout(bias)
    plan(*layouts, *of_weights, geometry, direction, name_of(source.dtype), finish)(source, w, bias, target)


@lru_cache(maxsize=512)
def _plan(
    source: Layout,
    target: Layout,
    w: Layout,
    bias: Layout | None,
    geometry: ConvGeometry,
    direction: str,
    dtype: str,
    finish: Finish,
) -> Callable[[Array, Array, Array | None, Array], None]:
    """The function of arrays of these layouts that computes a forward or a dgrad."""
    sizes = _sizes(geometry, direction == "backward_input", source.itemsize)
    n, _, depth, height, width = target.shape
    last, group = _is_innermost(source, target), geometry.channels.inputs // geometry.channels.groups
    items = _items(max(prod(source.shape), prod(target.shape)), geometry)
    units, piece = n * sizes.chunks * sizes.boxes, width
    if last:
        units = n * depth * height
        piece = _piece(geometry.axes[2], width, -(-min(items, MIN_UNITS) // units))
    pieces = -(-width // piece)
    items = min(items, units * pieces)
    images = {"n": n, "items": items, "parts": 1, "pieces": pieces, "piece": piece}
    images |= {"prefetches": last and _exceed_caches(source, target)}
    images |= {**strides("from", source, "ncdhw"), **strides("to", target, "ncdhw")}
    values = {**sizes.values, **images, **strides("bias", bias, "c"), "group": group, **finish._asdict()}
    if group > 1:
        values |= strides("w", by_group(w, geometry), "gcmdhw" if direction == "backward_input" else "gmcdhw")
        pack, contract = Launch(_LANES_WEIGHT, dtype, values), Launch(_LANES, dtype, values, items, sizes.room)
    else:
        values |= strides("w", w, "cxdhw")
        workspace = sizes.room + (0 if last else sizes.copies)
        contract = Launch(_PIXELS if last else _PLANES, dtype, values, items, workspace)
        pack = Launch(_WEIGHT, dtype, values)

    def run(source: Array, w: Array, bias: Array | None, target: Array) -> None:
        weight = scratch("depthwise weight", (geometry.taps * group + 1, sizes.width), dtype)
        pack(w=w, bias=bias, weight=weight)
        contract(**{"from": source}, weight=weight, to=target)

    return run


@lru_cache(maxsize=512)
def _plan_gradient(
    x: Layout, grad_y: Layout, grad_w: Layout, geometry: ConvGeometry, dtype: str
) -> Callable[[Array, Array, Array], None]:
    """The function of arrays of these layouts that computes a wgrad."""
    sizes = _sizes(geometry, False, x.itemsize)
    n, channels, depth, height, width = grad_y.shape
    last, group = _is_innermost(x, grad_y), geometry.channels.inputs // geometry.channels.groups
    elements = max(prod(x.shape), prod(grad_y.shape))
    parts, chunks, piece = max(1, min(MAX_PARTS, elements // ITEM_ELEMENTS)), sizes.chunks, width
    if last:
        parts, rows = 1 << parts.bit_length() - 1, max(1, n * depth * height)
        piece = _piece(geometry.axes[2], width, -(-parts // rows))
        parts = min(parts, rows * -(-width // piece))
        if group == 1:
            wanted = min(MAX_PARTS, _items(elements, geometry))
            chunks = max(1, min(channels // ITEM_CHANNELS, -(-wanted // parts)))
    else:
        parts = min(parts, n)
    items = parts * (1 if group > 1 else chunks)
    images = {"n": n, "items": items, "parts": parts, "pieces": -(-width // piece), "piece": piece, "chunks": chunks}
    images |= {"prefetches": last and _exceed_caches(x, grad_y)}
    images |= {**strides("from", x, "ncdhw"), **strides("to", grad_y, "ncdhw")}
    values = {**sizes.values, **images, **strides("bias", None, "c"), "group": group, **NOTHING._asdict()}
    sums = geometry.taps * group * sizes.width
    workspace = sizes.room + sums + 64 + (0 if last else sizes.copies)
    if group > 1:
        values |= strides("w", by_group(grad_w, geometry), "gmcdhw")
        add, total = Launch(_LANES_GRADIENT, dtype, values, items, workspace), Launch(_LANES_TOTAL, dtype, values)
    else:
        values |= strides("w", grad_w, "cxdhw")
        add = Launch(_PIXELS_GRADIENT if last else _PLANES_GRADIENT, dtype, values, items, workspace)
        total = Launch(_GRADIENT, dtype, values)

    def run(x: Array, grad_y: Array, grad_w: Array) -> None:
        partial = scratch("depthwise partial sums", (parts, sums), dtype)
        add(**{"from": x}, to=grad_y, partial=partial)
        total(partial=partial, w=grad_w)

    return run


def _items(elements: int, geometry: ConvGeometry) -> int:
    """Work items of a direction, for the larger image's elements."""
    inputs, _, groups = geometry.channels
    count = elements * (geometry.taps * inputs // groups + ELEMENT) // ITEM
    return 1 if count < MIN_ITEMS else min(MAX_ITEMS, count)


def _piece(axis: Axis, targets: int, pieces: int) -> int:
    """The targets along the width of at most so many pieces: as many as whole blocks have, whose taps lie together."""
    block = BLOCK * axis.stride * axis.dilation
    return targets if pieces == 1 else -(-targets // (pieces * block)) * block


def _is_innermost(*images: Layout) -> bool:
    """Whether images [N, C, D, H, W] have channels innermost in memory, enough of them for a vector."""
    return all(x.strides[1] == x.itemsize and x.shape[1] * x.itemsize >= VECTOR_BYTES for x in images)


def _exceed_caches(*images: Layout) -> bool:
    return sum(prod(image.shape) * image.itemsize for image in images) > CACHED_BYTES


class _Sizes(NamedTuple):
    """What follows from a geometry: fields of ``Params``, and numbers of scalars."""

    values: dict[str, int]
    width: int  # of a row of packed weights
    chunks: int
    boxes: int
    room: int  # of the workspace, without copies
    copies: int


def _sizes(geometry: ConvGeometry, dgrad: bool, itemsize: int) -> _Sizes:
    channels, axes = geometry.channels.inputs, geometry.axes
    lanes = VECTOR_BYTES // itemsize
    width = -(-channels // lanes) * lanes
    sources, targets = geometry.input_size, geometry.output_size
    if dgrad:
        sources, targets = targets, sources
    chunk = next((c for c in CHUNKS[:-1] if _copied(axes, targets, dgrad) * c * itemsize <= BOX_BYTES), CHUNKS[-1])
    box = _box(axes, targets, dgrad, BOX_BYTES // (chunk * itemsize))
    chunks = max(1, channels // chunk)
    values = {"c": channels, "width": width, "dgrad": int(dgrad), "pixels": PIXELS, "chunks": chunks}
    for name, axis, size, out, each in zip("dhw", axes, sources, targets, box, strict=True):
        values |= {f"source_{name}": size, f"target_{name}": out, f"kernel_{name}": axis.kernel, f"box_{name}": each}
        values |= {f"stride_{name}": axis.stride, f"dilation_{name}": axis.dilation, f"low_{name}": axis.low}
    boxes = prod(-(-count // each) for count, each in zip(targets, box, strict=True))
    copies = (-(-channels // chunks) + 2 * lanes) * _copied(axes, box, dgrad) + 128
    columns = max((BLOCK - 1) * axes[2].stride + axes[2].kernel, BLOCK * axes[2].kernel)
    tables = (2 + columns) * axes[0].kernel * axes[1].kernel * 8 // itemsize
    return _Sizes(values, width, chunks, boxes, width + tables + 192, copies)


def _copied(axes: Sequence[Axis], box: Sequence[int], dgrad: bool) -> int:
    """Most elements of a channel that a box of targets and its sources have."""
    sources = 1
    for axis, count in zip(axes, box, strict=True):
        far = extent(axis.kernel, axis.dilation)
        if dgrad:
            sources *= min(axis.out, (count + far) // axis.stride + 1)
        else:
            sources *= min(axis.size, (count - 1) * axis.stride + far)
    return sources + prod(box)


def _box(axes: Sequence[Axis], targets: Sequence[int], dgrad: bool, limit: int) -> list[int]:
    """The box of targets: all, or as many planes, rows or columns as have no more than `limit` elements."""
    box = list(targets)
    for i, step in enumerate((1, 1, BLOCK * axes[2].stride * axes[2].dilation)):
        choices = range(step, box[i], step)
        if choices and _copied(axes, box, dgrad) > limit:
            boxes = [[*box[:i], count, *box[i + 1 :]] for count in choices]
            fits = choices[max(0, bisect_right(boxes, limit, key=lambda each: _copied(axes, each, dgrad)) - 1)]
            pieces = -(-box[i] // fits)
            each = -(-box[i] // pieces)
            box[i] = -(-each // step) * step
    return box
