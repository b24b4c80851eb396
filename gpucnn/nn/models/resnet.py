"""ResNet: blocks that learn what to add to their input, so that a hundred layers still train.

A block's result is relu(x + f(x)). Where f changes the size or the channels, a 1×1 convolution with the same stride
and its norm take x along (``downsample``). Each convolution is without bias, with a batch norm behind it.

=======  =============================  ==========  =====  =====  =====  ======
name     stage                          output      18     34     50     101
=======  =============================  ==========  =====  =====  =====  ======
conv1    7×7 convolution, stride 2      64×112×112
bn1      batch norm, ReLU
maxpool  3×3 max pooling, stride 2      64×56×56
layer1   blocks                         64k×56×56   2      3      3      3
layer2   blocks, the first of stride 2  128k×28×28  2      4      4      4
layer3   blocks, the first of stride 2  256k×14×14  2      6      6      23
layer4   blocks, the first of stride 2  512k×7×7    2      3      3      3
avgpool  adaptive average pooling       512k×1×1
fc       linear                         num_classes
block                                               Basic  Basic  Bott.  Bott.
=======  =============================  ==========  =====  =====  =====  ======

k is 1 for the basic block (3×3, 3×3) and 4 for the bottleneck (1×1, 3×3, 1×1). As in torchvision, the bottleneck's
stride is that of its 3×3 convolution; the paper's is in the first 1×1.

K. He, X. Zhang, S. Ren, J. Sun, *Deep residual learning for image recognition*, CVPR 2016, arXiv:1512.03385.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from gpucnn.nn._fusion import summed
from gpucnn.nn._joining import added, parted
from gpucnn.nn.activation import Flatten, ReLU
from gpucnn.nn.containers import Sequential
from gpucnn.nn.convolution import Conv2d
from gpucnn.nn.initialization import Rng, generator_of
from gpucnn.nn.linear import Linear
from gpucnn.nn.models._parts import expect_positive, start_rectified
from gpucnn.nn.module import Array, Module
from gpucnn.nn.normalization import BatchNorm2d
from gpucnn.nn.pooling import AdaptiveAvgPool2d, MaxPool2d


class _Block(Module):
    """The base of both blocks: relu(x + f(x)), with `downsample` for x where f changes its shape."""

    expansion: ClassVar[int]
    conv1: Conv2d
    relu: ReLU
    downsample: Sequential | None

    def forward(self, x: Array) -> Array:
        """The result [N, channels * expansion, ceil(H / stride), ceil(W / stride)] of `x` [N, in_channels, H, W]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y, dtype = summed(self._residual(), x, shortcut, self.relu)
        self.keep(dtype, shortcut.dtype)
        return y

    def backward(self, grad_output: Array) -> Array:
        """The gradient with respect to the input: the part through f plus the part of the shortcut."""
        through, past = parted(self.relu.backward(grad_output), *self.kept())
        self.conv1.needs_input_grad = self.needs_input_grad
        for layer in reversed(self._residual()):
            through = layer.backward(through)
        if self.downsample is not None:
            self.downsample.needs_input_grad = self.needs_input_grad
            past = self.downsample.backward(past)
        return added(through, past) if self.needs_input_grad else None

    def _residual(self) -> tuple[Module, ...]:
        """The layers of f, in order."""
        raise NotImplementedError

    def branches(self) -> tuple[tuple[Module, ...], ...]:
        """The ways through the block, for `gpucnn.nn.sliding_geometry`."""
        past = () if self.downsample is None else (self.downsample,)
        return (*self._residual(), self.relu), (*past, self.relu)


class BasicBlock(_Block):
    """relu(x + f(x)), where f is two 3×3 convolutions with their norms and a ReLU between.

    Parameters
    ----------
    in_channels, channels : int
        Of the input and of the result.
    stride : int
        Of the first convolution.
    dtype : dtype
        Of the parameters.
    rng : Generator, int or None
        The source of randomness.

    Examples
    --------
    >>> BasicBlock(4, 8, stride=2, rng=0)(np.zeros((1, 4, 9, 9), np.float32)).shape
    (1, 8, 5, 5)
    """

    expansion = 1

    def __init__(
        self, in_channels: int, channels: int, stride: int = 1, *, dtype: Any = np.float32, rng: Rng = None
    ) -> None:
        generator = generator_of("BasicBlock", rng)
        options = {"bias": False, "dtype": dtype, "rng": generator}
        self.conv1 = Conv2d(in_channels, channels, 3, stride=stride, padding=1, **options)
        self.bn1 = BatchNorm2d(channels, dtype=dtype)
        self.relu1 = ReLU()
        self.conv2 = Conv2d(channels, channels, 3, padding=1, **options)
        self.bn2 = BatchNorm2d(channels, dtype=dtype)
        self.relu = ReLU()
        self.downsample = _downsample(in_channels, channels, stride, dtype, generator)

    def _residual(self) -> tuple[Module, ...]:
        return self.conv1, self.bn1, self.relu1, self.conv2, self.bn2


class Bottleneck(_Block):
    """relu(x + f(x)), where f narrows by a 1×1 convolution, convolves 3×3, and widens by a 1×1 convolution.

    Parameters
    ----------
    in_channels : int
        Of the input.
    channels : int
        Of the 3×3 convolution; the result has four times as many.
    stride : int
        Of the 3×3 convolution.
    dtype : dtype
        Of the parameters.
    rng : Generator, int or None
        The source of randomness.

    Examples
    --------
    >>> Bottleneck(4, 8, stride=2, rng=0)(np.zeros((1, 4, 9, 9), np.float32)).shape
    (1, 32, 5, 5)
    """

    expansion = 4

    def __init__(
        self, in_channels: int, channels: int, stride: int = 1, *, dtype: Any = np.float32, rng: Rng = None
    ) -> None:
        generator = generator_of("Bottleneck", rng)
        options = {"bias": False, "dtype": dtype, "rng": generator}
        out_channels = channels * self.expansion
        self.conv1 = Conv2d(in_channels, channels, 1, **options)
        self.bn1 = BatchNorm2d(channels, dtype=dtype)
        self.relu1 = ReLU()
        self.conv2 = Conv2d(channels, channels, 3, stride=stride, padding=1, **options)
        self.bn2 = BatchNorm2d(channels, dtype=dtype)
        self.relu2 = ReLU()
        self.conv3 = Conv2d(channels, out_channels, 1, **options)
        self.bn3 = BatchNorm2d(out_channels, dtype=dtype)
        self.relu = ReLU()
        self.downsample = _downsample(in_channels, out_channels, stride, dtype, generator)

    def _residual(self) -> tuple[Module, ...]:
        return self.conv1, self.bn1, self.relu1, self.conv2, self.bn2, self.relu2, self.conv3, self.bn3


def _downsample(
    in_channels: int, out_channels: int, stride: int, dtype: Any, rng: np.random.Generator
) -> Sequential | None:
    """The layers that give x the shape of f(x), None where it has it already."""
    if stride == 1 and in_channels == out_channels:
        return None
    return Sequential(
        Conv2d(in_channels, out_channels, 1, stride=stride, bias=False, dtype=dtype, rng=rng),
        BatchNorm2d(out_channels, dtype=dtype),
    )


class ResNet(Sequential):
    """A residual network; state dicts of torchvision's ``resnet…`` fit.

    Parameters
    ----------
    block : BasicBlock or Bottleneck
        The class of its blocks.
    depths : sequence of 4 ints
        The number of blocks of each stage.
    num_classes : int
        How many logits there are.
    in_channels : int
        Channels of the images.
    width : int
        Channels of the first stage's 3×3 convolutions; each stage has twice those of the one before.
    dtype : dtype
        Of the parameters.
    rng : Generator, int or None
        The source of randomness.

    Raises
    ------
    TypeError
        `rng` is none of these.
    ValueError
        Not four stages, or a number of blocks, channels or classes below 1.

    Notes
    -----
    Input [N, in_channels, H, W], result [N, num_classes]. In training the last stage must see more than one value per
    channel: a batch of one wants images larger than 32×32.

    Examples
    --------
    >>> model = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=10, width=8, rng=0)
    >>> model(np.zeros((2, 3, 64, 64), np.float32)).shape
    (2, 10)
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        num_classes: int = 1000,
        in_channels: int = 3,
        width: int = 64,
        *,
        dtype: Any = np.float32,
        rng: Rng = None,
    ) -> None:
        expect_positive("ResNet", num_classes=num_classes, in_channels=in_channels, width=width)
        if len(depths) != 4 or min(depths) < 1:
            raise ValueError(f"ResNet: depths is {depths!r}, expected 4 numbers of at least 1")
        generator = generator_of("ResNet", rng)
        options = {"dtype": dtype, "rng": generator}
        stages: dict[str, Module] = {}
        channels = width
        for stage, depth in enumerate(depths):
            blocks: list[Module] = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(channels, width << stage, stride, **options))
                channels = (width << stage) * block.expansion
            stages[f"layer{stage + 1}"] = Sequential(*blocks)
        super().__init__(
            {
                "conv1": Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False, **options),
                "bn1": BatchNorm2d(width, dtype=dtype),
                "relu": ReLU(),
                "maxpool": MaxPool2d(3, stride=2, padding=1),
                **stages,
                "avgpool": AdaptiveAvgPool2d(1),
                "flatten": Flatten(),
                "fc": Linear(channels, num_classes, **options),
            }
        )
        start_rectified(self, generator)


def resnet18(num_classes: int = 1000, **options: Any) -> ResNet:
    """`ResNet` with 18 layers that have weights; `options` are the other arguments of `ResNet`.

    Examples
    --------
    >>> resnet18(num_classes=2, width=4, rng=0)(np.zeros((2, 3, 64, 64), np.float32)).shape
    (2, 2)
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, **options)


def resnet34(num_classes: int = 1000, **options: Any) -> ResNet:
    """`ResNet` with 34 layers that have weights; `options` are the other arguments of `ResNet`."""
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes, **options)


def resnet50(num_classes: int = 1000, **options: Any) -> ResNet:
    """`ResNet` with 50 layers that have weights; `options` are the other arguments of `ResNet`."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, **options)


def resnet101(num_classes: int = 1000, **options: Any) -> ResNet:
    """`ResNet` with 101 layers that have weights; `options` are the other arguments of `ResNet`."""
    return ResNet(Bottleneck, (3, 4, 23, 3), num_classes, **options)
