"""dgrad to few channels, and the forward to few filters, as a matrix product and a fold (col2im).

The implicit GEMM has its lanes along the channels that it computes, of which 3 fill a fifth. Here they run along
positions, or along taps as well: for dgrad of a stem of 7 x 7 taps on 3 channels that took 0.4 of the time, for a
forward of 3 x 3 taps from 64 channels to 3 a third. A forward with stride 1 is a dgrad with its taps reversed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import prod

from gpucnn.backends.base import Epilogue
from gpucnn.backends.cpu.elementwise import bias_activation, copy
from gpucnn.backends.cpu.library import shared_scratch
from gpucnn.backends.cpu.unfolding import col2im
from gpucnn.backends.dtypes import name_of
from gpucnn.backends.numpy.memory import Array
from gpucnn.geometry import Axis, ConvGeometry, Sampling
from gpucnn.geometry.geometries import Channels

Contract = Callable[..., None]

MAX_CHANNELS = 8  # of a group of the image
MAX_FILTERS = 8  # of a group of a forward, which has the square of their number of channels
MULTIPLY_ADDS = 1 << 18  # of an image, for which a forward's copies are worth their launches
COLUMN_BYTES = 8 << 20  # of the columns that are folded together


def computes(direction: str, geometry: ConvGeometry) -> bool:
    """Whether few channels are computed, and windows overlap or adjoin, so that columns are worth their fold."""
    inputs, outputs, groups = geometry.channels
    if geometry.taps == 1 or direction == "backward_weight":
        return False
    if direction == "backward_input":
        return inputs // groups <= MAX_CHANNELS and all(axis.stride <= axis.kernel for axis in geometry.axes)
    filters, work = outputs // groups, inputs * outputs // groups * geometry.taps * prod(geometry.output_size)
    is_few = filters <= MAX_FILTERS and inputs // groups >= filters**2 and work >= MULTIPLY_ADDS
    return is_few and all(axis.stride == 1 and max(axis.low, axis.high) <= _reach(axis) for axis in geometry.axes)


def _reach(axis: Axis) -> int:
    """From the first to the last tap."""
    return axis.dilation * (axis.kernel - 1)


def forward(x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry, contract: Contract) -> None:
    """As `convolution.convolve`; `contract` is `convolution.contract`."""
    inputs, outputs, groups = geometry.channels
    rows = outputs // groups * geometry.taps
    by_tap = w.reshape(groups, outputs // groups, inputs // groups, geometry.taps)[..., ::-1].swapaxes(2, 3)
    weight = shared_scratch("filters by taps", w.size, name_of(w.dtype)).reshape(by_tap.shape)
    copy(by_tap, weight)
    _fold(x, weight.reshape(groups, rows, -1, 1, 1, 1), bias, y, _adjoint(geometry), contract)


def backward_input(
    grad_y: Array, w: Array, bias: Array | None, grad_x: Array, geometry: ConvGeometry, contract: Contract
) -> None:
    """As `convolution.convolve_backward_input`; `contract` is `convolution.contract`."""
    inputs, outputs, groups = geometry.channels
    rows = inputs // groups * geometry.taps
    by_row = w.reshape(groups, outputs // groups, rows, 1, 1, 1).swapaxes(1, 2)
    _fold(grad_y, by_row, bias, grad_x, geometry, contract)


@lru_cache(maxsize=512)
def _adjoint(geometry: ConvGeometry) -> ConvGeometry:
    """The geometry whose dgrad, with its taps reversed, is the forward of another one of stride 1."""
    inputs, outputs, groups = geometry.channels
    depth, height, width = (
        Axis(axis.out, axis.kernel, 1, axis.dilation, _reach(axis) - axis.low, _reach(axis) - axis.high, axis.size)
        for axis in geometry.axes
    )
    return ConvGeometry(geometry.rank, Channels(outputs, inputs, groups), (depth, height, width))


def _fold(
    grad_y: Array, weight: Array, bias: Array | None, grad_x: Array, geometry: ConvGeometry, contract: Contract
) -> None:
    """The dgrad with weight [G, C * taps, M, 1, 1, 1]."""
    groups, rows = weight.shape[:2]
    positions, dtype = prod(geometry.output_size), name_of(grad_y.dtype)
    same = tuple(Sampling(count, count, 1, range(1)) for count in geometry.output_size)
    together = max(1, COLUMN_BYTES // (groups * rows * positions * grad_y.itemsize))
    for first in range(0, len(grad_y), together):
        images = slice(first, first + together)
        count = len(grad_y[images])
        columns = shared_scratch("columns", count * groups * rows * positions, dtype)
        contract(grad_y[images], weight, None, same, columns.reshape(count, groups * rows, *geometry.output_size))
        target = image = grad_x[images]
        if not target.flags.c_contiguous:
            image = shared_scratch("image", target.size, dtype).reshape(target.shape)
        col2im(columns.reshape(count, groups * rows, positions), image, geometry)  # to C order
        if bias is not None:
            planes = image.reshape(*image.shape[:2], -1)
            bias_activation(planes, bias, planes, Epilogue())
        if image is not target:
            copy(image, target)
