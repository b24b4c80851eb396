"""What NumPy's own functions are slow at, element by element."""

from __future__ import annotations

import numpy as np

from gpucnn.backends.numpy.memory import Array


def masked(values: Array, mask: Array) -> Array:
    """Values where the mask is True, and 0 elsewhere, whatever the values are there.

    The bits of the values and those of 0 or -1: `numpy.where` branches at each element, and on random signs that took
    12 times as long (1.6 M float32: 5.8 ms, 0.5 ms so).
    """
    integer = np.dtype(f"i{values.itemsize}")
    bits = np.asarray(np.negative(np.asarray(mask).view(np.int8)).astype(integer))
    bits &= values.view(integer)
    return bits.view(values.dtype)
