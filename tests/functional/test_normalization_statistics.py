"""The statistics of the norms: running ones, accuracy with large means and many values, what is missing or wrong."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import reference_norms
from array_backends import ArrayBackend
from hypothesis import given
from hypothesis import strategies as st
from sample import examples
from strategies import FLOATS, arranged, dtype_of, numbers
from tolerances import assert_close

import gpucnn.functional as F

Array = np.ndarray[Any, Any]

UPDATING = ("batch_norm", "instance_norm")
NORMS = {"batch_norm": (None, None), "instance_norm": (), "layer_norm": ((3, 2),), "group_norm": (2,)}
"""The arguments between input and weight, for images [N, 4, 3, 2]."""


def running_statistics(rng: np.random.Generator, channels: int, dtype: Any) -> tuple[Array, Array]:
    """(mean, variance)."""
    dtype = dtype_of(dtype) if isinstance(dtype, str) else dtype
    return rng.standard_normal(channels).astype(dtype), rng.uniform(0.5, 2, channels).astype(dtype)


# --- Running statistics -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UPDATING)
@examples(40)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(2, 5), st.integers(1, 3)),
    dtype=st.sampled_from(FLOATS),
    wide=st.booleans(),
    momentum=st.sampled_from((0.0, 0.1, 0.7, 1.0)),
    order=st.sampled_from(("contiguous", "strided", "reversed")),
    seed=st.integers(0, 99),
)
def test_running_statistics_move_in_place(
    backend: ArrayBackend,
    name: str,
    shape: tuple[int, ...],
    dtype: str,
    wide: bool,
    momentum: float,
    order: str,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    x = numbers(rng, shape, dtype)
    kept = np.dtype(np.float32) if wide and x.itemsize == 2 else x.dtype
    mean, var = (arranged(array, order) for array in running_statistics(rng, shape[1], kept))
    expected = getattr(reference_norms, name)(x, mean, var, None, None, True, momentum)
    running = backend.asarray(mean), backend.asarray(var)
    getattr(F, name)(backend.asarray(x), *running, None, None, True, momentum)
    assert_close(backend.asnumpy(running[0]), expected.running_mean, kept)
    assert_close(backend.asnumpy(running[1]), expected.running_var, kept)


@pytest.mark.parametrize("name", UPDATING)
def test_momentum_is_the_share_of_the_new(backend: ArrayBackend, name: str, rng: np.random.Generator) -> None:
    x = numbers(rng, (3, 2, 4), "float64")
    before = running_statistics(rng, 2, "float64")
    for momentum, expected in ((0.0, before), (1.0, own_statistics(name, x))):
        running = tuple(backend.asarray(array.copy()) for array in before)
        getattr(F, name)(backend.asarray(x), *running, None, None, True, momentum)
        for actual, wanted in zip(running, expected, strict=True):
            np.testing.assert_allclose(backend.asnumpy(actual), wanted, rtol=1e-14 if momentum else 0)


def own_statistics(name: str, x: Array) -> tuple[Array, Array]:
    """Mean and unbiased variance of each channel of x [N, C, L], or the images' average of these."""
    if name == "batch_norm":
        return x.mean(axis=(0, 2)), x.var(axis=(0, 2), ddof=1)
    return x.mean(axis=2).mean(axis=0), x.var(axis=2, ddof=1).mean(axis=0)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", UPDATING)
def test_running_statistics_of_some_batches_are_those_of_pytorch(
    backend: ArrayBackend, torch: Any, name: str, dtype: str, rng: np.random.Generator
) -> None:
    mean, var = running_statistics(rng, 3, dtype)
    running = backend.asarray(mean.copy()), backend.asarray(var.copy())
    peers = torch.from_numpy(mean.copy()), torch.from_numpy(var.copy())
    for size in (1, 4, 3):
        x = numbers(rng, (size, 3, 5, 2), dtype)
        getattr(F, name)(backend.asarray(x), *running, None, None, True, 0.3)
        getattr(torch.nn.functional, name)(torch.from_numpy(x), *peers, None, None, True, 0.3)
    for actual, peer in zip(running, peers, strict=True):
        assert_close(backend.asnumpy(actual), peer.numpy(), factor=10)


def test_running_statistics_of_pytorch_move_in_place(torch: Any, rng: np.random.Generator) -> None:
    x = numbers(rng, (4, 3), "float32")
    running, peers = ((torch.zeros(3), torch.ones(3)) for _ in range(2))
    F.batch_norm(torch.from_numpy(x), *running, training=True)
    torch.nn.functional.batch_norm(torch.from_numpy(x), *peers, training=True)
    for actual, peer in zip(running, peers, strict=True):
        assert_close(actual.numpy(), peer.numpy())


@pytest.mark.parametrize("name", UPDATING)
def test_running_statistics_that_are_used_stay_and_may_be_read_only(
    backend: ArrayBackend, name: str, rng: np.random.Generator
) -> None:
    x = numbers(rng, (3, 2, 4), "float64")
    running = running_statistics(rng, 2, "float64")
    before = [array.copy() for array in running]
    for array in running:
        array.flags.writeable = False
    _, mean, rstd = backend.run(getattr(F, name), x, *running, None, None, False, return_statistics=True)
    backend.run(getattr(F, name + "_backward"), x, x, *running, None, None, False)
    backend.run(getattr(F, name + "_backward"), x, x, *running, None, None, True)  # which needs them no more
    np.testing.assert_array_equal(running, before)
    np.testing.assert_array_equal(mean, before[0])
    np.testing.assert_allclose(rstd, 1 / np.sqrt(before[1] + 1e-5), rtol=1e-15)


@pytest.mark.parametrize("fixed", ["running_mean", "running_var"])
@pytest.mark.parametrize("name", UPDATING)
def test_read_only_running_statistics_cannot_be_trained(name: str, fixed: str, rng: np.random.Generator) -> None:
    """NumPy's flag, and neither of the two has moved."""
    running = dict(zip(("running_mean", "running_var"), running_statistics(rng, 2, "float64"), strict=True))
    before = [array.copy() for array in running.values()]
    running[fixed].flags.writeable = False
    switch = {"training" if name == "batch_norm" else "use_input_stats": True}
    with pytest.raises(ValueError, match=f"{name}: {fixed} is read-only"):
        getattr(F, name)(numbers(rng, (3, 2, 4), "float64"), **running, **switch)
    np.testing.assert_array_equal(list(running.values()), before)


# --- Accuracy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NORMS)
def test_a_large_mean_leaves_the_variance_exact(backend: ArrayBackend, name: str, rng: np.random.Generator) -> None:
    """Values of 1e4 ± 0.1 in float32, of which the mean of squares less the squared mean knows nothing."""
    x = (1e4 + 0.1 * rng.standard_normal((4, 4, 3, 2))).astype(np.float32)
    grad = numbers(rng, x.shape, "float32")
    arguments = [*NORMS[name], *([None, None, True] if name == "batch_norm" else [])]
    exact, exact_mean, exact_rstd = getattr(reference_norms, name)(x, *arguments)[:3]
    y, mean, rstd = backend.run(getattr(F, name), x, *arguments, return_statistics=True)
    assert_close(mean, exact_mean, factor=0.01)
    assert_close(rstd, exact_rstd, factor=0.1)
    # what is left is the mean's own rounding, half a step of float32 at 1e4, which moves all of a row alike
    moved = 0.5 * np.spacing(np.float32(1e4)) * exact_rstd.max()
    np.testing.assert_allclose(y, exact, rtol=0, atol=1.01 * moved)
    axes = {"batch_norm": (0, 2, 3), "group_norm": None}.get(name, (2, 3))
    if axes:
        spread = (y - exact) - (y - exact).mean(axis=axes, keepdims=True)
        np.testing.assert_allclose(spread, 0, atol=2e-6)
    if name == "batch_norm":
        expected = reference_norms.batch_norm_backward_graph(grad, x, None, None, None, True)
    else:
        expected = getattr(reference_norms, name + "_backward")(grad, x, *arguments)
    gx = backend.run(getattr(F, name + "_backward"), grad, x, *arguments)[0]
    np.testing.assert_allclose(gx, expected[0], rtol=0, atol=3 * moved * exact_rstd.max())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_million_values_cost_no_accuracy(backend: ArrayBackend, dtype: str, rng: np.random.Generator) -> None:
    x = (3 + rng.standard_normal((10, 2, 250, 400))).astype(dtype_of(dtype))
    grad = (0.5 * x.astype(np.float32) + rng.standard_normal(x.shape)).astype(x.dtype)  # so that no sum cancels
    weight, bias = np.full((2, 2), (2.0, -1.0), np.float32)  # of 32 bits, as sums of a million are too large for 16
    running = (None, None)
    exact = reference_norms.batch_norm(x, *running, weight, bias, True)
    y, mean, rstd = backend.run(F.batch_norm, x, *running, weight, bias, True, return_statistics=True)
    assert_close(y, exact.y)
    np.testing.assert_allclose(mean, exact.mean, rtol=3e-7)
    np.testing.assert_allclose(rstd, exact.rstd, rtol=3e-7)
    expected = reference_norms.batch_norm_backward_graph(grad, x, *running, weight, True)
    gx, _, _, gw, gb = backend.run(F.batch_norm_backward, grad, x, *running, weight, bias, True)
    assert_close(gx, expected[0])
    assert_close(gw, expected[1])
    assert_close(gb, expected[2])


def test_eps_is_added_to_the_variance(backend: ArrayBackend) -> None:
    x = np.array([[[-3.0, 3.0]]])  # its variance is 9
    y = backend.run(F.instance_norm, x, eps=16.0)
    np.testing.assert_allclose(y, x / 5)
    np.testing.assert_allclose(backend.run(F.layer_norm, x, 2, eps=0), x / 3)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_rms_norm_adds_the_machine_epsilon(backend: ArrayBackend, torch: Any, dtype: str) -> None:
    """By default that of the dtype that sums are kept in, as in PyTorch."""
    x = np.full((2, 3), 1e-8 if dtype == "float64" else 1e-3, dtype_of(dtype))
    y = backend.run(F.rms_norm, x, 3)
    tensor = torch.from_numpy(x.astype(np.float64)).to(getattr(torch, dtype))
    assert_close(y, torch.nn.functional.rms_norm(tensor, (3,)).double().numpy(), x.dtype, factor=2)
    grad = np.linspace(-1, 1, 6).reshape(2, 3).astype(x.dtype)
    (of_x, _), (again, _) = (backend.run(F.rms_norm_backward, grad, x, 3, eps=eps) for eps in (None, epsilon(x)))
    assert of_x.tobytes() == again.tobytes()


def epsilon(x: Array) -> float:
    return float(np.finfo(np.float64 if x.dtype == np.float64 else np.float32).eps)


def test_values_all_alike_become_the_bias(backend: ArrayBackend) -> None:
    x, weight, bias = np.full((3, 2, 4), 7.3, np.float32), np.full(2, 5, np.float32), np.array([1, -2], np.float32)
    y = backend.run(F.batch_norm, x, None, None, weight, bias, True)
    np.testing.assert_array_equal(y, np.broadcast_to(bias[:, None], x.shape))
    gx = backend.run(F.batch_norm_backward, np.ones_like(x), x, None, None, weight, bias, True)[0]
    np.testing.assert_array_equal(gx, 0)


@pytest.mark.parametrize("name", NORMS)
def test_nan_spoils_only_what_shares_its_mean(backend: ArrayBackend, name: str, rng: np.random.Generator) -> None:
    x = numbers(rng, (2, 4, 3, 2), "float64")
    x[1, 2, 1, 0] = np.nan
    arguments = [*NORMS[name], *([None, None, True] if name == "batch_norm" else [])]
    spoilt = np.zeros(x.shape, bool)
    spoilt[{"batch_norm": (slice(None), 2), "group_norm": (1, slice(2, 4))}.get(name, (1, 2))] = True
    y = backend.run(getattr(F, name), x, *arguments)
    gx = backend.run(getattr(F, name + "_backward"), np.ones_like(x), x, *arguments)[0]
    np.testing.assert_array_equal(np.isnan(y), spoilt)
    np.testing.assert_array_equal(np.isnan(gx), spoilt)


def test_nan_spoils_only_its_row_of_an_rms_norm(backend: ArrayBackend, rng: np.random.Generator) -> None:
    x = numbers(rng, (4, 6), "float64") + 3
    expected = backend.run(F.rms_norm, x, (6,))
    x[1, 2] = np.nan
    y = backend.run(F.rms_norm, x, (6,))
    assert np.isnan(y[1]).all()
    np.testing.assert_array_equal(np.delete(y, 1, 0), np.delete(expected, 1, 0))


# --- Edges --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NORMS)
def test_an_empty_batch_gives_nothing_and_moves_nothing(
    backend: ArrayBackend, name: str, rng: np.random.Generator
) -> None:
    x = np.zeros((0, 4, 3, 2), np.float32)
    weight = np.ones((3, 2) if name == "layer_norm" else 4, np.float32)
    middle: tuple[Any, ...] = NORMS[name]
    running = before = ()
    if name in UPDATING:
        running = middle = running_statistics(rng, 4, "float32")
        before = tuple(array.copy() for array in running)
    options = {"batch_norm": {"training": True}}.get(name, {})
    y, mean, rstd = backend.run(getattr(F, name), x, *middle, weight, weight, return_statistics=True, **options)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    statistics = {"batch_norm": (4,), "group_norm": (0, 2)}.get(name, (0, 4))
    assert mean.shape == rstd.shape == statistics
    np.testing.assert_array_equal(running, before)
    gx, *_, gw, gb = backend.run(getattr(F, name + "_backward"), y, x, *middle, weight, weight, **options)
    assert gx.shape == x.shape
    for gradient in (gw, gb):
        np.testing.assert_array_equal(gradient, np.zeros_like(weight))
    if name in UPDATING:
        assert backend.run(getattr(F, name), x, *middle, weight, weight, False).shape == x.shape


@pytest.mark.parametrize(
    ("name", "shape", "arguments"),
    [
        ("batch_norm", (1, 3), (None, None, None, None, True)),
        ("batch_norm", (1, 3, 1, 1), (None, None, None, None, True)),
        ("instance_norm", (4, 3, 1), ()),
        ("instance_norm", (4, 3, 1, 1), ()),
        ("group_norm", (1, 4, 1), (4,)),
        ("group_norm", (1, 3), (3,)),
    ],
)
def test_one_value_has_no_variance(
    backend: ArrayBackend, name: str, shape: tuple[int, ...], arguments: tuple[Any, ...]
) -> None:
    x = np.ones(shape)
    expected = rf"input has shape {re.escape(str(shape))}, expected more than one value per"
    with pytest.raises(ValueError, match=f"{name}: {expected}"):
        backend.run(getattr(F, name), x, *arguments)
    with pytest.raises(ValueError, match=f"{name}_backward: {expected}"):
        backend.run(getattr(F, name + "_backward"), x, x, *arguments)


def test_one_value_can_be_normalised_by_running_statistics(backend: ArrayBackend) -> None:
    x, mean, var = np.full((1, 1), 5.0), np.array([3.0]), np.array([4.0])
    np.testing.assert_allclose(backend.run(F.batch_norm, x, mean, var, eps=0.0), [[1.0]])
    image = x[..., None]
    np.testing.assert_allclose(backend.run(F.instance_norm, image, mean, var, None, None, False, eps=0.0), [[[1.0]]])


def test_groups_of_one_value_in_several_images_are_zero(backend: ArrayBackend) -> None:
    """As in PyTorch, which refuses them only where there is one image."""
    np.testing.assert_array_equal(backend.run(F.group_norm, np.full((2, 3), 5.0), 3), np.zeros((2, 3)))


@pytest.mark.parametrize("normalized_shape", [6, (6,), [6], np.int64(6), np.array([6])])
def test_normalized_shape_is_an_integer_or_some(backend: ArrayBackend, normalized_shape: Any) -> None:
    x = np.arange(12.0).reshape(2, 6)
    np.testing.assert_array_equal(F.layer_norm(x, normalized_shape), backend.run(F.layer_norm, x, (6,)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", NORMS)
def test_statistics_of_16_bits_may_be_handed_over(
    backend: ArrayBackend, name: str, dtype: str, rng: np.random.Generator
) -> None:
    x, grad = (numbers(rng, (2, 4, 3, 2), dtype) for _ in range(2))
    arguments = [*NORMS[name], *([None, None, True] if name == "batch_norm" else [])]
    _, mean, rstd = backend.run(getattr(F, name), x, *arguments, return_statistics=True)
    backward = getattr(F, name + "_backward")
    expected = backend.run(backward, grad, x, *arguments, mean=mean, rstd=rstd)[0]
    actual = backend.run(backward, grad, x, *arguments, mean=mean.astype(x.dtype), rstd=rstd.astype(x.dtype))[0]
    assert_close(actual, expected.astype(np.float64), x.dtype, factor=5)  # mean and rstd are rounded as well
