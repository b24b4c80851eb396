"""Programs of other people, which do what the library's own kernels do not."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from driving import Driver

from gpucnn.simulator.cuda.compiler import compile_program


def kernel(driver: Driver, text: str, name: str) -> ctypes.c_void_p:
    """A kernel that NVRTC's compiler has compiled, with its headers."""
    program = compile_program(text, "program.cu", {}, ["-std=c++17"], [])
    assert program.log == ""
    return driver.function(driver.handle("cuModuleLoadData", program.image), name)


@pytest.mark.parametrize("mode", ["fast", "check"])
def test_an_empty_kernel_runs(driver: Driver, mode: str) -> None:
    module = driver.module('extern "C" __global__ void nothing(double) {}', mode)
    driver.launch(driver.function(module, "nothing"), ctypes.c_double(1))


BITS = r"""
#include <cuda/std/bit>
#include <cuda/std/cstdint>
namespace bits = cuda::std;
extern "C" __global__ void bits_of(unsigned long long* y) {
  const uint8_t b = 0x35;
  const uint32_t w = 0x01020304;
  const unsigned long long values[] = {
      bits::byteswap(b), bits::byteswap(uint16_t(0x0102)), bits::byteswap(w), bits::byteswap(0x0102030405060708ull),
      bits::bit_cast<uint32_t>(1.0f), (unsigned long long)bits::popcount(b), (unsigned long long)bits::countl_zero(b),
      (unsigned long long)bits::countr_zero(w), (unsigned long long)bits::countl_zero(uint16_t(0)),
      (unsigned long long)bits::countr_one(b), (unsigned long long)bits::bit_width(b), bits::bit_floor(b),
      bits::bit_ceil(b), bits::bit_ceil(uint8_t(64)), bits::rotl(b, 4), bits::rotr(b, 1), bits::rotl(b, -7),
      bits::has_single_bit(b), bits::has_single_bit(uint8_t(8))};
  for (int i = 0; i < 19; ++i) y[i] = values[i];
}
"""


def test_bits(driver: Driver) -> None:
    out = driver.alloc(19 * 8)
    driver.launch(kernel(driver, BITS, "bits_of"), out, block=(1, 1, 1))
    swapped = [0x35, 0x0201, 0x04030201, 0x0807060504030201]
    counts = [0x3F800000, 4, 2, 2, 16, 1, 6]
    rest = [0x20, 0x40, 0x40, 0x53, 0x9A, 0x6A, 0, 1]
    assert driver.download(out, 19, np.uint64).tolist() == swapped + counts + rest


VIEWS = r"""
#include <cuda/std/mdspan>
using Strided = cuda::std::mdspan<float, cuda::std::dextents<int, 2>, cuda::std::layout_stride>;
using Scalar = cuda::std::mdspan<float, cuda::std::extents<int>, cuda::std::layout_stride>;
static_assert(sizeof(Strided) == 24 && sizeof(Scalar) == 8);
static_assert(sizeof(cuda::std::mdspan<float, cuda::std::extents<int, 2, 3>>) == 8);

extern "C" __global__ void copy(Strided x, Scalar sum, float* y) {
  cuda::std::mdspan<float, cuda::std::extents<int, cuda::std::dynamic_extent, 3>> right(y, x.extent(0));
  cuda::std::mdspan<float, cuda::std::dextents<int, 2>, cuda::std::layout_left> left(y + 6, x.extent(0), x.extent(1));
  float total = 0;
  for (int i = 0; i < x.extent(0); ++i) {
    for (int j = 0; j < x.extent(1); ++j) {
      right(i, j) = left(i, j) = x(i, j);
      total += x(i, j);
    }
  }
  sum() = total + right.size() + left.stride(1) * 100;
}
"""


class Strided(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("sizes", ctypes.c_int * 2), ("strides", ctypes.c_int * 2))


def test_views_in_several_dimensions(driver: Driver) -> None:
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    part = x[::2, ::2]
    view = Strided(driver.upload(x), part.shape, (12, 2))
    total, out = driver.alloc(4), driver.alloc(48)
    driver.launch(kernel(driver, VIEWS, "copy"), view, total, out, block=(1, 1, 1))
    got = driver.download(out, 12)
    np.testing.assert_array_equal(got[:6], part.ravel())
    np.testing.assert_array_equal(got[6:], part.ravel("F"))
    assert driver.download(total, 1) == part.sum() + 6 + 200


COPY = r"""
#include <cuda/barrier>
#include <cooperative_groups.h>
#include <cooperative_groups/memcpy_async.h>
extern "C" __global__ void copy(const int* x, int* y) {
  __shared__ int tile[32];
  auto group = cooperative_groups::this_thread_block();
  cooperative_groups::memcpy_async(group, tile, x, cuda::aligned_size_t<16>(sizeof(tile)));
  cooperative_groups::wait(group);
  y[threadIdx.x] = tile[31 - threadIdx.x];
}
"""


def test_a_copy_of_an_aligned_size(driver: Driver) -> None:
    x = driver.upload(np.arange(32, dtype=np.int32))
    y = driver.alloc(32 * 4)
    driver.launch(kernel(driver, COPY, "copy"), x, y)
    assert driver.download(y, 32, np.int32).tolist() == list(range(31, -1, -1))


FLAGS = r"""
extern "C" __global__ void flags(long long* y) {
  atomicOr(&y[0], 1LL << (40 + threadIdx.x));
  atomicAnd(&y[1], ~(1LL << threadIdx.x));
  atomicXor(&y[2], -1LL);
}
"""


def test_atomic_operations_on_bits_of_signed_numbers(driver: Driver) -> None:
    y = driver.upload(np.array([1, -1, 5], dtype=np.int64))
    driver.launch(kernel(driver, FLAGS, "flags"), y, block=(3, 1, 1))
    assert driver.download(y, 3, np.int64).tolist() == [1 + (7 << 40), -8, -6]


PAIR = r"""
struct Pair {
  int first, second;
  __device__ Pair(const Pair& other) : first(other.first), second(other.second) {}
};
extern "C" __global__ void sum(Pair pair, int* y) { *y = pair.first + pair.second; }
"""


class Pair(ctypes.Structure):
    _fields_ = (("first", ctypes.c_int), ("second", ctypes.c_int))


def test_an_argument_with_a_copy_constructor(driver: Driver) -> None:
    y = driver.alloc(4)
    driver.launch(kernel(driver, PAIR, "sum"), Pair(3, 4), y, block=(1, 1, 1))
    assert driver.download(y, 1, np.int32).tolist() == [7]
