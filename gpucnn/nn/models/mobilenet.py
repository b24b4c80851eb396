"""MobileNetV2: inverted residuals, which widen by a 1×1 convolution, filter each channel alone, and narrow again.

The narrow result of a block is linear, since a rectifier would lose information where channels are few; where a
block keeps the shape, its input is added. All other convolutions are followed by batch norm and ReLU6.

==========  =================  =========  ========  ======  ======
name        stage              output     widening  blocks  stride
==========  =================  =========  ========  ======  ======
features.0  3×3 convolution    32×112             ..      1       2
..          inverted residual  16×112              1      1       1
..          inverted residual  24×56               6      2       2
..          inverted residual  32×28               6      3       2
..          inverted residual  64×14               6      4       2
..          inverted residual  96×14               6      3       1
..          inverted residual  160×7               6      3       2
..          inverted residual  320×7               6      1       1
features    1×1 convolution    1280×7             ..      1       1
avgpool     average            1280×1
classifier  dropout, linear    num_classes
==========  =================  =========  ========  ======  ======

M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L.-C. Chen, *MobileNetV2: inverted residuals and linear bottlenecks*, CVPR
2018, arXiv:1801.04381.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpucnn.nn._fusion import summed
from gpucnn.nn._joining import added, parted
from gpucnn.nn.activation import Dropout, Flatten, ReLU6
from gpucnn.nn.containers import Sequential
from gpucnn.nn.convolution import Conv2d
from gpucnn.nn.initialization import Rng, generator_of
from gpucnn.nn.linear import Linear
from gpucnn.nn.models._parts import conv_norm_relu, expect_positive, start_rectified
from gpucnn.nn.module import Array, Module
from gpucnn.nn.normalization import BatchNorm2d
from gpucnn.nn.pooling import AdaptiveAvgPool2d

# Widening, channels, blocks, stride of the first block: table 2 of the paper.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(Module):
    """Widen, filter each channel by its own 3×3 kernel, narrow; plus the input, where that has the result's shape.

    Parameters
    ----------
    in_channels, channels : int
        Of the input and of the result.
    stride : int
        Of the 3×3 convolution.
    widening : int
        The factor of the channels in the middle; 1 omits the convolution that widens.
    dtype : dtype
        Of the parameters.
    rng : Generator, int or None
        The source of randomness.

    Examples
    --------
    >>> InvertedResidual(4, 8, stride=2, rng=0)(np.zeros((1, 4, 9, 9), np.float32)).shape
    (1, 8, 5, 5)
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        widening: int = 6,
        *,
        dtype: Any = np.float32,
        rng: Rng = None,
    ) -> None:
        generator = generator_of("InvertedResidual", rng)
        options: dict[str, Any] = {"dtype": dtype, "rng": generator}
        middle = in_channels * widening
        layers: list[Module] = []
        if widening != 1:
            layers.append(_conv_norm_relu6(in_channels, middle, 1, **options))
        self.conv = Sequential(
            *layers,
            _conv_norm_relu6(middle, middle, 3, stride=stride, groups=middle, **options),
            Conv2d(middle, channels, 1, bias=False, **options),
            BatchNorm2d(channels, dtype=dtype),
        )
        self.adds_input = stride == 1 and in_channels == channels

    def forward(self, x: Array) -> Array:
        """The result [N, channels, ceil(H / stride), ceil(W / stride)] of `x` [N, in_channels, H, W]."""
        if not self.adds_input:
            self.keep()
            return self.conv(x)
        y, dtype = summed([self.conv], x, x)
        self.keep(x.dtype, dtype)
        return y

    def branches(self) -> tuple[tuple[Module, ...], ...]:
        """The ways through the block, for `gpucnn.nn.sliding_geometry`."""
        return ((self.conv,), ()) if self.adds_input else ((self.conv,),)

    def backward(self, grad_output: Array) -> Array:
        """The gradient with respect to the input: the part through the convolutions plus the part of the shortcut."""
        dtypes = self.kept()
        past, through = parted(grad_output, *dtypes) if self.adds_input else (None, grad_output)
        self.conv.needs_input_grad = self.needs_input_grad
        grad = self.conv.backward(through)
        return added(grad, past) if self.adds_input and self.needs_input_grad else grad


def _conv_norm_relu6(in_channels: int, out_channels: int, kernel_size: int, **options: Any) -> Sequential:
    return Sequential(*conv_norm_relu(in_channels, out_channels, kernel_size, activation=ReLU6, **options))


def rounded_width(channels: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `channels`, at least `divisor`, and never 10 % below `channels`.

    Examples
    --------
    >>> [rounded_width(channels) for channels in (3, 11, 12, 33.6)]
    [8, 16, 16, 32]
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


class MobileNetV2(Sequential):
    """MobileNetV2; state dicts of torchvision's ``mobilenet_v2`` fit.

    Parameters
    ----------
    num_classes : int
        The number of logits.
    width_mult : float
        Factor of all channels, which are rounded by `rounded_width`; the last layer has at least 1280.
    stages : sequence of (int, int, int, int)
        Widening, channels, blocks and first stride of each stage.
    dropout : float
        Share of the pooled features that is dropped in training.
    in_channels : int
        Channels of the images.
    last_channels : int
        Channels of the 1×1 convolution at the end.
    dtype : dtype
        Of the parameters.
    rng : Generator, int or None
        The source of randomness.

    Raises
    ------
    TypeError
        `rng` is none of these.
    ValueError
        A number of channels or classes below 1, `width_mult` not above 0, or `dropout` outside [0, 1].

    Notes
    -----
    Input [N, in_channels, H, W], result [N, num_classes]. In training the last stage must see more than one value per
    channel: a batch of one wants images larger than 32×32.

    Examples
    --------
    >>> model = MobileNetV2(num_classes=10, stages=[(1, 8, 1, 1), (6, 16, 2, 2)], last_channels=32, rng=0)
    >>> model(np.zeros((2, 3, 32, 32), np.float32)).shape
    (2, 10)
    """

    def __init__(
        self,
        num_classes: int = 1000,
        width_mult: float = 1.0,
        stages: Sequence[Sequence[int]] = STAGES,
        dropout: float = 0.2,
        in_channels: int = 3,
        last_channels: int = 1280,
        *,
        dtype: Any = np.float32,
        rng: Rng = None,
    ) -> None:
        expect_positive("MobileNetV2", num_classes=num_classes, in_channels=in_channels, last_channels=last_channels)
        if not width_mult > 0:
            raise ValueError(f"MobileNetV2: width_mult is {width_mult}, expected more than 0")
        generator = generator_of("MobileNetV2", rng)
        options: dict[str, Any] = {"dtype": dtype, "rng": generator}
        channels = rounded_width(32 * width_mult)
        last = rounded_width(last_channels * max(1.0, width_mult))
        features: list[Module] = [_conv_norm_relu6(in_channels, channels, 3, stride=2, **options)]
        for widening, wide, blocks, stride in stages:
            for index in range(blocks):
                out_channels = rounded_width(wide * width_mult)
                features.append(
                    InvertedResidual(channels, out_channels, stride if index == 0 else 1, widening, **options)
                )
                channels = out_channels
        features.append(_conv_norm_relu6(channels, last, 1, **options))
        super().__init__(
            {
                "features": Sequential(*features),
                "avgpool": AdaptiveAvgPool2d(1),
                "flatten": Flatten(),
                "classifier": Sequential(Dropout(dropout, rng=generator), Linear(last, num_classes, **options)),
            }
        )
        start_rectified(self, generator, linear_std=0.01)


def mobilenet_v2(num_classes: int = 1000, **options: Any) -> MobileNetV2:
    """`MobileNetV2` by torchvision's name, with the same arguments.

    Examples
    --------
    >>> sum(parameter.size for parameter in mobilenet_v2(rng=0).parameters())
    3504872
    """
    return MobileNetV2(num_classes, **options)
