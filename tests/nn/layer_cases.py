"""One small case for each layer, block and network of `gpucnn.nn`: how it is made, and the shape of an input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from gpucnn import nn
from gpucnn.nn import models

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A layer, made with a dtype, and the shape of what it takes."""

    make: Callable[[Any], nn.Module]
    shape: Shape
    positive: bool = False  # where powers are taken
    settled: bool = False  # its first weights are random, and of a size that many layers in a row can take
    twin: Callable[[Any], Any] | None = None  # makes the same of torch.nn, given `benchmarks.networks.pytorch`

    def layer(self, dtype: Any = np.float64) -> nn.Module:
        return self.make(dtype) if self.settled else randomised(self.make(dtype), 1)

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
    "ReLU": Case(lambda dtype: nn.ReLU(), (2, 3, 4, 5)),
    "ReLU6": Case(lambda dtype: nn.ReLU6(), (2, 3, 4, 5)),
    "LeakyReLU": Case(lambda dtype: nn.LeakyReLU(0.2), (2, 3, 4, 5)),
    "Tanh": Case(lambda dtype: nn.Tanh(), (2, 3, 4, 5)),
    "Sigmoid": Case(lambda dtype: nn.Sigmoid(), (2, 3, 4, 5)),
    "GELU": Case(lambda dtype: nn.GELU(), (2, 3, 4, 5)),
    "Softmax": Case(lambda dtype: nn.Softmax(1), (2, 3, 4, 5)),
    "Dropout": Case(lambda dtype: nn.Dropout(0.5, rng=3), (2, 3, 4, 5)),
    "Flatten": Case(lambda dtype: nn.Flatten(), (2, 3, 4, 5)),
    "Identity": Case(lambda dtype: nn.Identity(), (2, 3, 4, 5)),
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


def _network(make: Callable[..., nn.Module], shape: Shape, twin: Callable[[Any], Any] | None = None) -> Case:
    return Case(lambda dtype, rng=1: make(dtype=dtype, rng=rng), shape, settled=True, twin=twin)


def _plan(depths: tuple[int, ...], width: int) -> list[Any]:
    return [
        entry for depth, scale in zip(depths, (1, 2, 4, 8, 8), strict=True) for entry in [scale * width] * depth + ["M"]
    ]


def _dcgan(dtype: Any, rng: Any) -> nn.Sequential:
    """The opponents one behind the other, as the generator is trained."""
    options = {"width": 2, "image_size": 8, "dtype": dtype, "rng": np.random.default_rng(rng)}
    return nn.Sequential(models.DCGANGenerator(5, **options), models.DCGANDiscriminator(**options))


STAGES = [(1, 8, 1, 1), (6, 16, 2, 2), (3, 16, 1, 1)]
NETWORKS = {
    "lenet": _network(models.LeNet, (3, 1, 28, 28), lambda t: t.LeNet(10)),
    "alexnet": _network(
        partial(models.alexnet, 5, width=4, hidden=12, dropout=0.0), (2, 3, 95, 127), lambda t: t.AlexNet(5, 4, 12)
    ),
    "vgg11": _network(
        partial(models.vgg11, 5, width=3, hidden=12, dropout=0.0),
        (2, 3, 64, 41),
        lambda t: t.VGG(_plan((1, 1, 2, 2, 2), 3), 5, 12, False),
    ),
    "vgg13_bn": _network(
        partial(models.vgg13_bn, 5, width=2, hidden=12, dropout=0.0),
        (2, 3, 64, 64),
        lambda t: t.VGG(_plan((2, 2, 2, 2, 2), 2), 5, 12, True),
    ),
    "resnet18": _network(
        partial(models.resnet18, 5, width=4), (2, 3, 65, 50), lambda t: t.ResNet((2, 2, 2, 2), 5, 4, False)
    ),
    "resnet34": _network(
        partial(models.resnet34, 5, width=2), (2, 3, 64, 64), lambda t: t.ResNet((3, 4, 6, 3), 5, 2, False)
    ),
    "resnet50": _network(
        partial(models.resnet50, 5, width=2), (2, 3, 64, 64), lambda t: t.ResNet((3, 4, 6, 3), 5, 2, True)
    ),
    "mobilenet_v2": _network(
        partial(models.MobileNetV2, 5, stages=STAGES, dropout=0.0, last_channels=24),
        (2, 3, 33, 40),
        lambda t: t.MobileNetV2(STAGES, 5, 32, 24),
    ),
    "unet": _network(
        partial(models.UNet, 3, in_channels=2, width=4, depth=3), (2, 2, 37, 30), lambda t: t.UNet(3, 2, 4, 3)
    ),
    "generator": _network(
        partial(models.DCGANGenerator, 7, width=4, image_size=16), (3, 7, 1, 1), lambda t: t.generator(7, 4)
    ),
    "discriminator": _network(
        partial(models.DCGANDiscriminator, width=4, image_size=16), (3, 3, 16, 16), lambda t: t.discriminator(4)
    ),
    "dcgan": _network(_dcgan, (3, 5, 1, 1)),
}
BLOCKS = {
    "basic block": _network(partial(models.BasicBlock, 3, 3), (2, 3, 7, 6)),
    "basic block that strides": _network(partial(models.BasicBlock, 3, 4, stride=2), (2, 3, 7, 6)),
    "bottleneck": _network(partial(models.Bottleneck, 8, 2), (2, 8, 7, 6)),
    "bottleneck that strides": _network(partial(models.Bottleneck, 3, 2, stride=2), (2, 3, 7, 6)),
    "inverted residual": _network(partial(models.InvertedResidual, 3, 3), (2, 3, 7, 6)),
    "inverted residual that strides": _network(
        partial(models.InvertedResidual, 3, 4, stride=2, widening=1), (2, 3, 7, 6)
    ),
}
EVERY = CASES | BLOCKS | NETWORKS
WITH_PARAMETERS = [name for name, case in EVERY.items() if any(True for _ in case.layer().parameters())]


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
