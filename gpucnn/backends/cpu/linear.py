"""Fully connected layers of few rows in C++, at the speed of memory; those of many rows are products by BLAS."""

from __future__ import annotations

from functools import lru_cache

from gpucnn.backends.cpu.elementwise import work_items
from gpucnn.backends.cpu.library import Kernel, Launch
from gpucnn.backends.dtypes import name_of
from gpucnn.backends.listening import note_computed
from gpucnn.backends.numpy import linear as by_blas
from gpucnn.backends.numpy.memory import Array

MAX_ROWS = 16  # of more, BLAS is as fast, since products take longer than to read the weights
MIN_WEIGHTS = 1 << 12  # of fewer, a launch takes longer than BLAS
MAX_PARTS, MIN_COLUMNS = 4, 1024  # of the rows of weights for grad_x: from parts of 512 they came at 2/3 of the speed

_FORWARD = Kernel("linear")
_BACKWARD_INPUT = Kernel("linear", "linear_backward_input")
_BACKWARD_WEIGHT = Kernel("linear", "linear_backward_weight")


def linear(x: Array, w: Array, bias: Array | None, y: Array) -> None:
    """Y [N, OUT] = x [N, IN] times w [OUT, IN] transposed, plus bias [OUT]."""
    if not _computes(x, w, y) or not (bias is None or bias.flags.c_contiguous):
        note_computed()
        by_blas.linear(x, w, bias, y)
        return
    _launch(_FORWARD, name_of(x.dtype), len(x), *w.shape)(x=x, w=w, bias=bias, y=y)


def linear_backward_input(grad_y: Array, w: Array, grad_x: Array) -> None:
    """grad_x [N, IN] = grad_y [N, OUT] times w [OUT, IN]."""
    if not _computes(grad_y, w, grad_x):
        note_computed()
        by_blas.linear_backward_input(grad_y, w, grad_x)
        return
    _launch(_BACKWARD_INPUT, name_of(w.dtype), len(grad_y), *w.shape)(grad_y=grad_y, w=w, grad_x=grad_x)


def linear_backward_weight(x: Array, grad_y: Array, grad_w: Array) -> None:
    """grad_w [OUT, IN] = grad_y [N, OUT] transposed times x [N, IN]."""
    if not _computes(x, grad_y, grad_w):
        note_computed()
        by_blas.linear_backward_weight(x, grad_y, grad_w)
        return
    _launch(_BACKWARD_WEIGHT, name_of(x.dtype), len(x), *grad_w.shape)(x=x, grad_y=grad_y, grad_w=grad_w)


def _computes(rows: Array, *others: Array) -> bool:
    """Whether the kernels take the arrays, of which the first one has N rows, and pay."""
    if len(rows) > MAX_ROWS or max(array.size for array in others) < MIN_WEIGHTS:
        return False
    return all(array.flags.c_contiguous for array in (rows, *others))


@lru_cache(maxsize=256)
def _launch(kernel: Kernel, dtype: str, n: int, outputs: int, inputs: int) -> Launch:
    items = work_items(outputs * inputs)
    if kernel is _BACKWARD_INPUT:
        items = max(1, min(items, MAX_PARTS, inputs // MIN_COLUMNS))
    return Launch(kernel, dtype, {"n": n, "inputs": inputs, "outputs": outputs, "items": items}, items)
