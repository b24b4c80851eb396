// The element types of matrices. They convert to and from the types that products are summed in by static_cast.
#pragma once
#include <math.h>
#include <stdint.h>

#include "../../include/half_bits.h"

namespace cudasim::cublas {

struct Half {
  uint16_t bits;
  Half() = default;
  explicit Half(float value) : bits(gpucnn::float_to_half(value)) {}
  explicit operator float() const { return gpucnn::half_to_float(bits); }
};

struct BFloat16 {
  uint16_t bits;
  BFloat16() = default;
  explicit BFloat16(float value) : bits(gpucnn::float_to_bfloat(value)) {}
  explicit operator float() const { return gpucnn::bfloat_to_float(bits); }
};

// Plain arithmetic: std::complex treats infinities in products, which costs a function call for each.
template <class Real>
struct Complex {
  Real re;
  Real im;
  Complex() = default;
  constexpr Complex(Real real, Real imaginary = 0) : re(real), im(imaginary) {}
};

template <class R>
Complex<R> operator+(Complex<R> a, Complex<R> b) {
  return {a.re + b.re, a.im + b.im};
}
template <class R>
Complex<R> operator-(Complex<R> a, Complex<R> b) {
  return {a.re - b.re, a.im - b.im};
}
template <class R>
Complex<R> operator*(Complex<R> a, Complex<R> b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
// Scaled by the larger part of the divisor, so that its square does not overflow.
template <class R>
Complex<R> operator/(Complex<R> a, Complex<R> b) {
  if (fabs(b.re) >= fabs(b.im)) {
    const R ratio = b.im / b.re, scale = b.re + b.im * ratio;
    return {(a.re + a.im * ratio) / scale, (a.im - a.re * ratio) / scale};
  }
  const R ratio = b.re / b.im, scale = b.re * ratio + b.im;
  return {(a.re * ratio + a.im) / scale, (a.im * ratio - a.re) / scale};
}
template <class R>
Complex<R>& operator+=(Complex<R>& a, Complex<R> b) {
  return a = a + b;
}
template <class R>
bool operator==(Complex<R> a, Complex<R> b) {
  return a.re == b.re && a.im == b.im;
}

template <class T>
struct RealOf {
  using type = T;
};
template <class R>
struct RealOf<Complex<R>> {
  using type = R;
};
template <class T>
using Real = typename RealOf<T>::type;

template <class T>
T conjugate(T value) {
  return value;
}
template <class R>
Complex<R> conjugate(Complex<R> value) {
  return {value.re, -value.im};
}

// BLAS's measure of size: |real part| + |imaginary part|.
template <class R>
R magnitude(R value) {
  return fabs(value);
}
template <class R>
R magnitude(Complex<R> value) {
  return fabs(value.re) + fabs(value.im);
}

template <class R>
long double square(R value) {
  return static_cast<long double>(value) * value;
}
template <class R>
long double square(Complex<R> value) {
  return square(value.re) + square(value.im);
}

}  // namespace cudasim::cublas
