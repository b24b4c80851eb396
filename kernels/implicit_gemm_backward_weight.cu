// Convolution wgrad as an implicit GEMM on tensor cores, split-K, the first of two kernels:
// parts [splits, G * rows, KD * KH * KW * C] = grad_y [rows, positions] times the columns [positions, taps * C] of x
//
// Source       the derivative of implicit_gemm.cu
// Reads        x [N, G, C, D, H, W] with its C channels contiguous, each run of 16 bytes aligned; zeros fill it up
//              grad_y [N, G, rows, OD, OH, OW], likewise
// Writes       parts of float, which sum_splits adds
// Mapping      a block of WARPS_M * WARPS_N warps per split and tile of rows by 64 * WARPS_N columns; a warp sums
//              16 * FRAGMENTS rows by 64 columns. Positions go in steps of 64 bytes; the copies of STAGES - 1 steps are
//              under way while one is multiplied
// Bytes        grad_y once per tile of columns, x once per tap and tile of rows: from L2 but for the first; parts once
// Determinism  each sum is in the order of positions, as the hardware adds within a fragment
// Limits       sm_80; 16-bit floats, or floats rounded to TF32
#include "common.cuh"
#include "params.cuh"
#include "windows.cuh"
#include "tensor_cores.cuh"

struct ImplicitGemmWeightParams {
  RUN_TIME index_t n;
  index_t groups, rows;                         // rows of a group: its channels of y
  index_t row_chunks, chunks;                   // of 16 bytes, of a group's channels of y and of x
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

constexpr int WARPS = WARPS_M * WARPS_N, THREADS = 32 * WARPS;
constexpr int TILE_M = 16 * FRAGMENTS * WARPS_M, TILE_N = 64 * WARPS_N;
constexpr int POSITIONS = 64 / sizeof(scalar_t);                // of one step: two fragments of 32 bytes
constexpr int CHUNKS_M = TILE_M / CHUNK, CHUNKS_N = TILE_N / CHUNK;
constexpr int Y_BYTES = POSITIONS * CHUNKS_M * 16, STAGE_BYTES = Y_BYTES + POSITIONS * CHUNKS_N * 16;
constexpr bool IS_WIDE = sizeof(scalar_t) == 4;                 // which ldmatrix does not transpose
constexpr int TURN = IS_WIDE ? 2 : 1;

// How a lane reads fragments of two registers by two from [POSITIONS, N chunks] of shared memory: in bytes, where those
// of each of four pairs of chunks begin; further pairs repeat these every 128 bytes. Of A the second register is of the
// next 8 rows, and the next two of later positions; of B it is the other way round.
template <int N, bool IS_A>
struct Reader {
  static constexpr unsigned PITCH = N * 16;
  unsigned at[4];

  // Of columns from `first` on, which lies whole turns of 128 bytes from the first column.
  __device__ __forceinline__ explicit Reader(int first) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int position = IS_WIDE ? lane % 4 : lane % 8 + (IS_A ? lane / 16 : lane / 8 % 2) * 8;
    const int chunk = IS_WIDE ? lane / 16 : IS_A ? lane / 8 % 2 : lane / 16;
#pragma unroll
    for (int pair = 0; pair < (N < 8 ? N / 2 : 4); ++pair) {
      at[pair] = chunk_at<N, TURN>(position, pair * 2 + chunk) * 16 + (IS_WIDE ? lane / 4 % 4 * 4 : 0) +
                 first * sizeof(scalar_t);
    }
  }

  // 16 columns, counted from `first`, at that half of the positions.
  __device__ __forceinline__ void load(unsigned (&to)[4], unsigned tile, int half, int column) const {
    if (IS_WIDE) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int later = IS_A ? i / 2 : i % 2, pair = column / 8 + (IS_A ? i % 2 : i / 2);
        to[i] = load_shared(tile + at[pair % 4] + (half * 8 + later * 4) * PITCH + pair / 4 * 128);
        Mma<scalar_t>::round(to[i]);
      }
    } else {
      const int pair = column / 16;
      load_fragments_transposed(to, tile + at[pair % 4] + half * 16 * PITCH + pair / 4 * 128);
    }
  }
};

// Positions of y as the copies of one step need them: the offset in y, and the input of the window's first tap.
struct Places {
  index_t y[POSITIONS], x[POSITIONS], d[POSITIONS];
  Pack<index_t, 2> hw[POSITIONS];
};

// The places in shared memory, in bytes from [POSITIONS, N] chunks, of those that one thread copies: of every
// THREADS / N positions. Positions 8 apart are turned alike.
template <int N>
struct Writer {
  static constexpr int APART = THREADS / N, COPIES = POSITIONS / APART, ALIKE = APART < 8 ? 8 / APART : 1;
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

extern "C" __global__ void __launch_bounds__(THREADS, 256 / THREADS)
implicit_gemm_backward_weight(const scalar_t* __restrict__ x,       // [N, G, C, D, H, W]
                              const scalar_t* __restrict__ grad_y,  // [N, G, rows, OD, OH, OW]
                              float* __restrict__ parts,            // [splits, G * rows, KD * KH * KW * C]
                              const ImplicitGemmWeightParams p) {
  extern __shared__ uint4 shared[];  // [STAGES, STAGE_BYTES]
  __shared__ Places places[2];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int warp_m = warp % WARPS_M, warp_n = warp / WARPS_M;
  const unsigned room = shared_address(shared);

  index_t block = static_cast<index_t>(blockIdx.x);
  const index_t m0 = block % p.tiles_m * TILE_M;
  block /= p.tiles_m;
  const index_t n0 = block % p.tiles_n * TILE_N;
  block /= p.tiles_n;
  const index_t group = block % p.groups, split = block / p.groups;
  x += group * p.x_g;
  grad_y += group * p.y_g;

  const index_t begin = split * p.run, end = least(begin + p.run, p.n * p.od * p.oh * p.ow);
  const index_t steps = ceil_div(end - begin, POSITIONS);
  const auto place_step = [&](index_t step) {  // by one warp, of each step another one
    if (warp != static_cast<int>(step % WARPS) || lane >= POSITIONS) return;
    const index_t number = begin + step * POSITIONS + lane;
    const Position o = position(number, 1, p.od, p.oh, p.ow, false);
    const index_t d = o.d * p.stride_d - p.low_d, h = o.h * p.stride_h - p.low_h, w = o.w * p.stride_w - p.low_w;
    Places& to = places[step % 2];
    to.y[lane] = o.n * p.y_n + o.d * p.y_d + o.h * p.y_h + o.w * p.y_w;
    to.x[lane] = o.n * p.x_n + d * p.x_d + h * p.x_h + w * p.x_w;
    to.d[lane] = d;
    to.hw[lane] = {{number < end ? h : NOWHERE, w}};
  };

  // What this thread copies: a chunk of rows, and one of a tap's channels, of some positions of each step.
  using YWriter = Writer<CHUNKS_M>;
  using XWriter = Writer<CHUNKS_N>;
  const YWriter y_writer;
  const XWriter x_writer;
  const index_t column = n0 / CHUNK + x_writer.chunk, taps = p.kd * p.kh * p.kw, tap = column / p.chunks;
  const index_t tap_h = tap / p.kw % p.kh * p.dilation_h, move_h = tap < taps ? tap_h : NOWHERE;
  const index_t move_w = tap % p.kw * p.dilation_w, move_d = tap / (p.kw * p.kh) * p.dilation_d;
  const bool has_depth = p.d > 1 || p.od > 1 || p.kd > 1;
  const index_t own_end = m0 / CHUNK + y_writer.chunk < p.row_chunks ? end : 0;
  grad_y = as_is(grad_y + m0 + y_writer.chunk * CHUNK);
  x = as_is(x + move_d * p.x_d + tap_h * p.x_h + move_w * p.x_w + column % p.chunks * CHUNK);
  const auto copy_step = [&](index_t step, int stage) {
    if (step < steps) {
      const Places& from = places[step % 2];
      index_t of_y[YWriter::COPIES], of_x[XWriter::COPIES];
      bool inside[XWriter::COPIES];
#pragma unroll
      for (int i = 0; i < YWriter::COPIES; ++i) of_y[i] = from.y[y_writer.position + i * YWriter::APART];
#pragma unroll
      for (int i = 0; i < XWriter::COPIES; ++i) {
        const int at = x_writer.position + i * XWriter::APART;
        const Pack<index_t, 2> hw = load_pack<2>(&from.hw[at].at[0]);
        of_x[i] = from.x[at];
        inside[i] = is_inside(hw.at[0] + move_h, p.h) && is_inside(hw.at[1] + move_w, p.w) &&
                    (!has_depth || is_inside(from.d[at] + move_d, p.d));
      }
      const unsigned to = room + stage * STAGE_BYTES;
      const index_t left = own_end - begin - step * POSITIONS;
#pragma unroll
      for (int i = 0; i < YWriter::COPIES; ++i) {
        copy_async(to + y_writer(i), grad_y + of_y[i], y_writer.position + i * YWriter::APART < left);
      }
#pragma unroll
      for (int i = 0; i < XWriter::COPIES; ++i) {
        copy_async(to + Y_BYTES + x_writer(i), x + of_x[i], inside[i]);
      }
    }
    commit_copies();
  };

  float sums[FRAGMENTS][8][4] = {};
#pragma unroll
  for (int s = 0; s < STAGES; ++s) {
    place_step(s);
    __syncthreads();
    if (s < STAGES - 1) copy_step(s, s);
  }
  static_assert(WARPS_M == 1 || FRAGMENTS * 16 * sizeof(scalar_t) % 128 == 0, "warps begin at whole turns");
  const Reader<CHUNKS_M, true> a_reader(warp_m * FRAGMENTS * 16);
  const Reader<CHUNKS_N, false> b_reader(warp_n * 64);
  int stage = 0, free_stage = STAGES - 1;
  for (index_t step = 0; step < steps; ++step) {
    wait_for_copies<STAGES - 2>();
    __syncthreads();
    copy_step(step + STAGES - 1, free_stage);
    place_step(step + STAGES);
    const unsigned of_y = room + stage * STAGE_BYTES, of_x = of_y + Y_BYTES;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      unsigned a[FRAGMENTS][4], b[4][4];
#pragma unroll
      for (int f = 0; f < FRAGMENTS; ++f) a_reader.load(a[f], of_y, half, f * 16);
#pragma unroll
      for (int g = 0; g < 4; ++g) b_reader.load(b[g], of_x, half, g * 16);
#pragma unroll
      for (int f = 0; f < FRAGMENTS; ++f) {
#pragma unroll
        for (int g = 0; g < 8; ++g) Mma<scalar_t>::add(sums[f][g], a[f], &b[g / 2][g % 2 * 2]);
      }
    }
    stage = stage + 1 == STAGES ? 0 : stage + 1;
    free_stage = free_stage + 1 == STAGES ? 0 : free_stage + 1;
  }
  wait_for_copies<0>();

  // A fragment's pairs of lanes exchange halves, so that each lane has four columns of one row.
  const index_t columns = taps * p.chunks * CHUNK;
  const bool is_upper = lane % 2 == 0;
#pragma unroll
  for (int f = 0; f < FRAGMENTS; ++f) {
    const index_t m = m0 + (warp_m * FRAGMENTS + f) * 16 + lane / 4 + (is_upper ? 0 : 8);
    float* const row = parts + ((split * p.groups + group) * p.rows + m) * columns;
#pragma unroll
    for (int g = 0; g < 8; ++g) {
      float(&own)[4] = sums[f][g];
      const float first = __shfl_xor_sync(0xffffffffu, is_upper ? own[2] : own[0], 1);
      const float second = __shfl_xor_sync(0xffffffffu, is_upper ? own[3] : own[1], 1);
      const index_t at = n0 + warp_n * 64 + g * 8 + lane % 4 / 2 * 4;
      if (m >= p.rows || at >= columns) continue;
      Pack<float, 4> four;
      four.at[0] = is_upper ? own[0] : first, four.at[1] = is_upper ? own[1] : second;
      four.at[2] = is_upper ? first : own[2], four.at[3] = is_upper ? second : own[3];
      store_pack(row + at, four);
    }
  }
}
