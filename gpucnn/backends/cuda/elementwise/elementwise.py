"""Elementwise primitives: masks, by the array library's own kernels."""

from __future__ import annotations

from gpucnn.backends.cuda.device.runtime import Array, Runtime
from gpucnn.backends.listening import note_computed


def masked(runtime: Runtime, values: Array, mask: Array, y: Array) -> None:
    """Y = values where the mask is True, and 0 elsewhere, whatever the values are there.

    CuPy's `where` would save a pass, but returns C order, and float32 for bfloat16.
    """
    note_computed()
    y[...] = 0
    runtime.xp.copyto(y, values, where=mask)
