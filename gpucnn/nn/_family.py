"""Bases of layers: a family with members for 1-d to 3-d images, a window that steps, a weight and a bias."""

from __future__ import annotations

import re
from collections.abc import Callable
from inspect import cleandoc
from math import prod, sqrt
from types import FunctionType
from typing import Any, ClassVar, NamedTuple, TypeVar
from typing import cast as typed

import numpy as np

import gpucnn.functional as F
from gpucnn.functional._family import SPACE, fill
from gpucnn.geometry import Padding, Size, TransposedWindow, Window, same_padding
from gpucnn.geometry.arguments import SAME, Pairs, boolean, integers, padding_form
from gpucnn.nn.module import Array, Module, Parameter
from gpucnn.nn.precision import HALVES, cast, half

Family = TypeVar("Family", bound="Ranked")

# Sections that the docstrings of all families have; one that a docstring has itself is not added
_RAISES = """\
Raises
------
TypeError, ValueError
    A parameter is of another type or out of range.

"""
_SEE_ALSO = """\
See Also
--------
gpucnn.functional.{op}

"""


class Ranked(Module):
    """A family of layers: ``class ConvNd(Ranked, op="conv{n}d")`` is it, ``class Conv2d(ConvNd, rank=2)`` a member.

    A member takes its docstring from the family, filled in as those of operations are, with the sections Raises and
    See Also, and has `rank`, `function` and `gradient`: the operation of its rank and that one's gradient.
    """

    rank: ClassVar[int]
    function: ClassVar[Callable[..., Any]]
    gradient: ClassVar[Callable[..., Any]]
    _op: ClassVar[str]
    _members: ClassVar[dict[int, Any]]

    def __init_subclass__(cls, op: str | None = None, rank: int | None = None) -> None:
        super().__init_subclass__()
        if op is not None:
            cls._op, cls._members = op, {}
        if rank is not None:
            cls.rank, cls._members[rank] = rank, cls
            cls.__doc__ = fill(_with_sections(cls.__mro__[1].__doc__ or "", cls._op), rank)
            _name_constructor(cls)
            name = cls._op.format(n=rank)
            cls.function = staticmethod(getattr(F, name))
            cls.gradient = staticmethod(getattr(F, f"{name}_backward"))

    @classmethod
    def member(cls: type[Family], rank: int) -> type[Family]:
        """The family's layer for images of that rank."""
        member: type[Family] = cls._members[rank]
        return member

    def _sizes(self, name: str, value: Size, least: int = 1) -> tuple[int, ...]:
        """`value` as one int for each axis."""
        return integers(type(self).__name__, name, value, self.rank, least)

    def _space(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The spatial sizes of an image of that shape."""
        return tuple(shape[-self.rank :])

    def _expect_image(self, x: Array) -> None:
        """Raise ValueError unless x has the axes of an image, or of a batch of them."""
        self._expect_axes(x, f"N, C, {SPACE[self.rank]}", f"C, {SPACE[self.rank]}")

    def _expect_axes(self, x: Array, *forms: str) -> None:
        """Raise ValueError unless x has as many axes as one of `forms`, such as "N, C, W"."""
        counts = [form.count(",") + 1 for form in forms]
        if x.ndim not in counts:
            expected = " or ".join(f"{count} ({form})" for count, form in zip(counts, forms, strict=True))
            raise ValueError(f"{type(self).__name__}: input has {x.ndim} dimensions, expected {expected}")


def _with_sections(text: str, op: str) -> str:
    """A family's docstring with the sections that all have, in their place: before the notes and what follows them."""
    text = cleandoc(text)
    sections = ("" if "\nRaises\n" in text else _RAISES) + _SEE_ALSO.format(op=op)
    return re.sub(r"^(?=(Notes|References|Examples)\n-)", sections, text, count=1, flags=re.MULTILINE)


def _name_constructor(cls: type) -> None:
    """Give a member a constructor under its own name, which Python's messages about arguments then show."""
    source = typed(FunctionType, cls.__init__)  # type: ignore[misc]
    own = FunctionType(source.__code__, source.__globals__, "__init__", source.__defaults__, source.__closure__)
    own.__kwdefaults__, own.__annotations__ = source.__kwdefaults__, source.__annotations__
    own.__qualname__, own.__module__ = f"{cls.__name__}.__init__", cls.__module__
    cls.__init__ = own  # type: ignore[misc]


class Windowed(Ranked):
    """A layer with a window: its size, its step, the padding of the image, and the step of its taps."""

    def _set_window(self, kernel_size: Size, stride: Size, padding: Padding, dilation: Size = 1) -> None:
        self.kernel_size = self._sizes("kernel_size", kernel_size)
        self.stride = self._sizes("stride", stride)
        self.padding = self._padding(padding)
        self.dilation = self._sizes("dilation", dilation)

    def _padding(self, value: Padding) -> Any:
        """`value`, which is a padding, as a word, one int for each axis, or a pair where low and high differ."""
        form = padding_form(type(self).__name__, value, self.rank)
        if isinstance(value, str) or isinstance(form, str):
            return value
        return tuple(low for low, _ in form) if all(low == high for low, high in form) else form

    def _pairs(self, space: tuple[int, ...]) -> Pairs:
        """The padding of an image of that size as (low, high) of each axis."""
        form = padding_form(type(self).__name__, self.padding, self.rank)
        if not isinstance(form, str):
            return form
        pairs: Pairs = same_padding(space, self.kernel_size, self.stride, self.dilation, lower=form == SAME[1])
        return pairs


class Sliding(Windowed):
    """A layer whose window slides over its input."""

    def window(self, input_shape: tuple[int, ...]) -> Window:
        """The dilated window."""
        return Window(self.kernel_size, self.stride, self._pairs(self._space(input_shape)), self.dilation)


class Enlarging(Windowed):
    """A layer whose window slides over its output: the reverse of a layer with that window."""

    def window(self, input_shape: tuple[int, ...]) -> TransposedWindow:
        """The dilated window of the layer that this one reverses, whatever position in it a value has."""
        sizes = tuple(size * step for size, step in zip(self._space(input_shape), self.stride, strict=True))
        return TransposedWindow(self.kernel_size, self.stride, self._pairs(sizes), self.dilation)


class Operands(NamedTuple):
    """The arrays that a layer multiplied, which its backward takes, and the dtype that its input had."""

    dtype: Any
    x: Array
    weight: Array
    bias: Array | None


class Weighted(Module):
    """A layer with a weight and a bias, either of which may be None."""

    weight: Any
    bias: Parameter | None

    def _draw(
        self,
        shape: tuple[int, ...],
        bias_shape: tuple[int, ...],
        bias: bool,
        dtype: Any,
        rng: Any,
        fan_in: int | None = None,
    ) -> None:
        """Set the weight, and the bias if there is to be one; the default fan in is the size of ``weight[0]``."""
        biased, generator = boolean(type(self).__name__, "bias", bias), np.random.default_rng(rng)
        inputs = prod(shape[1:]) if fan_in is None else fan_in
        self.weight = uniform(generator, shape, inputs, dtype)
        self.bias = uniform(generator, bias_shape, inputs, dtype) if biased else None

    def _arrays(self) -> tuple[Array | None, Array | None]:
        """The values of weight and bias."""
        return _data(self.weight), _data(self.bias)

    def _operands(self, x: Array) -> Operands:
        """x, weight and bias as an operation takes them: x and weight in 16 bits within `mixed_precision`."""
        weight, bias = _data(self.weight), _data(self.bias)
        dtype, given = half(), getattr(x, "dtype", None)
        if dtype is not None and weight.dtype == np.float32 and str(given) in ("float32", *HALVES):
            x, weight = cast(x, dtype), cast(weight, dtype)
        return Operands(given, x, weight, bias)

    def _multiplied_backward(self, gradient: Any, grad_output: Array, operands: Operands, **options: Any) -> Array:
        """The gradient of the input by the operation `gradient`; those of the parameters are accumulated."""
        given, *arrays = operands
        dtype = self.weight.data.dtype
        if operands.weight.dtype == dtype:
            return self._accumulated(gradient(grad_output, *arrays, **options, needs=self._needs()))
        grad_output = cast(grad_output, operands.x.dtype)
        grad = self._accumulated(gradient(grad_output, *arrays, **options, needs=self._needs(), dtype=dtype))
        return None if grad is None else cast(grad, given)

    def _needs(self, others: int = 0) -> tuple[bool, ...]:
        """Whether to compute the gradients of the input, of so many other arrays (no), of weight and of bias."""
        wanted = (parameter is not None and parameter.requires_grad for parameter in (self.weight, self.bias))
        return (self.needs_input_grad, *(False,) * others, *wanted)

    def _accumulated(self, grads: tuple[Array | None, ...]) -> Array:
        """The gradient of the input, the first of `grads`; the last two are added to those of weight and bias."""
        for parameter, grad in zip((self.weight, self.bias), grads[-2:], strict=True):
            if parameter is not None and grad is not None:
                parameter.accumulate(grad)
        return grads[0]


def _data(parameter: Parameter | None) -> Array:
    return None if parameter is None else parameter.data


def uniform(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int, dtype: Any) -> Parameter:
    """Numbers in ±1 / sqrt(fan_in), the initial values of PyTorch's layers, weights and biases alike."""
    bound = 1 / sqrt(fan_in)
    return Parameter(rng.uniform(-bound, bound, shape).astype(dtype))


def shown(**arguments: Any) -> str:
    """Arguments as a repr shows them."""
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
