"""The functions of CuPy that elementwise operations use, over the simulator's arrays: the backend's `xp`.

Functions that CuPy lacks are absent here too, so that code that runs on the simulator finds its functions on a GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn.simulator.arrays import Array, Host, allocate, asarray, asnumpy, compute, placed, strided

__all__ = [
    "Array", "arange", "array", "asarray", "asnumpy", "empty", "empty_like", "eye", "full", "full_like", "linspace",
    "ndarray", "ones", "ones_like", "random", "zeros", "zeros_like",
]  # fmt: skip

ndarray = Array
newaxis, pi, inf, nan = None, np.pi, np.inf, np.nan

# --- New arrays ---------------------------------------------------------------------------------------------------


def empty(shape: Any, dtype: Any = float, order: Any = "C") -> Array:
    """An uninitialised array: NaN, where its dtype has one."""
    return _unwritten(np.empty(shape, dtype, order))


def empty_like(prototype: Array, dtype: Any = None, order: Any = "K", *, shape: Any = None) -> Array:
    """As `empty`, in the shape and memory order of `prototype`."""
    return _unwritten(np.empty_like(prototype._host, dtype, order, False, shape))


def _unwritten(form: Host) -> Array:
    """An array in the form of `form`."""
    memory = allocate(form.nbytes)
    if form.dtype == np.bool_:
        memory[...] = 1  # a bool holds nothing else
    return strided(memory, form.shape, form.dtype, form.strides, 0)


def full(shape: Any, fill_value: Any, dtype: Any = None, order: Any = "C") -> Array:
    """An array of one value."""
    value = fill_value._host if isinstance(fill_value, Array) else np.asarray(fill_value)
    array = empty(shape, value.dtype if dtype is None else dtype, order)
    array._host[...] = value
    return array


def zeros(shape: Any, dtype: Any = float, order: Any = "C") -> Array:
    """An array of zeros."""
    return full(shape, 0, dtype, order)


def ones(shape: Any, dtype: Any = float, order: Any = "C") -> Array:
    """An array of ones."""
    return full(shape, 1, dtype, order)


def full_like(prototype: Array, fill_value: Any, dtype: Any = None, order: Any = "K", *, shape: Any = None) -> Array:
    """An array of one value, in the shape and memory order of `prototype`."""
    array = empty_like(prototype, dtype, order, shape=shape)
    array[...] = fill_value
    return array


def zeros_like(prototype: Array, dtype: Any = None, order: Any = "K", *, shape: Any = None) -> Array:
    """An array of zeros, in the shape and memory order of `prototype`."""
    return full_like(prototype, 0, dtype, order, shape=shape)


def ones_like(prototype: Array, dtype: Any = None, order: Any = "K", *, shape: Any = None) -> Array:
    """An array of ones, in the shape and memory order of `prototype`."""
    return full_like(prototype, 1, dtype, order, shape=shape)


def array(values: Any, dtype: Any = None) -> Array:
    """A copy on the device."""
    return asarray(values, dtype).copy(order="K") if isinstance(values, Array) else asarray(values, dtype)


def arange(*bounds: Any, dtype: Any = None) -> Array:
    """As `numpy.arange`."""
    return placed(np.arange(*bounds, dtype=dtype))


def linspace(start: float, stop: float, num: int = 50, *, endpoint: bool = True, dtype: Any = None) -> Array:
    """As `numpy.linspace`."""
    return placed(np.linspace(start, stop, num, endpoint, dtype=dtype))


def eye(rows: int, columns: int | None = None, k: int = 0, dtype: Any = float) -> Array:
    """As `numpy.eye`."""
    return placed(np.eye(rows, columns, k, dtype))


# --- Functions of arrays ------------------------------------------------------------------------------------------

_SAME = (
    *("abs", "absolute", "add", "all", "amax", "amin", "any", "arccos", "arccosh", "arcsin", "arcsinh", "arctan"),
    *("arctanh", "argmax", "argmin", "argsort", "array_equal", "ascontiguousarray", "atleast_1d", "atleast_2d"),
    *("bincount", "bitwise_and", "bitwise_or", "bitwise_xor", "broadcast_arrays", "broadcast_to", "ceil", "clip"),
    *("concatenate", "conj", "conjugate", "copy", "copyto", "cos", "cosh", "count_nonzero", "cumprod", "cumsum"),
    *("diff", "divide", "dot", "einsum", "equal", "exp", "exp2", "expand_dims", "expm1", "flip", "floor"),
    *("floor_divide", "fmax", "fmin", "fmod", "greater", "greater_equal", "hypot", "imag", "invert", "isfinite"),
    *("isinf", "isnan", "less", "less_equal", "log", "log1p", "log2", "logical_and", "logical_not", "logical_or"),
    *("logical_xor", "matmul", "max", "maximum", "mean", "min", "minimum", "moveaxis", "multiply", "negative"),
    *("nonzero", "not_equal", "pad", "power", "prod", "ravel", "real", "reciprocal", "remainder", "repeat", "reshape"),
    *("rint", "roll", "round", "sign", "sin", "sinh", "sort", "split", "sqrt", "square", "squeeze", "stack", "std"),
    *("subtract", "sum", "swapaxes", "take", "take_along_axis", "tan", "tanh", "tensordot", "tile", "transpose"),
    *("tril", "triu", "true_divide", "trunc", "unique", "var", "vdot", "where"),
)
_UNCHANGED = (
    *("bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
    *("dtype", "finfo", "iinfo", "issubdtype", "result_type"),
)


def _on_device(name: str) -> Any:
    function = getattr(np, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return compute(function, *args, **kwargs)

    wrapper.__name__, wrapper.__doc__ = name, f"As `numpy.{name}`, over the simulator's arrays."
    return wrapper


globals().update({name: _on_device(name) for name in _SAME} | {name: getattr(np, name) for name in _UNCHANGED})


# --- Random numbers -----------------------------------------------------------------------------------------------


class Generator:
    """A generator that draws the numbers of one of NumPy's, onto the device."""

    def __init__(self, host: np.random.Generator) -> None:
        self._host = host

    def random(self, size: Any = None, dtype: Any = np.float64) -> Array:
        """Numbers in [0, 1)."""
        return asarray(self._host.random(size, dtype))

    def standard_normal(self, size: Any = None, dtype: Any = np.float64) -> Array:
        """Normally distributed numbers."""
        return asarray(self._host.standard_normal(size, dtype))

    def integers(self, low: int, high: int | None = None, size: Any = None, dtype: Any = np.int64) -> Array:
        """Integers in [low, high), or in [0, low)."""
        return asarray(self._host.integers(low, high, size, dtype))


class random:  # noqa: N801
    """The namespace of random numbers."""

    @staticmethod
    def default_rng(seed: Any = None) -> Generator:
        """A generator from a seed, fresh, or over the caller's generator."""
        return seed if isinstance(seed, Generator) else Generator(np.random.default_rng(seed))
