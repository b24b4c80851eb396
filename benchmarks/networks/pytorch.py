"""The networks of `gpucnn.nn.models`, written with torch.nn: peers of the benchmarks and of the tests.

Parameters and buffers have the names that gpucnn's have, torchvision's where it has the network. Importing this module
imports PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class Classifier(nn.Module):
    """Features of images, pooled to `size`, and a perceptron on them."""

    def __init__(self, features: Sequence[nn.Module], size: int, classifier: Sequence[nn.Module]) -> None:
        super().__init__()
        self.features, self.size, self.classifier = nn.Sequential(*features), size, nn.Sequential(*classifier)

    def forward(self, x: Any) -> Any:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), self.size).flatten(1))


class LeNet(Classifier):
    def __init__(self, classes: int) -> None:
        features = (
            *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        )
        classifier = (nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes))
        super().__init__(features, 5, classifier)


class AlexNet(Classifier):
    def __init__(self, classes: int, width: int, hidden: int) -> None:
        one, three, four, six = (width * factor for factor in (1, 3, 4, 6))
        features = (
            *(nn.Conv2d(3, one, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(one, three, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(three, six, 3, 1, 1), nn.ReLU(), nn.Conv2d(six, four, 3, 1, 1), nn.ReLU()),
            *(nn.Conv2d(four, four, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(3, 2)),
        )
        classifier = (
            *(nn.Dropout(0.0), nn.Linear(four * 36, hidden), nn.ReLU()),
            *(nn.Dropout(0.0), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes)),
        )
        super().__init__(features, 6, classifier)


class VGG(Classifier):
    """`plan` holds channels, and "M" for a pooling."""

    def __init__(self, plan: list[Any], classes: int, hidden: int, batch_norm: bool) -> None:
        layers: list[nn.Module] = []
        channels = 3
        for entry in plan:
            if entry == "M":
                layers.append(nn.MaxPool2d(2))
                continue
            layers.append(nn.Conv2d(channels, entry, 3, padding=1))
            layers += [nn.BatchNorm2d(entry)] if batch_norm else []
            layers.append(nn.ReLU())
            channels = entry
        classifier = (
            *(nn.Linear(channels * 49, hidden), nn.ReLU(), nn.Dropout(0.0)),
            *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(0.0), nn.Linear(hidden, classes)),
        )
        super().__init__(layers, 7, classifier)


class Block(nn.Module):
    """A residual block; `bottleneck` says which of the two."""

    def __init__(self, inputs: int, channels: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * channels if bottleneck else channels
        form = (
            [(inputs, channels, 1, 1), (channels, channels, 3, stride), (channels, outputs, 1, 1)]
            if bottleneck
            else [(inputs, channels, 3, stride), (channels, outputs, 3, 1)]
        )
        self.count = len(form)
        for number, (before, after, kernel, step) in enumerate(form, 1):
            setattr(self, f"conv{number}", nn.Conv2d(before, after, kernel, step, kernel // 2, bias=False))
            setattr(self, f"bn{number}", nn.BatchNorm2d(after))
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Any) -> Any:
        y = x
        for number in range(1, self.count + 1):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
            y = F.relu(y) if number < self.count else y
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, depths: tuple[int, ...], classes: int, width: int, bottleneck: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        channels = width
        for stage, depth in enumerate(depths):
            blocks = []
            for index in range(depth):
                blocks.append(Block(channels, width * 2**stage, 2 if stage and not index else 1, bottleneck))
                channels = width * 2**stage * (4 if bottleneck else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Any) -> Any:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def conv_norm_relu6(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, widening: int) -> None:
        super().__init__()
        middle = inputs * widening
        first = [conv_norm_relu6(inputs, middle, 1)] if widening > 1 else []
        self.conv = nn.Sequential(
            *first,
            conv_norm_relu6(middle, middle, 3, stride, middle),
            *(nn.Conv2d(middle, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Any) -> Any:
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    """All widths as given: no rounding."""

    def __init__(self, stages: list[tuple[int, int, int, int]], classes: int, first: int, last: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_norm_relu6(3, first, 3, 2)]
        channels = first
        for widening, outputs, count, stride in stages:
            for index in range(count):
                layers.append(InvertedResidual(channels, outputs, stride if index == 0 else 1, widening))
                channels = outputs
        self.features = nn.Sequential(*layers, conv_norm_relu6(channels, last, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.0), nn.Linear(last, classes))

    def forward(self, x: Any) -> Any:
        return self.classifier(self.features(x).mean((2, 3)))


class SamePadded(nn.Conv2d):
    """TensorFlow's "same" padding, at any stride."""

    def forward(self, x: Any) -> Any:
        pads: list[int] = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


class MBConv(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, widening: int) -> None:
        super().__init__()
        middle = inputs * widening
        if widening > 1:
            self._expand_conv, self._bn0 = nn.Conv2d(inputs, middle, 1, bias=False), nn.BatchNorm2d(middle, 1e-3, 0.01)
        self._depthwise_conv = SamePadded(middle, middle, kernel, stride, groups=middle, bias=False)
        self._bn1 = nn.BatchNorm2d(middle, 1e-3, 0.01)
        self._project_conv, self._bn2 = nn.Conv2d(middle, outputs, 1, bias=False), nn.BatchNorm2d(outputs, 1e-3, 0.01)
        self.widens, self.adds = widening > 1, stride == 1 and inputs == outputs

    def forward(self, x: Any) -> Any:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.widens else x
        y = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(y)))))
        return x + y if self.adds else y


class EfficientNetLite(nn.Module):
    def __init__(self, stages: list[tuple[int, int, int, int, int]], classes: int, first: int, last: int) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SamePadded(3, first, 3, 2, bias=False), nn.BatchNorm2d(first, 1e-3, 0.01)
        blocks, channels = [], first
        for widening, kernel, outputs, count, stride in stages:
            for index in range(count):
                blocks.append(MBConv(channels, outputs, kernel, stride if index == 0 else 1, widening))
                channels = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = nn.Conv2d(channels, last, 1, bias=False), nn.BatchNorm2d(last, 1e-3, 0.01)
        self._fc = nn.Linear(last, classes)

    def forward(self, x: Any) -> Any:
        x = self._blocks(F.relu6(self._bn0(self._conv_stem(x))))
        return self._fc(F.relu6(self._bn1(self._conv_head(x))).mean((2, 3)))


def two_convolutions(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()),
        *(nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()),
    )


class UNet(nn.Module):
    def __init__(self, classes: int, inputs: int, width: int, depth: int) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for level in range(depth + 1):
            conv = two_convolutions(width * 2 ** (level - 1) if level else inputs, width * 2**level)
            self.encoder.append(nn.ModuleDict({"conv": conv}))
        for level in reversed(range(depth)):
            channels = width * 2**level
            up = nn.ConvTranspose2d(2 * channels, channels, 2, 2)
            self.decoder.append(nn.ModuleDict({"up": up, "conv": two_convolutions(2 * channels, channels)}))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Any) -> Any:
        skips: list[Any] = []
        for level in self.encoder:
            x = level["conv"](F.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        for level, skip in zip(self.decoder, skips[-2::-1], strict=True):
            y = level["up"](x)
            whole = torch.zeros_like(skip)
            whole[..., : y.shape[2], : y.shape[3]] = y
            x = level["conv"](torch.cat([skip, whole], 1))
        return self.head(x)


class Main(nn.Module):
    """A network whose layers are all in `main`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.main = nn.Sequential(*layers)

    def forward(self, x: Any) -> Any:
        return self.main(x)


def generator(latent: int, width: int) -> Main:
    """The network for images of 16×16."""
    return Main(
        *(nn.ConvTranspose2d(latent, 2 * width, 4, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()),
        *(nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh()),
    )


def discriminator(width: int) -> Main:
    """The network for images of 16×16."""
    return Main(
        *(nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2)),
        nn.Conv2d(2 * width, 1, 4, bias=False),
    )
