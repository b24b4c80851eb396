"""JAX's arrays as arguments, and images with and without a batch."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from gpucnn.functional._call import image_shape

Array = Any


def batched(op: str, rank: int, input: Array, *others: Array | None) -> list[Any]:
    """The image as an array [N, C, *space] of JAX, N = 1 where there is no batch, and the other arrays, or None.

    Raises
    ------
    TypeError
        Images and weights differ in dtype.
    ValueError
        The number of axes is wrong, or there is no channel or no space.
    """
    arrays: list[Any] = [None if array is None else jnp.asarray(array) for array in (input, *others)]
    x, *rest = arrays
    if rest and rest[0].dtype != x.dtype:
        raise TypeError(f"{op}: input has dtype {x.dtype} and weight {rest[0].dtype}, expected one dtype for both")
    return [x.reshape(image_shape(op, "input", x.shape, rank)), *rest]


def unbatched(result: Array, input: Array, image: Array) -> Array:
    """The result without a batch axis if `image` has one more than the caller's `input`."""
    return result if jnp.ndim(input) == image.ndim else result[0]
