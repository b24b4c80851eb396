"""Convolutions, their gradients as operations, and their relatives: calls to draw."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from math import prod
from typing import Any

import numpy as np
import reference
from convolution_cases import CHANNELS, Layer, layers
from hypothesis import assume
from hypothesis import strategies as st
from pooling_cases import of_batches
from properties import Array, Case
from strategies import ORDERS, arranged, numbers, paddings
from tolerances import summed

from families.drawing import (
    SMOOTH,
    Purpose,
    bias_of,
    over_all_integers,
    rounding,
    sizes_of,
    smooth_for,
    smooth_peer,
)


def drawn_layers(
    purpose: Purpose, dtypes: tuple[str, ...], most: int = 2000, few: int = 100, **kwargs: Any
) -> st.SearchStrategy[Any]:
    """Layers of at most `most` products, `few` for finite differences."""
    small = purpose == "slopes"
    size = {"largest": 3} if small else {}
    return layers(dtypes, few if small else most, symmetric=purpose == "pytorch", **size, **kwargs)


@st.composite
def convolutions(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose) -> Case:
    layer = draw(drawn_layers(purpose, dtypes))
    arrays = layer.arrays()
    over_all_integers(draw, *arrays)
    with_bias = purpose != "oracle" or draw(st.booleans())
    x, w, b, grad = arrays
    if grad.dtype.kind in "iu" and draw(st.booleans()):
        grad = grad.astype(summed(grad.dtype))  # as a result is
    return replace(convolution(layer, (x, w, bias_of(draw, b) if with_bias else None, grad)), **rounding(purpose))


def convolution(layer: Layer, arrays: tuple[Any, ...] | None = None) -> Case:
    """The convolution of a layer, and its backward."""
    x, w, b, grad = arrays or layer.arrays()

    @cache
    def expected() -> Array:
        return layer.without(reference.conv(layer.with_batch(x), w, b, *layer.loops))

    @cache
    def gradients() -> tuple[Array, Array, Array]:
        gx, gw, gb = reference.conv_backward(layer.with_batch(grad), layer.with_batch(x), w, *layer.loops)
        return layer.without(gx), gw, gb

    return Case(
        f"conv{layer.windows.rank}d",
        {"input": x, "weight": w, "bias": b},
        layer.options,
        grad,
        expected,
        gradients,
        rank=layer.windows.rank,
    )


@st.composite
def activated_convolutions(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose) -> Case:
    """A convolution with an epilogue."""
    layer = draw(drawn_layers(purpose, dtypes))
    x, w, b, grad = layer.arrays()
    bias = b if draw(st.booleans()) else None
    order = draw(st.sampled_from(ORDERS))
    residual = arranged(numbers(np.random.default_rng(2), grad.shape, layer.dtype), order, layer.batch is not None)
    residual = residual if draw(st.booleans()) else None
    activation = draw(st.sampled_from(("none", "relu", "leaky_relu", "relu6", *smooth_for(purpose))))
    slope = draw(st.sampled_from((0.3, 0.0, -0.5)))
    slopes = {"relu": 0.0, "leaky_relu": slope, "relu6": 0.0}.get(activation, 1.0)
    most = 6.0 if activation == "relu6" else np.inf
    inner = convolution(layer, (x, w, bias, grad))

    @cache
    def total() -> Array:
        y = inner.expected()
        return y if residual is None else y + reference.wide(residual)

    def activated() -> Array:
        if activation in SMOOTH:
            return reference.smooth_activation(total(), activation)
        return np.minimum(np.where(total() > 0, total(), slopes * total()), most)

    def gradients() -> tuple[Array, Array, Array, Array]:
        if activation in SMOOTH:
            through = reference.smooth_activation_backward(grad, total(), activation)
        else:
            through = np.where(total() > 0, total() < most, slopes) * reference.wide(grad)
        gradients_of = convolution(layer, (x, w, bias, through)).expected_gradients
        return (*gradients_of(), through)

    def peer(torch: Any, input: Any, weight: Any, bias: Any, residual: Any, **options: Any) -> Any:
        function = getattr(torch.nn.functional, f"conv{layer.windows.rank}d")
        y = function(input, weight, bias, **layer.options)
        y = y if residual is None else y + residual
        if activation in SMOOTH:
            return smooth_peer(torch, activation)(y)
        return torch.clamp(y, 0, 6) if activation == "relu6" else torch.nn.functional.leaky_relu(y, slopes)

    return Case(
        f"conv{layer.windows.rank}d_activation",
        {"input": x, "weight": w, "bias": bias, "residual": residual},
        {**layer.options, "activation": activation, "negative_slope": slope},
        grad,
        activated,
        gradients,
        peer,
        rank=layer.windows.rank,
        **rounding(purpose),
    )


@st.composite
def convolution_gradients(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose, of: str) -> Case:
    """The gradient of a convolution with respect to its input or weight, as an operation that has gradients itself."""
    layer = draw(drawn_layers(purpose, dtypes, 1000))
    x, w, _, grad = layer.arrays()
    over_all_integers(draw, x, w, grad)
    rank = layer.windows.rank
    batched_x, batched_grad = layer.with_batch(x), layer.with_batch(grad)

    def by_input() -> Array:
        return layer.without(reference.conv_backward_input(batched_grad, w, layer.windows.sizes, *layer.loops))

    def by_weight() -> Array:
        return reference.conv_backward(batched_grad, batched_x, w, *layer.loops)[1]

    def forward() -> Array:
        return layer.without(reference.conv(batched_x, w, None, *layer.loops))

    def peer(torch: Any, grad_output: Any, **given: Any) -> Any:
        leaf = torch.zeros(given.pop(f"{of}_size"), dtype=grad_output.dtype, requires_grad=True)
        y = getattr(torch.nn.functional, f"conv{rank}d")(**given, **{of: leaf})
        return torch.autograd.grad(y, leaf, grad_output, create_graph=True)[0]

    sought, other, array = (x, "weight", w) if of == "input" else (w, "input", x)
    expected, gradient = (by_input, by_weight) if of == "input" else (by_weight, by_input)
    return Case(
        f"conv{rank}d_{of}",
        {other: array, "grad_output": grad},
        {f"{of}_size": sought.shape, **layer.options},
        sought,
        expected,
        lambda: (gradient(), forward()),
        peer,
        **rounding(purpose),
    )


@st.composite
def transposed_convolutions(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose) -> Case:
    rank = draw(st.integers(1, 3))
    sizes, kernel = (draw(sizes_of(rank, most if rank < 3 else most - 1)) for most in (6, 4))
    stride, dilation = draw(sizes_of(rank, 4)), draw(sizes_of(rank, 3))
    padding = draw(paddings((4,) * rank, named=purpose != "pytorch"))
    if purpose == "pytorch" and isinstance(padding, tuple):
        padding = tuple(pair[0] if isinstance(pair, tuple) else pair for pair in padding)
    same = padding in ("same", "same_lower")
    most = [0 if same else max(s, d) - 1 for s, d in zip(stride, dilation, strict=True)]
    output_padding = tuple(draw(st.integers(0, limit)) for limit in most)
    (inputs, outputs, groups), batch = draw(st.sampled_from(CHANNELS)), draw(st.sampled_from([None, 0, 1, 2, 3]))
    dtype, orders = draw(st.sampled_from(dtypes)), draw(st.tuples(*[st.sampled_from(ORDERS)] * 3))

    pads, extra = reference.resolve_transposed_padding(padding, sizes, kernel, stride, dilation)
    extra = extra if same else output_padding
    out = reference.transposed_size(sizes, kernel, stride, pads, dilation, extra)
    assume(min(out) >= 1 and prod(sizes) * prod(kernel) <= (40 if purpose == "slopes" else 2000))
    lead = () if batch is None else (batch,)
    shapes = (*lead, inputs, *sizes), (inputs, outputs // groups, *kernel), (*lead, outputs, *out)
    rng = np.random.default_rng(1)
    x, w, grad = (
        arranged(numbers(rng, shape, dtype), order, has_batch)
        for shape, order, has_batch in zip(shapes, orders, (bool(lead), True, bool(lead)), strict=True)
    )
    bias = numbers(rng, (outputs,), dtype)
    over_all_integers(draw, x, w, bias, grad)
    b = bias_of(draw, bias) if purpose != "oracle" or draw(st.booleans()) else None

    def gradients() -> tuple[Array, Array, Array]:
        one = (lambda array: array) if lead else (lambda array: array[None])
        gx, gw, gb = reference.conv_transpose_backward(one(grad), one(x), w, stride, pads, dilation, groups)
        return gx if lead else gx[0], gw, gb

    return Case(
        f"conv_transpose{rank}d",
        {"input": x, "weight": w, "bias": b},
        {
            "stride": stride,
            "padding": padding,
            "output_padding": output_padding,
            "groups": groups,
            "dilation": dilation,
        },
        grad,
        lambda: of_batches(
            lambda x: reference.conv_transpose(x, w, b, stride, pads, extra, dilation, groups), bool(lead), x
        ),
        gradients,
        rank=rank,
        **rounding(purpose),
    )


@st.composite
def local_layers(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose) -> Case:
    rank = {"rank": 2} if purpose == "pytorch" else {}  # the images that PyTorch unfolds
    layer = draw(drawn_layers(purpose, dtypes, 1000, 30, channels=[(1, 1, 1), (2, 3, 1), (3, 2, 1)], **rank))
    assume(purpose != "pytorch" or layer.batch != 0)  # of which it unfolds no empty batch
    windows, loops, (inputs, outputs, _) = layer.windows, layer.loops[:3], layer.channels
    x, _, _, grad = layer.arrays()
    rng = np.random.default_rng(2)
    w = numbers(rng, (outputs, *layer.output_size, inputs, *windows.kernel), layer.dtype)
    w, bias = arranged(w, layer.orders[1]), numbers(rng, (outputs, *layer.output_size), layer.dtype)
    over_all_integers(draw, x, w, bias, grad)
    b = bias_of(draw, bias) if purpose != "oracle" or draw(st.booleans()) else None
    options = {key: value for key, value in layer.options.items() if key != "groups"}

    def gradients() -> tuple[Array, Array, Array]:
        gx, gw, gb = reference.locally_connected_backward(layer.with_batch(grad), layer.with_batch(x), w, *loops)
        return layer.without(gx), gw, gb

    def peer(torch: Any, input: Any, weight: Any, bias: Any, **options: Any) -> Any:
        columns = torch.nn.functional.unfold(layer.with_batch(input), windows.kernel, **options)
        y = torch.einsum("nkp,opk->nop", columns, weight.reshape(outputs, columns.shape[-1], -1))
        return layer.without(y.reshape(layer.with_batch(grad).shape) + bias)

    return Case(
        f"locally_connected{windows.rank}d",
        {"input": x, "weight": w, "bias": b},
        options,
        grad,
        lambda: layer.without(reference.locally_connected(layer.with_batch(x), w, b, *loops)),
        gradients,
        peer,
        rank=windows.rank,
        **rounding(purpose),
    )


@st.composite
def unfoldings(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose) -> Case:
    """im2col and col2im, each of which is the other's gradient."""
    rank = {"rank": 2} if purpose == "pytorch" else {}
    layer = draw(drawn_layers(purpose, dtypes, 2000, 60, channels=[(1, 1, 1), (2, 1, 1), (3, 1, 1)], **rank))
    assume(purpose != "pytorch" or layer.batch != 0)  # PyTorch takes no empty batch here
    return replace(unfolding(layer, draw(st.booleans()), draw), **rounding(purpose))


def unfolding(layer: Layer, folds: bool, draw: st.DrawFn | None = None) -> Case:
    """im2col of a layer's image, or col2im of columns, with any other columns as the gradient."""
    windows, loops = layer.windows, layer.loops[:3]
    image = layer.arrays()[0]
    lead = () if layer.batch is None else (layer.batch,)
    shape = (*lead, layer.channels[0] * prod(windows.kernel), prod(layer.output_size))
    # a matrix has no channels-last order: its rows are what lies innermost
    columns = arranged(numbers(np.random.default_rng(2), shape, layer.dtype), layer.orders[2], bool(lead))
    if draw is not None:
        over_all_integers(draw, image, columns)
    options = {key: value for key, value in layer.options.items() if key != "groups"}
    options |= {"kernel_size": windows.kernel, **({"output_size": windows.sizes} if folds else {})}

    def unfolded() -> Array:
        return layer.without(reference.im2col(layer.with_batch(image), windows.kernel, *loops))

    def folded() -> Array:
        return layer.without(reference.col2im(layer.with_batch(columns), windows.sizes, windows.kernel, *loops))

    x, grad = (columns, image) if folds else (image, columns)
    result, gradient = (folded, unfolded) if folds else (unfolded, folded)
    return Case(
        "col2im" if folds else "im2col",
        {"input": x},
        options,
        grad,
        result,
        lambda: (gradient(),),
        lambda torch, **leaves: getattr(torch.nn.functional, "fold" if folds else "unfold")(**leaves),
        rank=0,
        copies="backward" if folds else "forward",
    )
