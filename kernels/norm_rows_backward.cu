// All gradients of a norm over rows, fused: z = rstd * (g - mean(g) - h * mean(g * h)), which is grad_x, with
// g = grad_y * weight, h = (x - mean) * rstd and means over a row; and parts of the sums over rows of grad_y and
// grad_y * h, which are grad_bias and grad_weight
//
// Source       the closed form: the contributions of g through mean and variance are subtracted
// Reads        grad_y, x [N, G, C, P], each row [C, P] contiguous; mean, rstd [N, G, 1, 1]; weight [1, G, C, 1] or null
// Writes       z [N, G, C, P] unless it is null; parts unless they are null, for norm_backward_sums_combine
// Mapping      as norm_rows. In layer norm there is one part per block, the sums over its rows; else one per image
// Bytes        grad_y, x and z once, since a row stays in registers; parts once; weight as in norm_rows
// Determinism  fixed pairing within a row; a block's rows in order
// Limits       rows of 16 * 256 values, else as norm_rows
#include "common.cuh"
#include "params.cuh"
#include "norms.cuh"
#include "norm_rows.cuh"

constexpr int HELD = 16 / PACK;  // packs of a thread, of each array

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)
norm_rows_backward(const scalar_t* __restrict__ grad_y,  // [N, G, C, P]
                   const scalar_t* __restrict__ x,       // [N, G, C, P]
                   const acc_t* __restrict__ mean,       // [N, G, 1, 1]
                   const acc_t* __restrict__ rstd,       // as mean
                   const acc_t* __restrict__ weight,     // [1, G, C, 1] or null
                   scalar_t* __restrict__ z,             // [N, G, C, P], or null
                   acc_t* __restrict__ parts_g,          // [blocks or N, G, C], or null
                   acc_t* __restrict__ parts_gh,         // as parts_g
                   const NormRowParams p) {
  extern __shared__ acc_t affine[];  // [3, length] where weights vary along a row: weight, and the block's sums
  __shared__ Sum scratch[2 * LEADERS];
  __shared__ acc_t factors[LEADERS];
  const RowThread own = row_thread(p);
  if (p.along) {
    for (index_t i = threadIdx.x; i < p.length; i += blockDim.x) affine[i] = weight ? weight[i * p.weight_c] : 1;
    __syncthreads();
  }

  const acc_t n = static_cast<acc_t>(p.segments * p.length);
  acc_t column_g[HELD][PACK] = {}, column_gh[HELD][PACK] = {};  // where G and P are 1: of grad_y and grad_y * h
  for (index_t turn = 0; turn < p.turns; ++turn) {
    const index_t row = (static_cast<index_t>(blockIdx.x) * p.turns + turn) * p.at_once + own.local;
    const bool works = own.works && row < p.rows;
    const index_t image = row / p.g, group = row % p.g, last = works ? p.length : 0;

    const scalar_t* const from_grad = grad_y + image * p.y_n + group * p.y_g + own.segment * p.length;
    const scalar_t* const from = x + image * p.x_n + group * p.x_g + own.segment * p.length;
    Pack<scalar_t, PACK> grads[HELD], values[HELD];
#pragma unroll
    for (int h = 0; h < HELD; ++h) {
      const index_t i = (h * own.lanes + own.lane) * PACK;
      if (i >= last) continue;
      grads[h] = load_pack<PACK>(from_grad + i);
      values[h] = load_pack<PACK>(from + i);
    }
    const acc_t centre = works ? mean[image * p.mean_n + group * p.mean_g] : 0;
    const acc_t scale = works ? rstd[image * p.rstd_n + group * p.rstd_g] : 0;
    acc_t factor = 1;
    if (works && weight && !p.along) factor = weight[group * p.weight_g + own.segment * p.weight_c];

    Sum sums[2] = {}, by_segment[2] = {};  // of g and g * h, including weights that vary along a row
#pragma unroll
    for (int h = 0; h < HELD; ++h) {
      const index_t i = (h * own.lanes + own.lane) * PACK;
      if (i >= last) continue;
      acc_t by[PACK], terms[PACK], products[PACK];
      if (p.along) load_values(affine + i, by);
#pragma unroll
      for (int e = 0; e < PACK; ++e) {
        const acc_t grad = widen(grads[h].at[e]), value = (widen(values[h].at[e]) - centre) * scale;
        if (p.along) {
          column_g[h][e] = column_g[h][e] + grad;
          column_gh[h][e] = column_gh[h][e] + grad * value;
        }
        terms[e] = p.along ? grad * by[e] : grad;
        products[e] = terms[e] * value;
      }
      sums[0] = sums[0] + paired(terms);
      sums[1] = sums[1] + paired(products);
    }
    add_row(sums, by_segment, factor, scratch, factors, own, p);

    if (!works) continue;
    if (parts_g && !p.along && own.lane == 0) {
      const index_t to = row * p.segments + own.segment;
      parts_g[to] = rounded(by_segment[0]);
      parts_gh[to] = rounded(by_segment[1]);
    }
    if (!z) continue;
    const acc_t mean_g = rounded(sums[0]) / n, mean_gh = rounded(sums[1]) / n;
    scalar_t* const to = z + image * p.z_n + group * p.z_g + own.segment * p.length;
#pragma unroll
    for (int h = 0; h < HELD; ++h) {
      const index_t i = (h * own.lanes + own.lane) * PACK;
      if (i >= last) continue;
      acc_t by[PACK];
      if (p.along) load_values(affine + i, by);
#pragma unroll
      for (int e = 0; e < PACK; ++e) {
        const acc_t value = (widen(values[h].at[e]) - centre) * scale;
        const acc_t g = widen(grads[h].at[e]) * (p.along ? by[e] : factor);
        values[h].at[e] = narrow((g - mean_g - value * mean_gh) * scale);
      }
      store_pack(to + i, values[h]);
    }
  }

  if (!p.along || !parts_g) return;
  acc_t* const block_g = affine + p.length;
  acc_t* const block_gh = block_g + p.length;
  for (int local = 0; local < p.at_once; ++local) {  // the parallel rows, in order
#pragma unroll
    for (int h = 0; h < HELD; ++h) {
      const index_t i = (h * own.lanes + own.lane) * PACK;
      if (!own.works || own.local != local || i >= p.length) continue;
      if (local > 0) {
        acc_t before_g[PACK], before_gh[PACK];
        load_values(block_g + i, before_g);
        load_values(block_gh + i, before_gh);
#pragma unroll
        for (int e = 0; e < PACK; ++e) {
          column_g[h][e] = before_g[e] + column_g[h][e];
          column_gh[h][e] = before_gh[e] + column_gh[h][e];
        }
      }
      store_values(block_g + i, column_g[h]);
      store_values(block_gh + i, column_gh[h]);
    }
    __syncthreads();
  }
  const index_t block = static_cast<index_t>(blockIdx.x);
  for (index_t i = threadIdx.x; i < p.length; i += blockDim.x) {
    parts_g[block * p.length + i] = block_g[i];
    parts_gh[block * p.length + i] = block_gh[i];
  }
}
