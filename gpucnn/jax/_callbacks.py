"""Calls of NumPy functions by programs of JAX, on the host, with a rule for arrays that `jax.vmap` stacks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

Array = Any


def called(
    function: Callable[..., Sequence[Array]],
    results: Sequence[Any],
    *arrays: Array | None,
    images: Collection[int] = (),
) -> list[Array]:
    """The results of `function`, which takes NumPy's arrays, and None, and returns as many as there are `results`.

    `results` are (shape, dtype). The arrays at the places `images`, and then all results, begin with a batch: where
    `jax.vmap` stacks these alone, the stack joins the batch, otherwise each item of it is a call.
    """
    given = {place: array for place, array in enumerate(arrays) if array is not None}
    axes = {place: array.ndim for place, array in given.items()}
    declared = [jax.ShapeDtypeStruct(tuple(shape), dtype) for shape, dtype in results]
    run = partial(_run, function, len(arrays), axes, frozenset(images))
    found: list[Array] = jax.pure_callback(run, declared, *given.values(), vmap_method="expand_dims")
    return found


def _run(
    function: Callable[..., Sequence[Array]], count: int, axes: dict[int, int], images: frozenset[int], *arrays: Any
) -> list[Array]:
    """Call `function` on arrays with more leading axes than `axes`, which are 1 long where an array is not stacked."""
    given = {place: np.asarray(array) for place, array in zip(axes, arrays, strict=True)}
    stacks = {place: array.shape[: array.ndim - axes[place]] for place, array in given.items()}
    stack = np.broadcast_shapes(*stacks.values())
    if not stack:
        return [*function(*(given.get(place) for place in range(count)))]
    if images and all(place in images or set(stacks[place]) <= {1} for place in given):
        for place, array in given.items():
            core = array.shape[len(stack) :]
            whole = np.broadcast_to(array, (*stack, *core)) if place in images else array
            given[place] = whole.reshape(-1, *core[1:]) if place in images else array.reshape(core)
        results = function(*(given.get(place) for place in range(count)))
        return [result.reshape(*stack, -1, *result.shape[1:]) for result in results]
    calls = []
    for at in np.ndindex(stack):
        taken = {place: array[_within(at, stacks[place])] for place, array in given.items()}
        calls.append(function(*(taken.get(place) for place in range(count))))
    return [np.stack(results).reshape(*stack, *results[0].shape) for results in zip(*calls, strict=True)]


def _within(at: tuple[int, ...], stack: tuple[int, ...]) -> tuple[int, ...]:
    """The place of an item in a stack that is 1 long where others are longer."""
    return tuple(index if size > 1 else 0 for index, size in zip(at, stack, strict=True))
