"""Max pooling over windows and over adaptive windows, its indices and its gradients, against loops and PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from array_backends import ArrayBackend
from hypothesis import given
from pooling_cases import (
    CONTENTS,
    INTEGERS,
    ORDERED,
    Adaptive,
    Array,
    Pool,
    adaptives,
    as_tuple,
    assert_as_torch,
    assert_channels_last,
    assert_same_bits,
    of_batches,
    operation,
    pools,
    run,
    torch_pools,
    torch_tensor,
)
from sample import examples
from strategies import COMPLEX, FLOATS, ORDERS, arranged, dtype_of, numbers
from tolerances import assert_close

import gpucnn.functional as F

RANKS = (1, 2, 3)


def lowest(dtype: str) -> Any:
    """What the maximum of nothing is."""
    return np.iinfo(dtype).min if dtype in INTEGERS else -np.inf


def assert_equal(actual: Array, expected: Array, dtype: Any) -> None:
    """Raise unless a maximum is the very number that the oracle finds, in `dtype`."""
    assert actual.dtype == dtype
    np.testing.assert_array_equal(reference.wide(actual), expected)


# --- Against the oracle -------------------------------------------------------------------------------------------


@examples(400)
@given(pools(ORDERED, CONTENTS))
def test_maxima_and_indices(backend: ArrayBackend, pool: Pool) -> None:
    x = pool.input()
    expected = of_batches(lambda x: reference.max_pool(x, *pool.geometry, ceil_mode=pool.ceil_mode), pool.batched, x)
    max_pool = operation("max_pool", pool.rank)
    y, indices = run(backend, max_pool, x, **pool.options, return_indices=True)
    assert_equal(y, expected[0], x.dtype)
    assert_equal(indices, expected[1], np.int64)
    assert_equal(run(backend, max_pool, x, **pool.options), expected[0], x.dtype)


@examples(400)
@given(pools(ORDERED, CONTENTS))
def test_gradient(backend: ArrayBackend, pool: Pool) -> None:
    x = pool.input()
    _, indices = of_batches(lambda x: reference.max_pool(x, *pool.geometry, ceil_mode=pool.ceil_mode), pool.batched, x)
    grad = pool.grad(indices.shape)
    expected = of_batches(
        lambda x, grad, indices: reference.max_pool_backward(grad, indices, x.shape), pool.batched, x, grad, indices
    )
    backward = operation("max_pool", pool.rank, "_backward")
    (result,) = run(backend, backward, grad, x, **pool.options)
    assert_close(result, expected, x.dtype)
    (handed_over,) = run(backend, backward, grad, x, **pool.options, indices=indices, needs=(True,))
    assert_same_bits(handed_over, result)
    assert backend.run(backward, grad, x, **pool.options, needs=(False,)) == (None,)


@examples(250)
@given(adaptives(ORDERED, CONTENTS))
def test_adaptive_maxima_and_indices(backend: ArrayBackend, case: Adaptive) -> None:
    x = case.input()
    expected = of_batches(lambda x: reference.adaptive_max_pool(x, case.out), case.batched, x)
    adaptive_max_pool = operation("adaptive_max_pool", case.rank)
    y, indices = run(backend, adaptive_max_pool, x, case.output_size, return_indices=True)
    assert_equal(y, expected[0], x.dtype)
    assert_equal(indices, expected[1], np.int64)
    assert_equal(run(backend, adaptive_max_pool, x, case.output_size), expected[0], x.dtype)


@examples(250)
@given(adaptives(ORDERED, CONTENTS))
def test_adaptive_gradient(backend: ArrayBackend, case: Adaptive) -> None:
    x, grad = case.input(), case.grad()
    _, indices = of_batches(lambda x: reference.adaptive_max_pool(x, case.out), case.batched, x)
    expected = of_batches(
        lambda x, grad, indices: reference.max_pool_backward(grad, indices, x.shape), case.batched, x, grad, indices
    )
    backward = operation("adaptive_max_pool", case.rank, "_backward")
    (result,) = run(backend, backward, grad, x, case.output_size)
    assert_close(result, expected, x.dtype)
    (handed_over,) = run(backend, backward, grad, x, case.output_size, indices=indices, needs=(True,))
    assert_same_bits(handed_over, result)
    assert backend.run(backward, grad, x, case.output_size, needs=(False,)) == (None,)


@pytest.mark.parametrize("rank", RANKS)
def test_gradient_is_the_slope(backend: ArrayBackend, rng: np.random.Generator, rank: int) -> None:
    shape = (1, 2, *(5, 4, 3)[:rank])
    x = rng.permutation(float(np.prod(shape)) * np.linspace(0, 1, int(np.prod(shape)))).reshape(shape)
    for name, options in (
        ("max_pool", {"kernel_size": 2, "stride": 1, "padding": ((1, 0),) * rank, "dilation": 2}),
        ("adaptive_max_pool", {"output_size": 2}),
    ):
        y = backend.run(operation(name, rank), x, **options)
        grad = rng.standard_normal(y.shape)
        slope = reference.finite_difference(
            lambda x, name=name, options=options: backend.run(operation(name, rank), x, **options), x, grad
        )
        (result,) = backend.run(operation(name, rank, "_backward"), grad, x, **options)
        np.testing.assert_allclose(result, slope, atol=1e-6)


# --- Against PyTorch ----------------------------------------------------------------------------------------------


@examples(300)
@given(torch_pools("max", CONTENTS))
def test_agrees_with_torch(backend: ArrayBackend, torch: Any, pool: Pool) -> None:
    x, w = pool.input(), pool.windows
    name = f"max_pool{w.rank}d"
    arguments = (w.kernel, pool.stride, w.padding, w.dilation, pool.ceil_mode)  # in PyTorch's order
    y, indices = backend.run(getattr(F, name), x, *arguments, True)
    tensor = torch_tensor(torch, x, requires_grad=True)
    expected, positions = getattr(torch.nn.functional, name)(tensor, *arguments, True)
    np.testing.assert_array_equal(y, expected.detach().numpy())
    np.testing.assert_array_equal(backend.run(getattr(F, name), x, *arguments), expected.detach().numpy())
    read = indices >= 0  # PyTorch's index of a window that reads nothing is some position
    np.testing.assert_array_equal(indices[read], positions.numpy()[read])
    grad = np.where(read, pool.grad(y.shape), 0)
    expected.backward(torch_tensor(torch, grad))
    assert_as_torch(backend.run(getattr(F, name + "_backward"), grad, x, *arguments, True)[0], tensor.grad)


@examples(200)
@given(adaptives(("float32", "float64"), CONTENTS).filter(lambda case: 0 not in case.lead))
def test_adaptive_agrees_with_torch(backend: ArrayBackend, torch: Any, case: Adaptive) -> None:
    x, grad = case.input(), case.grad()
    name = f"adaptive_max_pool{case.rank}d"
    y, indices = backend.run(getattr(F, name), x, case.out, True)
    tensor = torch_tensor(torch, x, requires_grad=True)
    expected, positions = getattr(torch.nn.functional, name)(tensor, case.out, True)
    np.testing.assert_array_equal(y, expected.detach().numpy())
    np.testing.assert_array_equal(indices, positions.numpy())
    expected.backward(torch_tensor(torch, grad))
    assert_as_torch(backend.run(getattr(F, name + "_backward"), grad, x, case.out)[0], tensor.grad)


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


@pytest.mark.parametrize(("padding", "expected"), [("same", [2, 4, 5]), ("same_lower", [1, 3, 5]), ("valid", [2, 4])])
def test_named_padding(backend: ArrayBackend, padding: str, expected: list[int]) -> None:
    x = np.arange(6.0).reshape(1, 1, 6)
    assert backend.run(F.max_pool1d, x, 3, 2, padding).tolist() == [[expected]]


def test_stride_is_the_window_where_it_is_none(backend: ArrayBackend, rng: np.random.Generator) -> None:
    x = rng.standard_normal((1, 1, 8, 9))
    assert_same_bits(backend.run(F.max_pool2d, x, (2, 3)), backend.run(F.max_pool2d, x, (2, 3), (2, 3)))
    assert backend.run(F.max_pool2d, x, (2, 3)).shape == (1, 1, 4, 3)


# --- Arrays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("dtype", ORDERED)
def test_an_empty_batch_gives_an_empty_result(backend: ArrayBackend, rank: int, dtype: str) -> None:
    x = np.zeros((0, 2, *(5,) * rank), dtype_of(dtype))
    for name, option in (("max_pool", 2), ("adaptive_max_pool", 2)):
        y, indices = backend.run(operation(name, rank), x, option, return_indices=True)
        assert y.shape == indices.shape == (0, 2, *(2,) * rank)
        assert (y.dtype, indices.dtype) == (x.dtype, np.int64)
        for given_indices in (None, indices):
            (grad,) = backend.run(operation(name, rank, "_backward"), y, x, option, indices=given_indices)
            assert (grad.shape, grad.dtype) == (x.shape, x.dtype)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("order", ORDERS)
def test_results_keep_the_memory_order(
    backend: ArrayBackend, rng: np.random.Generator, rank: int, batched: bool, order: str
) -> None:
    lead = (2, 3) if batched else (3,)
    x = arranged(numbers(rng, (*lead, *(5,) * rank), "float32"), order, batched)
    grad = arranged(numbers(rng, (*lead, *(2,) * rank), "float32"), order, batched)
    for name, options in (
        ("max_pool", {"kernel_size": 3, "stride": 2}),
        ("max_pool", {"kernel_size": 2, "stride": 3, "padding": 1, "dilation": 2}),
        ("adaptive_max_pool", {"output_size": 2}),
    ):
        results = [
            *as_tuple(backend.run(operation(name, rank), x, **options)),
            *backend.run(operation(name, rank), x, **options, return_indices=True),
            *backend.run(operation(name, rank, "_backward"), grad, x, **options),
        ]
        for result in results:
            if order == "channels_last":
                assert_channels_last(result, rank)
            else:
                assert result.flags.c_contiguous


@pytest.mark.parametrize("rank", RANKS)
def test_a_window_of_one_copies(backend: ArrayBackend, rng: np.random.Generator, rank: int) -> None:
    x = rng.standard_normal((2, 3, *(3,) * rank))
    for name, option in (("max_pool", 1), ("adaptive_max_pool", None), ("adaptive_max_pool", 3)):
        y, indices = run(backend, operation(name, rank), x, option, return_indices=True)
        assert_same_bits(y, x)
        assert_same_bits(run(backend, operation(name, rank), x, option), x)
        np.testing.assert_array_equal(indices.reshape(2, 3, -1), np.broadcast_to(np.arange(3**rank), (2, 3, 3**rank)))
        assert indices.flags.writeable
        assert_same_bits(run(backend, operation(name, rank, "_backward"), x, x, option)[0], x)


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


@pytest.mark.parametrize("name", ["max_pool2d", "adaptive_max_pool2d"])
def test_wrong_indices(backend: ArrayBackend, name: str) -> None:
    x, grad = np.ones((1, 1, 4, 4)), np.ones((1, 1, 2, 2))
    backward = getattr(F, name + "_backward")
    indices = np.zeros(grad.shape, np.int64)
    with pytest.raises(TypeError, match=f"^{name}_backward: indices has dtype float64, expected an integer dtype$"):
        backend.run(backward, grad, x, 2, indices=np.zeros(grad.shape))
    with pytest.raises(ValueError, match=rf"^{name}_backward: indices has shape \(1, 4\), expected \(1, 1, 2, 2\)$"):
        backend.run(backward, grad, x, 2, indices=indices.reshape(1, 4))


@pytest.mark.parametrize("wrong", [16, -2])
@pytest.mark.parametrize("name", ["max_pool2d", "adaptive_max_pool2d"])
def test_indices_out_of_the_plane(host_backend: ArrayBackend, name: str, wrong: int) -> None:
    x, grad = np.ones((1, 1, 4, 4)), np.ones((1, 1, 2, 2))
    indices = np.array([[[[0, 0], [wrong, 0]]]])
    with pytest.raises(ValueError, match=rf"^{name}_backward: indices hold {wrong}, expected positions .*\[0, 16\)"):
        host_backend.run(getattr(F, name + "_backward"), grad, x, 2, indices=indices)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("dtype", [*COMPLEX, "bool"])
def test_what_has_no_order_is_refused(backend: ArrayBackend, rank: int, dtype: str) -> None:
    x = np.ones((1, 1, *(4,) * rank), dtype)
    for name in ("max_pool", "adaptive_max_pool"):
        with pytest.raises(TypeError, match=f"^{name}{rank}d: input has dtype {dtype}, expected floating-point"):
            backend.run(operation(name, rank), x, 2)
        with pytest.raises(TypeError, match=f"^{name}{rank}d_backward: grad_output has dtype {dtype}"):
            backend.run(operation(name, rank, "_backward"), x, x, 2)


@pytest.mark.parametrize("rank", RANKS)
def test_a_gradient_of_another_shape_is_refused(backend: ArrayBackend, rank: int) -> None:
    x = np.ones((1, 1, *(4,) * rank))
    for name in ("max_pool", "adaptive_max_pool"):
        with pytest.raises(ValueError, match=f"^{name}{rank}d_backward: grad_output has shape"):
            backend.run(operation(name, rank, "_backward"), x, x, 2)


def test_16_bit_gradients_accumulate_in_float32(backend: ArrayBackend) -> None:
    """441 windows share one maximum: a bfloat16 sum of ones would stop at 256, a float16 one would drift."""
    x = np.zeros((1, 41, 41))
    x[0, 20, 20] = 1
    for dtype in ("float16", "bfloat16"):
        grad = np.full((1, 21, 21), 1.0009765625, dtype_of(dtype))
        (result,) = backend.run(F.max_pool2d_backward, grad, x.astype(grad.dtype), 21, 1)
        assert result[0, 20, 20] == np.float32(441 * np.float32(grad[0, 0, 0])).astype(grad.dtype)


@pytest.mark.parametrize(("name", "out"), [("adaptive_max_pool2d", 0), ("adaptive_max_pool2d", (2, -1))])
def test_a_size_below_one_is_refused(backend: ArrayBackend, name: str, out: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}: output_size is .*, expected at least 1"):
        backend.run(getattr(F, name), np.ones((1, 1, 4, 4)), out)
