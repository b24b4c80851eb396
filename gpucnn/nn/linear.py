"""The fully connected layer."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

import gpucnn.functional as F
from gpucnn.geometry.arguments import integer
from gpucnn.nn._family import Weighted
from gpucnn.nn.module import Array

__all__ = ["Linear"]


class Linear(Weighted):
    """Fully connected layer, ``x @ weight.T + bias``, as ``torch.nn.Linear``.

    Parameters
    ----------
    in_features, out_features : int
        Size of the last axis before and after.
    bias : bool
        Add one.
    dtype : dtype
        Of the parameters.
    rng : numpy.random.Generator, int or None
        The source of the initial parameters: a generator, a seed, or fresh.

    Attributes
    ----------
    weight : Parameter [OUT, IN]
        At first uniform in ±1 / sqrt(IN).
    bias : Parameter [OUT] or None
        As `weight`.

    Raises
    ------
    TypeError, ValueError
        A parameter is of another type or out of range.

    Examples
    --------
    >>> Linear(3, 2)(np.ones((5, 3), np.float32)).shape
    (5, 2)
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, dtype: Any = np.float32, rng: Any = None
    ) -> None:
        self.in_features = integer("Linear", "in_features", in_features, 1)
        self.out_features = integer("Linear", "out_features", out_features, 1)
        self._draw((self.out_features, self.in_features), (self.out_features,), bias, dtype, rng)

    def forward(self, x: Array) -> Array:
        """``x @ weight.T + bias``: array [*, IN] to array [*, OUT]."""
        operands = self._operands(x)
        y = F.linear(*operands[1:])
        self.keep(operands)
        return y

    def backward(self, grad_output: Array) -> Array:
        """``grad_output @ weight``; the gradients with respect to weight and bias are accumulated."""
        (operands,) = self.kept()
        return self._multiplied_backward(F.linear_backward, grad_output, operands)

    def multiply_adds(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> int:
        """One for each weight, in each row."""
        return prod(input_shape[1:-1]) * self.in_features * self.out_features

    def extra_repr(self) -> str:
        """The sizes."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
