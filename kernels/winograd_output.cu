// Winograd's filtering F(2 x 2, 3 x 3), its last step: the 2 x 2 outputs A^T m A of a tile, plus bias[oc]
//
// Source       as winograd_input.cu
// Reads        m [N, 16, OC, TH, TW], the sums over c of u[k, oc, c] v[n, th, tw, k, c]; bias [OC] of BIAS or null
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
  index_t m_n, m_k, m_c, m_h, m_w;
  index_t y_n, y_c, y_h, y_w;
  index_t bias_c;
  index_t channels_last;
};

extern "C" __global__ void __launch_bounds__(256, 1)
winograd_output(const scalar_t* __restrict__ m,   // [N, 16, OC, TH, TW]
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
  scalar_t* const to = y + at.n * p.y_n + at.c * p.y_c + 2 * at.h * p.y_h + 2 * at.w * p.y_w;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (2 * at.h + i >= p.h) continue;
    const float* const row = rows[i];
    to[i * p.y_h] = row[0] + row[1] + row[2] + added;
    if (2 * at.w + 1 < p.w) to[i * p.y_h + p.y_w] = row[1] - row[2] - row[3] + added;
  }
}
