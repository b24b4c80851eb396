"""Batch, instance, layer and group normalisation, as JAX transforms them."""

from __future__ import annotations

from math import prod
from typing import Any

import jax.numpy as jnp

from gpucnn.jax._operations import frozen, norm, wide

Array = Any

__all__ = ["batch_norm", "group_norm", "instance_norm", "layer_norm"]

BATCH, ROW = (0, 2, 3), (2, 3)  # axes of [N, G, C, P]


def batch_norm(
    input: Array,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """`gpucnn.functional.batch_norm` of JAX's arrays, under its transformations too.

    JAX's arrays do not change: in training the running statistics, moved, are returned after the result, None where
    they are None. No gradient comes from them. Otherwise the result alone is, which JAX itself computes.
    """
    x, weight, bias = _arrays(input, weight, bias)
    spread = (-1, *(1,) * (x.ndim - 2))
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError("batch_norm: running_mean and running_var are None, expected arrays to normalise by")
        scale = 1 / jnp.sqrt(jnp.asarray(running_var).astype(wide(x)) + eps)
        y = (x.astype(wide(x)) - running_mean.reshape(spread)) * scale.reshape(spread)
        y = y if weight is None else y * weight.reshape(spread)
        return (y if bias is None else y + bias.reshape(spread)).astype(x.dtype)
    shapes = _by_channel(x), BATCH, x.shape[1:2]
    y, _, _, mean, var = norm("batch_norm")(frozen(eps=eps), shapes, x, weight, bias)
    return y, _moved(running_mean, mean, momentum), _moved(running_var, var, momentum)


def instance_norm(input: Array, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5) -> Array:
    """`gpucnn.functional.instance_norm` of JAX's arrays by their own statistics, under its transformations too."""
    x, weight, bias = _arrays(input, weight, bias)
    return norm("instance_norm")(frozen(eps=eps), (_by_channel(x), ROW, x.shape[:2]), x, weight, bias)[0]


def layer_norm(
    input: Array, normalized_shape: Any, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5
) -> Array:
    """`gpucnn.functional.layer_norm` of JAX's arrays, under its transformations too."""
    x, weight, bias = _arrays(input, weight, bias)
    row = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    leading = x.shape[: x.ndim - len(row)]
    shapes = (prod(leading), 1, prod(row), 1), ROW, leading
    return norm("layer_norm")(frozen(normalized_shape=row, eps=eps), shapes, x, weight, bias)[0]


def group_norm(
    input: Array, num_groups: int, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5
) -> Array:
    """`gpucnn.functional.group_norm` of JAX's arrays, under its transformations too."""
    x, weight, bias = _arrays(input, weight, bias)
    view = (x.shape[0], num_groups, x.shape[1] // num_groups, prod(x.shape[2:]))
    shapes = view, ROW, view[:2]
    return norm("group_norm")(frozen(num_groups=num_groups, eps=eps), shapes, x, weight, bias)[0]


def _arrays(*arrays: Array | None) -> list[Any]:
    return [None if array is None else jnp.asarray(array) for array in arrays]


def _by_channel(x: Array) -> tuple[int, ...]:
    return x.shape[0], x.shape[1], 1, prod(x.shape[2:])


def _moved(running: Array | None, new: Array, momentum: float) -> Array | None:
    """A running statistic moved towards that of a batch."""
    if running is None:
        return None
    return ((1 - momentum) * jnp.asarray(running) + momentum * new).astype(jnp.asarray(running).dtype)
