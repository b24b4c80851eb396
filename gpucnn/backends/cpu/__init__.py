"""The CPU backend in C++: primitives of float32 and float64 by compiled kernels, all others as NumPy computes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

import numpy as np

from gpucnn.backends.base import Backend
from gpucnn.backends.cpu import (
    builds,
    convolution,
    elementwise,
    locally_connected,
    normalization,
    pooling,
    resampling,
    unfolding,
)
from gpucnn.backends.cpu.library import addressable, is_addressable
from gpucnn.backends.numpy import NumpyBackend

DTYPES = frozenset(map(np.dtype, builds.DTYPES))
Primitive = Callable[..., None]


def _compiled(*modules: ModuleType) -> Callable[[type], type]:
    """Replace the primitives of a NumPy backend by the functions of the same names in `modules`, for `DTYPES`."""

    def replace(backend: type) -> type:
        for module in modules:
            for name, function in vars(module).items():
                if getattr(function, "__module__", "") == module.__name__ and name in Backend.__abstractmethods__:
                    setattr(backend, name, staticmethod(_by_dtype(function, getattr(NumpyBackend, name))))
        return backend

    return replace


def _by_dtype(compiled: Primitive, plain: Primitive) -> Primitive:
    """The primitive in C++ for the dtypes that it has, in NumPy for others and of nothing: by the first array."""

    @wraps(compiled)
    def primitive(*arguments: Any) -> None:
        if arguments[0].dtype not in DTYPES or arguments[0].size == 0:
            plain(*arguments)
            return
        if all(is_addressable(value) for value in arguments if isinstance(value, np.ndarray)):
            compiled(*arguments)
            return
        taken = [addressable(value) if isinstance(value, np.ndarray) else value for value in arguments]
        compiled(*taken)
        for given, copy in zip(arguments, taken, strict=True):
            if given is not copy and given.flags.writeable:
                given[...] = copy

    return primitive


@_compiled(convolution, elementwise, locally_connected, normalization, pooling, resampling, unfolding)
class CompiledBackend(NumpyBackend):
    """Primitives over `numpy.ndarray` in C++ where there is a kernel, else in NumPy."""

    name = "compiled"

    empty_weight = staticmethod(convolution.empty_weight)
