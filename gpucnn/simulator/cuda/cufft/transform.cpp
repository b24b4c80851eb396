#include "transform.h"

#include <math.h>

namespace cudasim::cufft {

// Above it, n * radix operations take longer than three transforms of a power of two.
constexpr size_t kLargestRadix = 61;

// exp(sign 2 pi i numerator / denominator), from an angle of at most an eighth of a turn, where rounding costs least.
static Number unit(size_t numerator, size_t denominator, int sign) {
  const size_t turn = 4 * denominator;
  size_t part = 4 * (numerator % denominator);
  const bool is_lower = 2 * part > turn;
  if (is_lower) part = turn - part;
  const bool is_left = 4 * part > turn;
  if (is_left) part = turn / 2 - part;
  const bool is_steep = 8 * part > turn;
  if (is_steep) part = turn / 4 - part;
  const double angle = 2 * M_PI * static_cast<double>(part) / static_cast<double>(turn);
  const double x = is_steep ? sin(angle) : cos(angle), y = is_steep ? cos(angle) : sin(angle);
  return {is_left ? -x : x, is_lower ? -sign * y : sign * y};
}

static size_t smallest_factor(size_t number) {
  for (size_t factor = 2; factor * factor <= number; factor++) {
    if (number % factor == 0) return factor;
  }
  return number;
}

static size_t largest_factor(size_t number) {
  size_t factor = 1;
  while (number > 1) {
    factor = smallest_factor(number);
    number /= factor;
  }
  return factor;
}

Transform::Transform(size_t length, int sign) : length_(length) {
  for (size_t k = 0; k < length; k++) roots_.push_back(unit(k, length, sign));
  if (largest_factor(length) > kLargestRadix) prepare_convolution(sign);
}

void Transform::operator()(std::vector<Number>& row) {
  if (!padded_.empty()) return by_convolution(row);
  result_.resize(length_);
  mixed_radix(row.data(), 1, result_.data(), length_);
  row = result_;
}

// ---- Lengths of small factors: the transforms of `radix` interleaved parts are combined ----------------------------

void Transform::mixed_radix(const Number* in, size_t stride, Number* out, size_t length) {
  if (length == 1) {
    out[0] = in[0];
    return;
  }
  const size_t radix = smallest_factor(length);
  const size_t part = length / radix;
  for (size_t r = 0; r < radix; r++) mixed_radix(in + r * stride, stride * radix, out + r * part, part);
  combine(out, length, radix);
}

void Transform::combine(Number* out, size_t length, size_t radix) {
  const size_t part = length / radix;
  const size_t step = length_ / length;  // of the table of roots
  Number terms[kLargestRadix];
  for (size_t k = 0; k < part; k++) {
    for (size_t r = 0; r < radix; r++) terms[r] = out[r * part + k] * roots_[r * k * step];
    for (size_t j = 0; j < radix; j++) {
      Number sum = terms[0];
      for (size_t r = 1; r < radix; r++) sum = sum + terms[r] * roots_[r * j % radix * part * step];
      out[j * part + k] = sum;
    }
  }
}

// ---- Other lengths: 2 j k = j^2 + k^2 - (k - j)^2, so a transform is a convolution (Bluestein) ----------------------

void Transform::prepare_convolution(int sign) {
  size_t padded = 1;
  while (padded < 2 * length_ - 1) padded *= 2;
  padded_.emplace_back(padded, -1);
  padded_.emplace_back(padded, 1);
  spectrum_.assign(padded, Number{0, 0});
  for (size_t k = 0; k < length_; k++) {
    chirp_.push_back(unit(k * k % (2 * length_), 2 * length_, sign));
    spectrum_[k] = spectrum_[(padded - k) % padded] = conjugate(chirp_[k]);
  }
  padded_[0](spectrum_);
}

void Transform::by_convolution(std::vector<Number>& row) {
  const size_t padded = spectrum_.size();
  std::vector<Number> product(padded, Number{0, 0});
  for (size_t k = 0; k < length_; k++) product[k] = row[k] * chirp_[k];
  padded_[0](product);
  for (size_t k = 0; k < padded; k++) product[k] = product[k] * spectrum_[k];
  padded_[1](product);
  const double scale = 1 / static_cast<double>(padded);
  for (size_t k = 0; k < length_; k++) row[k] = product[k] * chirp_[k] * Number{scale, 0};
}

}  // namespace cudasim::cufft
