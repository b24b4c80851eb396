"""Tolerances against the float64 reference, in one table with its reasons."""

from __future__ import annotations

from typing import Any

import numpy as np

# Largest error of one element, relative to the largest magnitude among the expected ones (at least 1): a sum's error
# scales with its terms, not with what is left after they cancel.
TOLERANCES = {
    "float64": 1e-11,  # 2**-53 times some thousand terms
    "complex128": 1e-11,
    "float32": 1e-5,  # 2**-24 times the square root of some thousand terms, with room for their order
    "complex64": 1e-5,
    "float16": 2e-3,  # sums are float32: what remains is one rounding of the result, 2**-11, and of an intermediate
    "bfloat16": 1.6e-2,  # the same with 2**-8
}

SUMMED = {"int8": "int32", "uint8": "int32", "int16": "int64", "uint16": "int64"}


def summed(dtype: Any) -> np.dtype[Any]:
    """The dtype in which sums of products of `dtype` are returned: a wider one for small integers."""
    return np.dtype(SUMMED.get(np.dtype(dtype).name, dtype))


def assert_close(actual: Any, expected: Any, dtype: Any = None, factor: float = 1.0) -> None:
    """Raise unless `actual` has `dtype` and each element is within tolerance of `expected`, NaN where that is NaN.

    Integers must be equal. `factor` widens the tolerance where an operation amplifies rounding; say why.
    """
    dtype = actual.dtype if dtype is None else np.dtype(dtype)
    assert actual.dtype == dtype, f"dtype is {actual.dtype}, expected {dtype}"
    assert actual.shape == expected.shape, f"shape is {actual.shape}, expected {expected.shape}"
    if dtype.kind in "iub":
        np.testing.assert_array_equal(actual, expected.astype(dtype))
        return
    wide = actual.astype(np.complex128 if dtype.kind == "c" else np.float64)
    finite = np.abs(expected[np.isfinite(expected)])
    atol = TOLERANCES[dtype.name] * factor * max(1.0, float(finite.max(initial=0.0)))
    np.testing.assert_allclose(wide, expected, rtol=0, atol=atol, equal_nan=True)
