// Average and sum pooling, backward: each window's gradient over its divisor is added to all its inputs:
// grad_x[n, c, i] = sum over the windows o that read i of grad_y[n, c, o] / divisor of window o
//
// Source       the definition, gathered
// Reads        grad_y [N, C, OD, OH, OW]; any strides
// Writes       grad_x [N, C, D, H, W], each of them once
// Mapping      dense arrays: one block per group of planes of grad_x, band of one, or part of each row of a band; it
//              stages the gradients of its windows, already divided (tiles.cuh); then one thread per input, and grad_x
//              is staged too. Others: one thread per input, in grad_x's memory order, from global memory
// Bytes        dense: grad_y once, and the rows that two bands share once more; grad_x once. Others read grad_y
//              KD * KH * KW / stride times, from L1 and L2 but for the first
// Determinism  each input is one thread's sum in the ascending order of outputs; no atomics
// Limits       none; arrays that are not dense, and windows that take more than 48 KiB, are not staged; their divisors
//              are recomputed for each input
#include "common.cuh"
#include "params.cuh"
#include "windows.cuh"
#include "pooling.cuh"
#include "tiles.cuh"

constexpr int RUN = 4;  // inputs below each other that a thread takes: what they share is read once

// How many of a pack's divisors have code of their own: all where sizes are constants, else one, for divisions by
// numbers that are not known are so long that NVRTC took half a minute for a pack of 16.
template <index_t>
using Constant = void;
template <typename Params, typename = void>
constexpr int COPIES = 1;
template <typename Params>
constexpr int COPIES<Params, Constant<Params::ow>> = PACK;

// The contribution of output (od, oh, ow) to the gradient of each of its inputs.
__device__ __forceinline__ acc_t given(acc_t grad, const PoolParams& p, index_t od, index_t oh, index_t ow) {
  const index_t taps = counted_taps(axis_d(p), od, p.divides) * counted_taps(axis_h(p), oh, p.divides) *
                       counted_taps(axis_w(p), ow, p.divides);
  return divided(grad, taps, p);
}

// The sum of value(od, oh, ow) over the windows that read input (d, h, w), of outputs within the ranges.
template <typename Value>
__device__ __forceinline__ acc_t sum_over_windows(const PoolParams& p, index_t d, index_t h, index_t w,
                                                  const Range (&within)[3], Value value) {
  const PoolAxis d_axis = axis_d(p), h_axis = axis_h(p), w_axis = axis_w(p);
  const Readings ods = readings_of(d_axis, d), ohs = readings_of(h_axis, h), ows = readings_of(w_axis, w);
  acc_t sum = {};
  for (index_t kd = 0; kd < p.readers_d; ++kd) {
    const Tap od = reader_of(d_axis, ods, kd, within[0].first, within[0].last);
    for (index_t kh = 0; kh < p.readers_h; ++kh) {
      const Tap oh = reader_of(h_axis, ohs, kh, within[1].first, within[1].last);
      for (index_t kw = 0; kw < p.readers_w; ++kw) {
        const Tap ow = reader_of(w_axis, ows, kw, within[2].first, within[2].last);
        const acc_t with_it = sum + value(od.at, oh.at, ow.at);
        sum = od.inside & oh.inside & ow.inside ? with_it : sum;
      }
    }
  }
  return sum;
}

__device__ __forceinline__ void backward_anywhere(const scalar_t* __restrict__ grad_y, scalar_t* __restrict__ grad_x,
                                                  const PoolParams& p) {
  const index_t i = thread_index();  // [0, N * C * D * H * W)
  if (i >= p.n * p.c * p.d * p.h * p.w) return;
  const Position x = position(i, p.c, p.d, p.h, p.w, p.channels_last);
  grad_y += x.n * p.y_n + x.c * p.y_c;
  const Range within[3] = {{0, p.od}, {0, p.oh}, {0, p.ow}};
  const acc_t sum = sum_over_windows(p, x.d, x.h, x.w, within, [&](index_t od, index_t oh, index_t ow) {
    return given(widen(grad_y[od * p.y_d + oh * p.y_h + ow * p.y_w]), p, od, oh, ow);
  });
  grad_x[x.n * p.x_n + x.c * p.x_c + x.d * p.x_d + x.h * p.x_h + x.w * p.x_w] = narrow(sum);
}

extern "C" __global__ void __launch_bounds__(256, 1)
average_pool_backward(const scalar_t* __restrict__ grad_y,  // [N, C, OD, OH, OW]
                      scalar_t* __restrict__ grad_x,        // [N, C, D, H, W]
                      const PoolParams p) {
  if (p.tile_planes == 0) return backward_anywhere(grad_y, grad_x, p);
  acc_t* const gradients = reinterpret_cast<acc_t*>(shared_memory);                      // [read_slots]
  scalar_t* const results = reinterpret_cast<scalar_t*>(gradients + p.read_slots);  // [write_slots]

  const Band band = band_of(p);
  const Share share = share_of_block(p, band.axis.size, band.row_axis.size);
  const Range range = p.bands == 1 ? Range{0, band.axis.out} : outputs_within(band.axis, share.first, share.last);
  const Range rows = share.parted ? outputs_within(band.row_axis, share.row_first, share.row_last) : Range{};
  const Piece outputs = piece_of(share, range.first, band.output_unit, rows.first, rows.last, band.row_output_unit);
  const Piece inputs =
      piece_of(share, share.first, band.input_unit, share.row_first, share.row_last, band.row_input_unit);
  const Patch read = patch_of(p, share, outputs, range.last - range.first, band.axis.out);
  const Patch written = patch_of(p, share, inputs, share.last - share.first, band.axis.size);
  const index_t skew = skew_of<PACK>(read);
  load_patch<PACK>(grad_y, read, p.n * p.c * p.od * p.oh * p.ow, [&](index_t e, const Pack<scalar_t, PACK>& pack) {
    Pack<acc_t, PACK> values;
#pragma unroll
    for (int i = 0; i < PACK; ++i) values.at[i] = widen(pack.at[i]);
#pragma unroll COPIES<PoolParams>
    for (int i = 0; i < PACK; ++i) {  // values turn in their pack, for a rolled loop cannot index registers
      const index_t o = position_of(outputs, (e + i) / p.inner);
      const acc_t value = given(values.at[0], p, o / p.ow / p.oh % p.od, o / p.ow % p.oh, o % p.ow);
#pragma unroll
      for (int j = 0; j + 1 < PACK; ++j) values.at[j] = values.at[j + 1];
      values.at[PACK - 1] = value;
    }
    store_slots(gradients + skew + e, values);
  });
  __syncthreads();

  const index_t result_skew = skew_of<PACK>(written);
  const Range within[3] = {p.band_axis == 0 ? range : Range{0, p.od},
                           p.band_axis == 1 ? range : share.parted && p.band_axis == 0 ? rows : Range{0, p.oh},
                           p.band_axis == 2 ? range : share.parted && p.band_axis == 1 ? rows : Range{0, p.ow}};
  for_each_item<RUN>(share, p.band_axis, p.h, p.w, p.inner, p.row_lanes, 1, [&](const Item& item) {
    if (!item.active) return;
    const index_t plane = item.plane * p.od * p.oh * p.ow;
    acc_t sums[RUN];
#pragma unroll
    for (int r = 0; r < RUN; ++r) {
      sums[r] = sum_over_windows(p, item.d, item.h + r, item.w, within, [&](index_t od, index_t oh, index_t ow) {
        return gradients[skew + order_of(outputs, plane + (od * p.oh + oh) * p.ow + ow) * p.inner + item.c];
      });
    }
#pragma unroll
    for (int r = 0; r < RUN; ++r) {
      if (r < item.rows) results[result_skew + item.element + r * item.pitch] = narrow(sums[r]);
    }
  });
  __syncthreads();
  store_patch<PACK>(results, grad_x, written);
}
