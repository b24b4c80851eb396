"""Depthwise convolution where channels are innermost in memory: lanes run along the channels of a pixel."""

from __future__ import annotations

import numpy as np

from gpucnn.backends.cpu.elementwise import work_items
from gpucnn.backends.cpu.library import Kernel, Value, launch, strides
from gpucnn.backends.numpy.memory import Array, scratch
from gpucnn.geometry import ConvGeometry

_FORWARD, _BACKWARD_INPUT, _BACKWARD_WEIGHT, _WEIGHT, _TOTAL = (
    Kernel("depthwise_pixels", "depthwise_pixels" + suffix)
    for suffix in ("", "_backward_input", "_backward_weight", "_weight", "_total")
)
VECTOR_BYTES = 64  # of the widest vector
PIXELS = 1024  # of grad_y whose products are summed before they join the others: short sums are more exact
MAX_SUMS = 8  # work items of a wgrad, each with partial sums


def computes(x: Array, y: Array) -> bool:
    """Whether both [N, C, D, H, W] have channels innermost, enough of them for a vector."""
    return x.strides[1] == y.strides[1] == x.itemsize and x.shape[1] * x.itemsize >= VECTOR_BYTES


def forward(x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry) -> None:
    """Y [N, C, OD, OH, OW] from x [N, C, D, H, W], w [C, 1, KD, KH, KW] and bias [C]."""
    _contract(_FORWARD, x, w, bias, y, geometry)


def backward_input(grad_y: Array, w: Array, bias: Array | None, grad_x: Array, geometry: ConvGeometry) -> None:
    """grad_x [N, C, D, H, W] from grad_y [N, C, OD, OH, OW]."""
    _contract(_BACKWARD_INPUT, grad_y, w, bias, grad_x, geometry)


def _contract(kernel: Kernel, source: Array, w: Array, bias: Array | None, target: Array, geometry: ConvGeometry) -> None:
    dtype, channels = source.dtype.name, source.shape[1]
    rows = target.size // channels // target.shape[4]
    items = min(max(1, rows), work_items(max(source.size, target.size)))
    values = _values(source, target, w, geometry) | {"items": items}
    weight = scratch("depthwise weight", (geometry.taps, channels), dtype)
    launch(_WEIGHT, dtype, values, {"w": w, "weight": weight})
    bias = None if bias is None else np.ascontiguousarray(bias)
    arrays = {"from": source, "weight": weight, "bias": bias, "to": target}
    launch(kernel, dtype, values, arrays, items, _workspace(geometry, channels, 0))


def backward_weight(x: Array, grad_y: Array, grad_w: Array, geometry: ConvGeometry) -> None:
    """grad_w [C, 1, KD, KH, KW] from x [N, C, D, H, W] and grad_y [N, C, OD, OH, OW]."""
    dtype, channels = x.dtype.name, x.shape[1]
    rows = grad_y.size // channels // grad_y.shape[4]
    items = min(max(1, rows), MAX_SUMS, work_items(grad_y.size))
    values = _values(x, grad_y, grad_w, geometry) | {"items": items}
    sums = geometry.taps * (channels + VECTOR_BYTES)
    partial = scratch("depthwise partial sums", (items * sums,), dtype)
    arrays = {"from": x, "grad": grad_y, "partial": partial, "w": grad_w}
    launch(_BACKWARD_WEIGHT, dtype, values, arrays, items, _workspace(geometry, channels, sums))
    launch(_TOTAL, dtype, values, arrays)


def _values(source: Array, target: Array, w: Array, geometry: ConvGeometry) -> dict[str, Value]:
    n, channels, *sizes = source.shape
    values: dict[str, Value] = {"n": n, "c": channels, "pixels": PIXELS}
    for name, axis, size, out in zip("dhw", geometry.axes, sizes, target.shape[2:], strict=True):
        values |= {f"source_{name}": size, f"target_{name}": out, f"kernel_{name}": axis.kernel}
        values |= {f"stride_{name}": axis.stride, f"dilation_{name}": axis.dilation, f"low_{name}": axis.low}
    return values | strides("from", source, "ncdhw") | strides("to", target, "ncdhw") | strides("w", w, "cxdhw")


def _workspace(geometry: ConvGeometry, channels: int, sums: int) -> int:
    """Scalars for a pixel of zeros, tables of addresses and sums."""
    *outer, width = geometry.axes
    taps = outer[0].kernel * outer[1].kernel
    columns = max(6 * width.stride + width.kernel, 7 * width.kernel)
    return channels + (2 + columns) * taps * 2 + sums + 256
