"""The contract of a backend: each primitive is there, documented, and leaves its inputs alone."""

from __future__ import annotations

import inspect
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from array_backends import ArrayBackend
from strategies import arranged, dtype_of

from benchmarks.primitives import Call, agree, calls, placed, run
from gpucnn.backends.base import Backend, implemented_by
from gpucnn.backends.dtypes import COMPLEX, FLOATING, INTEGER, LINEAR, NUMERIC, ORDERED, accumulator, describe
from gpucnn.backends.numpy import NumpyBackend, average_pooling
from gpucnn.backends.numpy.memory import is_channels_last

ALLOCATORS = {"empty", "empty_like"}
COMPOSED = {
    *("adam", "convolve_activation", "sgd", "smooth_activation", "smooth_activation_backward"),
    *("softmax", "softmax_backward"),
}
PRIMITIVES = sorted(Backend.__abstractmethods__ - ALLOCATORS)


def parameters(function: Any) -> dict[str, set[str]]:
    """The types that each parameter may have, in their order."""
    found = inspect.signature(function).parameters.values()
    return {each.name: set(each.annotation.split(" | ")) for each in found if each.name != "self"}


# --- Its form -----------------------------------------------------------------------------------------------------


def test_the_contract_is_primitives_and_what_makes_their_arrays() -> None:
    public = {name for name in vars(Backend) if not name.startswith("_")}
    assert public == {*PRIMITIVES, *ALLOCATORS, *COMPOSED, "empty_weight", "writes_to", "zeros"}
    assert set(Backend.__annotations__) == {"name", "xp", "host"}
    with pytest.raises(TypeError, match="abstract"):
        Backend()  # type: ignore[abstract]


def test_the_numpy_backend_is_a_backend_and_nothing_more() -> None:
    backend = NumpyBackend()
    assert isinstance(backend, Backend)
    assert (backend.name, backend.xp, backend.host) == ("numpy", np, True)
    public = {name for name in dir(backend) if not name.startswith("_")}
    assert public == {*PRIMITIVES, *ALLOCATORS, *COMPOSED, "empty_weight", "writes_to", "zeros", "name", "xp", "host"}


def test_a_backend_says_which_primitive_it_lacks_or_has_twice() -> None:
    for modules, count in (((), 0), ((average_pooling, average_pooling), 2)):
        with pytest.raises(TypeError, match=rf"^Half: average_pool is in {count} of its modules, expected one$"):
            implemented_by(*modules, method=staticmethod)(type("Half", (Backend,), {}))


@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_primitives_take_the_same_parameters_and_are_documented(backend: ArrayBackend, primitive: str) -> None:
    primitives = backend.primitives
    contract, here = getattr(Backend, primitive), getattr(primitives, primitive)
    expected, taken = parameters(contract), parameters(here)
    assert list(taken) == list(expected)
    assert all(expected[name] <= taken[name] for name in expected)
    for function in (contract, here):
        assert len(function.__doc__ or "") > 20
        assert function.__annotations__["return"] == "None"  # results go to arrays that they are given
        assert all(
            parameter.default is parameter.empty for parameter in inspect.signature(function).parameters.values()
        )
    packages = {"compiled": ("cpu", "numpy")}.get(primitives.name, (primitives.name,))
    assert here.__module__.split(".")[:2] == ["gpucnn", "backends"]
    assert here.__module__.split(".")[2] in packages
    own = inspect.unwrap(here)
    assert own.__name__ == primitive or vars(sys.modules[own.__module__])[primitive] is own


# --- Its behaviour ------------------------------------------------------------------------------------------------

each_call = pytest.mark.parametrize("call", list(calls("odd")), ids=lambda call: call.name)
ORDERS = ("channels_last", "strided", "reversed", "offset")


def arrays_of(arguments: tuple[Any, ...]) -> list[np.ndarray[Any, Any]]:
    return [argument for argument in arguments if isinstance(argument, np.ndarray)]


def computed(backend: ArrayBackend, call: Call, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    if backend.name == "numpy" and call.algorithm == "winograd":
        call = replace(call, algorithm=None)  # which NumPy does not compute
    results: tuple[Any, ...] = backend.run(lambda *taken: call.of(backend.primitives, taken), *arguments)
    return results


@each_call
def test_inputs_are_only_read_and_results_repeat(backend: ArrayBackend, call: Call) -> None:
    """Of read-only arrays, too."""
    given = call.arguments()
    before = [array.tobytes() for array in arrays_of(given)]
    for array in arrays_of(given):
        array.flags.writeable = False
    first, again = (computed(backend, call, given) for _ in range(2))
    assert [array.tobytes() for array in arrays_of(given)] == before
    assert [result.tobytes() for result in first] == [result.tobytes() for result in again]
    assert all(result.flags.writeable for result in first)
    assert not any(np.may_share_memory(result, array) for result in first for array in arrays_of(given))


@each_call
def test_results_are_the_same_in_any_memory_order(backend: ArrayBackend, call: Call) -> None:
    given = call.arguments()
    expected = computed(backend, call, given)
    for order in ORDERS:
        turned = placed(given, lambda array, order=order: arranged(array, order) if array.ndim >= 3 else array)
        assert agree(computed(backend, call, turned), expected) == "", order


@pytest.mark.parametrize("order", ["contiguous", *ORDERS])
def test_new_images_are_dense_in_the_order_of_another(backend: ArrayBackend, order: str) -> None:
    like = arranged(np.ones((2, 3, 4, 5, 6), np.float32), order)
    new = backend.run(lambda array: backend.primitives.empty_like((2, 7, 1, 3, 2), np.float16, array), like)
    assert (new.shape, new.dtype) == ((2, 7, 1, 3, 2), np.float16)
    assert is_channels_last(new) == (order == "channels_last")
    assert (np.moveaxis(new, 1, -1) if order == "channels_last" else new).flags.c_contiguous


# --- Its dtypes ---------------------------------------------------------------------------------------------------


def test_sets_of_dtypes() -> None:
    assert {"float16", "bfloat16", "float32", "float64"} == FLOATING
    assert {"complex64", "complex128"} == COMPLEX
    assert {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"} == INTEGER
    assert LINEAR == FLOATING | COMPLEX
    assert ORDERED == FLOATING | INTEGER
    assert NUMERIC == FLOATING | COMPLEX | INTEGER
    assert np.dtype(ml_dtypes.bfloat16).name in FLOATING


def test_dtypes_in_words() -> None:
    floating = "floating-point (float16, bfloat16, float32, float64)"
    assert describe(FLOATING) == floating
    assert describe(LINEAR) == f"{floating} or complex"
    assert describe(ORDERED) == f"{floating} or integer"
    assert describe(NUMERIC) == f"{floating} or complex or integer"


@pytest.mark.parametrize("name", sorted(NUMERIC))
def test_sums_are_kept_in_float32_where_the_dtype_has_16_bits(name: str) -> None:
    dtype = dtype_of(name)
    assert accumulator(dtype) == (np.float32 if name in ("float16", "bfloat16") else dtype)


# --- Its masks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", sorted(FLOATING | INTEGER))
@pytest.mark.parametrize("order", ["contiguous", "channels_last", "strided", "reversed"])
def test_what_is_masked_is_zero_whatever_it_was(backend: ArrayBackend, dtype: str, order: str) -> None:
    values = np.arange(-60, 60).reshape(2, 3, 4, 5).astype(dtype_of(dtype))
    if dtype in FLOATING:
        values[0, 0, 0] = [np.nan, np.inf, -np.inf, -0.0, np.nan]
    mask = np.random.default_rng(1).random(values.shape) < 0.5
    mask[0, 0, 0] = [True, True, False, True, False]
    (actual,) = backend.run(partial(run, backend.primitives, "masked"), arranged(values, order), arranged(mask, order))
    assert actual.dtype == values.dtype
    np.testing.assert_array_equal(actual.astype(np.float64), np.where(mask, values.astype(np.float64), 0))
