// Average and sum pooling, backward: each window's gradient over its divisor goes to all inputs that it reads:
// grad_x[n, c, i] = sum over the windows o that read i of grad_y[n, c, o] / divisor of window o
//
// Source       the definition, gathered
// Reads        grad_y [N, C, OD, OH, OW]; any strides
// Writes       grad_x [N, C, D, H, W], each of them once
// Mapping      one thread an input, in grad_x's memory order: w innermost, or c where channels are last
// Bytes        grad_y is read KD * KH * KW / stride times, from L1 and L2 but for the first; grad_x written once
// Determinism  each input is one thread's sum in the ascending order of outputs; no atomics
// Limits       none; windows at the borders have divisors of their own, so each is worked out again for each input
#include "common.cuh"
#include "params.cuh"
#include "windows.cuh"
#include "pooling.cuh"

extern "C" __global__ void __launch_bounds__(256, 1)
average_pool_backward(const scalar_t* __restrict__ grad_y,  // [N, C, OD, OH, OW]
                      scalar_t* __restrict__ grad_x,        // [N, C, D, H, W]
                      const PoolParams p) {
  const index_t i = thread_index();  // [0, N * C * D * H * W)
  if (i >= p.n * p.c * p.d * p.h * p.w) return;
  const Position x = position(i, p.c, p.d, p.h, p.w, p.channels_last);
  const PoolAxis d_axis = axis_d(p), h_axis = axis_h(p), w_axis = axis_w(p);
  const Steps ods = outputs_of(d_axis, x.d);
  const Steps ohs = outputs_of(h_axis, x.h);
  const Steps ows = outputs_of(w_axis, x.w);

  grad_y += x.n * p.y_n + x.c * p.y_c;
  acc_t sum = {};
  for (index_t kd = 0; kd < ods.count; ++kd) {
    const index_t od = ods.first + kd * ods.step;
    const index_t taps_d = counted_taps(d_axis, od, p.divides);
    for (index_t kh = 0; kh < ohs.count; ++kh) {
      const index_t oh = ohs.first + kh * ohs.step;
      const index_t taps_dh = taps_d * counted_taps(h_axis, oh, p.divides);
      for (index_t kw = 0; kw < ows.count; ++kw) {
        const index_t ow = ows.first + kw * ows.step;
        const index_t taps = taps_dh * counted_taps(w_axis, ow, p.divides);
        sum = sum + divided(widen(grad_y[od * p.y_d + oh * p.y_h + ow * p.y_w]), taps, p);
      }
    }
  }
  grad_x[x.n * p.x_n + x.c * p.x_c + x.d * p.x_d + x.h * p.x_h + x.w * p.x_w] = narrow(sum);
}
