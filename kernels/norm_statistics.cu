// Mean and biased variance over the reduced axes of x, as axes of size 1.
//
// Source       two passes about a pivot (Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance"):
//              the rough mean m of the first pass is the pivot of the second, which sums d = x - m and d^2;
//              mean = m + sum(d) / n, var = (sum(d^2) - sum(d)^2 / n) / n
// Accuracy     m is within some roundings of the mean, and x - m is exact where |mean| is large beside the deviation:
//              so sum(d)^2 / n is but a small correction that takes m's own rounding out again, and nothing cancels.
//              The mean of x^2 less the squared mean would cancel all: at 1e4 +- 0.1, float32 has no digit of it left
// Reads        x [N, G, C, P], any strides; twice
// Writes       mean and var, size 1 along the reduced axes
// Mapping      see Share in norms.cuh; few large sums are split into parts of [m, sum(d), sum(d^2)] each, which
//              norm_statistics_combine moves to one pivot and adds, one block a statistic
// Bytes        x twice, the second time from L2 where a part fits there
// Determinism  splits follow from sizes alone; within a part always the same pairs, then the parts in the same pairs
// Limits       a sum of float32 values beyond 3.4e38 overflows, where the NumPy backend has float64
#include "common.cuh"
#include "params.cuh"
#include "norms.cuh"

// The statistics of n elements with the sums of d and d^2 about a pivot. Rounding cannot make the variance negative.
__device__ __forceinline__ void write_statistics(acc_t pivot, acc_t sum_d, acc_t sum_dd, index_t sum,
                                                 acc_t* __restrict__ mean, acc_t* __restrict__ var,
                                                 const NormSumParams& p) {
  const acc_t n = static_cast<acc_t>(p.reduced);
  const Place at = place(sum, p.kept_1, p.kept_2, p.kept_3);
  const index_t to = offset(at, p.sum_0, p.sum_1, p.sum_2, p.sum_3);
  const acc_t variance = (sum_dd - sum_d * sum_d / n) / n;
  mean[to] = pivot + sum_d / n;
  var[to] = variance < 0 ? 0 : variance;  // NaN stays
}

extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
norm_statistics(const scalar_t* __restrict__ x,  // [N, G, C, P]
                acc_t* __restrict__ parts,       // [3, splits, kept], or null where nothing is split
                acc_t* __restrict__ mean,        // [kept]
                acc_t* __restrict__ var,         // [kept]
                const NormSumParams p) {
  __shared__ Sum scratch[MOST_THREADS];
  const Share own = share(p);
  const Place kept = place(own.sum, p.kept_1, p.kept_2, p.kept_3);
  x += offset(kept, p.x_0, p.x_1, p.x_2, p.x_3);

  Sum sum = {};
  for (index_t i = own.first; i < own.last; i += own.step) {
    const Place at = place(i, p.reduced_1, p.reduced_2, p.reduced_3);
    sum = sum + widen(x[offset(at, p.x_0, p.x_1, p.x_2, p.x_3)]);
  }
  const acc_t pivot = lane_sum(sum, scratch, p.lanes) / static_cast<acc_t>(own.count);

  Sum d_sum = {}, dd_sum = {};
  for (index_t i = own.first; i < own.last; i += own.step) {
    const Place at = place(i, p.reduced_1, p.reduced_2, p.reduced_3);
    const acc_t d = widen(x[offset(at, p.x_0, p.x_1, p.x_2, p.x_3)]) - pivot;
    d_sum = d_sum + d;
    dd_sum = dd_sum + d * d;
  }
  const acc_t sum_d = lane_sum(d_sum, scratch, p.lanes);
  const acc_t sum_dd = lane_sum(dd_sum, scratch, p.lanes);

  if (!own.writes) return;
  if (parts) {
    const index_t values = p.splits * p.kept, to = own.part * p.kept + own.sum;
    parts[to] = pivot;
    parts[values + to] = sum_d;
    parts[2 * values + to] = sum_dd;
  } else {
    write_statistics(pivot, sum_d, sum_dd, own.sum, mean, var, p);
  }
}

extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
norm_statistics_combine(const acc_t* __restrict__ parts,  // [3, splits, kept]
                        acc_t* __restrict__ mean,         // [kept]
                        acc_t* __restrict__ var,          // [kept]
                        const NormSumParams p) {
  __shared__ Sum scratch[MOST_THREADS];
  const index_t sum = static_cast<index_t>(blockIdx.x);  // [0, kept)
  const index_t first = static_cast<index_t>(threadIdx.x), step = static_cast<index_t>(blockDim.x);
  const acc_t* pivots = parts + sum;  // [splits] every kept
  const acc_t* sums_d = pivots + p.splits * p.kept;
  const acc_t* sums_dd = sums_d + p.splits * p.kept;

  // the mean of the parts' pivots is the pivot of all
  Sum total = {};
  for (index_t part = first; part < p.splits; part += step) {
    total = total + pivots[part * p.kept] * static_cast<acc_t>(part_size(part, p.run, p.reduced));
  }
  const acc_t pivot = lane_sum(total, scratch, 1) / static_cast<acc_t>(p.reduced);

  // x - pivot = d + shift, summed over the n elements of each part
  Sum d_sum = {}, dd_sum = {};
  for (index_t part = first; part < p.splits; part += step) {
    const acc_t n = static_cast<acc_t>(part_size(part, p.run, p.reduced));
    const acc_t shift = pivots[part * p.kept] - pivot;
    const acc_t sum_d = sums_d[part * p.kept];
    d_sum = d_sum + sum_d + n * shift;
    dd_sum = dd_sum + sums_dd[part * p.kept] + shift * (2 * sum_d + n * shift);
  }
  const acc_t sum_d = lane_sum(d_sum, scratch, 1);
  const acc_t sum_dd = lane_sum(dd_sum, scratch, 1);
  if (threadIdx.x == 0) write_statistics(pivot, sum_d, sum_dd, sum, mean, var, p);
}
