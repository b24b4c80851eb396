// Depthwise convolution, forward: every channel has its own M filters,
// y[n, c * M + m, o] = bias + sum over k of x[n, c, o * stride + k * dilation - low] * w[c * M + m, k]
//
// Source       the definition, with a tile's input in shared memory
// Reads        x [N, C, D, H, W], w [C * M, 1, KD, KH, KW], bias [C * M] or null; x dense along (C, D, H, W), or
//              channels last
// Writes       y [N, C * M, OD, OH, OW], of the same memory order
// Mapping      a block has whole planes of adjacent channels, or a tile of one, or a tile of adjacent channels where
//              these are last, of several images; it stages the tile's input by packs, in memory order; each thread
//              sums ROWS outputs of a column, TAPS rows of the filter per pass, so that one read serves up to TAPS of
//              them; planes are written by packs from shared memory, channels directly from registers
// Bytes        one pass: x once but for the halo of a tile, w once per block, y once
// Determinism  each output is one thread's sum over kd, groups of TAPS kh, kw, kh in that order, whatever the tile
// Limits       c_group = 1; shared reads of a stride s conflict gcd(s, 32) ways; padding reads as zero, which times an
//              infinite weight gives NaN
#include "common.cuh"
#include "params.cuh"
#include "windows.cuh"
#include "depthwise.cuh"

// Add the terms of one kd to the sums of ROWS outputs of a column, from (oh, ow) on, of a slice in shared memory.
__device__ __forceinline__ void add_slice(const DepthwiseParams& p, const Box& box, const scalar_t* slice,
                                          const acc_t* filter, index_t kd, index_t oh, index_t ow,
                                          acc_t (&sums)[ROWS * VEC]) {
  for (index_t first_kh = 0; first_kh < p.kh; first_kh += TAPS) {
#pragma unroll 1
    for (index_t kw = 0; kw < p.kw; ++kw) {
      acc_t weights[TAPS * VEC];
      load_weights(p, filter, kd, first_kh, 1, kw, weights);
      const index_t column = ow * p.stride_w + kw * p.dilation_w - p.low_w;
      const bool has_column = within(column, box.w);
      const scalar_t* values = slice + nearest(column, box.w) * p.x_pitch_w;
#pragma unroll
      for (index_t r = 0; r < (ROWS - 1) * p.tap_step_h + TAPS; ++r) {
        const index_t h = oh * p.stride_h - p.low_h + (first_kh + r) * p.dilation_h;
        const Pack<scalar_t, VEC> value =
            load_or_zeros<VEC>(values + nearest(h, box.h) * p.x_pitch_h, has_column && within(h, box.h));
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
#pragma unroll
          for (int tap = 0; tap < TAPS; ++tap) {
            if (r != row * p.tap_step_h + tap || first_kh + tap >= p.kh) continue;
#pragma unroll
            for (int e = 0; e < VEC; ++e) {
              acc_t* sum = &sums[row * VEC + e];
              *sum = multiply_add(widen(value.at[e]), weights[tap * VEC + e], *sum);
            }
          }
        }
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(256, RESIDENT)
depthwise_forward(const scalar_t* __restrict__ x,     // [N, C, D, H, W]
                  const scalar_t* __restrict__ w,     // [C * M, 1, KD, KH, KW]
                  const BIAS* __restrict__ bias,      // [C * M] or null
                  scalar_t* __restrict__ y,           // [N, C * M, OD, OH, OW]
                  const DepthwiseParams p) {
  extern __shared__ uint4 memory[];
  acc_t* filters = reinterpret_cast<acc_t*>(memory);                   // [planes * M, filter_pitch]
  scalar_t* inputs = reinterpret_cast<scalar_t*>(memory + p.x_at);    // the box that the tile reads
  scalar_t* outputs = reinterpret_cast<scalar_t*>(memory + p.y_at);   // the tile, where channels are not last
  const Place place = place_of_block(p, p.od, p.oh, p.ow);
  const Staged from = staged_x(p), to = staged_y(p);
  const Box box = inputs_of(p, place.tile);
  const index_t oc = place.c * p.multiplier, ocs = place.channels * p.multiplier;  // outputs [oc, oc + ocs)
  const index_t in_phase = phase_of(from, box, place.c), out_phase = phase_of(to, place.tile, oc);
  const index_t items = (p.channels_last ? p.vectors : p.planes * p.multiplier) * p.tile_d * p.slots * p.lanes;
  const index_t kds = is_empty(box) ? 0 : p.kd;
  stage_filters(p, w, bias, place.c, place.channels, p.multiplier, filters);

  for (index_t n = place.images.first; n < place.images.last; ++n) {
    stage(x + n * p.x_n, from, box, place.c, place.channels, inputs);
    __syncthreads();

    for (index_t i = static_cast<index_t>(threadIdx.x); i < items; i += static_cast<index_t>(blockDim.x)) {
      const Item item = item_of(p, i, p.vectors);
      const index_t od = place.tile.d.first + item.d, ow = place.tile.w.first + item.lane;
      const index_t oh = place.tile.h.first + first_row(p, item.slot, p.output_step_h);
      if (item.channel >= ocs || od >= place.tile.d.last || oh >= place.tile.h.last || ow >= place.tile.w.last) {
        continue;
      }
      const acc_t* filter = filters + item.channel * p.filter_pitch;
      acc_t sums[ROWS * VEC] = {};
      for (index_t kd = 0; kd < kds; ++kd) {
        const index_t d = od * p.stride_d + kd * p.dilation_d - p.low_d;
        if (!within(d, box.d)) continue;
        const scalar_t* slice =
            inputs + in_phase + item.channel / p.multiplier * p.x_pitch_c + (d - box.d.first) * p.x_pitch_d;
        add_slice(p, box, slice, filter, kd, oh, ow, sums);
      }

      scalar_t* const first =
          p.channels_last ? y + n * p.y_n + (oc + item.channel) * p.y_c + od * p.y_d + oh * p.y_h + ow * p.y_w
                          : outputs + out_phase + item.channel * p.y_pitch_c + item.d * p.y_pitch_d +
                                (oh - place.tile.h.first) * p.y_pitch_h + item.lane * p.y_pitch_w;
      store_rows(sums, bias ? filter + p.kd * p.kh * p.kw : nullptr, p.filter_pitch, first,
                 p.output_step_h * (p.channels_last ? p.y_h : p.y_pitch_h),
                 ceil_div(place.tile.h.last - oh, p.output_step_h));
    }
    __syncthreads();
    if (!p.channels_last) unstage(outputs, to, place.tile, oc, ocs, y + n * p.y_n);
  }
}
