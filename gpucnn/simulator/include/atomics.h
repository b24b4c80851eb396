// Atomic operations, on the types that CUDA has them for. Threads take turns here, so a plain read-modify-write is
// atomic; the check is what matters.
#pragma once
#include <type_traits>

#include "float16.h"

namespace gpucnn {

// Atomic additions of integers wrap around, as the hardware's do.
template <class T>
T wrapping_add(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    using Unsigned = std::make_unsigned_t<T>;
    return static_cast<T>(static_cast<Unsigned>(a) + static_cast<Unsigned>(b));
  } else if constexpr (std::is_same_v<T, float2>) {
    return {a.x + b.x, a.y + b.y};
  } else if constexpr (std::is_same_v<T, float4>) {
    return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
  } else {
    return a + b;
  }
}

template <class T>
constexpr T wrapping_negative(T a) {
  return static_cast<T>(0 - static_cast<std::make_unsigned_t<T>>(a));
}

template <class T, class... Types>
using IfOneOf = std::enable_if_t<(std::is_same_v<T, Types> || ...), T>;

template <class T>
struct Plain {
  using Type = T;  // an argument that is converted, and does not choose T
};
template <class T>
using Converted = typename Plain<T>::Type;

}  // namespace gpucnn

// An operation for all threads of the device, and with the scopes of a block and of the system.
#define GPUCNN_ATOMIC_OF_SCOPE(NAME, NEW_VALUE, ...)                                                             \
  template <class T>                                                                                             \
  GPUCNN_UNCHECKED gpucnn::IfOneOf<T, __VA_ARGS__> NAME(T* address, gpucnn::Converted<T> value,                  \
                                                        gpucnn::Site site = gpucnn::Site::here()) {              \
    gpucnn::atomic_access(address, sizeof(T), site);                                                             \
    const T old = *address;                                                                                      \
    *address = NEW_VALUE;                                                                                        \
    return old;                                                                                                  \
  }
#define GPUCNN_ATOMIC(NAME, NEW_VALUE, ...)                      \
  GPUCNN_ATOMIC_OF_SCOPE(NAME, NEW_VALUE, __VA_ARGS__)           \
  GPUCNN_ATOMIC_OF_SCOPE(NAME##_block, NEW_VALUE, __VA_ARGS__)   \
  GPUCNN_ATOMIC_OF_SCOPE(NAME##_system, NEW_VALUE, __VA_ARGS__)
GPUCNN_ATOMIC(atomicAdd, gpucnn::wrapping_add(old, value), int, unsigned, unsigned long long, float, double, __half,
              __half2, __nv_bfloat16, __nv_bfloat162, float2, float4)
GPUCNN_ATOMIC(atomicSub, gpucnn::wrapping_add(old, gpucnn::wrapping_negative(value)), int, unsigned)
GPUCNN_ATOMIC(atomicMax, old > value ? old : value, int, unsigned, long long, unsigned long long)
GPUCNN_ATOMIC(atomicMin, old < value ? old : value, int, unsigned, long long, unsigned long long)
GPUCNN_ATOMIC(atomicExch, value, int, unsigned, unsigned long long, float)
GPUCNN_ATOMIC(atomicOr, old | value, int, unsigned, long long, unsigned long long)
GPUCNN_ATOMIC(atomicAnd, old & value, int, unsigned, long long, unsigned long long)
GPUCNN_ATOMIC(atomicXor, old ^ value, int, unsigned, long long, unsigned long long)
GPUCNN_ATOMIC(atomicInc, old >= value ? T(0) : T(old + 1), unsigned)
GPUCNN_ATOMIC(atomicDec, old == 0 || old > value ? value : T(old - 1), unsigned)
#undef GPUCNN_ATOMIC
#undef GPUCNN_ATOMIC_OF_SCOPE

#define GPUCNN_COMPARE_AND_SWAP(NAME)                                                                                \
  template <class T>                                                                                                 \
  GPUCNN_UNCHECKED gpucnn::IfOneOf<T, int, unsigned, unsigned long long, unsigned short> NAME(                       \
      T* address, gpucnn::Converted<T> expected, gpucnn::Converted<T> desired,                                       \
      gpucnn::Site site = gpucnn::Site::here()) {                                                                    \
    gpucnn::atomic_access(address, sizeof(T), site);                                                                 \
    const T old = *address;                                                                                          \
    if (old == expected) *address = desired;                                                                         \
    return old;                                                                                                      \
  }
GPUCNN_COMPARE_AND_SWAP(atomicCAS)
GPUCNN_COMPARE_AND_SWAP(atomicCAS_block)
GPUCNN_COMPARE_AND_SWAP(atomicCAS_system)
#undef GPUCNN_COMPARE_AND_SWAP
