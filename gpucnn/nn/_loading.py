"""Values of a state, converted and checked before any array that they are loaded into is changed."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn.backends import backend_of
from gpucnn.backends.dtypes import COMPLEX, NUMERIC

Array = Any
Host = np.ndarray[Any, Any]


def to_host(array: Array) -> Host:
    """An array of any backend as NumPy's: itself, or a copy from a device.

    Examples
    --------
    >>> to_host(np.ones(2))
    array([1., 1.])
    """
    return np.asarray(array.get() if hasattr(array, "get") else array)


def loadable(op: str, name: str, value: Any, into: Array) -> Array:
    """`value` as an array of the shape, dtype and device of `into`.

    Raises
    ------
    TypeError
        `value` is not an array of numbers, or is complex where `into` is real.
    ValueError
        The shape is another one, or `into` is read-only.
    """
    xp = backend_of(into).xp
    try:
        array = value if isinstance(value, xp.ndarray) else to_host(value)
    except (TypeError, ValueError, RuntimeError) as error:  # of another library, such as a tensor that needs a gradient
        raise TypeError(f"{op}: {name} is a {type(value).__name__}, expected an array of numbers: {error}") from None
    if tuple(array.shape) != tuple(into.shape):
        raise ValueError(f"{op}: {name} has shape {tuple(array.shape)}, expected {tuple(into.shape)}")
    taken = array.dtype.name in NUMERIC | {"bool"}
    if not taken or (array.dtype.name in COMPLEX and into.dtype.name not in COMPLEX):
        raise TypeError(f"{op}: {name} has dtype {array.dtype}, expected one that {into.dtype} can take")
    if not getattr(into.flags, "writeable", True):  # CuPy's arrays are never read-only
        raise ValueError(f"{op}: {name} is read-only in what is loaded into, expected an array that can be written to")
    return xp.asarray(array).astype(into.dtype, copy=False)
