// Convolution wgrad as an implicit GEMM, on tensor cores or by FFMA, split-K, the first of two kernels:
// parts [splits, G * rows, KD * KH * KW * C] = grad_y [rows, positions] times the columns [positions, taps * C] of x,
// which are in the order [blocks of channels, taps, channels of a block]
//
// Source       the derivative of implicit_gemm.cu
// Reads        x [N, G, C, D, H, W] with its C channels contiguous, each run of 16 bytes aligned; zeros fill it up
//              grad_y [N, G, rows, OD, OH, OW], likewise
// Writes       parts of float, which sum_splits adds
// Mapping      a block of WARPS_M * WARPS_N warps per split and tile of rows by 64 * WARPS_N columns; a warp sums
//              16 * FRAGMENTS rows by 64 columns. Positions go in steps of 64 bytes; the copies of STAGES - 1 steps are
//              under way while one is multiplied
// Bytes        grad_y once per tile of columns, from L2 but for the first; x once per tap and tile of rows, from L1
//              what other taps of the tile have read; parts once
// Determinism  each sum is in the order of positions, as the hardware adds within a fragment
// Limits       16-bit floats, or floats in TERMS; without SM_80 half_t, or floats by FFMA
#include "common.cuh"
#include "params.cuh"
#include "windows.cuh"
#include "gemm.cuh"

struct ImplicitGemmWeightParams {
  RUN_TIME index_t n;
  index_t groups, rows;                         // rows of a group: its channels of y,
  index_t block;                                // each so many, from whose last on they are written
  index_t row_chunks, chunks;                   // of 16 bytes, of a group's channels of y and of x,
  index_t chunks_at_once;                       // and of a block of x's
  index_t d, h, w;                              // of x
  index_t od, oh, ow;                           // of y
  index_t kd, kh, kw;                           // kernel
  index_t stride_d, stride_h, stride_w;
  index_t dilation_d, dilation_h, dilation_w;
  index_t low_d, low_h, low_w;                  // padding before the first input
  index_t tiles_m, tiles_n;                     // blocks of a group's rows, and of its columns
  RUN_TIME index_t splits, run;                 // parts of the sum, and positions of one part
  index_t x_n, x_g, x_d, x_h, x_w;
  index_t y_n, y_g, y_d, y_h, y_w;
};

constexpr int WARPS = WARPS_M * WARPS_N;
constexpr int POSITIONS = 64 / sizeof(scalar_t);  // of one step: two fragments of 32 bytes
constexpr int CHUNKS_M = TILE_M / CHUNK, CHUNKS_N = TILE_N / CHUNK;
constexpr int Y_BYTES = POSITIONS * CHUNKS_M * 16, STAGE_BYTES = Y_BYTES + POSITIONS * CHUNKS_N * 16;
constexpr bool IS_FLOAT = sizeof(scalar_t) == 4;  // which ldmatrix does not transpose
constexpr int TURN = IS_FLOAT ? 2 : 1;
static_assert(WARPS_M == 1 || FRAGMENTS * 16 * sizeof(scalar_t) % 128 == 0, "warps begin at whole turns of chunks");

// A lane's part in a step's product: a step of 16-bit values on tensor cores, of floats on tensor cores, or by FFMA.
template <bool IS_FLOAT, bool BY_FFMA>
struct Multiplier;

// How a lane reads fragments of 16-bit values from [POSITIONS, N chunks] of shared memory: in bytes, where those of
// four pairs of chunks begin; further pairs repeat these every 128 bytes. Of A the second register is of the next 8
// rows, and the next two of later positions; of B it is the other way round.
template <int N, bool IS_A>
struct Reader {
  unsigned at[4];

  // Of columns from `first` on, which lies whole turns of 128 bytes from the first column.
  __device__ __forceinline__ explicit Reader(int first) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int position = lane % 8 + (IS_A ? lane / 16 : lane / 8 % 2) * 8, chunk = IS_A ? lane / 8 % 2 : lane / 16;
#pragma unroll
    for (int pair = 0; pair < (N < 8 ? N / 2 : 4); ++pair) {
      at[pair] = chunk_at<N, TURN>(position, pair * 2 + chunk) * 16 + first * sizeof(scalar_t);
    }
  }

  // 16 columns, counted from `first`, at that half of the positions.
  __device__ __forceinline__ void load(unsigned (&to)[4], unsigned tile, int half, int column) const {
    const int pair = column / 16;
    load_fragments_transposed(to, tile + at[pair % 4] + half * (16 * N * 16) + pair / 4 * 128);
  }
};

template <>
struct Multiplier<false, false> {
  static constexpr int HELD_B = 1;
  const Reader<CHUNKS_M, true> a_reader;
  const Reader<CHUNKS_N, false> b_reader;

  __device__ __forceinline__ Multiplier(int m, int n) : a_reader(m), b_reader(n) {}

  __device__ __forceinline__ void add_step(Sums& sums, unsigned of_y, unsigned of_x) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      FragmentsA a;
      FragmentsB b;
#pragma unroll
      for (int f = 0; f < FRAGMENTS; ++f) a_reader.load(a[f], of_y, half, f * 16);
#pragma unroll
      for (int g = 0; g < 4; ++g) b_reader.load(b[g], of_x, half, g * 16);
      add_fragments(sums, a, b);
    }
  }

  // The row of sums i of fragment f, and the first of four columns that are written from group g on.
  static __device__ __forceinline__ int row(int lane, int f, int i) { return f * 16 + i / 2 * 8 + lane / 4; }
  static __device__ __forceinline__ int column(int lane, int g) { return g * 8 + lane % 4 / 2 * 4; }
};

// How a lane reads floats from [POSITIONS, N chunks]: rows and columns of a product may come in any order, so that
// adjacent ones can belong to different fragments or groups. In bytes, where the lane's first of all columns is, by how
// its row is turned; one 16 further lies where the other turn has it.
template <int N>
struct FloatReader {
  unsigned at[4];

  __device__ __forceinline__ FloatReader(int first, int position, int column) {
#pragma unroll
    for (int turn = 0; turn < (N < 8 ? N / 2 : 4); ++turn) {
      const int chunk = chunk_at<N, TURN>(position, column / CHUNK ^ turn * 2);
      at[turn] = chunk * 16 + (first + column % CHUNK) * sizeof(float);
    }
  }

  // The same within a tile, added once, so that the addresses of a step's loads differ by constants alone.
  __device__ __forceinline__ FloatReader of(unsigned tile) const {
    FloatReader moved = *this;
#pragma unroll
    for (int turn = 0; turn < (N < 8 ? N / 2 : 4); ++turn) moved.at[turn] += tile;
    return moved;
  }

  // COUNT columns, `column` after the lane's first.
  template <int COUNT>
  __device__ __forceinline__ Pack<float, COUNT> load(int position, int column) const {
    const int turn = (chunk_at<N, TURN>(position, 0) % N ^ column % 32 / CHUNK) / 2;
    return load_shared<float, COUNT>(at[turn] + position * (N * 16) + column / 32 * 128);
  }
};

// HELD_A rows, of as many halves of fragments, and HELD_B columns, of as many groups, lie side by side and are read at
// once: more where splitting moves values to other registers anyway, else those that need no moves.
template <>
struct Multiplier<true, false> {
  static constexpr int HELD_A = IS_SPLIT && FRAGMENTS > 1 ? 4 : 2, HELD_B = IS_SPLIT ? 2 : 1;
  const FloatReader<CHUNKS_M> a_reader;
  const FloatReader<CHUNKS_N> b_reader;

  __device__ __forceinline__ Multiplier(int m, int n)
      : a_reader(m, threadIdx.x % 4, threadIdx.x % 32 / 4 * HELD_A),
        b_reader(n, threadIdx.x % 4, threadIdx.x % 32 / 4 * HELD_B) {}

  __device__ __forceinline__ void add_step(Sums& sums, unsigned of_y, unsigned of_x) const {
    const auto a_from = a_reader.of(of_y);
    const auto b_from = b_reader.of(of_x);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      FragmentsA a;
      FragmentsB b;
#pragma unroll
      for (int later = 0; later < 2; ++later) {
        const int position = half * 8 + later * 4;
#pragma unroll
        for (int f = 0; f < FRAGMENTS; f += HELD_A / 2) {
          const Pack<float, HELD_A> rows = a_from.template load<HELD_A>(position, f * 16);
#pragma unroll
          for (int i = 0; i < HELD_A; ++i) a[f + i / 2][later * 2 + i % 2] = __float_as_uint(rows.at[i]);
        }
#pragma unroll
        for (int g = 0; g < 8; g += HELD_B) {
          const Pack<float, HELD_B> columns = b_from.template load<HELD_B>(position, g * 8);
#pragma unroll
          for (int i = 0; i < HELD_B; ++i) b[(g + i) / 2][(g + i) % 2 * 2 + later] = __float_as_uint(columns.at[i]);
        }
      }
      add_fragments(sums, a, b);
    }
  }

  static __device__ __forceinline__ int row(int lane, int f, int i) {
    return f * 16 / (HELD_A * 8) * (HELD_A * 8) + lane / 4 * HELD_A + f * 2 % HELD_A + i / 2;
  }
  static __device__ __forceinline__ int column(int lane, int g) { return g * 8 + lane % 4 * HELD_B / 2 * 4; }
};

// A lane sums 4 rows of each fragment and 4 columns of each 32: 6 loads of 16 bytes for 128 FFMA.
template <>
struct Multiplier<true, true> {
  static constexpr int HELD_B = 4;
  const FloatReader<CHUNKS_M> a_reader;
  const FloatReader<CHUNKS_N> b_reader;

  __device__ __forceinline__ Multiplier(int m, int n)
      : a_reader(m, 0, threadIdx.x % 32 / 8 * 4), b_reader(n, 0, threadIdx.x % 8 * 4) {}

  __device__ __forceinline__ void add_step(Sums& sums, unsigned of_y, unsigned of_x) const {
    const auto a_from = a_reader.of(of_y);
    const auto b_from = b_reader.of(of_x);
#pragma unroll
    for (int k = 0; k < POSITIONS; ++k) {
      float b[8];
#pragma unroll
      for (int g = 0; g < 8; g += 4) {
        const Pack<float, 4> columns = b_from.template load<4>(k, g * 8);
#pragma unroll
        for (int i = 0; i < 4; ++i) b[g + i] = columns.at[i];
      }
#pragma unroll
      for (int f = 0; f < FRAGMENTS; ++f) {
        add_outer_product(sums[f], a_from.template load<4>(k, f * 16).at, b);
      }
    }
  }

  static __device__ __forceinline__ int row(int lane, int f, int i) { return f * 16 + lane / 8 * 4 + i; }
  static __device__ __forceinline__ int column(int lane, int g) { return g * 8 + lane % 8 * 4; }
};

// The places in shared memory, in bytes from [POSITIONS, N] chunks, of those that one thread copies: of every
// THREADS / N positions. Positions 8 / TURN apart are turned alike.
template <int N>
struct Writer {
  static constexpr int APART = THREADS / N, COPIES = POSITIONS / APART, ALIKE = APART < 8 / TURN ? 8 / TURN / APART : 1;
  int position, chunk;
  unsigned at[ALIKE];

  __device__ __forceinline__ Writer() {
    position = static_cast<int>(threadIdx.x) / N, chunk = static_cast<int>(threadIdx.x) % N;
#pragma unroll
    for (int i = 0; i < ALIKE; ++i) at[i] = chunk_at<N, TURN>(position + i * APART, chunk) * 16;
  }

  __device__ __forceinline__ unsigned operator()(int copy) const {
    return at[copy % ALIKE] + copy / ALIKE * (ALIKE * APART * N * 16);
  }
};

// Positions of y as the copies of one step need them: the offsets in y, and those in x with the input of the window's
// first tap, which are read at once.
struct Places {
  struct {
    Pack<index_t, 2> xd, hw;
  } of_x[POSITIONS];
  index_t of_y[POSITIONS];
};

// What a block computes: rows from m on and columns from n on, of a group, summed over positions from begin to end.
struct Tile {
  index_t m, n, group, split, begin, end, steps;

  __device__ __forceinline__ explicit Tile(const ImplicitGemmWeightParams& p) {
    index_t block = static_cast<index_t>(blockIdx.x);
    m = block % p.tiles_m * TILE_M;
    block /= p.tiles_m;
    n = block % p.tiles_n * TILE_N;
    block /= p.tiles_n;
    group = block % p.groups, split = block / p.groups;
    begin = split * p.run, end = least(begin + p.run, p.n * p.od * p.oh * p.ow);
    steps = ceil_div(end - begin, POSITIONS);
  }
};

// Notes the places of a step, by one warp: of each step another one.
__device__ __forceinline__ void place(Places& to, index_t step, const Tile& tile, const ImplicitGemmWeightParams& p) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  if (warp != static_cast<int>(static_cast<unsigned>(step) % WARPS) || lane >= POSITIONS) return;
  const index_t number = tile.begin + step * POSITIONS + lane;
  const bool exists = number < tile.end;
  const Position o = position(exists ? number : 0, 1, p.od, p.oh, p.ow, false);
  const index_t d = o.d * p.stride_d - p.low_d, h = o.h * p.stride_h - p.low_h, w = o.w * p.stride_w - p.low_w;
  const index_t y = o.n * p.y_n + o.d * p.y_d + o.h * p.y_h + o.w * p.y_w;
  const index_t x = o.n * p.x_n + d * p.x_d + h * p.x_h + w * p.x_w;
  to.of_x[lane] = {{{x, d}}, {{exists ? h : NOWHERE, w}}};
  to.of_y[lane] = y;
}

// What one thread copies: a chunk of rows, and one of a tap's channels, of some positions of each step.
struct Copies {
  using YWriter = Writer<CHUNKS_M>;
  using XWriter = Writer<CHUNKS_N>;
  const YWriter y_writer;
  const XWriter x_writer;
  const scalar_t *x, *grad_y;
  index_t move_d, move_h, move_w;
  index_t positions;  // of y that are copied, from the thread's first on

  __device__ __forceinline__ Copies(const scalar_t* x_all, const scalar_t* y_all, const Tile& tile,
                                    const ImplicitGemmWeightParams& p) {
    const index_t column = tile.n / CHUNK + x_writer.chunk, block_length = p.kd * p.kh * p.kw * p.chunks_at_once;
    const index_t in_block = column % block_length, tap = in_block / p.chunks_at_once;
    const index_t chunk = column / block_length * p.chunks_at_once + in_block % p.chunks_at_once;
    const index_t tap_h = tap / p.kw % p.kh * p.dilation_h;
    move_d = tap / (p.kw * p.kh) * p.dilation_d, move_w = tap % p.kw * p.dilation_w;
    move_h = chunk < p.chunks ? tap_h : NOWHERE;
    x = as_is(x_all + tile.group * p.x_g + move_d * p.x_d + tap_h * p.x_h + move_w * p.x_w + chunk * CHUNK);
    grad_y = as_is(y_all + tile.group * p.y_g + tile.m + y_writer.chunk * CHUNK);
    positions = (tile.m / CHUNK + y_writer.chunk < p.row_chunks ? tile.end - tile.begin : 0) - y_writer.position;
  }

  __device__ __forceinline__ void copy(unsigned to, index_t step, const Places& from,
                                       const ImplicitGemmWeightParams& p) const {
    const bool has_depth = p.d > 1 || p.od > 1 || p.kd > 1;
    index_t of_y[YWriter::COPIES], of_x[XWriter::COPIES];
    bool inside[XWriter::COPIES];
#pragma unroll
    for (int i = 0; i < YWriter::COPIES; ++i) of_y[i] = from.of_y[y_writer.position + i * YWriter::APART];
#pragma unroll
    for (int i = 0; i < XWriter::COPIES; ++i) {
      const auto& at = from.of_x[x_writer.position + i * XWriter::APART];
      const Pack<index_t, 2> xd = load_pack<2>(&at.xd.at[0]), hw = load_pack<2>(&at.hw.at[0]);
      of_x[i] = xd.at[0];
      const bool in_depth = !has_depth || is_inside(xd.at[1] + move_d, p.d);
      inside[i] = in_depth & (is_inside(hw.at[0] + move_h, p.h) && is_inside(hw.at[1] + move_w, p.w));  // no branch
    }
    const index_t left = positions - step * POSITIONS;
#pragma unroll
    for (int i = 0; i < YWriter::COPIES; ++i) {
      ChunkCopy::copy_once(to + y_writer(i), grad_y + of_y[i], i * YWriter::APART < left);
    }
#pragma unroll
    for (int i = 0; i < XWriter::COPIES; ++i) ChunkCopy::copy(to + Y_BYTES + x_writer(i), x + of_x[i], inside[i]);
  }
};

// Writes a warp's sums four columns at once to the parts of this block's split and group, from the tile's columns on;
// those of a fold's positions backwards.
struct SumWriter {
  float* parts;
  index_t pitch, rows, columns, fold;
  index_t m;  // the warp's first row
  int n;      // and column of the tile

  __device__ __forceinline__ void write(int row, int column, float a, float b, float c, float d) const {
    if (m + row >= rows || n + column >= columns) return;
    const index_t backwards = m + row + fold - 1 - (m + row) % fold * 2;
    store_pack(parts + (backwards * pitch + n + column), Pack<float, 4>{{a, b, c, d}});
  }
};

// A lane has HELD_B groups of columns side by side: by FFMA four of one; on tensor cores two of each, so four of two
// groups, while of single ones pairs of lanes exchange halves.
template <typename Product>
__device__ __forceinline__ void write_sums(const SumWriter& to, const Sums& sums, const Product&) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool is_upper = lane % 2 == 0;
#pragma unroll
  for (int f = 0; f < FRAGMENTS; ++f) {
#pragma unroll
    for (int g = 0; g < 8; g += Product::HELD_B) {
      const int column = Product::column(lane, g);
      if (Product::HELD_B == 4) {
        const float(&of)[8][4] = sums[f];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          to.write(Product::row(lane, f, i), column, of[g][i], of[g + 1][i], of[g + 2][i], of[g + 3][i]);
        }
      } else if (Product::HELD_B == 2) {
        const float(&one)[4] = sums[f][g], (&other)[4] = sums[f][g + 1];
        to.write(Product::row(lane, f, 0), column, one[0], other[0], one[1], other[1]);
        to.write(Product::row(lane, f, 2), column, one[2], other[2], one[3], other[3]);
      } else {
        const float(&own)[4] = sums[f][g];
        const float first = __shfl_xor_sync(0xffffffffu, is_upper ? own[2] : own[0], 1);
        const float second = __shfl_xor_sync(0xffffffffu, is_upper ? own[3] : own[1], 1);
        to.write(Product::row(lane, f, is_upper ? 0 : 2), column, is_upper ? own[0] : first, is_upper ? own[1] : second,
                 is_upper ? first : own[2], is_upper ? second : own[3]);
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 256 / THREADS)
implicit_gemm_backward_weight(const scalar_t* __restrict__ x,       // [N, G, C, D, H, W]
                              const scalar_t* __restrict__ grad_y,  // [N, G, rows, OD, OH, OW]
                              float* __restrict__ parts,            // [splits, G * rows, KD * KH * KW * C]
                              const ImplicitGemmWeightParams p) {
  extern __shared__ uint4 shared[];  // [STAGES, STAGE_BYTES]
  __shared__ Places places[STAGES];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const unsigned room = shared_address(shared);
  const Tile tile(p);
  const Copies copies(x, grad_y, tile, p);
  const int m = warp % WARPS_M * FRAGMENTS * 16, n = warp / WARPS_M * 64;
  const Multiplier<IS_FLOAT, USES_FFMA> product(m, n);
#pragma unroll
  for (int s = 0; s < STAGES; ++s) place(places[s], s, tile, p);
  __syncthreads();

  Sums sums = {};
  add_steps(
      sums, tile.steps,
      [&](index_t step, int stage) {
        if (step < tile.steps) copies.copy(room + stage * STAGE_BYTES, step, places[stage], p);
        ChunkCopy::commit();
      },
      [&](Sums& to, index_t step, int stage) {
        place(places[stage], step + STAGES, tile, p);
        product.add_step(to, room + stage * STAGE_BYTES, room + stage * STAGE_BYTES + Y_BYTES);
      });
  const index_t columns = p.kd * p.kh * p.kw * p.chunks * CHUNK;
  float* const part = parts + (tile.split * p.groups + tile.group) * p.rows * columns;
  const SumWriter writer{part + tile.n, columns, p.rows, columns - tile.n, p.block, tile.m + m, n};
  write_sums(writer, sums, product);
}
