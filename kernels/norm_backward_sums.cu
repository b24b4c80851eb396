// The two reductions of a norm's gradients, with g = grad_y * weight and h = (x - mean) * rstd:
// sum_g = sum of g / divisor, sum_gh = sum of g * h / divisor
//
// Source       over N and P without weight, these are grad_bias and grad_weight; over the elements that share a
//              statistic and divided by their number, the means of g and g * h in grad_x's closed form
// Reads        grad_y, x [N, G, C, P]; mean, rstd, weight or null: broadcast against x; any strides
// Writes       sum_g and sum_gh, size 1 along the reduced axes
// Mapping      see Tile in norm_tiles.cuh; where a sum has several parts, norm_backward_sums_combine adds them. It also
//              adds other partial sums: those of norm_rows_backward's blocks, and the planes of a group's channels,
//              each times its weight
// Bytes        grad_y and x once, mean and rstd once per block or, where they vary within a sum, once per pack
// Determinism  parts depend on sizes alone; fixed pairing within a part, and of the parts
// Limits       none
#include "common.cuh"
#include "params.cuh"
#include "norms.cuh"
#include "norm_tiles.cuh"

constexpr int HELD = PACK == 1 ? 6 : 16 / PACK;  // packs of a thread, of each array

// Add g, then g * h, of the elements that a thread holds: by the `centres` and `scales` of the block's sums or, where
// these vary within a sum, by mean and rstd.
__device__ __forceinline__ void add_elements(Sum* sums, const Pack<scalar_t, PACK> (&grads)[HELD],
                                             const Pack<scalar_t, PACK> (&values)[HELD],
                                             const acc_t* __restrict__ mean, const acc_t* __restrict__ rstd,
                                             const acc_t* __restrict__ weight, const acc_t* centres,
                                             const acc_t* scales, const Tile& own, const NormParams& p) {
#pragma unroll
  for (int h = 0; h < HELD; ++h) {
    const index_t i = own.first + h * own.step;
    if (i >= own.last) continue;
    const Place at = place(i, p.reduced_1, p.reduced_2, p.reduced_3);
    const index_t mean_at = offset(at, p.mean_0, p.mean_1, p.mean_2, p.mean_3);
    const index_t rstd_at = offset(at, p.rstd_0, p.rstd_1, p.rstd_2, p.rstd_3);
    const index_t weight_at = offset(at, p.weight_0, p.weight_1, p.weight_2, p.weight_3);
    acc_t terms[PACK], products[PACK];
#pragma unroll
    for (int e = 0; e < PACK; ++e) {
      const index_t held = own.local + (ALONG ? e : 0);
      const acc_t centre = p.moves ? mean[mean_at + e * p.mean_3] : centres[held];
      const acc_t scale = p.moves ? rstd[rstd_at + e * p.rstd_3] : scales[held];
      terms[e] = widen(grads[h].at[e]);
      if (weight) terms[e] = terms[e] * weight[weight_at + e * p.weight_3];
      products[e] = terms[e] * ((widen(values[h].at[e]) - centre) * scale);
    }
    add_terms(sums, terms);
    add_terms(sums + EACH, products);
  }
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)
norm_backward_sums(const scalar_t* __restrict__ grad_y,  // [N, G, C, P]
                   const scalar_t* __restrict__ x,       // [N, G, C, P]
                   const acc_t* __restrict__ mean,       // [N or 1, G, 1, 1]
                   const acc_t* __restrict__ rstd,       // as mean
                   const acc_t* __restrict__ weight,     // [1, G, C, 1] or null
                   acc_t* __restrict__ parts_g,          // [splits, part_length], or null where there is one part
                   acc_t* __restrict__ parts_gh,         // as parts_g
                   acc_t* __restrict__ sum_g,            // [kept]
                   acc_t* __restrict__ sum_gh,           // [kept]
                   const NormParams p) {
  __shared__ Sum scratch[SCRATCH];
  __shared__ acc_t centres[MAX_SUMS], scales[MAX_SUMS], results[2][MAX_SUMS];
  const Tile own = tile(p);
  const Place kept = place(own.sum, p.kept_1, p.kept_2, p.kept_3);
  grad_y += offset(kept, p.y_0, p.y_1, p.y_2, p.y_3);
  x += offset(kept, p.x_0, p.x_1, p.x_2, p.x_3);

  Pack<scalar_t, PACK> grads[HELD], values[HELD];
#pragma unroll
  for (int h = 0; h < HELD; ++h) {
    const index_t i = own.first + h * own.step;
    if (i >= own.last) continue;
    const Place at = place(i, p.reduced_1, p.reduced_2, p.reduced_3);
    grads[h] = load_pack<PACK>(grad_y + offset(at, p.y_0, p.y_1, p.y_2, p.y_3));
    values[h] = load_pack<PACK>(x + offset(at, p.x_0, p.x_1, p.x_2, p.x_3));
  }

  if (!p.moves) {
    each_sum(own, p, [&](index_t local, index_t sum) {
      const Place at = place(sum, p.kept_1, p.kept_2, p.kept_3);
      centres[local] = mean[offset(at, p.mean_0, p.mean_1, p.mean_2, p.mean_3)];
      scales[local] = rstd[offset(at, p.rstd_0, p.rstd_1, p.rstd_2, p.rstd_3)];
    });
  }
  __syncthreads();

  mean += offset(kept, p.mean_0, p.mean_1, p.mean_2, p.mean_3);
  rstd += offset(kept, p.rstd_0, p.rstd_1, p.rstd_2, p.rstd_3);
  if (weight) weight += offset(kept, p.weight_0, p.weight_1, p.weight_2, p.weight_3);
  Sum sums[2 * EACH] = {};  // of g, then of g * h
  add_elements(sums, grads, values, mean, rstd, weight, centres, scales, own, p);
  add_threads(sums, scratch, own, p);

  // adjacent threads write adjacent sums, coalesced
#pragma unroll
  for (int e = 0; e < EACH; ++e) {
    if (!own.leads) continue;
    results[0][own.local + e] = rounded(sums[e]);
    results[1][own.local + e] = rounded(sums[EACH + e]);
  }
  __syncthreads();
  each_sum(own, p, [&](index_t local, index_t sum) {
    if (parts_g) {
      parts_g[part_place(own, p) + local] = results[0][local];
      parts_gh[part_place(own, p) + local] = results[1][local];
    } else {
      const Place at = place(sum, p.kept_1, p.kept_2, p.kept_3);
      const index_t to = offset(at, p.sum_0, p.sum_1, p.sum_2, p.sum_3);
      sum_g[to] = results[0][local] / static_cast<acc_t>(p.divisor);
      sum_gh[to] = results[1][local] / static_cast<acc_t>(p.divisor);
    }
  });
}

extern "C" __global__ void __launch_bounds__(COMBINERS, 1)
norm_backward_sums_combine(const acc_t* __restrict__ parts_g,   // [tiles, splits, sums]
                           const acc_t* __restrict__ parts_gh,  // as parts_g
                           const acc_t* __restrict__ weight,    // [1, G, C, 1] or null: where sums are N * G, parts C
                           acc_t* __restrict__ sum_g,           // [kept]
                           acc_t* __restrict__ sum_gh,          // [kept]
                           const NormParams p) {
  __shared__ Sum scratch[2 * COMBINERS];
  __shared__ acc_t results[2][COMBINED];
  const Combiner own = combiner(p);
  parts_g += own.first;
  parts_gh += own.first;
  if (weight) weight += own.sum % p.groups * p.weight_1;

  Sum sums[2] = {};
  for (index_t part = own.member; part < own.last; part += own.step) {
    acc_t g = parts_g[part * p.sums], gh = parts_gh[part * p.sums];
    if (weight) {
      const acc_t factor = weight[part * p.weight_2];
      g = g * factor;
      gh = gh * factor;
    }
    sums[0] = sums[0] + g;
    sums[1] = sums[1] + gh;
  }
  add_combiners(sums, scratch, own);

  // adjacent threads write adjacent sums
  if (own.member == 0 && own.local < COMBINED) {
    results[0][own.local] = rounded(sums[0]) / static_cast<acc_t>(p.divisor);
    results[1][own.local] = rounded(sums[1]) / static_cast<acc_t>(p.divisor);
  }
  __syncthreads();
  const index_t local = static_cast<index_t>(threadIdx.x), sum = static_cast<index_t>(blockIdx.x) * COMBINED + local;
  if (local >= COMBINED || sum >= p.kept) return;
  const Place at = place(sum, p.kept_1, p.kept_2, p.kept_3);
  const index_t to = offset(at, p.sum_0, p.sum_1, p.sum_2, p.sum_3);
  sum_g[to] = results[0][local];
  sum_gh[to] = results[1][local];
}
