// Atomic operations. Threads take turns here, so a plain read-modify-write is atomic; the check is what matters.
#pragma once
#include <type_traits>

namespace gpucnn {

// Atomic additions of integers wrap around, as the hardware's do.
template <class T>
constexpr T wrapping_add(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    using Unsigned = std::make_unsigned_t<T>;
    return static_cast<T>(static_cast<Unsigned>(a) + static_cast<Unsigned>(b));
  } else {
    return a + b;
  }
}

template <class T>
constexpr T wrapping_negative(T a) {
  return static_cast<T>(0 - static_cast<std::make_unsigned_t<T>>(a));
}

}  // namespace gpucnn

#define GPUCNN_ATOMIC(NAME, NEW_VALUE)                                                 \
  template <class T, class U>                                                          \
  GPUCNN_UNCHECKED T NAME(T* address, U operand, gpucnn::Site site = gpucnn::Site::here()) { \
    gpucnn::atomic_access(address, sizeof(T), site);                                   \
    const T old = *address;                                                            \
    const T value = static_cast<T>(operand);                                           \
    *address = NEW_VALUE;                                                              \
    return old;                                                                        \
  }
GPUCNN_ATOMIC(atomicAdd, gpucnn::wrapping_add(old, value))
GPUCNN_ATOMIC(atomicSub, gpucnn::wrapping_add(old, gpucnn::wrapping_negative(value)))
GPUCNN_ATOMIC(atomicMax, old > value ? old : value)
GPUCNN_ATOMIC(atomicMin, old < value ? old : value)
GPUCNN_ATOMIC(atomicExch, value)
GPUCNN_ATOMIC(atomicOr, old | value)
GPUCNN_ATOMIC(atomicAnd, old & value)
GPUCNN_ATOMIC(atomicXor, old ^ value)
GPUCNN_ATOMIC(atomicInc, old >= value ? T(0) : T(old + 1))
GPUCNN_ATOMIC(atomicDec, old == 0 || old > value ? value : T(old - 1))
#undef GPUCNN_ATOMIC

template <class T>
GPUCNN_UNCHECKED T atomicCAS(T* address, T expected, T desired, gpucnn::Site site = gpucnn::Site::here()) {
  gpucnn::atomic_access(address, sizeof(T), site);
  const T old = *address;
  if (old == expected) *address = desired;
  return old;
}
