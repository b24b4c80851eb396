"""The operators ``gpucnn::…`` of three families, each closed under differentiation.

- A product (convolution, transposed convolution, locally connected layer) is linear in images and in weights. With its
  two adjoints, which are the gradients of either, it forms a triple: the gradients of each of the three are the others.
- A linear operation (average pooling) and its adjoint are each other's gradient.
- The gradient of max pooling is linear, given the indices, and the gradient of that gathers.

So there are derivatives of any order, and no operator is there for one order alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import gpucnn.functional as F
from gpucnn.geometry.sizes import pool_axes, transposed_axes, window_axes
from gpucnn.torch._registry import operator
from gpucnn.torch._tensors import computed, empty_like, of_shape, stored_like

Tensor = Any

OPS: Any = torch.ops.gpucnn
WINDOW = "SymInt[] stride, SymInt[] padding, SymInt[] dilation"
POOL = f"SymInt[] kernel_size, {WINDOW}, bool ceil_mode"

_PRODUCTS = {torch.int8: torch.int32, torch.uint8: torch.int32, torch.int16: torch.int64}
"""The dtypes of products of small integers, as `gpucnn.backends.dtypes.of_products` has them."""


def flat(pairs: Any) -> list[Any]:
    """``(low, high)`` pairs as operators take padding: one after the other."""
    return [size for pair in pairs for size in pair]


def _pairs(padding: Any) -> tuple[tuple[Any, Any], ...]:
    return tuple(zip(padding[::2], padding[1::2], strict=True))


def _options(parameters: str, values: tuple[Any, ...]) -> dict[str, Any]:
    """The named arguments of `gpucnn.functional` for an operator's `parameters`, which have the same names."""
    names = [parameter.split()[1] for parameter in parameters.split(", ")]
    options = {
        name: tuple(value) if isinstance(value, list) else value for name, value in zip(names, values, strict=True)
    }
    if "padding" in options:
        options["padding"] = _pairs(options["padding"])
    return options


def _function(name: str, rank: int, suffix: str = "") -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(F, f"{name}{rank}d{suffix}")
    return function


# --- Products -----------------------------------------------------------------------------------------------------


def _define_product(name: str, parameters: str, shape_of: Callable[..., tuple[Any, ...]]) -> None:
    """Define the triple of a product; `shape_of` gives the shape of its results but for the batch."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        one, other, *ctx.rest = inputs
        ctx.save_for_backward(one, other)

    def product(x: Tensor, w: Tensor, bias: Tensor | None, *values: Any) -> Tensor:
        return stored_like(computed(_function(name, x.ndim - 2), x, w, bias, **_options(parameters, values)), x)

    def product_fake(x: Tensor, w: Tensor, bias: Tensor | None, *values: Any) -> Tensor:
        shape = shape_of(x, w, **_options(parameters, values))
        return empty_like(x, (x.shape[0], *shape), _PRODUCTS.get(x.dtype, x.dtype))

    def product_backward(ctx: Any, grad: Tensor) -> Any:
        (x, w), (bias, *values) = ctx.saved_tensors, ctx.rest
        of_x, of_w, of_bias, *_ = ctx.needs_input_grad
        yield getattr(OPS, f"{name}_input")(grad, w, x.shape[1:], *values) if of_x else None
        yield getattr(OPS, f"{name}_weight")(x, grad, w.shape, *values) if of_w else None
        # over the batch, and over the positions where these share a bias
        yield grad.sum((0, *range(1 + bias.ndim, grad.ndim)), dtype=bias.dtype) if of_bias else None

    def of_input(grad: Tensor, w: Tensor, image_size: Any, *values: Any) -> Tensor:
        x, function = of_shape((grad.shape[0], *image_size), grad), _function(name, grad.ndim - 2, "_backward")
        found = computed(function, grad, x, w, **_options(parameters, values), needs=(True, False, False))
        return stored_like(found[0], grad)

    def of_input_fake(grad: Tensor, w: Tensor, image_size: Any, *values: Any) -> Tensor:
        return empty_like(grad, (grad.shape[0], *image_size))

    def of_input_backward(ctx: Any, grad_grad: Tensor) -> Any:
        (grad, w), (_, *values) = ctx.saved_tensors, ctx.rest
        of_grad, of_w, *_ = ctx.needs_input_grad
        yield getattr(OPS, name)(grad_grad, w, None, *values) if of_grad else None
        yield getattr(OPS, f"{name}_weight")(grad_grad, grad, w.shape, *values) if of_w else None

    def of_weight(x: Tensor, grad: Tensor, weight_size: Any, *values: Any) -> Tensor:
        w, function = of_shape(weight_size, x), _function(name, x.ndim - 2, "_backward")
        found = computed(function, grad, x, w, **_options(parameters, values), needs=(False, True, False))
        return found[1].contiguous()

    def of_weight_fake(x: Tensor, grad: Tensor, weight_size: Any, *values: Any) -> Tensor:
        return x.new_empty(weight_size)

    def of_weight_backward(ctx: Any, grad_grad: Tensor) -> Any:
        (x, grad), (_, *values) = ctx.saved_tensors, ctx.rest
        of_x, of_grad, *_ = ctx.needs_input_grad
        yield getattr(OPS, f"{name}_input")(grad, grad_grad, x.shape[1:], *values) if of_x else None
        yield getattr(OPS, name)(x, grad_grad, None, *values) if of_grad else None

    schema = f"(Tensor input, Tensor weight, Tensor? bias, {parameters}) -> Tensor"
    operator(name, schema, product, product_fake, setup, product_backward, images=(0,))
    schema = f"(Tensor grad_output, Tensor weight, SymInt[] image_size, {parameters}) -> Tensor"
    operator(f"{name}_input", schema, of_input, of_input_fake, setup, of_input_backward, images=(0,))
    schema = f"(Tensor input, Tensor grad_output, SymInt[] weight_size, {parameters}) -> Tensor"
    operator(f"{name}_weight", schema, of_weight, of_weight_fake, setup, of_weight_backward)


def _convolved(x: Tensor, w: Tensor, stride: Any, padding: Any, dilation: Any, groups: Any) -> tuple[Any, ...]:
    axes = window_axes("conv", x.shape[2:], w.shape[2:], stride, padding, dilation)
    return w.shape[0], *(axis.out for axis in axes)


def _transposed(
    x: Tensor, w: Tensor, stride: Any, padding: Any, output_padding: Any, groups: Any, dilation: Any
) -> tuple[Any, ...]:
    axes = transposed_axes("conv_transpose", x.shape[2:], w.shape[2:], stride, padding, output_padding, dilation)
    return w.shape[1] * groups, *(axis.size for axis in axes)


def _local(x: Tensor, w: Tensor, **window: Any) -> tuple[Any, ...]:
    return tuple(w.shape[: x.ndim - 1])


_define_product("conv", f"{WINDOW}, SymInt groups", _convolved)
_define_product(
    "conv_transpose",
    "SymInt[] stride, SymInt[] padding, SymInt[] output_padding, SymInt groups, SymInt[] dilation",
    _transposed,
)
_define_product("locally_connected", WINDOW, _local)


# --- Linear operations --------------------------------------------------------------------------------------------


def _define_linear(name: str, parameters: str, space_of: Callable[..., tuple[Any, ...]]) -> None:
    """Define an operation, linear in images, and its adjoint; `space_of` gives the spatial shape of its results."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.space, ctx.parameters = inputs[0].shape[2:], inputs[1:]

    def forward(x: Tensor, *values: Any) -> Tensor:
        return stored_like(computed(_function(name, x.ndim - 2), x, **_options(parameters, values)), x)

    def forward_fake(x: Tensor, *values: Any) -> Tensor:
        return empty_like(x, (*x.shape[:2], *space_of(x.shape[2:], *values)))

    def backward(ctx: Any, grad: Tensor) -> Any:
        yield getattr(OPS, f"{name}_input")(grad, ctx.space, *ctx.parameters)

    def adjoint(grad: Tensor, space: Any, *values: Any) -> Tensor:
        x, function = of_shape((*grad.shape[:2], *space), grad), _function(name, grad.ndim - 2, "_backward")
        return stored_like(computed(function, grad, x, **_options(parameters, values))[0], grad)

    def adjoint_fake(grad: Tensor, space: Any, *values: Any) -> Tensor:
        return empty_like(grad, (*grad.shape[:2], *space))

    def adjoint_backward(ctx: Any, grad_grad: Tensor) -> Any:
        yield getattr(OPS, name)(grad_grad, *ctx.parameters[1:])

    operator(name, f"(Tensor input, {parameters}) -> Tensor", forward, forward_fake, setup, backward, images=(0,))
    schema = f"(Tensor grad_output, SymInt[] input_space, {parameters}) -> Tensor"
    operator(f"{name}_input", schema, adjoint, adjoint_fake, setup, adjoint_backward, images=(0,))


def _pooled(
    space: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool, *divisor: Any
) -> tuple[Any, ...]:
    axes = pool_axes("pool", space, kernel, stride, _pairs(padding), dilation, ceil_mode)
    return tuple(axis.out for axis in axes)


def _adaptive(space: Any, output_size: Any) -> tuple[Any, ...]:
    return tuple(output_size)


_define_linear("avg_pool", f"{POOL}, bool count_include_pad, float? divisor_override", _pooled)
_define_linear("adaptive_avg_pool", "SymInt[] output_size", _adaptive)


# --- Maxima -------------------------------------------------------------------------------------------------------


def _define_max(name: str, parameters: str, space_of: Callable[..., tuple[Any, ...]]) -> None:
    """Define max pooling with its indices, and its gradient; `space_of` gives the spatial shape of its results."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.space, ctx.parameters = inputs[0].shape[2:], inputs[1:]
        ctx.save_for_backward(output[1])
        ctx.mark_non_differentiable(output[1])

    def forward(x: Tensor, *values: Any) -> tuple[Tensor, Tensor]:
        options = _options(parameters, values)
        y, indices = computed(_function(name, x.ndim - 2), x, **options, return_indices=True)
        return stored_like(y, x), stored_like(indices, x)

    def forward_fake(x: Tensor, *values: Any) -> tuple[Tensor, Tensor]:
        shape = (*x.shape[:2], *space_of(x.shape[2:], *values))
        return empty_like(x, shape), empty_like(x, shape, torch.int64)

    def backward(ctx: Any, grad: Tensor, _: None) -> Any:
        yield getattr(OPS, f"{name}_input")(grad, *ctx.saved_tensors, ctx.space, *ctx.parameters)

    def scatter(grad: Tensor, indices: Tensor, space: Any, *values: Any) -> Tensor:
        x, function = of_shape((*grad.shape[:2], *space), grad), _function(name, grad.ndim - 2, "_backward")
        options = {**_options(parameters, values), "indices": indices}
        return stored_like(computed(function, grad, x, **options)[0], grad)

    def scatter_fake(grad: Tensor, indices: Tensor, space: Any, *values: Any) -> Tensor:
        return empty_like(grad, (*grad.shape[:2], *space))

    def scatter_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    def gather(ctx: Any, grad_grad: Tensor) -> Any:
        (indices,) = ctx.saved_tensors
        taken = grad_grad.flatten(2).gather(2, indices.flatten(2).clamp(min=0)).view_as(indices)
        yield taken.masked_fill(indices < 0, 0)  # windows with nothing but padding

    schema = f"(Tensor input, {parameters}) -> (Tensor, Tensor)"
    operator(name, schema, forward, forward_fake, setup, backward, images=(0,))
    schema = f"(Tensor grad_output, Tensor indices, SymInt[] input_space, {parameters}) -> Tensor"
    operator(f"{name}_input", schema, scatter, scatter_fake, scatter_setup, gather, images=(0, 1))


_define_max("max_pool", POOL, _pooled)
_define_max("adaptive_max_pool", "SymInt[] output_size", _adaptive)
