"""The simulated cuBLAS: values against NumPy, exactly, on integers; statuses; what reads or writes out of bounds."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
from simulated_cuda import REASON, is_installed

if not is_installed():
    pytest.skip(REASON, allow_module_level=True)

import cupy
from cupy_backends.cuda.libs import cublas as binding

SUCCESS, NOT_INITIALIZED, INVALID_VALUE, EXECUTION_FAILED, NOT_SUPPORTED = 0, 1, 7, 13, 15
N, T, C = OPERATIONS = 0, 1, 2
LOWER, UPPER = FILLS = 0, 1
LEFT, RIGHT = SIDES = 0, 1
NON_UNIT, UNIT = 0, 1
LETTERS = {"S": np.dtype("f4"), "D": np.dtype("f8"), "C": np.dtype("c8"), "Z": np.dtype("c16")}
R_32F, R_64F, R_16F, R_8I, C_32F, C_64F, R_32I, R_16BF = 0, 1, 2, 3, 4, 5, 10, 14
COMPUTE_16F, COMPUTE_32F, COMPUTE_32F_PEDANTIC, COMPUTE_64F, COMPUTE_32I = 64, 68, 69, 70, 72
FAST_16F, FAST_16BF, FAST_TF32 = 74, 75, 77
DEFAULT_MATH, TENSOR_OP_MATH, PEDANTIC_MATH, TF32_MATH = 0, 1, 2, 3
DEFAULT_ALGORITHM = -1

needs_two_devices = pytest.mark.skipif(
    cupy.cuda.runtime.getDeviceCount() < 2, reason="one simulated device: set GPUCNN_CUDA_DEVICES=2"
)


class Blas:
    """The library by ctypes, with a handle: host arrays and device arrays go as their addresses."""

    def __init__(self) -> None:
        binding.getVersion(cupy.cuda.get_cublas_handle())  # the library is loaded
        self.library = ctypes.CDLL(f"libcublas.so.{cupy.cuda.runtime.runtimeGetVersion() // 1000}")
        self.handle = ctypes.c_void_p()
        assert self.library.cublasCreate_v2(ctypes.byref(self.handle)) == SUCCESS

    def status(self, name: str, *arguments: Any) -> int:
        """What an entry point returns."""
        status: int = getattr(self.library, name)(self.handle, *map(address, arguments))
        return status

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call an entry point, which must succeed."""
        assert self.status(name, *arguments) == SUCCESS, name


def address(argument: Any) -> Any:
    if isinstance(argument, cupy.ndarray):
        return ctypes.c_void_p(argument.data.ptr)
    if isinstance(argument, np.ndarray):
        return ctypes.c_void_p(argument.ctypes.data)
    return argument


@pytest.fixture
def blas() -> Iterator[Blas]:
    made = Blas()
    yield made
    if made.handle:
        made("cublasDestroy_v2")


def integers(shape: Any, dtype: Any, seed: int = 0) -> np.ndarray[Any, Any]:
    """Small integers, of which sums of products are exact."""
    rng, dtype = np.random.default_rng(seed), np.dtype(dtype)
    real = rng.integers(-4, 5, shape)
    return (real + 1j * rng.integers(-4, 5, shape) if dtype.kind == "c" else real).astype(dtype)


def stored(matrix: np.ndarray[Any, Any], lead: int, gap: float = 77) -> cupy.ndarray:
    """A matrix, or a stack of them, in column-major storage on the device, with `gap` between its columns."""
    *stack, rows, columns = matrix.shape
    room = np.full((*stack, columns, lead), gap, matrix.dtype)
    room[..., :rows] = matrix.swapaxes(-1, -2)
    return cupy.asarray(room)


def read(storage: cupy.ndarray, rows: int) -> np.ndarray[Any, Any]:
    """The matrix in column-major storage."""
    values: np.ndarray[Any, Any] = cupy.asnumpy(storage)[..., :rows].swapaxes(-1, -2)
    return values


def gaps(storage: cupy.ndarray, rows: int) -> np.ndarray[Any, Any]:
    values: np.ndarray[Any, Any] = cupy.asnumpy(storage)[..., rows:]
    return values


def applied(matrix: np.ndarray[Any, Any], operation: int) -> np.ndarray[Any, Any]:
    """op(matrix)."""
    return (matrix, matrix.swapaxes(-1, -2), matrix.conj().swapaxes(-1, -2))[operation]


def scalar(value: complex, dtype: Any) -> np.ndarray[Any, Any]:
    return np.array(value, dtype)


def bfloat16(values: Any) -> np.ndarray[Any, Any]:
    """The bits of values that bfloat16 represents."""
    return (np.asarray(values, "f4").view("u4") >> 16).astype("u2")


def from_bfloat16(bits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (bits.astype("u4") << 16).view("f4")


# --- Products ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("op_a", "op_b"), list(product(OPERATIONS, repeat=2)))
@pytest.mark.parametrize("letter", LETTERS)
def test_gemm(blas: Blas, letter: str, op_a: int, op_b: int) -> None:
    dtype, (m, n, k) = LETTERS[letter], (5, 7, 11)
    a = integers((m, k) if op_a == N else (k, m), dtype, 1)
    b = integers((k, n) if op_b == N else (n, k), dtype, 2)
    c = integers((m, n), dtype, 3)
    at_a, at_b, at_c = stored(a, a.shape[0] + 2), stored(b, b.shape[0] + 1), stored(c, m + 3)
    alpha, beta = (2 - 1j, 3 + 2j) if dtype.kind == "c" else (2, 3)
    blas(
        *(f"cublas{letter}gemm_v2", op_a, op_b, m, n, k, scalar(alpha, dtype), at_a, a.shape[0] + 2),
        *(at_b, b.shape[0] + 1, scalar(beta, dtype), at_c, m + 3),
    )
    expected = alpha * (applied(a, op_a) @ applied(b, op_b)) + beta * c
    np.testing.assert_array_equal(read(at_c, m), expected.astype(dtype))
    assert np.all(gaps(at_c, m) == 77)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (1, 300, 5), (129, 1, 257), (130, 133, 600), (8, 4, 0)])
@pytest.mark.parametrize("letter", ["S", "Z"])
def test_gemm_of_sizes_around_its_blocks(blas: Blas, letter: str, m: int, n: int, k: int) -> None:
    dtype = LETTERS[letter]
    a, b = integers((m, k), dtype, 1), integers((k, n), dtype, 2)
    c = cupy.asarray(np.full((n, m), np.nan, dtype))  # beta is 0: what C holds does not count
    blas(
        *(f"cublas{letter}gemm_v2", N, N, m, n, k, scalar(1, dtype), stored(a, m), m),
        *(stored(b, max(1, k)), max(1, k), scalar(0, dtype), c, m),
    )
    np.testing.assert_array_equal(read(c, m), a @ b)


@pytest.mark.parametrize("letter", LETTERS)
def test_gemm_of_strided_batches(blas: Blas, letter: str) -> None:
    """One matrix A for all products: its stride is 0."""
    dtype, (m, n, k, count) = LETTERS[letter], (3, 4, 5, 6)
    a, b, c = integers((m, k), dtype, 1), integers((count, n, k), dtype, 2), integers((count, m, n), dtype, 3)
    at_b, at_c = stored(b, n + 1), stored(c, m + 1)
    blas(
        *(f"cublas{letter}gemmStridedBatched", N, T, m, n, k, scalar(2, dtype), stored(a, m), m, ctypes.c_longlong(0)),
        *(at_b, n + 1, ctypes.c_longlong((n + 1) * k), scalar(1, dtype)),
        *(at_c, m + 1, ctypes.c_longlong((m + 1) * n), count),
    )
    np.testing.assert_array_equal(read(at_c, m), 2 * (a @ b.swapaxes(1, 2)) + c)


@pytest.mark.parametrize("letter", LETTERS)
def test_gemm_of_batches_by_pointers(blas: Blas, letter: str) -> None:
    dtype, (m, n, k) = LETTERS[letter], (3, 4, 5)
    a, b = integers((2, m, k), dtype, 1), integers((3, k, n), dtype, 2)
    at_a, at_b, at_c = stored(a, m), stored(b, k), cupy.asarray(np.full((4, n, m), np.nan, dtype))
    order_a, order_b, order_c = [0, 1, 1, 0], [2, 0, 1, 2], [3, 1, 0, 2]
    tables = [
        cupy.asarray(np.array([storage[i].data.ptr for i in order], "u8"))
        for storage, order in ((at_a, order_a), (at_b, order_b), (at_c, order_c))
    ]
    blas(
        *(f"cublas{letter}gemmBatched", N, N, m, n, k, scalar(1, dtype), tables[0], m, tables[1], k),
        *(scalar(0, dtype), tables[2], m, 4),
    )
    expected = np.empty((4, m, n), dtype)
    expected[order_c] = a[order_a] @ b[order_b]
    np.testing.assert_array_equal(read(at_c, m), expected)


COMBINATIONS = {
    "half by half into half": (R_16F, "f2", R_16F, "f2", COMPUTE_16F, "f2"),
    "half into half": (R_16F, "f2", R_16F, "f2", COMPUTE_32F, "f4"),
    "half into float": (R_16F, "f2", R_32F, "f4", COMPUTE_32F, "f4"),
    "float": (R_32F, "f4", R_32F, "f4", COMPUTE_32F, "f4"),
    "float pedantic": (R_32F, "f4", R_32F, "f4", COMPUTE_32F_PEDANTIC, "f4"),
    "float by TF32": (R_32F, "f4", R_32F, "f4", FAST_TF32, "f4"),
    "float by half": (R_32F, "f4", R_32F, "f4", FAST_16F, "f4"),
    "float by bfloat16": (R_32F, "f4", R_32F, "f4", FAST_16BF, "f4"),
    "double": (R_64F, "f8", R_64F, "f8", COMPUTE_64F, "f8"),
    "complex float": (C_32F, "c8", C_32F, "c8", COMPUTE_32F, "c8"),
    "complex float by TF32": (C_32F, "c8", C_32F, "c8", FAST_TF32, "c8"),
    "complex double": (C_64F, "c16", C_64F, "c16", COMPUTE_64F, "c16"),
    "int8": (R_8I, "i1", R_32I, "i4", COMPUTE_32I, "i4"),
    "int8 into float": (R_8I, "i1", R_32F, "f4", COMPUTE_32F, "f4"),
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_types_of_gemm_ex(blas: Blas, name: str) -> None:
    input_type, input_dtype, output_type, output_dtype, compute, scale = COMBINATIONS[name]
    m, n, k = 4, 8, 12
    a, b, c = integers((m, k), input_dtype, 1), integers((k, n), input_dtype, 2), integers((m, n), output_dtype, 3)
    at_c = stored(c, m)
    blas(
        *("cublasGemmEx", N, N, m, n, k, scalar(2, scale), stored(a, m), input_type, m, stored(b, k), input_type, k),
        *(scalar(-1, scale), at_c, output_type, m, compute, DEFAULT_ALGORITHM),
    )
    wide = np.complex128 if np.dtype(scale).kind == "c" else np.float64
    np.testing.assert_array_equal(read(at_c, m), 2 * (a.astype(wide) @ b.astype(wide)) - c)


@pytest.mark.parametrize("output_type", [R_16BF, R_32F])
def test_gemm_ex_of_bfloat16(blas: Blas, output_type: int) -> None:
    m, n, k = 4, 8, 12
    a, b = integers((m, k), "f4", 1), integers((k, n), "f4", 2)
    c = cupy.asarray(np.zeros((n, m), "u2" if output_type == R_16BF else "f4"))
    blas(
        *("cublasGemmEx", N, N, m, n, k, scalar(1, "f4"), stored(bfloat16(a), m), R_16BF, m),
        *(stored(bfloat16(b), k), R_16BF, k, scalar(0, "f4"), c, output_type, m, COMPUTE_32F, DEFAULT_ALGORITHM),
    )
    values = read(c, m)
    np.testing.assert_array_equal(from_bfloat16(values) if output_type == R_16BF else values, a @ b)


def test_gemm_ex_of_batches(blas: Blas) -> None:
    m, n, k, count = 2, 3, 4, 5
    a, b = integers((count, m, k), "f2", 1), integers((count, k, n), "f2", 2)
    at_a, at_b, c, other = stored(a, m), stored(b, k), cupy.zeros((count, n, m), "f4"), cupy.zeros((count, n, m), "f4")
    one, zero, end = scalar(1, "f4"), scalar(0, "f4"), (COMPUTE_32F, DEFAULT_ALGORITHM)
    blas(
        *("cublasGemmStridedBatchedEx", N, N, m, n, k, one, at_a, R_16F, m, ctypes.c_longlong(m * k)),
        *(at_b, R_16F, k, ctypes.c_longlong(k * n), zero, c, R_32F, m, ctypes.c_longlong(m * n), count, *end),
    )
    tables = [cupy.asarray(np.array([matrix.data.ptr for matrix in stack], "u8")) for stack in (at_a, at_b, other)]
    blas(
        *("cublasGemmBatchedEx", N, N, m, n, k, one, tables[0], R_16F, m, tables[1], R_16F, k),
        *(zero, tables[2], R_32F, m, count, *end),
    )
    expected = a.astype("f4") @ b.astype("f4")
    np.testing.assert_array_equal(read(c, m), expected)
    np.testing.assert_array_equal(read(other, m), expected)


def square(blas: Blas, value: float, compute: int | None) -> float:
    """`value` squared by a product of 1 x 1 matrices: by cublasSgemm without a compute type."""
    a, c, one, zero = (
        cupy.asarray(np.array([[value]], "f4")),
        cupy.zeros((1, 1), "f4"),
        scalar(1, "f4"),
        scalar(0, "f4"),
    )
    if compute is None:
        blas("cublasSgemm_v2", N, N, 1, 1, 1, one, a, 1, a, 1, zero, c, 1)
    else:
        end = (compute, DEFAULT_ALGORITHM)
        blas("cublasGemmEx", N, N, 1, 1, 1, one, a, R_32F, 1, a, R_32F, 1, zero, c, R_32F, 1, *end)
    return float(cupy.asnumpy(c)[0, 0])


@pytest.mark.parametrize(
    ("mode", "compute", "bits"),
    [
        (DEFAULT_MATH, None, 23),
        (TF32_MATH, None, 10),
        (TENSOR_OP_MATH, None, 10),
        (PEDANTIC_MATH, None, 23),
        (DEFAULT_MATH, COMPUTE_32F, 23),
        (TF32_MATH, COMPUTE_32F, 10),
        (TF32_MATH, COMPUTE_32F_PEDANTIC, 23),
        (DEFAULT_MATH, FAST_TF32, 10),
        (DEFAULT_MATH, FAST_16F, 10),
        (DEFAULT_MATH, FAST_16BF, 7),
    ],
)
def test_inputs_are_rounded_as_tensor_cores_do(blas: Blas, mode: int, compute: int | None, bits: int) -> None:
    blas("cublasSetMathMode", mode)
    for exponent in (6, 7, 8, 10, 11):
        value = 1 + 2.0**-exponent
        kept = value if exponent <= bits else 1 + (exponent == bits + 1) * 2.0**-bits
        if exponent == bits + 1 and bits == 10 and FAST_16F in (compute, FAST_16F if mode == TENSOR_OP_MATH else None):
            kept = 1.0  # half rounds a tie to even, TF32 away from zero
        if exponent == bits + 1 and compute == FAST_16BF:
            kept = 1.0
        assert square(blas, value, compute) == np.float32(kept) * np.float32(kept)


def test_tf32_keeps_the_range_of_float_and_half_does_not(blas: Blas) -> None:
    assert square(blas, 2.0**60, FAST_TF32) == 2.0**120
    assert square(blas, 2.0**60, FAST_16F) == np.inf


def test_sums_in_half_overflow(blas: Blas) -> None:
    """256 * 256 is beyond half's largest number on the way to a sum of 0."""
    a, b = np.array([[256] * 16 + [256] * 16], "f2"), np.array([[256]] * 16 + [[-256]] * 16, "f2")
    at_a, at_b, c = stored(a, 1), stored(b, 32), cupy.zeros((1, 1), "f2")
    results = []
    for compute, scale in ((COMPUTE_16F, "f2"), (COMPUTE_32F, "f4")):
        one, zero, end = scalar(1, scale), scalar(0, scale), (compute, DEFAULT_ALGORITHM)
        blas("cublasGemmEx", N, N, 1, 1, 32, one, at_a, R_16F, 1, at_b, R_16F, 32, zero, c, R_16F, 1, *end)
        results.append(float(cupy.asnumpy(c)[0, 0]))
    assert results == [np.inf, 0.0]


def test_int8_sums_wrap_around_in_32_bits(blas: Blas) -> None:
    k = 1 << 18
    a, b, c = stored(np.full((4, k), -128, "i1"), 4), stored(np.full((k, 4), -128, "i1"), k), cupy.zeros((4, 4), "i4")
    one, zero = scalar(1, "i4"), scalar(0, "i4")
    end = (COMPUTE_32I, DEFAULT_ALGORITHM)
    blas("cublasGemmEx", N, N, 4, 4, k, one, a, R_8I, 4, b, R_8I, k, zero, c, R_32I, 4, *end)
    assert np.all(cupy.asnumpy(c) == np.int64(1 << 32).astype("i4"))


def test_scalars_in_device_memory(blas: Blas) -> None:
    blas("cublasSetPointerMode_v2", 1)
    a, b, c = integers((3, 4), "f8", 1), integers((4, 5), "f8", 2), integers((3, 5), "f8", 3)
    at_c = stored(c, 3)
    scalars = cupy.asarray(np.array([3, -2], "f8"))
    blas("cublasDgemm_v2", N, N, 3, 5, 4, scalars[:1], stored(a, 3), 3, stored(b, 4), 4, scalars[1:], at_c, 3)
    np.testing.assert_array_equal(read(at_c, 3), 3 * (a @ b) - 2 * c)


# --- Vectors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step_x", "step_y"), [(1, 1), (2, 3), (-1, 1), (2, -3)])
@pytest.mark.parametrize("letter", LETTERS)
def test_vectors(blas: Blas, letter: str, step_x: int, step_y: int) -> None:
    dtype, n = LETTERS[letter], 300
    x, y = integers(n * abs(step_x), dtype, 1), integers(n * abs(step_y), dtype, 2)

    def elements(values: np.ndarray[Any, Any], step: int) -> np.ndarray[Any, Any]:
        taken = values[:: abs(step)]
        return taken[::-1] if step < 0 else taken

    a, b = elements(x, step_x), elements(y, step_y)
    at_x, at_y = cupy.asarray(x), cupy.asarray(y)
    result = np.zeros((), dtype)
    for suffix, left in (("u", a), ("c", a.conj())) if dtype.kind == "c" else (("", a),):
        blas(f"cublas{letter}dot{suffix}_v2", n, at_x, step_x, at_y, step_y, result)
        assert result == np.sum(left * b)
    blas(f"cublas{letter}axpy_v2", n, scalar(3, dtype), at_x, step_x, at_y, step_y)
    np.testing.assert_array_equal(elements(cupy.asnumpy(at_y), step_y), b + 3 * a)
    blas(f"cublas{letter}swap_v2", n, at_x, step_x, at_y, step_y)
    np.testing.assert_array_equal(elements(cupy.asnumpy(at_x), step_x), b + 3 * a)
    blas(f"cublas{letter}copy_v2", n, at_x, step_x, at_y, step_y)
    np.testing.assert_array_equal(elements(cupy.asnumpy(at_y), step_y), b + 3 * a)


@pytest.mark.parametrize("letter", LETTERS)
def test_reductions(blas: Blas, letter: str) -> None:
    dtype, n, step = LETTERS[letter], 101, 2
    x = integers(n * step, dtype, 4)
    x[40], x[60], x[::step][7] = 9, -9, 0
    at_x, a = cupy.asarray(x), x[::step]
    sizes = np.abs(a.real) + np.abs(a.imag)
    prefix, real = {"S": "S", "D": "D", "C": "Sc", "Z": "Dz"}[letter], a.real.dtype
    result, index = np.zeros((), real), np.zeros((), "i4")
    blas(f"cublas{prefix}asum_v2", n, at_x, step, result)
    assert result == sizes.sum()
    blas(f"cublas{prefix}nrm2_v2", n, at_x, step, result)
    assert result == np.sqrt(np.sum(np.abs(a.astype("c16")) ** 2)).astype(real)
    blas(f"cublasI{letter.lower()}amax_v2", n, at_x, step, index)
    assert index == np.argmax(sizes) + 1
    blas(f"cublasI{letter.lower()}amin_v2", n, at_x, step, index)
    assert index == np.argmin(sizes) + 1
    blas(f"cublasI{letter.lower()}amin_v2", 0, at_x, step, index)
    assert index == 0
    blas(f"cublas{letter}scal_v2", n, scalar(-3, dtype), at_x, step)
    np.testing.assert_array_equal(cupy.asnumpy(at_x)[::step], -3 * a)
    np.testing.assert_array_equal(cupy.asnumpy(at_x)[1::step], x[1::step])


@pytest.mark.parametrize(("name", "letter"), [("cublasCsscal_v2", "C"), ("cublasZdscal_v2", "Z")])
def test_complex_vectors_scaled_by_real_numbers(blas: Blas, name: str, letter: str) -> None:
    x = integers(10, LETTERS[letter])
    at_x = cupy.asarray(x)
    blas(name, 10, scalar(2, x.real.dtype), at_x, 1)
    np.testing.assert_array_equal(cupy.asnumpy(at_x), 2 * x)


def test_norm_neither_overflows_nor_vanishes(blas: Blas) -> None:
    result = np.zeros((), "f8")
    for value in (1e300, 1e-300):
        blas("cublasDnrm2_v2", 4, cupy.asarray(np.full(4, value)), 1, result)
        assert result == 2 * value


def test_results_in_device_memory(blas: Blas) -> None:
    blas("cublasSetPointerMode_v2", 1)
    x, result = cupy.asarray(integers(10, "f4")), cupy.zeros(1, "f4")
    blas("cublasSdot_v2", 10, x, 1, x, 1, result)
    assert cupy.asnumpy(result)[0] == np.sum(cupy.asnumpy(x) ** 2)


# --- Matrices and vectors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("letter", LETTERS)
def test_gemv(blas: Blas, letter: str, operation: int) -> None:
    dtype, (m, n) = LETTERS[letter], (5, 9)
    a = integers((m, n), dtype, 1)
    op_a = applied(a, operation)
    x, y = integers(2 * op_a.shape[1], dtype, 2), integers(3 * op_a.shape[0], dtype, 3)
    at_y = cupy.asarray(y)
    blas(
        *(f"cublas{letter}gemv_v2", operation, m, n, scalar(2, dtype), stored(a, m + 1), m + 1, cupy.asarray(x), -2),
        *(scalar(-1, dtype), at_y, 3),
    )
    expected = y.copy()
    expected[::3] = 2 * (op_a @ x[::2][::-1]) - y[::3]
    np.testing.assert_array_equal(cupy.asnumpy(at_y), expected)


@pytest.mark.parametrize("name", ["Sger", "Dger", "Cgeru", "Cgerc", "Zgeru", "Zgerc"])
def test_ger(blas: Blas, name: str) -> None:
    dtype, (m, n) = LETTERS[name[0]], (4, 6)
    x, y, a = integers(m, dtype, 1), integers(2 * n, dtype, 2), integers((m, n), dtype, 3)
    at_a, of_y = stored(a, m + 2), y[::2].conj() if name.endswith("c") else y[::2]
    end = (cupy.asarray(x), 1, cupy.asarray(y), 2, at_a, m + 2)
    blas(f"cublas{name}_v2", m, n, scalar(3, dtype), *end)
    np.testing.assert_array_equal(read(at_a, m), a + 3 * np.outer(x, of_y))


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("letter", ["S", "D"])
def test_sbmv(blas: Blas, letter: str, fill: int) -> None:
    dtype, n, k = LETTERS[letter], 7, 2
    full = np.zeros((n, n), dtype)
    band = np.full((k + 1, n), 55, dtype)
    for i, j in product(range(n), repeat=2):
        if abs(i - j) <= k:
            full[i, j] = min(i, j) + 10 * abs(i - j)
            if i >= j and fill == LOWER:
                band[i - j, j] = full[i, j]
            if i <= j and fill == UPPER:
                band[k + i - j, j] = full[i, j]
    x, y = integers(n, dtype, 1), integers(n, dtype, 2)
    at_y = cupy.asarray(y)
    end = (stored(band, k + 2), k + 2, cupy.asarray(x), 1, scalar(3, dtype), at_y, 1)
    blas(f"cublas{letter}sbmv_v2", fill, n, k, scalar(2, dtype), *end)
    np.testing.assert_array_equal(cupy.asnumpy(at_y), 2 * (full @ x) + 3 * y)


# --- Matrices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fill", "operation"), list(product(FILLS, (N, T))))
@pytest.mark.parametrize("letter", LETTERS)
def test_syrk(blas: Blas, letter: str, fill: int, operation: int) -> None:
    dtype, n, k = LETTERS[letter], 9, 5
    a, c = integers((n, k) if operation == N else (k, n), dtype, 1), integers((n, n), dtype, 2)
    at_c = stored(c, n + 1)
    lead = a.shape[0] + 2
    start = (f"cublas{letter}syrk_v2", fill, operation, n, k, scalar(2, dtype), stored(a, lead), lead)
    blas(*start, scalar(3, dtype), at_c, n + 1)
    full = 2 * (a @ a.T if operation == N else a.T @ a) + 3 * c
    inside = np.triu(np.ones((n, n), bool)) if fill == UPPER else np.tril(np.ones((n, n), bool))
    np.testing.assert_array_equal(read(at_c, n), np.where(inside, full, c))


@pytest.mark.parametrize(
    ("side", "fill", "operation", "diagonal"), list(product(SIDES, FILLS, OPERATIONS, (NON_UNIT, UNIT)))
)
@pytest.mark.parametrize("letter", ["S", "Z"])
def test_trsm(blas: Blas, letter: str, side: int, fill: int, operation: int, diagonal: int) -> None:
    """The diagonal has powers of two, so that solutions are the integers that the sides were made from."""
    dtype, (m, n), order = LETTERS[letter], (5, 3), 5 if side == LEFT else 3
    a = integers((order, order), dtype, 1)
    np.fill_diagonal(a, 2)
    used = np.triu(a) if fill == UPPER else np.tril(a)
    if diagonal == UNIT:
        np.fill_diagonal(used, 1)
        np.fill_diagonal(a, 13)
    x, op_a = integers((m, n), dtype, 2), applied(used, operation)
    b = op_a @ x if side == LEFT else x @ op_a
    at_a, one, batch = stored(a, order + 1), scalar(0.5, dtype), stored(np.stack([b, 2 * b]), m + 2)
    flags = (side, fill, operation, diagonal, m, n, one)
    table_a = cupy.asarray(np.array([at_a.data.ptr] * 2, "u8"))
    table_b = cupy.asarray(np.array([matrix.data.ptr for matrix in batch], "u8"))
    blas(f"cublas{letter}trsmBatched", *flags, table_a, order + 1, table_b, m + 2, 2)
    np.testing.assert_array_equal(read(batch, m), np.stack([x / 2, x]))
    at_b = stored(b, m)
    blas(f"cublas{letter}trsm_v2", *flags, at_a, order + 1, at_b, m)
    np.testing.assert_array_equal(read(at_b, m), x / 2)


@pytest.mark.parametrize(("op_a", "op_b"), [(N, N), (T, N), (N, C), (C, T)])
@pytest.mark.parametrize("letter", LETTERS)
def test_geam(blas: Blas, letter: str, op_a: int, op_b: int) -> None:
    dtype, (m, n) = LETTERS[letter], (4, 6)
    a = integers((m, n) if op_a == N else (n, m), dtype, 1)
    b = integers((m, n) if op_b == N else (n, m), dtype, 2)
    c, lead_a, lead_b = cupy.asarray(np.full((n, m), np.nan, dtype)), a.shape[0] + 1, b.shape[0] + 2
    blas(
        *(f"cublas{letter}geam", op_a, op_b, m, n, scalar(2, dtype), stored(a, lead_a), lead_a),
        *(scalar(3, dtype), stored(b, lead_b), lead_b, c, m),
    )
    np.testing.assert_array_equal(read(c, m), 2 * applied(a, op_a) + 3 * applied(b, op_b))


def test_geam_in_place_and_of_one_matrix(blas: Blas) -> None:
    a = integers((4, 6), "f4")
    c = stored(a, 4)
    blas("cublasSgeam", N, N, 4, 6, scalar(2, "f4"), c, 4, scalar(0, "f4"), None, 4, c, 4)
    np.testing.assert_array_equal(read(c, 4), 2 * a)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("letter", LETTERS)
def test_dgmm(blas: Blas, letter: str, side: int) -> None:
    dtype, (m, n) = LETTERS[letter], (4, 6)
    a, x = integers((m, n), dtype, 1), integers(2 * (m if side == LEFT else n), dtype, 2)
    c = stored(np.zeros((m, n), dtype), m + 1)
    blas(f"cublas{letter}dgmm", side, m, n, stored(a, m), m, cupy.asarray(x), 2, c, m + 1)
    np.testing.assert_array_equal(read(c, m), x[::2, None] * a if side == LEFT else a * x[::2])


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("letter", LETTERS)
def test_packed_triangles(blas: Blas, letter: str, fill: int) -> None:
    dtype, n = LETTERS[letter], 5
    a = integers((n, n), dtype, 1)
    packed = cupy.asarray(np.zeros(n * (n + 1) // 2, dtype))
    blas(f"cublas{letter}trttp", fill, n, stored(a, n + 1), n + 1, packed)
    columns = [a[: j + 1, j] if fill == UPPER else a[j:, j] for j in range(n)]
    np.testing.assert_array_equal(cupy.asnumpy(packed), np.concatenate(columns))
    square = stored(np.full((n, n), 99, dtype), n)
    blas(f"cublas{letter}tpttr", fill, n, packed, square, n)
    inside = np.triu(np.ones((n, n), bool)) if fill == UPPER else np.tril(np.ones((n, n), bool))
    np.testing.assert_array_equal(read(square, n), np.where(inside, a, 99))


# --- Factorizations ---------------------------------------------------------------------------------------------------

# Products of a triangle of halves and one with powers of two on its diagonal, rows exchanged: all steps are exact.
FACTORED = np.stack(
    [
        (np.array([[1, 0, 0], [0.5, 1, 0], [-0.5, 0.5, 1]]) @ [[4, 2, -4], [0, 2, 8], [0, 0, -4]])[[2, 0, 1]],
        np.array([[0, 1, 0], [2, 0, 4], [0, 0, -4]], "f8"),
    ]
)


class Factors:
    """Matrices by LU in device memory."""

    def __init__(self, blas: Blas, letter: str, matrices: np.ndarray[Any, Any], pivoted: bool = True) -> None:
        self.count, self.n, _ = matrices.shape
        self.storage = stored(matrices.astype(LETTERS[letter]), self.n + 1)
        self.table = cupy.asarray(np.array([matrix.data.ptr for matrix in self.storage], "u8"))
        self.pivots = cupy.zeros((self.count, self.n), "i4") if pivoted else None
        self.info = cupy.asarray(np.full(self.count, 55, "i4"))
        end = (self.pivots, self.info, self.count)
        blas(f"cublas{letter}getrfBatched", self.n, self.table, self.n + 1, *end)


@pytest.mark.parametrize("letter", LETTERS)
def test_factors(blas: Blas, letter: str) -> None:
    factors = Factors(blas, letter, FACTORED)
    assert not cupy.asnumpy(factors.info).any()
    for lu, pivots, matrix in zip(read(factors.storage, 3), cupy.asnumpy(factors.pivots), FACTORED, strict=True):
        rows = list(range(3))
        for i, pivot in enumerate(pivots):
            rows[i], rows[pivot - 1] = rows[pivot - 1], rows[i]
        np.testing.assert_array_equal((np.tril(lu, -1) + np.eye(3)) @ np.triu(lu), matrix[rows])


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("letter", LETTERS)
def test_solutions_by_factors(blas: Blas, letter: str, operation: int) -> None:
    dtype = LETTERS[letter]
    factors, x, info = Factors(blas, letter, FACTORED), integers((2, 3, 4), dtype, 5), np.full((), 55, "i4")
    sides = stored(applied(FACTORED.astype(dtype), operation) @ x, 5)
    table = cupy.asarray(np.array([matrix.data.ptr for matrix in sides], "u8"))
    start = (f"cublas{letter}getrsBatched", operation, 3, 4, factors.table, 4, factors.pivots)
    blas(*start, table, 5, info, 2)
    assert info == 0
    np.testing.assert_array_equal(read(sides, 3), x)


@pytest.mark.parametrize("letter", LETTERS)
def test_inverses_by_factors(blas: Blas, letter: str) -> None:
    factors = Factors(blas, letter, FACTORED)
    inverse, info = stored(np.zeros((2, 3, 3), LETTERS[letter]), 3), cupy.asarray(np.full(2, 55, "i4"))
    table = cupy.asarray(np.array([matrix.data.ptr for matrix in inverse], "u8"))
    blas(f"cublas{letter}getriBatched", 3, factors.table, 4, factors.pivots, table, 3, info, 2)
    assert not cupy.asnumpy(info).any()
    np.testing.assert_array_equal(FACTORED @ read(inverse, 3), np.stack([np.eye(3)] * 2))


def test_factors_without_pivots(blas: Blas) -> None:
    matrix = np.array([[[1, 2], [4, 4]]], "f8")
    factors = Factors(blas, "D", matrix, pivoted=False)
    np.testing.assert_array_equal(read(factors.storage, 2), [[[1, 2], [4, -4]]])


def test_singular_matrices_say_where(blas: Blas) -> None:
    matrices = np.array([[[1, 2], [2, 4]], [[1, 0], [0, 1]], [[0, 0], [0, 0]]], "f8")
    factors = Factors(blas, "D", matrices)
    np.testing.assert_array_equal(cupy.asnumpy(factors.info), [2, 0, 1])
    inverse, info = stored(np.zeros((3, 2, 2)), 2), cupy.zeros(3, "i4")
    table = cupy.asarray(np.array([matrix.data.ptr for matrix in inverse], "u8"))
    blas("cublasDgetriBatched", 2, factors.table, 3, factors.pivots, table, 2, info, 3)
    np.testing.assert_array_equal(cupy.asnumpy(info), [2, 0, 1])


# --- Handles and statuses ---------------------------------------------------------------------------------------------


def test_settings_are_read_back(blas: Blas) -> None:
    value = ctypes.c_int()
    for setting, written in (("PointerMode_v2", 1), ("MathMode", 3), ("MathMode", 16 + 2), ("AtomicsMode", 1)):
        blas(f"cublasSet{setting}", written)
        blas(f"cublasGet{setting}", ctypes.byref(value))
        assert value.value == written
    for setting, wrong in (("PointerMode_v2", 2), ("MathMode", 4), ("AtomicsMode", -1), ("SmCountTarget", -1)):
        assert blas.status(f"cublasSet{setting}", wrong) == INVALID_VALUE
    stream, found = cupy.cuda.Stream(), ctypes.c_void_p()
    blas("cublasSetStream_v2", ctypes.c_void_p(stream.ptr))
    blas("cublasGetStream_v2", ctypes.byref(found))
    assert found.value == stream.ptr


def test_version(blas: Blas) -> None:
    version, parts = ctypes.c_int(), [ctypes.c_int() for _ in range(3)]
    blas("cublasGetVersion_v2", ctypes.byref(version))
    for which, part in enumerate(parts):
        assert blas.library.cublasGetProperty(which, ctypes.byref(part)) == SUCCESS
    runtime = cupy.cuda.runtime.runtimeGetVersion()
    assert [part.value for part in parts] == [runtime // 1000, runtime % 1000 // 10, 0]
    assert version.value == runtime // 1000 * 10000 + runtime % 1000 // 10 * 100


def test_names_of_statuses(blas: Blas) -> None:
    name = blas.library.cublasGetStatusName
    name.restype = ctypes.c_char_p
    assert [name(status) for status in (0, 7, 13, 99)] == [
        *(b"CUBLAS_STATUS_SUCCESS", b"CUBLAS_STATUS_INVALID_VALUE", b"CUBLAS_STATUS_EXECUTION_FAILED"),
        b"unknown status",
    ]


def test_handles_that_are_none(blas: Blas) -> None:
    alive = ctypes.c_void_p(blas.handle.value)
    blas("cublasDestroy_v2")
    assert blas.status("cublasSetMathMode", 0) == NOT_INITIALIZED
    assert blas.status("cublasDestroy_v2") == NOT_INITIALIZED
    blas.handle = ctypes.c_void_p()
    assert alive.value
    assert blas.status("cublasSgemm_v2", N, N, 0, 0, 0, None, None, 1, None, 1, None, None, 1) == NOT_INITIALIZED


@needs_two_devices
def test_handle_of_another_device(blas: Blas, capfd: pytest.CaptureFixture[str]) -> None:
    with cupy.cuda.Device(1):
        x = cupy.asarray(np.ones(4, "f4"))
        assert blas.status("cublasSscal_v2", 4, scalar(2, "f4"), x, 1) == EXECUTION_FAILED
    assert "the handle is for device 0, and device 1 is the current one" in capfd.readouterr().err


GEMM = {"op_a": N, "op_b": N, "m": 4, "n": 5, "k": 6, "alpha": 1.0, "lda": 4, "ldb": 6, "beta": 0.0, "ldc": 4}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"op_a": 3}, "transa is 3, and must be CUBLAS_OP_N, CUBLAS_OP_T or CUBLAS_OP_C"),
        ({"op_b": -1}, "transb is -1"),
        ({"m": -1}, "must not be negative"),
        ({"n": -1}, "must not be negative"),
        ({"k": -1}, "must not be negative"),
        ({"lda": 3}, "lda is 3, and must be at least 4, the rows of the matrix as stored"),
        ({"op_a": T, "lda": 5}, "lda is 5, and must be at least 6"),
        ({"ldb": 5}, "ldb is 5, and must be at least 6"),
        ({"op_b": C, "ldb": 4}, "ldb is 4, and must be at least 5"),
        ({"ldc": 3}, "ldc is 3, and must be at least 4"),
        ({"alpha": None}, "alpha and beta must not be null"),
        ({"beta": None}, "alpha and beta must not be null"),
    ],
)
def test_parameters_of_gemm_are_validated(
    blas: Blas, wrong: dict[str, Any], sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    a, b, c = cupy.zeros((6, 6), "f4"), cupy.zeros((6, 6), "f4"), cupy.zeros((6, 6), "f4")

    def status(values: dict[str, Any]) -> int:
        given = {
            name: scalar(value, "f4") if name in ("alpha", "beta") and value is not None else value
            for name, value in values.items()
        }
        end = [given[name] for name in ("alpha",)] + [a, given["lda"], b, given["ldb"], given["beta"], c, given["ldc"]]
        return blas.status("cublasSgemm_v2", *(given[name] for name in ("op_a", "op_b", "m", "n", "k")), *end)

    assert status(GEMM) == SUCCESS
    assert capfd.readouterr().err == ""
    assert status(GEMM | wrong) == INVALID_VALUE
    printed = capfd.readouterr().err
    assert printed.startswith("simulated cuBLAS: cublasSgemm: ")
    assert sentence in printed


@pytest.mark.parametrize(
    ("types", "compute"),
    [
        ((R_32F, R_16F, R_32F), COMPUTE_32F),
        ((R_32F, R_32F, R_16F), COMPUTE_32F),
        ((R_16F, R_16F, R_16F), FAST_TF32),
        ((R_16F, R_16F, R_32F), COMPUTE_16F),
        ((R_64F, R_64F, R_64F), COMPUTE_32F),
        ((R_8I, R_8I, R_8I), COMPUTE_32I),
        ((R_32F, R_32F, R_32F), 99),
    ],
)
def test_types_without_products(blas: Blas, types: tuple[int, int, int], compute: int) -> None:
    x, one = cupy.zeros((8, 8), "f8"), scalar(1, "f8")
    (a, b, c), end = types, (compute, DEFAULT_ALGORITHM)
    assert blas.status("cublasGemmEx", N, N, 4, 4, 4, one, x, a, 4, x, b, 4, one, x, c, 4, *end) == NOT_SUPPORTED


def test_alignment_of_int8(blas: Blas) -> None:
    a, b, c, one, zero = (
        *(cupy.zeros(64, "i1") for _ in range(2)),
        cupy.zeros(16, "i4"),
        scalar(1, "i4"),
        scalar(0, "i4"),
    )
    end = (COMPUTE_32I, DEFAULT_ALGORITHM)
    for at_a, lead, status in ((a, 4, SUCCESS), (a[1:], 4, NOT_SUPPORTED), (a, 5, NOT_SUPPORTED)):
        arguments = (N, N, 4, 4, 4, one, at_a, R_8I, lead, b, R_8I, 4, zero, c, R_32I, 4, *end)
        assert blas.status("cublasGemmEx", *arguments) == status


def test_entry_points_that_are_not_simulated(blas: Blas, capfd: pytest.CaptureFixture[str]) -> None:
    assert blas.status("cublasSsymm_v2") == NOT_SUPPORTED
    assert capfd.readouterr().err == "simulated cuBLAS: cublasSsymm is not simulated\n"


# --- Memory -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def exact() -> Iterator[Any]:
    """Memory of exactly the bytes that are asked for, as NumPy arrays on the device."""
    with cupy.cuda.using_allocator(None):
        yield cupy.asarray


def test_leading_dimension_beyond_the_matrix(blas: Blas, exact: Any, capfd: pytest.CaptureFixture[str]) -> None:
    a, b, c = exact(np.ones((4, 4), "f4")), exact(np.ones((4, 4), "f4")), exact(np.zeros((4, 4), "f4"))
    one, zero = scalar(1, "f4"), scalar(0, "f4")
    blas("cublasSgemm_v2", N, N, 4, 4, 4, one, a, 4, b, 4, zero, c, 4)
    for arguments, what in (
        ((one, a, 5, b, 4, zero, c, 4), "matrix A"),
        ((one, a, 4, b, 5, zero, c, 4), "matrix B"),
        ((one, a, 4, b, 4, zero, c, 5), "matrix C"),
    ):
        assert blas.status("cublasSgemm_v2", N, N, 4, 4, 4, *arguments) == EXECUTION_FAILED
        assert f"cublasSgemm: {what}" in capfd.readouterr().err


def test_matrices_in_one_another_s_gaps_do_not_overlap(blas: Blas) -> None:
    room = cupy.asarray(np.ones((3, 9), "f4"))  # A's, B's and C's columns, one after another
    flat, one, zero = room.ravel(), scalar(1, "f4"), scalar(0, "f4")
    blas("cublasSgemm_v2", N, N, 3, 3, 3, one, flat, 9, flat[3:], 9, zero, flat[6:], 9)
    assert np.all(cupy.asnumpy(room)[:, 6:] == 3)


@pytest.mark.parametrize(("at_c", "operand"), [(0, "matrix A"), (8, "matrix A"), (12, "matrix B"), (20, "matrix B")])
def test_result_that_overlaps_an_operand(
    blas: Blas, at_c: int, operand: str, capfd: pytest.CaptureFixture[str]
) -> None:
    flat, one, zero = cupy.asarray(np.ones(40, "f4")), scalar(1, "f4"), scalar(0, "f4")
    end = (one, flat, 3, flat[12:], 3, zero, flat[at_c:], 3)
    assert blas.status("cublasSgemm_v2", N, N, 3, 3, 3, *end) == EXECUTION_FAILED
    assert f"matrix C overlaps {operand}, so the result is undefined" in capfd.readouterr().err


def test_reads_of_what_nobody_wrote(blas: Blas, exact: Any, capfd: pytest.CaptureFixture[str]) -> None:
    x, y, one = cupy.empty(16, "f4"), exact(np.ones(16, "f4")), scalar(1, "f4")
    assert blas.status("cublasSaxpy_v2", 16, one, x, 1, y, 1) == EXECUTION_FAILED
    assert "cublasSaxpy: vector x" in capfd.readouterr().err
    blas("cublasScopy_v2", 16, y, 1, x, 1)
    blas("cublasSaxpy_v2", 16, one, x, 1, y, 1)


def test_workspace(blas: Blas, exact: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Products write to the workspace that they were given, until the handle's stream is set."""
    a, workspace = exact(np.ones((4, 4), "f4")), exact(np.zeros(8192, "u1"))
    c, one, zero = exact(np.zeros((4, 4), "f4")), scalar(1, "f4"), scalar(0, "f4")
    product = ("cublasSgemm_v2", N, N, 4, 4, 4, one, a, 4, a, 4, zero, c, 4)
    blas("cublasSetWorkspace_v2", workspace, ctypes.c_size_t(8192))
    blas(*product)
    assert cupy.asnumpy(workspace)[:4096].all()
    assert not cupy.asnumpy(workspace)[4096:].any()
    blas("cublasSetWorkspace_v2", workspace, ctypes.c_size_t(1 << 20))
    blas(*product)
    freed = address(workspace)
    del workspace
    assert blas.status(*product) == EXECUTION_FAILED
    assert "cublasSgemm: workspace" in capfd.readouterr().err
    blas("cublasSetStream_v2", None)
    blas(*product)
    unaligned = ctypes.c_void_p(freed.value + 16)
    assert blas.status("cublasSetWorkspace_v2", unaligned, ctypes.c_size_t(64)) == INVALID_VALUE


# --- Through CuPy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "c8", "c16"])
def test_products_of_cupy(dtype: str) -> None:
    a, b = integers((2, 3, 4, 5), dtype, 1), integers((2, 3, 5, 6), dtype, 2)
    on_device = cupy.asarray(a), cupy.asarray(b)
    np.testing.assert_array_equal(cupy.asnumpy(cupy.matmul(*on_device)), np.matmul(a, b))
    first = [x[0, 0] for x in (*on_device, a, b)]
    np.testing.assert_array_equal(cupy.asnumpy(cupy.dot(first[0], first[1])), first[2].dot(first[3]))
    transposed = cupy.asnumpy(on_device[1][0, 0].T @ on_device[0][0, 0].T)
    np.testing.assert_array_equal(transposed, first[3].T @ first[2].T)
    found = cupy.tensordot(on_device[0], on_device[1], axes=([0, 3], [0, 2]))
    np.testing.assert_array_equal(cupy.asnumpy(found), np.tensordot(a, b, axes=([0, 3], [0, 2])))
    x, y = a.ravel()[:100], b.ravel()[:100]
    assert cupy.asnumpy(cupy.vdot(cupy.asarray(x), cupy.asarray(y))) == np.vdot(x, y)
    assert cupy.asnumpy(cupy.inner(cupy.asarray(x), cupy.asarray(y))) == np.inner(x, y)


@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16"])
def test_batched_linear_algebra_of_cupy(dtype: str) -> None:
    matrices, x = FACTORED.astype(dtype), integers((2, 3, 2), dtype, 3)
    np.testing.assert_array_equal(
        cupy.asnumpy(cupy.linalg.solve(cupy.asarray(matrices), cupy.asarray(matrices @ x))), x
    )
    inverse = cupy.asnumpy(cupy.linalg.inv(cupy.asarray(matrices)))
    np.testing.assert_array_equal(matrices @ inverse, np.stack([np.eye(3)] * 2))
