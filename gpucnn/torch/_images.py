"""Images with and without a batch."""

from __future__ import annotations

from typing import Any

import torch

from gpucnn.functional._family import SPACE

Tensor = Any


def rank_of(op: str) -> int:
    """The number of spatial axes that is part of an operation's name: 2 of "conv2d"."""
    return int(op[-2])


def batched(op: str, input: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """The image [N, C, *space], N = 1 where there is no batch, and the other tensors of a call.

    Raises
    ------
    TypeError
        One is no tensor.
    ValueError
        The number of axes is wrong.
    """
    rank = rank_of(op)
    for tensor in (input, *others):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{op}: got a {type(tensor).__name__}, expected tensors of PyTorch")
    if input.ndim not in (rank + 1, rank + 2):
        raise ValueError(
            f"{op}: input has {input.ndim} dimensions, "
            f"expected {rank + 2} (N, C, {SPACE[rank]}) or {rank + 1} (C, {SPACE[rank]})"
        )
    return (input if input.ndim == rank + 2 else input.unsqueeze(0), *others)


def unbatched(result: Tensor, input: Tensor, image: Tensor) -> Tensor:
    """The result without a batch axis if `image` has one more than the caller's `input`."""
    return result if input.ndim == image.ndim else result.squeeze(0)
