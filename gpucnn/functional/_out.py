"""Checks of the `out` array that a caller passes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

Array = Any
MAX_WORK: Any = 10_000  # steps in search of an element that two arrays share; after them they are assumed to share one


def expect_writable(op: str, out: Array, others: Iterable[Array]) -> None:
    """Raise ValueError unless `out` is writable, its elements do not overlap, and it shares none with the others."""
    if not getattr(out.flags, "writeable", True):
        raise ValueError(f"{op}: out is read-only, expected an array that can be written to")
    if not out.size:
        return
    standing = _standing_for(out)
    if not standing.flags.aligned or any(step % out.itemsize for step in out.strides):
        raise ValueError(f"{op}: out has strides {out.strides}, expected its elements at multiples of their size")
    if not _are_apart(out):
        raise ValueError(f"{op}: out has strides {out.strides}, expected a place in memory for each element")
    if any(_share_memory(standing, _standing_for(other)) for other in others if other.size):
        raise ValueError(f"{op}: out shares memory with an argument, expected an array apart from them")


def _address(array: Array) -> int:
    """The address of an array's first element."""
    found: int = array.__array_interface__["data"][0] if isinstance(array, np.ndarray) else array.data.ptr
    return found


def _are_apart(array: Array) -> bool:
    """Whether each axis steps beyond the reach of all axes with smaller steps, so that no two elements overlap."""
    reach = 0
    for step, size in sorted((abs(step), size) for step, size in zip(array.strides, array.shape, strict=True)):
        if size > 1:
            if step <= reach:
                return False
            reach += step * (size - 1)
    return True


class _Place:
    """A stand-in with an array's memory bounds, for NumPy to compare."""

    def __init__(self, array: Array) -> None:
        grain = array.dtype if array.dtype.kind == "c" else np.dtype(f"u{array.itemsize}")
        self.__array_interface__ = {
            "version": 3,
            "shape": array.shape,
            "strides": array.strides,
            "typestr": grain.str,
            "data": (_address(array), True),
        }


def _standing_for(array: Array) -> np.ndarray[Any, Any]:
    """A NumPy array at the addresses of `array`, wherever its memory is: never to be read."""
    return np.asarray(_Place(array))


def _share_memory(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    try:
        return np.shares_memory(one, other, max_work=MAX_WORK)
    except np.exceptions.TooHardError:
        return True
