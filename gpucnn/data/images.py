"""Labelled images, and their split and normalisation before training."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Host = np.ndarray[Any, Any]
Seed = np.random.Generator | int | None


class Images(NamedTuple):
    """Labelled images: ``x, y, classes = digits()``.

    Attributes
    ----------
    x : array of float32 [N, C, H, W]
        The images, 0 to 1.
    y : array of int64 [N]
        The class of each.
    classes : tuple of str
        The name of each class.
    """

    x: Host
    y: Host
    classes: tuple[str, ...]


class Split(NamedTuple):
    """Images to train on, and others to test with: ``train, test = fashion_mnist()``."""

    train: Images
    test: Images


def train_test_split(images: Images, test_size: float = 0.2, rng: Seed = None, stratify: bool = True) -> Split:
    """Set some of the images aside for tests, at random.

    Parameters
    ----------
    images : Images
        The images to split.
    test_size : float or int
        The share of the images that is set aside, between 0 and 1, or their number.
    rng : Generator, int or None
        The source of the choice; the same int draws the same ones each time.
    stratify : bool
        Whether each class keeps its share, to within one image.

    Returns
    -------
    Split
        Copies, in the order in which they were.

    Raises
    ------
    TypeError
        `images` is no Images, or `test_size` no number.
    ValueError
        One side would be empty, or x and y are not of one length.

    Examples
    --------
    >>> images = Images(np.zeros((10, 1, 2, 2), np.float32), np.arange(10) % 2, ("even", "odd"))
    >>> train, test = train_test_split(images, 0.4, rng=0)
    >>> train.x.shape, sorted(test.y.tolist())
    ((6, 1, 2, 2), [0, 0, 1, 1])
    """
    if not isinstance(images, Images):
        raise TypeError(f"train_test_split: images is a {type(images).__name__}, expected Images(x, y, classes)")
    n = len(images.x)
    if len(images.y) != n:
        raise ValueError(f"train_test_split: images has {n} images and {len(images.y)} labels, expected one for each")
    if isinstance(test_size, bool) or not isinstance(test_size, int | float | np.integer | np.floating):
        raise TypeError(f"train_test_split: test_size is a {type(test_size).__name__}, expected a float or an int")
    wanted = int(test_size) if isinstance(test_size, int | np.integer) else round(test_size * n)
    if not 0 < wanted < n:
        raise ValueError(
            f"train_test_split: test_size = {test_size} puts {wanted} of {n} images aside, expected 1 to {n - 1}"
        )
    groups = np.unique(images.y, return_inverse=True)[1] if stratify else np.zeros(n, np.int64)
    # each image's rank among those of its class in a random order, as a share: the lowest `wanted` shares go
    order = np.random.default_rng(rng).permutation(n)
    by_group = order[np.argsort(groups[order], kind="stable")]
    sizes = np.bincount(groups)
    rank = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    share = (rank + 0.5) / np.repeat(sizes, sizes)
    aside = np.zeros(n, bool)
    aside[by_group[np.argsort(share, kind="stable")[:wanted]]] = True
    return Split(*(Images(images.x[mask], images.y[mask], images.classes) for mask in (~aside, aside)))


def channel_statistics(x: Host) -> tuple[Host, Host]:
    """Mean and standard deviation of each channel, over all images and positions.

    Parameters
    ----------
    x : array [N, C, *space]
        Floating-point images.

    Returns
    -------
    mean, std : array of float64 [C]

    Raises
    ------
    TypeError
        `x` is no NumPy array.
    ValueError
        There are no images, or `x` has no channels.

    Examples
    --------
    >>> channel_statistics(np.array([[[1.0, 3.0], [5.0, 5.0]]]))
    (array([2., 5.]), array([1., 0.]))
    """
    if not isinstance(x, np.ndarray):
        raise TypeError(f"channel_statistics: x is a {type(x).__name__}, expected a NumPy array")
    if x.ndim < 2 or not x.size:
        raise ValueError(f"channel_statistics: x has shape {x.shape}, expected (N, C, *space) with elements")
    axes = (0, *range(2, x.ndim))
    mean = x.mean(axes, dtype=np.float64, keepdims=True)
    # some images at a time: a float64 copy of them all would be twice their memory
    squares = [np.square(x[i : i + 1024] - mean).sum(axes) for i in range(0, len(x), 1024)]
    return mean.ravel(), np.sqrt(sum(squares, np.zeros(x.shape[1])) * x.shape[1] / x.size)


def normalize(x: Host, mean: Any, std: Any) -> Host:
    """Images with each channel's `mean` subtracted, divided by its `std`.

    Parameters
    ----------
    x : array [N, C, *space]
        Floating-point images.
    mean, std : float, or sequence of C floats
        As `channel_statistics` of the images to train on gives; those to test with take the same.

    Returns
    -------
    array [N, C, *space]
        In the dtype of `x`.

    Raises
    ------
    TypeError
        `x` is no NumPy array of a floating-point dtype.
    ValueError
        The lengths do not fit, or a `std` is not above 0, as that of a channel whose values are all the same.

    Examples
    --------
    >>> normalize(np.array([[[1.0, 3.0]]]), 2, 0.5)
    array([[[-2.,  2.]]])
    """
    if not isinstance(x, np.ndarray):
        raise TypeError(f"normalize: x is a {type(x).__name__}, expected a NumPy array")
    if x.dtype.kind != "f":
        raise TypeError(f"normalize: x has dtype {x.dtype}, expected a floating-point one")
    values = {}
    for name, given in (("mean", mean), ("std", std)):
        value = np.asarray(given, np.float64)
        if x.ndim < 2 or value.shape not in ((), (1,), (x.shape[1],)):
            raise ValueError(
                f"normalize: {name} has shape {value.shape} for x of shape {x.shape}, expected one a channel"
            )
        values[name] = value.reshape(-1, *(1,) * (x.ndim - 2))
    if not (values["std"] > 0).all():
        raise ValueError(f"normalize: std is {std}, expected values above 0")
    centred: Host = x - values["mean"].astype(x.dtype)
    centred /= values["std"].astype(x.dtype)
    return centred
