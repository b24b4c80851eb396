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

constexpr int RUN = 4;  // windows below each other that a thread takes: what they share is read once

// --- The order of values ---------------------------------------------------------------------------------------------

// The type of comparisons: integers and floats themselves, float for 16-bit floats.
template <typename T>
__device__ __forceinline__ T comparable(T value) {
  return value;
}

__device__ __forceinline__ float comparable(half_t value) { return widen(value); }

__device__ __forceinline__ float comparable(bfloat16_t value) { return widen(value); }

// The inverse, exact but for the bits of NaN.
__device__ __forceinline__ scalar_t stored(decltype(comparable(scalar_t{})) value) {
  return Written<scalar_t, decltype(comparable(scalar_t{}))>::from(value);
}

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

using Comparable = decltype(comparable(scalar_t{}));

struct Best {
  Comparable value;
  index_t at;  // in the plane; -1 where nothing was seen
};

__device__ __forceinline__ Best nothing() { return {comparable(Lowest<scalar_t>::value()), -1}; }

// Update of the best by a later element, if valid: taken if it is NaN, or larger, or, unless the best `is_one`, the
// first. Branchless, so that the threads of a warp stay converged.
__device__ __forceinline__ void take(Best& best, const Best& next, bool valid, bool is_one) {
  const bool is_first = !is_one & (best.at < 0), is_nan = next.value != next.value;
  const bool wins = valid & (is_first | is_nan | (next.value > best.value));
  best.value = wins ? next.value : best.value;
  best.at = wins ? next.at : best.at;
}

// Whether all windows along an axis have an input, and a tap beyond them may count as the nearest of their inputs once
// more: that changes no maximum, nor which is the first.
__device__ __forceinline__ bool repeats(const PoolAxis& axis) {
  if (axis.adaptive) return true;
  return axis.dilation == 1 && axis.low < axis.kernel && (axis.out - 1) * axis.stride - axis.low < axis.size;
}

// The best along w of the row of x at `first`, or of every `lanes`-th tap from this thread's on; `at` is in the row.
__device__ __forceinline__ Best best_of_row(const scalar_t* __restrict__ x, index_t first, index_t step,
                                            const PoolParams& p, const Taps& ws, index_t lane) {
  const bool all = repeats(axis_w(p));
  Best best = nothing();
  for (index_t kw = lane; kw - lane < p.kw; kw += p.lanes) {
    const Tap w = tap_of(ws, least(kw, p.kw - 1));  // of several lanes some repeat the last tap
    const Best next = {comparable(x[first + w.at * step]), w.at};
    if (all && kw == lane) {
      best = next;
    } else {
      take(best, next, all || w.inside, all);
    }
  }
  return best;
}

// The best of output (od, oh, ow)'s window, of which row_best(d, h) gives those of rows, at -1 where they have none.
// Windows that share a row of constant sizes share the row's, too, once the compiler has unrolled them.
template <typename RowBest>
__device__ __forceinline__ Best best_of_window(const PoolParams& p, index_t od, index_t oh, RowBest row_best) {
  const Taps ds = taps_of(axis_d(p), od), hs = taps_of(axis_h(p), oh);
  const bool all = repeats(axis_d(p)) && repeats(axis_h(p)) && repeats(axis_w(p));
  Best best = nothing();
  for (index_t kd = 0; kd < p.kd; ++kd) {
    const Tap d = tap_of(ds, kd);
    for (index_t kh = 0; kh < p.kh; ++kh) {
      const Tap h = tap_of(hs, kh);
      Best next = row_best(d.at, h.at);
      const bool valid = all || (d.inside & h.inside & (next.at >= 0));
      next.at = (d.at * p.h + h.at) * p.w + next.at;
      if (all && kd + kh == 0) {
        best = next;
      } else {
        take(best, next, valid, all);
      }
    }
  }
  return best;
}

// The best over `lanes` adjacent threads, in the first of them: the first of equal ones, the last NaN.
__device__ __forceinline__ Best best_of_lanes(Best best, index_t lanes) {
  for (index_t step = lanes / 2; step > 0; step /= 2) {
    const Best other = {from_lane_after(best.value, step), from_lane_after(best.at, step)};
    const Comparable value = other.value, own = best.value;
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
  const Taps ws = taps_of(axis_w(p), o.w);
  Best best = best_of_window(p, o.d, o.h, [&](index_t d, index_t h) {
    return best_of_row(x, o.n * p.x_n + o.c * p.x_c + d * p.x_d + h * p.x_h, p.x_w, p, ws, lane);
  });
  best = best_of_lanes(best, p.lanes);
  if (!active || lane) return;
  y[o.n * p.y_n + o.c * p.y_c + o.d * p.y_d + o.h * p.y_h + o.w * p.y_w] = stored(best.value);
  if (WITH_INDICES) indices[o.n * p.at_n + o.c * p.at_c + o.d * p.at_d + o.h * p.at_h + o.w * p.at_w] = best.at;
}

// The best of each row of each window, of all rows [planes, D, H] that are staged; `first` is the slot of input 0.
__device__ __forceinline__ void find_row_bests(const scalar_t* inputs, index_t first, index_t plane_inputs,
                                               const Share& rows, const PoolParams& p, scalar_t* row_values,
                                               int* row_at) {
  for_each_item<1>(rows, p.band_axis, p.h, p.ow, p.inner, p.ow * p.inner, 1, [&](const Item& item) {
    if (!item.active) return;
    const index_t row = first + item.plane * plane_inputs + item.c + (item.d * p.h + item.h) * p.w * p.inner;
    const Best best = best_of_row(inputs, row, p.inner, p, taps_of(axis_w(p), item.w), 0);
    row_values[item.element] = stored(best.value);
    row_at[item.element] = static_cast<int>(best.at);
  });
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

  const index_t value_skew = skew_of<PACK>(written), at_skew = skew_of<INDEX_PACK>(written);
  const auto put = [&](const Best& best, index_t element) {
    values[value_skew + element] = stored(best.value);
    if (WITH_INDICES) at[at_skew + element] = static_cast<int>(best.at);
  };
  if (p.by_rows) {
    const Share rows = {share.plane, share.planes, range.first, range.last, share.c,
                        false, 0, 0, range.last - range.first, 0};
    find_row_bests(inputs, skew - before, plane_inputs, rows, p, row_values, row_at);
    __syncthreads();
    const index_t rows_before = p.band_axis == 0 ? range.first * p.h : range.first;
    for_each_item<1>(share, p.band_axis, p.oh, p.ow, p.inner, p.row_lanes, 1, [&](const Item& item) {
      if (!item.active) return;
      const Best best = best_of_window(p, item.d, item.h, [&](index_t d, index_t h) {
        const index_t row = item.plane * p.d * p.h + d * p.h + h - rows_before;
        const index_t slot = (row * p.ow + item.w) * p.inner + item.c;
        return Best{comparable(row_values[slot]), row_at[slot]};
      });
      put(best, item.element);
    });
  } else if (p.lanes > 1) {
    for_each_item<1>(share, p.band_axis, p.oh, p.ow, p.inner, p.row_lanes, p.lanes, [&](const Item& item) {
      const index_t first = skew + item.plane * plane_inputs - before + item.c;
      const Taps ws = taps_of(axis_w(p), item.w);
      Best best = nothing();
      if (item.active) {
        best = best_of_window(p, item.d, item.h, [&](index_t d, index_t h) {
          return best_of_row(inputs, first + (d * p.h + h) * p.w * p.inner, p.inner, p, ws, item.lane);
        });
      }
      best = best_of_lanes(best, p.lanes);
      if (item.active && item.lane == 0) put(best, item.element);
    });
  } else {
    for_each_item<RUN>(share, p.band_axis, p.oh, p.ow, p.inner, p.row_lanes, 1, [&](const Item& item) {
      if (!item.active) return;
      const index_t first = skew + item.plane * plane_inputs - before + item.c;
      const index_t last = p.band_axis == 1 ? range.last - 1 : p.h - 1;  // of the staged rows
      const Taps ws = taps_of(axis_w(p), item.w);
      Best bests[RUN];
#pragma unroll
      for (int r = 0; r < RUN; ++r) {
        bests[r] = best_of_window(p, item.d, item.h + r, [&](index_t d, index_t h) {
          return best_of_row(inputs, first + (d * p.h + least(h, last)) * p.w * p.inner, p.inner, p, ws, 0);
        });
      }
#pragma unroll
      for (int r = 0; r < RUN; ++r) {
        if (r < item.rows) put(bests[r], item.element + r * item.pitch);
      }
    });
  }
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
