"""Max and average pooling of 1-d to 3-d images, as autograd follows them."""

from __future__ import annotations

from typing import Any

from gpucnn.functional._family import named_family
from gpucnn.geometry.arguments import boolean, integers, is_sequence, padding_form
from gpucnn.geometry.sizes import pool_axes
from gpucnn.torch._images import batched, rank_of, unbatched
from gpucnn.torch._operators import OPS, flat

Tensor = Any

__all__ = [
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d",
]  # fmt: skip


def max_pool_nd(
    op: str,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """`gpucnn.functional.max_pool{n}d` of a tensor, with the signature of ``torch.nn.functional.max_pool{n}d``."""
    (x,) = batched(op, input)
    y, indices = OPS.max_pool(x, *_window(op, x, kernel_size, stride, padding, dilation, ceil_mode))
    return _maxima(op, y, indices, input, x, return_indices)


def avg_pool_nd(
    op: str,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: float | None = None,
    dilation: Any = 1,
) -> Tensor:
    """`gpucnn.functional.avg_pool{n}d` of a tensor, as ``torch.nn.functional.avg_pool{n}d``, which has no dilation."""
    (x,) = batched(op, input)
    window = _window(op, x, kernel_size, stride, padding, dilation, ceil_mode)
    counts = boolean(op, "count_include_pad", count_include_pad)
    return unbatched(OPS.avg_pool(x, *window, counts, divisor_override), input, x)


def adaptive_max_pool_nd(op: str, input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """`gpucnn.functional.adaptive_max_pool{n}d` of a tensor, as ``torch.nn.functional.adaptive_max_pool{n}d``."""
    (x,) = batched(op, input)
    y, indices = OPS.adaptive_max_pool(x, _output_size(op, x, output_size))
    return _maxima(op, y, indices, input, x, return_indices)


def adaptive_avg_pool_nd(op: str, input: Tensor, output_size: Any) -> Tensor:
    """`gpucnn.functional.adaptive_avg_pool{n}d` of a tensor, as ``torch.nn.functional.adaptive_avg_pool{n}d``."""
    (x,) = batched(op, input)
    return unbatched(OPS.adaptive_avg_pool(x, _output_size(op, x, output_size)), input, x)


max_pool1d, max_pool2d, max_pool3d = named_family(max_pool_nd)
avg_pool1d, avg_pool2d, avg_pool3d = named_family(avg_pool_nd)
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = named_family(adaptive_max_pool_nd)
adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = named_family(adaptive_avg_pool_nd)


def _window(
    op: str, x: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> tuple[Any, ...]:
    """The arguments that describe a window, as operators take them."""
    rank = rank_of(op)
    kernel = integers(op, "kernel_size", kernel_size, rank, 1)
    steps = kernel if stride is None else integers(op, "stride", stride, rank, 1)
    gaps, rounds_up = integers(op, "dilation", dilation, rank, 1), boolean(op, "ceil_mode", ceil_mode)
    axes = pool_axes(op, x.shape[2:], kernel, steps, padding_form(op, padding, rank), gaps, rounds_up)
    return kernel, steps, flat((axis.low, axis.high) for axis in axes), gaps, rounds_up


def _output_size(op: str, x: Tensor, output_size: Any) -> list[Any]:
    """`output_size` with the image's own sizes in place of None."""
    wanted = output_size if is_sequence(output_size) else (output_size,) * rank_of(op)
    sizes = [size if out is None else out for size, out in zip(x.shape[2:], wanted, strict=False)]
    return sizes if len(sizes) == len(wanted) else [*wanted]  # a wrong number, which the operation refuses


def _maxima(op: str, y: Tensor, indices: Tensor, input: Tensor, x: Tensor, return_indices: bool) -> Any:
    """The result of max pooling, with the indices if they are wanted."""
    result = unbatched(y, input, x)
    return (result, unbatched(indices, input, x)) if boolean(op, "return_indices", return_indices) else result
