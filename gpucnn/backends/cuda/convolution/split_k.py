"""The sum of parts that blocks or matrix products left behind."""

from __future__ import annotations

from math import gcd

from gpucnn.backends.cuda.device.runtime import MOST_BYTES, Array, Runtime
from gpucnn.backends.cuda.device.sources import Kernel
from gpucnn.backends.cuda.launch.plans import Layout, Work, launch

SUM_SPLITS = Kernel("sum_splits", "SumParams")


def add_parts(runtime: Runtime, parts: Array, total: Array) -> None:
    """Write total [*shape], in C order, as the sum of parts [splits, *shape] in their order."""
    launch(runtime, SUM_SPLITS, total.dtype, {"parts": parts, "total": total}, _work)


def _work(parts: Layout, total: Layout) -> Work:
    pack = min(
        gcd(MOST_BYTES, array.alignment, total.size * array.itemsize) // array.itemsize or 1 for array in (parts, total)
    )
    pack = min(pack, MOST_BYTES // parts.itemsize)
    fields = {"splits": parts.shape[0], "weights": total.size}
    return Work(fields, total.size // pack, extents=(total.size + 256 * pack,), constants=(("PACK", pack),))
