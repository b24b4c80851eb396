"""The arguments of padding, checked, and the shapes that follow from them."""

from __future__ import annotations

from cmath import isinf
from numbers import Complex, Real
from typing import Any

import numpy as np

from gpucnn.functional._call import Array, Call, choice
from gpucnn.geometry.arguments import Pairs, integer, is_boolean, is_sequence, plain

_ITEMS = "a sequence of integers: low and high of the last axis, then of the one before, and so on"
MODES = ("constant", "reflect", "replicate", "circular", "symmetric")


def checked_pairs(call: Call, x: Array, pad: Any, mode: str, value: Any) -> Pairs:
    """(low, high) of each axis of x, once the arguments of `pad` are checked."""
    if not is_sequence(pad):
        raise TypeError(f"{call.op}: pad is {pad!r}, expected {_ITEMS}")
    if len(pad) % 2 or len(pad) > 2 * x.ndim:
        raise ValueError(f"{call.op}: pad has {len(pad)} values, expected two for each of at most {x.ndim} axes")
    choice(call.op, "mode", mode, MODES)
    if filling(call, x, value) != 0 and mode != "constant":
        raise ValueError(f"{call.op}: value is {value}, expected None with mode {mode!r}")
    numbers = [integer(call.op, "an item of pad", item, -(2**31), f"an integer; pad is {_ITEMS}") for item in pad]
    given = list(zip(numbers[0::2], numbers[1::2], strict=True))[::-1]
    pairs: Pairs = ((0, 0),) * (x.ndim - len(given)) + tuple(given)
    for axis, (size, (low, high)) in enumerate(zip(x.shape, pairs, strict=True)):
        left = size + min(low, 0) + min(high, 0)
        most = {"reflect": left - 1, "circular": left, "symmetric": left}.get(mode, max(low, high))
        if left < 0 or (max(low, high) > 0 and left == 0 and mode != "constant"):
            raise ValueError(
                f"{call.op}: pad of axis {axis} is ({low}, {high}), expected to leave some of its {size} values"
            )
        if max(low, high) > max(most, 0):
            raise ValueError(
                f"{call.op}: pad of axis {axis} is ({low}, {high}), expected at most {most} with mode {mode!r}"
            )
    return pairs


def filling(call: Call, x: Array, value: Any) -> Any:
    """`value`, checked to be a number that the dtype of x holds."""
    if value is None:
        return 0
    scalar = plain(value)
    if is_boolean(value) or not isinstance(scalar, Complex if x.dtype.kind == "c" else Real):
        raise TypeError(f"{call.op}: value is {value!r}, expected a number of dtype {x.dtype}")
    try:
        with np.errstate(all="ignore"):
            held = np.asarray(scalar, x.dtype)
        fits = held == scalar if x.dtype.kind in "iu" else bool(np.isinf(held)) == isinf(scalar)
    except (OverflowError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f"{call.op}: value is {value!r}, expected a number that {x.dtype} holds")
    return scalar


def padded(shape: tuple[int, ...], pairs: Pairs) -> tuple[int, ...]:
    """The shape of the result."""
    return tuple(size + low + high for size, (low, high) in zip(shape, pairs, strict=True))


def cropped(shape: tuple[int, ...], pairs: Pairs) -> tuple[slice, ...]:
    """The part of x that negative padding leaves."""
    return tuple(slice(max(-low, 0), size + min(high, 0)) for size, (low, high) in zip(shape, pairs, strict=True))
