// The gradient of grid_sample with respect to the grid: z[n, o, a] = sum of grad_y[n, c, o] * x[n, c, tap] * slope over
// channels and taps, with the weight's slope along the axis of coordinate a
//
// Source       the derivative of the taps' weights, which are products of one weight per axis
// Reads        grad_y [N, C, OD, OH, OW], x [N, C, D, H, W], grid [N, OD, OH, OW, rank]; any strides
// Writes       z [N, OD, OH, OW, rank] in C order
// Mapping      one thread per sample: adjacent threads have adjacent samples
// Bytes        grad_y and grid once, x by data-dependent gathers, z once
// Determinism  one thread adds a sample's taps in order, of each tap all channels in order
// Limits       none; a tap of weight 0 is not read, so that its NaN or infinity does not matter
#include "common.cuh"
#include "params.cuh"
#include "grid_sample.cuh"

extern "C" __global__ void __launch_bounds__(256, 1)
grid_sample_backward_grid(const scalar_t* __restrict__ grad_y,  // [N, C, OD, OH, OW]
                          const scalar_t* __restrict__ x,       // [N, C, D, H, W]
                          const scalar_t* __restrict__ grid,    // [N, OD, OH, OW, rank]
                          scalar_t* __restrict__ z,             // [N, OD, OH, OW, rank]
                          const GridSampleParams p) {
  const index_t samples = p.od * p.oh * p.ow, i = thread_index();  // [0, N * samples)
  if (i >= p.n * samples) return;
  const index_t n = quotient(i, samples);
  const Position o = sample_position(i - n * samples, p);
  const SampleTaps taps = sample_taps(grid, n, o, p);
  const scalar_t* const grads = grad_y + n * p.y_n + o.d * p.y_d + o.h * p.y_h + o.w * p.y_w;

  acc_t along_d = 0, along_h = 0, along_w = 0;
#pragma unroll
  for (int d = 0; d < DEPTH_TAPS; ++d) {
    if (d >= taps_d(p)) break;
#pragma unroll
    for (int h = 0; h < TAPS; ++h) {
#pragma unroll
      for (int w = 0; w < TAPS; ++w) {
        const acc_t of_d = taps.d.slope[d] * taps.h.weight[h] * taps.w.weight[w];
        const acc_t of_h = taps.d.weight[d] * taps.h.slope[h] * taps.w.weight[w];
        const acc_t of_w = taps.d.weight[d] * taps.h.weight[h] * taps.w.slope[w];
        if (of_d == 0 && of_h == 0 && of_w == 0) continue;
        const scalar_t* const from = x + n * p.x_n + taps.d.at[d] * p.x_d + taps.h.at[h] * p.x_h + taps.w.at[w] * p.x_w;
        acc_t sum = 0;
        for (index_t c = 0; c < p.c; ++c) sum = multiply_add(widen(from[c * p.x_c]), widen(grads[c * p.y_c]), sum);
        if (of_d != 0) along_d = along_d + sum * of_d;
        if (of_h != 0) along_h = along_h + sum * of_h;
        if (of_w != 0) along_w = along_w + sum * of_w;
      }
    }
  }

  scalar_t* const to = z + i * p.rank;
  to[0] = narrow(along_w);
  to[1] = narrow(along_h);
  if (p.rank == 3) to[2] = narrow(along_d);
}
