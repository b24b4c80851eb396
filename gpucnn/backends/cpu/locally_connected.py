"""Locally connected layers in C++."""

from __future__ import annotations

from math import prod

import numpy as np

from gpucnn.backends.cpu.elementwise import copy
from gpucnn.backends.cpu.library import Kernel, Value, launch
from gpucnn.backends.cpu.unfolding import window_fields
from gpucnn.backends.numpy.memory import Array
from gpucnn.geometry import ConvGeometry

_FORWARD = Kernel("locally_connected", "locally_connect")
_BACKWARD_INPUT = Kernel("locally_connected", "locally_connect_backward_input")
_BACKWARD_WEIGHT = Kernel("locally_connected", "locally_connect_backward_weight")

WEIGHTS = 1 << 18  # that are worth a thread
COLUMNS = 1 << 16  # elements that some positions read of all images, which stay in the L2 cache
MOST_TOGETHER = 16  # positions
LANES, IMAGES = 16, 4  # most lanes of a vector, and images of a tile
ROW = 288  # elements of a filter, at least, in each part of the channels: shorter runs come slowly from memory


def locally_connect(x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry) -> None:
    """Y [N, OC, OD, OH, OW]: each position by its filters."""
    values, workspace = _fields(len(x), geometry)
    target = _Target(y)
    arrays = {"x": _in_c_order(x), "w": _in_c_order(w), "bias": None if bias is None else _in_c_order(bias)}
    launch(_FORWARD, x.dtype.name, values, {**arrays, "y": target.array}, int(values["items"]), workspace)
    target.store()


def locally_connect_backward_input(grad_y: Array, w: Array, grad_x: Array, geometry: ConvGeometry) -> None:
    """grad_x [N, C, D, H, W]: each position's gradients times its filters, added up in order."""
    values, workspace = _fields(len(grad_y), geometry)
    target = _Target(grad_x)
    arrays = {"grad_y": _in_c_order(grad_y), "w": _in_c_order(w), "grad_x": target.array}
    items = -(-geometry.channels.inputs // int(values["c_block"]))
    launch(_BACKWARD_INPUT, grad_y.dtype.name, values, arrays, items, workspace)
    target.store()


def locally_connect_backward_weight(x: Array, grad_y: Array, grad_w: Array, geometry: ConvGeometry) -> None:
    """grad_w [OC, OD, OH, OW, C, KD, KH, KW]: at each position, the sum over images of gradients times windows."""
    values, workspace = _fields(len(x), geometry)
    target = _Target(grad_w)
    arrays = {"x": _in_c_order(x), "grad_y": _in_c_order(grad_y), "grad_w": target.array}
    launch(_BACKWARD_WEIGHT, x.dtype.name, values, arrays, int(values["items"]), workspace)
    target.store()


def _fields(n: int, geometry: ConvGeometry) -> tuple[dict[str, Value], int]:
    """The kernels' fields, and the size of their workspace."""
    inputs, outputs, _ = geometry.channels
    depth = inputs * geometry.taps
    step = -(-depth // LANES) * LANES
    images = -(-n // IMAGES) * IMAGES
    together = max(1, min(MOST_TOGETHER, geometry.output_size[2], COLUMNS // max(1, images * step)))
    work = prod(geometry.output_size) * depth * outputs
    parts = max(1, min(8, work // WEIGHTS))
    values = {
        **window_fields(geometry),
        **{"n": n, "outputs": outputs, "together": together, "items": max(1, min(64, work // WEIGHTS))},
        "c_block": min(inputs, -(-max(-(-ROW // geometry.taps), -(-inputs // parts)) // LANES) * LANES),
    }
    return values, together * (images * step + depth) + outputs * images


def _in_c_order(x: Array) -> Array:
    if x.flags.c_contiguous:
        return x
    y = np.empty(x.shape, x.dtype)
    copy(x, y)
    return y


class _Target:
    """A result in C order: the array itself, or one that is copied to it."""

    def __init__(self, wanted: Array) -> None:
        self.wanted = wanted
        self.array = wanted if wanted.flags.c_contiguous else np.empty(wanted.shape, wanted.dtype)

    def store(self) -> None:
        if self.array is not self.wanted:
            copy(self.array, self.wanted)
