// A copy from one memory order to another, [N, C, P] to channels last and back: y[n, c, p] = x[n, c, p] + bias[c]
//
// Source       a transpose through shared memory
// Reads        x [N, C, P], bias [C] or null; any strides
// Writes       y [N, C, P]; any strides
// Mapping      one block of 32 by 8 threads a tile of 32 channels by 32 positions; neighbouring threads read along x's
//              innermost axis and write along y's
// Bytes        x and y once, in whole lines both ways; the 33rd column of the tile keeps its columns in different banks
// Determinism  a copy
// Limits       none
#include "common.cuh"
#include "params.cuh"

constexpr int TILE = 32;
constexpr int ROWS = 8;  // of threads: each thread moves TILE / ROWS elements

extern "C" __global__ void __launch_bounds__(TILE * ROWS)
pack(const scalar_t* __restrict__ x,     // [N, C, P]
     const scalar_t* __restrict__ bias,  // [C] or null
     scalar_t* __restrict__ y,           // [N, C, P]
     const PackParams p) {
  __shared__ scalar_t tile[TILE][TILE + 1];  // [c, p]
  const int column = static_cast<int>(threadIdx.x) % TILE, row = static_cast<int>(threadIdx.x) / TILE;
  const index_t p_tiles = (p.p + TILE - 1) / TILE, c_tiles = (p.c + TILE - 1) / TILE;
  index_t i = static_cast<index_t>(blockIdx.x);  // [0, N * c_tiles * p_tiles)
  const index_t p0 = i % p_tiles * TILE;
  i /= p_tiles;
  const index_t c0 = i % c_tiles * TILE;
  const index_t n = i / c_tiles;

#pragma unroll
  for (int other = row; other < TILE; other += ROWS) {
    const int c = p.x_along_c ? column : other, position = p.x_along_c ? other : column;
    if (c0 + c < p.c && p0 + position < p.p) {
      tile[c][position] = x[n * p.x_n + (c0 + c) * p.x_c + (p0 + position) * p.x_p];
    }
  }
  __syncthreads();
#pragma unroll
  for (int other = row; other < TILE; other += ROWS) {
    const int c = p.y_along_c ? column : other, position = p.y_along_c ? other : column;
    if (c0 + c < p.c && p0 + position < p.p) {
      acc_t value = widen(tile[c][position]);
      if (bias) value = value + widen(bias[(c0 + c) * p.bias_c]);
      y[n * p.y_n + (c0 + c) * p.y_c + (p0 + position) * p.y_p] = narrow(value);
    }
  }
}
