"""One small case for each layer, block and network of `gpucnn.nn`: how it is made, and the shape of an input."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest

from gpucnn import nn
from gpucnn.nn import models

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A layer of `gpucnn.nn` by its name, the shape of what it takes, and its arguments."""

    name: str
    shape: Shape
    args: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    settled = False  # its first weights are random, and of a size that many layers in a row can take

    def make(self, dtype: Any = np.float64) -> nn.Module:
        kind = getattr(nn, self.name)
        takes = inspect.signature(kind).parameters
        seeded = {name: value for name, value in (("dtype", dtype), ("rng", 0)) if name in takes}
        made: nn.Module = kind(*self.args, **seeded | self.options)
        return made

    def layer(self, dtype: Any = np.float64) -> nn.Module:
        return self.make(dtype) if self.settled else randomised(self.make(dtype), 1)

    def input(self, dtype: Any = np.float64, seed: int = 2) -> np.ndarray[Any, Any]:
        x = np.random.default_rng(seed).standard_normal(self.shape)
        return (abs(x) + 0.1 if self.name.startswith("LP") else x).astype(dtype)  # of which powers are taken

    def __str__(self) -> str:
        options = [f"{name}={value!r}" for name, value in self.options.items()]
        return f"{self.name}({', '.join([*map(repr, self.args), *options])}) of {self.shape}"


def of(name: str, shape: Shape, *args: Any, **options: Any) -> Case:
    return Case(name, shape, args, options)


@dataclass(frozen=True)
class Composed(Case):
    """Several layers in one."""

    maker: Callable[[Any], nn.Module] = nn.Sequential

    def make(self, dtype: Any = np.float64) -> nn.Module:
        return self.maker(dtype)


@dataclass(frozen=True)
class Network(Case):
    """A network or a block, and what makes the same of torch.nn, given `benchmarks.networks.pytorch`."""

    maker: Callable[..., nn.Module] = nn.Sequential
    twin: Callable[[Any], Any] | None = None
    settled = True

    def make(self, dtype: Any = np.float64, rng: Any = 1) -> nn.Module:
        return self.maker(dtype=dtype, rng=rng)


def randomised(model: nn.Module, seed: int) -> nn.Module:
    """The model with random numbers in place of its ones and zeros."""
    rng = np.random.default_rng(seed)
    for parameter in model.parameters():
        parameter.data[...] = rng.standard_normal(parameter.shape)
    for name, array in model.named_buffers():
        if not name.endswith("num_batches_tracked"):
            array[...] = rng.uniform(0.5, 2.0, array.shape)
    return model


def _family(n: int) -> list[Case]:
    size = {1: (7,), 2: (5, 6), 3: (4, 5, 3)}[n]
    image, half = (2, 4, *size), (2, 4, *(3,) * n)

    def paired(dtype: Any) -> nn.Module:
        """A pooling layer, something between, and the unpooling that is paired with it."""
        pool = getattr(nn, f"MaxPool{n}d")(2)
        unpool = getattr(nn, f"MaxUnpool{n}d")(pool)
        return nn.Sequential({"pool": pool, "between": nn.LeakyReLU(0.5), "unpool": unpool})

    return [
        of(f"Conv{n}d", image, 4, 6, 3, stride=2, padding=1, groups=2),
        of(f"ConvTranspose{n}d", half, 4, 6, 3, 2, 1, 1, groups=2),
        of(f"LocallyConnected{n}d", image, 4, 3, size, 2, stride=2, padding=1),
        of(f"MaxPool{n}d", image, 3, 2, 1),
        of(f"AvgPool{n}d", image, 3, 2, 1, count_include_pad=False),
        of(f"SumPool{n}d", image, 2, ceil_mode=True),
        of(f"LPPool{n}d", image, 2.5, 2),
        of(f"AdaptiveMaxPool{n}d", image, 2),
        of(f"AdaptiveAvgPool{n}d", image, 2),
        of(f"BedOfNails{n}d", half, 2),
        of(f"BatchNorm{n}d", image, 4),
        of(f"InstanceNorm{n}d", image, 4, affine=True, track_running_stats=True),
        Composed(f"MaxUnpool{n}d", image, maker=paired),
    ]


def _sequential(dtype: Any) -> nn.Module:
    conv, linear = nn.Conv2d(3, 4, 3, dtype=dtype, rng=0), nn.Linear(16, 2, dtype=dtype, rng=1)
    return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), linear)


def _residual(dtype: Any) -> nn.Module:
    body, shortcut = nn.Conv2d(3, 4, 3, 2, 1, dtype=dtype, rng=0), nn.Conv2d(3, 4, 1, 2, dtype=dtype, rng=1)
    return nn.Residual(body, shortcut, nn.ReLU())


def _concat(dtype: Any) -> nn.Module:
    return nn.Concat(nn.Identity(), nn.Conv2d(3, 4, 3, padding=1, dtype=dtype, rng=0))


PIXELS = (2, 3, 4, 5)
CASES: dict[str, Case] = {
    case.name: case
    for case in (
        *(case for n in (1, 2, 3) for case in _family(n)),
        of("Linear", (4, 5), 5, 3),
        of("LayerNorm", (2, 3, 5), (3, 5)),
        of("GroupNorm", (2, 4, 3, 3), 2, 4),
        of("ReLU", PIXELS),
        of("ReLU6", PIXELS),
        of("LeakyReLU", PIXELS, 0.2),
        of("Tanh", PIXELS),
        of("Sigmoid", PIXELS),
        of("GELU", PIXELS),
        of("Softmax", PIXELS, 1),
        of("Dropout", PIXELS, 0.5, rng=3),
        of("Flatten", PIXELS),
        of("Identity", PIXELS),
        of("Upsample", PIXELS, scale_factor=2, mode="bilinear"),
        Composed("Sequential", (2, 3, 4, 4), maker=_sequential),
        Composed("Residual", (2, 3, 5, 5), maker=_residual),
        Composed("Concat", (2, 3, 5, 5), maker=_concat),
    )
}


def _network(make: Callable[..., nn.Module], shape: Shape, twin: Callable[[Any], Any] | None = None) -> Network:
    return Network("", shape, maker=make, twin=twin)


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


def keeps_nothing(model: nn.Module) -> bool:
    """Whether no module has a forward that it could go back through, which is asked by going back."""
    for module in model.modules():
        message = r"backward has no forward to go back through; expected one call of it for each forward outside nn\.i"
        with pytest.raises(RuntimeError, match=message):
            module.backward(np.ones(1))
    return True
