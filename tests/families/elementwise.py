"""Linear layers, elementwise operations and padding: calls to draw."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import reference
import reference_norms
from hypothesis import assume
from hypothesis import strategies as st
from properties import Array, Case
from strategies import ORDERS, arranged, numbers

from families.drawing import SMOOTH, Purpose, bias_of, over_all_integers, seeds, smooth_for, smooth_peer

MODES = ("constant", "reflect", "replicate", "circular", "symmetric")


@st.composite
def linear_layers(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose) -> Case:
    """With any leading axes, and weights for one output or several."""
    leading = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    features, outputs = draw(st.integers(1, 5)), draw(st.sampled_from(((), (1,), (2,), (5,))))
    rng, dtype = np.random.default_rng(draw(seeds)), draw(st.sampled_from(dtypes))
    shapes = ((*leading, features), (*outputs, features), outputs, (*leading, *outputs))
    x, w, bias, grad = (np.asarray(numbers(rng, shape, dtype)) for shape in shapes)
    order = draw(st.sampled_from(("contiguous", "strided", "reversed")))
    x, w = arranged(x, order), np.asfortranarray(w) if draw(st.booleans()) else arranged(w, order)
    over_all_integers(draw, x, w, bias, grad)
    b = bias_of(draw, bias) if draw(st.booleans()) else None
    assume(purpose != "pytorch" or outputs or (x.size and b is None))  # PyTorch breaks on others

    def gradients() -> tuple[Array, Array, Array]:
        gx, gw, gb = reference.linear_backward(grad.reshape(*leading, prod(outputs)), x, np.atleast_2d(w))
        return gx, gw.reshape(w.shape), gb.reshape(outputs)

    return Case(
        "linear",
        {"input": x, "weight": w, "bias": b},
        {},
        grad,
        lambda: reference.linear(x, np.atleast_2d(w), b if b is None else np.atleast_1d(b)).reshape(grad.shape),
        gradients,
    )


@st.composite
def unary_operations(
    draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose, name: str, **options: st.SearchStrategy[Any]
) -> Case:
    """An operation on each element, or along an axis that `dim` is drawn for."""
    along_axis = name.endswith("softmax")
    shape = tuple(draw(st.lists(st.integers(0, 4), min_size=int(along_axis), max_size=4)))
    order = draw(st.sampled_from(ORDERS if len(shape) > 1 else ("contiguous",)))
    rng, dtype = np.random.default_rng(draw(seeds)), draw(st.sampled_from(dtypes))
    x, grad = (arranged(numbers(rng, shape, dtype), order) for _ in range(2))
    assume(purpose != "slopes" or x.size <= 100)
    drawn = {key: draw(values) for key, values in options.items()}
    drawn = {key: value for key, value in drawn.items() if value is not None}
    if along_axis:
        drawn["dim"] = draw(st.integers(-x.ndim, x.ndim - 1))
    module = reference_norms if along_axis else reference

    def of_oracle(end: str, *arrays: Array) -> Any:
        return getattr(module, name + end)(*arrays, **drawn) if x.size else np.zeros(x.shape)

    return Case(name, {"input": x}, drawn, grad, lambda: of_oracle("", x), lambda: (of_oracle("_backward", grad, x),))


@st.composite
def bias_activations(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose) -> Case:
    """A bias and a residual, where there are any, then an activation."""
    shape = tuple(draw(st.lists(st.integers(1, 3 if purpose == "slopes" else 5), min_size=2, max_size=4)))
    if purpose == "oracle":
        shape = draw(st.sampled_from([shape, shape, (*shape[:-1], 10 * shape[-1]), (0, *shape[1:])]))
    rng, dtype, order = np.random.default_rng(draw(seeds)), draw(st.sampled_from(dtypes)), draw(st.sampled_from(ORDERS))
    order = order if len(shape) > 2 else "contiguous"
    x, grad, other = (arranged(numbers(rng, shape, dtype), order) for _ in range(3))
    bias = bias_of(draw, numbers(rng, shape[1:2], dtype)) if draw(st.booleans()) else None
    residual = other if draw(st.booleans()) else None
    activation, negative_slope = (
        draw(st.sampled_from(("none", "relu", "leaky_relu", *smooth_for(purpose)))),
        draw(st.sampled_from((0.3, 0.0, -0.5))),
    )
    slope = {"relu": 0.0, "leaky_relu": negative_slope}.get(activation, 1.0)
    total = reference.wide(x)
    for term in (None if bias is None else reference.per_channel(bias, x.ndim), residual):
        total = total if term is None else total + reference.wide(term)

    def activated() -> Array:
        if activation in SMOOTH:
            return reference.smooth_activation(total, activation)
        return np.where(total > 0, total, slope * total)

    def gradients() -> Any:
        if activation in SMOOTH:
            rounded = total.astype(x.dtype)  # as the recomputed sum is
            through = reference.smooth_activation_backward(grad, rounded, activation)
        else:
            through = np.where(total > 0, 1, slope) * reference.wide(grad)
        return through, reference.sum_per_channel(through), through

    def peer(torch: Any, input: Any, bias: Any, residual: Any, **options: Any) -> Any:
        y = input if bias is None else input + bias.reshape(-1, *[1] * (x.ndim - 2))
        y = y if residual is None else y + residual
        return smooth_peer(torch, activation)(y) if activation in SMOOTH else torch.nn.functional.leaky_relu(y, slope)

    return Case(
        "bias_activation",
        {"input": x, "bias": bias, "residual": residual},
        {"activation": activation, "negative_slope": negative_slope},
        grad,
        activated,
        gradients,
        peer,
        rank=len(shape) - 2 or None,
    )


@st.composite
def pads(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose, mode: str) -> Case:
    """Padding and cropping; for PyTorch of images, which it takes in all modes but one."""
    images = purpose == "pytorch"
    shape = draw(st.lists(st.integers(1, 5), min_size=2 if images else 0, max_size=4))
    axes = draw(st.integers(1, len(shape) - 1)) if images else draw(st.integers(0, len(shape)))
    if images:
        shape = shape[-axes - draw(st.integers(1, 2)) :]
    pad: list[int] = []
    for size in reversed(shape[len(shape) - axes :]):
        keeps = 0 if mode == "constant" else 1
        low = draw(st.integers(0, size - keeps))
        high = draw(st.integers(0, size - keeps - low))
        left = size - low - high
        limit = {"reflect": left - 1, "circular": left, "symmetric": left}.get(mode, 4)
        pad += [-crop if crop else draw(st.integers(0, limit)) for crop in (low, high)]
    dtype, order = draw(st.sampled_from(dtypes)), draw(st.sampled_from(ORDERS if len(shape) > 1 else ("contiguous",)))
    rng = np.random.default_rng(draw(seeds))
    x = arranged(np.asarray(numbers(rng, tuple(shape), dtype)), order)
    assume(purpose != "slopes" or x.size <= 100)
    values = (None, 0, 3) + {"c": (1.5 - 2j,) * (not images), "i": (-2,), "u": ()}.get(
        x.dtype.kind, (-0.5, np.nan, np.inf)
    )
    value = draw(st.sampled_from(values)) if mode == "constant" else None
    crops, widths = [min(size, 0) for size in pad], [max(size, 0) for size in pad]
    cropped = reference.pad(x, crops)

    def expected() -> Array:
        return reference.pad(cropped, widths, mode, 0 if value is None else value)

    grad = np.asarray(numbers(rng, expected().shape, dtype))
    grad = arranged(grad, draw(st.sampled_from(ORDERS if grad.ndim > 1 else ("contiguous",))))
    return Case(
        "pad",
        {"input": x},
        {"pad": tuple(pad), "mode": mode, "value": value},
        grad,
        expected,
        lambda: (reference.pad_backward(reference.pad_backward(grad, cropped.shape, widths, mode), x.shape, crops),),
        copies="forward",
    )
