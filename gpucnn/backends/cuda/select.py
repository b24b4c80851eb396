"""Which algorithm and how much of it: pure functions of sizes, so that a result never depends on the device.

A kernel that has passed on no device is never chosen by itself, the plain direct and im2col ones excepted.
"""

from __future__ import annotations

from math import prod

from gpucnn.geometry import ConvGeometry
from gpucnn.numerics import current_algorithm

MOST_WEIGHT_THREADS = 128  # of a block of a backward weight
WORKSPACE_BYTES = 256 << 20  # columns, or products, that a convolution by im2col holds at once
MOST_PART_VALUES = 1 << 24  # sums of parts that a backward weight keeps between its two kernels: 64 MiB of float32
WANTED_BLOCKS = 4096  # enough to fill any device of today some ten times
LEAST_RUN = 512  # positions below which a part is not worth a block of its own


def weight_splits(weights: int, positions: int) -> int:
    """Into how many parts a backward weight cuts its sum over `positions`, for `weights` sums.

    Examples
    --------
    >>> weight_splits(weights=64 * 64 * 9, positions=8 * 56 * 56)  # filters enough to fill the device
    1
    >>> weight_splits(weights=64 * 9, positions=8 * 56 * 56)
    8
    """
    wanted = -(-WANTED_BLOCKS // max(1, weights))
    return max(1, min(wanted, positions // LEAST_RUN, MOST_PART_VALUES // max(1, weights)))


def weight_block(run: int) -> int:
    """Threads of a block that sums `run` positions of a backward weight: a power of two, each with some to sum.

    Examples
    --------
    >>> weight_block(40), weight_block(500), weight_block(10**6)
    (32, 128, 128)
    """
    return min(max(32, power_of_two(run // 4)), MOST_WEIGHT_THREADS)


def convolution(direction: str, geometry: ConvGeometry, dtype: str) -> str:
    """The algorithm of a convolution, ``"direct"`` or ``"im2col"``: the caller's choice, else by its size.

    `direction` is "forward", "backward_input" or "backward_weight".

    Raises
    ------
    ValueError
        The caller's choice does not compute this.
    """
    chosen = current_algorithm()
    if chosen not in (None, "direct", "im2col"):
        raise ValueError(f"algorithm: {chosen!r} is not computed on a GPU, expected 'direct' or 'im2col'")
    if chosen == "im2col" and dtype not in _PRODUCTS[direction]:
        raise ValueError(
            f"algorithm: 'im2col' computes no {direction.replace('_', ' ')} convolution of {dtype}, expected 'direct'"
        )
    if chosen is not None:
        return chosen
    return "im2col" if dtype in _PRODUCTS[direction] and _fills_a_product(geometry) else "direct"


# Between product and fold, or between images, sums would be rounded to 16 bits: those stay with the direct kernels.
_WIDE = frozenset({"float32", "float64", "complex64", "complex128"})
_PRODUCTS = {"forward": _WIDE | {"float16"}, "backward_input": _WIDE, "backward_weight": _WIDE}


def _fills_a_product(geometry: ConvGeometry) -> bool:
    """Whether the matrix product of one image and group is large enough to be worth its columns."""
    c, oc, groups = geometry.channels
    return c // groups * geometry.taps >= 32 and oc // groups >= 16 and prod(geometry.output_size) >= 16


def images_at_once(image_bytes: int) -> int:
    """How many images are computed at once, each of which takes `image_bytes` of workspace."""
    return max(1, WORKSPACE_BYTES // max(1, image_bytes))


# --- Norms ----------------------------------------------------------------------------------------------------------

LEAST_PART = 4096  # values below which a part of a norm's sum is not worth a block of its own


def norm_splits(blocks: int, values: int) -> int:
    """Into how many parts each of the sums of a norm is cut that takes `blocks` blocks of `values` each.

    Examples
    --------
    >>> norm_splits(blocks=3, values=64 * 224 * 224)  # batch norm of an RGB image
    784
    >>> norm_splits(blocks=8192, values=768)  # layer norm
    1
    """
    return max(1, min(-(-WANTED_BLOCKS // max(1, blocks)), values // LEAST_PART))


def norm_block(values: int) -> int:
    """The threads of a block that sums `values`: some four values each, a power of two.

    Examples
    --------
    >>> norm_block(values=96), norm_block(values=768), norm_block(values=100_000)
    (32, 256, 256)
    """
    return max(32, min(256, power_of_two(-(-values // 4))))


def power_of_two(least: int) -> int:
    """The first power of two that is not below `least`."""
    return 1 << max(0, least - 1).bit_length()
