// Transposition of tiles in registers.
#pragma once

#include <utility>

#include "vectors.hpp"

// Vectors as wide as registers, and of 4 lanes, with lanes<...>(a, b, to): those of a are numbered [0, L), of b [L, 2 L).
// By reference, as those of 4 lanes may be wider than registers.
// No template on L: GCC 11 takes shuffles of no dependent type.
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, indices{__VA_ARGS__})
#endif

struct Wide {
  static constexpr int L = LANES;
  typedef vector_t vector;
  typedef decltype(vector{} < vector{}) indices;

  template <int... LANE>
  INLINE void lanes(const vector& a, const vector& b, vector& to) {
    to = SHUFFLE(a, b, LANE...);
  }
};

struct Quad {
  static constexpr int L = 4;
  typedef scalar_t vector __attribute__((vector_size(4 * sizeof(scalar_t))));
  typedef decltype(vector{} < vector{}) indices;

  template <int... LANE>
  INLINE void lanes(const vector& a, const vector& b, vector& to) {
    to = SHUFFLE(a, b, LANE...);
  }
};

// Swap the blocks of D x D off the diagonal in each block of 2 D x 2 D.
template <class V, int D, int... LANE>
INLINE void swap_blocks(typename V::vector* rows, std::integer_sequence<int, LANE...>) {
  constexpr int L = V::L;
#pragma GCC unroll 16
  for (int i = 0; i < L; i++) {
    if (i & D) continue;
    typename V::vector a = rows[i], b = rows[i + D];
    V::template lanes<(LANE & D ? L + LANE - D : LANE)...>(a, b, rows[i]);
    V::template lanes<(LANE & D ? L + LANE : LANE + D)...>(a, b, rows[i + D]);
  }
}

template <class V, int D = V::L / 2>
INLINE void transpose(typename V::vector* rows) {
  swap_blocks<V, D>(rows, std::make_integer_sequence<int, V::L>{});
  if constexpr (D > 1) transpose<V, D / 2>(rows);
}

// Of LANES vectors, whose contents are lost, the vector of their sums: a transposition that adds the halves it swaps.
template <int D, int... LANE>
INLINE void add_blocks(vector_t* rows, std::integer_sequence<int, LANE...>) {
#pragma GCC unroll 16
  for (int i = 0; i < D; i++) {
    vector_t a = rows[i], b = rows[i + D];
    vector_t low, high;
    Wide::lanes<(LANE & D ? LANES + LANE - D : LANE)...>(a, b, low);
    Wide::lanes<(LANE & D ? LANES + LANE : LANE + D)...>(a, b, high);
    rows[i] = low + high;
  }
}

template <int D = LANES / 2>
INLINE vector_t sums_of(vector_t* rows) {
  add_blocks<D>(rows, std::make_integer_sequence<int, LANES>{});
  if constexpr (D > 1) return sums_of<D / 2>(rows);
  return rows[0];
}

// y[j * y_step + i] = x[i * x_step + j] for i, j in [0, L).
template <class V>
INLINE void copy_tile(const scalar_t* x, index_t x_step, scalar_t* y, index_t y_step) {
  typename V::vector rows[V::L];
#pragma GCC unroll 16
  for (int i = 0; i < V::L; i++) memcpy(&rows[i], x + i * x_step, sizeof rows[i]);
  transpose<V>(rows);
#pragma GCC unroll 16
  for (int i = 0; i < V::L; i++) memcpy(y + i * y_step, &rows[i], sizeof rows[i]);
}

// y[j * y_step + i] = x[i * x_step + j] for i in [0, rows), j in [0, columns), both at least L: the last tiles overlap.
// Two tiles side by side read whole cache lines of x where it is not aligned.
template <class V>
INLINE void copy_tiles(const scalar_t* x, index_t x_step, scalar_t* y, index_t y_step, index_t rows, index_t columns) {
  constexpr index_t L = V::L;
  for (index_t j = 0; j < columns; j += 2 * L) {
    for (index_t i = 0; i < rows; i += L) {
      index_t row = min(i, rows - L);
      for (index_t k = j; k < min(j + 2 * L, columns); k += L) {
        index_t column = min(k, columns - L);
        copy_tile<V>(x + row * x_step + column, x_step, y + column * y_step + row, y_step);
      }
    }
  }
}

// y[j * rows + i] = x[i * x_step + j] for rows of 2 to 4: each store writes 4 lanes, of which the next one overwrites
// those beyond `rows`.
static inline void interleave(const scalar_t* x, index_t x_step, scalar_t* y, index_t rows, index_t columns) {
  index_t j = 0;
  for (; j + 8 <= columns; j += 4) {
    Quad::vector tile[4];
    for (index_t i = 0; i < 4; i++) memcpy(&tile[i], x + min(i, rows - 1) * x_step + j, sizeof tile[i]);
    transpose<Quad>(tile);
    for (index_t k = 0; k < 4; k++) memcpy(y + (j + k) * rows, &tile[k], sizeof tile[k]);
  }
  for (; j < columns; j++) {
    for (index_t i = 0; i < rows; i++) y[j * rows + i] = x[i * x_step + j];
  }
}

// y[j * y_step + i] = x[i * columns + j] for columns of 2 to 4: each load reads 4 lanes, those of the next row too.
static inline void deinterleave(const scalar_t* x, scalar_t* y, index_t y_step, index_t rows, index_t columns) {
  index_t i = 0;
  for (; i + 8 <= rows; i += 4) {
    Quad::vector tile[4];
    for (index_t k = 0; k < 4; k++) memcpy(&tile[k], x + (i + k) * columns, sizeof tile[k]);
    transpose<Quad>(tile);
    for (index_t j = 0; j < columns; j++) memcpy(y + j * y_step + i, &tile[j], sizeof tile[j]);
  }
  for (; i < rows; i++) {
    for (index_t j = 0; j < columns; j++) y[j * y_step + i] = x[i * columns + j];
  }
}

// y[j * y_step + i] = x[i * x_step + j] for i in [0, rows), j in [0, columns).
static inline void copy_transposed(const scalar_t* x, index_t x_step, scalar_t* y, index_t y_step, index_t rows,
                                   index_t columns) {
  index_t least = min(rows, columns);
  if (least >= LANES) {
    copy_tiles<Wide>(x, x_step, y, y_step, rows, columns);
  } else if (rows > 1 && rows <= 4 && y_step == rows) {
    interleave(x, x_step, y, rows, columns);
  } else if (columns > 1 && columns <= 4 && x_step == columns) {
    deinterleave(x, y, y_step, rows, columns);
  } else if (least >= 4) {
    copy_tiles<Quad>(x, x_step, y, y_step, rows, columns);
  } else {
    for (index_t j = 0; j < columns; j++) {
      for (index_t i = 0; i < rows; i++) y[j * y_step + i] = x[i * x_step + j];
    }
  }
}
