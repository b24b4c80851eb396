"""cuDNN's pooling against naive loops: every mode, windows that overhang, and what is refused."""

from __future__ import annotations

from math import inf, prod
from typing import Any

import numpy as np
import pytest
import reference
from array_backends import ArrayBackend
from covering import Covering, coverings
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses
from sample import examples
from strategies import ORDERS, arranged, numbers
from tolerances import assert_close

from gpucnn.compat import cudnn

Array = np.ndarray[Any, Any]
MAX, INCLUDE, EXCLUDE, MAX_DETERMINISTIC = range(4)
MODES = [MAX, INCLUDE, EXCLUDE, MAX_DETERMINISTIC]
DTYPES = ["float16", "float32", "float64"]


def expected_of(x: Array, gy: Array, case: Covering, mode: int) -> tuple[Array, Array]:
    """The pooling and its gradient."""
    ones = (1,) * case.rank
    taps = case.kernel, case.stride, [(p, 0) for p in case.pad], ones

    def windows() -> Any:
        return reference.pool_windows(case.sizes, case.outs, *taps)

    if mode in (MAX, MAX_DETERMINISTIC):
        y, indices = reference.max_over(x, case.outs, windows())
        return y, reference.max_pool_backward(gy, indices, x.shape)
    divisors = prod(case.kernel) if mode == INCLUDE else reference.count_over(case.outs, windows())
    y = reference.sum_over(x, case.outs, windows()) / divisors
    return y, reference.spread_over(reference.wide(gy) / divisors, case.sizes, windows())


@pytest.mark.parametrize("mode", MODES)
@examples(60)
@given(
    case=coverings(pools=True),
    batch=st.integers(0, 2),
    dtype=st.sampled_from(DTYPES),
    orders=st.tuples(*[st.sampled_from(ORDERS)] * 3),
)
def test_forward_and_backward(
    backend: ArrayBackend, mode: int, case: Covering, batch: int, dtype: str, orders: tuple[str, ...]
) -> None:
    rng = np.random.default_rng(3)
    x = numbers(rng, (batch, 2, *case.sizes), dtype)
    gy = numbers(rng, (batch, 2, *case.outs), dtype)
    y, gx = expected_of(x, gy, case, mode)
    window = case.kernel, case.stride, case.pad, mode
    taken = backend.asarray(arranged(x, orders[0]))
    found = backend.asarray(arranged(np.full_like(gy, np.nan), orders[1]))
    assert cudnn.pooling_forward(taken, found, *window) is found
    assert_close(backend.asnumpy(found), y, dtype)
    grad = cudnn.pooling_backward(taken, found, backend.asarray(arranged(gy, orders[2])), *window)
    assert_close(backend.asnumpy(grad), gx, dtype)


@pytest.mark.parametrize(("mode", "value"), [(MAX, -inf), (INCLUDE, 0), (EXCLUDE, 0)])
def test_a_window_past_the_image(backend: ArrayBackend, mode: int, value: float) -> None:
    """Three positions with one of padding at both ends: the third window of two begins after them."""
    x = backend.asarray(np.array([[[1.0, 2.0, 3.0]]]))
    y = backend.asarray(np.full((1, 1, 3), np.nan))
    cudnn.pooling_forward(x, y, (2,), (2,), (1,), mode)
    expected = {MAX: [1, 3], INCLUDE: [0.5, 2.5], EXCLUDE: [1, 2.5]}[mode]
    np.testing.assert_array_equal(backend.asnumpy(y)[0, 0], [*expected, value])
    gx = cudnn.pooling_backward(x, y, backend.asarray(np.array([[[1.0, 2.0, np.nan]]])), (2,), (2,), (1,), mode)
    np.testing.assert_array_equal(
        backend.asnumpy(gx)[0, 0], {MAX: [1, 0, 2], INCLUDE: [0.5, 1, 1], EXCLUDE: [1, 1, 1]}[mode]
    )


def test_nan_propagates_and_the_first_of_equal_maxima_gets_the_gradient(backend: ArrayBackend) -> None:
    x = backend.asarray(np.array([[[np.nan, 2.0, 3.0, 3.0]]]))
    y = backend.asarray(np.empty((1, 1, 2)))
    cudnn.pooling_forward(x, y, (2,), (2,), (0,), MAX)
    np.testing.assert_array_equal(backend.asnumpy(y)[0, 0], [np.nan, 3])
    gx = cudnn.pooling_backward(x, y, backend.asarray(np.array([[[1.0, 2.0]]])), (2,), (2,), (0,), MAX)
    np.testing.assert_array_equal(backend.asnumpy(gx)[0, 0], [1, 0, 2, 0])


def forward(**changed: Any) -> Any:
    given: dict[str, Any] = {
        "x": np.ones((2, 3, 5, 5)), "y": np.ones((2, 3, 2, 2)), "ksize": (2, 2), "stride": (2, 2), "pad": (0, 0),
        "mode": MAX,
    }  # fmt: skip
    return cudnn.pooling_forward(**{**given, **changed})


test_wrong_values = refuses(
    ValueError,
    (
        "pooling_forward: mode is 4, expected 0 (CUDNN_POOLING_MAX), 1 (CUDNN_POOLING_AVERAGE_COUNT_INCLUDE_PADDING), "
        "2 (CUDNN_POOLING_AVERAGE_COUNT_EXCLUDE_PADDING), 3 (CUDNN_POOLING_MAX_DETERMINISTIC)",
        lambda: forward(mode=4),
    ),
    ("pooling_forward: x has 2 dimensions, expected 3 to 5 (N, C, *space)", lambda: forward(x=np.ones((2, 3)))),
    ("pooling_forward: y has 3 dimensions, expected 4, as x", lambda: forward(y=np.ones((2, 3, 2)))),
    ("pooling_forward: ksize has 1 values, expected 2", lambda: forward(ksize=(2,))),
    ("pooling_forward: stride is 0, expected at least 1", lambda: forward(stride=(0, 1))),
    (
        "pooling_forward: y has size 4 along spatial axis 0, expected 2 or, with a window that overhangs, 3",
        lambda: forward(y=np.ones((2, 3, 4, 2))),
    ),
    (
        "pooling_forward: y has shape (2, 1, 2, 2), expected (N, C, *out) = (2, 3, 2, 2)",
        lambda: forward(y=np.ones((2, 1, 2, 2))),
    ),
    (
        "pooling_forward: pad is (2, 0), expected less than the window, (2, 2)",
        lambda: forward(pad=(2, 0), y=np.ones((2, 3, 4, 2))),
    ),
    (
        "pooling_backward: gy has shape (2, 3, 2, 1), expected that of y, (2, 3, 2, 2)",
        lambda: cudnn.pooling_backward(
            np.ones((2, 3, 4, 4)), np.ones((2, 3, 2, 2)), np.ones((2, 3, 2, 1)), (2, 2), (2, 2), (0, 0), MAX
        ),
    ),
)

test_wrong_types = refuses(
    TypeError,
    (
        "pooling_forward: x has dtype int64, expected float16, float32, float64",
        lambda: forward(x=np.ones((2, 3, 5, 5), np.int64)),
    ),
    (
        "pooling_forward: x has dtype float64 and y float32, expected one dtype for all",
        lambda: forward(y=np.ones((2, 3, 2, 2), np.float32)),
    ),
    ("pooling_forward: y is None, expected an array", lambda: forward(y=None)),
    ("pooling_forward: pad is 0.5, expected an integer or 2 of them", lambda: forward(pad=0.5)),
)
