"""`gpucnn.jax`: results and gradients as JAX's own convolutions and formulas, under its transformations."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from torch_calls import OURS, PYTORCH, TorchCall

import gpucnn.functional as F


@pytest.fixture(scope="module")
def ours(jax: Any) -> Any:
    return import_module("gpucnn.jax")


@pytest.fixture(params=["float64", "float32"])
def dtype(jax: Any, request: pytest.FixtureRequest) -> Any:
    """A dtype of arrays; float64 only with JAX's 64 bits."""
    with jax.enable_x64(request.param == "float64"):
        yield np.dtype(request.param)


def drawn(shapes: tuple[Any, ...], dtype: Any = np.float64) -> list[Any]:
    rng = np.random.default_rng(0)
    return [None if shape is None else rng.standard_normal(shape).astype(dtype) for shape in shapes]


CALLS = [call for call in (*PYTORCH, *OURS) if not call.name.startswith(("batch_norm", "instance_norm"))]


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_results_and_gradients_are_those_of_gpucnn(jax: Any, ours: Any, call: TorchCall, dtype: Any) -> None:
    arrays = drawn(call.shapes, dtype)
    named = dict(zip(("weight", "bias"), arrays[1:], strict=False))
    expected = getattr(F, call.name)(arrays[0], **named, **call.options)
    grad = drawn((expected.shape,), dtype)[0]
    gradients = getattr(F, f"{call.name}_backward")(grad, arrays[0], **named, **call.options)

    def of_arrays(given: list[Any]) -> Any:
        return getattr(ours, call.name)(given[0], **dict(zip(named, given[1:], strict=True)), **call.options)

    y, pull = jax.vjp(jax.jit(of_arrays), arrays)
    np.testing.assert_array_equal(y, expected)
    for one, other in zip(pull(grad)[0], gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            tolerance = (1e-5 if dtype == np.float32 else 1e-12) * max(1, abs(other).max())
            np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolutions_are_those_of_jax(jax: Any, ours: Any, dtype: Any, rank: int) -> None:
    window = {"stride": 2, "padding": ((1, 2),) * rank, "dilation": 2, "groups": 2}
    x, w = drawn(((2, 4, *(9, 8, 7)[:rank]), (6, 2, *(3, 2, 2)[:rank])), dtype)

    def of_jax(x: Any, w: Any) -> Any:
        steps, gaps = (2,) * rank, (2,) * rank
        axes = ("NCDHW"[:2] + "DHW"[-rank:], "OIDHW"[:2] + "DHW"[-rank:], "NCDHW"[:2] + "DHW"[-rank:])
        return jax.lax.conv_general_dilated(
            x, w, steps, window["padding"], rhs_dilation=gaps, dimension_numbers=axes, feature_group_count=2
        )

    def of_ours(x: Any, w: Any) -> Any:
        return getattr(ours, f"conv{rank}d")(x, w, **window)

    def penalty(function: Any) -> Any:
        """A function of gradients, whose own gradient has second derivatives."""

        def value(x: Any, w: Any) -> Any:
            found = jax.grad(lambda x, w: (function(x, w) ** 3).sum(), (0, 1))(x, w)
            return sum((one**2).sum() for one in found)

        return jax.jit(jax.grad(value, (0, 1)))

    tolerance = {"rtol": 1e-4 if dtype == np.float32 else 1e-11, "atol": 1e-4 if dtype == np.float32 else 1e-11}
    np.testing.assert_allclose(of_ours(x, w), of_jax(x, w), **tolerance)
    for one, other in zip(penalty(of_ours)(x, w), penalty(of_jax)(x, w), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance["rtol"], atol=tolerance["atol"] * abs(other).max())


@pytest.mark.parametrize("call", CALLS[::4], ids=str)
def test_first_and_second_derivatives(jax: Any, ours: Any, call: TorchCall) -> None:
    from jax.test_util import check_grads

    with jax.enable_x64(True):
        arrays = dict(zip(("input", "weight", "bias"), drawn(call.shapes), strict=False))

        def of_arrays(arrays: dict[str, Any]) -> Any:
            return getattr(ours, call.name)(**arrays, **call.options)

        check_grads(of_arrays, (arrays,), 2, modes=["rev"], eps=1e-5)


def test_norms_with_running_statistics(jax: Any, ours: Any, dtype: Any) -> None:
    x, weight, mean = drawn(((4, 3, 5), (3,), (3,)), dtype)
    var, grad = np.square(mean), x[::-1].copy()
    (y, *moved), pull = jax.vjp(lambda x, w: ours.batch_norm(x, mean, var, w, None, True, 0.3), x, weight)
    running = mean.copy(), var.copy()
    np.testing.assert_array_equal(y, F.batch_norm(x, *running, weight, None, True, 0.3))
    for one, other in zip(moved, running, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    found, expected = pull((grad, *moved)), F.batch_norm_backward(grad, x, None, None, weight, None, True)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(found[1], expected[3], atol=1e-5)
    kept = F.batch_norm(x, mean, var, weight, weight)
    np.testing.assert_allclose(ours.batch_norm(x, mean, var, weight, weight), kept, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(ours.instance_norm(x, weight), F.instance_norm(x, None, None, weight))
    assert ours.batch_norm(x, None, None, training=True)[1:] == (None, None)


def test_norms_with_running_statistics_have_second_derivatives(jax: Any, ours: Any) -> None:
    from jax.test_util import check_grads

    with jax.enable_x64(True):
        arrays = drawn(((4, 3, 5), (3,), (3,)))
        for function in (lambda *given: ours.batch_norm(given[0], None, None, *given[1:], True)[0], ours.instance_norm):
            check_grads(function, arrays, 2, modes=["rev"], eps=1e-5)


def test_bfloat16(jax: Any, ours: Any) -> None:
    x, w = (jax.numpy.asarray(array, jax.numpy.bfloat16) for array in drawn(((1, 2, 6), (3, 2, 2))))
    bias = np.ones(3, np.float32)
    y, pull = jax.vjp(ours.conv1d, x, w, bias)
    assert [y.dtype, *(one.dtype for one in pull(y))] == [jax.numpy.bfloat16] * 3 + [np.float32]
    np.testing.assert_array_equal(np.asarray(y), F.conv1d(np.asarray(x), np.asarray(w), bias))
    assert ours.layer_norm(x, 6).dtype == jax.numpy.bfloat16


def test_complex_gradients_are_those_of_jax(jax: Any, ours: Any) -> None:
    rng = np.random.default_rng(0)
    x, w = ((rng.standard_normal((1, 1, 5)) + 1j * rng.standard_normal((1, 1, 5))).astype(np.complex64) for _ in "xw")
    w = w[..., :2]

    def loss(convolve: Any) -> Any:
        return jax.grad(lambda x, w: (abs(convolve(x, w)) ** 2).sum(), (0, 1))(x, w)

    def of_jax(x: Any, w: Any) -> Any:
        return jax.lax.conv_general_dilated(x, w, (1,), "VALID")

    for one, other in zip(loss(ours.conv1d), loss(of_jax), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (2, 1)])
def test_vmap(jax: Any, ours: Any, axes: tuple[int | None, int | None]) -> None:
    x, w = drawn(((3, 3, 3, 5, 4), (3, 3, 3, 2, 2)), np.float32)
    x, w = x if axes[0] is not None else x[0], w if axes[1] is not None else w[0]

    def network(x: Any, w: Any) -> Any:
        return ours.max_pool2d(ours.layer_norm(ours.conv2d(x, w), 3), 2)

    def item(array: Any, axis: int | None, place: int) -> Any:
        return array if axis is None else np.take(array, place, axis)

    for function in (network, jax.grad(lambda x, w: network(x, w).sum(), 1)):
        found = jax.jit(jax.vmap(function, axes))(x, w)
        separate = np.stack([function(item(x, axes[0], at), item(w, axes[1], at)) for at in range(3)])
        np.testing.assert_allclose(found, separate, rtol=1e-4, atol=1e-5)


def test_vmap_in_vmap(jax: Any, ours: Any) -> None:
    x, w = drawn(((2, 3, 1, 2, 5), (3, 2, 2, 2)), np.float32)
    found = jax.vmap(jax.vmap(ours.conv1d), (0, None))(x, w)
    separate = np.stack([np.stack([F.conv1d(x[i, j], w[j]) for j in range(3)]) for i in range(2)])
    np.testing.assert_allclose(found, separate, rtol=1e-5)
    found = jax.vmap(jax.vmap(lambda x: ours.conv1d(x, w[0])))(x)
    np.testing.assert_allclose(found, F.conv1d(x.reshape(6, 2, 5), w[0]).reshape(2, 3, 1, 2, 4), rtol=1e-5)


def test_images_without_elements(jax: Any, ours: Any) -> None:
    assert ours.conv1d(np.zeros((0, 1, 4), np.float32), np.ones((2, 1, 2), np.float32)).shape == (0, 2, 3)


def test_large_images(jax: Any, ours: Any) -> None:
    """JAX computes in other threads while a callback runs: neither may wait for the other."""
    x = jax.numpy.ones((4, 8, 128, 128))
    loss = jax.jit(jax.value_and_grad(lambda x: ours.avg_pool2d(jax.numpy.sin(ours.avg_pool2d(x * 2, 2)), 2).sum()))
    for _ in range(3):
        assert loss(x)[1].shape == x.shape


def test_wrong_arguments(jax: Any, ours: Any) -> None:
    x = np.ones((1, 2, 4, 4), np.float32)
    for error, said, call in (
        (ValueError, "conv1d: input has 4 dimensions", lambda: ours.conv1d(x, x)),
        (ValueError, "conv2d: input has shape (1, 2, 4, 4), expected", lambda: ours.conv2d(x, x[:, :1])),
        (TypeError, "conv2d: input has dtype float32 and weight int32", lambda: ours.conv2d(x, x.astype(np.int32))),
        (ValueError, "max_pool2d: padding of axis 0 is (2, 2)", lambda: ours.max_pool2d(x, 2, padding=2)),
        (ValueError, "batch_norm: running_mean and running_var are None", lambda: ours.batch_norm(x, None, None)),
    ):
        with pytest.raises(error, match=re.escape(said)):
            jax.eval_shape(call)
