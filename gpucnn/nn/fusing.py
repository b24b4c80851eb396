"""Networks for inference, with the batch norms folded into the layers before them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from gpucnn.backends import backend_of
from gpucnn.nn._chain import expect_module
from gpucnn.nn._fusion import is_one_of
from gpucnn.nn.activation import Identity
from gpucnn.nn.containers import Sequential
from gpucnn.nn.convolution import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    ConvTransposeNd,
)
from gpucnn.nn.linear import Linear
from gpucnn.nn.module import Array, Module, Parameter
from gpucnn.nn.normalization import BatchNorm1d, BatchNorm2d, BatchNorm3d

__all__ = ["fused"]

M = TypeVar("M", bound=Module)

# The norm that each layer may be followed by: one of its result's channels
_NORMS: dict[type[Module], type[Module]] = {
    **{Linear: BatchNorm1d, Conv1d: BatchNorm1d, Conv2d: BatchNorm2d, Conv3d: BatchNorm3d},
    **{ConvTranspose1d: BatchNorm1d, ConvTranspose2d: BatchNorm2d, ConvTranspose3d: BatchNorm3d},
}


def fused(model: M) -> M:
    """A copy of a network for inference, whose batch norms by running statistics are part of the layers before them.

    Parameters
    ----------
    model : Module
        Any network. Norms are folded that come right after a convolution, a transposed one or a linear layer, in a
        Sequential or on a way that a module's ``branches()`` names, as the blocks of `gpucnn.nn.models` do.

    Returns
    -------
    Module
        In evaluation mode, frozen, with its own arrays. Each folded norm is an `Identity`, and the layer before it has
        a bias.

    Raises
    ------
    TypeError
        `model` is no Module.

    Notes
    -----
    A norm by running statistics multiplies each channel by ``scale = weight / sqrt(running_var + eps)`` and adds
    ``bias - running_mean * scale``: so the filters and the bias are scaled, and the bias is shifted, in float64
    and rounded once. Results equal the model's within rounding. A convolution then is followed by its activation, which
    `conv2d_activation` applies in the same pass, with a residual block's sum; SiLU, Hardswish, GELU and the like
    only within `nn.inference()`, where nothing is kept for a backward.

    The copy does not see later changes of `model`: fuse it after training, or after loading weights.

    Examples
    --------
    >>> from gpucnn import nn
    >>> fused(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()))
    Sequential(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): Identity()
      (2): ReLU()
    )
    """
    expect_module("fused", model)
    copied = copy.deepcopy(model).eval()
    copied.forget()
    folded = set()
    for layer, norm in _neighbours(copied):
        if _folds(layer, norm):
            _fold(layer, norm)
            folded.add(norm)
    for module in list(copied.modules()):
        for name, child in list(module.named_children()):
            if child in folded:
                setattr(module, name, Identity().eval())
    for module in copied.modules():
        module.frozen = True
    for parameter in copied.parameters():
        parameter.requires_grad, parameter.grad = False, None
    return copied


def _neighbours(model: Module) -> Iterator[tuple[Module, Module]]:
    """Modules of which the second takes what the first one makes, which nothing else takes."""
    for module in model.modules():
        ways: Sequence[Sequence[Module]] = ()
        if isinstance(module, Sequential) and type(module).forward is Sequential.forward:
            ways = [list(module)]
        elif hasattr(module, "branches"):
            ways = module.branches()
        times = Counter(each for way in ways for each in way)  # those on several ways begin or end a branch
        for way in ways:
            yield from (pair for pair in pairwise(way) if times[pair[0]] == times[pair[1]] == 1)


def _folds(layer: Any, norm: Any) -> bool:
    """Whether a norm can be part of a layer."""
    if not is_one_of(layer, _NORMS):
        return False
    norms = [_NORMS[type(layer)]]
    if "takes_any_rank" in vars(type(norm)):  # as a batch norm over processes, which this package does not import
        norms.append(type(norm))
    if not is_one_of(norm, norms):
        return False
    outputs = layer.weight.shape[0] if isinstance(layer, Linear) else layer.out_channels
    return norm.running_mean is not None and norm.num_features == outputs


def _fold(layer: Any, norm: Any) -> None:
    """Make a norm by running statistics part of a layer."""
    dtype = layer.weight.data.dtype
    scale = 1 / _wide(norm.running_var + np.float64(norm.eps)) ** 0.5
    scale = scale if norm.weight is None else scale * _wide(norm.weight.data)
    shift = -_wide(norm.running_mean) if layer.bias is None else _wide(layer.bias.data) - _wide(norm.running_mean)
    shift = shift * scale if norm.bias is None else shift * scale + _wide(norm.bias.data)
    weight = _wide(layer.weight.data)
    if isinstance(layer, ConvTransposeNd):  # [groups, C / groups, OC / groups, taps]
        groups, shape = layer.groups, weight.shape
        by_group = weight.reshape(groups, shape[0] // groups, shape[1], -1) * scale.reshape(groups, 1, shape[1], 1)
        weight = by_group.reshape(shape)
    else:
        weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    xp = backend_of(layer.weight.data).xp
    layer.weight = Parameter(xp.ascontiguousarray(weight.astype(dtype)))
    layer.bias = Parameter(xp.ascontiguousarray(shift.astype(dtype)))


def _wide(array: Array) -> Array:
    return array.astype(np.float64)
