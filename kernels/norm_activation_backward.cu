// The gradient with respect to the input of a norm's activation: z = grad_y * activation'(v), with
// v = (x - mean) * rstd * weight + bias + residual recomputed
//
// Source       norm_apply's order of operations, and the activation's derivative at the sign of v
// Reads        grad_y, x [N, G, C, P]; mean, rstd [N or 1, G, 1, 1], weight, bias [1, G, C, 1] or null; residual
//              [N, G, C, P] where RESIDUAL is 1; any strides
// Writes       z [N, G, C, P], which is the gradient of the residual and the grad_y of the norm alone
// Mapping      as norm_apply
// Bytes        grad_y, x, residual and z once, parameters once per block; mean and rstd once per pack where they vary
//              within it
// Determinism  one thread per element
// Limits       none
#include "common.cuh"
#include "params.cuh"
#include "norms.cuh"
#include "norm_tiles.cuh"
#include "norm_affine.cuh"
#include "bias_activation.cuh"

constexpr int VALUES = RESIDUAL && sizeof(scalar_t) == 8 ? 8 : 16;  // of a thread, of each array
constexpr int HELD = PACK == 1 ? 3 * VALUES / 8 : VALUES / PACK;    // packs

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)
norm_activation_backward(const scalar_t* __restrict__ grad_y,    // [N, G, C, P]
                         const scalar_t* __restrict__ x,         // [N, G, C, P]
                         const acc_t* __restrict__ mean,         // [N or 1, G, 1, 1]
                         const acc_t* __restrict__ rstd,         // as mean
                         const acc_t* __restrict__ weight,       // [1, G, C, 1] or null
                         const acc_t* __restrict__ bias,         // as weight
                         const scalar_t* __restrict__ residual,  // [N, G, C, P], or null where RESIDUAL is 0
                         scalar_t* __restrict__ z,               // [N, G, C, P]
                         const NormParams p) {
  __shared__ Parameters shared;
  const auto as_it_is = [](acc_t found) { return found; };
  const Tile own = tile(p);
  const Place kept = place(own.sum, p.kept_1, p.kept_2, p.kept_3);
  grad_y += offset(kept, p.y_0, p.y_1, p.y_2, p.y_3);
  x += offset(kept, p.x_0, p.x_1, p.x_2, p.x_3);
  if (RESIDUAL) residual += offset(kept, p.added_0, p.added_1, p.added_2, p.added_3);
  z += offset(kept, p.z_0, p.z_1, p.z_2, p.z_3);

  Pack<scalar_t, PACK> grads[HELD], values[HELD], added[HELD];
#pragma unroll
  for (int h = 0; h < HELD; ++h) {
    const index_t i = own.first + h * own.step;
    if (i >= own.last) continue;
    const Place at = place(i, p.reduced_1, p.reduced_2, p.reduced_3);
    grads[h] = load_pack<PACK>(grad_y + offset(at, p.y_0, p.y_1, p.y_2, p.y_3));
    values[h] = load_pack<PACK>(x + offset(at, p.x_0, p.x_1, p.x_2, p.x_3));
    if (RESIDUAL) added[h] = load_pack<PACK>(residual + offset(at, p.added_0, p.added_1, p.added_2, p.added_3));
  }

  load_parameters(shared, mean, rstd, weight, bias, own, p, as_it_is);
  __syncthreads();

  mean += offset(kept, p.mean_0, p.mean_1, p.mean_2, p.mean_3);
  rstd += offset(kept, p.rstd_0, p.rstd_1, p.rstd_2, p.rstd_3);
#pragma unroll
  for (int h = 0; h < HELD; ++h) {
    const index_t i = own.first + h * own.step;
    if (i >= own.last) continue;
    const Place at = place(i, p.reduced_1, p.reduced_2, p.reduced_3);
    acc_t before[PACK];
    before_activation(before, values[h], added[h], at, shared, mean, rstd, weight, bias, own, p, as_it_is);
#pragma unroll
    for (int e = 0; e < PACK; ++e) {
      const acc_t grad = widen(grads[h].at[e]);
      grads[h].at[e] = narrow(activated_backward(grad, before[e], p.activation, p.negative_slope));
    }
    store_pack(z + offset(at, p.z_0, p.z_1, p.z_2, p.z_3), grads[h]);
  }
}
