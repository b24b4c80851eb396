// A norm's input gradient from known means: z = rstd * (g - mean_g - h * mean_gh),
// with g = grad_y * weight and h = (x - mean) * rstd, and 0 for mean_g where statistics are not centred
//
// Source       the closed form: the contributions of g through mean and variance are subtracted
// Reads        grad_y, x [N, G, C, P]; mean, rstd [N or 1, G, 1, 1], weight [1, G, C, 1] or null; sum_g and sum_gh as
//              mean, which times weight (where `weighs`) and over divisor are mean_g and mean_gh; any strides
// Writes       z [N, G, C, P], which is grad_x
// Mapping      as norm_apply
// Bytes        grad_y, x and z once, parameters once per block; those shaped as mean once per pack where they vary
//              within it
// Determinism  one thread per element
// Limits       none
#include "common.cuh"
#include "params.cuh"
#include "norms.cuh"
#include "norm_tiles.cuh"

constexpr int HELD = PACK == 1 ? 6 : 16 / PACK;  // packs of a thread, of each array

struct Shares {  // of all that share a mean
  acc_t centre, scale, g, gh;
};

// Those at the e-th place after `at`.
__device__ __forceinline__ Shares shares_at(const Place& at, int e, const acc_t* __restrict__ mean,
                                            const acc_t* __restrict__ rstd, const acc_t* __restrict__ sum_g,
                                            const acc_t* __restrict__ sum_gh, const NormParams& p) {
  const index_t sum = offset(at, p.sum_0, p.sum_1, p.sum_2, p.sum_3) + e * p.sum_3;
  const acc_t n = static_cast<acc_t>(p.divisor);
  Shares found;
  found.centre = mean[offset(at, p.mean_0, p.mean_1, p.mean_2, p.mean_3) + e * p.mean_3];
  found.scale = rstd[offset(at, p.rstd_0, p.rstd_1, p.rstd_2, p.rstd_3) + e * p.rstd_3];
  found.g = p.centred ? sum_g[sum] / n : 0;
  found.gh = sum_gh[sum] / n;
  return found;
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)
norm_backward_apply(const scalar_t* __restrict__ grad_y,  // [N, G, C, P]
                    const scalar_t* __restrict__ x,       // [N, G, C, P]
                    const acc_t* __restrict__ mean,       // [N or 1, G, 1, 1]
                    const acc_t* __restrict__ rstd,       // as mean
                    const acc_t* __restrict__ weight,     // [1, G, C, 1] or null
                    const acc_t* __restrict__ sum_g,      // as mean
                    const acc_t* __restrict__ sum_gh,     // as mean
                    scalar_t* __restrict__ z,             // [N, G, C, P]
                    const NormParams p) {
  __shared__ acc_t centres[MAX_SUMS], scales[MAX_SUMS], factors[MAX_SUMS], gs[MAX_SUMS], ghs[MAX_SUMS];
  const Tile own = tile(p);
  const Place kept = place(own.sum, p.kept_1, p.kept_2, p.kept_3);
  grad_y += offset(kept, p.y_0, p.y_1, p.y_2, p.y_3);
  x += offset(kept, p.x_0, p.x_1, p.x_2, p.x_3);
  z += offset(kept, p.z_0, p.z_1, p.z_2, p.z_3);

  Pack<scalar_t, PACK> grads[HELD], values[HELD];
#pragma unroll
  for (int h = 0; h < HELD; ++h) {
    const index_t i = own.first + h * own.step;
    if (i >= own.last) continue;
    const Place at = place(i, p.reduced_1, p.reduced_2, p.reduced_3);
    grads[h] = load_pack<PACK>(grad_y + offset(at, p.y_0, p.y_1, p.y_2, p.y_3));
    values[h] = load_pack<PACK>(x + offset(at, p.x_0, p.x_1, p.x_2, p.x_3));
  }

  each_sum(own, p, [&](index_t local, index_t sum) {
    const Place at = place(sum, p.kept_1, p.kept_2, p.kept_3);
    const acc_t factor = weight ? weight[offset(at, p.weight_0, p.weight_1, p.weight_2, p.weight_3)] : 1;
    factors[local] = factor;
    if (p.moves) return;
    const Shares found = shares_at(at, 0, mean, rstd, sum_g, sum_gh, p);
    centres[local] = found.centre;
    scales[local] = found.scale;
    gs[local] = p.weighs ? found.g * factor : found.g;
    ghs[local] = p.weighs ? found.gh * factor : found.gh;
  });
  __syncthreads();

  mean += offset(kept, p.mean_0, p.mean_1, p.mean_2, p.mean_3);
  rstd += offset(kept, p.rstd_0, p.rstd_1, p.rstd_2, p.rstd_3);
  sum_g += offset(kept, p.sum_0, p.sum_1, p.sum_2, p.sum_3);
  sum_gh += offset(kept, p.sum_0, p.sum_1, p.sum_2, p.sum_3);
#pragma unroll
  for (int h = 0; h < HELD; ++h) {
    const index_t i = own.first + h * own.step;
    if (i >= own.last) continue;
    const Place at = place(i, p.reduced_1, p.reduced_2, p.reduced_3);
    Shares moved = {};
#pragma unroll
    for (int e = 0; e < PACK; ++e) {
      if (p.moves && (e == 0 || p.mean_3 != 0)) moved = shares_at(at, e, mean, rstd, sum_g, sum_gh, p);
      const index_t local = own.local + (ALONG ? e : 0);
      const Shares all = p.moves ? moved : Shares{centres[local], scales[local], gs[local], ghs[local]};
      const acc_t value = (widen(values[h].at[e]) - all.centre) * all.scale;
      const acc_t g = widen(grads[h].at[e]) * factors[local];
      values[h].at[e] = narrow((g - all.g - value * all.gh) * all.scale);
    }
    store_pack(z + offset(at, p.z_0, p.z_1, p.z_2, p.z_3), values[h]);
  }
}
