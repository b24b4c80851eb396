"""Max unpooling and bed of nails and their gradients, against loops and PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import reference
from array_backends import ArrayBackend
from hypothesis import assume, given
from hypothesis import strategies as st
from pooling_cases import (
    INTEGERS,
    LEADS,
    Array,
    Pool,
    assert_as_torch,
    assert_channels_last,
    assert_same_bits,
    of_batches,
    operation,
    run,
    torch_pools,
    torch_tensor,
)
from sample import examples
from strategies import COMPLEX, FLOATS, ORDERS, arranged, dtype_of, numbers, paddings, pair_of
from tolerances import assert_close

import gpucnn.functional as F

RANKS = (1, 2, 3)
ALL = (*FLOATS, *COMPLEX, *INTEGERS)
seeds = st.integers(0, 2**16)


def sizes_of(rank: int, most: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*[st.integers(1, most)] * rank)


def default_size(sizes: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...], padding: Any) -> list[int]:
    """The size that unpooling gives by itself."""
    if padding in ("same", "same_lower"):
        return [size * step for size, step in zip(sizes, stride, strict=True)]
    axes = enumerate(zip(sizes, kernel, stride, strict=True))
    return [(size - 1) * step - sum(pair_of(padding, axis)) + window for axis, (size, window, step) in axes]


@st.composite
def output_forms(draw: st.DrawFn, lead: tuple[int, ...], out: tuple[int, ...], default: list[int]) -> Any:
    """One of the forms in which an output size may be given."""
    forms: list[Any] = [out, list(out), (*lead, *out)]
    if len(set(out)) == 1:
        forms.append(out[0])
    if default == list(out):
        forms.append(None)
    return draw(st.sampled_from(forms))


# --- Max unpooling ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unpool:
    """One call of max unpooling, with indices that repeat and miss."""

    sizes: tuple[int, ...]
    out: tuple[int, ...]
    lead: tuple[int, ...]
    options: dict[str, Any]
    dtype: str
    index_dtype: str
    orders: tuple[str, str]
    seed: int

    @property
    def batched(self) -> bool:
        return len(self.lead) == 2

    def arrays(self) -> tuple[Array, Array, Array]:
        """Values, indices and the output's gradient."""
        rng = np.random.default_rng(self.seed)
        x = numbers(rng, (*self.lead, *self.sizes), self.dtype)
        least = 0 if self.index_dtype.startswith("u") else -1
        indices = rng.integers(least, math.prod(self.out), x.shape).astype(self.index_dtype)
        grad = numbers(rng, (*self.lead, *self.out), self.dtype)
        one, other = self.orders
        return (*(arranged(array, one, self.batched) for array in (x, grad)), arranged(indices, other, self.batched))


@st.composite
def unpools(draw: st.DrawFn) -> Unpool:
    rank = draw(st.integers(1, 3))
    sizes, kernel = draw(sizes_of(rank, 4 if rank < 3 else 2)), draw(sizes_of(rank, 3))
    stride = draw(st.one_of(st.none(), sizes_of(rank, 3)))
    padding, lead = draw(paddings(kernel)), draw(st.sampled_from(LEADS))
    steps = kernel if stride is None else stride
    default = default_size(sizes, kernel, steps, padding)
    assume(all(usual + step > 1 for usual, step in zip(default, steps, strict=True)))
    ranges = ((max(1, usual - step + 1), usual + step - 1) for usual, step in zip(default, steps, strict=True))
    out = tuple(draw(st.integers(*limits)) for limits in ranges)
    asked = draw(output_forms(lead, out, default))
    return Unpool(
        sizes,
        out,
        lead,
        {"kernel_size": kernel, "stride": stride, "padding": padding, "output_size": asked},
        draw(st.sampled_from(ALL)),
        draw(st.sampled_from(("int64", "int64", *INTEGERS[1:]))),
        draw(st.tuples(st.sampled_from(ORDERS), st.sampled_from(ORDERS))),
        draw(seeds),
    )


@examples(500)
@given(unpools())
def test_max_unpool(backend: ArrayBackend, case: Unpool) -> None:
    x, grad, indices = case.arrays()
    expected = of_batches(lambda x, at: reference.max_unpool(x, at, case.out), case.batched, x, indices)
    max_unpool = operation("max_unpool", len(case.sizes))
    assert_close(run(backend, max_unpool, x, indices, **case.options), expected, x.dtype)
    backward = operation("max_unpool", len(case.sizes), "_backward")
    result, none = run(backend, backward, grad, x, indices, **case.options, needs=(True, True))
    expected = of_batches(lambda grad, at: reference.max_unpool_backward(grad, at), case.batched, grad, indices)
    assert_close(result, expected, x.dtype)
    assert none is None
    assert backend.run(backward, grad, x, indices, **case.options, needs=(False, True)) == (None, None)


@examples(300)
@given(st.data())
def test_unpooling_puts_maxima_where_they_were(backend: ArrayBackend, data: st.DataObject) -> None:
    """Whatever the windows, the size that was pooled is one that unpooling takes."""
    rank = data.draw(st.integers(1, 3))
    kernel, stride = data.draw(sizes_of(rank, 4)), data.draw(sizes_of(rank, 4))
    padding = data.draw(paddings(tuple(k - 1 for k in kernel)))
    least = [1 if padding in ("same", "same_lower") else k - sum(pair_of(padding, a)) for a, k in enumerate(kernel)]
    sizes = tuple(data.draw(st.integers(max(1, few), max(6, few))) for few in least)
    lead = data.draw(st.sampled_from(LEADS))
    shape = (*lead, *sizes)
    x = np.random.default_rng(data.draw(seeds)).permutation(math.prod(shape)).reshape(shape) + 1.0
    options = {"kernel_size": kernel, "stride": stride, "padding": padding}
    ceil_mode = data.draw(st.booleans())
    y, indices = backend.run(operation("max_pool", rank), x, **options, ceil_mode=ceil_mode, return_indices=True)
    up = backend.run(operation("max_unpool", rank), y, indices, **options, output_size=sizes)
    assert up.shape == x.shape
    np.testing.assert_array_equal(up, np.where(np.isin(x, y), x, 0))
    (back,) = backend.run(operation("max_unpool", rank, "_backward"), x, y, indices, **options, output_size=sizes)[:1]
    assert_same_bits(back, np.where(indices < 0, 0, y))


@examples(300)
@given(torch_pools("avg"))
def test_max_unpool_agrees_with_torch(backend: ArrayBackend, torch: Any, pool: Pool) -> None:
    x, w = pool.input(), pool.windows
    name, options = f"max_unpool{w.rank}d", (w.kernel, pool.stride, w.padding)
    tensor = torch_tensor(torch, x)
    y, indices = getattr(torch.nn.functional, f"max_pool{w.rank}d")(tensor, *options, 1, pool.ceil_mode, True)
    y.requires_grad_()
    asked = x.shape if pool.batched else w.sizes
    expected = getattr(torch.nn.functional, name)(y, indices, *options, asked)
    maxima, at = y.detach().numpy(), indices.numpy()
    assert_as_torch(backend.run(getattr(F, name), maxima, at, *options, asked), expected)
    grad = pool.grad(x.shape)
    expected.backward(torch_tensor(torch, grad))
    result, _ = backend.run(getattr(F, name + "_backward"), grad, maxima, at, *options, asked)
    assert_as_torch(result, y.grad)


def test_of_values_with_one_index_the_last_stays_and_minus_one_is_nowhere(backend: ArrayBackend) -> None:
    x = np.array([[[1.0, 2], [3, 4]]])
    indices = np.array([[[5, 5], [-1, 0]]])
    y = backend.run(F.max_unpool2d, x, indices, 2)
    assert y.tolist() == [[[4, 0, 0, 0], [0, 2, 0, 0], [0] * 4, [0] * 4]]
    grad, _ = backend.run(F.max_unpool2d_backward, np.arange(1.0, 17).reshape(1, 4, 4), x, indices, 2)
    assert grad.tolist() == [[[6, 6], [0, 1]]]


def test_unpooling_where_the_default_size_is_nothing(backend: ArrayBackend) -> None:
    """One value pooled by a window of 2 with padding 1 and stride 4: (1 - 1) * 4 - 2 + 2 = 0, but it was 1."""
    x, indices = np.array([[5.0]]), np.array([[0]])
    assert backend.run(F.max_unpool1d, x, indices, 2, 4, 1, 1).tolist() == [[5]]
    with pytest.raises(ValueError, match=r"^max_unpool1d: output of axis 0 has size 0, expected at least 1$"):
        backend.run(F.max_unpool1d, x, indices, 2, 4, 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"output_size": (8, 4)}, "output_size of axis 0 is 8, expected more than 4 and less than 8"),
        ({"output_size": (6, 2)}, "output_size of axis 1 is 2, expected more than 2 and less than 6"),
        ({"output_size": (6,)}, "output_size has 1 values, expected 2"),
        ({"output_size": (1, 3, 6, 4)}, r"output_size begins with \(1, 3\), expected \(2, 3\)"),
        ({"indices": np.zeros((2, 3, 6), np.int64)}, r"indices has shape \(2, 3, 6\), expected \(2, 3, 3, 2\)"),
        ({"indices": np.full((2, 3, 3, 2), 24)}, r"indices hold 24, expected positions in the plane, \[0, 24\)"),
        ({"indices": np.full((2, 3, 3, 2), -2)}, r"indices hold -2, expected positions in the plane, \[0, 24\)"),
        ({"indices": np.full((2, 3, 3, 2), 2**63, np.uint64)}, f"indices hold {2**63}, expected positions"),
        ({"input": np.zeros((3, 2))}, "input has 2 dimensions, expected 4"),
        ({"grad_output": np.zeros((2, 3, 6, 5))}, "grad_output has shape"),
    ],
)
def test_unpooling_that_is_refused(backend: ArrayBackend, wrong: dict[str, Any], message: str) -> None:
    if " hold" in message and not backend.primitives.host:
        pytest.skip("values on a device are not looked at, that would wait for it")
    arguments = {"input": np.zeros((2, 3, 3, 2)), "indices": np.zeros((2, 3, 3, 2), np.int64), "kernel_size": 2}
    if "grad_output" not in wrong:
        with pytest.raises(ValueError, match=f"^max_unpool2d: {message}"):
            backend.run(F.max_unpool2d, **arguments | wrong)
    with pytest.raises(ValueError, match=f"^max_unpool2d_backward: {message}"):
        backend.run(F.max_unpool2d_backward, **{"grad_output": np.zeros((2, 3, 6, 4))} | arguments | wrong)


@pytest.mark.parametrize("dtype", ["float64", "bool"])
def test_indices_are_integers(backend: ArrayBackend, dtype: str) -> None:
    x = np.zeros((1, 2, 2))
    with pytest.raises(TypeError, match=f"^max_unpool1d: indices has dtype {dtype}, expected an integer dtype$"):
        backend.run(F.max_unpool1d, x, x.astype(dtype), 2)


# --- Bed of nails -------------------------------------------------------------------------------------------------


@examples(300)
@given(st.data())
def test_bed_of_nails(backend: ArrayBackend, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))
    sizes, factors = data.draw(sizes_of(rank, 4)), data.draw(sizes_of(rank, 3))
    asked = factors[0] if len(set(factors)) == 1 else factors
    lead, order = data.draw(st.sampled_from(LEADS)), data.draw(st.sampled_from(ORDERS))
    dtype, batched, rng = data.draw(st.sampled_from(ALL)), len(lead) == 2, np.random.default_rng(data.draw(seeds))
    x = arranged(numbers(rng, (*lead, *sizes), dtype), order, batched)
    expected = of_batches(lambda x: reference.bed_of_nails(x, factors), batched, x)
    assert_close(run(backend, operation("bed_of_nails", rank), x, asked), expected, x.dtype)
    grad = arranged(numbers(rng, expected.shape, dtype), order, batched)
    expected = of_batches(lambda grad: reference.bed_of_nails_backward(grad, factors), batched, grad)
    backward = operation("bed_of_nails", rank, "_backward")
    assert_close(run(backend, backward, grad, x, asked, needs=(True,))[0], expected, x.dtype)
    assert backend.run(backward, grad, x, asked, needs=(False,)) == (None,)


@pytest.mark.parametrize("rank", RANKS)
def test_nails_of_one_copy(backend: ArrayBackend, rng: np.random.Generator, rank: int) -> None:
    x = rng.standard_normal((2, 3, *(4,) * rank))
    assert_same_bits(run(backend, operation("bed_of_nails", rank), x, 1), x)
    assert_same_bits(run(backend, operation("bed_of_nails", rank, "_backward"), x, x, 1)[0], x)


@pytest.mark.parametrize("rank", RANKS)
def test_nails_are_an_unpooling_to_first_corners(backend: ArrayBackend, rng: np.random.Generator, rank: int) -> None:
    x = rng.standard_normal((2, 3, *(2,) * rank))
    plane = np.arange(6**rank).reshape((6,) * rank)[(slice(None, None, 3),) * rank]
    corners = np.broadcast_to(plane, x.shape)
    expected = backend.run(operation("max_unpool", rank), x, corners, 3)
    assert_same_bits(backend.run(operation("bed_of_nails", rank), x, 3), expected)


# --- Both ---------------------------------------------------------------------------------------------------------


def ways_up(rank: int, x: Array, grad: Array) -> list[tuple[Any, tuple[Any, ...], int]]:
    """Calls that double an image of any rank, and their gradients."""
    plane = np.arange(math.prod(x.shape[-rank:])).reshape(x.shape[-rank:])
    calls: list[Any] = []
    for name, arrays in (("max_unpool", (x, np.broadcast_to(plane, x.shape))), ("bed_of_nails", (x,))):
        calls.append((operation(name, rank), arrays, 2))
        calls.append((operation(name, rank, "_backward"), (grad, *arrays), 2))
    return calls


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("order", ORDERS)
def test_results_keep_the_memory_order(
    backend: ArrayBackend, rng: np.random.Generator, rank: int, batched: bool, order: str
) -> None:
    lead = (2, 3) if batched else (3,)
    x, grad = (arranged(numbers(rng, (*lead, *(n,) * rank), "float32"), order, batched) for n in (3, 6))
    for function, arrays, factor in ways_up(rank, x, grad):
        result = backend.run(function, *arrays, factor)
        result = result[0] if isinstance(result, tuple) else result
        if order == "channels_last":
            assert_channels_last(result, rank)
        else:
            assert result.flags.c_contiguous


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("dtype", ALL)
def test_an_empty_batch_gives_an_empty_result(backend: ArrayBackend, rank: int, dtype: str) -> None:
    x, grad = (np.zeros((0, 2, *(size,) * rank), dtype_of(dtype)) for size in (3, 6))
    for function, arrays, factor in ways_up(rank, x, grad):
        result = backend.run(function, *arrays, factor)
        backward = isinstance(result, tuple)
        result = result[0] if backward else result
        assert (result.shape, result.dtype) == (x.shape if backward else grad.shape, x.dtype)


@pytest.mark.parametrize("rank", RANKS)
def test_gradients_of_another_shape_are_refused(backend: ArrayBackend, rank: int) -> None:
    x = np.zeros((1, 2, *(3,) * rank))
    for function, arrays, factor in ways_up(rank, x, x):
        if function.__name__.endswith("_backward"):
            with pytest.raises(ValueError, match=f"^{function.__name__}: grad_output has shape"):
                backend.run(function, *arrays, factor)
