// All gradients of a norm over rows, fused: z = rstd * (g - mean(g) - h * mean(g * h)), which is grad_x, with
// g = grad_y * weight, h = (x - mean) * rstd and means over a row; and parts of the sums over rows of grad_y and
// grad_y * h, which are grad_bias and grad_weight. Without a mean, as in RMS norm, there is no mean(g)
//
// Source       the closed form: the contributions of g through mean and variance are subtracted
// Reads        grad_y, x [N, G, C, P], each row [C, P] contiguous; mean, rstd [N, G, 1, 1]; weight [1, G, C, 1] or null
// Writes       z [N, G, C, P] unless it is null; parts unless they are null, for norm_backward_sums_combine
// Mapping      as norm_rows. In layer norm there is one part per block, the sums over its rows; else one per image
// Bytes        grad_y, x and z once, since a row stays in registers; parts once; weight as in norm_rows
// Determinism  fixed pairing within a row; a block's rows in order
// Limits       rows of 16 * 256 values, else as norm_rows
#include "common.cuh"
#include "params.cuh"
#include "norms.cuh"
#include "norm_rows.cuh"

constexpr int HELD = 16 / PACK;  // packs of a thread, of each array

// A row's elements that a thread holds, and its statistics.
struct Row {
  Pack<scalar_t, PACK> grads[HELD], values[HELD];
  acc_t centre, scale;
  acc_t factor;  // the weight of the thread's segment, where it does not vary along a row
  index_t last;  // of the segment's elements; 0 for threads without a row
};

// The first of the segment's elements in the thread's h-th pack.
__device__ __forceinline__ index_t element_of(int h, const RowThread& own) { return (h * own.lanes + own.lane) * PACK; }

// Add g and g * h of the thread's elements to `sums`, without weights that are those of segments; where weights vary
// along a row, add grad_y and grad_y * h to its columns.
__device__ __forceinline__ void add_elements(Sum (&sums)[2], acc_t (&column_g)[HELD][PACK],
                                             acc_t (&column_gh)[HELD][PACK], const Row& row, const acc_t* weights,
                                             const RowThread& own, const NormRowParams& p) {
#pragma unroll
  for (int h = 0; h < HELD; ++h) {
    const index_t i = element_of(h, own);
    if (i >= row.last) continue;
    acc_t by[PACK], terms[PACK], products[PACK];
    if (p.along) load_values(weights + i, by);
#pragma unroll
    for (int e = 0; e < PACK; ++e) {
      const acc_t grad = widen(row.grads[h].at[e]), value = (widen(row.values[h].at[e]) - row.centre) * row.scale;
      if (p.along) {
        column_g[h][e] = column_g[h][e] + grad;
        column_gh[h][e] = column_gh[h][e] + grad * value;
      }
      terms[e] = p.along ? grad * by[e] : grad;
      products[e] = terms[e] * value;
    }
    sums[0] = sums[0] + paired(terms);
    sums[1] = sums[1] + paired(products);
  }
}

// Write the closed form for the thread's elements.
__device__ __forceinline__ void write_gradient(Row& row, acc_t mean_g, acc_t mean_gh, const acc_t* weights,
                                               scalar_t* __restrict__ to, const RowThread& own,
                                               const NormRowParams& p) {
#pragma unroll
  for (int h = 0; h < HELD; ++h) {
    const index_t i = element_of(h, own);
    if (i >= row.last) continue;
    acc_t by[PACK];
    if (p.along) load_values(weights + i, by);
#pragma unroll
    for (int e = 0; e < PACK; ++e) {
      const acc_t value = (widen(row.values[h].at[e]) - row.centre) * row.scale;
      const acc_t g = widen(row.grads[h].at[e]) * (p.along ? by[e] : row.factor);
      row.values[h].at[e] = narrow((g - mean_g - value * mean_gh) * row.scale);
    }
    store_pack(to + i, row.values[h]);
  }
}

// The sums of columns over a block's parallel rows, in their order.
__device__ __forceinline__ void add_columns(acc_t* block_g, acc_t* block_gh, acc_t (&column_g)[HELD][PACK],
                                            acc_t (&column_gh)[HELD][PACK], const RowThread& own,
                                            const NormRowParams& p) {
  for (int local = 0; local < p.at_once; ++local) {
#pragma unroll
    for (int h = 0; h < HELD; ++h) {
      const index_t i = element_of(h, own);
      if (!own.works || own.local != local || i >= p.length) continue;
      if (local > 0) {
        acc_t before_g[PACK], before_gh[PACK];
        load_values(block_g + i, before_g);
        load_values(block_gh + i, before_gh);
#pragma unroll
        for (int e = 0; e < PACK; ++e) {
          column_g[h][e] = before_g[e] + column_g[h][e];
          column_gh[h][e] = before_gh[e] + column_gh[h][e];
        }
      }
      store_values(block_g + i, column_g[h]);
      store_values(block_gh + i, column_gh[h]);
    }
    __syncthreads();
  }
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)
norm_rows_backward(const scalar_t* __restrict__ grad_y,  // [N, G, C, P]
                   const scalar_t* __restrict__ x,       // [N, G, C, P]
                   const acc_t* __restrict__ mean,       // [N, G, 1, 1]
                   const acc_t* __restrict__ rstd,       // as mean
                   const acc_t* __restrict__ weight,     // [1, G, C, 1] or null
                   scalar_t* __restrict__ z,             // [N, G, C, P], or null
                   acc_t* __restrict__ parts_g,          // [blocks or N, G, C], or null
                   acc_t* __restrict__ parts_gh,         // as parts_g
                   const NormRowParams p) {
  extern __shared__ acc_t affine[];  // [3, length] where weights vary along a row: weight, and the block's sums
  __shared__ Sum scratch[2 * LEADERS];
  __shared__ acc_t factors[LEADERS];
  const RowThread own = row_thread(p);
  if (p.along) {
    for (index_t i = threadIdx.x; i < p.length; i += blockDim.x) affine[i] = weight ? weight[i * p.weight_c] : 1;
    __syncthreads();
  }

  const acc_t n = static_cast<acc_t>(p.segments * p.length);
  acc_t column_g[HELD][PACK] = {}, column_gh[HELD][PACK] = {};  // where G and P are 1: of grad_y and grad_y * h
  for (index_t turn = 0; turn < p.turns; ++turn) {
    const index_t row = (static_cast<index_t>(blockIdx.x) * p.turns + turn) * p.at_once + own.local;
    const bool works = own.works && row < p.rows;
    const index_t image = row / p.g, group = row % p.g;

    const scalar_t* const from_grad = grad_y + image * p.y_n + group * p.y_g + own.segment * p.length;
    const scalar_t* const from = x + image * p.x_n + group * p.x_g + own.segment * p.length;
    Row held;
    held.last = works ? p.length : 0;
#pragma unroll
    for (int h = 0; h < HELD; ++h) {
      const index_t i = element_of(h, own);
      if (i >= held.last) continue;
      held.grads[h] = load_pack<PACK>(from_grad + i);
      held.values[h] = load_pack<PACK>(from + i);
    }
    held.centre = works ? mean[image * p.mean_n + group * p.mean_g] : 0;
    held.scale = works ? rstd[image * p.rstd_n + group * p.rstd_g] : 0;
    held.factor = 1;
    if (works && weight && !p.along) held.factor = weight[group * p.weight_g + own.segment * p.weight_c];

    Sum sums[2] = {}, by_segment[2] = {};  // of g and g * h, including weights that vary along a row
    add_elements(sums, column_g, column_gh, held, affine, own, p);
    add_row(sums, held.factor, scratch, factors, own, p, by_segment);

    if (!works) continue;
    if (parts_g && !p.along && own.lane == 0) {
      const index_t to = row * p.segments + own.segment;
      parts_g[to] = rounded(by_segment[0]);
      parts_gh[to] = rounded(by_segment[1]);
    }
    if (!z) continue;
    scalar_t* const to = z + image * p.z_n + group * p.z_g + own.segment * p.length;
    write_gradient(held, p.centred ? rounded(sums[0]) / n : 0, rounded(sums[1]) / n, affine, to, own, p);
  }

  if (!p.along || !parts_g) return;
  acc_t* const block_g = affine + p.length;
  acc_t* const block_gh = block_g + p.length;
  add_columns(block_g, block_gh, column_g, column_gh, own, p);
  const index_t block = static_cast<index_t>(blockIdx.x);
  for (index_t i = threadIdx.x; i < p.length; i += blockDim.x) {
    parts_g[block * p.length + i] = block_g[i];
    parts_gh[block * p.length + i] = block_gh[i];
  }
}
