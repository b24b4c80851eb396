// Unfolding: columns[n, (c, k), o] = x[n, c, o * stride + k * dilation - low], 0 where that is padding
//
// Source       the definition; columns are what turns a convolution into a matrix product
// Reads        x [N, C, D, H, W]; any strides
// Writes       columns [N, C * KD * KH * KW, OD * OH * OW]
// Mapping      one thread an entry, ow innermost
// Bytes        each entry written once; x read KD * KH * KW / stride times, from L1 and L2 but for the first
// Determinism  copies only
// Limits       none
#include "common.cuh"
#include "params.cuh"
#include "windows.cuh"

extern "C" __global__ void __launch_bounds__(256, 1)
im2col(const scalar_t* __restrict__ x,      // [N, C, D, H, W]
       scalar_t* __restrict__ columns,      // [N, C * KD * KH * KW, OD * OH * OW]
       const ConvParams p) {
  const index_t positions = p.od * p.oh * p.ow, rows = p.c * p.kd * p.kh * p.kw;
  const index_t i = thread_index();  // [0, N * rows * positions)
  if (i >= p.n * rows * positions) return;
  const index_t column = i % positions, row = i / positions % rows, n = i / positions / rows;
  const Position o = position(column, 1, p.od, p.oh, p.ow, false);
  const Position k = position(row, p.c, p.kd, p.kh, p.kw, false);
  const index_t d = o.d * p.stride_d + k.d * p.dilation_d - p.low_d;
  const index_t h = o.h * p.stride_h + k.h * p.dilation_h - p.low_h;
  const index_t w = o.w * p.stride_w + k.w * p.dilation_w - p.low_w;

  scalar_t value = {};
  if (d >= 0 && d < p.d && h >= 0 && h < p.h && w >= 0 && w < p.w) {
    value = x[n * p.x_n + k.c * p.x_c + d * p.x_d + h * p.x_h + w * p.x_w];
  }
  columns[n * p.y_n + row * p.y_c + column * p.y_w] = value;
}
