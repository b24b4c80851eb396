// Gathering by index, the gradient of unpooling: values[n, c, i] = planes[n, c, indices[n, c, i]]
//
// Source       the definition
// Reads        planes [N, C, PD, PH, PW], indices [N, C, D, H, W] of positions in [0, PD * PH * PW); any strides
// Writes       values [N, C, D, H, W]; 0 where the index is -1 or any other outside the plane
// Mapping      dense arrays: one block per run of `tile` values in memory order, whose indices it stages, so that
//              adjacent threads look up adjacent values, and values are staged too (tiles.cuh).
//              Others: one thread per value, in their memory order: w innermost, or c where channels are last
// Bytes        indices and values once; planes by data-dependent gathers
// Determinism  copies only
// Limits       none
#include "common.cuh"
#include "params.cuh"
#include "tiles.cuh"

__device__ __forceinline__ void gather_anywhere(const scalar_t* __restrict__ planes,
                                                const long long* __restrict__ indices, scalar_t* __restrict__ values,
                                                const PlaneParams& p) {
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

extern "C" __global__ void __launch_bounds__(256, 1)
gather(const scalar_t* __restrict__ planes,    // [N, C, PD, PH, PW]
       const long long* __restrict__ indices,  // [N, C, D, H, W]
       scalar_t* __restrict__ values,          // [N, C, D, H, W]
       const PlaneParams p) {
  if (p.tile_planes == 0) return gather_anywhere(planes, indices, values, p);
  scalar_t* const results = reinterpret_cast<scalar_t*>(shared_memory);  // [write_slots]
  int* const at = reinterpret_cast<int*>(results + p.write_slots);       // [read_slots]; -1 outside the plane

  const index_t size = p.n * p.c * p.d * p.h * p.w, plane_places = p.pd * p.ph * p.pw;
  const index_t start = static_cast<index_t>(blockIdx.x) * p.tile;
  const Patch patch = {start, least(p.tile, size - start), 1, 1};
  load_patch<INDEX_PACK>(indices, patch, size, [&](index_t e, const Pack<long long, INDEX_PACK>& pack) {
    Pack<int, INDEX_PACK> found;
#pragma unroll
    for (int i = 0; i < INDEX_PACK; ++i) {
      const bool inside = pack.at[i] >= 0 && pack.at[i] < plane_places;
      found.at[i] = inside ? static_cast<int>(pack.at[i]) : -1;
    }
    store_pack(at + e, found);
  });
  __syncthreads();
  for (index_t e = static_cast<index_t>(threadIdx.x); e < patch.count; e += static_cast<index_t>(blockDim.x)) {
    const Position v = position(start + e, p.c, p.d, p.h, p.w, p.channels_last);
    const index_t place = p.channels_last ? (v.n * plane_places + at[e]) * p.c + v.c
                                          : (v.n * p.c + v.c) * plane_places + at[e];
    results[e] = at[e] >= 0 ? planes[place] : scalar_t{};
  }
  __syncthreads();
  store_patch<PACK>(results, values, patch);
}
