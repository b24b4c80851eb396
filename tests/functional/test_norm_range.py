"""Norms of values whose squares leave the range of their dtype: as of the same values times a power of two."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from array_backends import BACKENDS, ArrayBackend
from strategies import arranged, dtype_of
from tolerances import TOLERANCES, assert_close

import gpucnn.functional as F

Array = np.ndarray[Any, Any]
MIN_EPS = 5e-324  # training asks for more than 0


class Norm(NamedTuple):
    """A norm: its function, its arguments after the input, and the input's shape."""

    name: str
    options: dict[str, Any]
    shape: tuple[int, ...]

    def forward(self, backend: ArrayBackend, x: Array, **others: Any) -> Any:
        return backend.run(getattr(F, self.name), x, **self.options, **others)

    def backward(self, backend: ArrayBackend, grad: Array, x: Array, **others: Any) -> Any:
        return backend.run(getattr(F, f"{self.name}_backward"), grad, x, **self.options, **others)

    @property
    def parameters(self) -> Any:
        """The shape of weight and bias."""
        return self.options.get("normalized_shape", self.shape[1])


def batch(*shape: int) -> Norm:
    running = {"running_mean": None, "running_var": None}
    return Norm("batch_norm", {**running, "training": True, "eps": MIN_EPS}, shape)


NORMS = {
    "batch": batch(3, 4, 5, 4),
    "batch by several blocks": batch(3, 2, 70, 64),
    "instance": Norm("instance_norm", {"eps": 0.0}, (2, 3, 5, 4)),
    "group": Norm("group_norm", {"num_groups": 2, "eps": 0.0}, (2, 4, 5, 4)),
    "group by several blocks": Norm("group_norm", {"num_groups": 1, "eps": 0.0}, (2, 4, 60, 60)),
    "layer": Norm("layer_norm", {"normalized_shape": (5, 4), "eps": 0.0}, (2, 3, 5, 4)),
    "layer of a warp": Norm("layer_norm", {"normalized_shape": (8,), "eps": 0.0}, (5, 8)),
    "layer of long rows": Norm("layer_norm", {"normalized_shape": (9000,), "eps": 0.0}, (2, 9000)),
    "RMS": Norm("rms_norm", {"normalized_shape": (5, 4), "eps": 0.0}, (2, 3, 5, 4)),
    "RMS of long rows": Norm("rms_norm", {"normalized_shape": (9000,), "eps": 0.0}, (2, 9000)),
}
POWERS = {"float32": (100, 125, -80), "bfloat16": (100,), "float64": (1021, -490)}
CASES = [
    (label, dtype, power, "contiguous") for label in NORMS for dtype, powers in POWERS.items() for power in powers
] + [(label, "float32", 100, "channels_last") for label, norm in NORMS.items() if len(norm.shape) == 4]


def drawn(rng: np.random.Generator, norm: Norm, dtype: str) -> tuple[Array, Array, Array, Array]:
    """Numbers about a mean of each row, a gradient, weight and bias."""
    means = rng.uniform(-1, 1, (*norm.shape[:2], *(1,) * (len(norm.shape) - 2)))
    x = means + rng.uniform(-1, 1, norm.shape)
    parameters = rng.uniform(0.5, 2, norm.parameters), rng.standard_normal(norm.parameters)
    x, grad, weight, bias = (each.astype(dtype_of(dtype)) for each in (x, rng.standard_normal(norm.shape), *parameters))
    return x, grad, weight, bias


@pytest.mark.parametrize(("label", "dtype", "power", "order"), CASES)
def test_a_power_of_two_changes_the_range_alone(
    backend: ArrayBackend, rng: np.random.Generator, label: str, dtype: str, power: int, order: str
) -> None:
    norm, factor = NORMS[label], 2.0**power
    x, grad, weight, bias = drawn(rng, norm, dtype)
    given = arranged((x.astype(np.float64) * factor).astype(x.dtype), order)
    wide = [array.astype(np.float64) for array in (x, grad, weight, bias)]
    affine, of_wide = {"weight": weight, "bias": bias}, {"weight": wide[2], "bias": wide[3]}
    if norm.name == "rms_norm":
        del affine["bias"], of_wide["bias"]
    expected = norm.forward(BACKENDS["numpy"], wide[0], **of_wide, return_statistics=True)
    y, *means, rstd = norm.forward(backend, given, **affine, return_statistics=True)
    assert_close(y, expected[0])
    tolerance = TOLERANCES["float64" if dtype == "float64" else "float32"]
    for mean in means:
        np.testing.assert_allclose(mean.astype(np.float64) / factor, expected[1], rtol=0, atol=tolerance)
    np.testing.assert_allclose(rstd.astype(np.float64) * factor, expected[-1], rtol=tolerance)

    grads = [each for each in norm.backward(backend, grad, given, **affine) if each is not None]
    wanted = [each for each in norm.backward(BACKENDS["numpy"], wide[1], wide[0], **of_wide) if each is not None]
    assert_close((grads[0].astype(np.float64) * factor).astype(x.dtype), wanted[0])
    for actual, other in zip(grads[1:], wanted[1:], strict=True):
        assert_close(actual, other)


@pytest.mark.parametrize("label", ["batch", "batch by several blocks", "instance", "layer of a warp"])
def test_usual_rows_beside_huge_and_broken_ones_stay_right(
    backend: ArrayBackend, rng: np.random.Generator, label: str
) -> None:
    norm = NORMS[label]
    x, *_ = drawn(rng, norm, "float32")
    mixed = x.copy()
    rows = (slice(None), 0) if label != "layer of a warp" else (0,)
    others = (slice(None), 1) if label != "layer of a warp" else (1,)
    mixed[rows] *= np.float32(1e30)
    y = norm.forward(backend, mixed)
    assert_close(y, norm.forward(BACKENDS["numpy"], x.astype(np.float64)), np.float32)
    for broken in (np.nan, np.inf):
        mixed[rows] = x[rows]
        mixed[(*rows, 0)] = broken
        y = norm.forward(backend, mixed)
        assert np.isnan(y[(*rows, 0)]).all()
        assert_close(y[others], norm.forward(BACKENDS["numpy"], x.astype(np.float64))[others], np.float32)


@pytest.mark.parametrize("value", [3e38, -1e30, 1e-30, 0.0])
def test_a_constant_of_any_size_is_normalised_to_zeros(backend: ArrayBackend, value: float) -> None:
    x = np.full((2, 2, 40, 41), value, np.float32)
    for y in (
        backend.run(F.batch_norm, x, None, None, training=True),
        backend.run(F.instance_norm, x),
        backend.run(F.layer_norm, x, (40, 41)),
    ):
        assert_close(y, np.zeros(x.shape))


def test_tiny_rows_beside_huge_ones_are_divided_by_the_root_of_eps(backend: ArrayBackend) -> None:
    """Where one statistic of a block leaves the range the others are those of an ordinary block."""
    signs = np.array([1.0, -1.0])
    x = np.stack([signs * 1e200, signs * 1e-250, signs])
    y = backend.run(F.layer_norm, x, (2,), eps=0.25)
    np.testing.assert_allclose(y, [signs, signs * 2e-250, signs / np.sqrt(1.25)], rtol=1e-14)


def test_subnormal_numbers_are_divided_by_the_root_of_the_least_eps(backend: ArrayBackend) -> None:
    x = np.array([[1e-320, -1e-320]])
    y = backend.run(F.layer_norm, x, (2,), eps=MIN_EPS)
    np.testing.assert_allclose(y, x / np.sqrt(MIN_EPS), rtol=1e-3)


@pytest.mark.parametrize(("dtype", "eps"), [("float32", 1e-30), ("float64", 1e-60)])
def test_rounding_makes_no_variance_negative(
    backend: ArrayBackend, rng: np.random.Generator, dtype: str, eps: float
) -> None:
    x = np.repeat(rng.uniform(0.1, 10, (300, 1)), 37, axis=1).astype(dtype)
    rstd = backend.run(F.layer_norm, x, (37,), eps=eps, return_statistics=True)[2]
    assert np.isfinite(rstd).all()
    assert (rstd > 0).all()


def test_running_statistics_hold_what_their_dtype_can(backend: ArrayBackend) -> None:
    """A variance beyond the dtype is infinite there, as in PyTorch; a mean is within it."""
    x = np.array([[1e30], [3e30]], np.float32)
    mean, var = backend.asarray(np.zeros(1, np.float32)), backend.asarray(np.ones(1, np.float32))
    F.batch_norm(backend.asarray(x), mean, var, training=True, momentum=0.5)
    np.testing.assert_allclose(backend.asnumpy(mean), [1e30], rtol=1e-6)
    assert backend.asnumpy(var).tolist() == [np.inf]
