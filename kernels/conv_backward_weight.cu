// Convolution wgrad by split-K, the first of two kernels: sums over parts of the batch and positions,
// parts[s, oc, c, k] = sum over n, o of part s of x[n, c, o * stride + k * dilation - low] * grad_y[n, oc, o]
//
// Source       the derivative of conv_forward; a split-K GEMM whose inner dimension is N * OD * OH * OW
// Reads        x [N, C, D, H, W], grad_y [N, OC, OD, OH, OW]; any strides
// Writes       parts [splits, OC, C / G, KD, KH, KW] of acc_t, which sum_splits adds
// Mapping      one block of 32 to 128 threads per weight and part, looping over its (n, od, oh, ow), ow innermost
// Bytes        x and grad_y are read once per weight, from L2 but for the first; parts written once
// Determinism  each thread's sum is in order, a block's sum has a fixed pairing of threads; no atomics
// Limits       none; no reuse between weights, so far below peak arithmetic throughput where there are many
#include "common.cuh"
#include "params.cuh"
#include "windows.cuh"

extern "C" __global__ void __launch_bounds__(128)
conv_backward_weight(const scalar_t* __restrict__ x,       // [N, C, D, H, W]
                     const scalar_t* __restrict__ grad_y,  // [N, OC, OD, OH, OW]
                     acc_t* __restrict__ parts,            // [splits, OC, C / G, KD, KH, KW]
                     const ConvParams p) {
  __shared__ acc_t scratch[128];
  const index_t weights = p.oc * p.c_group * p.kd * p.kh * p.kw;
  const index_t split = static_cast<index_t>(blockIdx.x) / weights;
  const Position k = position(static_cast<index_t>(blockIdx.x) % weights, p.c_group, p.kd, p.kh, p.kw, false);
  const index_t oc = k.n;  // weights are [OC, C / G, KD, KH, KW]
  const index_t c = oc / p.oc_group * p.c_group + k.c;

  const index_t begin = split * p.run;
  const index_t end = least(begin + p.run, p.n * p.od * p.oh * p.ow);
  acc_t sum = {};
  for (index_t i = begin + static_cast<index_t>(threadIdx.x); i < end; i += static_cast<index_t>(blockDim.x)) {
    const Position o = position(i, 1, p.od, p.oh, p.ow, false);
    const index_t d = o.d * p.stride_d + k.d * p.dilation_d - p.low_d;
    const index_t h = o.h * p.stride_h + k.h * p.dilation_h - p.low_h;
    const index_t w = o.w * p.stride_w + k.w * p.dilation_w - p.low_w;
    if (d < 0 || d >= p.d || h < 0 || h >= p.h || w < 0 || w >= p.w) continue;
    const scalar_t value = x[o.n * p.x_n + c * p.x_c + d * p.x_d + h * p.x_h + w * p.x_w];
    const scalar_t grad = grad_y[o.n * p.y_n + oc * p.y_c + o.d * p.y_d + o.h * p.y_h + o.w * p.y_w];
    sum = multiply_add(widen(value), widen(grad), sum);
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}
