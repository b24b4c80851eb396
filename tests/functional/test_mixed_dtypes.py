"""16-bit images with a float32 bias, and gradients of parameters in float32: nothing is rounded to 16 bits on the way.

All sums are of small integers, which float32 holds exactly, so results are known to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import reference
from array_backends import ArrayBackend
from calls import CALLS, fresh
from convolution_cases import LAYOUTS, Layer, bits
from strategies import Windows, arranged, dtype_of

import gpucnn
import gpucnn.functional as F

HALVES = ("float16", "bfloat16")
LAYERS = {  # by what computes them: on the CPU, on a GPU
    "dense": Layer(Windows(2, (9, 8), (3, 3), (2, 1), (1, 2), ((1, 2), (0, 1))), 2, (16, 24, 1)),
    "dense 1d, without a batch": Layer(Windows(1, (40,), (5,), (3,), (2,), "same"), None, (5, 7, 1)),
    "dense 3d": Layer(Windows(3, (4, 5, 6), (2, 2, 3), (1, 2, 1), (1, 1, 1), 1), 2, (6, 16, 1)),
    "pixel by pixel": Layer(Windows(2, (6, 7), (1, 1), (1, 1), (1, 1), 0), 3, (40, 24, 1)),
    "groups": Layer(Windows(2, (7, 8), (3, 3), (1, 1), (1, 1), 1), 2, (6, 9, 3)),
    "wide groups": Layer(Windows(2, (6, 5), (3, 3), (1, 1), (1, 1), 1), 1, (32, 36, 2)),
    "depthwise": Layer(Windows(2, (9, 10), (3, 3), (2, 2), (1, 1), 1), 2, (4, 8, 4)),
    "an empty batch": Layer(Windows(2, (5, 5), (3, 3), (1, 1), (1, 1), 0), 0, (2, 3, 1)),
}


def each_algorithm(backend: ArrayBackend, label: str, of_weight: bool = False) -> Iterator[None]:
    """The algorithms that compute a layer on a backend: that of its choice, and then by name."""
    yield
    names = ["direct", "im2col"]
    if backend.name != "numpy":
        names.append("implicit_gemm")
    if backend.name == "compiled" and label == "wide groups" and not of_weight:
        names.append("winograd")
    for name in names:
        with gpucnn.algorithm(name):
            yield


def integers(seed: int, shape: tuple[int, ...], dtype: str, most: int = 3) -> Any:
    return np.random.default_rng(seed).integers(-most, most + 1, shape).astype(dtype_of(dtype))


def fractions(shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
    """Multiples of 2**-13, which float32 adds to integers exactly and 16 bits do not hold."""
    return ((np.arange(np.prod(shape, dtype=int)).reshape(shape) * 1021 % 8192 + 1) / 8192 - 7).astype(dtype)


def filled(layer: Layer, order: str, dtype: str) -> tuple[Any, Any, Any]:
    """Image, filters and gradient of small integers."""
    lead, (inputs, outputs, groups) = () if layer.batch is None else (layer.batch,), layer.channels
    x = integers(1, (*lead, inputs, *layer.windows.sizes), dtype)
    w = integers(2, (outputs, inputs // groups, *layer.windows.kernel), dtype)
    grad = integers(3, (*lead, outputs, *layer.output_size), dtype)
    return arranged(x, order, bool(lead)), w, arranged(grad, order, bool(lead))


def exact(array: Any, dtype: str) -> Any:
    """A float64 array of numbers that float32 holds, rounded once."""
    wide = array.astype(np.float32)
    assert (wide == array).all()
    return wide.astype(dtype_of(dtype))


@pytest.mark.table(6)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("label", LAYERS)
def test_a_wide_bias_is_added_before_the_rounding(backend: ArrayBackend, label: str, order: str, dtype: str) -> None:
    layer = LAYERS[label]
    x, w, _ = filled(layer, order, dtype)
    bias = fractions(w.shape[:1])
    sums = reference.conv(layer.with_batch(x), w, None, *layer.loops)
    expected = (sums.astype(np.float32) + bias.reshape(-1, *(1,) * layer.windows.rank)).astype(x.dtype)
    for _ in each_algorithm(backend, label):
        y = backend.run(layer.op(), x, w, bias, **layer.options)
        np.testing.assert_array_equal(y, layer.without(expected), strict=True)
        assert bits(backend.run(layer.op(), x, w, bias, **layer.options)) == bits(y)


@pytest.mark.table(6)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("label", LAYERS)
def test_a_wide_bias_of_a_transposed_convolution(backend: ArrayBackend, label: str, order: str, dtype: str) -> None:
    layer = LAYERS[label]
    _, w, grad = filled(layer, order, dtype)
    bias = fractions((layer.channels[0],))
    options, rank = layer.options, layer.windows.rank
    operation = getattr(F, f"conv_transpose{rank}d")
    sums = backend.run(operation, grad.astype(np.float32), w.astype(np.float32), None, **options)
    expected = (sums + bias.reshape(-1, *(1,) * rank)).astype(grad.dtype)
    for _ in each_algorithm(backend, label):
        y = backend.run(operation, grad, w, bias, **options)
        np.testing.assert_array_equal(y, expected, strict=True)


@pytest.mark.table(6)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("label", LAYERS)
def test_gradients_of_parameters_are_the_sums_themselves(
    backend: ArrayBackend, label: str, order: str, dtype: str
) -> None:
    layer = LAYERS[label]
    x, w, grad = filled(layer, order, dtype)
    bias = np.zeros(w.shape[:1], np.float32)
    expected = reference.conv_backward(layer.with_batch(grad), layer.with_batch(x), w, *layer.loops)
    for _ in each_algorithm(backend, label, of_weight=True):
        grads = backend.run(layer.op("_backward"), grad, x, w, bias, **layer.options, dtype=np.float32)
        again = backend.run(layer.op("_backward"), grad, x, w, bias, **layer.options, dtype="float32")
        narrow = backend.run(layer.op("_backward"), grad, x, w, bias.astype(w.dtype), **layer.options)
        assert bits(grads) == bits(again)
        np.testing.assert_array_equal(grads[0], narrow[0], strict=True)
        for wide, short, sums in zip(grads[1:], narrow[1:], expected[1:], strict=True):
            np.testing.assert_array_equal(wide, exact(sums, "float32"), strict=True)
            np.testing.assert_array_equal(short, exact(sums, dtype), strict=True)
        alone = backend.run(layer.op("_weight"), x, w.shape, grad, **layer.options, dtype=np.float32)
        np.testing.assert_array_equal(alone, grads[1], strict=True)
        out = backend.asarray(np.zeros((*w.shape[:-1], 2 * w.shape[-1]), np.float32))[..., ::2]
        arrays = backend.asarray(x), w.shape, backend.asarray(grad)
        assert layer.op("_weight")(*arrays, **layer.options, dtype="f4", out=out) is out
        np.testing.assert_array_equal(backend.asnumpy(out), grads[1])


@pytest.mark.parametrize("dtype", HALVES)
def test_gradients_that_16_bits_do_not_hold(backend: ArrayBackend, dtype: str) -> None:
    """2049 ones, in each family, in float32: 16 bits round it to 2048."""
    one, many = np.ones(1, dtype_of(dtype)), np.ones((2049, 1, 1), dtype_of(dtype))
    for operation, weight, bias in (
        (F.conv1d_backward, one.reshape(1, 1, 1), one),
        (F.conv_transpose1d_backward, one.reshape(1, 1, 1), one),
        (F.locally_connected1d_backward, one.reshape(1, 1, 1, 1), one.reshape(1, 1)),
        (F.linear_backward, one.reshape(1, 1), one),
    ):
        for asked, biases in ((np.float32, bias), (None, bias.astype(np.float32))):
            _, grad_w, grad_b = backend.run(operation, many, many, weight, biases, dtype=asked)
            assert (grad_w.item(), grad_w.dtype) == ((2049, np.float32) if asked else (2048, one.dtype))
            assert (grad_b.item(), grad_b.dtype) == (2049, np.float32)
    _, grad_b, _ = backend.run(F.bias_activation_backward, many, many, one.astype(np.float32), None, "none")
    assert (grad_b.item(), grad_b.dtype) == (2049, np.float32)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("order", LAYOUTS)
def test_a_wide_bias_of_the_other_families(backend: ArrayBackend, order: str, dtype: str) -> None:
    x = arranged(integers(1, (2, 3, 5, 4), dtype), order)
    shape = (2, 3, 3, 3, 2, 2)
    w, bias = integers(2, shape, dtype), fractions(shape[:3])
    y = backend.run(F.locally_connected2d, x, w, bias, stride=(2, 1), padding=((1, 0), (0, 0)))
    sums = backend.run(
        F.locally_connected2d, x.astype(np.float32), w.astype(np.float32), None, (2, 1), ((1, 0), (0, 0))
    )
    np.testing.assert_array_equal(y, (sums + bias).astype(y.dtype), strict=True)

    bias = fractions((3,))
    y = backend.run(F.bias_activation, x, bias, x, "leaky_relu", 0.5)
    sums = 2 * x.astype(np.float32) + bias[:, None, None]
    np.testing.assert_array_equal(y, np.where(sums > 0, sums, sums / 2).astype(y.dtype), strict=True)

    for rows in ((), (6,), (2, 0)):
        x, w, bias = integers(1, (*rows, 40), dtype), integers(2, (24, 40), dtype), fractions((24,))
        y = backend.run(F.linear, x, w, bias)
        np.testing.assert_array_equal(y, (x.astype(np.float32) @ w.T.astype(np.float32) + bias).astype(y.dtype))
        grad = integers(3, y.shape, dtype)
        grads = backend.run(F.linear_backward, grad, x, w, bias, dtype=np.float32)
        flat = grad.reshape(-1, 24).astype(np.float32)
        np.testing.assert_array_equal(grads[1], flat.T @ x.reshape(-1, 40).astype(np.float32), strict=True)
        np.testing.assert_array_equal(grads[2], flat.sum(0), strict=True)


WITH_DTYPE = [name for name in CALLS if "dtype" in getattr(F, name).__annotations__]


@pytest.mark.table(4)
@pytest.mark.parametrize("name", WITH_DTYPE)
def test_other_dtypes_of_gradients_are_refused(backend: ArrayBackend, name: str) -> None:
    def called(array_dtype: str, dtype: Any) -> Any:
        arguments = fresh(name)
        for key, value in arguments.items():
            if isinstance(value, np.ndarray):
                arguments[key] = backend.asarray(value.astype(dtype_of(array_dtype)))
        return getattr(F, name)(**arguments, dtype=dtype)

    for given, expected, wrong in (
        ("float64", "float64", ["float32", np.float16, int, "junk", "", object(), 1, [np.float64], ">f8"]),
        ("float32", "float32", ["float64", "float16"]),
        ("float16", "float16 or float32", ["float64", "bfloat16", complex]),
        ("int8", "int32", ["int8", "float32"]),
    ):
        for dtype in wrong:
            with pytest.raises(TypeError, match=rf"^{name}: dtype is .*, expected {expected}$"):
                called(given, dtype)
    for given, dtype in (("float16", "float16"), ("bfloat16", np.float32), ("float64", float), ("int8", np.int32)):
        called(given, dtype)
    assert len(WITH_DTYPE) == 13
