"""Convolution of small groups in C++, in three directions: lanes run along the positions of a plane."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np

from gpucnn.backends.cpu.finishing import NOTHING, Finish
from gpucnn.backends.cpu.library import VECTOR_BYTES, Kernel, Launch, Layout, strides
from gpucnn.backends.listening import read
from gpucnn.backends.numpy.memory import Array, scratch
from gpucnn.geometry import Axis, ConvGeometry

_GROUPS, _WEIGHT, _GRADIENT, _TOTAL = (
    Kernel("depthwise_groups", "depthwise_groups" + suffix) for suffix in ("", "_weight", "_gradient", "_total")
)
COPY_BYTES = 32 << 10  # of a group's copies, which stay in the first-level cache
MULTIPLY_ADDS = 1 << 20  # of a work item
MAX_ITEMS = 64
MAX_PARTS = 8  # of a wgrad's batch, each with partial sums


class Tap(NamedTuple):
    """A tap along one axis: its number in the kernel, and target i's source at ``(i + offset) * step + phase``."""

    number: int
    phase: int
    offset: int


class Side(NamedTuple):
    """One axis of a forward or a dgrad: the taps of each part, sources in steps, and targets in hops."""

    parts: tuple[tuple[Tap, ...], ...]
    step: int
    hop: int
    sources: int
    targets: int

    @property
    def phases(self) -> list[int]:
        """The residues of sources that any tap reads; one at least."""
        return sorted({tap.phase for taps in self.parts for tap in taps}) or [0]

    @property
    def least(self) -> int:
        """The least offset of a tap."""
        return min((tap.offset for taps in self.parts for tap in taps), default=0)

    @property
    def spread(self) -> int:
        """Offsets from the least to the largest."""
        return max((tap.offset for taps in self.parts for tap in taps), default=0) - self.least

    @property
    def longest(self) -> int:
        """Targets of the first part."""
        return -(-self.targets // self.hop)


def _side(axis: Axis, dgrad: bool) -> Side:
    if not dgrad:
        sampling = axis.forward
        taps = (Tap(k, at % sampling.step, at // sampling.step) for k, at in enumerate(sampling.offsets))
        return Side((tuple(taps),), axis.stride, 1, axis.size, axis.out)
    parts: list[tuple[Tap, ...]] = [()] * axis.stride
    for first, indices, sampling in axis.backward:
        parts[first] = tuple(Tap(k, 0, at) for k, at in zip(indices, sampling.offsets, strict=True))
    return Side(tuple(parts), 1, axis.stride, axis.out, axis.size)


class _Sizes(NamedTuple):
    """What follows from a geometry: fields of ``Params``, the kernel's table, and numbers of scalars."""

    values: dict[str, int]
    table: Array
    units: int  # boxes of blocks of groups of an image
    room: int  # of the workspace, without sums
    packed: int  # of all weights
    sums: int  # of a block of groups in wgrad


def _sizes(geometry: ConvGeometry, dgrad: bool, itemsize: int) -> _Sizes:
    inputs, outputs, groups = geometry.channels
    channels, filters = inputs // groups, outputs // groups
    if dgrad:
        channels, filters = filters, channels
    sides = [_side(axis, dgrad) for axis in geometry.axes]
    lanes = VECTOR_BYTES // itemsize
    block = min(groups, max(1, lanes // channels, lanes // filters))
    width = min(4, filters)
    phases = prod(len(side.phases) for side in sides)
    box = _box(sides, max(1, COPY_BYTES // (itemsize * channels * phases)))
    sizes = [count + side.spread for count, side in zip(box, sides, strict=True)]
    table = _table(sides, geometry.kernel_size, sizes)
    taps = sum(prod(len(taps) for taps in part) for part in product(*(side.parts for side in sides)))
    values = {"groups": groups, "channels": channels, "filters": filters, "block": block}
    values |= {"width": width, "taps": taps, **dict(zip(("planes", "rows", "pitch"), sizes, strict=True))}
    for name, side, count, kernel in zip("dhw", sides, box, geometry.kernel_size, strict=True):
        values |= {f"source_{name}": side.sources, f"target_{name}": side.targets, f"box_{name}": count}
        values |= {f"step_{name}": side.step, f"hop_{name}": side.hop, f"kernel_{name}": kernel}
        values |= {f"least_{name}": side.least, f"phases_{name}": len(side.phases)}
    packed = -(-filters // width) * width
    flat = prod(sizes) + 2 * lanes
    parts = prod(side.hop for side in sides)
    read = prod(min(side.sources, size * side.step) for side, size in zip(sides, sizes, strict=True))
    written = prod(min(side.targets, count * side.hop) for side, count in zip(sides, box, strict=True))
    room = channels * phases * prod(sizes) + (parts * width + packed) * flat + 6 * lanes + 256
    room += block * (channels * read + filters * written)
    boxes = prod(-(-side.longest // count) for side, count in zip(sides, box, strict=True))
    sums = block * packed * channels * taps * lanes
    units = boxes * -(-groups // block)
    return _Sizes(values, table, units, room, groups * packed * (channels * taps + 1), sums)


def _table(sides: Sequence[Side], kernel: Sequence[int], sizes: Sequence[int]) -> Array:
    """The kernel's ``Table``, for copies of these `sizes`."""
    depth, height, width = sides
    _, rows, pitch = sizes
    starts, taps = [0], []
    for part in product(*(side.parts for side in sides)):
        for d, h, w in product(*part):
            phase = depth.phases.index(d.phase) * len(height.phases) + height.phases.index(h.phase)
            phase = phase * len(width.phases) + width.phases.index(w.phase)
            at = (d.offset - depth.least) * rows + h.offset - height.least
            at = at * pitch + w.offset - width.least
            number = (d.number * kernel[1] + h.number) * kernel[2] + w.number
            taps += [number, phase * prod(sizes) + at]
        starts.append(len(taps) // 2)
    return np.array([*depth.phases, *height.phases, *width.phases, *starts, *taps], np.int64)


def _box(sides: Sequence[Side], limit: int) -> list[int]:
    """The targets of a part in a box: all, or as many planes, rows or columns as have copies of `limit` elements."""
    box = [side.longest for side in sides]

    def copied(i: int, count: int) -> int:
        return prod(
            targets + side.spread for side, targets in zip(sides, [*box[:i], count, *box[i + 1 :]], strict=True)
        )

    for i in range(3):
        if copied(i, box[i]) > limit:
            fits = max(1, bisect_right(range(1, box[i]), limit, key=lambda count: copied(i, count)))
            box[i] = -(-box[i] // -(-box[i] // fits))
    return box


@lru_cache(maxsize=512)
def plan(
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
    axes = "gcmdhw" if direction == "backward_input" else "gmcdhw"
    groups, channels, filters, taps = (sizes.values[name] for name in ("groups", "channels", "filters", "taps"))
    images = {"n": source.shape[0], "parts": 1, **strides("from", source, "ncdhw"), **strides("to", target, "ncdhw")}
    weights = {**strides("w", by_group(w, geometry), axes), **strides("bias", bias, "c")}
    values = {**sizes.values, **images, **weights, **finish._asdict()}
    items = max(1, min(MAX_ITEMS, groups, sizes.packed >> 14))
    pack = Launch(_WEIGHT, dtype, values | {"items": items}, items)
    work = max(prod(source.shape) * filters, prod(target.shape) * channels) * taps
    items = max(1, min(MAX_ITEMS, source.shape[0] * sizes.units, work // MULTIPLY_ADDS))
    contract = Launch(_GROUPS, dtype, values | {"items": items}, items, sizes.room)

    def run(source: Array, w: Array, bias: Array | None, target: Array) -> None:
        read(sizes.table)
        weight = scratch("depthwise groups weight", (sizes.packed,), dtype)
        pack(w=w, bias=bias, weight=weight, table=sizes.table)
        contract(**{"from": source}, weight=weight, table=sizes.table, to=target)

    return run


@lru_cache(maxsize=512)
def plan_gradient(
    x: Layout, grad_y: Layout, grad_w: Layout, geometry: ConvGeometry, dtype: str
) -> Callable[[Array, Array, Array], None]:
    """The function of arrays of these layouts that computes a wgrad."""
    sizes = _sizes(geometry, False, x.itemsize)
    blocks = -(-sizes.values["groups"] // sizes.values["block"])
    work = prod(grad_y.shape) * sizes.values["channels"] * sizes.values["taps"]
    parts = max(1, min(MAX_PARTS, x.shape[0], work // MULTIPLY_ADDS // blocks))
    images = {"n": x.shape[0], **strides("from", x, "ncdhw"), **strides("to", grad_y, "ncdhw")}
    weights = {**strides("w", by_group(grad_w, geometry), "gmcdhw"), **strides("bias", None, "c")}
    values = {**sizes.values, **images, **weights, "parts": parts, "items": parts * blocks, **NOTHING._asdict()}
    add = Launch(_GRADIENT, dtype, values, parts * blocks, sizes.sums + sizes.room)
    total = Launch(_TOTAL, dtype, values)

    def run(x: Array, grad_y: Array, grad_w: Array) -> None:
        read(sizes.table)
        partial = scratch("depthwise groups partial sums", (parts, grad_w.size), dtype)
        add(**{"from": x}, to=grad_y, table=sizes.table, partial=partial)
        total(**{"from": x}, to=grad_y, table=sizes.table, partial=partial, w=grad_w)

    return run


def by_group(w: Layout, geometry: ConvGeometry) -> Layout:
    """A weight [OC, C / groups, KD, KH, KW] as [G, M, C, KD, KH, KW]."""
    groups, (filters, *rest) = geometry.channels.groups, w.shape
    each = filters // groups
    return Layout((groups, each, *rest), (each * w.strides[0], *w.strides), w.itemsize)
