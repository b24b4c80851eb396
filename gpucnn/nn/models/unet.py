"""U-Net: a contracting path for context, an expanding path for position, and skip connections at each size.

Each level down halves the size and doubles the channels; each level up undoes both by a transposed convolution,
concatenates the maps of its size from the way down (`skip`), and convolves them together. With k channels at first
and a depth of 4, as in the paper (k = 64):

==========  =================================================  ==========================
name        stage                                              output
==========  =================================================  ==========================
encoder.0   two 3×3 convolutions                               k×H×W, skip 0
encoder.1   2×2 max pooling, two 3×3 convolutions              2k×H/2×W/2, skip 1
encoder.2   2×2 max pooling, two 3×3 convolutions              4k×H/4×W/4, skip 2
encoder.3   2×2 max pooling, two 3×3 convolutions              8k×H/8×W/8, skip 3
encoder.4   2×2 max pooling, two 3×3 convolutions              16k×H/16×W/16
decoder.0   2×2 transposed convolution, skip 3, two 3×3        8k×H/8×W/8
decoder.1   2×2 transposed convolution, skip 2, two 3×3        4k×H/4×W/4
decoder.2   2×2 transposed convolution, skip 1, two 3×3        2k×H/2×W/2
decoder.3   2×2 transposed convolution, skip 0, two 3×3        k×H×W
head        1×1 convolution                                    num_classes×H×W
==========  =================================================  ==========================

Other than in the paper, the 3×3 convolutions are padded, so that there is a prediction for each pixel, and each is
followed by a batch norm before its ReLU. Where a size is odd, pooling drops the last row or column, and zeros stand for
it on the way up.

O. Ronneberger, P. Fischer, T. Brox, *U-Net: convolutional networks for biomedical image segmentation*, MICCAI 2015,
arXiv:1505.04597.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

import gpucnn.functional as F
from gpucnn.nn._joining import added, concatenated, parted
from gpucnn.nn.containers import Sequential
from gpucnn.nn.convolution import Conv2d, ConvTranspose2d
from gpucnn.nn.initialization import Rng, generator_of
from gpucnn.nn.models._parts import conv_norm_relu, expect_positive, start_rectified
from gpucnn.nn.module import Array, Module
from gpucnn.nn.pooling import MaxPool2d


class Encoder(Sequential):
    """One level down: half the size, except for the first level, and two convolutions."""


class PadTo(Module):
    """Zeros at the end of each spatial axis, up to a size.

    Examples
    --------
    >>> PadTo()(np.ones((1, 1, 1, 2)), (2, 3))
    array([[[[1., 1., 0.],
             [0., 0., 0.]]]])
    """

    def forward(self, x: Array, size: tuple[int, int]) -> Array:  # type: ignore[override]
        """`x` [N, C, H, W] with the spatial `size`."""
        height, width = x.shape[-2:]
        self.keep(height, width)
        missing = (0, size[1] - width, 0, size[0] - height)
        return F.pad(x, missing) if any(missing) else x

    def backward(self, grad_output: Array) -> Array:
        """The gradient with respect to the input: that of the zeros is dropped."""
        height, width = self.kept()
        return grad_output[..., :height, :width]


class Decoder(Module):
    """One level up: twice the size, half the channels, joined with the maps of that size from the way down.

    Parameters
    ----------
    in_channels : int
        Of the maps from below.
    channels : int
        Of the maps to join, and of the result.
    dtype : dtype
        Of the parameters.
    rng : Generator, int or None
        The source of randomness.

    Examples
    --------
    >>> level = Decoder(8, 4, rng=0)
    >>> level(np.zeros((1, 8, 3, 3), np.float32), np.zeros((1, 4, 7, 6), np.float32)).shape
    (1, 4, 7, 6)
    """

    def __init__(self, in_channels: int, channels: int, *, dtype: Any = np.float32, rng: Rng = None) -> None:
        generator = generator_of("Decoder", rng)
        self.up = ConvTranspose2d(in_channels, channels, 2, stride=2, dtype=dtype, rng=generator)
        self.pad = PadTo()
        self.conv = _two_convolutions(2 * channels, channels, dtype, generator)

    def forward(self, x: Array, skip: Array) -> Array:  # type: ignore[override]
        """The result, of the shape of `skip` [N, channels, H, W], of `x` [N, in_channels, H // 2, W // 2]."""
        y = self.pad(self.up(x), skip.shape[-2:])
        self.keep(skip.shape[-3], skip.dtype, y.dtype)
        return self.conv(concatenated([skip, y], -3))

    def backward(self, grad_output: Array) -> tuple[Array, Array]:
        """The gradients with respect to `x` and `skip`."""
        channels, *dtypes = self.kept()
        of_skip, of_up = parted(self.conv.backward(grad_output), *dtypes)
        grad_skip, grad_up = of_skip[..., :channels, :, :], of_up[..., channels:, :, :]
        return self.up.backward(self.pad.backward(grad_up)), grad_skip


def _two_convolutions(in_channels: int, channels: int, dtype: Any, rng: np.random.Generator) -> Sequential:
    return Sequential(
        *conv_norm_relu(in_channels, channels, 3, dtype=dtype, rng=rng),
        *conv_norm_relu(channels, channels, 3, dtype=dtype, rng=rng),
    )


class UNet(Module):
    """A U-Net that gives logits for each pixel.

    Parameters
    ----------
    num_classes : int
        The number of logits of each pixel.
    in_channels : int
        Channels of the images.
    width : int
        Channels of the first level; each level down has twice those of the one above.
    depth : int
        The number of times that the size is halved.
    dtype : dtype
        Of the parameters.
    rng : Generator, int or None
        The source of randomness.

    Raises
    ------
    TypeError
        `rng` is none of these.
    ValueError
        A number of channels or classes, or the depth, is below 1.

    Notes
    -----
    Input [N, in_channels, H, W] with H and W at least ``2**depth``, result [N, num_classes, H, W]. To train,
    `gpucnn.nn.CrossEntropyLoss` takes one class of several for each pixel [N, H, W], and
    `gpucnn.nn.BCEWithLogitsLoss` masks of 0 and 1 [N, num_classes, H, W]: one, with ``num_classes=1``, or several that
    overlap.

    Examples
    --------
    >>> model = UNet(num_classes=3, in_channels=1, width=4, depth=2, rng=0)
    >>> model(np.zeros((1, 1, 21, 18), np.float32)).shape
    (1, 3, 21, 18)
    """

    def __init__(
        self,
        num_classes: int = 2,
        in_channels: int = 3,
        width: int = 64,
        depth: int = 4,
        *,
        dtype: Any = np.float32,
        rng: Rng = None,
    ) -> None:
        expect_positive("UNet", num_classes=num_classes, in_channels=in_channels, width=width, depth=depth)
        generator = generator_of("UNet", rng)
        widths = [width << level for level in range(depth + 1)]
        self.depth = depth
        self.encoder = Sequential(
            Encoder({"conv": _two_convolutions(in_channels, width, dtype, generator)}),
            *(
                Encoder({"pool": MaxPool2d(2), "conv": _two_convolutions(above, below, dtype, generator)})
                for above, below in pairwise(widths)
            ),
        )
        self.decoder = Sequential(
            *(
                Decoder(below, above, dtype=dtype, rng=generator)
                for below, above in zip(widths[:0:-1], widths[-2::-1], strict=True)
            )
        )
        self.head = Conv2d(width, num_classes, 1, dtype=dtype, rng=generator)
        start_rectified(self, generator)

    def forward(self, x: Array) -> Array:
        """The logits [N, num_classes, H, W] of `x` [N, in_channels, H, W]."""
        least = 2**self.depth
        if min(x.shape[-2:]) < least:
            size = tuple(x.shape[-2:])
            raise ValueError(
                f"UNet: input has spatial size {size}, expected at least 2**depth = {least} along each axis"
            )
        levels = []
        for level in self.encoder:
            x = level(x)
            levels.append(x)
        for level, skip in zip(self.decoder, levels[-2::-1], strict=True):
            x = level(x, skip)
        self.keep()
        return self.head(x)

    def backward(self, grad_output: Array) -> Array:
        """The gradient with respect to the input: maps went down and across, gradients come from both."""
        self.kept()
        grad = self.head.backward(grad_output)
        across = []
        for level in reversed(list(self.decoder)):
            grad, grad_skip = level.backward(grad)
            across.append(grad_skip)
        self.encoder[0].needs_input_grad = self.needs_input_grad
        for level in reversed(list(self.encoder)):
            grad = level.backward(grad)
            if across:
                grad = added(grad, across.pop())
        return grad
