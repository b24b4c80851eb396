"""Sorting through CuPy over the simulated CUDA: equal to NumPy's for every type, NaN among the numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from simulated_cuda import REASON, is_installed

if not is_installed():
    pytest.skip(REASON, allow_module_level=True)

import cupy

from gpucnn.simulator import cuda

if not cupy.cuda.thrust.available:
    pytest.skip("cupy.cuda.thrust was not compiled anew in this environment", allow_module_level=True)

Array = np.ndarray[Any, Any]
DTYPES = "?bBhHiIqQefdFD"


def numbers(dtype: str, shape: tuple[int, ...]) -> Array:
    """Numbers with repetitions and, of a type that has them, NaN, infinities and both zeros."""
    random = np.random.default_rng(4)
    array = random.integers(0, 2 if dtype == "?" else 60, shape).astype(dtype)
    if dtype in "efdFD":
        array[..., 3::7] = np.nan
        array[..., 2] = -0.0
        array[..., 4:6] = np.inf, -np.inf
    if dtype in "FD":
        array = array + (1j * random.integers(0, 3, shape)).astype(dtype)
        array[..., 0] = complex(1, np.nan)
    return array


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), [((40,), 0), ((5, 40), 1), ((40, 9), 0), ((2, 3, 30), -1)])
def test_sorted_as_by_numpy(dtype: str, shape: tuple[int, ...], axis: int) -> None:
    array = numbers(dtype, shape)
    on_device = cupy.asarray(array)
    np.testing.assert_array_equal(cupy.sort(on_device, axis).get(), np.sort(array, axis))
    expected = np.argsort(array, axis, kind="stable")
    np.testing.assert_array_equal(cupy.argsort(on_device, axis).get(), expected)


@pytest.mark.parametrize("dtype", "bqefd")
def test_sorted_by_several_keys(dtype: str) -> None:
    keys = np.random.default_rng(1).integers(0, 4, (3, 50)).astype(dtype)
    np.testing.assert_array_equal(cupy.lexsort(cupy.asarray(keys)).get(), np.lexsort(keys))


def test_what_cupy_makes_of_sorting() -> None:
    array = np.random.default_rng(2).integers(0, 20, 51).astype(np.float64)
    on_device = cupy.asarray(array)
    np.testing.assert_array_equal(cupy.unique(on_device).get(), np.unique(array))
    assert float(cupy.median(on_device)) == np.median(array)
    np.testing.assert_array_equal(np.sort(cupy.random.permutation(30).get()), np.arange(30))


def test_empty_arrays() -> None:
    assert cupy.sort(cupy.asarray(np.zeros(0))).shape == (0,)
    assert cupy.argsort(cupy.asarray(np.zeros((3, 0)))).shape == (3, 0)


def test_sorting_in_stream_order() -> None:
    array = numbers("d", (40,))
    on_device = cupy.asarray(array)
    stream = cupy.cuda.Stream(non_blocking=True)
    with cuda.stream_order(3), stream:
        found = cupy.sort(on_device)
        stream.synchronize()
    np.testing.assert_array_equal(found.get(), np.sort(array))


@pytest.fixture
def exact_allocations() -> Iterator[None]:
    """Arrays are allocations of exactly their size, so that each byte next to one is out of bounds."""
    cupy.cuda.set_allocator(None)
    yield
    cupy.cuda.set_allocator(cupy.get_default_memory_pool().malloc)


@pytest.mark.usefixtures("exact_allocations")
def test_sorting_out_of_bounds() -> None:
    array = cupy.asarray(np.zeros(8))
    with pytest.raises((RuntimeError, SystemError)) as caught:
        cupy.cuda.thrust.sort(array.dtype, array.data.ptr, 0, (9,))
    error = caught.value.__cause__ or caught.value
    assert str(error).startswith("cupy.cuda.thrust.sort: ")
    assert "cupy.cuda.thrust.sort: data" in cuda.last_failure()
