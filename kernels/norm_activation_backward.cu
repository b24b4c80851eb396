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
  __shared__ acc_t centres[MAX_SUMS], scales[MAX_SUMS], factors[MAX_SUMS], terms[MAX_SUMS];
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

  for (index_t local = threadIdx.x; local < p.sums; local += blockDim.x) {
    const index_t sum = own.tile * p.sums + local;
    if (sum >= p.kept) break;
    const Place at = place(sum, p.kept_1, p.kept_2, p.kept_3);
    if (!p.moves) {
      centres[local] = mean[offset(at, p.mean_0, p.mean_1, p.mean_2, p.mean_3)];
      scales[local] = rstd[offset(at, p.rstd_0, p.rstd_1, p.rstd_2, p.rstd_3)];
    }
    if (weight) factors[local] = weight[offset(at, p.weight_0, p.weight_1, p.weight_2, p.weight_3)];
    if (bias) terms[local] = bias[offset(at, p.bias_0, p.bias_1, p.bias_2, p.bias_3)];
  }
  __syncthreads();

  mean += offset(kept, p.mean_0, p.mean_1, p.mean_2, p.mean_3);
  rstd += offset(kept, p.rstd_0, p.rstd_1, p.rstd_2, p.rstd_3);
#pragma unroll
  for (int h = 0; h < HELD; ++h) {
    const index_t i = own.first + h * own.step;
    if (i >= own.last) continue;
    const Place at = place(i, p.reduced_1, p.reduced_2, p.reduced_3);
    const index_t mean_at = offset(at, p.mean_0, p.mean_1, p.mean_2, p.mean_3);
    const index_t rstd_at = offset(at, p.rstd_0, p.rstd_1, p.rstd_2, p.rstd_3);
    acc_t moved_centre = 0, moved_scale = 0;
#pragma unroll
    for (int e = 0; e < PACK; ++e) {
      const index_t local = own.local + (ALONG ? e : 0);
      if (p.moves && (e == 0 || p.mean_3 != 0)) {
        moved_centre = mean[mean_at + e * p.mean_3];
        moved_scale = rstd[rstd_at + e * p.rstd_3];
      }
      const acc_t centre = p.moves ? moved_centre : centres[local], scale = p.moves ? moved_scale : scales[local];
      acc_t sign = (widen(values[h].at[e]) - centre) * scale;
      if (weight) sign = sign * factors[local];
      if (bias) sign = sign + terms[local];
      if (RESIDUAL) sign = sign + widen(added[h].at[e]);
      grads[h].at[e] = narrow(activated_backward(widen(grads[h].at[e]), sign, p.activation, p.negative_slope));
    }
    store_pack(z + offset(at, p.z_0, p.z_1, p.z_2, p.z_3), grads[h]);
  }
}
