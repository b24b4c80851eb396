// The discrete Fourier transform of one row, in double precision whatever the arrays have.
#pragma once
#include <stddef.h>

#include <vector>

namespace cudasim::cufft {

// Plain arithmetic: std::complex treats infinities in products, which costs a function call for each.
struct Number {
  double re;
  double im;
};

inline Number operator+(Number a, Number b) { return {a.re + b.re, a.im + b.im}; }
inline Number operator*(Number a, Number b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }
inline Number conjugate(Number a) { return {a.re, -a.im}; }

// Transforms of one length and direction, without a factor: row[k] = sum over j of row[j] exp(sign 2 pi i j k / n).
class Transform {
 public:
  Transform(size_t length, int sign);

  void operator()(std::vector<Number>& row);

 private:
  void mixed_radix(const Number* in, size_t stride, Number* out, size_t length);
  void combine(Number* out, size_t length, size_t radix);
  void by_convolution(std::vector<Number>& row);
  void prepare_convolution(int sign);

  size_t length_;
  std::vector<Number> roots_;  // exp(sign 2 pi i k / n), k in [0, n)
  std::vector<Number> result_;
  // For a length with a large prime factor: the transform is a convolution with a chirp, of a length of 2^k.
  std::vector<Number> chirp_;    // exp(sign pi i k^2 / n), k in [0, n)
  std::vector<Number> spectrum_;  // of the conjugate of the chirp
  std::vector<Transform> padded_;  // forward and backward
};

}  // namespace cudasim::cufft
