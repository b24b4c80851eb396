// The sum of the parts of a split-K reduction: total[i] = sum over s of parts[s, i]
//
// Source       conv_backward_weight, or the GEMMs of single images; or partial sums of a channel's gradient
// Reads        parts [splits, OC * C / G * KD * KH * KW] of acc_t
// Writes       total [OC, C / G, KD, KH, KW]
// Mapping      one thread per PACK weights, all innermost
// Bytes        (splits * sizeof(acc_t) + sizeof(scalar_t)) per weight, PACK of each per access
// Determinism  in the order of s
// Limits       PACK divides the weights
#include "common.cuh"
#include "params.cuh"

// The sum of parts [splits, weights].
struct SumParams {
  RUN_TIME index_t splits;
  index_t weights;
};

extern "C" __global__ void __launch_bounds__(256, 1)
sum_splits(const acc_t* __restrict__ parts,  // [splits, OC, C / G, KD, KH, KW]
           scalar_t* __restrict__ total,     // [OC, C / G, KD, KH, KW]
           const SumParams p) {
  const index_t i = thread_index() * PACK;  // [0, weights)
  if (i >= p.weights) return;
  acc_t sums[PACK] = {};
#pragma unroll 8
  for (index_t s = 0; s < p.splits; ++s) {
    const Pack<acc_t, PACK> part = load_pack<PACK>(parts + s * p.weights + i);
#pragma unroll
    for (int j = 0; j < PACK; ++j) sums[j] = sums[j] + part.at[j];
  }
  Pack<scalar_t, PACK> result;
#pragma unroll
  for (int j = 0; j < PACK; ++j) result.at[j] = narrow(sums[j]);
  store_pack(total + i, result);
}
