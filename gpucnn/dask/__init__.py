"""gpucnn's operations on Dask's arrays: graphs of gpucnn's own calls on their chunks.

Nobody calls this package: the operations of `gpucnn.functional` pass calls on Dask's arrays to it. A windowed operation
computes each chunk of its result from just the part of the image that it reads, a sum over chunks is a tree of fixed
shape, and nothing is computed before the result is.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import gpucnn.functional as F
from gpucnn.backends.deferring import DeferredArraysError
from gpucnn.dask import convolution, dropout, normalization, padding, pooling, resampling, rows, unfolding

__all__ = ["deferred"]

_OPERATIONS: dict[str, Callable[..., Any]] = {
    **convolution.OPERATIONS,
    **pooling.OPERATIONS,
    **resampling.OPERATIONS,
    **unfolding.OPERATIONS,
    **padding.OPERATIONS,
    **rows.OPERATIONS,
    **dropout.OPERATIONS,
    **normalization.OPERATIONS,
}


def deferred(error: DeferredArraysError, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """The result of the operation that met Dask's arrays, for the arguments that it was called with.

    Raises
    ------
    DeferredArraysError
        The operation does not take Dask's arrays.
    TypeError, ValueError
        As the operation raises on arrays in memory, or a parameter is one that it takes only with these.
    """
    operation = _OPERATIONS.get(re.sub(r"[123]d", "{n}d", error.op))
    if operation is None:
        raise error
    bound = inspect.signature(getattr(F, error.op)).bind(*arguments, **named)
    bound.apply_defaults()
    given = dict(bound.arguments)
    if given.pop("out", None) is not None:
        raise TypeError(f"{error.op}: out is given with arrays of dask, expected None: results are new arrays")
    return operation(error.op, given)
