// The two sums that a norm's gradients need, with g = grad_y * weight and h = (x - mean) * rstd:
// sum_g = sum of g / divisor, sum_gh = sum of g * h / divisor
//
// Source       over N and P without weight, these are grad_bias and grad_weight; over the elements that share a
//              statistic and divided by their number, the means of g and g * h in grad_x's closed form
// Reads        grad_y, x [N, G, C, P]; mean, rstd, weight or null: broadcast against x; any strides
// Writes       sum_g and sum_gh, size 1 along the reduced axes
// Mapping      see Share in norms.cuh; few large sums are split into parts, which norm_backward_sums_combine adds, one
//              block a sum
// Bytes        grad_y and x once
// Determinism  splits follow from sizes alone; within a part always the same pairs, then the parts in the same pairs
// Limits       none
#include "common.cuh"
#include "params.cuh"
#include "norms.cuh"

__device__ __forceinline__ void write_sums(acc_t total_g, acc_t total_gh, index_t sum, acc_t* __restrict__ sum_g,
                                           acc_t* __restrict__ sum_gh, const NormSumParams& p) {
  const Place at = place(sum, p.kept_1, p.kept_2, p.kept_3);
  const index_t to = offset(at, p.sum_0, p.sum_1, p.sum_2, p.sum_3);
  sum_g[to] = total_g / static_cast<acc_t>(p.divisor);
  sum_gh[to] = total_gh / static_cast<acc_t>(p.divisor);
}

extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
norm_backward_sums(const scalar_t* __restrict__ grad_y,  // [N, G, C, P]
                   const scalar_t* __restrict__ x,       // [N, G, C, P]
                   const acc_t* __restrict__ mean,       // [N or 1, G, 1, 1]
                   const acc_t* __restrict__ rstd,       // as mean
                   const acc_t* __restrict__ weight,     // [1, G, C, 1] or null
                   acc_t* __restrict__ parts,            // [2, splits, kept], or null where nothing is split
                   acc_t* __restrict__ sum_g,            // [kept]
                   acc_t* __restrict__ sum_gh,           // [kept]
                   const NormSumParams p) {
  __shared__ Sum scratch[MOST_THREADS];
  const Share own = share(p);
  const Place kept = place(own.sum, p.kept_1, p.kept_2, p.kept_3);
  grad_y += offset(kept, p.y_0, p.y_1, p.y_2, p.y_3);
  x += offset(kept, p.x_0, p.x_1, p.x_2, p.x_3);
  mean += offset(kept, p.mean_0, p.mean_1, p.mean_2, p.mean_3);
  rstd += offset(kept, p.rstd_0, p.rstd_1, p.rstd_2, p.rstd_3);
  if (weight) weight += offset(kept, p.weight_0, p.weight_1, p.weight_2, p.weight_3);

  Sum g_sum = {}, gh_sum = {};
  for (index_t i = own.first; i < own.last; i += own.step) {
    const Place at = place(i, p.reduced_1, p.reduced_2, p.reduced_3);
    const acc_t centre = mean[offset(at, p.mean_0, p.mean_1, p.mean_2, p.mean_3)];
    const acc_t scale = rstd[offset(at, p.rstd_0, p.rstd_1, p.rstd_2, p.rstd_3)];
    const acc_t h = (widen(x[offset(at, p.x_0, p.x_1, p.x_2, p.x_3)]) - centre) * scale;
    acc_t g = widen(grad_y[offset(at, p.y_0, p.y_1, p.y_2, p.y_3)]);
    if (weight) g = g * weight[offset(at, p.weight_0, p.weight_1, p.weight_2, p.weight_3)];
    g_sum = g_sum + g;
    gh_sum = gh_sum + g * h;
  }
  const acc_t total_g = lane_sum(g_sum, scratch, p.lanes);
  const acc_t total_gh = lane_sum(gh_sum, scratch, p.lanes);

  if (!own.writes) return;
  if (parts) {
    const index_t to = own.part * p.kept + own.sum;
    parts[to] = total_g;
    parts[p.splits * p.kept + to] = total_gh;
  } else {
    write_sums(total_g, total_gh, own.sum, sum_g, sum_gh, p);
  }
}

extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
norm_backward_sums_combine(const acc_t* __restrict__ parts,  // [2, splits, kept]
                           acc_t* __restrict__ sum_g,        // [kept]
                           acc_t* __restrict__ sum_gh,       // [kept]
                           const NormSumParams p) {
  __shared__ Sum scratch[MOST_THREADS];
  const index_t sum = static_cast<index_t>(blockIdx.x);  // [0, kept)
  const index_t first = static_cast<index_t>(threadIdx.x), step = static_cast<index_t>(blockDim.x);
  Sum g_sum = {}, gh_sum = {};
  for (index_t part = first; part < p.splits; part += step) {
    g_sum = g_sum + parts[part * p.kept + sum];
    gh_sum = gh_sum + parts[(p.splits + part) * p.kept + sum];
  }
  const acc_t total_g = lane_sum(g_sum, scratch, 1);
  const acc_t total_gh = lane_sum(gh_sum, scratch, 1);
  if (threadIdx.x == 0) write_sums(total_g, total_gh, sum, sum_g, sum_gh, p);
}
