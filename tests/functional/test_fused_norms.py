"""Norms with a residual and an activation in the same pass, against the operations one after the other and PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend
from hypothesis import given
from hypothesis import strategies as st
from reference import finite_difference
from sample import examples
from strategies import FLOATS, arranged, dtype_of, numbers
from tolerances import assert_close

import gpucnn.functional as F

Array = np.ndarray[Any, Any]

NORMS = ("batch_norm", "batch_norm, kept", "instance_norm", "instance_norm, kept", "layer_norm", "group_norm")
FINISHES = ((True, "relu"), (True, None), (False, "leaky_relu"), (True, "leaky_relu"), (False, "relu"), (True, "none"))
SLOPE = 0.2
SHAPE = (3, 4, 5, 4)


class Norm:
    """One norm of an image, and what follows it."""

    def __init__(self, kind: str, dtype: str = "float64", order: str = "contiguous", seed: int = 1) -> None:
        rng = np.random.default_rng(seed)
        name, _, kept = kind.partition(", ")
        self.name, self.kept = name, bool(kept)
        self.x, self.residual, self.grad = (arranged(numbers(rng, SHAPE, dtype), order) for _ in range(3))
        parameters = SHAPE[2:] if name == "layer_norm" else SHAPE[1:2]
        self.weight, self.bias = (numbers(rng, parameters, dtype) for _ in range(2))
        self.running = (numbers(rng, SHAPE[1:2], dtype), abs(numbers(rng, SHAPE[1:2], dtype)) + dtype_of(dtype).type(1))

    def arguments(self, x: Any = None, weight: Any = None, bias: Any = None) -> tuple[Any, ...]:
        """Those of the norm; others in place of its arrays."""
        x, weight, bias = (
            own if other is None else other
            for own, other in zip((self.x, self.weight, self.bias), (x, weight, bias), strict=True)
        )
        if self.name in ("layer_norm", "group_norm"):
            return x, 2 if self.name == "group_norm" else SHAPE[2:], weight, bias
        running = self.running if self.kept else (None, None)
        return x, *running, weight, bias, not self.kept

    def wide(self) -> Norm:
        """The same in float64."""
        other = Norm(", ".join((self.name, "kept")[: 1 + self.kept]))
        for name in ("x", "residual", "grad", "weight", "bias"):
            setattr(other, name, getattr(self, name).astype(np.float64))
        other.running = (self.running[0].astype(np.float64), self.running[1].astype(np.float64))
        return other

    def run(self, backend: ArrayBackend, *moved: Any, **named: Any) -> Any:
        """The forward; `moved` are input, weight and bias in place of its own."""
        return backend.run(getattr(F, self.name), *self.arguments(*moved), **named)

    def backward(self, backend: ArrayBackend, grad: Array, **named: Any) -> Any:
        return backend.run(getattr(F, f"{self.name}_backward"), grad, *self.arguments(), **named)


def activated(y: Array, activation: str | None) -> Array:
    if activation in (None, "none"):
        return y
    return F.relu(y) if activation == "relu" else F.leaky_relu(y, SLOPE)


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize(("has_residual", "activation"), FINISHES)
@pytest.mark.parametrize("order", ["contiguous", "channels_last", "strided"])
def test_forward_is_norm_then_sum_then_activation_to_the_bit(
    backend: ArrayBackend, kind: str, has_residual: bool, activation: str | None, order: str
) -> None:
    norm = Norm(kind, "float32", order)
    residual = norm.residual if has_residual else None
    y = norm.run(backend)
    expected = activated(y if residual is None else y + residual, activation)
    given = {"residual": residual, "activation": activation, "negative_slope": SLOPE}
    fused = norm.run(backend, **given)
    assert fused.dtype == norm.x.dtype
    np.testing.assert_array_equal(fused, expected)


def upstream(norm: Norm, before: Array) -> Array:
    """The gradient by the output, 0 where the sign of what the activation takes is one of rounding."""
    return np.where(abs(before) < 0.05, norm.grad.dtype.type(0), norm.grad)


@pytest.mark.parametrize("kind", NORMS)
@examples(20)
@given(
    dtype=st.sampled_from(FLOATS),
    order=st.sampled_from(["contiguous", "channels_last", "strided"]),
    finish=st.sampled_from(FINISHES),
    seed=st.integers(0, 99),
)
def test_results_and_gradients_are_those_of_one_after_the_other_in_float64(
    backend: ArrayBackend, kind: str, dtype: str, order: str, finish: tuple[bool, str | None], seed: int
) -> None:
    (has_residual, activation), norm = finish, Norm(kind, dtype, order, seed)
    wide = norm.wide()
    y, _, rstd = getattr(F, wide.name)(*wide.arguments(), return_statistics=True)
    before = y + wide.residual if has_residual else y
    grad = upstream(norm, before)
    named = {"residual": norm.residual if has_residual else None, "activation": activation, "negative_slope": SLOPE}
    factor = 4 * max(1.0, float(rstd.max())) ** 2
    assert_close(norm.run(backend, **named), activated(before, activation), norm.x.dtype, factor)
    slope = {"relu": 0.0, "leaky_relu": SLOPE}.get(activation or "", 1.0)
    through = np.where(before > 0, 1.0, slope) * grad.astype(np.float64)
    expected = getattr(F, f"{wide.name}_backward")(through, *wide.arguments())
    grads = norm.backward(backend, grad, **named)
    assert len(grads) == len(expected) + has_residual
    for found, right in zip(grads, (*expected, *([through] if has_residual else [])), strict=True):
        assert (found is None) == (right is None)
        if found is not None:
            assert_close(found, right, norm.x.dtype, factor)


@pytest.mark.table(2)
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", None])
def test_gradients_are_those_of_finite_differences(backend: ArrayBackend, kind: str, activation: str | None) -> None:
    norm = Norm(kind)
    options: dict[str, Any] = {"activation": activation, "negative_slope": SLOPE}
    grad = upstream(norm, norm.run(backend, residual=norm.residual))
    grads = [g for g in norm.backward(backend, grad, residual=norm.residual, **options) if g is not None]
    names = ("x", "weight", "bias", "residual")
    for name, found in zip(names, grads, strict=True):

        def function(moved: Array, name: str = name) -> Array:
            given = {each: getattr(norm, each) for each in names} | {name: moved}
            return norm.run(backend, given["x"], given["weight"], given["bias"], residual=given["residual"], **options)

        if backend.name == "numpy" or name == "residual":
            expected = finite_difference(function, getattr(norm, name), grad, eps=1e-6)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", NORMS)
def test_results_and_gradients_are_those_of_pytorch(backend: ArrayBackend, torch: Any, kind: str) -> None:
    norm = Norm(kind)
    x, weight, bias, residual = (
        torch.from_numpy(array.copy()).requires_grad_() for array in (norm.x, norm.weight, norm.bias, norm.residual)
    )
    moved = [torch.from_numpy(one) if isinstance(one, np.ndarray) else one for one in norm.arguments(x, weight, bias)]
    y = torch.relu(getattr(torch.nn.functional, norm.name)(*moved) + residual)
    y.backward(torch.from_numpy(norm.grad))
    named = {"residual": norm.residual, "activation": "relu"}
    assert_close(norm.run(backend, **named), y.detach().numpy())
    found = [grad for grad in norm.backward(backend, norm.grad, **named) if grad is not None]
    for grad, leaf in zip(found, (x, weight, bias, residual), strict=True):
        assert_close(grad, leaf.grad.numpy())


@pytest.mark.parametrize("kind", NORMS)
def test_fewer_gradients_and_statistics_handed_over_give_the_same_bits(backend: ArrayBackend, kind: str) -> None:
    norm = Norm(kind, "float32")
    named: dict[str, Any] = {"residual": norm.residual, "activation": "leaky_relu"}
    grads = norm.backward(backend, norm.grad, **named)
    _, mean, rstd = norm.run(backend, return_statistics=True, **named)
    for wanted in range(len(grads)):
        needs = [position == wanted for position in range(len(grads))]
        some = norm.backward(backend, norm.grad, needs=needs, mean=mean, rstd=rstd, **named)
        for found, right, need in zip(some, grads, needs, strict=True):
            if need and right is not None:
                np.testing.assert_array_equal(found, right)
            else:
                assert found is None
    assert all(grad is None for grad in norm.backward(backend, norm.grad, needs=[False] * len(grads), **named))


@pytest.mark.parametrize("kind", NORMS)
def test_without_an_activation_the_residuals_gradient_is_a_copy(backend: ArrayBackend, kind: str) -> None:
    norm = Norm(kind)
    arrays = [backend.asarray(array) if isinstance(array, np.ndarray) else array for array in norm.arguments()]
    grad = backend.asarray(norm.grad)
    found = getattr(F, f"{norm.name}_backward")(grad, *arrays, residual=backend.asarray(norm.residual))[-1]
    found += 1
    np.testing.assert_array_equal(backend.asnumpy(grad), norm.grad)
    np.testing.assert_array_equal(backend.asnumpy(found), norm.grad + 1)


@pytest.mark.parametrize("kind", NORMS)
def test_results_go_to_the_callers_array(backend: ArrayBackend, kind: str) -> None:
    norm = Norm(kind, "float32")
    expected = norm.run(backend, residual=norm.residual, activation="relu")
    arrays = [backend.asarray(array) if isinstance(array, np.ndarray) else array for array in norm.arguments()]
    residual, out = backend.asarray(norm.residual), backend.asarray(np.zeros_like(norm.x))
    function = getattr(F, norm.name)
    assert function(*arrays, residual=residual, activation="relu", out=out) is out
    np.testing.assert_array_equal(backend.asnumpy(out), expected)
    with pytest.raises(ValueError, match="out shares memory with an argument"):
        function(*arrays, residual=residual, out=residual)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_nan_stays(backend: ArrayBackend, activation: str) -> None:
    norm = Norm("batch_norm, kept")
    norm.residual[0, 0, 0, 0] = np.nan
    y = norm.run(backend, residual=norm.residual, activation=activation)
    assert np.isnan(y[0, 0, 0, 0])
    assert np.isnan(y).sum() == 1


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("backward", [False, True])
def test_errors(backend: ArrayBackend, kind: str, backward: bool) -> None:
    norm = Norm(kind)

    def run(**named: Any) -> None:
        norm.backward(backend, norm.grad, **named) if backward else norm.run(backend, **named)

    op = f"{norm.name}_backward" if backward else norm.name
    with pytest.raises(ValueError, match=f"^{op}: activation is 'swish', expected 'none', 'relu' or 'leaky_relu'"):
        run(activation="swish")
    with pytest.raises(ValueError, match=f"^{op}: residual has shape"):
        run(residual=norm.residual[:, :, :1])
    with pytest.raises(
        TypeError,
        match=f"^{op}: input has dtype float64 and residual float32, .* cast input( and grad_output)?, input.astype",
    ):
        run(residual=norm.residual.astype(np.float32))
    with pytest.raises(TypeError, match=f"^{op}: negative_slope"):
        run(negative_slope="steep")
