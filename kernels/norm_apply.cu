// A norm with known statistics: z = activation((x - mean) * rstd * weight + bias + residual), with
// rstd = 1 / sqrt(var + eps)
//
// Source       the definition, in its order of operations, without fused multiply-adds
// Reads        x [N, G, C, P]; mean, var [N or 1, G, 1, 1], weight, bias [1, G, C, 1] or null; residual [N, G, C, P]
//              where RESIDUAL is 1; any strides. Where `has_rstd`, rstd is passed as var
// Writes       z [N, G, C, P]
// Mapping      see Tile in norm_tiles.cuh: a sum there is one set of mean, variance, weight and bias, and its terms are
//              the elements that share them
// Bytes        x, residual and z once, parameters once per block; mean and var once per pack where they vary within it
// Determinism  one thread per element
// Limits       x - mean overflows where |x| is more than half of the largest number
#include "common.cuh"
#include "params.cuh"
#include "norms.cuh"
#include "norm_tiles.cuh"
#include "norm_affine.cuh"
#include "bias_activation.cuh"

constexpr int VALUES = !RESIDUAL ? 32 : sizeof(scalar_t) < 8 ? 16 : 8;  // of a thread, of each array
constexpr int HELD = PACK == 1 ? 3 * VALUES / 8 : VALUES / PACK;        // packs

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)
norm_apply(const scalar_t* __restrict__ x,         // [N, G, C, P]
           const acc_t* __restrict__ mean,         // [N or 1, G, 1, 1]
           const acc_t* __restrict__ var,          // as mean
           const acc_t* __restrict__ weight,       // [1, G, C, 1] or null
           const acc_t* __restrict__ bias,         // as weight
           const scalar_t* __restrict__ residual,  // [N, G, C, P], or null where RESIDUAL is 0
           scalar_t* __restrict__ z,               // [N, G, C, P]
           const NormParams p) {
  __shared__ Parameters shared;
  const auto reciprocal = [&](acc_t found) { return p.has_rstd ? found : reciprocal_deviation(found, p.eps); };
  const Tile own = tile(p);
  const Place kept = place(own.sum, p.kept_1, p.kept_2, p.kept_3);
  x += offset(kept, p.x_0, p.x_1, p.x_2, p.x_3);
  if (RESIDUAL) residual += offset(kept, p.y_0, p.y_1, p.y_2, p.y_3);
  z += offset(kept, p.z_0, p.z_1, p.z_2, p.z_3);

  Pack<scalar_t, PACK> held[HELD], added[HELD];
#pragma unroll
  for (int h = 0; h < HELD; ++h) {
    const index_t i = own.first + h * own.step;
    if (i >= own.last) continue;
    const Place at = place(i, p.reduced_1, p.reduced_2, p.reduced_3);
    held[h] = load_pack<PACK>(x + offset(at, p.x_0, p.x_1, p.x_2, p.x_3));
    if (RESIDUAL) added[h] = load_pack<PACK>(residual + offset(at, p.y_0, p.y_1, p.y_2, p.y_3));
  }

  load_parameters(shared, mean, var, weight, bias, own, p, reciprocal);
  __syncthreads();

  mean += offset(kept, p.mean_0, p.mean_1, p.mean_2, p.mean_3);
  var += offset(kept, p.rstd_0, p.rstd_1, p.rstd_2, p.rstd_3);
#pragma unroll
  for (int h = 0; h < HELD; ++h) {
    const index_t i = own.first + h * own.step;
    if (i >= own.last) continue;
    const Place at = place(i, p.reduced_1, p.reduced_2, p.reduced_3);
    acc_t before[PACK];
    before_activation(before, held[h], added[h], at, shared, mean, var, weight, bias, own, p, reciprocal);
#pragma unroll
    for (int e = 0; e < PACK; ++e) held[h].at[e] = narrow(activated(before[e], p.activation, p.negative_slope));
    store_pack(z + offset(at, p.z_0, p.z_1, p.z_2, p.z_3), held[h]);
  }
}
