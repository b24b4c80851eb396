// A fused norm over rows: their mean, biased variance and 1 / sqrt(var + eps), and with them
// z = activation((x - mean) * rstd * weight + bias + residual)
// Where they are not centred, as in RMS norm, the mean is 0 and the variance the mean square.
//
// Source       the two passes of norm_statistics, then the definition of norm_apply
// Reads        x [N, G, C, P], each row [C, P] contiguous; weight, bias [1, G, C, 1] or null; residual as x where
//              RESIDUAL is 1
// Writes       z [N, G, C, P] unless it is null; mean, var, rstd [N, G, 1, 1]
// Mapping      see RowThread in norm_rows.cuh: a segment is a channel, or the row where G and P are 1 (layer norm);
//              lanes run along its elements
// Bytes        x, residual and z once, since a row stays in registers; weight and bias once per warp or, in layer norm,
//              once per block, which loops over some thirty rows
// Determinism  fixed pairing within a row
// Limits       rows of 32 * 256 values, less where lanes are idle; weights of a row within 40 KB of shared memory
#include "common.cuh"
#include "params.cuh"
#include "norms.cuh"
#include "norm_rows.cuh"
#include "bias_activation.cuh"

constexpr int HELD = 32 / PACK;  // packs of a thread

// Statistics of the row that the threads hold. Where its squares would leave the range of acc_t, the values that they
// hold are multiplied by `scale`, a power of two.
__device__ __forceinline__ Statistics statistics_of_row(Pack<scalar_t, PACK> (&held)[HELD], acc_t& scale, index_t last,
                                                        bool works, Sum* scratch, acc_t* factors, const RowThread& own,
                                                        const NormRowParams& p) {
  const acc_t n = static_cast<acc_t>(p.segments * p.length);
  acc_t pivot;
  Sum moments[2];  // of d, and of d^2
  for (bool again = false;; again = true) {
    acc_t total[1] = {};
#pragma unroll
    for (int h = 0; h < HELD; ++h) {
      if ((h * own.lanes + own.lane) * PACK >= last) continue;
      acc_t terms[PACK];
#pragma unroll
      for (int e = 0; e < PACK; ++e) terms[e] = widen(held[h].at[e]);
      total[0] = total[0] + paired(terms);
    }
    add_row(total, 1, reinterpret_cast<acc_t*>(scratch), factors, own, p);
    pivot = p.centred ? total[0] / n : 0;

    moments[0] = moments[1] = Sum{};
#pragma unroll
    for (int h = 0; h < HELD; ++h) {
      if ((h * own.lanes + own.lane) * PACK >= last) continue;
      acc_t terms[PACK], squares[PACK];
#pragma unroll
      for (int e = 0; e < PACK; ++e) {
        terms[e] = widen(held[h].at[e]) - pivot;
        squares[e] = terms[e] * terms[e];
      }
      moments[0] = moments[0] + paired(terms);
      moments[1] = moments[1] + paired(squares);
    }
    add_row(moments, 1, scratch, factors, own, p);
    if (!p.centred) moments[0] = Sum{};
    if (again || SQUARES_FIT<scalar_t>) break;
    scale = scale_for(rounded(moments[1]), n, p.eps);
    if (!any_row(works && scale != 1, own, p)) break;
#pragma unroll
    for (int h = 0; h < HELD; ++h) {
#pragma unroll
      for (int e = 0; e < PACK; ++e) held[h].at[e] = narrow(widen(held[h].at[e]) * scale);
    }
  }
  return statistics(pivot, rounded(moments[0]), rounded(moments[1]), n, p.eps, scale);
}

// What a row's values become: ((value - centre) * rstd) * factor + term, of values as they are held.
struct Scaling {
  acc_t centre, rstd;
  acc_t factor, term;  // of the thread's segment, where they do not vary along a row
};

// Write the row that the threads hold, after its norm, residual and activation.
__device__ __forceinline__ void write_row(Pack<scalar_t, PACK> (&held)[HELD], const Scaling& row, index_t last,
                                          const acc_t* affine, bool has_weight, bool has_bias,
                                          const scalar_t* __restrict__ residual, scalar_t* __restrict__ to,
                                          const RowThread& own, const NormRowParams& p) {
#pragma unroll
  for (int h = 0; h < HELD; ++h) {
    const index_t i = (h * own.lanes + own.lane) * PACK;
    if (i >= last) continue;
    acc_t by[PACK], plus[PACK];
    Pack<scalar_t, PACK> added;
    if (RESIDUAL) added = load_pack<PACK>(residual + i);
    if (p.along) {
      load_values(affine + i, by);
      load_values(affine + p.length + i, plus);
    }
#pragma unroll
    for (int e = 0; e < PACK; ++e) {
      acc_t value = (widen(held[h].at[e]) - row.centre) * row.rstd;
      if (has_weight) value = value * (p.along ? by[e] : row.factor);
      if (has_bias) value = value + (p.along ? plus[e] : row.term);
      if (RESIDUAL) value = value + widen(added.at[e]);
      held[h].at[e] = narrow(activated(value, p.activation, p.negative_slope));
    }
    store_pack(to + i, held[h]);
  }
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)
norm_rows(const scalar_t* __restrict__ x,         // [N, G, C, P]
          const acc_t* __restrict__ weight,       // [1, G, C, 1] or null
          const acc_t* __restrict__ bias,         // as weight
          const scalar_t* __restrict__ residual,  // [N, G, C, P], or null where RESIDUAL is 0
          scalar_t* __restrict__ z,               // [N, G, C, P], or null
          acc_t* __restrict__ mean,               // [N, G, 1, 1]
          acc_t* __restrict__ var,                // as mean
          acc_t* __restrict__ rstd,               // as mean
          const NormRowParams p) {
  extern __shared__ acc_t affine[];  // [2, length] where weights vary along a row: weight and bias
  __shared__ Sum scratch[2 * LEADERS];
  __shared__ acc_t factors[LEADERS];
  const RowThread own = row_thread(p);
  if (p.along) {
    for (index_t i = threadIdx.x; i < p.length; i += blockDim.x) {
      affine[i] = weight ? weight[i * p.weight_c] : 1;
      affine[p.length + i] = bias ? bias[i * p.bias_c] : 0;
    }
    __syncthreads();
  }

  for (index_t turn = 0; turn < p.turns; ++turn) {
    const index_t row = (static_cast<index_t>(blockIdx.x) * p.turns + turn) * p.at_once + own.local;
    const bool works = own.works && row < p.rows;
    const index_t image = row / p.g, group = row % p.g, last = works ? p.length : 0;

    const scalar_t* const from = x + image * p.x_n + group * p.x_g + own.segment * p.length;
    Pack<scalar_t, PACK> held[HELD];
#pragma unroll
    for (int h = 0; h < HELD; ++h) {
      const index_t i = (h * own.lanes + own.lane) * PACK;
      if (i < last) held[h] = load_pack<PACK>(from + i);
    }

    acc_t scale = 1;
    const Statistics found = statistics_of_row(held, scale, last, works, scratch, factors, own, p);

    if (!works) continue;
    if (own.lane == 0 && own.segment == 0) {
      mean[row] = found.mean;
      var[row] = found.var;
      rstd[row] = found.rstd;
    }
    if (!z) continue;
    Scaling scaling = {found.mean * scale, found.rstd / scale, 1, 0};
    if (!p.along) {
      if (weight) scaling.factor = weight[group * p.weight_g + own.segment * p.weight_c];
      if (bias) scaling.term = bias[group * p.bias_g + own.segment * p.bias_c];
    }
    const index_t residual_at = image * p.y_n + group * p.y_g + own.segment * p.length;
    const scalar_t* const added = RESIDUAL ? residual + residual_at : nullptr;
    scalar_t* const to = z + image * p.z_n + group * p.z_g + own.segment * p.length;
    write_row(held, scaling, last, affine, weight != nullptr, bias != nullptr, added, to, own, p);
  }
}
