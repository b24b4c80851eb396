// Max pooling, backward: each output's gradient goes to the input that its index names:
// grad_x[n, c, i] = sum of grad_y[n, c, o] over the outputs o whose index is i
//
// Source       the definition, gathered: an input looks for itself among the indices of the windows that read it.
//              Callers may hand over indices that stray from their windows: find_strays finds the planes that have
//              some, and there an input looks among the indices of all outputs
// Reads        grad_y [N, C, OD, OH, OW], indices [N, C, OD, OH, OW]; any strides. An index outside the plane adds
//              nothing
// Writes       strays [N, C], 0 before; grad_x [N, C, D, H, W], each of them once
// Mapping      one thread an output in the order of the memory that is written, then one thread an input in grad_x's
//              memory order: w innermost, or c where channels are last
// Bytes        indices are read once more for the strays; then indices and grad_y KD * KH * KW / stride times, from L1
//              and L2 but for the first
// Determinism  each input is one thread's sum in the ascending order of outputs, as in the NumPy backend
// Limits       a plane with a stray costs D * H * W * OD * OH * OW comparisons; the forward makes none
#include "common.cuh"
#include "params.cuh"
#include "windows.cuh"
#include "pooling.cuh"

extern "C" __global__ void __launch_bounds__(256, 1)
find_strays(const long long* __restrict__ indices,  // [N, C, OD, OH, OW]
            int* __restrict__ strays,               // [N, C]
            const PoolParams p) {
  const index_t i = thread_index();  // [0, N * C * OD * OH * OW)
  if (i >= p.n * p.c * p.od * p.oh * p.ow) return;
  const Position o = position(i, p.c, p.od, p.oh, p.ow, p.channels_last);
  const long long index = indices[o.n * p.at_n + o.c * p.at_c + o.d * p.at_d + o.h * p.at_h + o.w * p.at_w];
  if (index < 0 || index >= p.d * p.h * p.w) return;
  const Position x = position(static_cast<index_t>(index), 1, p.d, p.h, p.w, false);
  const bool inside = holds(inputs_of(axis_d(p), o.d), x.d) && holds(inputs_of(axis_h(p), o.h), x.h) &&
                      holds(inputs_of(axis_w(p), o.w), x.w);
  if (!inside) atomicMax(strays + o.n * p.c + o.c, 1);
}

extern "C" __global__ void __launch_bounds__(256, 1)
max_pool_backward(const scalar_t* __restrict__ grad_y,    // [N, C, OD, OH, OW]
                  const long long* __restrict__ indices,  // [N, C, OD, OH, OW]
                  const int* __restrict__ strays,         // [N, C]
                  scalar_t* __restrict__ grad_x,          // [N, C, D, H, W]
                  const PoolParams p) {
  const index_t i = thread_index();  // [0, N * C * D * H * W)
  if (i >= p.n * p.c * p.d * p.h * p.w) return;
  const Position x = position(i, p.c, p.d, p.h, p.w, p.channels_last);
  const bool everywhere = strays[x.n * p.c + x.c];
  const Steps ods = everywhere ? Steps{0, 1, p.od} : outputs_of(axis_d(p), x.d);
  const Steps ohs = everywhere ? Steps{0, 1, p.oh} : outputs_of(axis_h(p), x.h);
  const Steps ows = everywhere ? Steps{0, 1, p.ow} : outputs_of(axis_w(p), x.w);

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
