"""dgrad as a matrix product and a fold (col2im), for images of few channels.

The implicit GEMM has its lanes along the channels of the gradient, of which an image of 3 fills a fifth. Here they run
along positions: for a stem of 7 x 7 taps on 3 channels that took 0.4 of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from gpucnn.backends.cpu.elementwise import copy
from gpucnn.backends.cpu.library import shared_scratch
from gpucnn.backends.cpu.unfolding import col2im
from gpucnn.backends.dtypes import name_of
from gpucnn.backends.numpy.memory import Array
from gpucnn.geometry import ConvGeometry, Sampling

Contract = Callable[..., None]

MAX_CHANNELS = 8  # of a group of the image
COLUMN_BYTES = 8 << 20  # of the columns that are folded together


def computes(geometry: ConvGeometry) -> bool:
    """Whether a dgrad has so few channels, and windows that overlap or adjoin, so that columns are worth their fold."""
    inputs, _, groups = geometry.channels
    is_dense = all(axis.stride <= axis.kernel for axis in geometry.axes)
    return inputs // groups <= MAX_CHANNELS and geometry.taps > 1 and is_dense


def backward_input(
    grad_y: Array, w: Array, bias: Array | None, grad_x: Array, geometry: ConvGeometry, contract: Contract
) -> None:
    """As `convolution.convolve_backward_input`; `contract` is `convolution.contract`."""
    inputs, outputs, groups = geometry.channels
    rows, positions = inputs // groups * geometry.taps, prod(geometry.output_size)
    weight = w.reshape(groups, outputs // groups, rows, 1, 1, 1).swapaxes(1, 2)
    same = tuple(Sampling(count, count, 1, range(1)) for count in geometry.output_size)
    together = max(1, COLUMN_BYTES // (groups * rows * positions * grad_y.itemsize))
    for first in range(0, len(grad_y), together):
        images = slice(first, first + together)
        count = len(grad_y[images])
        columns = shared_scratch("columns", count * groups * rows * positions, name_of(grad_y.dtype))
        columns = columns.reshape(count, groups * rows, *geometry.output_size)
        contract(grad_y[images], weight, None, same, columns)
        image = grad_x[images] if grad_x.flags.c_contiguous else np.empty(grad_x[images].shape, grad_x.dtype)
        col2im(columns.reshape(count, groups * rows, positions), image, geometry)  # to C order
        if bias is not None:
            image += bias.reshape(-1, 1, 1, 1)
        if not grad_x.flags.c_contiguous:
            copy(image, grad_x[images])
