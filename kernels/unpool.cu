// Unpooling: planes of zeros with values put where indices say; of values with one index the last in C order stays:
// planes[n, c, indices[n, c, i]] = values[n, c, i], and 0 where no index says
//
// Source       own; a scatter made repeatable by its owners: each place of a plane finds the last value whose index
//              names it, then takes it. A block looks for the owners of a band of a plane among the values whose place
//              in theirs is about the same, as pooling leaves them. A plane with an index that strays further is
//              flagged, and unpool_anywhere makes it anew, where each part looks among all values
// Reads        values [N, C, D, H, W], indices [N, C, D, H, W] of positions in [0, PD * PH * PW); any strides.
//              Others, -1 among them, put their value nowhere
// Writes       strays [N, C], 0 before, 1 where a plane has some; planes [N, C, PD, PH, PW], each of them once, and
//              once more in planes with strays
// Mapping      dense arrays: one block some planes, or a band of one (tiles.cuh), with owners in shared memory; one
//              thread an index, then one thread a place. Others, and planes with strays: one block a plane, or 32
//              planes that it looks for flags in; PART places at a time
// Bytes        dense: indices and values once, and those that two bands share once more; planes once; one flag a plane
//              read once more. Nothing less is possible. Others read indices once for each PART places
// Determinism  the maximum of integers does not depend on their order; copies only
// Limits       2^31 - 1 values in one plane, since owners are int
#include "common.cuh"
#include "params.cuh"
#include "windows.cuh"
#include "tiles.cuh"

constexpr int PART = 4096;  // places whose owners are kept at once where arrays are not staged
constexpr int FLAGS = 32;   // planes of a block that looks for flags

// The axis that bands are cut along: its sizes, and the positions of one place along it.
struct PlaneBand {
  index_t values, places;
  index_t value_unit, place_unit;
};

__device__ __forceinline__ PlaneBand band_of(const PlaneParams& p) {
  if (p.band_axis == 0) return {p.d, p.pd, p.h * p.w, p.ph * p.pw};
  if (p.band_axis == 1) return {p.h, p.ph, p.w, p.pw};
  return {p.w, p.pw, 1, 1};
}

// The values along the band's axis that places [first, last) are looked for among: those of the same share of the axis,
// and one more on each side, for windows that overlap.
__device__ __forceinline__ Range values_near(const PlaneParams& p, const PlaneBand& band, index_t first, index_t last) {
  if (p.bands == 1) return {0, band.values};
  return {most(first * band.values / band.places - 1, 0),
          least((last * band.values + band.places - 1) / band.places + 1, band.values)};
}

extern "C" __global__ void __launch_bounds__(256, 1)
unpool(const scalar_t* __restrict__ values,    // [N, C, D, H, W]
       const long long* __restrict__ indices,  // [N, C, D, H, W]
       int* __restrict__ strays,               // [N, C]
       scalar_t* __restrict__ planes,          // [N, C, PD, PH, PW]
       const PlaneParams p) {
  scalar_t* const staged = reinterpret_cast<scalar_t*>(shared_memory);  // [read_slots]
  scalar_t* const results = staged + p.read_slots;                      // [write_slots]
  int* const owners = reinterpret_cast<int*>(results + p.write_slots);  // [write_slots]; -1: none

  const PlaneBand band = band_of(p);
  const Share share = share_of_block(p, band.places);
  const Range range = values_near(p, band, share.first, share.last);
  const Patch read = patch_of(p, share, range.first, range.last, band.values, band.value_unit);
  const Patch written = patch_of(p, share, share.first, share.last, band.places, band.place_unit);
  const index_t size = p.n * p.c * p.d * p.h * p.w, plane_values = p.d * p.h * p.w, plane_places = p.pd * p.ph * p.pw;
  const index_t first = share.first * band.place_unit, last = share.last * band.place_unit;  // places of the band
  const index_t threads = static_cast<index_t>(blockDim.x);
  for (index_t k = static_cast<index_t>(threadIdx.x); k < p.write_slots / 4; k += threads) {
    store_pack(owners + k * 4, Pack<int, 4>{{-1, -1, -1, -1}});
  }
  const index_t zero = p.read_slots - 1;  // a slot that no value reaches
  if (threadIdx.x == 0) staged[zero] = {};
  stage(values, read, size, staged);
  __syncthreads();

  load_patch<INDEX_PACK>(indices, read, size, [&](index_t e, const Pack<long long, INDEX_PACK>& pack) {
#pragma unroll
    for (int i = 0; i < INDEX_PACK; ++i) {
      const index_t v = e + i;
      if (v < 0 || v >= read.count || pack.at[i] < 0 || pack.at[i] >= plane_places) continue;
      const index_t index = static_cast<index_t>(pack.at[i]);
      const index_t position = v / p.inner, c = v % p.inner, plane = position / plane_values;
      if (index >= first && index < last) {
        atomicMax(owners + (plane * plane_places + index - first) * p.inner + c, static_cast<int>(v));
        continue;
      }
      const index_t at = range.first + position / band.value_unit;  // the value's place along the axis
      const index_t its_first = index / band.place_unit / p.tile * p.tile;
      const Range near_it = values_near(p, band, its_first, least(its_first + p.tile, band.places));
      if (at >= near_it.first && at < near_it.last) continue;  // another block finds it
      const index_t flag = share.plane + plane;
      atomicMax(strays + (p.channels_last ? flag * p.c + share.c + c : flag), 1);
    }
  });
  __syncthreads();

  const index_t skew = skew_of<PACK>(read), result_skew = skew_of<PACK>(written);
  for (index_t e = static_cast<index_t>(threadIdx.x); e < written.count; e += threads) {
    const int owner = owners[e];
    results[result_skew + e] = staged[owner >= 0 ? skew + owner : zero];
  }
  __syncthreads();
  store_patch<PACK>(results, planes, written);
}

extern "C" __global__ void __launch_bounds__(256, 1)
unpool_anywhere(const scalar_t* __restrict__ values,    // [N, C, D, H, W]
                const long long* __restrict__ indices,  // [N, C, D, H, W]
                const int* __restrict__ strays,         // [N, C]
                scalar_t* __restrict__ planes,          // [N, C, PD, PH, PW]
                const PlaneParams p) {
  __shared__ int owners[PART];
  __shared__ int flags[FLAGS];
  const index_t count = p.tile_planes ? FLAGS : 1;  // planes of this block; where arrays are not staged, all are made
  const index_t first = static_cast<index_t>(blockIdx.x) * count;
  const index_t thread = static_cast<index_t>(threadIdx.x), threads = static_cast<index_t>(blockDim.x);
  if (p.tile_planes && thread < FLAGS) flags[thread] = first + thread < p.n * p.c ? strays[first + thread] : 0;
  __syncthreads();
  for (index_t plane = first; plane < first + count; ++plane) {
    if (p.tile_planes && !flags[plane - first]) continue;
    const index_t n = plane / p.c, c = plane % p.c;
    for (index_t part = 0; part < p.pd * p.ph * p.pw; part += PART) {  // places [part, part + PART)
      for (index_t k = thread; k < PART; k += threads) owners[k] = -1;
      __syncthreads();
      for (index_t v = thread; v < p.d * p.h * p.w; v += threads) {
        const Position at = position(v, 1, p.d, p.h, p.w, false);
        const long long index = indices[n * p.at_n + c * p.at_c + at.d * p.at_d + at.h * p.at_h + at.w * p.at_w];
        if (index >= part && index < part + PART) atomicMax(owners + (index - part), static_cast<int>(v));
      }
      __syncthreads();
      for (index_t k = thread; k < PART && part + k < p.pd * p.ph * p.pw; k += threads) {
        scalar_t value = {};
        if (owners[k] >= 0) {
          const Position v = position(owners[k], 1, p.d, p.h, p.w, false);
          value = values[n * p.values_n + c * p.values_c + v.d * p.values_d + v.h * p.values_h + v.w * p.values_w];
        }
        const Position at = position(part + k, 1, p.pd, p.ph, p.pw, false);
        planes[n * p.planes_n + c * p.planes_c + at.d * p.planes_d + at.h * p.planes_h + at.w * p.planes_w] = value;
      }
      __syncthreads();
    }
  }
}
