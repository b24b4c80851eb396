"""The memory order and the dtype of results that array libraries' own arithmetic computes: those of the image."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend
from calls import CALLS, fresh, rank_of
from strategies import FLOATS, arranged, dtype_of, numbers
from strategies import ORDERS as VIEWS
from tolerances import assert_close

import gpucnn.functional as F
from gpucnn.backends.layout import empty_in_order, is_channels_last, outermost_first, stored_like
from gpucnn.nn._joining import added, concatenated

SHAPE = (2, 3, 4, 6)


def with_gaps(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Every second column of a wider image whose channels are last."""
    return arranged(np.repeat(array, 2, axis=3), "channels_last")[..., ::2]


ORDERS: dict[str, tuple[Callable[[Any], Any], bool]] = {  # how an image is stored, and whether with channels last
    "contiguous": (lambda array: array, False),
    "channels last": (lambda array: arranged(array, "channels_last"), True),
    "channels last with gaps": (with_gaps, True),
    "strided": (lambda array: arranged(array, "strided"), False),
}

Run = Callable[..., Any]  # `ArrayBackend.run`: an operation, and its arguments as NumPy arrays
Image = np.ndarray[Any, Any]


def statistics(x: Image) -> tuple[Image, Image]:
    """A mean and a variance for each channel, in float32 for 16 bits."""
    wide = np.float64 if x.dtype == np.float64 else np.float32
    return np.zeros(x.shape[1], wide), np.ones(x.shape[1], wide)


CASES: dict[str, Callable[[Run, Image, Image], Any]] = {
    "relu": lambda run, x, grad: run(F.relu, x),
    "relu_backward": lambda run, x, grad: run(F.relu_backward, grad, x),
    "leaky_relu": lambda run, x, grad: run(F.leaky_relu, x, 0.3),
    "leaky_relu_backward": lambda run, x, grad: run(F.leaky_relu_backward, grad, x, 0.3),
    "sigmoid": lambda run, x, grad: run(F.sigmoid, x),
    "sigmoid_backward": lambda run, x, grad: run(F.sigmoid_backward, grad, x),
    "gelu": lambda run, x, grad: run(F.gelu, x),
    "gelu_backward": lambda run, x, grad: run(F.gelu_backward, grad, x, approximate="tanh"),
    "softmax": lambda run, x, grad: run(F.softmax, x, 1),
    "softmax_backward": lambda run, x, grad: run(F.softmax_backward, grad, x, 1),
    "softmax_backward with output": lambda run, x, grad: run(F.softmax_backward, grad, x, 1, output=x),
    "log_softmax": lambda run, x, grad: run(F.log_softmax, x, -1),
    "log_softmax_backward": lambda run, x, grad: run(F.log_softmax_backward, grad, x, -1),
    "dropout": lambda run, x, grad: run(F.dropout, x, rng=1),
    "dropout_backward": lambda run, x, grad: run(F.dropout_backward, grad, x, rng=1),
    "dropout in evaluation": lambda run, x, grad: run(F.dropout, x, training=False),
    "cross_entropy_backward": lambda run, x, grad: run(
        F.cross_entropy_backward, 1.0, x, abs(grad), needs=(True, True, False)
    ),
    "binary_cross_entropy_with_logits": lambda run, x, grad: run(
        F.binary_cross_entropy_with_logits, x, abs(grad), np.ones(6, x.dtype), reduction="none"
    ),
    "binary_cross_entropy_with_logits_backward": lambda run, x, grad: run(
        F.binary_cross_entropy_with_logits_backward, grad, x, abs(grad), np.ones(6, x.dtype), reduction="none"
    )[:2],
    **{
        f"interpolate, {mode}": lambda run, x, grad, mode=mode: (
            run(F.interpolate, x, size=7, mode=mode),
            *run(F.interpolate_backward, grad, x[:, :, :2, :3], size=SHAPE[2:], mode=mode),
        )
        for mode in ("nearest", "nearest-exact", "bilinear", "area")
    },
    "lp_pool2d": lambda run, x, grad: run(F.lp_pool2d, x, 2, 2),
    "lp_pool2d_backward": lambda run, x, grad: run(F.lp_pool2d_backward, grad, x, 2, 1),
    "batch_norm_backward": lambda run, x, grad: run(F.batch_norm_backward, grad, x, *statistics(x))[0],
    "instance_norm_backward": lambda run, x, grad: run(
        F.instance_norm_backward, grad, x, *statistics(x), use_input_stats=False
    )[0],
    "batch_norm_backward with a residual": lambda run, x, grad: run(
        F.batch_norm_backward, grad, x, *statistics(x), training=True, residual=grad
    ),
    "bias_activation_backward": lambda run, x, grad: run(F.bias_activation_backward, grad, x, None, grad),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", CASES)
def test_results_are_in_the_order_and_dtype_of_the_image(
    backend: ArrayBackend, name: str, order: str, dtype: str, rng: np.random.Generator
) -> None:
    arrange, last = ORDERS[order]
    x, grad = (arrange(numbers(rng, SHAPE, dtype)) for _ in range(2))
    results = CASES[name](backend.run, x, grad)
    expected = CASES[name](backend.run, np.ascontiguousarray(x), np.ascontiguousarray(grad))
    pairs = [(results, expected)] if isinstance(results, np.ndarray) else list(zip(results, expected, strict=True))
    for result, other in pairs:
        if other is not None and other.ndim == x.ndim:
            assert result.dtype == dtype_of(dtype)
            assert is_channels_last(result) == last
            assert_close(result, other, result.dtype)


IMAGES = [
    name
    for name in CALLS
    if re.match(r"(conv|conv_transpose|locally_connected|\w+pool|bed_of_nails)\dd(_backward)?$", name)
]


@pytest.mark.table(len(IMAGES))
@pytest.mark.parametrize("name", IMAGES)
def test_images_are_in_the_order_of_the_first_one(backend: ArrayBackend, name: str) -> None:
    """And nothing lies between their elements, with a batch or without."""
    rank, first = rank_of(name), "grad_output" if name.endswith("_backward") else "input"
    for order, has_batch in product(VIEWS, (True, False)):
        images = {
            key: arranged(value if has_batch else value[0], order, has_batch)
            for key, value in fresh(name).items()
            if key in ("input", "grad_output", "indices")
        }
        result = backend.run(getattr(F, name), **fresh(name) | images)
        image = result[0] if isinstance(result, tuple) else result
        assert image.ndim == images[first].ndim
        last = np.moveaxis(image, -rank - 1, -1)
        assert (last if order == "channels_last" else image).flags.c_contiguous, (order, has_batch)


@pytest.mark.parametrize("size", [(1, 6), (6, 1)])
def test_images_of_one_row_or_column_keep_their_order(
    backend: ArrayBackend, size: tuple[int, int], rng: np.random.Generator
) -> None:
    x = arranged(numbers(rng, (1, 3, *size), "float32"), "channels_last")
    for result in (
        backend.run(F.bed_of_nails2d, x, 2),
        backend.run(F.lp_pool2d, x, 2, 3, 1, padding=1),
        backend.run(F.lp_pool2d_backward, x, x, 2, 3, 1, padding=1)[0],
        backend.run(F.avg_pool2d, x, 3, 1, 1),
    ):
        assert np.moveaxis(result, 1, -1).flags.c_contiguous


@pytest.mark.parametrize("order", ORDERS)
def test_rectified_integers_are_in_the_order_of_the_image(
    backend: ArrayBackend, order: str, rng: np.random.Generator
) -> None:
    arrange, last = ORDERS[order]
    x = arrange(numbers(rng, SHAPE, "int32"))
    for result in (backend.run(F.relu, x), *backend.run(F.relu_backward, x, x)):
        assert result.dtype == np.int32
        assert is_channels_last(result) == last


@pytest.mark.parametrize(
    ("name", "options"),
    [("relu", {}), ("leaky_relu", {}), ("softmax", {"dim": 1}), ("log_softmax", {"dim": 1}), ("dropout", {"rng": 1})],
)
def test_a_gradient_is_in_the_order_of_the_one_that_it_is_made_of(
    backend: ArrayBackend, name: str, options: dict[str, Any], rng: np.random.Generator
) -> None:
    first = numbers(rng, SHAPE, "float32")
    last = arranged(first, "channels_last")
    assert is_channels_last(backend.run(getattr(F, f"{name}_backward"), last, first, **options)[0])
    assert not is_channels_last(backend.run(getattr(F, f"{name}_backward"), first, last, **options)[0])


def test_the_gradient_of_complex_transposed_convolutions_keeps_channels_last(
    backend: ArrayBackend, rng: np.random.Generator
) -> None:
    x, w, y = (numbers(rng, shape, "complex64") for shape in (SHAPE, (3, 5, 2, 2), (2, 5, 5, 7)))
    for last in (False, True):
        image, grad = (arranged(array, "channels_last") if last else array for array in (x, y))
        assert is_channels_last(backend.run(F.conv_transpose2d_backward, grad, image, w)[0]) == last


@pytest.mark.parametrize("order", ORDERS)
def test_joined_branches_are_in_the_order_of_the_first(
    backend: ArrayBackend, order: str, rng: np.random.Generator
) -> None:
    arrange, last = ORDERS[order]
    x, other = arrange(numbers(rng, SHAPE, "float32")), numbers(rng, SHAPE, "float32")
    total = backend.run(added, x, other)
    np.testing.assert_array_equal(total, x + other)
    assert is_channels_last(total) == last
    for axis in (0, 1, -3, 3):
        parts = [backend.asarray(x), backend.asarray(other), backend.asarray(x)]
        result = backend.asnumpy(concatenated(parts, axis))
        np.testing.assert_array_equal(result, np.concatenate([x, other, x], axis))
        assert is_channels_last(result) == last


@pytest.mark.parametrize(
    ("shape", "order", "expected"),
    [
        ((2, 3, 4, 5), (0, 2, 3, 1), (0, 2, 3, 1)),
        ((2, 3, 4, 5), (3, 1, 0, 2), (3, 1, 0, 2)),
        ((1, 3, 1, 5), (0, 2, 3, 1), (0, 2, 3, 1)),  # a row, which NumPy takes for Fortran's order
        ((1, 3, 1, 5), (2, 3, 0, 1), (0, 2, 3, 1)),
        ((2, 1, 4, 5), (0, 2, 3, 1), (0, 1, 2, 3)),  # of one channel both orders are C order
        ((1, 3, 1, 1), (0, 2, 3, 1), (0, 1, 2, 3)),
        ((3, 1, 5), (1, 2, 0), (1, 2, 0)),  # channels last, without a batch
        ((1, 3), (1, 0), (0, 1)),
        ((3, 2), (1, 0), (1, 0)),
        ((), (), ()),
    ],
)
def test_new_arrays_are_in_the_order_of_another(
    backend: ArrayBackend, shape: tuple[int, ...], order: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    stored = np.zeros([shape[axis] for axis in order]).transpose(np.argsort(order))
    like = backend.asarray(stored)
    assert outermost_first(like) == expected
    larger = tuple(size + 1 for size in shape)
    result = empty_in_order(backend.primitives.xp, larger, "float32", like)
    assert (result.shape, result.dtype) == (larger, np.float32)
    assert result.transpose(expected).flags.c_contiguous


def test_joined_branches_of_one_channel_are_in_c_order(backend: ArrayBackend) -> None:
    x = backend.asarray(arranged(np.zeros((2, 1, 4, 5)), "channels_last"))
    assert concatenated([x, x], 1).flags.c_contiguous


def test_what_is_stored_as_wanted_is_not_copied(backend: ArrayBackend, rng: np.random.Generator) -> None:
    xp = backend.primitives.xp
    for arrange, _ in ORDERS.values():
        x = backend.asarray(arrange(numbers(rng, SHAPE, "float32")))
        kept = x.copy(order="K")
        assert stored_like(xp, kept, x) is kept
        assert stored_like(xp, x, x) is x
        assert stored_like(xp, kept, x, np.float64).strides == tuple(2 * step for step in kept.strides)
    ones = backend.asarray(np.ones((2, 1, 3, 1)))  # the steps of axes of size 1 say nothing
    assert stored_like(xp, ones, ones[:, :, ::-1]) is ones
