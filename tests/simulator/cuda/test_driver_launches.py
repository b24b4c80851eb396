"""Launches: their limits, their arguments, and what is said of a kernel that goes wrong."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from driving import CudaError, Driver

KERNELS = """
extern "C" {
__global__ void fill(float* y, float value) { y[threadIdx.x + blockIdx.x * blockDim.x] = value; }
__global__ void add(float* y, const float* x) { y[threadIdx.x] += x[threadIdx.x]; }
__global__ void __launch_bounds__(64) bounded(float* y) { y[0] = 1; }
__global__ void shared(float* y) {
  extern __shared__ float all[];
  all[threadIdx.x] = threadIdx.x;
  y[threadIdx.x] = all[threadIdx.x];
}
__global__ void nothing() {}
struct View { float* data; long long size; };
__global__ void scale_view(View view, float factor) { view.data[threadIdx.x] *= factor; }
__global__ void scale_table(float** table, float factor) { table[blockIdx.x][threadIdx.x] *= factor; }
__global__ void mixed(char a, double b, short c, View d, float* y) { *y = a + b + c + d.size; }
__global__ void atomic(float* y) { atomicAdd(y, 1.0f); }
__global__ void race(float* y) { y[0] = threadIdx.x; }
__global__ void misaligned(char* y) { *(float*)(y + 1) = 1; }
__global__ void checked(int* y) { assert(*y == 3); }
__global__ void trapped() { __trap(); }
__global__ void early(int* y, int n) {
  __shared__ int all[32];
  if (threadIdx.x >= n) return;
  all[threadIdx.x] = threadIdx.x;
  __syncthreads();
  y[threadIdx.x] = all[n - 1 - threadIdx.x];
}
struct Padded { double value; int index; };
__global__ void padded(Padded* y, const Padded* x) {
  __shared__ Padded all[32];
  all[threadIdx.x].value = 2;
  all[threadIdx.x].index = threadIdx.x;
  y[threadIdx.x] = x ? x[threadIdx.x] : all[threadIdx.x];
}
__global__ void add_by_cas(int* y) {
  int old = *y, assumed;
  do {
    assumed = old;
    old = atomicCAS(y, assumed, assumed + 1);
  } while (assumed != old);
}
__global__ void far_off(float* y, long long index) { y[index] = 1; }
}
template <class T> __global__ void typed(T* y) { y[threadIdx.x] = 1; }
template __global__ void typed<float>(float*);
"""
N = 32
INVALID_VALUE, OUT_OF_RESOURCES = "INVALID_VALUE", "LAUNCH_OUT_OF_RESOURCES"


class View(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_longlong))


class Kernels:
    """The kernels above, compiled in one mode."""

    def __init__(self, driver: Driver, mode: str = "check") -> None:
        self.driver = driver
        self._module = driver.module(KERNELS, mode)

    def launch(self, name: str, *values: Any, **shape: Any) -> None:
        self.driver.launch(self.driver.function(self._module, name), *values, **shape)

    def failure(self, name: str, *values: Any, **shape: Any) -> tuple[str, str]:
        """The name and the text of the error of a launch that must fail."""
        with pytest.raises(CudaError) as caught:
            self.launch(name, *values, **shape)
        return caught.value.name, caught.value.detail

    def line(self, text: str) -> str:
        """The place of a kernel's text in messages."""
        (number,) = (i for i, line in enumerate(KERNELS.splitlines(), 1) if text in line)
        return f"kernel.cu:{number}"


@pytest.fixture
def kernels(driver: Driver) -> Kernels:
    return Kernels(driver)


def ones(driver: Driver, count: int = N) -> ctypes.c_void_p:
    return driver.upload(np.ones(count, np.float32))


# ---- Limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "name", "text"),
    [
        (
            {"grid": (0, 1, 1)},
            INVALID_VALUE,
            "the grid must be from (1, 1, 1) to (2147483647, 65535, 65535), got (0, 1, 1)",
        ),
        (
            {"grid": (1, 65536, 1)},
            INVALID_VALUE,
            "the grid must be from (1, 1, 1) to (2147483647, 65535, 65535), got (1, 65536, 1)",
        ),
        ({"block": (1, 1, 65)}, INVALID_VALUE, "the block must be from (1, 1, 1) to (1024, 1024, 64), got (1, 1, 65)"),
        ({"block": (32, 33, 1)}, INVALID_VALUE, "1056 threads in a block of (32, 33, 1), the limit is 1024"),
        ({"block": (65, 1, 1)}, OUT_OF_RESOURCES, "65 threads in a block of (65, 1, 1), __launch_bounds__ allows 64"),
        (
            {"shared": 49153},
            INVALID_VALUE,
            "49153 bytes of dynamic shared memory, the limit is 49152; its attribute MAX_DYNAMIC_SHARED_SIZE_BYTES "
            "can be set to 232448 at most",
        ),
    ],
    ids=["no-block", "grid", "block", "threads", "launch-bounds", "shared"],
)
def test_limits(driver: Driver, kernels: Kernels, shape: dict[str, Any], name: str, text: str) -> None:
    assert kernels.failure("bounded", ones(driver), **shape) == (name, f"kernel 'bounded': {text}")


def test_dynamic_shared_memory(driver: Driver, kernels: Kernels) -> None:
    y = ones(driver)
    kernels.launch("shared", y, shared=4 * N)
    np.testing.assert_array_equal(driver.download(y, N), np.arange(N))
    name, text = kernels.failure("shared", y, shared=4 * N - 4)
    assert name == "ILLEGAL_ADDRESS"
    assert "dynamic shared memory" in text


def test_a_kernel_belongs_to_its_device(driver: Driver, kernels: Kernels) -> None:
    y, stream = ones(driver), driver.stream()
    other = driver.handle("cuDevicePrimaryCtxRetain", 1)
    driver.call("cuCtxPushCurrent_v2", other)
    assert kernels.failure("fill", y, ctypes.c_float(1)) == (
        "INVALID_HANDLE",
        "kernel 'fill' was loaded on device 0, but the current device is 1",
    )
    elsewhere = driver.stream()
    driver.call("cuCtxSetCurrent", driver.context)
    assert kernels.failure("fill", y, ctypes.c_float(1), stream=elsewhere) == (
        "INVALID_HANDLE",
        "kernel 'fill' of device 0 is launched in a stream of device 1",
    )
    kernels.launch("fill", y, ctypes.c_float(1), stream=stream)


def test_memory_of_another_device_needs_peer_access(driver: Driver, kernels: Kernels) -> None:
    other = driver.handle("cuDevicePrimaryCtxRetain", 1)
    driver.call("cuCtxPushCurrent_v2", other)
    y = ones(driver)
    driver.call("cuCtxPopCurrent_v2", None)
    name, text = kernels.failure("fill", y, ctypes.c_float(1))
    assert name == "ILLEGAL_ADDRESS"
    assert "in memory of device 1, to which device 0 has no peer access [fill, block (0, 0, 0)" in text
    driver.call("cuCtxEnablePeerAccess", other, 0)
    kernels.launch("fill", y, ctypes.c_float(2))
    driver.call("cuCtxSynchronize")
    driver.call("cuCtxDisablePeerAccess", other)


def test_cooperative_launches_of_several_blocks_are_not_simulated(driver: Driver) -> None:
    function = driver.kernel(KERNELS, "nothing")
    driver.call("cuLaunchCooperativeKernel", function, 1, 1, 1, 32, 1, 1, 0, None, None)
    with pytest.raises(CudaError) as caught:
        driver.call("cuLaunchCooperativeKernel", function, 2, 1, 1, 32, 1, 1, 0, None, None)
    assert caught.value.name == "NOT_SUPPORTED"
    assert caught.value.detail == (
        "a cooperative launch of several blocks is not simulated: blocks run one after another, so that the grid "
        "cannot be synchronised"
    )


# ---- Arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fast", "check"])
def test_arguments_of_all_kinds(driver: Driver, mode: str) -> None:
    y = driver.alloc(4)
    values = (ctypes.c_char(3), ctypes.c_double(0.5), ctypes.c_short(-7), View(None, 1000), y)
    Kernels(driver, mode).launch("mixed", *values, block=(1, 1, 1))
    assert driver.download(y, 1)[0] == 996.5


class Buffer(ctypes.Structure):
    """The arguments of `mixed`, as a compiler lays them out."""

    _fields_ = (
        ("a", ctypes.c_char),
        ("b", ctypes.c_double),
        ("c", ctypes.c_short),
        ("d", View),
        ("y", ctypes.c_void_p),
    )


def launch_with_buffer(driver: Driver, buffer: Buffer, nbytes: int) -> None:
    end, pointer_follows, size_follows = (ctypes.c_void_p(number) for number in (0, 1, 2))
    size = ctypes.c_size_t(nbytes)
    parts = (pointer_follows, ctypes.addressof(buffer), size_follows, ctypes.addressof(size), end)
    extra = (ctypes.c_void_p * 5)(*(part.value if isinstance(part, ctypes.c_void_p) else part for part in parts))
    function = driver.kernel(KERNELS, "mixed")
    driver.call("cuLaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, None, None, extra)


def test_arguments_in_one_buffer(driver: Driver) -> None:
    y = driver.alloc(4)
    buffer = Buffer(b"\x03", 0.5, -7, View(None, 1000), y.value)
    launch_with_buffer(driver, buffer, ctypes.sizeof(buffer))
    assert driver.download(y, 1)[0] == 996.5
    with pytest.raises(CudaError) as caught:
        launch_with_buffer(driver, buffer, 40)
    assert (caught.value.name, caught.value.detail) == (
        INVALID_VALUE,
        "kernel 'mixed' takes 48 bytes of arguments, the buffer has 40",
    )


def test_arguments_must_be_given(driver: Driver) -> None:
    function = driver.kernel(KERNELS, "fill")
    with pytest.raises(CudaError) as caught:
        driver.call("cuLaunchKernel", function, 1, 1, 1, 32, 1, 1, 0, None, None, None)
    assert (caught.value.name, caught.value.detail) == (
        INVALID_VALUE,
        "kernel 'fill' takes 2 arguments, none are given",
    )


def test_arguments_are_copied_at_the_launch(late_driver: Driver, kernels: Kernels) -> None:
    y, value, stream = ones(late_driver), ctypes.c_float(3), late_driver.stream()
    kernels.launch("fill", y, value, stream=stream)
    value.value = 5
    late_driver.call("cuStreamSynchronize", stream)
    np.testing.assert_array_equal(late_driver.download(y, N), np.full(N, 3))


# ---- Out of bounds ---------------------------------------------------------------------------------------------------


def test_past_the_end_of_an_argument(driver: Driver, kernels: Kernels) -> None:
    y = ones(driver, 100)
    assert kernels.failure("fill", y, ctypes.c_float(1), grid=(4, 1, 1)) == (
        "ILLEGAL_ADDRESS",
        f"{kernels.line('void fill(')}: write of 4 bytes at byte 400 of argument 0, which has 400 bytes: right past "
        "its end [fill, block (3, 0, 0), thread (4, 0, 0)]",
    )
    kernels.launch("fill", y, ctypes.c_float(1), grid=(3, 1, 1))  # the next call works


@pytest.mark.parametrize(
    ("index", "text"),
    [
        (7, "at byte 28 of argument 0, which has 30 bytes: the last 2 of them past its end"),
        (9, "at byte 36 of argument 0, which has 30 bytes: 6 bytes past its end"),
        (-2, "at byte -8 of argument 0, which has 30 bytes: 8 bytes before its start"),
        (1 << 20, "at byte 4194304 of argument 0, which has 30 bytes: 4194274 bytes past its end"),
    ],
    ids=["across", "past", "before", "far"],
)
def test_how_far_outside(driver: Driver, kernels: Kernels, index: int, text: str) -> None:
    y = driver.alloc(30)
    name, detail = kernels.failure("far_off", y, ctypes.c_longlong(index), block=(1, 1, 1))
    assert name == "ILLEGAL_ADDRESS"
    assert detail == (
        f"{kernels.line('void far_off(')}: write of 4 bytes {text} [far_off, block (0, 0, 0), thread (0, 0, 0)]"
    )


def test_an_argument_that_points_into_an_allocation(driver: Driver, kernels: Kernels) -> None:
    y = ctypes.c_void_p((ones(driver).value or 0) + 64)
    assert kernels.failure("fill", y, ctypes.c_float(1)) == (
        "ILLEGAL_ADDRESS",
        f"{kernels.line('void fill(')}: write of 4 bytes at byte 128 of the allocation that argument 0 points into, "
        "which has 128 bytes: right past its end [fill, block (0, 0, 0), thread (16, 0, 0)]",
    )


def test_a_null_pointer(kernels: Kernels) -> None:
    assert kernels.failure("fill", ctypes.c_void_p(), ctypes.c_float(1)) == (
        "ILLEGAL_ADDRESS",
        f"{kernels.line('void fill(')}: write of 4 bytes through a null pointer "
        "[fill, block (0, 0, 0), thread (0, 0, 0)]",
    )


def test_host_memory(driver: Driver, kernels: Kernels) -> None:
    host = np.ones(N, np.float32)
    name, text = kernels.failure("fill", ctypes.c_void_p(host.ctypes.data), ctypes.c_float(1))
    assert name == "ILLEGAL_ADDRESS"
    assert text.startswith(f"{kernels.line('void fill(')}: write of 4 bytes at ")
    np.testing.assert_array_equal(host, np.ones(N))


def test_a_pointer_in_a_struct(driver: Driver, kernels: Kernels) -> None:
    y = ones(driver)
    kernels.launch("scale_view", View(y.value, N), ctypes.c_float(3))
    np.testing.assert_array_equal(driver.download(y, N), np.full(N, 3))
    short = ones(driver, 8)
    assert kernels.failure("scale_view", View(short.value, 8), ctypes.c_float(3)) == (
        "ILLEGAL_ADDRESS",
        f"{kernels.line('void scale_view(')}: read of 4 bytes at byte 32 of argument 0, which has 32 bytes: right past "
        "its end [scale_view, block (0, 0, 0), thread (8, 0, 0)]",
    )


def test_pointers_in_a_table(driver: Driver, kernels: Kernels) -> None:
    arrays = [ones(driver), ones(driver), ones(driver, 8)]
    table = driver.upload(np.array([array.value for array in arrays], np.uint64))
    kernels.launch("scale_table", table, ctypes.c_float(3), grid=(2, 1, 1))
    for array in arrays[:2]:
        np.testing.assert_array_equal(driver.download(array, N), np.full(N, 3))
    serial = driver.number("cuPointerGetAttribute", 7, arrays[2], kind=ctypes.c_uint64)
    assert kernels.failure("scale_table", table, ctypes.c_float(3), grid=(3, 1, 1)) == (
        "ILLEGAL_ADDRESS",
        f"{kernels.line('void scale_table(')}: read of 4 bytes at byte 32 of allocation {serial}, which has 32 bytes: "
        "right past its end [scale_table, block (2, 0, 0), thread (8, 0, 0)]",
    )


def test_an_overrun_of_a_kernel_without_checks_hits_the_guard_bytes(driver: Driver) -> None:
    y = ones(driver, 100)
    name, text = Kernels(driver, "fast").failure("fill", y, ctypes.c_float(1), grid=(4, 1, 1))
    assert name == "ILLEGAL_ADDRESS"
    assert "kernel 'fill'" in text


# ---- Freed and uninitialised memory ----------------------------------------------------------------------------------


def test_freed_memory(driver: Driver, kernels: Kernels) -> None:
    y = ones(driver)
    serial = driver.number("cuPointerGetAttribute", 7, y, kind=ctypes.c_uint64)
    driver.free(y)
    assert kernels.failure("fill", y, ctypes.c_float(1)) == (
        "ILLEGAL_ADDRESS",
        f"{kernels.line('void fill(')}: write of 4 bytes at byte 0 of allocation {serial}, in memory that was freed "
        "[fill, block (0, 0, 0), thread (0, 0, 0)]",
    )


def test_uninitialised_memory(driver: Driver, kernels: Kernels) -> None:
    x, y = driver.alloc(4 * N), ones(driver)
    driver.call("cuMemsetD8_v2", x, ctypes.c_ubyte(0), ctypes.c_size_t(64))
    assert kernels.failure("add", y, x) == (
        "LAUNCH_FAILED",
        f"{kernels.line('void add(')}: read of 4 bytes at byte 64 of argument 1, which nothing has written since it "
        "was allocated [add, block (0, 0, 0), thread (16, 0, 0)]",
    )
    kernels.launch("fill", x, ctypes.c_float(2))
    kernels.launch("add", y, x)


def test_an_atomic_operation_reads(driver: Driver, kernels: Kernels) -> None:
    assert kernels.failure("atomic", driver.alloc(4)) == (
        "LAUNCH_FAILED",
        f"{kernels.line('void atomic(')}: atomic operation of 4 bytes at byte 0 of argument 0, which nothing has "
        "written since it was allocated [atomic, block (0, 0, 0), thread (0, 0, 0)]",
    )


# ---- Other failures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "name", "text"),
    [
        (
            "race",
            "LAUNCH_FAILED",
            "write of 4 bytes at byte 0 of argument 0 conflicts with the write by thread (0, 0, 0): nothing "
            "orders the two",
        ),
        ("misaligned", "MISALIGNED_ADDRESS", "access of type 'float' at an address that is no multiple of 4"),
        ("checked", "ASSERT", "assert(*y == 3) failed"),
        ("trapped", "LAUNCH_FAILED", "__trap() was executed"),
    ],
)
def test_errors_of_kernels(driver: Driver, kernels: Kernels, kernel: str, name: str, text: str) -> None:
    thread = "(1, 0, 0)" if kernel == "race" else "(0, 0, 0)"
    values = () if kernel == "trapped" else (ones(driver),)
    assert kernels.failure(kernel, *values) == (
        name,
        f"{kernels.line(f'void {kernel}(')}: {text} [{kernel}, block (0, 0, 0), thread {thread}]",
    )


def test_kernels_of_templates_are_named_as_in_the_source(driver: Driver, kernels: Kernels) -> None:
    name, text = kernels.failure("_Z5typedIfEvPT_", ones(driver, 8))
    assert name == "ILLEGAL_ADDRESS"
    assert text.endswith("[typed<float>, block (0, 0, 0), thread (8, 0, 0)]")


def test_threads_that_have_returned_do_not_count_at_barriers(driver: Driver, kernels: Kernels) -> None:
    y = driver.alloc(4 * 20)
    kernels.launch("early", y, ctypes.c_int(20))
    np.testing.assert_array_equal(driver.download(y, 20, np.int32), np.arange(19, -1, -1))


def test_padding_of_structs_need_not_be_written(driver: Driver, kernels: Kernels) -> None:
    x, y = driver.alloc(16 * N), driver.alloc(16 * N)
    kernels.launch("padded", x, ctypes.c_void_p())
    kernels.launch("padded", y, x)
    structs = driver.download(y, N, np.dtype([("value", "f8"), ("index", "i4"), ("padding", "V4")]))
    np.testing.assert_array_equal(structs["index"], np.arange(N))
    name, text = kernels.failure("padded", y, driver.alloc(16 * N))
    assert name == "LAUNCH_FAILED"
    assert "which nothing has written since it was allocated" in text


def test_a_loop_of_compare_and_swap(driver: Driver, kernels: Kernels) -> None:
    y = driver.upload(np.zeros(1, np.int32))
    kernels.launch("add_by_cas", y, grid=(3, 1, 1))
    assert driver.download(y, 1, np.int32)[0] == 3 * N
