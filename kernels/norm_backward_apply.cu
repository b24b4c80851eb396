// A norm's gradient by its input, its means known: z = rstd * (g - mean_g - h * mean_gh),
// with g = grad_y * weight and h = (x - mean) * rstd
//
// Source       the closed form: what g moves the mean and the variance by is taken away
// Reads        grad_y, x [N, G, C, P]; mean, rstd, mean_g, mean_gh [N or 1, G, 1, 1], weight [1, G, C, 1] or null; any
//              strides
// Writes       z [N, G, C, P], which is grad_x
// Mapping      one thread an element, in z's memory order
// Bytes        grad_y, x and z once; the rest from L1 and L2
// Determinism  one thread an element
// Limits       none
#include "common.cuh"
#include "params.cuh"
#include "norms.cuh"

extern "C" __global__ void __launch_bounds__(256, 1)
norm_backward_apply(const scalar_t* __restrict__ grad_y,  // [N, G, C, P]
                    const scalar_t* __restrict__ x,       // [N, G, C, P]
                    const acc_t* __restrict__ mean,       // [N or 1, G, 1, 1]
                    const acc_t* __restrict__ rstd,       // as mean
                    const acc_t* __restrict__ weight,     // [1, G, C, 1] or null
                    const acc_t* __restrict__ mean_g,     // as mean
                    const acc_t* __restrict__ mean_gh,    // as mean
                    scalar_t* __restrict__ z,             // [N, G, C, P]
                    const NormParams p) {
  const index_t i = thread_index();  // [0, N * G * C * P)
  if (i >= p.count) return;
  const Place at = place(i, p.size_1, p.size_2, p.size_3);

  const acc_t centre = mean[offset(at, p.mean_0, p.mean_1, p.mean_2, p.mean_3)];
  const acc_t scale = rstd[offset(at, p.rstd_0, p.rstd_1, p.rstd_2, p.rstd_3)];
  const index_t sum = offset(at, p.sum_0, p.sum_1, p.sum_2, p.sum_3);
  const acc_t h = (widen(x[offset(at, p.x_0, p.x_1, p.x_2, p.x_3)]) - centre) * scale;
  acc_t g = widen(grad_y[offset(at, p.y_0, p.y_1, p.y_2, p.y_3)]);
  if (weight) g = g * weight[offset(at, p.weight_0, p.weight_1, p.weight_2, p.weight_3)];
  z[offset(at, p.z_0, p.z_1, p.z_2, p.z_3)] = narrow((g - mean_g[sum] - h * mean_gh[sum]) * scale);
}
