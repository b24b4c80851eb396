"""Cross entropy of classes and of probabilities, and its gradients, against the oracle and PyTorch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import ml_dtypes
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

REDUCTIONS = ("mean", "sum", "none")


@dataclass(frozen=True)
class Loss:
    """A call of cross_entropy, and the oracle's word on it."""

    input: Array
    target: Array
    weight: Array | None
    options: dict[str, Any]
    grad_output: Array

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.input, self.target, self.weight

    @property
    def batched(self) -> tuple[Any, ...]:
        """The same for the oracle, which knows only batches."""
        if self.input.ndim > 1:
            return self.arguments
        return self.input[None], self.target[None], self.weight

    def expected(self) -> Array:
        return reference_norms.cross_entropy(*self.batched, **self.options).reshape(self.grad_output.shape)

    def expected_gradients(self) -> tuple[Array, Array | None]:
        grad = self.grad_output
        if self.input.ndim == 1 and self.options["reduction"] == "none":
            grad = grad[None]
        gx, gt = reference_norms.cross_entropy_backward(grad, *self.batched, **self.options)
        return gx.reshape(self.input.shape), None if gt is None else gt.reshape(self.input.shape)


@st.composite
def losses(draw: st.DrawFn, dtypes: tuple[str, ...] = FLOATS) -> Loss:
    """Of vectors, and of batches with up to two more axes."""
    classes = draw(st.integers(1, 5))
    space = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    leading = draw(st.sampled_from(((), (0,), (1,), (4,))))
    if not leading:
        space = ()
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    dtype = draw(st.sampled_from(dtypes))
    shape = (*leading, classes, *space)
    x = 3 * numbers(rng, shape, "float64")
    x = arranged(x.astype(dtype_of(dtype)), draw(st.sampled_from(ORDERS if len(shape) > 1 else ("contiguous",))))
    options: dict[str, Any] = {
        "reduction": draw(st.sampled_from(REDUCTIONS)),
        "label_smoothing": draw(st.sampled_from((0.0, 0.3, 1.0))),
    }
    if draw(st.booleans()):
        target = rng.dirichlet(np.ones(classes), (*leading, *space)).astype(x.dtype)
        target = np.moveaxis(target, -1, len(leading))
    else:
        target = np.asarray(rng.integers(0, classes, (*leading, *space)))
        options["ignore_index"] = draw(st.sampled_from((-100, -1, 0, classes)))
        ignored = rng.random(target.shape) < draw(st.sampled_from((0, 0.4, 1)))
        target = np.asarray(
            np.where(ignored, options["ignore_index"], target), draw(st.sampled_from(("int64", "int8")))
        )
    weight = rng.uniform(0.1, 2, classes).astype(x.dtype) if draw(st.booleans()) else None
    result = (*leading, *space) if options["reduction"] == "none" else ()
    return Loss(x, target, weight, options, np.asarray(numbers(rng, result, dtype)))


@examples(150)
@given(loss=losses())
def test_the_loss_is_that_of_the_oracle(backend: ArrayBackend, loss: Loss) -> None:
    before = loss.input.tobytes(), loss.target.tobytes()
    actual = backend.run(F.cross_entropy, *loss.arguments, **loss.options)
    assert isinstance(actual, np.ndarray)
    assert_close(actual, loss.expected(), loss.input.dtype)
    assert (loss.input.tobytes(), loss.target.tobytes()) == before


@examples(150)
@given(loss=losses(), needs=st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_gradients_are_those_of_the_oracle(backend: ArrayBackend, loss: Loss, needs: tuple[bool, ...]) -> None:
    arrays = (loss.grad_output, *loss.arguments)
    before = [None if array is None else array.tobytes() for array in arrays]
    gx, gt, gw = backend.run(F.cross_entropy_backward, *arrays, **loss.options)
    expected_x, expected_target = loss.expected_gradients()
    assert_close(gx, expected_x, loss.input.dtype)
    assert gw is None
    assert (gt is None) == (expected_target is None)
    if expected_target is not None:
        assert_close(gt, expected_target, loss.input.dtype)
    assert [None if array is None else array.tobytes() for array in arrays] == before
    some = backend.run(F.cross_entropy_backward, *arrays, **loss.options, needs=needs)
    for result, full, need in zip(some, (gx, gt, gw), needs, strict=True):
        assert (result is None) == (full is None or not need)
        assert result is None or result.tobytes() == full.tobytes()


@examples(120)
@given(loss=losses(dtypes=("float64", "float32")))
def test_losses_and_gradients_are_those_of_pytorch(backend: ArrayBackend, torch: Any, loss: Loss) -> None:
    leaf = torch.from_numpy(loss.input.copy()).requires_grad_()
    target = torch.from_numpy(loss.target.copy())
    target = target.requires_grad_() if target.is_floating_point() else target.long()
    weight = None if loss.weight is None else torch.from_numpy(loss.weight)
    expected = torch.nn.functional.cross_entropy(leaf, target, weight, **loss.options)
    expected.backward(torch.from_numpy(loss.grad_output))
    assert_close(backend.run(F.cross_entropy, *loss.arguments, **loss.options), expected.detach().numpy())
    gx, gt, _ = backend.run(F.cross_entropy_backward, loss.grad_output, *loss.arguments, **loss.options)
    assert_close(gx, leaf.grad.numpy())
    if gt is not None:
        assert_close(gt, target.grad.numpy())


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_are_those_of_finite_differences(
    backend: ArrayBackend, reduction: str, rng: np.random.Generator
) -> None:
    x, weight = numbers(rng, (2, 3, 2), "float64"), rng.uniform(0.5, 2, 3)
    classes, shares = np.array([[0, -1], [2, 1]]), rng.uniform(0, 1, x.shape)
    grad = numbers(rng, (2, 2), "float64") if reduction == "none" else np.array(1.7)
    options = {"reduction": reduction, "label_smoothing": 0.2}

    def loss(x: Array, target: Array) -> Array:
        return backend.run(F.cross_entropy, x, target, weight, ignore_index=-1, **options)

    for target in (classes, shares):
        gx, gt, _ = backend.run(F.cross_entropy_backward, grad, x, target, weight, ignore_index=-1, **options)
        expected = finite_difference(lambda moved, target=target: loss(moved, target), x, grad)
        np.testing.assert_allclose(gx, expected, atol=1e-8)
        if target is shares:
            np.testing.assert_allclose(gt, finite_difference(lambda moved: loss(x, moved), shares, grad), atol=1e-8)


def test_gradients_repeat_and_take_a_number_for_an_array_without_axes(
    backend: ArrayBackend, rng: np.random.Generator
) -> None:
    for dtype in FLOATS:
        x, target = numbers(rng, (4, 3), dtype), np.array([0, 2, 1, 1])
        expected, _, _ = backend.run(F.cross_entropy_backward, np.array(2.0).astype(x.dtype), x, target)
        for grad in (2, 2.0, np.float32(2), np.array(2.0).astype(x.dtype)):
            actual = backend.run(F.cross_entropy_backward, grad, x, target)[0]
            assert actual.dtype == x.dtype
            assert actual.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32", "uint64", "int64"])
def test_classes_are_of_any_integer_dtype(backend: ArrayBackend, dtype: str, rng: np.random.Generator) -> None:
    x, target = numbers(rng, (4, 3), "float64"), np.array([0, 2, 1, 1])
    expected = backend.run(F.cross_entropy, x, target)
    assert backend.run(F.cross_entropy, x, target.astype(dtype)) == expected  # also where -100 is beyond the dtype


# --- What does not count ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_mean_of_nothing_is_nan_and_its_gradient_zero(backend: ArrayBackend, dtype: str, smoothing: float) -> None:
    x = np.ones((2, 3), dtype_of(dtype))
    target = np.array([-100, -100])
    for reduction, expected in (("mean", np.nan), ("sum", 0), ("none", [0, 0])):
        options = {"reduction": reduction, "label_smoothing": smoothing}
        loss = backend.run(F.cross_entropy, x, target, **options)
        np.testing.assert_array_equal(loss.astype(np.float64), expected)
        gx, _, _ = backend.run(F.cross_entropy_backward, np.ones_like(loss), x, target, **options)
        np.testing.assert_array_equal(gx, np.zeros_like(x))


def test_the_mean_by_weights_of_zero_is_nan_and_its_gradient_zero(backend: ArrayBackend) -> None:
    x, target, weight = np.ones((2, 3)), np.array([0, 1]), np.array([0.0, 0.0, 1.0])
    assert np.isnan(backend.run(F.cross_entropy, x, target, weight))
    gx, _, _ = backend.run(F.cross_entropy_backward, 1.0, x, target, weight)
    np.testing.assert_array_equal(gx, np.zeros_like(x))


def test_an_empty_batch_has_no_mean(backend: ArrayBackend) -> None:
    x = np.ones((0, 3), np.float32)
    for target in (np.ones(0, np.int64), x):
        assert np.isnan(backend.run(F.cross_entropy, x, target))
        assert backend.run(F.cross_entropy, x, target, reduction="sum") == 0
        assert backend.run(F.cross_entropy, x, target, reduction="none").shape == (0,)
        gx, gt, _ = backend.run(F.cross_entropy_backward, 1.0, x, target)
        assert gx.shape == x.shape
        assert target is not x or gt.shape == x.shape


def test_what_is_ignored_changes_nothing(backend: ArrayBackend, rng: np.random.Generator) -> None:
    x, target, weight = numbers(rng, (4, 3), "float64"), np.array([2, 7, 0, 7]), np.array([1.0, 2.0, 3.0])
    options = {"ignore_index": 7, "label_smoothing": 0.1}
    kept = backend.run(F.cross_entropy, x[::2].copy(), target[::2].copy(), weight, **options)
    np.testing.assert_allclose(backend.run(F.cross_entropy, x, target, weight, **options), kept, rtol=1e-15)
    gx, _, _ = backend.run(F.cross_entropy_backward, 1.0, x, target, weight, **options)
    np.testing.assert_array_equal(gx[1::2], 0)
    assert (gx[::2] != 0).all()


def test_a_class_that_is_ignored_is_only_ignored_as_a_target(backend: ArrayBackend, rng: np.random.Generator) -> None:
    x = numbers(rng, (2, 3), "float64")
    loss = backend.run(F.cross_entropy, x, np.array([1, 2]), ignore_index=1)
    np.testing.assert_allclose(loss, -reference_norms.log_softmax(x, 1)[1, 2])


# --- Large and infinite logits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_large_logits_neither_overflow_nor_vanish(backend: ArrayBackend, dtype: str) -> None:
    x = np.array([[1e4, -1e4, 0], [1e4, -1e4, 0]], dtype)
    target = np.array([0, 1])
    np.testing.assert_array_equal(backend.run(F.cross_entropy, x, target, reduction="none"), [0, 2e4])
    gx, _, _ = backend.run(F.cross_entropy_backward, 1.0, x, target, reduction="sum")
    np.testing.assert_array_equal(gx, [[0, 0, 0], [1, -1, 0]])


def test_a_logit_of_minus_infinity_counts_only_where_it_has_a_share(backend: ArrayBackend) -> None:
    x = np.array([[1.0, -np.inf, 0.0], [1.0, -np.inf, 0.0]])
    p = np.exp(1) / (1 + np.exp(1))
    loss = backend.run(F.cross_entropy, x, np.array([0, 1]), reduction="none")
    np.testing.assert_allclose(loss, [-np.log(p), np.inf])
    gx, _, _ = backend.run(F.cross_entropy_backward, 1.0, x, np.array([0, 1]), reduction="sum")
    np.testing.assert_allclose(gx, [[p - 1, 0, 1 - p], [p, -1, 1 - p]])
    shares = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    np.testing.assert_allclose(backend.run(F.cross_entropy, x, shares, reduction="none"), [-np.log(p), np.inf])
    smooth = backend.run(F.cross_entropy, x, np.array([0, 0]), label_smoothing=0.1)
    assert smooth == np.inf


def test_a_nan_spoils_its_own_loss_alone(backend: ArrayBackend) -> None:
    x = np.array([[1.0, np.nan, 0.0], [1.0, 2.0, 0.0]])
    loss = backend.run(F.cross_entropy, x, np.array([0, 1]), reduction="none")
    np.testing.assert_array_equal(np.isnan(loss), [True, False])
    gx, _, _ = backend.run(F.cross_entropy_backward, np.ones(2), x, np.array([0, 1]), reduction="none")
    np.testing.assert_array_equal(np.isnan(gx), [[True] * 3, [False] * 3])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_of_16_bits_are_kept_in_float32(backend: ArrayBackend, dtype: str) -> None:
    x = np.zeros((70_000, 2), dtype_of(dtype))  # whose summed loss float16 cannot hold
    target = np.zeros(len(x), np.int64)
    assert_close(backend.run(F.cross_entropy, x, target), np.array(np.log(2)), x.dtype)
    x = np.zeros((1, 5000), x.dtype)
    assert_close(backend.run(F.cross_entropy, x, target[:1]), np.array(np.log(5000)), x.dtype)


# --- Errors -------------------------------------------------------------------------------------------------------

X, CLASSES = np.ones((2, 3)), np.array([0, 2])
WRONG: list[tuple[dict[str, Any], Any, str]] = [
    ({"input": np.ones((2, 3), int)}, TypeError, "input has dtype int64, expected floating-point"),
    ({"input": np.ones((2, 3), complex)}, TypeError, "input has dtype complex128, expected floating-point"),
    ({"input": np.ones(())}, ValueError, "input has shape (), expected"),
    ({"input": np.ones((2, 0))}, ValueError, "input has shape (2, 0), expected"),
    ({"input": np.ones((2, 3, 0))}, ValueError, "input has shape (2, 3, 0), expected"),
    ({"target": np.array([0, 1, 2])}, ValueError, "target has shape (3,), expected (2,)"),
    ({"target": np.array([[0], [1]])}, ValueError, "target has shape (2, 1), expected (2,)"),
    ({"target": np.ones((3, 2))}, ValueError, "target has shape (3, 2), expected (2, 3)"),
    ({"target": np.ones(2)}, ValueError, "target has shape (2,), expected (2, 3)"),
    ({"target": np.ones((2, 3), np.float32)}, TypeError, "target has dtype float32, expected an integer dtype"),
    ({"target": np.ones(2, bool)}, TypeError, "target has dtype bool, expected an integer dtype"),
    ({"weight": np.ones(2)}, ValueError, "weight has shape (2,), expected (3,)"),
    ({"weight": np.ones(3, np.float32)}, TypeError, "input has dtype float64 and weight float32, expected one dtype"),
    ({"reduction": "batchmean"}, ValueError, "reduction is 'batchmean', expected"),
    ({"label_smoothing": 1.5}, ValueError, "label_smoothing is 1.5, expected"),
    ({"label_smoothing": -0.1}, ValueError, "label_smoothing is -0.1, expected"),
    ({"label_smoothing": None}, TypeError, "label_smoothing is None, expected a number"),
    ({"ignore_index": 0.5}, TypeError, "ignore_index is 0.5, expected an integer"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_wrong_arguments_are_refused(backend: ArrayBackend, options: dict[str, Any], error: Any, message: str) -> None:
    arguments = {"input": X, "target": CLASSES} | options
    with pytest.raises(error, match="^cross_entropy: " + re.escape(message)):
        backend.run(F.cross_entropy, **arguments)
    with pytest.raises(error, match="^cross_entropy_backward: " + re.escape(message)):
        backend.run(F.cross_entropy_backward, 1.0, **arguments)


@pytest.mark.parametrize("wrong", [3, -1, -100, 255])
def test_classes_that_are_none_are_refused(host_backend: ArrayBackend, wrong: int) -> None:
    """Where values can be looked at, as NumPy's can."""
    arguments = {"input": X, "target": np.array([0, wrong])}
    for operation, grad in ((F.cross_entropy, ()), (F.cross_entropy_backward, (1.0,))):
        with pytest.raises(ValueError, match=rf"target holds {wrong}, expected classes in \[0, 3\)"):
            host_backend.run(operation, *grad, **arguments, ignore_index=7)
        host_backend.run(operation, *grad, **arguments, ignore_index=wrong)


def test_gradients_of_another_shape_or_dtype_are_refused(backend: ArrayBackend) -> None:
    for reduction, grad in (("none", 1.0), ("none", np.ones(3)), ("mean", np.ones(2)), ("sum", np.ones(1))):
        with pytest.raises(ValueError, match=r"^cross_entropy_backward: grad_output has shape"):
            backend.run(F.cross_entropy_backward, grad, X, CLASSES, reduction=reduction)
    with pytest.raises(TypeError, match=r"^cross_entropy_backward: input has dtype float64 and grad_output float32, "):
        backend.run(F.cross_entropy_backward, np.ones((), np.float32), X, CLASSES)
    with pytest.raises(ValueError, match=r"^cross_entropy_backward: needs has 2 values, expected 3"):
        backend.run(F.cross_entropy_backward, 1.0, X, CLASSES, needs=(True, True))


def test_classes_that_are_floats_are_told_to_be_integers(backend: ArrayBackend) -> None:
    x = np.ones((4, 3), np.float32)
    message = (
        r"target has shape \(4,\), expected \(4, 3\) as input for probabilities, .*; classes are of an integer dtype"
    )
    with pytest.raises(ValueError, match=message):
        backend.run(F.cross_entropy, x, np.zeros(4, np.float32))


# --- Of single probabilities --------------------------------------------------------------------------------------

BINARY = F.binary_cross_entropy_with_logits
BINARY_BACKWARD = F.binary_cross_entropy_with_logits_backward


@st.composite
def binary_losses(draw: st.DrawFn, dtypes: tuple[str, ...] = FLOATS) -> tuple[Array, tuple[Any, ...], dict[str, Any]]:
    """A gradient and the arguments: logits and probabilities of one shape, weights that broadcast to it."""
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=4)))
    dtype = dtype_of(draw(st.sampled_from(dtypes)))
    order = draw(st.sampled_from(ORDERS if len(shape) > 1 else ("contiguous",)))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    x, target = arranged((6 * numbers(rng, shape, "float64")).astype(dtype), order), rng.uniform(0, 1, shape)
    if draw(st.booleans()):
        target = target.round()
    factors: list[Array | None] = []
    for _ in range(2):
        kept = draw(st.integers(0, len(shape)))
        form = tuple(draw(st.sampled_from((n, 1))) for n in shape[len(shape) - kept :])
        factors.append(np.asarray(rng.uniform(0.5, 3, form), dtype) if draw(st.booleans()) else None)
    reduction = draw(st.sampled_from(REDUCTIONS))
    grad = np.asarray(numbers(rng, shape if reduction == "none" else (), "float64"), dtype)
    options = {"reduction": reduction, "pos_weight": factors[1]}
    return grad, (np.asarray(x), np.asarray(target, dtype), factors[0]), options


@examples(120)
@given(case=binary_losses(), needs=st.tuples(*[st.booleans()] * 4))
def test_binary_losses_and_gradients_are_those_of_the_oracle(
    backend: ArrayBackend, case: tuple[Array, tuple[Any, ...], dict[str, Any]], needs: tuple[bool, ...]
) -> None:
    grad, arguments, options = case
    x = arguments[0]
    assert_close(
        backend.run(BINARY, *arguments, **options),
        reference_norms.binary_cross_entropy_with_logits(*arguments, **options),
        x.dtype,
    )
    results = backend.run(BINARY_BACKWARD, grad, *arguments, **options)
    expected = reference_norms.binary_cross_entropy_with_logits_backward(grad, *arguments, **options)
    for result, of_oracle in zip(results[:2], expected, strict=True):
        assert_close(result, of_oracle, x.dtype)
    assert results[2:] == (None, None)
    some = backend.run(BINARY_BACKWARD, grad, *arguments, **options, needs=needs)
    for result, full, need in zip(some, results, needs, strict=True):
        assert (result is None) == (full is None or not need)
        assert result is None or result.tobytes() == full.tobytes()


@examples(80)
@given(case=binary_losses(dtypes=("float64", "float32")))
def test_binary_losses_and_gradients_are_those_of_pytorch(
    backend: ArrayBackend, torch: Any, case: tuple[Array, tuple[Any, ...], dict[str, Any]]
) -> None:
    grad, (x, target, weight), options = case
    leaves = [torch.from_numpy(array.copy()).requires_grad_() for array in (x, target)]
    given = {"weight": weight, **options}
    theirs = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in given.items()
    }
    expected = torch.nn.functional.binary_cross_entropy_with_logits(*leaves, **theirs)
    expected.backward(torch.from_numpy(grad))
    assert_close(backend.run(BINARY, x, target, weight, **options), expected.detach().numpy())
    results = backend.run(BINARY_BACKWARD, grad, x, target, weight, **options)
    for result, leaf in zip(results[:2], leaves, strict=True):
        assert_close(result, leaf.grad.numpy())


@pytest.mark.parametrize("dtype", FLOATS)
def test_binary_losses_of_large_logits_are_exact(backend: ArrayBackend, dtype: str) -> None:
    x = np.array([1000.0, -1000.0, 20.0, -20.0, 0.0]).astype(dtype_of(dtype))
    right, wrong = (x >= 0).astype(x.dtype), (x < 0).astype(x.dtype)
    small = np.log1p(np.exp(-20.0))
    for target, expected in (
        (right, [0, 0, small, small, np.log(2)]),
        (wrong, [1000, 1000, 20 + small, 20 + small, np.log(2)]),
    ):
        losses = backend.run(BINARY, x, target, reduction="none").astype(float)
        np.testing.assert_allclose(
            losses, expected, rtol=float(ml_dtypes.finfo(x.dtype).eps), atol=1e-8 * (dtype == "float16")
        )
        gx = backend.run(BINARY_BACKWARD, np.ones_like(x), x, target, reduction="none")[0].astype(float)
        assert np.isfinite(gx).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_binary_losses_keep_the_memory_order(backend: ArrayBackend, dtype: str, rng: np.random.Generator) -> None:
    for order in ("contiguous", "channels_last"):
        x = arranged(numbers(rng, (2, 3, 4, 2), dtype), order)
        target = np.ones((2, 3, 4, 2), x.dtype)
        weight = np.ones(2, x.dtype)
        assert backend.run(BINARY, x, target, weight, reduction="none").strides == x.strides
        for result in backend.run(BINARY_BACKWARD, target, x, target, weight, reduction="none")[:2]:
            assert result.strides == x.strides


def test_binary_losses_refuse_what_does_not_fit(backend: ArrayBackend) -> None:
    x = np.ones((2, 3))
    op = "binary_cross_entropy_with_logits"
    for weight in (np.ones((1, 2, 3)), np.ones(2), np.ones((2, 2))):
        for name in ("weight", "pos_weight"):
            with pytest.raises(
                ValueError, match=rf"^{op}: {name} has shape .*, expected one that broadcasts to \(2, 3\)"
            ):
                backend.run(BINARY, x, x, **{name: weight})
    with pytest.raises(ValueError, match=rf"^{op}: target has shape \(2,\), expected \(2, 3\)"):
        backend.run(BINARY, x, x[:, 0])
    with pytest.raises(TypeError, match=f"^{op}: input has dtype float64 and target int64, .* cast target"):
        backend.run(BINARY, x, x.astype(np.int64))
    with pytest.raises(ValueError, match=f"^{op}: reduction is 'batchmean', expected 'mean', 'sum' or 'none'"):
        backend.run(BINARY, x, x, reduction="batchmean")
    with pytest.raises(ValueError, match=rf"^{op}_backward: grad_output has shape \(2, 3\), expected \(\)"):
        backend.run(BINARY_BACKWARD, x, x, x)
