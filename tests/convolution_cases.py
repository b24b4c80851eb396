"""Convolutions for Hypothesis to draw, and what the tests of convolution, unfolding and their relatives share."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import strategies as st
from strategies import ORDERS, Windows, arranged, numbers, windows

import gpucnn.functional as F

Array = np.ndarray[Any, Any]
KIB, MIB = 1 << 10, 1 << 20
LAYOUTS = ("contiguous", "channels_last")
# channels of input and output and groups: dense, several channels per group, depthwise, with a channel multiplier,
# and depthwise the other way round, each group summed to one output
CHANNELS = [(1, 1, 1), (3, 4, 1), (4, 6, 2), (4, 4, 4), (3, 6, 3), (6, 3, 3)]


@dataclass(frozen=True)
class Layer:
    """A drawn convolution."""

    windows: Windows
    batch: int | None  # None for an image without a batch axis
    channels: tuple[int, int, int]
    dtype: str = "float64"
    orders: tuple[str, str, str] = ("contiguous",) * 3  # of the image, the filters and the output's gradient

    @property
    def options(self) -> dict[str, Any]:
        """As the public functions take them."""
        w = self.windows
        return {"stride": w.stride, "padding": w.padding, "dilation": w.dilation, "groups": self.channels[2]}

    @property
    def loops(self) -> tuple[Any, ...]:
        """The same, as the oracle takes them."""
        w = self.windows
        pads = reference.resolve_padding(w.padding, w.sizes, w.kernel, w.stride, w.dilation)
        return w.stride, pads, w.dilation, self.channels[2]

    @property
    def output_size(self) -> tuple[int, ...]:
        return reference.output_size(self.windows.sizes, self.windows.kernel, *self.loops[:3])

    def op(self, suffix: str = "") -> Callable[..., Any]:
        return getattr(F, f"conv{self.windows.rank}d{suffix}")

    def arrays(self) -> tuple[Array, Array, Array, Array]:
        """Image, filters, bias and gradient of the output."""
        rng = np.random.default_rng(1)
        inputs, outputs, groups = self.channels
        batch = () if self.batch is None else (self.batch,)
        image = numbers(rng, (*batch, inputs, *self.windows.sizes), self.dtype)
        filters = numbers(rng, (outputs, inputs // groups, *self.windows.kernel), self.dtype)
        bias = numbers(rng, (outputs,), self.dtype)
        grad = numbers(rng, (*batch, outputs, *self.output_size), self.dtype)
        batched = (self.batch is not None, True, self.batch is not None)
        views = (arranged(*each) for each in zip((image, filters, grad), self.orders, batched, strict=True))
        x, w, g = views
        return x, w, bias, g

    def with_batch(self, array: Array) -> Array:
        return array[None] if self.batch is None else array

    def without(self, array: Array) -> Array:
        return array[0] if self.batch is None else array


@st.composite
def layers(
    draw: st.DrawFn,
    dtypes: tuple[str, ...],
    most: int = 3000,
    kind: type[Layer] = Layer,
    channels: list[tuple[int, int, int]] = CHANNELS,
    **kwargs: Any,
) -> Any:
    """A layer of at most `most` products per pair of channels and image."""

    def small(w: Windows) -> bool:
        return prod(Layer(w, None, (1, 1, 1)).output_size) * prod(w.kernel) <= most

    return kind(
        draw(windows(**kwargs).filter(small)),
        draw(st.sampled_from([None, 0, 1, 2, 3])),
        draw(st.sampled_from(channels)),
        draw(st.sampled_from(dtypes)),
        draw(st.tuples(*(st.sampled_from(ORDERS),) * 3)),
    )


def frozen(*arrays: Array) -> None:
    """From here on, whoever writes into one of these fails."""
    for array in arrays:
        array.flags.writeable = False


def bits(results: Any) -> list[Any]:
    """What two results have in common if and only if they are equal to the last bit."""
    results = results if isinstance(results, tuple) else (results,)
    return [None if array is None else (array.dtype, array.shape, array.tobytes()) for array in results]


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh memory holds NaN (or 77), never zeros by luck: what is read before it is written shows."""
    empty, empty_like = np.empty, np.empty_like

    def poisoned(array: Array) -> Array:
        array[...] = 77 if array.dtype.kind in "iu" else np.nan
        return array

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "empty", lambda *args, **kwargs: poisoned(empty(*args, **kwargs)))
        patch.setattr(np, "empty_like", lambda *args, **kwargs: poisoned(empty_like(*args, **kwargs)))
        yield


def held(operation: Callable[..., Array], *args: Any, **kwargs: Any) -> int:
    """Most bytes that a call holds at once beside its result and the arrays it is given; NumPy's only."""
    tracemalloc.start()
    try:
        result = operation(*args, **kwargs)
        return tracemalloc.get_traced_memory()[1] - result.nbytes
    finally:
        tracemalloc.stop()


def plane(rows: Any) -> Array:
    """Rows as an image of one channel."""
    return np.array(rows, np.float64)[None, None]
