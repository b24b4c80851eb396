"""Interpolation and its gradient in every mode, against loops and PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import reference
from array_backends import ArrayBackend
from hypothesis import given
from hypothesis import strategies as st
from pooling_cases import (
    INTEGERS,
    Array,
    assert_as_torch,
    assert_channels_last,
    assert_same_bits,
    content,
    run,
    torch_tensor,
)
from sample import examples
from strategies import COMPLEX, FLOATS, ORDERS, arranged, dtype_of, numbers
from tolerances import assert_close

import gpucnn.functional as F
from gpucnn.backends.numpy import resampling, threads

RANKS = (1, 2, 3)
LINEAR = (*FLOATS, *COMPLEX)
ALL = (*FLOATS, *COMPLEX, *INTEGERS)
LINEAR_MODE = {1: "linear", 2: "bilinear", 3: "trilinear"}
FACTORS = (0.3, 1 / 3, 0.5, 0.75, 1, 1.1, 1.3, 1.7, 2, 2.2, 2.5, 3, 3.7)


def modes(rank: int) -> tuple[str, str, str, str]:
    """The nearest modes come first."""
    return "nearest", "nearest-exact", "area", LINEAR_MODE[rank]


def sizes_to(rank: int, most: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*[st.integers(1, most)] * rank)


@dataclass(frozen=True)
class Resampling:
    """One call of an interpolation."""

    sizes: tuple[int, ...]
    options: dict[str, Any]
    out: tuple[int, ...]
    factors: tuple[float, ...] | None
    lead: tuple[int, int]
    dtype: str
    order: str
    seed: int

    @property
    def mode(self) -> str:
        mode: str = self.options["mode"]
        return mode

    @property
    def for_oracle(self) -> dict[str, Any]:
        return {
            "scale_factor": self.factors,
            "mode": self.mode,
            "align_corners": bool(self.options.get("align_corners")),
        }

    def arrays(self) -> tuple[Array, Array]:
        """The images and the output's gradient; what is copied may be NaN."""
        rng = np.random.default_rng(self.seed)
        x, grad = (numbers(rng, (*self.lead, *space), self.dtype) for space in (self.sizes, self.out))
        if self.mode.startswith("nearest"):
            x = content(x, "NaN", rng)
        return arranged(x, self.order), arranged(grad, self.order)


@st.composite
def resamplings(draw: st.DrawFn, dtypes: tuple[str, ...] | None = None) -> Resampling:
    rank = draw(st.integers(1, 3))
    most = 8 if rank < 3 else 4
    mode = draw(st.sampled_from(modes(rank)))
    options: dict[str, Any] = {"mode": mode}
    if mode == LINEAR_MODE[rank]:
        options["align_corners"] = draw(st.sampled_from([None, False, True]))
    factors = None
    if draw(st.booleans()):
        sizes = draw(sizes_to(rank, most))
        asked = draw(st.one_of(st.integers(1, 6), sizes_to(rank, 12 if rank < 3 else 6)))
        out = (asked,) * rank if isinstance(asked, int) else asked
        options["size"] = asked
    else:
        asked = draw(st.one_of(st.sampled_from(FACTORS), st.tuples(*[st.sampled_from(FACTORS)] * rank)))
        factors = asked if isinstance(asked, tuple) else (asked,) * rank
        leasts = [math.ceil(1 / factor) for factor in factors]
        sizes = tuple(draw(st.integers(least, max(least, most))) for least in leasts)
        out = tuple(math.floor(size * factor) for size, factor in zip(sizes, factors, strict=True))
        options["scale_factor"] = asked
    taken = dtypes or (ALL if mode.startswith("nearest") else LINEAR)
    lead = draw(st.sampled_from([(2, 3), (1, 2), (2, 1), (0, 2)]))
    fixed = (draw(st.sampled_from(taken)), draw(st.sampled_from(ORDERS)), draw(st.integers(0, 2**16)))
    return Resampling(sizes, options, out, factors, lead, *fixed)


# --- Against the oracle and PyTorch -------------------------------------------------------------------------------


@examples(800)
@given(resamplings())
def test_interpolate(backend: ArrayBackend, case: Resampling) -> None:
    x, grad = case.arrays()
    expected = reference.interpolate(x, case.out, **case.for_oracle)
    assert_close(run(backend, F.interpolate, x, **case.options), expected, x.dtype)
    expected = reference.interpolate_backward(grad, case.sizes, **case.for_oracle)
    (result,) = run(backend, F.interpolate_backward, grad, x, **case.options, needs=(True,))
    assert_close(result, expected, x.dtype)
    assert backend.run(F.interpolate_backward, grad, x, **case.options, needs=(False,)) == (None,)


def forward_goes_by_the_factor(case: Resampling) -> bool:
    """Whether PyTorch's result is not what its gradient is the gradient of.

    Where an axis keeps or doubles its size, "nearest" goes by the sizes backward, but forward for 2-d images alone.
    """
    if case.mode != "nearest" or case.factors is None or len(case.sizes) == 2:
        return False
    axes = zip(case.sizes, case.out, case.factors, strict=True)
    return any(out in (size, 2 * size) and factor != out / size for size, out, factor in axes)


@examples(500)
@given(resamplings(("float64", "float32")).filter(lambda case: case.lead[0]))
def test_interpolate_agrees_with_torch(backend: ArrayBackend, torch: Any, case: Resampling) -> None:
    x, grad = case.arrays()
    tensor = torch_tensor(torch, x, requires_grad=True)
    expected = torch.nn.functional.interpolate(tensor, **case.options)
    if not forward_goes_by_the_factor(case):
        assert_as_torch(backend.run(F.interpolate, x, **case.options), expected)
    expected.backward(torch_tensor(torch, grad))
    assert_as_torch(backend.run(F.interpolate_backward, grad, x, **case.options)[0], tensor.grad)


# --- Samples ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_which_samples_are_nearest(backend: ArrayBackend, mode: str) -> None:
    """Of many sizes and factors, among them 3.7: output 37 is the start of input 10, whatever 1 / 3.7 rounds to."""
    for size in range(1, 25):
        x = np.arange(size).reshape(1, 1, size)
        for out in range(1, 49):
            expected = [reference.nearest_source(o, size, out, None, mode) for o in range(out)]
            assert backend.run(F.interpolate, x, size=out, mode=mode).tolist() == [[expected]]
        for factor in (*FACTORS, 0.1, 0.7, 1.9, 2.7, 3.3, 4.1, math.pi):
            out = math.floor(size * factor)
            if out:
                expected = [reference.nearest_source(o, size, out, factor, mode) for o in range(out)]
                assert backend.run(F.interpolate, x, None, factor, mode).tolist() == [[expected]]


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_torch_finds_the_same_samples_in_float64(backend: ArrayBackend, torch: Any, mode: str) -> None:
    for size in range(1, 25):
        x = np.arange(float(size)).reshape(1, 1, size)
        tensor = torch_tensor(torch, x)
        options = [{"size": out} for out in range(1, 49)]
        options += [{"scale_factor": factor} for factor in FACTORS if math.floor(size * factor)]
        for asked in options:
            out = math.floor(size * asked.get("scale_factor", 0))
            goes_by_sizes = mode == "nearest" and out in (size, 2 * size)  # of 1-d images PyTorch's gradient alone does
            taken = {"size": out} if goes_by_sizes else asked
            expected = torch.nn.functional.interpolate(tensor, **taken, mode=mode).numpy()
            np.testing.assert_array_equal(backend.run(F.interpolate, x, **asked, mode=mode), expected)


@pytest.mark.parametrize("dtype", ALL)
def test_positions_are_exact_in_every_dtype(backend: ArrayBackend, dtype: str) -> None:
    """Positions rounded to float32 would take the first input once more."""
    x = np.array([[[0, 1]]], dtype_of(dtype))
    y = backend.run(F.interpolate, x, size=82)
    assert np.flatnonzero(y).tolist() == list(range(41, 82))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({"size": 1, "mode": "linear", "align_corners": True}, [1], id="one sample: the first"),
        pytest.param({"size": 1, "mode": "linear"}, [2], id="one sample: the middle"),
        pytest.param({"size": 5, "mode": "linear", "align_corners": True}, [1, 1.5, 2, 2.5, 3], id="corners"),
        pytest.param({"size": 6, "mode": "linear"}, [1, 1.25, 1.75, 2.25, 2.75, 3], id="borders"),
        pytest.param({"scale_factor": 1.2, "mode": "linear"}, [1, 2, 3], id="a size that stays is copied"),
        pytest.param({"scale_factor": 1.2}, [1, 2, 3], id="by nearest as well"),
        pytest.param({"scale_factor": 2.2}, [1, 1, 2, 2, 3, 3], id="a size that doubles has each input twice"),
        pytest.param({"scale_factor": 1.3, "mode": "nearest-exact"}, [1, 2, 2], id="nearest-exact goes by the factor"),
        pytest.param({"size": 2, "mode": "area"}, [1.5, 2.5], id="area down"),
        pytest.param({"size": 4, "mode": "area"}, [1, 1.5, 2.5, 3], id="area up"),
        pytest.param({"size": 2}, [1, 2], id="nearest"),
        pytest.param({"size": 2, "mode": "nearest-exact"}, [1, 3], id="nearest-exact"),
    ],
)
def test_samples(backend: ArrayBackend, options: dict[str, Any], expected: list[float]) -> None:
    y = backend.run(F.interpolate, np.array([[[1.0, 2, 3]]]), **options)
    np.testing.assert_allclose(y, [[expected]], rtol=1e-14)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_gradients_are_the_slope(backend: ArrayBackend, rng: np.random.Generator, rank: int, dtype: str) -> None:
    x, grad = (numbers(rng, (1, 1, *size[:rank]), dtype) for size in ((4, 3, 2), (5, 2, 3)))
    for mode in modes(rank):
        options = {"size": grad.shape[2:], "mode": mode}
        slope = reference.finite_difference(
            lambda x, options=options: backend.run(F.interpolate, x, **options), x, grad
        )
        np.testing.assert_allclose(backend.run(F.interpolate_backward, grad, x, **options)[0], slope, atol=1e-6)


@pytest.mark.parametrize("mode", ["nearest", "linear", "area"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_gradients_accumulate_in_float32(backend: ArrayBackend, dtype: str, mode: str) -> None:
    """A 16-bit sum of ones would stop at 256 or 2048; of 8192 outputs each of two inputs collects half."""
    x, grad = np.zeros((1, 1, 2), dtype_of(dtype)), np.ones((1, 1, 8192), dtype_of(dtype))
    (result,) = backend.run(F.interpolate_backward, grad, x, size=8192, mode=mode)
    assert result.tolist() == [[[4096, 4096]]]


@pytest.mark.parametrize("mode", ["bilinear", "area"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_floats_are_rounded_once(backend: ArrayBackend, rng: np.random.Generator, dtype: str, mode: str) -> None:
    """The result is what float32 gives, rounded once: neither weights nor sums along the first axis have 16 bits."""
    x, grad = (numbers(rng, (1, 2, *size), dtype) for size in ((5, 6), (13, 11)))
    options = {"size": grad.shape[2:], "mode": mode}
    pairs = [
        (backend.run(F.interpolate, x, **options), backend.run(F.interpolate, x.astype("f4"), **options)),
        *zip(
            backend.run(F.interpolate_backward, grad, x, **options),
            backend.run(F.interpolate_backward, grad.astype("f4"), x.astype("f4"), **options),
            strict=True,
        ),
    ]
    for actual, expected in pairs:
        half_a_step = 2.0**-11 if dtype == "float16" else 2.0**-8
        np.testing.assert_allclose(actual.astype("f4"), expected, rtol=1.01 * half_a_step, atol=1e-6)


# --- Arrays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("order", ORDERS)
def test_results_keep_the_memory_order(backend: ArrayBackend, rng: np.random.Generator, rank: int, order: str) -> None:
    x, grad = (arranged(numbers(rng, (2, 3, *(n,) * rank), "float32"), order) for n in (3, 7))
    for mode in modes(rank):
        y = backend.run(F.interpolate, x, size=7, mode=mode)
        (result,) = backend.run(F.interpolate_backward, grad, x, size=7, mode=mode)
        for each in (y, result):
            if order == "channels_last":
                assert_channels_last(each, rank)
            else:
                assert each.flags.c_contiguous


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("dtype", ALL)
def test_an_empty_batch_gives_an_empty_result(backend: ArrayBackend, rank: int, dtype: str) -> None:
    x, grad = (np.zeros((0, 2, *(size,) * rank), dtype_of(dtype)) for size in (3, 7))
    for mode in modes(rank) if dtype in LINEAR else modes(rank)[:2]:
        y = backend.run(F.interpolate, x, size=7, mode=mode)
        assert (y.shape, y.dtype) == (grad.shape, x.dtype)
        (result,) = backend.run(F.interpolate_backward, grad, x, size=7, mode=mode)
        assert (result.shape, result.dtype) == (x.shape, x.dtype)


@pytest.mark.parametrize("rank", RANKS)
def test_a_factor_of_one_copies(backend: ArrayBackend, rng: np.random.Generator, rank: int) -> None:
    x = rng.standard_normal((2, 3, *(4,) * rank))
    for mode in modes(rank):
        assert_same_bits(run(backend, F.interpolate, x, scale_factor=1, mode=mode), x)
        assert_same_bits(run(backend, F.interpolate_backward, x, x, scale_factor=1, mode=mode)[0], x)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "got size None and scale_factor None, expected just one of them"),
        ({"size": 4, "scale_factor": 2}, ValueError, "got size 4 and scale_factor 2, expected just one of them"),
        ({"size": 0}, ValueError, "size is 0, expected at least 1"),
        ({"size": (4, 4, 4)}, ValueError, "size has 3 values, expected 2"),
        ({"size": 4.0}, TypeError, "size is 4.0, expected an integer or 2 of them"),
        ({"scale_factor": (2, 2, 2)}, ValueError, "scale_factor has 3 values, expected 2"),
        ({"scale_factor": 0.3}, ValueError, r"scale_factor is 0.3, which makes \(3, 2\) to \(0, 0\), expected at"),
        ({"scale_factor": -1}, ValueError, "scale_factor is -1.0, expected"),
        ({"scale_factor": math.nan}, ValueError, "scale_factor is nan, expected"),
        ({"scale_factor": math.inf}, ValueError, "scale_factor is inf, expected"),
        ({"size": 2**31}, ValueError, "size is 2147483648, expected at most 2147483647"),
        ({"size": 2**31, "mode": "area"}, ValueError, "size is 2147483648, expected at most 2147483647"),
        ({"scale_factor": (2, 2**30)}, ValueError, "scale_factor makes axis 1 2147483648 long, expected at most 21474"),
        ({"scale_factor": "2"}, TypeError, "scale_factor is '2', expected a number"),
        ({"size": 4, "mode": "linear"}, ValueError, "mode is 'linear', expected .*'bilinear'.* for 2-d images"),
        ({"size": 4, "mode": "bicubic"}, ValueError, "mode is 'bicubic', expected"),
        ({"size": 4, "mode": None}, ValueError, "mode is None, expected"),
        ({"size": 4, "align_corners": True}, ValueError, "align_corners is True, expected None with mode 'nearest'"),
        ({"size": 4, "align_corners": False, "mode": "area"}, ValueError, "align_corners is False, expected None"),
    ],
)
def test_interpolation_that_is_refused(
    backend: ArrayBackend, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    x = np.zeros((1, 1, 3, 2))
    with pytest.raises(error, match=f"^interpolate: {message}"):
        backend.run(F.interpolate, x, **options)
    with pytest.raises(error, match=f"^interpolate_backward: {message}"):
        backend.run(F.interpolate_backward, x, x, **options)


@pytest.mark.parametrize("shape", [(3, 4), (1, 1, 2, 2, 2, 2), (1, 0, 4), (1, 2, 0)])
def test_what_is_no_image_is_refused(backend: ArrayBackend, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^interpolate: input has .*, expected"):
        backend.run(F.interpolate, np.zeros(shape), scale_factor=2)


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool"])
@pytest.mark.parametrize("mode", ["bilinear", "area"])
def test_integers_are_not_blended(backend: ArrayBackend, mode: str, dtype: str) -> None:
    x = np.zeros((1, 1, 2, 2), dtype)
    with pytest.raises(TypeError, match=f"^interpolate: input has dtype {dtype}, expected floating-point"):
        backend.run(F.interpolate, x, size=3, mode=mode)


@pytest.mark.parametrize("rank", RANKS)
def test_a_gradient_of_another_shape_is_refused(backend: ArrayBackend, rank: int) -> None:
    x = np.zeros((1, 2, *(3,) * rank))
    for mode in modes(rank):
        with pytest.raises(ValueError, match=r"^interpolate_backward: grad_output has shape .*, expected"):
            backend.run(F.interpolate_backward, x, x, size=7, mode=mode)


# --- The NumPy backend's bands and pieces --------------------------------------------------------------------------


@pytest.fixture
def on_numpy(backend: ArrayBackend) -> ArrayBackend:
    if backend.name != "numpy":
        pytest.skip("these bands and pieces are the NumPy backend's")
    return backend


BANDED = [
    pytest.param((9, 40), (31, 23), "bilinear", id="rows grow, columns shrink"),
    pytest.param((30, 7), (11, 50), "nearest", id="nearest"),
    pytest.param((3, 20, 5), (8, 7, 9), "trilinear", id="3-d"),
    pytest.param((2, 3), (64, 1), "bilinear", id="an axis of one"),
]


@pytest.mark.parametrize(("sizes", "out", "mode"), BANDED)
@pytest.mark.parametrize("dtype", ["float32", "float16", "complex64"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "limits",
    [
        pytest.param({}, id="as they are"),
        pytest.param({"BAND_COLUMNS": 1, "BAND_ROWS": 1}, id="a row a band"),
        pytest.param({"BAND_COLUMNS": 10**4}, id="one band"),
        pytest.param({"MATRIX_ITEMS": 0}, id="entry by entry"),
        pytest.param({"PIECE_ITEMS": 1}, id="pieces of one plane"),
        pytest.param({"PIECE_ITEMS": 5000}, id="pieces of some planes"),
    ],
)
def test_in_bands_and_in_pieces(
    on_numpy: ArrayBackend,
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
    sizes: tuple[int, ...],
    out: tuple[int, ...],
    mode: str,
    dtype: str,
    order: str,
    limits: dict[str, int],
) -> None:
    for name, value in limits.items():
        assert getattr(resampling, name) != value
        monkeypatch.setattr(resampling, name, value)
    resampling._bands.cache_clear()
    x, grad = (arranged(numbers(rng, (2, 3, *space), dtype), order) for space in (sizes, out))
    y = run(on_numpy, F.interpolate, x, size=out, mode=mode)
    assert_close(y, reference.interpolate(x, out, None, mode, False), x.dtype)
    (grad_x,) = run(on_numpy, F.interpolate_backward, grad, x, size=out, mode=mode)
    assert_close(grad_x, reference.interpolate_backward(grad, sizes, None, mode, False), x.dtype)
    resampling._bands.cache_clear()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", ["float32", "float16", "complex64"])
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bilinear with corners"])
@pytest.mark.parametrize("sizes", [((5, 5), (12, 13)), ((12, 12), (5, 4)), ((60, 9), (30, 30))])
def test_what_is_not_finite_reaches_its_samples_only(
    backend: ArrayBackend,
    rng: np.random.Generator,
    value: float,
    dtype: str,
    mode: str,
    sizes: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    """Samples that lie on an input, as at corners and borders, have the next one with weight 0, and do not read it."""
    options = {"size": sizes[1], "mode": mode.split()[0], "align_corners": True if "corners" in mode else None}

    def forward(x: Array) -> Array:
        return run(backend, F.interpolate, x, **options)

    def backward(grad: Array) -> Array:
        result: Array = run(backend, F.interpolate_backward, grad, np.zeros((2, 3, *sizes[0]), dtype), **options)[0]
        return result

    for op, size in ((forward, sizes[0]), (backward, sizes[1])):
        x = numbers(rng, (2, 3, *size), dtype)
        for place in ((0, 0), (size[0] // 2, size[1] // 2), (size[0] - 2, 1)):
            at = (1, 2, *place)
            odd, one = x.copy(), np.zeros_like(x)
            odd[at], one[at] = value, 1
            reached = op(one) != 0
            with np.errstate(invalid="ignore"):  # complex infinities make NaN
                result = op(odd)
            assert not np.isfinite(result[reached]).any()
            assert reached.any() or op is forward  # where an image shrinks, some of it is not read
            assert_close(result[~reached], op(x)[~reached])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_the_number_of_threads_changes_no_bit(
    on_numpy: ArrayBackend, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, order: str, mode: str
) -> None:
    monkeypatch.setattr(resampling, "PIECE_ITEMS", 3000)
    x, grad = (arranged(numbers(rng, (2, 9, *size), "float32"), order) for size in ((17, 19), (40, 31)))
    results = []
    for count in (1, 2, 3):
        monkeypatch.setattr(threads, "_num_threads", count)
        y = run(on_numpy, F.interpolate, x, size=(40, 31), mode=mode)
        results.append((y, *run(on_numpy, F.interpolate_backward, grad, x, size=(40, 31), mode=mode)))
    for other in results[1:]:
        for one, same in zip(results[0], other, strict=True):
            assert_same_bits(one, same)
