"""Depthwise convolution in C++, and that of small groups: forward, dgrad and wgrad."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from math import prod

from gpucnn.backends.cpu import depthwise_groups
from gpucnn.backends.cpu.library import Kernel, Value, launch, strides
from gpucnn.backends.numpy.memory import Array, scratch
from gpucnn.geometry import Axis, ConvGeometry
from gpucnn.geometry.axes import extent

_PIXELS, _PIXELS_GRADIENT, _PLANES, _PLANES_GRADIENT, _WEIGHT, _GRADIENT = (
    Kernel("depthwise", "depthwise_" + name)
    for name in ("pixels", "pixels_gradient", "planes", "planes_gradient", "weight", "gradient")
)
VECTOR_BYTES = 64  # of the widest vector
ITEM = 1 << 17  # elements of a work item: handing one out takes as long as 8 Ki of them
MAX_ITEMS = 64
PIXELS = 1024  # of grad_y whose products are summed before they join the others: short sums are more exact
MAX_PARTS = 8  # of a wgrad's batch, each with partial sums
BOX_BYTES = 384 << 10  # of a box's copies, which stay in the second-level cache
CHUNKS = (64, 32, 16)  # channels that are transposed together: as many as let a box hold whole planes
MAX_CHANNELS = 16  # of a small group, on either side
BLOCK = 7  # targets along the width of a register block


def computes(direction: str, geometry: ConvGeometry) -> bool:
    """Whether this module computes a `direction` of a convolution of this geometry."""
    inputs, outputs, groups = geometry.channels
    return groups > 1 and max(inputs, outputs) <= MAX_CHANNELS * groups


def _is_plain(geometry: ConvGeometry) -> bool:
    """Whether each channel has one filter."""
    inputs, outputs, groups = geometry.channels
    return inputs == outputs == groups


def forward(x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry) -> None:
    """Y [N, C, OD, OH, OW] from x [N, C, D, H, W], w [C, 1, KD, KH, KW] and bias [C]."""
    if _is_plain(geometry):
        _contract(x, w, bias, y, geometry, False)
    else:
        depthwise_groups.forward(x, w, bias, y, geometry)


def backward_input(grad_y: Array, w: Array, bias: Array | None, grad_x: Array, geometry: ConvGeometry) -> None:
    """grad_x [N, C, D, H, W] from grad_y [N, C, OD, OH, OW], plus bias [C]."""
    if _is_plain(geometry):
        _contract(grad_y, w, bias, grad_x, geometry, True)
    else:
        depthwise_groups.backward_input(grad_y, w, bias, grad_x, geometry)


def _contract(source: Array, w: Array, bias: Array | None, target: Array, geometry: ConvGeometry, dgrad: bool) -> None:
    if target.size == 0:
        return
    dtype = source.dtype.name
    values = _values(source, target, geometry, dgrad) | strides("w", w, "cxdhw") | strides("bias", bias, "c")
    weight = scratch("depthwise weight", (geometry.taps + 1, values["width"]), dtype)
    launch(_WEIGHT, dtype, values, {"w": w, "bias": bias, "weight": weight})
    last = _is_innermost(source, target)
    n, channels, depth, height, _ = target.shape
    units = n * depth * height if last else n * values["chunks"] * values["boxes"]
    values["items"] = max(1, min(units, MAX_ITEMS, max(source.size, target.size) // ITEM))
    arrays = {"from": source, "weight": weight, "to": target}
    workspace = values["room"] + (0 if last else values["copies"])
    launch(_PIXELS if last else _PLANES, dtype, values, arrays, values["items"], workspace)


def backward_weight(x: Array, grad_y: Array, grad_w: Array, geometry: ConvGeometry) -> None:
    """grad_w [C, 1, KD, KH, KW] from x [N, C, D, H, W] and grad_y [N, C, OD, OH, OW]."""
    if not _is_plain(geometry):
        depthwise_groups.backward_weight(x, grad_y, grad_w, geometry)
        return
    dtype = x.dtype.name
    values = _values(x, grad_y, geometry, False) | strides("w", grad_w, "cxdhw") | strides("bias", None, "c")
    last = _is_innermost(x, grad_y)
    n, channels, depth, height, _ = grad_y.shape
    most = min(MAX_PARTS, max(x.size, grad_y.size) // ITEM)
    parts = max(1, min(most, n * depth * height if last else n))
    values |= {"parts": parts, "items": parts if last else parts * values["chunks"]}
    sums = geometry.taps * values["width"]
    partial = scratch("depthwise partial sums", (parts, sums), dtype)
    arrays = {"from": x, "to": grad_y, "partial": partial, "w": grad_w}
    workspace = values["room"] + sums + 64 + (0 if last else values["copies"])
    launch(_PIXELS_GRADIENT if last else _PLANES_GRADIENT, dtype, values, arrays, values["items"], workspace)
    launch(_GRADIENT, dtype, values, arrays)


def _is_innermost(*images: Array) -> bool:
    """Whether images [N, C, D, H, W] have channels innermost in memory, enough of them for a vector."""
    return all(x.strides[1] == x.itemsize and x.shape[1] * x.itemsize >= VECTOR_BYTES for x in images)


def _values(source: Array, target: Array, geometry: ConvGeometry, dgrad: bool) -> dict[str, Value]:
    return {
        **_sizes(geometry, dgrad, source.itemsize),
        **{"n": len(source), "items": 1, "parts": 1},
        **strides("from", source, "ncdhw"),
        **strides("to", target, "ncdhw"),
    }


@lru_cache(maxsize=256)
def _sizes(geometry: ConvGeometry, dgrad: bool, itemsize: int) -> dict[str, Value]:
    """The fields that follow from a geometry, and the scalars of the workspace."""
    channels, axes = geometry.channels.inputs, geometry.axes
    lanes = VECTOR_BYTES // itemsize
    values: dict[str, Value] = {"c": channels, "width": -(-channels // lanes) * lanes, "dgrad": dgrad, "pixels": PIXELS}
    sources, targets = geometry.input_size, geometry.output_size
    if dgrad:
        sources, targets = targets, sources
    for name, axis, size, out in zip("dhw", axes, sources, targets, strict=True):
        values |= {f"source_{name}": size, f"target_{name}": out, f"kernel_{name}": axis.kernel}
        values |= {f"stride_{name}": axis.stride, f"dilation_{name}": axis.dilation, f"low_{name}": axis.low}
    chunk = next((c for c in CHUNKS[:-1] if _copied(axes, targets, dgrad) * c * itemsize <= BOX_BYTES), CHUNKS[-1])
    box = _box(axes, targets, dgrad, BOX_BYTES // (chunk * itemsize))
    chunks = max(1, channels // chunk)
    values |= {"box_d": box[0], "box_h": box[1], "box_w": box[2], "chunks": chunks}
    values["boxes"] = prod(-(-count // each) for count, each in zip(targets, box, strict=True))
    values["copies"] = (-(-channels // chunks) + 2 * lanes) * _copied(axes, box, dgrad) + 128
    columns = max((BLOCK - 1) * axes[2].stride + axes[2].kernel, BLOCK * axes[2].kernel)
    tables = (2 + columns) * axes[0].kernel * axes[1].kernel * 8 // itemsize
    values["room"] = values["width"] + tables + 192
    return values


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
    for i, step in enumerate((1, 1, BLOCK * axes[2].stride)):
        choices = range(step, box[i], step)
        if _copied(axes, box, dgrad) > limit and choices:
            fits = bisect_right(
                choices, limit, key=lambda count: _copied(axes, [*box[:i], count, *box[i + 1 :]], dgrad)
            )
            pieces = -(-box[i] // choices[max(0, fits - 1)])
            box[i] = -(-(-(-box[i] // pieces)) // step) * step
    return box
