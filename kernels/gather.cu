// Gathering by index, the gradient of unpooling: values[n, c, i] = planes[n, c, indices[n, c, i]]
//
// Source       the definition
// Reads        planes [N, C, PD, PH, PW], indices [N, C, D, H, W] of positions in [0, PD * PH * PW); any strides
// Writes       values [N, C, D, H, W]; 0 where the index is -1 or any other outside the plane
// Mapping      one thread per value, in their memory order: w innermost, or c where channels are last
// Bytes        indices and values once; planes by data-dependent gathers
// Determinism  copies only
// Limits       none; staging indices and values in shared memory moved the same sectors by 1.8 times the instructions
#include "common.cuh"
#include "params.cuh"

extern "C" __global__ void __launch_bounds__(256, 1)
gather(const scalar_t* __restrict__ planes,    // [N, C, PD, PH, PW]
       const long long* __restrict__ indices,  // [N, C, D, H, W]
       scalar_t* __restrict__ values,          // [N, C, D, H, W]
       const PlaneParams p) {
  const index_t i = thread_index();  // [0, N * C * D * H * W)
  if (i >= p.n * p.c * p.d * p.h * p.w) return;
  const Position v = position(i, p.c, p.d, p.h, p.w, p.channels_last);
  const long long index = indices[v.n * p.at_n + v.c * p.at_c + v.d * p.at_d + v.h * p.at_h + v.w * p.at_w];

  scalar_t value = {};
  if (index >= 0 && index < p.pd * p.ph * p.pw) {
    const Position at = position(static_cast<index_t>(index), 1, p.pd, p.ph, p.pw, false);
    value = planes[v.n * p.planes_n + v.c * p.planes_c + at.d * p.planes_d + at.h * p.planes_h + at.w * p.planes_w];
  }
  values[v.n * p.values_n + v.c * p.values_c + v.d * p.values_d + v.h * p.values_h + v.w * p.values_w] = value;
}
