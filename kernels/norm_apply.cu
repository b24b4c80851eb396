// A norm with its statistics known: z = (x - mean) * rstd * weight + bias
//
// Source       the definition, in its order of operations and without fused ones
// Reads        x [N, G, C, P]; mean, rstd [N or 1, G, 1, 1], weight, bias [1, G, C, 1] or null; any strides
// Writes       z [N, G, C, P]
// Mapping      one thread an element, in z's memory order
// Bytes        x and z once; the rest from L1 and L2
// Determinism  one thread an element
// Limits       none
#include "common.cuh"
#include "params.cuh"
#include "norms.cuh"

extern "C" __global__ void __launch_bounds__(256, 1)
norm_apply(const scalar_t* __restrict__ x,    // [N, G, C, P]
           const acc_t* __restrict__ mean,    // [N or 1, G, 1, 1]
           const acc_t* __restrict__ rstd,    // as mean
           const acc_t* __restrict__ weight,  // [1, G, C, 1] or null
           const acc_t* __restrict__ bias,    // as weight
           scalar_t* __restrict__ z,          // [N, G, C, P]
           const NormParams p) {
  const index_t i = thread_index();  // [0, N * G * C * P)
  if (i >= p.count) return;
  const Place at = place(i, p.size_1, p.size_2, p.size_3);

  const acc_t centre = mean[offset(at, p.mean_0, p.mean_1, p.mean_2, p.mean_3)];
  const acc_t scale = rstd[offset(at, p.rstd_0, p.rstd_1, p.rstd_2, p.rstd_3)];
  acc_t value = (widen(x[offset(at, p.x_0, p.x_1, p.x_2, p.x_3)]) - centre) * scale;
  if (weight) value = value * weight[offset(at, p.weight_0, p.weight_1, p.weight_2, p.weight_3)];
  if (bias) value = value + bias[offset(at, p.bias_0, p.bias_1, p.bias_2, p.bias_3)];
  z[offset(at, p.z_0, p.z_1, p.z_2, p.z_3)] = narrow(value);
}
