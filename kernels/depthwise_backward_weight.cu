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

// What a segment of lanes sums in one turn: up to TAPS kh of one kw and kd, of some channels, over part of a tile.
struct Unit {
  index_t kd, first_kh, kw, channel, part;
};

__device__ __forceinline__ Unit unit_of(const DepthwiseParams& p, index_t i, index_t vector) {
  Unit unit;  // [parts, channels, KD, groups of TAPS kh, KW]
  unit.kw = i % p.kw;
  i /= p.kw;
  unit.first_kh = i % ((p.kh + TAPS - 1) / TAPS) * TAPS;
  i /= (p.kh + TAPS - 1) / TAPS;
  unit.kd = i % p.kd;
  i /= p.kd;
  const index_t groups = (p.planes * p.multiplier + p.vectors * VEC - 1) / (p.vectors * VEC);
  unit.channel = (i % groups * p.vectors + vector) * VEC;
  unit.part = i / groups;
  return unit;
}

// Add the products of the i-th ROWS outputs of a tile's column with their inputs; the planes are in shared memory.
__device__ __forceinline__ void add_rows(const DepthwiseParams& p, const Place& place, const Box& box,
                                         const Unit& unit, index_t i, const scalar_t* inputs, const scalar_t* grads,
                                         acc_t (&sums)[TAPS * VEC]) {
  const index_t lane = i % p.lanes, slot = i / p.lanes % p.slots, od = place.tile.d.first + i / p.lanes / p.slots;
  const index_t oh = place.tile.h.first + first_row(p, slot, p.output_step_h), ow = place.tile.w.first + lane;
  const index_t d = od * p.stride_d + unit.kd * p.dilation_d - p.low_d;
  const index_t column = ow * p.stride_w + unit.kw * p.dilation_w - p.low_w;
  if (od >= place.tile.d.last || oh >= place.tile.h.last || ow >= place.tile.w.last || !within(d, box.d)) return;
  const bool has_column = within(column, box.w);
  const scalar_t* ours = grads + (od - place.tile.d.first) * p.y_pitch_d + lane * p.y_pitch_w;
  Pack<scalar_t, VEC> grad[ROWS];
#pragma unroll
  for (int row = 0; row < ROWS; ++row) {
    grad[row] = load_pack<VEC>(ours + nearest(oh + row * p.output_step_h, place.tile.h) * p.y_pitch_h);
  }
  const scalar_t* values = inputs + (d - box.d.first) * p.x_pitch_d + nearest(column, box.w) * p.x_pitch_w;
#pragma unroll
  for (index_t r = 0; r < (ROWS - 1) * p.tap_step_h + TAPS; ++r) {
    const index_t h = oh * p.stride_h - p.low_h + (unit.first_kh + r) * p.dilation_h;
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

// Store the block's totals, of each weight the sum over its parts in order.
__device__ __forceinline__ void store_parts(const DepthwiseParams& p, const Place& place, const acc_t* totals,
                                            acc_t* __restrict__ parts) {
  const index_t taps = p.kd * p.kh * p.kw, weights = p.planes * p.multiplier * taps;
  const index_t to = (place.split * p.c + place.c) * p.multiplier * taps;
  const index_t count = place.channels * p.multiplier * taps;
  for (index_t i = static_cast<index_t>(threadIdx.x) - to % SECTOR(acc_t); i < count;
       i += static_cast<index_t>(blockDim.x)) {
    if (i < 0) continue;
    acc_t sum = totals[i];
    for (index_t part = 1; part < p.parts; ++part) sum = sum + totals[part * weights + i];
    parts[to + i] = sum;
  }
}

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
      const Unit unit = unit_of(p, first + thread / p.segment, thread % p.vectors);
      const bool taken = unit.part < p.parts && unit.channel < ocs && !is_empty(box);
      const scalar_t* plane = inputs + x_phase + unit.channel / p.multiplier * p.x_pitch_c;
      acc_t sums[TAPS * VEC] = {};
      const index_t begin = unit.part * p.part_run;
      const index_t end = taken ? least(begin + p.part_run, p.tile_d * p.slots * p.lanes) : 0;
      for (index_t i = begin + share; i < end; i += p.segment / p.vectors) {
        add_rows(p, place, box, unit, i, plane, grads + y_phase + unit.channel * p.y_pitch_c, sums);
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
        if (unit.first_kh + tap >= p.kh) break;
#pragma unroll
        for (int e = 0; e < VEC; ++e) {
          acc_t* total = totals + unit.part * weights + (unit.channel + e) * taps +
                         (unit.kd * p.kh + unit.first_kh + tap) * p.kw + unit.kw;
          *total = *total + sums[tap * VEC + e];
        }
      }
    }
    __syncthreads();
  }

  store_parts(p, place, totals, parts);
}
