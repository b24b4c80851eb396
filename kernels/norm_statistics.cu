// Mean, biased variance and reciprocal standard deviation over the reduced axes of x, as axes of size 1. Where they are
// not centred, as in RMS norm, the mean is 0 and the variance the mean square.
//
// Source       two passes about a pivot (Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance"):
//              a part's rough mean m, of a plain sum, is the pivot of the second pass over it, which sums d = x - m
//              and d^2;
//              mean = m + sum(d) / n, var = (sum(d^2) - sum(d)^2 / n) / n, rstd = 1 / sqrt(var + eps)
// Accuracy     m is within some roundings of the mean, and x - m is exact where |mean| is large against the deviation:
//              sum(d)^2 / n is only a small correction for the rounding of m, without cancellation.
//              The mean of x^2 minus the squared mean would cancel: at 1e4 +- 0.1, no digit is left in float32
// Reads        x [N, G, C, P], any strides
// Writes       mean, var and rstd, size 1 along the reduced axes
// Mapping      see Tile in norm_tiles.cuh; a block takes a part that fits its threads' registers. Where there are
//              several, each writes [m, sum(d), sqrt(sum(d^2) / n)], which have the range of x, and
//              norm_statistics_combine shifts them to one pivot and adds them
// Bytes        x once: both passes over a part read registers. Parts once: norm_statistics_combine holds the pivots
//              of 256 parts of a sum, and reads those of further ones twice
// Determinism  parts depend on sizes alone; fixed pairing within a part, and of the parts
// Limits       none: see scale_for in norms.cuh on values whose squares or sums leave the range of acc_t
#include "common.cuh"
#include "params.cuh"
#include "norms.cuh"
#include "norm_tiles.cuh"

constexpr int VALUES = sizeof(scalar_t) == 2 ? 64 : 32;           // of a thread: what it does once costs half of them
constexpr int HELD = PACK == 1 ? 3 * VALUES / 8 : VALUES / PACK;  // packs
constexpr int HELD_PIVOTS = 8;                                    // of a thread that adds parts

__device__ __forceinline__ void write_statistics(const Statistics& found, index_t sum, acc_t* __restrict__ mean,
                                                 acc_t* __restrict__ var, acc_t* __restrict__ rstd,
                                                 const NormParams& p) {
  const Place at = place(sum, p.kept_1, p.kept_2, p.kept_3);
  const index_t to = offset(at, p.sum_0, p.sum_1, p.sum_2, p.sum_3);
  mean[to] = found.mean;
  var[to] = found.var;
  rstd[to] = found.rstd;
}

// Of a part's values times `scale`: the pivot, and the sums of d, then of d^2. A thread has EACH of them.
struct Moments {
  acc_t pivot[EACH], scale[EACH];
  Sum sums[2 * EACH];
};

// The moments of the part whose packs the threads hold. Where squares leave the range of acc_t, what they hold is
// multiplied by a power of two.
__device__ __forceinline__ Moments moments_of_part(Pack<scalar_t, PACK> (&held)[HELD], int packs, Sum* scratch,
                                                   const Tile& own, const NormParams& p) {
  const acc_t n = static_cast<acc_t>(own.count);
  Moments found;
#pragma unroll
  for (int e = 0; e < EACH; ++e) found.scale[e] = 1;
  for (bool again = false;; again = true) {
    acc_t sums[EACH] = {};
#pragma unroll
    for (int h = 0; h < HELD; ++h) {
      if (h >= packs) continue;
      acc_t terms[PACK];
#pragma unroll
      for (int e = 0; e < PACK; ++e) terms[e] = widen(held[h].at[e]);
      add_terms(sums, terms);
    }
    add_threads(sums, reinterpret_cast<acc_t*>(scratch), own, p);
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
      found.pivot[e] = p.centred ? sums[e] / n : 0;
      found.sums[e] = found.sums[EACH + e] = Sum{};
    }

#pragma unroll
    for (int h = 0; h < HELD; ++h) {
      if (h >= packs) continue;
      acc_t terms[PACK], squares[PACK];
#pragma unroll
      for (int e = 0; e < PACK; ++e) {
        terms[e] = widen(held[h].at[e]) - found.pivot[ALONG ? e : 0];
        squares[e] = terms[e] * terms[e];
      }
      add_terms(found.sums, terms);
      add_terms(found.sums + EACH, squares);
    }
    add_threads(found.sums, scratch, own, p);
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
      if (!p.centred) found.sums[e] = Sum{};
    }
    if (again || SQUARES_FIT<scalar_t>) break;
    bool scales = false;
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
      found.scale[e] = scale_for(rounded(found.sums[EACH + e]), n, p.eps);
      scales = scales || found.scale[e] != 1;
    }
    if (!__syncthreads_or(scales && own.sum < p.kept)) break;
#pragma unroll
    for (int h = 0; h < HELD; ++h) {
#pragma unroll
      for (int e = 0; e < PACK; ++e) held[h].at[e] = narrow(widen(held[h].at[e]) * found.scale[ALONG ? e : 0]);
    }
  }
  return found;
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)
norm_statistics(const scalar_t* __restrict__ x,  // [N, G, C, P]
                acc_t* __restrict__ parts,       // [3, splits, part_length], or null where there is one part
                acc_t* __restrict__ mean,        // [kept]
                acc_t* __restrict__ var,         // [kept]
                acc_t* __restrict__ rstd,        // [kept]
                const NormParams p) {
  __shared__ Sum scratch[SCRATCH];
  __shared__ acc_t results[4][MAX_SUMS];
  const Tile own = tile(p);
  const Place kept = place(own.sum, p.kept_1, p.kept_2, p.kept_3);
  x += offset(kept, p.x_0, p.x_1, p.x_2, p.x_3);

  Pack<scalar_t, PACK> held[HELD];
  int packs = 0;  // of them that the thread holds
#pragma unroll
  for (int h = 0; h < HELD; ++h) {
    const index_t i = own.first + h * own.step;
    if (i >= own.last) continue;
    packs = h + 1;
    const Place at = place(i, p.reduced_1, p.reduced_2, p.reduced_3);
    held[h] = load_pack<PACK>(x + offset(at, p.x_0, p.x_1, p.x_2, p.x_3));
  }

  const acc_t n = static_cast<acc_t>(own.count);
  const Moments found = moments_of_part(held, packs, scratch, own, p);

  // adjacent threads write adjacent sums, coalesced
#pragma unroll
  for (int e = 0; e < EACH; ++e) {
    if (!own.leads) continue;
    results[0][own.local + e] = found.pivot[e];
    results[1][own.local + e] = rounded(found.sums[e]);
    results[2][own.local + e] = rounded(found.sums[EACH + e]);
    results[3][own.local + e] = found.scale[e];
  }
  __syncthreads();
  const index_t values = p.splits * part_length(p);
  each_sum(own, p, [&](index_t local, index_t sum) {
    const index_t to = part_place(own, p) + local;
    const acc_t mean_part = results[0][local], sum_d = results[1][local], sum_dd = results[2][local];
    const acc_t scaled = results[3][local];
    if (parts) {
      parts[to] = mean_part / scaled;
      parts[values + to] = sum_d / scaled;
      parts[2 * values + to] = sqrt(sum_dd / n) / scaled;
    } else {
      write_statistics(statistics(mean_part, sum_d, sum_dd, n, p.eps, scaled), sum, mean, var, rstd, p);
    }
  });
}

// One part of `size` elements, times `scale` and shifted by `shift` to the common pivot. Its values start at `part`,
// with stride `values`.
__device__ __forceinline__ void add_part(Sum (&moments)[2], const acc_t* part, index_t values, acc_t shift,
                                         index_t size, acc_t scale) {
  const acc_t n = static_cast<acc_t>(size), sum_d = part[values] * scale, root = part[2 * values] * scale;
  moments[0] = moments[0] + sum_d + n * shift;
  moments[1] = moments[1] + n * root * root + shift * (2 * sum_d + n * shift);
}

extern "C" __global__ void __launch_bounds__(COMBINERS, 1)
norm_statistics_combine(const acc_t* __restrict__ parts,  // [3, splits, sums], sums of part_length
                        acc_t* __restrict__ mean,         // [kept]
                        acc_t* __restrict__ var,          // [kept]
                        acc_t* __restrict__ rstd,         // [kept]
                        const NormParams p) {
  __shared__ Sum scratch[2 * COMBINERS];
  __shared__ acc_t results[3][COMBINED];
  const Combiner own = combiner(p);
  const index_t values = p.splits * p.sums;
  const acc_t* const pivots = parts + own.first;

  const acc_t n = static_cast<acc_t>(p.reduced);
  const index_t further = own.member + HELD_PIVOTS * own.step;
  acc_t scale = 1, pivot;
  Sum moments[2];
  for (bool again = false;; again = true) {
    // the mean of the parts' pivots is the pivot of all
    Sum total[1] = {};
    acc_t held[HELD_PIVOTS];
#pragma unroll
    for (int h = 0; h < HELD_PIVOTS; ++h) {
      const index_t part = own.member + h * own.step;
      if (part >= own.last) continue;
      held[h] = pivots[part * p.sums] * scale;
      total[0] = total[0] + held[h] * static_cast<acc_t>(part_size(part, p));
    }
    for (index_t part = further; part < own.last; part += own.step) {
      total[0] = total[0] + pivots[part * p.sums] * scale * static_cast<acc_t>(part_size(part, p));
    }
    add_combiners(total, scratch, own);
    pivot = rounded(total[0]) / n;

    // x - pivot = d + shift, summed over the elements of each part
    moments[0] = moments[1] = Sum{};
#pragma unroll
    for (int h = 0; h < HELD_PIVOTS; ++h) {
      const index_t part = own.member + h * own.step;
      if (part >= own.last) continue;
      add_part(moments, pivots + part * p.sums, values, held[h] - pivot, part_size(part, p), scale);
    }
    for (index_t part = further; part < own.last; part += own.step) {
      const acc_t* const at = pivots + part * p.sums;
      add_part(moments, at, values, *at * scale - pivot, part_size(part, p), scale);
    }
    add_combiners(moments, scratch, own);
    if (again) break;
    scale = scale_for(rounded(moments[1]), n, p.eps);
    if (!__syncthreads_or(own.last > 0 && scale != 1)) break;
  }

  // adjacent threads write adjacent statistics
  const Statistics found = statistics(pivot, rounded(moments[0]), rounded(moments[1]), n, p.eps, scale);
  if (own.member == 0) {
    results[0][own.local] = found.mean;
    results[1][own.local] = found.var;
    results[2][own.local] = found.rstd;
  }
  __syncthreads();
  const index_t local = static_cast<index_t>(threadIdx.x), sum = static_cast<index_t>(blockIdx.x) * COMBINED + local;
  if (local >= COMBINED || sum >= p.kept) return;
  write_statistics({results[0][local], results[1][local], results[2][local]}, sum, mean, var, rstd, p);
}
