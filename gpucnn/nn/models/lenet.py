"""LeNet-5, the first convolutional network to read digits for a living, in its modern form.

Rectified units stand in place of the scaled hyperbolic tangent, max pooling in place of a trainable average, every map
of the second convolution sees all maps of the first, and the last layer is linear. Images are 28×28 with the padding of
2 that the paper's 32×32 images hold already.

=========  ==========================  ==========
name       stage                       output
=========  ==========================  ==========
features   5×5 convolution, padding 2  6×28×28
..         ReLU, 2×2 max pooling       6×14×14
..         5×5 convolution             16×10×10
..         ReLU, 2×2 max pooling       16×5×5
flatten                                400
classifier linear, ReLU                120
..         linear, ReLU                84
..         linear                      num_classes
=========  ==========================  ==========

Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, *Gradient-based learning applied to document recognition*, Proc. IEEE 86,
1998.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn.nn.activation import Flatten, ReLU
from gpucnn.nn.containers import Sequential
from gpucnn.nn.convolution import Conv2d
from gpucnn.nn.initialization import Rng, generator_of
from gpucnn.nn.linear import Linear
from gpucnn.nn.models._parts import expect_positive
from gpucnn.nn.pooling import MaxPool2d


class LeNet(Sequential):
    """LeNet-5 for images of 28×28, or of 32×32 without padding.

    Parameters
    ----------
    num_classes : int
        How many logits there are.
    in_channels : int
        Channels of the images.
    padding : int
        Of the first convolution: 2 for images of 28×28, 0 for 32×32.
    dtype : dtype
        Of the parameters.
    rng : Generator, int or None
        The source of randomness.

    Raises
    ------
    TypeError
        `rng` is none of these.
    ValueError
        A number of channels or classes below 1.

    Notes
    -----
    Input [N, in_channels, 28, 28], result [N, num_classes].

    Examples
    --------
    >>> model = LeNet(rng=0)
    >>> model(np.zeros((2, 1, 28, 28), np.float32)).shape
    (2, 10)
    >>> sum(parameter.size for parameter in model.parameters())
    61706
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        padding: int = 2,
        *,
        dtype: Any = np.float32,
        rng: Rng = None,
    ) -> None:
        expect_positive("LeNet", num_classes=num_classes, in_channels=in_channels)
        generator = generator_of("LeNet", rng)
        options = {"dtype": dtype, "rng": generator}
        features = Sequential(
            Conv2d(in_channels, 6, 5, padding=padding, **options),
            ReLU(),
            MaxPool2d(2),
            Conv2d(6, 16, 5, **options),
            ReLU(),
            MaxPool2d(2),
        )
        classifier = Sequential(
            Linear(16 * 5 * 5, 120, **options),
            ReLU(),
            Linear(120, 84, **options),
            ReLU(),
            Linear(84, num_classes, **options),
        )
        super().__init__({"features": features, "flatten": Flatten(), "classifier": classifier})
