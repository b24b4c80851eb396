// Transposes of LANES x LANES scalars in registers, and of whole matrices by them.
#pragma once

#include <utility>

#include "vectors.hpp"

// Swaps the lanes with bit S of a with those without it of b: one stage of a transpose.
template <int S, int... L>
INLINE void exchange(vector_t& a, vector_t& b, std::integer_sequence<int, L...>) {
#if defined(__clang__)
  vector_t low = __builtin_shufflevector(a, b, (L & S ? LANES + L - S : L)...);
  vector_t high = __builtin_shufflevector(a, b, (L & S ? LANES + L : L + S)...);
#else
  using lane_t = std::conditional_t<sizeof(scalar_t) == 4, int32_t, int64_t>;
  typedef lane_t lanes_t __attribute__((vector_size(VECTOR_BYTES)));
  vector_t low = __builtin_shuffle(a, b, lanes_t{(L & S ? LANES + L - S : L)...});
  vector_t high = __builtin_shuffle(a, b, lanes_t{(L & S ? LANES + L : L + S)...});
#endif
  a = low, b = high;
}

template <int S = LANES / 2>
INLINE void transpose(vector_t (&rows)[LANES]) {
  for (int i = 0; i < LANES; i++)
    if (!(i & S)) exchange<S>(rows[i], rows[i + S], std::make_integer_sequence<int, LANES>());
  if constexpr (S > 1) transpose<S / 2>(rows);
}

// to[j * to_row + i] = from[i * from_row + j] for i in [0, rows), j in [0, columns). Where an extent is no multiple of
// LANES, the last part overlaps the one before.
static void transposed(const scalar_t* from, index_t from_row, index_t rows, index_t columns, scalar_t* to,
                       index_t to_row) {
  if (rows < LANES || columns < LANES) {
    for (index_t j = 0; j < columns; j++)
      for (index_t i = 0; i < rows; i++) to[j * to_row + i] = from[i * from_row + j];
    return;
  }
  for (index_t row = 0; row < rows; row += LANES) {
    index_t i = std::min(row, rows - LANES);
    for (index_t column = 0; column < columns; column += LANES) {
      index_t j = std::min(column, columns - LANES);
      vector_t part[LANES];
      for (int r = 0; r < LANES; r++) part[r] = load(from + (i + r) * from_row + j);
      transpose(part);
      for (int r = 0; r < LANES; r++) store(to + (j + r) * to_row + i, part[r]);
    }
  }
}
