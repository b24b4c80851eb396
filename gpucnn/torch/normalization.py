"""Batch, instance, layer and group normalisation, as autograd follows them."""

from __future__ import annotations

from typing import Any

import torch

from gpucnn.geometry.arguments import boolean, integers, is_sequence
from gpucnn.torch._norms import OPS

Tensor = Any

__all__ = ["batch_norm", "group_norm", "instance_norm", "layer_norm"]


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`gpucnn.functional.batch_norm` of tensors, with the signature of ``torch.nn.functional.batch_norm``.

    In training PyTorch's own in-place operations move the running statistics, so that whatever follows mutations of
    tensors (autograd, `torch.compile`) sees it.
    """
    if not boolean("batch_norm", "training", training):
        return OPS.normalize(input, running_mean, running_var, weight, bias, eps)
    y, _, _, mean, var = OPS.batch_norm(input, weight, bias, eps)
    _move(running_mean, mean, momentum)
    _move(running_var, var, momentum)
    return y


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`gpucnn.functional.instance_norm` of tensors, with the signature of ``torch.nn.functional.instance_norm``.

    The running statistics are moved as those of `batch_norm`, by the average of the images'.
    """
    if not boolean("instance_norm", "use_input_stats", use_input_stats):
        return OPS.normalize(input, running_mean, running_var, weight, bias, eps)
    y, _, _, mean, var = OPS.instance_norm(input, weight, bias, eps)
    _move(running_mean, mean, momentum)
    _move(running_var, var, momentum)
    return y


def layer_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """`gpucnn.functional.layer_norm` of tensors, with the signature of ``torch.nn.functional.layer_norm``."""
    rank = len(normalized_shape) if is_sequence(normalized_shape) else 1
    row = integers("layer_norm", "normalized_shape", normalized_shape, rank, 1)
    return OPS.layer_norm(input, weight, bias, eps, row)[0]


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """`gpucnn.functional.group_norm` of tensors, with the signature of ``torch.nn.functional.group_norm``."""
    return OPS.group_norm(input, weight, bias, eps, num_groups)[0]


def _move(running: Tensor | None, new: Tensor, momentum: float) -> None:
    """Move a running statistic towards that of a batch, in place."""
    if running is not None:
        with torch.no_grad():
            running.mul_(1 - momentum).add_(new, alpha=momentum)
