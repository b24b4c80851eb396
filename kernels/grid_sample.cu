// Images sampled at the positions of a grid: y[n, c, o] = sum of weight * x[n, c, tap] over the taps of grid[n, o]
//
// Source       Jaderberg et al. 2015, "Spatial transformer networks", section 3.3; the cubic is Keys' with a = -0.75
// Reads        x [N, C, D, H, W], grid [N, OD, OH, OW, rank]; any strides
// Writes       y [N, C, OD, OH, OW]
// Mapping      one thread per sample and CHANNELS channels, which share its taps: see Share in grid_sample.cuh
// Bytes        y once; grid once per CHANNELS channels; x by data-dependent gathers
// Determinism  a sample's taps in order
// Limits       none; a tap of weight 0 is not read, so that its NaN or infinity does not matter
#include "common.cuh"
#include "params.cuh"
#include "grid_sample.cuh"

extern "C" __global__ void __launch_bounds__(256, 1)
grid_sample(const scalar_t* __restrict__ x,     // [N, C, D, H, W]
            const scalar_t* __restrict__ grid,  // [N, OD, OH, OW, rank]
            scalar_t* __restrict__ y,           // [N, C, OD, OH, OW]
            const GridSampleParams p) {
  const index_t samples = p.od * p.oh * p.ow, i = thread_index();  // [0, N * slots * samples)
  if (i >= p.n * p.slots * samples) return;
  const Share own = share(i, samples, p);
  const Position o = sample_position(own.at, p);
  const SampleTaps taps = sample_taps(grid, own.n, o, p);

  acc_t sums[CHANNELS] = {};
#pragma unroll
  for (int d = 0; d < DEPTH_TAPS; ++d) {
    if (d >= taps_d(p)) break;
#pragma unroll
    for (int h = 0; h < TAPS; ++h) {
#pragma unroll
      for (int w = 0; w < TAPS; ++w) {
        const acc_t weight = taps.d.weight[d] * taps.h.weight[h] * taps.w.weight[w];
        if (weight == 0) continue;
        const scalar_t* const from =
            x + own.n * p.x_n + taps.d.at[d] * p.x_d + taps.h.at[h] * p.x_h + taps.w.at[w] * p.x_w;
#pragma unroll
        for (int k = 0; k < CHANNELS; ++k) {
          const index_t c = own.slot + k * p.slots;
          if (c < p.c) sums[k] = sums[k] + widen(from[c * p.x_c]) * weight;
        }
      }
    }
  }

  scalar_t* const to = y + own.n * p.y_n + o.d * p.y_d + o.h * p.y_h + o.w * p.y_w;
#pragma unroll
  for (int k = 0; k < CHANNELS; ++k) {
    const index_t c = own.slot + k * p.slots;
    if (c < p.c) to[c * p.y_c] = narrow(sums[k]);
  }
}
