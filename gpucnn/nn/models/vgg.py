"""VGG: only 3×3 convolutions, in stages, each stage half as large and twice as wide.

A stage is some convolutions with padding 1, each followed by a batch norm in the `_bn` forms and by ReLU, and a 2×2 max
pooling. The variants differ in how many convolutions their stages have:

==========  =================  =============  ======  ======  ======  ======
name        stage              output         VGG-11  VGG-13  VGG-16  VGG-19
==========  =================  =============  ======  ======  ======  ======
features    3×3 convolutions   64×112×112     1       2       2       2
..          3×3 convolutions   128×56×56      1       2       2       2
..          3×3 convolutions   256×28×28      2       2       3       4
..          3×3 convolutions   512×14×14      2       2       3       4
..          3×3 convolutions   512×7×7        2       2       3       4
avgpool     adaptive average   512×7×7
flatten                        25088
classifier  linear, ReLU,      4096
            dropout
..          linear, ReLU,      4096
            dropout
..          linear             num_classes
==========  =================  =============  ======  ======  ======  ======

K. Simonyan, A. Zisserman, *Very deep convolutional networks for large-scale image recognition*, ICLR 2015,
arXiv:1409.1556 (configurations A, B, D and E).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpucnn.nn.activation import Dropout, Flatten, ReLU
from gpucnn.nn.containers import Sequential
from gpucnn.nn.convolution import Conv2d
from gpucnn.nn.initialization import Rng, generator_of
from gpucnn.nn.linear import Linear
from gpucnn.nn.models._parts import expect_positive, start_rectified
from gpucnn.nn.module import Module
from gpucnn.nn.normalization import BatchNorm2d
from gpucnn.nn.pooling import AdaptiveAvgPool2d, MaxPool2d

WIDTHS = (1, 2, 4, 8, 8)  # of the stages, in channels of the first


class VGG(Sequential):
    """A VGG network; state dicts of torchvision's ``vgg…`` and ``vgg…_bn`` fit.

    Parameters
    ----------
    depths : sequence of 5 ints
        The number of convolutions of each stage.
    num_classes : int
        How many logits there are.
    batch_norm : bool
        Whether a batch norm follows each convolution.
    in_channels : int
        Channels of the images.
    width : int
        Channels of the first stage; the others are in proportion.
    hidden : int
        Units of the two hidden linear layers.
    dropout : float
        Share of the hidden linear layers' outputs that is dropped in training.
    dtype : dtype
        Of the parameters.
    rng : Generator, int or None
        The source of randomness.

    Raises
    ------
    TypeError
        `rng` is none of these.
    ValueError
        Not five stages, a number of convolutions, channels, units or classes below 1, or `dropout` outside [0, 1].

    Notes
    -----
    Input [N, in_channels, H, W] with H and W at least 32, result [N, num_classes].

    Examples
    --------
    >>> model = VGG((1, 1, 1, 1, 1), num_classes=10, width=4, hidden=16, rng=0)
    >>> model(np.zeros((1, 3, 32, 32), np.float32)).shape
    (1, 10)
    """

    def __init__(
        self,
        depths: Sequence[int],
        num_classes: int = 1000,
        batch_norm: bool = False,
        in_channels: int = 3,
        width: int = 64,
        hidden: int = 4096,
        dropout: float = 0.5,
        *,
        dtype: Any = np.float32,
        rng: Rng = None,
    ) -> None:
        expect_positive("VGG", num_classes=num_classes, in_channels=in_channels, width=width, hidden=hidden)
        if len(depths) != len(WIDTHS) or min(depths) < 1:
            raise ValueError(f"VGG: depths is {depths!r}, expected {len(WIDTHS)} numbers of at least 1")
        generator = generator_of("VGG", rng)
        options = {"dtype": dtype, "rng": generator}
        features: list[Module] = []
        channels = in_channels
        for depth, scale in zip(depths, WIDTHS, strict=True):
            for _ in range(depth):
                features.append(Conv2d(channels, scale * width, 3, padding=1, **options))
                if batch_norm:
                    features.append(BatchNorm2d(scale * width, dtype=dtype))
                features.append(ReLU())
                channels = scale * width
            features.append(MaxPool2d(2))
        classifier = Sequential(
            Linear(channels * 7 * 7, hidden, **options),
            ReLU(),
            Dropout(dropout, rng=generator),
            Linear(hidden, hidden, **options),
            ReLU(),
            Dropout(dropout, rng=generator),
            Linear(hidden, num_classes, **options),
        )
        super().__init__(
            {
                "features": Sequential(*features),
                "avgpool": AdaptiveAvgPool2d(7),
                "flatten": Flatten(),
                "classifier": classifier,
            }
        )
        start_rectified(self, generator, linear_std=0.01)


DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def vgg11(num_classes: int = 1000, **options: Any) -> VGG:
    """`VGG` with 11 layers that have weights: configuration A; `options` are the other arguments of `VGG`.

    Examples
    --------
    >>> vgg11(num_classes=2, width=2, hidden=8, rng=0)(np.zeros((1, 3, 32, 32), np.float32)).shape
    (1, 2)
    """
    return VGG(DEPTHS[11], num_classes, **options)


def vgg13(num_classes: int = 1000, **options: Any) -> VGG:
    """`VGG` with 13 layers that have weights: configuration B; `options` are the other arguments of `VGG`."""
    return VGG(DEPTHS[13], num_classes, **options)


def vgg16(num_classes: int = 1000, **options: Any) -> VGG:
    """`VGG` with 16 layers that have weights: configuration D; `options` are the other arguments of `VGG`."""
    return VGG(DEPTHS[16], num_classes, **options)


def vgg19(num_classes: int = 1000, **options: Any) -> VGG:
    """`VGG` with 19 layers that have weights: configuration E; `options` are the other arguments of `VGG`."""
    return VGG(DEPTHS[19], num_classes, **options)


def vgg11_bn(num_classes: int = 1000, **options: Any) -> VGG:
    """`vgg11` with batch norms."""
    return VGG(DEPTHS[11], num_classes, batch_norm=True, **options)


def vgg13_bn(num_classes: int = 1000, **options: Any) -> VGG:
    """`vgg13` with batch norms."""
    return VGG(DEPTHS[13], num_classes, batch_norm=True, **options)


def vgg16_bn(num_classes: int = 1000, **options: Any) -> VGG:
    """`vgg16` with batch norms."""
    return VGG(DEPTHS[16], num_classes, batch_norm=True, **options)


def vgg19_bn(num_classes: int = 1000, **options: Any) -> VGG:
    """`vgg19` with batch norms."""
    return VGG(DEPTHS[19], num_classes, batch_norm=True, **options)
