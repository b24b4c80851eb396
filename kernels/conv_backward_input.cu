// Convolution dgrad; also the transposed convolution:
// grad_x[n, c, i] = bias[c] + sum over oc, k with o * stride + k * dilation - low = i of grad_y[n, oc, o] * w[oc, c, k]
//
// Source       the adjoint of conv_forward: the convolution of dilated grad_y with the flipped filter, zeros skipped
// Reads        grad_y [N, OC, OD, OH, OW], w [OC, C / G, KD, KH, KW], bias [C] of BIAS or null; any strides
//              locally connected layers too: w [OC, OD, OH, OW, C, KD, KH, KW]
//              not_finite, 0 where no grad_x is infinite or NaN; null but where LEAVES_FINITE
// Writes       grad_x [N, C, D, H, W]; where LEAVES_FINITE only those that are infinite or NaN
// Mapping      residue by residue modulo the stride, one thread per input: threads of one residue have the same taps
//              and read adjacent outputs; within a residue grad_x's memory order, so writes are strided; where
//              LEAVES_FINITE threads of a few blocks take all in turn
// Bytes        grad_y is read C / G * KD * KH * KW times, from L1 and L2 but for the first; grad_x written once
// Determinism  a gather: each input is one thread's sum over oc, kd, kh, kw in that order
// Limits       none; a residue without taps writes its bias or zeros
#include "common.cuh"
#include "params.cuh"
#include "windows.cuh"

// Write the i-th input of all residues.
__device__ __forceinline__ void gather(const scalar_t* __restrict__ grad_y, const scalar_t* __restrict__ w,
                                       const BIAS* __restrict__ bias, scalar_t* __restrict__ grad_x, index_t i,
                                       const ConvParams& p) {
  Position at;
  if (!residue_position(i, p, &at)) return;
  scalar_t* const to = grad_x + (at.n * p.x_n + at.c * p.x_c + at.d * p.x_d + at.h * p.x_h + at.w * p.x_w);
  if (LEAVES_FINITE && is_finite(widen(*to))) return;

  const Readers ds = readers(at.d + p.low_d, p.kd, p.stride_d, p.dilation_d, p.tap_step_d);
  const Readers hs = readers(at.h + p.low_h, p.kh, p.stride_h, p.dilation_h, p.tap_step_h);
  const Readers ws = readers(at.w + p.low_w, p.kw, p.stride_w, p.dilation_w, p.tap_step_w);
  const index_t oc0 = at.c / p.c_group * p.oc_group;  // the group's first output channel

  grad_y += at.n * p.y_n + oc0 * p.y_c;
  w += oc0 * p.w_oc + at.c % p.c_group * p.w_c;
  acc_t sum = {};
  for (index_t oc = 0; oc < p.oc_group; ++oc) {
    for (index_t i = 0; i < p.kd; i += p.tap_step_d) {
      const index_t kd = ds.k + i, od = ds.o - i / p.tap_step_d * p.output_step_d;
      const bool d_exists = kd < p.kd && is_inside(od, p.od);
      for (index_t j = 0; j < p.kh; j += p.tap_step_h) {
        const index_t kh = hs.k + j, oh = hs.o - j / p.tap_step_h * p.output_step_h;
        const bool row_exists = d_exists && kh < p.kh && is_inside(oh, p.oh);
        const index_t row = oc * p.y_c + od * p.y_d + oh * p.y_h;
        const index_t filter = oc * p.w_oc + kd * p.w_kd + kh * p.w_kh + od * p.w_od + oh * p.w_oh;
        for (index_t k = 0; k < p.kw; k += p.tap_step_w) {  // a predicate: the trip count is constant
          const index_t kw = ws.k + k, ow = ws.o - k / p.tap_step_w * p.output_step_w;
          if (!row_exists || kw >= p.kw || !is_inside(ow, p.ow)) continue;
          sum = multiply_add(widen(grad_y[row + ow * p.y_w]), widen(w[filter + kw * p.w_kw + ow * p.w_ow]), sum);
        }
      }
    }
  }
  if (bias) sum = sum + widen(bias[at.c * p.bias_c]);
  *to = narrow(sum);
}

extern "C" __global__ void __launch_bounds__(256, 1)
conv_backward_input(const scalar_t* __restrict__ grad_y,  // [N, OC, OD, OH, OW]
                    const scalar_t* __restrict__ w,       // [OC, C / G, KD, KH, KW]
                    const BIAS* __restrict__ bias,        // [C] or null
                    const int* __restrict__ not_finite,   // [1] or null
                    scalar_t* __restrict__ grad_x,        // [N, C, D, H, W]
                    const ConvParams p) {
  if (LEAVES_FINITE && *not_finite == 0) return;
  const index_t count = p.n * p.c * p.run_d * p.run_h * p.run_w * p.residues_d * p.residues_h * p.residues_w;
  for (index_t i = thread_index(); i < count; i += LEAVES_FINITE ? grid_threads() : count) {
    gather(grad_y, w, bias, grad_x, i, p);
  }
}
