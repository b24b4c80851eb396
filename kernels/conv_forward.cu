// Direct convolution, forward:
// y[n, oc, o] = bias[oc] + sum over c, k of x[n, c, o * stride + k * dilation - low] * w[oc, c, k]
//
// Source       the definition; as in PyTorch, a cross-correlation
// Reads        x [N, C, D, H, W], w [OC, C / G, KD, KH, KW], bias [OC] of BIAS or null; any strides
//              locally connected layers too: w [OC, OD, OH, OW, C, KD, KH, KW], bias [OC, OD, OH, OW]
//              not_finite, 0 where no y is infinite or NaN; null but where LEAVES_FINITE
// Writes       y [N, OC, OD, OH, OW]; where LEAVES_FINITE only those that are infinite or NaN
// Mapping      one thread per output, in y's memory order: ow innermost, or oc where channels are last; where
//              LEAVES_FINITE of a few blocks, that take all in turn
// Bytes        x is read OC / G * KD * KH * KW / stride times, from L1 and L2 but for the first; w once a warp and tap
// Determinism  each output is one thread's sum over c, kd, kh, kw in that order
// Limits       none; no reuse through shared memory, so far below peak arithmetic throughput where C and OC are large
#include "common.cuh"
#include "params.cuh"
#include "windows.cuh"

// Write the i-th output.
__device__ __forceinline__ void convolve(const scalar_t* __restrict__ x, const scalar_t* __restrict__ w,
                                         const BIAS* __restrict__ bias, scalar_t* __restrict__ y, index_t i,
                                         const ConvParams& p) {
  const Position o = position(i, p.oc, p.od, p.oh, p.ow, p.channels_last);

  scalar_t* const to = y + (o.n * p.y_n + o.c * p.y_c + o.d * p.y_d + o.h * p.y_h + o.w * p.y_w);
  if (LEAVES_FINITE && is_finite(widen(*to))) return;

  const index_t d0 = o.d * p.stride_d - p.low_d, h0 = o.h * p.stride_h - p.low_h, w0 = o.w * p.stride_w - p.low_w;
  const index_t c0 = o.c / p.oc_group * p.c_group;  // the group's first channel

  x += o.n * p.x_n + c0 * p.x_c;
  w += o.c * p.w_oc + o.d * p.w_od + o.h * p.w_oh + o.w * p.w_ow;
  acc_t sum = {};
  for (index_t c = 0; c < p.c_group; ++c) {
    for (index_t kd = 0; kd < p.kd; ++kd) {
      for (index_t kh = 0; kh < p.kh; ++kh) {
        const index_t d = d0 + kd * p.dilation_d, h = h0 + kh * p.dilation_h;
        const bool row_is_inside = is_inside(d, p.d) && is_inside(h, p.h);
        const index_t row = c * p.x_c + d * p.x_d + h * p.x_h;
        const index_t filter = c * p.w_c + kd * p.w_kd + kh * p.w_kh;
        for (index_t kw = 0; kw < p.kw; ++kw) {  // a predicate rather than bounds: the trip count is constant
          const index_t w_in = w0 + kw * p.dilation_w;
          if (!row_is_inside || !is_inside(w_in, p.w)) continue;
          sum = multiply_add(widen(x[row + w_in * p.x_w]), widen(w[filter + kw * p.w_kw]), sum);
        }
      }
    }
  }
  if (bias) sum = sum + widen(bias[o.c * p.bias_c + o.d * p.bias_d + o.h * p.bias_h + o.w * p.bias_w]);
  *to = narrow(sum);
}

extern "C" __global__ void __launch_bounds__(256, 1)
conv_forward(const scalar_t* __restrict__ x,       // [N, C, D, H, W]
             const scalar_t* __restrict__ w,       // [OC, C / G, KD, KH, KW]
             const BIAS* __restrict__ bias,        // [OC] or null
             const int* __restrict__ not_finite,   // [1] or null
             scalar_t* __restrict__ y,             // [N, OC, OD, OH, OW]
             const ConvParams p) {
  if (LEAVES_FINITE && *not_finite == 0) return;
  const index_t count = p.n * p.oc * p.od * p.oh * p.ow;
  for (index_t i = thread_index(); i < count; i += LEAVES_FINITE ? grid_threads() : count) {
    convolve(x, w, bias, y, i, p);
  }
}
