"""Overhead of a call: no geometry is computed again once it is known, and the checks are the same as at first."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np
import pytest
from calls import entered
from strategies import IMPOSTORS

from gpucnn import functional
from gpucnn.backends import backend
from gpucnn.backends.replaying import REPLAYERS
from gpucnn.geometry import geometries, sizes
from gpucnn.geometry.caches import remembered

COMPUTING = (sizes.__file__, geometries.__file__)


def ones(*shape: int) -> np.ndarray[Any, Any]:
    return np.ones(shape, np.float32)


X, W, GRAD, POOLED = ones(1, 1, 8, 8), ones(1, 1, 3, 3), ones(1, 1, 6, 6), ones(1, 1, 4, 4)
ONE, TWICE = ones(1), ((1, 1), (1, 1))

# Calls whose geometry is looked up: they read no size again.
CALLS: dict[str, Callable[[], Any]] = {
    "conv2d": lambda: functional.conv2d(X, W),
    "conv2d, all arguments": lambda: functional.conv2d(X, W, ONE, (1, 1), TWICE, (1, 1), 1),
    "conv2d_backward": lambda: functional.conv2d_backward(GRAD, X, W),
    "conv_transpose2d": lambda: functional.conv_transpose2d(X, W, stride=2),
    "locally_connected2d": lambda: functional.locally_connected2d(X, ones(1, 6, 6, 1, 3, 3)),
    "max_pool2d": lambda: functional.max_pool2d(X, 2),
    "avg_pool2d": lambda: functional.avg_pool2d(X, 2),
    "avg_pool2d_backward": lambda: functional.avg_pool2d_backward(POOLED, X, 2),
    "adaptive_avg_pool2d": lambda: functional.adaptive_avg_pool2d(X, 4),
    "interpolate": lambda: functional.interpolate(X, scale_factor=2),
    "im2col": lambda: functional.im2col(X, 3),
    "col2im": lambda: functional.col2im(ones(1, 9, 36), 8, 3),
}


@pytest.mark.parametrize("case", CALLS)
def test_a_call_that_was_made_before_computes_no_geometry_again(case: str) -> None:
    """Neither are sizes computed from its arguments, nor these read."""
    CALLS[case]()
    steps = entered(CALLS[case])
    assert not {step for step in steps if step[0] in COMPUTING or step[1] == "integer"}


IMAGE, FILTERS = ones(2, 16, 14, 14), ones(16, 16, 3, 3)
IMAGES = ones(8, 16, 14, 14)  # lanes enough for depthwise convolution

# Functions and files that a call by NumPy enters when it was made before.
STEPS: dict[str, tuple[Callable[[], Any], int, int]] = {
    "conv2d": (lambda: functional.conv2d(IMAGE, FILTERS, padding=1), 29, 10),
    "depthwise": (lambda: functional.conv2d(IMAGES, FILTERS[:, :1], padding=1, groups=16), 30, 12),
    "max_pool2d": (lambda: functional.max_pool2d(IMAGE, 2), 29, 10),
    "avg_pool2d": (lambda: functional.avg_pool2d(IMAGE, 2), 29, 10),
}


@pytest.mark.parametrize("case", STEPS)
def test_a_call_that_was_made_before_takes_few_steps(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(REPLAYERS, np.ndarray, raising=False)  # of compiled kernels that other tests have used
    call, functions, files = STEPS[case]
    with backend("numpy"):
        call()
        steps = set(entered(call))
    assert len(steps) <= functions, sorted(steps)
    assert len({file for file, _ in steps}) <= files, sorted(steps)


# --- What is remembered, and for whom -----------------------------------------------------------------------------


class Two(IntEnum):
    STEPS = 2


class Pair(tuple[Any, ...]):
    """A tuple of another type, as torch.Size is."""


class Text(str):
    """A string of another type."""


@pytest.fixture
def asked() -> tuple[Callable[..., Any], list[Any]]:
    """A remembered function, and what it was asked."""
    seen = []

    @remembered
    def echo(*arguments: Any, **named: Any) -> Any:
        seen.append((arguments, named))
        if arguments and arguments[0] is None:
            raise ValueError("None")
        return arguments

    return echo, seen


PLAIN = [1, 2.5, True, "same", (), (1, 2), ((1, 2), (3, 4))]


@pytest.mark.parametrize("argument", PLAIN)
def test_what_is_plain_is_asked_once(asked: tuple[Callable[..., Any], list[Any]], argument: Any) -> None:
    echo, seen = asked
    assert echo("op", argument) is echo("op", argument)
    assert len(seen) == 1


OTHERS = [
    [1, 2], (1, True), (True,), (1.0, 2), (1, "2"), (1, None), ((1, 2), (3, True)), ((1, 2), [3, 4]),
    ((1, 2), (3, 4.0)), np.int64(1), (np.int64(1), 1), np.array([1, 2]), Two.STEPS, (Two.STEPS, 2), Pair((1, 2)),
    (Pair((1, 2)),), Text("same"), 1 + 0j, {1: 2},
]  # fmt: skip


@pytest.mark.parametrize("argument", OTHERS, ids=repr)
def test_what_is_not_plain_is_asked_each_time(asked: tuple[Callable[..., Any], list[Any]], argument: Any) -> None:
    echo, seen = asked
    for _ in range(2):
        echo("op", argument)
    assert len(seen) == 2
    assert all(arguments[1] is argument for arguments, _ in seen)


@pytest.mark.parametrize(("one", "other"), [(1, True), (1, 1.0), (0, False), (0.0, False), ("1", 1), ((1,), 1)])
def test_equal_is_not_the_same(asked: tuple[Callable[..., Any], list[Any]], one: Any, other: Any) -> None:
    echo, seen = asked
    for argument in (one, other, one, other):
        assert type(echo(argument)[0]) is type(argument)
    assert len(seen) == 2


def test_named_arguments_are_read_each_time(asked: tuple[Callable[..., Any], list[Any]]) -> None:
    echo, seen = asked
    assert echo("op", stride=1) == echo("op", stride=True) == ("op",)
    assert [named for _, named in seen] == [{"stride": 1}, {"stride": True}]


def test_what_was_refused_is_refused_again(asked: tuple[Callable[..., Any], list[Any]]) -> None:
    echo, seen = asked
    for _ in range(2):
        with pytest.raises(ValueError, match="None"):
            echo(None)
    assert len(seen) == 2


# By the names of their arguments, operations that take a 1 or (1, 1).
OPERATIONS: dict[str, Callable[..., Any]] = {
    "stride": lambda value: functional.conv2d(X, W, None, value),
    "padding": lambda value: functional.conv2d(X, W, None, 1, value),
    "dilation": lambda value: functional.conv2d(X, W, None, 1, 0, value),
    "transposed stride": lambda value: functional.conv_transpose2d(X, W, None, value),
    "local stride": lambda value: functional.locally_connected2d(X, ones(1, 6, 6, 1, 3, 3), None, value),
    "pooling stride": lambda value: functional.max_pool2d(X, 3, value),
    "pooling padding": lambda value: functional.avg_pool2d(X, 3, 1, value),
    "adaptive size": lambda value: functional.adaptive_avg_pool2d(X, value),
    "unpooling stride": lambda value: functional.max_unpool2d(ones(1, 1, 6, 6), np.zeros((1, 1, 6, 6), int), 3, value),
    "im2col stride": lambda value: functional.im2col(X, 3, 1, 0, value),
    "col2im stride": lambda value: functional.col2im(ones(1, 9, 36), 8, 3, 1, 0, value),
    "resampled size": lambda value: functional.interpolate(X, value),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("impostor", IMPOSTORS, ids=repr)
def test_an_equal_of_another_type_is_refused_after_a_call_too(operation: str, impostor: Any) -> None:
    call = OPERATIONS[operation]
    for honest in (1, (1, 1), [1, 1], np.int64(1), np.array([1, 1])):
        call(honest)
    with pytest.raises(TypeError, match="integer"):
        call(impostor)


@pytest.mark.parametrize("impostor", [(True, 1), [(1, 1), (1, True)], ((1, 1), (1.0, 1))])
def test_pairs_of_another_type_are_refused_after_a_call_too(impostor: Any) -> None:
    functional.conv2d(X, W, None, 1, TWICE)
    with pytest.raises(TypeError, match=r"padding is (True|1\.0), expected an integer or a"):
        functional.conv2d(X, W, None, 1, impostor)


def test_groups_and_flags_of_another_type_are_refused_after_a_call_too() -> None:
    functional.conv2d(X, W, groups=1)
    with pytest.raises(TypeError, match="groups is True, expected an integer"):
        functional.conv2d(X, W, groups=True)
    functional.max_pool2d(X, 3, 2, ceil_mode=True)
    with pytest.raises(TypeError, match="ceil_mode is 1, expected True or False"):
        functional.max_pool2d(X, 3, 2, ceil_mode=1)  # type: ignore[arg-type]
    functional.interpolate(X, 4, mode="bilinear", align_corners=True)
    with pytest.raises(TypeError, match="align_corners is 1, expected True or False"):
        functional.interpolate(X, 4, mode="bilinear", align_corners=1)  # type: ignore[arg-type]


def test_messages_name_the_operation_that_was_called() -> None:
    for name in ("conv2d", "conv2d_input"):
        call = {
            "conv2d": lambda: functional.conv2d(X, W, None, 0),
            "conv2d_input": lambda: functional.conv2d_input(X.shape, W, GRAD, 0),
        }[name]
        for _ in range(2):
            with pytest.raises(ValueError, match=f"^{name}: stride is 0, expected at least 1$"):
                call()
