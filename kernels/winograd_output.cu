// Winograd's filtering F(2 x 2, 3 x 3), its last step: the 2 x 2 outputs A^T m A of a tile, plus bias[oc]
//
// Source       as winograd_input.cu
// Reads        m [N, 16, OC, TH, TW], the sums over c of u[k, oc, c] v[n, th, tw, k, c]; bias [OC] of BIAS or null
//              x [N, C, XH, XW] and w [OC, C, 3, 3] for results that are no finite numbers: a tile mixes its inputs, so
//              these are summed anew by the definition
// Writes       y [N, OC, H, W]; any strides
// Mapping      one thread per tile, in y's memory order
// Bytes        m and y once
// Determinism  fixed order
// Limits       float32
#include "common.cuh"
#include "params.cuh"

struct WinogradOutputParams {
  RUN_TIME index_t n;
  index_t oc, h, w;
  index_t tiles_h, tiles_w;
  index_t c, xh, xw, low_h, low_w;
  index_t x_n, x_c, x_h, x_w;
  index_t w_first, w_oc, w_c, w_h, w_w;         // of a filter's first tap, and the strides
  index_t m_n, m_k, m_c, m_h, m_w;
  index_t y_n, y_c, y_h, y_w;
  index_t bias_c;
  index_t channels_last;
};

// One output by the definition.
__device__ __forceinline__ float convolved(const float* x, const float* w, index_t h0, index_t w0,
                                        const WinogradOutputParams& p) {
  float sum = 0.0f;
  for (index_t c = 0; c < p.c; ++c) {
    for (int k = 0; k < 9; ++k) {
      const index_t h = h0 + k / 3, column = w0 + k % 3;
      if (h < 0 || h >= p.xh || column < 0 || column >= p.xw) continue;
      sum = fmaf(x[c * p.x_c + h * p.x_h + column * p.x_w], w[c * p.w_c + k / 3 * p.w_h + k % 3 * p.w_w], sum);
    }
  }
  return sum;
}

extern "C" __global__ void __launch_bounds__(256, 1)
winograd_output(const scalar_t* __restrict__ m,   // [N, 16, OC, TH, TW]
                const scalar_t* __restrict__ x,   // [N, C, XH, XW]
                const scalar_t* __restrict__ w,   // [OC, C, 3, 3]
                const BIAS* __restrict__ bias,    // [OC] or null
                scalar_t* __restrict__ y,         // [N, OC, H, W]
                const WinogradOutputParams p) {
  const index_t number = thread_index();  // [0, N * OC * TH * TW)
  if (number >= p.n * p.oc * p.tiles_h * p.tiles_w) return;
  const Position at = position(number, p.oc, 1, p.tiles_h, p.tiles_w, p.channels_last);
  const scalar_t* const from = m + at.n * p.m_n + at.c * p.m_c + at.h * p.m_h + at.w * p.m_w;
  float rows[2][4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    float column[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) column[i] = from[(i * 4 + j) * p.m_k];
    rows[0][j] = column[0] + column[1] + column[2];
    rows[1][j] = column[1] - column[2] - column[3];
  }
  const float added = bias ? widen(bias[at.c * p.bias_c]) : 0.0f;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const index_t h = 2 * at.h + i, column = 2 * at.w + j;
      if (h >= p.h || column >= p.w) continue;
      const float(&row)[4] = rows[i];
      float sum = j == 0 ? row[0] + row[1] + row[2] : row[1] - row[2] - row[3];
      if (!is_finite(sum)) {
        sum = convolved(x + at.n * p.x_n, w + p.w_first + at.c * p.w_oc, h - p.low_h, column - p.low_w, p);
      }
      y[at.n * p.y_n + at.c * p.y_c + h * p.y_h + column * p.y_w] = sum + added;
    }
  }
}
