"""Arguments, limits, settings, and what a launch leaves as it was."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from running import launch, module, needs_gcc

from gpucnn import simulator
from gpucnn.simulator import ArgumentMismatch, LaunchError, Module, SharedMemoryError, SimulatorError, asarray, asnumpy

SOURCE = r"""
#line 1 "scale.cu"
struct Params {
  int n;
  float factor;
};
struct half_t {
  unsigned short bits;
};
template <class T>
struct Complex {
  T re, im;
};
extern "C" __global__ void __launch_bounds__(128) scale(const float* __restrict__ x, float* __restrict__ y, Params p) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < p.n) y[i] = x[i] * p.factor;
}
extern "C" __global__ void scalars(double* y, int i, unsigned u, float f, double d, bool b, signed char c, long long l,
                                   half_t h, Complex<float> z) {
  y[0] = i; y[1] = u; y[2] = f; y[3] = d; y[4] = b; y[5] = c; y[6] = l; y[7] = h.bits; y[8] = z.re; y[9] = z.im;
}
extern "C" __global__ void empty() {}
extern "C" __global__ void places(int* y) {
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const int i = block * blockDim.x * blockDim.y * blockDim.z + thread;
  y[i] = 100 * (blockIdx.x + 10 * blockIdx.y) + threadIdx.x + 10 * threadIdx.y + 1000000 * (blockIdx.z + threadIdx.z);
}
extern "C" __global__ void much_shared(float* y, int which) {
  if (which == 1) {
    __shared__ float a[12288], b[1];
    a[0] = b[0] = 1.0f;
    y[0] = a[0] + b[0];
  }
  extern __shared__ double bytes[];
  bytes[6143] = 1.0;
  y[1] = bytes[6143];
}
extern "C" __global__ void two_dynamic(float* y) {
  extern __shared__ __align__(16) unsigned char raw[];
  reinterpret_cast<float*>(raw)[threadIdx.x] = threadIdx.x;
  __syncthreads();
  y[threadIdx.x] = reinterpret_cast<const float*>(raw)[31 - threadIdx.x];
}
"""
MODULE = Module(SOURCE, "scale[float32]")
PARAMS = np.dtype([("n", "i4"), ("factor", "f4")])


def params(n: int, factor: float) -> np.ndarray[Any, Any]:
    return np.array((n, factor), PARAMS).view(np.dtype((np.void, 8)))


def run(kernel: str, *args: Any, grid: Any = (1,), block: Any = (1,), shared_mem: int = 0) -> None:
    MODULE.function(kernel)(grid, block, args, shared_mem)


@pytest.mark.table(1)
@pytest.mark.parametrize("mode", ["check", "fast", pytest.param("coverage", marks=needs_gcc)])
@pytest.mark.parametrize("context_switch", ["assembly", "ucontext"])
def test_a_kernel_with_a_struct(mode: str, context_switch: str) -> None:
    x, y = asarray(np.arange(300, dtype="f4")), asarray(np.zeros(300, "f4"))
    with simulator.options(mode=mode, context_switch=context_switch):
        run("scale", x, y, params(290, 3.0), grid=(3,), block=(128,))
    np.testing.assert_array_equal(asnumpy(y), np.where(np.arange(300) < 290, np.arange(300) * 3.0, 0))


def test_scalars_of_every_kind() -> None:
    y = asarray(np.zeros(10))
    numbers = (np.int32(-5), np.uint32(2**32 - 1), np.float32(0.5), np.float64(0.1), np.bool_(True), np.int8(-3))
    run("scalars", y, *numbers, np.int64(2**40), np.float16(1.0), np.complex64(1 + 2j))
    assert asnumpy(y).tolist() == [-5, 2**32 - 1, 0.5, 0.1, 1, -3, 2**40, 0x3C00, 1, 2]


GOOD = (np.int32(1), np.uint32(1), np.float32(1), np.float64(1), np.bool_(1), np.int8(1), np.int64(1), np.float16(1))


@pytest.mark.parametrize(
    ("index", "wrong"),
    [
        *((0, wrong) for wrong in (np.int64(1), np.float32(1), 1, 1.0, None)),
        *((2, np.float64(1)), (2, np.int32(1)), (3, np.float32(1)), (4, np.uint8(1))),
        *((7, np.float32(1)), (7, np.array(1.0))),
    ],
)
def test_a_scalar_of_the_wrong_kind(index: int, wrong: Any) -> None:
    args = [*GOOD, np.complex64(1)]
    args[index] = wrong
    with pytest.raises(ArgumentMismatch, match=f"argument {index + 1} is "):
        run("scalars", asarray(np.zeros(10)), *args)


def test_wrong_arguments() -> None:
    x, y = asarray(np.zeros(4, "f4")), asarray(np.zeros(4, "f4"))
    with pytest.raises(ArgumentMismatch, match="takes 3 arguments, got 2"):
        run("scale", x, y)
    with pytest.raises(ArgumentMismatch, match=r"argument 1 is a NumPy array .* expected an array of the simulator"):
        run("scale", x, np.zeros(4, "f4"), params(4, 1))
    with pytest.raises(ArgumentMismatch, match="argument 2 is an array of float32"):
        run("scale", x, y, x)
    with pytest.raises(TypeError, match="expected a struct of 8 bytes"):
        run("scale", x, y, np.zeros((), "V12"))
    with pytest.raises(SimulatorError, match="has no kernel 'scalar', it has scale, scalars, empty"):
        MODULE.function("scalar")


@pytest.mark.parametrize(
    ("grid", "block"),
    [
        *(((1,), block) for block in ((1025,), (32, 33), (1, 1, 65), (0,))),
        *((grid, (1,)) for grid in ((0,), (1, 65536), (1, 1, 65536), (2**31,), (1, 1, 1, 1), (-1,))),
    ],
)
def test_launches_that_a_device_refuses(grid: Any, block: Any) -> None:
    with pytest.raises(LaunchError):
        run("empty", grid=grid, block=block)


def test_launches_that_a_device_takes() -> None:
    run("empty", grid=(3, 2, 2), block=(4, 4, 64))
    run("empty", grid=(1, 65535), block=(1,))
    with pytest.raises(LaunchError, match="__launch_bounds__ allows 128"):
        run("scale", None, None, params(0, 1), block=(129,))
    with pytest.raises(ValueError, match="the limit is 1024"):
        run("empty", block=(512, 4))


def test_grids_and_blocks_of_three_axes() -> None:
    y = asarray(np.zeros(2 * 3 * 2 * 4 * 3 * 2, "i4"))
    run("places", y, grid=(2, 3, 2), block=(4, 3, 2))
    bz, by, bx, tz, ty, tx = np.indices((2, 3, 2, 2, 3, 4))
    expected = 100 * (bx + 10 * by) + tx + 10 * ty + 1000000 * (bz + tz)
    np.testing.assert_array_equal(asnumpy(y), expected.ravel())


def test_shared_memory_has_limits() -> None:
    function = MODULE.function("much_shared")
    y = asarray(np.zeros(2, "f4"))
    function((1,), (1,), (y, np.int32(0)), 48 << 10)
    with pytest.raises(LaunchError, match="the limit is 49152"):
        function((1,), (1,), (y, np.int32(0)), (48 << 10) + 1)
    function.max_dynamic_shared_size_bytes = 227 << 10
    function((1,), (1,), (y, np.int32(0)), 227 << 10)
    with pytest.raises(LaunchError):
        function((1,), (1,), (y, np.int32(0)), (227 << 10) + 1)
    with pytest.raises(LaunchError):
        function.max_dynamic_shared_size_bytes = (227 << 10) + 1
    with pytest.raises(SharedMemoryError, match="static shared memory exceed the limit"):
        function((1,), (1,), (y, np.int32(1)), 0)


def test_dynamic_shared_memory_of_another_type() -> None:
    y = asarray(np.zeros(32, "f4"))
    run("two_dynamic", y, block=(32,), shared_mem=128)
    np.testing.assert_array_equal(asnumpy(y), np.arange(32)[::-1])


def test_after_an_error_all_goes_on() -> None:
    for _ in range(50):
        with pytest.raises(SimulatorError):
            launch("memory.cu", "uninitialised", (1,), (64,), np.zeros(64, "f4"), 1)
    launch("memory.cu", "uninitialised", (1,), (64,), np.zeros(64, "f4"), 0)


def test_a_small_launch_is_quick() -> None:
    empty = MODULE.function("empty")
    empty((1,), (1,), ())
    start = time.process_time()
    for _ in range(1000):
        empty((1,), (1,), ())
    assert (time.process_time() - start) / 1000 < 1e-3  # 15 us on a quiet machine


def test_settings() -> None:
    with simulator.options(mode="fast", order="reverse", seed=5) as outer:
        assert (outer.mode, outer.order, outer.seed, outer.yield_every) == ("fast", "reverse", 5, 0)
        with simulator.options(mode="check") as inner:
            assert (inner.mode, inner.order) == ("check", "reverse")
    for wrong in ({"mode": "slow"}, {"order": "up"}, {"seed": -1}, {"yield_every": -1}, {"context_switch": "x"}):
        with pytest.raises(ValueError, match=next(iter(wrong))), simulator.options(**wrong):  # type: ignore[arg-type]
            pass


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"MODE": "fast", "ORDER": "random", "SEED": "12"}, "fast random 12"),
        ({}, "check forward 1"),
        ({"SEED": "x"}, "GPUCNN_SIMULATOR_SEED must be an integer, got 'x'"),
        ({"MODE": "x"}, "mode must be one of 'check', 'fast', 'coverage', 'profile', got 'x'"),
    ],
)
def test_settings_of_the_environment(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MODE", "ORDER", "SEED"):
        monkeypatch.delenv(f"GPUCNN_SIMULATOR_{name}", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(f"GPUCNN_SIMULATOR_{name}", value)
    code = "from gpucnn.simulator.settings import current; s = current(); print(s.mode, s.order, s.seed)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert expected in result.stdout + result.stderr


def test_kernels_of_two_modules_share_nothing() -> None:
    other = Module(SOURCE.replace("* p.factor", "+ p.factor"), "other")
    x, y = asarray(np.ones(4, "f4")), asarray(np.zeros(4, "f4"))
    other.function("scale")((1,), (4,), (x, y, params(4, 3)))
    assert asnumpy(y).tolist() == [4] * 4
    run("scale", x, y, params(4, 3), block=(4,))
    assert asnumpy(y).tolist() == [3] * 4
    assert module("memory.cu") is module("memory.cu")
