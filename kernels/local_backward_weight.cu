// Locally connected layer, wgrad:
// grad_w[oc, o, c, k] = sum over n of x[n, c, o * stride + k * dilation - low] * grad_y[n, oc, o]
//
// Source       the derivative of conv_forward with a separate weight at each position
// Reads        x [N, C, D, H, W], grad_y [N, OC, OD, OH, OW]; any strides
// Writes       grad_w [OC, OD, OH, OW, C, KD, KH, KW] of TARGET
// Mapping      one thread per weight, kw innermost
// Bytes        x is read OC * KD * KH * KW / stride times, from L1 and L2 but for the first; grad_w written once
// Determinism  each weight is one thread's sum in the order of n
// Limits       none
#include "common.cuh"
#include "params.cuh"
#include "windows.cuh"

extern "C" __global__ void __launch_bounds__(256, 1)
local_backward_weight(const scalar_t* __restrict__ x,       // [N, C, D, H, W]
                      const scalar_t* __restrict__ grad_y,  // [N, OC, OD, OH, OW]
                      TARGET* __restrict__ grad_w,          // [OC, OD, OH, OW, C, KD, KH, KW]
                      const ConvParams p) {
  const index_t filter = p.c * p.kd * p.kh * p.kw;
  const index_t i = thread_index();  // [0, OC * OD * OH * OW * C * KD * KH * KW)
  if (i >= p.oc * p.od * p.oh * p.ow * filter) return;
  const Position k = position(i % filter, p.c, p.kd, p.kh, p.kw, false);
  const Position o = position(i / filter, p.oc, p.od, p.oh, p.ow, false);
  const index_t d = o.d * p.stride_d + k.d * p.dilation_d - p.low_d;
  const index_t h = o.h * p.stride_h + k.h * p.dilation_h - p.low_h;
  const index_t w = o.w * p.stride_w + k.w * p.dilation_w - p.low_w;

  acc_t sum = {};
  if (d >= 0 && d < p.d && h >= 0 && h < p.h && w >= 0 && w < p.w) {
    x += k.c * p.x_c + d * p.x_d + h * p.x_h + w * p.x_w;
    grad_y += o.c * p.y_c + o.d * p.y_d + o.h * p.y_h + o.w * p.y_w;
    for (index_t n = 0; n < p.n; ++n) sum = multiply_add(widen(x[n * p.x_n]), widen(grad_y[n * p.y_n]), sum);
  }
  grad_w[i] = Narrow<TARGET>::from(sum);
}
