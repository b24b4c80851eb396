"""Random changes to a batch of images that leave its labels true, so that a network sees each image in many places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.data.images import Host

Augmentation = Callable[[Host, np.random.Generator], Host]


@dataclass(frozen=True)
class Crop:
    """A window at a random place of each image, which is padded first.

    Parameters
    ----------
    size : int or pair of int
        Height and width of the window.
    padding : int
        The number of rows and columns added on each side.
    fill : float
        Their value.

    Examples
    --------
    >>> Crop(2)(np.arange(9.0).reshape(1, 1, 3, 3), np.random.default_rng(0))
    array([[[[4., 5.],
             [7., 8.]]]])
    """

    size: int | tuple[int, int]
    padding: int = 0
    fill: float = 0.0

    def __post_init__(self) -> None:
        sizes = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        if len(sizes) != 2 or min(sizes) < 1:
            raise ValueError(f"Crop: size is {self.size}, expected an int or two, of at least 1")
        if self.padding < 0:
            raise ValueError(f"Crop: padding is {self.padding}, expected at least 0")

    def __call__(self, x: Host, rng: np.random.Generator) -> Host:
        """The crops of a batch [N, C, H, W]."""
        _expect_images("Crop", x)
        height, width = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        sides = ((0, 0), (0, 0), (self.padding,) * 2, (self.padding,) * 2)
        padded = np.pad(x, sides, constant_values=self.fill) if self.padding else x
        rows, columns = padded.shape[2] - height + 1, padded.shape[3] - width + 1
        if min(rows, columns) < 1:
            raise ValueError(f"Crop: size is {self.size}, expected at most the padded image's {padded.shape[2:]}")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
        n = len(x)
        top, left = rng.integers(rows, size=n), rng.integers(columns, size=n)
        return np.ascontiguousarray(windows[np.arange(n), :, top, left])


@dataclass(frozen=True)
class Shift:
    """Each image moved by up to `pixels` rows and columns, either way.

    Parameters
    ----------
    pixels : int
        The farthest move.
    fill : float
        The value that is shifted in at the border.

    Examples
    --------
    >>> Shift(1)(np.ones((1, 1, 2, 2)), np.random.default_rng(2))
    array([[[[0., 1.],
             [0., 0.]]]])
    """

    pixels: int
    fill: float = 0.0

    def __post_init__(self) -> None:
        if self.pixels < 0:
            raise ValueError(f"Shift: pixels is {self.pixels}, expected at least 0")

    def __call__(self, x: Host, rng: np.random.Generator) -> Host:
        """The shifted images of a batch [N, C, H, W]."""
        _expect_images("Shift", x)
        return Crop((x.shape[2], x.shape[3]), self.pixels, self.fill)(x, rng)


@dataclass(frozen=True)
class Flip:
    """Some images mirrored, left to right.

    Parameters
    ----------
    probability : float
        The chance of each.

    Examples
    --------
    >>> Flip(1)(np.arange(3.0).reshape(1, 1, 1, 3), np.random.default_rng(0))
    array([[[[2., 1., 0.]]]])
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"Flip: probability is {self.probability}, expected 0 to 1")

    def __call__(self, x: Host, rng: np.random.Generator) -> Host:
        """A batch [N, C, H, W], some of it mirrored."""
        _expect_images("Flip", x)
        mirrored = rng.random(len(x)) < self.probability
        return np.where(mirrored[:, None, None, None], x[..., ::-1], x)


class Compose:
    """Several augmentations, one after the other.

    Examples
    --------
    >>> Compose(Flip(), Shift(2))(np.ones((4, 1, 8, 8)), np.random.default_rng(0)).shape
    (4, 1, 8, 8)
    """

    def __init__(self, *steps: Augmentation) -> None:
        self.steps = steps

    def __call__(self, x: Host, rng: np.random.Generator) -> Host:
        """The batch after all augmentations."""
        for step in self.steps:
            x = step(x, rng)
        return x

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.steps))})"


def _expect_images(name: str, x: Any) -> None:
    if x.ndim != 4:
        raise ValueError(f"{name}: x has shape {x.shape}, expected (N, C, H, W)")
