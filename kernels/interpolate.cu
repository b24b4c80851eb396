// Interpolation and its adjoint, by tables that the host makes, one for each axis:
// y[n, c, o] = sum over the entries e of output o in each table of weights[e] of all three * x[n, c, sources[e]]
//
// Source       the definition; nearest has one entry an output, linear two, its adjoint all outputs that read an input
// Reads        x [N, C, D, H, W], any strides; starts [OD + 1 + OH + 1 + OW + 1], sources and weights of all entries
// Writes       y [N, C, OD, OH, OW], each of them once
// Mapping      resample_rows: one block tile_h rows of y, of `chunk` channels one after the other. What they read of x,
//              already summed along D, is in shared memory where it fits, then their sums along H, from which they are
//              made
//              resample: one thread an output, in y's memory order, for channels last and rows that do not fit there
// Bytes        resample_rows: y once; x once and the few rows that two blocks share; the tables once for `chunk`
//              channels. resample: x once for each entry, from L1 and L2 but for the first; the tables stay in L1
// Determinism  each output is one thread's sum, along D within H within W as the NumPy backend does it, in the order of
//              entries; each product and sum is rounded, so a copy is exact and a linear blend has the same bits there
// Limits       2^31 - 1 entries
#include "common.cuh"
#include "params.cuh"
#include "packs.cuh"

constexpr int WIDE = 16 / sizeof(scalar_t);  // elements of one access

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

// Entries of the tables that a block needs, D's, H's and W's one after the other, in shared memory.
struct Tables {
  const real_t* weights;
  const int* sources;
  const int* begins;  // of each row's entries, and of each column's

  __device__ __forceinline__ real_t weight(int entry) const { return weights[skewed<real_t>(entry)]; }
  __device__ __forceinline__ int source(int entry) const { return sources[skewed<int>(entry)]; }
  __device__ __forceinline__ Entries entries(index_t i) const {
    return {begins[skewed<int>(i)], begins[skewed<int>(i + 1)]};
  }
};

// The weighted sum of values[skewed(sources * step + shift)] over entries.
__device__ __forceinline__ acc_t weighted(const acc_t* values, const Tables& tables, Entries range, index_t step,
                                          index_t shift) {
  acc_t sum = {};
  for (int e = range.first; e < range.last; ++e) {
    const acc_t term = values[skewed<acc_t>(tables.source(e) * step + shift)] * tables.weight(e);
    sum = e == range.first ? term : sum + term;
  }
  return sum;
}

// The weighted sum of an input's column along D, of which `count` entries are.
__device__ __forceinline__ acc_t depth_sum(const scalar_t* from, const Tables& tables, int count, index_t step) {
  acc_t run = {};
  for (int d = 0; d < count; ++d) {
    const acc_t term = widen(from[tables.source(d) * step]) * tables.weight(d);
    run = d == 0 ? term : run + term;
  }
  return run;
}

extern "C" __global__ void __launch_bounds__(256, 1)
resample_rows(const scalar_t* __restrict__ x,      // [N, C, D, H, W]
              scalar_t* __restrict__ y,            // [N, C, OD, OH, OW]
              const int* __restrict__ starts,      // [OD + 1 + OH + 1 + OW + 1]
              const int* __restrict__ sources,     // [entries]
              const real_t* __restrict__ weights,  // [entries]
              const int* __restrict__ bounds,      // [OH / tile_h, 2] first and last row of x that a tile reads
              const ResampleParams p) {
  extern __shared__ acc_t inputs[];   // [rows of x, W], skewed; then
  acc_t* sums = inputs + p.staged;    // [tile_h, W], skewed
  real_t* shared_weights = reinterpret_cast<real_t*>(sums + p.combined);
  int* shared_sources = reinterpret_cast<int*>(shared_weights + p.entries);
  int* begins = shared_sources + p.entries;
  const Tables tables = {shared_weights, shared_sources, begins};
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);

  index_t block = static_cast<index_t>(blockIdx.x);  // [0, N * chunks * OD * tiles)
  const index_t tiles = (p.oh + p.tile_h - 1) / p.tile_h, chunks = (p.c + p.chunk - 1) / p.chunk;
  const index_t tile = block % tiles;
  block /= tiles;
  const index_t od = block % p.od;
  block /= p.od;
  const index_t c0 = block % chunks * p.chunk, n = block / chunks;
  const index_t oh = tile * p.tile_h, rows = least(p.tile_h, p.oh - oh);
  const int first_row = bounds[2 * tile], row_count = bounds[2 * tile + 1] - first_row;

  const Entries ds = entries_of(starts, od);
  const Entries hs = {starts[p.starts_h + oh], starts[p.starts_h + oh + rows]};
  const Entries ws = {starts[p.starts_w], starts[p.starts_w + p.ow]};
  const int before_h = ds.last - ds.first, before_w = before_h + hs.last - hs.first;
  for (int i = thread; i < before_w + ws.last - ws.first; i += threads) {
    const int entry = i < before_h ? ds.first + i : i < before_w ? hs.first + i - before_h : ws.first + i - before_w;
    const int base = i >= before_h && i < before_w ? first_row : 0;
    shared_sources[skewed<int>(i)] = sources[entry] - base;
    shared_weights[skewed<real_t>(i)] = weights[entry];
  }
  for (int i = thread; i <= rows; i += threads) {
    begins[skewed<int>(i)] = starts[p.starts_h + oh + i] - hs.first + before_h;
  }
  for (int i = thread; i <= p.ow; i += threads) {
    begins[skewed<int>(p.tile_h + 1 + i)] = starts[p.starts_w + i] - ws.first + before_w;
  }

  for (index_t c = c0; c < least(c0 + p.chunk, p.c); ++c) {
    __syncthreads();
    const index_t plane = n * p.x_n + c * p.x_c, length = row_count * p.w;
    const Packed<WIDE> read(plane + first_row * p.x_h, length);
    if (p.staged && p.x_is_dense) {
#pragma unroll 2
      for (index_t k = read.first + thread * WIDE; k < read.end; k += threads * WIDE) {
        acc_t run[WIDE] = {};
        for (int d = 0; d < before_h; ++d) {
          const index_t offset = plane + first_row * p.x_h + tables.source(d) * p.x_d + k;
          const Pack<scalar_t, WIDE> pack = load_pack<WIDE>(x + offset);
#pragma unroll
          for (int j = 0; j < WIDE; ++j) {
            const acc_t term = widen(pack.at[j]) * tables.weight(d);
            run[j] = d == 0 ? term : run[j] + term;
          }
        }
#pragma unroll
        for (int j = 0; j < WIDE; ++j) inputs[skewed<acc_t>(k + j)] = run[j];
      }
    }
    const index_t rest = !p.staged ? 0 : p.x_is_dense ? read.singles : length;
    for (index_t i = thread; i < rest; i += threads) {
      const index_t k = p.x_is_dense ? read.single(i) : i;
      const scalar_t* from = x + plane + (first_row + k / p.w) * p.x_h + k % p.w * p.x_w;
      inputs[skewed<acc_t>(k)] = depth_sum(from, tables, before_h, p.x_d);
    }
    __syncthreads();
    for (index_t i = thread; i < rows * p.w; i += threads) {
      const index_t row = i / p.w, column = i - row * p.w;
      const Entries range = tables.entries(row);
      if (p.staged) {
        sums[skewed<acc_t>(i)] = weighted(inputs, tables, range, p.w, column);
        continue;
      }
      acc_t sum = {};
      for (int e = range.first; e < range.last; ++e) {
        const scalar_t* from = x + plane + (first_row + tables.source(e)) * p.x_h + column * p.x_w;
        const acc_t term = depth_sum(from, tables, before_h, p.x_d) * tables.weight(e);
        sum = e == range.first ? term : sum + term;
      }
      sums[skewed<acc_t>(i)] = sum;
    }
    __syncthreads();
    const index_t to = n * p.y_n + c * p.y_c + od * p.y_d + oh * p.y_h;
    const Packed<WIDE> written(to, rows * p.ow);
    for (index_t k = written.first + thread * WIDE; k < written.end; k += threads * WIDE) {
      index_t row = k / p.ow, ow = k - row * p.ow;
      Pack<scalar_t, WIDE> pack;
#pragma unroll
      for (int j = 0; j < WIDE; ++j) {
        pack.at[j] = narrow(weighted(sums, tables, tables.entries(p.tile_h + 1 + ow), 1, row * p.w));
        if (++ow == p.ow) ow = 0, ++row;
      }
      store_pack(y + to + k, pack);
    }
    for (index_t i = thread; i < written.singles; i += threads) {
      const index_t k = written.single(i), row = k / p.ow, ow = k - row * p.ow;
      y[to + k] = narrow(weighted(sums, tables, tables.entries(p.tile_h + 1 + ow), 1, row * p.w));
    }
  }
}
