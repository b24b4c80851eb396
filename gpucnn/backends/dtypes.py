"""The dtypes that operations take, by name, so that bfloat16 needs no import of ml_dtypes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

FLOATING = frozenset({"float16", "bfloat16", "float32", "float64"})
COMPLEX = frozenset({"complex64", "complex128"})
INTEGER = frozenset({f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)})
LINEAR = FLOATING | COMPLEX
ORDERED = FLOATING | INTEGER
NUMERIC = FLOATING | COMPLEX | INTEGER

_NAMES = (
    (FLOATING, "floating-point (float16, bfloat16, float32, float64)"),
    (COMPLEX, "complex"),
    (INTEGER, "integer"),
)


def describe(dtypes: frozenset[str]) -> str:
    """`dtypes` in words."""
    return " or ".join(name for group, name in _NAMES if group <= dtypes)


@lru_cache(maxsize=256)
def name_of(dtype: np.dtype[Any]) -> str:
    """The name of `dtype`, which NumPy puts together anew each time it is asked, in 2 us."""
    return dtype.name


@lru_cache(maxsize=256)
def accumulator(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that sums of `dtype` are kept in: float32 for 16-bit floats, else its own."""
    return np.dtype(np.float32) if name_of(dtype) in ("float16", "bfloat16") else dtype
