// Interpolation and its adjoint, by host-computed tables, one per axis:
// y[n, c, o] = sum over the entries e of output o in each table of weights[e] of all three * x[n, c, sources[e]]
//
// Source       the definition; nearest has one entry per output, linear two, cubic four, filters that are stretched
//              against aliasing more; the adjoint has all outputs that read an input
// Reads        x [N, C, D, H, W], any strides; starts [OD + 1 + OH + 1 + OW + 1], sources and weights of all entries
// Writes       y [N, C, OD, OH, OW], each of them once
// Mapping      resample_tiles: one block per tile_h rows by tile_w columns of y, of `inner` channels where they are
//              last or else one, looping over `chunk` times as many. It walks down the tile by band_h rows of y: it
//              stages the rows of x that these read and those before did not, span_h at once, already summed along
//              D, and adds their sums along W to a ring of rows, from which it sums the rows of y
//              resample: one thread per output, in y's memory order, where a tile of one output does not fit
// Bytes        resample_tiles: y once; x once plus the overlap of tiles; the tables once per chunk * inner channels.
//              resample: x once for each entry, from L1 and L2 but for the first; the tables stay in L1
//              Instructions are the limit, not these: an H100 issues those of DeepLabv3+'s decoder, 33 to 129 pixels
//              squared in float32, for 4.2 times as long, and with a cubic filter for 6.2 (benchmarks/memory_model.py)
// Gain         over resample, counted on layers (benchmarks/results/kernel-gains.md): saves 58 to 99 % of the
//              sectors, and of the memory instructions, to shared memory too, 75 % down to -17 %
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

// --- Tiles -----------------------------------------------------------------------------------------------------------

struct Tile {  // of y: its first element, and its rows and columns
  index_t n, c, od, oh, ow;
  index_t rows, columns;
};

__device__ __forceinline__ Tile tile_of_block(const ResampleParams& p) {
  index_t block = static_cast<index_t>(blockIdx.x);  // [0, N * chunks * OD * tiles along H * tiles along W)
  const index_t tiles_h = ceil_div(p.oh, p.tile_h), tiles_w = ceil_div(p.ow, p.tile_w);
  const index_t chunks = ceil_div(p.c, p.chunk * p.inner);
  Tile tile;
  tile.ow = block % tiles_w * p.tile_w;
  block /= tiles_w;
  tile.oh = block % tiles_h * p.tile_h;
  block /= tiles_h;
  tile.od = block % p.od;
  block /= p.od;
  tile.c = block % chunks * p.chunk * p.inner;
  tile.n = block / chunks;
  tile.rows = least(p.tile_h, p.oh - tile.oh);
  tile.columns = least(p.tile_w, p.ow - tile.ow);
  return tile;
}

// The entries of a tile in shared memory: those of its slice along D, then of its rows, then of its columns.
struct Tables {
  const int* sources;        // skewed; along H places in the ring, along W relative to the first column
  const real_t* weights;     // skewed
  const int* rows;           // [rows + 1]: the first entry of each row, and the end
  const int* columns;        // [columns + 1]: the same of columns
  const int* reach;          // [rows + 1]: the inputs, from the first on, that the rows before each read
  int depth;                 // entries along D
  index_t h;                 // the first row of x that the tile reads
  index_t w, w_end;          // and columns, from sector to sector
  index_t pitch;             // of a staged row
};

__device__ __forceinline__ Tables stage_tables(const int* __restrict__ starts, const int* __restrict__ sources,
                                               const real_t* __restrict__ weights, const ResampleParams& p,
                                               const Tile& tile, real_t* staged_weights) {
  __shared__ int bounds[6];  // [first, last) of the tile's entries of D, H and W
  __shared__ int inputs[3];  // its first row of x, and [first, last) of columns
  int* const places = reinterpret_cast<int*>(staged_weights + p.entries);
  int* const rows = places + p.entries;
  int* const reach = rows + p.tile_h + 1;
  int* const columns = reach + p.tile_h + 1;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  if (thread < 6) {
    const index_t first = thread < 2 ? tile.od : thread < 4 ? p.starts_h + tile.oh : p.starts_w + tile.ow;
    bounds[thread] = starts[first + (thread % 2 == 0 ? 0 : thread < 2 ? 1 : thread < 4 ? tile.rows : tile.columns)];
  }
  __syncthreads();
  if (thread < 3) {
    const int* const own = bounds + (thread == 0 ? 2 : 4);
    const int end = thread == 2;
    inputs[thread] = own[0] == own[1] ? 0 : sources[own[end] - end] + end;
  }
  __syncthreads();
  const bool whole = p.tile_w == p.ow;  // rows are read whole
  const index_t sector = p.inner == 1 ? Packed<WIDE>::BORDER : 1;
  const index_t w = whole ? 0 : inputs[1] / sector * sector;
  const index_t w_end = whole ? p.w : least(ceil_div(inputs[2], sector) * sector, p.w);
  const int depth = bounds[1] - bounds[0], before_w = depth + bounds[3] - bounds[2];
  for (int i = thread; i < before_w + bounds[5] - bounds[4]; i += threads) {
    const int entry = i < depth ? bounds[0] + i : i < before_w ? bounds[2] + i - depth : bounds[4] + i - before_w;
    const int source = sources[entry];
    places[skewed<int>(i)] = i < depth      ? source
                             : i < before_w ? (source - inputs[0]) % static_cast<int>(p.ring)
                                            : source - static_cast<int>(w);
    staged_weights[skewed<real_t>(i)] = weights[entry];
  }
  for (int i = thread; i <= tile.rows; i += threads) {
    const int entry = starts[p.starts_h + tile.oh + i];
    rows[i] = entry - bounds[2] + depth;
    reach[i] = entry == bounds[2] ? 0 : sources[entry - 1] + 1 - inputs[0];
  }
  for (int i = thread; i <= tile.columns; i += threads) {
    columns[i] = starts[p.starts_w + tile.ow + i] - bounds[4] + before_w;
  }
  return {places, staged_weights, rows, columns, reach, depth, inputs[0], w, w_end,
          p.lanes ? p.x_pitch : (w_end - w) * p.inner};
}

// The weighted sums of entries [first, last) for COUNT adjacent elements each: values[skewed(place + source * step)].
template <int COUNT>
__device__ __forceinline__ void weigh(acc_t* sums, const acc_t* values, index_t place, index_t step,
                                      const Tables& tables, int first, int last) {
  for (int e = first; e < last; ++e) {
    const index_t from = place + tables.sources[skewed<int>(e)] * step;
    const real_t weight = tables.weights[skewed<real_t>(e)];
#pragma unroll
    for (int j = 0; j < COUNT; ++j) {
      const acc_t term = weighted(values[skewed<acc_t>(from + j)], weight);
      sums[j] = e == first ? term : sums[j] + term;
    }
  }
}

// --- Runs in memory --------------------------------------------------------------------------------------------------

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
// within sectors. A warp takes packs of one row, or `by_two` of short ones: rows in shared memory may share banks.
template <typename OfPack, typename OfSingle>
__device__ __forceinline__ void for_each_pack(const Box& box, bool by_two, OfPack pack, OfSingle single) {
  if (box.count == 0) return;
  constexpr index_t BORDER = Packed<WIDE>::BORDER;
  const index_t thread = static_cast<index_t>(threadIdx.x), threads = static_cast<index_t>(blockDim.x);
  const bool by_position = box.length < box.run;  // each of which is whole sectors
  const bool whole = (box.first | box.row_step | box.column_step | box.length | box.run) % BORDER == 0;
  const index_t packs = (whole ? box.run : (box.run / BORDER + 1) * BORDER) / WIDE;  // that begin in one row, at most
  const index_t half = packs <= 16 && (whole || by_two) ? 16 : 32, lanes = (packs + half - 1) / half * half;
  const index_t items = box.count / box.run * lanes;
#pragma unroll 2
  for (index_t i = thread; i - thread % 32 < items; i += threads) {
    const index_t begin = i / lanes * box.run, within = i % lanes * WIDE;
    const index_t at = (by_position ? begin + within : begin) / box.length * box.length, offset = box.offset(at);
    const Packed<WIDE> packed(offset, box.length);
    const auto sector = [&](index_t k) {  // the first that begins at k or after it
      return packed.first + most(k - packed.first + BORDER - 1, 0) / BORDER * BORDER;
    };
    const index_t k = by_position ? begin + within - at : sector(begin - at) + within;
    const bool has = by_position ? within < box.run : k < least(packed.end, sector(begin - at + box.run));
    if (i < items && has) pack(offset + k, at + k);
    __syncwarp();
  }
  if (box.length % BORDER == 0 && (box.first | box.row_step | box.column_step) % BORDER == 0) return;
  constexpr index_t SINGLES = 2 * BORDER > 32 ? 2 * BORDER : 32;  // lanes of a run: whole warps
  for (index_t i = thread; i < box.count / box.length * SINGLES; i += threads) {
    const index_t at = i / SINGLES * box.length, offset = box.offset(at);
    const Packed<WIDE> packed(offset, box.length);
    if (i % SINGLES < packed.singles) {
      const index_t k = packed.single(i % SINGLES);
      single(offset + k, at + k);
    }
    __syncwarp();
  }
}

// --- The steps of a tile ---------------------------------------------------------------------------------------------

// The sums along D of COUNT adjacent elements of x from `offset` on.
template <int COUNT>
__device__ __forceinline__ void sum_along_d(acc_t* sums, const scalar_t* __restrict__ x, const ResampleParams& p,
                                            const Tables& tables, index_t offset) {
  for (int d = 0; d < tables.depth; ++d) {
    const Pack<scalar_t, COUNT> values = load_pack<COUNT>(x + offset + tables.sources[skewed<int>(d)] * p.x_d);
    const real_t weight = tables.weights[skewed<real_t>(d)];
#pragma unroll
    for (int j = 0; j < COUNT; ++j) {
      const acc_t term = weighted(widen(values.at[j]), weight);
      sums[j] = d == 0 ? term : sums[j] + term;
    }
  }
}

// Stage `rows` rows of x, from offset `from` on: inputs [rows, columns of x, inner], skewed.
__device__ __forceinline__ void stage_rows(const scalar_t* __restrict__ x, const ResampleParams& p,
                                           const Tables& tables, index_t from, index_t rows, acc_t* inputs) {
  const index_t columns = tables.w_end - tables.w, run = columns * p.inner;
  const auto single = [&](index_t offset, index_t at) {
    acc_t sum = {};
    sum_along_d<1>(&sum, x, p, tables, offset);
    inputs[skewed<acc_t>(at / run * tables.pitch + at % run)] = sum;
  };
  if (p.x_is_dense) {
    const auto pack = [&](index_t offset, index_t at) {
      acc_t sums[WIDE] = {};
      sum_along_d<WIDE>(sums, x, p, tables, offset);
      index_t row = at / run, k = at % run;
#pragma unroll
      for (int j = 0; j < WIDE; ++j) {
        inputs[skewed<acc_t>(row * tables.pitch + k)] = sums[j];
        if (++k == run) k = 0, ++row;
      }
    };
    for_each_pack(box_of(from, p.x_h, p.x_w, rows, columns, p.inner, p.x_joined), false, pack, single);
    return;
  }
  for (index_t at = static_cast<index_t>(threadIdx.x); at < rows * run; at += static_cast<index_t>(blockDim.x)) {
    const index_t k = at % run;
    single(from + at / run * p.x_h + k / p.inner * p.x_w + k % p.inner * p.x_c, at);
  }
}

// Sum staged rows along W: sums [ring, columns, inner] from row `first` on, row pitch `z_pitch`, skewed. Lanes run
// along a row or, where there are `lanes`, along rows and channels of one column: columns far apart would share banks.
__device__ __forceinline__ void sum_along_w(const acc_t* inputs, const ResampleParams& p, const Tables& tables,
                                            index_t columns, index_t first, index_t rows, acc_t* sums) {
  const index_t thread = static_cast<index_t>(threadIdx.x);
  const index_t half = p.w > p.ow ? 32 : 16;  // a warp has one row or two, for their inputs may share banks
  const index_t lanes = p.lanes ? p.lanes : (columns * p.inner + half - 1) / half * half;
  const index_t items = (p.lanes ? columns : rows) * lanes;
  for (index_t i = thread; i - thread % 32 < items; i += static_cast<index_t>(blockDim.x)) {
    const index_t outer = i / lanes, lane = i % lanes, c = lane % p.inner;
    const index_t row = p.lanes ? lane / p.inner : outer, column = p.lanes ? outer : lane / p.inner;
    if (i < items && row < rows && column < columns) {
      acc_t sum = {};
      const int* const entries = tables.columns + column;
      weigh<1>(&sum, inputs, row * tables.pitch + c, p.inner, tables, entries[0], entries[1]);
      sums[skewed<acc_t>((first % p.ring + row) * p.z_pitch + column * p.inner + c)] = sum;
    }
    __syncwarp();
  }
}

// Write rows [first, last) of the tile, from offset `to` on: their terms are among the sums along W.
__device__ __forceinline__ void write_rows(const acc_t* sums, const ResampleParams& p, const Tables& tables,
                                           index_t columns, index_t first, index_t last, index_t to,
                                           scalar_t* __restrict__ y) {
  const index_t run = columns * p.inner;
  const auto element = [&](index_t at) {
    acc_t sum = {};
    const index_t row = first + at / run;
    weigh<1>(&sum, sums, at % run, p.z_pitch, tables, tables.rows[row], tables.rows[row + 1]);
    return narrow(sum);
  };
  const auto pack = [&](index_t offset, index_t at) {
    const index_t row = first + at / run, k = at % run;
    Pack<scalar_t, WIDE> values;
    if (k + WIDE <= run) {
      acc_t results[WIDE] = {};
      weigh<WIDE>(results, sums, k, p.z_pitch, tables, tables.rows[row], tables.rows[row + 1]);
#pragma unroll
      for (int j = 0; j < WIDE; ++j) values.at[j] = narrow(results[j]);
    } else {
#pragma unroll
      for (int j = 0; j < WIDE; ++j) values.at[j] = element(at + j);
    }
    store_pack(y + offset, values);
  };
  const auto single = [&](index_t offset, index_t at) { y[offset] = element(at); };
  for_each_pack(box_of(to, p.y_h, p.y_w, last - first, columns, p.inner, p.y_joined), WIDE <= 4, pack, single);
}

extern "C" __global__ void __launch_bounds__(256, 1)
resample_tiles(const scalar_t* __restrict__ x,      // [N, C, D, H, W]
               scalar_t* __restrict__ y,            // [N, C, OD, OH, OW]
               const int* __restrict__ starts,      // [OD + 1 + OH + 1 + OW + 1]
               const int* __restrict__ sources,     // [entries]
               const real_t* __restrict__ weights,  // [entries]
               const ResampleParams p) {
  extern __shared__ acc_t inputs[];     // [span_h, columns of x, inner]; then
  acc_t* const sums = inputs + p.staged;  // [ring, tile_w, inner]
  const Tile tile = tile_of_block(p);
  real_t* const staged_weights = reinterpret_cast<real_t*>(sums + p.blended);
  const Tables tables = stage_tables(starts, sources, weights, p, tile, staged_weights);

  const index_t c_end = least(tile.c + p.chunk * p.inner, p.c);
  for (index_t c = tile.c; c < c_end; c += p.inner) {
    const index_t from = tile.n * p.x_n + c * p.x_c + tables.h * p.x_h + tables.w * p.x_w;
    const index_t to = tile.n * p.y_n + c * p.y_c + tile.od * p.y_d + tile.oh * p.y_h + tile.ow * p.y_w;
    index_t row = 0;  // of those that the tile reads, the first that is not staged yet
    for (index_t first = 0; first < tile.rows; first += p.band_h) {
      const index_t last = least(first + p.band_h, tile.rows);
      __syncthreads();
      for (const index_t end = tables.reach[last]; row < end;) {
        const index_t rows = least(least(p.span_h, end - row), p.ring - row % p.ring);
        stage_rows(x, p, tables, from + row * p.x_h, rows, inputs);
        __syncthreads();
        sum_along_w(inputs, p, tables, tile.columns, row, rows, sums);
        __syncthreads();
        row += rows;
      }
      write_rows(sums, p, tables, tile.columns, first, last, to + first * p.y_h, y);
    }
  }
}
