// Unfolding: columns[n, (c, k), o] = x[n, c, o * stride + k * dilation - low], 0 in the padding
//
// Source       the definition; columns turn a convolution into a GEMM
// Reads        x [N, C, D, H, W]; any strides
// Writes       columns [N, C * KD * KH * KW, OD * OH * OW]
// Mapping      one block per tile of x with its padding, see unfolding.cuh; p.lanes threads per run of positions, PACK
//              each, and the other threads the next taps and channels
// Bytes        each input read once and each entry written once, by sector-aligned accesses of 16 bytes where rows are
//              contiguous; only the sectors at both ends of a run are shared
// Determinism  copies only
// Limits       none
#include "common.cuh"
#include "params.cuh"
#include "windows.cuh"
#include "packs.cuh"
#include "unfolding.cuh"

// Whether some tap reads the inputs at offset `shift` from the first padding.
__device__ __forceinline__ bool is_read(index_t shift, index_t kernel, index_t stride, index_t dilation) {
  index_t k = 0;
  while (k < kernel && (shift - k * dilation) % stride != 0) ++k;
  return k < kernel;
}

// Stage the inputs of a tile, at strides plane, pitch and 1, skewed; its slots of the padding are zero already.
__device__ __forceinline__ void stage_inputs(const scalar_t* __restrict__ x, const Tile& tile, scalar_t* inputs,
                                             const UnfoldParams& p) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int lanes = static_cast<int>(p.lanes), lane = thread % lanes, team = thread / lanes, teams = threads / lanes;
  const bool inside = tile.d >= p.low_d && tile.d < p.low_d + p.d;
  if (inside && p.x_is_dense) {
    for (int c = team; c < tile.channels; c += teams) {
      const Rows rows = rows_of_channel(p, tile, c);
      const Packed<WIDE> packed(rows.offset, rows.length);
      const index_t w_end = tile.w + tile.columns;  // past the last input of any window
#pragma unroll 2
      for (index_t k = packed.first + lane * WIDE; k < packed.end; k += lanes * WIDE) {
        const Pack<scalar_t, WIDE> pack = load_pack<WIDE>(x + rows.offset + k);
        RowWalk walk(p, rows, k);
#pragma unroll
        for (int j = 0; j < WIDE; ++j, walk.next(p)) {
          if (walk.w < w_end) inputs[skewed<scalar_t>(place_in(p, tile, c, walk.h, walk.w))] = pack.at[j];
        }
      }
      for (index_t k = lane; k < packed.singles; k += lanes) {
        const RowWalk walk(p, rows, packed.single(k));
        if (walk.w >= w_end) continue;
        inputs[skewed<scalar_t>(place_in(p, tile, c, walk.h, walk.w))] = x[rows.offset + packed.single(k)];
      }
    }
  } else if (inside && is_read(tile.d, p.kd, p.stride_d, p.dilation_d)) {
    x += tile.n * p.x_n + tile.c * p.x_c + (tile.d - p.low_d) * p.x_d;
    for (index_t i = thread; i < p.tile_c * p.tile_h * p.tile_w; i += threads) {
      const Position at = position(i, p.tile_c, 1, p.tile_h, p.tile_w, p.x_is_channels_last);
      const index_t h = tile.h + at.h - p.low_h, w = tile.w + at.w - p.low_w;
      const bool is_there = at.c < tile.channels && at.h < tile.rows && h >= 0 && h < p.h && w >= 0 && w < p.w &&
                            (!p.has_gaps || is_read(tile.h + at.h, p.kh, p.stride_h, p.dilation_h));
      scalar_t value = {};
      if (is_there) value = x[at.c * p.x_c + h * p.x_h + w * p.x_w];
      inputs[skewed<scalar_t>(at.c * p.plane + at.h * p.pitch + at.w)] = value;
    }
  }
}

// Write the columns of a tile's windows: runs of each tap along a row of outputs.
__device__ __forceinline__ void write_columns(const scalar_t* inputs, const Tile& tile,
                                              scalar_t* __restrict__ columns, const UnfoldParams& p) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int lanes = static_cast<int>(p.lanes), lane = thread % lanes, team = thread / lanes, teams = threads / lanes;
  const index_t taps = p.kd * p.kh * p.kw;
  for (index_t first = 0; first < tile.channels * taps; first += teams) {
    const index_t row = first + team;
    if (row < tile.channels * taps) {
      const Position tap = position(row, p.tile_c, p.kd, p.kh, p.kw, false);
      const Run run = run_of_tap(p, tile, tap.c, tap.d, tap.h, tap.w);
      const index_t offset = tile.n * p.y_n + (tile.c * taps + row) * p.y_c + run.slice + run.first;
      scalar_t* to = columns + offset;
      const Packed<PACK> packed(offset, run.length);
#pragma unroll 2
      for (index_t k = packed.first + lane * PACK; k < packed.end; k += lanes * PACK) {
        Walk walk(p, run, k);
        Pack<scalar_t, PACK> pack;
#pragma unroll
        for (int j = 0; j < PACK; ++j, walk.next(p)) pack.at[j] = inputs[skewed<scalar_t>(walk.place)];
        store_pack(to + k, pack);
      }
      for (index_t k = lane; k < packed.singles; k += lanes) {
        to[packed.single(k)] = inputs[skewed<scalar_t>(Walk(p, run, packed.single(k)).place)];
      }
    }
    __syncwarp();
  }
}

extern "C" __global__ void __launch_bounds__(256, 1)
im2col(const scalar_t* __restrict__ x,      // [N, C, D, H, W]
       scalar_t* __restrict__ columns,      // [N, C * KD * KH * KW, OD * OH * OW]
       const UnfoldParams p) {
  extern __shared__ scalar_t inputs[];  // [tile_c, tile_h, tile_w] at strides plane, pitch and 1, skewed
  const Tile tile = tile_of_block(p);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);

  for (int i = thread; i < p.shared; i += threads) inputs[i] = {};
  __syncthreads();
  stage_inputs(x, tile, inputs, p);
  __syncthreads();

  write_columns(inputs, tile, columns, p);
}
