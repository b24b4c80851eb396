"""Blocked GEMM whose blocks BLAS multiplies without packing.

BLAS packs large operands before it multiplies. On processors with AVX-512, OpenBLAS skips packing for products of at
most 100^3 multiply-adds. These ran at 105 to 112 GFLOP/s on a core where others reached 100, with few rows or columns
75, and with few terms 50. So larger products are cut into such blocks. That needs no loop in Python: `numpy.matmul`
iterates over stacks of matrices, and the blocks are views.

A sum has at most `_Form.terms` consecutive terms, as in OpenBLAS; the partial sums are added in order.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from gpucnn.backends.numpy import memory, threads
from gpucnn.backends.numpy.memory import Array

__all__ = ["multiply"]

WITHOUT_COPIES = 100**3  # most multiply-adds of a block
# OpenBLAS's names of what has such kernels; NumPy's wheels have all kernels and choose by the processor
KERNELS = frozenset({"SkylakeX", "Cooperlake", "SapphireRapids"})


class _Form(NamedTuple):
    """Block sizes for operands of one memory order."""

    rows: int  # at most
    columns: int  # of which a block has a multiple
    results: int  # at most: rows times columns
    terms: int  # at most


# By whether the terms of a are contiguous, and the columns of b
FORMS = {
    (True, True): _Form(rows=64, columns=64, results=64 * 320, terms=384),
    (False, True): _Form(rows=32, columns=64, results=32 * 64, terms=256),
    (True, False): _Form(rows=32, columns=16, results=32 * 16, terms=784),
}


def multiply(a: Array, b: Array, out: Array) -> None:
    """Out [..., M, N] = a [..., M, K] @ b [..., K, N], as `numpy.matmul`; leading axes are broadcast."""
    m, n = out.shape[-2:]
    terms = a.shape[-1]
    if m * n * terms <= WITHOUT_COPIES:
        np.matmul(a, b, out=out)
        return
    form = FORMS.get((a.strides[-1] == a.itemsize, b.strides[-1] == b.itemsize))
    if form is None or out.dtype.kind != "f" or not _has_kernels():
        np.matmul(a, b, out=out)
        return
    blocks, (first, *others) = _plan(m, n, terms, form)
    _multiply_blocks(a[..., first], b[..., first, :], out, blocks)
    for run in others:
        part = memory.scratch("products", out.shape, out.dtype)
        _multiply_blocks(a[..., run], b[..., run, :], part, blocks)
        np.add(out, part, out=out)


def _multiply_blocks(a: Array, b: Array, out: Array, blocks: Blocks) -> None:
    terms = a.shape[-1]
    for (rows, tall, height), (columns, wide, width) in blocks:
        left = a[..., rows, :].reshape(*a.shape[:-2], tall, 1, height, terms)
        right = b[..., columns].reshape(*b.shape[:-2], terms, wide, width).swapaxes(-2, -3)
        part = out[..., rows, columns].reshape(*out.shape[:-2], tall, height, wide, width).swapaxes(-2, -3)
        np.matmul(left, right[..., None, :, :, :], out=part)


Cut = tuple[slice, int, int]  # a run, its number of blocks, and their size
Blocks = list[tuple[Cut, Cut]]  # of rows and columns


@lru_cache(maxsize=1024)
def _plan(m: int, n: int, terms: int, form: _Form) -> tuple[Blocks, list[slice]]:
    """The blocks of a product [m, n] with `terms` terms, and the runs of terms of its partial sums."""
    runs = memory.runs(terms, form.terms)
    most = min(form.results, WITHOUT_COPIES // runs[0].stop)
    highest = min(m, form.rows, most // form.columns)
    height = next((rows for rows in range(highest, highest // 2, -1) if m % rows == 0), highest)
    widest = most // height // form.columns * form.columns
    width = next((columns for columns in range(widest, 0, -form.columns) if n % columns == 0), widest)
    return list(product(_cuts(m, height), _cuts(n, width))), runs


def _cuts(length: int, step: int) -> list[Cut]:
    """Whole steps, and the remainder."""
    whole = length // step * step
    cuts = [(slice(0, whole), whole // step, step), (slice(whole, length), 1, length - whole)]
    return [cut for cut in cuts if cut[0].start < cut[0].stop]


@lru_cache(maxsize=1)
def _has_kernels() -> bool:
    libraries = threads.blas_libraries()
    return bool(libraries) and all(
        library.internal_api == "openblas" and getattr(library, "architecture", None) in KERNELS
        for library in libraries
    )
