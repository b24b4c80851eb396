"""Copies of images in another memory order or dtype."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn.backends.dtypes import FLOATING, NUMERIC
from gpucnn.backends.replaying import replayed
from gpucnn.functional._call import Array, Call


@replayed
def channels_last(input: Array, dtype: Any = None) -> Array:
    """Copy images so that the channels of each pixel are adjacent in memory.

    The axes stay as they are and only the strides change, as with PyTorch's
    ``to(dtype, memory_format=torch.channels_last)``. Operations recognise the order and keep it.

    Parameters
    ----------
    input : array [N, C, *]
        Of any floating-point, complex or integer dtype, in any memory order.
    dtype : dtype, optional
        Another floating-point dtype for the copy, where `input` is floating-point too.

    Returns
    -------
    array [N, C, *]
        A new one, whose values are those of `input` rounded once.

    Raises
    ------
    TypeError
        The dtype is not taken, or cannot be cast to `dtype`.
    ValueError
        There are fewer than 2 axes.

    See Also
    --------
    channels_first

    Examples
    --------
    >>> gpucnn.channels_last(np.zeros((1, 3, 4, 5), np.float32)).strides
    (240, 4, 60, 12)
    """
    return _copied("channels_last", input, dtype, last=True)


@replayed
def channels_first(input: Array, dtype: Any = None) -> Array:
    """Copy images so that the pixels of each channel are contiguous in memory, in C order.

    Parameters
    ----------
    input : array [N, C, *]
        Of any floating-point, complex or integer dtype, in any memory order.
    dtype : dtype, optional
        Another floating-point dtype for the copy, where `input` is floating-point too.

    Returns
    -------
    array [N, C, *]
        A new one, whose values are those of `input` rounded once.

    Raises
    ------
    TypeError
        The dtype is not taken, or cannot be cast to `dtype`.
    ValueError
        There are fewer than 2 axes.

    See Also
    --------
    channels_last

    Examples
    --------
    >>> gpucnn.channels_first(np.zeros((1, 3, 4, 5), np.float32), np.float16).strides
    (120, 40, 10, 2)
    """
    return _copied("channels_first", input, dtype, last=False)


def _copied(op: str, input: Array, dtype: Any, *, last: bool) -> Array:
    call = Call(op, NUMERIC, input=input)
    (x,) = call.arrays
    if x.ndim < 2:
        raise ValueError(f"{op}: input has {x.ndim} dimensions, expected at least 2 (N, C, *)")
    rows = x.reshape(*x.shape[:2], -1) if x.size else x.reshape(*x.shape[:2], 0)
    n, c, p = rows.shape
    shape, wanted = ((n, p, c) if last else (n, c, p)), _dtype(op, dtype, x.dtype)
    copy = call.backend.empty(shape, wanted, on=x)
    copy = copy.swapaxes(1, 2) if last else copy
    call.backend.copy(rows, copy)
    return call.result(copy.reshape(x.shape))


def _dtype(op: str, dtype: Any, given: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of the copy."""
    if dtype is None:
        return given
    try:
        wanted: np.dtype[Any] = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"{op}: dtype is {dtype!r}, expected a dtype") from None
    if wanted != given and not {wanted.name, given.name} <= FLOATING:
        raise TypeError(f"{op}: dtype is {wanted}, expected {given} or, between floating-point dtypes, another")
    return wanted
