"""Elementwise operations with numbers, one after the other, in one pass over memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpucnn.onnx.operators.arrays import namespace
from gpucnn.onnx.operators.registry import OWN, Array, operator

BLOCK = 1 << 18  # elements, which with their results stay in the last cache from step to step

Step = Callable[[Any, Array, Array, Array, list[float]], None]  # library, source, result, scratch, numbers


def _add(xp: Any, x: Array, y: Array, scratch: Array, numbers: list[float]) -> None:
    xp.add(x, numbers[0], out=y)


def _mul(xp: Any, x: Array, y: Array, scratch: Array, numbers: list[float]) -> None:
    xp.multiply(x, numbers[0], out=y)


def _div(xp: Any, x: Array, y: Array, scratch: Array, numbers: list[float]) -> None:
    xp.true_divide(x, numbers[0], out=y)


def _clip(xp: Any, x: Array, y: Array, scratch: Array, numbers: list[float]) -> None:
    xp.clip(x, *numbers, out=y)  # in a third of the time of NumPy's maximum and minimum


def _relu(xp: Any, x: Array, y: Array, scratch: Array, numbers: list[float]) -> None:
    xp.clip(x, 0, np.inf, out=y)


def _hard_sigmoid(xp: Any, x: Array, y: Array, scratch: Array, numbers: list[float]) -> None:
    xp.multiply(x, numbers[0], out=y)
    xp.add(y, numbers[1], out=y)
    _clip(xp, y, y, scratch, [0.0, 1.0])


def _hard_swish(xp: Any, x: Array, y: Array, scratch: Array, numbers: list[float]) -> None:
    _hard_sigmoid(xp, x, scratch, scratch, [1 / 6, 0.5])
    xp.multiply(x, scratch, out=y)


STEPS: dict[str, tuple[Step, int]] = {
    "add": (_add, 1), "mul": (_mul, 1), "div": (_div, 1), "clip": (_clip, 2), "relu": (_relu, 0),
    "hard_sigmoid": (_hard_sigmoid, 2), "hard_swish": (_hard_swish, 0),
}  # fmt: skip
"""By name the operation, and how many numbers it takes."""


@operator("Chain", domain=OWN)
def chain(x: Array, *, steps: list[str], numbers: list[float], rank: int = 0, out: Array = None) -> Array:
    """The steps, one after the other; of a result of at least `rank` axes, as the numbers' arrays had."""
    if x.ndim < rank:
        x = x.reshape(*(1,) * (rank - x.ndim), *x.shape)
    xp = namespace(x)
    y = xp.empty_like(x) if out is None else out
    for source, result in _blocks(x, y):
        scratch = xp.empty_like(result) if "hard_swish" in steps else result
        at = 0
        for name in steps:
            function, count = STEPS[name]
            function(xp, source, result, scratch, numbers[at : at + count])
            source, at = result, at + count
    return y


def _blocks(x: Array, y: Array) -> Iterator[tuple[Array, Array]]:
    """Parts of both arrays: blocks in the order of memory on the host, where that is one for both, else the whole."""
    if not isinstance(x, np.ndarray) or x.size <= BLOCK or x.strides != y.strides:
        yield x, y
        return
    source, result = (array.ravel(order="K") for array in (x, y))  # a dense array, of which this is a view
    if not np.may_share_memory(result, y):
        yield x, y
        return
    for start in range(0, source.size, BLOCK):
        yield source[start : start + BLOCK], result[start : start + BLOCK]
