"""The compiler behind the simulated NVRTC: options, logs, symbols, and the values that its images compute."""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpucnn.simulator import Module, OutOfBounds, Trap, asarray, asnumpy, options, settings, toolchain
from gpucnn.simulator.cuda import compiler
from gpucnn.simulator.cuda.compiler import COMPILATION, INVALID_OPTION, SUCCESS, OptionError, parse_options
from gpucnn.simulator.cuda.diagnostics import in_nvrtc_words
from gpucnn.simulator.module import _Built, _Entry, _Kernel, _runtime

# --- Images as modules --------------------------------------------------------------------------------------------


class _Loaded(_Built):
    """An image, loaded as the driver loads it."""

    def __init__(self, module: Module, path: Path) -> None:
        self.name = module.name
        self.text = module.text
        self.runtime = _runtime(toolchain.runtime(settings.current().context_switch))
        self.path = path
        self.library = ctypes.CDLL(str(path))
        count = ctypes.c_int.in_dll(self.library, "gpucnn_entry_count").value
        entries = (_Entry * count).in_dll(self.library, "gpucnn_entries")
        self.entries = {entry.name.decode(): _Kernel(self, entry) for entry in entries}


class _Variable(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("address", ctypes.c_void_p), ("bytes", ctypes.c_size_t))


class Image(Module):
    """A compiled program whose kernels can be launched."""

    def __init__(self, program: compiler.Program, folder: Path) -> None:
        super().__init__("", "image")
        assert (program.status, program.log) == (SUCCESS, "")
        path = folder / f"image-{toolchain.hash_of(program.image.hex())}.so"
        path.write_bytes(program.image)
        self.loaded = _Loaded(self, path)
        self.symbols = program.symbols

    def built(self, wanted: settings.Settings) -> _Built:
        return self.loaded

    @property
    def variables(self) -> dict[str, tuple[int, int]]:
        """Address and size of each variable."""
        found: dict[str, tuple[int, int]] = {}
        table = (_Variable * 64).in_dll(self.loaded.library, "gpucnn_variables")
        for row in table:
            if not row.name:
                break
            found[row.name.decode()] = (row.address, row.bytes)
        return found

    def run(self, kernel: str, *args: Any, threads: int = 1, shared: int = 0) -> None:
        with options(mode=compiler.mode()):
            self.function(kernel)((1,), (threads,), args, shared)


Build = Callable[..., Image]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def compiled(
        text: str,
        *option: str,
        expressions: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
        name: str = "program.cu",
    ) -> Image:
        return Image(compiler.compile_program(text, name, headers or {}, option, expressions), tmp_path)

    return compiled


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without checks."""
    monkeypatch.setenv("GPUCNN_CUDA_CHECK", "0")


def log(text: str, *option: str, name: str = "kern.cu", headers: Mapping[str, str] | None = None) -> str:
    program = compiler.compile_program(text, name, headers or {}, option, ())
    assert (program.status, program.image) == (COMPILATION, b"")
    return program.log


# --- Options ------------------------------------------------------------------------------------------------------


@pytest.mark.no_compiler
def test_options_are_read() -> None:
    read = parse_options(
        ["-arch=sm_90", "--std=c++14", "-DA=1", "-D", "B", "--define-macro=C", "-UA", "-I/x", "--include-path=/y", "-I"]
        + ["/z", "-include=p.h", "--pre-include", "q.h", "", "-ftz=true", "--device-debug", "-rdc=false", "-O3", "-w"]
    )
    assert (read.architecture, read.capability, read.is_virtual, read.standard) == ("sm_90", 90, False, "c++14")
    assert read.macros == ["-DA=1", "-DB", "-DC", "-UA"]
    assert read.folders == ["-I/x", "-I/y", "-I/z"]
    assert read.preincludes == ["p.h", "q.h"]
    assert parse_options([]).architecture == "compute_52"
    assert parse_options([], 13).architecture == "compute_75"
    assert parse_options(["-arch=sm_90a"]).capability == 90


@pytest.mark.no_compiler
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("-arch=sm_91", "invalid value for --gpu-architecture (-arch)"),
        ("--gpu-architecture=lto_80", "invalid value for --gpu-architecture (-arch)"),
        ("-std=c++99", "invalid value for --std (-std)"),
        ("-foo", "unrecognized option -foo found"),
        ("--Include=x", "unrecognized option --Include=x found"),
        ("kernel.cu", "unrecognized option kernel.cu found"),
        ("-dlto", "option -dlto is not supported by the simulator: link-time optimisation is not simulated"),
        ("-dc", "option -dc is not supported by the simulator: relocatable device code is not simulated"),
        ("-rdc=true", "option -rdc is not supported by the simulator: relocatable device code is not simulated"),
    ],
)
def test_options_that_are_refused(option: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_options([option])
    assert str(caught.value) == message
    program = compiler.compile_program("", "x.cu", {}, [option], [])
    assert program == (INVALID_OPTION, b"", f"nvrtc: error: {message}\n", [])


@pytest.mark.no_compiler
def test_old_architectures_went_with_cuda_13() -> None:
    assert parse_options(["-arch=sm_70"], 12).capability == 70
    with pytest.raises(OptionError):
        parse_options(["-arch=sm_70"], 13)


@pytest.mark.no_compiler
def test_the_version_is_none_of_nvidias_and_tells_the_modes_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPUCNN_CUDA_CHECK", raising=False)
    checked = compiler.version_minor()
    monkeypatch.setenv("GPUCNN_CUDA_CHECK", "0")
    fast = compiler.version_minor()
    assert checked == fast + 1
    assert fast >= 10_000
    assert fast % 2 == 0


def test_an_empty_program_is_ptx_with_comments() -> None:
    program = compiler.compile_program("\n/* nothing */\n", "x.cu", {}, ["-arch=compute_90"], [])
    lines = program.image.decode().splitlines()
    assert f"// {compiler.mode()} mode, build {compiler.identity()}" in lines
    assert lines[-3:] == [".version 8.8", ".target sm_90", ".address_size 64"]
    assert compiler.compile_program("", "x.cu", {}, ["-arch=sm_90"], []).image[:4] == b"\x7fELF"


# --- Logs ---------------------------------------------------------------------------------------------------------

ONE_ERROR = """\
kern.cu(2): error: identifier "y" is undefined
    x[0] = y[1];
           ^

1 error detected in the compilation of "kern.cu".
"""


def test_log_of_an_error() -> None:
    text = "__global__ void f(float* x) {\n  x[0] = y[1];\n}\n"
    assert log(text) == ONE_ERROR
    # A temporary folder is in the log though not in the image.
    folder = "/build/0a1b2c"
    assert log(text, name=f"{folder}/kern.cu") == ONE_ERROR.replace("kern.cu", f"{folder}/kern.cu")
    assert log(text, name="").startswith("default_program(2): error: ")


def test_log_of_several_errors() -> None:
    text = "__device__ int g(int);\n__global__ void f(int* x) {\n  x[0] = g(1, 2);\n  x[1] = 3\n}\n"
    assert log(text) == (
        "kern.cu(3): error: too many arguments in function call\n    x[0] = g(1, 2);\n            ^\n\n"
        'kern.cu(5): error: expected a ";"\n  }\n  ^\n\n'
        '2 errors detected in the compilation of "kern.cu".\n'
    )


def test_log_of_a_missing_header() -> None:
    assert log("\n#include <nothing.h>\n") == (
        'kern.cu(2): catastrophic error: cannot open source file "nothing.h"\n  #include <nothing.h>\n'
        "                      ^\n\n"
        '1 catastrophic error detected in the compilation of "kern.cu".\nCompilation terminated.\n'
    )


def test_log_of_an_error_in_a_header() -> None:
    found = log('#include "a/b.h"\n', headers={"a/b.h": "\n#error too old\n"})
    assert found.startswith("a/b.h(2): error: #error directive: too old\n")
    assert found.endswith('1 error detected in the compilation of "kern.cu".\n')


def test_log_of_what_the_simulator_cannot_run() -> None:
    text = '__global__ void f(float* x) {\n  asm("ex2.approx.f32 %0, %0;" : "+f"(x[0]));\n}\n'
    assert log(text) == (
        "kern.cu(2): error: the simulator cannot run the PTX instruction 'ex2.approx.f32'; "
        "include/ptx.h has those that it can run\n"
        '    asm("ex2.approx.f32 %0, %0;" : "+f"(x[0]));\n    ^\n\n'
        '1 error detected in the compilation of "kern.cu".\n'
    )


def test_random_numbers_on_the_device_are_refused() -> None:
    assert '#error directive: "curand_kernel.h is not simulated' in log("#include <curand_kernel.h>\n")


@pytest.mark.no_compiler
@pytest.mark.parametrize(
    ("said", "worded"),
    [
        ("‘n’ was not declared in this scope; did you mean ‘m’?", 'identifier "n" is undefined'),
        ("use of undeclared identifier 'n'", 'identifier "n" is undefined'),
        ("‘Thing’ does not name a type", 'identifier "Thing" is undefined'),
        ("expected ‘)’ before ‘;’ token", 'expected a ")"'),
        ("expected primary-expression before ‘)’ token", "expected an expression"),
        (
            "no matching function for call to ‘f(int)’",
            'no instance of overloaded function "f" matches the argument list',
        ),
        ("‘struct P’ has no member named ‘z’", 'class "P" has no member "z"'),
        ("assignment of read-only location ‘* x’", "expression must be a modifiable lvalue"),
        ("static assertion failed: no", 'static assertion failed with "no"'),
        ("cannot convert ‘int’ to ‘P’ in return", 'cannot convert "int" to "P" in return'),
    ],
)
def test_messages_in_the_words_of_nvrtc(said: str, worded: str) -> None:
    assert in_nvrtc_words(said) == worded


# --- Programs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", ["0", "1"])
def test_kernels_variables_and_name_expressions(build: Build, monkeypatch: pytest.MonkeyPatch, check: str) -> None:
    monkeypatch.setenv("GPUCNN_CUDA_CHECK", check)
    image = build(
        """
        static __constant__ float table[3] = {1, 2, 3};
        __device__ int total = 5;
        namespace inner { __device__ __align__(16) double pair[2]; }
        template <class T, int N> __global__ void scale(T* y, T by) { y[threadIdx.x] *= by * N; }
        extern "C" { __global__ void plain(float* y) { y[threadIdx.x] = table[threadIdx.x] * total; } }
        __global__ void add(float* y, const float* x, int n) { if (threadIdx.x < n) y[threadIdx.x] += x[threadIdx.x]; }
        """,
        expressions=["scale<float, 3>", "&scale<unsigned long long, 2>", "plain", "&inner::pair", "add"],
    )
    assert image.symbols == [
        "_Z5scaleIfLi3EEvPT_S0_",
        "_Z5scaleIyLi2EEvPT_S0_",
        "plain",
        "_ZN5inner4pairE",
        "_Z3addPfPKfi",
    ]
    assert ctypes.c_int.in_dll(image.loaded.library, "gpucnn_checked").value == int(check)
    sizes = {name: size for name, (_, size) in image.variables.items()}
    assert sizes == {"_ZL5table": 12, "total": 4, "_ZN5inner4pairE": 16}
    y = asarray(np.ones(3, "f4"))
    image.run("plain", y, threads=3)
    assert asnumpy(y).tolist() == [5, 10, 15]
    # Not a constant to the compiler, though the program never writes it.
    ctypes.memmove(image.variables["_ZL5table"][0], np.array([7, 8, 9], "f4").ctypes.data, 12)
    image.run("plain", y, threads=3)
    assert asnumpy(y).tolist() == [35, 40, 45]
    image.run(image.symbols[0], y, np.float32(2), threads=3)
    assert asnumpy(y).tolist() == [210, 240, 270]
    image.run("_Z3addPfPKfi", y, asarray(np.ones(3, "f4")), np.int32(2), threads=3)
    assert asnumpy(y).tolist() == [211, 241, 270]
    wide = asarray(np.full(1, 2**40, "u8"))
    image.run(image.symbols[1], wide, np.uint64(3))
    assert asnumpy(wide).tolist() == [6 * 2**40]


def test_checked_images_find_errors_at_their_lines(build: Build) -> None:
    text = "__global__ void f(float* y) {\n  y[4] = 1;\n}\n"
    image = build(text, name="/a/temporary/folder/kern.cu")
    with pytest.raises(OutOfBounds, match=r"^kern\.cu:2: write of 4 bytes"):
        image.run("_Z1fPf", asarray(np.zeros(4, "f4")))


def test_headers_macros_and_inclusions(build: Build, tmp_path: Path) -> None:
    (tmp_path / "found.h").write_text("#define FOUND 4\n")
    image = build(
        '#include <deep/er/one.h>\n#include "found.h"\n'
        'extern "C" __global__ void f(int* y) { y[0] = ONE + FOUND + TWO * EIGHT + __CUDA_ARCH__; '
        "y[1] = __cplusplus == 201402L; }\n",
        f"-I{tmp_path}",
        "-DTWO=2",
        "-DONE=100",
        "-UONE",
        "-include=pre.h",
        "-arch=sm_86",
        "-std=c++14",
        headers={"deep/er/one.h": "#define ONE 1\n", "pre.h": "#define EIGHT 8\n"},
    )
    y = asarray(np.zeros(2, "i4"))
    image.run("f", y)
    assert asnumpy(y).tolist() == [1 + 4 + 16 + 860, 1]


def test_headers_stay_in_their_folder() -> None:
    assert 'takes no header under the name "../../x.h"' in log("", headers={"../../x.h": ""})


def test_assertions_and_their_absence(build: Build) -> None:
    text = 'extern "C" __global__ void f(int* y) { assert(y[0] == 1); y[0] = 2; }'
    y = asarray(np.zeros(1, "i4"))
    with pytest.raises(Trap, match=r"assert\(y\[0\] == 1\) failed"):
        build(text).run("f", y)
    build(text, "-DNDEBUG").run("f", y)
    assert asnumpy(y)[0] == 2


def test_prints_go_to_standard_output(build: Build, capfd: pytest.CaptureFixture[str]) -> None:
    build('extern "C" __global__ void f() { printf("thread %d of %s\\n", threadIdx.x, "f"); }').run("f", threads=2)
    ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr().out == "thread 0 of f\nthread 1 of f\n"


def test_integers_wrap_around(build: Build) -> None:
    y = asarray(np.array([2**31 - 1, -(2**31)], "i4"))
    build('extern "C" __global__ void f(int* y) { y[0] += 1; y[1] = y[1] - 1 + (y[1] << 1); }').run("f", y)
    assert asnumpy(y).tolist() == [-(2**31), 2**31 - 1]


def test_shared_memory_in_templates_and_at_namespace_scope(build: Build) -> None:
    image = build(
        """
        extern __shared__ float everywhere[];
        template <class T> __global__ void reverse(T* y) {
          extern __shared__ __align__(16) unsigned char raw[];
          __shared__ T fixed[4];
          T* own = reinterpret_cast<T*>(raw);
          const int t = threadIdx.x;
          own[t] = y[t];
          fixed[t] = 10 * y[t];
          __syncthreads();
          y[t] = own[3 - t] + fixed[3 - t];
        }
        extern "C" __global__ void twice(float* y) {
          everywhere[threadIdx.x] = y[threadIdx.x];
          __syncthreads();
          y[threadIdx.x] = 2 * everywhere[1 - threadIdx.x];
        }
        """,
        expressions=["reverse<double>", "reverse<short>"],
    )
    for symbol, kind in zip(image.symbols, ("f8", "i2"), strict=True):
        y = asarray(np.arange(4).astype(kind))
        image.run(symbol, y, threads=4, shared=4 * np.dtype(kind).itemsize)
        assert asnumpy(y).tolist() == [33, 22, 11, 0]
    y = asarray(np.array([1, 2], "f4"))
    image.run("twice", y, threads=2, shared=8)
    assert asnumpy(y).tolist() == [4, 2]


def test_names_that_nvidias_compiler_leaves_free(build: Build) -> None:
    text = """
    namespace std { template <class T> T min(T a, T b) { return b < a ? b : a; } template <class T> struct tuple {}; }
    __device__ int read = 3; __device__ int index(int x) { return x + read; } struct half { int x; };
    extern "C" __global__ void write(int* y) { half h = {4}; y[0] = std::min(index(1), 9) + h.x; }
    """
    y = asarray(np.zeros(1, "i4"))
    build(text).run("write", y)
    assert asnumpy(y)[0] == 8


def test_cudas_standard_library(build: Build) -> None:
    text = """
    #include <cuda/std/type_traits>
    #include <cuda/std/limits>
    #include <cuda/std/tuple>
    #include <cuda/std/cstdint>
    #include <cuda/std/cmath>
    extern "C" __global__ void f(double* y) {
      static_assert(cuda::std::is_same<cuda::std::uint32_t, unsigned>::value, "");
      y[0] = cuda::std::get<1>(cuda::std::make_tuple(1, 2.5)) + cuda::std::sqrt(16.0);
      y[1] = cuda::std::numeric_limits<float>::max();
    }
    """
    y = asarray(np.zeros(2))
    build(text).run("f", y)
    assert asnumpy(y).tolist() == [6.5, float(np.finfo("f4").max)]


# --- Values -------------------------------------------------------------------------------------------------------


def test_every_half_and_bfloat(build: Build, fast: None) -> None:
    text = """
    #include <cuda_fp16.h>
    #include <cuda_bf16.h>
    extern "C" __global__ void f(float* h, float* b, unsigned short* back) {
      const int i = blockIdx.x * blockDim.x + threadIdx.x;
      h[i] = __half2float(__ushort_as_half(i));
      b[i] = __ushort_as_bfloat16(i);
      back[i] = __half_as_ushort(__float2half(h[i])) == i && __bfloat16_as_ushort(nv_bfloat16(b[i])) == i;
    }
    """
    h, b, back = (asarray(np.zeros(2**16, kind)) for kind in ("f4", "f4", "u2"))
    with options(mode="fast"):
        build(text).function("f")((64,), (1024,), (h, b, back))
    bits = np.arange(2**16, dtype="u2")
    np.testing.assert_array_equal(asnumpy(h), bits.view("f2").astype("f4"))
    np.testing.assert_array_equal(asnumpy(b), (bits.astype("u4") << 16).view("f4"))
    assert asnumpy(back)[~np.isnan(asnumpy(h)) & ~np.isnan(asnumpy(b))].all()


def test_arithmetic_of_halves_is_rounded_once(build: Build, fast: None) -> None:
    text = """
    #include <cuda_fp16.h>
    extern "C" __global__ void f(const half* x, const half* y, half* z, int n) {
      const int i = blockIdx.x * blockDim.x + threadIdx.x;
      z[i] = x[i] + y[i]; z[n + i] = x[i] - y[i]; z[2 * n + i] = x[i] * y[i]; z[3 * n + i] = x[i] / y[i];
      z[4 * n + i] = __hfma(x[i], y[i], z[i]); z[5 * n + i] = hsqrt(__habs(x[i])); z[6 * n + i] = __hmax(x[i], y[i]);
    }
    """
    n = 2**14
    draw = np.random.default_rng(3)
    x, y = (draw.integers(0, 0x7C00, n).astype("u2").view("f2") * draw.choice([-1, 1], n).astype("f2") for _ in "xy")
    z = asarray(np.zeros(7 * n, "f2"))
    with options(mode="fast"):
        build(text).function("f")((16,), (1024,), (asarray(x), asarray(y), z, np.int32(n)))
    with np.errstate(all="ignore"):
        total = x + y
        fused = np.array(
            [
                _half(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))) if np.isfinite(c) else c
                for a, b, c in zip(x, y, total, strict=True)
            ],
            "f2",
        )
        expected = [total, x - y, x * y, x / y, fused, np.sqrt(np.abs(x)), np.maximum(x, y)]
    for got, want in zip(asnumpy(z).reshape(7, n), expected, strict=True):
        np.testing.assert_array_equal(got, want)


def _half(exact: Fraction) -> float:
    """The half nearest to a number, ties to even."""
    if exact == 0:
        return 0.0
    exponent = max(math.floor(math.log2(abs(exact))) if abs(exact) >= 2**-14 else -14, -14)
    while abs(exact) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    step = Fraction(2) ** (exponent - 10)
    value = round(exact / step) * step
    return math.copysign(math.inf, exact) if abs(value) > 65504 else float(value)


def test_conversions_to_sixteen_bits_are_rounded_once(build: Build) -> None:
    text = """
    #include <cuda_fp16.h>
    #include <cuda_bf16.h>
    extern "C" __global__ void f(const double* x, half* h, nv_bfloat16* b, long long n) {
      for (int i = 0; i < 3; i++) { h[i] = x[i]; b[i] = nv_bfloat16(x[3 + i]); }
      h[3] = __half(2049); h[4] = __float2half_rz(1.9999f); h[5] = __float2half_ru(1.0001f); h[6] = __ll2half_rn(n);
    }
    """
    x = np.array([1 + 2**-11 + 2**-40, 1 + 2**-11, 65519.99, 1 + 2**-8 + 2**-40, 1 + 2**-8, 3.0e38])
    h, b = asarray(np.zeros(7, "f2")), asarray(np.zeros(3, "u2"))
    build(text).run("f", asarray(x), h, b, np.int64(2049 * 2**3 + 1))
    assert asnumpy(h).tolist() == [1 + 2**-10, 1, 65504, 2048, 1.9990234375, 1.0009765625, 16400]
    bits = [struct.unpack("f", struct.pack("I", int(value) << 16))[0] for value in asnumpy(b)]
    assert bits == [1 + 2**-7, 1, 226 * 2.0**120]


def test_rounding_in_each_direction(build: Build) -> None:
    text = """
    extern "C" __global__ void f(float* y, double* z, const float* x) {
      const float a = x[0], b = x[1];
      y[0] = __fadd_rn(a, b); y[1] = __fadd_rz(a, b); y[2] = __fadd_rd(a, b); y[3] = __fadd_ru(a, b);
      y[4] = __fmul_rd(b, b); y[5] = __fmul_ru(b, b); y[6] = __fdiv_rd(a, 3); y[7] = __fdiv_ru(a, 3);
      y[8] = __fdiv_rz(-a, 3); y[9] = __fsqrt_rd(2); y[10] = __fsqrt_ru(2); y[11] = __fmaf_ru(a, a, b);
      y[12] = __int2float_rz(16777219); y[13] = __int2float_ru(16777217); y[14] = __double2float_rd(0.1);
      z[0] = __dadd_ru(1.0, 1e-30); z[1] = __ddiv_rd(1.0, 3.0); z[2] = __ll2double_rz((1ll << 53) + 1);
    }
    """
    y, z = asarray(np.zeros(15, "f4")), asarray(np.zeros(3))
    build(text).run("f", y, z, asarray(np.array([1, 2**-30], "f4")))
    one_up = np.nextafter(np.float32(1), np.float32(2))
    third = np.float32(1) / np.float32(3)  # rounded up
    below = np.nextafter(third, np.float32(0))
    root = np.sqrt(np.float32(2))  # rounded down
    tenth = np.nextafter(np.float32(0.1), np.float32(0))
    expected = [1, 1, 1, one_up, 2**-60, 2**-60, below, third, -below, root, np.nextafter(root, np.float32(2)), one_up]
    assert asnumpy(y).tolist() == [float(value) for value in [*expected, 16777218, 16777218, tenth]]
    assert asnumpy(z).tolist() == [
        np.nextafter(1.0, 2.0),
        np.nextafter(1 / 3, 0) if Fraction(1, 3) < 1 / 3 else 1 / 3,
        2.0**53,
    ]


def test_functions_that_c_has_not(build: Build) -> None:
    text = """
    extern "C" __global__ void f(double* y) {
      y[0] = erfinv(0.5); y[1] = erfcinv(1e-10); y[2] = normcdfinv(0.975); y[3] = normcdf(1.96); y[4] = sinpi(0.25);
      y[5] = cospi(1.0 / 3); y[6] = exp10(2.0); y[7] = rcbrt(8.0); y[8] = erfcx(30.0); y[9] = cyl_bessel_i0(2.5);
      y[10] = cyl_bessel_i1(-2.5); y[11] = norm3d(2.0, 3.0, 6.0); y[12] = rhypot(3.0, 4.0); y[13] = erfinv(-1.0);
      y[14] = sinpi(1e15 + 1); y[15] = erfcinv(1.9999999); y[16] = cyl_bessel_i0(710.0); y[17] = erfinv(1e-12);
    }
    """
    y = asarray(np.zeros(18))
    build(text).run("f", y)
    expected = [0.4769362762044699, 4.572824967389486, 1.959963984540054, 0.9750021048517795, 0.7071067811865476]
    expected += [0.5, 100, 0.5, 0.018795888861416754, 3.289839144050123, -2.5167162452886984, 7, 0.2, -np.inf, 0]
    expected += [-3.7665625814958155, 3.345334558619656e306, 8.862269254527581e-13]
    np.testing.assert_allclose(asnumpy(y), expected, rtol=1e-14, atol=0)


def test_bits_and_integers(build: Build) -> None:
    text = """
    extern "C" __global__ void f(unsigned* y, unsigned long long* z) {
      y[0] = __brev(1); y[1] = __byte_perm(0x33221100, 0x77665544, 0x7531); y[2] = __funnelshift_l(0x80000001, 5, 1);
      y[3] = __funnelshift_rc(1, 2, 40); y[4] = __popcll(~0ull); y[5] = __clzll(1); y[6] = __ffsll(1ll << 40);
      y[7] = __dp4a(0x01020304, 0x01010101, 5); y[8] = __sad(-3, 4, 1); y[9] = __uhadd(~0u, ~0u);
      y[10] = __mul24(-3, 5);
      y[11] = __float2uint_rz(-1.0f); y[12] = __float2int_rn(1e20f); y[13] = __double2hiint(1.0);
      asm("mov.u32 %0, %%laneid;" : "=r"(y[14])); asm("bfe.u32 %0, %1, 4, 8;" : "=r"(y[15]) : "r"(0xabcd));
      z[0] = __brevll(1); z[1] = __umul64hi(~0ull, ~0ull); z[2] = __float2ll_rd(-1.5f); z[3] = __double2ull_rn(2.5);
    }
    """
    y, z = asarray(np.zeros(16, "u4")), asarray(np.zeros(4, "u8"))
    build(text).run("f", y, z)
    expected = [1 << 31, 0x77553311, 11, 2, 64, 63, 41, 15, 8, 2**32 - 1, 2**32 - 15, 0, 2**31 - 1, 0x3FF00000, 0, 0xBC]
    assert asnumpy(y).tolist() == expected
    assert asnumpy(z).tolist() == [1 << 63, 2**64 - 2, 2**64 - 2, 2]


def test_the_clock_of_the_device_goes_on(build: Build) -> None:
    text = """
    extern "C" __global__ void f(long long* y) {
      long long from, to;
      asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(from));
      do asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(to)); while (to < from + 1000);
      y[0] = to - from;
    }
    """
    y = asarray(np.zeros(1, "i8"))
    build(text).run("f", y)
    assert asnumpy(y).item() >= 1000


ATOMICS = {
    "int": ("i4", "Add Sub Max Min Exch Or And Xor CAS"),
    "unsigned": ("u4", "Add Sub Max Min Exch Or And Xor CAS Inc Dec"),
    "unsigned long long": ("u8", "Add Max Min Exch Or And Xor CAS"),
    "long long": ("i8", "Max Min"),
    "float": ("f4", "Add Exch"),
    "double": ("f8", "Add"),
    "__half": ("f2", "Add"),
}


@pytest.mark.parametrize("kind", ATOMICS)
def test_atomic_operations(build: Build, kind: str) -> None:
    dtype, names = ATOMICS[kind]
    result: dict[str, int] = {"Add": 15, "Sub": 9, "Max": 12, "Min": 3, "Exch": 3, "Or": 15, "And": 0, "Xor": 15}
    result |= {"CAS": 12, "Inc": 0, "Dec": 3}
    calls = [(name, scope) for name in names.split() for scope in ("", "_block", "_system")]
    lines = "".join(
        f"y[{i}] = 12; old[{i}] = atomic{name}{scope}(y + {i}, {'5, ' if name == 'CAS' else ''}3);"
        for i, (name, scope) in enumerate(calls)
    )
    image = build(f'extern "C" __global__ void f({kind}* y, {kind}* old) {{ {lines} }}')
    y, old = (asarray(np.zeros(len(calls), dtype)) for _ in range(2))
    image.run("f", y, old)
    assert asnumpy(y).tolist() == [result[name] for name, _ in calls]
    assert asnumpy(old).tolist() == [12] * len(calls)


def test_atomic_operations_that_cuda_has_not() -> None:
    text = "__global__ void f(float* y, long long* z) {\n  atomicMax(y, 1.0f);\n  atomicAdd(z, 1ll);\n}\n"
    found = log(text)
    assert 'kern.cu(2): error: no instance of overloaded function "atomicMax" matches the argument list' in found
    assert 'kern.cu(3): error: no instance of overloaded function "atomicAdd" matches the argument list' in found


def test_warps_and_cooperative_groups(build: Build) -> None:
    text = """
    #include <cooperative_groups.h>
    namespace cg = cooperative_groups;
    extern "C" __global__ void f(unsigned* y) {
      const unsigned t = threadIdx.x;
      auto block = cg::this_thread_block();
      auto tile = cg::tiled_partition<8>(block);
      const bool is_right = block.thread_rank() == t && block.size() == 32;
      y[t] = tile.shfl_xor(t, 3) + 100 * tile.meta_group_rank() + 1000 * is_right;
      block.sync();
      y[32 + t] = cg::reduce(tile, t, cg::plus<unsigned>());
      y[64 + t] = __match_any_sync(0xffffffff, t % 4);
      y[96 + t] = __reduce_or_sync(0xffffffff, 1u << t % 5) + tile.ballot(t % 2) * 256;
    }
    """
    y = asarray(np.zeros(128, "u4"))
    build(text).run("f", y, threads=32)
    t = np.arange(32)
    got = asnumpy(y).reshape(4, 32)
    assert got[0].tolist() == ((t ^ 3) + 100 * (t // 8) + 1000).tolist()
    assert got[1].tolist() == (t // 8 * 64 + 28).tolist()
    assert got[2].tolist() == [0x11111111 << k % 4 for k in t.tolist()]
    assert got[3].tolist() == [31 + 0xAA * 256] * 32


def test_functions_of_pairs(build: Build) -> None:
    text = """
    #include <cuda_fp16.h>
    #include <cuComplex.h>
    extern "C" __global__ void f(half2* y, float2* z) {
      const half2 a = __floats2half2_rn(1.5f, -2.f), b = __half2half2(__float2half(0.25f));
      y[0] = a + b; y[1] = __hfma2(a, b, b); y[2] = h2sqrt(__habs2(a)); y[3] = __lowhigh2highlow(a);
      y[4] = __hgt2(a, b); z[0] = cuCmulf(make_cuFloatComplex(1, 2), make_cuFloatComplex(3, -1));
      z[1] = cuCdivf(z[0], make_cuFloatComplex(1, 2)); z[2] = {cuCabsf(make_cuComplex(3, 4)), __high2float(a)};
    }
    """
    y, z = asarray(np.zeros(10, "f2")), asarray(np.zeros(6, "f4"))
    build(text).run("f", y, z)
    root = [float(np.sqrt(np.float16(1.5))), float(np.sqrt(np.float16(2)))]
    assert asnumpy(y).tolist() == [1.75, -1.75, 0.625, -0.25, *root, -2, 1.5, 1, 0]
    assert asnumpy(z).tolist() == [5, 5, 3, -1, 5, -2]


# --- Cache --------------------------------------------------------------------------------------------------------


def test_images_are_cached_by_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GPUCNN_CACHE_DIR", str(tmp_path))
    text = "template <class T> __global__ void f(T* y) { *y = 1; }"
    arguments: tuple[Mapping[str, str], Sequence[str], Sequence[str]] = ({}, ["-arch=sm_80"], ["f<int>"])
    compiler.compile_program("", "x.cu", {}, ["-arch=sm_80"], [])
    made = toolchain.made()
    first = compiler.compile_program(text, "/one/x.cu", *arguments)
    assert toolchain.made() > made
    made = toolchain.made()
    assert compiler.compile_program(text, "/two/x.cu", *arguments) == first
    assert toolchain.made() == made
    assert compiler.compile_program(text, "/two/x.cu", {}, ["-arch=sm_80"], ["f<long>"]).symbols == ["_Z1fIlEvPT_"]
    assert toolchain.made() == made + 1
    monkeypatch.setenv("GPUCNN_CUDA_CHECK", "0")
    assert compiler.compile_program(text, "/two/x.cu", *arguments).image != first.image
