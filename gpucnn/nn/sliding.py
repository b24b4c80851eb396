"""Networks that slide over larger images: the positions of their predictions, and maps of them.

A network of convolutions and pools takes images of any size. Run on a larger one it gives a map of scores, one position
for each multiple of the product of its strides. `gpucnn.nn.linear_to_conv` makes such a network of one that ends in
linear layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends import backend_of
from gpucnn.geometry import Window, receptive_field
from gpucnn.geometry.arguments import is_sequence, plain
from gpucnn.nn._chain import chain
from gpucnn.nn.activation import (
    GELU,
    Dropout,
    Flatten,
    Hardsigmoid,
    Hardswish,
    Identity,
    LeakyReLU,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)
from gpucnn.nn.containers import Concat, Residual
from gpucnn.nn.convolution import ConvNd, ConvTransposeNd, LocallyConnectedNd
from gpucnn.nn.keeping import evaluation
from gpucnn.nn.linear import Linear
from gpucnn.nn.module import Array, Module
from gpucnn.nn.normalization import BatchNormNd, GroupNorm, InstanceNormNd, LayerNorm, LocalResponseNorm, RMSNorm
from gpucnn.nn.pooling import AdaptiveNd, AvgPoolNd, BedOfNailsNd, LPPoolNd, MaxPoolNd, MaxUnpoolNd, SumPoolNd, Upsample

__all__ = ["SlidingGeometry", "average_map", "crop_map", "dense_map", "prediction_map", "sliding_geometry", "vote_map"]

WINDOWED = (ConvNd, MaxPoolNd, AvgPoolNd, SumPoolNd, LPPoolNd)
POINTWISE = (
    *(
        ReLU,
        ReLU6,
        LeakyReLU,
        Tanh,
        Sigmoid,
        SiLU,
        Hardsigmoid,
        Hardswish,
        GELU,
        Dropout,
        Identity,
        BatchNormNd,
        Softmax,
    ),
    LocalResponseNorm,
)

# Why other layers give a different result for a crop of a larger image than for the crop alone
_REASONS: tuple[tuple[tuple[type[Module], ...], str], ...] = (
    (
        (LayerNorm, RMSNorm, GroupNorm, InstanceNormNd),
        "it normalises by statistics of all that it is given, and those of a larger image are not those of a crop",
    ),
    ((LocallyConnectedNd,), "it has weights of its own for each position of the input that it was made for"),
    ((ConvTransposeNd,), "at the border of a crop it lacks what the neighbours would add"),
    ((Upsample, BedOfNailsNd, MaxUnpoolNd), "it makes images larger, so that no stride counts pixels of the input"),
    ((AdaptiveNd,), "its windows depend on the size of its input; linear_to_conv replaces it, though not in a branch"),
    ((Flatten, Linear), "it takes inputs of one size; linear_to_conv replaces it, though not in a branch"),
)

# --- Positions of predictions -------------------------------------------------------------------------------------


class SlidingGeometry(NamedTuple):
    """The positions of a sliding network's predictions: one value per spatial axis.

    Attributes
    ----------
    stride : tuple of int
        Between neighbouring predictions: the product of all strides. Prediction m is that of the crop from
        ``m * stride`` on.
    size : tuple of int
        The receptive field of one prediction: at most the crop's size.
    exact : bool
        Whether a prediction equals the network's for that crop alone: no layer pads. See `linear_to_conv`.
    """

    stride: tuple[int, ...]
    size: tuple[int, ...]
    exact: bool


def sliding_geometry(model: Module) -> SlidingGeometry:
    """Positions of the predictions of a converted network, or of one made of convolutions and pools alone.

    Parameters
    ----------
    model : Module
        As `linear_to_conv` gives.

    Returns
    -------
    SlidingGeometry

    Raises
    ------
    TypeError
        A layer does not slide; the message names it and says why.

    Examples
    --------
    >>> from gpucnn import nn
    >>> nn.sliding_geometry(nn.Sequential(nn.Conv2d(1, 4, 5), nn.MaxPool2d(2), nn.Conv2d(4, 10, 6)))
    SlidingGeometry(stride=(2, 2), size=(16, 16), exact=True)
    """
    rank = _rank("sliding_geometry", model)
    windows, exact = reach("sliding_geometry", "", model)
    field = receptive_field([Window((1,) * rank), *windows])
    return SlidingGeometry(field.stride, field.size, exact)


def _rank(op: str, model: Module) -> int:
    """Spatial axes of the images that `model` takes."""
    for module in model.modules():
        if isinstance(module, WINDOWED):
            return module.rank
    raise TypeError(f"{op}: model has neither convolution nor pool, expected a network that slides")


def reach(op: str, name: str, module: Module) -> tuple[list[Window], bool]:
    """The windows on the way through `module`, and whether none of them reaches over a border.

    Raises
    ------
    TypeError
        It does not slide.
    """

    def refusal(reason: str) -> TypeError:
        return TypeError(f"{op}: {named(name, module)} cannot slide: {reason}")

    if isinstance(module, WINDOWED):
        if getattr(module, "return_indices", False):
            raise refusal("it returns indices beside its result")
        return [Window(module.kernel_size, module.stride, 0, module.dilation)], not _reaches_over(module)
    if isinstance(module, BatchNormNd) and module.running_mean is None:
        raise refusal("it has no running statistics, and normalises by those of all that it is given")
    if isinstance(module, (Softmax, Concat)) and module.dim != 1:
        raise refusal(f"its dim is {module.dim}, expected 1, the channels")
    if isinstance(module, POINTWISE):
        return [], True
    if hasattr(module, "branches"):  # a custom block that lists the ways through it
        ways = [_together([reach(op, name, layer) for layer in branch]) for branch in module.branches()]
        return max((way for way, _ in ways), key=_size), all(exact for _, exact in ways)
    if isinstance(module, (Residual, Concat)):
        ways = [reach(op, below(name, part), child) for part, child in module.named_children()]
        return max((way for way, _ in ways), key=_size), all(exact for _, exact in ways)
    reason = next((reason for kinds, reason in _REASONS if isinstance(module, kinds)), None)
    if reason:
        raise refusal(reason)
    return _together([reach(op, below(name, part), child) for part, child in chain(op, module).items()])


def _together(parts: list[tuple[list[Window], bool]]) -> tuple[list[Window], bool]:
    """The result of `reach` for layers in sequence, from its results for each."""
    return [window for windows, _ in parts for window in windows], all(exact for _, exact in parts)


def _size(windows: list[Window]) -> tuple[int, ...]:
    """The receptive field of a stack of windows; that of no windows compares as the smallest."""
    size: tuple[int, ...] = receptive_field(windows).size if windows else ()
    return size


def _reaches_over(layer: Any) -> bool:
    """Whether a window of `layer` may reach over the border of a crop, where a larger image goes on."""
    if isinstance(layer.padding, str):
        padded = layer.padding != "valid" and max(layer.kernel_size) > 1
    else:
        padded = bool(np.any(layer.padding))
    return padded or bool(getattr(layer, "ceil_mode", False))


def named(name: str, module: Module) -> str:
    """A layer in a message."""
    return f"{name}, a {type(module).__name__}," if name else f"a {type(module).__name__}"


def below(name: str, part: str) -> str:
    """The dotted name of a part."""
    return f"{name}.{part}" if name else part


# --- Maps of predictions ------------------------------------------------------------------------------------------


def prediction_map(model: Module, image: Array) -> Array:
    """The scores at every position of an image, by a network that slides, in evaluation mode.

    Parameters
    ----------
    model : Module
        As `linear_to_conv` gives.
    image : array [C, *space] or [N, C, *space]
        Not smaller than what one prediction sees.

    Returns
    -------
    array [K, *map] or [N, K, *map]
        Position m is that of the crop from ``m * stride`` on (`sliding_geometry`).

    Raises
    ------
    TypeError, ValueError
        `model` does not slide; `image` is smaller than what one prediction sees, or has other axes.

    Examples
    --------
    >>> from gpucnn import nn
    >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 9, 10))
    >>> converted = nn.linear_to_conv(network, (1, 8, 8))
    >>> prediction_map(converted, np.zeros((1, 12, 16), np.float32)).shape
    (10, 3, 5)
    """
    _, batch, single = _taken("prediction_map", model, image)
    with evaluation(model):
        scores = model(batch)
    return scores[0] if single else scores


def dense_map(model: Module, image: Array, shifts: int | Sequence[int] = 2) -> Array:
    """The prediction map at a fraction of the stride: the network slides over shifted images, the maps are interleaved.

    Parameters
    ----------
    model : Module
        As `linear_to_conv` gives, with a stride that `shifts` divides.
    image : array [C, *space] or [N, C, *space]
        As for `prediction_map`.
    shifts : int or sequence of int
        The number of shifts along each axis: 2 for half strides, the stride for a prediction at each position.

    Returns
    -------
    array [K, *map] or [N, K, *map]
        Position m is that of the crop from ``m * stride / shifts`` on; every `shifts`-th is `prediction_map`'s.

    Raises
    ------
    TypeError, ValueError
        As of `prediction_map`; `shifts` does not divide the stride.

    Notes
    -----
    The network runs once for each of the ``prod(shifts)`` shifts. Predictions without padding are those of crops as in
    `linear_to_conv`; with padding each shift has its own border.

    References
    ----------
    P. Sermanet and others, *OverFeat: integrated recognition, localization and detection using convolutional
    networks*, 2014, arXiv:1312.6229v4, section 3.3, does this at the last pool.

    Examples
    --------
    >>> from gpucnn import nn
    >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 9, 10))
    >>> converted = nn.linear_to_conv(network, (1, 8, 8))
    >>> dense_map(converted, np.zeros((1, 12, 16), np.float32), shifts=2).shape
    (10, 5, 9)
    """
    where, batch, single = _taken("dense_map", model, image)
    rank = len(where.stride)
    given: Any = shifts if is_sequence(shifts) else (shifts,) * rank
    parts = tuple(map(plain, given))
    if len(parts) != rank or any(part < 1 or step % part for part, step in zip(parts, where.stride, strict=False)):
        raise ValueError(f"dense_map: shifts is {shifts}, expected divisors of the stride {where.stride}")
    steps = [step // part for part, step in zip(parts, where.stride, strict=True)]
    maps: dict[tuple[int, ...], Array] = {}
    with evaluation(model):
        for shift in product(*map(range, parts)):
            begins = [number * step for number, step in zip(shift, steps, strict=True)]
            if all(
                size - begin >= field for size, begin, field in zip(batch.shape[2:], begins, where.size, strict=True)
            ):
                maps[shift] = model(batch[(slice(None), slice(None), *(slice(begin, None) for begin in begins))])
    return _interleaved(maps, parts)[0 if single else slice(None)]


def _interleaved(maps: dict[tuple[int, ...], Array], parts: tuple[int, ...]) -> Array:
    """The map whose position ``i * parts + shift`` is position i of ``maps[shift]``.

    An image that is longer by the stride has a map that is longer by 1, so of two shifts' maps the one of the smaller
    shift is as long as the other, or longer by 1: they always interleave.
    """
    first = maps[(0,) * len(parts)]
    lengths = [
        sum(scores.shape[2 + axis] for shift, scores in maps.items() if sum(shift) == shift[axis])
        for axis in range(len(parts))
    ]
    dense = backend_of(first).xp.zeros((*first.shape[:2], *lengths), first.dtype)
    for shift, scores in maps.items():
        places = tuple(slice(number, None, part) for number, part in zip(shift, parts, strict=True))
        dense[(slice(None), slice(None), *places)] = scores
    return dense


def _taken(op: str, model: Module, image: Array) -> tuple[SlidingGeometry, Array, bool]:
    """The positions of the predictions, the image as a batch, and whether it came without a batch axis."""
    where = sliding_geometry(model)
    rank = len(where.stride)
    if image.ndim not in (rank + 1, rank + 2):
        raise ValueError(f"{op}: image has shape {tuple(image.shape)}, expected [C, *space] or [N, C, *space]")
    if where.exact and any(size < field for size, field in zip(image.shape[-rank:], where.size, strict=True)):
        raise ValueError(f"{op}: image is {tuple(image.shape[-rank:])}, expected at least {where.size}")
    single = image.ndim == rank + 1
    return where, image[None] if single else image, single


def crop_map(
    model: Module, image: Array, crop_size: Sequence[int], stride: Sequence[int], batch_size: int = 256
) -> Array:
    """The prediction map the slow way, one run per crop: for networks that do not slide, and for comparison.

    Parameters
    ----------
    model : Module
        In [N, C, *crop_size], out [N, K]; run in evaluation mode.
    image : array [C, *space]
        Not smaller than `crop_size`.
    crop_size, stride : sequence of int
        One value per spatial axis.
    batch_size : int
        Crops that go through `model` as one batch.

    Returns
    -------
    array [K, *map]
        Position m is of the crop from ``m * stride`` on.

    Raises
    ------
    ValueError
        `image` is smaller than `crop_size`, or numbers of axes differ.

    Examples
    --------
    >>> from gpucnn import nn
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(16, 10))
    >>> crop_map(network, np.zeros((1, 8, 6), np.float32), (4, 4), (2, 2)).shape
    (10, 3, 2)
    """
    sizes = tuple(image.shape[1:])
    if not len(sizes) == len(crop_size) == len(stride) or any(s < c for s, c in zip(sizes, crop_size, strict=True)):
        raise ValueError(
            f"crop_map: image is {sizes}, crop_size {tuple(crop_size)}, stride {tuple(stride)}; expected one value per "
            "spatial axis, and crops not larger than the image"
        )
    counts = [(size - crop) // step + 1 for size, crop, step in zip(sizes, crop_size, stride, strict=True)]
    begins = list(product(*(range(0, count * step, step) for count, step in zip(counts, stride, strict=True))))
    xp: Any = backend_of(image).xp
    scores = []
    with evaluation(model):
        for first in range(0, len(begins), batch_size):
            crops = [
                image[(slice(None), *(slice(b, b + crop) for b, crop in zip(begin, crop_size, strict=True)))]
                for begin in begins[first : first + batch_size]
            ]
            scores.append(model(xp.stack(crops)))
    together = xp.concatenate(scores)
    return together.T.reshape(together.shape[1], *counts)


def average_map(scores: Array, rank: int = 2) -> Array:
    """One score for each class of the whole image: the average over the positions of a map.

    Parameters
    ----------
    scores : array [K, *map] or [N, K, *map]
        Scores, or probabilities (their softmax along the classes); averages of the two differ.
    rank : int
        Spatial axes.

    Returns
    -------
    array [K] or [N, K]

    Examples
    --------
    >>> average_map(np.array([[[1.0, 3.0]], [[0.0, 2.0]]]))
    array([2., 1.])
    """
    return scores.mean(axis=tuple(range(-rank, 0)))


def vote_map(scores: Array, rank: int = 2) -> Array:
    """The share of the positions of a map at which each class has the highest score, the first of equal ones.

    Parameters
    ----------
    scores : array [K, *map] or [N, K, *map]
        Scores or probabilities: the votes are the same.
    rank : int
        Spatial axes.

    Returns
    -------
    array [K] or [N, K]
        Shares, which add up to 1; the image's class is that of the largest.

    Examples
    --------
    >>> vote_map(np.array([[[1.0, 3.0, 0.0]], [[0.0, 2.0, 5.0]]])).round(2)
    array([0.67, 0.33])
    """
    xp: Any = backend_of(scores).xp
    classes = scores.shape[-rank - 1]
    winners = scores.argmax(axis=-rank - 1)
    shares = [(winners == label).astype(scores.dtype).mean(axis=tuple(range(-rank, 0))) for label in range(classes)]
    return xp.stack(shares, axis=-1)
