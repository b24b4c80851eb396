"""Matrix products by BLAS: what cuBLAS is told computes what NumPy does, in whatever order matrices lie in memory."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cupy_stub import CupyStub
from strategies import arranged

import gpucnn
import gpucnn.functional as F
from gpucnn import simulator
from gpucnn.backends.cuda.convolution import gemm as products
from gpucnn.backends.cuda.convolution import im2col
from gpucnn.backends.cuda.device import cupy_runtime
from gpucnn.backends.cuda.device.cupy_runtime import CupyRuntime
from gpucnn.backends.cuda.device.simulator_runtime import SimulatorRuntime

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

    def gemmStridedBatchedEx(  # noqa: N802
        self, handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int, a: int, a_type: int, lda: int,
        step_a: int, b: int, b_type: int, ldb: int, step_b: int, beta: int, c: int, c_type: int, ldc: int, step_c: int,
        batch: int, compute: int, algo: int,
    ) -> None:  # fmt: skip
        self.calls.append((handle, transa, transb, m, n, k, batch, algo))
        assert lda >= (k if transa else m)
        assert ldb >= (n if transb else k)
        assert ldc >= m
        assert a_type == b_type == c_type
        dtype = np.dtype(self.TYPES[c_type])
        wide = np.dtype(np.float32) if dtype == np.float16 else dtype
        assert compute == {"f": 68, "F": 68, "d": 70, "D": 70}[wide.char]
        assert (at(alpha, wide, 0), at(beta, wide, 0)) == (1, 0)
        for image, row, column in itertools.product(range(batch), range(m), range(n)):
            total = wide.type(0)
            for i in range(k):
                total += wide.type(
                    at(a, dtype, image * step_a + (i + row * lda if transa else row + i * lda))
                ) * wide.type(at(b, dtype, image * step_b + (column + i * ldb if transb else i + column * ldb)))
            at(c, dtype, image * step_c + row + column * ldc, total)


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


@pytest.fixture
def blas(monkeypatch: pytest.MonkeyPatch) -> Blas:
    """What CuPy's cuBLAS is, and of CuPy what a product needs."""
    cupy, blas = CupyStub(), Blas()
    properties = {"name": b"GPU", "major": 8, "minor": 0, "multiProcessorCount": 100}
    cupy.cuda.get_cublas_handle = lambda: 1000
    cupy.cuda.runtime.getDevice = lambda: 0
    cupy.cuda.runtime.getDeviceProperties = lambda index: properties
    cupy.install(monkeypatch)
    monkeypatch.setattr(cupy_runtime, "_cublas", lambda: blas)
    return blas


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
    products.multiply(CupyRuntime(), *map(Placed, (a, b, c)))
    np.testing.assert_array_equal(c, a @ b)
    assert len(blas.calls) <= min(n, g)
    assert {(call[0], call[-1]) for call in blas.calls} == {(1000, -1)}


@pytest.mark.parametrize("dtype", ["float16", "float64", "complex64", "complex128"])
def test_cublas_takes_each_dtype(blas: Blas, dtype: str) -> None:
    a, b, c = numbers(1, 1, 2, 3, dtype=dtype), numbers(2, 1, 3, 2, dtype=dtype), numbers(2, 1, 2, 2, dtype=dtype)
    products.multiply(CupyRuntime(), *map(Placed, (a, b, c)))
    np.testing.assert_array_equal(c, a @ b)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_cupys_cublas_computes_what_it_is_told(cupy: Any, sizes: tuple[int, ...], order: str) -> None:
    n, n_a, g, m, k, p = sizes
    a, b, c = (turned(numbers(*shape), order) for shape in ((n_a, g, m, k), (n, g, k, p), (n, g, m, p)))
    x, y, z = (cupy.ndarray(host.shape, host.dtype, strides=host.strides) for host in (a, b, c))
    x[...], y[...] = cupy.asarray(a), cupy.asarray(b)
    products.multiply(CupyRuntime(), x, y, z)
    np.testing.assert_array_equal(cupy.asnumpy(z), a @ b)


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
    products.multiply(CupyRuntime(), a, b, c)
    assert not blas.calls


# --- Convolutions by products -------------------------------------------------------------------------------------

CALLS: dict[str, Any] = {
    "forward": lambda x, w, b, y: F.conv2d(x, w, b, 1, 1, 1, 2),
    "1x1": lambda x, w, b, y: F.conv2d(x, w[:, :, :1, :1], None, groups=2),
    "transposed": lambda x, w, b, y: F.conv_transpose2d(y, w, b[:4], 1, 1, 0, 2),
    "transposed 1x1": lambda x, w, b, y: F.conv_transpose2d(y, w[:, :, :1, :1], b[:4], groups=2),
    "backward": lambda x, w, b, y: F.conv2d_backward(y, x, w, b, 1, 1, 1, 2),
    "1x1 backward": lambda x, w, b, y: F.conv2d_backward(y, x, w[:, :, :1, :1], b, groups=2),
}


@pytest.mark.table(2)
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("order", ["contiguous", "channels_last", "strided", "reversed"])
@pytest.mark.parametrize("images", [1, 2, 4])
def test_convolutions_by_products_are_those_of_the_direct_kernels(
    call: str, dtype: str, order: str, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In as many chunks as there are `images` at once."""
    monkeypatch.setattr(im2col, "images_at_once", lambda image_bytes: images)
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
