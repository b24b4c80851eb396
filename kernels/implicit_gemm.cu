// Convolution as an implicit GEMM on tensor cores, forward, dgrad or transposed: y [rows, positions] of each group is
// w [rows, taps * C] times the columns [taps * C, positions] of x, which are gathered from x and never stored.
//
// Source       the definition; dgrad is the convolution of grad_y with the taps of each residue modulo the stride
// Reads        x [N, G, C, D, H, W] with its C channels contiguous, each run of 16 bytes aligned; zeros fill it up
//              w [G * rows, KD, KH, KW, C], contiguous; bias [G * rows] or null
// Writes       y [N, G * rows, OD, OH, OW], any strides
// Mapping      a block of WARPS_M * WARPS_N warps per tile of rows by 64 * WARPS_N positions; a warp sums
//              16 * FRAGMENTS rows by 64 positions. The inner dimension goes in steps of 64 bytes: channels of one tap,
//              or of 2 or 4 taps where these are few. Copies of STAGES - 1 steps are under way while one is multiplied
// Bytes        w once per tile of positions, x once per tap and tile of rows: from L1 and L2 but for the first; y once,
//              VECTOR elements per access
// Determinism  sums are in the order of channels' steps, in these of taps; within a fragment as the hardware adds
// Limits       sm_80; 16-bit floats, or floats rounded to TF32; a residue without taps writes its bias or zeros
#include "common.cuh"
#include "params.cuh"
#include "windows.cuh"
#include "tensor_cores.cuh"

struct ImplicitGemmParams {
  RUN_TIME index_t n;
  index_t groups, rows;                         // rows of a group: its channels of y
  index_t chunks;                               // of 16 bytes, of a group's channels of x
  index_t taps_at_once;                         // in one step: 4 of 1 chunk, 2 of 2 chunks, else 1
  index_t is_dgrad;
  index_t d, h, w;                              // of x
  index_t od, oh, ow;                           // of y
  index_t kd, kh, kw;                           // kernel
  index_t stride_d, stride_h, stride_w;
  index_t dilation_d, dilation_h, dilation_w;
  index_t low_d, low_h, low_w;                  // padding before the first input
  index_t residues_d, residues_h, residues_w;   // dgrad: residues modulo the stride; forward: 1
  index_t run_d, run_h, run_w;                  // positions of the longest residue
  index_t tap_step_d, tap_step_h, tap_step_w;   // spacing of the taps of one residue; forward: 1
  index_t output_step_d, output_step_h, output_step_w;  // dgrad: and of the outputs that they read
  index_t tiles_m;                              // blocks of a group's rows,
  RUN_TIME index_t tiles_n;                     // and of a residue's positions
  index_t x_n, x_g, x_d, x_h, x_w;
  index_t y_n, y_c, y_d, y_h, y_w;
  index_t bias_c;
  index_t vector;                               // elements of one access to y: of rows if those are contiguous,
  index_t rows_are_contiguous;                  // else of positions
};

constexpr int WARPS = WARPS_M * WARPS_N, THREADS = 32 * WARPS;
constexpr int TILE_M = 16 * FRAGMENTS * WARPS_M, TILE_N = 64 * WARPS_N;
constexpr int ROW_CHUNKS = 4;                                   // of a row of either factor, in one step
constexpr unsigned ROW_BYTES = ROW_CHUNKS * 16;
constexpr int STAGE = (TILE_M + TILE_N) * ROW_CHUNKS;           // chunks of one step
constexpr int PASS_M = 16 * WARPS_M;                            // rows that are written at once
constexpr int SHARED = STAGES * STAGE;
static_assert(PASS_M * (TILE_N + 8) * sizeof(scalar_t) <= SHARED * 16, "results fit in the room of the factors");
static_assert(TILE_N * (PASS_M + 8) * sizeof(scalar_t) <= SHARED * 16, "results fit in the room of the factors");

// One residue along one axis: position q and its j-th tap read input first + q * input_step + j * tap_input.
struct Line {
  index_t first, input_step, tap_input;
  index_t tap, taps;  // the first of its taps, and their number
};

__device__ __forceinline__ Line line(index_t residue, bool is_dgrad, index_t kernel, index_t stride, index_t dilation,
                                     index_t low, index_t tap_step, index_t output_step) {
  if (!is_dgrad) return {-low, stride, dilation, 0, kernel};
  const Readers first = readers(residue + low, kernel, stride, dilation, tap_step);
  return {first.o, 1, -output_step, first.k, (kernel - first.k + tap_step - 1) / tap_step};
}

// Position i of the longest residue's [N, run_d, run_h, run_w].
__device__ __forceinline__ Position run_position(index_t i, const ImplicitGemmParams& p) {
  return position(i, 1, p.run_d, p.run_h, p.run_w, false);
}

template <int N>
__device__ __forceinline__ void move(scalar_t* to, const scalar_t* from) {
  store_pack(to, load_pack<N>(from));
}

extern "C" __global__ void __launch_bounds__(THREADS, 256 / THREADS)
implicit_gemm(const scalar_t* __restrict__ x,     // [N, G, C, D, H, W]
              const scalar_t* __restrict__ w,     // [G * rows, KD, KH, KW, C]
              const scalar_t* __restrict__ bias,  // [G * rows] or null
              scalar_t* __restrict__ y,           // [N, G * rows, OD, OH, OW]
              const ImplicitGemmParams p) {
  __shared__ uint4 shared[SHARED];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int warp_m = warp % WARPS_M, warp_n = warp / WARPS_M;

  // The tile: rows first, so that the blocks that read the same part of x run side by side.
  index_t block = static_cast<index_t>(blockIdx.x);
  const index_t m0 = block % p.tiles_m * TILE_M;
  block /= p.tiles_m;
  const index_t n0 = block % p.tiles_n * TILE_N;
  block /= p.tiles_n;
  const index_t residue_w = block % p.residues_w;
  block /= p.residues_w;
  const index_t residue_h = block % p.residues_h;
  block /= p.residues_h;
  const index_t residue_d = block % p.residues_d, group = block / p.residues_d;
  const Line ds = line(residue_d, p.is_dgrad, p.kd, p.stride_d, p.dilation_d, p.low_d, p.tap_step_d, p.output_step_d);
  const Line hs = line(residue_h, p.is_dgrad, p.kh, p.stride_h, p.dilation_h, p.low_h, p.tap_step_h, p.output_step_h);
  const Line ws = line(residue_w, p.is_dgrad, p.kw, p.stride_w, p.dilation_w, p.low_w, p.tap_step_w, p.output_step_w);
  const index_t positions = p.n * p.run_d * p.run_h * p.run_w;
  x += group * p.x_g;

  // What this thread copies: one chunk of every APART rows of both factors, which lie as far apart in shared memory.
  constexpr int APART = THREADS / ROW_CHUNKS;
  const int own_row = thread / ROW_CHUNKS, own_chunk = thread % ROW_CHUNKS;
  const unsigned own = shared_address(shared + chunk_at<ROW_CHUNKS>(own_row, own_chunk));
  const index_t filter_length = p.chunks * CHUNK, row_length = p.kd * p.kh * p.kw * filter_length;
  w += (group * p.rows + m0 + own_row) * row_length;
  struct Source {
    index_t offset, d, h, w;  // of tap 0
  } sources[TILE_N / APART];
#pragma unroll
  for (int i = 0; i < TILE_N / APART; ++i) {
    const index_t number = n0 + own_row + i * APART;
    const Position at = run_position(number, p);
    Source& s = sources[i];
    s.d = ds.first + at.d * ds.input_step, s.h = hs.first + at.h * hs.input_step, s.w = ws.first + at.w * ws.input_step;
    s.offset = at.n * p.x_n + s.d * p.x_d + s.h * p.x_h + s.w * p.x_w;
    if (number >= positions) s.h = NOWHERE;
  }

  // Steps go through the taps, for so many channels, then for the next ones.
  const index_t taps = ds.taps * hs.taps * ws.taps, tap_steps = ceil_div(taps, p.taps_at_once);
  const index_t steps = ceil_div(p.chunks, ROW_CHUNKS) * tap_steps;
  const int chunks_of_tap = ROW_CHUNKS / static_cast<int>(p.taps_at_once);
  index_t copied_steps = 0, tap_step = 0, chunk = own_chunk % chunks_of_tap;
  const auto copy_next_step = [&](int stage) {
    if (copied_steps < steps) {
      const index_t tap = tap_step * p.taps_at_once + own_chunk / chunks_of_tap;
      const bool exists = tap < taps && chunk < p.chunks;
      const index_t kw = tap % ws.taps, kh = tap / ws.taps % hs.taps, kd = tap / (ws.taps * hs.taps);
      const index_t filter_d = ds.tap + kd * p.tap_step_d, filter_h = hs.tap + kh * p.tap_step_h;
      const index_t filter =
          p.is_dgrad ? (filter_d * p.kh + filter_h) * p.kw + ws.tap + kw * p.tap_step_w : tap;
      const scalar_t* from = w + (filter * filter_length + chunk * CHUNK);
      unsigned to = own + stage * (STAGE * 16);
#pragma unroll
      for (int i = 0; i < TILE_M / APART; ++i) {
        const bool row_exists = p.rows % TILE_M == 0 || m0 + own_row + i * APART < p.rows;
        copy_once_async(to + i * (APART * ROW_BYTES), from + i * APART * row_length, exists && row_exists);
      }
      const index_t move_d = kd * ds.tap_input, move_w = kw * ws.tap_input;
      const index_t move_h = exists ? kh * hs.tap_input : NOWHERE;
      from = as_is(x + (move_d * p.x_d + kh * hs.tap_input * p.x_h + move_w * p.x_w + chunk * CHUNK));
      to += TILE_M * ROW_BYTES;
#pragma unroll
      for (int i = 0; i < TILE_N / APART; ++i) {
        const Source& s = sources[i];
        const bool inside =
            is_inside(s.d + move_d, p.d) && is_inside(s.h + move_h, p.h) && is_inside(s.w + move_w, p.w);
        copy_async(to + i * (APART * ROW_BYTES), from + s.offset, inside);
      }
      ++copied_steps;
      if (++tap_step == tap_steps) tap_step = 0, chunk += ROW_CHUNKS;
    }
    commit_copies();
  };

  float sums[FRAGMENTS][8][4] = {};
#pragma unroll
  for (int s = 0; s < STAGES - 1; ++s) copy_next_step(s);
  // A lane's row of the four matrices of a load, in bytes, by halves of the step. Of A the second matrix is below the
  // first, and the next two are to their right; of B it is the other way round. Rows 16 apart lie in the same way.
  unsigned a_at[2], b_at[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    a_at[half] = chunk_at<ROW_CHUNKS>(warp_m * 16 + lane % 16, half * 2 + lane / 16) * 16;
    b_at[half] = chunk_at<ROW_CHUNKS>(TILE_M + warp_n * 64 + lane % 8 + lane / 16 * 8, half * 2 + lane / 8 % 2) * 16;
  }
  int stage = 0, free_stage = STAGES - 1;
  for (index_t step = 0; step < steps; ++step) {
    wait_for_copies<STAGES - 2>();
    __syncthreads();
    copy_next_step(free_stage);
    const unsigned factors = shared_address(shared + stage * STAGE);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      unsigned a[FRAGMENTS][4], b[4][4];
      const unsigned a_from = factors + a_at[half], b_from = factors + b_at[half];
#pragma unroll
      for (int f = 0; f < FRAGMENTS; ++f) load_fragments(a[f], a_from + f * (PASS_M * ROW_BYTES));
#pragma unroll
      for (int g = 0; g < 4; ++g) load_fragments(b[g], b_from + g * (16 * ROW_BYTES));
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

  // PASS_M rows at a time through shared memory, contiguous along rows or positions as they are in y.
  scalar_t* const results = reinterpret_cast<scalar_t*>(shared);
  const int row_pitch = p.rows_are_contiguous ? 1 : TILE_N + 8, position_pitch = p.rows_are_contiguous ? PASS_M + 8 : 1;
#pragma unroll
  for (int f = 0; f < FRAGMENTS; ++f) {
    __syncthreads();
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const int row = warp_m * 16 + upper * 8 + lane / 4;
      const index_t m = m0 + f * PASS_M + row;
      const float added = bias && m < p.rows ? widen(bias[(group * p.rows + m) * p.bias_c]) : 0.0f;
#pragma unroll
      for (int g = 0; g < 8; ++g) {
        scalar_t* const to = results + row * row_pitch + (warp_n * 64 + g * 8 + lane % 4 * 2) * position_pitch;
        to[0] = narrow(sums[f][g][upper * 2] + added);
        to[position_pitch] = narrow(sums[f][g][upper * 2 + 1] + added);
      }
    }
    __syncthreads();
    const int vector = static_cast<int>(p.vector), inner = p.rows_are_contiguous ? PASS_M : TILE_N;
    for (int i = thread * vector; i < PASS_M * TILE_N; i += THREADS * vector) {
      const int outer_index = i / inner, inner_index = i % inner;
      const int row = p.rows_are_contiguous ? inner_index : outer_index;
      const int column = p.rows_are_contiguous ? outer_index : inner_index;
      const index_t m = m0 + f * PASS_M + row;
      const Position at = run_position(n0 + column, p);
      const index_t d = p.is_dgrad ? at.d * p.stride_d + residue_d : at.d;
      const index_t h = p.is_dgrad ? at.h * p.stride_h + residue_h : at.h;
      const index_t w_out = p.is_dgrad ? at.w * p.stride_w + residue_w : at.w;
      if (m >= p.rows || at.n >= p.n || d >= p.od || h >= p.oh || w_out >= p.ow) continue;
      scalar_t* const to =
          y + (at.n * p.y_n + (group * p.rows + m) * p.y_c + d * p.y_d + h * p.y_h + w_out * p.y_w);
      const scalar_t* const from = results + row * row_pitch + column * position_pitch;
      if (vector == CHUNK) {
        move<CHUNK>(to, from);
      } else if (vector == 4) {
        move<4>(to, from);
      } else if (vector == 2) {
        move<2>(to, from);
      } else {
        *to = *from;
      }
    }
  }
}
