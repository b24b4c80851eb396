"""New arrays: constants, ranges, casts, and random numbers refused."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn.onnx.operators.arrays import checked, ints, namespace
from gpucnn.onnx.operators.registry import Anywhere, Array, Host, Tensor, operator, refuse
from gpucnn.onnx.tensors import dtype_of

_LARGEST_OF_EIGHT_BITS = {
    "float8_e4m3fn": 448, "float8_e4m3fnuz": 240, "float8_e5m2": 57344, "float8_e5m2fnuz": 57344,
}  # fmt: skip
"""What numbers beyond the range of a float of 8 bits become, unless `saturate` is 0: then NaN or infinite."""


@operator("ConstantOfShape")
def constant_of_shape(shape: Host, *, value: Tensor = None) -> Array:
    """One value everywhere."""
    filling = np.zeros(1, np.float32) if value is None else value
    return np.full(checked(ints(shape), filling.dtype), filling.ravel()[0], filling.dtype)


@operator("Range")
def range_(start: Host, limit: Host, delta: Host) -> Array:
    """Numbers from `start` on, `delta` apart, below `limit`."""
    number = max(int(np.ceil((limit.item() - start.item()) / delta.item())), 0)
    checked([number], start.dtype)
    if start.dtype.kind in "iu":
        return np.arange(number, dtype=start.dtype) * delta + start
    return (np.arange(number) * delta.item() + start.item()).astype(start.dtype)


@operator("EyeLike")
def eye_like(x: Anywhere, *, dtype: int | None = None, k: int = 0) -> Array:
    """Ones on a diagonal, in the shape of x."""
    return np.eye(x.shape[0], x.shape[1], k, x.dtype if dtype is None else dtype_of(dtype))


@operator("Cast")
def cast(x: Array, *, to: int, saturate: int = 1, round_mode: str = "up") -> Array:
    """The elements in another dtype."""
    return converted(x, dtype_of(to), saturate)


@operator("CastLike")
def cast_like(x: Array, target: Anywhere, *, saturate: int = 1, round_mode: str = "up") -> Array:
    """The elements in the dtype of another array."""
    return converted(x, target.dtype, saturate)


def converted(x: Array, dtype: np.dtype[Any], saturate: int = 1) -> Array:
    """X in `dtype`; strings are not converted."""
    if x.dtype.kind in "OSU" or dtype.kind in "OSU":
        raise refuse(f"casts {x.dtype} to {dtype}, expected numbers")
    if x.dtype == dtype:
        return x
    if not isinstance(x, np.ndarray) and dtype.kind == "V":
        raise refuse(f"casts to {dtype.name} on a device, which has no arrays of it")
    if dtype.name not in _LARGEST_OF_EIGHT_BITS or not saturate:
        return x.astype(dtype)
    xp, most = namespace(x), _LARGEST_OF_EIGHT_BITS[dtype.name]
    wide = x.astype(np.float32)
    return xp.where(xp.isnan(wide), wide, xp.clip(wide, -most, most)).astype(dtype)


@operator("Dropout", 12)
def dropout(x: Array, ratio: Host = None, training_mode: Host = None, *, seed: int | None = None, count: int) -> Any:
    """X itself: nothing is dropped where a model runs."""
    if training_mode is not None and bool(training_mode) and (ratio is None or float(ratio)):
        raise refuse("training_mode is true, expected false")
    return (x, namespace(x).ones(x.shape, bool)) if count > 1 else x


@operator("Dropout", 1)
def dropout_of_old(
    x: Array, *, consumed_inputs: list[int] | None = None, is_test: int = 1, ratio: float = 0.5, count: int
) -> Any:
    """As `dropout`."""
    return (x, namespace(x).ones(x.shape, bool)) if count > 1 else x


@operator("BitCast")
def bit_cast(x: Array, *, to: int) -> Array:
    """The bits of the elements, read as another dtype of the same size."""
    dtype = dtype_of(to)
    if dtype.itemsize != x.dtype.itemsize:
        raise ValueError(f"casts {x.dtype} to {dtype}, expected a dtype of as many bits")
    return x.view(dtype)
