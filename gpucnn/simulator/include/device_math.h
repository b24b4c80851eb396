// CUDA's arithmetic that C's <math.h> lacks. The approximate functions are exact here.
#pragma once
#include <type_traits>

template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return a != a ? T(b) : T(b) < T(a) ? T(b) : T(a);
  return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return a != a ? T(b) : T(a) < T(b) ? T(b) : T(a);
  return T(a) < T(b) ? T(b) : T(a);
}

template <class T>
__forceinline__ T __ldg(const T* pointer) { return *pointer; }
template <class T>
__forceinline__ T __ldcs(const T* pointer) { return *pointer; }
template <class T>
__forceinline__ T __ldcg(const T* pointer) { return *pointer; }
template <class T>
__forceinline__ void __stcs(T* pointer, T value) { *pointer = value; }

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __saturatef(float a) { return a > 1 ? 1.f : a >= 0 ? a : 0.f; }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t{a} * b) >> 32); }
inline int __mulhi(int a, int b) { return static_cast<int>((int64_t{a} * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}

namespace gpucnn {

template <class To, class From>
__forceinline__ To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits of another size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace gpucnn

inline float __int_as_float(int bits) { return gpucnn::same_bits<float>(bits); }
inline int __float_as_int(float value) { return gpucnn::same_bits<int>(value); }
inline float __uint_as_float(unsigned bits) { return gpucnn::same_bits<float>(bits); }
inline unsigned __float_as_uint(float value) { return gpucnn::same_bits<unsigned>(value); }
inline double __longlong_as_double(long long bits) { return gpucnn::same_bits<double>(bits); }
inline long long __double_as_longlong(double value) { return gpucnn::same_bits<long long>(value); }
inline int __float2int_rn(float value) { return static_cast<int>(rintf(value)); }
inline int __float2int_rd(float value) { return static_cast<int>(floorf(value)); }
inline int __float2int_rz(float value) { return static_cast<int>(value); }
