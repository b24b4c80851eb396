"""Pooling in C++: maxima and sums of windows, rows first, and the operations that use indices of maxima.

Windows that are long and overlap are left to NumPy's passes, whose number grows with the logarithm of their length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import NamedTuple

import numpy as np

from gpucnn.backends.cpu.library import Kernel, Launch, Layout, Value, layout, strides
from gpucnn.backends.dtypes import name_of
from gpucnn.backends.listening import note_computed, read
from gpucnn.backends.numpy import average_pooling, max_pooling
from gpucnn.backends.numpy.average_pooling import tap_counts
from gpucnn.backends.numpy.memory import SCRATCH_BYTES, Array, is_channels_last, merged
from gpucnn.backends.numpy.pooling import AnyAxis, reads, within
from gpucnn.geometry import AdaptiveAxis, Axis, PoolGeometry
from gpucnn.geometry.caches import kept
from gpucnn.geometry.geometries import Divisor

Axes = tuple[AnyAxis, AnyAxis, AnyAxis]

_MAX_POOL = Kernel("pooling", "max_pool")
_WINDOW_SUMS = Kernel("pooling", "window_sums")
_SCATTER_ADD = Kernel("pool_indices", "scatter_add")
_ADD_BY_TAPS = Kernel("pool_indices", "add_by_taps")
_SCATTER_LAST = Kernel("pool_indices", "scatter_last")
_GATHER = Kernel("pool_indices", "gather")

BY_TABLE, SHIFTED, HALVED, DOUBLED, REPEATED, SINGLE, DIRECT, COPIED = range(8)  # the ways of kernels/cpu/pooling.cpp
MAX_ROWS, MAX_DIRECT = 8, 16  # as there
MAX_WINDOW = 32  # as in kernels/cpu/pool_indices.cpp
MAX_TAPS = 64  # of windows that overlap much; NumPy's passes are fewer from about there on
MAX_SUM = 4096  # sources that are added up one by one
TABLES_BYTES = 4 << 20  # of all cached tables
INDEX_TAPS = 4  # that take as long as to put a value to its index
LABELS = 1 << 31  # positions of a plane that float32's lanes can hold
LONGEST_VECTOR = 16  # scalars of a vector, at most
MAX_LAUNCHES = 16  # that a plan keeps
MIN_PARTS = 4  # work items that images are cut for by channels, whose parts are read and written in short runs
PART = 16  # channels that are never divided: a cache line of float32
# Work of an item, in elements read and taps of elements written, which takes some 20 us. Less than two are not worth to
# wake a thread for, and few are shared unevenly.
ITEM = 1 << 18
MIN_ITEMS, MAX_ITEMS = 4, 64
ITEM_REACH = 4  # least rows of an item, in rows that a window reaches over, where windows overlap
# Least taps along an axis of windows of maxima that are made of windows half as long: on planes of 19 x 19, windows of
# 13 x 13 take 0.4 of the time so, those of 9 x 9 0.55, those of 5 x 5 0.8.
MIN_DOUBLED = 5
PLANE = 4096  # most elements of a small plane, with margins: it and its reduced rows fit into the first-level cache
ALIGNED = 16  # scalars that parts of the workspace are aligned to


def max_pool(x: Array, y: Array, indices: Array | None, geometry: PoolGeometry) -> None:
    """Y [N, C, OD, OH, OW], NaN where a window holds one, and the indices of the maxima."""
    plan = plan_of(geometry, True, is_channels_last(x), name_of(x.dtype))
    if not plan.is_direct or (indices is not None and prod(geometry.input_size) >= LABELS):
        note_computed()
        max_pooling.max_pool(x, y, indices, geometry)
    else:
        _reduce(_MAX_POOL, plan, x, y, indices)


def average_pool(x: Array, y: Array, geometry: PoolGeometry) -> None:
    """Y [N, C, OD, OH, OW]: each window's sum over its divisor."""
    plan = plan_of(geometry, True, is_channels_last(x), name_of(x.dtype))
    if plan.is_direct:
        _reduce(_WINDOW_SUMS, plan, x, y)
    else:
        note_computed()
        average_pooling.average_pool(x, y, geometry)


def average_pool_backward(grad_y: Array, grad_x: Array, geometry: PoolGeometry) -> None:
    """grad_x [N, C, D, H, W]: each window's gradient over its divisor, added to all inputs of the window."""
    plan = plan_of(geometry, False, is_channels_last(grad_y), name_of(grad_y.dtype))
    if plan.is_direct:
        _reduce(_WINDOW_SUMS, plan, grad_y, grad_x)
    else:
        note_computed()
        average_pooling.average_pool_backward(grad_y, grad_x, geometry)


def _reduce(kernel: Kernel, plan: Plan, x: Array, y: Array, indices: Array | None = None) -> None:
    """Reduce x [N, C, D, H, W] to y by a plan: the windows of `max_pool`, or the sums of windows or of gradients."""
    if y.size == 0:
        return
    x, y = plan.seen(x), plan.seen(y)
    if not plan.channels_last and x.shape[4] > 1 and x.strides[4] != x.itemsize:
        x = np.ascontiguousarray(x)
    if indices is not None:
        indices = plan.seen(indices)
    key = kernel.name, layout(x), layout(y), indices is not None
    run = plan.launches.get(key)
    if run is None:
        if len(plan.launches) >= MAX_LAUNCHES:
            plan.launches.clear()
        run = plan.launches[key] = _launch_of(kernel, plan, *key[1:])
    read(plan.reads, plan.divisors)
    run(x=x, y=y, indices=indices, reads=plan.reads, divisors=plan.divisors)


def _launch_of(kernel: Kernel, plan: Plan, x: Layout, y: Layout, labelled: bool) -> Launch:
    """The launch of a plan's kernel for arrays of these layouts, as the kernel sees them."""
    (n, c, _, _, ow), item = y.shape, x.itemsize
    lanes = c if plan.channels_last else 1
    margin, pitch = plan.margin * lanes, _multiple(ow * lanes, ALIGNED)
    block, depth, height = 1, *plan.slots(pitch * item)
    if plan.values["doubled_w"]:
        pitch = _multiple(plan.margin or x.shape[4], ALIGNED)
    if plan.plane:
        pitch, block, depth, height = plan.plane.pitch, x.shape[3], plan.plane.depth, plan.plane.height
        if margin or plan.plane.row * item != x.strides[3]:
            margin = plan.plane.row
    slots = depth * height or MAX_ROWS
    rows = prod(y.shape) // (ow * lanes)
    if plan.d_overlap or plan.h_overlap:  # an item reduces again, or reads again, some rows of the one before
        rows = max(1, rows // (ITEM_REACH * plan.d_reach * plan.h_reach))
    items = min(_items(prod(x.shape) + prod(y.shape) * plan.taps), rows)
    values = {
        **plan.values,
        **{"n": n, "c": c, "margin": margin, "pitch": pitch, "block": block, "items": items},
        **{"slots_d": depth, "slots_h": height},
        **strides("x", x, "ncdhw"),
        **strides("y", y, "ncdhw"),
    }
    tags = _multiple(slots * 8, 64) // item
    labels = slots + 1 + 2 * block if labelled else 0
    if plan.values["doubled_h"]:
        slots, labels = slots + block, labels and labels + block
    workspace = tags + block * margin + ALIGNED + (slots + labels) * pitch
    return Launch(kernel, plan.dtype, values, items, workspace)


def _items(work: int) -> int:
    count = work // ITEM
    return 1 if count < 2 else min(max(MIN_ITEMS, count), MAX_ITEMS)


# --- By indices -----------------------------------------------------------------------------------------------------


def max_pool_backward(grad_y: Array, indices: Array, grad_x: Array, geometry: PoolGeometry) -> None:
    """grad_x [N, C, D, H, W]: grad_y added by the indices, in the order of the windows."""
    channels_last = is_channels_last(grad_y)
    taps = _window_taps(geometry) if channels_last else None
    if taps is None or not _by_indices(_ADD_BY_TAPS, grad_y, indices, grad_x, True, taps):
        _by_indices(_SCATTER_ADD, grad_y, indices, grad_x, channels_last)


class Taps(NamedTuple):
    """The taps of all windows: fields of the kernel, and its tables of axes."""

    fields: tuple[tuple[str, int], ...]
    reads: Array


@kept(TABLES_BYTES)
def _window_taps(geometry: PoolGeometry) -> Taps | None:
    """The taps of windows, or None where one has many or none, or lanes cannot hold the positions."""
    reads = tuple(reads_of(axis, True) for axis in geometry.axes)
    few = prod(each.longest for each in reads) <= MAX_WINDOW and all(each.counts.all() for each in reads)
    if not few or prod(geometry.input_size) >= LABELS:
        return None
    fields = [("h", reads[1].sources), ("w", reads[2].sources)]
    for axis, each in zip("dhw", reads, strict=True):
        fields += [(f"o{axis}", len(each.counts)), (f"{axis}_step", each.step)]
    return Taps(tuple(fields), _tables(reads))


def _tables(reads: Sequence[Reads]) -> Array:
    """The kernels' tables of the axes D, H and W: the first source of each target, then their numbers."""
    return np.concatenate([table for each in reads for table in (each.first, each.counts)])


def _dense(values: Array, indices: Array, planes: Array, channels_last: bool) -> list[Array]:
    """The arrays in memory order, those that are not already as copies; indices as int64."""
    given = (values, indices.astype(np.int64, copy=False), planes)
    return [np.ascontiguousarray(np.moveaxis(array, 1, -1) if channels_last else array) for array in given]


def unpool(values: Array, indices: Array, planes: Array) -> None:
    """Planes [N, C, OD, OH, OW] with values scattered by the indices; of values with one index the last is kept."""
    _by_indices(_SCATTER_LAST, values, indices, planes, is_channels_last(values))


def gather(planes: Array, indices: Array, values: Array) -> None:
    """Values [N, C, D, H, W] of the planes at the indices, 0 where an index is -1."""
    _by_indices(_GATHER, values, indices, planes, is_channels_last(planes))


def _by_indices(
    kernel: Kernel, values: Array, indices: Array, planes: Array, channels_last: bool, taps: Taps | None = None
) -> bool:
    """Move values [N, C, D, H, W] to the indices in planes [N, C, *], or from there; False if `taps` lack an index."""
    if values.size == 0:
        return True
    fields, reads = taps or ((), None)
    sizes = values.shape[:2], values.size, planes.size
    run, items = _launch_by_indices(kernel, *sizes, channels_last, name_of(values.dtype), fields)
    values, indices, planes = _dense(values, indices, planes, channels_last)
    strays = np.zeros(items, np.int64)
    run(values=values, indices=indices, planes=planes, reads=reads, strays=strays)
    return not strays.any()


@lru_cache(maxsize=512)
def _launch_by_indices(
    kernel: Kernel,
    lead: tuple[int, int],
    windows: int,
    positions: int,
    channels_last: bool,
    dtype: str,
    taps: tuple[tuple[str, int], ...],
) -> tuple[Launch, int]:
    """The launch of a kernel for so many elements, and its work items."""
    n, c = lead
    planes_each, channels = (n, c) if channels_last else (n * c, 1)
    part = _multiple(-(-channels // -(-MIN_PARTS // planes_each)), PART)
    fields = dict.fromkeys(_ADD_BY_TAPS.fields, 0) | {"n": planes_each, "c": channels, "part": part, **dict(taps)}
    fields |= {"windows": windows // (n * c), "positions": positions // (n * c)}
    units = n * fields["positions"] // fields["w"] if taps else planes_each * -(-channels // part)
    fields["items"] = min(_items(INDEX_TAPS * windows + positions), units)
    return Launch(kernel, dtype, fields, fields["items"]), fields["items"]


# --- Axes -----------------------------------------------------------------------------------------------------------


class Reads(NamedTuple):
    """The sources of each target along an axis: ``first + k * step`` for k in [0, count)."""

    first: Array
    counts: Array
    step: int
    sources: int

    @property
    def reach(self) -> int:
        """Sources from the first to the last that one target reads, both counted."""
        return (max(1, self.longest) - 1) * self.step + 1

    @property
    def longest(self) -> int:
        """Sources of the target that reads most."""
        return int(self.counts.max())

    @property
    def is_run(self) -> bool:
        """Whether one target reads a run that fills a vector."""
        return len(self.counts) == self.step == 1 and self.longest >= LONGEST_VECTOR

    @property
    def overlap(self) -> bool:
        """Whether targets share sources."""
        return int(self.counts.sum()) > self.sources

    @property
    def is_doubled(self) -> bool:
        """Whether windows are long, and share enough sources, to be made of others half as long."""
        return self.longest >= MIN_DOUBLED and int(self.counts.sum()) >= 4 * self.sources and bool(self.counts.all())

    def is_direct(self, in_blocks: bool) -> bool:
        """Whether one tap after the other is fast; and exact enough, as sums `in_blocks` always are."""
        taps, reads = self.longest, int(self.counts.sum())
        return taps <= MAX_TAPS or (reads <= 2 * self.sources and (in_blocks or taps <= MAX_SUM))


@kept(TABLES_BYTES)
def reads_of(axis: AnyAxis, of_windows: bool) -> Reads:
    """The reads of an axis: of its inputs by its windows, or of its windows by its inputs."""
    targets, sources = (axis.out, axis.size) if of_windows else (axis.size, axis.out)
    first, count, step = reads(axis, 0, targets, of_windows)
    first, count = within(first, count, step, 0, sources)
    return Reads(np.where(count, first, 0), count.astype(np.int64), int(step), sources)


class Row(NamedTuple):
    """How rows in C order are reduced along W, as fields of the kernel; `last` is the last source that is read."""

    way: int
    taps: int = 0
    low: int = 0
    even: int = 0
    odd: int = 0
    even_taps: int = 0
    odd_taps: int = 0
    last: int = 0


def row_of(axis: AnyAxis, of_windows: bool) -> Row:
    """The way along W, and what it needs to know."""
    if isinstance(axis, AdaptiveAxis) or reads_of(axis, of_windows).reach > MAX_TAPS:
        return Row(BY_TABLE)
    if of_windows:
        if axis.out == 1 or axis.stride > 2 or axis.kernel < axis.stride:
            return Row(BY_TABLE)
        last = (axis.out - 1) * axis.stride + axis.dilation * (axis.kernel - 1) - axis.low
        return Row((SHIFTED, HALVED)[axis.stride - 1], axis.kernel, axis.low, last=last)
    if axis.is_whole:
        return Row(REPEATED)
    if axis.stride == 1:
        sampling = axis.backward[0].sampling
        return Row(SHIFTED, axis.kernel, -sampling.least, last=axis.size - 1 + sampling.most)
    if axis.stride > 2 or not axis.backward:  # no window reads any input
        return Row(BY_TABLE)
    phases = {residue.first: residue.sampling for residue in axis.backward}
    even, odd = phases.get(0), phases.get(1)
    present = [each for each in (even, odd) if each is not None]
    return Row(
        DOUBLED,
        low=max(0, *(-each.least for each in present)),
        even=even.least if even else 0,
        odd=odd.least if odd else 0,
        even_taps=len(even.offsets) if even else 0,
        odd_taps=len(odd.offsets) if odd else 0,
        last=max(each.targets - 1 + each.most for each in present),
    )


# --- Plans ----------------------------------------------------------------------------------------------------------


class Plane(NamedTuple):
    """How all rows of a small plane are reduced along W at once: each with its margin, and the reduced rows kept.

    Their stores then lie far enough from the loads that read them again, and a vector spans several short rows.
    """

    row: int
    pitch: int
    depth: int
    height: int


def plane_of(row: Row, length: int, h: Reads, w: Reads, depth: int) -> Plane | None:
    """The way of planes whose rows, with their margins, have that length, or None where they are large."""
    targets = len(w.counts)
    if row.way == HALVED:
        length = _multiple(length, 2)
    elif row.way == DOUBLED:
        length = max(length, -(-targets // 2))
    elif row.way in (REPEATED, SINGLE):
        return None
    if h.sources == 1 or h.sources * length > PLANE:
        return None
    pitch = {BY_TABLE: targets, SHIFTED: length, HALVED: length // 2, DOUBLED: 2 * length}[row.way]
    return Plane(length, pitch, _power_of_2(depth), _power_of_2(h.sources))


@dataclass(frozen=True)
class Plan:
    """What a reduction over windows needs that depends on the geometry and the memory order alone.

    `taps` count for an element of the result: all, or those along each axis where rows are reduced first. `views` are
    the steps to the arrays as the kernel sees them, `margin` counts positions of a row with what windows
    read beside it, `reads` and `divisors` are the kernel's tables. `launches` are kept by the layouts of the arrays.
    """

    is_direct: bool
    channels_last: bool
    taps: int
    views: tuple[str, ...]
    margin: int
    plane: Plane | None
    d_reach: int
    h_reach: int
    d_overlap: bool
    h_overlap: bool
    values: dict[str, Value]
    reads: Array
    divisors: Array | None
    dtype: str
    launches: dict[tuple[str, Layout, Layout, bool], Launch] = field(default_factory=dict)

    def seen(self, x: Array) -> Array:
        """X as the kernel sees it."""
        for view in self.views:
            if view == "turned":
                x = x[..., 0][:, :, None]
                continue
            rows = merged(x, 3)
            if rows is None:  # no result: those are dense
                dense = np.moveaxis(np.moveaxis(x, 1, -1).copy(), -1, 1) if self.channels_last else x.copy()
                rows = dense.reshape(*x.shape[:3], -1)
            x = rows[:, :, None]
        return x

    def slots(self, row_bytes: int) -> tuple[int, int]:
        """Reduced rows that are kept along D and H, powers of 2: (0, 0) where no other window needs them."""
        if not (self.d_overlap or self.h_overlap):
            return 0, 0
        depth, height = _power_of_2(self.d_reach), _power_of_2(int(self.values["h"]))
        if self.d_overlap and depth * height * row_bytes <= SCRATCH_BYTES:
            return depth, height
        return depth, _power_of_2(self.h_reach)


def _power_of_2(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _multiple(least: int, of: int) -> int:
    return -(-least // of) * of


@kept(TABLES_BYTES)
def plan_of(geometry: PoolGeometry, of_windows: bool, channels_last: bool, dtype: str) -> Plan:
    """The plan of the windows of a geometry, or of its gradient's."""
    axes, views = _simplified(geometry.axes)
    d, h, w = reads = tuple(reads_of(axis, of_windows) for axis in axes)
    in_blocks = (False, False, not channels_last and w.step == 1)
    divides = 0 if geometry.divisor == "none" else 2 if of_windows else 1
    row = Row(BY_TABLE) if channels_last else row_of(axes[2], of_windows)
    if channels_last and of_windows and prod(each.longest for each in reads) <= MAX_DIRECT:
        row = Row(DIRECT)
    elif channels_last and not of_windows and all(each.longest <= 1 for each in reads):
        row = Row(COPIED)
    elif not channels_last and w.is_run and axes[:2] == (Axis(1), Axis(1)):
        row = Row(SINGLE)
    beside = row.low or row.last >= w.sources or divides == 1 or row.way == COPIED
    margin = row.low + max(w.sources, row.last + 1) if beside else 0
    plane = None if channels_last else plane_of(row, margin or w.sources, h, w, d.reach)
    doubled_w = divides == 0 and of_windows and row.way == SHIFTED and row.taps >= MIN_DOUBLED
    doubled_h = divides == 0 and of_windows and plane is not None and h.is_doubled and d.longest == d.counts.min() == 1
    named = dict(zip("dhw", reads, strict=True))
    longest = [each.longest for each in reads]
    values = {
        **row._asdict(),
        **{axis: each.sources for axis, each in named.items()},
        **{f"o{axis}": len(each.counts) for axis, each in named.items()},
        **{f"{axis}_step": each.step for axis, each in named.items()},
        **{"channels_last": channels_last, "divides": divides, "holes": not w.counts.all()},
        **{"doubled_w": int(doubled_w), "doubled_h": h.longest if doubled_h else 0},
    }
    return Plan(
        is_direct=all(map(Reads.is_direct, reads, in_blocks)),
        channels_last=channels_last,
        taps=prod(longest) if row.way == DIRECT else sum(longest),
        views=views,
        margin=margin,
        plane=plane,
        d_reach=d.reach,
        h_reach=h.reach,
        d_overlap=d.overlap,
        h_overlap=h.overlap,
        values=values,
        reads=_tables(reads),
        divisors=_divisors(geometry.divisor, axes, dtype),
        dtype=dtype,
    )


def _divisors(divisor: Divisor, axes: Axes, dtype: str) -> Array | None:
    """Three factors of the windows' divisor, one along each axis: the tables [OD], [OH] and [OW] as one."""
    if divisor == "none":
        return None
    if isinstance(divisor, str):
        factors = [np.maximum(tap_counts(axis, divisor == "padded"), 1) for axis in axes]
    else:
        factors = [np.full(axis.out, factor) for axis, factor in zip(axes, (1, 1, divisor), strict=True)]
    return np.concatenate(factors).astype(dtype)


def _simplified(axes: Axes) -> tuple[Axes, tuple[str, ...]]:
    """The axes with a longer one last: without those of size 1 at the end, and with whole ones merged; and the steps.

    A step is "turned", from [N, C, D, H, 1] to [N, C, 1, D, H], or "merged", to [N, C, 1, D, H * W].
    """
    d, h, w = axes
    views = []
    while w == Axis(1) and (d, h) != (w, w):
        d, h, w = Axis(1), d, h
        views.append("turned")
    while h != Axis(1) and all(isinstance(axis, Axis) and axis.is_whole for axis in (h, w)):
        size = h.size * w.size
        d, h, w = Axis(1), d, Axis(size, size, size)
        views.append("merged")
    return (d, h, w), tuple(views)
