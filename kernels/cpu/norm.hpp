// Arithmetic of the norms: moments about a nearby mean, and what becomes of each value.
#pragma once

#include <cmath>
#include <limits>

#include "activation.hpp"
#include "runs.hpp"

// --- Statistics ------------------------------------------------------------------------------------------------------

struct Moments {
  double count, mean, square;  // the sum of squares about the mean
};

// Moments of both, by Chan's formula.
INLINE Moments merged(Moments a, Moments b) {
  if (!a.count) return b;
  double count = a.count + b.count, away = b.mean - a.mean, share = b.count / count;
  return {count, a.mean + away * share, a.square + b.square + away * away * a.count * share};
}

// Moments of values of which `first` is the sum about `centre`, and `second` that of the squares.
INLINE Moments about(double count, double centre, double first, double second) {
  double rest = first * (1 / count);  // of the mean's rounding
  return {count, centre + rest, second - first * rest};
}

// The same values' moments about 0 in place of their mean.
INLINE Moments about_zero(Moments m) { return {m.count, 0, m.square + m.count * m.mean * m.mean}; }

// About a quarter of the values of a piece. Their mean is as good a centre as that of all: it is at most twice the
// standard deviation away from it, so that the sum of squares about it is at most five times that about the mean.
INLINE Runs sample_of(Runs runs) {
  if (runs.count >= 4) return {ceil_div(runs.count, 4), runs.stride, runs.length};
  return {runs.count, runs.stride, min(round_up(ceil_div(runs.length, 4), LANES), runs.length)};
}

INLINE Moments piece_moments(const scalar_t* x, Runs runs) {
  vector_t sum[4] = {}, first[4] = {}, second[4] = {};
  double count = double(runs.count * runs.length);
  Runs sample = sample_of(runs);
  for_runs(sample, [&](auto at, int k) LAMBDA { sum[k] += at.of(x, 0); });
  scalar_t centre = scalar_t(total((sum[0] + sum[1]) + (sum[2] + sum[3])) / double(sample.count * sample.length));
  vector_t mean = broadcast(centre);
  for_runs(runs, [&](auto at, int k) LAMBDA {
    vector_t away = at.of(x, centre) - mean;
    at.prefetch(x + runs.length);  // what is read next, while this comes from the cache
    first[k] += away;
    second[k] += away * away;
  });
  return about(count, centre, total((first[0] + first[1]) + (first[2] + first[3])),
               total((second[0] + second[1]) + (second[2] + second[3])));
}

INLINE Moments moments(const scalar_t* x, Runs runs) {
  Moments found = {};
  for_pieces(runs, [&](index_t at, Runs piece) LAMBDA { found = merged(found, piece_moments(x + at, piece)); });
  return found;
}

struct Statistic {
  scalar_t mean, var, rstd;
};

INLINE scalar_t reciprocal(scalar_t var, scalar_t eps) { return 1 / std::sqrt(var + eps); }

// The reciprocal standard deviations of `count` statistics: where they `are_given` var itself, else made of it in `to`.
INLINE const scalar_t* reciprocals(const scalar_t* var, bool are_given, index_t count, double eps, scalar_t* to) {
  if (are_given) return var;
  for (index_t i = 0; i < count; i++) to[i] = reciprocal(var[i], scalar_t(eps));
  return to;
}

using limits = std::numeric_limits<scalar_t>;
constexpr scalar_t LEAST_VARIANCE = limits::min() / limits::epsilon(), MOST_VARIANCE = limits::max();

INLINE bool fits(scalar_t var, scalar_t eps) { return var + eps >= LEAST_VARIANCE && var + eps <= MOST_VARIANCE; }

// The statistic of values whose squares leave the range of SCALAR, from values times a power of two.
__attribute__((noinline)) static Statistic scaled_statistic(const scalar_t* x, Runs runs, scalar_t eps, Moments found,
                                                            bool centred) {
  double far = std::ldexp(1.0, 3 * limits::max_exponent / 4), count = double(runs.count * runs.length);
  bool is_small = found.square / count + eps < LEAST_VARIANCE;
  double before = is_small ? 1 : 1 / far, after = is_small ? far : 1;  // the mean is subtracted in between
  double centre = is_small ? found.mean : 0, first = 0, second = 0;
  for (int pass = 0; pass < 2; pass++) {
    centre += first / count / after;
    first = second = 0;
    for (index_t run = 0; run < runs.count; run++) {
      double run_first = 0, run_second = 0;
      for (index_t i = 0; i < runs.length; i++) {
        double away = (x[run * runs.stride + i] * before - centre) * after;
        run_first += away;
        run_second += away * away;
      }
      first += run_first;
      second += run_second;
    }
    if (!centred) first = 0;
  }
  double rest = first / count, scale = before * after, square = (second - first * rest) / count;
  square = square < 0 ? 0 : square;
  scalar_t mean = scalar_t((centre + rest / after) / before), var = scalar_t(square / scale / scale);
  if (fits(var, eps)) return {mean, var, reciprocal(var, eps)};
  return {mean, var, scalar_t(scale / std::sqrt(square + eps * scale * scale))};
}

// The statistic of the values x, of which `found` are the moments: about 0 where they are not `centred`.
INLINE Statistic statistic(const scalar_t* x, Runs runs, double eps, Moments found, bool centred = true) {
  double square = found.square < 0 ? 0 : found.square;
  scalar_t var = scalar_t(square * (1 / found.count));
  if (!fits(var, scalar_t(eps))) return scaled_statistic(x, runs, scalar_t(eps), found, centred);
  return {scalar_t(found.mean), var, reciprocal(var, scalar_t(eps))};
}

// --- What becomes of each value --------------------------------------------------------------------------------------

// The activation of (x - mean) * scale + shift + residual, or its gradient.
template <int ACTIVATION>
struct Forward {
  const scalar_t *x, *residual;
  scalar_t* y;
  scalar_t slope;

  template <class V>
  INLINE_METHOD V before(index_t i, V mean, V scale, V shift) const {
    V value = (get<V>(x + i) - mean) * scale + shift;
    return residual ? value + get<V>(residual + i) : value;
  }

  template <class V>
  INLINE_METHOD V operator()(index_t i, V mean, V scale, V shift) const {
    V value = before(i, mean, scale, shift), zero = {};
    if constexpr (ACTIVATION == RELU) return value <= zero ? zero : value;
    if constexpr (ACTIVATION == LEAKY_RELU) return value > zero ? value : value * all<V>(slope);
    if constexpr (ACTIVATION == RELU6) {
      V below = value <= zero ? zero : value;
      return below >= all<V>(6) ? all<V>(6) : below;
    }
    return value;
  }
};

template <int ACTIVATION>
struct Backward : Forward<ACTIVATION> {
  const scalar_t* grad_y;

  template <class V>
  INLINE_METHOD V operator()(index_t i, V mean, V scale, V shift) const {
    V value = this->before(i, mean, scale, shift), grad = get<V>(grad_y + i), zero = {};
    if constexpr (ACTIVATION == RELU) return value <= zero ? zero : grad;
    if constexpr (ACTIVATION == LEAKY_RELU) return value > zero ? grad : grad * all<V>(this->slope);
    if constexpr (ACTIVATION == RELU6) {
      V above = value <= zero ? zero : grad;
      return value >= all<V>(6) ? zero : above;
    }
    return grad;
  }
};

// Call f<ACTIVATION>().
template <class F>
INLINE void with_constant(index_t activation, F f) {
  if (activation == NO_ACTIVATION) f.template operator()<NO_ACTIVATION>();
  if (activation == RELU) f.template operator()<RELU>();
  if (activation == LEAKY_RELU) f.template operator()<LEAKY_RELU>();
  if (activation == RELU6) f.template operator()<RELU6>();
}

// Call f with what becomes of each value forward.
template <class F>
INLINE void with_forward(index_t activation, double slope, const scalar_t* x, const scalar_t* residual, scalar_t* y,
                         F f) {
  with_constant(activation, [&]<int ACTIVATION>() LAMBDA { f(Forward<ACTIVATION>{x, residual, y, scalar_t(slope)}); });
}

// As above, or backward if there is a `grad_y`.
template <class F>
INLINE void with_activation(index_t activation, double slope, const scalar_t* grad_y, const scalar_t* x,
                            const scalar_t* residual, scalar_t* y, F f) {
  if (!grad_y) return with_forward(activation, slope, x, residual, y, f);
  with_constant(activation, [&]<int ACTIVATION>() LAMBDA {
    f(Backward<ACTIVATION>{{x, residual, y, scalar_t(slope)}, grad_y});
  });
}

// The gradient rstd * (g - share_g - h * share_gh) with g = grad_y * weight and h = (x - mean) * rstd.
struct Gradient {
  const scalar_t *grad_y, *x;
  scalar_t* y;

  INLINE_METHOD Gradient at(index_t i) const { return {grad_y + i, x + i, y + i}; }

  template <class V>
  INLINE_METHOD V operator()(index_t i, V mean, V rstd, V of_grad, V of_h, V shift) const {
    V h = (get<V>(x + i) - mean) * rstd;
    return get<V>(grad_y + i) * of_grad + (h * of_h + shift);
  }
};

struct Sums {
  double g, gh;
};
