"""Sums and concatenations of branches, and gradients, in the memory order of images, which CuPy's own do not keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import gpucnn.functional as F
from gpucnn.backends import receive
from gpucnn.backends.deferring import DeferredArraysError
from gpucnn.backends.layout import empty_in_order, is_channels_last
from gpucnn.nn._tracing import is_watched
from gpucnn.nn.module import Array
from gpucnn.nn.precision import cast

FEW = 1 << 14  # elements, which NumPy adds in less time than a launch takes


def added(one: Array, other: Array) -> Array:
    """``one + other``, of one shape."""
    if is_watched(one, other):
        return one + other
    try:
        backend, (x, y), give_back = receive("added", {"one": one, "other": other})
    except DeferredArraysError:
        return one + other
    xp = backend.xp
    is_large = x.ndim > 2 and x.size >= FEW and x.shape == y.shape
    if is_large and backend.name == "compiled" and x.dtype == y.dtype and x.dtype.kind == "f":
        return F.bias_activation(one, residual=other, activation="none")  # by all threads
    return give_back(xp.add(x, y, out=empty_in_order(xp, x.shape, np.result_type(x.dtype, y.dtype), x)))


def parted(grad: Array, *dtypes: Any) -> list[Array]:
    """The gradient of a sum for each of its terms, in that one's dtype; they differ within `mixed_precision` only."""
    return [grad if len(set(dtypes)) == 1 else cast(grad, dtype) for dtype in dtypes]


def concatenated(arrays: Sequence[Array], axis: int) -> Array:
    """Arrays one after the other along an axis, whose other axes are of one size."""
    if is_watched(*arrays):
        return np.concatenate(arrays, axis)
    try:
        backend, parts, give_back = receive("concatenated", {f"array {i}": array for i, array in enumerate(arrays)})
    except DeferredArraysError:
        return np.concatenate(arrays, axis)
    first, axis = parts[0], axis % parts[0].ndim
    shape = (*first.shape[:axis], sum(part.shape[axis] for part in parts), *first.shape[axis + 1 :])
    result = empty_in_order(backend.xp, shape, np.result_type(*(part.dtype for part in parts)), first)
    start = 0
    for part in parts:
        result[(slice(None),) * axis + (slice(start, start + part.shape[axis]),)] = part
        start += part.shape[axis]
    return give_back(result)


def in_order(grad: Array, is_last: bool) -> Array:
    """A gradient [N, C, *space] whose channels are innermost where `is_last`: itself, or a copy.

    Of layers whose result has no positions the gradient has no order either: without this, all backwards before them
    would read an image and a gradient in different orders.
    """
    if grad is None or not is_last:
        return grad
    backend, (given,), give_back = receive("in_order", {"grad": grad})
    if is_channels_last(given):
        return grad
    n, c, *space = given.shape
    stored = backend.xp.moveaxis(backend.empty((n, *space, c), given.dtype, on=given), -1, 1)
    backend.copy(given, stored)
    return give_back(stored)
