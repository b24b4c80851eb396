// The gradient of grid_sample with respect to its input: z[n, c, i] = sum of weight * grad_y[n, c, o] over all taps, of
// samples o, that are the input i
//
// Source       the adjoint of grid_sample, as a gather: grid_sample_backward_keys writes for each tap, which is the
//              entry o * taps + t, the key (n * (inputs + 1) + i) * entries + entry, with an input more for taps that
//              are not read; the keys are sorted, which leaves each image's together; grid_sample_backward_input finds
//              those of its input
// Reads        grad_y [N, C, OD, OH, OW], grid [N, OD, OH, OW, rank]; any strides
// Writes       keys [N, entries], weights [N, entries]; z [N, C, D, H, W]
// Mapping      keys: one thread per sample. Sums: one thread per input and CHANNELS channels: see Share in
//              grid_sample.cuh
// Bytes        keys and weights once, and the sort's passes; then both and grad_y, by gathers, once per CHANNELS
//              channels
// Determinism  one thread adds the entries of an input in order; keys are all different, so any sort gives one order
// Limits       N * entries * (D * H * W + 1) below 2^63; an input that many samples read takes as many steps of one
//              thread
#include "common.cuh"
#include "params.cuh"
#include "grid_sample.cuh"

using key_t = long long;

// Taps of a sample.
__device__ __forceinline__ index_t taps_of_sample(const GridSampleParams& p) { return taps_d(p) * TAPS * TAPS; }

extern "C" __global__ void __launch_bounds__(256, 1)
grid_sample_backward_keys(const scalar_t* __restrict__ grid,  // [N, OD, OH, OW, rank]
                          long long* __restrict__ keys,       // [N, entries]
                          acc_t* __restrict__ weights,        // as keys
                          const GridSampleParams p) {
  const index_t samples = p.od * p.oh * p.ow, i = thread_index();  // [0, N * samples)
  if (i >= p.n * samples) return;
  const index_t n = quotient(i, samples), o = i - n * samples;
  const SampleTaps taps = sample_taps(grid, n, sample_position(o, p), p);
  const index_t each = taps_of_sample(p);
  const key_t entries = static_cast<key_t>(samples) * each, none = static_cast<key_t>(p.d) * p.h * p.w;

  index_t t = 0;
#pragma unroll
  for (int d = 0; d < DEPTH_TAPS; ++d) {
    if (d >= taps_d(p)) break;
#pragma unroll
    for (int h = 0; h < TAPS; ++h) {
#pragma unroll
      for (int w = 0; w < TAPS; ++w, ++t) {
        const acc_t weight = taps.d.weight[d] * taps.h.weight[h] * taps.w.weight[w];
        const key_t input = (static_cast<key_t>(taps.d.at[d]) * p.h + taps.h.at[h]) * p.w + taps.w.at[w];
        keys[i * each + t] = (n * (none + 1) + (weight == 0 ? none : input)) * entries + o * each + t;
        weights[i * each + t] = weight;
      }
    }
  }
}

// The number of sorted keys below `key`.
__device__ __forceinline__ index_t keys_below(const long long* __restrict__ keys, index_t count, key_t key) {
  index_t begin = 0;
  while (count > 0) {
    const index_t half = count / 2;
    if (keys[begin + half] < key) {
      begin += half + 1;
      count -= half + 1;
    } else {
      count = half;
    }
  }
  return begin;
}

extern "C" __global__ void __launch_bounds__(256, 1)
grid_sample_backward_input(const scalar_t* __restrict__ grad_y,  // [N, C, OD, OH, OW]
                           const long long* __restrict__ keys,   // [N, entries], sorted
                           const acc_t* __restrict__ weights,    // as keys
                           scalar_t* __restrict__ z,             // [N, C, D, H, W]
                           const GridSampleParams p) {
  const index_t inputs = p.d * p.h * p.w, i = thread_index();  // [0, N * slots * inputs)
  if (i >= p.n * p.slots * inputs) return;
  const Share own = share(i, inputs, p);
  const index_t each = taps_of_sample(p), entries = p.od * p.oh * p.ow * each;
  keys += own.n * entries;
  weights += own.n * entries;

  acc_t sums[CHANNELS] = {};
  const key_t first = (own.n * (static_cast<key_t>(inputs) + 1) + own.at) * entries;
  for (index_t at = keys_below(keys, entries, first); at < entries && keys[at] < first + entries; ++at) {
    const index_t entry = static_cast<index_t>(keys[at] - first);
    const acc_t weight = weights[entry];
    const Position o = sample_position(quotient(entry, each), p);
    const scalar_t* const from = grad_y + own.n * p.y_n + o.d * p.y_d + o.h * p.y_h + o.w * p.y_w;
#pragma unroll
    for (int k = 0; k < CHANNELS; ++k) {
      const index_t c = own.slot + k * p.slots;
      if (c < p.c) sums[k] = sums[k] + widen(from[c * p.y_c]) * weight;
    }
  }

  const Position to = position(own.at, 1, p.d, p.h, p.w, false);
  z += own.n * p.x_n + to.d * p.x_d + to.h * p.x_h + to.w * p.x_w;
#pragma unroll
  for (int k = 0; k < CHANNELS; ++k) {
    const index_t c = own.slot + k * p.slots;
    if (c < p.c) z[c * p.x_c] = narrow(sums[k]);
  }
}
