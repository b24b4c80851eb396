"""Watched runs of a network: the forwards of its modules are replaced, and arrays know where they are from."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

Forward = Callable[..., Any]


@contextmanager
def watched(model: Any, watching: Callable[[Any, Forward], Forward]) -> Iterator[None]:
    """Within the block the forward of each module of `model` is ``watching(module, forward)``.

    Modules are then not joined into one pass (`gpucnn.nn._fusion`): each runs.
    """
    before = {module: vars(module).get("forward") for module in model.modules()}  # a shared module once
    try:
        for module in before:
            vars(module)["forward"] = watching(module, module.forward)
        yield
    finally:
        for module, forward in before.items():
            vars(module).pop("forward", None)
            if forward is not None:
                vars(module)["forward"] = forward


class Traced(np.ndarray):
    """An array of a watched run: NumPy's own, but its tracer computes what NumPy's functions make of it.

    Attributes
    ----------
    tracer : object
        It has ``computed(function, arguments, options)``.
    name : str or None
        The tensor that it is; None of a view, whose making no tracer saw.
    """

    tracer: Any = None
    name: str | None = None

    def __array_finalize__(self, parent: Any) -> None:
        self.tracer = getattr(parent, "tracer", None)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return _tracer(inputs).computed(getattr(ufunc, method) if method != "__call__" else ufunc, inputs, options)

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        return _tracer(arguments).computed(function, arguments, options)

    def __getitem__(self, key: Any) -> Any:
        return self.tracer.computed(operator.getitem, (self, key), {})

    def reshape(self, *shape: Any, **options: Any) -> Any:
        return self.tracer.computed(np.reshape, (self, shape[0] if len(shape) == 1 else shape), options)

    def transpose(self, *axes: Any) -> Any:
        return self.tracer.computed(np.transpose, (self, axes[0] if len(axes) == 1 else axes or None), {})

    def mean(self, *arguments: Any, **options: Any) -> Any:
        return self.tracer.computed(np.mean, (self, *arguments), options)

    def sum(self, *arguments: Any, **options: Any) -> Any:
        return self.tracer.computed(np.sum, (self, *arguments), options)


class Sketch(np.lib.mixins.NDArrayOperatorsMixin):
    """Shape and dtype of an array of a watched run that computes nothing; its tracer records what is made of it.

    Attributes
    ----------
    tracer : object
        It has ``computed(function, arguments, options)``.
    number : int
        Place among the tracer's arrays.
    """

    def __init__(self, tracer: Any, number: int, shape: tuple[int, ...], dtype: Any) -> None:
        self.tracer, self.number = tracer, number
        self.shape, self.dtype, self.ndim = shape, np.dtype(dtype), len(shape)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return self.tracer.computed(getattr(ufunc, method) if method != "__call__" else ufunc, inputs, options)

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        return self.tracer.computed(function, arguments, options)

    def __getitem__(self, key: Any) -> Any:
        return self.tracer.computed(operator.getitem, (self, key), {})


def is_watched(*arrays: Any) -> bool:
    """Whether a tracer computes what is made of one of the arrays."""
    return not _WATCHED.isdisjoint(map(type, arrays))


_WATCHED = {Traced, Sketch}


def _tracer(values: Any) -> Any:
    """The tracer of the first traced array among values, which may be lists of them."""
    for value in values:
        if isinstance(value, Traced):
            return value.tracer
        found = _tracer(value) if isinstance(value, list | tuple) else None
        if found is not None:
            return found
    return None


def traced(array: Any, tracer: Any, name: str) -> Traced:
    """The array as the tensor of that name."""
    view = np.asarray(array).view(Traced)
    view.tracer, view.name = tracer, name
    return view


def plain(value: Any) -> Any:
    """`value` with NumPy's arrays for traced ones, in lists and tuples too."""
    if isinstance(value, Traced):
        return value.view(np.ndarray)
    return type(value)(map(plain, value)) if type(value) in (list, tuple) else value
