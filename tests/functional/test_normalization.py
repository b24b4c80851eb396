"""Batch, instance, layer and group norm and their gradients against the oracle, finite differences and PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import reference_norms
from array_backends import ArrayBackend
from hypothesis import given
from hypothesis import strategies as st
from reference import finite_difference
from sample import examples
from strategies import FLOATS, ORDERS, arranged, dtype_of, numbers
from tolerances import assert_close

import gpucnn.functional as F

Array = np.ndarray[Any, Any]
Optional = Array | None

OWN = ("batch", "instance", "layer", "group")  # each normalises by its input's statistics
KEPT = ("batch_kept", "instance_kept")  # by running statistics
KINDS = OWN + KEPT
MOMENTUM = 0.1


@dataclass(frozen=True)
class Case:
    """A call of one norm, and what the oracle says of it."""

    kind: str
    input: Array
    grad_output: Array
    weight: Optional
    bias: Optional
    running: tuple[Optional, Optional]
    eps: float
    option: Any = None  # layer norm's normalized_shape, group norm's num_groups

    @property
    def name(self) -> str:
        return self.kind.removesuffix("_kept") + "_norm"

    @property
    def forward(self) -> Any:
        return getattr(F, self.name)

    @property
    def backward(self) -> Any:
        return getattr(F, self.name + "_backward")

    @property
    def has_running(self) -> bool:
        return self.name in ("batch_norm", "instance_norm")

    @property
    def own(self) -> bool:
        return self.kind in OWN

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What follows the input; running statistics as copies."""
        if not self.has_running:
            return self.option, self.weight, self.bias, self.eps
        running = (None if array is None else array.copy() for array in self.running)
        return *running, self.weight, self.bias, self.own, MOMENTUM, self.eps

    def expected(self) -> tuple[Array, Array, Array]:
        """(y, mean, rstd)."""
        return getattr(reference_norms, self.name)(self.input, *self.arguments)[:3]

    def expected_gradients(self) -> tuple[Optional, ...]:
        """One for each array argument; None for those that are absent and for running statistics."""
        arrays = (self.grad_output, self.input)
        if not self.has_running:
            gradients = getattr(reference_norms, self.name + "_backward")
            gx, gw, gb = gradients(*arrays, self.option, self.weight, self.eps)
        else:
            gradients = (
                reference_norms.batch_norm_backward_graph
                if self.name == "batch_norm"
                else reference_norms.instance_norm_backward
            )
            gx, gw, gb = gradients(*arrays, *self.running, self.weight, self.own, self.eps)
        return self.placed(gx, None if self.weight is None else gw, None if self.bias is None else gb)

    def placed(self, gx: Any, gw: Any, gb: Any) -> tuple[Any, ...]:
        """The gradients in the order of the array arguments."""
        return (gx, None, None, gw, gb) if self.has_running else (gx, gw, gb)

    def conditioning(self) -> float:
        """What a rounding of the input or of its mean is multiplied by: the reciprocal standard deviation."""
        if self.input.itemsize == 2 or not self.input.size:
            return 1.0  # what is computed in float32 and rounded to 16 bits at the end does not show it
        return max(1.0, float(self.expected()[2].max() * np.abs(self.input).max()))

    def steepness(self) -> float:
        """What a rounding of the gradient is multiplied by, on top of that of the normalised input."""
        return self.conditioning() * max(1.0, float(self.expected()[2].max(initial=0.0)))


@st.composite
def cases(
    draw: st.DrawFn, kind: str, dtypes: tuple[str, ...] = FLOATS, orders: tuple[str, ...] = ORDERS, most: int = 4
) -> Case:
    """A norm of an input with up to three spatial axes, in any dtype and memory order."""
    sizes = st.integers(1, most)
    option: Any = None
    if kind == "layer":
        shape = tuple(draw(st.lists(sizes, min_size=1, max_size=4)))
        option = shape[draw(st.integers(0, len(shape) - 1)) :]
        parameters = option
    else:
        least = 1 if kind.startswith("instance") else 0
        n, c, *space = draw(sizes), draw(sizes), *draw(st.lists(sizes, min_size=least, max_size=3))
        if kind == "group":
            option, c = c, c * draw(st.integers(1, 3))
        values = math.prod(space) * {"batch": n, "instance": 1, "group": n * c // (option or 1)}.get(kind, 2)
        if values == 1:
            n, space = 2, [2, *space[1:]]
        shape, parameters = (n, c, *space), (c,)
    dtype = draw(st.sampled_from(dtypes))
    wide = draw(st.booleans()) and dtype in ("float16", "bfloat16")
    order = draw(st.sampled_from(orders if len(shape) > 1 else ("contiguous", "strided")))
    rng = np.random.default_rng(draw(st.integers(0, 999)))

    def parameter(positive: bool = False) -> Array:
        array = numbers(rng, parameters, "float32" if wide else dtype)
        array = (abs(array) + 0.5).astype(array.dtype) if positive else array
        return arranged(array, "strided" if order == "strided" else "contiguous")

    with_running = kind in KEPT or (kind in ("batch", "instance") and draw(st.booleans()))
    x = numbers(rng, shape, dtype) + np.array(draw(st.sampled_from((0, 5))), dtype_of(dtype))
    return Case(
        kind,
        arranged(x, order),
        arranged(numbers(rng, shape, dtype), order),
        parameter() if draw(st.booleans()) else None,
        parameter() if draw(st.booleans()) else None,
        (parameter(), parameter(positive=True)) if with_running else (None, None),
        draw(st.sampled_from((1e-5, 1e-3, 0.5))),
        option,
    )


def bits(results: Any) -> list[Any]:
    """What is equal exactly where the results are, to the bit."""
    return [None if result is None else result.tobytes() for result in results]


# --- Against the oracle -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@examples(40)
@given(data=st.data())
def test_forward_is_that_of_the_oracle(backend: ArrayBackend, kind: str, data: st.DataObject) -> None:
    case = data.draw(cases(kind))
    x = case.input.copy()
    y, mean, rstd = backend.run(case.forward, case.input, *case.arguments, return_statistics=True)
    expected, expected_mean, expected_rstd = case.expected()
    assert_close(y, expected, case.input.dtype, case.conditioning())
    statistics = np.dtype(np.float32) if case.input.itemsize == 2 else case.input.dtype
    assert_close(mean, expected_mean, statistics)
    assert_close(rstd, expected_rstd, statistics)
    assert case.input.tobytes() == x.tobytes()
    assert not np.shares_memory(y, case.input)
    assert backend.run(case.forward, case.input, *case.arguments).tobytes() == y.tobytes()


@pytest.mark.parametrize("kind", KINDS)
@examples(40)
@given(data=st.data())
def test_gradients_are_those_of_the_oracles_graph(backend: ArrayBackend, kind: str, data: st.DataObject) -> None:
    case = data.draw(cases(kind))
    arguments = case.arguments
    before = bits((case.grad_output, case.input, *(a for a in arguments if isinstance(a, np.ndarray))))
    gradients = backend.run(case.backward, case.grad_output, case.input, *arguments)
    expected = case.expected_gradients()
    assert [gradient is None for gradient in gradients] == [gradient is None for gradient in expected]
    dtypes = case.placed(case.input.dtype, *(None if a is None else a.dtype for a in (case.weight, case.bias)))
    for gradient, wanted, dtype in zip(gradients, expected, dtypes, strict=True):
        if gradient is not None:
            assert_close(gradient, wanted, dtype, case.steepness())
            assert not np.shares_memory(gradient, case.grad_output)
    assert before == bits((case.grad_output, case.input, *(a for a in arguments if isinstance(a, np.ndarray))))


@pytest.mark.parametrize("kind", KINDS)
@examples(15)
@given(data=st.data())
def test_gradients_repeat_and_are_the_same_with_statistics_handed_over_and_when_fewer_are_needed(
    backend: ArrayBackend, kind: str, data: st.DataObject
) -> None:
    case = data.draw(cases(kind))
    arguments = (case.grad_output, case.input, *case.arguments)
    gradients = bits(backend.run(case.backward, *arguments))
    assert bits(backend.run(case.backward, *arguments)) == gradients
    _, mean, rstd = backend.run(case.forward, case.input, *case.arguments, return_statistics=True)
    assert bits(backend.run(case.backward, *arguments, mean=mean, rstd=rstd)) == gradients
    needs = tuple(data.draw(st.lists(st.booleans(), min_size=len(gradients), max_size=len(gradients))))
    some = bits(backend.run(case.backward, *arguments, needs=needs))
    assert some == [gradient if need else None for gradient, need in zip(gradients, needs, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_handed_over_are_used(backend: ArrayBackend, kind: str, rng: np.random.Generator) -> None:
    case = small_case(kind, rng)
    arguments = (case.grad_output, case.input, *case.arguments)
    _, mean, rstd = case.expected()
    moved = backend.run(case.backward, *arguments, mean=mean, rstd=2 * rstd)
    usual = backend.run(case.backward, *arguments)
    gx, gw, gb = 0, -2, -1
    assert not np.allclose(moved[gx], usual[gx], rtol=0.1)
    assert_close(moved[gw], 2 * usual[gw])
    assert_close(moved[gb], usual[gb])
    moved = backend.run(case.backward, *arguments, mean=mean + 1, rstd=rstd)
    assert not np.allclose(moved[gw], usual[gw], rtol=0.1)


def small_case(kind: str, rng: np.random.Generator, dtype: str = "float64", order: str = "contiguous") -> Case:
    """A norm of images with everything that it takes."""
    shape = (2, 4, 3, 2)
    option = {"layer": (3, 2), "group": 2}.get(kind)
    parameters = (3, 2) if kind == "layer" else (4,)
    running = (numbers(rng, (4,), dtype), (abs(numbers(rng, (4,), dtype)) + 1).astype(dtype_of(dtype)))
    x, grad, weight, bias = (numbers(rng, size, dtype) for size in (shape, shape, parameters, parameters))
    return Case(kind, arranged(x, order), arranged(grad, order), weight, bias, running, 1e-5, option)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(backend: ArrayBackend, kind: str, rng: np.random.Generator) -> None:
    case = small_case(kind, rng)
    gradients = [g for g in backend.run(case.backward, case.grad_output, case.input, *case.arguments) if g is not None]
    given_arrays = [case.input, case.weight, case.bias]
    for position, (gradient, array) in enumerate(zip(gradients, given_arrays, strict=True)):

        def function(moved: Array, position: int = position) -> Array:
            x, weight, bias = given_arrays[:position] + [moved] + given_arrays[position + 1 :]
            changed = Case(kind, x, case.grad_output, weight, bias, case.running, case.eps, case.option)
            return backend.run(changed.forward, x, *changed.arguments)

        expected = finite_difference(function, array, case.grad_output, eps=1e-5)
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
def test_many_values_are_normalised_as_few_are(
    backend: ArrayBackend, kind: str, order: str, rng: np.random.Generator
) -> None:
    """More than fit a tile of the CPU's, whose borders lie anywhere."""
    shape, c = (3, 37, 96, 99), 37
    option = {"layer": (96, 99), "group": 1}.get(kind)
    parameters = (96, 99) if kind == "layer" else (c,)
    weight, bias = numbers(rng, parameters, "float64"), numbers(rng, parameters, "float64")
    running = (numbers(rng, (c,), "float64"), abs(numbers(rng, (c,), "float64")) + 1)
    scale, shift = rng.uniform(0.5, 2.0, (3, c, 1, 1)), rng.standard_normal((3, c, 1, 1))
    x = arranged(numbers(rng, shape, "float64") * scale + shift, order)
    case = Case(kind, x, arranged(numbers(rng, shape, "float64"), order), weight, bias, running, 1e-5, option)
    for actual, expected in zip(
        backend.run(case.forward, case.input, *case.arguments, return_statistics=True), case.expected(), strict=True
    ):
        assert_close(actual, expected)
    gradients = backend.run(case.backward, case.grad_output, case.input, *case.arguments)
    for gradient, expected in zip(gradients, case.expected_gradients(), strict=True):
        if expected is not None:
            assert_close(gradient, expected)


# --- Memory order -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["batch", "batch_kept", "instance", "instance_kept", "group"])
def test_memory_order_is_that_of_the_input(
    backend: ArrayBackend, kind: str, dtype: str, rng: np.random.Generator
) -> None:
    for order in ("contiguous", "channels_last"):
        case = small_case(kind, rng, dtype, order)
        y = backend.run(case.forward, case.input, *case.arguments)
        gx = backend.run(case.backward, case.grad_output, case.input, *case.arguments)[0]
        for result in (y, gx):
            assert result.strides == case.input.strides


# --- Against PyTorch ----------------------------------------------------------------------------------------------


def torch_results(torch: Any, case: Case) -> tuple[Array, list[Optional]]:
    """PyTorch's output, and its gradients of input, weight and bias."""
    leaves = [
        None if array is None else torch.from_numpy(array.copy()).requires_grad_()
        for array in (case.input, case.weight, case.bias)
    ]
    x, weight, bias = leaves
    function = getattr(torch.nn.functional, case.name)
    if case.has_running:
        running = (None if array is None else torch.from_numpy(array.copy()) for array in case.running)
        y = function(x, *running, weight, bias, case.own, MOMENTUM, case.eps)
    else:
        ones = torch.ones_like(bias, requires_grad=False) if weight is None and bias is not None else weight
        y = function(x, case.option, ones, bias, case.eps)  # group_norm's backward breaks on a bias without a weight
    y.backward(torch.from_numpy(case.grad_output.copy()))
    return y.detach().numpy(), [None if leaf is None else leaf.grad.numpy() for leaf in leaves]


@pytest.mark.parametrize("kind", KINDS)
@examples(25)
@given(data=st.data())
def test_results_and_gradients_are_those_of_pytorch(
    backend: ArrayBackend, torch: Any, kind: str, data: st.DataObject
) -> None:
    case = data.draw(cases(kind, dtypes=("float64", "float32"), most=6))
    y, gradients = torch_results(torch, case)
    factor = 10 * case.steepness()  # PyTorch's own rounding, of scale and shift folded into one
    assert_close(backend.run(case.forward, case.input, *case.arguments), y, factor=factor)
    actual = backend.run(case.backward, case.grad_output, case.input, *case.arguments)
    for gradient, expected in zip(actual, case.placed(*gradients), strict=True):
        assert (gradient is None) == (expected is None)
        if expected is not None:
            assert_close(gradient, expected, factor=factor)
