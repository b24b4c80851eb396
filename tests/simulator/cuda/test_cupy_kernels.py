"""CuPy's kernels, and kernels of programs that use CuPy, compiled by the simulated NVRTC: values against NumPy's."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from simulated_cuda import REASON, is_installed

if not is_installed():
    pytest.skip(REASON, allow_module_level=True)

cp: Any = pytest.importorskip("cupy")
cupyx: Any = pytest.importorskip("cupyx")
jit: Any = pytest.importorskip("cupyx.jit")

draw = np.random.default_rng(0)


def same(got: Any, want: Any) -> None:
    np.testing.assert_array_equal(cp.asnumpy(got), want)


def close(got: Any, want: Any, tolerance: float) -> None:
    np.testing.assert_allclose(cp.asnumpy(got), want, rtol=tolerance, atol=tolerance)


# --- Elementwise --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", "?bBhHiIlLqQefdFD")
def test_types(dtype: str) -> None:
    x = draw.integers(0, 5, 7).astype(dtype)
    y = draw.integers(1, 5, 7).astype(dtype)
    for name in ("add", "multiply", "equal", "maximum"):
        same(getattr(cp, name)(cp.asarray(x), cp.asarray(y)), getattr(np, name)(x, y))


UNARY = (
    "sin tan arcsin arctan cosh tanh arcsinh arctanh exp2 expm1 log2 log1p sqrt cbrt rint trunc sign signbit degrees"
)


@pytest.mark.parametrize("name", UNARY.split())
def test_functions_of_floats(name: str) -> None:
    x = (draw.random(50) * 0.9 + 0.05).astype("f4")
    close(getattr(cp, name)(cp.asarray(x)), getattr(np, name)(x), 1e-6)


@pytest.mark.parametrize(
    "name", ["arctan2", "hypot", "power", "fmod", "copysign", "nextafter", "logaddexp", "floor_divide", "remainder"]
)
def test_functions_of_two_floats(name: str) -> None:
    x = draw.random(50).astype("f4") + np.float32(0.1)
    y = x[::-1].copy()
    close(getattr(cp, name)(cp.asarray(x), cp.asarray(y)), getattr(np, name)(x, y), 2e-6)


def test_functions_with_two_results() -> None:
    x = draw.standard_normal(30).astype("f4")
    for name in ("frexp", "modf"):
        for got, want in zip(getattr(cp, name)(cp.asarray(x)), getattr(np, name)(x), strict=True):
            same(got, want)
    same(cp.ldexp(cp.asarray(x), 3), np.ldexp(x, 3))


@pytest.mark.parametrize(
    "name", ["bitwise_and", "left_shift", "right_shift", "floor_divide", "remainder", "gcd", "lcm", "power"]
)
def test_functions_of_integers(name: str) -> None:
    x = draw.integers(-50, 50, 9)
    x = np.abs(x) if name == "power" else x
    y = draw.integers(1, 6, 9)
    same(getattr(cp, name)(cp.asarray(x), cp.asarray(y)), getattr(np, name)(x, y))


def test_integers_wrap_around() -> None:
    x = np.array([2**31 - 1, -(2**31), 2**30], "i4")
    same(cp.asarray(x) + cp.asarray(x), x + x)
    same(cp.asarray(x) * cp.asarray(x), x * x)


COMPLEX = "sin tan arcsin arccos arctan sinh cosh arcsinh arctanh exp log log10 log1p sqrt conj abs angle reciprocal"


@pytest.mark.parametrize("name", COMPLEX.split())
@pytest.mark.parametrize(("dtype", "tolerance"), [("F", 2e-5), ("D", 1e-12)])
def test_functions_of_complex_numbers(name: str, dtype: str, tolerance: float) -> None:
    z = (draw.standard_normal(20) + 1j * draw.standard_normal(20)).astype(dtype)
    close(getattr(cp, name)(cp.asarray(z)), getattr(np, name)(z), tolerance)


def test_halves_are_rounded_as_numpy_rounds_them() -> None:
    x, y = (draw.standard_normal(200).astype("e") for _ in "xy")
    for name in ["add", "subtract", "multiply", "divide", "maximum", "minimum", "copysign", "nextafter", "less"]:
        same(getattr(cp, name)(cp.asarray(x), cp.asarray(y)), getattr(np, name)(x, y))


def test_bfloats_are_rounded_as_ml_dtypes_rounds_them() -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    x, y = (draw.standard_normal(200).astype(bfloat16) for _ in "xy")
    for name in ["add", "subtract", "multiply", "divide", "maximum"]:
        same(getattr(cp, name)(cp.asarray(x), cp.asarray(y)), getattr(np, name)(x, y))
    same(cp.asarray(x).astype("f4"), x.astype("f4"))
    wide = x.astype("f4") * np.float32(1.001)
    same(cp.asarray(wide).astype(bfloat16), wide.astype(bfloat16))


SPECIAL = "erf erfinv gamma gammaln digamma j0 j1 y0 y1 i0 i1 expit logit ndtr"


@pytest.mark.parametrize("name", SPECIAL.split())
def test_special_functions(name: str) -> None:
    special: Any = pytest.importorskip("scipy.special")
    x = draw.random(20) * (0.9 if name in ("erfinv", "logit") else 3) + 0.05
    close(getattr(pytest.importorskip("cupyx.scipy.special"), name)(cp.asarray(x)), getattr(special, name)(x), 1e-9)


# --- Reductions, scans, indices -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sum", "prod", "max", "min", "mean", "var", "argmax", "argmin", "any", "all"])
@pytest.mark.parametrize("axis", [None, 0, 2])
def test_reductions(name: str, axis: int | None) -> None:
    x = draw.standard_normal((4, 5, 6)).astype("f4")
    close(getattr(cp.asarray(x), name)(axis=axis), getattr(x, name)(axis=axis), 1e-5)


@pytest.mark.parametrize("dtype", ["i4", "f8", "F", "i1"])
def test_cumulative_sums(dtype: str) -> None:
    x = draw.integers(0, 5, 700).astype(dtype)
    same(cp.cumsum(cp.asarray(x)), np.cumsum(x))


def test_indices() -> None:
    x = draw.standard_normal((6, 7)).astype("f4")
    rows = draw.permutation(6)[:4]  # different ones, or the order of the writes would matter
    d, i = cp.asarray(x), cp.asarray(rows)
    same(d[i], x[rows])
    same(d[i, i], x[rows, rows])
    same(d[d > 0], x[x > 0])
    same(cp.nonzero(d > 0)[1], np.nonzero(x > 0)[1])
    same(cp.where(d > 0, d, 0), np.where(x > 0, x, 0))
    d[d > 0] = 2
    x[x > 0] = 2
    d[i] = 3
    x[rows] = 3
    same(d, x)


@pytest.mark.parametrize("dtype", ["i4", "u4", "i8", "u8", "f4", "f8"])
def test_scattered_additions(dtype: str) -> None:
    at = draw.integers(0, 5, 20)
    values = draw.integers(0, 4, 20).astype(dtype)
    got, want = cp.zeros(5, dtype), np.zeros(5, dtype)
    cp.add.at(got, cp.asarray(at), cp.asarray(values))
    np.add.at(want, at, values)
    same(got, want)


@pytest.mark.parametrize("dtype", ["i4", "i8", "u4"])
def test_scattered_maxima(dtype: str) -> None:
    at = draw.integers(0, 5, 20)
    values = draw.integers(0, 9, 20).astype(dtype)
    got, want = cp.zeros(5, dtype), np.zeros(5, dtype)
    cp.maximum.at(got, cp.asarray(at), cp.asarray(values))
    np.maximum.at(want, at, values)
    same(got, want)


@pytest.mark.parametrize("dtype", ["?", "u1", "i2", "i4", "i8"])
def test_products_of_integer_matrices(dtype: str) -> None:
    high = 2 if dtype == "?" else 9
    a = draw.integers(0, high, (33, 40)).astype(dtype)
    b = draw.integers(0, high, (40, 35)).astype(dtype)
    same(cp.asarray(a) @ cp.asarray(b), a @ b)


def test_filters_of_images() -> None:
    ndimage: Any = pytest.importorskip("scipy.ndimage")
    on_device: Any = pytest.importorskip("cupyx.scipy.ndimage")
    x = draw.random((12, 13))
    d = cp.asarray(x)
    close(on_device.gaussian_filter(d, 1.0), ndimage.gaussian_filter(x, 1.0), 1e-10)
    close(on_device.convolve(d, cp.ones((3, 3))), ndimage.convolve(x, np.ones((3, 3))), 1e-10)
    close(on_device.rotate(d, 30, order=1, reshape=False), ndimage.rotate(x, 30, order=1, reshape=False), 1e-8)
    same(on_device.grey_dilation(d, 3), ndimage.grey_dilation(x, 3))


# --- Kernels of users ---------------------------------------------------------------------------------------------


def test_elementwise_and_reduction_kernels() -> None:
    x = draw.standard_normal((5, 6)).astype("f4")
    d = cp.asarray(x)
    kernel = cp.ElementwiseKernel("T x, raw T w, int32 n", "T y, bool p", "y = x * w[n] + i; p = y > 0", "scaled")
    y, positive = kernel(d, d.ravel(), 3)
    want = x * x.ravel()[3] + np.arange(30, dtype="f4").reshape(5, 6)
    close(y, want, 1e-6)
    same(positive, want > 0)
    preamble = "template <class T> __device__ T lesser(T a, T b) { return a < b ? a : b; }"
    reduce = cp.ReductionKernel(
        "T x", "float64 y", "lesser(x, T(0))", "a + b", "y = a", "0", "negatives", preamble=preamble
    )
    close(reduce(d, axis=1), np.minimum(x, 0).sum(1, dtype="f8"), 1e-6)


def test_fused_kernels() -> None:
    x, y = (draw.random(30).astype("f4") for _ in "xy")

    @cp.fuse()
    def both(a, b):
        return cp.sqrt(a * a + b) * 2 - cp.where(a > b, a, b)

    close(both(cp.asarray(x), cp.asarray(y)), np.sqrt(x * x + y) * 2 - np.where(x > y, x, y), 1e-6)

    @cp.fuse()
    def total(a):
        return cp.sum(a * 2 + 1)

    close(total(cp.asarray(x)), (x * 2 + 1).sum(), 1e-5)


MODULE = r"""
#include <cuda_fp16.h>
template <class T> __device__ T twice(T x) { return x + x; }
template <class T, int N> __global__ void scale(T* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = twice(y[i]) * T(N);
}
namespace inner { __global__ void fill(int* y, int v) { y[threadIdx.x] = v; } }
__constant__ float table[4];
__device__ int total = 3;
extern "C" __global__ void use(float* y, int* t) {
  y[threadIdx.x] = table[threadIdx.x];
  if (threadIdx.x == 0) *t = total;
}
"""


def test_modules_with_templates_and_variables() -> None:
    names = ("scale<float, 3>", "scale<__half, 2>", "scale<unsigned long long, 5>", "inner::fill")
    module = cp.RawModule(code=MODULE, options=("-std=c++17",), name_expressions=names)
    for name, dtype, by in zip(names, ("f4", "e", "u8"), (6, 4, 10), strict=False):
        y = cp.arange(6, dtype=dtype)
        module.get_function(name)((1,), (8,), (y, 6))
        same(y, np.arange(6) * by)
    filled = cp.zeros(4, "i4")
    module.get_function("inner::fill")((1,), (4,), (filled, 7))
    same(filled, [7] * 4)
    cp.ndarray((4,), "f4", module.get_global("table"))[...] = cp.arange(1, 5, dtype="f4")
    y, t = cp.zeros(4, "f4"), cp.zeros(1, "i4")
    module.get_function("use")((1,), (4,), (y, t))
    same(y, [1, 2, 3, 4])
    same(t, [3])


def test_an_error_is_reported_as_nvrtc_reports_it() -> None:
    kernel = cp.RawKernel('extern "C" __global__ void f(float* y) {\n  y[0] = z;\n}\n', "f")
    with pytest.raises(cp.cuda.compiler.CompileException) as caught:
        kernel.compile()
    lines = str(caught.value).splitlines()
    assert lines[0].endswith('.cu(2): error: identifier "z" is undefined')
    assert lines[1:4] == ["    y[0] = z;", "           ^", ""]
    assert lines[4].startswith('1 error detected in the compilation of "')


@pytest.mark.filterwarnings("ignore:cupyx.jit.rawkernel is experimental:FutureWarning")
def test_kernels_written_in_python() -> None:
    @jit.rawkernel()
    def scaled(x, y, size):
        first = jit.blockIdx.x * jit.blockDim.x + jit.threadIdx.x
        for i in range(first, size, jit.gridDim.x * jit.blockDim.x):
            y[i] = x[i] * 2 + jit.laneid()

    y = cp.zeros(50, "f4")
    scaled[2, 32](cp.arange(50, dtype="f4"), y, cp.uint32(50))
    same(y, np.arange(50) * 2 + np.arange(50) % 32)

    @jit.rawkernel()
    def reversed_block(x, y):
        t = jit.threadIdx.x
        shared = jit.shared_memory(cp.float32, 32)
        shared[t] = x[t]
        jit.syncthreads()
        y[t] = jit.shfl_xor_sync(0xFFFFFFFF, shared[31 - t], 1)

    y = cp.zeros(32, "f4")
    reversed_block[1, 32](cp.arange(32, dtype="f4"), y)
    same(y, np.arange(32)[::-1].reshape(16, 2)[:, ::-1].ravel())
