// Folding: x[n, c, i] = sum over k, o with o * stride + k * dilation - low = i of columns[n, (c, k), o]
//
// Source       the adjoint of im2col
// Reads        columns [N, C * KD * KH * KW, OD * OH * OW]; any strides
// Writes       x [N, C, D, H, W]
// Mapping      residue by residue modulo the stride, one thread an input, as conv_backward_input
// Bytes        each entry read once and each input written once
// Determinism  a gather: each input is one thread's sum over kd, kh, kw in that order
// Limits       none; an input that no window holds is 0
#include "common.cuh"
#include "params.cuh"
#include "windows.cuh"

extern "C" __global__ void __launch_bounds__(256, 1)
col2im(const scalar_t* __restrict__ columns,  // [N, C * KD * KH * KW, OD * OH * OW]
       scalar_t* __restrict__ x,              // [N, C, D, H, W]
       const ConvParams p) {
  Position at;
  if (!residue_position(p, &at)) return;
  const Readers ds = readers(at.d + p.low_d, p.kd, p.stride_d, p.dilation_d, p.tap_step_d, p.output_step_d, p.od);
  const Readers hs = readers(at.h + p.low_h, p.kh, p.stride_h, p.dilation_h, p.tap_step_h, p.output_step_h, p.oh);
  const Readers ws = readers(at.w + p.low_w, p.kw, p.stride_w, p.dilation_w, p.tap_step_w, p.output_step_w, p.ow);

  columns += at.n * p.y_n;
  acc_t sum = {};
  for (index_t i = 0; i < ds.count; ++i) {
    const index_t kd = ds.k + i * p.tap_step_d, od = ds.o - i * p.output_step_d;
    for (index_t j = 0; j < hs.count; ++j) {
      const index_t kh = hs.k + j * p.tap_step_h, oh = hs.o - j * p.output_step_h;
      for (index_t k = 0; k < ws.count; ++k) {
        const index_t kw = ws.k + k * p.tap_step_w, ow = ws.o - k * p.output_step_w;
        const index_t row = ((at.c * p.kd + kd) * p.kh + kh) * p.kw + kw;
        const index_t column = (od * p.oh + oh) * p.ow + ow;
        sum = sum + widen(columns[row * p.y_c + column * p.y_w]);
      }
    }
  }
  x[at.n * p.x_n + at.c * p.x_c + at.d * p.x_d + at.h * p.x_h + at.w * p.x_w] = narrow(sum);
}
