"""The CPU backend in C++: floating-point primitives by compiled kernels, all others as NumPy computes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from types import ModuleType
from typing import Any

import numpy as np

from gpucnn.backends.base import Backend, Epilogue
from gpucnn.backends.cpu import (
    builds,
    convolution,
    elementwise,
    linear,
    locally_connected,
    normalization,
    optimization,
    pooling,
    resampling,
    smooth,
    unfolding,
    widening,
)
from gpucnn.backends.cpu.library import addressable, is_addressable
from gpucnn.backends.cpu.replays import LAUNCHING
from gpucnn.backends.listening import note_computed
from gpucnn.backends.numpy import NumpyBackend
from gpucnn.backends.numpy.memory import Array
from gpucnn.geometry import ConvGeometry
from gpucnn.numerics import algorithm

DTYPES = frozenset(map(np.dtype, builds.DTYPES))
Primitive = Callable[..., None]


def _compiled(*modules: ModuleType) -> Callable[[type], type]:
    """Replace the primitives of a NumPy backend by the functions of the same names in `modules`, for `DTYPES`."""

    def replaced(backend: type) -> type:
        for module in modules:
            for name, function in vars(module).items():
                if getattr(function, "__module__", "") == module.__name__ and name in Backend.__abstractmethods__:
                    setattr(backend, name, staticmethod(_by_dtype(function, getattr(NumpyBackend, name))))
        return backend

    return replaced


def _by_dtype(compiled: Primitive, plain: Primitive) -> Primitive:
    """The primitive in C++ for the dtypes that it has, in NumPy for others and of nothing: by the first array."""
    in_place = _on_addressable(compiled)
    name = compiled.__name__
    widened = widening.widened(in_place) if name in widening.RESULTS else plain

    @wraps(compiled)
    def primitive(*arguments: Any) -> None:
        first = arguments[0]
        if name not in LAUNCHING or first.dtype not in DTYPES:
            note_computed()
        if first.size == 0:
            with algorithm("direct"):  # of nothing, which NumPy computes whatever the caller asks of the kernels
                plain(*arguments)
        elif first.dtype in DTYPES:
            in_place(*arguments)
        elif widening.computes(name, arguments):
            widened(*arguments)
        else:
            plain(*arguments)

    return primitive


def _on_addressable(compiled: Primitive) -> Primitive:
    """The primitive on copies of arrays that a kernel cannot read in place."""

    @wraps(compiled)
    def primitive(*arguments: Any) -> None:
        taken = [_taken(value) for value in arguments]
        compiled(*taken)
        for given, copy in zip(arguments, taken, strict=True):
            if given is not copy and isinstance(given, np.ndarray) and given.flags.writeable:
                given[...] = copy

    return primitive


def _taken(argument: Any) -> Any:
    """An argument of a primitive, its array as a kernel can read it: itself, or the residual of an epilogue."""
    if isinstance(argument, np.ndarray | np.generic):  # NumPy's arithmetic makes scalars of arrays without axes
        return addressable(np.asarray(argument))
    if isinstance(argument, Epilogue) and argument.residual is not None and not is_addressable(argument.residual):
        return replace(argument, residual=addressable(argument.residual))
    return argument


@_compiled(convolution, elementwise, linear, locally_connected, normalization, pooling, resampling, unfolding)
class CompiledBackend(NumpyBackend):
    """Primitives over `numpy.ndarray` in C++ where there is a kernel, those of 16 bits in float32, else in NumPy."""

    name = "compiled"

    def convolve_activation(
        self, x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry, epilogue: Epilogue
    ) -> None:
        """As `Backend.convolve_activation`, in one pass where it is of `DTYPES` and kernels can add the residual."""
        arguments = map(_taken, (x, w, bias, y, geometry, epilogue))
        if not (x.dtype in DTYPES and x.size and is_addressable(y) and convolution.convolve_in_one_pass(*arguments)):
            super().convolve_activation(x, w, bias, y, geometry, epilogue)

    empty_weight = staticmethod(convolution.empty_weight)
    sgd = staticmethod(optimization.sgd)
    adam = staticmethod(optimization.adam)
    softmax = staticmethod(smooth.softmax)
    softmax_backward = staticmethod(smooth.softmax_backward)
    smooth_activation = staticmethod(smooth.smooth_activation)
    smooth_activation_backward = staticmethod(smooth.smooth_activation_backward)
