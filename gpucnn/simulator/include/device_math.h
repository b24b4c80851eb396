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
GPUCNN_UNARY(j0)
GPUCNN_UNARY(j1)
GPUCNN_UNARY(lgamma)
GPUCNN_UNARY(log)
GPUCNN_UNARY(log10)
GPUCNN_UNARY(log1p)
GPUCNN_UNARY(log2)
GPUCNN_UNARY(logb)
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
GPUCNN_UNARY(y0)
GPUCNN_UNARY(y1)
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

// Functions with other arguments: `T` stands for the number's type in the list of parameters.
#define GPUCNN_FUNCTION_OF(RESULT, NAME, PARAMETERS, ARGUMENTS)  \
  extern "C" RESULT(double) NAME PARAMETERS(double) noexcept;    \
  extern "C" RESULT(float) NAME##f PARAMETERS(float) noexcept;   \
  inline RESULT(float) NAME PARAMETERS(float) { return NAME##f ARGUMENTS; }
#define GPUCNN_SAME(T) T
#define GPUCNN_INT(T) int
#define GPUCNN_LONG(T) long
#define GPUCNN_LONG_LONG(T) long long
#define GPUCNN_X_INT(T) (T x, int n)
#define GPUCNN_X_LONG(T) (T x, long n)
#define GPUCNN_X_INT_POINTER(T) (T x, int* n)
#define GPUCNN_X_POINTER(T) (T x, T* y)
#define GPUCNN_X_Y_INT_POINTER(T) (T x, T y, int* n)
#define GPUCNN_N_X(T) (int n, T x)
#define GPUCNN_X(T) (T x)
GPUCNN_FUNCTION_OF(GPUCNN_SAME, ldexp, GPUCNN_X_INT, (x, n))
GPUCNN_FUNCTION_OF(GPUCNN_SAME, scalbn, GPUCNN_X_INT, (x, n))
GPUCNN_FUNCTION_OF(GPUCNN_SAME, scalbln, GPUCNN_X_LONG, (x, n))
GPUCNN_FUNCTION_OF(GPUCNN_SAME, frexp, GPUCNN_X_INT_POINTER, (x, n))
GPUCNN_FUNCTION_OF(GPUCNN_SAME, modf, GPUCNN_X_POINTER, (x, y))
GPUCNN_FUNCTION_OF(GPUCNN_SAME, remquo, GPUCNN_X_Y_INT_POINTER, (x, y, n))
GPUCNN_FUNCTION_OF(GPUCNN_SAME, jn, GPUCNN_N_X, (n, x))
GPUCNN_FUNCTION_OF(GPUCNN_SAME, yn, GPUCNN_N_X, (n, x))
GPUCNN_FUNCTION_OF(GPUCNN_INT, ilogb, GPUCNN_X, (x))
GPUCNN_FUNCTION_OF(GPUCNN_LONG, lrint, GPUCNN_X, (x))
GPUCNN_FUNCTION_OF(GPUCNN_LONG, lround, GPUCNN_X, (x))
GPUCNN_FUNCTION_OF(GPUCNN_LONG_LONG, llrint, GPUCNN_X, (x))
GPUCNN_FUNCTION_OF(GPUCNN_LONG_LONG, llround, GPUCNN_X, (x))
#undef GPUCNN_FUNCTION_OF
#undef GPUCNN_SAME
#undef GPUCNN_INT
#undef GPUCNN_LONG
#undef GPUCNN_LONG_LONG
#undef GPUCNN_X_INT
#undef GPUCNN_X_LONG
#undef GPUCNN_X_INT_POINTER
#undef GPUCNN_X_POINTER
#undef GPUCNN_X_Y_INT_POINTER
#undef GPUCNN_N_X
#undef GPUCNN_X
extern "C" double nan(const char*) noexcept;
extern "C" float nanf(const char*) noexcept;

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

// Of mixed integers CUDA takes the unsigned type, as C++ does.
inline int imin(int a, int b) { return a < b ? a : b; }
inline int imax(int a, int b) { return a < b ? b : a; }
inline unsigned umin(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned umax(unsigned a, unsigned b) { return a < b ? b : a; }
inline long long llmin(long long a, long long b) { return a < b ? a : b; }
inline long long llmax(long long a, long long b) { return a < b ? b : a; }
inline unsigned long long ullmin(unsigned long long a, unsigned long long b) { return a < b ? a : b; }
inline unsigned long long ullmax(unsigned long long a, unsigned long long b) { return a < b ? b : a; }
inline long labs(long x) { return x < 0 ? -x : x; }
inline long long llabs(long long x) { return x < 0 ? -x : x; }

// Loads and stores with a hint for the caches.
#define GPUCNN_LOAD(NAME) \
  template <class T>      \
  __forceinline__ T NAME(const T* pointer) { return *pointer; }
#define GPUCNN_STORE(NAME) \
  template <class T>       \
  __forceinline__ void NAME(T* pointer, T value) { *pointer = value; }
GPUCNN_LOAD(__ldg)
GPUCNN_LOAD(__ldcs)
GPUCNN_LOAD(__ldcg)
GPUCNN_LOAD(__ldca)
GPUCNN_LOAD(__ldlu)
GPUCNN_LOAD(__ldcv)
GPUCNN_STORE(__stcs)
GPUCNN_STORE(__stcg)
GPUCNN_STORE(__stwb)
GPUCNN_STORE(__stwt)
#undef GPUCNN_LOAD
#undef GPUCNN_STORE

#include "special_functions.h"
#include "intrinsics.h"
