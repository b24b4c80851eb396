"""Replayed calls of the compiled kernels: which ones there are, and what makes them others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from calls import CALLS, entered, fresh
from checked_replays import facts

import gpucnn
import gpucnn.functional as F
from gpucnn import backends
from gpucnn.backends import replaying

Array = np.ndarray[Any, Any]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[Any, Any]]:
    """The replays of calls by the compiled kernels, which compute within the test; none at first."""
    with backends.backend("compiled"):
        kept: dict[Any, Any] = {}
        monkeypatch.setattr(replaying.REPLAYERS[np.ndarray], "kept", kept)
        yield kept


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


X, W, B = numbers(2, 4, 6, 5), numbers(8, 4, 3, 3, seed=1), numbers(8, seed=2)
LAST = np.ascontiguousarray(X.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
DEEP = numbers(2, 32, 6, 5)
GRAD, GRAD_LAST = numbers(2, 4, 6, 5, seed=9), LAST[::-1].transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)
MANY, LONG = numbers(40_000, 4), numbers(3, 8300)
CHANNEL = [np.abs(numbers(4, seed=seed)) + 1 for seed in range(3, 7)]

REPLAYED: dict[str, Callable[[], Any]] = {
    "conv2d": lambda: F.conv2d(X, W, B, padding=1),
    "conv2d, one image": lambda: F.conv2d(X[0], W),
    "conv2d, channels last": lambda: F.conv2d(LAST, W, B, 2),
    "pointwise": lambda: F.conv2d(numbers(1, 4, 12, 12), W[:, :, :1, :1].copy()),
    "depthwise": lambda: F.conv2d(X, numbers(4, 1, 3, 3), CHANNEL[0], groups=4),
    "conv2d_activation": lambda: F.conv2d_activation(X, W, B, activation="relu"),
    "conv2d_activation of depthwise filters": lambda: F.conv2d_activation(
        X, numbers(4, 1, 3, 3), CHANNEL[0], groups=4, activation="relu6"
    ),
    "conv2d_backward": lambda: F.conv2d_backward(numbers(2, 8, 4, 3), DEEP, numbers(8, 32, 3, 3)),
    "conv2d_backward, stride": lambda: F.conv2d_backward(numbers(2, 8, 2, 2), DEEP, numbers(8, 32, 3, 3), None, 2),
    "conv_transpose2d": lambda: F.conv_transpose2d(DEEP, numbers(32, 32, 2, 2), stride=2),
    "dgrad by a fold": lambda: F.conv_transpose2d(X, numbers(4, 3, 2, 2), stride=2),
    "dgrad by a fold, channels last": lambda: F.conv_transpose2d(LAST, numbers(4, 3, 2, 2), B[:3].copy(), stride=2),
    "forward by a fold": lambda: F.conv2d(numbers(2, 16, 31, 31), numbers(4, 16, 5, 5), B[:4].copy(), padding=2),
    "pointwise dgrad": lambda: F.conv2d_input((1, 8, 12, 12), numbers(4, 8, 1, 1), numbers(1, 4, 12, 12)),
    "positions that no tap reaches": lambda: F.conv_transpose2d(DEEP, numbers(32, 32, 1, 1), stride=2),
    "positions that no tap reaches, bias": lambda: F.conv_transpose2d(
        DEEP, numbers(32, 8, 1, 1), B, stride=(2, 1), output_padding=(1, 0)
    ),
    "max_pool2d": lambda: F.max_pool2d(X, 2),
    "max_pool2d with indices": lambda: F.max_pool2d(LAST, 2, return_indices=True),
    "avg_pool2d": lambda: F.avg_pool2d(X, 3, 2, 1),
    "avg_pool2d_backward": lambda: F.avg_pool2d_backward(numbers(2, 4, 3, 2), X, 2),
    "batch_norm": lambda: F.batch_norm(X, *CHANNEL),
    "batch_norm without parameters": lambda: F.batch_norm(LAST, *CHANNEL[:2], activation="relu"),
    "batch_norm in training": lambda: F.batch_norm(X, *CHANNEL, training=True, return_statistics=True),
    "instance_norm": lambda: F.instance_norm(X, None, None, *CHANNEL[2:]),
    "instance_norm, channels last": lambda: F.instance_norm(LAST, *CHANNEL),
    "batch_norm_backward": lambda: F.batch_norm_backward(GRAD, X, None, None, *CHANNEL[2:], training=True),
    "batch_norm_backward, channels last": lambda: F.batch_norm_backward(
        GRAD_LAST, LAST, None, None, *CHANNEL[2:], training=True, activation="relu"
    ),
    "batch_norm_backward of short planes": lambda: F.batch_norm_backward(
        X[:, :, :2, :2].copy(), GRAD[:, :, :2, :2].copy(), None, None, *CHANNEL[2:], training=True
    ),
    "batch_norm_backward in two passes": lambda: F.batch_norm_backward(
        MANY[::-1].copy(), MANY, None, None, *CHANNEL[2:], training=True
    ),
    "instance_norm_backward": lambda: F.instance_norm_backward(GRAD, X, None, None, *CHANNEL[2:]),
    "layer_norm_backward": lambda: F.layer_norm_backward(GRAD, X, 5, numbers(5), numbers(5)),
    "layer_norm_backward of long rows": lambda: F.layer_norm_backward(LONG[::-1].copy(), LONG, 8300, *LONG[:2].copy()),
    "rms_norm_backward": lambda: F.rms_norm_backward(GRAD, X, 5, numbers(5), rstd=np.ones((2, 4, 6), np.float32)),
    "group_norm_backward": lambda: F.group_norm_backward(GRAD, X, 2, *CHANNEL[2:], needs=(True, False, False)),
    "layer_norm": lambda: F.layer_norm(X, 5, return_statistics=True),
    "group_norm": lambda: F.group_norm(X, 2, *CHANNEL[2:]),
    "bias_activation": lambda: F.bias_activation(X, CHANNEL[0], residual=X[::-1].copy(), activation="relu"),
    "interpolate": lambda: F.interpolate(X, 9, mode="bilinear", align_corners=False),
    "im2col": lambda: F.im2col(X, 3),
    "linear": lambda: F.linear(numbers(2, 128), numbers(64, 128)),
    "out": lambda: F.max_pool2d(X, 2, out=np.empty((2, 4, 3, 2), np.float32)),
    "out in another order": lambda: F.conv2d(X, W, out=np.empty((2, 4, 3, 8), np.float32).transpose(0, 3, 1, 2)),
    "out in steps": lambda: F.conv2d(X, W, out=np.empty((2, 8, 4, 6), np.float32)[..., ::2]),
    "out of a gradient": lambda: F.conv2d_weight(X, W.shape, numbers(2, 8, 4, 3), out=np.empty_like(W)),
    "out beside statistics": lambda: F.layer_norm(X, 5, return_statistics=True, out=np.empty_like(X)),
}  # fmt: skip

READ_EACH_TIME: dict[str, Callable[[], Any]] = {
    "max_pool2d_backward": lambda: F.max_pool2d_backward(
        numbers(2, 4, 3, 2), X, 2, indices=np.zeros((2, 4, 3, 2), int)
    ),
    "batch_norm_backward": lambda: F.batch_norm_backward(numbers(2, 4, 6, 5, seed=9), X, *CHANNEL),
    "by NumPy": lambda: _by("direct", lambda: F.conv2d(X, W)),
    "linear by BLAS": lambda: F.linear(numbers(2, 3), numbers(4, 3)),
    "relu": lambda: F.relu(X),
    "integers": lambda: F.conv2d(X.astype(np.int64), W.astype(np.int64)),
    "running statistics of 16 bits": lambda: F.batch_norm(
        X.astype(np.float16), *[array.astype(np.float16) for array in CHANNEL[:2]], training=True
    ),
    "16 bits": lambda: F.conv2d(X.astype(np.float16), W.astype(np.float16)),
    "elements between whole steps": lambda: F.max_pool2d(_shifted(X), 2),
    "nothing": lambda: F.max_pool2d(X[:0], 2),
}


def _by(name: str, call: Callable[[], Any]) -> Any:
    with gpucnn.algorithm(name):
        return call()


def _shifted(x: Array) -> Array:
    """A copy whose elements are not at multiples of their size."""
    buffer = np.empty(x.nbytes + 1, np.uint8)
    shifted: Array = np.ndarray(x.shape, x.dtype, buffer, 1)
    shifted[...] = x
    return shifted


@pytest.mark.table(100)
@pytest.mark.parametrize("case", REPLAYED)
def test_a_call_of_kernels_alone_is_replayed(case: str, kept: dict[Any, Any]) -> None:
    first = facts(REPLAYED[case]())
    assert [replay is not None for replay in kept.values()] == [True]
    assert facts(REPLAYED[case]()) == first
    assert len(kept) == 1


@pytest.mark.table(100)
@pytest.mark.parametrize("case", READ_EACH_TIME)
def test_a_call_that_numpy_has_a_part_in_is_read_each_time(case: str, kept: dict[Any, Any]) -> None:
    first = facts(READ_EACH_TIME[case]())
    assert not any(kept.values())
    assert facts(READ_EACH_TIME[case]()) == first


@pytest.mark.parametrize("name", CALLS)
def test_a_replay_is_of_its_own_arrays(name: str, kept: dict[Any, Any]) -> None:
    """Of each operation: other numbers give the bits that they give in a call that is read."""

    def result(change: float) -> Any:
        given = fresh(name)
        for key in {"input", "weight", "grad_output"} & given.keys():
            given[key] = given[key].astype(np.float32) * np.float32(change)
        given = {
            key: v.astype(np.float32) if getattr(v, "dtype", None) == np.float64 else v for key, v in given.items()
        }
        return facts(getattr(F, name)(**given))

    expected = []
    for change in (1, -3):
        kept.clear()
        expected.append(result(change))
    assert [result(change) for change in (1, -3)] == expected


def test_what_a_replay_depends_on_makes_another_one(kept: dict[Any, Any]) -> None:
    strided = np.zeros((2, 4, 12, 5), np.float32)[:, :, ::2]
    calls: list[Callable[[], Any]] = [
        lambda: F.max_pool2d(X, 2),
        lambda: F.max_pool2d(X[:1].copy(), 2),
        lambda: F.max_pool2d(LAST, 2),
        lambda: F.max_pool2d(strided, 2),
        lambda: F.max_pool2d(X.astype(np.float64), 2),
        lambda: F.max_pool2d(X, 3),
        lambda: F.max_pool2d(X, (2, 2)),
        lambda: F.max_pool2d(X, kernel_size=2),
        lambda: F.avg_pool2d(X, 2),
        lambda: _by("implicit_gemm", lambda: F.max_pool2d(X, 2)),
    ]
    for count, call in enumerate(calls, 1):
        call()
        assert len(kept) == count
    with backends.backend("numpy"):  # whose calls are no replays
        F.max_pool2d(X, 2)
    assert len(kept) == len(calls)
    assert None not in kept.values()


def test_a_part_of_one_array_as_another_argument_is_read_each_time(kept: dict[Any, Any]) -> None:
    """In a launch of a recorded call it would be either of the two."""
    both = numbers(3, 4, 6, 5)
    for _ in range(2):
        y = F.conv2d(both[:2], both[1:, :, :3, :3])
        assert not kept
    assert facts(F.conv2d(both[:2].copy(), both[1:, :, :3, :3].copy())) == facts(y)


def test_a_replay_writes_to_the_out_of_its_call(kept: dict[Any, Any]) -> None:
    x, expected = numbers(3, 4, 6, 5), F.max_pool2d(numbers(3, 4, 6, 5), 2)
    for change in (1, 3, 2):
        y = np.full(expected.shape, np.nan, np.float32)
        assert F.max_pool2d(x * np.float32(change), 2, out=y) is y
        np.testing.assert_array_equal(y, expected * change)


def test_an_out_that_shares_memory_is_looked_at_each_time(kept: dict[Any, Any]) -> None:
    """Refused where an element is shared, also after calls that were replayed; computed where none is."""
    x = numbers(2, 4, 6, 5)
    for _ in range(2):
        y = F.bias_activation(x, out=np.empty_like(x), activation="relu")
    assert [replay is not None for replay in kept.values()] == [True]
    for shared in (x, x[::1]):
        before = x.copy()
        with pytest.raises(ValueError, match="shares memory"):
            F.bias_activation(x, out=shared, activation="relu")
        np.testing.assert_array_equal(x, before)
    both = np.zeros((4, 4, 6, 5), np.float32)
    both[::2] = x
    for _ in range(3):
        F.bias_activation(both[::2], out=both[1::2], activation="relu")
        np.testing.assert_array_equal(both[1::2], y)


def test_an_out_between_the_images_of_an_argument_is_looked_at_once(kept: dict[Any, Any]) -> None:
    """As on a GPU: at a distance at which the operation accepted it, a replay serves."""
    images, both = numbers(4, 4, 6, 5), np.zeros((4, 4, 6, 5), np.float32)
    expected = np.maximum(images[::2], 0)
    F.bias_activation(images[::2], out=both[1::2], activation="relu")
    (replay,) = kept.values()
    assert replay is not None
    both[::2] = images[::2]
    for serves in (False, True):
        both[1::2] = np.nan
        assert (replay([both[::2], both[1::2]]) is not NotImplemented) == serves
        F.bias_activation(both[::2], out=both[1::2], activation="relu")
        np.testing.assert_array_equal(both[1::2], expected)
    np.testing.assert_array_equal(both[::2], images[::2])


def test_indices_are_checked_each_time(kept: dict[Any, Any]) -> None:
    grad, indices = numbers(2, 4, 3, 2), np.zeros((2, 4, 3, 2), int)
    for _ in range(2):
        F.max_pool2d_backward(grad, X, 2, indices=indices)
    indices[0] = 30
    with pytest.raises(ValueError, match="positions in the plane"):
        F.max_pool2d_backward(grad, X, 2, indices=indices)


@pytest.mark.parametrize("norm", [lambda *given: F.batch_norm(*given, training=True), F.instance_norm])
def test_running_statistics_move_each_time(norm: Callable[..., Any], kept: dict[Any, Any]) -> None:
    x, expected = numbers(5, 4, 6, 5), [array.copy() for array in CHANNEL[:2]]
    running = [np.stack([array] * 2, -1)[:, 1] for array in expected]  # columns of tables
    for change in (1, 2, 3):
        norm(x * np.float32(change), *running)
        with backends.backend("numpy"):
            norm(x * np.float32(change), *expected)
    np.testing.assert_allclose(running, expected, rtol=1e-6)
    assert [replay is not None for replay in kept.values()] == [True]


@pytest.mark.parametrize("at", [0, 1])
def test_running_statistics_that_became_read_only_are_refused(at: int, kept: dict[Any, Any]) -> None:
    running = [array.copy() for array in CHANNEL[:2]]
    for _ in range(2):
        F.batch_norm(X, *running, training=True)
    before = [array.copy() for array in running]
    running[at].flags.writeable = False
    for _ in range(2):
        with pytest.raises(ValueError, match="is read-only"):
            F.batch_norm(X, *running, training=True)
    np.testing.assert_array_equal(running, before)


@pytest.mark.parametrize("impostor", [1, 0, None, "yes"])
def test_an_equal_of_true_is_refused_after_a_replayed_call(impostor: Any, kept: dict[Any, Any]) -> None:
    for training in (True, False):
        F.batch_norm(X, *CHANNEL, training)
    with pytest.raises(TypeError, match="training"):
        F.batch_norm(X, *CHANNEL, impostor)


def test_what_is_not_finite_is_found_each_time(kept: dict[Any, Any]) -> None:
    """Winograd's transforms, and gradients of small groups, spread it: those results are computed anew."""
    x, w = numbers(1, 32, 16, 16), numbers(32, 32, 3, 3)
    grouped = numbers(16, 2, 3, 3)
    for value in (1.0, np.inf):
        x[0, 3, 5, 5] = value
        given = (
            _by("winograd", lambda: F.conv2d(x, w)),
            F.conv2d_weight(x, grouped.shape, numbers(1, 16, 14, 14), groups=16),
        )
    with gpucnn.algorithm("direct"):
        expected = F.conv2d(x, w), F.conv2d_weight(x, grouped.shape, numbers(1, 16, 14, 14), groups=16)
    for one, other in zip(given, expected, strict=True):
        np.testing.assert_array_equal(np.isfinite(one), np.isfinite(other))


def test_results_are_new_arrays_that_can_be_written_to(kept: dict[Any, Any]) -> None:
    results = [F.conv2d(X, W, B) for _ in range(3)]
    results[1][...] = 0
    assert facts(results[0]) == facts(results[2])
    assert not any(np.may_share_memory(results[1], other) for other in (results[0], results[2], X))


def test_threads_have_buffers_of_their_own(kept: dict[Any, Any]) -> None:
    images, w = [numbers(4, 16, 12, 12, seed=seed) for seed in range(4)], numbers(16, 1, 3, 3)
    expected = [facts(F.conv2d(x, w, groups=16)) for x in images]

    def repeated(x: Array) -> list[Any]:
        with backends.backend("compiled"):
            return [facts(F.conv2d(x, w, groups=16)) for _ in range(50)]

    with ThreadPoolExecutor(4) as threads:
        for found, each in zip(threads.map(repeated, images), expected, strict=True):
            assert found == [each] * 50


def test_the_number_of_threads_is_that_of_each_call(kept: dict[Any, Any]) -> None:
    x, w = numbers(4, 32, 20, 20), numbers(32, 32, 3, 3)
    before, found = gpucnn.get_num_threads(), []
    for threads in (1, 2, 1):
        gpucnn.set_num_threads(threads)
        found.append(_by("implicit_gemm", lambda: facts(F.conv2d(x, w))))
    gpucnn.set_num_threads(before)
    assert found == [found[0]] * 3


# --- Steps of a call ----------------------------------------------------------------------------------------------

MOST = {"functions": 15, "files": 8}
"""Of gpucnn that a replayed call enters."""


@pytest.mark.parametrize("case", ["conv2d", "depthwise", "max_pool2d", "batch_norm", "bias_activation"])
def test_a_replayed_call_takes_few_steps(case: str, kept: dict[Any, Any]) -> None:
    REPLAYED[case]()
    steps = set(entered(REPLAYED[case]))
    assert len(steps) <= MOST["functions"], sorted(steps)
    assert len({file for file, _ in steps}) <= MOST["files"], sorted(steps)
