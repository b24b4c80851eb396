"""Interpolation: which samples it takes, rounding, what is not finite, and the NumPy backend's bands and pieces."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import reference
from array_backends import ArrayBackend
from families.drawing import ALL
from families.pooling import FACTORS
from pooling_cases import Array, assert_same_bits
from properties import run
from strategies import ORDERS, arranged, dtype_of, numbers
from tolerances import assert_close

import gpucnn.functional as F
from gpucnn.backends.numpy import resampling, threads

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
        tensor = torch.from_numpy(x)
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
        pytest.param({"scale_factor": 1.2, "recompute_scale_factor": True}, [1, 2, 3], id="by the sizes"),
        pytest.param(
            {"scale_factor": 1.3, "mode": "nearest-exact", "recompute_scale_factor": True},
            [1, 2, 3],
            id="nearest-exact by the sizes",
        ),
        pytest.param(
            {"size": 5, "mode": "cubic", "align_corners": True}, [1, 1.40625, 2, 2.59375, 3], id="cubic, corners"
        ),
        pytest.param({"size": 1, "mode": "cubic"}, [2], id="cubic, one sample: the middle"),
        pytest.param({"size": 3, "mode": "cubic", "antialias": True}, [1, 2, 3], id="cubic, the same size"),
        pytest.param(
            {"scale_factor": 1.3, "mode": "cubic", "antialias": True},
            [1, 2, 3],
            id="antialiased, a size that stays is copied",
        ),
        pytest.param({"size": 1, "mode": "linear", "antialias": True}, [2], id="antialiased, one sample: the mean"),
        pytest.param({"size": 2, "mode": "linear", "antialias": True}, [1.375, 2.625], id="antialiased"),
        pytest.param(
            {"size": 2, "mode": "linear", "antialias": True, "align_corners": True},
            [12 / 7, 2.75],
            id="antialiased, with corners from border to border, as in PyTorch",
        ),
    ],
)
def test_samples(backend: ArrayBackend, options: dict[str, Any], expected: list[float]) -> None:
    y = backend.run(F.interpolate, np.array([[[1.0, 2, 3]]]), **options)
    np.testing.assert_allclose(y, [[expected]], rtol=1e-14)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "area"])
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
    pytest.param((9, 40), (31, 23), "bicubic", id="cubic"),
    pytest.param((9, 70), (31, 4), "antialiased bilinear", id="antialiased"),
]


@pytest.mark.parametrize(("sizes", "out", "mode"), BANDED)
@pytest.mark.parametrize("dtype", ["float32", "float16", "complex64"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "limits",
    [
        pytest.param({}, id="as they are"),
        pytest.param({"BAND_COLUMNS": 1, "BAND_ROWS": 1, "BAND_ITEMS": 0}, id="a row a band"),
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
    antialias, mode = mode.startswith("antialiased"), mode.split()[-1]
    options: dict[str, Any] = {"size": out, "mode": mode, "antialias": antialias}
    x, grad = (arranged(numbers(rng, (2, 3, *space), dtype), order) for space in (sizes, out))
    y = run(on_numpy, F.interpolate, x, **options)
    assert_close(y, reference.interpolate(x, out, None, mode, False, antialias), x.dtype)
    (grad_x,) = run(on_numpy, F.interpolate_backward, grad, x, **options)
    assert_close(grad_x, reference.interpolate_backward(grad, sizes, None, mode, False, antialias), x.dtype)
    resampling._bands.cache_clear()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", ["float32", "float16", "complex64"])
@pytest.mark.parametrize(
    "mode", ["nearest", "bilinear", "bilinear with corners", "bicubic with corners", "antialiased"]
)
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
    if mode == "antialiased":
        options |= {"mode": "bilinear", "antialias": True}

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
            assert_same_bits(result[0], op(x)[0])


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
