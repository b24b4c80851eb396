// Unpooling: a scatter of values by indices into zeroed planes; of values with one index the last in C order is kept:
// planes[n, c, indices[n, c, i]] = values[n, c, i], and 0 elsewhere
//
// Source       own; a scatter made deterministic by owners: each position of a plane finds the last value whose index
//              is that position, then takes it. A block searches the owners of a band of a plane among the values at
//              about the same relative position, as pooling produces them. A plane with an index farther away is
//              flagged and recomputed by unpool_anywhere, where each part searches all values
// Reads        values [N, C, D, H, W], indices [N, C, D, H, W] of positions in [0, PD * PH * PW); any strides.
//              Values with other indices, including -1, are dropped
// Writes       out_of_window [N, C], 0 before, 1 where a plane is flagged; planes [N, C, PD, PH, PW], each of them
//              once, and once more where flagged
// Mapping      dense arrays: one block per group of planes, band of one, or part of each row of a band (tiles.cuh);
//              indices and owners are in shared memory: adjacent threads claim for adjacent values, with two-way bank
//              conflicts in a row of 2 x 2 windows; then one thread per position. Others, and flagged planes: one
//              block per plane, or per 32 planes whose flags it checks; PART positions at a time
// Bytes        dense: indices and values once, and those that two bands share once more; planes once; one flag a plane
//              read once more. This is the minimum. Others read indices once for each PART positions
// Determinism  the maximum of integers does not depend on their order; copies only
// Limits       2^31 - 1 values in one plane, since owners are int
#include "common.cuh"
#include "params.cuh"
#include "windows.cuh"
#include "tiles.cuh"

constexpr int PART = 4096;  // positions whose owners are kept per pass where arrays are not staged
constexpr int FLAGS = 32;   // planes of a block that checks flags

// An axis along which planes are cut: its sizes, the elements per position, the bands and the positions of each.
struct PlaneAxis {
  index_t values, places;
  index_t value_unit, place_unit;
  index_t bands, tile;
};

__device__ __forceinline__ PlaneAxis plane_axis(const PlaneParams& p, index_t axis, index_t bands, index_t tile) {
  if (axis == 0) return {p.d, p.pd, p.h * p.w, p.ph * p.pw, bands, tile};
  if (axis == 1) return {p.h, p.ph, p.w, p.pw, bands, tile};
  return {p.w, p.pw, 1, 1, bands, tile};
}

// The range of values searched for positions [first, last): those of the same share of the axis, and one more on each
// side, for overlapping windows.
__device__ __forceinline__ Range values_near(const PlaneAxis& axis, index_t first, index_t last) {
  if (axis.bands == 1) return {0, axis.values};
  return {most(first * axis.values / axis.places - 1, 0),
          least((last * axis.values + axis.places - 1) / axis.places + 1, axis.values)};
}

// Whether the band of this position searches this value, along this axis.
__device__ __forceinline__ bool finds(const PlaneAxis& axis, index_t value, index_t place) {
  if (axis.bands == 1) return true;
  const index_t first = place / axis.tile * axis.tile;
  const Range near_it = values_near(axis, first, least(first + axis.tile, axis.places));
  return value >= near_it.first && value < near_it.last;
}

// Stage a patch of indices as int: -1 for those that are not in a plane of `places`.
__device__ __forceinline__ void stage_indices(const long long* __restrict__ indices, const Patch& patch, index_t size,
                                              index_t places, int* to) {
  load_patch<INDEX_PACK>(indices, patch, size, [&](index_t e, const Pack<long long, INDEX_PACK>& pack) {
    Pack<int, INDEX_PACK> found;
#pragma unroll
    for (int i = 0; i < INDEX_PACK; ++i) {
      found.at[i] = pack.at[i] >= 0 && pack.at[i] < places ? static_cast<int>(pack.at[i]) : -1;
    }
    store_pack(to + e, found);
  });
}

extern "C" __global__ void __launch_bounds__(256, 1)
unpool(const scalar_t* __restrict__ values,    // [N, C, D, H, W]
       const long long* __restrict__ indices,  // [N, C, D, H, W]
       int* __restrict__ out_of_window,        // [N, C]
       scalar_t* __restrict__ planes,          // [N, C, PD, PH, PW]
       const PlaneParams p) {
  scalar_t* const staged = reinterpret_cast<scalar_t*>(shared_memory);  // [read_slots]
  scalar_t* const results = staged + p.read_slots;                      // [write_slots]
  int* const owners = reinterpret_cast<int*>(results + p.write_slots);  // [write_slots]; -1: none
  int* const at = owners + p.write_slots;                               // [read_slots]; -1: outside the plane

  const PlaneAxis band = plane_axis(p, p.band_axis, p.bands, p.tile);
  const PlaneAxis row = plane_axis(p, p.band_axis + 1, p.row_bands, p.row_tile);
  const Share share = share_of_block(p, band.places, row.places);
  const Range range = values_near(band, share.first, share.last);
  const Range rows = values_near(row, share.row_first, share.row_last);
  const Piece near_values = piece_of(share, range.first, band.value_unit, rows.first, rows.last, row.value_unit);
  const Piece places =
      piece_of(share, share.first, band.place_unit, share.row_first, share.row_last, row.place_unit);
  const Patch read = patch_of(p, share, near_values, range.last - range.first, band.values);
  const Patch written = patch_of(p, share, places, share.last - share.first, band.places);
  const index_t size = p.n * p.c * p.d * p.h * p.w, plane_values = p.d * p.h * p.w, plane_places = p.pd * p.ph * p.pw;
  const index_t threads = static_cast<index_t>(blockDim.x);
  for (index_t k = static_cast<index_t>(threadIdx.x); k < p.write_slots / 4; k += threads) {
    store_pack(owners + k * 4, Pack<int, 4>{{-1, -1, -1, -1}});
  }
  const index_t zero = p.read_slots - 1;  // a slot that no value reaches
  if (threadIdx.x == 0) staged[zero] = {};
  stage(values, read, size, staged);
  const index_t at_skew = skew_of<INDEX_PACK>(read);
  stage_indices(indices, read, size, plane_places, at + at_skew);
  __syncthreads();

  const auto claim = [&](index_t v) {  // for value v of those staged
    const index_t index = at[at_skew + v];
    if (index < 0) return;
    const index_t place = index / band.place_unit, row_place = index % band.place_unit / row.place_unit;
    const index_t c = v % p.inner, plane = v / p.inner / plane_values;
    if (place >= share.first && place < share.last &&
        (!share.parted || (row_place >= share.row_first && row_place < share.row_last))) {
      atomicMax(owners + (plane * plane_places + order_of(places, index)) * p.inner + c, static_cast<int>(v));
      return;
    }
    const index_t position = position_of(near_values, v / p.inner);  // in its plane, for such a block has only one
    if (finds(band, position / band.value_unit, place) &&
        finds(row, position % band.value_unit / row.value_unit, row_place)) {
      return;  // another block's
    }
    atomicMax(out_of_window + (p.channels_last ? share.plane * p.c + share.c + c : share.plane), 1);
  };
  const index_t end = (read.count + 31) / 32 * 32;
  for (index_t v = static_cast<index_t>(threadIdx.x); v < end; v += threads) {
    if (v < read.count) claim(v);
    __syncwarp();  // lanes would diverge, with more bank conflicts
  }
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
                const int* __restrict__ out_of_window,  // [N, C]
                scalar_t* __restrict__ planes,          // [N, C, PD, PH, PW]
                const PlaneParams p) {
  __shared__ int owners[PART];
  __shared__ int flags[FLAGS];
  const index_t count = p.tile_planes ? FLAGS : 1;  // planes of this block; where arrays are not staged, all are made
  const index_t first = static_cast<index_t>(blockIdx.x) * count;
  const index_t thread = static_cast<index_t>(threadIdx.x), threads = static_cast<index_t>(blockDim.x);
  if (p.tile_planes && thread < FLAGS) flags[thread] = first + thread < p.n * p.c ? out_of_window[first + thread] : 0;
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
