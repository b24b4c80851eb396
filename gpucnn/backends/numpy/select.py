"""Which algorithm computes a convolution on the CPU: pure functions of sizes, by what each would cost.

Costs are nanoseconds of one core, as measured on a server with AVX-512; only their ratios matter, and those are much
the same elsewhere. The number of threads has no say: results must not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import prod

from gpucnn.backends.numpy import folding, winograd
from gpucnn.geometry import ConvGeometry, Sampling
from gpucnn.numerics import current_algorithm

MULTIPLY = 0.02  # a multiply-add of a large matrix product
COPY = 0.14  # of a number into columns
PACK = 2.0  # a weight to matrices of single taps
READ = 0.3  # a weight of a product with few positions, from memory
SWAP = 1.5  # a weight of a backward, whose matrix is not as it lies in memory
ADD = 0.35  # a number of a product to a sum
FOLD = 1.0  # a number of a column to an image
TRANSFORM_IMAGE, TRANSFORM_PRODUCTS = 4.0, 2.6  # a pixel of a channel to Winograd's frequencies, and back
TRANSFORM_FILTER = 1.1  # a frequency of a filter

_TILED = frozenset({"float32", "float16", "bfloat16"})  # float64 is asked for where rounding matters


def contraction(source: Sequence[int], weight: Sequence[int], samplings: Sequence[Sampling], dtype: str) -> str:
    """The algorithm for source [N, G * C, D, H, W] and weight [G, M, C, KD, KH, KW]: the caller's, else the cheapest.

    It is "direct", "im2col" or "winograd".

    Raises
    ------
    ValueError
        The caller's choice does not compute this.

    Examples
    --------
    >>> same = Sampling(56, 56, 1, range(-1, 2))
    >>> contraction((1, 64, 1, 56, 56), (1, 64, 64, 1, 3, 3), (Sampling(1, 1, 1, range(1)), same, same), "float32")
    'winograd'
    """
    tiles = dtype in _TILED and winograd.computes(samplings)
    chosen = current_algorithm()
    if chosen == "winograd" and not tiles:
        raise ValueError(
            f"algorithm: 'winograd' computes no convolution of {dtype} with {tuple(weight[3:])} taps and steps "
            f"{tuple(s.step for s in samplings)}, expected float32 or 16 bits, three taps and stride 1"
        )
    if chosen is not None:
        return chosen
    return _cheapest(source[0], tuple(weight), tuple(samplings), tiles)


@lru_cache(maxsize=1024)  # 17 of the 75 us that a conv2d of 8 x 8 pixels took
def _cheapest(batch: int, weight: tuple[int, ...], samplings: tuple[Sampling, ...], tiles: bool) -> str:
    costs = {"im2col": _columns(batch, weight, samplings), "direct": _direct(batch, weight, samplings)}
    if tiles:
        costs["winograd"] = _winograd(batch, weight, samplings)
    return min(costs, key=costs.__getitem__)


def folds(geometry: ConvGeometry, batch: int, dtype: str) -> bool:
    """Whether a backward-input takes a product and a fold, which costs the fewer channels the image has.

    Examples
    --------
    >>> from gpucnn.geometry import Axis
    >>> from gpucnn.geometry.geometries import Channels
    >>> axis = Axis(224, 7, 2, low=3, high=3, out=112)
    >>> folds(ConvGeometry(2, Channels(3, 64), (Axis(1), axis, axis)), 1, "float32")
    True
    """
    return current_algorithm() not in ("direct", "winograd") and _fold_is_cheaper(geometry, batch, dtype)


@lru_cache(maxsize=1024)
def _fold_is_cheaper(geometry: ConvGeometry, batch: int, dtype: str) -> bool:
    if geometry.taps == 1:  # its columns are the gradient itself, the product is in place: 0.8 of a fold's time
        return False
    if any(axis.stride > axis.kernel for axis in geometry.axes):  # a fold has a phase for each step of the stride
        return False
    inputs, outputs, groups = geometry.channels
    outputs_each = prod(geometry.output_size)
    c, m = inputs // groups, outputs // groups
    products = -(-batch // folding.images_together(outputs_each))
    fold = c * geometry.taps * groups * (batch * outputs_each * (m * MULTIPLY + FOLD) + products * m * READ)
    gather = 0.0
    for residues in product(*(axis.backward for axis in geometry.axes)):
        samplings = tuple(residue.sampling for residue in residues)
        weight = (groups, c, m, *(len(sampling.offsets) for sampling in samplings))
        options = [_columns(batch, weight, samplings)]
        if dtype in _TILED and winograd.computes(samplings):
            options.append(_winograd(batch, weight, samplings))
        gather += min(options) + prod(weight) * SWAP
    return fold < gather


def _multiply(filters: int) -> float:
    """A multiply-add of a product with that many rows: with few of them BLAS does not reach its speed."""
    return MULTIPLY * (1 + 8 / filters)


def _columns(batch: int, weight: Sequence[int], samplings: Sequence[Sampling]) -> float:
    groups, filters, *depth = weight
    positions = batch * prod(sampling.targets for sampling in samplings)
    return float(positions * groups * prod(depth)) * (COPY + filters * _multiply(filters))


def _direct(batch: int, weight: Sequence[int], samplings: Sequence[Sampling]) -> float:
    groups, filters, channels, *taps = weight
    reached = prod(sum(tap.target.stop - tap.target.start for tap in axis.taps()) for axis in samplings)
    each = channels * COPY + filters * ADD + channels * filters * _multiply(filters)
    return float(batch * groups * reached) * each + groups * filters * channels * prod(taps) * PACK


def _winograd(batch: int, weight: Sequence[int], samplings: Sequence[Sampling]) -> float:
    groups, filters, channels, taps, *_ = weight
    depth, height, width = samplings
    tall = len(height.offsets) == 3
    tiles = float(batch * depth.targets)
    for sampling, high in ((height, tall), (width, True)):
        gap = abs(sampling.spacing) if high else 1
        each = -(-sampling.targets // gap)  # without dilation
        tiles *= gap * (-(-each // 2) + 1 if high else each)  # and one between rows and between images
    frequencies = 16 if tall else 4
    multiplies = frequencies * tiles * filters * channels * taps * _multiply(filters)
    transforms = frequencies / 4 * tiles * (channels * taps * TRANSFORM_IMAGE + filters * TRANSFORM_PRODUCTS)
    return groups * (multiplies + transforms + frequencies * filters * channels * taps * TRANSFORM_FILTER)
