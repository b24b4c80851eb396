// Interpolation and its adjoint, by host-computed tables, one per axis:
// y[n, c, o] = sum over the entries e of output o in each table of weights[e] of all three * x[n, c, sources[e]]
//
// Source       the definition; nearest has one entry per output, linear two, its adjoint all outputs that read an input
// Reads        x [N, C, D, H, W], any strides; starts [OD + 1 + OH + 1 + OW + 1], sources and weights of all entries
// Writes       y [N, C, OD, OH, OW], each of them once
// Mapping      resample_tiles: one block per tile_h rows by tile_w columns of y, of `inner` channels where they are
//              last or else one, looping over `chunk` times as many. It stages span_h rows of x per step,
//              already summed along D; then their sums along W, and from these their terms of rows of y. Where lanes
//              along W would have bank conflicts, they run along rows and channels there
//              resample: one thread per output, in y's memory order, where a tile of one output does not fit
// Bytes        resample_tiles: y once; x once plus the overlap of tiles; the tables once per chunk * inner channels.
//              resample: x once for each entry, from L1 and L2 but for the first; the tables stay in L1
// Determinism  each output is one thread's sum, along D within W within H, in the ascending order of inputs; each
//              product and sum is rounded, so a copy is exact and all memory orders give the same bits
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

// A sample of weight 0 adds 0, even if it is NaN or infinite.
__device__ __forceinline__ acc_t weighted(acc_t value, real_t weight) {
  return weight == 0 ? acc_t{} : value * weight;
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
  for (int h = hs.first; h < hs.last; ++h) {
    acc_t row = {};
    for (int w = ws.first; w < ws.last; ++w) {
      const index_t line = sources[h] * p.x_h + sources[w] * p.x_w;
      acc_t run = {};
      for (int d = ds.first; d < ds.last; ++d) {
        const acc_t term = weighted(widen(x[line + sources[d] * p.x_d]), weights[d]);
        run = d == ds.first ? term : run + term;
      }
      const acc_t term = weighted(run, weights[w]);
      row = w == ws.first ? term : row + term;
    }
    const acc_t term = weighted(row, weights[h]);
    sum = h == hs.first ? term : sum + term;
  }
  y[o.n * p.y_n + o.c * p.y_c + o.d * p.y_d + o.h * p.y_h + o.w * p.y_w] = narrow(sum);
}

// Accumulate the sums of COUNT adjacent elements, from values[skewed(place + places[e] * step)] on for each entry e of
// [begin, last); entry `first` is the first of all.
template <int COUNT>
__device__ __forceinline__ void weigh(acc_t* sums, const acc_t* values, index_t place, index_t step, const int* places,
                                      const real_t* table, int first, int begin, int last) {
  for (int e = begin; e < last; ++e) {
    const index_t from = place + places[skewed<int>(e)] * step;
    const real_t weight = table[skewed<real_t>(e)];
#pragma unroll
    for (int j = 0; j < COUNT; ++j) {
      const acc_t term = weighted(values[skewed<acc_t>(from + j)], weight);
      sums[j] = e == first ? term : sums[j] + term;
    }
  }
}

constexpr index_t ONE_ROW = 1, ALL_ROWS = 2;  // contiguous in memory; else the elements of a position

// Elements [rows, columns, inner] of an array, `run` to a row; runs of `length` are contiguous in memory: those of a
// position, of a row or all.
struct Box {
  index_t first, row_step, column_step;
  index_t run, inner, length, count;

  // Offset of the run that begins with element `at`, a multiple of `length`.
  __device__ __forceinline__ index_t offset(index_t at) const {
    return first + at / run * row_step + at % run / inner * column_step;
  }
};

__device__ __forceinline__ Box box_of(index_t first, index_t row_step, index_t column_step, index_t rows,
                                      index_t columns, index_t inner, index_t joined) {
  const index_t run = columns * inner, count = rows * run;
  if (joined == ALL_ROWS) return {first, 0, 0, run, inner, count, count};
  if (joined == ONE_ROW) return {first, row_step, 0, run, inner, run, count};
  return {first, row_step, column_step, run, inner, inner, count};
}

// pack(offset, at) for packs of elements at, …, at + WIDE - 1 at `offset`, and single(offset, at) for ends of runs
// within sectors. IN_STEP, a warp's lanes synchronise at each step, for the planned bank access pattern.
template <bool IN_STEP, typename OfPack, typename OfSingle>
__device__ __forceinline__ void for_each_pack(const Box& box, OfPack pack, OfSingle single) {
  if (box.count == 0) return;
  constexpr index_t BORDER = Packed<WIDE>::BORDER;
  const index_t thread = static_cast<index_t>(threadIdx.x), threads = static_cast<index_t>(blockDim.x);
  const index_t runs = box.count / box.length, packs = box.length / WIDE;  // of a run, at most
  const bool whole = (box.first | box.row_step | box.column_step | box.length) % BORDER == 0;  // sectors
  const index_t half = packs > 16 ? 32 : 16;  // a warp covers one long run, or two short ones, against bank conflicts
  const index_t lanes = runs == 1 || (whole && packs < 32) ? packs : (packs + half - 1) / half * half;
#pragma unroll 2
  for (index_t i = thread; i - thread % 32 < runs * lanes; i += threads) {
    const index_t at = i / lanes * box.length, offset = box.offset(at);
    const Packed<WIDE> packed(offset, box.length);
    const index_t k = packed.first + i % lanes * WIDE;
    if (i < runs * lanes && k < packed.end) pack(offset + k, at + k);
    if (IN_STEP) __syncwarp();
  }
  if (whole) return;
  constexpr index_t SINGLES = 2 * BORDER > 32 ? 2 * BORDER : 32;  // lanes of a run: whole warps
  for (index_t i = thread; i < runs * SINGLES; i += threads) {
    const index_t at = i / SINGLES * box.length, offset = box.offset(at);
    const Packed<WIDE> packed(offset, box.length);
    if (i % SINGLES < packed.singles) {
      const index_t k = packed.single(i % SINGLES);
      single(offset + k, at + k);
    }
    if (IN_STEP) __syncwarp();
  }
}

extern "C" __global__ void __launch_bounds__(256, 1)
resample_tiles(const scalar_t* __restrict__ x,      // [N, C, D, H, W]
               scalar_t* __restrict__ y,            // [N, C, OD, OH, OW]
               const int* __restrict__ starts,      // [OD + 1 + OH + 1 + OW + 1]
               const int* __restrict__ sources,     // [entries]
               const real_t* __restrict__ weights,  // [entries]
               const ResampleParams p) {
  extern __shared__ acc_t inputs[];    // [span_h, columns of x, inner], row pitch `x_pitch`, skewed; then
  acc_t* blended = inputs + p.staged;  // [span_h, tile_w, inner]: sums along W, pitch `z_pitch`, skewed
  acc_t* kept = blended + p.blended;   // [tile_h, tile_w, inner]: running sums, skewed; or none
  real_t* table = reinterpret_cast<real_t*>(kept + p.kept);      // weights of the entries of D, H and W
  int* places = reinterpret_cast<int*>(table + p.entries);       // and their sources
  int* begins = places + p.entries;                              // [tile_h + 1 + tile_w + 1] of rows and columns
  int* cursors = begins + p.tile_h + p.tile_w + 2;               // [2, tile_h] entries that read the staged rows
  const index_t thread = static_cast<index_t>(threadIdx.x), threads = static_cast<index_t>(blockDim.x);

  index_t block = static_cast<index_t>(blockIdx.x);  // [0, N * chunks * OD * tiles along H * tiles along W)
  const index_t tiles_h = ceil_div(p.oh, p.tile_h), tiles_w = ceil_div(p.ow, p.tile_w);
  const index_t ow = block % tiles_w * p.tile_w, columns = least(p.tile_w, p.ow - ow);
  block /= tiles_w;
  const index_t oh = block % tiles_h * p.tile_h, rows = least(p.tile_h, p.oh - oh);
  block /= tiles_h;
  const index_t od = block % p.od;
  block /= p.od;
  const index_t chunks = ceil_div(p.c, p.chunk * p.inner);
  const index_t c_first = block % chunks * p.chunk * p.inner, n = block / chunks;

  __shared__ int bounds[10];  // the block's entries of D, H and W, and the first and last inputs of H and W
  if (thread < 6) {
    const index_t first = thread < 2 ? od : thread < 4 ? p.starts_h + oh : p.starts_w + ow;
    bounds[thread] = starts[first + (thread % 2 == 0 ? 0 : thread < 2 ? 1 : thread < 4 ? rows : columns)];
  }
  __syncthreads();
  if (thread < 4) {
    const int* const own = bounds + 2 + thread / 2 * 2;
    bounds[6 + thread] = own[0] == own[1] ? -(static_cast<int>(thread) % 2) : sources[own[thread % 2] - thread % 2];
  }
  __syncthreads();
  const Entries ds = {bounds[0], bounds[1]}, hs = {bounds[2], bounds[3]}, ws = {bounds[4], bounds[5]};
  const index_t row_first = bounds[6], row_last = bounds[7] + 1;
  const bool whole = p.tile_w == p.ow;  // rows are read whole
  const index_t sector = p.inner == 1 ? Packed<WIDE>::BORDER : 1;
  const index_t x_first = whole ? 0 : bounds[8] / sector * sector;
  const index_t x_last = whole ? p.w : least(ceil_div(bounds[9] + 1, sector) * sector, p.w);
  const int depth = ds.last - ds.first, before_w = depth + hs.last - hs.first;
  for (index_t i = thread; i < before_w + ws.last - ws.first; i += threads) {
    const index_t entry = i < depth ? ds.first + i : i < before_w ? hs.first + i - depth : ws.first + i - before_w;
    places[skewed<int>(i)] = sources[entry] - (i < before_w ? 0 : static_cast<int>(x_first));
    table[skewed<real_t>(i)] = weights[entry];
  }
  for (index_t i = thread; i <= rows; i += threads) begins[i] = starts[p.starts_h + oh + i] - hs.first + depth;
  int* const begins_w = begins + p.tile_h + 1;
  for (index_t i = thread; i <= columns; i += threads) {
    begins_w[i] = starts[p.starts_w + ow + i] - ws.first + before_w;
  }

  const index_t run = columns * p.inner, x_run = (x_last - x_first) * p.inner;
  for (index_t c = c_first; c < least(c_first + p.chunk * p.inner, p.c); c += p.inner) {
    index_t row = row_first;  // of x, the first staged
    do {
      const index_t end = least(row + p.span_h, row_last);
      __syncthreads();
      for (index_t i = thread / 32; i < rows && thread % 32 == 0; i += threads / 32) {  // one lane, for the banks
        int low = row == row_first ? begins[i] : cursors[p.tile_h + i], high = begins[i + 1];
        cursors[i] = low;
        while (low < high) {
          const int middle = (low + high) / 2;
          if (places[skewed<int>(middle)] < end) low = middle + 1; else high = middle;
        }
        cursors[p.tile_h + i] = low;
      }

      const index_t from = n * p.x_n + c * p.x_c + row * p.x_h + x_first * p.x_w;
      const auto single = [&](index_t offset, index_t at) {
        acc_t sum = {};
        for (int d = 0; d < depth; ++d) {
          const acc_t term = widen(x[offset + places[skewed<int>(d)] * p.x_d]) * table[skewed<real_t>(d)];
          sum = d == 0 ? term : sum + term;
        }
        inputs[skewed<acc_t>(at / x_run * p.x_pitch + at % x_run)] = sum;
      };
      if (p.x_is_dense) {
        const auto pack = [&](index_t offset, index_t at) {
          acc_t sums[WIDE] = {};
          for (int d = 0; d < depth; ++d) {
            const Pack<scalar_t, WIDE> values = load_pack<WIDE>(x + offset + places[skewed<int>(d)] * p.x_d);
#pragma unroll
            for (int j = 0; j < WIDE; ++j) {
              const acc_t term = widen(values.at[j]) * table[skewed<real_t>(d)];
              sums[j] = d == 0 ? term : sums[j] + term;
            }
          }
          index_t r = at / x_run, k = at % x_run;
#pragma unroll
          for (int j = 0; j < WIDE; ++j) {
            inputs[skewed<acc_t>(r * p.x_pitch + k)] = sums[j];
            if (++k == x_run) k = 0, ++r;
          }
        };
        const Box box = box_of(from, p.x_h, p.x_w, end - row, x_last - x_first, p.inner, p.x_joined);
        for_each_pack<false>(box, pack, single);
      } else {
        for (index_t at = thread; at < (end - row) * x_run; at += threads) {
          const index_t k = at % x_run;
          single(from + at / x_run * p.x_h + k / p.inner * p.x_w + k % p.inner * p.x_c, at);
        }
      }
      __syncthreads();

      const index_t lanes = p.lanes ? p.lanes : run, items = (p.lanes ? columns : end - row) * lanes;
      for (index_t i = thread; i - thread % 32 < items; i += threads) {
        const index_t outer = i / lanes, lane = i % lanes, c = lane % p.inner;
        const index_t r = p.lanes ? lane / p.inner : outer, column = p.lanes ? outer : lane / p.inner;
        if (i < items && r < end - row) {
          acc_t sum = {};
          weigh<1>(&sum, inputs, r * p.x_pitch + c, p.inner, places, table, begins_w[column], begins_w[column],
                   begins_w[column + 1]);
          blended[skewed<acc_t>(r * p.z_pitch + column * p.inner + c)] = sum;
        }
        __syncwarp();
      }
      __syncthreads();

      if (p.kept) {
        const index_t along = run > 30 ? run : run > 16 ? 32 : 16;  // lanes of a row: a warp has two rows at most
        for (index_t i = thread; i < rows * along; i += threads) {
          const index_t r = i / along, k = i % along;
          if (k >= run) continue;
          acc_t* const to = &kept[skewed<acc_t>(r * run + k)];
          acc_t sum = cursors[r] > begins[r] ? *to : acc_t{};
          weigh<1>(&sum, blended, k - row * p.z_pitch, p.z_pitch, places, table, begins[r], cursors[r],
                   cursors[p.tile_h + r]);
          *to = sum;
        }
        row = end;
        if (end < row_last) continue;
        __syncthreads();
      }
      const auto sum_of = [&](index_t at) {  // of one element, without running sums
        acc_t sum = {};
        const index_t r = at / run;
        weigh<1>(&sum, blended, at % run - row * p.z_pitch, p.z_pitch, places, table, begins[r], begins[r],
                 begins[r + 1]);
        return sum;
      };
      const index_t to = n * p.y_n + c * p.y_c + od * p.y_d + oh * p.y_h + ow * p.y_w;
      for_each_pack<true>(
          box_of(to, p.y_h, p.y_w, rows, columns, p.inner, p.y_joined),
          [&](index_t offset, index_t at) {
            acc_t sums[WIDE] = {};
            const index_t r = at / run, k = at % run;
            if (!p.kept && k + WIDE <= run) {
              weigh<WIDE>(sums, blended, k - row * p.z_pitch, p.z_pitch, places, table, begins[r], begins[r],
                          begins[r + 1]);
            } else {
#pragma unroll
              for (int j = 0; j < WIDE; ++j) sums[j] = p.kept ? kept[skewed<acc_t>(at + j)] : sum_of(at + j);
            }
            Pack<scalar_t, WIDE> values;
#pragma unroll
            for (int j = 0; j < WIDE; ++j) values.at[j] = narrow(sums[j]);
            store_pack(y + offset, values);
          },
          [&](index_t offset, index_t at) {
            y[offset] = narrow(p.kept ? kept[skewed<acc_t>(at)] : sum_of(at));
          });
      row = end;
    } while (row < row_last);
  }
}
