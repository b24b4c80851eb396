"""Geometries and arrays for Hypothesis to draw: every form of padding, view and memory order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

FLOATS = ("float64", "float32", "float16", "bfloat16")
COMPLEX = ("complex128", "complex64")
INTEGERS = ("int64", "int32", "int8", "uint8")
ORDERS = ("contiguous", "channels_last", "strided", "reversed", "offset")


def dtype_of(name: str) -> np.dtype[Any]:
    """The dtype of this name, bfloat16 included."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """Random numbers of about unit size: small integers where the dtype holds these."""
    dtype = dtype_of(dtype) if isinstance(dtype, str) else np.dtype(dtype)
    if dtype.kind in "iu":
        return rng.integers(0 if dtype.kind == "u" else -4, 5, shape).astype(dtype)
    if dtype.kind == "c":
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def arranged(array: np.ndarray[Any, Any], order: str, batched: bool = True) -> np.ndarray[Any, Any]:
    """The same array as a view of another memory layout; `order` is one of ORDERS."""
    channel = 1 if batched else 0
    if order == "channels_last":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, channel, -1)), -1, channel)
    if order == "strided":  # every second element of a larger array, along the last axis
        larger = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
        larger[..., ::2] = array
        return larger[..., ::2]
    if order == "reversed":
        return np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    if order == "offset":  # the inner part of a larger array
        larger = np.zeros(tuple(size + 2 for size in array.shape), array.dtype)
        inner = (slice(1, -1),) * array.ndim
        larger[inner] = array
        return larger[inner]
    return array


@dataclass(frozen=True)
class Windows:
    """Spatial sizes and the windows that slide over them; every window fits."""

    rank: int
    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: Any


def extents(kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    """Inputs from each window's first tap to its last, both counted."""
    return tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))


@st.composite
def paddings(draw: st.DrawFn, most: tuple[int, ...], named: bool = True) -> Any:
    """Any form of padding; each number is at most `most` of its axis."""
    rank = len(most)
    forms = ["int", "ints", "pairs"] + (["valid", "same", "same_lower"] if named else [])
    form = draw(st.sampled_from(forms))
    if form == "int":
        return draw(st.integers(0, min(most)))
    if form == "ints":
        return tuple(draw(st.integers(0, limit)) for limit in most)
    if form == "pairs":
        return tuple((draw(st.integers(0, limit)), draw(st.integers(0, limit))) for limit in most)
    assert rank
    return form


@st.composite
def windows(
    draw: st.DrawFn, rank: int | None = None, largest: int = 9, within_window: bool = False, symmetric: bool = False
) -> Windows:
    """Windows whose extent fits the padded input, with stride, dilation and padding together.

    `within_window` keeps padding below the window's extent, as pooling asks for; `symmetric` draws only what PyTorch
    takes: an int, or one int per axis.
    """
    rank = draw(st.integers(1, 3)) if rank is None else rank
    most = largest if rank < 3 else min(largest, 6)
    kernel = tuple(draw(st.integers(1, 4 if rank < 3 else 3)) for _ in range(rank))
    stride = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    dilation = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    spans = extents(kernel, dilation)
    limits = tuple(span - 1 if within_window else 4 for span in spans)
    padding = draw(paddings(limits, named=not symmetric))
    if symmetric and isinstance(padding, tuple):
        padding = tuple(pair[0] if isinstance(pair, tuple) else pair for pair in padding)
    sizes = []
    for axis in range(rank):
        least = 1 if padding in ("same", "same_lower") else max(1, spans[axis] - sum(pair_of(padding, axis)))
        sizes.append(draw(st.integers(least, max(least, most))))
    return Windows(rank, tuple(sizes), kernel, stride, dilation, padding)


def pair_of(padding: Any, axis: int) -> tuple[int, int]:
    """(low, high) of an axis; ``"valid"`` and the like count as none."""
    if isinstance(padding, str):
        return 0, 0
    item = padding[axis] if isinstance(padding, tuple) else padding
    return item if isinstance(item, tuple) else (item, item)


IMPOSTORS = [True, 1.0, (1, True), (1.0, 1), [1, True], np.True_, np.float64(1)]
"""Arguments that equal 1 or (1, 1), and are refused where integers are asked for."""
