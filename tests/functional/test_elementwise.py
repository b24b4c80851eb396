"""Linear layers, activations and softmax, and their gradients, against the oracle and PyTorch; what dropout shares."""

from __future__ import annotations

import math
import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import reference
import reference_norms
from array_backends import ArrayBackend
from hypothesis import assume, given
from hypothesis import strategies as st
from reference import finite_difference
from sample import examples
from strategies import COMPLEX, FLOATS, INTEGERS, ORDERS, arranged, dtype_of, numbers
from tolerances import assert_close, summed

import gpucnn.functional as F
from gpucnn.functional._normal import BOUND, normal_share_and_density

Array = np.ndarray[Any, Any]

NUMERIC = FLOATS + COMPLEX + INTEGERS
seeds = st.integers(0, 999)


@st.composite
def arrays(draw: st.DrawFn, dtypes: tuple[str, ...], least_axes: int = 0) -> tuple[Array, Array]:
    """Two arrays of one shape, dtype and memory order: an input and a gradient."""
    shape = tuple(draw(st.lists(st.integers(0, 4), min_size=least_axes, max_size=4)))
    order = draw(st.sampled_from(ORDERS if len(shape) > 1 else ("contiguous",)))
    dtype = draw(st.sampled_from(dtypes))
    rng = np.random.default_rng(draw(seeds))
    x, grad = (arranged(numbers(rng, shape, dtype), order) for _ in range(2))
    return x, grad


def as_torch(torch: Any, array: Array | None) -> Any:
    return None if array is None else torch.from_numpy(array.copy()).requires_grad_()


# --- What holds for each ------------------------------------------------------------------------------------------

UNARY: dict[str, dict[str, Any]] = {
    "relu": {},
    "leaky_relu": {"negative_slope": 0.3},
    "sigmoid": {},
    "gelu": {"approximate": "tanh"},
    "softmax": {"dim": 1},
    "log_softmax": {"dim": -2},
    "dropout": {"p": 0.4, "training": True, "rng": 3},
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", UNARY)
def test_results_repeat_are_new_and_leave_inputs_alone(
    backend: ArrayBackend, name: str, dtype: str, order: str, rng: np.random.Generator
) -> None:
    x, grad = (arranged(numbers(rng, (2, 3, 4, 2), dtype), order) for _ in range(2))
    before = x.tobytes(), grad.tobytes()
    y, again = (backend.run(getattr(F, name), x, **UNARY[name]) for _ in range(2))
    (gx,), (same,) = (backend.run(getattr(F, name + "_backward"), grad, x, **UNARY[name]) for _ in range(2))
    assert (y.tobytes(), gx.tobytes()) == (again.tobytes(), same.tobytes())
    assert (x.tobytes(), grad.tobytes()) == before
    for result in (y, gx):
        assert result.dtype == x.dtype
        assert result.shape == x.shape
        assert not any(np.shares_memory(result, array) for array in (x, grad))
    assert backend.run(getattr(F, name + "_backward"), grad, x, **UNARY[name], needs=(False,)) == (None,)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "sigmoid", "gelu", "dropout"])
def test_an_array_without_axes_gives_one(backend: ArrayBackend, name: str) -> None:
    """And not one of NumPy's scalars, which no operation takes."""
    x = np.array(2.0)
    y = backend.run(getattr(F, name), x, **UNARY[name])
    (gx,) = backend.run(getattr(F, name + "_backward"), x, x, **UNARY[name])
    for result in (y, gx):
        assert isinstance(result, np.ndarray)
        assert result.shape == ()
    assert isinstance(backend.run(F.dropout, x, return_mask=True)[1], np.ndarray)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "sigmoid", "gelu"])
def test_memory_order_is_that_of_the_input(
    backend: ArrayBackend, name: str, dtype: str, rng: np.random.Generator
) -> None:
    for order in ("contiguous", "channels_last"):
        x = arranged(numbers(rng, (2, 3, 4, 2), dtype), order)
        y = backend.run(getattr(F, name), x)
        (gx,) = backend.run(getattr(F, name + "_backward"), x, x)
        assert y.strides == gx.strides == x.strides


@pytest.mark.parametrize("name", UNARY)
def test_what_is_not_taken_is_refused(backend: ArrayBackend, name: str) -> None:
    x, options = np.ones((2, 3, 4)), UNARY[name]
    wrong = ("bool", "complex64") + (() if name == "relu" else ("int32",))
    for dtype in wrong:
        with pytest.raises(TypeError, match=f"^{name}: input has dtype {dtype}, expected floating-point"):
            backend.run(getattr(F, name), x.astype(dtype), **options)
    backward = getattr(F, name + "_backward")
    with pytest.raises(
        TypeError, match=f"^{name}_backward: grad_output has dtype float32 and input float64, .* cast input, "
    ):
        backend.run(backward, x.astype("float32"), x, **options)
    with pytest.raises(ValueError, match=rf"^{name}_backward: grad_output has shape \(2, 3\), expected \(2, 3, 4\)"):
        backend.run(backward, x[..., 0], x, **options)
    with pytest.raises(ValueError, match=f"^{name}_backward: needs has 2 values, expected 1"):
        backend.run(backward, x, x, **options, needs=(True, True))


# --- Linear -------------------------------------------------------------------------------------------------------


@st.composite
def linear_layers(draw: st.DrawFn, dtypes: tuple[str, ...] = NUMERIC) -> tuple[Array, Array, Array | None, Array]:
    """(input, weight, bias, grad_output), with any leading axes and with weights for one output or several."""
    leading = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    features, outputs = draw(st.integers(1, 5)), draw(st.sampled_from(((), (1,), (2,), (5,))))
    dtype = draw(st.sampled_from(dtypes))
    rng = np.random.default_rng(draw(seeds))
    shapes = ((*leading, features), (*outputs, features), outputs, (*leading, *outputs))
    x, w, bias, grad = (np.asarray(numbers(rng, shape, dtype)) for shape in shapes)
    order = draw(st.sampled_from(("contiguous", "strided", "reversed")))
    w = np.asfortranarray(w) if draw(st.booleans()) else arranged(w, order)
    return arranged(x, order), w, bias if draw(st.booleans()) else None, grad


@examples(80)
@given(layer=linear_layers())
def test_linear_is_that_of_the_oracle(backend: ArrayBackend, layer: tuple[Any, ...]) -> None:
    x, w, bias, grad = layer
    expected = reference.linear(x, np.atleast_2d(w), None if bias is None else np.atleast_1d(bias))
    y = backend.run(F.linear, x, w, bias)
    assert isinstance(y, np.ndarray)
    assert_close(y, expected.reshape(grad.shape), summed(x.dtype))


@examples(80)
@given(layer=linear_layers(), needs=st.tuples(*[st.booleans()] * 3))
def test_linear_gradients_are_those_of_the_oracle(
    backend: ArrayBackend, layer: tuple[Any, ...], needs: tuple[bool, ...]
) -> None:
    x, w, bias, grad = layer
    before = [array.tobytes() for array in (x, w, grad)]
    rows = np.atleast_2d(w)
    gx, gw, gb = reference.linear_backward(grad.reshape(*x.shape[:-1], len(rows)), x, rows)
    actual = backend.run(F.linear_backward, grad, x, w, bias)
    assert_close(actual[0], gx, summed(x.dtype))
    assert_close(actual[1], gw.reshape(w.shape), summed(x.dtype))
    assert (actual[2] is None) == (bias is None)
    if bias is not None:
        assert_close(actual[2], gb.reshape(bias.shape), summed(x.dtype))
    assert [array.tobytes() for array in (x, w, grad)] == before
    for some, all_of, need in zip(
        backend.run(F.linear_backward, grad, x, w, bias, needs=needs), actual, needs, strict=True
    ):
        assert (some is None) == (all_of is None or not need)
        assert some is None or some.tobytes() == all_of.tobytes()


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_linear_gradients_are_those_of_finite_differences(
    backend: ArrayBackend, dtype: str, rng: np.random.Generator
) -> None:
    x, w, bias, grad = (numbers(rng, shape, dtype) for shape in ((2, 3), (4, 3), (4,), (2, 4)))
    gx, gw, gb = backend.run(F.linear_backward, grad, x, w, bias)
    for gradient, array, function in (
        (gx, x, lambda moved: backend.run(F.linear, moved, w, bias)),
        (gw, w, lambda moved: backend.run(F.linear, x, moved, bias)),
        (gb, bias, lambda moved: backend.run(F.linear, x, w, moved)),
    ):
        expected = finite_difference(function, array, grad)
        np.testing.assert_allclose(gradient, expected, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_linear_keeps_the_sums_of_16_bits_in_float32(backend: ArrayBackend, dtype: str) -> None:
    ones = np.ones((3000, 1), dtype_of(dtype))  # float16 counts to 2048, bfloat16 to 256
    x, bias = np.full((1, 3000), 0.25, ones.dtype), np.full(1, 0.25, ones.dtype)
    assert_close(backend.run(F.linear, x, ones.T, bias), np.full((1, 1), 750.25), ones.dtype)
    gx, gw, gb = backend.run(F.linear_backward, ones, ones, ones[:1], bias)
    for gradient, expected in ((gw, (1, 1)), (gb, (1,))):
        assert_close(gradient, np.full(expected, 3000.0), ones.dtype)
    assert gx.dtype == ones.dtype


@examples(40)
@given(layer=linear_layers(dtypes=("float64", "float32", *COMPLEX)))
def test_linear_is_that_of_pytorch(backend: ArrayBackend, torch: Any, layer: tuple[Any, ...]) -> None:
    x, w, bias, grad = layer
    assume(w.ndim == 2 or (x.size and bias is None))  # PyTorch breaks on others
    leaves = [as_torch(torch, array) for array in (x, w, bias)]
    y = torch.nn.functional.linear(*leaves)
    y.backward(torch.from_numpy(grad))
    assert_close(backend.run(F.linear, x, w, bias), y.detach().numpy())
    for gradient, leaf in zip(backend.run(F.linear_backward, grad, x, w, bias), leaves, strict=True):
        assert (gradient is None) == (leaf is None)
        if leaf is not None:
            assert_close(gradient, leaf.grad.numpy())


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3), (4, 2), (4,)), "input has shape (2, 3), expected (*, 2) as weight (OUT, IN) has shape (4, 2)"),
        (((), (4, 2), (4,)), "input has shape (), expected (*, 2)"),
        (((2, 3), (4, 3, 1), (4,)), "weight has 3 dimensions, expected 2 (OUT, IN) or 1 (IN)"),
        (((2, 3), (), ()), "weight has 0 dimensions, expected 2"),
        (((2, 3), (4, 3), (3,)), "bias has shape (3,), expected (4,)"),
        (((2, 3), (3,), (1,)), "bias has shape (1,), expected ()"),
        (((2, 0), (4, 0), (4,)), "weight has shape (4, 0), expected sizes of at least 1"),
        (((2, 3), (0, 3), (0,)), "weight has shape (0, 3), expected sizes of at least 1"),
    ],
)
def test_linear_refuses_shapes_that_do_not_fit(
    backend: ArrayBackend, shapes: tuple[tuple[int, ...], ...], message: str
) -> None:
    layer = [np.ones(shape) for shape in shapes]
    with pytest.raises(ValueError, match="^linear: " + re.escape(message)):
        backend.run(F.linear, *layer)
    with pytest.raises(ValueError, match="^linear_backward: " + re.escape(message)):
        backend.run(F.linear_backward, np.ones((2, 4)), *layer)


def test_linear_refuses_other_dtypes_and_a_gradient_of_another_shape(backend: ArrayBackend) -> None:
    x, w, bias, grad = np.ones((2, 3)), np.ones((4, 3)), np.ones(4), np.ones((2, 4))
    with pytest.raises(TypeError, match=r"^linear: input has dtype float64 and weight float32, .* cast input"):
        backend.run(F.linear, x, w.astype("float32"))
    with pytest.raises(TypeError, match=r"^linear: input has dtype float64 and bias int64, .* cast bias"):
        backend.run(F.linear, x, w, bias.astype("int64"))
    with pytest.raises(TypeError, match=r"^linear: input has dtype bool, expected"):
        backend.run(F.linear, x.astype(bool), w.astype(bool))
    with pytest.raises(ValueError, match=r"^linear_backward: grad_output has shape \(4, 2\), expected \(2, 4\)"):
        backend.run(F.linear_backward, grad.T, x, w, bias)


# --- Activations --------------------------------------------------------------------------------------------------


@examples(60)
@given(pair=arrays(FLOATS + INTEGERS))
def test_relu_is_that_of_the_oracle(backend: ArrayBackend, pair: tuple[Array, Array]) -> None:
    x, grad = pair
    assert_close(backend.run(F.relu, x), reference.relu(x), x.dtype)
    assert_close(backend.run(F.relu_backward, grad, x)[0], reference.relu_backward(grad, x), x.dtype)


@examples(60)
@given(pair=arrays(FLOATS), slope=st.sampled_from((None, 0.0, 0.2, 1, 3.5, -0.5, np.float32(0.25))))
def test_leaky_relu_is_that_of_the_oracle(backend: ArrayBackend, pair: tuple[Array, Array], slope: Any) -> None:
    x, grad = pair
    given_slope = () if slope is None else (slope,)
    assert_close(backend.run(F.leaky_relu, x, *given_slope), reference.leaky_relu(x, *given_slope), x.dtype)
    (gx,) = backend.run(F.leaky_relu_backward, grad, x, *given_slope)
    assert_close(gx, reference.leaky_relu_backward(grad, x, *given_slope), x.dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_activations_of_nan_zero_and_infinity(backend: ArrayBackend, dtype: str) -> None:
    x = np.array([np.nan, 0.0, -0.0, np.inf, -np.inf, -2.0]).astype(dtype_of(dtype))
    grad = np.full(6, 3.0).astype(x.dtype)
    some = x[[0, 1, 3, 5]]  # without what times a slope of zero is NaN
    for result, expected in (
        (backend.run(F.relu, x), [np.nan, 0, 0, np.inf, 0, 0]),
        (backend.run(F.relu_backward, grad, x)[0], [3, 0, 0, 3, 0, 0]),
        (backend.run(F.leaky_relu, x, 0.5), [np.nan, 0, 0, np.inf, -np.inf, -1]),
        (backend.run(F.leaky_relu, some, 0.0), [np.nan, 0, np.inf, 0]),
        (backend.run(F.leaky_relu_backward, grad, x, 0.5)[0], [1.5, 1.5, 1.5, 3, 1.5, 1.5]),
    ):
        np.testing.assert_array_equal(result.astype(np.float64), expected)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["relu", "leaky_relu"])
def test_activations_are_those_of_pytorch(
    backend: ArrayBackend, torch: Any, name: str, dtype: str, rng: np.random.Generator
) -> None:
    x, grad = (numbers(rng, (3, 4, 5), dtype) for _ in range(2))
    x[0, 0, :2] = np.nan, 0
    leaf = as_torch(torch, x)
    y = getattr(torch.nn.functional, name)(leaf)
    y.backward(torch.from_numpy(grad))
    np.testing.assert_array_equal(backend.run(getattr(F, name), x), y.detach().numpy())
    np.testing.assert_array_equal(backend.run(getattr(F, name + "_backward"), grad, x)[0], leaf.grad.numpy())


@pytest.mark.parametrize("slope", ["0.1", None, True, 1j])
def test_leaky_relu_refuses_a_slope_that_is_no_number(backend: ArrayBackend, slope: Any) -> None:
    x = np.ones(3)
    for run in (lambda: F.leaky_relu(x, slope), lambda: F.leaky_relu_backward(x, x, slope)):
        with pytest.raises(TypeError, match=f"negative_slope is {slope!r}, expected a number"):
            backend.run(run)


# --- Sigmoid and GELU ---------------------------------------------------------------------------------------------

SMOOTH: list[tuple[str, dict[str, Any]]] = [("sigmoid", {}), ("gelu", {}), ("gelu", {"approximate": "tanh"})]


@pytest.mark.parametrize(("name", "options"), SMOOTH, ids=str)
@examples(50)
@given(pair=arrays(FLOATS))
def test_smooth_activations_are_those_of_the_oracle(
    backend: ArrayBackend, name: str, options: dict[str, Any], pair: tuple[Array, Array]
) -> None:
    x, grad = pair
    assert_close(backend.run(getattr(F, name), x, **options), getattr(reference, name)(x, **options), x.dtype)
    (gx,) = backend.run(getattr(F, f"{name}_backward"), grad, x, **options)
    assert_close(gx, getattr(reference, f"{name}_backward")(grad, x, **options), x.dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shares_of_the_normal_distribution_are_as_exact_as_they_say(backend: ArrayBackend, dtype: str) -> None:
    limit = {"float32": 12.0, "float64": 37.0}[dtype]  # beyond it the share is no normal number
    x = np.concatenate([np.linspace(-limit, limit, 20001), [0.0, 1e-8, -1e-8, 40, BOUND]]).astype(dtype)
    shares = np.array([math.erfc(-float(v) / math.sqrt(2)) / 2 for v in x])
    densities = np.array([math.exp(-(float(v) ** 2) / 2) / math.sqrt(2 * math.pi) for v in x])
    share, density = backend.run(lambda array: normal_share_and_density(backend.primitives.xp, array), x)
    assert share.dtype == density.dtype == dtype
    square = np.minimum(x.astype(float) ** 2, limit**2)
    units = np.where(shares >= 0.01, 3, (4 + square) / 2)
    if dtype == "float64":  # in which the oracle rounds its argument, and libraries of C differ by as much
        units += 4 + square
    unit = np.finfo(dtype).eps
    assert (np.abs(share - shares) <= units * unit * shares).all()
    assert (np.abs(density - densities) <= (4 + square) * unit * densities + np.finfo(dtype).tiny).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sigmoids_are_exact_relative_to_themselves(backend: ArrayBackend, dtype: str) -> None:
    x = np.linspace(-80, 80, 4001).astype(dtype)
    expected = reference.sigmoid(x)
    assert (np.abs(backend.run(F.sigmoid, x) - expected) <= 3 * np.finfo(dtype).eps * expected).all()
    expected = reference.sigmoid_backward(np.ones_like(x), x)
    (slope,) = backend.run(F.sigmoid_backward, np.ones_like(x), x)
    assert (np.abs(slope - expected) <= 4 * np.finfo(dtype).eps * expected).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("name", "options"), SMOOTH, ids=str)
def test_smooth_activations_of_what_is_large_are_finite(
    backend: ArrayBackend, name: str, options: dict[str, Any], dtype: str
) -> None:
    most = float(ml_dtypes.finfo(dtype_of(dtype)).max)
    x = np.array([-most, -1000.0, 1000.0, most, np.nan, np.inf]).astype(dtype_of(dtype))
    y = backend.run(getattr(F, name), x, **options).astype(float)
    (gx,) = backend.run(getattr(F, f"{name}_backward"), np.ones_like(x), x, **options)
    np.testing.assert_array_equal(y[:4], [0, 0, 1, 1] if name == "sigmoid" else [0, 0, *x[2:4].astype(float)])
    np.testing.assert_array_equal(gx[:4].astype(float), [0, 0, 0, 0] if name == "sigmoid" else [0, 0, 1, 1])
    assert np.isnan(y[4])
    assert np.isnan(gx[4].astype(float))
    assert y[5] == (1 if name == "sigmoid" else np.inf)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("name", "options"), SMOOTH, ids=str)
def test_smooth_activations_are_those_of_pytorch(
    backend: ArrayBackend, torch: Any, name: str, options: dict[str, Any], dtype: str, rng: np.random.Generator
) -> None:
    x, grad = (numbers(rng, (3, 4, 5), dtype) * np.asarray(4, dtype) for _ in range(2))
    leaf = as_torch(torch, x)
    function = torch.sigmoid if name == "sigmoid" else torch.nn.functional.gelu
    y = function(leaf, **options)
    y.backward(torch.from_numpy(grad))
    assert_close(backend.run(getattr(F, name), x, **options), y.detach().numpy())
    assert_close(backend.run(getattr(F, f"{name}_backward"), grad, x, **options)[0], leaf.grad.numpy())


@pytest.mark.parametrize("approximate", ["erf", None, True])
def test_gelu_knows_two_forms(backend: ArrayBackend, approximate: Any) -> None:
    x = np.ones(3)
    for run in (lambda: F.gelu(x, approximate=approximate), lambda: F.gelu_backward(x, x, approximate=approximate)):
        with pytest.raises(ValueError, match=f"approximate is {approximate!r}, expected 'none' or 'tanh'"):
            backend.run(run)


# --- Softmax ------------------------------------------------------------------------------------------------------

SOFTMAX = ("softmax", "log_softmax")


@pytest.mark.parametrize("name", SOFTMAX)
@examples(50)
@given(data=st.data())
def test_softmax_is_that_of_the_oracle(backend: ArrayBackend, name: str, data: st.DataObject) -> None:
    x, grad = data.draw(arrays(FLOATS, least_axes=1))
    dim = data.draw(st.integers(-x.ndim, x.ndim - 1))
    y = backend.run(getattr(F, name), x, dim)
    (gx,) = backend.run(getattr(F, name + "_backward"), grad, x, dim)
    if not x.size:
        assert y.shape == gx.shape == x.shape
        assert y.dtype == gx.dtype == x.dtype
        return
    assert_close(y, getattr(reference_norms, name)(x, dim), x.dtype)
    assert_close(gx, getattr(reference_norms, name + "_backward")(grad, x, dim), x.dtype)


@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax_gradients_are_those_of_finite_differences(
    backend: ArrayBackend, name: str, rng: np.random.Generator
) -> None:
    x, grad = (numbers(rng, (2, 4, 3), "float64") for _ in range(2))
    (gx,) = backend.run(getattr(F, name + "_backward"), grad, x, 1)
    expected = finite_difference(lambda moved: backend.run(getattr(F, name), moved, 1), x, grad)
    np.testing.assert_allclose(gx, expected, atol=1e-8)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax_gradients_are_the_same_with_the_output_handed_over(
    backend: ArrayBackend, name: str, dtype: str, rng: np.random.Generator
) -> None:
    x, grad = (numbers(rng, (2, 4, 3), dtype) for _ in range(2))
    backward = getattr(F, name + "_backward")
    output = backend.run(getattr(F, name), x, 1)
    (gx,), (same,) = backend.run(backward, grad, x, 1), backend.run(backward, grad, x, 1, output=output)
    assert_close(same, gx.astype(np.float64), x.dtype)  # the output is rounded to its dtype
    assert x.itemsize == 2 or same.tobytes() == gx.tobytes()
    (used,) = backend.run(backward, grad, x, 1, output=np.full_like(output, np.nan))
    assert np.isnan(used.astype(np.float64)).all()


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_softmax_of_large_and_infinite_numbers_neither_overflows_nor_warns(backend: ArrayBackend, dtype: str) -> None:
    x = np.array([[1e4, 0, -1e4], [1e30, 1e30, 0], [0, 0, -np.inf]]).astype(dtype_of(dtype))
    half = np.log(0.5)
    top = float(x[0, 0])
    logs = np.array([[0, -top, -2 * top], [half, half, -float(x[1, 0])], [half, half, -np.inf]])
    expected = np.array([[1, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0]])
    assert_close(backend.run(F.softmax, x, 1), expected, x.dtype)
    actual = backend.run(F.log_softmax, x, 1).astype(np.float64)
    np.testing.assert_allclose(actual, logs, rtol=1e-2 if dtype == "bfloat16" else 1e-6)
    grad = np.ones_like(x)
    assert_close(backend.run(F.softmax_backward, grad, x, 1)[0], np.zeros((3, 3)), x.dtype)
    assert_close(backend.run(F.log_softmax_backward, grad, x, 1)[0], 1 - 3 * expected, x.dtype)


@pytest.mark.parametrize("name", SOFTMAX)
def test_nan_spoils_only_its_row(backend: ArrayBackend, name: str) -> None:
    x = np.array([[0.0, np.nan, 1.0], [0.0, 1.0, 2.0]])
    y = backend.run(getattr(F, name), x, 1)
    (gx,) = backend.run(getattr(F, name + "_backward"), np.ones_like(x), x, 1)
    for result in (y, gx):
        np.testing.assert_array_equal(np.isnan(result), [[True] * 3, [False] * 3])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_softmax_keeps_the_sums_of_16_bits_in_float32(backend: ArrayBackend, dtype: str) -> None:
    x = np.zeros((1, 5000), dtype_of(dtype))
    np.testing.assert_allclose(backend.run(F.softmax, x, 1).astype(np.float64), 1 / 5000, rtol=8e-3)
    assert_close(backend.run(F.log_softmax, x, 1), np.full(x.shape, -np.log(5000)), x.dtype)
    (gx,) = backend.run(F.log_softmax_backward, np.ones_like(x), x, 1)
    np.testing.assert_allclose(gx.astype(np.float64), 0, atol=1e-4)


@pytest.mark.parametrize("name", SOFTMAX)
@examples(30)
@given(data=st.data())
def test_softmax_is_that_of_pytorch(backend: ArrayBackend, torch: Any, name: str, data: st.DataObject) -> None:
    x, grad = data.draw(arrays(("float64", "float32"), least_axes=1))
    dim = data.draw(st.integers(-x.ndim, x.ndim - 1))
    leaf = as_torch(torch, x)
    y = getattr(torch.nn.functional, name)(leaf, dim)
    y.backward(torch.from_numpy(grad.copy()))
    assert_close(backend.run(getattr(F, name), x, dim), y.detach().numpy())
    assert_close(backend.run(getattr(F, name + "_backward"), grad, x, dim)[0], leaf.grad.numpy())


@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax_refuses_axes_that_are_not_there(backend: ArrayBackend, name: str) -> None:
    x = np.ones((2, 3))
    for shape, dim, error, message in (
        ((2, 3), 2, ValueError, "dim is 2, expected less than input's 2 dimensions"),
        ((2, 3), -3, ValueError, "dim is -3, expected at least -2"),
        ((), 0, ValueError, "input has 0 dimensions, expected at least 1"),
        ((2, 3), None, TypeError, "dim is None, expected an axis of input"),
        ((2, 3), 0.0, TypeError, "dim is 0.0, expected an axis of input"),
    ):
        x = np.ones(shape)
        with pytest.raises(error, match=f"^{name}: {message}"):
            backend.run(getattr(F, name), x, dim)
        with pytest.raises(error, match=f"^{name}_backward: {message}"):
            backend.run(getattr(F, name + "_backward"), x, x, dim)
    with pytest.raises(ValueError, match=rf"^{name}_backward: output has shape \(3,\), expected \(2, 3\)"):
        backend.run(getattr(F, name + "_backward"), np.ones((2, 3)), np.ones((2, 3)), 1, output=np.ones(3))
