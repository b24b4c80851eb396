"""Parts of several networks: convolutions with their norm, and initial weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn.nn import initialization as init
from gpucnn.nn.activation import ReLU
from gpucnn.nn.convolution import Conv2d, ConvTranspose2d
from gpucnn.nn.linear import Linear
from gpucnn.nn.module import Module
from gpucnn.nn.normalization import BatchNorm2d


def conv_norm_relu(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    activation: type[Module] = ReLU,
    dtype: Any,
    rng: np.random.Generator,
    **options: Any,
) -> list[Module]:
    """A convolution that keeps the size at stride 1, without a bias that the norm would take away, norm, activation."""
    padding = kernel_size // 2
    return [
        Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=False, dtype=dtype, rng=rng, **options),
        BatchNorm2d(out_channels, dtype=dtype),
        activation(),
    ]


def start_rectified(model: Module, rng: np.random.Generator, *, linear_std: float | None = None) -> None:
    """Start as networks of rectified units do: convolutions by He et al. with the fan out, biases 0, norms 1 and 0.

    Linear weights are drawn with the standard deviation `linear_std`, and their biases are 0; None leaves them.
    """
    for module in model.modules():
        if isinstance(module, Conv2d | ConvTranspose2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", rng=rng)
        elif isinstance(module, Linear) and linear_std is not None:
            init.normal_(module.weight, 0.0, linear_std, rng=rng)
        else:
            continue
        if module.bias is not None:
            init.zeros_(module.bias)


def expect_positive(model: str, **sizes: int) -> None:
    """Raise ValueError unless each of `sizes` is at least 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{model}: {name} is {size}, expected at least 1")
