"""Convolution of small groups in C++, in three directions: lanes run along the positions of a plane."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np

from gpucnn.backends.cpu.library import Kernel, Value, launch, strides
from gpucnn.backends.numpy.memory import Array, scratch
from gpucnn.geometry import Axis, ConvGeometry

_GROUPS, _WEIGHT, _GRADIENT, _TOTAL = (
    Kernel("depthwise_groups", "depthwise_groups" + suffix) for suffix in ("", "_weight", "_gradient", "_total")
)
LANES_BYTES = 64  # of the widest vector
COPY_BYTES = 32 << 10  # of a group's copies, which stay in the first-level cache
MULTIPLY_ADDS = 1 << 20  # of a work item
MAX_ITEMS = 64
MAX_PARTS = 8  # of a wgrad's batch, each with partial sums


class Tap(NamedTuple):
    """A tap along one axis: its number in the kernel, and the source of target i, at ``(i + offset) * step + phase``."""

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


class Plan(NamedTuple):
    """The fields that follow from a geometry, the kernel's table, and scalars of the workspace and packed weights."""

    values: dict[str, Value]
    table: Array
    boxes: int
    room: int
    packed: int
    sums: int


@lru_cache(maxsize=256)
def _plan(geometry: ConvGeometry, dgrad: bool, itemsize: int) -> Plan:
    inputs, outputs, groups = geometry.channels
    channels, filters = inputs // groups, outputs // groups
    if dgrad:
        channels, filters = filters, channels
    sides = [_side(axis, dgrad) for axis in geometry.axes]
    lanes = LANES_BYTES // itemsize
    block = min(groups, max(1, lanes // channels, lanes // filters))
    width = min(4, filters)
    phases = prod(len(side.phases) for side in sides)
    box = _box(sides, max(1, COPY_BYTES // (itemsize * channels * phases)))
    sizes = [count + side.spread for count, side in zip(box, sides, strict=True)]
    table = _table(sides, geometry.kernel_size, sizes)
    taps = sum(prod(len(taps) for taps in part) for part in product(*(side.parts for side in sides)))
    values: dict[str, Value] = {"groups": groups, "channels": channels, "filters": filters, "block": block}
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
    return Plan(values, table, boxes, room, groups * packed * (channels * taps + 1), sums)


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


def forward(x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry) -> None:
    """Y [N, OC, OD, OH, OW] from x [N, C, D, H, W], w [OC, C / groups, KD, KH, KW] and bias [OC]."""
    _contract(x, _by_group(w, geometry), bias, y, _plan(geometry, False, x.itemsize))


def backward_input(grad_y: Array, w: Array, bias: Array | None, grad_x: Array, geometry: ConvGeometry) -> None:
    """grad_x [N, C, D, H, W] from grad_y [N, OC, OD, OH, OW], plus bias [C]."""
    _contract(grad_y, _by_group(w, geometry).swapaxes(1, 2), bias, grad_x, _plan(geometry, True, grad_y.itemsize))


def _by_group(w: Array, geometry: ConvGeometry) -> Array:
    """The view [G, M, C, KD, KH, KW] of a weight."""
    groups = geometry.channels.groups
    filters = len(w) // groups
    steps = (filters * w.strides[0], *w.strides)
    return np.lib.stride_tricks.as_strided(w, (groups, filters, *w.shape[1:]), steps)


def _contract(source: Array, w: Array, bias: Array | None, target: Array, plan: Plan) -> None:
    if target.size == 0:
        return
    dtype, values = source.dtype.name, plan.values
    weight = scratch("depthwise groups weight", (plan.packed,), dtype)
    images = {"n": len(source), "parts": 1, **strides("from", source, "ncdhw"), **strides("to", target, "ncdhw")}
    given = values | images | strides("w", w, "gmcdhw") | strides("bias", bias, "c")
    items = max(1, min(MAX_ITEMS, values["groups"], plan.packed >> 12))
    arrays = {"w": w, "bias": bias, "weight": weight, "table": plan.table, "from": source, "to": target}
    launch(_WEIGHT, dtype, given | {"items": items}, arrays, items)
    units = len(source) * -(-values["groups"] // values["block"]) * plan.boxes
    work = max(source.size * values["filters"], target.size * values["channels"]) * values["taps"]
    items = max(1, min(MAX_ITEMS, units, work // MULTIPLY_ADDS))
    launch(_GROUPS, dtype, given | {"items": items}, arrays, items, plan.room)


def backward_weight(x: Array, grad_y: Array, grad_w: Array, geometry: ConvGeometry) -> None:
    """grad_w [OC, C / groups, KD, KH, KW] from x [N, C, D, H, W] and grad_y [N, OC, OD, OH, OW]."""
    plan, dtype = _plan(geometry, False, x.itemsize), x.dtype.name
    values = plan.values
    blocks = -(-values["groups"] // values["block"])
    work = grad_y.size * values["channels"] * values["taps"]
    parts = max(1, min(MAX_PARTS, len(x), work // MULTIPLY_ADDS // blocks))
    partial = scratch("depthwise groups partial sums", (parts, grad_w.size), dtype)
    images = {"n": len(x), "parts": parts, "items": parts * blocks, **strides("bias", None, "c")}
    images |= {**strides("from", x, "ncdhw"), **strides("to", grad_y, "ncdhw")}
    given = values | images | strides("w", _by_group(grad_w, geometry), "gmcdhw")
    arrays = {"from": x, "to": grad_y, "table": plan.table, "partial": partial, "w": grad_w}
    launch(_GRADIENT, dtype, given, arrays, parts * blocks, plan.sums + plan.room)
    launch(_TOTAL, dtype, given, arrays)
