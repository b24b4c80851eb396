// CUDA's mathematical functions that C's library has not.
#pragma once
#include <limits>

namespace gpucnn {

constexpr double kPi = 3.14159265358979323846;
constexpr double kRootPi = 1.77245385090551602730;
constexpr double kRootTwo = 1.41421356237309504880;

// x modulo 2, exactly, in [-1, 1]: what the trigonometric functions of pi x depend on.
inline double turns(double x) { return x - 2 * nearbyint(x / 2); }

inline double sin_of_pi(double x) {
  if (__builtin_isinf(x)) return __builtin_nan("");
  const double t = turns(x);
  if (t == 0 || fabs(t) == 1) return copysign(0.0, x);
  if (fabs(t) > 0.25 && fabs(t) < 0.75) return copysign(cos(kPi * (0.5 - fabs(t))), t);
  return fabs(t) <= 0.25 ? sin(kPi * t) : copysign(sin(kPi * (1 - fabs(t))), t);
}

inline double cos_of_pi(double x) {
  if (__builtin_isinf(x)) return __builtin_nan("");
  const double t = fabs(turns(x));
  if (t == 0.5) return 0;
  if (t > 0.25 && t < 0.75) return sin(kPi * (0.5 - t));
  return t <= 0.25 ? cos(kPi * t) : -cos(kPi * (1 - t));
}

// Finds the x with erfc(x) = y, for y in (0, 1], by Newton's method with the second derivative. The logarithm of erfc
// is close to a parabola, so the steps are taken on it where y is small.
inline double inverse_erfc_of_small(double y) {
  double x = y > 0.5 ? (1 - y) * kRootPi / 2 : sqrt(fmax(-log(y * kRootPi * sqrt(-log(y) + 0.3)), 0.0));
  for (int i = 0; i < 60; i++) {
    const double value = erfc(x);
    const double slope = -2 / kRootPi * exp(-x * x);
    const double step = y > 0.1 ? (value - y) / slope : log(value / y) * value / slope;
    const double corrected = y > 0.1 ? step / (1 + x * step) : step;
    x -= corrected;
    if (fabs(corrected) <= 1e-16 * fabs(x)) break;
  }
  return x;
}

// The x with erf(x) = y, for |y| < 0.5, where 1 - y would lose its bits.
inline double inverse_erf_of_small(double y) {
  double x = y * kRootPi / 2;
  for (int i = 0; i < 60; i++) {
    const double step = (erf(x) - y) / (2 / kRootPi * exp(-x * x));
    const double corrected = step / (1 + x * step);
    x -= corrected;
    if (fabs(corrected) <= 1e-16 * fabs(x)) break;
  }
  return x;
}

inline double inverse_erfc(double y) {
  if (!(y >= 0 && y <= 2)) return __builtin_nan("");
  if (y == 0 || y == 2) return y == 0 ? __builtin_inf() : -__builtin_inf();
  if (y > 0.5 && y < 1.5) return inverse_erf_of_small(1 - y);
  return y < 1 ? inverse_erfc_of_small(y) : -inverse_erfc_of_small(2 - y);
}

inline double inverse_erf(double y) {
  if (!(y >= -1 && y <= 1)) return __builtin_nan("");
  if (fabs(y) == 1) return copysign(__builtin_inf(), y);
  if (fabs(y) <= 0.5) return y == 0 ? y : inverse_erf_of_small(y);
  return copysign(inverse_erfc_of_small(1 - fabs(y)), y);
}

// exp(x * x) * erfc(x), by a continued fraction where the factors would leave the range of numbers.
inline double scaled_erfc(double x) {
  if (x < 20) return exp(x * x) * erfc(x);
  double fraction = x;
  for (int k = 60; k > 0; k--) fraction = x + k / 2.0 / fraction;
  return 1 / (fraction * kRootPi);
}

// The modified Bessel functions of order 0 and 1: their series has positive terms only.
inline double modified_bessel(int order, double x) {
  const double quarter = x * x / 4;
  if (fabs(x) > 700) {  // asymptotic: the series' terms would overflow
    double term = 1, sum = 1;
    for (int k = 1; k < 30; k++) {
      term *= -(4.0 * order * order - (2 * k - 1) * (2 * k - 1)) / (8 * k * fabs(x));
      sum += term;
    }
    const double size = exp(fabs(x) / 2) * sum / sqrt(2 * kPi * fabs(x)) * exp(fabs(x) / 2);
    return order && x < 0 ? -size : size;
  }
  double term = order ? x / 2 : 1, sum = term;
  for (int k = 1; fabs(term) > 1e-18 * fabs(sum); k++) {
    term *= quarter / (static_cast<double>(k) * (k + order));
    sum += term;
  }
  return sum;
}

// The length of a vector, whose squares may neither overflow nor vanish.
inline double length(const double* x, int count) {
  double largest = 0;
  for (int i = 0; i < count; i++) {
    if (__builtin_isinf(x[i])) return __builtin_inf();
    if (x[i] != x[i] || fabs(x[i]) > largest) largest = fabs(x[i]);
    if (largest != largest) return largest;
  }
  if (largest == 0) return 0;
  double sum = 0;
  for (int i = 0; i < count; i++) sum += x[i] / largest * (x[i] / largest);
  return largest * sqrt(sum);
}

}  // namespace gpucnn

// A function of doubles, and of floats computed in double.
#define GPUCNN_OWN_UNARY(NAME, VALUE)                                     \
  inline double NAME(double x) { return VALUE; }                          \
  inline float NAME##f(float number) {                                    \
    const double x = number;                                              \
    return static_cast<float>(VALUE);                                     \
  }                                                                       \
  inline float NAME(float x) { return NAME##f(x); }
GPUCNN_OWN_UNARY(rsqrt, 1.0 / sqrt(x))
GPUCNN_OWN_UNARY(rcbrt, 1.0 / cbrt(x))
GPUCNN_OWN_UNARY(exp10, pow(10.0, x))
GPUCNN_OWN_UNARY(sinpi, gpucnn::sin_of_pi(x))
GPUCNN_OWN_UNARY(cospi, gpucnn::cos_of_pi(x))
GPUCNN_OWN_UNARY(erfinv, gpucnn::inverse_erf(x))
GPUCNN_OWN_UNARY(erfcinv, gpucnn::inverse_erfc(x))
GPUCNN_OWN_UNARY(erfcx, gpucnn::scaled_erfc(x))
GPUCNN_OWN_UNARY(normcdf, 0.5 * erfc(-x / gpucnn::kRootTwo))
GPUCNN_OWN_UNARY(normcdfinv, -gpucnn::kRootTwo * gpucnn::inverse_erfc(2 * x))
GPUCNN_OWN_UNARY(cyl_bessel_i0, gpucnn::modified_bessel(0, x))
GPUCNN_OWN_UNARY(cyl_bessel_i1, gpucnn::modified_bessel(1, x))
#undef GPUCNN_OWN_UNARY

#define GPUCNN_LENGTHS(NAME, PARAMETERS, VALUES, ARGUMENTS, COUNT)                                  \
  inline double NAME PARAMETERS(double) {                                                           \
    const double values[] = VALUES;                                                                 \
    return gpucnn::length(values, COUNT);                                                           \
  }                                                                                                 \
  inline float NAME##f PARAMETERS(float) { return static_cast<float>(NAME ARGUMENTS); }             \
  inline double r##NAME PARAMETERS(double) { return 1 / NAME ARGUMENTS; }                           \
  inline float r##NAME##f PARAMETERS(float) { return static_cast<float>(1 / NAME ARGUMENTS); }
#define GPUCNN_THREE(T) (T a, T b, T c)
#define GPUCNN_THREE_VALUES {a, b, c}
#define GPUCNN_FOUR(T) (T a, T b, T c, T d)
#define GPUCNN_FOUR_VALUES {a, b, c, d}
GPUCNN_LENGTHS(norm3d, GPUCNN_THREE, GPUCNN_THREE_VALUES, (double(a), double(b), double(c)), 3)
GPUCNN_LENGTHS(norm4d, GPUCNN_FOUR, GPUCNN_FOUR_VALUES, (double(a), double(b), double(c), double(d)), 4)
#undef GPUCNN_THREE
#undef GPUCNN_THREE_VALUES
#undef GPUCNN_FOUR
#undef GPUCNN_FOUR_VALUES
#undef GPUCNN_LENGTHS
inline double rhypot(double x, double y) { return 1 / hypot(x, y); }
inline float rhypotf(float x, float y) { return static_cast<float>(1 / hypot(double(x), double(y))); }
inline float rhypot(float x, float y) { return rhypotf(x, y); }

inline void sincos(double x, double* sine, double* cosine) {
  *sine = sin(x);
  *cosine = cos(x);
}
inline void sincosf(float x, float* sine, float* cosine) {
  *sine = sinf(x);
  *cosine = cosf(x);
}
inline void sincos(float x, float* sine, float* cosine) { sincosf(x, sine, cosine); }
inline void sincospi(double x, double* sine, double* cosine) {
  *sine = sinpi(x);
  *cosine = cospi(x);
}
inline void sincospif(float x, float* sine, float* cosine) {
  *sine = sinpif(x);
  *cosine = cospif(x);
}
inline void sincospi(float x, float* sine, float* cosine) { sincospif(x, sine, cosine); }
inline float fdividef(float x, float y) { return x / y; }
inline float fdivide(float x, float y) { return x / y; }
inline double fdivide(double x, double y) { return x / y; }
