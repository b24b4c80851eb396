"""Transfer learning: a trained network's features, a new head, and a learning rate for each part."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import Any

import numpy as np

from gpucnn.backends import backend_of
from gpucnn.backends.dtypes import accumulator
from gpucnn.nn._chain import chain, expect_module, pair_of
from gpucnn.nn.activation import Flatten
from gpucnn.nn.containers import Sequential
from gpucnn.nn.convolution import ConvNd
from gpucnn.nn.keeping import evaluation
from gpucnn.nn.linear import Linear
from gpucnn.nn.losses import CrossEntropyLoss
from gpucnn.nn.module import Module, Parameter
from gpucnn.nn.optimizers import Adam

__all__ = ["cached_features", "features", "freeze", "linear_classifier", "parameter_groups", "replace_head", "unfreeze"]

Array = Any


def features(model: Module, upto: str | int) -> Sequential:
    """The first layers of a network, up to and including one layer.

    Parameters
    ----------
    model : Module
        One that runs its children one after the other: a Sequential, or a model made as one.
    upto : str or int
        The last layer kept: its name, dotted for a layer within a Sequential (``"classifier.4"``), or its index among
        the children, from the end if negative (-2 leaves out the last).

    Returns
    -------
    Sequential
        Of the same layers, not copies: weights, modes and frozen parameters are shared. Names stay.

    Raises
    ------
    TypeError
        `model` is not known to run its children one after the other, or `upto` is neither a name nor an index.
    ValueError
        There is no such layer.

    Examples
    --------
    >>> from gpucnn import nn
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
    >>> nn.features(model, upto=-2)(np.zeros((2, 1, 8, 8), np.float32)).shape
    (2, 144)
    """
    layers = chain("features", model)
    if isinstance(upto, int):
        if not -len(layers) <= upto < len(layers):
            raise ValueError(f"features: upto is {upto}, expected an index of one of {len(layers)} layers")
        name, below = list(layers)[upto], ""
    elif isinstance(upto, str):
        name, _, below = upto.partition(".")
    else:
        raise TypeError(f"features: upto is {upto!r}, expected the name or the index of a layer")
    if name not in layers:
        raise ValueError(f"features: upto is {upto!r}, but there is no layer {name!r}; expected one of {list(layers)}")
    kept = dict(list(layers.items())[: list(layers).index(name) + 1])
    if below:
        kept[name] = features(kept[name], below)
    return Sequential(kept)


def replace_head(model: Module, num_classes: int, rng: np.random.Generator | int | None = None) -> Module:
    """Put a new last layer with `num_classes` outputs in the place of a network's last one.

    Parameters
    ----------
    model : Module
        Any network; it is changed.
    num_classes : int
        Outputs of the new layer.
    rng : Generator, int or None
        The source of its random weights.

    Returns
    -------
    Module
        The new layer: of the same kind as the last Linear or convolution, with its inputs, dtype and device, and
        learning.

    Raises
    ------
    ValueError
        `num_classes` is not positive, or there is no Linear layer or convolution.

    Examples
    --------
    >>> from gpucnn import nn
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    >>> nn.replace_head(model, 3, rng=0)
    Linear(in_features=16, out_features=3, bias=True)
    >>> model(np.zeros((2, 64), np.float32)).shape
    (2, 3)
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int | np.integer) or num_classes < 1:
        raise ValueError(f"replace_head: num_classes is {num_classes}, expected a positive int")
    name, parent, old = _head("replace_head", model)
    options: dict[str, Any] = {
        "bias": old.bias is not None,
        "dtype": old.weight.data.dtype,
        "rng": rng,
    }
    new: Module
    if isinstance(old, Linear):
        new = Linear(old.in_features, int(num_classes), **options)
    else:
        names = ("stride", "padding", "dilation", "groups", "padding_mode")
        options |= {name: getattr(old, name) for name in names}
        new = type(old)(old.in_channels, int(num_classes), old.kernel_size, **options)
    xp: Any = backend_of(old.weight.data).xp
    new.map_arrays(xp.asarray).train(old.training)
    setattr(parent, name, new)
    return new


def _head(op: str, model: Module) -> tuple[str, Module, Any]:
    """The last Linear layer or convolution of `model`: its name in its parent, the parent, and itself."""
    heads = [name for name, module in model.named_modules() if name and isinstance(module, (Linear, ConvNd))]
    if not heads:
        raise ValueError(
            f"{op}: {type(model).__name__} has no Linear layer or convolution below it, expected a last one"
        )
    *path, name = heads[-1].split(".")
    parent: Module = reduce(getattr, path, model)
    return name, parent, getattr(parent, name)


def freeze(model: Module, but: Module | Iterable[Module] = ()) -> None:
    """Let only the modules `but` learn; the rest of the network stays unchanged bit for bit.

    Parameters
    ----------
    model : Module
        The network.
    but : Module or iterable of Module
        Parts of it that learn: a new head.

    Raises
    ------
    ValueError
        One of `but` is no part of `model`.

    Notes
    -----
    No frozen parameter gets a gradient, and frozen modules stay in evaluation mode when the network is set to training:
    else batch norms would go on moving their running statistics, and normalise by each batch's, which is not what the
    features were learned with.

    Examples
    --------
    >>> from gpucnn import nn
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    >>> nn.freeze(model, but=nn.replace_head(model, 3))
    >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    ['3.weight', '3.bias']
    """
    parts, mode = _parts("freeze", model, but), model.training
    learning = {id(module) for part in parts for module in part.modules()}
    model.requires_grad_(False)
    for module in model.modules():
        module.frozen = not any(id(part) in learning for part in module.modules())
    for part in parts:
        part.requires_grad_(True)
    model.train(mode)


def unfreeze(model: Module) -> None:
    """Let all of `model` learn, in the mode that it is in."""
    for module in model.modules():
        module.frozen = False
    model.requires_grad_(True).train(model.training)


def parameter_groups(
    model: Module, head: Module | Iterable[Module], lr: float, body: float = 0.1
) -> list[dict[str, Any]]:
    """Groups for an optimiser: the head at the learning rate `lr`, the rest of the network at a share of it.

    Parameters
    ----------
    model : Module
        The network.
    head : Module or iterable of Module
        The parts of it that were just added.
    lr : float
        The learning rate of `head`.
    body : float
        Share of `lr` at which the rest learns: a tenth, so that learned weights are adjusted, not lost.

    Returns
    -------
    list of dict
        ``{"params": [...], "lr": ...}`` for the head and for the rest.

    Raises
    ------
    ValueError
        `head` is no part of `model`.

    Examples
    --------
    >>> from gpucnn import nn
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    >>> groups = nn.parameter_groups(model, nn.replace_head(model, 3), lr=0.5)
    >>> [(len(group["params"]), group["lr"]) for group in groups]
    [(2, 0.5), (2, 0.05)]
    """
    of_head = [parameter for part in _parts("parameter_groups", model, head) for parameter in part.parameters()]
    known = {id(parameter) for parameter in of_head}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    return [{"params": of_head, "lr": lr}, {"params": rest, "lr": lr * body}]


def _parts(op: str, model: Module, parts: Module | Iterable[Module]) -> list[Module]:
    """`parts` as a list, all of them below `model`."""
    listed = [parts] if isinstance(parts, Module) else list(parts)
    below = {id(module) for module in model.modules()}
    for part in listed:
        if id(part) not in below:
            raise ValueError(f"{op}: a {type(part).__name__} is no part of the model, expected modules below it")
    return listed


# --- A linear classifier on top of features -----------------------------------------------------------------------


def cached_features(model: Module, loader: Iterable[tuple[Array, Array]]) -> tuple[Array, Array]:
    """The outputs of `model` for all images of a loader, flattened, and their labels; in evaluation mode.

    Parameters
    ----------
    model : Module
        As `features` gives.
    loader : iterable of (x, y)
        Batches of images and labels, gone through once.

    Returns
    -------
    array [N, D], array [N]

    Raises
    ------
    TypeError
        `model` is none, or the loader gives something else than pairs.
    ValueError
        There is no batch.

    Examples
    --------
    >>> from gpucnn import nn
    >>> batches = [(np.ones((4, 1, 2, 2)), np.arange(4)), (np.ones((2, 1, 2, 2)), np.arange(2))]
    >>> x, y = nn.cached_features(nn.ReLU(), batches)
    >>> x.shape, y.shape
    ((6, 4), (6,))
    """
    expect_module("cached_features", model)
    parts: list[tuple[Array, Array]] = []
    with evaluation(model):
        for x, y in (pair_of("cached_features", batch) for batch in loader):
            output = model(x)
            parts.append((output.reshape(output.shape[0], -1), y))
    if not parts:
        raise ValueError("cached_features: loader has no batch, expected at least one")
    return tuple(backend_of(each[0]).xp.concatenate(each) for each in zip(*parts, strict=True))


def linear_classifier(
    features_model: Module,
    loader: Iterable[tuple[Array, Array]],
    num_classes: int | None = None,
    epochs: int = 100,
    lr: float = 0.01,
    weight_decay: float = 1e-4,
    batch_size: int = 256,
    rng: np.random.Generator | int | None = None,
) -> Sequential:
    """A linear softmax classifier on top of features that stay as they are.

    The features of all images are computed once; only the linear layer is trained, on these numbers.

    Parameters
    ----------
    features_model : Module
        As `features` gives; its parameters are read only.
    loader : iterable of (x, y)
        Batches of images and labels (ints from 0), gone through once: augmented images are drawn once.
    num_classes : int, optional
        If left out, one more than the largest label.
    epochs, lr, weight_decay, batch_size
        Options of Adam for the linear layer, on features scaled to mean 0 and variance 1.
    rng : Generator, int or None
        The source of the order of the batches.

    Returns
    -------
    Sequential
        Of ``features`` (`features_model`), ``flatten`` and ``classifier``, the Linear layer: it takes images.

    Raises
    ------
    ValueError
        There is no batch, labels are not in [0, num_classes), or a number is out of range.

    Notes
    -----
    Features differ in scale by orders of magnitude, which makes plain gradient descent slow; so the layer learns on
    scaled ones, and the scales are then made part of its weights: ``W (x - mean) / std + b`` is ``W' x + b'``. The
    problem is convex; the weights start at 0.

    References
    ----------
    A. S. Razavian and others, *CNN features off-the-shelf: an astounding baseline for recognition*, 2014,
    arXiv:1403.6382v3.

    Examples
    --------
    >>> from gpucnn import nn
    >>> rng = np.random.default_rng(0)
    >>> y = rng.integers(2, size=100)
    >>> x = rng.normal(size=(100, 1, 4, 4)).astype(np.float32) + y[:, None, None, None]
    >>> model = nn.linear_classifier(nn.ReLU(), [(x, y)], rng=0)
    >>> bool((model(x).argmax(axis=1) == y).mean() > 0.9)
    True
    """
    x, y = cached_features(features_model, loader)
    largest = int(y.max())
    classes = largest + 1 if num_classes is None else num_classes
    if int(y.min()) < 0 or largest >= classes:
        raise ValueError(
            f"linear_classifier: labels are from {int(y.min())} to {largest}, expected ints in [0, {classes})"
        )
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"linear_classifier: epochs is {epochs}, batch_size {batch_size}, expected positive ints")
    xp: Any = backend_of(x).xp
    dtype, x = x.dtype, x.astype(accumulator(x.dtype), copy=False)  # 16-bit features are learned on in float32
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    known = deviation > 1e-6 * abs(x).max()  # a feature that is the same for all images says nothing
    scale = xp.where(known, 1 / xp.where(known, deviation, xp.ones_like(deviation)), xp.zeros_like(deviation))
    scaled = (x - mean) * scale
    layer = Linear(x.shape[1], classes, dtype=x.dtype, rng=0).map_arrays(xp.asarray).map_arrays(xp.zeros_like)
    loss = CrossEntropyLoss()
    optimizer = Adam(layer.parameters(), lr=lr, weight_decay=weight_decay)
    generator = np.random.default_rng(rng)
    for _ in range(epochs):
        order = generator.permutation(len(y))
        for first in range(0, len(y), batch_size):
            chosen = xp.asarray(order[first : first + batch_size])
            layer.zero_grad()
            loss(layer(scaled[chosen]), y[chosen])
            layer.backward(loss.backward())
            optimizer.step()
    weight = layer.weight.data * scale
    bias: Array = -(weight @ mean) if layer.bias is None else layer.bias.data - weight @ mean
    layer.weight, layer.bias = (Parameter(array.astype(dtype, copy=False)) for array in (weight, bias))
    layer.zero_grad()
    return Sequential({"features": features_model, "flatten": Flatten(), "classifier": layer})
