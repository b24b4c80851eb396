// Arithmetic of the norms: moments about a nearby mean, what becomes of each value, and loops over contiguous values.
//
// Sums are taken in SCALAR over at most PIECE values, which stay in the first cache, and are merged in double. Results
// may be written twice, with the same bits: the last vector of a run of no whole vectors overlaps the one before it.
#pragma once

#include <limits>

#include "activation.hpp"
#include "vectors.hpp"

constexpr index_t PIECE = 4096;

#define LAMBDA __attribute__((always_inline))
#define INLINE_METHOD __attribute__((always_inline)) inline

// --- Vectors or scalars, as V ----------------------------------------------------------------------------------------

template <class V>
constexpr index_t WIDTH = sizeof(V) / sizeof(scalar_t);

template <class V>
INLINE V get(const scalar_t* from) {
  V v;
  memcpy(&v, from, sizeof v);
  return v;
}

template <class V>
INLINE void put(scalar_t* to, V v) {
  memcpy(to, &v, sizeof v);
}

template <class V>
INLINE V all(scalar_t value) {
  return value - V{};
}

// The `rest` last values of a run, rest in [1, LANES); the other lanes are `fill`.
INLINE vector_t load_rest(const scalar_t* run, index_t length, index_t rest, scalar_t fill) {
  vector_t v = broadcast(fill);
  if (length < LANES) {
    memcpy(&v, run, rest * sizeof(scalar_t));
    return v;
  }
  vector_t lane;
  for (int i = 0; i < LANES; i++) lane[i] = scalar_t(i);
  return lane >= broadcast(scalar_t(LANES - rest)) ? load(run + length - LANES) : v;
}

// Call f<V>(i) for vectors at i that cover [0, length), or for each value of a shorter run.
template <class F>
INLINE void for_vectors(index_t length, F f) {
  index_t i = 0;
  for (; i + LANES <= length; i += LANES) f.template operator()<vector_t>(i);
  if (i == length) return;
  if (length >= LANES) {
    f.template operator()<vector_t>(length - LANES);
  } else {
    for (; i < length; i++) f.template operator()<scalar_t>(i);
  }
}

// Call f<V, S>(i) for strips of S vectors at i that cover [0, length), or for each value of a shorter run.
template <class F>
INLINE void for_strips(index_t length, F f) {
  constexpr index_t STRIP = 4 * LANES;
  index_t whole = length / STRIP * STRIP;
  for (index_t i = 0; i < whole; i += STRIP) f.template operator()<vector_t, 4>(i);
  if (whole < length) for_vectors(length - whole, [&]<class V>(index_t i) LAMBDA {
    f.template operator()<V, 1>(whole + i);
  });
}

template <int BYTES>
struct Doubles {
  typedef double vector __attribute__((vector_size(BYTES)));
};

// The sum of a vector of doubles, by halves.
template <int BYTES>
INLINE double by_halves(typename Doubles<BYTES>::vector v) {
  if constexpr (BYTES == 16) {
    return v[0] + v[1];
  } else {
    typename Doubles<BYTES / 2>::vector half[2];
    memcpy(half, &v, sizeof v);
    return by_halves<BYTES / 2>(half[0] + half[1]);
  }
}

// The sum of the lanes, in double.
template <class Scalar = scalar_t>
INLINE double total(vector_t v) {
  typedef typename Doubles<VECTOR_BYTES>::vector wide_t;
  if constexpr (sizeof(Scalar) == sizeof(double)) {
    return by_halves<VECTOR_BYTES>((wide_t)v);
  } else {
    typedef Scalar half_t __attribute__((vector_size(VECTOR_BYTES / 2)));
    half_t half[2];
    memcpy(half, &v, sizeof v);
    return by_halves<VECTOR_BYTES>(__builtin_convertvector(half[0], wide_t) + __builtin_convertvector(half[1], wide_t));
  }
}

// --- Statistics ------------------------------------------------------------------------------------------------------

// The values of a statistic: `count` runs of `length` values, `stride` apart.
struct Runs {
  index_t count, stride, length;
};

// Call f(offset, runs) for pieces of about PIECE values, of whole runs where these are shorter.
template <class F>
INLINE void for_pieces(Runs runs, F f) {
  if (runs.length * runs.count <= PIECE) return f(0, runs);
  index_t pieces = ceil_div(runs.length, PIECE), together = std::max<index_t>(1, PIECE / runs.length);
  for (index_t run = 0; run < runs.count; run += together) {
    for (index_t piece = 0; piece < pieces; piece++) {
      Range part = part_of(runs.length, piece, pieces);
      index_t count = std::min(together, runs.count - run);
      f(run * runs.stride + part.begin, Runs{count, runs.stride, part.end - part.begin});
    }
  }
}

// A vector of a run: LANES values, or the `rest` last ones, where other lanes are `fill`.
struct Whole {
  index_t at;
  INLINE_METHOD vector_t of(const scalar_t* x, scalar_t) const { return load(x + at); }
  INLINE_METHOD void prefetch(const scalar_t* x) const { __builtin_prefetch(x + at); }
};

struct Rest {
  index_t run, length, rest;
  INLINE_METHOD vector_t of(const scalar_t* x, scalar_t fill) const { return load_rest(x + run, length, rest, fill); }
  INLINE_METHOD void prefetch(const scalar_t*) const {}
};

// Call f(vector, k) for all values; k in [0, 4) is an accumulator, known at compile time.
template <class F>
INLINE void for_runs(Runs runs, F f) {
  index_t rest = runs.length % LANES;
  for (index_t run = 0; run < runs.count; run++) {
    index_t base = run * runs.stride, i = base, end = base + runs.length;
    for (; i + 4 * LANES <= end; i += 4 * LANES) {
      f(Whole{i}, 0);
      f(Whole{i + LANES}, 1);
      f(Whole{i + 2 * LANES}, 2);
      f(Whole{i + 3 * LANES}, 3);
    }
    for (; i + LANES <= end; i += LANES) f(Whole{i}, 0);
    if (rest) f(Rest{base, runs.length, rest}, 1);
  }
}

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

INLINE Moments piece_moments(const scalar_t* x, Runs runs) {
  vector_t sum[4] = {}, first[4] = {}, second[4] = {};
  double count = double(runs.count * runs.length);
  for_runs(runs, [&](auto at, int k) LAMBDA { sum[k] += at.of(x, 0); });
  scalar_t centre = scalar_t(total((sum[0] + sum[1]) + (sum[2] + sum[3])) * (1 / count));
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

using limits = std::numeric_limits<scalar_t>;
constexpr scalar_t LEAST_VARIANCE = limits::min() / limits::epsilon(), MOST_VARIANCE = limits::max();

INLINE bool fits(scalar_t var, scalar_t eps) { return var + eps >= LEAST_VARIANCE && var + eps <= MOST_VARIANCE; }

// The statistic of values whose squares leave the range of SCALAR, from values times a power of two.
__attribute__((noinline)) static Statistic scaled_statistic(const scalar_t* x, Runs runs, scalar_t eps, Moments found) {
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
  }
  double rest = first / count, scale = before * after, square = (second - first * rest) / count;
  square = square < 0 ? 0 : square;
  scalar_t mean = scalar_t((centre + rest / after) / before), var = scalar_t(square / scale / scale);
  if (fits(var, eps)) return {mean, var, reciprocal(var, eps)};
  return {mean, var, scalar_t(scale / std::sqrt(square + eps * scale * scale))};
}

// The statistic of the values x, of which `found` are the moments.
INLINE Statistic statistic(const scalar_t* x, Runs runs, double eps, Moments found) {
  double square = found.square < 0 ? 0 : found.square;
  scalar_t var = scalar_t(square * (1 / found.count));
  if (!fits(var, scalar_t(eps))) return scaled_statistic(x, runs, scalar_t(eps), found);
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

// Call f with what becomes of each value: forward without `grad_y`, backward with it.
template <class F>
INLINE void with_activation(index_t activation, double negative_slope, const scalar_t* grad_y, const scalar_t* x,
                            const scalar_t* residual, scalar_t* y, F f) {
  auto call = [&]<int ACTIVATION>() LAMBDA {
    Forward<ACTIVATION> forward = {x, residual, y, scalar_t(negative_slope)};
    if (grad_y) {
      f(Backward<ACTIVATION>{forward, grad_y});
    } else {
      f(forward);
    }
  };
  if (activation == NO_ACTIVATION) call.template operator()<NO_ACTIVATION>();
  if (activation == RELU) call.template operator()<RELU>();
  if (activation == LEAKY_RELU) call.template operator()<LEAKY_RELU>();
  if (activation == RELU6) call.template operator()<RELU6>();
}

// The gradient rstd * (g - share_g - h * share_gh) with g = grad_y * weight and h = (x - mean) * rstd.
struct Gradient {
  const scalar_t *grad_y, *x;
  scalar_t* y;

  template <class V>
  INLINE_METHOD V operator()(index_t i, V mean, V rstd, V of_grad, V of_h, V shift) const {
    V h = (get<V>(x + i) - mean) * rstd;
    return get<V>(grad_y + i) * of_grad + (h * of_h + shift);
  }
};

struct Sums {
  double g, gh;
};
