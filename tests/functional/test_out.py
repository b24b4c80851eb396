"""Results in the caller's own array: the same bits, wherever it lies, and refused where it cannot be."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend
from calls import ARRAYS, CALLS, fresh
from strategies import ORDERS, arranged

import gpucnn
import gpucnn.functional as F

NAMES = sorted(name for name in CALLS if "out" in inspect.signature(getattr(F, name)).parameters)


def call(backend: ArrayBackend, name: str, out: Any = None, **others: Any) -> Any:
    """A call of `calls` with its arrays as the backend's, and some exchanged for `others`."""
    given = fresh(name, **others)
    for key, value in given.items():
        if key in ARRAYS and isinstance(value, np.ndarray):
            given[key] = backend.asarray(value)
    bound = inspect.signature(getattr(F, name)).bind(**given)  # in their places, as most calls are written
    with gpucnn.algorithm("direct"):
        return getattr(F, name)(*bound.args, **bound.kwargs, **({} if out is None else {"out": out}))


def bits(backend: ArrayBackend, array: Any) -> tuple[Any, bytes]:
    host = backend.asnumpy(array)
    return (host.shape, host.dtype), np.ascontiguousarray(host).tobytes()


def test_it_is_a_documented_keyword() -> None:
    for name in NAMES:
        assert inspect.signature(getattr(F, name)).parameters["out"].kind is inspect.Parameter.KEYWORD_ONLY
        assert "out : array" in (getattr(F, name).__doc__ or "")


@pytest.mark.parametrize("name", NAMES)
def test_it_is_returned_with_the_results_bits(backend: ArrayBackend, name: str) -> None:
    expected = call(backend, name)
    form = backend.asnumpy(expected)
    for order in ORDERS:
        if order == "channels_last" and form.ndim < 3:
            continue
        host = arranged(np.full(form.shape, 77, form.dtype), order)
        for _ in range(2):
            out = backend.asarray(host)
            assert call(backend, name, out) is out
            assert bits(backend, out) == bits(backend, expected), order
        assert backend.asnumpy(out).strides == backend.asnumpy(backend.asarray(host)).strides


@pytest.mark.parametrize("name", NAMES)
def test_channels_last_in_and_out(backend: ArrayBackend, name: str) -> None:
    images = {
        key: arranged(value, "channels_last")
        for key, value in CALLS[name].items()
        if key in ("input", "grad_output") and value.ndim in (4, 5)
    }
    expected = call(backend, name, **images)
    form = backend.asnumpy(expected)
    for host in (np.zeros_like(form), np.zeros(form.shape, form.dtype)):
        for _ in range(2):
            out = backend.asarray(host)
            assert call(backend, name, out, **images) is out
            assert bits(backend, out) == bits(backend, expected)


@pytest.mark.parametrize("name", ["max_pool2d", "adaptive_max_pool2d"])
def test_it_is_the_first_of_several_results(backend: ArrayBackend, name: str) -> None:
    values, indices = call(backend, name, return_indices=True)
    out = backend.asarray(np.zeros_like(backend.asnumpy(values)))
    result, others = call(backend, name, out, return_indices=True)
    assert result is out
    assert [bits(backend, array) for array in (out, others)] == [bits(backend, array) for array in (values, indices)]


@pytest.mark.parametrize("name", ["batch_norm", "instance_norm", "layer_norm", "rms_norm", "group_norm"])
def test_it_comes_with_statistics(backend: ArrayBackend, name: str) -> None:
    expected = call(backend, name, return_statistics=True)
    out = backend.asarray(np.zeros_like(backend.asnumpy(expected[0])))
    results = call(backend, name, out, return_statistics=True)
    assert results[0] is out
    assert [bits(backend, array) for array in results] == [bits(backend, array) for array in expected]


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d", "max_pool2d", "avg_pool2d", "im2col", "col2im"])
def test_images_without_a_batch(backend: ArrayBackend, name: str) -> None:
    single = CALLS[name]["input"][0]
    expected = call(backend, name, input=single)
    out = backend.asarray(np.zeros_like(backend.asnumpy(expected)))
    assert call(backend, name, out, input=single) is out
    assert bits(backend, out) == bits(backend, expected)


@pytest.mark.parametrize("name", ["conv2d", "max_pool2d", "avg_pool2d", "im2col", "layer_norm"])
def test_empty_batches(backend: ArrayBackend, name: str) -> None:
    nothing = {array: CALLS[name][array][:0] for array in ("input", "residual") if array in CALLS[name]}
    out = backend.asarray(np.zeros(backend.asnumpy(call(backend, name, **nothing)).shape))
    assert call(backend, name, out, **nothing) is out


def test_channels_of_one_array_may_be_in_and_out(backend: ArrayBackend) -> None:
    x, w = np.arange(2 * 6 * 4 * 4.0).reshape(2, 6, 4, 4), np.ones((2, 4, 3, 3))
    expected = F.conv2d(x[:, :4], w, padding=1)
    for _ in range(2):
        whole = backend.asarray(x.copy())
        F.conv2d(whole[:, :4], backend.asarray(w), padding=1, out=whole[:, 4:])
        np.testing.assert_allclose(backend.asnumpy(whole[:, 4:]), expected)
        assert (backend.asnumpy(whole[:, :4]) == x[:, :4]).all()


# --- What is refused ----------------------------------------------------------------------------------------------

X = np.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.zeros((2, 3, 2, 3)), ValueError, r"avg_pool2d: out has shape \(2, 3, 2, 3\), expected \(2, 3, 2, 2\)"),
        (np.zeros((3, 2, 2)), ValueError, r"avg_pool2d: out has shape \(3, 2, 2\), expected \(2, 3, 2, 2\)"),
        (np.zeros((2, 3, 2, 2), np.float32), TypeError, "out has dtype float32, expected float64, that of the result"),
    ],
)
def test_other_shapes_and_dtypes(backend: ArrayBackend, out: Any, error: type[Exception], message: str) -> None:
    for _ in range(2):
        with pytest.raises(error, match=message):
            F.avg_pool2d(backend.asarray(X), 2, out=backend.asarray(out))


def test_memory_of_an_argument(backend: ArrayBackend) -> None:
    whole = backend.asarray(np.zeros(2 * 3 * 4 * 4 + 100))
    x = whole[: 2 * 3 * 4 * 4].reshape(2, 3, 4, 4)
    apart = whole[96:120].reshape(2, 3, 2, 2)
    assert F.avg_pool2d(x, 2, out=apart) is apart
    for begin in (0, 50, 95):
        with pytest.raises(ValueError, match="avg_pool2d: out shares memory with an argument"):
            F.avg_pool2d(x, 2, out=whole[begin : begin + 24].reshape(2, 3, 2, 2))
    with pytest.raises(ValueError, match="layer_norm: out shares memory with an argument"):
        F.layer_norm(x, (4, 4), out=x)
    weight = whole[:16].reshape(4, 4)
    with pytest.raises(ValueError, match="layer_norm: out shares memory with an argument"):
        F.layer_norm(backend.asarray(X), (4, 4), weight, out=x)


def test_elements_that_share_a_place(backend: ArrayBackend) -> None:
    x, row = backend.asarray(X), backend.asarray(np.zeros((1, 3, 2, 2)))
    xp = backend.primitives.xp
    with pytest.raises(
        ValueError, match=r"avg_pool2d: out (is read-only|has strides .*, expected a place in memory for each element)"
    ):
        F.avg_pool2d(x, 2, out=xp.broadcast_to(row, (2, 3, 2, 2)))


def test_elements_that_share_a_place_with_a_neighbour() -> None:
    out = np.lib.stride_tricks.as_strided(np.zeros(3), (1, 1, 2, 2), (24, 24, 8, 8))
    with pytest.raises(ValueError, match="expected a place in memory for each element"):
        F.avg_pool2d(X[:1, :1], 2, out=out)


def test_an_array_of_another_kind(backend: ArrayBackend) -> None:
    other: Any = np.zeros((2, 3, 2, 2))
    if backend.takes_numpy:
        other = gpucnn.simulator.asarray(other)
    with pytest.raises(TypeError, match=r"avg_pool2d: got arrays of two libraries, input of .* and out of"):
        F.avg_pool2d(backend.asarray(X), 2, out=other)
    with pytest.raises(TypeError, match="avg_pool2d: out is of type list, expected an array"):
        F.avg_pool2d(backend.asarray(X), 2, out=[1.0])


def test_a_read_only_array() -> None:
    out = np.zeros((2, 3, 2, 2))
    out.flags.writeable = False
    with pytest.raises(ValueError, match="avg_pool2d: out is read-only, expected an array that can be written to"):
        F.avg_pool2d(X, 2, out=out)


def test_elements_across_their_grain() -> None:
    records = np.zeros((2, 3, 2, 2), [("a", "u1"), ("b", "f8")])
    with pytest.raises(ValueError, match=r"avg_pool2d: out has strides .*, expected its elements at multiples"):
        F.avg_pool2d(X, 2, out=records["b"])


def test_tensors_of_another_library(torch: Any) -> None:
    out = torch.zeros(2, 3, 2, 2, dtype=torch.float64)
    assert F.avg_pool2d(torch.from_numpy(X), 2, out=out) is out
    np.testing.assert_array_equal(out.numpy(), F.avg_pool2d(X, 2))
