// Tiles: a block's reads and writes, staged in shared memory, so that global memory is read once, in order, by accesses
// of 16 bytes, at any alignment of the windows.
//
// The arrays are dense, [planes, D, H, W] or, channels last, [N, D, H, W, C]. Of the array that it writes, a block
// takes whole planes or a band of one: positions [first, last) along the outermost axis that is longer than 1. A band
// is contiguous, and so are the inputs of its windows. Where channels are last, a block may take `inner` of them, and
// of each position of its band only positions [row_first, row_last) along the next axis: one contiguous run of each.
//
// In shared memory the elements are in consecutive slots; the first `skew` slots stay empty, so that a slot is a
// multiple of 32 bytes where the element in global memory is.

extern __shared__ uint4 shared_memory[];

constexpr int INDEX_PACK = PACK == 1 ? 1 : 2;  // indices of one access, where an access of values takes PACK

struct Share {            // of a block
  index_t plane, planes;  // the first, and how many; images where channels are last
  index_t first, last;    // of the positions that are written along the band's axis
  index_t c;              // the first channel where they are last
  bool parted;            // whether bands are also cut along the next axis: there
  index_t row_first, row_last;
  index_t tile, row_tile;  // the most positions of any block
};

template <typename Params>
__device__ __forceinline__ Share share_of_block(const Params& p, index_t extent, index_t row_extent = 0) {
  const index_t channel_tiles = p.channels_last ? p.c / p.inner : 1;
  index_t block = static_cast<index_t>(blockIdx.x);
  const index_t c = block % channel_tiles * p.inner;
  block /= channel_tiles;
  const index_t row_first = block % p.row_bands * p.row_tile;
  block /= p.row_bands;
  const index_t first = block % p.bands * p.tile;
  const index_t plane = block / p.bands * p.tile_planes;
  const index_t planes = p.channels_last ? p.n : p.n * p.c;
  return {plane, least(p.tile_planes, planes - plane), first, least(first + p.tile, extent), c,
          p.row_bands > 1, row_first, least(row_first + p.row_tile, row_extent),
          p.bands == 1 ? extent : p.tile, p.row_tile};
}

// --- Between global and shared memory --------------------------------------------------------------------------------

struct Patch {           // the elements of one array that belong to a block
  index_t start, count;  // offset of the first in the array, and their number
  index_t inner, pitch;  // `inner` contiguous elements, at stride `pitch`
  index_t run, run_pitch;  // for `run` of them, then at stride `run_pitch`; 0, 0 where that is all
};

// The positions of a plane that belong to a block: all from `before` on or, where parted, `run` of each `unit`.
struct Piece {
  index_t before, unit, run;
  bool parted;
};

// Positions from `first` on along the band's axis, of `unit` each; where parted, rows [row_first, row_last) of those.
__device__ __forceinline__ Piece piece_of(const Share& share, index_t first, index_t unit, index_t row_first,
                                          index_t row_last, index_t row_unit) {
  if (!share.parted) return {first * unit, unit, unit, false};
  return {first * unit + row_first * row_unit, unit, (row_last - row_first) * row_unit, true};
}

// The position in its plane of the o-th of the piece, and the inverse.
__device__ __forceinline__ index_t position_of(const Piece& piece, index_t o) {
  return piece.before + (piece.parted ? o / piece.run * piece.unit + o % piece.run : o);
}

__device__ __forceinline__ index_t order_of(const Piece& piece, index_t position) {
  const index_t after = position - piece.before;
  return piece.parted ? after / piece.unit * piece.run + after % piece.unit : after;
}

// Units [first, last) of share's planes, each of which has `size` units of `unit` positions.
template <typename Params>
__device__ __forceinline__ Patch patch_of(const Params& p, const Share& share, index_t first, index_t last,
                                          index_t size, index_t unit) {
  const index_t pitch = p.channels_last ? p.c : 1;
  return {(share.plane * size + first) * unit * pitch + share.c,
          ((share.planes - 1) * size + last - first) * unit * p.inner, p.inner, pitch, 0, 0};
}

// The piece of share's planes, `units` positions along the band's axis.
template <typename Params>
__device__ __forceinline__ Patch patch_of(const Params& p, const Share& share, const Piece& piece, index_t units,
                                          index_t size) {
  if (!share.parted) {
    const index_t first = piece.before / piece.unit;
    return patch_of(p, share, first, first + units, size, piece.unit);
  }
  return {(share.plane * size * piece.unit + piece.before) * p.c + share.c, units * piece.run * p.inner,
          p.inner, p.c, piece.run * p.inner, piece.unit * p.c};
}

// Empty slots before the first element, for accesses of N elements: its offset modulo 32 bytes, in elements.
// None before runs, which are whole sectors.
template <int N>
__device__ __forceinline__ index_t skew_of(const Patch& patch) {
  return patch.inner == patch.pitch && patch.run_pitch == 0 ? patch.start % (N == 1 ? 1 : 2 * N) : 0;
}

// Offset of the patch's element e in the array.
__device__ __forceinline__ index_t place_of(const Patch& patch, index_t e) {
  index_t start = patch.start;
  if (patch.run_pitch > 0) {
    start += e / patch.run * patch.run_pitch;
    e %= patch.run;
  }
  return start + (patch.inner == patch.pitch ? e : e / patch.inner * patch.pitch + e % patch.inner);
}

// The pack from `place` on, of an array of `size`; zeros beyond its end.
template <int N, typename T>
__device__ __forceinline__ Pack<T, N> load_whole(const T* __restrict__ from, index_t place, index_t size) {
  Pack<T, N> pack;
  if (place + N <= size) {
    pack = load_pack<N>(from + place);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) pack.at[i] = place + i < size ? from[place + i] : T{};
  }
  return pack;
}

// put(e, pack) for packs of elements e, …, e + N - 1 that cover the patch; the first and the last may hold further
// elements. `size` is that of the array.
template <int N, typename T, typename Put>
__device__ __forceinline__ void load_patch(const T* __restrict__ from, const Patch& patch, index_t size, Put put) {
  constexpr int BATCH = 4;  // accesses of a thread in flight
  const index_t skew = skew_of<N>(patch);
  const index_t packs = (skew + patch.count + N - 1) / N;
  const index_t threads = static_cast<index_t>(blockDim.x);
  for (index_t k = static_cast<index_t>(threadIdx.x); k < packs; k += BATCH * threads) {
    Pack<T, N> batch[BATCH];
#pragma unroll
    for (int j = 0; j < BATCH; ++j) {
      const index_t e = (k + j * threads) * N - skew;
      if (e + N <= 0 || e >= patch.count) continue;
      batch[j] = load_whole<N>(from, place_of(patch, e), size);
    }
#pragma unroll
    for (int j = 0; j < BATCH; ++j) {
      const index_t e = (k + j * threads) * N - skew;
      if (e + N > 0 && e < patch.count) put(e, batch[j]);
    }
  }
}

// N adjacent slots, aligned to a multiple of N.
template <typename T, int N>
__device__ __forceinline__ void store_slots(T* to, const Pack<T, N>& pack) {
  constexpr int PART = sizeof(T) * N <= 16 ? N : 16 / sizeof(T);
#pragma unroll
  for (int i = 0; i < N; i += PART) {
    Pack<T, PART> part;
#pragma unroll
    for (int j = 0; j < PART; ++j) part.at[j] = pack.at[i + j];
    store_pack(to + i, part);
  }
}

template <int N, typename T>
__device__ __forceinline__ Pack<T, N> load_slots(const T* from) {
  constexpr int PART = sizeof(T) * N <= 16 ? N : 16 / sizeof(T);
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; i += PART) {
    const Pack<T, PART> part = load_pack<PART>(from + i);
#pragma unroll
    for (int j = 0; j < PART; ++j) pack.at[i + j] = part.at[j];
  }
  return pack;
}

// What is written of a slot's value.
template <typename T, typename Slot>
struct Written {
  static __device__ __forceinline__ T from(Slot value) { return static_cast<T>(value); }
};
template <>
struct Written<half_t, float> : Narrow<half_t> {};
template <>
struct Written<bfloat16_t, float> : Narrow<bfloat16_t> {};

// Copy the patch unchanged to slots.
template <typename T>
__device__ __forceinline__ void stage(const T* __restrict__ from, const Patch& patch, index_t size, T* slots) {
  const index_t skew = skew_of<PACK>(patch);
  load_patch<PACK>(from, patch, size,
                   [&](index_t e, const Pack<T, PACK>& pack) { store_pack(slots + skew + e, pack); });
}

// Copy the patch from slots, after the empty ones for accesses of N elements.
template <int N, typename Slot, typename T>
__device__ __forceinline__ void store_patch(const Slot* slots, T* __restrict__ to, const Patch& patch) {
  const index_t skew = skew_of<N>(patch);
  const index_t packs = (skew + patch.count + N - 1) / N;
  for (index_t k = static_cast<index_t>(threadIdx.x); k < packs; k += static_cast<index_t>(blockDim.x)) {
    const index_t e = k * N - skew;
    const index_t place = place_of(patch, e);
    if (e >= 0 && e + N <= patch.count) {
      const Pack<Slot, N> values = load_slots<N>(slots + skew + e);
      Pack<T, N> pack;
#pragma unroll
      for (int i = 0; i < N; ++i) pack.at[i] = Written<T, Slot>::from(values.at[i]);
      store_pack(to + place, pack);
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (e + i >= 0 && e + i < patch.count) to[place + i] = Written<T, Slot>::from(slots[skew + e + i]);
      }
    }
  }
}

// --- Between the threads of a warp -----------------------------------------------------------------------------------

// The value of the lane at distance `step`.
template <typename T>
__device__ __forceinline__ T from_lane_after(T value, index_t step) {
  return static_cast<T>(__shfl_down_sync(0xffffffffu, value, static_cast<unsigned>(step)));
}

__device__ __forceinline__ half_t from_lane_after(half_t value, index_t step) {
  return {static_cast<unsigned short>(from_lane_after(static_cast<unsigned>(value.bits), step))};
}

__device__ __forceinline__ bfloat16_t from_lane_after(bfloat16_t value, index_t step) {
  return {static_cast<unsigned short>(from_lane_after(static_cast<unsigned>(value.bits), step))};
}

template <typename Real>
__device__ __forceinline__ Complex<Real> from_lane_after(Complex<Real> value, index_t step) {
  return {from_lane_after(value.re, step), from_lane_after(value.im, step)};
}

// --- The elements that a block computes ------------------------------------------------------------------------------

struct Item {        // some of them below each other along H, and the thread's part in them
  bool active;       // false for threads that only keep their warp converged
  index_t rows;      // how many
  index_t element;   // the first of the patch,
  index_t pitch;     // and the distance to the next
  index_t plane;     // of the block's
  index_t c;         // channel, of the block's
  index_t d, h, w;   // of the first
  index_t lane;      // [0, lanes) of the threads that share them
};

// f(item) for the elements of a block's share of an array [planes, D, H, W], RUN below each other, for `lanes` threads
// each. Rows have pitch `row_lanes` in items. Warps stay converged.
template <int RUN, typename F>
__device__ __forceinline__ void for_each_item(const Share& share, index_t band_axis, index_t h, index_t w,
                                              index_t inner, index_t row_lanes, index_t lanes, F f) {
  const bool by_h = share.parted && band_axis == 0, by_w = share.parted && band_axis == 1;
  const index_t band = share.last - share.first, row_band = share.row_last - share.row_first;
  const index_t columns = band_axis == 2 ? band : by_w ? row_band : w;
  const index_t lines = band_axis == 2 ? 1 : band_axis == 1 ? band : by_h ? row_band : h;
  const index_t most = band_axis == 2 ? 1 : band_axis == 1 ? share.tile : by_h ? share.row_tile : h;
  const index_t runs = (most + RUN - 1) / RUN, depth = band_axis == 0 ? share.tile : 1;
  const index_t rows = share.planes * depth * runs;
  const index_t end = (rows * row_lanes * lanes + 31) / 32 * 32;
  for (index_t t = static_cast<index_t>(threadIdx.x); t < end; t += static_cast<index_t>(blockDim.x)) {
    const index_t i = quotient(t, lanes), row = quotient(i, row_lanes), place = i - row * row_lanes;
    const index_t slice = quotient(row, runs), line = (row - slice * runs) * RUN;
    Item item;
    item.plane = quotient(slice, depth);
    item.d = slice - item.plane * depth;
    item.active = row < rows && place < columns * inner && line < lines && (band_axis != 0 || item.d < band);
    item.rows = least(lines - line, RUN);
    item.pitch = columns * inner;
    item.element = ((band_axis == 0 ? item.plane * band + item.d : item.plane) * lines + line) * item.pitch + place;
    item.lane = t - i * lanes;
    const index_t column = quotient(place, inner);
    item.c = place - column * inner;
    item.w = column + (band_axis == 2 ? share.first : by_w ? share.row_first : 0);
    item.h = line + (band_axis == 1 ? share.first : by_h ? share.row_first : 0);
    if (band_axis == 0) item.d += share.first;
    f(item);
  }
}
