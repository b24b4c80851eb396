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
Index = tuple[slice, ...]

MAX_CHANNELS = 8  # of a group of the image
UNFILLED = (range(9, 13), range(17, 21))  # channels that leave a quarter of the lanes empty, or more
MIN_FILTERS = 64  # of a group of a dgrad to so many channels
MAX_FILTERS = 8  # of a group of a forward, which has the square of their number of channels
MULTIPLY_ADDS = 1 << 18  # of an image, for which a forward's copies are worth their launches
COLUMN_BYTES = 8 << 20  # of the columns of images that are folded together
MAX_COLUMN_BYTES = 64 << 20  # of an image, beyond which it is computed in slabs: halos are columns twice


def computes(direction: str, geometry: ConvGeometry) -> bool:
    """Whether few channels are computed, and windows overlap or adjoin, so that columns are worth their fold."""
    inputs, outputs, groups = geometry.channels
    if geometry.taps == 1 or direction == "backward_weight":
        return False
    if direction == "backward_input":
        channels = inputs // groups
        is_unfilled = outputs // groups >= MIN_FILTERS and any(channels in each for each in UNFILLED)
        is_few = channels <= MAX_CHANNELS or is_unfilled
        return is_few and all(axis.stride <= axis.kernel for axis in geometry.axes)
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
    column = groups * rows * grad_y.itemsize
    together = max(1, COLUMN_BYTES // (column * prod(geometry.output_size)))
    for first in range(0, len(grad_y), together):
        images = slice(first, first + together)
        for sources, targets, part in _slabs(geometry, column):
            _fold_part(grad_y[images][sources], weight, bias, grad_x[images][targets], part, contract)


def _fold_part(
    grad_y: Array, weight: Array, bias: Array | None, grad_x: Array, geometry: ConvGeometry, contract: Contract
) -> None:
    count, (groups, rows), dtype = len(grad_y), weight.shape[:2], name_of(grad_y.dtype)
    positions = prod(geometry.output_size)
    same = tuple(Sampling(size, size, 1, range(1)) for size in geometry.output_size)
    columns = shared_scratch("columns", count * groups * rows * positions, dtype)
    contract(grad_y, weight, None, same, columns.reshape(count, groups * rows, *geometry.output_size))
    image = grad_x
    if not grad_x.flags.c_contiguous:
        image = shared_scratch("image", grad_x.size, dtype).reshape(grad_x.shape)
    col2im(columns.reshape(count, groups * rows, positions), image, geometry)  # to C order
    if bias is not None:
        planes = image.reshape(*image.shape[:2], -1)
        bias_activation(planes, bias, planes, Epilogue())
    if image is not grad_x:
        copy(image, grad_x)


@lru_cache(maxsize=512)
def _slabs(geometry: ConvGeometry, column_bytes: int) -> tuple[tuple[Index, Index, ConvGeometry], ...]:
    """The parts of a dgrad: the outputs that each reads, its inputs and its geometry; one, if its columns are few."""
    size = column_bytes * prod(geometry.output_size)
    if size <= MAX_COLUMN_BYTES:
        return (((), (), geometry),)
    at, axis = next((at, axis) for at, axis in enumerate(geometry.axes) if axis.size > 1)
    thickness = -(-axis.size // -(-size // COLUMN_BYTES))
    parts = []
    for start in range(0, axis.size, thickness):
        stop = min(start + thickness, axis.size)
        last = max(0, min((stop - 1 + axis.low) // axis.stride, axis.out - 1))
        first = min(max(0, -(-(start + axis.low - _reach(axis)) // axis.stride)), last)
        low = start + axis.low - first * axis.stride
        high = (last - first) * axis.stride + _reach(axis) + 1 - low - (stop - start)
        slab = Axis(stop - start, axis.kernel, axis.stride, axis.dilation, low, high, last - first + 1)
        depth, height, width = (slab if number == at else other for number, other in enumerate(geometry.axes))
        part = ConvGeometry(geometry.rank, geometry.channels, (depth, height, width))
        along = (slice(None),) * (2 + at)
        parts.append(((*along, slice(first, last + 1)), (*along, slice(start, stop)), part))
    return tuple(parts)
