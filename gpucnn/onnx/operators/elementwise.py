"""Arithmetic, comparisons and logic, element by element."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np

from gpucnn.backends.normal import BOUND, normal_share_and_density
from gpucnn.onnx.operators.arrays import axis_of, namespace, written
from gpucnn.onnx.operators.registry import Array, operator, refuse

# --- Functions of the array library ---------------------------------------------------------------------------------

_UNARY = {
    "Abs": "abs", "Acos": "arccos", "Acosh": "arccosh", "Asin": "arcsin", "Asinh": "arcsinh", "Atan": "arctan",
    "Atanh": "arctanh", "BitwiseNot": "invert", "Ceil": "ceil", "Cos": "cos", "Cosh": "cosh", "Exp": "exp",
    "Floor": "floor", "IsNaN": "isnan", "Log": "log", "Neg": "negative", "Not": "logical_not",
    "Reciprocal": "reciprocal", "Round": "rint", "Sign": "sign", "Sin": "sin", "Sinh": "sinh", "Sqrt": "sqrt",
    "Tan": "tan", "Tanh": "tanh",
}  # fmt: skip
_BINARY = {
    "Add": "add", "And": "logical_and", "BitwiseAnd": "bitwise_and", "BitwiseOr": "bitwise_or",
    "BitwiseXor": "bitwise_xor", "Equal": "equal", "Greater": "greater", "GreaterOrEqual": "greater_equal",
    "Less": "less", "LessOrEqual": "less_equal", "Mul": "multiply", "Or": "logical_or", "Sub": "subtract",
    "Xor": "logical_xor",
}  # fmt: skip
_BROADCAST_SINCE = 7  # before it, `broadcast` and `axis` say how the second array fits the first
_LEGACY = ("Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor")


def _unary(name: str) -> Any:
    def function(x: Array, *, out: Array = None) -> Array:
        return getattr(namespace(x), name)(x, out=out)

    return function


def _binary(name: str) -> Any:
    def function(a: Array, b: Array, *, out: Array = None) -> Array:
        return getattr(namespace(a), name)(a, b, out=out)

    return function


for _op, _name in _UNARY.items():
    operator(_op)(_unary(_name))
_FUNCTIONS = {op: _binary(name) for op, name in _BINARY.items()}


def divided(a: Array, b: Array, *, out: Array = None) -> Array:
    """The quotient; of integers rounded towards 0."""
    xp = namespace(a)
    if a.dtype.kind not in "iu":
        return xp.true_divide(a, b, out=out)
    quotient = a // b
    if a.dtype.kind == "i":
        quotient = quotient + ((a % b != 0) & ((a < 0) != (b < 0))).astype(a.dtype)
    return written(quotient, out)


def raised(x: Array, power: Array, *, out: Array = None) -> Array:
    """The power, in the dtype of the base."""
    xp = namespace(x)
    if x.dtype.kind == "f" and power.size == 1 and isinstance(power, np.ndarray) and power.ndim <= x.ndim:
        exponent = power.item()
        if exponent == 2:
            return xp.multiply(x, x, out=out)  # the general power takes some ten times as long
        if exponent == 0.5:
            return xp.sqrt(x, out=out)
    return written(xp.power(x, power).astype(x.dtype, copy=False), out)


_FUNCTIONS |= {"Div": divided, "Pow": raised}
for _op, _function in _FUNCTIONS.items():
    operator(_op, _BROADCAST_SINCE if _op in _LEGACY else 1)(_function)


def _legacy(function: Any) -> Any:
    def broadcasting(a: Array, b: Array, *, broadcast: int = 0, axis: int | None = None) -> Array:
        if broadcast and axis is not None:
            b = b.reshape(*b.shape, *(1,) * (a.ndim - axis_of(axis, a.ndim) - b.ndim))
        return function(a, b)

    return broadcasting


for _op in _LEGACY:
    operator(_op, 1)(_legacy(_FUNCTIONS[_op]))

# --- Of several arrays ----------------------------------------------------------------------------------------------


@operator("Max")
def maximum(first: Array, *others: Array) -> Array:
    """The largest of the arrays."""
    return reduce(namespace(first).maximum, others, first)


@operator("Min")
def minimum(first: Array, *others: Array) -> Array:
    """The smallest of the arrays."""
    return reduce(namespace(first).minimum, others, first)


@operator("Sum")
def total(first: Array, *others: Array) -> Array:
    """The sum of the arrays."""
    return reduce(namespace(first).add, others, first)


@operator("Mean")
def mean(first: Array, *others: Array) -> Array:
    """The mean of the arrays."""
    return total(first, *others) / (1 + len(others))


@operator("Where")
def where(condition: Array, x: Array, y: Array) -> Array:
    """Elements of x where the condition holds, else of y."""
    xp = namespace(condition)
    if x.dtype != y.dtype:
        raise ValueError(f"X has dtype {x.dtype} and Y {y.dtype}, expected one dtype")
    return xp.where(condition, x, y).astype(x.dtype, copy=False)


# --- Others -----------------------------------------------------------------------------------------------------------


@operator("Mod")
def modulo(a: Array, b: Array, *, fmod: int = 0) -> Array:
    """The remainder, with the sign of the divisor, or with `fmod` of the dividend."""
    xp = namespace(a)
    if not fmod:
        return xp.remainder(a, b)
    return a - b * divided(a, b) if a.dtype.kind in "iu" else xp.fmod(a, b)


@operator("BitShift")
def bit_shift(x: Array, y: Array, *, direction: str) -> Array:
    """The bits of unsigned integers, moved to the left or to the right."""
    if direction not in ("LEFT", "RIGHT"):
        raise refuse(f"direction is {direction!r}, expected 'LEFT' or 'RIGHT'")
    return x << y if direction == "LEFT" else x >> y


@operator("IsInf")
def is_infinite(x: Array, *, detect_negative: int = 1, detect_positive: int = 1) -> Array:
    """Whether each element is infinite, of a sign that counts."""
    found = namespace(x).isinf(x)
    if not detect_negative:
        found &= x > 0
    if not detect_positive:
        found &= x < 0
    return found


@operator("Erf")
def erf(x: Array) -> Array:
    """The error function."""
    xp = namespace(x)
    wide = xp.clip(x.astype(np.float64) * 2**0.5, -BOUND, BOUND)  # 2 * share - 1 would cancel in float32
    share, _ = normal_share_and_density(xp, wide)
    return (2 * share - 1).astype(x.dtype)


@operator("Clip", 1)
def clip_by_attributes(x: Array, *, min: float | None = None, max: float | None = None) -> Array:
    """Each element within bounds that the model fixes."""
    return clipped(x, min, max)


@operator("Clip", 11)
def clip(x: Array, min: Array = None, max: Array = None) -> Array:
    """Each element within bounds, either of which may be left out."""
    return clipped(x, min, max)


def clipped(x: Array, low: Any, high: Any) -> Array:
    """Elements of at least `low` and at most `high`; None is no bound."""
    xp = namespace(x)
    if low is not None and high is not None:
        return xp.clip(x, low, high).astype(x.dtype, copy=False)
    if low is None and high is None:
        return x
    return (xp.minimum(x, high) if low is None else xp.maximum(x, low)).astype(x.dtype, copy=False)
