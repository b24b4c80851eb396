"""Initialisers: distributions and fans as PyTorch's, the same numbers on each backend."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from array_backends import ArrayBackend

from gpucnn import nn
from gpucnn.nn import init

RANDOM = {
    "uniform_": {"a": -2.0, "b": 0.5},
    "normal_": {"mean": 0.3, "std": 0.2},
    "xavier_uniform_": {"gain": 1.5},
    "xavier_normal_": {"gain": 0.5},
    "kaiming_uniform_": {"a": math.sqrt(5)},
    "kaiming_normal_": {"mode": "fan_out", "nonlinearity": "relu"},
}


@pytest.mark.parametrize("name", RANDOM)
def test_the_distribution_is_pytorchs(torch: Any, name: str) -> None:
    torch.manual_seed(0)
    shape = (64, 48, 5, 5)
    theirs = getattr(torch.nn.init, name)(torch.empty(shape), **RANDOM[name]).numpy()
    ours = getattr(init, name)(np.empty(shape, np.float32), **RANDOM[name], rng=0)
    quantiles = np.linspace(0, 1, 21)[1:-1]
    spread = theirs.std()
    np.testing.assert_allclose(np.quantile(ours, quantiles), np.quantile(theirs, quantiles), rtol=0, atol=0.03 * spread)
    if "uniform" in name:  # their ends are sharp
        assert abs(ours.max() - theirs.max()) < 1e-3 * spread
        assert abs(ours.min() - theirs.min()) < 1e-3 * spread


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("xavier_uniform_", {}, math.sqrt(6 / (3 * 35 + 2 * 35))),
        ("kaiming_uniform_", {}, math.sqrt(6 / (3 * 35))),
        ("kaiming_uniform_", {"a": 2.0}, math.sqrt(6 / 5 / (3 * 35))),
        ("kaiming_uniform_", {"mode": "fan_out", "nonlinearity": "linear"}, math.sqrt(3 / (2 * 35))),
    ],
)
def test_bounds_by_hand(name: str, options: dict[str, Any], size: float) -> None:
    weight = np.empty((2, 3, 5, 7))
    uniform = np.random.default_rng(4).random(weight.shape)
    np.testing.assert_allclose(getattr(init, name)(weight, **options, rng=4), (2 * uniform - 1) * size, atol=1e-15)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (8, 1, 3, 3), (6, 2, 1, 3, 5)])
def test_fans_are_pytorchs(torch: Any, shape: tuple[int, ...]) -> None:
    expected = torch.nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))
    assert init.fans(np.empty(shape)) == expected


@pytest.mark.parametrize(
    ("nonlinearity", "param"),
    [*((each, None) for each in ("linear", "conv2d", "conv_transpose1d", "sigmoid", "tanh", "relu", "selu"))]
    + [("leaky_relu", None), ("leaky_relu", 0.2), ("leaky_relu", 0)],
)
def test_gains_are_pytorchs(torch: Any, nonlinearity: str, param: float | None) -> None:
    assert init.calculate_gain(nonlinearity, param) == torch.nn.init.calculate_gain(nonlinearity, param)


@pytest.mark.parametrize("name", RANDOM)
def test_a_seed_means_the_same_on_each_backend(backend: ArrayBackend, name: str) -> None:
    host = np.zeros((3, 4, 2), np.float32)
    device = backend.asarray(np.zeros((3, 4, 2), np.float32))
    function: Callable[..., Any] = getattr(init, name)
    assert function(device, rng=5) is device
    np.testing.assert_array_equal(backend.asnumpy(device), function(host, rng=np.random.default_rng(5)))
    assert host.all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_parameters_are_filled_in_place_in_their_dtype(dtype: Any) -> None:
    parameter = nn.Parameter(np.zeros((30, 30), dtype))
    data = parameter.data
    assert init.normal_(parameter, rng=1) is parameter
    assert parameter.data is data
    assert data.dtype == dtype
    assert 0.9 < float(data.astype(np.float64).std()) < 1.1


def test_strided_views_are_filled() -> None:
    whole = np.zeros((4, 6))
    init.ones_(whole[::2, ::-2])
    assert whole.sum() == 6
    assert init.zeros_(nn.Parameter(whole)).data.sum() == 0
    assert init.constant_(np.empty(()), 2.5) == 2.5


def test_without_a_seed_the_numbers_are_fresh() -> None:
    first, second = init.uniform_(np.empty(9)), init.uniform_(np.empty(9))
    assert (first != second).any()


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fans: tensor has shape \(3,\), expected at least 2 axes"):
        init.kaiming_uniform_(np.empty(3))
    with pytest.raises(ValueError, match="kaiming_normal_: mode is 'fan', expected 'fan_in' or 'fan_out'"):
        init.kaiming_normal_(np.empty((3, 3)), mode="fan")
    with pytest.raises(ValueError, match="calculate_gain: nonlinearity is 'gelu', expected 'linear'"):
        init.kaiming_normal_(np.empty((3, 3)), nonlinearity="gelu")
    with pytest.raises(TypeError, match=r"nn.init: rng is 'x', expected None, a seed or a numpy.random.Generator"):
        init.normal_(np.empty(3), rng="x")  # type: ignore[arg-type]
