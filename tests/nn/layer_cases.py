"""One small case for each layer of `gpucnn.nn`: how it is made, and the shape of an input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn import nn

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A layer, made with a dtype, and the shape of what it takes."""

    make: Callable[[Any], nn.Module]
    shape: Shape
    positive: bool = False  # where powers are taken

    def layer(self, dtype: Any = np.float64) -> nn.Module:
        return randomised(self.make(dtype), 1)

    def input(self, dtype: Any = np.float64, seed: int = 2) -> np.ndarray[Any, Any]:
        x = np.random.default_rng(seed).standard_normal(self.shape)
        return (abs(x) + 0.1 if self.positive else x).astype(dtype)


def randomised(model: nn.Module, seed: int) -> nn.Module:
    """The model with random numbers in place of its ones and zeros."""
    rng = np.random.default_rng(seed)
    for parameter in model.parameters():
        parameter.data[...] = rng.standard_normal(parameter.shape)
    for name, array in model.named_buffers():
        if not name.endswith("num_batches_tracked"):
            array[...] = rng.uniform(0.5, 2.0, array.shape)
    return model


def _families() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for n in (1, 2, 3):
        size = {1: (7,), 2: (5, 6), 3: (4, 5, 3)}[n]
        image, half = (2, 4, *size), (2, 4, *(3,) * n)

        def of(name: str, n: int = n) -> Callable[..., nn.Module]:
            layer: Callable[..., nn.Module] = getattr(nn, f"{name}{n}d")
            return layer

        cases |= {
            f"Conv{n}d": Case(
                lambda dtype, of=of: of("Conv")(4, 6, 3, stride=2, padding=1, groups=2, dtype=dtype, rng=0), image
            ),
            f"ConvTranspose{n}d": Case(
                lambda dtype, of=of: of("ConvTranspose")(4, 6, 3, 2, 1, 1, groups=2, dtype=dtype, rng=0), half
            ),
            f"LocallyConnected{n}d": Case(
                lambda dtype, of=of, size=size: of("LocallyConnected")(
                    4, 3, size, 2, stride=2, padding=1, dtype=dtype, rng=0
                ),
                image,
            ),
            f"MaxPool{n}d": Case(lambda dtype, of=of: of("MaxPool")(3, 2, 1), image),
            f"AvgPool{n}d": Case(lambda dtype, of=of: of("AvgPool")(3, 2, 1, count_include_pad=False), image),
            f"SumPool{n}d": Case(lambda dtype, of=of: of("SumPool")(2, ceil_mode=True), image),
            f"LPPool{n}d": Case(lambda dtype, of=of: of("LPPool")(2.5, 2), image, positive=True),
            f"AdaptiveMaxPool{n}d": Case(lambda dtype, of=of: of("AdaptiveMaxPool")(2), image),
            f"AdaptiveAvgPool{n}d": Case(lambda dtype, of=of: of("AdaptiveAvgPool")(2), image),
            f"BedOfNails{n}d": Case(lambda dtype, of=of: of("BedOfNails")(2), half),
            f"BatchNorm{n}d": Case(lambda dtype, of=of: of("BatchNorm")(4, dtype=dtype), image),
            f"InstanceNorm{n}d": Case(
                lambda dtype, of=of: of("InstanceNorm")(4, affine=True, track_running_stats=True, dtype=dtype), image
            ),
            f"MaxUnpool{n}d": Case(lambda dtype, of=of: paired(of("MaxPool")(2), of("MaxUnpool")), image),
        }
    return cases


def paired(pool: nn.Module, unpool: Callable[..., nn.Module]) -> nn.Module:
    """A pooling layer, something between, and the unpooling that is paired with it."""
    return nn.Sequential({"pool": pool, "between": nn.LeakyReLU(0.5), "unpool": unpool(pool)})


CASES: dict[str, Case] = _families() | {
    "Linear": Case(lambda dtype: nn.Linear(5, 3, dtype=dtype, rng=0), (4, 5)),
    "LayerNorm": Case(lambda dtype: nn.LayerNorm((3, 5), dtype=dtype), (2, 3, 5)),
    "GroupNorm": Case(lambda dtype: nn.GroupNorm(2, 4, dtype=dtype), (2, 4, 3, 3)),
    "ReLU": Case(lambda dtype: nn.ReLU(), (3, 4)),
    "ReLU6": Case(lambda dtype: nn.ReLU6(), (3, 4)),
    "LeakyReLU": Case(lambda dtype: nn.LeakyReLU(0.2), (3, 4)),
    "Tanh": Case(lambda dtype: nn.Tanh(), (3, 4)),
    "Sigmoid": Case(lambda dtype: nn.Sigmoid(), (3, 4)),
    "GELU": Case(lambda dtype: nn.GELU(), (3, 4)),
    "Softmax": Case(lambda dtype: nn.Softmax(1), (3, 4)),
    "Dropout": Case(lambda dtype: nn.Dropout(0.5, rng=3), (3, 4)),
    "Flatten": Case(lambda dtype: nn.Flatten(), (2, 3, 4, 5)),
    "Identity": Case(lambda dtype: nn.Identity(), (2, 3)),
    "Upsample": Case(lambda dtype: nn.Upsample(scale_factor=2, mode="bilinear"), (2, 3, 4, 5)),
    "Sequential": Case(
        lambda dtype: nn.Sequential(
            nn.Conv2d(3, 4, 3, dtype=dtype, rng=0), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2, dtype=dtype, rng=1)
        ),
        (2, 3, 4, 4),
    ),
    "Residual": Case(
        lambda dtype: nn.Residual(
            nn.Conv2d(3, 4, 3, 2, 1, dtype=dtype, rng=0), nn.Conv2d(3, 4, 1, 2, dtype=dtype, rng=1), nn.ReLU()
        ),
        (2, 3, 5, 5),
    ),
    "Concat": Case(
        lambda dtype: nn.Concat(nn.Identity(), nn.Conv2d(3, 4, 3, padding=1, dtype=dtype, rng=0)), (2, 3, 5, 5)
    ),
}
WITH_PARAMETERS = [name for name, case in CASES.items() if any(True for _ in case.layer().parameters())]


def outcome(
    layer: nn.Module, x: Any, grad_output: Any = None, seed: int = 3, asarray: Callable[[Any], Any] = lambda a: a
) -> dict[str, Any]:
    """What forward and backward of a layer give: output, gradients by name, and buffers."""
    y = layer(x)
    if grad_output is None:
        grad_output = np.random.default_rng(seed).standard_normal(tuple(y.shape)).astype(y.dtype)
    grad_input = layer.backward(asarray(grad_output))
    return (
        {"output": y, "grad_input": grad_input}
        | {f"grad of {name}": parameter.grad for name, parameter in layer.named_parameters()}
        | dict(layer.named_buffers())
    )
