"""Arrays of a call as their backend's own, with checks that name the caller's arguments."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from gpucnn.backends import Backend, receive
from gpucnn.backends.dtypes import accumulator

Array = Any
NONE: Mapping[str, frozenset[str]] = {}


class Taken(NamedTuple):
    """Arrays as their backend's own, None where one was left out, and the way back for results."""

    backend: Backend
    arrays: list[Array]
    give_back: Callable[[Any], Any]


def taken(
    op: str,
    arrays: Mapping[str, Array | None],
    dtypes: frozenset[str],
    optional: Collection[str] = (),
    apart: Mapping[str, frozenset[str]] = NONE,
) -> Taken:
    """Take arrays of one of `dtypes`, and those `apart` of any of the dtypes given for them.

    The `optional` ones may be None. A bias called "b" of 16-bit arrays may be float32.

    Raises
    ------
    TypeError
        An argument is no array, arrays are of two kinds or on two devices, or a dtype is another.
    """
    for name, array in arrays.items():
        if array is None and name not in optional:
            raise TypeError(f"{op}: {name} is None, expected an array")
    received = Taken(*receive(op, arrays))
    first, dtype = next(iter(arrays)), received.arrays[0].dtype
    for name, array in zip(arrays, received.arrays, strict=True):
        if array is None:
            continue
        expected = apart.get(name, dtypes)
        if str(array.dtype) not in expected:
            raise TypeError(f"{op}: {name} has dtype {array.dtype}, expected {', '.join(sorted(expected))}")
        is_wide_bias = name == "b" and array.dtype == accumulator(dtype)
        if name not in apart and array.dtype != dtype and not is_wide_bias:
            raise TypeError(f"{op}: {first} has dtype {dtype} and {name} {array.dtype}, expected one dtype for all")
    return received


def channels_first(array: Array) -> Array:
    """[N, *space, C] as a view [N, C, *space]."""
    return array.transpose(0, array.ndim - 1, *range(1, array.ndim - 1))


def channels_last(array: Array) -> Array:
    """[N, C, *space] as a view [N, *space, C]."""
    return array.transpose(0, *range(2, array.ndim), 1)


def expect_shape(op: str, name: str, array: Array, shape: tuple[int, ...], meaning: str = "") -> None:
    """Raise ValueError unless `array` has `shape`."""
    if tuple(array.shape) != shape:
        raise ValueError(f"{op}: {name} has shape {tuple(array.shape)}, expected {meaning}{shape}")


def rank_of(op: str, name: str, array: Array) -> int:
    """The number of spatial axes of images [N, C, *space].

    Raises
    ------
    TypeError
        It is no array.
    ValueError
        Their number is not 1, 2 or 3.
    """
    if not hasattr(array, "ndim"):
        raise TypeError(f"{op}: {name} is of type {type(array).__name__}, expected an array")
    if not 3 <= array.ndim <= 5:
        raise ValueError(f"{op}: {name} has {array.ndim} dimensions, expected 3 to 5 (N, C, *space)")
    return int(array.ndim) - 2
