// Average and sum pooling, forward, over sliding or adaptive windows:
// y[n, c, o] = sum over the inputs i of window o of x[n, c, i] / divisor of window o
//
// Source       the definition; the divisor is 1, the window's taps (with or without those on padding), or a number
// Reads        x [N, C, D, H, W]; any strides
// Writes       y [N, C, OD, OH, OW]; 0 for a window wholly in padding, whatever it is divided by
// Mapping      dense arrays: one block per group of planes, band of one, or part of each row of a band, staged in
//              shared memory (tiles.cuh); then `lanes` threads per output, each for every lanes-th tap along w, and y
//              is staged too. Others: `lanes` threads per output, in y's memory order, from global memory
// Bytes        dense: x once, and the rows that two bands share once more; y once. Others read x KD * KH * KW / stride
//              times, from L1 and L2 but for the first
// Determinism  each thread sums in the order of d, h, w; the lanes' sums are added pairwise in halves: the order is
//              fixed for a geometry
// Limits       none; arrays that are not dense, and windows that take more than 48 KiB, are not staged
#include "common.cuh"
#include "params.cuh"
#include "windows.cuh"
#include "pooling.cuh"
#include "tiles.cuh"

constexpr int RUN = 4;  // windows below each other that a thread takes: what they share is read once

// The sum over a window of the plane that starts at `first`, over its divisor; computed by `lanes` threads, of which
// the first gets the result. Warps must be converged. Rows after `last` are not read.
__device__ __forceinline__ acc_t average(const scalar_t* __restrict__ x, index_t first, index_t step_d, index_t step_h,
                                         index_t step_w, index_t last, const PoolParams& p, index_t od, index_t oh,
                                         index_t ow, index_t lane, bool active) {
  const PoolAxis d_axis = axis_d(p), h_axis = axis_h(p), w_axis = axis_w(p);
  const Taps ds = taps_of(d_axis, od), hs = taps_of(h_axis, oh), ws = taps_of(w_axis, ow);
  acc_t sum = {};
  for (index_t kd = 0; kd < p.kd && active; ++kd) {
    const Tap d = tap_of(ds, kd);
    for (index_t kh = 0; kh < p.kh; ++kh) {
      const Tap h = tap_of(hs, kh);
      const index_t row = first + d.at * step_d + least(h.at, last) * step_h;
      for (index_t kw = lane; kw - lane < p.kw; kw += p.lanes) {
        const Tap w = tap_of(ws, least(kw, p.kw - 1));
        const scalar_t value = x[row + w.at * step_w];
        const acc_t with_it = sum + widen(value);
        sum = d.inside & h.inside & w.inside & (kw < p.kw) ? with_it : sum;
      }
    }
  }
  for (index_t step = p.lanes / 2; step > 0; step /= 2) sum = sum + from_lane_after(sum, step);
  const index_t taps = counted_taps(d_axis, od, p.divides) * counted_taps(h_axis, oh, p.divides) *
                       counted_taps(w_axis, ow, p.divides);
  return divided(sum, taps, p);
}

__device__ __forceinline__ void pool_anywhere(const scalar_t* __restrict__ x, scalar_t* __restrict__ y,
                                              const PoolParams& p) {
  const index_t i = thread_index() / p.lanes;  // [0, N * C * OD * OH * OW), rounded up to whole blocks
  const index_t lane = thread_index() % p.lanes;
  const bool active = i < p.n * p.c * p.od * p.oh * p.ow;
  const Position o = position(active ? i : 0, p.c, p.od, p.oh, p.ow, p.channels_last);
  const acc_t mean =
      average(x, o.n * p.x_n + o.c * p.x_c, p.x_d, p.x_h, p.x_w, p.h - 1, p, o.d, o.h, o.w, lane, active);
  if (!active || lane) return;
  y[o.n * p.y_n + o.c * p.y_c + o.d * p.y_d + o.h * p.y_h + o.w * p.y_w] = narrow(mean);
}

extern "C" __global__ void __launch_bounds__(256, 1)
average_pool(const scalar_t* __restrict__ x,  // [N, C, D, H, W]
             scalar_t* __restrict__ y,        // [N, C, OD, OH, OW]
             const PoolParams p) {
  if (p.tile_planes == 0) return pool_anywhere(x, y, p);
  scalar_t* const inputs = reinterpret_cast<scalar_t*>(shared_memory);  // [read_slots]
  scalar_t* const results = inputs + p.read_slots;                      // [write_slots]

  const Band band = band_of(p);
  const Share share = share_of_block(p, band.axis.out, band.row_axis.out);
  const Range range = p.bands == 1 ? Range{0, band.axis.size} : inputs_within(band.axis, share.first, share.last);
  const Range rows = share.parted ? inputs_within(band.row_axis, share.row_first, share.row_last) : Range{};
  const Piece taken = piece_of(share, range.first, band.input_unit, rows.first, rows.last, band.row_input_unit);
  const Piece given =
      piece_of(share, share.first, band.output_unit, share.row_first, share.row_last, band.row_output_unit);
  const Patch read = patch_of(p, share, taken, range.last - range.first, band.axis.size);
  const Patch written = patch_of(p, share, given, share.last - share.first, band.axis.out);
  stage(x, read, p.n * p.c * p.d * p.h * p.w, inputs);
  __syncthreads();

  const index_t before = range.first * taken.run + (share.parted ? rows.first * band.row_input_unit : 0);
  const index_t first = skew_of<PACK>(read) - before * p.inner;  // slot of a plane's first input
  const index_t step_d = (share.parted && p.band_axis == 0 ? taken.run : p.h * p.w) * p.inner;
  const index_t step_h = (share.parted && p.band_axis == 1 ? taken.run : p.w) * p.inner;
  const index_t skew = skew_of<PACK>(written);
  const index_t last = p.band_axis == 1 ? range.last - 1 : share.parted ? rows.last - 1 : p.h - 1;  // of staged rows
  if (p.lanes > 1) {
    for_each_item<1>(share, p.band_axis, p.oh, p.ow, p.inner, p.row_lanes, p.lanes, [&](const Item& item) {
      const index_t plane = first + item.plane * p.d * p.h * p.w * p.inner + item.c;
      const acc_t mean = average(inputs, plane, step_d, step_h, p.inner, last, p, item.d, item.h, item.w, item.lane,
                                 item.active);
      if (item.active && item.lane == 0) results[skew + item.element] = narrow(mean);
    });
  } else {
    for_each_item<RUN>(share, p.band_axis, p.oh, p.ow, p.inner, p.row_lanes, 1, [&](const Item& item) {
      if (!item.active) return;
      const index_t plane = first + item.plane * p.d * p.h * p.w * p.inner + item.c;
      acc_t means[RUN];
#pragma unroll
      for (int r = 0; r < RUN; ++r) {
        means[r] = average(inputs, plane, step_d, step_h, p.inner, last, p, item.d, item.h + r, item.w, 0, true);
      }
#pragma unroll
      for (int r = 0; r < RUN; ++r) {
        if (r < item.rows) results[skew + item.element + r * item.pitch] = narrow(means[r]);
      }
    });
  }
  __syncthreads();
  store_patch<PACK>(results, y, written);
}
