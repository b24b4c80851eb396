"""Pooling calls for Hypothesis to draw, and what the tests of pooling and of its ways back share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import reference
from hypothesis import strategies as st
from strategies import FLOATS, ORDERS, Windows, arranged, extents, numbers, windows

import gpucnn.functional as F

Array = np.ndarray[Any, Any]

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
ORDERED = (*FLOATS, *INTEGERS)
LEADS = ((2, 3), (1, 2), (2, 1), (3,), (1,), (0, 2))  # (N, C), or (C,) without a batch
CONTENTS = ("numbers", "ties", "NaN", "infinities")


def operation(name: str, rank: int, suffix: str = "") -> Callable[..., Any]:
    """The public function of a family: ``operation("max_pool", 2, "_backward")`` is ``max_pool2d_backward``."""
    function: Callable[..., Any] = getattr(F, f"{name}{rank}d{suffix}")
    return function


def content(x: Array, kind: str, rng: np.random.Generator) -> Array:
    """The numbers x, some of them made equal, NaN or infinite where the dtype can hold that."""
    if x.dtype.kind in "iuc" or kind == "numbers":
        return x
    if kind == "ties":
        return np.round(x)
    some = rng.random(x.shape) < 0.3
    odd = [np.nan, np.nan, np.inf, -np.inf] if kind == "NaN" else [np.inf, -np.inf, -np.inf]
    return np.where(some, rng.choice(odd, x.shape).astype(x.dtype), x)


@dataclass(frozen=True)
class Pool:
    """One call of a pooling: its input and its windows."""

    windows: Windows
    stride: tuple[int, ...] | None  # as the caller gives it
    ceil_mode: bool
    lead: tuple[int, ...]
    dtype: str
    order: str
    content: str
    seed: int

    @property
    def rank(self) -> int:
        return self.windows.rank

    @property
    def batched(self) -> bool:
        return len(self.lead) == 2

    @property
    def options(self) -> dict[str, Any]:
        """What every pooling is asked for."""
        w = self.windows
        return {
            "kernel_size": w.kernel,
            "stride": self.stride,
            "padding": w.padding,
            "dilation": w.dilation,
            "ceil_mode": self.ceil_mode,
        }

    @property
    def geometry(self) -> tuple[Any, ...]:
        """(kernel, stride, pads, dilation) for the oracle."""
        w = self.windows
        pads = reference.resolve_padding(w.padding, w.sizes, w.kernel, w.stride, w.dilation)
        return w.kernel, w.stride, pads, w.dilation

    def input(self) -> Array:
        rng = np.random.default_rng(self.seed)
        x = content(numbers(rng, (*self.lead, *self.windows.sizes), self.dtype), self.content, rng)
        return arranged(x, self.order, self.batched)

    def grad(self, shape: tuple[int, ...]) -> Array:
        """A gradient of the output, whose shape the oracle gives."""
        rng = np.random.default_rng(self.seed + 1)
        return arranged(numbers(rng, shape, self.dtype), self.order, self.batched)


@st.composite
def pools(draw: st.DrawFn, dtypes: tuple[str, ...], contents: tuple[str, ...] = ("numbers",), **kwargs: Any) -> Pool:
    """Pools of all ranks, paddings, layouts, with stride, dilation, padding and ceil_mode together."""
    drawn = draw(windows(within_window=True, **kwargs))
    return Pool(
        drawn,
        None if drawn.stride == drawn.kernel else drawn.stride,
        draw(st.booleans()),
        draw(st.sampled_from(LEADS)),
        draw(st.sampled_from(dtypes)),
        draw(st.sampled_from(ORDERS)),
        draw(st.sampled_from(contents)),
        draw(st.integers(0, 2**16)),
    )


@st.composite
def torch_pools(draw: st.DrawFn, kind: str, contents: tuple[str, ...] = ("numbers",)) -> Pool:
    """Pools of `kind` max, avg or lp that PyTorch takes: padding is one number for each axis, up to half the window."""
    rank = draw(st.integers(1, 3))
    axis = st.integers(1, 3)
    kernel = tuple(draw(st.integers(1, 4 if rank < 3 else 3)) for _ in range(rank))
    dilation = tuple(draw(axis) if kind == "max" else 1 for _ in range(rank))
    pads = tuple(draw(st.integers(0, 0 if kind == "lp" else size // 2)) for size in kernel)
    sizes = []
    for span, pad in zip(extents(kernel, dilation), pads, strict=True):
        # PyTorch's 3-d average wants an image as large as the window even where padding makes it fit
        least = span if rank == 3 and kind == "avg" else max(1, span - 2 * pad)
        sizes.append(draw(st.integers(least, least + (6 if rank < 3 else 3))))
    stride = draw(st.one_of(st.none(), st.tuples(*[axis] * rank)))
    return Pool(
        Windows(rank, tuple(sizes), kernel, kernel if stride is None else stride, dilation, pads),
        stride,
        draw(st.booleans()),
        draw(st.sampled_from(LEADS[:-1])),
        draw(st.sampled_from(("float64", "float32"))),
        "contiguous",
        draw(st.sampled_from(contents)),
        draw(st.integers(0, 2**16)),
    )


@dataclass(frozen=True)
class Adaptive:
    """One call of an adaptive pooling."""

    sizes: tuple[int, ...]
    output_size: Any  # as the caller gives it
    out: tuple[int, ...]
    lead: tuple[int, ...]
    dtype: str
    order: str
    content: str
    seed: int

    @property
    def rank(self) -> int:
        return len(self.sizes)

    @property
    def batched(self) -> bool:
        return len(self.lead) == 2

    def input(self) -> Array:
        rng = np.random.default_rng(self.seed)
        x = content(numbers(rng, (*self.lead, *self.sizes), self.dtype), self.content, rng)
        return arranged(x, self.order, self.batched)

    def grad(self) -> Array:
        rng = np.random.default_rng(self.seed + 1)
        return arranged(numbers(rng, (*self.lead, *self.out), self.dtype), self.order, self.batched)


@st.composite
def adaptives(draw: st.DrawFn, dtypes: tuple[str, ...], contents: tuple[str, ...] = ("numbers",)) -> Adaptive:
    """Adaptive pooling to fewer windows than there are inputs, and to more."""
    rank = draw(st.integers(1, 3))
    sizes = tuple(draw(st.integers(1, 8 if rank < 3 else 5)) for _ in range(rank))
    if draw(st.booleans()):
        output_size: Any = draw(st.one_of(st.none(), st.integers(1, 6)))
        wanted = (output_size,) * rank
    else:
        wanted = output_size = tuple(draw(st.one_of(st.none(), st.integers(1, 9))) for _ in range(rank))
    out = tuple(size if new is None else new for size, new in zip(sizes, wanted, strict=True))
    lead = draw(st.sampled_from(LEADS))
    fixed = (draw(st.sampled_from(dtypes)), draw(st.sampled_from(ORDERS)), draw(st.sampled_from(contents)))
    return Adaptive(sizes, output_size, out, lead, *fixed, draw(st.integers(0, 2**16)))


def of_batches(function: Callable[..., Any], batched: bool, *arrays: Array, **options: Any) -> Any:
    """The oracle's `function`, which takes batches only, on arrays that may have none."""
    result = function(*(array if batched else array[None] for array in arrays), **options)
    if batched:
        return result
    return tuple(item[0] for item in result) if isinstance(result, tuple) else result[0]


def as_tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def assert_same_bits(actual: Array | None, expected: Array | None) -> None:
    if actual is None or expected is None:
        assert actual is expected
        return
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    assert actual.tobytes() == expected.tobytes()
