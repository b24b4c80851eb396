"""Padding and cropping in every mode, and its gradient, against the oracle, NumPy and PyTorch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import reference
from array_backends import ArrayBackend
from hypothesis import assume, given
from hypothesis import strategies as st
from sample import examples
from strategies import COMPLEX, FLOATS, INTEGERS, ORDERS, arranged, dtype_of, numbers
from tolerances import assert_close

import gpucnn.functional as F

Array = np.ndarray[Any, Any]

NUMERIC = FLOATS + COMPLEX + INTEGERS
MODES = ("constant", "reflect", "replicate", "circular", "symmetric")


@dataclass(frozen=True)
class Padding:
    """An array, what to pad it with, and the oracle's word on it: first it is cropped, then padded."""

    input: Array
    pad: tuple[int, ...]
    mode: str
    value: Any = None

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.pad, self.mode, self.value

    @property
    def crops(self) -> list[int]:
        return [min(size, 0) for size in self.pad]

    @property
    def pads(self) -> list[int]:
        return [max(size, 0) for size in self.pad]

    def expected(self) -> Array:
        cropped = reference.pad(self.input, self.crops)
        return reference.pad(cropped, self.pads, self.mode, 0 if self.value is None else self.value)

    def expected_gradient(self, grad: Array) -> Array:
        cropped = reference.pad(self.input, self.crops).shape
        inner = reference.pad_backward(grad, cropped, self.pads, self.mode)
        return reference.pad_backward(inner, self.input.shape, self.crops)


def most(mode: str, left: int) -> int:
    """The largest padding of an axis of this size."""
    return {"reflect": left - 1, "circular": left, "symmetric": left}.get(mode, 4)


@st.composite
def paddings(
    draw: st.DrawFn, mode: str, dtypes: tuple[str, ...] = NUMERIC, crops: bool = True, images: bool = False
) -> Padding:
    """`images` are those that PyTorch takes in all modes."""
    shape = draw(st.lists(st.integers(1, 5), min_size=2 if images else 0, max_size=4))
    axes = draw(st.integers(1, len(shape) - 1)) if images else draw(st.integers(0, len(shape)))
    if images:
        shape = shape[-axes - draw(st.integers(1, 2)) :]
    pad: list[int] = []
    for size in reversed(shape[len(shape) - axes :]):
        keeps = 0 if mode == "constant" else 1
        low = draw(st.integers(0, size - keeps)) if crops else 0
        high = draw(st.integers(0, size - keeps - low)) if crops else 0
        limit = most(mode, size - low - high)
        pad += [-crop if crop else draw(st.integers(0, limit)) for crop in (low, high)]
    dtype = draw(st.sampled_from(dtypes))
    order = draw(st.sampled_from(ORDERS if len(shape) > 1 else ("contiguous",)))
    x = np.asarray(numbers(np.random.default_rng(draw(st.integers(0, 999))), tuple(shape), dtype))
    values = (None, 0, 3) + {"c": (1.5 - 2j,), "i": (-2,), "u": ()}.get(x.dtype.kind, (-0.5, np.nan, np.inf))
    value = draw(st.sampled_from(values)) if mode == "constant" else None
    return Padding(arranged(x, order), tuple(pad), mode, value)


@pytest.mark.parametrize("mode", MODES)
@examples(80)
@given(data=st.data())
def test_padding_is_that_of_the_oracle(backend: ArrayBackend, mode: str, data: st.DataObject) -> None:
    case = data.draw(paddings(mode))
    before = case.input.tobytes()
    y = backend.run(F.pad, case.input, *case.arguments)
    assert y.dtype == case.input.dtype
    np.testing.assert_array_equal(y.astype(reference.wide(y).dtype), case.expected())
    assert isinstance(y, np.ndarray)
    assert not np.shares_memory(y, case.input)
    assert case.input.tobytes() == before


@pytest.mark.parametrize("mode", MODES)
@examples(80)
@given(data=st.data())
def test_the_gradient_is_that_of_the_oracle(backend: ArrayBackend, mode: str, data: st.DataObject) -> None:
    case = data.draw(paddings(mode))
    rng = np.random.default_rng(len(case.pad))
    grad = np.asarray(numbers(rng, case.expected().shape, case.input.dtype))
    grad = arranged(grad, data.draw(st.sampled_from(ORDERS if grad.ndim > 1 else ("contiguous",))))
    before = grad.tobytes()
    (gx,) = backend.run(F.pad_backward, grad, case.input, *case.arguments)
    assert_close(gx, case.expected_gradient(grad), case.input.dtype)
    assert not np.shares_memory(gx, grad)
    assert grad.tobytes() == before
    assert backend.run(F.pad_backward, grad, case.input, *case.arguments)[0].tobytes() == gx.tobytes()
    assert backend.run(F.pad_backward, grad, case.input, *case.arguments, needs=(False,)) == (None,)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_is_that_of_finite_differences(
    backend: ArrayBackend, mode: str, dtype: str, rng: np.random.Generator
) -> None:
    x, pad = numbers(rng, (2, 3, 4), dtype), (2, -1, 1, 2)
    grad = numbers(rng, (2, 6, 5), dtype)
    expected = reference.finite_difference(lambda moved: backend.run(F.pad, moved, pad, mode), x, grad)
    np.testing.assert_allclose(backend.run(F.pad_backward, grad, x, pad, mode)[0], expected, atol=1e-7)


@pytest.mark.parametrize(
    ("mode", "name"),
    [("constant", "constant"), ("reflect", "reflect"), ("replicate", "edge"), ("circular", "wrap")]
    + [("symmetric", "symmetric")],
)
@examples(30)
@given(data=st.data())
def test_padding_is_that_of_numpy(backend: ArrayBackend, mode: str, name: str, data: st.DataObject) -> None:
    case = data.draw(paddings(mode, dtypes=("float64",), crops=False))
    pairs = reference.pad_pairs(case.input.ndim, case.pad)
    value = {"constant_values": case.value or 0} if mode == "constant" else {}
    expected: Array = np.pad(case.input, pairs, name, **value) if pairs else case.input  # type: ignore[call-overload]
    np.testing.assert_array_equal(backend.run(F.pad, case.input, *case.arguments), expected)


@pytest.mark.parametrize("mode", MODES[:-1])
@examples(40)
@given(data=st.data())
def test_padding_and_gradient_are_those_of_pytorch(
    backend: ArrayBackend, torch: Any, mode: str, data: st.DataObject
) -> None:
    dtypes = ("float64", "float32", "complex128") if mode == "constant" else ("float64", "float32")
    case = data.draw(paddings(mode, dtypes, images=True))
    assume(not isinstance(case.value, complex))  # which PyTorch does not take
    leaf = torch.from_numpy(case.input.copy()).requires_grad_()
    y = torch.nn.functional.pad(leaf, *case.arguments)
    grad = numbers(np.random.default_rng(1), tuple(y.shape), case.input.dtype)
    y.backward(torch.from_numpy(grad))
    np.testing.assert_array_equal(backend.run(F.pad, case.input, *case.arguments), y.detach().numpy())
    assert_close(backend.run(F.pad_backward, grad, case.input, *case.arguments)[0], leaf.grad.numpy())


@pytest.mark.parametrize("pad", [(1, 2, 0, 3), (1, 2, 3, -1, 0, 1), (-1, -1), (0, 0), ()])
@pytest.mark.parametrize("mode", MODES)
def test_memory_order_is_that_of_the_input(
    backend: ArrayBackend, mode: str, pad: tuple[int, ...], rng: np.random.Generator
) -> None:
    for order in ("contiguous", "channels_last"):
        x = arranged(numbers(rng, (2, 4, 5, 6), "float32"), order)
        y = backend.run(F.pad, x, pad, mode)
        assert y.strides == arranged(y, order).strides
        assert backend.run(F.pad_backward, y, x, pad, mode)[0].strides == x.strides


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_gradient_of_16_bits_is_summed_in_float32(backend: ArrayBackend, dtype: str) -> None:
    x = np.ones((1, 2), dtype_of(dtype))
    grad = np.ones((1, 3002), x.dtype)  # float16 counts to 2048, bfloat16 to 256
    (gx,) = backend.run(F.pad_backward, grad, x, (3000, 0), "replicate")
    assert_close(gx, np.array([[3001.0, 1.0]]), x.dtype)


def test_pad_is_any_sequence_of_integers(backend: ArrayBackend) -> None:
    x = np.arange(6.0).reshape(2, 3)
    expected = [[9, 9, 9, 9], [0, 1, 2, 9], [3, 4, 5, 9]]
    for pad in ((0, 1, 1, 0), [0, 1, 1, 0], np.array([0, 1, 1, 0]), tuple(map(np.int32, (0, 1, 1, 0)))):
        np.testing.assert_array_equal(backend.asnumpy(F.pad(backend.asarray(x), pad, value=9)), expected)
        np.testing.assert_array_equal(F.pad(x, pad, value=9), expected)


def test_an_empty_batch_stays_empty(backend: ArrayBackend) -> None:
    x = np.ones((0, 2, 3))
    for mode in MODES:
        y = backend.run(F.pad, x, (1, 1), mode)
        assert y.shape == (0, 2, 5)
        assert backend.run(F.pad_backward, y, x, (1, 1), mode)[0].shape == x.shape


def test_the_value_comes_in_the_dtype_of_the_input(backend: ArrayBackend) -> None:
    for dtype, value in (("int64", 2**62 + 1), ("uint8", 255), ("int8", -128), ("int32", 2.0), ("float32", 1)):
        y = backend.run(F.pad, np.zeros(1, dtype), (0, 1), value=value)
        assert y.dtype == dtype
        assert y[1] == value
    y = backend.run(F.pad, np.zeros(1, dtype_of("bfloat16")), (0, 1), value=np.float32(1.5))
    assert y.tolist() == [0, 1.5]


# --- Errors -------------------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], Any, str]] = [
    ({"pad": (1,)}, ValueError, "pad has 1 values, expected two for each of at most 2 axes"),
    ({"pad": (1,) * 6}, ValueError, "pad has 6 values, expected two for each of at most 2 axes"),
    ({"pad": 1}, TypeError, "pad is 1, expected a sequence of integers"),
    ({"pad": "11"}, TypeError, "pad is '11', expected a sequence of integers"),
    (
        {"pad": (1, 0.5)},
        TypeError,
        "an item of pad is 0.5, expected an integer; pad is a sequence of integers: low and high of the last",
    ),
    ({"mode": "edge"}, ValueError, "mode is 'edge', expected"),
    ({"mode": None}, ValueError, "mode is None, expected"),
    ({"mode": "reflect", "value": 1.0}, ValueError, "value is 1.0, expected None with mode 'reflect'"),
    ({"pad": (4, 0), "mode": "reflect"}, ValueError, "pad of axis 1 is (4, 0), expected at most 3"),
    ({"pad": (0, 4), "mode": "reflect"}, ValueError, "pad of axis 1 is (0, 4), expected at most 3"),
    ({"pad": (0, 0, 0, 4), "mode": "circular"}, ValueError, "pad of axis 0 is (0, 4), expected at most 3"),
    ({"pad": (5, 0), "mode": "symmetric"}, ValueError, "pad of axis 1 is (5, 0), expected at most 4"),
    ({"pad": (4, -1), "mode": "symmetric"}, ValueError, "pad of axis 1 is (4, -1), expected at most 3"),
    ({"pad": (3, -1), "mode": "reflect"}, ValueError, "pad of axis 1 is (3, -1), expected at most 2"),
    ({"pad": (-2, -3)}, ValueError, "pad of axis 1 is (-2, -3), "),
    ({"pad": (-4, 1), "mode": "replicate"}, ValueError, "pad of axis 1 is (-4, 1), "),
    ({"value": "1"}, TypeError, "value is '1', expected a number"),
    ({"value": 1j}, TypeError, "value is 1j, expected a number"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_wrong_parameters_are_refused(backend: ArrayBackend, options: dict[str, Any], error: Any, message: str) -> None:
    x = np.ones((3, 4))
    arguments = {"pad": (1, 1)} | options
    with pytest.raises(error, match="^pad: " + re.escape(message)):
        backend.run(F.pad, x, **arguments)
    with pytest.raises(error, match="^pad_backward: " + re.escape(message)):
        backend.run(F.pad_backward, x, x, **arguments)


@pytest.mark.parametrize(("dtype", "value"), [("int64", 0.5), ("uint8", 256), ("uint8", -1), ("int32", np.nan)])
def test_a_value_that_the_dtype_does_not_hold_is_refused(backend: ArrayBackend, dtype: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^pad: value is {value!r}, expected a number that {dtype} holds"):
        backend.run(F.pad, np.zeros(3, dtype), (1, 1), value=value)


def test_wrong_arrays_are_refused(backend: ArrayBackend) -> None:
    x = np.ones((3, 4))
    with pytest.raises(TypeError, match=r"^pad: input has dtype bool, expected"):
        backend.run(F.pad, x > 0, (1, 1))
    with pytest.raises(ValueError, match=r"^pad_backward: grad_output has shape \(3, 4\), expected \(3, 6\)"):
        backend.run(F.pad_backward, x, x, (1, 1))
    with pytest.raises(TypeError, match=r"^pad_backward: grad_output has dtype float32 and input float64"):
        backend.run(F.pad_backward, np.ones((3, 6), "float32"), x, (1, 1))
    with pytest.raises(ValueError, match=r"^pad_backward: needs has 2 values, expected 1"):
        backend.run(F.pad_backward, np.ones((3, 6)), x, (1, 1), needs=(True, False))
