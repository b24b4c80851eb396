"""Matrix products by BLAS: what cuBLAS is told computes what NumPy does, in whatever order matrices lie in memory."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16
from strategies import arranged

import gpucnn
import gpucnn.functional as F
from gpucnn import simulator
from gpucnn.backends.cuda.convolution import gemm as products
from gpucnn.backends.cuda.convolution import im2col
from gpucnn.backends.cuda.device import cublas
from gpucnn.backends.cuda.device.simulator_runtime import SimulatorRuntime
from gpucnn.backends.dtypes import accumulator

ORDERS = ("rows", "columns", "channels innermost")


def numbers(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    """Small integers, so that sums are exact in any order."""
    values = np.random.default_rng(len(shape)).integers(-4, 5, shape)
    return (values + 1j * np.flip(values)).astype(dtype) if np.dtype(dtype).kind == "c" else values.astype(dtype)


def turned(x: np.ndarray[Any, Any], order: str) -> np.ndarray[Any, Any]:
    """X [N, G, R, S] with the same values and another memory order."""
    if order == "rows":
        return x.copy()
    axes = (0, 1, 3, 2) if order == "columns" else (0, 3, 1, 2)  # the latter as groups of channels innermost
    return np.ascontiguousarray(x.transpose(axes)).transpose(np.argsort(axes))


class Blas:
    """cuBLAS on the host's memory, one element after the other, as its documentation has it."""

    TYPES = (np.float32, np.float64, np.float16, None, np.complex64, np.complex128)

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.status = 0

    def gemm(
        self, handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int, a: int, a_type: int, lda: int,
        step_a: int, b: int, b_type: int, ldb: int, step_b: int, beta: int, c: int, c_type: int, ldc: int, step_c: int,
        batch: int, compute: int, algo: int,
    ) -> int:  # fmt: skip
        self.calls.append((handle, transa, transb, m, n, k, batch, algo))
        assert lda >= (k if transa else m)
        assert ldb >= (n if transb else k)
        assert ldc >= m
        assert a_type == b_type == c_type
        dtype = np.dtype(self.TYPES[c_type])
        wide = np.dtype(np.float32) if dtype == np.float16 else dtype
        assert compute == {"f": 68, "F": 68, "d": 70, "D": 70}[wide.char]
        adds = at(beta, wide, 0)
        assert (at(alpha, wide, 0), adds in (0, 1)) == (1, True)
        for image, row, column in itertools.product(range(batch), range(m), range(n)):
            place = image * step_c + row + column * ldc
            total = wide.type(at(c, dtype, place) if adds else 0)  # what is not added may be NaN
            for i in range(k):
                total += wide.type(
                    at(a, dtype, image * step_a + (i + row * lda if transa else row + i * lda))
                ) * wide.type(at(b, dtype, image * step_b + (column + i * ldb if transb else i + column * ldb)))
            at(c, dtype, place, total)
        return self.status


def at(address: int, dtype: np.dtype[Any], index: int, value: Any = None) -> Any:
    """The element of an array in the host's memory, after `value` was written there."""
    interface = {"version": 3, "shape": (1,), "typestr": dtype.str, "data": (address + index * dtype.itemsize, False)}
    element = np.asarray(SimpleNamespace(__array_interface__=interface))
    if value is not None:
        element[0] = value
    return element[0]


class Placed:
    """An array of the host with a pointer as a device's has."""

    def __init__(self, host: np.ndarray[Any, Any]) -> None:
        self.host, self.shape, self.strides, self.dtype = host, host.shape, host.strides, host.dtype
        self.itemsize = host.itemsize
        self.data = SimpleNamespace(ptr=host.__array_interface__["data"][0], device_id=0)

    def swapaxes(self, one: int, other: int) -> Placed:
        return Placed(self.host.swapaxes(one, other))


class BlasRuntime(SimulatorRuntime):
    """A runtime whose products are those that cuBLAS is told, as on a GPU."""

    def __init__(self, blas: Blas) -> None:
        self._blas = blas

    def product(self, factors: Any, result: Any, precision: str, device: Any) -> Any:
        types = (*map(cublas.data_type, (factors.name, result.name)), cublas.compute_type(factors.name, precision))
        one = np.array([1, 0], accumulator(factors))
        return cublas.CublasProduct(self._blas, None, device, types, one)  # type: ignore[arg-type]


@pytest.fixture
def blas(monkeypatch: pytest.MonkeyPatch) -> Blas:
    monkeypatch.setattr(cublas, "handle", lambda *of: 1000)
    return Blas()


SIZES = [  # N, N of a, G, M, K, P
    (1, 1, 1, 3, 4, 5), (3, 1, 1, 2, 4, 3), (2, 1, 3, 2, 3, 4), (3, 1, 2, 2, 3, 4), (2, 2, 3, 2, 2, 3),
    (2, 1, 1, 1, 3, 1), (2, 1, 2, 1, 1, 4), (2, 2, 1, 3, 1, 1),
]  # fmt: skip


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("orders", list(itertools.product(ORDERS, repeat=3)), ids="-".join)
def test_cublas_is_told_the_product_that_is_meant(
    blas: Blas, sizes: tuple[int, ...], orders: tuple[str, str, str]
) -> None:
    n, n_a, g, m, k, p = sizes
    a, b = turned(numbers(n_a, g, m, k), orders[0]), turned(numbers(n, g, k, p), orders[1])
    c = turned(np.full((n, g, m, p), np.nan, np.float32), orders[2])
    products.multiply(BlasRuntime(blas), *map(Placed, (a, b, c)))
    np.testing.assert_array_equal(c, a @ b)
    assert len(blas.calls) <= min(n, g)
    assert {(call[0], call[-1]) for call in blas.calls} == {(1000, -1)}


@pytest.mark.parametrize("dtype", ["float16", "float64", "complex64", "complex128"])
def test_cublas_takes_each_dtype(blas: Blas, dtype: str) -> None:
    a, b, c = numbers(1, 1, 2, 3, dtype=dtype), numbers(2, 1, 3, 2, dtype=dtype), numbers(2, 1, 2, 2, dtype=dtype)
    products.multiply(BlasRuntime(blas), *map(Placed, (a, b, c)))
    np.testing.assert_array_equal(c, a @ b)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_product_is_added_to_what_is_there(blas: Blas, sizes: tuple[int, ...]) -> None:
    n, n_a, g, m, k, p = sizes
    a, b, c = numbers(n_a, g, m, k), numbers(n, g, k, p), numbers(n, g, m, p)
    expected = c + a @ b
    products.multiply(BlasRuntime(blas), *map(Placed, (a, b, c)), add=True)
    np.testing.assert_array_equal(c, expected)
    device = simulator.asarray(expected)
    products.multiply(SimulatorRuntime(), simulator.asarray(a), simulator.asarray(b), device, add=True)
    np.testing.assert_array_equal(simulator.asnumpy(device), expected + a @ b)


def test_a_product_that_fails_says_how(blas: Blas) -> None:
    blas.status = 13
    a, b, c = numbers(1, 1, 2, 3), numbers(1, 1, 3, 2), numbers(1, 1, 2, 2)
    with pytest.raises(cublas.CublasError, match=r"^cublasGemmStridedBatchedEx failed: CUBLAS_STATUS_EXECUTION_FA"):
        products.multiply(BlasRuntime(blas), *map(Placed, (a, b, c)))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "complex64"])
def test_precision_is_that_of_float32_products(dtype: str) -> None:
    expected = {"float64": 70, "float32": 77, "complex64": 77}.get(dtype, 68)
    assert cublas.compute_type(dtype, "tf32") == expected
    assert cublas.compute_type(dtype, "fp32") == {77: 68}.get(expected, expected)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_the_simulator_computes_what_blas_is_told(sizes: tuple[int, ...], order: str) -> None:
    n, n_a, g, m, k, p = sizes
    a, b = turned(numbers(n_a, g, m, k), order), turned(numbers(n, g, k, p), order)
    c = simulator.asarray(turned(numbers(n, g, m, p), order))
    products.multiply(SimulatorRuntime(), simulator.asarray(a), simulator.asarray(b), c)
    np.testing.assert_array_equal(simulator.asnumpy(c), a @ b)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("order", ["contiguous", "channels_last", "strided", "reversed", "offset", "broadcast"])
def test_what_blas_cannot_read_is_copied(order: str) -> None:
    host = np.broadcast_to(numbers(1, 4, 1), (3, 4, 6)) if order == "broadcast" else arranged(numbers(3, 4, 6), order)
    x = simulator.asarray(host).reshape(3, 2, 2, 6)
    matrices = products.as_matrices(SimulatorRuntime(), x)
    assert (matrices is x) == (order in ("contiguous", "channels_last", "offset"))
    np.testing.assert_array_equal(simulator.asnumpy(matrices).reshape(host.shape), host)


def test_nothing_is_planned_for_empty_batches(blas: Blas) -> None:
    a, b, c = (Placed(numbers(*shape)) for shape in ((1, 2, 3, 4), (0, 2, 4, 5), (0, 2, 3, 5)))
    products.multiply(BlasRuntime(blas), a, b, c)
    assert not blas.calls


# --- Convolutions by products -------------------------------------------------------------------------------------

CALLS: dict[str, Any] = {
    "forward": lambda x, w, b, y: F.conv2d(x, w, b, 1, 1, 1, 2),
    "1x1": lambda x, w, b, y: F.conv2d(x, w[:, :, :1, :1], None, groups=2),
    "transposed": lambda x, w, b, y: F.conv_transpose2d(y, w, b[:4], 1, 1, 0, 2),
    "transposed 1x1": lambda x, w, b, y: F.conv_transpose2d(y, w[:, :, :1, :1], b[:4], groups=2),
    "backward": lambda x, w, b, y: F.conv2d_backward(y, x, w, b, 1, 1, 1, 2),
    "many weights": lambda x, w, b, y: F.conv2d_backward(y[:, :, 4:, 4:], x[:, :, 2:, 2:], w, b, groups=2),
    "1x1 backward": lambda x, w, b, y: F.conv2d_backward(y, x, w[:, :, :1, :1], b, groups=2),
}


@pytest.mark.table(2)
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "complex128"])
@pytest.mark.parametrize("order", ["contiguous", "channels_last", "strided", "reversed"])
@pytest.mark.parametrize("images", [1, 2, 4])
def test_convolutions_by_products_are_those_of_the_direct_kernels(
    call: str, dtype: Any, order: str, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In as many chunks as there are `images` at once."""
    monkeypatch.setattr(im2col, "images_at_once", lambda image_bytes: images)
    dtype = bfloat16 if dtype == "bfloat16" else dtype
    shapes = ((3, 4, 5, 6), (6, 2, 3, 3), (6,), (3, 6, 5, 6))
    hosts = [numbers(*shape, dtype=dtype) for shape in shapes]
    arrays = [simulator.asarray(arranged(host, order) if host.ndim > 2 else host) for host in hosts]
    results = []
    for algorithm in ("im2col", "direct"):
        with gpucnn.algorithm(algorithm):
            result = CALLS[call](*arrays)
        results.append(result if isinstance(result, tuple) else (result,))
    for found, expected in zip(*results, strict=True):
        assert found.strides == expected.strides
        np.testing.assert_array_equal(simulator.asnumpy(found), simulator.asnumpy(expected))


@pytest.mark.usefixtures("compiler")
def test_16_bit_gradients_are_rounded_once(rng: np.random.Generator) -> None:
    """Columns and parts of the sum are float32: each result is within half a unit of the float64 sum."""
    x, w, y = (
        rng.standard_normal(shape).astype(np.float16) for shape in ((3, 16, 6, 6), (16, 16, 3, 3), (3, 16, 4, 4))
    )
    wide = F.conv2d_backward(*(array.astype(np.float64) for array in (y, x, w)))
    with gpucnn.algorithm("im2col"):
        found = F.conv2d_backward(*map(simulator.asarray, (y, x, w)))
    for result, expected in zip(found[:2], wide[:2], strict=True):
        error = np.abs(simulator.asnumpy(result) - expected)
        assert np.all(error <= 0.501 * np.spacing(np.abs(expected).astype(np.float16)).astype(np.float64) + 1e-5)


@pytest.mark.usefixtures("compiler")
def test_tf32_rounds_the_factors_of_float32_products(rng: np.random.Generator) -> None:
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 8, 4, 4), (16, 8, 3, 3)))
    a, b = simulator.asarray(x), simulator.asarray(w)
    with gpucnn.algorithm("im2col"):
        full = simulator.asnumpy(F.conv2d(a, b))
        with gpucnn.precision("tf32"):
            found = simulator.asnumpy(F.conv2d(a, b))
            again = simulator.asnumpy(F.conv2d(a, b))  # replayed
        assert np.array_equal(simulator.asnumpy(F.conv2d(a, b)), full)
    rounded = [tf32(host).astype(np.float64) for host in (x, w)]
    np.testing.assert_allclose(found, F.conv2d(*rounded), rtol=1e-5, atol=1e-5)
    assert np.array_equal(found, again)
    assert 1e-4 < np.abs(found - full).max() < 1e-1
    ones = simulator.asarray(np.full((1, 1, 1, 1), 1 + 2**-11, np.float32))
    with gpucnn.algorithm("im2col"), gpucnn.precision("tf32"):
        assert simulator.asnumpy(F.conv2d(ones, ones)).item() == (1 + 2**-10) ** 2


def tf32(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rounded to 10 bits of mantissa."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa * 2**11) / 2**11, exponent).astype(x.dtype)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_weights_gradient_in_several_chunks_is_right_each_time(dtype: str, rng: np.random.Generator) -> None:
    """Such calls are not recorded: each chunk is a part of the caller's arrays."""
    for _ in range(3):
        x, w, y = (rng.integers(-3, 4, shape).astype(dtype) for shape in ((5, 8, 4, 4), (16, 8, 3, 3), (5, 16, 2, 2)))
        expected = F.conv2d_backward(*(array.astype(np.float64) for array in (y, x, w)), needs=(False, True, False))[1]
        with gpucnn.algorithm("im2col"), gpucnn.workspace_limit(2 * 72 * 4 * x.itemsize):
            arrays = map(simulator.asarray, (y, x, w))
            found = F.conv2d_backward(*arrays, needs=(False, True, False))[1]
        np.testing.assert_array_equal(simulator.asnumpy(found), expected.astype(dtype))


@pytest.mark.usefixtures("compiler")
def test_rows_of_columns_begin_at_16_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that cuBLAS may read them by its fast kernels, whatever the number of positions."""
    leads: list[int] = []
    planned = products._plan.__wrapped__

    def plan(*arguments: Any) -> Any:
        found = planned(*arguments)
        leads.extend((gemm.lead_a * 2) % 16 for gemm in found.parameters)
        return found

    monkeypatch.setattr(products, "_plan", plan)
    x, w = numbers(2, 8, 7, 7, dtype=np.float16), numbers(16, 8, 3, 3, dtype=np.float16)
    with gpucnn.algorithm("im2col"):
        F.conv2d(simulator.asarray(x), simulator.asarray(w), padding=1)  # 49 positions
    assert leads == [0]
