// Elements before the activation, (x - mean) * rstd * weight + bias + residual, for kernels over the tiles of
// norm_tiles.cuh with RESIDUAL and HELD.

// Parameters of the block's sums, in shared memory: mean and rstd where they do not vary within a sum.
struct Parameters {
  acc_t centres[MAX_SUMS], scales[MAX_SUMS], factors[MAX_SUMS], terms[MAX_SUMS];
};

// Load the parameters; `scale` makes rstd of what `rstd` holds. All threads of the block call it, then synchronise.
template <class Scale>
__device__ __forceinline__ void load_parameters(Parameters& shared, const acc_t* __restrict__ mean,
                                                const acc_t* __restrict__ rstd, const acc_t* __restrict__ weight,
                                                const acc_t* __restrict__ bias, const Tile& own, const NormParams& p,
                                                Scale scale) {
  each_sum(own, p, [&](index_t local, index_t sum) {
    const Place at = place(sum, p.kept_1, p.kept_2, p.kept_3);
    if (!p.moves) {
      shared.centres[local] = mean[offset(at, p.mean_0, p.mean_1, p.mean_2, p.mean_3)];
      shared.scales[local] = scale(rstd[offset(at, p.rstd_0, p.rstd_1, p.rstd_2, p.rstd_3)]);
    }
    if (weight) shared.factors[local] = weight[offset(at, p.weight_0, p.weight_1, p.weight_2, p.weight_3)];
    if (bias) shared.terms[local] = bias[offset(at, p.bias_0, p.bias_1, p.bias_2, p.bias_3)];
  });
}

// Write the elements of a pack at `at` within its sum to `result`. `mean` and `rstd` point to those of the sum.
template <class Scale>
__device__ __forceinline__ void before_activation(acc_t (&result)[PACK], const Pack<scalar_t, PACK>& values,
                                                  const Pack<scalar_t, PACK>& added, const Place& at,
                                                  const Parameters& shared, const acc_t* __restrict__ mean,
                                                  const acc_t* __restrict__ rstd, bool has_weight, bool has_bias,
                                                  const Tile& own, const NormParams& p, Scale scale) {
  const index_t mean_at = offset(at, p.mean_0, p.mean_1, p.mean_2, p.mean_3);
  const index_t rstd_at = offset(at, p.rstd_0, p.rstd_1, p.rstd_2, p.rstd_3);
  acc_t moved_centre = 0, moved_scale = 0;
#pragma unroll
  for (int e = 0; e < PACK; ++e) {
    const index_t local = own.local + (ALONG ? e : 0);
    if (p.moves && (e == 0 || p.mean_3 != 0)) {
      moved_centre = mean[mean_at + e * p.mean_3];
      moved_scale = scale(rstd[rstd_at + e * p.rstd_3]);
    }
    const acc_t centre = p.moves ? moved_centre : shared.centres[local];
    const acc_t rescale = p.moves ? moved_scale : shared.scales[local];
    acc_t value = (widen(values.at[e]) - centre) * rescale;
    if (has_weight) value = value * shared.factors[local];
    if (has_bias) value = value + shared.terms[local];
    if (RESIDUAL) value = value + widen(added.at[e]);
    result[e] = value;
  }
}
