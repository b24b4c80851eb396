// Interpolation and its adjoint, by tables that the host makes, one for each axis:
// y[n, c, o] = sum over the entries e of output o in each table of weights[e] of all three * x[n, c, sources[e]]
//
// Source       the definition; nearest has one entry an output, linear two, its adjoint all outputs that read an input
// Reads        x [N, C, D, H, W], any strides; starts [OD + 1 + OH + 1 + OW + 1], sources and weights of all entries
// Writes       y [N, C, OD, OH, OW], each of them once
// Mapping      one thread an output, in y's memory order: ow innermost, or c where channels are last
// Bytes        x is read once for each entry, from L1 and L2 but for the first; the tables stay in L1
// Determinism  each output is one thread's sum, along D within H within W as the NumPy backend does it, in the order of
//              entries; each product and sum is rounded, so a copy is exact and a linear blend has the same bits there
// Limits       2^31 - 1 entries
#include "common.cuh"
#include "params.cuh"

// The entries of output o in the table of an axis.
struct Entries {
  int first, last;
};

__device__ __forceinline__ Entries entries_of(const int* __restrict__ starts, index_t o) {
  return {starts[o], starts[o + 1]};
}

extern "C" __global__ void __launch_bounds__(256, 1)
resample(const scalar_t* __restrict__ x,      // [N, C, D, H, W]
         scalar_t* __restrict__ y,            // [N, C, OD, OH, OW]
         const int* __restrict__ starts,      // [OD + 1 + OH + 1 + OW + 1]
         const int* __restrict__ sources,     // [entries]
         const real_t* __restrict__ weights,  // [entries]
         const ResampleParams p) {
  const index_t i = thread_index();  // [0, N * C * OD * OH * OW)
  if (i >= p.n * p.c * p.od * p.oh * p.ow) return;
  const Position o = position(i, p.c, p.od, p.oh, p.ow, p.channels_last);
  const Entries ds = entries_of(starts, o.d);
  const Entries hs = entries_of(starts + p.starts_h, o.h);
  const Entries ws = entries_of(starts + p.starts_w, o.w);

  // Sums begin with their first term, since adding it to 0 would lose the sign of -0.
  x += o.n * p.x_n + o.c * p.x_c;
  acc_t sum = {};
  for (int w = ws.first; w < ws.last; ++w) {
    acc_t column = {};
    for (int h = hs.first; h < hs.last; ++h) {
      const index_t line = sources[h] * p.x_h + sources[w] * p.x_w;
      acc_t run = {};
      for (int d = ds.first; d < ds.last; ++d) {
        const acc_t term = widen(x[line + sources[d] * p.x_d]) * weights[d];
        run = d == ds.first ? term : run + term;
      }
      const acc_t term = run * weights[h];
      column = h == hs.first ? term : column + term;
    }
    const acc_t term = column * weights[w];
    sum = w == ws.first ? term : sum + term;
  }
  y[o.n * p.y_n + o.c * p.y_c + o.d * p.y_d + o.h * p.y_h + o.w * p.y_w] = narrow(sum);
}
