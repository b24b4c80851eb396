// Vectors of SCALAR in the compiler's vector extensions: as wide as the machine's registers, the same source for all.
#pragma once

#include <cstdint>
#include <cstring>

using index_t = int64_t;
using scalar_t = SCALAR;

#define KERNEL extern "C" __attribute__((visibility("default"))) void
#define INLINE static inline __attribute__((always_inline))
#define LAMBDA __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif

typedef scalar_t vector_t __attribute__((vector_size(VECTOR_BYTES)));

constexpr int LANES = VECTOR_BYTES / sizeof(scalar_t);

INLINE vector_t load(const scalar_t* from) {
  vector_t v;
  memcpy(&v, from, sizeof v);
  return v;
}

INLINE void store(scalar_t* to, vector_t v) { memcpy(to, &v, sizeof v); }

// The first `count` lanes, count in [0, LANES); the others are zero, and not stored.
INLINE vector_t load_first(const scalar_t* from, index_t count) {
  vector_t v = {};
  memcpy(&v, from, count * sizeof(scalar_t));
  return v;
}

INLINE void store_first(scalar_t* to, vector_t v, index_t count) { memcpy(to, &v, count * sizeof(scalar_t)); }

// to[0, count) = from[0, count), which do not overlap: by vectors, or the longest parts of one that fit, of which the last
// overlaps the one before. For short runs, where a call of memcpy takes longer than the copy.
template <int LENGTH = LANES>
INLINE void copy_run(const scalar_t* from, scalar_t* to, index_t count) {
  if (count >= LENGTH) {
    for (index_t i = 0; i < count - LENGTH; i += LENGTH) memcpy(to + i, from + i, LENGTH * sizeof(scalar_t));
    memcpy(to + count - LENGTH, from + count - LENGTH, LENGTH * sizeof(scalar_t));
  } else if constexpr (LENGTH > 1) {
    copy_run<LENGTH / 2>(from, to, count);
  }
}

// A vector, or a scalar as V.
template <class V>
INLINE V all(scalar_t value) {
  return value - V{};
}

INLINE vector_t broadcast(scalar_t value) { return all<vector_t>(value); }

INLINE scalar_t sum_of_lanes(vector_t v) {
  scalar_t lanes[LANES];
  memcpy(lanes, &v, sizeof v);
  for (int half = LANES / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

INLINE index_t round_up(index_t count, index_t multiple) { return (count + multiple - 1) / multiple * multiple; }

INLINE index_t ceil_div(index_t a, index_t b) { return (a + b - 1) / b; }

// These of <algorithm>, which takes compilers as long as a small kernel.
template <class T>
INLINE constexpr T min(T a, T b) {
  return b < a ? b : a;
}

template <class T>
INLINE constexpr T max(T a, T b) {
  return a < b ? b : a;
}

template <class T>
INLINE constexpr T clamp(T value, T least, T most) {
  return min(max(value, least), most);
}

template <class T, class Value>
static __attribute__((noinline)) void fill(T* begin, T* end, Value value) {
  for (; begin < end; begin++) *begin = T(value);
}

template <class T, class Value>
INLINE void fill_n(T* begin, index_t count, Value value) {
  fill(begin, begin + count, value);
}

// The range [begin, end) of the `part`-th of `parts` nearly equal parts of `count` items.
struct Range {
  index_t begin, end;
};

INLINE Range part_of(index_t count, index_t part, index_t parts) {
  return {count * part / parts, count * (part + 1) / parts};
}
