"""Fully connected layers: matrix products by BLAS."""

from __future__ import annotations

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy.memory import Array


def linear(x: Array, w: Array, bias: Array | None, y: Array) -> None:
    """Y [N, OUT] = x [N, IN] times w [OUT, IN] transposed, plus bias [OUT]."""
    sums = y if y.dtype == accumulator(y.dtype) else np.empty(y.shape, accumulator(y.dtype))
    _multiply(x, w.T, sums)
    if bias is not None:
        np.add(sums, bias, out=sums)
    if sums is not y:
        y[...] = sums


def linear_backward_input(grad_y: Array, w: Array, grad_x: Array) -> None:
    """grad_x [N, IN] = grad_y [N, OUT] times w [OUT, IN]."""
    _multiply(grad_y, w, grad_x)


def linear_backward_weight(x: Array, grad_y: Array, grad_w: Array) -> None:
    """grad_w [OUT, IN] = grad_y [N, OUT] transposed times x [N, IN]."""
    _multiply(grad_y.T, x, grad_w)


def _multiply(a: Array, b: Array, out: Array) -> None:
    """Out [M, N] = a [M, K] times b [K, N], summed in the dtype that sums are kept in."""
    wide = accumulator(a.dtype)
    np.matmul(a.astype(wide, copy=False), b.astype(wide, copy=False), out=out, casting="same_kind")
