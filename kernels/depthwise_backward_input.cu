// Depthwise convolution dgrad; also the transposed depthwise convolution:
// grad_x[n, c, i] = bias[c] + sum over m, k with o * stride + k * dilation - low = i
//                   of grad_y[n, c * M + m, o] * w[c * M + m, k]
//
// Source       the adjoint of depthwise_forward, with a tile's grad_y in shared memory
// Reads        grad_y [N, C * M, OD, OH, OW], w [C * M, 1, KD, KH, KW], bias [C] or null; grad_y dense along
//              (C, D, H, W), or channels last
// Writes       grad_x [N, C, D, H, W], of the same memory order
// Mapping      blocks and threads as in depthwise_forward, over inputs: threads traverse a row residue by residue
//              modulo the stride, so adjacent threads have the same taps, and each has ROWS rows of one residue
// Bytes        one pass: grad_y once but for the halo of a tile, w once per block, grad_x once
// Determinism  a gather: each input is one thread's sum over m, kd, groups of TAPS kh, kw, kh in that order
// Limits       c_group = 1; shared writes of a stride s conflict gcd(s, 32) ways; inputs without taps get bias or 0;
//              outputs that do not exist read as zero, which times an infinite weight gives NaN
#include "common.cuh"
#include "params.cuh"
#include "windows.cuh"
#include "depthwise.cuh"

// Add the terms of one kd to the sums of ROWS inputs of a column, from (h, x) on, of a slice in shared memory. Their
// taps are those of one residue, from first_kh and first_kw on.
__device__ __forceinline__ void add_slice(const DepthwiseParams& p, const Box& box, const scalar_t* slice,
                                          const acc_t* filter, index_t kd, index_t first_kh, index_t first_kw,
                                          index_t h, index_t x, acc_t (&sums)[ROWS * VEC]) {
  for (index_t first = first_kh; first < p.kh; first += TAPS * p.tap_step_h) {
    // The last output that any of the rows reads, by their first tap.
    const index_t last_oh = (h + p.low_h - first * p.dilation_h) / p.stride_h + (ROWS - 1) * p.output_step_h;
#pragma unroll 1
    for (index_t kw = first_kw; kw < p.kw; kw += p.tap_step_w) {
      acc_t weights[TAPS * VEC];
      load_weights(p, filter, kd, first, p.tap_step_h, kw, weights);
      const index_t ow = (x + p.low_w - kw * p.dilation_w) / p.stride_w;
      const bool has_column = x + p.low_w >= kw * p.dilation_w && within(ow, box.w);
      const scalar_t* values = slice + nearest(ow, box.w) * p.y_pitch_w;
#pragma unroll
      for (index_t r = 0; r < ROWS - 1 + TAPS; ++r) {
        const index_t oh = last_oh - r * p.output_step_h;
        const Pack<scalar_t, VEC> value =
            load_or_zeros<VEC>(values + nearest(oh, box.h) * p.y_pitch_h, has_column && within(oh, box.h));
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
          const index_t tap = r + row - (ROWS - 1);  // of those of this residue
          if (tap < 0 || tap >= TAPS || first + tap * p.tap_step_h >= p.kh) continue;
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

extern "C" __global__ void __launch_bounds__(256, RESIDENT)
depthwise_backward_input(const scalar_t* __restrict__ grad_y,  // [N, C * M, OD, OH, OW]
                         const scalar_t* __restrict__ w,       // [C * M, 1, KD, KH, KW]
                         const BIAS* __restrict__ bias,        // [C] or null
                         scalar_t* __restrict__ grad_x,        // [N, C, D, H, W]
                         const DepthwiseParams p) {
  extern __shared__ uint4 memory[];
  acc_t* filters = reinterpret_cast<acc_t*>(memory);                 // [planes * M, filter_pitch]
  scalar_t* grads = reinterpret_cast<scalar_t*>(memory + p.y_at);    // the box that the tile reads
  scalar_t* results = reinterpret_cast<scalar_t*>(memory + p.x_at);  // the tile, where channels are not last
  const Place place = place_of_block(p, p.d, p.h, p.w);
  const Staged from = staged_y(p), to = staged_x(p);
  const Box box = outputs_of(p, place.tile);
  const index_t oc = place.c * p.multiplier;
  const index_t in_phase = phase_of(from, box, oc), out_phase = phase_of(to, place.tile, place.c);
  const index_t step = p.stride_h * p.output_step_h;  // row stride of a thread
  const index_t items = (p.channels_last ? p.vectors : p.planes) * p.tile_d * p.slots * p.lanes;
  stage_filters(p, w, bias, place.c, place.channels, 1, filters);

  for (index_t n = place.images.first; n < place.images.last; ++n) {
    stage(grad_y + n * p.y_n, from, box, oc, place.channels * p.multiplier, grads);
    __syncthreads();

    for (index_t i = static_cast<index_t>(threadIdx.x); i < items; i += static_cast<index_t>(blockDim.x)) {
      const Item item = item_of(p, i, p.vectors);
      const index_t d = place.tile.d.first + item.d;
      const index_t h = place.tile.h.first + first_row(p, item.slot, step);
      const index_t x = place.tile.w.first + item.lane / p.columns + item.lane % p.columns * p.stride_w;
      if (item.channel >= place.channels || d >= place.tile.d.last || h >= place.tile.h.last ||
          x >= place.tile.w.last) {
        continue;
      }
      const index_t first_kd =
          is_empty(box) ? p.kd : first_tap(d + p.low_d, p.kd, p.stride_d, p.dilation_d, p.tap_step_d);
      const index_t first_kh = first_tap(h + p.low_h, p.kh, p.stride_h, p.dilation_h, p.tap_step_h);
      const index_t first_kw = first_tap(x + p.low_w, p.kw, p.stride_w, p.dilation_w, p.tap_step_w);
      acc_t sums[ROWS * VEC] = {};
      for (index_t m = 0; m < p.multiplier; ++m) {
        const acc_t* filter = filters + (item.channel * p.multiplier + m) * p.filter_pitch;
        for (index_t kd = first_kd; kd < p.kd; kd += p.tap_step_d) {
          const index_t od = (d + p.low_d - kd * p.dilation_d) / p.stride_d;
          if (d + p.low_d < kd * p.dilation_d || !within(od, box.d)) continue;
          const scalar_t* slice =
              grads + in_phase + (item.channel * p.multiplier + m) * p.y_pitch_c + (od - box.d.first) * p.y_pitch_d;
          add_slice(p, box, slice, filter, kd, first_kh, first_kw, h, x, sums);
        }
      }

      const acc_t* biases = filters + item.channel * p.multiplier * p.filter_pitch + p.kd * p.kh * p.kw;
      scalar_t* const first =
          p.channels_last ? grad_x + n * p.x_n + (place.c + item.channel) * p.x_c + d * p.x_d + h * p.x_h + x * p.x_w
                          : results + out_phase + item.channel * p.x_pitch_c + item.d * p.x_pitch_d +
                                (h - place.tile.h.first) * p.x_pitch_h + (x - place.tile.w.first) * p.x_pitch_w;
      store_rows(sums, bias ? biases : nullptr, p.multiplier * p.filter_pitch, first,
                 step * (p.channels_last ? p.x_h : p.x_pitch_h), ceil_div(place.tile.h.last - h, step));
    }
    __syncthreads();
    if (!p.channels_last) unstage(results, to, place.tile, place.c, place.channels, grad_x + n * p.x_n);
  }
}
