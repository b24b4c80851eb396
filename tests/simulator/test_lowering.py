"""From CUDA C++ to C++: what is rewritten, where errors are, and what cannot be lowered."""

from __future__ import annotations

import numpy as np
import pytest

from gpucnn.simulator import CompileError, LoweringError, Module, OutOfBounds, asarray, asnumpy
from gpucnn.simulator.lowering import known_instructions, lower

KERNEL = 'extern "C" __global__ void kernel(float* y) {{\n{body}\n}}\n'


def kernel(body: str) -> str:
    return KERNEL.format(body=body)


@pytest.mark.no_compiler
def test_lines_stay_where_they_are() -> None:
    text = kernel(
        '__shared__\n float\n  a[4],\n  b[2];\n asm volatile(\n"cvt.rna.tf32.f32 %0, %1;"\n: "=r"(u)\n: "f"(x));'
    )
    lowered = lower(text, "x.cu").text
    before = lowered.index('#line 1 "<kernels>"')
    assert lowered[:before].count("\n") == text.count("\n") + 1


@pytest.mark.no_compiler
def test_kernels_are_found() -> None:
    text = """
    template <class T> __global__ void not_this(T* x) {}
    extern "C" __global__ void declared(int);
    extern "C" __global__ void plain(int) {}
    extern "C" __global__ void __launch_bounds__(64 * 2, 3) after(int) {}
    extern "C" __global__ __launch_bounds__((32)) void before(int (*f)(int)) {}
    __device__ void nor_this() {}
    __global__ void mangled(int) {}
    namespace a { namespace { static void __global__ late(int x = (1, 2)) __launch_bounds__(16) { if (x) x = '}'; } } }
    extern "C" { __global__ void in_a_block(int) {} }
    __global__ void in_a_block(float) {}
    template <> __global__ void not_this<int>(int* x) {}
    template __global__ void not_this<float>(float*);
    """
    kernels = lower(text, "x.cu").kernels
    assert [(found.name, found.launch_bounds) for found in kernels] == [
        ("plain", ""),
        ("after", "64 * 2, 3"),
        ("before", "(32)"),
        ("mangled", ""),
        ("late", "16"),
        ("in_a_block", ""),
        ("in_a_block", ""),
        ("not_this<int>", ""),
        ("not_this<float>", ""),
    ]


@pytest.mark.no_compiler
@pytest.mark.parametrize(
    ("body", "construct"),
    [
        ('asm("sin.approx.f32 %0, %1;" : "=f"(y[0]) : "f"(y[1]));', "the PTX instruction 'sin.approx.f32'"),
        ('asm("@p cvt.f32.f16 %0, %1;" : "=f"(y[0]) : "h"(h));', "the PTX '@p cvt.f32.f16 %0, %1'"),
        ('asm(".reg .pred p;");', "the PTX '.reg .pred p'"),
        ('asm("cvt.rna.tf32.f32 %0, %%pm0;" : "=r"(u));', "the PTX register '%pm0'"),
        ('asm("cvt.rna.tf32.f32 %0, %2;" : "=r"(u) : "f"(x));', "the PTX operand '%2': there are 2"),
        ('asm("cvt.rna.tf32.f32 %0, x;" : "=r"(u));', "the PTX operand 'x'"),
        ('asm("cvt.rna.tf32.f32 %[d], %1;" : [d] "=r"(u) : "f"(x));', "the asm operand"),
        ("__shared__ float a = 1;", "a shared variable cannot be initialised"),
        ("__shared__ Thing a(1);", "a shared variable cannot be initialised"),
        ("__shared__ Thing a{1};", "a shared variable cannot be initialised"),
    ],
)
def test_what_cannot_be_lowered_is_named_with_its_line(body: str, construct: str) -> None:
    text = f'#line 40 "conv.cu"\n{kernel(body)}'
    with pytest.raises(LoweringError) as caught:
        lower(text, "x.cu")
    assert construct in str(caught.value)
    assert str(caught.value).startswith("conv.cu:41: ")
    assert (caught.value.file, caught.value.line) == ("conv.cu", 41)


@pytest.mark.no_compiler
def test_shared_variables_belong_into_functions() -> None:
    with pytest.raises(LoweringError, match=r"x\.cu:2: .*a static shared variable outside a function"):
        lower("\n__shared__ float a[2];\n", "x.cu")
    with pytest.raises(LoweringError, match="outside a function"):
        lower("namespace a {\n__shared__ float a[2];\n}\n", "x.cu")


@pytest.mark.no_compiler
@pytest.mark.parametrize("head", ["__global__ int kernel(int x)", "__global__ struct kernel", "__global__ auto x = 1"])
def test_kernels_that_are_no_functions_without_result_are_refused(head: str) -> None:
    with pytest.raises(LoweringError, match=r"x\.cu:2: .* a kernel that is not a function of the form"):
        lower(f"\n{head} {{\n}}\n", "x.cu")


def test_literals_with_brackets_and_separated_digits() -> None:
    text = """
extern "C" __global__ void kernel(float* y) {
  const char* text = R"x(}"{)x";
  const char quote = '\\'', brace = '{';
  dim3 sizes(4, 2);
  asm volatile("{\\n mov.u32 %0, %%laneid;\\n}" : "=r"(sizes.x));
  y[0] = 1'000'000 + text[0] - '}' + (quote == 39) + brace - '{' + sizes.x + 10 * sizes.y + sizes.z;
}
"""
    y = asarray(np.zeros(1, "f4"))
    Module(text, "literals").function("kernel")((1,), (1,), (y,))
    assert asnumpy(y)[0] == 1_000_000 + 1 + 20 + 1


def test_kernels_have_the_symbols_of_cuda() -> None:
    text = """
struct Pair { int a, b; };
__global__ void add(float* y, Pair p = {1, 2}) { y[0] += p.a + p.b; }
__global__ void add(float* y, const float* x) { y[0] += x[0]; }
namespace outer { namespace inner { __global__ void scale(double* y, int n) { y[0] *= n; } } }
extern "C" { __global__ void plain(float* y) { y[0] = -1; } }
template <class T, int N> __global__ void of_type(T* y) { y[0] = N; }
template __global__ void of_type<float, 7>(float*);
"""
    module = Module(text, "symbols")
    y = asarray(np.zeros(1, "f4"))
    module.function("_Z3addPf4Pair")((1,), (1,), (y, np.array((3, 4), "i4, i4")))
    assert asnumpy(y)[0] == 7
    module.function("_Z3addPfPKf")((1,), (1,), (y, asarray(np.full(1, 0.5, "f4"))))
    assert asnumpy(y)[0] == 7.5
    module.function("plain")((1,), (1,), (y,))
    assert asnumpy(y)[0] == -1
    module.function("_Z7of_typeIfLi7EEvPT_")((1,), (1,), (y,))
    assert asnumpy(y)[0] == 7
    z = asarray(np.full(1, 1.5))
    module.function("_ZN5outer5inner5scaleEPdi")((1,), (1,), (z, np.int32(3)))
    assert asnumpy(z)[0] == 4.5


@pytest.mark.no_compiler
def test_instructions_are_those_of_the_header() -> None:
    assert "cvt_f32_f16" in known_instructions()
    assert "cp_async_wait_group" in known_instructions()
    assert "sin_approx_f32" not in known_instructions()


def test_shared_variables_of_every_form() -> None:
    text = r"""
template <class A, class B> struct Pair { A a; B b; };
template <int N> __device__ float sum_of(float x) {
  __shared__ alignas(64) float values[N >= 2 ? sizeof(char[N]) : 1];
  static __shared__ Pair<float, int> pair;
  __shared__ volatile int flag;
  static
  __shared__ int unused;
  const int t = threadIdx.x;
  values[t] = x;
  if (t == 0) { pair.a = 1; pair.b = 2; flag = 3; }
  __syncthreads();
  float sum = pair.a + pair.b + flag;
  for (int i = 0; i < N; i++) sum += values[i];
  __syncthreads();
  return sum;
}
#define TILE(NAME) __shared__ __align__(32) float NAME[2][16], NAME##_too[16]; __shared__ float* NAME##_pointer
extern __shared__ float everywhere[];
extern "C" __global__ void kernel(float* y, unsigned long long* addresses) {
  TILE(tile);
  const int t = threadIdx.x;
  tile[1][t] = t;
  tile_too[t] = 2 * t;
  everywhere[t] = 3 * t;
  tile_pointer = tile[1];
  __syncthreads();
  y[t] = tile_pointer[15 - t] + tile_too[t] + everywhere[t] + 1000 * sum_of<16>(1.0f);
  if (t == 0) addresses[0] = reinterpret_cast<unsigned long long>(&tile[0][0]);
}
"""
    y, addresses = asarray(np.zeros(16, "f4")), asarray(np.zeros(1, "u8"))
    with pytest.raises(Exception, match="conflicts with the write"):  # each thread writes tile_pointer
        Module(text, "forms").function("kernel")((1,), (16,), (y, addresses), 64)
    text = text.replace("tile_pointer = ", "if (t == 0) tile_pointer = ")
    Module(text, "forms").function("kernel")((1,), (16,), (y, addresses), 64)
    t = np.arange(16)
    np.testing.assert_array_equal(asnumpy(y), 15 - t + 2 * t + 3 * t + 1000 * (6 + 16))
    assert int(addresses.item(0)) % 32 == 0


def test_errors_name_the_file_of_a_line_directive() -> None:
    text = """#define N 3
#line 1 "first.cuh"
__device__ __forceinline__ float get(const float* x, int i) {
  return x[i];
}
#line 10 "second.cu"
extern "C" __global__ void kernel(const float* x, float* y) {
  y[0] = get(x, 0);
  y[1] = get(x, N);
  y[N] = 1;
}
"""
    function = Module(text, "kernel[float32]").function("kernel")
    three, four, two = (asarray(np.zeros(n, "f4")) for n in (3, 4, 2))
    with pytest.raises(OutOfBounds, match=r"^first\.cuh:2: "):
        function((1,), (1,), (three, four))
    with pytest.raises(OutOfBounds, match=r"^second\.cu:13: "):
        function((1,), (1,), (four, two))


def test_a_compiler_error_names_file_and_line() -> None:
    text = f'#line 7 "broken.cu"\n{kernel("  y[0] = undeclared;")}'
    with pytest.raises(CompileError) as caught:
        Module(text, "broken[float32]").function("kernel")
    assert str(caught.value).startswith("broken[float32] does not compile for the simulator:\n")
    assert "broken.cu:8:" in str(caught.value)
    assert "undeclared" in str(caught.value)


def test_includes_are_not_found() -> None:
    with pytest.raises(CompileError, match=r"cuda_fp16\.h"):
        Module(f"#include <cuda_fp16.h>\n{kernel('')}", "x").function("kernel")


def test_names_of_the_c_library_are_free() -> None:
    text = """
__device__ float index(float x) { return x + 1; }
__device__ float ffma(float x) { return x * 2; }
extern "C" __global__ void fmal(float* y) { y[0] = index(ffma(y[0])); }
"""
    y = asarray(np.ones(1, "f4"))
    Module(text, "names").function("fmal")((1,), (1,), (y,))
    assert asnumpy(y)[0] == 3


def test_device_arithmetic() -> None:
    text = r"""
extern "C" __global__ void kernel(const float* x, float* y, double* z) {
  const float a = x[0], b = x[1], NAN = x[2];
  y[0] = fmaf(a, b, -0.02f); y[1] = rsqrtf(b); y[2] = fmaxf(a, b); y[3] = fminf(a, NAN); y[4] = __expf(a);
  y[5] = floorf(-a); y[6] = ceilf(a); y[7] = fabsf(-b); y[8] = isnan(x[2]) ? 1 : 0; y[9] = max(3, 2) + min(1.5f, 2.f);
  y[10] = __ldg(x + 1); y[11] = powf(b, 3.f); y[12] = logf(b); y[13] = tanhf(a); y[14] = __fdividef(a, b);
  y[15] = __int_as_float(__float_as_int(a)); y[16] = __popc(255u) + __clz(1); y[17] = max(NAN, a); y[18] = sqrtf(b);
  z[0] = fma(0.1, 0.2, -0.02); z[1] = sqrt(2.0); z[2] = exp(1.0); z[3] = rsqrt(4.0); z[4] = pow(2.0, 0.5);
}
"""
    x = np.array([0.1, 0.2, np.nan], "f4")
    y, z = asarray(np.zeros(19, "f4")), asarray(np.zeros(5))
    Module(text, "arithmetic").function("kernel")((1,), (1,), (asarray(x), y, z))
    a, b = x[0], x[1]
    exact = np.float32(float(a) * float(b) - float(np.float32(0.02)))
    expected = [exact, b**-0.5, b, a, np.exp(a), -1, 1, b, 1, 4.5, b, b**3]
    expected += [np.log(b), np.tanh(a), a / b, a, 39, a, b**0.5]
    np.testing.assert_allclose(asnumpy(y), expected, rtol=3e-7)
    assert asnumpy(y)[0] == exact
    assert asnumpy(z)[0] != 0.1 * 0.2 - 0.02
    np.testing.assert_allclose(asnumpy(z)[1:], [2**0.5, np.e, 0.5, 2**0.5], rtol=1e-15)
