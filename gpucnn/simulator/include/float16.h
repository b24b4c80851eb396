// CUDA's 16-bit floating-point types: __half, __nv_bfloat16, their pairs, arithmetic and intrinsics. The names that
// need no inclusion of a header begin with underscores; cuda_fp16.h and cuda_bf16.h add the others.
//
// Each operation is rounded once, to nearest even.
#pragma once
#include <type_traits>

#include "device_math.h"
#include "half_bits.h"

struct __half_raw {
  unsigned short x;
};
struct __nv_bfloat16_raw {
  unsigned short x;
};

namespace gpucnn {

// ---- Formats and rounding ------------------------------------------------------------------------------------------

struct HalfFormat {
  using Raw = __half_raw;
  static float widen(uint16_t bits) { return half_to_float(bits); }
  static uint16_t narrow(float value) { return float_to_half(value); }
  static constexpr uint16_t kInfinity = 0x7c00;
};

struct BfloatFormat {
  using Raw = __nv_bfloat16_raw;
  static float widen(uint16_t bits) { return bfloat_to_float(bits); }
  static uint16_t narrow(float value) { return float_to_bfloat(value); }
  static constexpr uint16_t kInfinity = 0x7f80;
};

// Rounding to odd keeps the result's last bit set where bits were lost. A result with two more bits than a narrower
// format rounds to that as the exact value does, so a chain of conversions through it rounds once.
inline double odd_double(double nearest, double lost) {
  if (lost == 0 || __builtin_isnan(lost) || __builtin_isinf(nearest)) return nearest;
  uint64_t bits;
  __builtin_memcpy(&bits, &nearest, sizeof bits);
  if (bits & 1) return nearest;
  const bool is_beyond = (lost < 0) == (nearest > 0);  // the exact value is closer to zero
  bits = is_beyond ? bits - 1 : bits + 1;
  __builtin_memcpy(&nearest, &bits, sizeof bits);
  return nearest;
}

inline float odd_float(double value) {
  const float nearest = static_cast<float>(value);
  if (value != value || static_cast<double>(nearest) == value) return nearest;
  uint32_t bits = float_to_bits(nearest);
  if (bits & 1) return nearest;
  const bool is_beyond = __builtin_fabs(static_cast<double>(nearest)) > __builtin_fabs(value);
  return bits_to_float(is_beyond ? bits - 1 : bits + 1);
}

// a + b rounded to odd: the part that is lost is known exactly.
inline double odd_sum(double a, double b) {
  const double sum = a + b;
  const double part = sum - a;
  const double lost = (a - (sum - part)) + (b - part);
  return odd_double(sum, lost);
}

template <class Integer>
double odd_integer(Integer value) {
  const double nearest = static_cast<double>(value);
  return odd_double(nearest, static_cast<double>(static_cast<__int128>(value) - static_cast<__int128>(nearest)));
}

// ---- The types -----------------------------------------------------------------------------------------------------

template <class FormatOfType>
struct Float16 {
  using Format = FormatOfType;
  uint16_t bits;

  Float16() = default;
  constexpr Float16(const typename Format::Raw& raw) : bits(raw.x) {}
  Float16(float value) : bits(Format::narrow(value)) {}
  Float16(double value) : bits(Format::narrow(odd_float(value))) {}
  Float16(short value) : Float16(static_cast<float>(value)) {}
  Float16(unsigned short value) : Float16(static_cast<float>(value)) {}
  Float16(int value) : Float16(static_cast<double>(value)) {}
  Float16(unsigned value) : Float16(static_cast<double>(value)) {}
  Float16(long value) : Float16(odd_integer(value)) {}
  Float16(unsigned long value) : Float16(odd_integer(value)) {}
  Float16(long long value) : Float16(odd_integer(value)) {}
  Float16(unsigned long long value) : Float16(odd_integer(value)) {}

  operator float() const { return Format::widen(bits); }
  operator typename Format::Raw() const { return {bits}; }
};

}  // namespace gpucnn

struct __nv_bfloat16;

struct __half : gpucnn::Float16<gpucnn::HalfFormat> {
  using Float16::Float16;
  explicit __half(__nv_bfloat16 value);
};

struct __nv_bfloat16 : gpucnn::Float16<gpucnn::BfloatFormat> {
  using Float16::Float16;
  explicit __nv_bfloat16(__half value) : Float16(static_cast<float>(value)) {}
};

inline __half::__half(__nv_bfloat16 value) : Float16(static_cast<float>(value)) {}

struct alignas(4) __half2 {
  __half x, y;
  __half2() = default;
  __half2(__half x, __half y) : x(x), y(y) {}
};

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
  __nv_bfloat162() = default;
  __nv_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) : x(x), y(y) {}
};

namespace gpucnn {

template <class T>
constexpr bool is_float16 = std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>;
template <class T>
constexpr bool is_pair = std::is_same_v<T, __half2> || std::is_same_v<T, __nv_bfloat162>;
template <class T, class Result = T>
using IfFloat16 = std::enable_if_t<is_float16<T>, Result>;
template <class T, class Result = T>
using IfPair = std::enable_if_t<is_pair<T>, Result>;

template <class T>
T from_bits(uint16_t bits) {
  T value;
  value.bits = bits;
  return value;
}

template <class T>
double wide(T value) {
  return static_cast<double>(static_cast<float>(value));
}

template <class T>
bool is_nan(T value) {
  return (value.bits & 0x7fff) > T::Format::kInfinity;
}

template <class T>
T saturated(T value) {
  const float number = value;
  return number > 1 ? T(1.f) : number >= 0 ? value : T(0.f);
}

// Of two numbers the one that is not NaN; -0 is less than +0.
template <class T>
T lesser(T a, T b) {
  if (is_nan(a) || is_nan(b)) return is_nan(a) ? b : a;
  if (wide(a) == wide(b)) return (a.bits & 0x8000) ? a : b;
  return wide(a) < wide(b) ? a : b;
}
template <class T>
T greater(T a, T b) {
  if (is_nan(a) || is_nan(b)) return is_nan(a) ? b : a;
  if (wide(a) == wide(b)) return (a.bits & 0x8000) ? b : a;
  return wide(a) < wide(b) ? b : a;
}

}  // namespace gpucnn

// ---- Arithmetic ----------------------------------------------------------------------------------------------------

template <class T>
gpucnn::IfFloat16<T> __hadd(T a, T b) {
  return gpucnn::odd_sum(gpucnn::wide(a), gpucnn::wide(b));
}
template <class T>
gpucnn::IfFloat16<T> __hsub(T a, T b) {
  return gpucnn::odd_sum(gpucnn::wide(a), -gpucnn::wide(b));
}
template <class T>
gpucnn::IfFloat16<T> __hmul(T a, T b) {
  return gpucnn::wide(a) * gpucnn::wide(b);
}
template <class T>
gpucnn::IfFloat16<T> __hdiv(T a, T b) {
  return gpucnn::wide(a) / gpucnn::wide(b);
}
template <class T>
gpucnn::IfFloat16<T> __hfma(T a, T b, T c) {
  return gpucnn::odd_sum(gpucnn::wide(a) * gpucnn::wide(b), gpucnn::wide(c));
}
template <class T>
gpucnn::IfFloat16<T> __hneg(T a) {
  return gpucnn::from_bits<T>(a.bits ^ 0x8000);
}
template <class T>
gpucnn::IfFloat16<T> __habs(T a) {
  return gpucnn::from_bits<T>(a.bits & 0x7fff);
}
template <class T>
gpucnn::IfFloat16<T> __hadd_rn(T a, T b) { return __hadd(a, b); }
template <class T>
gpucnn::IfFloat16<T> __hsub_rn(T a, T b) { return __hsub(a, b); }
template <class T>
gpucnn::IfFloat16<T> __hmul_rn(T a, T b) { return __hmul(a, b); }
template <class T>
gpucnn::IfFloat16<T> __hadd_sat(T a, T b) { return gpucnn::saturated(__hadd(a, b)); }
template <class T>
gpucnn::IfFloat16<T> __hsub_sat(T a, T b) { return gpucnn::saturated(__hsub(a, b)); }
template <class T>
gpucnn::IfFloat16<T> __hmul_sat(T a, T b) { return gpucnn::saturated(__hmul(a, b)); }
template <class T>
gpucnn::IfFloat16<T> __hfma_sat(T a, T b, T c) { return gpucnn::saturated(__hfma(a, b, c)); }
template <class T>
gpucnn::IfFloat16<T> __hfma_relu(T a, T b, T c) {
  const T value = __hfma(a, b, c);
  return gpucnn::is_nan(value) || !(value.bits & 0x8000) ? value : T(0.f);
}
template <class T>
gpucnn::IfFloat16<T> __hmin(T a, T b) { return gpucnn::lesser(a, b); }
template <class T>
gpucnn::IfFloat16<T> __hmax(T a, T b) { return gpucnn::greater(a, b); }
template <class T>
gpucnn::IfFloat16<T> __hmin_nan(T a, T b) {
  return gpucnn::is_nan(a) || gpucnn::is_nan(b) ? gpucnn::from_bits<T>(0x7fff) : gpucnn::lesser(a, b);
}
template <class T>
gpucnn::IfFloat16<T> __hmax_nan(T a, T b) {
  return gpucnn::is_nan(a) || gpucnn::is_nan(b) ? gpucnn::from_bits<T>(0x7fff) : gpucnn::greater(a, b);
}
template <class T>
gpucnn::IfFloat16<T, bool> __hisnan(T a) { return gpucnn::is_nan(a); }
template <class T>
gpucnn::IfFloat16<T, int> __hisinf(T a) {
  return (a.bits & 0x7fff) != T::Format::kInfinity ? 0 : a.bits & 0x8000 ? -1 : 1;
}

// The comparisons: false where an operand is NaN, and the unordered ones true.
#define GPUCNN_COMPARISON(NAME, OPERATOR)                                                                            \
  template <class T>                                                                                                 \
  gpucnn::IfFloat16<T, bool> __h##NAME(T a, T b) {                                                                   \
    return !gpucnn::is_nan(a) && !gpucnn::is_nan(b) && gpucnn::wide(a) OPERATOR gpucnn::wide(b);                     \
  }                                                                                                                  \
  template <class T>                                                                                                 \
  gpucnn::IfFloat16<T, bool> __h##NAME##u(T a, T b) {                                                                \
    return gpucnn::is_nan(a) || gpucnn::is_nan(b) || gpucnn::wide(a) OPERATOR gpucnn::wide(b);                       \
  }                                                                                                                  \
  template <class T>                                                                                                 \
  gpucnn::IfPair<T> __h##NAME##2(T a, T b) {                                                                         \
    using Number = decltype(a.x);                                                                                    \
    return {Number(__h##NAME(a.x, b.x) ? 1.f : 0.f), Number(__h##NAME(a.y, b.y) ? 1.f : 0.f)};                       \
  }                                                                                                                  \
  template <class T>                                                                                                 \
  gpucnn::IfPair<T, bool> __hb##NAME##2(T a, T b) {                                                                  \
    return __h##NAME(a.x, b.x) && __h##NAME(a.y, b.y);                                                               \
  }
GPUCNN_COMPARISON(eq, ==)
GPUCNN_COMPARISON(ne, !=)
GPUCNN_COMPARISON(lt, <)
GPUCNN_COMPARISON(le, <=)
GPUCNN_COMPARISON(gt, >)
GPUCNN_COMPARISON(ge, >=)
#undef GPUCNN_COMPARISON

// Operators of numbers and of pairs.
#define GPUCNN_OPERATOR(OPERATOR, NAME)                                                                \
  template <class T>                                                                                   \
  gpucnn::IfFloat16<T> operator OPERATOR(const T& a, const T& b) { return __h##NAME(a, b); }           \
  template <class T>                                                                                   \
  gpucnn::IfFloat16<T, T&> operator OPERATOR##=(T& a, const T& b) { return a = __h##NAME(a, b); }      \
  template <class T>                                                                                   \
  gpucnn::IfPair<T> __h##NAME##2(T a, T b) { return {__h##NAME(a.x, b.x), __h##NAME(a.y, b.y)}; }      \
  template <class T>                                                                                   \
  gpucnn::IfPair<T> __h##NAME##2_rn(T a, T b) { return {__h##NAME(a.x, b.x), __h##NAME(a.y, b.y)}; }   \
  template <class T>                                                                                   \
  gpucnn::IfPair<T> operator OPERATOR(const T& a, const T& b) { return __h##NAME##2(a, b); }           \
  template <class T>                                                                                   \
  gpucnn::IfPair<T, T&> operator OPERATOR##=(T& a, const T& b) { return a = __h##NAME##2(a, b); }
GPUCNN_OPERATOR(+, add)
GPUCNN_OPERATOR(-, sub)
GPUCNN_OPERATOR(*, mul)
#undef GPUCNN_OPERATOR
template <class T>
gpucnn::IfFloat16<T> operator/(const T& a, const T& b) { return __hdiv(a, b); }
template <class T>
gpucnn::IfFloat16<T, T&> operator/=(T& a, const T& b) { return a = __hdiv(a, b); }
template <class T>
gpucnn::IfPair<T> __h2div(T a, T b) { return {__hdiv(a.x, b.x), __hdiv(a.y, b.y)}; }
template <class T>
gpucnn::IfPair<T> operator/(const T& a, const T& b) { return __h2div(a, b); }
template <class T>
gpucnn::IfPair<T, T&> operator/=(T& a, const T& b) { return a = __h2div(a, b); }
template <class T>
gpucnn::IfFloat16<T> operator+(const T& a) { return a; }
template <class T>
gpucnn::IfFloat16<T> operator-(const T& a) { return __hneg(a); }
template <class T>
gpucnn::IfFloat16<T, T&> operator++(T& a) { return a = __hadd(a, T(1.f)); }
template <class T>
gpucnn::IfFloat16<T, T&> operator--(T& a) { return a = __hsub(a, T(1.f)); }
template <class T>
gpucnn::IfFloat16<T> operator++(T& a, int) {
  const T old = a;
  ++a;
  return old;
}
template <class T>
gpucnn::IfFloat16<T> operator--(T& a, int) {
  const T old = a;
  --a;
  return old;
}

template <class T>
gpucnn::IfPair<T> __hfma2(T a, T b, T c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }
template <class T>
gpucnn::IfPair<T> __hfma2_relu(T a, T b, T c) {
  return {__hfma_relu(a.x, b.x, c.x), __hfma_relu(a.y, b.y, c.y)};
}
template <class T>
gpucnn::IfPair<T> __hneg2(T a) { return {__hneg(a.x), __hneg(a.y)}; }
template <class T>
gpucnn::IfPair<T> __habs2(T a) { return {__habs(a.x), __habs(a.y)}; }
template <class T>
gpucnn::IfPair<T> __hmin2(T a, T b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }
template <class T>
gpucnn::IfPair<T> __hmax2(T a, T b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }
template <class T>
gpucnn::IfPair<T> operator-(const T& a) { return __hneg2(a); }

// ---- Conversions ---------------------------------------------------------------------------------------------------

namespace gpucnn {

// The neighbours of a 16-bit number: its bits count magnitudes.
template <class T>
T next_up(T value) {
  if (is_nan(value) || value.bits == T::Format::kInfinity) return value;
  if (value.bits == 0x8000) return from_bits<T>(1);
  return from_bits<T>(value.bits & 0x8000 ? value.bits - 1 : value.bits + 1);
}
template <class T>
T next_down(T value) {
  return __hneg(next_up(__hneg(value)));
}

template <class T>
T rounded_down(double exact) {
  const T nearest = exact;
  return wide(nearest) > exact ? next_down(nearest) : nearest;
}
template <class T>
T rounded_up(double exact) {
  const T nearest = exact;
  return wide(nearest) < exact ? next_up(nearest) : nearest;
}
template <class T>
T rounded_to_zero(double exact) {
  return exact < 0 ? rounded_up<T>(exact) : rounded_down<T>(exact);
}

}  // namespace gpucnn

inline float __half2float(__half a) { return a; }
inline __half __float2half(float a) { return a; }
inline __half __double2half(double a) { return a; }
inline float __bfloat162float(__nv_bfloat16 a) { return a; }
inline __nv_bfloat16 __float2bfloat16(float a) { return a; }
inline __nv_bfloat16 __double2bfloat16(double a) { return a; }

#define GPUCNN_ROUNDINGS(TYPE, NAME, SOURCE, FROM, WIDE)                                                   \
  inline TYPE __##FROM##2##NAME##_rn(SOURCE a) { return a; }                                               \
  inline TYPE __##FROM##2##NAME##_rz(SOURCE a) { return gpucnn::rounded_to_zero<TYPE>(WIDE); }             \
  inline TYPE __##FROM##2##NAME##_rd(SOURCE a) { return gpucnn::rounded_down<TYPE>(WIDE); }                \
  inline TYPE __##FROM##2##NAME##_ru(SOURCE a) { return gpucnn::rounded_up<TYPE>(WIDE); }
#define GPUCNN_INTEGER_CONVERSIONS(TYPE, NAME, INTEGER, SHORT)                                             \
  GPUCNN_ROUNDINGS(TYPE, NAME, INTEGER, SHORT, gpucnn::odd_integer(a))                                     \
  inline INTEGER __##NAME##2##SHORT##_rn(TYPE a) { return gpucnn::clamped<INTEGER>(nearbyint(gpucnn::wide(a))); } \
  inline INTEGER __##NAME##2##SHORT##_rz(TYPE a) { return gpucnn::clamped<INTEGER>(trunc(gpucnn::wide(a))); }     \
  inline INTEGER __##NAME##2##SHORT##_rd(TYPE a) { return gpucnn::clamped<INTEGER>(floor(gpucnn::wide(a))); }     \
  inline INTEGER __##NAME##2##SHORT##_ru(TYPE a) { return gpucnn::clamped<INTEGER>(ceil(gpucnn::wide(a))); }
#define GPUCNN_CONVERSIONS(TYPE, NAME)                                     \
  GPUCNN_ROUNDINGS(TYPE, NAME, float, float, static_cast<double>(a))       \
  GPUCNN_INTEGER_CONVERSIONS(TYPE, NAME, int, int)                         \
  GPUCNN_INTEGER_CONVERSIONS(TYPE, NAME, unsigned, uint)                   \
  GPUCNN_INTEGER_CONVERSIONS(TYPE, NAME, short, short)                     \
  GPUCNN_INTEGER_CONVERSIONS(TYPE, NAME, unsigned short, ushort)           \
  GPUCNN_INTEGER_CONVERSIONS(TYPE, NAME, long long, ll)                    \
  GPUCNN_INTEGER_CONVERSIONS(TYPE, NAME, unsigned long long, ull)
GPUCNN_CONVERSIONS(__half, half)
GPUCNN_CONVERSIONS(__nv_bfloat16, bfloat16)
#undef GPUCNN_CONVERSIONS
#undef GPUCNN_INTEGER_CONVERSIONS
#undef GPUCNN_ROUNDINGS

// Bits of numbers.
inline short __half_as_short(__half a) { return static_cast<short>(a.bits); }
inline unsigned short __half_as_ushort(__half a) { return a.bits; }
inline __half __short_as_half(short bits) { return gpucnn::from_bits<__half>(static_cast<uint16_t>(bits)); }
inline __half __ushort_as_half(unsigned short bits) { return gpucnn::from_bits<__half>(bits); }
inline short __bfloat16_as_short(__nv_bfloat16 a) { return static_cast<short>(a.bits); }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 a) { return a.bits; }
inline __nv_bfloat16 __short_as_bfloat16(short bits) {
  return gpucnn::from_bits<__nv_bfloat16>(static_cast<uint16_t>(bits));
}
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return gpucnn::from_bits<__nv_bfloat16>(bits); }

// Pairs.
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __half2half2(__half a) { return {a, a}; }
inline __half2 __float2half2_rn(float a) { return {a, a}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __float22half2_rn(float2 a) { return {a.x, a.y}; }
inline float2 __half22float2(__half2 a) { return {a.x, a.y}; }
inline float __low2float(__half2 a) { return a.x; }
inline float __high2float(__half2 a) { return a.y; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 a) { return {a, a}; }
inline __nv_bfloat162 __float2bfloat162_rn(float a) { return {a, a}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 a) { return {a.x, a.y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 a) { return {a.x, a.y}; }
inline float __low2float(__nv_bfloat162 a) { return a.x; }
inline float __high2float(__nv_bfloat162 a) { return a.y; }
inline __half __low2half(__half2 a) { return a.x; }
inline __half __high2half(__half2 a) { return a.y; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 a) { return a.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 a) { return a.y; }
inline __half2 __low2half2(__half2 a) { return {a.x, a.x}; }
inline __half2 __high2half2(__half2 a) { return {a.y, a.y}; }
inline __half2 __lowhigh2highlow(__half2 a) { return {a.y, a.x}; }
inline __half2 __lows2half2(__half2 a, __half2 b) { return {a.x, b.x}; }
inline __half2 __highs2half2(__half2 a, __half2 b) { return {a.y, b.y}; }
inline __half2 make_half2(__half x, __half y) { return {x, y}; }
inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }

// ---- Mathematics, under names that cuda_fp16.h and cuda_bf16.h bring in --------------------------------------------

namespace gpucnn {
namespace float16_functions {

#define GPUCNN_FUNCTION(NAME, VALUE)                                      \
  template <class T>                                                      \
  IfFloat16<T> h##NAME(T a) {                                             \
    const double x = wide(a);                                             \
    return VALUE;                                                         \
  }                                                                       \
  template <class T>                                                      \
  IfPair<T> h2##NAME(T a) { return {h##NAME(a.x), h##NAME(a.y)}; }
GPUCNN_FUNCTION(sqrt, sqrt(x))
GPUCNN_FUNCTION(rsqrt, 1 / sqrt(x))
GPUCNN_FUNCTION(rcp, 1 / x)
GPUCNN_FUNCTION(exp, exp(x))
GPUCNN_FUNCTION(exp2, exp2(x))
GPUCNN_FUNCTION(exp10, pow(10.0, x))
GPUCNN_FUNCTION(log, log(x))
GPUCNN_FUNCTION(log2, log2(x))
GPUCNN_FUNCTION(log10, log10(x))
GPUCNN_FUNCTION(sin, sin(x))
GPUCNN_FUNCTION(cos, cos(x))
GPUCNN_FUNCTION(tanh, tanh(x))
GPUCNN_FUNCTION(floor, floor(x))
GPUCNN_FUNCTION(ceil, ceil(x))
GPUCNN_FUNCTION(trunc, trunc(x))
GPUCNN_FUNCTION(rint, nearbyint(x))
#undef GPUCNN_FUNCTION

}  // namespace float16_functions
}  // namespace gpucnn
