"""AlexNet, the network that won ImageNet in 2012 and changed the field, in the form of torchvision's weights.

That is the single-GPU form of the second paper: no groups, no local response normalisation. The adaptive pooling lets
images of other sizes through; of 224×224 it changes nothing.

==========  ===================================  =========
name        stage                                output
==========  ===================================  =========
features    11×11 convolution, stride 4          64×55×55
..          ReLU, 3×3 max pooling, stride 2      64×27×27
..          5×5 convolution                      192×27×27
..          ReLU, 3×3 max pooling, stride 2      192×13×13
..          3×3 convolution, ReLU                384×13×13
..          3×3 convolution, ReLU                256×13×13
..          3×3 convolution                      256×13×13
..          ReLU, 3×3 max pooling, stride 2      256×6×6
avgpool     adaptive average pooling             256×6×6
flatten                                          9216
classifier  dropout, linear, ReLU                4096
..          dropout, linear, ReLU                4096
..          linear                               num_classes
==========  ===================================  =========

A. Krizhevsky, I. Sutskever, G. Hinton, *ImageNet classification with deep convolutional neural networks*, NIPS 2012;
A. Krizhevsky, *One weird trick for parallelizing convolutional neural networks*, arXiv:1404.5997, 2014.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn.nn.activation import Dropout, Flatten, ReLU
from gpucnn.nn.containers import Sequential
from gpucnn.nn.convolution import Conv2d
from gpucnn.nn.initialization import Rng, generator_of
from gpucnn.nn.linear import Linear
from gpucnn.nn.models._parts import expect_positive
from gpucnn.nn.pooling import AdaptiveAvgPool2d, MaxPool2d


class AlexNet(Sequential):
    """AlexNet; state dicts of torchvision's ``alexnet`` fit.

    Parameters
    ----------
    num_classes : int
        How many logits there are.
    in_channels : int
        Channels of the images.
    width : int
        Channels of the first convolution; the others are in proportion.
    hidden : int
        Units of the two hidden linear layers.
    dropout : float
        Share of inputs that the hidden linear layers miss in training.
    dtype : dtype
        Of the parameters.
    rng : Generator, int or None
        The source of randomness.

    Raises
    ------
    TypeError
        `rng` is none of these.
    ValueError
        A number of channels, units or classes below 1, or `dropout` outside [0, 1].

    Notes
    -----
    Input [N, in_channels, H, W] with H and W at least 63, result [N, num_classes].

    Examples
    --------
    >>> model = AlexNet(num_classes=10, width=8, hidden=32, rng=0)
    >>> model(np.zeros((1, 3, 64, 64), np.float32)).shape
    (1, 10)
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        width: int = 64,
        hidden: int = 4096,
        dropout: float = 0.5,
        *,
        dtype: Any = np.float32,
        rng: Rng = None,
    ) -> None:
        expect_positive("AlexNet", num_classes=num_classes, in_channels=in_channels, width=width, hidden=hidden)
        generator = generator_of("AlexNet", rng)
        options = {"dtype": dtype, "rng": generator}
        features = Sequential(
            Conv2d(in_channels, width, 11, stride=4, padding=2, **options),
            ReLU(),
            MaxPool2d(3, stride=2),
            Conv2d(width, 3 * width, 5, padding=2, **options),
            ReLU(),
            MaxPool2d(3, stride=2),
            Conv2d(3 * width, 6 * width, 3, padding=1, **options),
            ReLU(),
            Conv2d(6 * width, 4 * width, 3, padding=1, **options),
            ReLU(),
            Conv2d(4 * width, 4 * width, 3, padding=1, **options),
            ReLU(),
            MaxPool2d(3, stride=2),
        )
        classifier = Sequential(
            Dropout(dropout, rng=generator),
            Linear(4 * width * 6 * 6, hidden, **options),
            ReLU(),
            Dropout(dropout, rng=generator),
            Linear(hidden, hidden, **options),
            ReLU(),
            Linear(hidden, num_classes, **options),
        )
        super().__init__(
            {"features": features, "avgpool": AdaptiveAvgPool2d(6), "flatten": Flatten(), "classifier": classifier}
        )


def alexnet(num_classes: int = 1000, **options: Any) -> AlexNet:
    """`AlexNet` by torchvision's name, with the same arguments.

    Examples
    --------
    >>> alexnet(num_classes=2, width=4, hidden=8, rng=0)(np.zeros((1, 3, 64, 64), np.float32)).shape
    (1, 2)
    """
    return AlexNet(num_classes, **options)
