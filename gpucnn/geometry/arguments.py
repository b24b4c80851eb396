"""The forms in which sizes and paddings may be given, read once into plain tuples."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any

Size = int | Sequence[int]
Padding = int | str | Sequence[int] | Sequence[tuple[int, int]]
Pairs = tuple[tuple[int, int], ...]

LARGEST = 2**31 - 1  # what a kernel can take as a parameter; anything beyond it is a mistake of the caller
SAME = ("same", "same_lower")


def is_sequence(value: Any) -> bool:
    """Whether `value` holds one item per axis: a list, a tuple or an array with axes, but no string, set or dict."""
    if type(value) is tuple:  # the usual one, in a tenth of the time
        return True
    if isinstance(value, Sequence):
        return not isinstance(value, str | bytes | bytearray)
    dimensions = getattr(value, "ndim", None)
    return isinstance(dimensions, int) and dimensions > 0


def is_boolean(value: Any) -> bool:
    """Whether `value` is a bool: Python's, or a scalar or an array without axes of any array library."""
    if isinstance(value, bool):
        return True
    dtype = str(getattr(value, "dtype", "")).rpartition(".")[2]  # PyTorch says torch.bool
    return dtype == "bool" and getattr(value, "ndim", None) == 0


def boolean(op: str, name: str, value: Any) -> bool:
    """`value` as a bool: True, False, or an array library's.

    Raises
    ------
    TypeError
        `value` is neither; numbers and words are not accepted.
    """
    if isinstance(value, bool):
        return value
    if not is_boolean(value):
        raise TypeError(f"{op}: {name} is {value!r}, expected True or False")
    return bool(value)


def integer(op: str, name: str, value: Any, least: int, expected: str = "an integer") -> int:
    """`value` as an int of at least `least`; it may be an array library's, a scalar or an array without axes.

    Raises
    ------
    TypeError
        `value` is not an integer (nor is a bool).
    ValueError
        It is too small, or beyond what a kernel can take.
    """
    if type(value) is int and least <= value <= LARGEST:
        return value  # as below, in a tenth of the time
    try:
        if is_boolean(value) or is_sequence(value):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{op}: {name} is {value!r}, expected {expected}") from None
    if number < least:
        raise ValueError(f"{op}: {name} is {number}, expected at least {least}")
    if number > LARGEST:
        raise ValueError(f"{op}: {name} is {number}, expected at most {LARGEST}")
    return number


def plain(value: Any) -> Any:
    """`value`, or the Python number that it holds if it is an array library's scalar or array without axes."""
    if getattr(value, "ndim", None) != 0 or not hasattr(value, "item"):
        return value
    item = value.item()
    if getattr(getattr(item, "dtype", None), "kind", "") != "V":
        return item
    try:
        return float(item)  # of a dtype that NumPy has no Python type for, such as bfloat16
    except (TypeError, ValueError):
        return item


def number(op: str, name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """`value` as a finite float in [least, most], a zero without its sign.

    Raises
    ------
    TypeError
        `value` is not a real number (nor is a bool).
    ValueError
        It is out of range, infinite or NaN.
    """
    if type(value) is float and least <= value <= most and math.isfinite(value):
        return value + 0.0  # as below, in a tenth of the time: norms check three numbers a call
    scalar = plain(value)
    if is_boolean(value) or not isinstance(scalar, Real):
        raise TypeError(f"{op}: {name} is {value!r}, expected a number")
    try:
        result = float(scalar) + 0.0  # -0.0 equals 0.0, so that nothing kept by the one may serve the other
    except OverflowError:
        result = math.inf
    if not (math.isfinite(result) and least <= result <= most):
        expected = "a finite number"
        if math.isfinite(least):
            expected += f" in [{least}, {most}]" if math.isfinite(most) else f" of at least {least}"
        raise ValueError(f"{op}: {name} is {result}, expected {expected}")
    return result


def integers(op: str, name: str, value: Any, rank: int, least: int) -> tuple[int, ...]:
    """`value` as one int per spatial axis: an int stands for all of them."""
    expected = f"an integer or {rank} of them"
    if is_sequence(value):
        if len(value) != rank:
            raise ValueError(f"{op}: {name} has {len(value)} values, expected {rank}")
        return tuple(integer(op, name, item, least, expected) for item in value)
    return (integer(op, name, value, least, expected),) * rank


def window_sizes(op: str, rank: int, kernel_size: Any, stride: Any, dilation: Any) -> tuple[tuple[int, ...], ...]:
    """The sizes, strides and dilations of a window, each as by `integers`."""
    named = {"kernel_size": kernel_size, "stride": stride, "dilation": dilation}
    return tuple(integers(op, name, value, rank, 1) for name, value in named.items())


def padding_form(op: str, value: Any, rank: int) -> str | Pairs:
    """`value` as ``"same"``, ``"same_lower"``, or one ``(low, high)`` pair per spatial axis."""
    if isinstance(value, str):
        if value == "valid":
            return ((0, 0),) * rank
        if value in SAME:
            return value
        raise ValueError(f"{op}: padding is {value!r}, expected numbers, 'valid', 'same' or 'same_lower'")
    if not is_sequence(value):
        return ((integer(op, "padding", value, 0),) * 2,) * rank
    if len(value) != rank:
        raise ValueError(f"{op}: padding has {len(value)} values, expected {rank}")
    return tuple(_pair(op, item) for item in value)


def _pair(op: str, item: Any) -> tuple[int, int]:
    expected = "an integer or a (low, high) pair for each axis"
    if not is_sequence(item):
        return (integer(op, "padding", item, 0, expected),) * 2
    if len(item) != 2:
        raise ValueError(f"{op}: padding of an axis has {len(item)} values, expected (low, high)")
    low, high = item
    return integer(op, "padding", low, 0, expected), integer(op, "padding", high, 0, expected)


def rank_of(op: str, *sizes: Any, default: int = 1) -> int:
    """The number of axes given by the first sequence among `sizes`; `default` where there is none.

    Raises
    ------
    ValueError
        That sequence is empty.
    """
    rank = next((len(size) for size in sizes if is_sequence(size)), default)
    if rank == 0:
        raise ValueError(f"{op}: got an empty sequence, expected one value for each spatial axis")
    return rank
