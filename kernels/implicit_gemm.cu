// Convolution as an implicit GEMM, on tensor cores or by FFMA, forward, dgrad or transposed: y [rows, positions] of a
// group is w [rows, taps * C] times the columns [taps * C, positions] of x, gathered from x and never stored.
//
// Source       the definition; dgrad is the convolution of grad_y with the taps of each residue modulo the stride, or,
//              of few channels, a convolution whose rows are the positions of blocks of y too, as of few channels of
//              the forward (folding.py)
// Reads        x [N, G, C, D, H, W] with its C channels contiguous, each run of 16 bytes aligned; zeros fill it up
//              w [G * rows, KD, KH, KW, C], contiguous; bias [G * rows] of BIAS or null; residual, or null, with y's
//              strides
// Writes       y [N, G * rows, OD, OH, OW], any strides; not_finite, 0 before, 1 where one of a fold's is infinite or
//              NaN, or null
// Mapping      a block of WARPS_M * WARPS_N warps per tile of rows by 64 * WARPS_N positions; a warp sums
//              16 * FRAGMENTS rows by 64 positions. The inner dimension goes in steps of 64 bytes: channels of one tap,
//              or of several where these are few. Copies of STAGES - 1 steps are under way while one is multiplied
// Bytes        w once per tile of positions, x once per tap and tile of rows: from L1 and L2 but for the first; y once,
//              VECTOR elements per access, and as often the residual
// Determinism  sums are in the order of channels' steps, in these of taps; within a fragment as
//              the hardware adds
// Limits       16-bit floats, or floats in TERMS; without SM_80 half_t, or floats by FFMA; a residue without taps
//              writes its bias or zeros
#include "common.cuh"
#include "params.cuh"
#include "windows.cuh"
#include "gemm.cuh"
#include "bias_activation.cuh"
#include "smooth.cuh"

struct ImplicitGemmParams {
  RUN_TIME index_t n;
  index_t groups, rows;                         // rows of a group: its channels of y
  index_t chunks;                               // of 16 bytes, of a group's channels of x
  index_t chunks_at_once;                       // of a tap, before those of the next tap: all up to 7, else 4
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
  index_t fold_d, fold_h, fold_w;               // positions of y in one of the product, that are rows; 1 without a fold
  index_t cut_d, cut_h, cut_w;                  // of these, how many the first begins before y
  index_t is_backwards;                         // whether the first row is the last of these
  index_t adjacent_rows;                        // of positions that follow each other along w, as far as 16 rows hold
  index_t tiles_m;                              // blocks of a group's rows,
  RUN_TIME index_t tiles_n;                     // and of a residue's positions
  index_t x_n, x_g, x_d, x_h, x_w;
  index_t y_n, y_c, y_d, y_h, y_w;
  index_t bias_c;
  index_t vector;                               // elements of one access to y: of rows if those are contiguous,
  index_t rows_are_contiguous;                  // else of positions
  index_t has_residual, activation;             // one of those of bias_activation.cuh
  double negative_slope;
  index_t notes_not_finite;
};

constexpr int ROW_CHUNKS = 4;  // of a row of either factor, in one step
constexpr unsigned ROW_BYTES = ROW_CHUNKS * 16, STAGE_BYTES = (TILE_M + TILE_N) * ROW_BYTES;
constexpr int PASS_M = 16 * WARPS_M;  // rows that are written at once
static_assert(PASS_M * (TILE_N + 8) * sizeof(scalar_t) <= STAGES * STAGE_BYTES, "results fit in the factors' room");
static_assert(TILE_N * (PASS_M + 8) * sizeof(scalar_t) <= STAGES * STAGE_BYTES, "results fit in the factors' room");

// One residue along one axis: position q and its j-th tap read x at first + q * input_step + j * tap_input, and the
// position is residue + q * output_step of y, or of a fold the first of as many.
struct Line {
  index_t residue, output_step, first, input_step, tap_input;
  index_t tap, taps;  // the first of its taps, and their number
};

__device__ __forceinline__ Line line(index_t residue, bool is_dgrad, index_t kernel, index_t stride, index_t dilation,
                                     index_t low, index_t tap_step, index_t output_step, index_t fold, index_t cut) {
  if (!is_dgrad) return {-cut, fold, -low, stride, dilation, 0, kernel};
  const Readers first = readers(residue + low, kernel, stride, dilation, tap_step);
  return {residue, stride, first.o, 1, -output_step, first.k, (kernel - first.k + tap_step - 1) / tap_step};
}

// What a block computes: rows from m on, and positions from n on, of a group and a residue.
struct Tile {
  index_t m, n, group;
  Line d, h, w;

  // Rows first, so that the blocks that read the same part of x run side by side.
  __device__ __forceinline__ explicit Tile(const ImplicitGemmParams& p) {
    index_t block = static_cast<index_t>(blockIdx.x);
    m = block % p.tiles_m * TILE_M;
    block /= p.tiles_m;
    n = block % p.tiles_n * TILE_N;
    block /= p.tiles_n;
    w = line(block % p.residues_w, p.is_dgrad, p.kw, p.stride_w, p.dilation_w, p.low_w, p.tap_step_w, p.output_step_w,
             p.fold_w, p.cut_w);
    block /= p.residues_w;
    h = line(block % p.residues_h, p.is_dgrad, p.kh, p.stride_h, p.dilation_h, p.low_h, p.tap_step_h, p.output_step_h,
             p.fold_h, p.cut_h);
    block /= p.residues_h;
    d = line(block % p.residues_d, p.is_dgrad, p.kd, p.stride_d, p.dilation_d, p.low_d, p.tap_step_d, p.output_step_d,
             p.fold_d, p.cut_d);
    group = block / p.residues_d;
  }
};

// Position i of the longest residue's [N, run_d, run_h, run_w].
__device__ __forceinline__ Position run_position(index_t i, const ImplicitGemmParams& p) {
  return position(i, 1, p.run_d, p.run_h, p.run_w, false);
}

// What one thread copies: one chunk of every APART rows of both factors, which lie as far apart in shared memory. Steps
// go through the taps, for chunks_at_once of their chunks, then for the next ones.
struct Copies {
  static constexpr int APART = THREADS / ROW_CHUNKS, COUNT_M = TILE_M / APART, COUNT_N = TILE_N / APART;
  const ImplicitGemmParams& p;
  const Tile& tile;
  const scalar_t *x, *w;
  int row;
  unsigned to;
  index_t steps, filter_length, row_length;
  index_t kd = 0, kh = 0, kw = 0, chunk;  // of the next step, this thread's tap and chunk
  struct {
    index_t offset, d, h, w;  // of tap 0
  } sources[COUNT_N];

  __device__ __forceinline__ Copies(const scalar_t* x_all, const scalar_t* w_all, unsigned shared, const Tile& of,
                                    const ImplicitGemmParams& params)
      : p(params), tile(of) {
    row = static_cast<int>(threadIdx.x) / ROW_CHUNKS, chunk = static_cast<int>(threadIdx.x) % ROW_CHUNKS;
    to = shared + chunk_at<ROW_CHUNKS>(row, static_cast<int>(chunk)) * 16;
    const index_t taps = tile.d.taps * tile.h.taps * tile.w.taps;
    steps = ceil_div(p.chunks, p.chunks_at_once) * ceil_div(taps * p.chunks_at_once, ROW_CHUNKS);
    filter_length = p.chunks * CHUNK, row_length = p.kd * p.kh * p.kw * filter_length;
    x = x_all + tile.group * p.x_g;
    w = w_all + (tile.group * p.rows + tile.m + row) * row_length;
    const index_t positions = p.n * p.run_d * p.run_h * p.run_w;
#pragma unroll
    for (int i = 0; i < COUNT_N; ++i) {
      const index_t number = tile.n + row + i * APART;
      const Position at = run_position(number < positions ? number : 0, p);
      auto& s = sources[i];
      s.d = tile.d.first + at.d * tile.d.input_step;
      s.h = tile.h.first + at.h * tile.h.input_step;
      s.w = tile.w.first + at.w * tile.w.input_step;
      s.offset = at.n * p.x_n + s.d * p.x_d + s.h * p.x_h + s.w * p.x_w;
      if (number >= positions) s.h = NOWHERE;
    }
  }

  // The factors of the next step, if there is one.
  __device__ __forceinline__ void next(index_t step, int stage) {
    const bool is_one_tap = p.chunks_at_once == ROW_CHUNKS;
    if (step < steps) {
      if (!is_one_tap) find_tap(step * ROW_CHUNKS + static_cast<int>(threadIdx.x) % ROW_CHUNKS);
      const bool exists = kd < tile.d.taps && chunk < p.chunks;
      copy_rows(stage, exists);
      copy_positions(stage, exists);
      if (is_one_tap) next_tap();
    }
    ChunkCopy::commit();
  }

  // The tap and the chunk of this thread's `at`-th chunk, of taps of chunks_at_once each.
  __device__ __forceinline__ void find_tap(index_t at) {
    const index_t tap = quotient(at, p.chunks_at_once), line = quotient(tap, tile.w.taps);
    chunk = at - tap * p.chunks_at_once, kw = tap - line * tile.w.taps;
    kd = quotient(line, tile.h.taps), kh = line - kd * tile.h.taps;
  }

  // Those of the next step, where each is of one tap: a division by a residue's number of taps takes 20 instructions.
  __device__ __forceinline__ void next_tap() {
    if (++kw < tile.w.taps) return;
    kw = 0;
    if (++kh < tile.h.taps) return;
    kh = 0;
    if (++kd < tile.d.taps) return;
    kd = 0, chunk += ROW_CHUNKS;
  }

  // The number of the next step's tap among all taps of the kernel.
  __device__ __forceinline__ index_t filter() const {
    const index_t d = tile.d.tap + kd * p.tap_step_d, h = tile.h.tap + kh * p.tap_step_h;
    return (d * p.kh + h) * p.kw + tile.w.tap + kw * p.tap_step_w;
  }

  __device__ __forceinline__ void copy_rows(int stage, bool exists) const {
    const scalar_t* const from = w + (filter() * filter_length + chunk * CHUNK);
#pragma unroll
    for (int i = 0; i < COUNT_M; ++i) {
      const bool row_exists = p.rows % TILE_M == 0 || tile.m + row + i * APART < p.rows;
      ChunkCopy::copy_once(to + stage * STAGE_BYTES + i * (APART * ROW_BYTES), from + i * APART * row_length,
                      exists && row_exists);
    }
  }

  __device__ __forceinline__ void copy_positions(int stage, bool exists) const {
    const index_t move_d = kd * tile.d.tap_input, move_w = kw * tile.w.tap_input, tap_h = kh * tile.h.tap_input;
    const index_t move_h = exists ? tap_h : NOWHERE;
    const scalar_t* const from = as_is(x + (move_d * p.x_d + tap_h * p.x_h + move_w * p.x_w + chunk * CHUNK));
#pragma unroll
    for (int i = 0; i < COUNT_N; ++i) {
      const auto& s = sources[i];
      const bool inside = is_inside(s.d + move_d, p.d) && is_inside(s.h + move_h, p.h) && is_inside(s.w + move_w, p.w);
      ChunkCopy::copy(to + stage * STAGE_BYTES + (TILE_M + i * APART) * ROW_BYTES, from + s.offset, inside);
    }
  }
};

// A lane's part in a step's product.
template <bool>
struct Multiplier;

// On tensor cores a lane gives its row of the four matrices of a load, in bytes, by halves of a step. Of A the second
// matrix is below the first, and the next two are to their right; of B it is the other way round. Rows 16 apart lie in
// the same way.
template <>
struct Multiplier<false> {
  unsigned a_at[2], b_at[2];

  __device__ __forceinline__ Multiplier(int warp_m, int warp_n, unsigned shared) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int a_row = warp_m * 16 + lane % 16, b_row = TILE_M + warp_n * 64 + lane % 8 + lane / 16 * 8;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      a_at[half] = shared + chunk_at<ROW_CHUNKS>(a_row, half * 2 + lane / 16) * 16;
      b_at[half] = shared + chunk_at<ROW_CHUNKS>(b_row, half * 2 + lane / 8 % 2) * 16;
    }
  }

  __device__ __forceinline__ void add_step(Sums& sums, int stage) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const unsigned a_from = a_at[half] + stage * STAGE_BYTES, b_from = b_at[half] + stage * STAGE_BYTES;
      FragmentsA a;
      FragmentsB b;
#pragma unroll
      for (int f = 0; f < FRAGMENTS; ++f) load_fragments(a[f], a_from + f * (PASS_M * ROW_BYTES));
#pragma unroll
      for (int g = 0; g < 4; ++g) load_fragments(b[g], b_from + g * (16 * ROW_BYTES));
      add_fragments(sums, a, b);
    }
  }

  // The place of the i-th sum of group g, in the fragment's 16 rows and the warp's 64 columns.
  static __device__ __forceinline__ int row(int lane, int i) { return i / 2 * 8 + lane / 4; }
  static __device__ __forceinline__ int column(int lane, int g, int i) { return g * 8 + lane % 4 * 2 + i % 2; }
};

// By FFMA a lane sums every 4th row and every 8th column, so that the rows which a warp reads at once lie in different
// banks: 24 loads of 16 bytes for 512 FFMA.
template <>
struct Multiplier<true> {
  unsigned a_at[ROW_CHUNKS], b_at[ROW_CHUNKS];

  __device__ __forceinline__ Multiplier(int warp_m, int warp_n, unsigned shared) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int chunk = 0; chunk < ROW_CHUNKS; ++chunk) {
      a_at[chunk] = shared + chunk_at<ROW_CHUNKS>(warp_m * 16 + row(lane, 0), chunk) * 16;
      b_at[chunk] = shared + chunk_at<ROW_CHUNKS>(TILE_M + warp_n * 64 + column(lane, 0, 0), chunk) * 16;
    }
  }

  __device__ __forceinline__ void add_step(Sums& sums, int stage) const {
#pragma unroll
    for (int chunk = 0; chunk < ROW_CHUNKS; ++chunk) {
      Pack<float, 4> b[8];
#pragma unroll
      for (int g = 0; g < 8; ++g) b[g] = load(b_at[chunk], stage, g * 8);
#pragma unroll
      for (int f = 0; f < FRAGMENTS; ++f) {
        Pack<float, 4> a[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i] = load(a_at[chunk ^ i % 2 * 2], stage, f * PASS_M + i * 4);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const float a_k[] = {a[0].at[k], a[1].at[k], a[2].at[k], a[3].at[k]};
          const float b_k[] = {b[0].at[k], b[1].at[k], b[2].at[k], b[3].at[k],
                               b[4].at[k], b[5].at[k], b[6].at[k], b[7].at[k]};
          add_outer_product(sums[f], a_k, b_k);
        }
      }
    }
  }

  static __device__ __forceinline__ Pack<float, 4> load(unsigned at, int stage, int row) {
    return load_shared<float, 4>(at + stage * STAGE_BYTES + row * ROW_BYTES);
  }

  static __device__ __forceinline__ int row(int lane, int i) { return i * 4 + lane / 8; }
  static __device__ __forceinline__ int column(int lane, int g, int) { return g * 8 + lane % 8; }
};

// Write N results, plus as many of the residual, activated.
template <int N>
__device__ __forceinline__ void store(scalar_t* to, const scalar_t* results, const scalar_t* residual, int* not_finite,
                                      const ImplicitGemmParams& p) {
  Pack<scalar_t, N> values = load_pack<N>(results), others = {};
  if (p.has_residual) others = load_pack<N>(residual);
#pragma unroll
  for (int j = 0; j < N && (p.has_residual || p.activation || SMOOTH); ++j) {
    acc_t sum = widen(values.at[j]);
    if (p.has_residual) sum = sum + widen(others.at[j]);
    values.at[j] = narrow(smooth(activated(sum, p.activation, p.negative_slope)));
  }
  bool all_finite = true;
#pragma unroll
  for (int j = 0; j < N && p.notes_not_finite; ++j) all_finite = all_finite && is_finite(widen(values.at[j]));
  if (!all_finite) atomicMax(not_finite, 1);
  store_pack(to, values);
}

__device__ __forceinline__ void store_vector(scalar_t* to, const scalar_t* results, const scalar_t* residual,
                                             int* not_finite, const ImplicitGemmParams& p) {
  if (p.vector == CHUNK) {
    store<CHUNK>(to, results, residual, not_finite, p);
  } else if (p.vector == 4) {
    store<4>(to, results, residual, not_finite, p);
  } else if (p.vector == 2) {
    store<2>(to, results, residual, not_finite, p);
  } else {
    store<1>(to, results, residual, not_finite, p);
  }
}

// The channel of y of a row of all groups, and the place of its positions in a fold.
struct Row {
  index_t c, d, h, w;

  __device__ __forceinline__ Row(index_t row, const ImplicitGemmParams& p) {
    const index_t fold = p.fold_w * p.fold_h * p.fold_d, place = p.is_backwards ? fold - 1 - row % fold : row % fold;
    w = place % p.fold_w, h = place / p.fold_w % p.fold_h, d = place / (p.fold_w * p.fold_h);
    c = row / fold;
  }
};

// Writes the block's rows from m on, PASS_M of them, from shared memory, contiguous there along rows or positions as
// they are in y. Of a fold, adjacent rows are written together, position by position.
__device__ __forceinline__ void write_pass(scalar_t* y, const scalar_t* residual, int* not_finite,
                                           const scalar_t* results, index_t m, int row_pitch, int position_pitch,
                                           const Tile& tile, const ImplicitGemmParams& p) {
  const int vector = static_cast<int>(p.vector), inner = p.rows_are_contiguous ? PASS_M : TILE_N;
  const int adjacent = static_cast<int>(p.adjacent_rows);
  for (int i = static_cast<int>(threadIdx.x) * vector; i < PASS_M * TILE_N; i += THREADS * vector) {
    const int row = p.rows_are_contiguous ? i % inner : i / adjacent / inner * adjacent + i % adjacent;
    const int column = p.rows_are_contiguous ? i / inner : i / adjacent % inner;
    const Row at_row(tile.group * p.rows + m + row, p);
    const Position at = run_position(tile.n + column, p);
    const index_t d = tile.d.residue + at.d * tile.d.output_step + at_row.d;
    const index_t h = tile.h.residue + at.h * tile.h.output_step + at_row.h;
    const index_t w = tile.w.residue + at.w * tile.w.output_step + at_row.w;
    if (m + row >= p.rows || at.n >= p.n || !is_inside(d, p.od) || !is_inside(h, p.oh) || !is_inside(w, p.ow)) continue;
    const index_t to = at.n * p.y_n + at_row.c * p.y_c + d * p.y_d + h * p.y_h + w * p.y_w;
    store_vector(y + to, results + row * row_pitch + column * position_pitch, residual + to, not_finite, p);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 256 / THREADS)
implicit_gemm(const scalar_t* __restrict__ x,         // [N, G, C, D, H, W]
              const scalar_t* __restrict__ w,         // [G * rows, KD, KH, KW, C]
              const BIAS* __restrict__ bias,          // [G * rows] or null
              const scalar_t* __restrict__ residual,  // [N, G * rows, OD, OH, OW] or null
              int* __restrict__ not_finite,           // [1] or null
              scalar_t* __restrict__ y,               // [N, G * rows, OD, OH, OW]
              const ImplicitGemmParams p) {
  __shared__ uint4 shared[STAGES * STAGE_BYTES / 16];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_m = warp % WARPS_M, warp_n = warp / WARPS_M;
  const Tile tile(p);
  Copies copies(x, w, shared_address(shared), tile, p);
  using Product = Multiplier<USES_FFMA>;
  const Product product(warp_m, warp_n, shared_address(shared));

  Sums sums = {};
  add_steps(
      sums, copies.steps, [&](index_t step, int stage) { copies.next(step, stage); },
      [&](Sums& to, index_t, int stage) { product.add_step(to, stage); });

  scalar_t* const results = reinterpret_cast<scalar_t*>(shared);
  const int row_pitch = p.rows_are_contiguous ? 1 : TILE_N + 8, position_pitch = p.rows_are_contiguous ? PASS_M + 8 : 1;
#pragma unroll
  for (int f = 0; f < FRAGMENTS; ++f) {
    const index_t m = tile.m + f * PASS_M;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = warp_m * 16 + Product::row(lane, i);
      const bool has_bias = bias && m + row < p.rows;
      const float added = has_bias ? widen(bias[Row(tile.group * p.rows + m + row, p).c * p.bias_c]) : 0.0f;
#pragma unroll
      for (int g = 0; g < 8; ++g) {
        const int position = warp_n * 64 + Product::column(lane, g, i);
        results[row * row_pitch + position * position_pitch] = narrow(sums[f][g][i] + added);
      }
    }
    __syncthreads();
    write_pass(y, residual, not_finite, results, m, row_pitch, position_pitch, tile, p);
  }
}
