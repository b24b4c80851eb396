"""Windows whose number is the caller's, drawn: as many as fit, or one more that overhangs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import reference
from hypothesis import strategies as st

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Covering:
    """A row of each axis: its size, its windows, and the padding at both ends."""

    sizes: Ints
    kernel: Ints
    stride: Ints
    pad: Ints
    dilation: Ints
    cover_all: bool

    @property
    def rank(self) -> int:
        return len(self.sizes)

    @property
    def outs(self) -> Ints:
        """The windows laid down one after the other, the last one beyond the padded end if it is to cover all."""
        counts = []
        for size, k, s, p, d in zip(self.sizes, self.kernel, self.stride, self.pad, self.dilation, strict=True):
            extent, end = d * (k - 1) + 1, size + p
            count = reference.count_windows(size, k, s, (p, p), d, False)
            is_covered = count > 0 and (count - 1) * s - p + extent == end
            counts.append(count if is_covered or not self.cover_all else count + 1)
        return tuple(counts)

    @property
    def loops(self) -> tuple[Ints, Any, Ints]:
        """Stride, pads and dilation for the oracle: so wide at the high end that there are `outs` windows."""
        pads = []
        for size, out, k, s, p, d in zip(
            self.sizes, self.outs, self.kernel, self.stride, self.pad, self.dilation, strict=True
        ):
            high = p
            while reference.count_windows(size, k, s, (p, high), d, False) < out:
                high += 1
            pads.append((p, high))
        return self.stride, pads, self.dilation


@st.composite
def coverings(draw: st.DrawFn, rank: int | None = None, pools: bool = False) -> Covering:
    """Windows that fit at least once; those that pool have less padding than taps, and no dilation."""
    rank = draw(st.integers(1, 3)) if rank is None else rank
    axes = []
    for _ in range(rank):
        k, s = draw(st.integers(1, 3)), draw(st.integers(1, 4))
        d = 1 if pools else draw(st.integers(1, 2))
        p = draw(st.integers(0, k - 1 if pools else 3))
        least = max(1, d * (k - 1) + 1 - 2 * p)
        axes.append((draw(st.integers(least, max(least, 7 if rank < 3 else 5))), k, s, p, d))
    return Covering(*map(tuple, zip(*axes, strict=True)), draw(st.booleans()))  # type: ignore[arg-type]
