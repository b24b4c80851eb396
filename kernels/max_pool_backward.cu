// Max pooling, backward: each output's gradient goes to the input that was its maximum:
// grad_x[n, c, i] = sum of grad_y[n, c, o] over the windows o that read i and whose index is i
//
// Source       the definition, gathered: an input looks for itself among the indices of the windows that read it
// Reads        grad_y [N, C, OD, OH, OW], indices [N, C, OD, OH, OW]; any strides
// Writes       grad_x [N, C, D, H, W], each of them once
// Mapping      one thread an input, in grad_x's memory order: w innermost, or c where channels are last
// Bytes        indices and grad_y are read KD * KH * KW / stride times, from L1 and L2 but for the first
// Determinism  each input is one thread's sum in the ascending order of outputs, as the NumPy backend's; no atomics
// Limits       an index outside its own window adds nothing here; the forward gives no such index, and the NumPy
//              backend, which scatters, would add its gradient. To follow any index, gradients would have to be
//              scattered in no fixed order, or sorted
#include "common.cuh"
#include "params.cuh"
#include "windows.cuh"
#include "pooling.cuh"

extern "C" __global__ void __launch_bounds__(256)
max_pool_backward(const scalar_t* __restrict__ grad_y,    // [N, C, OD, OH, OW]
                  const long long* __restrict__ indices,  // [N, C, OD, OH, OW]
                  scalar_t* __restrict__ grad_x,          // [N, C, D, H, W]
                  const PoolParams p) {
  const index_t i = thread_index();  // [0, N * C * D * H * W)
  if (i >= p.n * p.c * p.d * p.h * p.w) return;
  const Position x = position(i, p.c, p.d, p.h, p.w, p.channels_last);
  const Steps ods = outputs_of(axis_d(p), x.d);
  const Steps ohs = outputs_of(axis_h(p), x.h);
  const Steps ows = outputs_of(axis_w(p), x.w);

  const index_t self = (x.d * p.h + x.h) * p.w + x.w;
  grad_y += x.n * p.y_n + x.c * p.y_c;
  indices += x.n * p.at_n + x.c * p.at_c;
  acc_t sum = {};
  for (index_t kd = 0; kd < ods.count; ++kd) {
    const index_t od = ods.first + kd * ods.step;
    for (index_t kh = 0; kh < ohs.count; ++kh) {
      const index_t oh = ohs.first + kh * ohs.step;
      for (index_t kw = 0; kw < ows.count; ++kw) {
        const index_t ow = ows.first + kw * ows.step;
        if (indices[od * p.at_d + oh * p.at_h + ow * p.at_w] == self) {
          sum = sum + widen(grad_y[od * p.y_d + oh * p.y_h + ow * p.y_w]);
        }
      }
    }
  }
  grad_x[x.n * p.x_n + x.c * p.x_c + x.d * p.x_d + x.h * p.x_h + x.w * p.x_w] = narrow(sum);
}
