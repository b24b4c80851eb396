// Unpooling: planes of zeros with values put where indices say; of values with one index the last in C order stays:
// planes[n, c, indices[n, c, i]] = values[n, c, i], and 0 where no index says
//
// Source       own; a scatter made repeatable by its owners: unpool_claim finds for each place of a plane the last
//              value whose index names it, unpool then gathers
// Reads        values [N, C, D, H, W], indices [N, C, D, H, W] of positions in [0, PD * PH * PW); any strides.
//              Others, -1 among them, put their value nowhere
// Writes       owners [N, C, PD, PH, PW], -1 before; planes [N, C, PD, PH, PW], each of them once
// Mapping      one thread a value, then one thread a place of a plane; both in the memory order of planes, which owners
//              share: w innermost, or c where channels are last
// Bytes        indices once, owners three times, the values that stay once, planes once
// Determinism  the maximum of integers does not depend on their order; copies only
// Limits       2^31 - 1 values in one plane, since owners are int
#include "common.cuh"
#include "params.cuh"

extern "C" __global__ void __launch_bounds__(256, 1)
unpool_claim(const long long* __restrict__ indices,  // [N, C, D, H, W]
             int* __restrict__ owners,               // [N, C, PD, PH, PW]
             const PlaneParams p) {
  const index_t i = thread_index();  // [0, N * C * D * H * W)
  if (i >= p.n * p.c * p.d * p.h * p.w) return;
  const Position v = position(i, p.c, p.d, p.h, p.w, p.channels_last);
  const long long index = indices[v.n * p.at_n + v.c * p.at_c + v.d * p.at_d + v.h * p.at_h + v.w * p.at_w];
  if (index < 0 || index >= p.pd * p.ph * p.pw) return;
  const Position at = position(static_cast<index_t>(index), 1, p.pd, p.ph, p.pw, false);
  int* owner = owners + v.n * p.planes_n + v.c * p.planes_c + at.d * p.planes_d + at.h * p.planes_h + at.w * p.planes_w;
  atomicMax(owner, static_cast<int>((v.d * p.h + v.h) * p.w + v.w));
}

extern "C" __global__ void __launch_bounds__(256, 1)
unpool(const scalar_t* __restrict__ values,  // [N, C, D, H, W]
       const int* __restrict__ owners,       // [N, C, PD, PH, PW]
       scalar_t* __restrict__ planes,        // [N, C, PD, PH, PW]
       const PlaneParams p) {
  const index_t i = thread_index();  // [0, N * C * PD * PH * PW)
  if (i >= p.n * p.c * p.pd * p.ph * p.pw) return;
  const Position at = position(i, p.c, p.pd, p.ph, p.pw, p.channels_last);
  const index_t plane = at.n * p.planes_n + at.c * p.planes_c;
  const index_t place = plane + at.d * p.planes_d + at.h * p.planes_h + at.w * p.planes_w;

  scalar_t value = {};
  const int owner = owners[place];
  if (owner >= 0) {
    const Position v = position(owner, 1, p.d, p.h, p.w, false);
    value = values[at.n * p.values_n + at.c * p.values_c + v.d * p.values_d + v.h * p.values_h + v.w * p.values_w];
  }
  planes[place] = value;
}
