// The part of a convolution that multiplies: a tile of outputs in registers, over runs of a block.
#pragma once

#include <type_traits>

#include "epilogue.hpp"
#include "transpose.hpp"

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int MAX_VECTORS = 4;  // 32 registers
constexpr int ROWS[] = {0, 14, 12, 8, 6};
#else
constexpr int MAX_VECTORS = 2;  // 16 registers
constexpr int ROWS[] = {0, 8, 6};
#endif

// Multiply-adds of one output between visits of its sums: the weights that they read, CHUNK * VECTORS vectors, stay in
// the second-level cache from one tile of positions to the next.
constexpr index_t CHUNK = 32768 / MAX_VECTORS / LANES;

// The length of equal pieces of at most CHUNK of a run.
INLINE index_t piece_of(index_t length) { return ceil_div(length, ceil_div(length, CHUNK)); }

// A function of its own: registers are not shared with what surrounds its loop.
#define REGISTERS static __attribute__((noinline))
#define UNROLLED _Pragma("GCC unroll 16")

// Calls `function` with the number, in [1, MOST], as a constant.
template <int MOST, typename Function>
INLINE void with_number(index_t number, Function function) {
  if (number == MOST) function(std::integral_constant<int, MOST>());
  if constexpr (MOST > 1)
    if (number < MOST) with_number<MOST - 1>(number, function);
}

struct Piece {
  index_t offset, length;  // in the block
};

// The operands of a product: to sums[to[i] * sums_step + lane] is added, or comes after `first`, the sum over k of
// rows[at[i] + k] * columns[k][lane].
struct Product {
  const scalar_t* rows;
  const index_t* at;
  const Piece* pieces;  // the runs of k in a row; columns follow each other
  index_t count;
  const scalar_t* columns;
  index_t columns_step;
  scalar_t* sums;
  const index_t* to;
  index_t sums_step;
  const Epilogue* epilogue = nullptr;  // of sums that the product completes, else null
  const scalar_t* residual = nullptr;  // at the places of `sums`, or null
  bool is_ahead = false;               // whether rows are fetched into the second-level cache a tile ahead
};

// The epilogue of sums in the first-level cache: in registers it would be unrolled in each kind of tile.
static void finish(const Product& p, index_t first, index_t end, index_t lanes) {
  for (index_t i = first; i < end; i++) {
    index_t at = p.to[i] * p.sums_step;
    finish_row(*p.epilogue, p.sums + at, p.residual ? p.residual + at : nullptr, lanes, p.sums + at);
  }
}

// R rows of V vectors, after `first`. Where they continue sums they are added at last, and begin at zeros: chains of
// rounded sums are no longer than a chunk. Loops that are unrolled, or run at least once, leave the sums in registers:
// with others, compilers keep copies of them in memory, which took 180 cycles a tile.
template <int R, int V>
REGISTERS void multiply_tile(const Product& p, index_t row, const scalar_t* first, bool continues) {
  vector_t total[R][V];
  UNROLLED for (int i = 0; i < R; i++)
    UNROLLED for (int v = 0; v < V; v++) total[i][v] = load(first + v * LANES);
  const scalar_t* columns = p.columns;
  const Piece *piece = p.pieces, *end = piece + p.count;
  do {
    const scalar_t* from[R];
    UNROLLED for (int i = 0; i < R; i++) from[i] = p.rows + p.at[row + i] + piece->offset;
    index_t k = 0, length = piece->length;
    do {
      vector_t column[V];
      UNROLLED for (int v = 0; v < V; v++) column[v] = load(columns + v * LANES);
      UNROLLED for (int i = 0; i < R; i++) {
        vector_t factor = broadcast(from[i][k]);
        UNROLLED for (int v = 0; v < V; v++) total[i][v] += factor * column[v];
      }
      columns += p.columns_step;
    } while (++k < length);
  } while (++piece < end);
  UNROLLED for (int i = 0; i < R; i++) {
    scalar_t* sums = p.sums + p.to[row + i] * p.sums_step;
    UNROLLED for (int v = 0; v < V; v++)
      store(sums + v * LANES, continues ? load(sums + v * LANES) + total[i][v] : total[i][v]);
  }
}

constexpr index_t FEW_TERMS = 4, FEW_ROWS = 32;  // rows at a time: their epilogue finds them in the first-level cache

// The sums of a product of K terms, at most FEW_TERMS: weights stay in registers while rows are written one after the
// other, at the speed of memory. A register tile writes them in bursts, in twice the time.
template <int K, int V>
REGISTERS void multiply_few(const Product& p, index_t row, index_t end, const vector_t* first) {
  vector_t begin[V], column[K][V];
  UNROLLED for (int v = 0; v < V; v++) begin[v] = first[v];
  UNROLLED for (int k = 0; k < K; k++)
    UNROLLED for (int v = 0; v < V; v++) column[k][v] = load(p.columns + k * p.columns_step + v * LANES);
  for (; row < end; row++) {
    const scalar_t* from = p.rows + p.at[row] + p.pieces->offset;
    scalar_t* sums = p.sums + p.to[row] * p.sums_step;
    vector_t total[V];
    UNROLLED for (int v = 0; v < V; v++) total[v] = begin[v];
    UNROLLED for (int k = 0; k < K; k++)
      UNROLLED for (int v = 0; v < V; v++) total[v] += broadcast(from[k]) * column[k][v];
    UNROLLED for (int v = 0; v < V; v++) store(sums + v * LANES, total[v]);
  }
}

// All rows of a product with at least one piece, none of them empty. The last tile has less than ROWS[V] rows: it reads
// offsets at[] beyond them, which have to be valid, and its sums are kept aside.
template <int V>
static void multiply(const Product& p, index_t rows, const vector_t* first) {
  constexpr int R = ROWS[V];
  if (first && p.count == 1 && p.pieces->length <= FEW_TERMS) {
    with_number<FEW_TERMS>(p.pieces->length, [&](auto k) {
      for (index_t row = 0; row < rows; row += FEW_ROWS) {
        index_t end = min(row + FEW_ROWS, rows);
        multiply_few<k(), V>(p, row, end, first);
        if (p.epilogue) finish(p, row, end, V * LANES);
      }
    });
    return;
  }
  scalar_t begin[V * LANES] = {}, last[R * V * LANES] = {};
  if (first) memcpy(begin, first, sizeof begin);
  index_t row = 0, places[R];
  for (; row + R <= rows; row += R) {
    for (index_t i = row; i < row + R && p.residual; i++)  // that of the tile's sums, which are complete after it
      for (int v = 0; v < V; v++) __builtin_prefetch(p.residual + p.to[i] * p.sums_step + v * LANES);
    for (index_t i = row + R; i < row + 2 * R && p.is_ahead; i++)
      for (index_t k = 0; k < p.pieces->length; k += 64 / sizeof(scalar_t))
        __builtin_prefetch(p.rows + p.at[i] + p.pieces->offset + k, 0, 2);
    multiply_tile<R, V>(p, row, begin, !first);
    if (p.epilogue) finish(p, row, row + R, V * LANES);
  }
  if (row == rows) return;
  Product rest = p;
  rest.at += row, rest.sums = last, rest.to = places, rest.sums_step = V * LANES;
  for (int i = 0; i < R; i++) places[i] = i;
  for (index_t i = row; i < rows && !first; i++)
    memcpy(last + (i - row) * V * LANES, p.sums + p.to[i] * p.sums_step, V * LANES * sizeof(scalar_t));
  multiply_tile<R, V>(rest, 0, begin, !first);
  for (index_t i = row; i < rows; i++)
    memcpy(p.sums + p.to[i] * p.sums_step, last + (i - row) * V * LANES, V * LANES * sizeof(scalar_t));
  if (p.epilogue) finish(p, row, rows, V * LANES);
}

// The panels of the filters: as few as hold MAX_VECTORS vectors at most, and about equal.
struct Panels {
  index_t vectors, count;
  explicit Panels(index_t filters) : vectors(ceil_div(filters, LANES)), count(ceil_div(vectors, MAX_VECTORS)) {}
  index_t first(index_t panel) const { return vectors * panel / count; }  // vector
  index_t of(index_t vector) const {
    index_t panel = 0;
    while (first(panel + 1) <= vector) panel++;
    return panel;
  }
};

// A tile of sums of a wgrad: SUM_ROWS filters, SUM_VECTORS vectors at most.
constexpr int SUM_VECTORS = 3, SUM_ROWS = MAX_VECTORS == 4 ? 8 : 4, MAX_SUM_ROWS = 8;

// sums[i][lane] += sum over p of grads[grads_at[p] * grads_step + i] * x[x_at[p] + lane] for V vectors of lanes.
// Gradients that are `ahead` of these are fetched into the second-level cache, or nothing if PREFETCHES is false: even
// where all is in the caches it takes a tenth of the time.
template <int R, int V, bool PREFETCHES>
REGISTERS void correlate_tile(const scalar_t* x, const index_t* x_at, index_t positions, const scalar_t* grads,
                              index_t grads_step, const index_t* grads_at, index_t ahead, scalar_t* sums,
                              index_t sums_step) {
  vector_t total[R][V];
  UNROLLED for (int i = 0; i < R; i++)
    UNROLLED for (int v = 0; v < V; v++) total[i][v] = vector_t{};
  index_t p = 0;
  do {
    const scalar_t* from = grads + grads_at[p] * grads_step;
    if (PREFETCHES) __builtin_prefetch(from + ahead, 0, 2);
    vector_t column[V];
    UNROLLED for (int v = 0; v < V; v++) column[v] = load(x + x_at[p] + v * LANES);
    UNROLLED for (int i = 0; i < R; i++) {
      vector_t grad = broadcast(from[i]);
      UNROLLED for (int v = 0; v < V; v++) total[i][v] += grad * column[v];
    }
  } while (++p < positions);
  UNROLLED for (int i = 0; i < R; i++)
    UNROLLED for (int v = 0; v < V; v++) {
      scalar_t* to = sums + i * sums_step + v * LANES;
      store(to, load(to) + total[i][v]);
    }
}

// Filters with their lanes innermost: of some channels at a time, into the workspace.
struct Filters {
  index_t m, c, d, h, w;   // steps of filters, channels and taps
  index_t kd, kh, kw;

  Filters(index_t m, index_t c, index_t d, index_t h, index_t w, index_t kd, index_t kh, index_t kw)
      : m(m), c(c), d(d), h(h), w(w), kd(kd), kh(kh), kw(kw) {}

  // So many that their taps are some hundreds, which workspace of max(256, taps) vectors holds.
  index_t channels_at_once() const { return max<index_t>(1, 256 / (kd * kh * kw)); }

  // to[(channel * taps + tap)][lane] for `count` filters; lanes beyond are zero.
  void turn(const scalar_t* from, index_t count, index_t channels, scalar_t* to) const {
    index_t taps = kd * kh * kw, channel = 0;
    bool ascends = has_dense_taps(1);
    if (count == LANES && c == taps && ascends) {
      copy_transposed(from, m, to, LANES, LANES, channels * taps);
      return;
    }
    // All but the last channel: a row of vectors reads up to LANES - 1 scalars beyond, which the next channel has.
    if (count == LANES && m > 1 && c >= LANES && (ascends || has_dense_taps(-1)))
      for (; channel < channels - 1; channel++)
        for (index_t tap = 0; tap < taps; tap += LANES) {
          const scalar_t* first = from + channel * c + tap - (ascends ? 0 : taps - 1);
          vector_t rows[LANES];
          for (int i = 0; i < LANES; i++) rows[i] = load(first + i * m);
          transpose<Wide>(rows);
          for (index_t i = tap; i < min(taps, tap + LANES); i++)
            store(to + (channel * taps + (ascends ? i : taps - 1 - i)) * LANES, rows[i - tap]);
        }
    for (; channel < channels; channel++)
      for (index_t tap = 0; tap < taps; tap++) {
        const scalar_t* each = from + channel * c + tap / (kh * kw) * d + tap / kw % kh * h + tap % kw * w;
        scalar_t* lanes = to + (channel * taps + tap) * LANES;
        if (m == 1 && count == LANES) store(lanes, load(each));
        else
          for (index_t i = 0; i < LANES; i++) lanes[i] = i < count ? each[i * m] : scalar_t(0);
      }
  }

 private:
  // Whether taps follow each other in memory, forwards or backwards.
  bool has_dense_taps(index_t sign) const {
    return (d == sign * kh * kw || kd == 1) && (h == sign * kw || kh == 1) && (w == sign || kw == 1);
  }
};
