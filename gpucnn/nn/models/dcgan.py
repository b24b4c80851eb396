"""DCGAN: a generator that draws images from noise, and a discriminator that separates them from real ones.

The generator is transposed convolutions that double the size, with batch norms and ReLU, and tanh at the end: its
pixels are in (-1, 1). The discriminator is its mirror image, with LeakyReLU and no norm on the pixels. Neither pools.
With k channels (k = 64) and images of 64×64:

=======  ===================================  ========
name     generator's stage                    output
=======  ===================================  ========
main.0   4×4 transposed convolution           8k×4×4
main.3   the same, stride 2                   4k×8×8
main.6   the same, stride 2                   2k×16×16
main.9   the same, stride 2                   k×32×32
main.12  the same, stride 2, and tanh         3×64×64
=======  ===================================  ========

=======  ===================================  ========
name     discriminator's stage                output
=======  ===================================  ========
main.0   4×4 convolution, stride 2            k×32×32
main.2   the same                             2k×16×16
main.5   the same                             4k×8×8
main.8   the same                             8k×4×4
main.11  4×4 convolution                      1×1×1
=======  ===================================  ========

Other sizes, powers of two from 8 on, have fewer or more stages of stride 2.

A. Radford, L. Metz, S. Chintala, *Unsupervised representation learning with deep convolutional generative adversarial
networks*, ICLR 2016, arXiv:1511.06434.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn.nn import initialization as init
from gpucnn.nn.activation import LeakyReLU, ReLU, Tanh
from gpucnn.nn.containers import Sequential
from gpucnn.nn.convolution import Conv2d, ConvTranspose2d
from gpucnn.nn.initialization import Rng, generator_of
from gpucnn.nn.models._parts import expect_positive
from gpucnn.nn.module import Module
from gpucnn.nn.normalization import BatchNorm2d


class DCGANGenerator(Sequential):
    """Images from noise; state dicts of the generator of PyTorch's DCGAN example fit.

    Parameters
    ----------
    latent : int
        The number of random numbers that make an image.
    out_channels : int
        Channels of the images.
    width : int
        Channels before the last stage; each stage has half those of the one before.
    image_size : int
        Height and width of the images: a power of two, at least 8.
    dtype : dtype
        Of the parameters.
    rng : Generator, int or None
        The source of randomness.

    Raises
    ------
    TypeError
        `rng` is none of these.
    ValueError
        `image_size` is none of these, or another number below 1.

    Notes
    -----
    Input [N, latent, 1, 1], result [N, out_channels, image_size, image_size] in (-1, 1).

    Examples
    --------
    >>> generator = DCGANGenerator(latent=10, width=4, image_size=16, rng=0)
    >>> generator(np.random.default_rng(0).standard_normal((2, 10, 1, 1)).astype(np.float32)).shape
    (2, 3, 16, 16)
    """

    def __init__(
        self,
        latent: int = 100,
        out_channels: int = 3,
        width: int = 64,
        image_size: int = 64,
        *,
        dtype: Any = np.float32,
        rng: Rng = None,
    ) -> None:
        expect_positive("DCGANGenerator", latent=latent, out_channels=out_channels, width=width)
        doublings = _halvings("DCGANGenerator", image_size)
        options: dict[str, Any] = {"bias": False, "dtype": dtype, "rng": generator_of("DCGANGenerator", rng)}
        channels = width << (doublings - 1)
        layers: list[Module] = [
            ConvTranspose2d(latent, channels, 4, **options),
            BatchNorm2d(channels, dtype=dtype),
            ReLU(),
        ]
        for _ in range(doublings - 1):
            layers += [
                ConvTranspose2d(channels, channels // 2, 4, stride=2, padding=1, **options),
                BatchNorm2d(channels // 2, dtype=dtype),
                ReLU(),
            ]
            channels //= 2
        layers += [ConvTranspose2d(channels, out_channels, 4, stride=2, padding=1, **options), Tanh()]
        super().__init__({"main": Sequential(*layers)})
        _start(self, options["rng"])


class DCGANDiscriminator(Sequential):
    """A logit for each image, above 0 for those taken to be real; fits PyTorch's DCGAN example's discriminator.

    Parameters
    ----------
    in_channels : int
        Channels of the images.
    width : int
        Channels of the first stage; each has twice those of the one before.
    image_size : int
        Height and width of the images: a power of two, at least 8.
    dtype : dtype
        Of the parameters.
    rng : Generator, int or None
        The source of randomness.

    Raises
    ------
    TypeError
        `rng` is none of these.
    ValueError
        `image_size` is none of these, or another number below 1.

    Notes
    -----
    Input [N, in_channels, image_size, image_size], result [N, 1, 1, 1]. PyTorch's example ends with a sigmoid, which
    has no parameters: `gpucnn.nn.Sigmoid` of this result is its result. To train, `gpucnn.nn.BCEWithLogitsLoss` takes
    the logits as they are, with targets of 1 for real images and 0 for drawn ones.

    Examples
    --------
    >>> DCGANDiscriminator(width=4, image_size=16, rng=0)(np.zeros((2, 3, 16, 16), np.float32)).shape
    (2, 1, 1, 1)
    """

    def __init__(
        self, in_channels: int = 3, width: int = 64, image_size: int = 64, *, dtype: Any = np.float32, rng: Rng = None
    ) -> None:
        expect_positive("DCGANDiscriminator", in_channels=in_channels, width=width)
        halvings = _halvings("DCGANDiscriminator", image_size)
        options: dict[str, Any] = {"bias": False, "dtype": dtype, "rng": generator_of("DCGANDiscriminator", rng)}
        layers: list[Module] = [Conv2d(in_channels, width, 4, stride=2, padding=1, **options), LeakyReLU(0.2)]
        for _ in range(halvings - 1):
            layers += [
                Conv2d(width, 2 * width, 4, stride=2, padding=1, **options),
                BatchNorm2d(2 * width, dtype=dtype),
                LeakyReLU(0.2),
            ]
            width *= 2
        layers.append(Conv2d(width, 1, 4, **options))
        super().__init__({"main": Sequential(*layers)})
        _start(self, options["rng"])


def _halvings(model: str, image_size: int) -> int:
    """The number of times that `image_size` is halved until it is 4."""
    halvings = image_size.bit_length() - 3
    if halvings < 1 or image_size != 4 << halvings:
        raise ValueError(f"{model}: image_size is {image_size}, expected a power of two, at least 8")
    return halvings


def _start(model: Module, rng: np.random.Generator) -> None:
    """As the paper: weights from a normal distribution of standard deviation 0.02, those of norms around 1."""
    for module in model.modules():
        if isinstance(module, Conv2d | ConvTranspose2d | BatchNorm2d):
            init.normal_(module.weight, 1.0 if isinstance(module, BatchNorm2d) else 0.0, 0.02, rng=rng)
