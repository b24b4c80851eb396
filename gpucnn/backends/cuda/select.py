"""Which algorithm and how much of it: pure functions of sizes, so that a result never depends on the device."""

from __future__ import annotations

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
