"""The sum of parts that blocks or matrix products left behind."""

from __future__ import annotations

from gpucnn.backends.cuda.launching import Layout, Work, launch
from gpucnn.backends.cuda.runtime import Array, Runtime
from gpucnn.backends.cuda.sources import Kernel

SUM_SPLITS = Kernel("sum_splits", "SumParams")


def add_parts(runtime: Runtime, parts: Array, total: Array) -> None:
    """Write total [*shape], in C order, as the sum of parts [splits, *shape] in their order."""
    launch(runtime, SUM_SPLITS, total.dtype, (parts, total), _work)


def _work(parts: Layout, total: Layout) -> Work:
    return Work({"splits": parts.shape[0], "weights": total.size}, total.size)
