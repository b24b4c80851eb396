"""Norms with a residual and an activation in the same pass, against the operations one after the other, to the bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend
from families.norms import KINDS, SLOPE, norm
from properties import Case, check_pytorch

import gpucnn.functional as F

Array = np.ndarray[Any, Any]

FINISH = ("residual", "activation", "negative_slope")  # the arguments of one
FINISHES = ((True, "relu"), (True, None), (False, "leaky_relu"), (True, "leaky_relu"), (False, "relu"), (True, "none"))


def norm_of(kind: str, dtype: str = "float64", order: str = "contiguous", **others: Any) -> Case:
    return norm(kind, (3, 4, 5, 4), {"layer": (5, 4), "rms": (5, 4), "group": 2}.get(kind), dtype, order, **others)


def activated(y: Array, activation: str | None) -> Array:
    if activation in (None, "none"):
        return y
    return F.relu(y) if activation == "relu" else F.leaky_relu(y, SLOPE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("finish", FINISHES)
@pytest.mark.parametrize("order", ["contiguous", "channels_last", "strided"])
def test_forward_is_norm_then_sum_then_activation_to_the_bit(
    backend: ArrayBackend, kind: str, finish: tuple[bool, str | None], order: str
) -> None:
    case = norm_of(kind, "float32", order, finish=finish)
    residual = case.arrays.get("residual")
    plain = {key: value for key, value in case.arguments.items() if key not in FINISH}
    y = backend.run(case.forward, **plain)
    fused = backend.run(case.forward, **case.arguments)
    np.testing.assert_array_equal(fused, activated(y if residual is None else y + residual, finish[1]), strict=True)


@pytest.mark.parametrize("kind", KINDS)
def test_results_and_gradients_are_those_of_pytorch(backend: ArrayBackend, torch: Any, kind: str) -> None:
    """Within the tolerance itself; drawn calls can be ill-conditioned."""
    case = norm_of(kind, finish=(True, "relu"))
    check_pytorch(backend, torch, replace(case, factor=1.0, gradient_factor=1.0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_gradients_are_those_of_the_activation_and_then_of_the_norm_to_the_bit(
    backend: ArrayBackend, kind: str, dtype: str, activation: str
) -> None:
    """In 16 bits too, where parameters in float32 show that PyTorch rounds the gradient between two operations."""
    case = norm_of(kind, dtype, parameter_dtype="float32", finish=(True, activation))
    plain = {key: value for key, value in case.arguments.items() if key not in FINISH}
    wide = {key: case.arguments[key].astype("float32") for key in ("input", "residual")}
    before = case.forward(**plain | {"input": wide["input"]}) + wide["residual"]
    below = F.leaky_relu_backward(case.grad, -np.ones_like(case.grad), SLOPE if activation == "leaky_relu" else 0.0)[0]
    grad = np.where(before > 0, case.grad, below)
    expected = backend.run(case.backward, grad, **plain)
    *found, of_residual = backend.run(case.backward, case.grad, **case.arguments)
    np.testing.assert_array_equal(of_residual, grad, strict=True)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_array_equal(one, other, strict=True)


@pytest.mark.parametrize("kind", KINDS)
def test_without_an_activation_the_residuals_gradient_is_a_copy(backend: ArrayBackend, kind: str) -> None:
    case = norm_of(kind, finish=(True, None))
    arrays = {key: None if array is None else backend.asarray(array) for key, array in case.arrays.items()}
    grad = backend.asarray(case.grad)
    found = case.backward(grad, **arrays, **case.options)[-1]
    found += 1
    np.testing.assert_array_equal(backend.asnumpy(grad), case.grad)
    np.testing.assert_array_equal(backend.asnumpy(found), case.grad + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_results_do_not_go_to_the_residual(backend: ArrayBackend, kind: str) -> None:
    case = norm_of(kind, finish=(True, "relu"))
    arrays = {key: None if array is None else backend.asarray(array) for key, array in case.arrays.items()}
    with pytest.raises(ValueError, match="out shares memory with an argument"):
        case.forward(**arrays, **case.options, out=arrays["residual"])


@pytest.mark.parametrize("kind", KINDS)
def test_relu6_ends_at_6(backend: ArrayBackend, kind: str) -> None:
    """In both directions: it is a clip after the norm and residual."""
    case = norm_of(kind, finish=(True, "relu6"))
    bare = case.arguments | {name: None for name in ("weight", "bias") if name in case.arguments}
    before = backend.run(case.forward, **bare | {"activation": None})
    scale = 6 / np.sort(np.abs(before).ravel())[before.size // 2]  # about half of the values are beyond 6
    arguments = bare | {"residual": (case.arguments["residual"] * scale).astype(case.grad.dtype)}
    plain = backend.run(case.forward, **arguments | {"activation": None})
    np.testing.assert_array_equal(backend.run(case.forward, **arguments), np.clip(plain, 0, 6))
    kept = np.where((plain > 0) & (plain < 6), case.grad, 0).astype(case.grad.dtype)
    expected = backend.run(case.backward, kept, **arguments | {"activation": None})
    for one, other in zip(backend.run(case.backward, case.grad, **arguments), expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_relu6_has_no_gradient_at_its_ends(backend: ArrayBackend, kind: str) -> None:
    case = norm_of(kind, finish=(True, "relu6"))
    zeros = {name: np.zeros_like(case.arguments[name]) for name in ("input", "running_mean") if name in case.arguments}
    ends = np.resize([0.0, 3.0, 6.0, 7.0], case.grad.shape)
    arguments = case.arguments | zeros | {"residual": ends}
    arguments |= {name: None for name in ("weight", "bias") if name in arguments}
    np.testing.assert_array_equal(backend.run(case.forward, **arguments | {"activation": None}), ends)
    kept = np.where(ends == 3, case.grad, 0)
    expected = backend.run(case.backward, kept, **arguments | {"activation": None})
    for one, other in zip(backend.run(case.backward, case.grad, **arguments), expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_nan_stays(backend: ArrayBackend, activation: str) -> None:
    case = norm_of("batch_kept", finish=(True, activation))
    residual = case.arrays["residual"]
    assert residual is not None
    residual[0, 0, 0, 0] = np.nan
    y = backend.run(case.forward, **case.arguments)
    assert np.isnan(y[0, 0, 0, 0])
    assert np.isnan(y).sum() == 1
