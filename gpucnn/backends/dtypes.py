"""The dtypes that operations take, by name, so that bfloat16 needs no import of ml_dtypes."""

from __future__ import annotations

from collections.abc import Mapping
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
    """The name of `dtype`, cached, since NumPy rebuilds it on each access, in 2 us."""
    return dtype.name


@lru_cache(maxsize=256)
def accumulator(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that sums of `dtype` are kept in: float32 for 16-bit floats, else its own."""
    return np.dtype(np.float32) if name_of(dtype) in ("float16", "bfloat16") else dtype


@lru_cache(maxsize=256)
def kernel_accumulator(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that CUDA kernels keep sums in, acc_t: as `accumulator`, of integers unsigned, in 4 bytes or 8."""
    if dtype.kind in "iu":
        return np.dtype(np.uint64 if dtype.itemsize == 8 else np.uint32)
    return accumulator(dtype)


@lru_cache(maxsize=256)
def of_products(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of sums of products: int32 for integers of 8 bits, int64 for those of 16, else `dtype` itself."""
    if dtype.kind in "iu" and dtype.itemsize <= 2:
        return np.dtype(np.int32 if dtype.itemsize == 1 else np.int64)
    return dtype


def advised(dtypes: Mapping[str, np.dtype[Any]], taken: frozenset[str] = NUMERIC) -> np.dtype[Any]:
    """The dtype, of those `taken`, that arrays of several dtypes are best cast to; `dtypes` are by the arrays' names.

    Integers become floating-point, real numbers complex, and float64, which is NumPy's default, the narrower dtype.
    Between narrow ones the weight decides, which is a layer's parameter, else the input.

    Examples
    --------
    >>> advised({"input": np.dtype("uint8"), "weight": np.dtype("float32")})
    dtype('float32')
    >>> advised({"input": np.dtype("float64"), "weight": np.dtype("float32")})
    dtype('float32')
    """
    known = {name: dtype.newbyteorder("=") for name, dtype in dtypes.items() if name_of(dtype) in taken}
    for preferred in (COMPLEX, FLOATING):
        found = {name: dtype for name, dtype in known.items() if name_of(dtype) in preferred}
        if found:
            narrow = {name: dtype for name, dtype in found.items() if name_of(dtype) not in ("float64", "complex128")}
            found = narrow or found
            return found.get("weight", found.get("input", next(iter(found.values()))))
    common: np.dtype[Any] = np.result_type(*known.values())
    return common if common.kind in "iu" else np.dtype(np.int64)  # no integer holds both int64 and uint64
