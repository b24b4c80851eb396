"""Primitives of 16-bit floats: arrays are converted to float32, and results back, rounded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from inspect import signature
from typing import Any

import numpy as np

from gpucnn.backends.base import Epilogue
from gpucnn.backends.cpu.elementwise import work_items
from gpucnn.backends.cpu.library import Kernel, launch
from gpucnn.backends.dtypes import name_of
from gpucnn.backends.numpy.memory import Array, empty_for_copy

DTYPES = frozenset({"float16", "bfloat16"})

# The results of each primitive that is quicker so than by NumPy, which converts as well, but by pieces and one by one.
RESULTS: Mapping[str, frozenset[str]] = {
    "convolve": frozenset({"y"}),
    "convolve_backward_input": frozenset({"grad_x"}),
    "convolve_backward_weight": frozenset({"grad_w"}),
    "locally_connect": frozenset({"y"}),
    "locally_connect_backward_input": frozenset({"grad_x"}),
    "locally_connect_backward_weight": frozenset({"grad_w"}),
    "col2im": frozenset({"x"}),
    "max_pool": frozenset({"y"}),
    "max_pool_backward": frozenset({"grad_x"}),
    "average_pool": frozenset({"y"}),
    "average_pool_backward": frozenset({"grad_x"}),
    "interpolate": frozenset({"y"}),
    "interpolate_backward": frozenset({"grad_x"}),
    "norm_statistics": frozenset({"mean", "var", "rstd"}),
    "norm_apply": frozenset({"y"}),
    "norm_forward": frozenset({"y", "mean", "var", "rstd"}),
    "norm_activation_backward": frozenset({"grad"}),
    "norm_backward": frozenset({"grad_x", "grad_weight", "grad_bias"}),
    "bias_activation": frozenset({"y"}),
    "bias_activation_backward": frozenset({"grad_x", "grad_bias"}),
    "channel_sums": frozenset({"sums"}),
}

_TO_FLOAT32 = {dtype: Kernel("convert", f"widen_{dtype}") for dtype in DTYPES}
_FROM_FLOAT32 = {dtype: Kernel("convert", f"narrow_{dtype}") for dtype in DTYPES}


def computes(primitive: str, arguments: Sequence[Any]) -> bool:
    """Whether a primitive of these arguments is computed so. Nearest samples are not: they are copies, of any dtype."""
    if primitive not in RESULTS or not is_narrow(arguments[0]):
        return False
    return primitive != "interpolate" or any(axis.blends for axis in arguments[-1].axes)


def is_narrow(array: Any) -> bool:
    """Whether this is an array of 16-bit floats."""
    return isinstance(array, np.ndarray) and name_of(array.dtype) in DTYPES


def widened(primitive: Callable[..., None]) -> Callable[..., None]:
    """The primitive of float32 for 16-bit arrays; others that it takes, of statistics or indices, stay as they are."""
    results = [name in RESULTS[primitive.__name__] for name in signature(primitive).parameters]

    @wraps(primitive)
    def compute(*arguments: Any) -> None:
        taken = [
            empty_for_copy(value, np.float32) if is_result and is_narrow(value) else _wide(value)
            for value, is_result in zip(arguments, results, strict=True)
        ]
        primitive(*taken)
        for given, wide, is_result in zip(arguments, taken, results, strict=True):
            if is_result and wide is not given:
                _narrow(wide, given)

    return compute


def _wide(value: Any) -> Any:
    """A 16-bit array, or that of an epilogue, in float32; anything else as it is."""
    if isinstance(value, Epilogue):
        return replace(value, residual=_wide(value.residual))
    if not is_narrow(value):
        return value
    wide = empty_for_copy(value, np.float32)
    if _is_alike(value, wide):
        _convert(_TO_FLOAT32, value, wide, name_of(value.dtype))
    else:
        wide[...] = value
    return wide


def _narrow(wide: Array, result: Array) -> None:
    if _is_alike(result, wide):
        _convert(_FROM_FLOAT32, wide, result, name_of(result.dtype))
    else:
        with np.errstate(over="ignore"):  # beyond float16 is infinity
            result[...] = wide


def _is_alike(narrow: Array, wide: Array) -> bool:
    """Whether both are dense, in one memory order."""
    steps = zip(narrow.shape, narrow.strides, wide.strides, strict=True)
    return bool(narrow.flags.aligned) and all(size == 1 or 2 * step == wide_step for size, step, wide_step in steps)


def _convert(kernels: Mapping[str, Kernel], x: Array, y: Array, dtype: str) -> None:
    items = work_items(x.size)
    launch(kernels[dtype], "float32", {"count": x.size, "items": items}, {"x": x, "y": y}, items)
