// CUDA's arithmetic: C's mathematical functions with overloads for float, and what only CUDA has. The approximate
// functions are exact here. The declarations are spelled out, since <math.h> of C++ takes longer to compile than most
// kernels do.
#pragma once
#include <type_traits>

#define GPUCNN_UNARY(NAME)                   \
  extern "C" double NAME(double) noexcept;   \
  extern "C" float NAME##f(float) noexcept;  \
  inline float NAME(float x) { return NAME##f(x); }
#define GPUCNN_BINARY(NAME)                         \
  extern "C" double NAME(double, double) noexcept;  \
  extern "C" float NAME##f(float, float) noexcept;  \
  inline float NAME(float x, float y) { return NAME##f(x, y); }

GPUCNN_UNARY(acos)
GPUCNN_UNARY(acosh)
GPUCNN_UNARY(asin)
GPUCNN_UNARY(asinh)
GPUCNN_UNARY(atan)
GPUCNN_UNARY(atanh)
GPUCNN_UNARY(cbrt)
GPUCNN_UNARY(ceil)
GPUCNN_UNARY(cos)
GPUCNN_UNARY(cosh)
GPUCNN_UNARY(erf)
GPUCNN_UNARY(erfc)
GPUCNN_UNARY(exp)
GPUCNN_UNARY(exp2)
GPUCNN_UNARY(expm1)
GPUCNN_UNARY(fabs)
GPUCNN_UNARY(floor)
GPUCNN_UNARY(lgamma)
GPUCNN_UNARY(log)
GPUCNN_UNARY(log10)
GPUCNN_UNARY(log1p)
GPUCNN_UNARY(log2)
GPUCNN_UNARY(nearbyint)
GPUCNN_UNARY(rint)
GPUCNN_UNARY(round)
GPUCNN_UNARY(sin)
GPUCNN_UNARY(sinh)
GPUCNN_UNARY(sqrt)
GPUCNN_UNARY(tan)
GPUCNN_UNARY(tanh)
GPUCNN_UNARY(tgamma)
GPUCNN_UNARY(trunc)
GPUCNN_BINARY(atan2)
GPUCNN_BINARY(copysign)
GPUCNN_BINARY(fdim)
GPUCNN_BINARY(fmax)
GPUCNN_BINARY(fmin)
GPUCNN_BINARY(fmod)
GPUCNN_BINARY(hypot)
GPUCNN_BINARY(nextafter)
GPUCNN_BINARY(pow)
GPUCNN_BINARY(remainder)
#undef GPUCNN_UNARY
#undef GPUCNN_BINARY

extern "C" double fma(double, double, double) noexcept;
extern "C" float fmaf(float, float, float) noexcept;
inline float fma(float x, float y, float z) { return fmaf(x, y, z); }
inline float pow(float x, int y) { return powf(x, static_cast<float>(y)); }
inline double pow(double x, int y) { return pow(x, static_cast<double>(y)); }

extern "C" double ldexp(double, int) noexcept;
extern "C" float ldexpf(float, int) noexcept;
inline float ldexp(float x, int exponent) { return ldexpf(x, exponent); }

inline int abs(int x) { return x < 0 ? -x : x; }
inline long abs(long x) { return x < 0 ? -x : x; }
inline long long abs(long long x) { return x < 0 ? -x : x; }
inline float abs(float x) { return fabsf(x); }
inline double abs(double x) { return fabs(x); }

template <class T>
constexpr bool isnan(T x) { return __builtin_isnan(x); }
template <class T>
constexpr bool isinf(T x) { return __builtin_isinf(x); }
template <class T>
constexpr bool isfinite(T x) { return __builtin_isfinite(x); }
template <class T>
constexpr bool signbit(T x) { return __builtin_signbit(x) != 0; }

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
