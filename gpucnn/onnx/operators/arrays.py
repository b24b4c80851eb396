"""Small helpers that operators of several families use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import numpy as np

from gpucnn.backends import backend_of
from gpucnn.onnx.errors import ModelError

Array = Any

LARGEST = 2**40  # bytes; beyond it a shape is damaged


def namespace(array: Array) -> Any:
    """The functions of the library that `array` belongs to."""
    return np if isinstance(array, np.ndarray) else backend_of(array).xp


def written(result: Array, out: Array | None) -> Array:
    """A result, copied to `out` where that is given."""
    if out is None:
        return result
    out[...] = result
    return out


def axis_of(axis: int, rank: int) -> int:
    """A possibly negative axis as one of ``range(rank)``.

    Raises
    ------
    ValueError
        There is no such axis.
    """
    if not -rank <= axis < max(rank, 1):
        raise ValueError(f"axis is {axis}, expected one of {rank} axes")
    return axis % rank if rank else 0


def axes_of(axes: Iterable[int], rank: int) -> tuple[int, ...]:
    """Axes as `axis_of`, each once."""
    found = tuple(axis_of(int(axis), rank) for axis in axes)
    if len(set(found)) < len(found):
        raise ValueError(f"axes are {found}, expected each of them once")
    return found


def ints(values: Any) -> list[int]:
    """The numbers of an array without axes or with one."""
    return [int(value) for value in np.asarray(values).ravel().tolist()]


def pairs(pads: Sequence[int]) -> list[tuple[int, int]]:
    """ONNX's pads, all low ends and then all high ends, as a (low, high) pair for each axis."""
    half = len(pads) // 2
    if len(pads) != 2 * half:
        raise ValueError(f"pads have {len(pads)} values, expected two for each axis")
    return list(zip(pads[:half], pads[half:], strict=True))


def checked(shape: list[int], dtype: np.dtype[Any]) -> tuple[int, ...]:
    """The shape of a new array.

    Raises
    ------
    ModelError
        A size is negative, or the array would be beyond any memory.
    """
    if min(shape, default=0) < 0 or prod(shape) * dtype.itemsize > LARGEST:
        raise ModelError(f"the shape is {shape}, expected sizes of at least 0 and at most {LARGEST} bytes")
    return tuple(shape)
