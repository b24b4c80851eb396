"""Convolution, its gradients and the gradients of these, against loops, PyTorch and finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
from array_backends import ArrayBackend
from convolution_cases import (
    LAYOUTS,
    TORCH_TOLERANCE,
    Array,
    Layer,
    bits,
    close_to_torch,
    frozen,
    layers,
    poisoned_memory,
    torch_leaves,
)
from hypothesis import given
from hypothesis import strategies as st
from sample import examples
from strategies import COMPLEX, FLOATS, INTEGERS, Windows, arranged, numbers
from tolerances import assert_close, summed

import gpucnn.functional as F

# --- Against loops ------------------------------------------------------------------------------------------------


@examples(400)
@given(layer=layers(FLOATS + COMPLEX + INTEGERS), with_bias=st.booleans())
def test_forward_is_the_loops(backend: ArrayBackend, layer: Layer, with_bias: bool) -> None:
    x, w, b, _ = layer.arrays()
    b = b if with_bias else None
    expected = layer.without(reference.conv(layer.with_batch(x), w, b, *layer.loops))
    frozen(x, w)
    with poisoned_memory():
        y = backend.run(layer.op(), x, w, b, **layer.options)
    assert_close(y, expected, summed(x.dtype))
    assert bits(backend.run(layer.op(), x, w, b, **layer.options)) == bits(y)


@examples(300)
@given(
    layer=layers(FLOATS + COMPLEX + INTEGERS, most=2000),
    with_bias=st.booleans(),
    needs=st.tuples(*(st.booleans(),) * 3),
)
def test_backward_is_the_loops(
    backend: ArrayBackend, layer: Layer, with_bias: bool, needs: tuple[bool, bool, bool]
) -> None:
    x, w, b, grad = layer.arrays()
    b = b if with_bias else None
    expected = reference.conv_backward(layer.with_batch(grad), layer.with_batch(x), w, *layer.loops)
    frozen(x, w, grad)
    with poisoned_memory():
        results = backend.run(layer.op("_backward"), grad, x, w, b, **layer.options)
    assert_close(results[0], layer.without(expected[0]), summed(x.dtype))
    assert_close(results[1], expected[1], summed(x.dtype))
    if b is None:
        assert results[2] is None
    else:
        assert_close(results[2], expected[2], summed(x.dtype))

    again = backend.run(layer.op("_backward"), grad, x, w, b, **layer.options)
    assert bits(again) == bits(results)
    some = backend.run(layer.op("_backward"), grad, x, w, b, **layer.options, needs=needs)
    assert bits(some) == [part if need else None for part, need in zip(bits(results), needs, strict=True)]
    grad_x = backend.run(layer.op("_input"), x.shape, w, grad, **layer.options)
    grad_w = backend.run(layer.op("_weight"), x, w.shape, grad, **layer.options)
    assert bits((grad_x, grad_w)) == bits(results[:2])


# --- Against PyTorch ----------------------------------------------------------------------------------------------


def torch_conv(torch: Any, layer: Layer) -> Callable[..., Any]:
    return getattr(torch.nn.functional, f"conv{layer.windows.rank}d")


@examples(120)
@given(layer=layers(tuple(TORCH_TOLERANCE), symmetric=True))
def test_forward_and_backward_are_pytorchs(backend: ArrayBackend, torch: Any, layer: Layer) -> None:
    x, w, b, grad = layer.arrays()
    leaves = torch_leaves(torch, x, w, b)
    expected = torch_conv(torch, layer)(*leaves, **layer.options)
    close_to_torch(backend.run(layer.op(), x, w, b, **layer.options), expected)
    expected.backward(torch.from_numpy(grad.copy()))
    for actual, leaf in zip(backend.run(layer.op("_backward"), grad, x, w, b, **layer.options), leaves, strict=True):
        close_to_torch(actual, leaf.grad)


@examples(120)
@given(layer=layers(tuple(TORCH_TOLERANCE), symmetric=True, most=1000))
def test_second_derivatives_are_pytorchs_double_backward(backend: ArrayBackend, torch: Any, layer: Layer) -> None:
    x, w, _, grad = layer.arrays()
    rng = np.random.default_rng(2)
    grad_grad_x, grad_grad_w = numbers(rng, x.shape, layer.dtype), numbers(rng, w.shape, layer.dtype)
    leaves = torch_leaves(torch, x, w, grad)
    y = torch_conv(torch, layer)(*leaves[:2], **layer.options)
    grad_x, grad_w = torch.autograd.grad(y, leaves[:2], leaves[2], create_graph=True)
    keep = {"retain_graph": True, "materialize_grads": True}  # an empty batch has no graph
    by_w, by_grad = torch.autograd.grad(grad_x, leaves[1:], torch.from_numpy(grad_grad_x), **keep)
    results = backend.run(layer.op("_input_backward"), grad_grad_x, x.shape, w, grad, **layer.options)
    close_to_torch(results[0], by_w)
    close_to_torch(results[1], by_grad)
    by_x, by_grad = torch.autograd.grad(grad_w, leaves[::2], torch.from_numpy(grad_grad_w), **keep)
    results = backend.run(layer.op("_weight_backward"), grad_grad_w, x, w.shape, grad, **layer.options)
    close_to_torch(results[0], by_x)
    close_to_torch(results[1], by_grad)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kernel", [3, 4])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_same_and_valid_are_pytorchs(
    backend: ArrayBackend, torch: Any, rng: np.random.Generator, rank: int, kernel: int, padding: str
) -> None:
    layer = Layer(Windows(rank, (7, 8, 9)[:rank], (kernel,) * rank, (1,) * rank, (1,) * rank, padding), 2, (2, 3, 1))
    x, w, b, _ = layer.arrays()
    expected = torch_conv(torch, layer)(*torch_leaves(torch, x, w, b), **layer.options)
    close_to_torch(backend.run(layer.op(), x, w, b, **layer.options), expected)


# --- Finite differences -------------------------------------------------------------------------------------------


@examples(12)
@given(layer=layers(("float64", "complex128"), most=100, largest=3))
def test_gradients_are_finite_differences(backend: ArrayBackend, layer: Layer) -> None:
    x, w, b, grad = layer.arrays()

    def forward(x: Array, w: Array, b: Array) -> Array:
        return backend.run(layer.op(), x, w, b, **layer.options)

    results = backend.run(layer.op("_backward"), grad, x, w, b, **layer.options)
    slopes = (
        reference.finite_difference(lambda x: forward(x, w, b), x, grad),
        reference.finite_difference(lambda w: forward(x, w, b), w, grad),
        reference.finite_difference(lambda b: forward(x, w, b), b, grad),
    )
    for actual, expected in zip(results, slopes, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


@examples(12)
@given(layer=layers(("float64", "complex128"), most=100, largest=3))
def test_second_derivatives_are_finite_differences(backend: ArrayBackend, layer: Layer) -> None:
    x, w, _, grad = layer.arrays()
    rng = np.random.default_rng(2)
    grad_grad_x, grad_grad_w = numbers(rng, x.shape, layer.dtype), numbers(rng, w.shape, layer.dtype)

    def grad_x(w: Array, grad: Array) -> Array:
        return backend.run(layer.op("_input"), x.shape, w, grad, **layer.options)

    def grad_w(x: Array, grad: Array) -> Array:
        return backend.run(layer.op("_weight"), x, w.shape, grad, **layer.options)

    results = (
        *backend.run(layer.op("_input_backward"), grad_grad_x, x.shape, w, grad, **layer.options),
        *backend.run(layer.op("_weight_backward"), grad_grad_w, x, w.shape, grad, **layer.options),
    )
    slopes = (
        reference.finite_difference(lambda w: grad_x(w, grad), w, grad_grad_x),
        reference.finite_difference(lambda g: grad_x(w, g), grad, grad_grad_x),
        reference.finite_difference(lambda x: grad_w(x, grad), x, grad_grad_w),
        reference.finite_difference(lambda g: grad_w(x, g), grad, grad_grad_w),
    )
    for actual, expected in zip(results, slopes, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


@examples(60)
@given(layer=layers(FLOATS + COMPLEX, most=300), needs=st.tuples(st.booleans(), st.booleans()))
def test_second_derivatives_repeat_and_leave_out(backend: ArrayBackend, layer: Layer, needs: tuple[bool, bool]) -> None:
    x, w, _, grad = layer.arrays()
    frozen(x, w, grad)
    for suffix, arguments in (("_input", (x, x.shape, w, grad)), ("_weight", (w, x, w.shape, grad))):
        op = layer.op(suffix + "_backward")
        results = backend.run(op, *arguments, **layer.options)
        assert [array.dtype for array in results] == [x.dtype] * 2
        assert bits(backend.run(op, *arguments, **layer.options)) == bits(results)
        some = backend.run(op, *arguments, **layer.options, needs=needs)
        assert bits(some) == [part if need else None for part, need in zip(bits(results), needs, strict=True)]


# --- Identities ---------------------------------------------------------------------------------------------------


@examples(100)
@given(layer=layers(("float64", "complex128")))
def test_gradients_are_adjoint_to_the_convolution(backend: ArrayBackend, layer: Layer) -> None:
    x, w, _, grad = layer.arrays()
    y = backend.run(layer.op(), x, w, **layer.options)
    product_ = np.vdot(grad, y)
    by_x = np.vdot(backend.run(layer.op("_input"), x.shape, w, grad, **layer.options), x)
    by_w = np.vdot(backend.run(layer.op("_weight"), x, w.shape, grad, **layer.options), w)
    np.testing.assert_allclose([by_x, by_w], product_, rtol=0, atol=1e-9)


@pytest.mark.parametrize("order", LAYOUTS)
def test_groups_are_convolutions_side_by_side(backend: ArrayBackend, rng: np.random.Generator, order: str) -> None:
    x, w = arranged(numbers(rng, (2, 6, 7, 8), "float64"), order), numbers(rng, (9, 2, 3, 2), "float64")
    parts = [backend.run(F.conv2d, x[:, 2 * g : 2 * g + 2], w[3 * g : 3 * g + 3], stride=(2, 1)) for g in range(3)]
    y = backend.run(F.conv2d, x, w, stride=(2, 1), groups=3)
    np.testing.assert_allclose(y, np.concatenate(parts, axis=1), rtol=0, atol=1e-12)


def test_batch_split_is_batch_whole(backend: ArrayBackend, rng: np.random.Generator) -> None:
    x, w, b = (numbers(rng, shape, "float32") for shape in ((5, 3, 9, 8), (4, 3, 3, 3), (4,)))
    grad = numbers(rng, (5, 4, 5, 4), "float32")
    options = {"stride": 2, "padding": 1}
    cuts = (slice(0, 2), slice(2, 5))
    y = backend.run(F.conv2d, x, w, b, **options)
    parts = [backend.run(F.conv2d, x[cut], w, b, **options) for cut in cuts]
    assert_close(y, np.concatenate(parts))
    whole = backend.run(F.conv2d_backward, grad, x, w, b, **options)
    grads = [backend.run(F.conv2d_backward, grad[cut], x[cut], w, b, **options) for cut in cuts]
    assert_close(whole[0], np.concatenate([part[0] for part in grads]))
    assert_close(whole[1], grads[0][1] + grads[1][1])
    assert_close(whole[2], grads[0][2] + grads[1][2])


@pytest.mark.parametrize("order", LAYOUTS)
def test_fully_connected_layer_is_a_convolution_of_the_whole_image(
    backend: ArrayBackend, rng: np.random.Generator, order: str
) -> None:
    x, w, b = (numbers(rng, shape, "float64") for shape in ((3, 4, 5, 6), (7, 120), (7,)))
    linear = backend.run(F.linear, x.reshape(3, 120), w, b)
    y = backend.run(F.conv2d, arranged(x, order), w.reshape(7, 4, 5, 6), b)
    assert y.shape == (3, 7, 1, 1)
    np.testing.assert_allclose(y[:, :, 0, 0], linear, rtol=0, atol=1e-12)
    # and over a larger image it slides, as in a fully convolutional network
    wide = backend.run(F.conv2d, np.concatenate([x, x], axis=3), w.reshape(7, 4, 5, 6), b)
    assert wide.shape == (3, 7, 1, 7)
    np.testing.assert_allclose(wide[..., 0, [0, 6]], np.stack([linear, linear], -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("channels", [(2, 4, 1), (4, 4, 4)])
def test_inputs_between_the_windows_have_zero_gradient(
    backend: ArrayBackend, rng: np.random.Generator, order: str, channels: tuple[int, int, int]
) -> None:
    inputs, outputs, groups = channels
    w = numbers(rng, (outputs, inputs // groups, 1, 2), "float32")
    grad = arranged(numbers(rng, (2, outputs, 3, 3), "float32"), order)
    with poisoned_memory():
        grad_x = backend.run(F.conv2d_input, (2, inputs, 9, 11), w, grad, (3, 4), groups=groups)
    read = np.zeros((9, 11), bool)
    read[::3, [0, 1, 4, 5, 8, 9]] = True
    assert np.all(grad_x[..., ~read] == 0)
    assert np.all(grad_x[..., read] != 0)
