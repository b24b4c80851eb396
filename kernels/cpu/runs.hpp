// Loops over contiguous values: by vectors, or by scalars where there are too few for one, as V.
//
// Sums are taken in SCALAR over at most PIECE values, which stay in the first cache, and are merged in double. Results
// may be written twice, with the same bits: the last vector of a run of no whole vectors overlaps the one before it.
#pragma once

#include "vectors.hpp"

constexpr index_t PIECE = 4096;

#define INLINE_METHOD __attribute__((always_inline)) inline

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

// The first `count` values, count in [0, LANES); the other lanes are `fill`. Left a loop, it becomes a masked load,
// and unrolled, branches. By a copy of `count` values, of which the vector's load waits for the stores, layer norm of rows
// of 9 took twice as long.
INLINE vector_t load_part(const scalar_t* from, int count, scalar_t fill) {
  scalar_t lanes[LANES];
#pragma GCC unroll 1
  for (int i = 0; i < LANES; i++) lanes[i] = i < count ? from[i] : fill;
  return load(lanes);
}

// The `rest` last values of a run, rest in [1, LANES); the other lanes are `fill`.
INLINE vector_t load_rest(const scalar_t* run, index_t length, index_t rest, scalar_t fill) {
  if (length < LANES) return load_part(run, int(rest), fill);
  vector_t lane;
  for (int i = 0; i < LANES; i++) lane[i] = scalar_t(i);
  return lane >= broadcast(scalar_t(LANES - rest)) ? load(run + length - LANES) : broadcast(fill);
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

// --- Runs ------------------------------------------------------------------------------------------------------------

// `count` runs of `length` values, `stride` apart.
struct Runs {
  index_t count, stride, length;
};

// Call f(offset, runs) for pieces of about PIECE values, of whole runs where these are shorter.
template <class F>
INLINE void for_pieces(Runs runs, F f) {
  if (runs.length * runs.count <= PIECE) return f(0, runs);
  index_t pieces = ceil_div(runs.length, PIECE), together = max<index_t>(1, PIECE / runs.length);
  for (index_t run = 0; run < runs.count; run += together) {
    for (index_t piece = 0; piece < pieces; piece++) {
      Range part = part_of(runs.length, piece, pieces);
      index_t count = min(together, runs.count - run);
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
