// The part of a convolution that multiplies: a tile of outputs in registers, over runs of a block.
#pragma once

#include "vectors.hpp"

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int MAX_VECTORS = 4;  // 32 registers
constexpr int ROWS[] = {0, 14, 12, 8, 6};
#else
constexpr int MAX_VECTORS = 2;  // 16 registers
constexpr int ROWS[] = {0, 8, 6};
#endif

// Multiply-adds of one output between visits of its sums: the weights that they read, COUNT * VECTORS vectors, stay in
// the first-level cache from one tile of positions to the next.
constexpr index_t CHUNK = 8192 / MAX_VECTORS / LANES;

struct Piece {
  index_t offset, length;  // in the block
};

// sums[i][V] (+)= sum over k of block[at[i] + k] * weights[k][V] for the pieces, R rows of V vectors.
template <int R, int V>
INLINE void multiply_tile(const scalar_t* block, const index_t* at, const Piece* pieces, index_t count,
                          const scalar_t* weights, const vector_t* first, scalar_t* sums) {
  vector_t total[R][V];
  for (int i = 0; i < R; i++)
    for (int v = 0; v < V; v++) total[i][v] = first ? first[v] : load(sums + (i * V + v) * LANES);
  for (index_t piece = 0; piece < count; piece++) {
    const scalar_t* from[R];
    for (int i = 0; i < R; i++) from[i] = block + at[i] + pieces[piece].offset;
    for (index_t k = 0; k < pieces[piece].length; k++, weights += V * LANES) {
      vector_t w[V];
      for (int v = 0; v < V; v++) w[v] = load(weights + v * LANES);
      for (int i = 0; i < R; i++) {
        vector_t x = broadcast(from[i][k]);
        for (int v = 0; v < V; v++) total[i][v] += x * w[v];
      }
    }
  }
  for (int i = 0; i < R; i++)
    for (int v = 0; v < V; v++) store(sums + (i * V + v) * LANES, total[i][v]);
}

// The same for all positions, whose number is a multiple of ROWS[V].
template <int V>
static void multiply(const scalar_t* block, const index_t* at, index_t positions, const Piece* pieces, index_t count,
                     const scalar_t* weights, const vector_t* first, scalar_t* sums) {
  for (index_t i = 0; i < positions; i += ROWS[V])
    multiply_tile<ROWS[V], V>(block, at + i, pieces, count, weights, first, sums + i * V * LANES);
}

// sums[i][V] += sum over p of grads[p][i] * block[at[p] + lane]: R filters, V vectors of a run.
template <int R, int V>
INLINE void correlate_tile(const scalar_t* block, const index_t* at, index_t positions, const scalar_t* grads,
                           index_t grads_row, scalar_t* sums, index_t sums_row) {
  vector_t total[R][V];
  for (int i = 0; i < R; i++)
    for (int v = 0; v < V; v++) total[i][v] = load(sums + i * sums_row + v * LANES);
  for (index_t p = 0; p < positions; p++, grads += grads_row) {
    const scalar_t* from = block + at[p];
    vector_t x[V];
    for (int v = 0; v < V; v++) x[v] = load(from + v * LANES);
    for (int i = 0; i < R; i++) {
      vector_t grad = broadcast(grads[i]);
      for (int v = 0; v < V; v++) total[i][v] += grad * x[v];
    }
  }
  for (int i = 0; i < R; i++)
    for (int v = 0; v < V; v++) store(sums + i * sums_row + v * LANES, total[i][v]);
}
