"""Convolutions, transposed ones and locally connected layers of 1-d to 3-d images, as autograd follows them."""

from __future__ import annotations

from typing import Any

import torch

from gpucnn.functional._family import named_family
from gpucnn.geometry.arguments import integer, integers, padding_form
from gpucnn.geometry.axes import extent
from gpucnn.geometry.sizes import transposed_axes, window_axes
from gpucnn.torch._images import batched, rank_of, unbatched
from gpucnn.torch._operators import OPS, flat

Tensor = Any

__all__ = [
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "locally_connected1d",
    "locally_connected2d", "locally_connected3d",
]  # fmt: skip


def conv_nd(
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`gpucnn.functional.conv{n}d` of tensors, with the signature of ``torch.nn.functional.conv{n}d``.

    Under autocast images and weights are cast to its dtype, as those of PyTorch's own; the bias may stay float32.
    """
    rank = rank_of(op)
    x, w = _autocast(*batched(op, input, weight))
    steps, gaps = integers(op, "stride", stride, rank, 1), integers(op, "dilation", dilation, rank, 1)
    axes = window_axes(op, x.shape[2:], w.shape[2:], steps, padding_form(op, padding, rank), gaps)
    padded = flat((axis.low, axis.high) for axis in axes)
    return unbatched(OPS.conv(x, w, bias, steps, padded, gaps, integer(op, "groups", groups, 1)), input, x)


def conv_transpose_nd(
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """`gpucnn.functional.conv_transpose{n}d` of tensors, as ``torch.nn.functional.conv_transpose{n}d``.

    Under autocast images and weights are cast to its dtype; the bias may stay float32.
    """
    rank = rank_of(op)
    x, w = _autocast(*batched(op, input, weight))
    steps, gaps = integers(op, "stride", stride, rank, 1), integers(op, "dilation", dilation, rank, 1)
    extra, form = integers(op, "output_padding", output_padding, rank, 0), padding_form(op, padding, rank)
    axes = transposed_axes(op, x.shape[2:], w.shape[2:], steps, form, extra, gaps)
    padded = flat((axis.low, axis.high) for axis in axes)
    extra = tuple(  # which "same" decides too
        axis.size - ((axis.out - 1) * axis.stride - axis.low - axis.high + extent(axis.kernel, axis.dilation))
        for axis in axes
    )
    y = OPS.conv_transpose(x, w, bias, steps, padded, extra, integer(op, "groups", groups, 1), gaps)
    return unbatched(y, input, x)


def locally_connected_nd(
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
) -> Tensor:
    """`gpucnn.functional.locally_connected{n}d` of tensors; PyTorch has no such operation.

    Under autocast images and weights are cast to its dtype; the bias may stay float32.
    """
    rank = rank_of(op)
    x, w = _autocast(*batched(op, input, weight))
    steps, gaps = integers(op, "stride", stride, rank, 1), integers(op, "dilation", dilation, rank, 1)
    axes = window_axes(op, x.shape[2:], w.shape[rank + 2 :], steps, padding_form(op, padding, rank), gaps)
    padded = flat((axis.low, axis.high) for axis in axes)
    return unbatched(OPS.locally_connected(x, w, bias, steps, padded, gaps), input, x)


conv1d, conv2d, conv3d = named_family(conv_nd)
conv_transpose1d, conv_transpose2d, conv_transpose3d = named_family(conv_transpose_nd)
locally_connected1d, locally_connected2d, locally_connected3d = named_family(locally_connected_nd)


def _autocast(*tensors: Tensor) -> list[Tensor]:
    """The tensors in autocast's dtype where it is enabled, as PyTorch casts those of a convolution."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return [*tensors]
    dtype = torch.get_autocast_dtype(kind)
    return [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors]
