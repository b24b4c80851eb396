// Winograd's filtering F(2 x 2, 3 x 3), its first step: v[n, th, tw, k, c] = (B^T d B)[k] of a tile's 4 x 4 inputs d
//
// Source       Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2015), section 4.1
// Reads        x [N, C, H, W], any strides; zeros outside
// Writes       v [N, TH, TW, 16, DEPTH], contiguous; zeros for channels beyond C
// Mapping      one block per 32 channels of 16 tiles side by side: their inputs go through shared memory, then a warp
//              transforms a tile of 32 channels
// Bytes        x twice, once from L2; v once, 128 contiguous bytes of a warp
// Determinism  fixed order
// Limits       float32
#include "common.cuh"
#include "params.cuh"

struct WinogradInputParams {
  RUN_TIME index_t n;
  index_t c, h, w;
  index_t low_h, low_w;                         // padding before the first input
  index_t tiles_h, tiles_w, depth;
  index_t x_n, x_c, x_h, x_w;
  index_t channels_last;
};

constexpr int CHANNELS = 32, TILES = 16, COLUMNS = 2 * TILES + 2;
constexpr int PITCH = 4 * COLUMNS + 1;  // of a channel's inputs: odd, for the banks

// B^T times four inputs of which each is `step` after the last.
__device__ __forceinline__ void transform(const float* d, int step, float (&to)[4]) {
  to[0] = d[0] - d[2 * step], to[1] = d[step] + d[2 * step];
  to[2] = d[2 * step] - d[step], to[3] = d[step] - d[3 * step];
}

extern "C" __global__ void __launch_bounds__(256, 1)
winograd_input(const scalar_t* __restrict__ x,  // [N, C, H, W]
               scalar_t* __restrict__ v,        // [N, TH, TW, 16, DEPTH]
               const WinogradInputParams p) {
  __shared__ float inputs[CHANNELS * PITCH];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const index_t blocks_c = ceil_div(p.depth, CHANNELS), blocks_w = ceil_div(p.tiles_w, TILES);
  index_t block = static_cast<index_t>(blockIdx.x);
  const index_t c0 = block % blocks_c * CHANNELS;
  block /= blocks_c;
  const index_t tw0 = block % blocks_w * TILES;
  block /= blocks_w;
  const index_t th = block % p.tiles_h, n = block / p.tiles_h;

  for (int i = thread; i < CHANNELS * 4 * COLUMNS; i += 256) {
    const int channel = p.channels_last ? i % CHANNELS : i / (4 * COLUMNS);
    const int place = p.channels_last ? i / CHANNELS : i % (4 * COLUMNS);
    const index_t c = c0 + channel, h = 2 * th + place / COLUMNS - p.low_h, w = 2 * tw0 + place % COLUMNS - p.low_w;
    const bool inside = c < p.c && h >= 0 && h < p.h && w >= 0 && w < p.w;
    inputs[channel * PITCH + place] = inside ? x[n * p.x_n + c * p.x_c + h * p.x_h + w * p.x_w] : 0.0f;
  }
  __syncthreads();

  for (int tile = thread / 32; tile < TILES; tile += 8) {
    if (tw0 + tile >= p.tiles_w || c0 + lane >= p.depth) continue;
    const float* const d = inputs + lane * PITCH + 2 * tile;
    float columns[4][4];
#pragma unroll
    for (int j = 0; j < 4; ++j) transform(d + j, COLUMNS, columns[j]);
    scalar_t* const to = v + ((n * p.tiles_h + th) * p.tiles_w + tw0 + tile) * 16 * p.depth + c0 + lane;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float row[4] = {columns[0][i], columns[1][i], columns[2][i], columns[3][i]};
      float result[4];
      transform(row, 1, result);
#pragma unroll
      for (int j = 0; j < 4; ++j) to[(i * 4 + j) * p.depth] = result[j];
    }
  }
}
