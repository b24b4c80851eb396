"""The contract of a backend: each primitive is there, documented, and leaves its inputs alone."""

from __future__ import annotations

import inspect
from fractions import Fraction
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from array_backends import ArrayBackend
from strategies import arranged, dtype_of

from benchmarks import primitives as calls
from gpucnn.backends.base import Backend, implemented_by
from gpucnn.backends.dtypes import COMPLEX, FLOATING, INTEGER, LINEAR, NUMERIC, ORDERED, accumulator, describe
from gpucnn.backends.numpy import NumpyBackend, average_pooling
from gpucnn.backends.numpy.memory import is_channels_last
from gpucnn.geometry import (
    AdaptiveAxis,
    Axis,
    ConvGeometry,
    InterpolationAxis,
    InterpolationGeometry,
    NormGeometry,
    PoolGeometry,
)
from gpucnn.geometry.geometries import Channels

ALLOCATORS = {"empty", "empty_like"}
PRIMITIVES = sorted(Backend.__abstractmethods__ - ALLOCATORS)


def parameters(function: Any) -> list[tuple[str, str]]:
    """Names and annotations."""
    found = inspect.signature(function).parameters.values()
    return [(parameter.name, parameter.annotation) for parameter in found if parameter.name != "self"]


# --- Its form -----------------------------------------------------------------------------------------------------


def test_the_contract_is_primitives_and_what_makes_their_arrays() -> None:
    public = {name for name in vars(Backend) if not name.startswith("_")}
    assert public == {*PRIMITIVES, *ALLOCATORS, "empty_weight", "writes_to"}
    assert set(Backend.__annotations__) == {"name", "xp", "host"}
    with pytest.raises(TypeError, match="abstract"):
        Backend()  # type: ignore[abstract]


def test_the_numpy_backend_is_a_backend_and_nothing_more() -> None:
    backend = NumpyBackend()
    assert isinstance(backend, Backend)
    assert (backend.name, backend.xp, backend.host) == ("numpy", np, True)
    public = {name for name in dir(backend) if not name.startswith("_")}
    assert public == {*PRIMITIVES, *ALLOCATORS, "empty_weight", "writes_to", "name", "xp", "host"}


def test_a_backend_says_which_primitive_it_lacks_or_has_twice() -> None:
    for modules, count in (((), 0), ((average_pooling, average_pooling), 2)):
        with pytest.raises(TypeError, match=rf"^Half: average_pool is in {count} of its modules, expected one$"):
            implemented_by(*modules, method=staticmethod)(type("Half", (Backend,), {}))


@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_primitives_take_the_same_parameters_and_are_documented(backend: ArrayBackend, primitive: str) -> None:
    primitives = backend.primitives
    contract, here = getattr(Backend, primitive), getattr(primitives, primitive)
    assert parameters(here) == parameters(contract)
    for function in (contract, here):
        assert len(function.__doc__ or "") > 20
        assert function.__annotations__["return"] == "None"  # results go to arrays that they are given
        assert all(
            parameter.default is parameter.empty for parameter in inspect.signature(function).parameters.values()
        )
    assert here.__module__.startswith(f"gpucnn.backends.{primitives.name}")
    assert here.__name__ == primitive


# --- Its behaviour, over [N, C, D, H, W] --------------------------------------------------------------------------

N, C, OC, GROUPS = 2, 4, 6, 2
AXES = (Axis(3, 2, 1, 1, 0, 0, 2), Axis(5, 2, 2, 2, 1, 0, 2), Axis(6, 3, 1, 1, 1, 2, 7))
SIZE, OUT, KERNEL = (3, 5, 6), (2, 2, 7), (2, 2, 3)
CONV = ConvGeometry(3, Channels(C, OC, GROUPS), AXES)
LOCAL = ConvGeometry(3, Channels(C, OC), AXES)
UNFOLD = ConvGeometry(3, Channels(C, 1), AXES)
POOL = PoolGeometry(3, AXES, "padded")
ADAPTIVE = PoolGeometry(3, (Axis(3, 1, 1, out=3), AdaptiveAxis(5, 3), AdaptiveAxis(6, 4)), "valid")
RESAMPLE = InterpolationGeometry(
    3,
    (
        InterpolationAxis(3, 3),
        InterpolationAxis(5, 2, Fraction(5, 2)),
        InterpolationAxis(6, 4, 1.5, Fraction(1, 2), blends=True),
    ),
)
BATCH = NormGeometry((N, C, 1, 90), (0, 2, 3))
ROWS = NormGeometry((N, C, 1, 90), (2, 3))


def values(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(len(shape)).standard_normal(shape)


x, y, pooled = values(N, C, *SIZE), values(N, OC, *OUT), values(N, C, *OUT)
w, local = values(OC, C // GROUPS, *KERNEL), values(OC, *OUT, C, *KERNEL)
columns = values(N, C * 12, 28)
indices = np.random.default_rng(0).integers(-1, 90, (N, C, *OUT))
mask = values(N, C, *SIZE) > 0
rows = values(N, C, 90)
flat, centre, spread, affine = values(N, C, 1, 90), values(1, C, 1, 1), values(1, C, 1, 1) ** 2, values(1, C, 1, 1)

CALLS: list[tuple[str, tuple[Any, ...], Any]] = [  # the primitive, its arguments, the shapes of its results
    ("convolve", (x, w, values(OC), CONV), (N, OC, *OUT)),
    ("convolve", (x, w, None, CONV), (N, OC, *OUT)),
    ("convolve_backward_input", (y, w, values(C), CONV), (N, C, *SIZE)),
    ("convolve_backward_input", (y, w, None, CONV), (N, C, *SIZE)),
    ("convolve_backward_weight", (x, y, CONV), w.shape),
    ("locally_connect", (x, local, values(OC, *OUT), LOCAL), (N, OC, *OUT)),
    ("locally_connect", (x, local, None, LOCAL), (N, OC, *OUT)),
    ("locally_connect_backward_input", (y, local, LOCAL), (N, C, *SIZE)),
    ("locally_connect_backward_weight", (x, y, LOCAL), local.shape),
    ("im2col", (x, UNFOLD), columns.shape),
    ("col2im", (columns, UNFOLD), (N, C, *SIZE)),
    ("max_pool", (x, POOL), (N, C, *OUT)),
    ("max_pool", (x, ADAPTIVE), (N, C, 3, 3, 4)),
    ("max_pool_with_indices", (x, POOL), [(N, C, *OUT)] * 2),
    ("max_pool_with_indices", (x, ADAPTIVE), [(N, C, 3, 3, 4)] * 2),
    ("max_pool_backward", (pooled, indices, POOL), (N, C, *SIZE)),
    ("unpool", (pooled, indices, SIZE), (N, C, *SIZE)),
    ("gather", (x, indices), (N, C, *OUT)),
    ("average_pool", (x, POOL), (N, C, *OUT)),
    ("average_pool", (x, ADAPTIVE), (N, C, 3, 3, 4)),
    ("average_pool_backward", (pooled, POOL), (N, C, *SIZE)),
    ("interpolate", (x, RESAMPLE), (N, C, 3, 2, 4)),
    ("interpolate_backward", (values(N, C, 3, 2, 4), RESAMPLE), (N, C, *SIZE)),
    ("norm_statistics", (flat, BATCH, 1e-5), [(1, C, 1, 1)] * 3),
    ("norm_statistics", (flat, ROWS, 1e-5), [(N, C, 1, 1)] * 3),
    ("norm_apply", (flat, centre, spread, affine, affine, 1e-5, None, "none", 0.0), flat.shape),
    ("norm_apply", (flat, centre, spread, None, None, 1e-5, None, "none", 0.0), flat.shape),
    ("norm_forward", (flat, affine, affine, BATCH, 1e-5, flat, "relu", 0.0), [flat.shape, *[(1, C, 1, 1)] * 3]),
    ("norm_forward", (flat, None, None, ROWS, 1e-5, None, "leaky_relu", 0.1), [flat.shape, *[(N, C, 1, 1)] * 3]),
    ("norm_activation_backward", (flat, flat, centre, spread, affine, affine, flat, "leaky_relu", 0.1), flat.shape),
    ("norm_activation_backward", (flat, flat, centre, spread, None, None, None, "relu", 0.0), flat.shape),
    ("norm_backward_affine", (flat, flat, centre, spread, BATCH), [(1, C, 1, 1)] * 2),
    ("norm_backward_input", (flat, flat, centre, spread, affine, BATCH), flat.shape),
    ("norm_backward_input", (flat, flat, centre, spread, None, BATCH), flat.shape),
    ("norm_backward", (flat, flat, centre, spread, affine, BATCH), [flat.shape, *[(1, C, 1, 1)] * 2]),
    ("masked", (x, mask), x.shape),
    ("copy", (rows, np.dtype("float32"), True), rows.shape),
    ("copy", (rows, np.dtype("float64"), False), rows.shape),
    ("bias_activation", (rows, values(C), rows, "leaky_relu", 0.3), rows.shape),
    ("bias_activation", (rows, None, None, "relu", 0.0), rows.shape),
    ("bias_activation_backward", (rows, rows, "leaky_relu", 0.3), [rows.shape, (C,)]),
    ("channel_sums", (x,), (C,)),
]
NAMES = [f"{primitive}-{index}" for index, (primitive, _, _) in enumerate(CALLS)]


def run(backend: ArrayBackend, primitive: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    results: tuple[Any, ...] = backend.run(partial(calls.run, backend.primitives, primitive), *arguments)
    return results


def test_each_primitive_is_called_here() -> None:
    assert {calls.VARIANTS.get(primitive, primitive) for primitive, _, _ in CALLS} == set(PRIMITIVES)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("primitive", "arguments", "shapes"), CALLS, ids=NAMES)
def test_results_are_new_arrays_of_their_shape_and_dtype(
    backend: ArrayBackend, primitive: str, arguments: tuple[Any, ...], shapes: Any, dtype: str
) -> None:
    kind = dtype_of(dtype)
    wide = accumulator(kind)
    parts_are_wide = primitive.startswith("norm_") and primitive != "norm_statistics"  # statistics, weight and bias

    def cast(argument: Any) -> Any:
        if not isinstance(argument, np.ndarray) or argument.dtype.kind != "f":
            return argument
        return argument.astype(wide if parts_are_wide and argument.shape == (1, C, 1, 1) else kind)

    given = list(map(cast, arguments))
    before = [argument.copy() if hasattr(argument, "copy") else argument for argument in given]
    results = run(backend, primitive, tuple(given))
    assert [result.shape for result in results] == (shapes if isinstance(shapes, list) else [shapes])
    of_wide = primitive in ("norm_statistics", "norm_backward_affine")
    assert results[0].dtype == (arguments[1] if primitive == "copy" else wide if of_wide else kind)
    if primitive == "max_pool_with_indices":
        assert results[1].dtype == np.int64
    for argument, copy in zip(given, before, strict=True):
        if hasattr(argument, "copy"):
            np.testing.assert_array_equal(argument, copy)
            assert not any(np.may_share_memory(result, argument) for result in results)


@pytest.mark.parametrize(("primitive", "arguments", "shapes"), CALLS, ids=NAMES)
def test_results_repeat_and_follow_the_order_of_the_first_array(
    backend: ArrayBackend, primitive: str, arguments: tuple[Any, ...], shapes: Any
) -> None:
    expected = run(backend, primitive, arguments)
    for result, other in zip(run(backend, primitive, arguments), expected, strict=True):
        np.testing.assert_array_equal(result, other)
    for order in ("channels_last", "strided", "reversed", "offset"):
        turned = [
            arranged(argument, order) if isinstance(argument, np.ndarray) and argument.ndim >= 3 else argument
            for argument in arguments
        ]
        for result, other in zip(run(backend, primitive, tuple(turned)), expected, strict=True):
            np.testing.assert_allclose(result, other, rtol=0, atol=1e-12)
            if other.shape[:2] in ((N, C), (N, OC)) and other.ndim == 5 and primitive != "col2im":
                assert is_channels_last(result) == (order == "channels_last"), order


@pytest.mark.parametrize(("primitive", "arguments", "shapes"), CALLS, ids=NAMES)
def test_read_only_arrays_are_taken(
    backend: ArrayBackend, primitive: str, arguments: tuple[Any, ...], shapes: Any
) -> None:
    copies = [argument.copy() if isinstance(argument, np.ndarray) else argument for argument in arguments]
    for copy in copies:
        if isinstance(copy, np.ndarray):
            copy.flags.writeable = False
    for result in run(backend, primitive, tuple(copies)):
        assert result.flags.writeable


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
    (actual,) = run(backend, "masked", (arranged(values, order), arranged(mask, order)))
    assert actual.dtype == values.dtype
    np.testing.assert_array_equal(actual.astype(np.float64), np.where(mask, values.astype(np.float64), 0))
