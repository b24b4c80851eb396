"""Performance targets of the GPU's kernels, and the distance of a run from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from benchmarks.results import Ratios, Row

COPY_SHARE = 0.85  # of the copy's rate, by memory-bound kernels, on arrays beyond the last-level cache
HOST_S = 8e-6  # for a call
HOST_OVER_RAW = 1.15  # times a raw launch


@dataclass(frozen=True)
class Target:
    """The least geometric mean of the quickest peer's time over ours, for the cases of some operations of a family."""

    name: str
    family: str
    operations: tuple[str, ...]
    ratio: float

    def holds(self, row: Row) -> bool:
        return row.record.family == self.family and row.record.operation in self.operations


TARGETS = (
    Target("depthwise convolution", "depthwise convolution", ("forward", "backward_input", "backward_weight"), 1.5),
    Target("norm backward", "normalization", ("backward",), 1.5),
    Target("norm forward", "normalization", ("forward", "training", "inference"), 1.0),
    Target("pooling", "pooling", ("forward", "backward"), 1.0),
    Target("layout", "layout", ("pack", "unpack"), 1.0),
    Target("im2col, col2im", "unfolding", ("im2col", "col2im"), 2.0),
)


@dataclass(frozen=True)
class Reached:
    """A target and the figures that a run's rows of one dtype reach; None where nothing was measured.

    `share` is of the copy's rate, over the cases beyond the last cache; `host_s` is the host's time for a call, and
    `host_ratio` that over a raw launch's.
    """

    target: Target
    dtype: str
    cases: int
    ratio: float | None
    share: float | None
    host_s: float | None
    host_ratio: float | None

    @property
    def met(self) -> dict[str, bool | None]:
        """Whether each figure meets its target."""
        return {
            "ratio": None if self.ratio is None else self.ratio >= self.target.ratio,
            "share": None if self.share is None else self.share >= COPY_SHARE,
            "host_s": None if self.host_s is None else self.host_s <= HOST_S,
            "host_ratio": None if self.host_ratio is None else self.host_ratio <= HOST_OVER_RAW,
        }


def reached(rows: Sequence[Row], cache_bytes: int) -> list[Reached]:
    """Every target that rows of one subject measure, for each dtype."""
    groups = {
        (target, dtype): [row for row in rows if row.record.dtype == dtype and target.holds(row)]
        for target, dtype in product(TARGETS, dict.fromkeys(row.record.dtype for row in rows))
    }
    return [
        Reached(
            *key,
            cases=len(own),
            ratio=_mean(row.ratio for row in own),
            share=_mean(row.share for row in own if row.record.least_bytes > cache_bytes),
            host_s=_mean(row.host.median for row in own if row.host),
            host_ratio=_mean(row.host_ratio for row in own),
        )
        for key, own in groups.items()
        if own
    ]


def _mean(values: Iterable[float | None]) -> float | None:
    ratios = Ratios.of(values)
    return ratios.mean if ratios else None
