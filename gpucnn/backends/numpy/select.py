"""Choice of a convolution's algorithm in NumPy: pure functions of sizes, by estimated cost.

Costs are nanoseconds of one core, as measured on a server with AVX-512; only their ratios matter, and those are much
the same elsewhere. The number of threads does not count: results must not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import prod

from gpucnn.geometry import ConvGeometry, Sampling

Ints = tuple[int, ...]

ALGORITHMS = ("direct", "im2col")  # that a caller may choose
MIN_LANES, MIN_TAPS = 96, 5  # of a depthwise convolution: 3 channels of 512 x 512 took im2col a twentieth of the time
MULTIPLY = 0.02  # a multiply-add of a large matrix product
COPY = 0.14  # of a number into columns
PACK = 2.0  # a weight to matrices of single taps
SWAP = 1.5  # a weight of a backward, whose matrix is a transposed copy
ADD = 0.35  # a number of a product to a sum
FOLD = 1.0  # a number of a column to an image


@lru_cache(maxsize=1024)
def algorithm(direction: str, geometry: ConvGeometry, batch: int, chosen: str | None = None) -> str:
    """The algorithm of a convolution: the one `chosen` by the caller, else the cheapest of those that compute it.

    It is "direct", "im2col", "fold" (a product and a fold, of a backward-input) or "depthwise". A backward-input that
    is no fold is a contraction for each stride residue, and `contraction` chooses for each: the answer here is that of
    the residue with the most multiply-adds. `direction` is "forward", "backward_input" or "backward_weight".

    Raises
    ------
    ValueError
        The caller's choice is no algorithm of NumPy.

    Examples
    --------
    >>> from gpucnn.geometry import Axis
    >>> from gpucnn.geometry.geometries import Channels
    >>> axis = Axis(224, 7, 2, low=3, high=3, out=112)
    >>> stem = ConvGeometry(2, Channels(3, 64), (Axis(1), axis, axis))
    >>> [algorithm(direction, stem, 1) for direction in ("forward", "backward_input")]
    ['im2col', 'fold']
    """
    if chosen not in (None, *ALGORITHMS):
        raise ValueError(f"algorithm: {chosen!r} is not computed by NumPy, expected 'direct' or 'im2col'")
    parts = contractions(direction, geometry)
    if direction == "backward_weight":
        return chosen or ("depthwise" if _is_depthwise(batch, parts[0][0]) else "im2col")
    if direction == "backward_input" and chosen != "direct" and _folds(geometry, batch, chosen):
        return "fold"
    names = [contraction(batch, *part, chosen) for part in parts]
    work = [prod(weight) * prod(axis.targets for axis in samplings) for weight, samplings in parts]
    return names[work.index(max(work))] if parts else "direct"  # no tap reaches any input: nothing is computed


@lru_cache(maxsize=1024)  # 17 of the 75 us that a conv2d of 8 x 8 pixels took
def contraction(batch: int, weight: Ints, samplings: tuple[Sampling, ...], chosen: str | None = None) -> str:
    """The algorithm of one contraction: a forward, or the part of a backward-input that is one stride residue.

    weight [G, M, C, KD, KH, KW] as a shape; `samplings` along (D, H, W). It is never "fold".

    Examples
    --------
    >>> same = Sampling(56, 56, 1, range(-1, 2))
    >>> contraction(1, (1, 64, 64, 1, 3, 3), (Sampling(1, 1, 1, range(1)), same, same))
    'im2col'
    """
    if chosen is not None:
        return chosen
    if _is_depthwise(batch, weight):
        return "depthwise"
    return "im2col" if _columns(batch, weight, samplings) <= _direct(batch, weight, samplings) else "direct"


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


def _is_depthwise(batch: int, weight: Ints) -> bool:
    """Whether groups have one channel and one filter, with enough of both lanes and taps to pay for images' copies."""
    return weight[1:3] == (1, 1) and batch * weight[0] >= MIN_LANES and prod(weight[3:]) >= MIN_TAPS


# --- Costs ----------------------------------------------------------------------------------------------------------


def costs(direction: str, geometry: ConvGeometry, batch: int) -> dict[str, float | None]:
    """The algorithms that compute a convolution, and nanoseconds of one core for each; None where no model applies.

    Wgrad is costed as the forward, whose copies and multiply-adds it has.
    """
    parts = contractions(direction, geometry)
    swap = sum(prod(weight) for weight, _ in parts) * SWAP if direction == "backward_input" else 0.0
    found: dict[str, float | None] = {
        "direct": swap + sum(_direct(batch, *part) for part in parts),
        "im2col": swap + sum(_columns(batch, *part) for part in parts),
    }
    if direction == "backward_input" and geometry.taps > 1:
        found["fold"] = _fold(geometry, batch)
    if any(_is_depthwise(batch, weight) for weight, _ in parts):
        found["depthwise"] = None
    return found


def _folds(geometry: ConvGeometry, batch: int, chosen: str | None) -> bool:
    """Whether dgrad is computed as GEMM and fold, which is cheaper the fewer channels the image has.

    The columns of one tap are the gradient itself, whose product in place takes 0.8 of a fold's time.
    """
    parts = contractions("backward_input", geometry)
    if geometry.taps == 1 or (chosen is None and any(_is_depthwise(batch, weight) for weight, _ in parts)):
        return False
    return _fold(geometry, batch) < sum(_columns(batch, *part) + prod(part[0]) * SWAP for part in parts)


def _fold(geometry: ConvGeometry, batch: int) -> float:
    inputs, outputs, groups = geometry.channels
    products = batch * prod(geometry.output_size) * inputs * geometry.taps
    return float(products) * (outputs // groups * MULTIPLY + FOLD)


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
