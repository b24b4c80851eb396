// The second kernel of a backward weight: grad_w[i] = sum over s of parts[s, i]
//
// Source       conv_backward_weight, or the matrix products of single images
// Reads        parts [splits, OC * C / G * KD * KH * KW] of acc_t
// Writes       grad_w [OC, C / G, KD, KH, KW]
// Mapping      one thread a weight, all innermost
// Bytes        (splits * sizeof(acc_t) + sizeof(scalar_t)) a weight
// Determinism  in the order of s
// Limits       none
#include "common.cuh"
#include "params.cuh"

extern "C" __global__ void __launch_bounds__(256, 1)
sum_splits(const acc_t* __restrict__ parts,  // [splits, OC, C / G, KD, KH, KW]
           scalar_t* __restrict__ grad_w,    // [OC, C / G, KD, KH, KW]
           const SumParams p) {
  const index_t i = thread_index();  // [0, weights)
  if (i >= p.weights) return;
  acc_t sum = {};
  for (index_t s = 0; s < p.splits; ++s) sum = sum + parts[s * p.weights + i];
  grad_w[i] = narrow(sum);
}
