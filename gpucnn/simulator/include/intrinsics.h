// CUDA's intrinsics: arithmetic with a chosen rounding, conversions, and operations on bits. The approximate functions
// are exact here.
#pragma once
#include <limits>

// ---- Approximate functions -----------------------------------------------------------------------------------------

inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return exp10f(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanf(float x) { return tanf(x); }
inline float __tanhf(float x) { return tanhf(x); }
inline void __sincosf(float x, float* sine, float* cosine) { sincosf(x, sine, cosine); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float a) { return a > 1 ? 1.f : a >= 0 ? a : 0.f; }

// ---- Arithmetic with a chosen rounding -----------------------------------------------------------------------------

namespace gpucnn {

enum class Rounding { kNearest, kZero, kDown, kUp };

// The number next to `nearest` in the direction of rounding, if the exact value lies there: `lost` is exact - nearest.
template <Rounding kRounding, class T>
T directed(T nearest, T lost) {
  if (kRounding == Rounding::kNearest || lost == 0 || lost != lost) return nearest;
  const bool is_up = kRounding == Rounding::kUp || (kRounding == Rounding::kZero && nearest < 0);
  if (is_up == (lost > 0)) return nextafter(nearest, is_up ? T(__builtin_inf()) : -T(__builtin_inf()));
  return nearest;
}

template <Rounding kRounding, class T>
T sum(T a, T b) {
  const T nearest = a + b, part = nearest - a;
  return directed<kRounding>(nearest, (a - (nearest - part)) + (b - part));
}

template <Rounding kRounding, class T>
T product(T a, T b) {
  const T nearest = a * b;
  return directed<kRounding>(nearest, fma(a, b, -nearest));
}

template <Rounding kRounding, class T>
T quotient(T a, T b) {
  const T nearest = a / b, rest = fma(-nearest, b, a);
  return directed<kRounding>(nearest, b < 0 ? -rest : rest);
}

template <Rounding kRounding, class T>
T root(T a) {
  const T nearest = sqrt(a);
  return directed<kRounding>(nearest, fma(-nearest, nearest, a));
}

template <Rounding kRounding>
float fused(float a, float b, float c) {
  const float nearest = fmaf(a, b, c);
  const double exact = static_cast<double>(a) * static_cast<double>(b);  // all its bits fit
  const double total = exact + static_cast<double>(c), part = total - exact;
  const double rest = (exact - (total - part)) + (static_cast<double>(c) - part);
  const double lost = (total - static_cast<double>(nearest)) + rest;
  return directed<kRounding>(nearest, static_cast<float>(lost));
}

// An integer or a double as a number of fewer bits.
template <Rounding kRounding, class To, class From>
To converted(From value) {
  const To nearest = static_cast<To>(value);
  if constexpr (std::is_integral_v<From>) {
    const __int128 lost = static_cast<__int128>(value) - static_cast<__int128>(nearest);
    return directed<kRounding>(nearest, static_cast<To>(lost));
  } else {
    return directed<kRounding>(nearest, static_cast<To>(value - static_cast<From>(nearest)));
  }
}

// A number as an integer: NaN is 0, or the lowest integer of 64 bits; what is out of range becomes the nearest limit.
template <class Integer, class T>
Integer clamped(T value) {
  using Limits = std::numeric_limits<Integer>;
  constexpr bool is_wide = sizeof(Integer) == 8;
  if (value != value) return is_wide ? static_cast<Integer>(1ull << 63) : Integer(0);
  if (value <= static_cast<T>(Limits::min())) return Limits::min();
  if (value >= static_cast<T>(Limits::max())) return Limits::max();
  return static_cast<Integer>(value);
}

template <class To, class From>
__forceinline__ To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits of another size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace gpucnn

#define GPUCNN_ROUNDED(T, PREFIX, SUFFIX, ROUNDING)                                                                   \
  inline T __##PREFIX##add_##SUFFIX(T a, T b) { return gpucnn::sum<gpucnn::Rounding::ROUNDING>(a, b); }               \
  inline T __##PREFIX##sub_##SUFFIX(T a, T b) { return gpucnn::sum<gpucnn::Rounding::ROUNDING>(a, -b); }              \
  inline T __##PREFIX##mul_##SUFFIX(T a, T b) { return gpucnn::product<gpucnn::Rounding::ROUNDING>(a, b); }           \
  inline T __##PREFIX##div_##SUFFIX(T a, T b) { return gpucnn::quotient<gpucnn::Rounding::ROUNDING>(a, b); }          \
  inline T __##PREFIX##rcp_##SUFFIX(T a) { return gpucnn::quotient<gpucnn::Rounding::ROUNDING>(T(1), a); }            \
  inline T __##PREFIX##sqrt_##SUFFIX(T a) { return gpucnn::root<gpucnn::Rounding::ROUNDING>(a); }
#define GPUCNN_ALL_ROUNDINGS(DEFINE, ...)  \
  DEFINE(__VA_ARGS__, rn, kNearest)        \
  DEFINE(__VA_ARGS__, rz, kZero)           \
  DEFINE(__VA_ARGS__, rd, kDown)           \
  DEFINE(__VA_ARGS__, ru, kUp)
GPUCNN_ALL_ROUNDINGS(GPUCNN_ROUNDED, float, f)
GPUCNN_ALL_ROUNDINGS(GPUCNN_ROUNDED, double, d)
#undef GPUCNN_ROUNDED
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fmaf_rz(float a, float b, float c) { return gpucnn::fused<gpucnn::Rounding::kZero>(a, b, c); }
inline float __fmaf_rd(float a, float b, float c) { return gpucnn::fused<gpucnn::Rounding::kDown>(a, b, c); }
inline float __fmaf_ru(float a, float b, float c) { return gpucnn::fused<gpucnn::Rounding::kUp>(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __frsqrt_rn(float a) { return rsqrtf(a); }

// ---- Conversions ---------------------------------------------------------------------------------------------------

#define GPUCNN_TO_INTEGER(FROM, FROM_NAME, TO, TO_NAME)                                                        \
  inline TO __##FROM_NAME##2##TO_NAME##_rn(FROM value) { return gpucnn::clamped<TO>(nearbyint(value)); }       \
  inline TO __##FROM_NAME##2##TO_NAME##_rz(FROM value) { return gpucnn::clamped<TO>(trunc(value)); }           \
  inline TO __##FROM_NAME##2##TO_NAME##_rd(FROM value) { return gpucnn::clamped<TO>(floor(value)); }           \
  inline TO __##FROM_NAME##2##TO_NAME##_ru(FROM value) { return gpucnn::clamped<TO>(ceil(value)); }
#define GPUCNN_CONVERSION(FROM, FROM_NAME, TO, TO_NAME, SUFFIX, ROUNDING)                                      \
  inline TO __##FROM_NAME##2##TO_NAME##_##SUFFIX(FROM value) {                                                 \
    return gpucnn::converted<gpucnn::Rounding::ROUNDING, TO>(value);                                           \
  }
#define GPUCNN_INTEGER(TYPE, NAME)                                              \
  GPUCNN_TO_INTEGER(float, float, TYPE, NAME)                                   \
  GPUCNN_TO_INTEGER(double, double, TYPE, NAME)                                 \
  GPUCNN_ALL_ROUNDINGS(GPUCNN_CONVERSION, TYPE, NAME, float, float)             \
  GPUCNN_ALL_ROUNDINGS(GPUCNN_CONVERSION, TYPE, NAME, double, double)
GPUCNN_INTEGER(int, int)
GPUCNN_INTEGER(unsigned, uint)
GPUCNN_INTEGER(long long, ll)
GPUCNN_INTEGER(unsigned long long, ull)
GPUCNN_ALL_ROUNDINGS(GPUCNN_CONVERSION, double, double, float, float)
#undef GPUCNN_INTEGER
#undef GPUCNN_CONVERSION
#undef GPUCNN_TO_INTEGER
#undef GPUCNN_ALL_ROUNDINGS

inline float __int_as_float(int bits) { return gpucnn::same_bits<float>(bits); }
inline int __float_as_int(float value) { return gpucnn::same_bits<int>(value); }
inline float __uint_as_float(unsigned bits) { return gpucnn::same_bits<float>(bits); }
inline unsigned __float_as_uint(float value) { return gpucnn::same_bits<unsigned>(value); }
inline double __longlong_as_double(long long bits) { return gpucnn::same_bits<double>(bits); }
inline long long __double_as_longlong(double value) { return gpucnn::same_bits<long long>(value); }
inline int __double2hiint(double value) { return static_cast<int>(gpucnn::same_bits<uint64_t>(value) >> 32); }
inline int __double2loint(double value) { return static_cast<int>(gpucnn::same_bits<uint64_t>(value)); }
inline double __hiloint2double(int high, int low) {
  return gpucnn::same_bits<double>(uint64_t{static_cast<unsigned>(high)} << 32 | static_cast<unsigned>(low));
}

// ---- Bits and integers ---------------------------------------------------------------------------------------------

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }

inline unsigned long long __brevll(unsigned long long x) {
  unsigned long long reversed = 0;
  for (int i = 0; i < 64; i++) reversed |= (x >> i & 1) << (63 - i);
  return reversed;
}
inline unsigned __brev(unsigned x) { return static_cast<unsigned>(__brevll(x) >> 32); }

// Each nibble of the selector takes one of the eight bytes, or spreads its sign.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; i++) {
    const unsigned choice = selector >> 4 * i & 15;
    unsigned byte = static_cast<unsigned>(bytes >> 8 * (choice & 7)) & 0xff;
    if (choice & 8) byte = byte & 0x80 ? 0xff : 0;
    result |= byte << 8 * i;
  }
  return result;
}

inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((uint64_t{high} << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_lc(unsigned low, unsigned high, unsigned shift) {
  return shift >= 32 ? low : __funnelshift_l(low, high, shift);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((uint64_t{high} << 32 | low) >> (shift & 31));
}
inline unsigned __funnelshift_rc(unsigned low, unsigned high, unsigned shift) {
  return shift >= 32 ? high : __funnelshift_r(low, high, shift);
}

inline int __mulhi(int a, int b) { return static_cast<int>((int64_t{a} * b) >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t{a} * b) >> 32); }
inline long long __mul64hi(long long a, long long b) {
  return static_cast<long long>((static_cast<__int128>(a) * b) >> 64);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
inline int __mul24(int a, int b) {
  const auto low = [](int x) { return int64_t{static_cast<int>(static_cast<unsigned>(x) << 8) >> 8}; };
  return static_cast<int>(static_cast<uint32_t>(low(a) * low(b)));
}
inline unsigned __umul24(unsigned a, unsigned b) {
  return static_cast<unsigned>(uint64_t{a & 0xffffff} * (b & 0xffffff));
}
inline int __hadd(int a, int b) { return static_cast<int>((int64_t{a} + b) >> 1); }
inline int __rhadd(int a, int b) { return static_cast<int>((int64_t{a} + b + 1) >> 1); }
inline unsigned __uhadd(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t{a} + b) >> 1); }
inline unsigned __urhadd(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t{a} + b + 1) >> 1); }
inline unsigned __sad(int a, int b, unsigned c) {
  const int64_t difference = int64_t{a} - b;
  return c + static_cast<unsigned>(difference < 0 ? -difference : difference);
}
inline unsigned __usad(unsigned a, unsigned b, unsigned c) { return c + (a > b ? a - b : b - a); }

// Sums of the products of four bytes, and of two halves with two bytes.
inline int __dp4a(int a, int b, int c) {
  unsigned sum = static_cast<unsigned>(c);
  for (int i = 0; i < 32; i += 8) sum += static_cast<unsigned>(int8_t(a >> i) * int8_t(b >> i));
  return static_cast<int>(sum);
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 32; i += 8) c += (a >> i & 0xff) * (b >> i & 0xff);
  return c;
}

// ---- Time ----------------------------------------------------------------------------------------------------------

inline long long clock64() {
#if defined(__x86_64__)
  return static_cast<long long>(__builtin_ia32_rdtsc());
#else
  long long ticks;
  __asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks));
  return ticks;
#endif
}
// Nanoseconds, as %globaltimer counts them.
namespace gpucnn {
struct HostTime {
  long seconds, nanoseconds;
};
extern "C" int gpucnn_host_clock(int clock, HostTime* time) noexcept __asm__("clock_gettime");
inline uint64_t host_nanoseconds() {
  HostTime time;
  gpucnn_host_clock(1, &time);  // the monotonic clock
  return static_cast<uint64_t>(time.seconds) * 1000000000 + static_cast<uint64_t>(time.nanoseconds);
}
}  // namespace gpucnn
inline int clock() { return static_cast<int>(static_cast<unsigned>(clock64())); }
inline void __nanosleep(unsigned) {}
