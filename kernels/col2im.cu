// Folding: x[n, c, i] = sum over k, o with o * stride + k * dilation - low = i of columns[n, (c, k), o]
//
// Source       the adjoint of im2col
// Reads        columns [N, C * KD * KH * KW, OD * OH * OW] of ENTRY, scalar_t or acc_t; any strides
// Writes       x [N, C, D, H, W]; any strides
// Mapping      one block per tile of x, see unfolding.cuh, accumulated in shared memory; p.lanes threads per run of
//              positions, PACK each, and the other threads the next taps and channels
// Bytes        each entry read once and each input written once, by sector-aligned accesses of 16 bytes where they are
//              contiguous; only the sectors at both ends of a run are shared
// Determinism  each input is a sum over kd, kh, kw in that order: a barrier separates the taps that reach the same
//              inputs, at distances step_d, step_h or step_w
// Limits       none; an input outside all windows is 0
#include "common.cuh"
#include "params.cuh"
#include "windows.cuh"
#include "packs.cuh"
#include "unfolding.cuh"

// Add the columns' entries of a tile's inputs to its sums: taps in turn, those at once that meet other inputs.
__device__ __forceinline__ void add_columns(const ENTRY* __restrict__ columns, const Tile& tile, acc_t* sums,
                                            const UnfoldParams& p) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int lanes = static_cast<int>(p.lanes), lane = thread % lanes, team = thread / lanes, teams = threads / lanes;
  for (index_t kd = 0; kd < p.kd; kd += p.step_d) {
    for (index_t kh = 0; kh < p.kh; kh += p.step_h) {
      for (index_t kw = 0; kw < p.kw; kw += p.step_w) {
        const index_t runs = tile.channels * p.step_d * p.step_h * p.step_w;
        for (index_t first = 0; first < runs; first += teams) {
          Position tap = position(first + team, p.tile_c, p.step_d, p.step_h, p.step_w, false);
          tap.d += kd, tap.h += kh, tap.w += kw;
          if (first + team < runs && tap.d < p.kd && tap.h < p.kh && tap.w < p.kw) {
            const index_t c = (((tile.c + tap.c) * p.kd + tap.d) * p.kh + tap.h) * p.kw + tap.w;
            const Run run = run_of_tap(p, tile, tap.c, tap.d, tap.h, tap.w);
            const index_t offset = tile.n * p.y_n + c * p.y_c + (run.slice + run.first) * p.y_w;
            const ENTRY* from = columns + offset;
            const Packed<PACK, ENTRY> packed(offset, run.length);
#pragma unroll 4
            for (index_t k = packed.first + lane * PACK; k < packed.end; k += lanes * PACK) {
              const Pack<ENTRY, PACK> pack = load_pack<PACK>(from + k * p.y_w);
              Walk walk(p, run, k);
#pragma unroll
              for (int j = 0; j < PACK; ++j, walk.next(p)) {
                acc_t* sum = sums + skewed<acc_t>(walk.place);
                *sum = *sum + widen(pack.at[j]);
              }
            }
            for (index_t k = lane; k < packed.singles; k += lanes) {
              acc_t* sum = sums + skewed<acc_t>(Walk(p, run, packed.single(k)).place);
              *sum = *sum + widen(from[packed.single(k)]);
            }
          }
          __syncwarp();
        }
        __syncthreads();
      }
    }
  }
}

// Write a tile's sums to its inputs; those of the padding are dropped.
__device__ __forceinline__ void write_inputs(const acc_t* sums, const Tile& tile, scalar_t* __restrict__ x,
                                             const UnfoldParams& p) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int lanes = static_cast<int>(p.lanes), lane = thread % lanes, team = thread / lanes, teams = threads / lanes;
  if (p.x_is_dense) {
    for (int c = team; c < tile.channels; c += teams) {
      const Rows rows = rows_of_channel(p, tile, c);
      const Packed<WIDE> packed(rows.offset, rows.length);
      for (index_t k = packed.first + lane * WIDE; k < packed.end; k += lanes * WIDE) {
        RowWalk walk(p, rows, k);
        Pack<scalar_t, WIDE> pack;
#pragma unroll
        for (int j = 0; j < WIDE; ++j, walk.next(p)) {
          pack.at[j] = narrow(sums[skewed<acc_t>(place_in(p, tile, c, walk.h, walk.w))]);
        }
        store_pack(x + rows.offset + k, pack);
      }
      for (index_t k = lane; k < packed.singles; k += lanes) {
        const RowWalk walk(p, rows, packed.single(k));
        x[rows.offset + packed.single(k)] = narrow(sums[skewed<acc_t>(place_in(p, tile, c, walk.h, walk.w))]);
      }
    }
    return;
  }
  x += tile.n * p.x_n + tile.c * p.x_c + (tile.d - p.low_d) * p.x_d;
  for (index_t i = thread; i < p.tile_c * p.tile_h * p.tile_w; i += threads) {
    const Position at = position(i, p.tile_c, 1, p.tile_h, p.tile_w, p.x_is_channels_last);
    const index_t h = tile.h + at.h - p.low_h, w = tile.w + at.w - p.low_w;
    if (at.c >= tile.channels || at.h >= tile.rows || at.w >= tile.columns || w < 0 || w >= p.w) continue;
    x[at.c * p.x_c + h * p.x_h + w * p.x_w] = narrow(sums[skewed<acc_t>(at.c * p.plane + at.h * p.pitch + at.w)]);
  }
}

extern "C" __global__ void __launch_bounds__(256, 1)
col2im(const ENTRY* __restrict__ columns,  // [N, C * KD * KH * KW, OD * OH * OW]
       scalar_t* __restrict__ x,           // [N, C, D, H, W]
       const UnfoldParams p) {
  extern __shared__ acc_t sums[];  // [tile_c, tile_h, tile_w] at strides plane, pitch and 1, skewed
  const Tile tile = tile_of_block(p);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);

  for (int i = thread; i < p.shared; i += threads) sums[i] = {};
  __syncthreads();
  add_columns(columns, tile, sums, p);
  write_inputs(sums, tile, x, p);
}
