// A copy between memory orders, [N, C, P] to channels last and back, with optional dtype conversion:
// y[n, c, p] = TARGET(x[n, c, p] + bias[c]), and 0 where only y has a channel c
//
// Source       a transpose through shared memory
// Reads        x [N, x_channels, P], bias [C] or null; any strides
// Writes       y [N, C, P] of TARGET; any strides; C may exceed x_channels where there is no bias
// Mapping      one block per tile of tile_c channels by tile_p positions; x_lanes threads read a row of it along x's
//              innermost axis, X_PACK elements per access, and y_lanes write one along y's, Y_PACK per access. Whole
//              contiguous rows of a tile, as those of 3 channels or of 49 positions, are merged into one
// Bytes        x and y once, both by sector-aligned accesses of 16 bytes; a tile's biases once
// Determinism  elements are independent, rounded once
// Limits       none
#include "common.cuh"
#include "params.cuh"
#include "packs.cuh"

// A copy of x [N, x_channels, P] to y [N, C, P] of another memory order or dtype, plus bias [C].
struct PackParams {
  RUN_TIME index_t n;
  index_t c, p, x_channels;
  index_t x_n, x_c, x_p;
  index_t y_n, y_c, y_p;
  index_t bias_c;
  index_t tile_c, tile_p;
  index_t x_along_c, y_along_c;                 // whether channels are innermost in memory
  index_t x_is_one, y_is_one;                   // whether a tile's rows are whole and contiguous
  index_t x_lanes, y_lanes;                     // threads of one row, a power of two
  index_t pitch;                                // from row to row of x in shared memory
  index_t biases;                               // room for the biases before them
};

// A double as the float that rounds to the same 16 bits: truncated, and made odd where inexact.
__device__ __forceinline__ float shortened(double value) {
  const float rounded = static_cast<float>(value);
  unsigned bits = __float_as_uint(rounded);
  if (fabs(static_cast<double>(rounded)) > fabs(value)) --bits;
  if (static_cast<double>(__uint_as_float(bits)) != value) bits |= 1u;
  return __uint_as_float(bits);
}

template <typename To, typename From>
struct Cast {
  static __device__ __forceinline__ To from(From value) { return static_cast<To>(value); }
};

template <>
struct Cast<half_t, float> {
  static __device__ __forceinline__ half_t from(float value) { return Narrow<half_t>::from(value); }
};

template <>
struct Cast<bfloat16_t, float> {
  static __device__ __forceinline__ bfloat16_t from(float value) { return Narrow<bfloat16_t>::from(value); }
};

template <typename To>
struct Shortened {
  static __device__ __forceinline__ To from(double value) { return Cast<To, float>::from(shortened(value)); }
};

template <>
struct Cast<half_t, double> : Shortened<half_t> {};

template <>
struct Cast<bfloat16_t, double> : Shortened<bfloat16_t> {};

struct tf32_t {  // a float of 11 bits; tensor cores do not read the last 13
  float value;
};

template <>
struct Cast<tf32_t, float> {
  static __device__ __forceinline__ tf32_t from(float value) {
    const unsigned bits = __float_as_uint(value);
    return {value == value ? __uint_as_float((bits + 0x1000u) & ~0x1fffu) : value};  // as cvt.rna, which sm_75 lacks
  }
};

// A row of a tile in memory, or several contiguous ones.
struct Line {
  index_t rows, length, outer, inner;  // their number, elements of each, and the strides between rows and along one
};

__device__ __forceinline__ Line line_of(bool is_one, index_t rows, index_t length, index_t outer, index_t inner) {
  return is_one ? Line{1, rows * length, 0, inner} : Line{rows, length, outer, inner};
}

// Read a tile from offset `x_first` on: rows of x, of pitch `p.pitch`, skewed.
__device__ __forceinline__ void read_tile(const scalar_t* __restrict__ x, index_t x_first, index_t channels,
                                          index_t positions, scalar_t* tile, const PackParams& p) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const index_t x_row = p.x_along_c ? least(p.tile_c, p.x_channels) : p.tile_p;
  const Line from = p.x_along_c ? line_of(p.x_is_one, positions, channels, p.x_p, p.x_c)
                                : line_of(p.x_is_one, channels, positions, p.x_c, p.x_p);
  const int x_lanes = static_cast<int>(p.x_lanes), x_lane = thread % x_lanes, x_teams = threads / x_lanes;
#pragma unroll 2
  for (index_t row = thread / x_lanes; row < from.rows; row += x_teams) {
    const index_t offset = x_first + row * from.outer;
    const Packed<X_PACK> packed(offset, from.length);
#pragma unroll 2
    for (index_t k = packed.first + x_lane * X_PACK; k < packed.end; k += x_lanes * X_PACK) {
      const Pack<scalar_t, X_PACK> pack = load_pack<X_PACK>(x + offset + k * from.inner);
      index_t o = row + k / x_row, i = k % x_row;
#pragma unroll
      for (int j = 0; j < X_PACK; ++j) {
        tile[skewed<scalar_t>(o * p.pitch + i)] = pack.at[j];
        if (++i == x_row) i = 0, ++o;
      }
    }
  }
  for (index_t row = thread / 32; row < from.rows; row += threads / 32) {  // one per warp, for the banks
    const index_t offset = x_first + row * from.outer;
    const Packed<X_PACK> packed(offset, from.length);
    const auto read = [&](index_t k) {
      tile[skewed<scalar_t>((row + k / x_row) * p.pitch + k % x_row)] = x[offset + k];
    };
    for (index_t k = thread % 32; k < packed.first; k += 32) read(k);
    __syncwarp();
    for (index_t k = packed.end + thread % 32; k < from.length; k += 32) read(k);
    __syncwarp();
  }
}

// Zeros for the channels [first, end) of a tile.
__device__ __forceinline__ void fill_tile(index_t first, index_t end, index_t positions, scalar_t* tile,
                                          const PackParams& p) {
  const index_t step_c = p.x_along_c ? 1 : p.pitch, step_p = p.x_along_c ? p.pitch : 1;
  for (index_t k = threadIdx.x; k < (end - first) * positions; k += blockDim.x) {
    tile[skewed<scalar_t>((first + k / positions) * step_c + k % positions * step_p)] = scalar_t{};
  }
}

// Write a tile from offset `y_first` on, plus the biases of its channels if there are any.
__device__ __forceinline__ void write_tile(const scalar_t* tile, const acc_t* biases, bool has_bias,
                                           TARGET* __restrict__ y, index_t y_first, index_t channels,
                                           index_t positions, const PackParams& p) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const index_t y_row = p.y_along_c ? p.tile_c : p.tile_p;
  const Line to = p.y_along_c ? line_of(p.y_is_one, positions, channels, p.y_p, p.y_c)
                              : line_of(p.y_is_one, channels, positions, p.y_c, p.y_p);
  const bool turned = p.x_along_c != p.y_along_c;
  const index_t step_o = turned ? 1 : p.pitch, step_i = turned ? p.pitch : 1;
  const int y_lanes = static_cast<int>(p.y_lanes), y_lane = thread % y_lanes, y_teams = threads / y_lanes;
  for (index_t first = 0; first < to.rows; first += y_teams) {
    const index_t row = first + thread / y_lanes, offset = y_first + row * to.outer;
    const Packed<Y_PACK, TARGET> packed(offset, to.length);
#pragma unroll 2
    for (index_t k = packed.first + y_lane * Y_PACK; row < to.rows && k < packed.end; k += y_lanes * Y_PACK) {
      index_t o = row + k / y_row, i = k % y_row;
      Pack<TARGET, Y_PACK> pack;
#pragma unroll
      for (int j = 0; j < Y_PACK; ++j) {
        acc_t value = widen(tile[skewed<scalar_t>(o * step_o + i * step_i)]);
        if (has_bias) value = value + biases[skewed<acc_t>(p.y_along_c ? i : o)];
        pack.at[j] = Cast<TARGET, acc_t>::from(value);
        if (++i == y_row) i = 0, ++o;
      }
      store_pack(y + offset + k * to.inner, pack);
    }
    __syncwarp();
  }
  for (index_t row = thread / 32; row < to.rows; row += threads / 32) {
    const index_t offset = y_first + row * to.outer;
    const Packed<Y_PACK, TARGET> packed(offset, to.length);
    const auto write = [&](index_t k) {
      const index_t o = row + k / y_row, i = k % y_row;
      acc_t value = widen(tile[skewed<scalar_t>(o * step_o + i * step_i)]);
      if (has_bias) value = value + biases[skewed<acc_t>(p.y_along_c ? i : o)];
      y[offset + k] = Cast<TARGET, acc_t>::from(value);
    };
    for (index_t k = thread % 32; k < packed.first; k += 32) write(k);
    __syncwarp();
    for (index_t k = packed.end + thread % 32; k < to.length; k += 32) write(k);
    __syncwarp();
  }
}

extern "C" __global__ void __launch_bounds__(256, 1)
pack(const scalar_t* __restrict__ x,     // [N, x_channels, P]
     const scalar_t* __restrict__ bias,  // [C] or null
     TARGET* __restrict__ y,             // [N, C, P]
     const PackParams p) {
  extern __shared__ acc_t biases[];                               // [tile_c], skewed; empty without bias
  scalar_t* tile = reinterpret_cast<scalar_t*>(biases + p.biases);  // [rows of x, pitch], skewed
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const index_t p_tiles = (p.p + p.tile_p - 1) / p.tile_p, c_tiles = (p.c + p.tile_c - 1) / p.tile_c;
  index_t block = static_cast<index_t>(blockIdx.x);  // [0, N * c_tiles * p_tiles)
  const index_t p0 = block % p_tiles * p.tile_p;
  block /= p_tiles;
  const index_t c0 = block % c_tiles * p.tile_c;
  const index_t n = block / c_tiles;
  const index_t channels = least(p.tile_c, p.c - c0), positions = least(p.tile_p, p.p - p0);

  if (bias) {
    for (int c = thread; c < channels; c += threads) biases[skewed<acc_t>(c)] = widen(bias[(c0 + c) * p.bias_c]);
  }
  const index_t given = p.x_channels > c0 ? least(channels, p.x_channels - c0) : 0;  // of x
  read_tile(x, n * p.x_n + c0 * p.x_c + p0 * p.x_p, given, positions, tile, p);
  fill_tile(given, channels, positions, tile, p);
  __syncthreads();

  write_tile(tile, biases, bias != nullptr, y, n * p.y_n + c0 * p.y_c + p0 * p.y_p, channels, positions, p);
}
