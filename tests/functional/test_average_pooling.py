"""Average, sum, lp and adaptive average pooling and their gradients, against loops and PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from array_backends import ArrayBackend
from hypothesis import given
from hypothesis import strategies as st
from pooling_cases import (
    CONTENTS,
    INTEGERS,
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
LINEAR = (*FLOATS, *COMPLEX)
ALL = (*FLOATS, *COMPLEX, *INTEGERS)
FAMILIES = {
    "avg_pool": ({"kernel_size": 2}, LINEAR),
    "sum_pool": ({"kernel_size": 2}, ALL),
    "lp_pool": ({"norm_type": 2, "kernel_size": 2}, FLOATS),
    "adaptive_avg_pool": ({"output_size": 2}, LINEAR),
}
"""Options under which an image of 4 or 5 becomes one of 2, and the dtypes taken."""

TAKEN = [(name, dtype) for name, (_, dtypes) in FAMILIES.items() for dtype in dtypes]
divisors = st.sampled_from([None, None, 1, 3, -2, 2.5])
powers = st.sampled_from([1, 2, 3, 4, 0.5, 1.5])


def infinities_meet() -> Any:
    """NumPy warns of inf - inf, in the oracle too."""
    return np.errstate(invalid="ignore")


def for_power(x: Array, power: float) -> Array:
    """X, or for odd and fractional powers positive numbers in its place: no sum is negative or cancels."""
    return x if power in (2, 4) else (np.abs(x) + x.dtype.type(0.125)).astype(x.dtype)


# --- Average ------------------------------------------------------------------------------------------------------


@examples(300)
@given(pools(LINEAR, CONTENTS), st.booleans(), divisors)
def test_average(backend: ArrayBackend, pool: Pool, include: bool, divisor: float | None) -> None:
    x = pool.input()
    divided = {"count_include_pad": include, "divisor_override": divisor}
    avg_pool = operation("avg_pool", pool.rank)
    with infinities_meet():
        expected = of_batches(
            lambda x: reference.avg_pool(x, *pool.geometry, ceil_mode=pool.ceil_mode, **divided), pool.batched, x
        )
        assert_close(run(backend, avg_pool, x, **pool.options, **divided), expected, x.dtype)


@examples(300)
@given(pools(LINEAR), st.booleans(), divisors)
def test_average_gradient(backend: ArrayBackend, pool: Pool, include: bool, divisor: float | None) -> None:
    x, sizes = pool.input(), pool.windows.sizes
    divided = {"count_include_pad": include, "divisor_override": divisor}
    grad = pool.grad((*pool.lead, *reference.output_size(sizes, *pool.geometry, ceil_mode=pool.ceil_mode)))
    expected = of_batches(
        lambda grad: reference.avg_pool_backward(grad, sizes, *pool.geometry, **divided), pool.batched, grad
    )
    backward = operation("avg_pool", pool.rank, "_backward")
    (result,) = run(backend, backward, grad, x, **pool.options, **divided, needs=(True,))
    assert_close(result, expected, x.dtype)
    assert backend.run(backward, grad, x, **pool.options, **divided, needs=(False,)) == (None,)


@examples(250)
@given(torch_pools("avg", CONTENTS), st.booleans(), st.sampled_from([None, 1, 5]))
def test_average_agrees_with_torch(
    backend: ArrayBackend, torch: Any, pool: Pool, include: bool, divisor: int | None
) -> None:
    x, w = pool.input(), pool.windows
    name = f"avg_pool{w.rank}d"
    arguments = [w.kernel, pool.stride, w.padding, pool.ceil_mode, include]  # in PyTorch's order
    if w.rank > 1:  # PyTorch's 1-d average has no other divisor
        arguments.append(divisor)
    with infinities_meet():
        y = backend.run(getattr(F, name), x, *arguments)
    tensor = torch_tensor(torch, x, requires_grad=True)
    expected = getattr(torch.nn.functional, name)(tensor, *arguments)
    assert_as_torch(y, expected)
    grad = pool.grad(y.shape)
    expected.backward(torch_tensor(torch, grad))
    assert_as_torch(backend.run(getattr(F, name + "_backward"), grad, x, *arguments)[0], tensor.grad)


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


@pytest.mark.parametrize("name", ["avg_pool2d", "avg_pool2d_backward"])
def test_divisors_that_are_refused(backend: ArrayBackend, name: str) -> None:
    arrays = (np.ones((1, 1, 2, 2)), np.ones((1, 1, 4, 4)))[-1 if name == "avg_pool2d" else 0 :]
    with pytest.raises(ValueError, match=f"^{name}: divisor_override is 0, expected another number$"):
        backend.run(getattr(F, name), *arrays, 2, divisor_override=0)
    with pytest.raises(ValueError, match=f"^{name}: divisor_override is nan"):
        backend.run(getattr(F, name), *arrays, 2, divisor_override=np.nan)
    for wrong in ("4", True, (4, 4)):
        with pytest.raises(TypeError, match=f"^{name}: divisor_override is .*, expected a number$"):
            backend.run(getattr(F, name), *arrays, 2, divisor_override=wrong)


# --- Sum ----------------------------------------------------------------------------------------------------------


@examples(250)
@given(pools(ALL, CONTENTS))
def test_sum(backend: ArrayBackend, pool: Pool) -> None:
    x = pool.input()
    with infinities_meet():
        expected = of_batches(
            lambda x: reference.sum_pool(x, *pool.geometry, ceil_mode=pool.ceil_mode), pool.batched, x
        )
        assert_close(run(backend, operation("sum_pool", pool.rank), x, **pool.options), expected, x.dtype)


@examples(250)
@given(pools(ALL))
def test_sum_gradient(backend: ArrayBackend, pool: Pool) -> None:
    x, sizes = pool.input(), pool.windows.sizes
    grad = pool.grad((*pool.lead, *reference.output_size(sizes, *pool.geometry, ceil_mode=pool.ceil_mode)))
    expected = of_batches(lambda grad: reference.sum_pool_backward(grad, sizes, *pool.geometry), pool.batched, grad)
    backward = operation("sum_pool", pool.rank, "_backward")
    (result,) = run(backend, backward, grad, x, **pool.options, needs=(True,))
    assert_close(result, expected, x.dtype)
    assert backend.run(backward, grad, x, **pool.options, needs=(False,)) == (None,)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integer_sums_wrap_around(backend: ArrayBackend, dtype: str) -> None:
    most = np.iinfo(dtype).max
    x = np.array([[[most, 2]]], dtype)
    assert backend.run(F.sum_pool1d, x, 2).item() == np.iinfo(dtype).min + 1
    (grad,) = backend.run(F.sum_pool1d_backward, np.array([[[most, 2]]], dtype), np.zeros((1, 1, 3), dtype), 2, 1)
    assert grad.ravel().tolist() == [most, np.iinfo(dtype).min + 1, 2]


# --- Lp -----------------------------------------------------------------------------------------------------------


@examples(200)
@given(pools(FLOATS), powers)
def test_lp(backend: ArrayBackend, pool: Pool, power: float) -> None:
    x = for_power(pool.input(), power)
    expected = of_batches(
        lambda x: reference.lp_pool(x, power, *pool.geometry, ceil_mode=pool.ceil_mode), pool.batched, x
    )
    assert_close(run(backend, operation("lp_pool", pool.rank), x, power, **pool.options), expected, x.dtype)


@examples(200)
@given(pools(FLOATS), powers)
def test_lp_gradient(backend: ArrayBackend, pool: Pool, power: float) -> None:
    x, sizes = for_power(pool.input(), power), pool.windows.sizes
    grad = pool.grad((*pool.lead, *reference.output_size(sizes, *pool.geometry, ceil_mode=pool.ceil_mode)))
    expected = of_batches(
        lambda grad, x: reference.lp_pool_backward(grad, x, power, *pool.geometry, ceil_mode=pool.ceil_mode),
        pool.batched,
        grad,
        x,
    )
    backward = operation("lp_pool", pool.rank, "_backward")
    (result,) = run(backend, backward, grad, x, power, **pool.options, needs=(True,))
    assert_close(result, expected, x.dtype)
    assert backend.run(backward, grad, x, power, **pool.options, needs=(False,)) == (None,)


@examples(200)
@given(torch_pools("lp", ("numbers", "ties")), powers)
def test_lp_agrees_with_torch(backend: ArrayBackend, torch: Any, pool: Pool, power: float) -> None:
    """Among rounded numbers are windows of zeros, whose gradient is zero."""
    x = pool.input()
    x = x if power in (1, 2, 4) else for_power(x, power)
    w, name = pool.windows, f"lp_pool{pool.rank}d"
    kernel, stride = (w.kernel, pool.stride) if w.rank > 1 else (w.kernel[0], w.stride[0])
    arguments = (power, kernel, stride, pool.ceil_mode)  # in PyTorch's order
    y = backend.run(getattr(F, name), x, *arguments)
    tensor = torch_tensor(torch, x, requires_grad=True)
    expected = getattr(torch.nn.functional, name)(tensor, *arguments)
    assert_as_torch(y, expected)
    grad = pool.grad(y.shape)
    expected.backward(torch_tensor(torch, grad))
    assert_as_torch(backend.run(getattr(F, name + "_backward"), grad, x, *arguments)[0], tensor.grad)


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


@pytest.mark.parametrize("name", ["lp_pool1d", "lp_pool1d_backward"])
def test_powers_that_are_refused(backend: ArrayBackend, name: str) -> None:
    arrays = (np.ones((1, 2)), np.ones((1, 4)))[-1 if name == "lp_pool1d" else 0 :]
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"^{name}: norm_type is {float(wrong)}, expected more than 0$"):
            backend.run(getattr(F, name), *arrays, wrong, 2)
    for wrong in (np.inf, -np.inf, np.nan):
        with pytest.raises(ValueError, match=f"^{name}: norm_type is {wrong}, expected a finite number"):
            backend.run(getattr(F, name), *arrays, wrong, 2)
    with pytest.raises(TypeError, match=f"^{name}: norm_type is '2', expected a number$"):
        backend.run(getattr(F, name), *arrays, "2", 2)


# --- Adaptive average ---------------------------------------------------------------------------------------------


@examples(200)
@given(adaptives(LINEAR, CONTENTS))
def test_adaptive_average(backend: ArrayBackend, case: Adaptive) -> None:
    x = case.input()
    with infinities_meet():
        expected = of_batches(lambda x: reference.adaptive_avg_pool(x, case.out), case.batched, x)
        assert_close(run(backend, operation("adaptive_avg_pool", case.rank), x, case.output_size), expected, x.dtype)


@examples(200)
@given(adaptives(LINEAR))
def test_adaptive_average_gradient(backend: ArrayBackend, case: Adaptive) -> None:
    x, grad = case.input(), case.grad()
    expected = of_batches(lambda grad: reference.adaptive_avg_pool_backward(grad, case.sizes), case.batched, grad)
    backward = operation("adaptive_avg_pool", case.rank, "_backward")
    (result,) = run(backend, backward, grad, x, case.output_size, needs=(True,))
    assert_close(result, expected, x.dtype)
    assert backend.run(backward, grad, x, case.output_size, needs=(False,)) == (None,)


@examples(150)
@given(adaptives(("float32", "float64"), CONTENTS).filter(lambda case: 0 not in case.lead))
def test_adaptive_average_agrees_with_torch(backend: ArrayBackend, torch: Any, case: Adaptive) -> None:
    x, grad = case.input(), case.grad()
    name = f"adaptive_avg_pool{case.rank}d"
    with infinities_meet():
        y = backend.run(getattr(F, name), x, case.out)
    tensor = torch_tensor(torch, x, requires_grad=True)
    expected = getattr(torch.nn.functional, name)(tensor, case.out)
    assert_as_torch(y, expected)
    expected.backward(torch_tensor(torch, grad))
    assert_as_torch(backend.run(getattr(F, name + "_backward"), grad, x, case.out)[0], tensor.grad)


def test_adaptive_windows_that_begin_together_add_up(backend: ArrayBackend) -> None:
    """To a larger size: the windows are {0}, {0, 1}, {1}."""
    x = np.array([[[2.0, 6]]])
    assert backend.run(F.adaptive_avg_pool1d, x, 3).tolist() == [[[2, 4, 6]]]
    (grad,) = backend.run(F.adaptive_avg_pool1d_backward, np.array([[[1.0, 2, 4]]]), x, 3)
    assert grad.tolist() == [[[2, 5]]]


# --- All of them --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("avg_pool", {"kernel_size": 2, "stride": 1, "padding": 1, "dilation": 2, "count_include_pad": False}),
        ("sum_pool", {"kernel_size": 2, "stride": 3, "padding": 1, "ceil_mode": True}),
        ("lp_pool", {"norm_type": 3, "kernel_size": 2, "stride": 1, "padding": 1}),
        ("adaptive_avg_pool", {"output_size": 3}),
    ],
)
def test_gradient_is_the_slope(
    backend: ArrayBackend, rng: np.random.Generator, rank: int, name: str, options: dict[str, Any]
) -> None:
    x = rng.uniform(0.5, 2, (1, 2, *(5, 4, 2)[:rank]))
    y = backend.run(operation(name, rank), x, **options)
    grad = rng.standard_normal(y.shape)
    slope = reference.finite_difference(lambda x: backend.run(operation(name, rank), x, **options), x, grad)
    (result,) = backend.run(operation(name, rank, "_backward"), grad, x, **options)
    np.testing.assert_allclose(result, slope, atol=1e-6)


@pytest.mark.parametrize("name", ["avg_pool", "sum_pool"])
def test_complex_gradient_is_the_slope(backend: ArrayBackend, rng: np.random.Generator, name: str) -> None:
    x, grad = (numbers(rng, (1, 1, size), "complex128") for size in (5, 4))
    slope = reference.finite_difference(lambda x: backend.run(operation(name, 1), x, 2, 1), x, grad)
    (result,) = backend.run(operation(name, 1, "_backward"), grad, x, 2, 1)
    np.testing.assert_allclose(result, slope, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_floats_accumulate_in_float32(backend: ArrayBackend, dtype: str) -> None:
    """A 16-bit sum of 2048 ones stops growing on its way, along each axis; the sum of 24 largest values overflows."""
    ones = np.ones((1, 2048 // 32, 32), dtype_of(dtype))
    assert backend.run(F.sum_pool2d, ones, (64, 32)).item() == 2048
    assert backend.run(F.avg_pool2d, ones, (64, 32)).item() == 1
    long = np.ones((1, 4096), dtype_of(dtype))
    assert backend.run(F.sum_pool1d, long, 4096).item() == 4096
    assert backend.run(F.adaptive_avg_pool1d, long, 1).item() == 1
    assert backend.run(F.lp_pool1d, long, 2, 4096).item() == 64
    largest = np.full((1, 4, 6), 60000, dtype_of(dtype))
    assert (backend.run(F.avg_pool2d, largest, 2) == largest[0, 0, 0]).all()
    assert (backend.run(F.adaptive_avg_pool2d, largest, (2, 4)) == largest[0, 0, 0]).all()
    (grad,) = backend.run(F.sum_pool1d_backward, np.ones((1, 512), ones.dtype), np.ones((1, 1023), ones.dtype), 512, 1)
    assert grad.max() == 512
    (grad,) = backend.run(F.avg_pool1d_backward, largest[0], np.ones((4, 7), ones.dtype), 2, 1)
    assert (grad[:, 1:-1] == largest[0, 0, 0]).all()


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(("name", "dtype"), TAKEN)
def test_an_empty_batch_gives_an_empty_result(backend: ArrayBackend, rank: int, name: str, dtype: str) -> None:
    x = np.zeros((0, 2, *(5,) * rank), dtype_of(dtype))
    y = backend.run(operation(name, rank), x, **FAMILIES[name][0])
    assert (y.shape, y.dtype) == ((0, 2, *(2,) * rank), x.dtype)
    (grad,) = backend.run(operation(name, rank, "_backward"), y, x, **FAMILIES[name][0])
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
    for name, (options, _) in FAMILIES.items():
        results = [
            *as_tuple(backend.run(operation(name, rank), x, **options)),
            *backend.run(operation(name, rank, "_backward"), grad, x, **options),
        ]
        for result in results:
            if order == "channels_last":
                assert_channels_last(result, rank)
            else:
                assert result.flags.c_contiguous


@pytest.mark.parametrize("rank", RANKS)
def test_a_window_of_one_copies(backend: ArrayBackend, rng: np.random.Generator, rank: int) -> None:
    x = rng.uniform(1, 2, (2, 3, *(3,) * rank))
    for name, arguments in (
        ("avg_pool", (1,)),
        ("sum_pool", (1,)),
        ("lp_pool", (1, 1)),
        ("adaptive_avg_pool", (None,)),
    ):
        assert_same_bits(run(backend, operation(name, rank), x, *arguments), x)
        assert_same_bits(run(backend, operation(name, rank, "_backward"), x, x, *arguments)[0], x)


REFUSED = [(name, dtype) for name, (_, dtypes) in FAMILIES.items() for dtype in (*ALL, "bool") if dtype not in dtypes]


@pytest.mark.parametrize(("name", "dtype"), REFUSED)
def test_other_dtypes_are_refused(backend: ArrayBackend, name: str, dtype: str) -> None:
    x = np.ones((1, 4), dtype_of(dtype))
    with pytest.raises(TypeError, match=f"^{name}1d: input has dtype {dtype}, expected floating-point"):
        backend.run(operation(name, 1), x, **FAMILIES[name][0])
    with pytest.raises(TypeError, match=f"^{name}1d_backward: grad_output has dtype {dtype}, expected floating-point"):
        backend.run(operation(name, 1, "_backward"), x, x, **FAMILIES[name][0])


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_gradient_of_another_shape_is_refused(backend: ArrayBackend, rank: int, name: str) -> None:
    x = np.ones((1, 1, *(4,) * rank))
    with pytest.raises(ValueError, match=f"^{name}{rank}d_backward: grad_output has shape"):
        backend.run(operation(name, rank, "_backward"), x, x, **FAMILIES[name][0])
