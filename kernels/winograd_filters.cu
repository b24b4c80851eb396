// Winograd's filtering F(2 x 2, 3 x 3), the filters: u[k, oc, c] = (G w G^T)[k] of each 3 x 3 filter w
//
// Source       as winograd_input.cu
// Reads        w [OC, C, 3, 3], any strides
// Writes       u [16, OC, DEPTH], contiguous; zeros for channels beyond C
// Mapping      one thread per filter, c innermost
// Bytes        w once, from L1 but for the first of a sector; u once
// Determinism  fixed order
// Limits       float32
#include "common.cuh"
#include "params.cuh"

struct WinogradFilterParams {
  RUN_TIME index_t oc;
  index_t c, depth;
  index_t w_first, w_oc, w_c, w_h, w_w;         // of a filter's first tap, and the strides
};

// G times three taps of which each is `step` after the last.
__device__ __forceinline__ void transform(const float* g, int step, float (&to)[4]) {
  const float outer = g[0] + g[2 * step];
  to[0] = g[0], to[1] = 0.5f * (outer + g[step]), to[2] = 0.5f * (outer - g[step]), to[3] = g[2 * step];
}

extern "C" __global__ void __launch_bounds__(256, 1)
winograd_filters(const scalar_t* __restrict__ w,  // [OC, C, 3, 3]
                 scalar_t* __restrict__ u,        // [16, OC, DEPTH]
                 const WinogradFilterParams p) {
  const index_t i = thread_index();  // [0, OC * DEPTH)
  if (i >= p.oc * p.depth) return;
  const index_t c = i % p.depth, from = p.w_first + i / p.depth * p.w_oc + c * p.w_c;
  float filter[9], columns[3][4];
#pragma unroll
  for (int k = 0; k < 9; ++k) filter[k] = c < p.c ? w[from + k / 3 * p.w_h + k % 3 * p.w_w] : 0.0f;
#pragma unroll
  for (int j = 0; j < 3; ++j) transform(filter + j, 3, columns[j]);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float row[3] = {columns[0][k], columns[1][k], columns[2][k]};
    float result[4];
    transform(row, 1, result);
#pragma unroll
    for (int j = 0; j < 4; ++j) u[(k * 4 + j) * p.oc * p.depth + i] = result[j];
  }
}
