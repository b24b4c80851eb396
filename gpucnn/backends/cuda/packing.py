"""Copies between memory orders on the GPU, both ways in whole lines of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpucnn.backends.cuda.launching import Layout, Work, launch, strides
from gpucnn.backends.cuda.runtime import Array
from gpucnn.backends.cuda.sources import Kernel

if TYPE_CHECKING:
    from gpucnn.backends.cuda import CudaBackend

PACK = Kernel("pack", "PackParams")
TILE = 32  # channels and positions of one block

AXES = ("n", "c", "p")


def pack(backend: CudaBackend, x: Array, out: Array, bias: Array | None = None) -> None:
    """Write x [N, C, P] plus bias [C] to `out` [N, C, P], whatever the strides of the two; all of one dtype."""
    launch(backend.runtime, PACK, x.dtype, (x, bias, out), _work)


def _work(x: Layout, bias: Layout | None, out: Layout) -> Work:
    n, c, p = x.shape
    fields = {
        "n": n,
        "c": c,
        "p": p,
        **strides("x", AXES, x),
        **strides("y", AXES, out),
        **strides("bias", ("c",), bias),
        "x_along_c": int(_channels_are_innermost(x)),
        "y_along_c": int(_channels_are_innermost(out)),
    }
    return Work(fields, blocks=n * -(-c // TILE) * -(-p // TILE), extents=(c + TILE, p + TILE))


def _channels_are_innermost(x: Layout) -> bool:
    """Whether neighbouring channels of x [N, C, P] are nearer to each other in memory than neighbouring positions."""
    _, c, p = x.shape
    return bool(c > 1 and (p == 1 or abs(x.strides[1]) < abs(x.strides[2])))
