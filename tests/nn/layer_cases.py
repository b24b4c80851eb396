"""One small case for each layer, block and network of `gpucnn.nn`: how it is made, and the shape of an input."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
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
    """A network or a block of `nn.models`, and what makes the same of torch.nn with `benchmarks.networks.pytorch`."""

    twin: Callable[[Any], Any] | None = None
    settled = True

    def make(self, dtype: Any = np.float64, rng: Any = 1) -> nn.Module:
        made: nn.Module = getattr(models, self.name)(*self.args, **self.options, dtype=dtype, rng=rng)
        return made


@dataclass(frozen=True)
class Opponents(Network):
    """A DCGAN's networks one behind the other, as the generator is trained."""

    def make(self, dtype: Any = np.float64, rng: Any = 1) -> nn.Module:
        options = {"width": 2, "image_size": 8, "dtype": dtype, "rng": np.random.default_rng(rng)}
        return nn.Sequential(models.DCGANGenerator(5, **options), models.DCGANDiscriminator(**options))


def randomised(model: nn.Module, seed: int) -> nn.Module:
    """The model with random numbers in place of its ones and zeros."""
    rng = np.random.default_rng(seed)
    for parameter in model.parameters():
        parameter.data[...] = rng.standard_normal(parameter.shape)
    for name, array in model.named_buffers():
        if not name.endswith("num_batches_tracked"):
            array[...] = rng.uniform(0.5, 2.0, array.shape)
    return model


PIXELS = (2, 3, 4, 5)

# Layers that PyTorch has too. Inputs without a batch axis too, and each argument at another value than its default.
CONFIGS = [
    of("Conv1d", (2, 4, 9), 4, 6, 3, stride=2, padding=1, dilation=2, groups=2),
    of("Conv1d", (4, 9), 4, 2, 3, padding="same", dilation=2, bias=False),
    of("Conv1d", (2, 3, 6), 3, 2, 2, padding="valid"),
    of("Conv1d", (2, 2, 6), 2, 3, 3, padding=2, padding_mode="reflect"),
    of("Conv2d", (2, 4, 7, 6), 4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
    of("Conv2d", (3, 6, 5), 3, 2, 2, padding="same", bias=False),
    of("Conv2d", (2, 2, 4, 5), 2, 3, (3, 2), stride=(1, 2), padding=(3, 1), padding_mode="reflect"),
    of("Conv2d", (2, 4, 5), 2, 3, (3, 2), stride=(2, 1), padding=(1, 2), padding_mode="replicate"),
    of("Conv2d", (2, 2, 4, 5), 2, 3, 3, padding=(0, 2), padding_mode="circular"),
    of("Conv3d", (2, 2, 4, 5, 3), 2, 3, (1, 3, 2), stride=(1, 2, 1), padding=(0, 1, 1), dilation=(1, 2, 1)),
    of("Conv3d", (3, 4, 5, 3), 3, 3, 2, groups=3, bias=False),
    of("Conv3d", (2, 2, 4, 5, 4), 2, 3, (2, 3, 1), padding=(1, 2, 0), padding_mode="circular"),
    of("Conv3d", (1, 2, 4, 4, 4), 2, 3, 3, padding=2, padding_mode="reflect"),
    of("ConvTranspose1d", (2, 4, 5), 4, 2, 3, stride=2, padding=1, output_padding=1, groups=2, bias=False),
    of("ConvTranspose1d", (3, 4), 3, 2, 2, dilation=3),
    of("ConvTranspose2d", (2, 3, 4, 4), 3, 2, 4, stride=2, padding=1, bias=False),
    of("ConvTranspose2d", (4, 3, 4), 4, 6, (3, 2), (2, 3), (1, 0), (0, 2), groups=2, dilation=(2, 1)),
    of("ConvTranspose3d", (2, 2, 3, 2, 3), 2, 4, (2, 1, 3), (1, 2, 1), (1, 0, 1), (0, 1, 1), 2, False, (1, 1, 2)),
    of("Linear", (4, 5), 5, 3),
    of("Linear", (5,), 5, 3, bias=False),
    of("Linear", (2, 3, 4, 5), 5, 2),
    of("MaxPool1d", (2, 3, 9), 3),
    of("MaxPool1d", (3, 10), 3, stride=2, padding=1, dilation=2, ceil_mode=True),
    of("MaxPool2d", (2, 3, 8, 8), (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), ceil_mode=True),
    of("MaxPool2d", (3, 7, 8), 2),
    of("MaxPool3d", (2, 3, 5, 4, 6), (2, 1, 3), (2, 1, 2), (1, 0, 1), (1, 1, 2), ceil_mode=True),
    of("AvgPool1d", (2, 3, 10), 3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
    of("AvgPool1d", (3, 9), 2),
    of("AvgPool2d", (2, 3, 7, 8), 3, padding=1, divisor_override=7),
    of("AvgPool2d", (3, 8, 9), (3, 2), stride=(2, 3), padding=(1, 0), ceil_mode=True, count_include_pad=False),
    of("AvgPool3d", (2, 3, 5, 4, 6), (2, 1, 3), (2, 1, 2), (1, 0, 1), True, False),
    of("AvgPool3d", (3, 5, 4, 6), 2, divisor_override=2),
    of("LPPool1d", (2, 3, 10), 2.5, 3, stride=2, ceil_mode=True),
    of("LPPool1d", (3, 9), 3, 2),
    of("LPPool2d", (2, 3, 8, 8), 2, (3, 2), stride=(2, 1), ceil_mode=True),
    of("LPPool2d", (3, 7, 8), 1, 2),
    of("LPPool3d", (2, 3, 5, 4, 6), 2.5, (2, 1, 3), stride=(2, 1, 2), ceil_mode=True),
    of("AdaptiveMaxPool1d", (3, 7), 3),
    of("AdaptiveMaxPool2d", (2, 3, 7, 5), (None, 3)),
    of("AdaptiveMaxPool3d", (2, 3, 7, 5, 4), (2, 1, 4)),
    of("AdaptiveAvgPool1d", (3, 7), (4,)),
    of("AdaptiveAvgPool2d", (2, 3, 7, 5), 2),
    of("AdaptiveAvgPool3d", (2, 3, 7, 5, 4), (3, None, 2)),
    of("Upsample", (2, 3, 4, 3), scale_factor=(2.0, 1.5), mode="bilinear", align_corners=False),
    of("Upsample", (2, 3, 4), scale_factor=2),
    of("Upsample", (2, 3, 4), 7, mode="linear"),
    of("Upsample", (2, 3, 4, 3), (5, 2), mode="bilinear", align_corners=True),
    of("Upsample", (2, 3, 4, 3, 2), scale_factor=1.5),
    of("Upsample", (2, 3, 4, 3), None, 1.4, "bicubic", False, True),
    of("Upsample", (2, 3, 4, 3), scale_factor=1.4, mode="bicubic"),
    of("Upsample", (2, 3, 4, 5), 7, mode="bicubic", align_corners=True),
    of("Upsample", (2, 3, 4, 3, 2), scale_factor=2, mode="trilinear"),
    of("BatchNorm1d", (5, 3), 3),
    of("BatchNorm1d", (4, 3, 5), 3, eps=1e-3, momentum=0.7, affine=False),
    of("BatchNorm2d", (4, 3, 5, 2), 3, eps=1e-3, momentum=None),
    of("BatchNorm2d", (4, 3, 5, 2), 3, affine=False, track_running_stats=False),
    of("BatchNorm3d", (2, 3, 2, 4, 3), 3, momentum=0.7, track_running_stats=False),
    of("InstanceNorm1d", (3, 5), 3, eps=1e-3, momentum=0.7, affine=True, track_running_stats=True),
    of("InstanceNorm2d", (4, 3, 5, 2), 3, affine=True),
    of("InstanceNorm2d", (3, 5, 2), 3),
    of("InstanceNorm3d", (2, 3, 2, 4, 3), 3, track_running_stats=True),
    of("LayerNorm", (2, 3, 5), 5, eps=1e-3),
    of("LayerNorm", (2, 3, 5), (3, 5), bias=False),
    of("LayerNorm", (3, 5), [3, 5], elementwise_affine=False),
    of("RMSNorm", (2, 3, 5), 5, eps=1e-3),
    of("RMSNorm", (2, 3, 5), (3, 5)),
    of("RMSNorm", (3, 5), [3, 5], elementwise_affine=False),
    of("LocalResponseNorm", (2, 6, 3, 3), 5, alpha=0.5, beta=0.5, k=2.0),
    of("LocalResponseNorm", (2, 3, 4), 2),
    of("GroupNorm", (2, 6, 3, 3), 3, 6, eps=1e-3),
    of("GroupNorm", (3, 4), 2, 4, affine=False),
    of("ReLU", PIXELS),
    of("ReLU6", PIXELS),
    of("LeakyReLU", PIXELS, negative_slope=0.5),
    of("LeakyReLU", (3, 4)),
    of("Tanh", PIXELS),
    of("Sigmoid", PIXELS),
    of("SiLU", PIXELS),
    of("Hardsigmoid", PIXELS),
    of("Hardswish", PIXELS),
    of("Hardswish", (3, 4)),
    of("GELU", PIXELS),
    of("GELU", (3, 4), approximate="tanh"),
    of("Softmax", PIXELS, dim=1),
    of("Softmax", (3, 4), -1),
    of("Identity", PIXELS),
    of("Flatten", PIXELS),
    of("Flatten", PIXELS, start_dim=2, end_dim=-1),
    of("Flatten", (2, 3, 4), 0, 1),
]


def _paired(n: int) -> Composed:
    """A pooling layer, something between, and the unpooling that is paired with it."""

    def maker(dtype: Any) -> nn.Module:
        pool = getattr(nn, f"MaxPool{n}d")(2)
        unpool = getattr(nn, f"MaxUnpool{n}d")(pool)
        return nn.Sequential({"pool": pool, "between": nn.LeakyReLU(0.5), "unpool": unpool})

    return Composed(f"MaxUnpool{n}d", (2, 4, *(5,) * n), maker=maker)


def _sequential(dtype: Any) -> nn.Module:
    conv, linear = nn.Conv2d(3, 4, 3, dtype=dtype, rng=0), nn.Linear(16, 2, dtype=dtype, rng=1)
    return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), linear)


def _residual(dtype: Any) -> nn.Module:
    body, shortcut = nn.Conv2d(3, 4, 3, 2, 1, dtype=dtype, rng=0), nn.Conv2d(3, 4, 1, 2, dtype=dtype, rng=1)
    return nn.Residual(body, shortcut, nn.ReLU())


def _concat(dtype: Any) -> nn.Module:
    return nn.Concat(nn.Identity(), nn.Conv2d(3, 4, 3, padding=1, dtype=dtype, rng=0))


CASES: dict[str, Case] = {case.name: case for case in reversed(CONFIGS)} | {  # the first configuration of each
    case.name: case
    for case in (
        *(of(f"LocallyConnected{n}d", (2, 4, *(5,) * n), 4, 3, 5, 2, stride=2, padding=1) for n in (1, 2, 3)),
        *(of(f"SumPool{n}d", (2, 4, *(5,) * n), 2, ceil_mode=True) for n in (1, 2, 3)),
        *(of(f"BedOfNails{n}d", (2, 4, *(3,) * n), 2) for n in (1, 2, 3)),
        *(_paired(n) for n in (1, 2, 3)),
        of("Dropout", PIXELS, 0.5, rng=3),
        Composed("Sequential", (2, 3, 4, 4), maker=_sequential),
        Composed("Residual", (2, 3, 5, 5), maker=_residual),
        Composed("Concat", (2, 3, 5, 5), maker=_concat),
    )
}


def _network(name: str, shape: Shape, twin: Callable[[Any], Any] | None, *args: Any, **options: Any) -> Network:
    return Network(name, shape, args, options, twin)


def _plan(depths: tuple[int, ...], width: int) -> list[Any]:
    return [
        entry for depth, scale in zip(depths, (1, 2, 4, 8, 8), strict=True) for entry in [scale * width] * depth + ["M"]
    ]


HEAD = {"hidden": 12, "dropout": 0.0}
STAGES = [(1, 8, 1, 1), (6, 16, 2, 2), (3, 16, 1, 1)]
NARROW = {"stages": STAGES, "dropout": 0.0, "last_channels": 24}
KERNELS = [(1, 3, 8, 1, 1), (6, 5, 16, 2, 2), (3, 3, 16, 1, 1)]
LITE = {"dropout": 0.0, "first_channels": 8, "last_channels": 24}
SMALL = {"width": 4, "image_size": 16}
NETWORKS: dict[str, Network] = {
    case.name: case
    for case in (
        _network("LeNet", (3, 1, 28, 28), lambda t: t.LeNet(10)),
        _network("alexnet", (2, 3, 95, 127), lambda t: t.AlexNet(5, 4, 12), 5, width=4, **HEAD),
        _network("vgg11", (2, 3, 64, 41), lambda t: t.VGG(_plan((1, 1, 2, 2, 2), 3), 5, 12, False), 5, width=3, **HEAD),
        _network("vgg13_bn", (2, 3, 64, 64), lambda t: t.VGG(_plan((2,) * 5, 2), 5, 12, True), 5, width=2, **HEAD),
        _network("resnet18", (2, 3, 65, 50), lambda t: t.ResNet((2, 2, 2, 2), 5, 4, False), 5, width=4),
        _network("resnet34", (2, 3, 64, 64), lambda t: t.ResNet((3, 4, 6, 3), 5, 2, False), 5, width=2),
        _network("resnet50", (2, 3, 64, 64), lambda t: t.ResNet((3, 4, 6, 3), 5, 2, True), 5, width=2),
        _network("MobileNetV2", (2, 3, 33, 40), lambda t: t.MobileNetV2(STAGES, 5, 32, 24), 5, **NARROW),
        _network(
            "EfficientNetLite", (2, 3, 33, 40), lambda t: t.EfficientNetLite(KERNELS, 5, 8, 24), 5, KERNELS, **LITE
        ),
        _network("UNet", (2, 2, 37, 30), lambda t: t.UNet(3, 2, 4, 3), 3, in_channels=2, width=4, depth=3),
        _network("DCGANGenerator", (3, 7, 1, 1), lambda t: t.generator(7, 4), 7, **SMALL),
        _network("DCGANDiscriminator", (3, 3, 16, 16), lambda t: t.discriminator(4), **SMALL),
        Opponents("DCGAN", (3, 5, 1, 1)),
    )
}
BLOCKS: dict[str, Network] = {
    str(case): case
    for case in (
        _network("BasicBlock", (2, 3, 7, 6), None, 3, 3),
        _network("BasicBlock", (2, 3, 7, 6), None, 3, 4, stride=2),
        _network("Bottleneck", (2, 8, 7, 6), None, 8, 2),
        _network("Bottleneck", (2, 3, 7, 6), None, 3, 2, stride=2),
        _network("InvertedResidual", (2, 3, 7, 6), None, 3, 3),
        _network("InvertedResidual", (2, 3, 7, 6), None, 3, 4, stride=2, widening=1),
        _network("MBConv", (2, 3, 7, 6), None, 3, 3, 5),
        _network("MBConv", (2, 3, 7, 6), None, 3, 4, stride=2, widening=1),
    )
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
