"""Batched GEMM, by cuBLAS on a GPU: planned once per set of layouts, and replayed like launches."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends.cuda.device.runtime import Array, Device, Plan, Runtime
from gpucnn.backends.cuda.elementwise.packing import pack
from gpucnn.backends.cuda.launch.plans import Layout, empty, enqueue, layout
from gpucnn.numerics import choices

MAX_INT = 2**31 - 1  # of a size or a lead: BLAS takes C's int


class Gemm(NamedTuple):
    """One strided-batched BLAS call, column-major: C [m, n] = op(A) [m, k] times op(B) [k, n], `batch` times.

    With `add`, plus C.

    A lead is the stride between columns, a step the stride between matrices, in elements. A start is the offset of the
    first matrix from the array's first element, in bytes.
    """

    transposed_a: int
    transposed_b: int
    m: int
    n: int
    k: int
    lead_a: int
    lead_b: int
    lead_c: int
    step_a: int
    step_b: int
    step_c: int
    start_a: int
    start_b: int
    start_c: int
    batch: int
    add: int


def multiply(runtime: Runtime, a: Array, b: Array, c: Array, add: bool = False) -> None:
    """Write c [N, G, M, P] = a [N, G, M, K] times b [N, G, K, P], all as by `as_matrices`; a's N may be 1.

    With `add`, c is added to the product before it is rounded. 16-bit a and b may have a float32 c.
    """
    if not _leads(layout(c))[0]:  # c is column-major: the product of the transposes
        a, b, c = b.swapaxes(2, 3), a.swapaxes(2, 3), c.swapaxes(2, 3)
    product = (a.dtype, c.dtype, choices().precision)
    plan = _plan(runtime, runtime.device(c), product, layout(a), layout(b), layout(c), add)
    if plan is not None:
        enqueue(runtime, plan, (b, a, c))


def as_matrices(runtime: Runtime, x: Array) -> Array:
    """X [N, G, C, P] itself, if BLAS can read it as matrices [C, P], else a copy in C order."""
    if not x.size or (any(_leads(layout(x))) and min(x.strides[:2]) >= 0):
        return x
    copy, flat = empty(runtime, x.shape, x.dtype), (x.shape[0], -1, x.shape[3])
    pack(runtime, x.reshape(flat), copy.reshape(flat))
    return copy


def _leads(x: Layout) -> tuple[int, int]:
    """Leading dimensions of the matrices along the last two axes, read as row-major and as column-major.

    0 where they are not of that order.
    """
    (*_, rows, columns), (row, column) = x.shape, (step // x.itemsize for step in x.strides[-2:])
    by_rows = columns == 1 or column == 1
    by_columns = rows == 1 or row == 1
    between_rows, between_columns = (columns if rows == 1 else row), (rows if columns == 1 else column)
    return (
        between_rows if by_rows and columns <= between_rows <= MAX_INT else 0,
        between_columns if by_columns and rows <= between_columns <= MAX_INT else 0,
    )


@lru_cache(maxsize=4096)
def _plan(
    runtime: Runtime,
    device: Device,
    product: tuple[np.dtype[Any], np.dtype[Any], str],
    a: Layout,
    b: Layout,
    c: Layout,
    add: bool,
) -> Plan | None:
    """The calls for row-major c, or None where there is nothing to do.

    Read as column-major, all three are their transposes, so b comes first: c' = b' times a'.
    """
    (n, g, m, p), k = c.shape, a.shape[3]
    if not c.size:
        return None
    apart = [_leads(x) for x in (b, a, c)]
    turned = [int(not rows) for rows, _ in apart[:2]]
    leads = [rows or columns for rows, columns in apart]
    steps = [[0 if x.shape[axis] == 1 else x.strides[axis] // x.itemsize for axis in (0, 1)] for x in (b, a, c)]
    gemms = []
    for starts, between, batch in _batches(n, g, steps):
        begins = [start * x.itemsize for start, x in zip(starts, (b, a, c), strict=True)]
        gemms.append(Gemm._make((*turned, p, m, k, *leads, *between, *begins, batch, int(add))))
    return Plan(None, device, (1,), (1,), tuple(gemms), 0, runtime.product(*product, device))


def _batches(n: int, g: int, steps: list[list[int]]) -> list[tuple[list[int], list[int], int]]:
    """Starts, steps and sizes of the fewest strided batches that cover the [N, G] matrices of each array."""
    images, groups = [step[0] for step in steps], [step[1] for step in steps]
    if g == 1:
        return [([0, 0, 0], images, n)]
    if n == 1 or images == [step * g for step in groups]:
        return [([0, 0, 0], groups, n * g)]
    if n < g:
        return [([step * image for step in images], groups, g) for image in range(n)]
    return [([step * group for step in groups], images, n) for group in range(g)]
