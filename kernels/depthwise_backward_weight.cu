// Depthwise convolution wgrad by split-K, the first of two kernels: sums over parts of the batch and
// positions, parts[s, c * M + m, k] = sum over n, o of part s of x[n, c, o * stride + k * dilation - low]
//                                     * grad_y[n, c * M + m, o]
//
// Source       the derivative of depthwise_forward, with a tile of both arrays in shared memory
// Reads        x [N, C, D, H, W], grad_y [N, C * M, OD, OH, OW]; both dense along (C, D, H, W), or channels last
// Writes       parts [splits, C * M, KD, KH, KW] of acc_t, which sum_splits adds
// Mapping      a block has whole planes of adjacent channels, a tile of one, or a tile of adjacent channels where
//              these are last, of several images; `segment` lanes of a warp share the sums of one kw and up to TAPS
//              kh and loop over columns of ROWS outputs, whose reads serve TAPS sums; then shuffles add them
// Bytes        one pass: x once but for the halo of a tile, grad_y once, parts once
// Determinism  each thread's sum is in order, shuffles have a fixed pairing, images and parts are added in order
// Limits       c_group = 1; shared reads of a stride s conflict gcd(s, 32) ways; padding reads as zero, which times an
//              infinite gradient gives NaN
#include "common.cuh"
#include "params.cuh"
#include "windows.cuh"
#include "depthwise.cuh"

extern "C" __global__ void __launch_bounds__(256, RESIDENT)
depthwise_backward_weight(const scalar_t* __restrict__ x,       // [N, C, D, H, W]
                          const scalar_t* __restrict__ grad_y,  // [N, C * M, OD, OH, OW]
                          acc_t* __restrict__ parts,            // [splits, C * M, KD, KH, KW]
                          const DepthwiseParams p) {
  extern __shared__ uint4 memory[];
  acc_t* totals = reinterpret_cast<acc_t*>(memory);                 // [parts, planes * M, KD, KH, KW]
  scalar_t* inputs = reinterpret_cast<scalar_t*>(memory + p.x_at);  // the box that the tile reads
  scalar_t* grads = reinterpret_cast<scalar_t*>(memory + p.y_at);   // the tile
  const Place place = place_of_block(p, p.od, p.oh, p.ow);
  const Staged staged_inputs = staged_x(p), staged_grads = staged_y(p);
  const Box box = inputs_of(p, place.tile);
  const index_t oc = place.c * p.multiplier, ocs = place.channels * p.multiplier;
  const index_t x_phase = phase_of(staged_inputs, box, place.c), y_phase = phase_of(staged_grads, place.tile, oc);

  const index_t threads = static_cast<index_t>(blockDim.x), thread = static_cast<index_t>(threadIdx.x);
  const index_t taps = p.kd * p.kh * p.kw, weights = p.planes * p.multiplier * taps;
  const index_t at_once = threads / p.segment;  // units of the block
  const index_t share = thread % p.segment / p.vectors;  // of the positions, [0, segment / vectors)
  for (index_t i = thread; i < p.parts * weights; i += threads) totals[i] = acc_t{};

  for (index_t n = place.images.first; n < place.images.last; ++n) {
    stage(x + n * p.x_n, staged_inputs, box, place.c, place.channels, inputs);
    stage(grad_y + n * p.y_n, staged_grads, place.tile, oc, ocs, grads);
    __syncthreads();

    for (index_t first = 0; first < p.units; first += at_once) {
      index_t unit = first + thread / p.segment;  // [parts, channels, KD, groups of TAPS kh, KW]
      const index_t kw = unit % p.kw;
      unit /= p.kw;
      const index_t first_kh = unit % ((p.kh + TAPS - 1) / TAPS) * TAPS;
      unit /= (p.kh + TAPS - 1) / TAPS;
      const index_t kd = unit % p.kd;
      unit /= p.kd;
      const index_t groups = (p.planes * p.multiplier + p.vectors * VEC - 1) / (p.vectors * VEC);
      const index_t channel = (unit % groups * p.vectors + thread % p.vectors) * VEC;
      const index_t part = unit / groups;
      const bool taken = part < p.parts && channel < ocs && !is_empty(box);

      acc_t sums[TAPS * VEC] = {};
      const index_t end = taken ? least(part * p.part_run + p.part_run, p.tile_d * p.slots * p.lanes) : 0;
      for (index_t i = part * p.part_run + share; i < end; i += p.segment / p.vectors) {
        const index_t lane = i % p.lanes, slot = i / p.lanes % p.slots, od = place.tile.d.first + i / p.lanes / p.slots;
        const index_t oh = place.tile.h.first + first_row(p, slot, p.output_step_h), ow = place.tile.w.first + lane;
        const index_t d = od * p.stride_d + kd * p.dilation_d - p.low_d;
        const index_t column = ow * p.stride_w + kw * p.dilation_w - p.low_w;
        if (od >= place.tile.d.last || oh >= place.tile.h.last || ow >= place.tile.w.last) continue;
        if (!within(d, box.d)) continue;
        const bool has_column = within(column, box.w);
        const scalar_t* ours = grads + y_phase + channel * p.y_pitch_c + (od - place.tile.d.first) * p.y_pitch_d +
                               lane * p.y_pitch_w;
        Pack<scalar_t, VEC> grad[ROWS];
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
          grad[row] = load_pack<VEC>(ours + nearest(oh + row * p.output_step_h, place.tile.h) * p.y_pitch_h);
        }
        const scalar_t* values = inputs + x_phase + channel / p.multiplier * p.x_pitch_c +
                                 (d - box.d.first) * p.x_pitch_d + nearest(column, box.w) * p.x_pitch_w;
#pragma unroll
        for (index_t r = 0; r < (ROWS - 1) * p.tap_step_h + TAPS; ++r) {
          const index_t h = oh * p.stride_h - p.low_h + (first_kh + r) * p.dilation_h;
          const Pack<scalar_t, VEC> value =
              load_or_zeros<VEC>(values + nearest(h, box.h) * p.x_pitch_h, has_column && within(h, box.h));
#pragma unroll
          for (int row = 0; row < ROWS; ++row) {
            if (oh + row * p.output_step_h >= place.tile.h.last) continue;
#pragma unroll
            for (int tap = 0; tap < TAPS; ++tap) {
              if (r != row * p.tap_step_h + tap) continue;
#pragma unroll
              for (int e = 0; e < VEC; ++e) {
                acc_t* sum = &sums[tap * VEC + e];
                *sum = multiply_add(widen(value.at[e]), widen(grad[row].at[e]), *sum);
              }
            }
          }
        }
      }

      for (index_t offset = p.segment / 2; offset >= p.vectors; offset /= 2) {
#pragma unroll
        for (int tap = 0; tap < TAPS * VEC; ++tap) {
          sums[tap] = sums[tap] + __shfl_down_sync(0xffffffffu, sums[tap], static_cast<unsigned>(offset));
        }
      }
      if (!taken || share > 0) continue;
#pragma unroll
      for (int tap = 0; tap < TAPS; ++tap) {
        if (first_kh + tap >= p.kh) break;
#pragma unroll
        for (int e = 0; e < VEC; ++e) {
          acc_t* total = totals + part * weights + (channel + e) * taps + (kd * p.kh + first_kh + tap) * p.kw + kw;
          *total = *total + sums[tap * VEC + e];
        }
      }
    }
    __syncthreads();
  }

  const index_t to = (place.split * p.c * p.multiplier + oc) * taps;
  for (index_t i = thread - to % SECTOR(acc_t); i < ocs * taps; i += threads) {
    if (i < 0) continue;
    acc_t sum = totals[i];
    for (index_t part = 1; part < p.parts; ++part) sum = sum + totals[part * weights + i];
    parts[to + i] = sum;
  }
}
