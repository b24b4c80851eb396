// Max pooling, forward, over sliding or adaptive windows:
// y[n, c, o] = max over the inputs i of window o of x[n, c, i], and the index of that maximum in its plane
//
// Source       the definition; NaN propagates, as in PyTorch
// Reads        x [N, C, D, H, W]; any strides
// Writes       y [N, C, OD, OH, OW]; indices [N, C, OD, OH, OW], in [0, D * H * W): of equal maxima the first, of NaNs
//              the last. A window wholly in padding has the lowest value of the type, and index -1
// Mapping      dense arrays: one block per group of planes, or band of one, which it stages (tiles.cuh); then `lanes`
//              threads per output, and results are staged too. Others: `lanes` threads per output, in y's memory order,
//              from global memory. Large overlapping windows are separable: maxima along w, once for all windows that
//              share a row, then over rows: YOLO's 13 x 13 take 26 comparisons instead of 169
// Bytes        dense: x once, and the rows that two bands share once more; y and indices once. Others read x
//              KD * KH * KW / stride times, from L1 and L2 but for the first
// Determinism  a maximum, and its index by the rule above, do not depend on the order
// Limits       none; arrays that are not dense, and windows that take more than 48 KiB, are not staged
#include "common.cuh"
#include "params.cuh"
#include "windows.cuh"
#include "pooling.cuh"
#include "tiles.cuh"

// --- The order of values ---------------------------------------------------------------------------------------------

// The type of comparisons: integers and floats themselves, float for 16-bit floats.
template <typename T>
__device__ __forceinline__ T comparable(T value) {
  return value;
}

__device__ __forceinline__ float comparable(half_t value) { return widen(value); }

__device__ __forceinline__ float comparable(bfloat16_t value) { return widen(value); }

template <typename T>
struct Lowest {  // of an integer type
  static constexpr bool IS_SIGNED = static_cast<T>(-1) < static_cast<T>(1);
  static constexpr T SIGN_BIT = static_cast<T>(1ULL << (8 * sizeof(T) - 1));
  static __device__ __forceinline__ T value() { return IS_SIGNED ? SIGN_BIT : T{}; }
};

template <>
struct Lowest<float> {
  static __device__ __forceinline__ float value() { return __uint_as_float(0xff800000u); }  // -inf
};

template <>
struct Lowest<double> {
  static __device__ __forceinline__ double value() { return Lowest<float>::value(); }
};

template <>
struct Lowest<half_t> {
  static __device__ __forceinline__ half_t value() { return {0xfc00}; }
};

template <>
struct Lowest<bfloat16_t> {
  static __device__ __forceinline__ bfloat16_t value() { return {0xff80}; }
};

// --- Windows ---------------------------------------------------------------------------------------------------------

struct Best {
  scalar_t value;
  index_t at;  // in the plane; -1 where nothing was seen
};

// Update of the best by a window's next element, if valid: taken if it is the first, NaN, or larger. Branchless, so
// that the threads of a warp stay converged.
__device__ __forceinline__ void take(Best& best, scalar_t value, index_t at, bool inside) {
  const bool is_nan = comparable(value) != comparable(value);
  const bool wins = inside & ((best.at < 0) | is_nan | (comparable(value) > comparable(best.value)));
  best.value = wins ? value : best.value;
  best.at = wins ? at : best.at;
}

// Addressing of a plane's elements: the offset `first`, and the strides along each axis.
struct View {
  index_t first, d, h, w;
};

// The best of output (od, oh, ow)'s window, or of every `lanes`-th tap along w from this thread's on.
__device__ __forceinline__ Best scan(const scalar_t* __restrict__ x, const View& view, const PoolParams& p, index_t od,
                                     index_t oh, index_t ow, index_t lane) {
  Best best = {Lowest<scalar_t>::value(), -1};
  const Taps ds = taps_of(axis_d(p), od), hs = taps_of(axis_h(p), oh), ws = taps_of(axis_w(p), ow);
  for (index_t kd = 0; kd < p.kd; ++kd) {
    const Tap d = tap_of(ds, kd);
    for (index_t kh = 0; kh < p.kh; ++kh) {
      const Tap h = tap_of(hs, kh);
      for (index_t kw = lane; kw - lane < p.kw; kw += p.lanes) {
        const Tap w = tap_of(ws, kw);
        const scalar_t value = x[view.first + d.at * view.d + h.at * view.h + w.at * view.w];
        take(best, value, (d.at * p.h + h.at) * p.w + w.at, d.inside & h.inside & w.inside & (kw < p.kw));
      }
    }
  }
  return best;
}

// The best over `lanes` adjacent threads, in the first of them: the first of equal ones, the last NaN.
__device__ __forceinline__ Best best_of_lanes(Best best, index_t lanes) {
  for (index_t step = lanes / 2; step > 0; step /= 2) {
    const Best other = {from_lane_after(best.value, step), from_lane_after(best.at, step)};
    const auto value = comparable(other.value), own = comparable(best.value);
    const bool is_nan = value != value, own_is_nan = own != own;
    const bool wins = is_nan ? !own_is_nan || other.at > best.at
                             : !own_is_nan && (value > own || (value == own && other.at < best.at));
    if (other.at >= 0 && (best.at < 0 || wins)) best = other;
  }
  return best;
}

// --- The kernels -----------------------------------------------------------------------------------------------------

template <bool WITH_INDICES>
__device__ __forceinline__ void pool_anywhere(const scalar_t* __restrict__ x, scalar_t* __restrict__ y,
                                              long long* __restrict__ indices, const PoolParams& p) {
  const index_t i = thread_index() / p.lanes;  // [0, N * C * OD * OH * OW), rounded up to whole warps
  const index_t lane = thread_index() % p.lanes;
  const bool active = i < p.n * p.c * p.od * p.oh * p.ow;
  const Position o = position(active ? i : 0, p.c, p.od, p.oh, p.ow, p.channels_last);
  const View view = {o.n * p.x_n + o.c * p.x_c, p.x_d, p.x_h, p.x_w};
  const Best best = best_of_lanes(scan(x, view, p, o.d, o.h, o.w, lane), p.lanes);
  if (!active || lane) return;
  y[o.n * p.y_n + o.c * p.y_c + o.d * p.y_d + o.h * p.y_h + o.w * p.y_w] = best.value;
  if (WITH_INDICES) indices[o.n * p.at_n + o.c * p.at_c + o.d * p.at_d + o.h * p.at_h + o.w * p.at_w] = best.at;
}

// The best of each row of each window, of all rows [planes, D, H] that are staged; `first` is the slot of input 0.
__device__ __forceinline__ void find_row_bests(const scalar_t* inputs, index_t first, index_t plane_inputs,
                                               const Share& rows, const PoolParams& p, scalar_t* row_values,
                                               int* row_at) {
  for_each_item(rows, p.band_axis, p.d, p.h, p.ow, p.inner, p.ow * p.inner, 1, [&](const Item& item) {
    if (!item.active) return;
    const index_t of_plane = first + item.plane * plane_inputs + item.c;
    const Taps ws = taps_of(axis_w(p), item.w);
    Best best = {Lowest<scalar_t>::value(), -1};
    for (index_t kw = 0; kw < p.kw; ++kw) {
      const Tap w = tap_of(ws, kw);
      const scalar_t value = inputs[of_plane + ((item.d * p.h + item.h) * p.w + w.at) * p.inner];
      take(best, value, w.at, w.inside);
    }
    row_values[item.element] = best.value;
    row_at[item.element] = static_cast<int>(best.at);
  });
}

// The best of an output's window, from those of its rows; `rows_before` rows of each plane are not staged.
__device__ __forceinline__ Best best_of_rows(const scalar_t* row_values, const int* row_at, const Item& item,
                                             index_t rows_before, const PoolParams& p) {
  Best best = {Lowest<scalar_t>::value(), -1};
  const Taps ds = taps_of(axis_d(p), item.d), hs = taps_of(axis_h(p), item.h);
  for (index_t kd = 0; kd < p.kd && item.active; ++kd) {
    const Tap d = tap_of(ds, kd);
    for (index_t kh = 0; kh < p.kh; ++kh) {
      const Tap h = tap_of(hs, kh);
      const index_t row = d.at * p.h + h.at;
      const index_t slot = ((item.plane * p.d * p.h + row - rows_before) * p.ow + item.w) * p.inner + item.c;
      const scalar_t value = row_values[slot];
      const index_t w = row_at[slot];
      take(best, value, row * p.w + w, d.inside & h.inside & (w >= 0));
    }
  }
  return best;
}

template <bool WITH_INDICES>
__device__ __forceinline__ void pool(const scalar_t* __restrict__ x, scalar_t* __restrict__ y,
                                     long long* __restrict__ indices, const PoolParams& p) {
  if (p.tile_planes == 0) return pool_anywhere<WITH_INDICES>(x, y, indices, p);
  scalar_t* const inputs = reinterpret_cast<scalar_t*>(shared_memory);  // [read_slots]
  scalar_t* const values = inputs + p.read_slots;                       // [write_slots]
  scalar_t* const row_values = values + p.write_slots;                  // [row_slots], as the next
  int* const row_at = reinterpret_cast<int*>(row_values + p.row_slots);
  int* const at = row_at + p.row_slots;  // [write_slots]

  const Band band = band_of(p);
  const Share share = share_of_block(p, band.axis.out);
  const Range range = p.bands == 1 ? Range{0, band.axis.size} : inputs_within(band.axis, share.first, share.last);
  const Patch read = patch_of(p, share, range.first, range.last, band.axis.size, band.input_unit);
  const Patch written = patch_of(p, share, share.first, share.last, band.axis.out, band.output_unit);
  const index_t size = p.n * p.c * p.d * p.h * p.w, plane_inputs = p.d * p.h * p.w * p.inner;
  const index_t before = range.first * band.input_unit * p.inner;  // elements of the plane before those staged
  const index_t skew = skew_of<PACK>(read);
  stage(x, read, size, inputs);
  __syncthreads();

  if (p.by_rows) {
    const Share rows = {share.plane, share.planes, range.first, range.last, share.c};
    find_row_bests(inputs, skew - before, plane_inputs, rows, p, row_values, row_at);
    __syncthreads();
  }

  const index_t value_skew = skew_of<PACK>(written), at_skew = skew_of<INDEX_PACK>(written);
  for_each_item(share, p.band_axis, p.od, p.oh, p.ow, p.inner, p.row_lanes, p.lanes, [&](const Item& item) {
    Best best = {Lowest<scalar_t>::value(), -1};
    if (p.by_rows) {
      best = best_of_rows(row_values, row_at, item, p.band_axis == 0 ? range.first * p.h : range.first, p);
    } else {
      const index_t first = skew + item.plane * plane_inputs - before + item.c;
      const View view = {first, p.h * p.w * p.inner, p.w * p.inner, p.inner};
      if (item.active) best = scan(inputs, view, p, item.d, item.h, item.w, item.lane);
      best = best_of_lanes(best, p.lanes);
    }
    if (!item.active || item.lane) return;
    values[value_skew + item.element] = best.value;
    if (WITH_INDICES) at[at_skew + item.element] = static_cast<int>(best.at);
  });
  __syncthreads();

  store_patch<PACK>(values, y, written);
  if (WITH_INDICES) store_patch<INDEX_PACK>(at, indices, written);
}

extern "C" __global__ void __launch_bounds__(256, 1)
max_pool(const scalar_t* __restrict__ x,  // [N, C, D, H, W]
         scalar_t* __restrict__ y,        // [N, C, OD, OH, OW]
         const PoolParams p) {
  pool<false>(x, y, nullptr, p);
}

extern "C" __global__ void __launch_bounds__(256, 1)
max_pool_with_indices(const scalar_t* __restrict__ x,   // [N, C, D, H, W]
                      scalar_t* __restrict__ y,         // [N, C, OD, OH, OW]
                      long long* __restrict__ indices,  // [N, C, OD, OH, OW]
                      const PoolParams p) {
  pool<true>(x, y, indices, p);
}
