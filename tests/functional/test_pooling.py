"""Max and average pooling where something is particular to one of them: indices, ties, NaN, divisors, odd powers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend
from families import FAMILIES
from hypothesis import given
from hypothesis import strategies as st
from pooling_cases import INTEGERS, ORDERED, assert_same_bits, operation
from sample import examples
from strategies import FLOATS, dtype_of, numbers

import gpucnn.functional as F

RANKS = (1, 2, 3)


def lowest(dtype: str) -> Any:
    """What the maximum of nothing is."""
    return np.iinfo(dtype).min if dtype in INTEGERS else -np.inf


# --- Indices ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["max_pool", "adaptive_max_pool"])
@examples(200)
@given(data=st.data())
def test_indices_are_those_of_pytorch(backend: ArrayBackend, torch: Any, family: str, data: st.DataObject) -> None:
    case = data.draw(FAMILIES[family].cases("pytorch"))
    _, indices = backend.run(case.forward, **case.arguments, return_indices=True)
    x = torch.from_numpy(np.ascontiguousarray(case.first))
    _, expected = getattr(torch.nn.functional, case.name)(x, **case.options, return_indices=True)
    read = indices >= 0  # PyTorch's index of a window that reads nothing is some position
    np.testing.assert_array_equal(indices[read], expected.numpy()[read])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "uint8", "int64"])
def test_agrees_with_torch_in_other_dtypes(
    backend: ArrayBackend, torch: Any, rng: np.random.Generator, dtype: str
) -> None:
    x = numbers(rng, (2, 3, 9, 7), dtype)
    tensor = torch.from_numpy(x.astype(np.float64)).to(getattr(torch, dtype))
    y, indices = backend.run(F.max_pool2d, x, 3, 2, 1, return_indices=True)
    expected, positions = torch.nn.functional.max_pool2d(tensor, 3, 2, 1, return_indices=True)
    np.testing.assert_array_equal(y.astype(np.float64), expected.double().numpy())
    np.testing.assert_array_equal(indices, positions.numpy())


@pytest.mark.parametrize("dtype", INTEGERS)
def test_indices_may_be_of_any_integer_dtype(backend: ArrayBackend, rng: np.random.Generator, dtype: str) -> None:
    x = rng.standard_normal((2, 3, 6, 6))
    y, indices = backend.run(F.max_pool2d, x, 3, 2, return_indices=True)
    expected = backend.run(F.max_pool2d_backward, y, x, 3, 2)
    actual = backend.run(F.max_pool2d_backward, y, x, 3, 2, indices=indices.astype(dtype))
    assert_same_bits(actual[0], expected[0])


@pytest.mark.parametrize("name", ["max_pool2d", "adaptive_max_pool2d"])
def test_indices_that_are_handed_over_are_those_followed(backend: ArrayBackend, name: str) -> None:
    x, grad = np.zeros((1, 1, 4, 4)), np.arange(1.0, 5).reshape(1, 1, 2, 2)
    (result,) = backend.run(getattr(F, name + "_backward"), grad, x, 2, indices=np.array([[[[5, -1], [15, 5]]]]))
    assert {int(i): result.flat[i] for i in np.flatnonzero(result)} == {5: 1 + 4, 15: 3}


# --- Ties, NaN, infinities, nothing -------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("dtype", ORDERED)
def test_the_first_of_equal_maxima_gives_the_index(backend: ArrayBackend, rank: int, dtype: str) -> None:
    x = np.ones((1, 1, *(3,) * rank), dtype_of(dtype))
    y, indices = backend.run(operation("max_pool", rank), x, 2, 1, return_indices=True)
    plane = np.arange(3**rank).reshape((3,) * rank)
    np.testing.assert_array_equal(indices[0, 0], plane[(slice(2),) * rank])
    assert (y == 1).all()
    assert y.dtype == x.dtype


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("dtype", ORDERED)
def test_a_window_of_lowest_values_has_an_index(backend: ArrayBackend, rank: int, dtype: str) -> None:
    """Also where it overlaps the padding, whose value is no lower."""
    x = np.full((1, 1, *(3,) * rank), lowest(dtype), dtype_of(dtype))
    y, indices = backend.run(operation("max_pool", rank), x, 3, 1, 1, return_indices=True)
    plane = np.arange(3**rank).reshape((3,) * rank)
    firsts = np.maximum(np.arange(3) - 1, 0)
    np.testing.assert_array_equal(indices[0, 0], plane[np.ix_(*[firsts] * rank)])
    assert (y == x).all()


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("dtype", ORDERED)
def test_a_window_that_reads_only_padding(backend: ArrayBackend, rank: int, dtype: str) -> None:
    """It gives the lowest value and the index -1, and its gradient goes nowhere."""
    x = np.ones((1, 2, *(1,) * rank), dtype_of(dtype))
    options = {"kernel_size": 2, "stride": 1, "padding": 1, "dilation": 2}  # one window: the taps -1 and 1
    y, indices = backend.run(operation("max_pool", rank), x, **options, return_indices=True)
    assert (y == np.array(lowest(dtype), x.dtype)).all()
    assert (indices == -1).all()
    assert_same_bits(backend.run(operation("max_pool", rank), x, **options), y)
    for given_indices in (None, indices):
        (grad,) = backend.run(
            operation("max_pool", rank, "_backward"), np.ones_like(y), x, **options, indices=given_indices
        )
        assert (grad == 0).all()


def test_a_window_that_reads_only_padding_along_one_axis(backend: ArrayBackend) -> None:
    x = np.arange(1.0, 4).reshape(1, 1, 1, 3)
    options = {"kernel_size": (2, 2), "stride": 1, "padding": ((1, 2), (0, 0)), "dilation": (2, 1)}
    y, indices = backend.run(F.max_pool2d, x, **options, return_indices=True)
    np.testing.assert_array_equal(y[0, 0], [[-np.inf, -np.inf], [2, 3]])
    np.testing.assert_array_equal(indices[0, 0], [[-1, -1], [1, 2]])
    (grad,) = backend.run(F.max_pool2d_backward, np.full((1, 1, 2, 2), 5.0), x, **options)
    np.testing.assert_array_equal(grad[0, 0], [[0, 5, 5]])


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", ["avg_pool", "sum_pool", "max_pool"])
def test_several_windows_that_read_only_padding_give_no_gradient(backend: ArrayBackend, rank: int, name: str) -> None:
    x, others = np.ones((1, 2, *(1,) * rank), np.float32), (1,) * (rank - 1)
    sizes = {
        "kernel_size": (*others, 3),
        "stride": (*others, 2),
        "dilation": (*others, 2),
    }  # taps -3, -1, 1 and -1, 1, 3
    options: dict[str, Any] = {**sizes, "padding": (*((0, 0) for _ in others), (3, 4))}
    if name == "avg_pool":
        options["count_include_pad"] = False
    y = backend.run(operation(name, rank), x, **options)
    assert y.shape[-1] == 2
    (grad,) = backend.run(operation(name, rank, "_backward"), np.ones_like(y), x, **options)
    assert_same_bits(grad, np.zeros_like(x))


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_last_nan_of_a_window_gives_the_index(backend: ArrayBackend, dtype: str) -> None:
    nan, inf = np.nan, np.inf
    x = np.array([[nan, inf, nan, 1], [2, nan, inf, 3]], dtype_of(dtype))[None, None]
    y, indices = backend.run(F.max_pool2d, x, (2, 2), return_indices=True)
    assert np.isnan(y.astype(np.float64)).all()
    assert indices.tolist() == [[[[5, 2]]]]
    assert_same_bits(backend.run(F.max_pool2d, x, 2), y)
    (grad,) = backend.run(F.max_pool2d_backward, np.ones_like(y), x, 2)
    assert np.flatnonzero(grad).tolist() == [2, 5]


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_integers_are_compared_as_integers(backend: ArrayBackend, dtype: str) -> None:
    """In float64 these would be equal."""
    x = np.array([[[2**62, 2**62 + 1, 2**62 + 1, 2**62]]], dtype)
    y, indices = backend.run(F.max_pool1d, x, 2, return_indices=True)
    assert y.tolist() == [[[2**62 + 1, 2**62 + 1]]]
    assert indices.tolist() == [[[1, 2]]]


# --- Windows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        pytest.param(5, {"kernel_size": 2}, [1, 3, 4], id="the last window overhangs"),
        pytest.param(4, {"kernel_size": 2}, [1, 3], id="no window is left over"),
        pytest.param(4, {"kernel_size": 3}, [2, 3], id="the last window starts on the last input"),
        pytest.param(3, {"kernel_size": 2, "stride": 3}, [1], id="it would start past the input"),
        pytest.param(4, {"kernel_size": 2, "stride": 3, "padding": 1}, [0, 3], id="it would start in the padding"),
        pytest.param(3, {"kernel_size": 3, "padding": ((0, 2),)}, [2], id="it would start in the high padding"),
        pytest.param(3, {"kernel_size": 3, "padding": ((2, 0),)}, [0, 2], id="low padding shifts it back"),
        pytest.param(7, {"kernel_size": 2, "stride": 2, "dilation": 3}, [3, 5, 4], id="dilated"),
        pytest.param(2, {"kernel_size": 3, "stride": 2}, [1], id="even the first one overhangs"),
    ],
)
def test_ceil_mode(backend: ArrayBackend, size: int, options: dict[str, Any], expected: list[int]) -> None:
    x = np.arange(float(size)).reshape(1, 1, size)
    y, indices = backend.run(F.max_pool1d, x, **options, ceil_mode=True, return_indices=True)
    assert y.tolist() == [[expected]]
    assert indices.tolist() == [[expected]]


def test_padding_may_be_anything_below_the_dilated_window(backend: ArrayBackend) -> None:
    x = np.arange(1.0, 4).reshape(1, 3)
    y = backend.run(F.max_pool1d, x, 2, 1, ((3, 3),), 3)
    assert y.tolist() == [[1, 2, 3, 1, 2, 3]]
    with pytest.raises(ValueError, match=r"^max_pool1d: padding of axis 0 is \(3, 4\), expected less than the window"):
        backend.run(F.max_pool1d, x, 2, 1, ((3, 4),), 3)


# --- Averages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "included", "excluded"),
    [
        pytest.param({"kernel_size": 3, "stride": 2, "padding": 1}, [2 / 3, 1], [1, 1], id="padding"),
        pytest.param(
            {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
            [2 / 3, 1, 1 / 2],
            [1, 1, 1],
            id="padding and overhang",
        ),
        pytest.param({"kernel_size": 3, "ceil_mode": True}, [1, 1], [1, 1], id="overhang"),
        pytest.param({"kernel_size": 3, "stride": 4, "padding": ((2, 0),)}, [1 / 3], [1], id="low padding"),
        pytest.param({"kernel_size": 2, "stride": 3, "padding": ((0, 1),)}, [1, 1 / 2], [1, 1], id="high padding"),
        pytest.param(
            {"kernel_size": 2, "stride": 2, "padding": 2, "dilation": 3}, [1 / 2, 1, 1 / 2], [1, 1, 1], id="dilated"
        ),
    ],
)
def test_what_an_average_divides_by(
    backend: ArrayBackend, options: dict[str, Any], included: list[float], excluded: list[float]
) -> None:
    """Four ones: each mean is the share of the taps counted that lie on the image."""
    x = np.ones((1, 1, 4))
    for include, expected in ((True, included), (False, excluded)):
        y = backend.run(F.avg_pool1d, x, **options, count_include_pad=include)
        np.testing.assert_allclose(y[0, 0], expected, rtol=1e-15)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("divided", [{}, {"count_include_pad": False}, {"divisor_override": 3}])
def test_a_window_that_reads_only_padding_averages_to_zero(
    backend: ArrayBackend, rank: int, divided: dict[str, Any]
) -> None:
    x = np.ones((1, 2, *(1,) * rank))
    options = {"kernel_size": 2, "stride": 1, "padding": 1, "dilation": 2}  # one window: the taps -1 and 1
    for name, more in (("avg_pool", divided), ("sum_pool", {}), ("lp_pool", {"norm_type": 2})):
        y = backend.run(operation(name, rank), x, **options, **more)
        assert_same_bits(y, np.zeros_like(x))
        (grad,) = backend.run(operation(name, rank, "_backward"), np.ones_like(y), x, **options, **more)
        assert_same_bits(grad, np.zeros_like(x))


@pytest.mark.parametrize("dtype", FLOATS)
def test_no_absolute_value_is_taken(backend: ArrayBackend, dtype: str) -> None:
    x = np.array([[[-3, 1, 3, -1]]], dtype_of(dtype))
    y = backend.run(F.lp_pool1d, x, 3, 2).astype(np.float64)
    assert np.isnan(y[0, 0, 0])
    np.testing.assert_allclose(y[0, 0, 1], 26 ** (1 / 3), rtol=1e-2)
    assert backend.run(F.lp_pool1d, x, 1, 2).astype(np.float64).tolist() == [[[-2, 2]]]
    (grad,) = backend.run(F.lp_pool1d_backward, np.ones_like(x[..., ::2]), x, 3, 2)
    assert np.isnan(grad.astype(np.float64)).tolist() == [[[True, True, False, False]]]


@pytest.mark.parametrize("power", [1, 2, 2.5, 3])
def test_the_gradient_of_a_window_of_zeros_is_zero(backend: ArrayBackend, power: float) -> None:
    x = np.array([[0.0, 0, 0, 1]])
    (grad,) = backend.run(F.lp_pool1d_backward, np.ones((1, 3)), x, power, 2, 1)
    np.testing.assert_array_equal(grad, [[0, 0, 1 if power == 1 else 0, 1]])


def test_an_overhanging_lp_window_counts_as_full_of_its_mean(backend: ArrayBackend) -> None:
    x = np.array([[1.0, 1, 2]])
    np.testing.assert_allclose(backend.run(F.lp_pool1d, x, 2, 2, ceil_mode=True), [[2**0.5, 8**0.5]])
    np.testing.assert_allclose(backend.run(F.lp_pool1d, x, 2, 2, padding=((0, 1),)), [[2**0.5, 2]])


def test_adaptive_windows_that_begin_together_add_up(backend: ArrayBackend) -> None:
    """To a larger size: the windows are {0}, {0, 1}, {1}."""
    x = np.array([[[2.0, 6]]])
    assert backend.run(F.adaptive_avg_pool1d, x, 3).tolist() == [[[2, 4, 6]]]
    (grad,) = backend.run(F.adaptive_avg_pool1d_backward, np.array([[[1.0, 2, 4]]]), x, 3)
    assert grad.tolist() == [[[2, 5]]]
