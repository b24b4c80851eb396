"""Choice of a convolution's algorithm on the CPU: pure functions of sizes, by estimated cost.

Costs are nanoseconds of one core, as measured on a server with AVX-512; only their ratios matter, and those are much
the same elsewhere. The number of threads does not count: results must not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import prod

from gpucnn.backends.dtypes import LINEAR
from gpucnn.backends.numpy import folding, winograd
from gpucnn.geometry import ConvGeometry, Sampling

Ints = tuple[int, ...]

MULTIPLY = 0.02  # a multiply-add of a large matrix product
COPY = 0.14  # of a number into columns
PACK = 2.0  # a weight to matrices of single taps
READ = 0.3  # a weight of a product with few positions, from memory
SWAP = 1.5  # a weight of a backward, whose matrix is a transposed copy
ADD = 0.35  # a number of a product to a sum
FOLD = 1.0  # a number of a column to an image
TRANSFORM_IMAGE, TRANSFORM_PRODUCTS = 4.0, 2.6  # a pixel of a channel: Winograd transform, and back
TRANSFORM_FILTER = 1.1  # a frequency of a filter
PART = 4e4  # the Python of one of the parts into which a dilation cuts an image

MAX_CHANNELS = 16  # of a small group, on either side
MAX_ROWS = 16  # of a band
MIN_PLANE = 150  # outputs of a depthwise plane; smaller ones have their channels innermost

_TILED = frozenset({"float32", "float16", "bfloat16"})  # float64 is used where rounding matters


@lru_cache(maxsize=1024)
def algorithm(
    direction: str, geometry: ConvGeometry, batch: int, dtype: str, channels_last: bool, chosen: str | None = None
) -> str:
    """The algorithm of a convolution: the one `chosen` by the caller, else the cheapest of those that compute it.

    It is "direct", "im2col", "winograd", "fold" (a product and a fold, of a backward-input), "depthwise" or "grouped".
    A backward-input that is no fold is a contraction for each stride residue, and `contraction` chooses for each: the
    answer here is that of the residue with the most multiply-adds.

    `direction` is "forward", "backward_input" or "backward_weight"; `channels_last` is the memory order of what is
    read: of the output's gradient in a backward-input, else of the input.

    Raises
    ------
    ValueError
        The caller's choice does not compute this.

    Examples
    --------
    >>> from gpucnn.geometry import Axis
    >>> from gpucnn.geometry.geometries import Channels
    >>> axis = Axis(224, 7, 2, low=3, high=3, out=112)
    >>> stem = ConvGeometry(2, Channels(3, 64), (Axis(1), axis, axis))
    >>> [algorithm(direction, stem, 1, "float32", False) for direction in ("forward", "backward_input")]
    ['im2col', 'fold']
    """
    if chosen == "implicit_gemm":
        raise ValueError("algorithm: 'implicit_gemm' is not computed on the CPU, expected 'direct' or 'im2col'")
    if direction == "backward_weight":
        return _of_weight(geometry, dtype, chosen)
    if direction == "backward_input" and chosen in (None, "im2col") and _folds(geometry, batch, dtype, chosen):
        return "fold"
    parts = contractions(direction, geometry)
    names = [contraction(batch, *part, dtype, channels_last, chosen) for part in parts]
    work = [prod(weight) * prod(axis.targets for axis in samplings) for weight, samplings in parts]
    return names[work.index(max(work))] if parts else "direct"  # no tap reaches any input: nothing is computed


def _of_weight(geometry: ConvGeometry, dtype: str, chosen: str | None) -> str:
    if chosen == "winograd":
        raise ValueError("algorithm: 'winograd' computes no backward weight convolution, expected 'direct' or 'im2col'")
    if chosen is not None:
        return chosen
    ((weight, samplings),) = contractions("backward_weight", geometry)
    if is_depthwise(*weight[:3]):
        return "depthwise"
    return "grouped" if _takes_bands(weight, samplings, dtype) else "im2col"


@lru_cache(maxsize=1024)  # 17 of the 75 us that a conv2d of 8 x 8 pixels took
def contraction(
    batch: int,
    weight: Ints,
    samplings: tuple[Sampling, ...],
    dtype: str,
    channels_last: bool,
    chosen: str | None = None,
) -> str:
    """The algorithm of one contraction: a forward, or the part of a backward-input that is one stride residue.

    weight [G, M, C, KD, KH, KW] as a shape; `samplings` along (D, H, W). It is never "fold".

    Raises
    ------
    ValueError
        The caller's choice does not compute this.

    Examples
    --------
    >>> same = Sampling(56, 56, 1, range(-1, 2))
    >>> contraction(1, (1, 64, 64, 1, 3, 3), (Sampling(1, 1, 1, range(1)), same, same), "float32", False)
    'winograd'
    """
    tiles = _takes_tiles(samplings, dtype)
    if chosen == "winograd" and not tiles:
        raise ValueError(
            f"algorithm: 'winograd' computes no convolution of {dtype} with {weight[3:]} taps and steps "
            f"{tuple(s.step for s in samplings)}, expected float32 or 16 bits, three taps and stride 1"
        )
    if chosen is not None:
        return chosen
    bands = _takes_bands(weight, samplings, dtype)
    if is_depthwise(*weight[:3]):
        innermost = channels_innermost(channels_last, samplings[1].targets * samplings[2].targets)
        return "grouped" if bands and not innermost else "depthwise"
    if bands:
        return "grouped"
    costs = {"im2col": _columns, "direct": _direct} | ({"winograd": _winograd} if tiles else {})
    return min(costs, key=lambda name: costs[name](batch, weight, samplings))


def contractions(direction: str, geometry: ConvGeometry) -> list[tuple[Ints, tuple[Sampling, ...]]]:
    """The contractions, weight [G, M, C, KD, KH, KW] and samplings, that a forward or a backward-input is."""
    inputs, outputs, groups = geometry.channels
    if direction != "backward_input":
        return [((groups, outputs // groups, inputs // groups, *geometry.kernel_size), geometry.forward)]
    parts = []
    for residues in product(*(axis.backward for axis in geometry.axes)):
        samplings = tuple(residue.sampling for residue in residues)
        taps = tuple(len(sampling.offsets) for sampling in samplings)
        parts.append(((groups, inputs // groups, outputs // groups, *taps), samplings))
    return parts


# --- Which algorithms compute a convolution -------------------------------------------------------------------------


def is_depthwise(groups: int, filters: int, channels: int) -> bool:
    """Whether groups have one channel on either side: filters that read one, or one that feeds a group's filter.

    Examples
    --------
    >>> is_depthwise(96, 1, 1), is_depthwise(96, 2, 1), is_depthwise(32, 4, 4), is_depthwise(1, 1, 1)
    (True, True, False, False)
    """
    return groups > 1 and 1 in (filters, channels)


def channels_innermost(channels_last: bool, plane: int) -> bool:
    """Whether a depthwise convolution has its channels innermost: they are in memory, or planes are small."""
    return channels_last or plane < MIN_PLANE


def _takes_tiles(samplings: Sequence[Sampling], dtype: str) -> bool:
    return dtype in _TILED and winograd.computes(samplings)


def _takes_bands(weight: Ints, samplings: Sequence[Sampling], dtype: str) -> bool:
    """Whether groups are small, BLAS has the dtype, and taps are dense enough that bands are mostly read."""
    if weight[0] == 1 or max(weight[1:3]) > MAX_CHANNELS or dtype not in LINEAR:
        return False
    depth, height, width = samplings
    near = all(reach(axis) <= 4 * len(axis.offsets) for axis in (depth, height))
    return near and reach(width) <= width.targets * width.step + 16


def _takes_fold(geometry: ConvGeometry) -> bool:
    """Whether a fold is worth considering.

    The columns of one tap are the gradient itself, whose product in place takes 0.8 of a fold's time; where strides are
    longer than the window, a fold has a phase for each step of them.
    """
    return geometry.taps > 1 and all(axis.stride <= axis.kernel for axis in geometry.axes)


def reach(sampling: Sampling) -> int:
    """Positions from the first that a target reads to the last, both counted."""
    return sampling.most - sampling.least + 1


def band(height: Sampling, rows: int) -> int:
    """Rows that a band of `rows` outputs reads."""
    return (rows - 1) * height.step + reach(height)


@lru_cache(maxsize=256)
def band_rows(filters: int, channels: int, samplings: tuple[Sampling, ...]) -> int:
    """The fastest number of rows in a band: more rows multiply more zeros, and copy less.

    0 stands for ordinary im2col, where one GEMM computes all rows of a piece.
    """
    return min(_band_choices(samplings[1]), key=lambda rows: _band_cost(rows, filters, channels, samplings))


def _band_choices(height: Sampling) -> range:
    return range(0 if height.step == 1 else 1, min(MAX_ROWS, height.targets) + 1)


def _band_cost(rows: int, filters: int, channels: int, samplings: Sequence[Sampling]) -> float:
    """Nanoseconds for a column of the output.

    0.13 for each number copied, 0.02 for a multiply-add, more where the product has few rows, and 40 for a product.
    """
    depth, height, width = samplings
    of_product = max(rows, 1) * filters
    tall = band(height, rows) if rows else len(height.offsets)
    read = channels * len(depth.offsets) * len(width.offsets) * tall
    each = read * (0.13 / of_product + 0.02 * (1 + 3.5 / of_product))
    if rows == 0:  # results have gaps between rows, and are copied
        return (each + 0.15) * height.targets
    return (each + 40 / (of_product * width.targets)) * -(-height.targets // rows) * rows  # the last may stick out


# --- Their costs ----------------------------------------------------------------------------------------------------


def costs(direction: str, geometry: ConvGeometry, batch: int, dtype: str) -> dict[str, float | None]:
    """The algorithms that compute a convolution, and nanoseconds of one core for each; None where no model applies.

    Stride residues that an algorithm does not compute are costed as im2col; wgrad as the forward, whose copies and
    multiply-adds it has.
    """
    parts = contractions(direction, geometry)
    swap = sum(prod(weight) for weight, _ in parts) * SWAP if direction == "backward_input" else 0.0
    found: dict[str, float | None] = {
        "direct": swap + sum(_direct(batch, *part) for part in parts),
        "im2col": swap + sum(_columns(batch, *part) for part in parts),
    }
    if direction == "backward_input" and _takes_fold(geometry):
        found["fold"] = _fold(geometry, batch)
    tiles = [_takes_tiles(samplings, dtype) for _, samplings in parts]
    if any(tiles) and direction != "backward_weight":
        each = [_winograd if takes else _columns for takes in tiles]
        found["winograd"] = swap + sum(cost(batch, *part) for cost, part in zip(each, parts, strict=True))
    bands = [_takes_bands(weight, samplings, dtype) for weight, samplings in parts]
    if any(bands):
        each = [_bands if takes else _columns for takes in bands]
        found["grouped"] = sum(cost(batch, *part) for cost, part in zip(each, parts, strict=True))
    if parts and is_depthwise(*parts[0][0][:3]):
        found["depthwise"] = None
    return found


def _bands(batch: int, weight: Sequence[int], samplings: Sequence[Sampling]) -> float:
    groups, filters, channels, *_ = weight
    columns = batch * groups * filters * samplings[0].targets * samplings[2].targets
    rows = _band_choices(samplings[1])
    return columns * min(_band_cost(count, filters, channels, samplings) for count in rows)


def _folds(geometry: ConvGeometry, batch: int, dtype: str, chosen: str | None) -> bool:
    """Whether dgrad is computed as GEMM and fold, which is cheaper the fewer channels the image has."""
    inputs, outputs, groups = geometry.channels
    if chosen is None and is_depthwise(groups, outputs // groups, inputs // groups):
        return False
    if not _takes_fold(geometry):
        return False
    gather = 0.0
    for weight, samplings in contractions("backward_input", geometry):
        options = [_columns(batch, weight, samplings)]
        if _takes_tiles(samplings, dtype):
            options.append(_winograd(batch, weight, samplings))
        gather += min(options) + prod(weight) * SWAP
    return _fold(geometry, batch) < gather


def _fold(geometry: ConvGeometry, batch: int) -> float:
    inputs, outputs, groups = geometry.channels
    outputs_each = prod(geometry.output_size)
    c, m = inputs // groups, outputs // groups
    products = -(-batch // folding.images_together(outputs_each))
    return c * geometry.taps * groups * (batch * outputs_each * (m * MULTIPLY + FOLD) + products * m * READ)


def _multiply(filters: int) -> float:
    """Cost of a multiply-add in a product with `filters` rows: with few rows BLAS is below its peak."""
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
    tiles, parts = float(batch * depth.targets), 1
    for sampling, high in ((height, tall), (width, True)):
        gap = abs(sampling.spacing) if high else 1
        each = -(-sampling.targets // gap)  # without dilation
        parts *= min(gap, sampling.targets)
        tiles *= gap * (-(-each // 2) + 1 if high else each)  # and one between rows and between images
    frequencies = 16 if tall else 4
    multiplies = frequencies * tiles * filters * channels * taps * _multiply(filters)
    transforms = frequencies / 4 * tiles * (channels * taps * TRANSFORM_IMAGE + filters * TRANSFORM_PRODUCTS)
    transforms += frequencies * filters * channels * taps * TRANSFORM_FILTER
    return groups * (multiplies + transforms + (parts - 1) * PART)
