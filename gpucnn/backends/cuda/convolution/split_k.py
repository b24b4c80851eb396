"""Split-K: the number of parts of a reduction, and the sum of the partial results."""

from __future__ import annotations

from math import gcd

from gpucnn.backends.cuda.device.limits import power_of_two
from gpucnn.backends.cuda.device.runtime import Array, Runtime
from gpucnn.backends.cuda.device.sources import Kernel
from gpucnn.backends.cuda.launch.plans import Layout, Work, launch

MAX_WEIGHT_THREADS = 128  # of a block of a backward weight
MAX_PART_VALUES = 1 << 24  # sums of parts that a backward weight keeps between its two kernels: 64 MiB of float32
WANTED_BLOCKS = 4096  # enough to fill any current device some ten times
MIN_RUN = 512  # positions below which a part is not worth a separate block


def weight_splits(weights: int, positions: int) -> int:
    """Number of split-K parts of a wgrad's sum over `positions`, for `weights` sums.

    Examples
    --------
    >>> weight_splits(weights=64 * 64 * 9, positions=8 * 56 * 56)  # filters enough to fill the device
    1
    >>> weight_splits(weights=64 * 9, positions=8 * 56 * 56)
    8
    """
    wanted = -(-WANTED_BLOCKS // max(1, weights))
    return max(1, min(wanted, positions // MIN_RUN, MAX_PART_VALUES // max(1, weights)))


def weight_block(run: int) -> int:
    """Threads of a block that sums `run` positions of a backward weight: a power of two, each with some to sum.

    Examples
    --------
    >>> weight_block(40), weight_block(500), weight_block(10**6)
    (32, 128, 128)
    """
    return min(max(32, power_of_two(run // 4)), MAX_WEIGHT_THREADS)


SUM_SPLITS = Kernel("sum_splits", "SumParams")


def add_parts(runtime: Runtime, parts: Array, total: Array) -> None:
    """Write total [*shape], in C order, as the sum of parts [splits, *shape] in their order."""
    launch(runtime, SUM_SPLITS, total.dtype, {"parts": parts, "total": total}, _work)


def _work(parts: Layout, total: Layout) -> Work:
    pack = min(gcd(array.alignment, total.size * array.itemsize) // array.itemsize or 1 for array in (parts, total))
    fields = {"splits": parts.shape[0], "weights": total.size}
    return Work(fields, total.size // pack, extents=(total.size + 256 * pack,), constants=(("PACK", pack),))
