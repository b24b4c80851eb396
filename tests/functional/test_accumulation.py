"""Sums of 16-bit floats are kept in float32: in 16 bits a sum of ones stops growing at 2048, or at 256."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend
from convolution_cases import LAYOUTS
from strategies import arranged, dtype_of

import gpucnn.functional as F

MANY = 4096
Run = Callable[..., Any]
Ones = Callable[..., Any]

SUMS: dict[str, Callable[[Run, Ones], Any]] = {  # results of which each element is MANY
    "channels": lambda run, ones: run(F.conv2d, ones(1, MANY, 2, 2), ones(1, MANY, 1, 1)),
    "channels and taps": lambda run, ones: run(F.conv2d, ones(1, MANY // 4, 2, 2), ones(2, MANY // 4, 2, 2)),
    "taps of groups": lambda run, ones: run(F.conv2d, ones(1, 2, 64, 64), ones(2, 1, 64, 64), groups=2),
    "conv_input": lambda run, ones: run(F.conv2d_input, (1, 2, 2, 2), ones(MANY, 2, 1, 1), ones(1, MANY, 2, 2)),
    "conv_weight": lambda run, ones: run(F.conv2d_weight, ones(4, 2, 32, 32), (2, 2, 1, 1), ones(4, 2, 32, 32)),
    "bias": lambda run, ones: run(F.conv2d_backward, ones(4, 2, 32, 32), ones(4, 1, 32, 32), ones(2, 1, 1, 1), ones(2))[
        2
    ],
    "transposed": lambda run, ones: run(F.conv_transpose2d, ones(1, MANY, 2, 2), ones(MANY, 2, 1, 1)),
    "transposed input": lambda run, ones: run(
        F.conv_transpose2d_backward, ones(1, MANY, 2, 2), ones(1, 2, 2, 2), ones(2, MANY, 1, 1)
    )[0],
    "transposed weight and bias": lambda run, ones: run(
        F.conv_transpose2d_backward, *[ones(4, 2, 32, 32)] * 2, ones(2, 2, 1, 1), ones(2)
    )[1:],
    "local": lambda run, ones: run(F.locally_connected1d, ones(1, MANY, 2), ones(1, 2, MANY, 1)),
    "local input": lambda run, ones: run(
        F.locally_connected1d_backward, ones(1, MANY, 2), ones(1, 1, 2), ones(MANY, 2, 1, 1)
    )[0],
    "local weight and bias": lambda run, ones: run(
        F.locally_connected1d_backward, *[ones(MANY, 1, 2)] * 2, ones(1, 2, 1, 1), ones(1, 2)
    )[1:],
    "windows that meet at the middle": lambda run, ones: run(F.col2im, ones(64 * 64, 64 * 64), (127, 127), (64, 64))[
        0, 63, 63
    ],
    "sum_pool2d": lambda run, ones: run(F.sum_pool2d, ones(1, 128, 32), (128, 32)),
    "sum_pool1d": lambda run, ones: run(F.sum_pool1d, ones(1, MANY), MANY),
    "sum_pool1d_backward": lambda run, ones: run(F.sum_pool1d_backward, ones(1, MANY), ones(1, 2 * MANY - 1), MANY, 1)[
        0
    ].max(),
    "avg_pool2d": lambda run, ones: run(F.avg_pool2d, ones(1, 128, 32), (128, 32)) * MANY,
    "adaptive_avg_pool1d": lambda run, ones: run(F.adaptive_avg_pool1d, ones(1, MANY), 1) * MANY,
    "lp_pool1d": lambda run, ones: run(F.lp_pool1d, ones(1, MANY), 2, MANY) ** 2,
    "interpolate_backward": lambda run, ones: [
        run(F.interpolate_backward, ones(1, 1, 2 * MANY), ones(1, 1, 2), 2 * MANY, mode=mode)[0]
        for mode in ("nearest", "linear", "area")
    ],
    "pad_backward": lambda run, ones: run(F.pad_backward, ones(1, MANY + 1), ones(1, 2), (MANY - 1, 0), "replicate")[0][
        0, 0
    ],
    "linear": lambda run, ones: run(F.linear, ones(1, MANY), ones(1, MANY)),
    "linear input": lambda run, ones: run(F.linear_backward, ones(1, MANY), ones(1, 1), ones(MANY, 1))[0],
    "linear weight and bias": lambda run, ones: run(
        F.linear_backward, ones(MANY, 1), ones(MANY, 1), ones(1, 1), ones(1)
    )[1:],
}


@pytest.mark.table(2 * len(SUMS))
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("label", SUMS)
def test_sums_of_ones_are_exact(backend: ArrayBackend, label: str, order: str, dtype: str) -> None:
    def ones(*shape: int) -> Any:
        return arranged(np.ones(shape, dtype_of(dtype)), order if len(shape) > 2 else "contiguous")

    results = SUMS[label](backend.run, ones)
    results = [result for result in results if result is not None] if isinstance(results, tuple | list) else [results]
    for result in results:
        assert result.dtype == dtype_of(dtype)
        assert np.all(result == MANY)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_of_a_window_may_be_larger_than_16_bits_hold(backend: ArrayBackend, dtype: str) -> None:
    largest = np.full((1, 4, 6), 60000, dtype_of(dtype))
    assert (backend.run(F.avg_pool2d, largest, 2) == largest[0, 0, 0]).all()
    assert (backend.run(F.adaptive_avg_pool2d, largest, (2, 4)) == largest[0, 0, 0]).all()
    (grad,) = backend.run(F.avg_pool1d_backward, largest[0], np.ones((4, 7), largest.dtype), 2, 1)
    assert (grad[:, 1:-1] == largest[0, 0, 0]).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gradients_that_meet_at_one_input_are_rounded_once(backend: ArrayBackend, dtype: str) -> None:
    """441 windows share one maximum, of odd gradients; 64 windows of 64 taps one input, with a large filter last."""
    x = np.zeros((1, 41, 41))
    x[0, 20, 20] = 1
    grad = np.full((1, 21, 21), 1.0009765625, dtype_of(dtype))
    (result,) = backend.run(F.max_pool2d_backward, grad, x.astype(grad.dtype), 21, 1)
    assert result[0, 20, 20] == np.float32(441 * np.float32(grad[0, 0, 0])).astype(grad.dtype)
    w = np.ones((1, 64, 1, 64), grad.dtype)
    w[0, 63, 0, 0] = MANY
    ones = np.ones((1, 1, 127), grad.dtype)
    grad_x, _, _ = backend.run(F.locally_connected1d_backward, ones[..., :64], ones, w)
    assert grad_x[0, 0, 63] == np.float32(MANY + 63).astype(grad.dtype) == MANY + 64
