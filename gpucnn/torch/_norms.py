"""The operators ``gpucnn::…`` of the norms.

Each norm sees images as [N, G, C, P] and takes a mean over some of these axes, as `gpucnn.functional._norm_call` has
them. Its gradient is an operator, and the gradient of that is the derivative of the same formula in PyTorch's terms.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch

import gpucnn.functional as F
from gpucnn.torch._registry import operator
from gpucnn.torch._tensors import computed, empty_like, stored_like

Tensor = Any

OPS: Any = torch.ops.gpucnn
BATCH, ROW = (0, 2, 3), (2, 3)
SHARED = (0, 3)  # the axes of [N, G, C, P] that share a weight


def _by_channel(x: Tensor) -> tuple[Any, ...]:
    return x.shape[0], x.shape[1], 1, prod(x.shape[2:])


def _by_group(x: Tensor, groups: Any) -> tuple[Any, ...]:
    return x.shape[0], groups, x.shape[1] // groups, prod(x.shape[2:])


def _by_row(x: Tensor, row: Any) -> tuple[Any, ...]:
    return prod(x.shape[: x.ndim - len(row)]), 1, prod(row), 1


def _wide(x: Tensor) -> Any:
    """The dtype of statistics: float32 for 16 bits."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def _in_order(result: Tensor, x: Tensor) -> Tensor:
    """`result` in the memory order of x; without spatial axes there is but one."""
    return stored_like(result, x) if x.ndim > 2 else result.contiguous()


def _define_norm(
    name: str,
    parameter: str,
    view: Callable[..., tuple[Any, ...]],
    axes: tuple[int, ...],
    kept: Callable[..., tuple[Any, ...]],
    moves: bool = False,
) -> None:
    """Define a norm by its own statistics and its gradient.

    `view` gives the shape [N, G, C, P] of x, whose mean is over `axes`, and `kept` the shape of the statistics. With
    `moves` the operator also returns what running statistics move towards: mean and unbiased variance by channel.
    """
    function, function_backward = getattr(F, name), getattr(F, f"{name}_backward")

    def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, *values: Any) -> tuple[Tensor, ...]:
        options = {"weight": weight, "bias": bias, "eps": eps, "return_statistics": True}
        if not moves:
            y, *statistics = computed(function, x, *values, **options)
            return _in_order(y, x), *statistics
        # with a momentum of 1 the running statistics are the batch's
        running = [x.new_zeros(x.shape[1], dtype=_wide(x)) for _ in range(2)]
        training = {"training" if name == "batch_norm" else "use_input_stats": True, "momentum": 1.0}
        y, *statistics = computed(function, x, *running, **options, **training)
        return _in_order(y, x), *statistics, *running

    def forward_fake(x: Tensor, weight: Tensor | None, bias: Any, eps: float, *values: Any) -> tuple[Tensor, ...]:
        of_channels = [x.new_empty(x.shape[1], dtype=_wide(x)) for _ in range(2 * moves)]
        statistics = [x.new_empty(kept(x, *values), dtype=_wide(x)) for _ in range(2)]
        return _in_order(torch.empty_like(x), x), *statistics, *of_channels

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, *ctx.values = inputs
        ctx.save_for_backward(x, weight, bias, *output[1:3])
        ctx.mark_non_differentiable(*output[1:])

    def backward(ctx: Any, grad: Tensor, *_: None) -> Any:
        needs = [*ctx.needs_input_grad[:3]]
        found = getattr(OPS, f"{name}_input")(grad, *ctx.saved_tensors, needs, *ctx.values)
        return [one if need else None for one, need in zip(found, needs, strict=True)]

    def of_input(*inputs: Any) -> tuple[Tensor, ...]:
        grad, x, weight, bias, mean, rstd, needs, eps, *values = inputs
        options = {"weight": weight, "bias": bias, "eps": eps, "mean": mean, "rstd": rstd}
        if not moves:
            found = computed(function_backward, grad, x, *values, **options, needs=tuple(needs))
        else:
            training = {"training" if name == "batch_norm" else "use_input_stats": True}
            flags = (needs[0], False, False, *needs[1:])
            found = computed(function_backward, grad, x, None, None, **options, **training, needs=flags)
            found = (found[0], *found[3:])
        of_x, *others = (x.new_empty(0) if one is None else one for one in found)
        return _in_order(of_x, x) if needs[0] else of_x, *others

    def of_input_fake(*inputs: Any) -> tuple[Tensor, ...]:
        _, x, weight, bias, _, _, needs, *_ = inputs
        wanted = [one if need else None for one, need in zip((x, weight, bias), needs, strict=True)]
        of_x, *others = (x.new_empty(0) if one is None else torch.empty_like(one) for one in wanted)
        return _in_order(of_x, x) if needs[0] else of_x, *(other.contiguous() for other in others)

    def of_input_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        grad, x, weight, bias, _, _, ctx.needs, *ctx.values = inputs
        ctx.save_for_backward(grad, x, weight, bias)

    def of_input_backward(ctx: Any, *grads: Tensor | None) -> Any:
        grad, x, weight, bias = ctx.saved_tensors
        eps, *values = ctx.values

        def formula(grad: Tensor, x: Tensor, weight: Tensor | None = None) -> tuple[Tensor, ...]:
            return _gradients(grad, x, weight, bias, ctx.needs, eps, view(x, *values), axes)

        results, pull = torch.func.vjp(formula, *(one for one in (grad, x, weight) if one is not None))
        given = [one for one, need in zip(grads, ctx.needs, strict=True) if need]
        return pull(
            tuple(torch.zeros_like(result) if one is None else one for one, result in zip(given, results, strict=True))
        )

    options = f"float eps{', ' + parameter if parameter else ''}"
    results = ", ".join(["Tensor"] * (5 if moves else 3))
    schema = f"(Tensor input, Tensor? weight, Tensor? bias, {options}) -> ({results})"
    operator(name, schema, forward, forward_fake, setup, backward)
    schema = (
        "(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd, bool[] needs, "
        f"{options}) -> (Tensor, Tensor, Tensor)"
    )
    operator(f"{name}_input", schema, of_input, of_input_fake, of_input_setup, of_input_backward)


def _gradients(
    grad: Tensor, x: Tensor, weight: Any, bias: Any, needs: Any, eps: float, shape: Any, axes: tuple[int, ...]
) -> tuple[Tensor, ...]:
    """The gradients that a norm's gradient computes, those that are needed, in operations of PyTorch."""
    wide, upstream = x.reshape(shape).to(_wide(x)), grad.reshape(shape).to(_wide(x))
    var, mean = torch.var_mean(wide, axes, correction=0, keepdim=True)
    rstd = (var + eps).rsqrt()
    normalized = (wide - mean) * rstd
    found = []
    if needs[0]:
        scaled = upstream if weight is None else upstream * weight.reshape(1, *shape[1:3], 1)
        projection = (scaled * normalized).mean(axes, keepdim=True)
        of_x = rstd * (scaled - scaled.mean(axes, keepdim=True) - normalized * projection)
        found.append(of_x.reshape(x.shape).to(x.dtype))
    if needs[1]:
        found.append((upstream * normalized).sum(SHARED).reshape(weight.shape).to(weight.dtype))
    if needs[2]:
        found.append(upstream.sum(SHARED).reshape(bias.shape).to(bias.dtype))
    return tuple(found)


_define_norm("batch_norm", "", _by_channel, BATCH, lambda x: x.shape[1:2], moves=True)
_define_norm("instance_norm", "", _by_channel, ROW, lambda x: x.shape[:2], moves=True)
_define_norm("group_norm", "SymInt num_groups", _by_group, ROW, lambda x, groups: (x.shape[0], groups))
_define_norm("layer_norm", "SymInt[] normalized_shape", _by_row, ROW, lambda x, row: x.shape[: x.ndim - len(row)])


# --- By statistics other than the input's own -----------------------------------------------------------------------


def _normalize(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    y = computed(F.batch_norm, x, mean, var, weight, bias, training=False, eps=eps)
    return _in_order(y, x)


def _normalize_fake(x: Tensor, *others: Any) -> Tensor:
    return empty_like(x, x.shape) if x.ndim > 2 else x.new_empty(x.shape)


def _normalize_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _normalize_backward(ctx: Any, grad: Tensor) -> Any:
    """Gradients with respect to x, weight and bias; as in PyTorch none with respect to running statistics."""
    x, mean, var, weight, bias = ctx.saved_tensors
    of_x, _, _, of_weight, of_bias, _ = ctx.needs_input_grad
    wide, spread, shared = _wide(x), (-1, *(1,) * (x.ndim - 2)), (0, *range(2, x.ndim))
    rstd, upstream = (var.to(wide) + ctx.eps).rsqrt(), grad.to(wide)
    scale = rstd if weight is None else rstd * weight
    yield (upstream * scale.view(spread)).to(x.dtype) if of_x else None
    yield from (None, None)
    normalized = (x.to(wide) - mean.to(wide).view(spread)) * rstd.view(spread)
    yield (upstream * normalized).sum(shared).to(weight.dtype) if of_weight else None
    yield upstream.sum(shared).to(bias.dtype) if of_bias else None


operator(
    "normalize",
    "(Tensor input, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, float eps) -> Tensor",
    _normalize,
    _normalize_fake,
    _normalize_setup,
    _normalize_backward,
    images=(0,),
)
