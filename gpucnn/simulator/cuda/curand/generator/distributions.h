// Numbers of the distributions of cupy.random, drawn from random words.
#pragma once
#include <math.h>

#include <algorithm>
#include <limits>

#include "philox.h"

namespace cudasim::random {

constexpr double kTwoPi = 6.283185307179586476925;

// ---- Continuous ----------------------------------------------------------------------------------------------------

// In [0, 1).
inline double uniform(Bits& bits) { return static_cast<double>(bits.next64() >> 11) * 0x1p-53; }
inline float uniform_float(Bits& bits) { return static_cast<float>(bits.next32() >> 8) * 0x1p-24f; }

// In (0, 1], so that it has a logarithm.
inline double positive_uniform(Bits& bits) { return 1.0 - uniform(bits); }

inline double exponential(Bits& bits) { return -log(positive_uniform(bits)); }

// Box and Muller (1958). The second number of each pair is left, as each result has words of its own.
inline double normal(Bits& bits) {
  const double radius = sqrt(2.0 * exponential(bits));
  return radius * cos(kTwoPi * uniform(bits));
}

// Marsaglia and Tsang, "A simple method for generating gamma variables" (2000), for shape >= 1.
inline double gamma_of_large_shape(Bits& bits, double shape) {
  const double d = shape - 1.0 / 3.0;
  const double c = 1.0 / sqrt(9.0 * d);
  for (;;) {
    const double x = normal(bits);
    const double root = 1.0 + c * x;
    if (root <= 0.0) continue;
    const double v = root * root * root;
    if (log(positive_uniform(bits)) < 0.5 * x * x + d - d * v + d * log(v)) return d * v;
  }
}

// The logarithm of a gamma variable, which does not underflow where the shape is small: for shape < 1, that of
// G(shape + 1) U^(1 / shape), from the same paper.
inline double log_gamma_variable(Bits& bits, double shape) {
  if (shape >= 1.0) return log(gamma_of_large_shape(bits, shape));
  const double boost = log(positive_uniform(bits)) / shape;
  return log(gamma_of_large_shape(bits, shape + 1.0)) + boost;
}

inline double standard_gamma(Bits& bits, double shape) {
  if (!(shape >= 0.0)) return std::numeric_limits<double>::quiet_NaN();
  if (shape == 0.0) return 0.0;
  return shape >= 1.0 ? gamma_of_large_shape(bits, shape) : exp(log_gamma_variable(bits, shape));
}

// X / (X + Y) of two gamma variables, from their logarithms.
inline double beta(Bits& bits, double a, double b) {
  if (!(a > 0.0 && b > 0.0)) return std::numeric_limits<double>::quiet_NaN();
  const double first = log_gamma_variable(bits, a);
  const double second = log_gamma_variable(bits, b);
  return 1.0 / (1.0 + exp(second - first));
}

// ---- Integers ------------------------------------------------------------------------------------------------------

// In [0, largest], by rejection; `mask` is the least 2^k - 1 that is not less.
template <class T>
T interval(Bits& bits, T largest, T mask) {
  for (;;) {
    const T value = static_cast<T>(sizeof(T) == 8 ? bits.next64() : bits.next32()) & mask;
    if (value <= largest) return value;
  }
}

// The nearest number there is; that of NaN is the least, as CUDA converts it.
inline int64_t to_integer(double value) {
  constexpr double kLimit = 0x1p63;
  if (value >= kLimit) return std::numeric_limits<int64_t>::max();
  return value >= -kLimit ? static_cast<int64_t>(value) : std::numeric_limits<int64_t>::min();
}

// The number of trials up to the first success, by inversion.
inline int64_t geometric(Bits& bits, double p) {
  if (p >= 1.0) return 1;
  return std::max<int64_t>(1, to_integer(ceil(log(positive_uniform(bits)) / log1p(-p))));
}

// Kemp, "Efficient generation of logarithmically distributed pseudo-random variables" (1981), algorithm LK.
inline int64_t logseries(Bits& bits, double p) {
  const double v = positive_uniform(bits);
  if (v >= p) return 1;
  const double q = -expm1(log1p(-p) * uniform(bits));
  if (v <= q * q) return std::max<int64_t>(1, to_integer(floor(1.0 + log(v) / log(q))));
  return v >= q ? 1 : 2;
}

// ---- Poisson, binomial and hypergeometric --------------------------------------------------------------------------

// Such a distribution has log_probability(k), and rise(k), which is P(k + 1) / P(k), for k in [low, high].
struct Range {
  int64_t low;
  int64_t high;
  int64_t mode;
};

// Inversion that starts at the mode and goes to the two sides in turn: some standard deviations of steps.
template <class Distribution>
int64_t invert_from_mode(Bits& bits, const Distribution& distribution, Range range) {
  const double at_mode = exp(distribution.log_probability(static_cast<double>(range.mode)));
  for (;;) {
    double left = uniform(bits) - at_mode;
    if (left < 0.0) return range.mode;
    int64_t down = range.mode;
    int64_t up = range.mode;
    double down_probability = at_mode;
    double up_probability = at_mode;
    while (down_probability > 0.0 || up_probability > 0.0) {
      up_probability = up < range.high ? up_probability * distribution.rise(static_cast<double>(up)) : 0.0;
      left -= up_probability;
      up++;
      if (left < 0.0) return up;
      down--;
      down_probability = down >= range.low ? down_probability / distribution.rise(static_cast<double>(down)) : 0.0;
      left -= down_probability;
      if (left < 0.0) return down;
    }
    // Rounding has left a rest that belongs to no value: draw again.
  }
}

// Stadlober, "The ratio of uniforms approach for generating discrete random variates" (1990): its table mountain hat
// covers these three distributions.
template <class Distribution>
int64_t ratio_of_uniforms(Bits& bits, const Distribution& distribution, Range range) {
  const double hat_width = 2.0 * sqrt(2.0 / exp(1.0)) * sqrt(distribution.variance() + 0.5);
  const double width = hat_width + 3.0 - 2.0 * sqrt(3.0 / exp(1.0));
  const double centre = distribution.mean() + 0.5;
  const double at_mode = distribution.log_probability(static_cast<double>(range.mode));
  for (;;) {
    const double u = positive_uniform(bits);
    const double k = floor(centre + width * (uniform(bits) - 0.5) / u);
    if (k < static_cast<double>(range.low) || k > static_cast<double>(range.high)) continue;
    if (2.0 * log(u) <= distribution.log_probability(k) - at_mode) return to_integer(k);
  }
}

// Inversion takes steps in proportion to the deviation, rejection does not; below, inversion is faster.
template <class Distribution>
int64_t draw(Bits& bits, const Distribution& distribution, Range range) {
  constexpr double kMaxInversionVariance = 100.0;
  if (range.low == range.high) return range.low;
  if (distribution.variance() <= kMaxInversionVariance) return invert_from_mode(bits, distribution, range);
  return ratio_of_uniforms(bits, distribution, range);
}

// Loader, "Fast and accurate computation of binomial probabilities" (2000): with these two, probabilities lose no
// digits where the numbers are large, as differences of log-factorials would.

// log(n!) less Stirling's formula for it.
inline double stirling_error(double n) {
  if (n == 0.0) return 0.0;
  if (n < 16.0) return lgamma(n + 1.0) - (n + 0.5) * log(n) + n - 0.5 * log(kTwoPi);
  const double square = n * n;
  return (1.0 / 12.0 - (1.0 / 360.0 - 1.0 / (1260.0 * square)) / square) / n;
}

// x log(x / mean) + mean - x
inline double deviance(double x, double mean) {
  if (fabs(x - mean) >= 0.1 * (x + mean)) return x * log(x / mean) + mean - x;
  const double v = (x - mean) / (x + mean);
  double sum = (x - mean) * v;
  double power = 2.0 * x * v;
  for (int j = 3;; j += 2) {
    power *= v * v;
    const double next = sum + power / j;
    if (next == sum) return sum;
    sum = next;
  }
}

inline double log_binomial_probability(double k, double n, double p) {
  if (k == 0.0) return n * log1p(-p);
  if (k == n) return n * log(p);
  const double rest = n - k;
  const double errors = stirling_error(n) - stirling_error(k) - stirling_error(rest);
  const double deviances = deviance(k, n * p) + deviance(rest, n * (1.0 - p));
  return errors - deviances + 0.5 * log(n / (kTwoPi * k * rest));
}

struct Poisson {
  double lambda;

  double mean() const { return lambda; }
  double variance() const { return lambda; }
  double rise(double k) const { return lambda / (k + 1.0); }
  double log_probability(double k) const {
    if (k == 0.0) return -lambda;
    return -stirling_error(k) - deviance(k, lambda) - 0.5 * log(kTwoPi * k);
  }
};

struct Binomial {
  double n;
  double p;

  double mean() const { return n * p; }
  double variance() const { return n * p * (1.0 - p); }
  double rise(double k) const { return (n - k) / (k + 1.0) * (p / (1.0 - p)); }
  double log_probability(double k) const { return log_binomial_probability(k, n, p); }
};

struct Hypergeometric {
  double good;
  double bad;
  double sample;

  double share() const { return sample / (good + bad); }
  double mean() const { return share() * good; }
  double variance() const {
    const double total = good + bad;
    return mean() * (bad / total) * ((total - sample) / (total - 1.0));
  }
  double rise(double k) const { return (good - k) * (sample - k) / ((k + 1.0) * (bad - sample + k + 1.0)); }
  double log_probability(double k) const {
    return log_binomial_probability(k, good, share()) + log_binomial_probability(sample - k, bad, share()) -
           log_binomial_probability(sample, good + bad, share());
  }
};

inline int64_t poisson(Bits& bits, double lambda) {
  constexpr double kLargest = 0x1p62;
  if (!(lambda > 0.0)) return 0;
  if (lambda > kLargest) return to_integer(lambda);
  const int64_t mode = to_integer(floor(lambda));
  return draw(bits, Poisson{lambda}, {0, std::numeric_limits<int64_t>::max(), mode});
}

inline int64_t binomial(Bits& bits, int64_t trials, double p) {
  if (trials <= 0 || !(p > 0.0)) return 0;
  if (p >= 1.0) return trials;
  const auto n = static_cast<double>(trials);
  const int64_t mode = std::min(trials, to_integer(floor((n + 1.0) * p)));
  return draw(bits, Binomial{n, p}, {0, trials, mode});
}

// The good ones in a sample out of `good` and `bad` ones.
inline int64_t hypergeometric(Bits& bits, int64_t good, int64_t bad, int64_t sample) {
  if (good <= 0 || sample <= 0) return 0;
  if (bad <= 0) return std::min(good, sample);
  if (sample - bad >= good) return good;
  const Hypergeometric distribution = {static_cast<double>(good), static_cast<double>(bad),
                                       static_cast<double>(sample)};
  const int64_t low = std::max<int64_t>(0, sample - bad);
  const int64_t high = std::min(good, sample);
  const double share = (distribution.good + 1.0) / (distribution.good + distribution.bad + 2.0);
  const int64_t middle = to_integer(floor((distribution.sample + 1.0) * share));
  return draw(bits, distribution, {low, high, std::clamp(middle, low, high)});
}

}  // namespace cudasim::random
