"""One definition for the 1-d, 2-d and 3-d members of a family of layers, and their first parameters."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from types import FunctionType
from typing import Any, ClassVar, cast

import numpy as np

import gpucnn.functional as F
from gpucnn.functional._family import SPACE, fill
from gpucnn.geometry.arguments import Padding, Size, integers, padding_form
from gpucnn.nn.module import Array, Module, Parameter


class Ranked(Module):
    """A family of layers: ``class ConvNd(Ranked, op="conv{n}d")`` is it, ``class Conv2d(ConvNd, rank=2)`` a member.

    A member takes its docstring from the family, filled in as those of operations are, and has `rank`, `function` and
    `gradient`: the operation of its rank and that one's gradient.
    """

    rank: ClassVar[int]
    function: ClassVar[Callable[..., Any]]
    gradient: ClassVar[Callable[..., Any]]
    _op: ClassVar[str] = ""

    def __init_subclass__(cls, op: str | None = None, rank: int | None = None) -> None:
        super().__init_subclass__()
        if op is not None:
            cls._op = op
        if rank is not None:
            cls.rank = rank
            cls.__doc__ = fill(cls.__mro__[1].__doc__ or "", rank)
            _name_constructor(cls)
            if cls._op:
                name = cls._op.format(n=rank)
                cls.function = staticmethod(getattr(F, name))
                cls.gradient = staticmethod(getattr(F, f"{name}_backward"))

    def _sizes(self, name: str, value: Size, least: int = 1) -> tuple[int, ...]:
        """`value` as one int for each axis."""
        return integers(type(self).__name__, name, value, self.rank, least)

    def _padding(self, value: Padding) -> Any:
        """`value`, which is a padding, as a word, one int for each axis, or a pair where low and high differ."""
        form = padding_form(type(self).__name__, value, self.rank)
        if isinstance(value, str) or isinstance(form, str):
            return value
        return tuple(low for low, _ in form) if all(low == high for low, high in form) else form

    def _space(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The spatial sizes of an image of that shape."""
        return tuple(shape[-self.rank :])

    def _expect_image(self, x: Array, unbatched: bool = True) -> None:
        """Raise ValueError unless x has the axes of an image."""
        space = SPACE[self.rank]
        expected = f"{self.rank + 2} (N, C, {space})" + (f" or {self.rank + 1} (C, {space})" if unbatched else "")
        if x.ndim != self.rank + 2 and not (unbatched and x.ndim == self.rank + 1):
            raise ValueError(f"{type(self).__name__}: input has {x.ndim} dimensions, expected {expected}")


def _name_constructor(cls: type) -> None:
    """Give a member a constructor under its own name, which Python's messages about arguments then show."""
    source = cast(FunctionType, cls.__init__)  # type: ignore[misc]
    own = FunctionType(source.__code__, source.__globals__, "__init__", source.__defaults__, source.__closure__)
    own.__kwdefaults__, own.__annotations__ = source.__kwdefaults__, source.__annotations__
    own.__qualname__, own.__module__ = f"{cls.__name__}.__init__", cls.__module__
    cls.__init__ = own  # type: ignore[misc]


def uniform(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int, dtype: Any) -> Parameter:
    """Numbers in ±1 / sqrt(fan_in), the initial values of PyTorch's layers, weights and biases alike."""
    bound = 1 / sqrt(fan_in)
    return Parameter(rng.uniform(-bound, bound, shape).astype(dtype))


def weights(
    shape: tuple[int, ...], fan_in: int, bias_shape: tuple[int, ...] | None, dtype: Any, rng: Any
) -> tuple[Parameter, Parameter | None]:
    """A weight, and a bias where there is a shape for one."""
    generator = np.random.default_rng(rng)
    weight = uniform(generator, shape, fan_in, dtype)
    return weight, None if bias_shape is None else uniform(generator, bias_shape, fan_in, dtype)


def data_of(parameter: Parameter | None) -> Array | None:
    """The array of a parameter, None of an absent one."""
    return None if parameter is None else parameter.data


def wanted(*parameters: Parameter | None) -> tuple[bool, ...]:
    """The flags of the parameters whose gradients are to be computed."""
    return tuple(parameter is not None and parameter.requires_grad for parameter in parameters)


def accumulate(parameters: tuple[Parameter | None, ...], grads: tuple[Array | None, ...]) -> None:
    """Add each gradient that was computed to its parameter."""
    for parameter, grad in zip(parameters, grads, strict=True):
        if parameter is not None and grad is not None:
            parameter.accumulate(grad)


def shown(**arguments: Any) -> str:
    """Arguments as a repr shows them."""
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
