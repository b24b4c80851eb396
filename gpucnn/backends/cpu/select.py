"""Choice of a convolution's algorithm in C++: pure functions of sizes."""

from __future__ import annotations

from enum import Enum, auto
from math import prod

import numpy as np

from gpucnn.backends.cpu import depthwise, folding
from gpucnn.backends.cpu.library import VECTOR_BYTES
from gpucnn.backends.cpu.tiling import Samplings
from gpucnn.geometry import ConvGeometry

WINOGRAD_CHANNELS = 16  # fewer are less than a vector
FEW_FILTERS = 4  # whose dot products with pixels take less time than a vector of filters
DOT_CHANNELS = 16  # fewer fill no vector
POINTWISE_POSITIONS = 112  # of an image: of 49 a quarter of the lanes would have nothing to do, of few filters most
_OF_NUMPY = ("direct", "im2col")


class Order(Enum):
    """Memory orders that kernels of 1 x 1 convolutions take."""

    ROWS = auto()
    """Positions are contiguous in both images, so that a plane is one row."""
    PIXELS = auto()
    """Channels are contiguous in the image that is read, and positions evenly spaced in both."""
    OTHER = auto()


def algorithm(direction: str, geometry: ConvGeometry, chosen: str | None = None, in_rows: bool = False) -> str | None:
    """The algorithm of a convolution that is computed as a whole; None where it is by `contraction`, or a plain wgrad.

    Parameters
    ----------
    direction : str
        "forward", "backward_input" or "backward_weight".
    geometry : ConvGeometry
    chosen : str or None
        What the caller asks for.
    in_rows : bool
        Whether both images are in C order.

    Returns
    -------
    str or None
        "depthwise", "fold", or "direct" or "im2col", which are computed by the NumPy backend where a caller asks for
        them.

    Raises
    ------
    ValueError
        The caller's choice does not compute this.
    """
    if chosen in _OF_NUMPY:
        return chosen
    if chosen == "winograd" and direction == "backward_weight":
        raise ValueError("algorithm: 'winograd' computes no backward weight convolution, expected another one")
    if chosen is not None:
        return None
    if depthwise.computes(direction, geometry) and not (in_rows and _is_product(direction, geometry)):
        return "depthwise"
    if folding.computes(direction, geometry):
        return "fold"
    return None


def _is_product(direction: str, geometry: ConvGeometry) -> bool:
    """Whether taps are 1 x 1, and channels meet in a pixel or rows are long: in C order 0.2 to 0.8 of the time."""
    inputs, outputs, groups = geometry.channels
    is_pointwise = all(axis.is_identity for axis in geometry.axes)
    pays = max(inputs, outputs) > groups or prod(geometry.output_size) >= POINTWISE_POSITIONS
    return direction != "backward_weight" and is_pointwise and pays


def contraction(
    batch: int, weight: tuple[int, ...], samplings: Samplings, dtype: str, order: Order, chosen: str | None = None
) -> str:
    """The algorithm of a forward, or of one stride residue of a dgrad.

    Parameters
    ----------
    batch : int
        Images.
    weight : tuple of 6 int
        The shape [G, M, C, KD, KH, KW].
    samplings : tuple of 3 Sampling
        Along (D, H, W).
    dtype : str
        "float32" or "float64".
    order : Order
        Of both images in memory.
    chosen : str or None
        What the caller asks for: "winograd" or "implicit_gemm".

    Returns
    -------
    str
        "winograd", "pointwise", "pointwise_dots" or "implicit_gemm".

    Raises
    ------
    ValueError
        The caller's choice does not compute this.
    """
    tiled = _takes_tiles(weight, samplings, dtype)
    if chosen == "winograd" and not tiled:
        raise ValueError(
            f"algorithm: 'winograd' computes no convolution of {dtype} with {weight[2]} channels, {weight[3:]} taps "
            f"and steps {tuple(axis.step for axis in samplings)}, expected float32, 3 x 3 taps, stride 1 and at least "
            f"{WINOGRAD_CHANNELS} channels"
        )
    if chosen is not None:
        return chosen
    if tiled and _tiles_pay(batch, weight, samplings):
        return "winograd"
    if all(axis.is_identity for axis in samplings):
        positions, has_few_filters = prod(axis.targets for axis in samplings), weight[1] <= FEW_FILTERS
        is_long, fills_lanes = positions >= POINTWISE_POSITIONS, positions >= VECTOR_BYTES // np.dtype(dtype).itemsize
        if order is Order.ROWS and (is_long or (has_few_filters and fills_lanes)):
            return "pointwise"
        if order is Order.PIXELS and is_long and has_few_filters and weight[2] >= DOT_CHANNELS:
            return "pointwise_dots"
    return "implicit_gemm"


def _takes_tiles(weight: tuple[int, ...], samplings: Samplings, dtype: str) -> bool:
    depth, *plane = samplings
    return (
        dtype == "float32"
        and weight[2] >= WINOGRAD_CHANNELS
        and depth.is_identity
        and depth.targets == 1
        and all(len(axis.offsets) == 3 and axis.step == 1 for axis in plane)
    )


def _tiles_pay(batch: int, weight: tuple[int, ...], samplings: Samplings) -> bool:
    """Whether Winograd's tiles take less time than the implicit GEMM.

    A tile of four outputs takes 16 products instead of 36. Their operands pass through transforms, some 30 operations
    of a channel or filter for 16 products each; with few tiles those of the filters count.
    """
    _, filters, channels, *_ = weight
    height, width = samplings[1:]
    tiles = batch
    for axis in (height, width):  # each residue of a dilation has tiles of its own
        gap = abs(axis.spacing)
        targets = -(-axis.targets // gap)
        tiles *= gap * -(-targets // 2)
    direct = 9 * channels * filters * batch * height.targets * width.targets
    transforms = 16 * 30 * (channels + filters) * tiles + 400 * channels * filters
    return 16 * channels * filters * tiles + transforms < direct
