"""Blocks of the norms on NumPy: of every size, on any number of threads, values near zero and far from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import reference_norms
from strategies import arranged, numbers
from tolerances import assert_close

import gpucnn.functional as F
from gpucnn.backends.numpy import normalization, threads

Array = np.ndarray[Any, Any]
Call = tuple[str, tuple[Any, ...], tuple[int, ...], str]

CALLS: list[Call] = [  # the norm, what comes between input and weight, the input's shape, its memory order
    ("batch_norm", (None, None), (5, 6, 21, 17), "contiguous"),
    ("batch_norm", (None, None), (5, 6, 21, 17), "channels_last"),
    ("batch_norm", (None, None), (9, 300, 3, 3), "contiguous"),  # short planes
    ("batch_norm", (None, None), (700, 11), "contiguous"),
    ("batch_norm", (None, None), (4, 6, 21, 17), "strided"),
    ("instance_norm", (None, None), (5, 6, 21, 17), "contiguous"),
    ("instance_norm", (None, None), (5, 6, 21, 17), "channels_last"),
    ("instance_norm", (None, None), (7, 40, 3, 3), "reversed"),
    ("group_norm", (3,), (5, 6, 21, 17), "contiguous"),
    ("group_norm", (3,), (5, 6, 21, 17), "channels_last"),
    ("group_norm", (3,), (50, 12), "contiguous"),
    ("layer_norm", ((300,),), (7, 19, 300), "contiguous"),
    ("layer_norm", ((30,),), (7, 190, 30), "offset"),
    ("layer_norm", ((30,),), (7, 190, 30), "strided"),
    ("layer_norm", ((6, 357),), (5, 6, 357), "contiguous"),
    ("layer_norm", ((12,),), (700, 12), "contiguous"),  # more rows of a block than are summed in one go
]
NAMES = [f"{name}-{'x'.join(map(str, shape))}-{order}" for name, _, shape, order in CALLS]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = threads.get_num_threads()
    threads.set_num_threads(2)
    yield
    threads.set_num_threads(before)


def results(call: Call, dtype: str = "float32", mean: float = 0.0, spread: float = 1.0) -> tuple[list[Any], list[Any]]:
    """Output, statistics and gradients of a call, and the reference's; means of rows and channels vary by `spread`."""
    name, middle, shape, order = call
    rng = np.random.default_rng(sum(shape))
    base = numbers(rng, shape, dtype) + spread * numbers(rng, (*shape[:2], *[1] * (len(shape) - 2)), dtype)
    x, grad = arranged((base + mean).astype(base.dtype), order), arranged(numbers(rng, shape, dtype), order)
    parameters = middle[0] if name == "layer_norm" else shape[1:2]
    weight, bias = numbers(rng, parameters, dtype), numbers(rng, parameters, dtype)
    training = (True,) if name in ("batch_norm", "instance_norm") else ()
    arguments = (*middle, weight, bias, *training)
    forward = getattr(F, name)(x, *arguments, return_statistics=True)
    backward = getattr(F, name + "_backward")(grad, x, *arguments)
    exact = getattr(reference_norms, name)(x, *arguments)[:3]
    if training:
        gradients = {"batch_norm": "batch_norm_backward_graph"}.get(name, name + "_backward")
        exact_gradients = getattr(reference_norms, gradients)(grad, x, *middle, weight, True)
    else:
        exact_gradients = getattr(reference_norms, name + "_backward")(grad, x, *middle, weight)
    return [*forward, *(g for g in backward if g is not None)], [*exact, *exact_gradients]


@pytest.mark.parametrize("call", CALLS, ids=NAMES)
@pytest.mark.parametrize("most", [1 << 7, 1 << 9, 1 << 11])
def test_blocks_of_every_size_give_the_same(
    monkeypatch: pytest.MonkeyPatch, two_threads: None, call: Call, most: int
) -> None:
    """Blocks of one statistic and of several; the same bits on one thread and on two."""
    monkeypatch.setattr(normalization, "BLOCK_VALUES", most)
    actual, expected = results(call, "float64")
    for array, wanted in zip(actual, expected, strict=True):
        assert_close(array, wanted, factor=10)
    threads.set_num_threads(1)
    assert [array.tobytes() for array in results(call, "float64")[0]] == [array.tobytes() for array in actual]


@pytest.mark.parametrize("call", CALLS, ids=NAMES)
@pytest.mark.parametrize(("mean", "factor"), [(0.0, 1.0), (4.0, 1.0), (1000.0, 30.0)])
def test_a_mean_far_from_zero_is_taken_away_first(
    monkeypatch: pytest.MonkeyPatch, call: Call, mean: float, factor: float
) -> None:
    """At 1000 the mean's own rounding is 3e-5 deviations, and all that is lost."""
    monkeypatch.setattr(normalization, "BLOCK_VALUES", 1 << 11)
    actual, expected = results(call, mean=mean)
    y, centre, rstd, *gradients = actual
    assert_close(rstd, expected[2])
    np.testing.assert_allclose(centre, expected[1], rtol=2e-7, atol=2e-7)
    for array, wanted in zip((y, *gradients), (expected[0], *expected[3:]), strict=True):
        assert_close(array, wanted, factor=factor)


@pytest.mark.parametrize("shape", [(8, 16, 32, 32), (4, 512, 7, 7)])
@pytest.mark.parametrize("mean", [0.0, 1.0, 3.0, 1000.0])
@pytest.mark.parametrize("name", ["batch_norm", "instance_norm", "group_norm", "layer_norm"])
def test_errors_are_at_most_twice_those_of_pytorch(torch: Any, name: str, mean: float, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(7)
    x, grad = (rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
    x += np.float32(mean)
    arguments: tuple[Any, ...] = {"group_norm": (4,), "layer_norm": (shape[1:],)}.get(name, (None, None))
    training: dict[str, Any] = {"batch_norm": {"training": True}}.get(name, {})
    tensors = [torch.from_numpy(array).double().requires_grad_() for array in (x, x)]
    peer = torch.from_numpy(x).requires_grad_()
    function = getattr(torch.nn.functional, name)
    exact_y = function(tensors[0], *arguments, **training)
    peer_y = function(peer, *arguments, **training)
    (exact_grad,) = torch.autograd.grad(exact_y, tensors[0], torch.from_numpy(grad).double())
    (peer_grad,) = torch.autograd.grad(peer_y, peer, torch.from_numpy(grad))
    y = getattr(F, name)(x, *arguments, **training)
    gx = getattr(F, name + "_backward")(grad, x, *arguments, **training)[0]

    def error(actual: Any, exact: Any) -> float:
        return float(np.sqrt(np.mean((np.asarray(actual) - exact.detach().numpy()) ** 2)))

    assert error(y, exact_y) <= 2 * error(peer_y.detach(), exact_y)
    assert error(gx, exact_grad) <= 2 * error(peer_grad, exact_grad)


def test_buffers_of_the_callers_ufuncs_keep_their_size() -> None:
    before = np.setbufsize(4096)
    F.batch_norm(np.ones((2, 3, 400), np.float32), np.zeros(3, np.float32), np.ones(3, np.float32))
    assert np.setbufsize(before) == 4096


def test_the_gradient_of_groups_of_one_value_is_zero() -> None:
    """Exactly, though weights and numbers round: each gradient is its own mean."""
    rng = np.random.default_rng(3)
    x, grad = (rng.standard_normal((9, 8)).astype(np.float32) for _ in range(2))
    gx = F.group_norm_backward(grad, x, 8, rng.standard_normal(8).astype(np.float32))[0]
    np.testing.assert_array_equal(gx, 0)
