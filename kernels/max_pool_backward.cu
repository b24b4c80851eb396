// Max pooling, backward: each output's gradient is added to the input at its index:
// grad_x[n, c, i] = sum of grad_y[n, c, o] over the outputs o whose index is i
//
// Source       the definition, as a gather: an input searches the indices of the windows that read it.
//              A plane with out-of-window indices from the caller is flagged and recomputed by
//              max_pool_backward_out_of_window, where each input searches the indices of all outputs
// Reads        grad_y [N, C, OD, OH, OW], indices [N, C, OD, OH, OW]; any strides. An index outside the plane adds
//              nothing
// Writes       out_of_window [N, C], 0 before, 1 where a plane is flagged; grad_x [N, C, D, H, W], each of them once,
//              and once more in flagged planes
// Mapping      dense arrays: one block per group of planes of grad_x, band of one, or part of each row of a band; it
//              stages gradients and indices of the outputs that read it (tiles.cuh); then one thread per RUN inputs
//              below each other, and grad_x is staged too. Others: one thread per input, in grad_x's memory order, from
//              global memory.
//              Flagged: one block per 32 planes
// Bytes        dense: indices and grad_y once, and the rows that two bands share once more; grad_x once; one flag a
//              plane read once more. Others read indices and grad_y KD * KH * KW / stride times and indices once more,
//              from L1 and L2 but for the first
// Determinism  each input is one thread's sum in the ascending order of outputs, as in the NumPy backend
// Limits       a flagged plane costs D * H * W * OD * OH * OW comparisons; the forward makes none
#include "common.cuh"
#include "params.cuh"
#include "windows.cuh"
#include "pooling.cuh"
#include "tiles.cuh"

constexpr int RUN = 4;  // inputs below each other that a thread sums: what they share is read once

// Whether an in-plane index is out-of-window for output (od, oh, ow).
__device__ __forceinline__ bool is_out_of_window(const PoolParams& p, index_t index, index_t od, index_t oh,
                                                 index_t ow) {
  const Position x = position(index, 1, p.d, p.h, p.w, false);
  return !(reads(axis_d(p), od, x.d) && reads(axis_h(p), oh, x.h) && reads(axis_w(p), ow, x.w));
}

// The sum of grad(od, oh, ow) over the outputs, of those within the ranges, whose windows read input (d, h, w) and
// whose index(od, oh, ow) is that input.
template <typename Index, typename Grad>
__device__ __forceinline__ acc_t sum_of_own(const PoolParams& p, index_t d, index_t h, index_t w,
                                            const Range (&within)[3], Index index, Grad grad) {
  const PoolAxis d_axis = axis_d(p), h_axis = axis_h(p), w_axis = axis_w(p);
  const Readings ods = readings_of(d_axis, d), ohs = readings_of(h_axis, h), ows = readings_of(w_axis, w);
  const index_t self = (d * p.h + h) * p.w + w;
  acc_t sum = {};
  for (index_t kd = 0; kd < p.readers_d; ++kd) {
    const Tap od = reader_of(d_axis, ods, kd, within[0].first, within[0].last);
    for (index_t kh = 0; kh < p.readers_h; ++kh) {
      const Tap oh = reader_of(h_axis, ohs, kh, within[1].first, within[1].last);
      for (index_t kw = 0; kw < p.readers_w; ++kw) {
        const Tap ow = reader_of(w_axis, ows, kw, within[2].first, within[2].last);
        const bool is_own = index(od.at, oh.at, ow.at) == self;
        const scalar_t gradient = grad(od.at, oh.at, ow.at);
        const acc_t with_it = sum + widen(gradient);
        sum = is_own & od.inside & oh.inside & ow.inside ? with_it : sum;
      }
    }
  }
  return sum;
}

__device__ __forceinline__ void backward_anywhere(const scalar_t* __restrict__ grad_y,
                                                  const long long* __restrict__ indices,
                                                  int* __restrict__ out_of_window,
                                                  scalar_t* __restrict__ grad_x, const PoolParams& p) {
  const index_t threads = static_cast<index_t>(gridDim.x) * static_cast<index_t>(blockDim.x);
  for (index_t i = thread_index(); i < p.n * p.c * p.od * p.oh * p.ow; i += threads) {
    const Position o = position(i, p.c, p.od, p.oh, p.ow, p.channels_last);
    const long long index = indices[o.n * p.at_n + o.c * p.at_c + o.d * p.at_d + o.h * p.at_h + o.w * p.at_w];
    if (index < 0 || index >= p.d * p.h * p.w) continue;
    if (is_out_of_window(p, static_cast<index_t>(index), o.d, o.h, o.w)) atomicMax(out_of_window + o.n * p.c + o.c, 1);
  }
  const index_t i = thread_index();  // [0, N * C * D * H * W)
  if (i >= p.n * p.c * p.d * p.h * p.w) return;
  const Position x = position(i, p.c, p.d, p.h, p.w, p.channels_last);
  grad_y += x.n * p.y_n + x.c * p.y_c;
  indices += x.n * p.at_n + x.c * p.at_c;
  const Range within[3] = {{0, p.od}, {0, p.oh}, {0, p.ow}};
  const acc_t sum = sum_of_own(
      p, x.d, x.h, x.w, within,
      [&](index_t od, index_t oh, index_t ow) { return indices[od * p.at_d + oh * p.at_h + ow * p.at_w]; },
      [&](index_t od, index_t oh, index_t ow) { return grad_y[od * p.y_d + oh * p.y_h + ow * p.y_w]; });
  grad_x[x.n * p.x_n + x.c * p.x_c + x.d * p.x_d + x.h * p.x_h + x.w * p.x_w] = narrow(sum);
}

extern "C" __global__ void __launch_bounds__(256, 1)
max_pool_backward(const scalar_t* __restrict__ grad_y,    // [N, C, OD, OH, OW]
                  const long long* __restrict__ indices,  // [N, C, OD, OH, OW]
                  int* __restrict__ out_of_window,        // [N, C]
                  scalar_t* __restrict__ grad_x,          // [N, C, D, H, W]
                  const PoolParams p) {
  if (p.tile_planes == 0) return backward_anywhere(grad_y, indices, out_of_window, grad_x, p);
  scalar_t* const gradients = reinterpret_cast<scalar_t*>(shared_memory);  // [read_slots]
  scalar_t* const results = gradients + p.read_slots;                      // [write_slots]
  int* const at = reinterpret_cast<int*>(results + p.write_slots);         // [read_slots]; -1 outside the plane

  const Band band = band_of(p);
  const Share share = share_of_block(p, band.axis.size, band.row_axis.size);
  const Range range = p.bands == 1 ? Range{0, band.axis.out} : outputs_within(band.axis, share.first, share.last);
  const Range rows = share.parted ? outputs_within(band.row_axis, share.row_first, share.row_last) : Range{};
  const Piece outputs = piece_of(share, range.first, band.output_unit, rows.first, rows.last, band.row_output_unit);
  const Piece inputs =
      piece_of(share, share.first, band.input_unit, share.row_first, share.row_last, band.row_input_unit);
  const Patch read = patch_of(p, share, outputs, range.last - range.first, band.axis.out);
  const Patch written = patch_of(p, share, inputs, share.last - share.first, band.axis.size);
  const index_t size = p.n * p.c * p.od * p.oh * p.ow, plane_outputs = p.od * p.oh * p.ow;
  const index_t skew = skew_of<PACK>(read), at_skew = skew_of<INDEX_PACK>(read);
  stage(grad_y, read, size, gradients);
  load_patch<INDEX_PACK>(indices, read, size, [&](index_t e, const Pack<long long, INDEX_PACK>& pack) {
    Pack<int, INDEX_PACK> found;
#pragma unroll
    for (int i = 0; i < INDEX_PACK; ++i) {
      const bool inside = pack.at[i] >= 0 && pack.at[i] < p.d * p.h * p.w;
      found.at[i] = inside ? static_cast<int>(pack.at[i]) : -1;
      if (!inside || e + i < 0 || e + i >= read.count) continue;
      const index_t o = position_of(outputs, (e + i) / p.inner);
      if (!is_out_of_window(p, found.at[i], o / p.ow / p.oh % p.od, o / p.ow % p.oh, o % p.ow)) continue;
      const index_t plane = share.plane + o / plane_outputs;
      atomicMax(out_of_window + (p.channels_last ? plane * p.c + share.c + (e + i) % p.inner : plane), 1);
    }
    store_pack(at + at_skew + e, found);
  });
  __syncthreads();

  const index_t result_skew = skew_of<PACK>(written);
  const Range within[3] = {p.band_axis == 0 ? range : Range{0, p.od},
                           p.band_axis == 1 ? range : share.parted && p.band_axis == 0 ? rows : Range{0, p.oh},
                           p.band_axis == 2 ? range : share.parted && p.band_axis == 1 ? rows : Range{0, p.ow}};
  for_each_item<RUN>(share, p.band_axis, p.h, p.w, p.inner, p.row_lanes, 1, [&](const Item& item) {
    if (!item.active) return;
    const auto slot = [&](index_t od, index_t oh, index_t ow) {
      const index_t place = item.plane * plane_outputs + (od * p.oh + oh) * p.ow + ow;
      return order_of(outputs, place) * p.inner + item.c;
    };
    acc_t sums[RUN];
#pragma unroll
    for (int r = 0; r < RUN; ++r) {
      sums[r] = sum_of_own(
          p, item.d, item.h + r, item.w, within,
          [&](index_t od, index_t oh, index_t ow) { return at[at_skew + slot(od, oh, ow)]; },
          [&](index_t od, index_t oh, index_t ow) { return gradients[skew + slot(od, oh, ow)]; });
    }
#pragma unroll
    for (int r = 0; r < RUN; ++r) {
      if (r < item.rows) results[result_skew + item.element + r * item.pitch] = narrow(sums[r]);
    }
  });
  __syncthreads();
  store_patch<PACK>(results, grad_x, written);
}

constexpr int FLAGS = 32;  // planes of a block

extern "C" __global__ void __launch_bounds__(256, 1)
max_pool_backward_out_of_window(const scalar_t* __restrict__ grad_y,     // [N, C, OD, OH, OW]
                                const long long* __restrict__ indices,   // [N, C, OD, OH, OW]
                                const int* __restrict__ out_of_window,   // [N, C]
                                scalar_t* __restrict__ grad_x,           // [N, C, D, H, W]
                                const PoolParams p) {
  __shared__ int flags[FLAGS];
  const index_t first = static_cast<index_t>(blockIdx.x) * FLAGS, thread = static_cast<index_t>(threadIdx.x);
  if (thread < FLAGS) flags[thread] = first + thread < p.n * p.c ? out_of_window[first + thread] : 0;
  __syncthreads();
  for (index_t plane = 0; plane < FLAGS; ++plane) {
    if (!flags[plane]) continue;
    for (index_t i = thread; i < p.d * p.h * p.w; i += static_cast<index_t>(blockDim.x)) {
      Position x = position(i, 1, p.d, p.h, p.w, false);
      x.n = (first + plane) / p.c;
      x.c = (first + plane) % p.c;
      const index_t y = x.n * p.y_n + x.c * p.y_c, at = x.n * p.at_n + x.c * p.at_c;
      acc_t sum = {};
      for (index_t o = 0; o < p.od * p.oh * p.ow; ++o) {
        const Position from = position(o, 1, p.od, p.oh, p.ow, false);
        if (indices[at + from.d * p.at_d + from.h * p.at_h + from.w * p.at_w] != i) continue;
        sum = sum + widen(grad_y[y + from.d * p.y_d + from.h * p.y_h + from.w * p.y_w]);
      }
      grad_x[x.n * p.x_n + x.c * p.x_c + x.d * p.x_d + x.h * p.x_h + x.w * p.x_w] = narrow(sum);
    }
  }
}
