// Average and sum pooling, forward, over sliding or adaptive windows:
// y[n, c, o] = sum over the inputs i of window o of x[n, c, i] / divisor of window o
//
// Source       the definition; the divisor is 1, the window's taps (with or without those on padding), or a number
// Reads        x [N, C, D, H, W]; any strides
// Writes       y [N, C, OD, OH, OW]; 0 for a window wholly in padding, whatever it is divided by
// Mapping      one thread an output, in y's memory order: ow innermost, or c where channels are last
// Bytes        x is read KD * KH * KW / stride times, from L1 and L2 but for the first; y written once
// Determinism  each output is one thread's sum in the order of d, h, w
// Limits       none; a window that covers the whole plane is one thread's work
#include "common.cuh"
#include "params.cuh"
#include "windows.cuh"
#include "pooling.cuh"

extern "C" __global__ void __launch_bounds__(256, 1)
average_pool(const scalar_t* __restrict__ x,  // [N, C, D, H, W]
             scalar_t* __restrict__ y,        // [N, C, OD, OH, OW]
             const PoolParams p) {
  const index_t i = thread_index();  // [0, N * C * OD * OH * OW)
  if (i >= p.n * p.c * p.od * p.oh * p.ow) return;
  const Position o = position(i, p.c, p.od, p.oh, p.ow, p.channels_last);
  const PoolAxis d_axis = axis_d(p), h_axis = axis_h(p), w_axis = axis_w(p);
  const Steps ds = inputs_of(d_axis, o.d);
  const Steps hs = inputs_of(h_axis, o.h);
  const Steps ws = inputs_of(w_axis, o.w);

  x += o.n * p.x_n + o.c * p.x_c;
  acc_t sum = {};
  for (index_t kd = 0; kd < ds.count; ++kd) {
    for (index_t kh = 0; kh < hs.count; ++kh) {
      const index_t row = (ds.first + kd * ds.step) * p.x_d + (hs.first + kh * hs.step) * p.x_h;
      for (index_t kw = 0; kw < ws.count; ++kw) {
        sum = sum + widen(x[row + (ws.first + kw * ws.step) * p.x_w]);
      }
    }
  }
  const index_t taps = counted_taps(d_axis, o.d, p.divides) * counted_taps(h_axis, o.h, p.divides) *
                       counted_taps(w_axis, o.w, p.divides);
  y[o.n * p.y_n + o.c * p.y_c + o.d * p.y_d + o.h * p.y_h + o.w * p.y_w] = narrow(divided(sum, taps, p));
}
